"""Parquet shards: their footer scanned, a range of their rows read, over-large row groups decoded piecewise.

Knows nothing of other formats. Source of the footer's layout: the Parquet format's specification.
"""

from collections.abc import Container, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.inputs.columns import is_list
from rerank_actor.inputs.rows import Block, Rows, ShardLayout, choose_columns, make_rows, refuse_doubled
from rerank_actor.inputs.unit import Unit

STREAMED_GROUP_BYTES = 128 * 2**20  # a larger Parquet row group is decoded piecewise, never as a whole
FOOTER_BYTES = 64 * 1024


def scan_parquet(uri: str, size: int, list_column: str) -> ShardLayout:
    """Find rows, columns and row groups from the footer; `list_column` may hold lists, whose elements are counted."""
    if size < 12:
        raise pa.ArrowInvalid(f"{size} bytes are too few for a Parquet file")
    tail = storage.read_bytes(uri, tail_bytes=FOOTER_BYTES, size=size)
    footer_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] == b"PAR1" and len(tail) < footer_bytes <= size:
        tail = storage.read_bytes(uri, tail_bytes=footer_bytes, size=size)
    file = pq.ParquetFile(pa.BufferReader(tail))
    metadata = file.metadata
    schema = file.schema_arrow
    refuse_doubled(uri, schema.names)
    leaf = _find_leaf(file, schema, list_column)
    blocks = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        # A column chunk counts the elements of its lists, where empty and null lists count as one.
        pairs = group.column(leaf).num_values if leaf is not None else 0
        blocks.append(Block(group.num_rows, group.total_byte_size, num_pairs=pairs))
    return ShardLayout(metadata.num_rows, dict(zip(schema.names, schema.types, strict=True)), blocks)


def _find_leaf(file: pq.ParquetFile, schema: pa.Schema, list_column: str) -> int | None:
    """Return the column chunk whose values are the elements of a column of lists."""
    if schema.names.count(list_column) != 1 or not is_list(schema.field(list_column).type):
        return None
    for index in range(len(file.schema)):
        column = file.schema.column(index)
        if column.path.split(".")[0] == list_column and column.max_repetition_level == 1:
            return index
    return None


def read_parquet(unit: Unit, keep: Sequence[str] | None, drop: Container[str], text_columns: list[str]) -> Rows:
    """Read a unit's rows; columns as `make_rows` has them."""
    row_start, num_rows = unit.row_start, unit.num_rows
    with storage.open_input(unit.uri, size=unit.size, etag=unit.etag) as source:
        file = pq.ParquetFile(source, buffer_size=2**20)
        names = file.schema_arrow.names
        kept = choose_columns(names, keep, drop)
        columns = list(dict.fromkeys([*kept, *(name for name in text_columns if name in names)]))
        groups: list[int] = []
        skip = first = 0
        largest = 0
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            if first + group.num_rows > row_start and first < row_start + num_rows:
                if not groups:
                    skip = row_start - first
                groups.append(index)
                largest = max(largest, group.total_byte_size)
            first += group.num_rows
        if largest > STREAMED_GROUP_BYTES:
            table = _read_streamed(file, groups, columns, skip, num_rows)
        else:
            table = file.read_row_groups(groups, columns=columns).slice(skip, num_rows)
    return make_rows(table, kept, text_columns)


def _read_streamed(file: pq.ParquetFile, groups: list[int], columns: list[str], skip: int, num_rows: int) -> pa.Table:
    """Decode over-large row groups in small batches and keep only the wanted rows."""
    batches = []
    for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=columns):
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        batch = batch.slice(skip, num_rows)
        skip = 0
        num_rows -= batch.num_rows
        batches.append(batch)
        if num_rows == 0:
            break
    return pa.Table.from_batches(batches, schema=pa.schema([file.schema_arrow.field(name) for name in columns]))
