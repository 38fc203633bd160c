"""The digest of rows: a hash over names, types and values of all columns in order, the same before Parquet and after it.

A worker takes it of the rows that it has scored, before they are written; whoever reads the part takes it again. Null values
count as null whatever lies under them, and chunks, offsets and dictionaries do not count. Values of extension types count as
their storage, which is what a process reads that does not know the type. Knows nothing of what rows mean.
"""

import functools
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIGITS = 32
BY_STORAGE = "s"  # of digests in which values of extension types count


def digest_rows(table: pa.Table) -> str:
    """Return the digest of a table that was read from Parquet, or of one that is about to be written.

    Returns:
        Hex digits, behind `BY_STORAGE` where values of extension types count.
    """
    extended = [field.name for field in table.schema if _is_extended(field)]
    if not extended:
        return _digest(table)
    try:
        plain = table.cast(pa.schema([_strip(field) for field in table.schema]))
    except pa.ArrowException:  # nested in a type that Arrow does not cast
        return _digest_around(table, extended)
    return BY_STORAGE + _digest(plain)


def has_digest(table: pa.Table, digest: str) -> bool:
    """Whether the rows of a table have a digest, be it one of before, when values of extension types did not count."""
    extended = [field.name for field in table.schema if _is_extended(field)]
    if not extended or digest.startswith(BY_STORAGE):
        return digest_rows(table) == digest
    return _digest_around(table, extended) == digest


def _digest_around(table: pa.Table, extended: Sequence[str]) -> str:
    """Return the digest of all columns but some, of which the names alone count, and stand first."""
    return _digest(table.drop_columns(list(extended)), extended)


def _digest(table: pa.Table, extended: Sequence[str] = ()) -> str:
    schema = _read_back(table.schema.remove_metadata())
    hashed = hashlib.sha256()
    hashed.update(table.num_rows.to_bytes(8, "little"))
    for name in extended:
        hashed.update(f"{name}\0extension\0".encode("utf-8", "surrogatepass"))
    for field, column in zip(schema, table.columns, strict=True):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        hashed.update(f"{field.name}\0{kind}\0".encode("utf-8", "surrogatepass"))
        column = column if column.type == kind else column.cast(kind)
        _add(hashed, pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind))
    return hashed.hexdigest()[:DIGITS]


def _is_extended(field: pa.Field) -> bool:
    """Whether a column is of an extension type, or holds one, whether or not this process knows it."""
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return True
    return any(_is_extended(kind.field(index)) for index in range(kind.num_fields))


def _strip(field: pa.Field) -> pa.Field:
    """Return a column's field with storage types for extension types, and without metadata, which may name them."""
    kind = field.type
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    children = [_strip(kind.field(index)) for index in range(kind.num_fields)]
    if pa.types.is_struct(kind):
        kind = pa.struct(children)
    elif pa.types.is_fixed_size_list(kind):
        kind = pa.list_(children[0], kind.list_size)
    elif pa.types.is_large_list(kind):
        kind = pa.large_list(children[0])
    elif pa.types.is_list(kind):
        kind = pa.list_(children[0])
    elif pa.types.is_map(kind):
        kind = pa.map_(*children[0].type)
    return pa.field(field.name, kind, field.nullable)


@functools.lru_cache(maxsize=64)
def _read_back(schema: pa.Schema) -> pa.Schema:
    """Return the schema that is read of what is written with this one; Parquet has no seconds, for one."""
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    return pq.read_schema(pa.BufferReader(sink.getvalue())).remove_metadata()


def _add(hashed: Any, array: pa.Array) -> None:
    """Hash an array: which values are null, then the others, nested ones level by level."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        _add(hashed, array.dictionary_decode())
    elif pa.types.is_null(kind):
        hashed.update(len(array).to_bytes(8, "little"))
    else:
        hashed.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)))
        _add_valid(hashed, array.drop_null() if array.null_count else array)


def _add_valid(hashed: Any, array: pa.Array) -> None:
    kind = array.type
    if pa.types.is_struct(kind):
        for child in array.flatten():
            _add(hashed, child)
    elif pa.types.is_fixed_size_list(kind):
        _add(hashed, array.flatten())
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        offsets = array.offsets.to_numpy()
        hashed.update(np.diff(offsets).astype("<i8"))
        values = array.values if not pa.types.is_map(kind) else _pair_map(array)
        _add(hashed, values.slice(int(offsets[0]), int(offsets[-1] - offsets[0])) if len(offsets) else values)
    elif pa.types.is_boolean(kind):
        hashed.update(np.packbits(array.to_numpy(zero_copy_only=False)))
    elif pa.types.is_fixed_size_binary(kind) or pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        width = kind.bit_width // 8
        values = array.buffers()[1]
        if values is not None:
            hashed.update(memoryview(values)[array.offset * width : (array.offset + len(array)) * width])
    else:
        _add_bytes(hashed, array.cast(pa.large_binary()))


def _pair_map(array: pa.MapArray) -> pa.Array:
    """Return keys and values of all entries of a map, those before its first and behind its last included."""
    return pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])


def _add_bytes(hashed: Any, array: pa.LargeBinaryArray) -> None:
    _, offsets_buffer, values = array.buffers()
    offsets = np.frombuffer(offsets_buffer, "<i8")[array.offset : array.offset + len(array) + 1]
    hashed.update(np.diff(offsets).astype("<i8"))
    if values is not None and len(offsets):
        hashed.update(memoryview(values)[int(offsets[0]) : int(offsets[-1])])
