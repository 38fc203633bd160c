"""Columns: Arrow types of input columns, and values on their way between Python and Arrow.

JSON has no schema: `merge_types` finds a type that holds what several rows show, `to_array` puts values into it, as
JSON text where nothing else holds them all. Extension types are taken off before values become Python's, because such
a type may run code. Knows nothing of formats.
"""

import contextlib
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.storage.utf8 import is_unicode

RESERVED_COLUMNS = ("score", "logit", "num_tokens", "truncated_tokens", "error")

EXACT_INTEGER = 2**53  # up to it a float64 holds all integers
WIDE_INTEGER = pa.decimal128(19, 0)  # while types are merged, int64 of which some are beyond it

LARGE_GROUP_BYTES = 128 * 2**20  # of a Parquet row group that is not decoded as a whole

MAX_DEPTH = 16  # of a JSON column; readers of Parquet fail on trees
MAX_FIELDS = 256  # of its objects together; time grows with rows times fields
JSON_TEXT = pa.large_string()  # while types are merged, a column beyond these, kept as JSON text

VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}

FAILURES = (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError)


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of the list types."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def locate(names: Container[str], path: str) -> tuple[str, list[str]]:
    """Return the column that a name means, and the fields below it: `passages.text` is a column, else a field of `passages`."""
    column, fields = path, list[str]()
    while column not in names and "." in column:
        column, _, field = column.rpartition(".")
        fields.insert(0, field)
    return (column, fields) if column in names else (path, [])


def find_type(columns: Mapping[str, pa.DataType], path: str) -> pa.DataType | None:
    """Return the type of a column, or of a field of structs, in lists or not; None where there is none."""
    column, fields = locate(columns, path)
    if column not in columns:
        return None
    kind = columns[column]
    for field in fields:
        inner = kind.value_type if is_list(kind) else kind
        if not pa.types.is_struct(inner) or inner.get_field_index(field) < 0:
            return None
        found = inner.field(field).type
        kind = pa.list_(found) if is_list(kind) else found
    return kind


def find_values(table: pa.Table, path: str) -> pa.ChunkedArray | None:
    """Return a column, or a field of its structs; None where there is none. A field of lists of structs is no column."""
    column, fields = locate(table.column_names, path)
    if find_type(dict(zip(table.column_names, table.schema.types, strict=True)), path) is None:
        return None
    return pc.struct_field(table[column], fields) if fields else table[column]


def take_fields(value: Any, fields: Sequence[str]) -> Any:
    """Return a field of a JSON value, or what lists of such values have there; None where there is none."""
    if not fields:
        return value
    if isinstance(value, list):
        return [take_fields(item, fields) for item in value]
    return take_fields(value.get(fields[0]), fields[1:]) if isinstance(value, dict) else None


def is_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type may be texts; those of a column of nulls may."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def decode_type(kind: pa.DataType) -> pa.DataType:
    """Return a type without the dictionaries in its lists and structs."""
    return decode_type(kind.value_type) if pa.types.is_dictionary(kind) else change_inner(kind, decode_type)


