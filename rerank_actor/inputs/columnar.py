"""Columnar shards, Parquet and Arrow: what they hold scanned, a range of their rows read.

Of Parquet the footer is scanned, and over-large row groups are decoded piecewise. Of an Arrow file (Feather too) any batch
can be read by its number, of a stream as `save_to_disk` writes it from its first byte on; where a stream has dictionaries,
which lie between batches, it is read from its start. Knows nothing of texts. Source of the footer's layout: the Parquet
format's specification.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.inputs.columns import (
    LARGE_GROUP_BYTES,
    decode_schema,
    find_type,
    has_extension,
    is_list,
    settle_schema,
)
from rerank_actor.inputs.formats import ARROW_FILE
from rerank_actor.inputs.rows import (
    Block,
    Rows,
    ShardLayout,
    Unit,
    choose_columns,
    list_sources,
    make_rows,
    refuse_doubled,
)
from rerank_actor.inputs.training.documents import holds_systems

FOOTER_BYTES = 64 * 1024
PIECE_ROWS = 1024  # of a row group that is decoded piecewise
LOCAL_BYTES, REMOTE_BYTES = 2**20, 2**23  # that are read of a column of such a row group at a time
TOGETHER_BYTES = 32 * 2**20  # of smaller row groups that are read at once


def spare_memory(
    file: pq.ParquetFile, source: BinaryIO, uri: str, groups: Iterable[int], group_bytes: int = LARGE_GROUP_BYTES
) -> pq.ParquetFile:
    """Return a Parquet file opened anew where some row groups are so large that they are to be read a piece at a time.

    Else Arrow takes all bytes of all columns that are read before it gives the first row.

    Args:
        file: as it was opened, which is given back where no row group is that large.
        source: what it was opened from.
        uri: of it.
        groups: that are to be read.
        group_bytes: that a larger one has.
    """
    if all(file.metadata.row_group(group).total_byte_size <= group_bytes for group in groups):
        return file
    return pq.ParquetFile(
        source,
        metadata=file.metadata,
        buffer_size=REMOTE_BYTES if storage.is_remote(uri) else LOCAL_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
    )


def _share_groups(metadata: pq.FileMetaData, groups: Iterable[int], most_bytes: int) -> Iterator[list[int]]:
    """Yield row groups that are read together: as many as have so many bytes, which Arrow takes at once, or one."""
    some: list[int] = []
    held = 0
    for group in groups:
        size = metadata.row_group(group).total_byte_size
        if some and held + size > most_bytes:
            yield some
            some, held = [], 0
        some.append(group)
        held += size
    if some:
        yield some


def iterate_parquet(
    file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of row groups in batches, without the dictionaries in lists and structs."""
    schema = pa.schema([file.schema_arrow.field(name) for name in columns])
    decoded = decode_schema(schema)
    most_bytes = TOGETHER_BYTES if decoded.equals(schema) else 0
    for some in _share_groups(file.metadata, groups, most_bytes):
        for batch in file.iter_batches(batch_size=batch_rows, row_groups=some, columns=list(columns)):
            yield batch if decoded.equals(schema) else batch.cast(decoded)


def scan_parquet(uri: str, size: int, list_columns: Sequence[str]) -> ShardLayout:
    """Find rows, columns and row groups from the footer; `list_columns` may hold lists, whose elements are counted."""
    if size < 12:
        raise pa.ArrowInvalid(f"{size} bytes are too few for a Parquet file")
    tail = storage.read_bytes(uri, tail_bytes=FOOTER_BYTES, size=size)
    footer_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] == b"PAR1" and len(tail) < footer_bytes <= size:
        tail = storage.read_bytes(uri, tail_bytes=footer_bytes, size=size)
    file = pq.ParquetFile(pa.BufferReader(tail))
    metadata = file.metadata
    schema = settle_schema(file.schema_arrow)
    refuse_doubled(uri, schema.names)
    found = [_find_leaves(file, schema, name) for name in list_columns]
    leaves = [leaf for of_column in found for leaf in of_column]
    plain = found.count([]) if len(found) > 1 else 0  # of several columns each that holds no lists has a document a row
    blocks = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        # A column chunk counts the elements of its lists, where empty and null lists count as one.
        pairs = sum(group.column(leaf).num_values for leaf in leaves) + plain * group.num_rows
        blocks.append(Block(group.num_rows, group.total_byte_size, num_pairs=pairs))
    return ShardLayout(metadata.num_rows, dict(zip(schema.names, schema.types, strict=True)), blocks)


def _find_leaves(file: pq.ParquetFile, schema: pa.Schema, list_column: str) -> list[int]:
    """Return the column chunks whose values are the elements of a column of lists: one, or one for each system's lists."""
    kind = find_type(dict(zip(schema.names, schema.types, strict=True)), list_column)
    if kind is None or not (is_list(kind) or holds_systems(kind)):
        return []
    found = [
        index
        for index in range(len(file.schema))
        if f"{file.schema.column(index).path}.".startswith(f"{list_column}.")
        and file.schema.column(index).max_repetition_level == 1
    ]
    return found[:1] if is_list(kind) else found


