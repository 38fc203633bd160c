"""Arrow files: record batches in the IPC file format (Feather too) or the stream format that `save_to_disk` writes.

Of a file any batch can be read by its number, of a stream from its first byte on; where a stream has dictionaries, which
lie between batches, it is read from its start. Memory is bounded by a batch, which whoever wrote the file chose. Knows
nothing of datasets.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.inputs.rows import Block, ShardLayout, refuse_doubled

FILE_MAGIC = b"ARROW1"


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
            narrow = pa.ipc.IpcReadOptions(included_fields=[_find_narrowest(schema)] if len(schema) else [])
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
            for place, num_bytes, batch in _iterate_stream(source, schema):
                blocks.append(Block(batch.num_rows, num_bytes, place, row))
                row += batch.num_rows
    columns = dict(zip(schema.names, schema.types, strict=True))
    return ShardLayout(row, columns, [block for block in blocks if block.num_rows])


def read_arrow(
    uri: str, size: int | None, etag: str, first_row: int, num_rows: int, byte_start: int, row_at_byte: int
) -> pa.Table:
    """Return some rows of an Arrow file with all of its columns; arguments as `rows.Block` has them."""
    with storage.open_input(uri, size=size, etag=etag) as source:
        is_file, is_sequential, schema = _look_at(source)
        if is_file:
            file = pa.ipc.open_file(source)
            found = (file.get_batch(index) for index in range(byte_start, file.num_record_batches))
        elif is_sequential:
            source.seek(0)
            found = iter(pa.ipc.open_stream(source))
        else:
            source.seek(byte_start)
            found = (batch for _, _, batch in _iterate_stream(source, schema))
        skip, batches = first_row - row_at_byte, []
        for batch in found:
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            batches.append(batch.slice(skip, num_rows))
            skip, num_rows = 0, num_rows - batches[-1].num_rows
            if num_rows == 0:
                break
    return pa.Table.from_batches(batches, schema=schema)


def _look_at(source: Any) -> tuple[bool, bool, pa.Schema]:
    """Return whether it is a file, whether a stream has to be read from its start, and the schema; leave it behind that."""
    is_file = source.read(len(FILE_MAGIC)) == FILE_MAGIC
    source.seek(0)
    schema = pa.ipc.open_file(source).schema if is_file else pa.ipc.read_schema(pa.ipc.read_message(source))
    return is_file, not is_file and any(_has_dictionary(kind) for kind in schema.types), schema


def _has_dictionary(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    children = (kind.field(index).type for index in range(kind.num_fields))
    return bool(pa.types.is_dictionary(kind)) or any(_has_dictionary(child) for child in children)


def _find_narrowest(schema: pa.Schema) -> int:
    """Return a column that is cheap to read, of which the number of rows is all that is wanted."""
    widths = [field.type.bit_width if pa.types.is_primitive(field.type) else 10**6 for field in schema]
    return min(range(len(widths)), key=widths.__getitem__)


def _iterate_stream(source: Any, schema: pa.Schema) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Yield first byte, size and content of each batch from where the stream stands."""
    while True:
        place = source.tell()
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            return
        yield place, source.tell() - place, pa.ipc.read_record_batch(message, schema)