def decode_dictionary(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the values of a column of categories; any other column as it is."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def change_inner(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a type with those changed that it has in its lists, structs and maps; any other as it is."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(change(kind.value_type)), kind.list_size)
    if is_list(kind):
        make = pa.large_list if pa.types.is_large_list(kind) else pa.list_
        return make(kind.value_field.with_type(change(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(change(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(change(kind.key_type), change(kind.item_type), kind.keys_sorted)
    return kind


def settle_views(kind: pa.DataType) -> pa.DataType:
    """Return a type with plain texts and bytes in place of views, as Polars and DataFusion write them.

    Arrow 26 takes no values of views, neither by their places nor those that are not null.
    """
    if isinstance(kind, pa.BaseExtensionType):
        settled = settle_views(kind.storage_type)
        return kind if settled == kind.storage_type else settled
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, settle_views(kind.value_type), kind.ordered)
    return VIEWS.get(kind) or change_inner(kind, settle_views)


def is_storable(kind: pa.DataType) -> bool:
    """Whether Parquet holds all values of a type, and Arrow gives them back."""
    types = pa.types
    if types.is_dictionary(kind):
        return not types.is_nested(kind.value_type) and is_storable(kind.value_type)
    if types.is_run_end_encoded(kind) or types.is_interval(kind) or types.is_union(kind):
        return False
    if types.is_list_view(kind) or types.is_large_list_view(kind) or (types.is_struct(kind) and not kind.num_fields):
        return False
    return all(is_storable(kind.field(index).type) for index in range(kind.num_fields))


def settle_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema without views."""
    return pa.schema([field.with_type(settle_views(field.type)) for field in schema], metadata=schema.metadata)


def decode_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema without views, and without the dictionaries in lists and structs of several row groups.

    Of these Arrow 26 reads one row group at a time alone.
    """
    return pa.schema(
        [
            field.with_type(decode_type(field.type)) if pa.types.is_nested(field.type) else field
            for field in settle_schema(schema)
        ],
        metadata=schema.metadata,
    )


def merge_types(first: pa.DataType | None, second: pa.DataType) -> pa.DataType:
    """Return a type that holds the values of both; text, as JSON, where there is no other."""
    if first is None or first == second or pa.types.is_null(first):
        return second
    if pa.types.is_null(second):
        return first
    if JSON_TEXT in (first, second):
        return JSON_TEXT
    if is_list(first) and is_list(second):
        return pa.list_(merge_types(first.value_type, second.value_type))
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        fields = {field.name: field.type for field in first}
        for field in second:
            fields[field.name] = merge_types(fields.get(field.name), field.type)
        return pa.struct(list(fields.items()))
    kinds = {first, second}
    if kinds == {WIDE_INTEGER, pa.int64()}:
        return WIDE_INTEGER
    if kinds & {WIDE_INTEGER, pa.uint64()}:
        return pa.string()
    if pa.types.is_nested(first) or pa.types.is_nested(second):
        return pa.string()
    schemas = [pa.schema([("value", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("value").type
    except pa.ArrowException:
        return pa.string()


def settle_type(kind: pa.DataType) -> pa.DataType:
    """Return a merged type as columns have it."""
    if pa.types.is_list(kind):
        return pa.list_(settle_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, settle_type(field.type)) for field in kind])
    return pa.int64() if kind == WIDE_INTEGER else pa.string() if kind == JSON_TEXT else kind


def merge_columns(first: pa.DataType | None, second: pa.DataType) -> pa.DataType:
    """Return a merged type of a JSON column; `JSON_TEXT` where it has too many fields."""
    return bound_type(merge_types(first, second))


def bound_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a JSON column, `JSON_TEXT` where it has too many fields."""
    return JSON_TEXT if _count_fields(kind) > MAX_FIELDS else kind


def _count_fields(kind: pa.DataType) -> int:
    """Return the number of fields of structs in a type, at any depth."""
    if is_list(kind):
        return _count_fields(kind.value_type)
    return sum(1 + _count_fields(field.type) for field in kind) if pa.types.is_struct(kind) else 0


def _is_deep_or_wide(values: list[Any]) -> bool:
    """Whether JSON values are nested too deep, or their objects have too many fields together."""
    places: dict[tuple[int, Any], int] = {}  # a number for each place where objects or lists may have values
    level = [(0, value) for value in values if isinstance(value, list | dict)]
    for _ in range(MAX_DEPTH):
        following: list[tuple[int, Any]] = []
        for at, value in level:
            if isinstance(value, list):
                following += [(-1 - at, item) for item in value if isinstance(item, list | dict)]
                continue
            for name, item in value.items():
                number = places.setdefault((at, name), len(places) + 1)
                if isinstance(item, list | dict):
                    following.append((number, item))
            if len(places) > MAX_FIELDS:
                return True
        if not following:
            return False
        level = following
    return True


def widen_types(types: Mapping[str, pa.DataType], objects: list[dict[str, Any]]) -> dict[str, pa.DataType]:
    """Return the types of JSON columns, widened by those of some more rows."""
    names = dict.fromkeys(name for item in objects for name in item)
    return {
        **types,
        **{name: merge_columns(types.get(name), _infer_type([item.get(name) for item in objects])) for name in names},
    }


def list_not_unicode(values: list[Any]) -> list[int]:
    """Return the rows of values in which there are lone surrogates, which stand for what is not Unicode."""
    texts = ("" if value is None else value if isinstance(value, str) else _write_json(value) for value in values)
    return [row for row, text in enumerate(texts) if not is_unicode(text)]


def _infer_type(values: list[Any]) -> pa.DataType:
    if _is_deep_or_wide(values):
        return JSON_TEXT
    try:
        kind = pa.array(values).type
    except FAILURES:  # Arrow takes no mixture, also deep inside
        kind = None
    if kind is None or (_has_numbers(kind) and any(map(_may_change, values))):
        kind = _merge_all(map(_type_of, values))
    return pa.string() if _has_empty_struct(kind) else kind  # Parquet cannot hold one


def list_leaves(kind: pa.DataType) -> list[pa.DataType]:
    """Return the types in a type that are no list and no struct."""
    if is_list(kind):
        return list_leaves(kind.value_type)
    return [leaf for field in kind for leaf in list_leaves(field.type)] if pa.types.is_struct(kind) else [kind]


def _has_numbers(kind: pa.DataType) -> bool:
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(check(leaf) for leaf in list_leaves(kind) for check in is_number)


def _is_wide(value: Any) -> bool:
    """Whether a JSON value is, or holds, a number that a float64 does not."""
    if isinstance(value, list):
        return any(map(_is_wide, value))
    if isinstance(value, dict):
        return any(map(_is_wide, value.values()))
    return isinstance(value, Decimal) or (isinstance(value, int) and abs(value) > EXACT_INTEGER)


def _may_change(value: Any) -> bool:
    """Whether Arrow may make another value of a JSON value beside others: a float of a wide integer, a number of a truth."""
    if isinstance(value, list):
        return any(map(_may_change, value))
    if isinstance(value, dict):
        return any(map(_may_change, value.values()))
    return isinstance(value, bool) or _is_wide(value)


def _type_of(value: Any) -> pa.DataType:
    if isinstance(value, list):
        return pa.list_(_merge_all(_type_of(item) for item in value))
    if isinstance(value, dict):
        return pa.struct([(as_text(name), _type_of(item)) for name, item in value.items()])
    if isinstance(value, Decimal):
        return pa.string()
    try:
        kind = pa.array([value]).type
        return WIDE_INTEGER if kind == pa.int64() and _is_wide(value) else kind
    except FAILURES:
        return pa.string()


def _merge_all(kinds: Iterable[pa.DataType]) -> pa.DataType:
    merged = pa.null()
    for kind in kinds:
        merged = merge_types(merged, kind)
    return merged


def to_array(values: list[Any], wanted: pa.DataType | None = None) -> tuple[pa.Array, list[int]]:
    """Return values as an Arrow array, and the rows of what was not Unicode and is now.

    It is of the wanted type, or of what they show; it holds JSON text where neither goes.
    """
    kind = settle_type(_infer_type(values)) if wanted is None else wanted
    if pa.types.is_string(kind):
        with contextlib.suppress(*FAILURES):
            return pa.array(values, kind), []
    else:
        with contextlib.suppress(*FAILURES):
            inferred = pa.array(values)
            if inferred.type == kind and not (_has_numbers(kind) and any(map(_may_change, values))):
                return inferred, []
        with contextlib.suppress(*FAILURES):
            # Arrow cuts 1.5 to a wanted int64 and drops fields that a wanted struct lacks, without a word.
            return pa.array([_conform(value, kind) for value in values], kind), list_not_unicode(values)
    return pa.array([as_text(value) for value in values], pa.string()), list_not_unicode(values)


def to_whole_array(values: list[Any]) -> tuple[pa.Array, list[int]]:
    """Return values as an array for which no other values matter, and the rows of what was not Unicode and is now.

    It is of the type that they show; objects become JSON text, because others may have other fields.
    """
    if not _is_deep_or_wide(values):
        with contextlib.suppress(*FAILURES):
            array = pa.array(values)
            if not pa.types.is_struct(array.type) and not (_has_numbers(array.type) and any(map(_may_change, values))):
                return array, []
    array, replaced = to_array(values)
    if pa.types.is_struct(array.type):
        array, replaced = pa.array([as_text(value) for value in values], pa.string()), list_not_unicode(values)
    return array, replaced


def _conform(value: Any, kind: pa.DataType) -> Any:
    """Return a JSON value as Arrow takes it for a type.

    Raises:
        TypeError: it does not go into the type whole.
    """
    if value is None:
        return None
    if pa.types.is_string(kind):
        return as_text(value)
    if is_list(kind) and isinstance(value, list):
        return [_conform(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind) and isinstance(value, dict):
        types = {field.name: field.type for field in kind}
        return {name: _conform(item, types[name]) for name, item in value.items() if _require(name, types)}
    if pa.types.is_floating(kind) and isinstance(value, int | float) and not isinstance(value, bool):
        if _is_wide(value):
            raise TypeError("an integer is beyond what a float holds")
        return float(value)
    if pa.types.is_integer(kind) and isinstance(value, int) and not isinstance(value, bool):
        return value
    if pa.types.is_boolean(kind) and isinstance(value, bool):
        return value
    raise TypeError(f"a {type(value).__name__} is no {kind}")


def _require(name: str, types: dict[str, pa.DataType]) -> bool:
    if name not in types:
        raise TypeError("a field is not in the type")
    return True


def _has_empty_struct(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return is_list(kind) and _has_empty_struct(kind.value_type)


def _write_json(value: Any) -> str:
    """Return a value as JSON, with the digits of a number as they were written."""
    with contextlib.suppress(TypeError):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_write_json(name)}: {_write_json(item)}" for name, item in value.items()) + "}"
    return "[" + ", ".join(map(_write_json, value)) + "]" if isinstance(value, list) else str(value)


def as_text(value: Any) -> str | None:
    """Return a value as text, JSON where it is none, without the lone surrogates that no format holds."""
    if value is None:
        return None
    text = value if isinstance(value, str) else _write_json(value)
    return text if is_unicode(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_texts(column: pa.ChunkedArray) -> list[Any]:
    """Return a column as Python values; bytes that are not UTF-8 become text with lone surrogates, a later fault."""
    if has_extension(column.type):
        column = column.cast(_strip_extensions(column.type))
    try:
        return cast(list[Any], column.to_pylist())
    except UnicodeDecodeError:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
            return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw.to_pylist()]
        return [_value_or_fault(value) for value in column]


def _value_or_fault(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return "\udc80"


def has_extension(kind: pa.DataType) -> bool:
    """Whether values are of an extension type, which may run code to become Python's: Ray registers one of pickles."""
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return has_extension(kind.value_type)
    return any(has_extension(kind.field(index).type) for index in range(kind.num_fields))


def _strip_extensions(kind: pa.DataType) -> pa.DataType:
    """Return the storage type of texts, or of lists of them."""
    if isinstance(kind, pa.BaseExtensionType):
        return _strip_extensions(kind.storage_type)
    if is_list(kind):
        return pa.list_(_strip_extensions(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _strip_extensions(field.type)) for field in kind])
    if has_extension(kind):
        raise pa.ArrowTypeError(f"a column of texts is of type {kind}")
    return kind