def read_parquet(
    unit: Unit, keep: Sequence[str] | None, drop: Container[str], text_columns: list[str], group_bytes: int
) -> Rows:
    """Read a unit's rows; columns as `make_rows` has them. Row groups of more than `group_bytes` are decoded piecewise."""
    with storage.open_input(unit.uri, size=unit.size, etag=unit.etag) as source:
        plain = pq.ParquetFile(source, page_checksum_verification=True)
        names = plain.schema_arrow.names
        kept = choose_columns(names, keep, drop)
        columns = list(dict.fromkeys([*kept, *list_sources(names, text_columns)]))
        groups, skip = _list_groups(plain.metadata, unit)
        file = spare_memory(plain, source, unit.uri, groups, group_bytes)
        is_large = file is not plain
        schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        decoded = decode_schema(schema)
        if is_large or decoded != schema:
            batches = iterate_parquet(file, groups, columns, PIECE_ROWS if is_large else max(1, unit.num_rows))
            table = pa.Table.from_batches(_take_rows(batches, skip, unit.num_rows), schema=decoded)
        else:
            table = file.read_row_groups(groups, columns=columns).slice(skip, unit.num_rows)
    return make_rows(table, kept, text_columns)


def _list_groups(metadata: pq.FileMetaData, unit: Unit) -> tuple[list[int], int]:
    """Return the row groups that hold a unit's rows, and how many rows of the first come before them."""
    groups: list[int] = []
    skip = first = 0
    for index in range(metadata.num_row_groups):
        end = first + metadata.row_group(index).num_rows
        if end > unit.row_start and first < unit.row_start + unit.num_rows:
            skip = skip if groups else unit.row_start - first
            groups.append(index)
        first = end
    return groups, skip


def scan_arrow(uri: str, size: int, etag: str) -> ShardLayout:
    """Find the batches of an Arrow file.

    Raises:
        InputError: two of its columns have one name.
    """
    with storage.open_input(uri, size=size, etag=etag) as source:
        is_file, is_sequential, schema = _look_at(source)
        refuse_doubled(uri, schema.names)
        blocks: list[Block] = []
        row = 0
        if is_file:
            narrow = pa.ipc.IpcReadOptions(included_fields=[_choose_narrowest(schema)] if len(schema) else [])
            file = pa.ipc.open_file(source, options=narrow)
            lengths = [file.get_batch(index).num_rows for index in range(file.num_record_batches)]
            for index, length in enumerate(lengths):
                blocks.append(Block(length, size * length // max(1, sum(lengths)), index, row))
                row += length
        elif is_sequential:
            source.seek(0)
            for batch in pa.ipc.open_stream(source):
                blocks.append(Block(batch.num_rows, batch.nbytes, 0, 0))
                row += batch.num_rows
        else:
            for byte_start, num_bytes, batch in _iterate_stream(source, schema):
                blocks.append(Block(batch.num_rows, num_bytes, byte_start, row))
                row += batch.num_rows
    columns = dict(zip(schema.names, settle_schema(schema).types, strict=True))
    return ShardLayout(row, columns, [block for block in blocks if block.num_rows])


def read_arrow(unit: Unit) -> pa.Table:
    """Return a unit's rows of an Arrow file with all of its columns."""
    with storage.open_input(unit.uri, size=unit.size, etag=unit.etag) as source:
        is_file, is_sequential, schema = _look_at(source)
        if is_file:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(unit.byte_start, file.num_record_batches))
        elif is_sequential:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        else:
            source.seek(unit.byte_start)
            batches = (batch for _, _, batch in _iterate_stream(source, schema))
        slices = _take_rows(batches, unit.row_start - unit.number, unit.num_rows)
    table = pa.Table.from_batches(slices, schema=schema)
    settled = settle_schema(schema)
    return table if settled == schema else table.cast(settled)


def _take_rows(batches: Iterable[pa.RecordBatch], skip: int, num_rows: int) -> list[pa.RecordBatch]:
    """Return so many rows of batches behind those to skip, and read no further."""
    slices: list[pa.RecordBatch] = []
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        slices.append(batch.slice(skip, num_rows))
        skip, num_rows = 0, num_rows - slices[-1].num_rows
        if num_rows == 0:
            break
    return slices


def _look_at(source: Any) -> tuple[bool, bool, pa.Schema]:
    """Return whether it is a file, whether a stream has to be read from its start, and the schema; leave it behind that."""
    is_file = source.read(len(ARROW_FILE)) == ARROW_FILE
    source.seek(0)
    schema = pa.ipc.open_file(source).schema if is_file else pa.ipc.read_schema(pa.ipc.read_message(source))
    return is_file, not is_file and any(_has_dictionary(kind) for kind in schema.types), schema


def _has_dictionary(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    children = (kind.field(index).type for index in range(kind.num_fields))
    return bool(pa.types.is_dictionary(kind)) or any(_has_dictionary(child) for child in children)


def _choose_narrowest(schema: pa.Schema) -> int:
    """Return a column that is cheap to read, of which the number of rows is all that is wanted."""
    widths = [field.type.bit_width if pa.types.is_primitive(field.type) else 10**6 for field in schema]
    return min(range(len(widths)), key=widths.__getitem__)


def _iterate_stream(source: Any, schema: pa.Schema) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Yield first byte, size and content of each batch from where the stream stands."""
    while True:
        start = source.tell()
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            return
        yield start, source.tell() - start, pa.ipc.read_record_batch(message, schema)


def read_own_table(data: bytes, skip: Container[str] = ()) -> pa.Table:
    """Read a Parquet file of the project's own, none of which has extension types, without the columns to skip.

    Raises:
        pyarrow.ArrowException: it is damaged or not the project's.
    """
    if storage.is_broken(data):
        raise pa.ArrowInvalid("its checksum is of other bytes")
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        table = file.read([name for name in file.schema_arrow.names if name not in skip])
    except (OSError, UnicodeDecodeError) as error:  # of damaged headers
        raise pa.ArrowInvalid(str(error)) from error
    if any(has_extension(kind) for kind in table.schema.types):
        raise pa.ArrowTypeError("a column is of an extension type")
    return table
