"""Ids: values of any column as the text by which they are compared, wherever they are read, and those written in two ways.

Takes values and columns, gives text or nulls for what is no id. Knows nothing of what the ids name, or of where they are from.
"""

import contextlib
import math
from decimal import Decimal
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.inputs.columns import EXACT_INTEGER, FAILURES, is_text, to_texts
from rerank_actor.storage.utf8 import is_unicode

Ids: TypeAlias = pa.Array | pa.ChunkedArray


def read_id(value: Any) -> str | None:
    """Return an id as text, by which ids are compared wherever they are read; None for what is no id."""
    if isinstance(value, str):
        return value if value and is_unicode(value) else None
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        is_exact = isinstance(value, Decimal) or abs(value) <= EXACT_INTEGER  # beyond, several ids have become one
        return str(int(value)) if is_exact else None  # of a column with nulls that passed through pandas
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def read_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of ids as `read_id` has them: large_string [num_rows], null where there is none."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.large_string())
    with contextlib.suppress(*FAILURES):  # bytes that are no text are left to the loop below
        if is_text(column.type) and not pa.types.is_dictionary(column.type):
            texts = column.cast(pa.large_string())
            texts.validate(full=True)
            return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.large_string()), texts)
    chunks = []
    for chunk in column.chunks:
        encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        values = to_texts(pa.chunked_array([encoded.dictionary]))
        chunks.append(pa.array([read_id(value) for value in values], pa.large_string()).take(encoded.indices))
    return pa.chunked_array(chunks, pa.large_string())


def write_whole(ids: pa.Array) -> pa.Array:
    """Return ids, alone or before a unit separator, with 7 for 7.0; text does not say whether they are one."""
    return pc.replace_substring_regex(ids, r"^(-?\d+)\.0+($|\x1f)", r"\1\2")


def find_fractions(ids: Ids) -> pa.Array:
    """Return the distinct ids that are written as 7.0 is: large_string, most often none."""
    distinct = pc.unique(ids).cast(pa.large_string())
    return distinct.filter(pc.not_equal(write_whole(distinct), distinct))


def find_other_spelling(fractions: pa.Array, others: Ids) -> str | None:
    """Return one of some ids such as 7.0 that is written 7 among others; None where there is none."""
    if not len(fractions):
        return None
    known = pc.is_in(write_whole(fractions), value_set=pc.unique(others).cast(pa.large_string()))
    return next(iter(fractions.filter(known).to_pylist()), None)
