"""What is wrong with a text that cannot be scored, in the words that stand in a row's `error`.

Takes values of any type. Knows nothing of tokens or prompts.
"""

from typing import Any

from rerank_actor.storage.utf8 import is_unicode

QUERY_NULL = "query is null"
QUERY_NOT_TEXT = "query is not text"
QUERY_BAD_UNICODE = "query is not valid Unicode"
QUERY_TOO_LONG = "query leaves no room for the document within max_length"
NO_CUT = "text is over 4,194,304 characters long and has no place to cut it, such as a word and a space"
DOCUMENT_NULL = "document is null"
DOCUMENT_NOT_TEXT = "document is not text"
DOCUMENT_BAD_UNICODE = "document is not valid Unicode"
INSTRUCTION_NOT_TEXT = "instruction is not text"
INSTRUCTION_BAD_UNICODE = "instruction is not valid Unicode"


def find_fault(query: Any, document: Any, instruction: Any) -> str | None:
    """Return why a pair cannot be scored, None where it can."""
    if query is None:
        return QUERY_NULL
    if not isinstance(query, str):
        return QUERY_NOT_TEXT
    if not isinstance(document, str):
        return find_document_fault(document)
    if not isinstance(instruction, str):
        return INSTRUCTION_NOT_TEXT
    if not is_unicode(query):
        return QUERY_BAD_UNICODE
    if not is_unicode(instruction):
        return INSTRUCTION_BAD_UNICODE
    return find_document_fault(document)


def find_document_fault(document: Any) -> str | None:
    """Return why a document cannot be scored, None where it can."""
    if document is None:
        return DOCUMENT_NULL
    if not isinstance(document, str):
        return DOCUMENT_NOT_TEXT
    return None if is_unicode(document) else DOCUMENT_BAD_UNICODE
