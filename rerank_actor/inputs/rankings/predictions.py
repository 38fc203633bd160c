"""MTEB's predictions: the candidates of a task with their scores, as one JSON object that is read query by query.

`{"mteb_model_meta": {...}, SUBSET: {SPLIT: {query: {document: score}}}}`, as mteb's `prediction_folder` holds it and
`jobs.export` writes it, with or without line ends; the first name may be missing or stand elsewhere. Rows of a plan are of
one subset and one split, because queries of others have other texts. Memory is bounded by one query. Knows nothing of plans.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from rerank_actor.errors import InputError
from rerank_actor.inputs.text import TextFile, open_text
from rerank_actor.storage.utf8 import is_unicode

CHUNK_BYTES = 2**20
META = rb'"mteb_model_meta"'
_STRING = rb'"(?:[^"\\]|\\.)*+"'
_PLAIN = rb'[^"{}]*+(?:' + _STRING + rb'[^"{}]*+)*+'
_PASSED = (
    rb"(?:" + META + rb"\s*+:\s*+(?:null|\{" + _PLAIN + rb"\})|" + _STRING + rb"\s*+:\s*+\{\s*+\})"
)  # or an empty subset
_NAME = rb"(" + _STRING + rb")\s*+:\s*+\{\s*+"
HEAD = re.compile(rb"\s*+\{\s*+(?:" + _PASSED + rb"\s*+,\s*+)*+" + _NAME * 2, re.S)
ENTRY = re.compile(rb"\s*+,?\s*+(" + _STRING + rb")\s*+:\s*+(\{" + _PLAIN + rb"\})", re.S)
TAIL = re.compile(rb"\s*+\}\s*+\}\s*+(?:,\s*+" + _PASSED + rb"\s*+)*+\}\s*+", re.S)
_SUBSET = rb"\}\s*+,\s*+(?:" + _PASSED + rb"\s*+,\s*+)*+" + _NAME
ANOTHER = re.compile(rb"\s*+\}\s*+(?:" + _SUBSET + rb"|,\s*+)" + _NAME, re.S)  # subset and split, or split
STARTS_ANOTHER = re.compile(rb"\s*+\}\s*+(?:\}\s*+)?,")


def iterate_predictions(file: TextFile, start: int = 0) -> Iterator[tuple[int, int, str, list[tuple[str, float]]]]:
    """Yield first byte, the byte after, the query's id, and its documents with their scores, of each query.

    Args:
        file: the JSON.
        start: first byte of a query to begin at, or 0.

    Raises:
        InputError: it is no such JSON, has several subsets or splits, or a score is no finite number.
        OSError, EOFError: it is packed as its name does not say, or cut short.
        StorageError, JobError: it cannot be reached.
    """
    for begin, end, _, query, candidates in _iterate(file, start, several=False):
        yield begin, end, query, candidates


def iterate_sections(file: TextFile) -> Iterator[tuple[tuple[str, str], str, list[tuple[str, float]]]]:
    """Yield subset and split, the query's id, and its documents with their scores, of each query of all subsets and splits.

    Raises:
        As of `iterate_predictions`, but for several subsets or splits.
    """
    for *_, section, query, candidates in _iterate(file, 0, several=True):
        yield section, query, candidates


def _iterate(
    file: TextFile, start: int, *, several: bool
) -> Iterator[tuple[int, int, tuple[str, str], str, list[tuple[str, float]]]]:
    with open_text(file, start) as stream:
        text, place = b"", start
        is_open = start > 0
        subset = split = ""
        while True:
            chunk = stream.read(CHUNK_BYTES)
            text += chunk
            at = 0
            if not is_open and (head := HEAD.match(text)):
                is_open, at, subset, split = True, head.end(), json.loads(head[1]), json.loads(head[2])
            while is_open and (found := ENTRY.match(text, at) or (ANOTHER.match(text, at) if several else None)):
                at = found.end()
                if found.re is ENTRY:
                    yield place + found.start(1), place + at, (subset, split), *_read_query(file.uri, found)
                else:
                    subset, split = json.loads(found[1] or json.dumps(subset)), json.loads(found[2])
            text, place = text[at:], place + at
            if not chunk:
                break
            if len(text) > file.line_bytes:
                raise _refuse(file.uri, f"a query is longer than {file.line_bytes >> 20} MiB after byte {place}")
    if not is_open or not TAIL.fullmatch(text):
        if is_open and not several and STARTS_ANOTHER.match(text):
            raise _refuse(file.uri, "it holds several subsets or splits; write each to a file of its own")
        raise _refuse(file.uri, f"it is another JSON or cut short at byte {place + len(text) if is_open else 0}")


def _read_query(uri: str, entry: re.Match[bytes]) -> tuple[str, list[tuple[str, float]]]:
    """Return the id of a query, and its documents with their scores."""
    try:
        query = json.loads(entry[1])
        candidates: list[tuple[str, Any]] = json.loads(entry[2], object_pairs_hook=list)
    except ValueError as error:
        raise _refuse(uri, f"byte {entry.start()} of a query is no JSON ({error})") from error
    if len({document for document, _ in candidates}) < len(candidates):
        raise _refuse(uri, f"query {query!r} has a document twice")
    if not query or not all(document for document, _ in candidates):
        raise _refuse(uri, f"query {query!r} or one of its documents has an empty id")
    if not is_unicode(query) or not all(is_unicode(document) for document, _ in candidates):
        raise _refuse(uri, f"an id of query {query!r} or its documents is not valid Unicode")
    for document, score in candidates:
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise _refuse(uri, f"the score of document {document!r} for query {query!r} is no finite number")
    return query, [(document, float(score)) for document, score in candidates]


def _refuse(uri: str, problem: str) -> InputError:
    return InputError(
        f"{uri}: cannot be read as MTEB's predictions, which are {{subset: {{split: {{query: {{document: score}}}}}}}}: "
        f"{problem}",
        uri=uri,
    )
