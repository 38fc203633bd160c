"""Folding: texts without what nobody sees of them, by which two are the same text.

Takes texts, gives them in NFKC form, without case, and without characters that show nothing (soft hyphens, joiners, marks of
direction). What of space and punctuation counts is decided by who compares. Knows nothing of what the texts are.
"""

import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

_INVISIBLE = r"[\p{Cf}\x{fe0e}\x{fe0f}]+"


def fold_texts(texts: pa.Array) -> pa.Array:
    """Return texts as they are compared: large_string [num_texts], null for null."""
    folded = [None if text is None else _fold(text) for text in texts.to_pylist()]
    return pc.replace_substring_regex(pa.array(folded, pa.large_string()), _INVISIBLE, "")


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
