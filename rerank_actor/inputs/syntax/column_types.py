"""Types of one column in several shards: a type that holds the values of all, exactly, and values brought into it.

Numbers and texts of different types become JSON text, structs have the fields of all. Takes and gives Arrow types and
columns. Knows nothing of formats, shards or plans.
"""

import contextlib

import pyarrow as pa

from rerank_actor.inputs.columns import (
    WIDE_INTEGER,
    has_extension,
    is_list,
    is_text,
    list_leaves,
    merge_types,
    to_array,
    to_texts,
)


def widen_integers(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column whose values nobody has looked at, as `unify_types` takes it."""
    if is_list(kind):
        return pa.list_(widen_integers(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(widen_integers(field.type)) for field in kind])
    return WIDE_INTEGER if kind == pa.int64() else kind


def unify_types(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return a type that holds the values of both exactly; None where there is none."""
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    if has_extension(first) or has_extension(second):
        return None
    if is_text(first) and is_text(second):
        return pa.string()
    if is_list(first) and is_list(second):
        kind = unify_types(first.value_type, second.value_type)
        return pa.list_(kind) if kind is not None else None
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        fields = {field.name: field.type for field in first}
        for field in second:
            kind = unify_types(fields.get(field.name, pa.null()), field.type)
            if kind is None:
                return None
            fields[field.name] = kind
        return pa.struct(list(fields.items()))
    if all(_is_json(leaf) for kind in (first, second) for leaf in list_leaves(kind)):
        return merge_types(*(_widen_small(kind) for kind in (first, second)))
    for is_alike in (pa.types.is_timestamp, pa.types.is_decimal, pa.types.is_binary, pa.types.is_large_binary):
        if is_alike(first) and is_alike(second):
            return merge_types(first, second)
    return None


def _is_json(kind: pa.DataType) -> bool:
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or kind == WIDE_INTEGER
    return is_number or pa.types.is_boolean(kind) or is_text(kind)


def _widen_small(kind: pa.DataType) -> pa.DataType:
    """Return a type that loses nothing as it is merged: a float32 does not hold all of an int32."""
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.int64()
    return pa.string() if is_text(kind) else kind


def conform_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column with its values in a type that was unified from its own and others.

    Raises:
        pa.ArrowInvalid: a value does not go into it.
    """
    if column.type == kind:
        return column
    if _is_cast(column.type, kind):
        with contextlib.suppress(pa.ArrowException):
            return column.cast(kind)
    array, _ = to_array(to_texts(column), kind)
    if array.type != kind:
        raise pa.ArrowInvalid(f"a value of type {column.type} does not go into {kind}, as it was planned")
    return pa.chunked_array([array])


def _is_cast(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether Arrow's cast keeps values, which it does but for those that become text."""
    if is_list(kind) and is_list(wanted):
        return _is_cast(kind.value_type, wanted.value_type)
    if pa.types.is_struct(kind) and pa.types.is_struct(wanted):
        return all(_is_cast(field.type, wanted.field(field.name).type) for field in kind)
    return is_text(kind) or not is_text(wanted)
