"""The rows for which an expression holds: those are scored, the others are passed through.

Takes rows as they were read, or the types of a shard's columns; gives a truth value for each row, or a refusal before anything
starts. Where the expression is null it does not hold. Knows nothing of what becomes of the rows.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from rerank_actor.errors import InputError, describe_cause
from rerank_actor.inputs.columns import find_type, is_list, is_text, to_array, to_texts
from rerank_actor.inputs.rows import Rows
from rerank_actor.inputs.text import is_number
from rerank_actor.inputs.where.expression import Where, name_number

SELECTED = "selected"  # column of the output: whether a row is among those that are scored
NOT_SELECTED = "is not selected by --where"  # of a row on its way; in the output it has no error


def select_rows(rows: Rows, where: Where, types: Mapping[str, pa.DataType]) -> np.ndarray:
    """Return for which rows an expression holds: bool [num_rows].

    Args:
        rows: with the expression's columns among their texts.
        where: the expression.
        types: of columns that all parts have, as planned.

    Raises:
        pyarrow.ArrowException: a value is not of the kind that the expression takes it for.
    """
    count, arrays = rows.table.num_rows, dict[str, pa.Array | pa.ChunkedArray]()
    for name in where.columns:
        if name in rows.table.column_names:
            arrays[name] = rows.table[name]
        else:
            values = rows.texts.get(name, [None] * count)
            arrays[name] = to_array(values, types.get(name))[0] if name in rows.texts else pa.nulls(count)
    return _evaluate(pa.table(arrays), where)


def _evaluate(table: pa.Table, where: Where) -> np.ndarray:
    for name in where.numbers:
        table = table.append_column(name_number(name), _read_numbers(table[name]))
    found = ds.dataset(table).to_table(columns={SELECTED: where.condition}, use_threads=False)[SELECTED]
    if not pa.types.is_boolean(found.type):
        raise pa.ArrowTypeError(f"it gives {found.type} and no truth value")
    selected: np.ndarray = pc.fill_null(found, False).to_numpy()
    return selected


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
        cure = "a list has no one value to compare" if any(map(is_list, kinds.values())) else cure
        raise InputError(
            f"{uri}: --where {where.text!r} cannot be computed ({describe_cause(error)}): {shown}; {cure}", uri=uri
        ) from None
