"""The rows for which an expression holds: those are scored, the others are passed through.

Takes columns as they were read, or the types of a shard's; gives a truth value for each row, or a refusal before anything
starts. Where the expression is null it does not hold. Knows nothing of what becomes of the rows.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from rerank_actor.errors import InputError, describe_cause
from rerank_actor.inputs.columns import find_type, find_values, is_list, is_text, to_texts
from rerank_actor.inputs.text import is_number
from rerank_actor.inputs.where.expression import Where, name_number

SELECTED = "selected"  # column of the output: whether a row is among those that are scored
DOUBLE_DIGITS = 15  # that a double holds of any decimal number
NOT_SELECTED = "is not selected by --where"  # of a row on its way; in the output it has no error


def select_rows(table: pa.Table, where: Where) -> np.ndarray:
    """Return for which rows an expression holds: bool [num_rows].

    Args:
        table: with the expression's columns as they were read, those that are there.
        where: the expression.

    Raises:
        pyarrow.ArrowException: a value is not of the kind that the expression takes it for.
    """
    arrays = {}
    for name in where.columns:
        found = find_values(table, name)
        arrays[name] = pa.nulls(table.num_rows) if found is None else found
    return _evaluate(pa.table(arrays), where)


def _evaluate(table: pa.Table, where: Where) -> np.ndarray:
    table = pa.table({name: _to_double(table[name]) for name in table.column_names})
    for name in where.numbers:
        table = table.append_column(name_number(name), _read_numbers(table[name]))
    found = ds.dataset(table).to_table(columns={SELECTED: where.condition}, use_threads=False)[SELECTED]
    if not pa.types.is_boolean(found.type):
        raise pa.ArrowTypeError(f"it gives {found.type} and no truth value")
    selected: np.ndarray = pc.fill_null(found, False).to_numpy()
    return selected


def _to_double(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return fractions as the nearest double of their digits, so that 0.7 is 0.7 in float32 too; others as they are."""
    kind = column.type
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return column.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    if pa.types.is_decimal(kind) and kind.precision <= DOUBLE_DIGITS:
        return column.cast(pa.float64())
    return column


def _read_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the numbers of a column, null for what is none: float64 [num_rows]."""
    if not is_text(column.type):
        return column.cast(pa.float64())
    try:
        return column.cast(pa.string()).cast(pa.float64())
    except pa.ArrowInvalid:
        texts = (text if text is not None and is_number(text) else None for text in to_texts(column))
        return pa.chunked_array([pa.array([None if text is None else float(text) for text in texts], pa.float64())])


def check_types(uri: str, columns: Mapping[str, pa.DataType], where: Where) -> None:
    """Refuse an expression that cannot be computed of columns of these types.

    Args:
        uri: of the shard that has them.
        columns: name and type of each.
        where: the expression, whose columns are all there.

    Raises:
        InputError: it cannot.
    """
    kinds = {name: find_type(columns, name) or pa.null() for name in where.columns}
    try:
        _evaluate(pa.table({name: pa.array([], kind) for name, kind in kinds.items()}), where)
    except (pa.ArrowException, NotImplementedError, TypeError) as error:
        shown = ", ".join(f"`{name}` is {kind}" for name, kind in kinds.items())
        cure = (
            "float(NAME) reads numbers that are text" if any(map(is_text, kinds.values())) else "compare like with like"
        )
        if any(map(pa.types.is_temporal, kinds.values())):
            cure = "dates and times are compared with other columns of them alone"
        cure = "a list has no one value to compare" if any(map(is_list, kinds.values())) else cure
        raise InputError(
            f"{uri}: --where {where.text!r} cannot be computed ({describe_cause(error)}): {shown}; {cure}", uri=uri
        ) from None
