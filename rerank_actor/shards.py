"""Shards: input objects of rows, in Parquet, Arrow, JSON lines, CSV, TSV or runs of retrieval, and how to read some.

`scan_shard` finds how many rows an object has and where a unit of rows may begin; `read_rows` reads one unit's rows
as an Arrow table. Memory is bounded by the unit, not by the shard. Knows nothing of prompts, plans or Ray. The formats
of text are in `lines` and `line_scan`, Arrow's own in `arrow_file`, runs in `retrieval_run`.
"""

import csv
from dataclasses import replace
from typing import Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.arrow_file import read_arrow, scan_arrow
from rerank_actor.columns import is_list, to_texts
from rerank_actor.errors import InputError, ObjectChangedError, ShardChangedError, ShardError, describe_cause
from rerank_actor.layout import Block, Rows, ShardLayout, choose_columns, refuse_doubled
from rerank_actor.line_scan import LineScan, scan_lines
from rerank_actor.lines import LineRange, TextFormat, read_lines
from rerank_actor.retrieval_run import COLUMNS, RANKING_FORMATS, RankingFile, read_ranking, scan_ranking

Format = Literal["parquet", "jsonl", "csv", "tsv", "arrow", "trec", "tevatron", "qrels"]

SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".trec": "trec",
    ".run": "trec",
}
STREAMED_GROUP_BYTES = 128 * 2**20  # a larger Parquet row group is decoded piecewise, never as a whole
FOOTER_BYTES = 64 * 1024
BLOCK_ROWS, BLOCK_PAIRS = 512, 512  # of a run of lines at most; several make a unit

RESERVED_COLUMNS = ("score", "logit", "num_tokens", "truncated_tokens", "error")


def detect_format(uri: str, wanted: str = "auto") -> tuple[Format, str]:
    """Return format and compression (`""`, `gz` or `zst`) of a shard by its name.

    Raises:
        InputError: the name says nothing and no format was given.
    """
    name, compression = uri.lower(), ""
    for suffix in ("gz", "zst"):
        if name.endswith("." + suffix):
            name, compression = name[: -len(suffix) - 1], suffix
    if wanted != "auto":
        return cast(Format, wanted), compression
    for suffix, found in SUFFIXES.items():
        if name.endswith(suffix):
            return found, compression
    raise InputError(f"{uri}: the name does not tell its format; name one with --format", uri=uri)


def scan_shard(
    uri: str,
    size: int,
    wanted: str,
    block_rows: int = BLOCK_ROWS,
    break_at: int = -1,
    *,
    etag: str = "",
    list_column: str = "document",
    header: tuple[str, ...] = (),
    top_k: int | None = None,
) -> ShardLayout:
    """Find rows, columns and unit borders of a shard: a Parquet footer is read, a text file is read once.

    Args:
        uri: the shard.
        size: its stored size in bytes.
        wanted: the job's `--format`.
        block_rows: rows of a block of lines at most.
        break_at: row at which a block of lines begins whatever else.
        etag: its version mark as listed; "" where storage has none.
        list_column: the column that may hold lists of documents, which are counted.
        header: names of the columns of CSV and TSV whose first line does not have them.
        top_k: candidates of each query at most, of a run of retrieval.

    Raises:
        ShardError: the shard is not what its format says.
        ObjectChangedError: it is no longer the one that was listed.
        StorageError, JobError: it cannot be reached.
    """
    kind, compression = detect_format(uri, wanted)
    try:
        if kind == "parquet":
            return _scan_parquet(uri, size, list_column)
        if kind == "arrow":
            return scan_arrow(uri, size, etag)
        if kind in RANKING_FORMATS:
            file = RankingFile(uri, size, etag, kind, compression, top_k)
            blocks = scan_ranking(file, block_rows, break_at)
            return ShardLayout(sum(block.num_rows for block in blocks), dict(COLUMNS[kind]), blocks)
        text = cast(TextFormat, kind)
        return scan_lines(
            LineScan(uri, size, etag, text, compression, block_rows, BLOCK_PAIRS, list_column, header), break_at
        )
    except (pa.ArrowException, EOFError, OSError, ValueError, csv.Error) as error:
        raise _unreadable(uri, kind, error) from error


def _unreadable(uri: str, kind: str, error: Exception) -> ShardError:
    return ShardError(
        f"{uri}: cannot be read as {kind} ({describe_cause(error)}); it may be broken, cut short or of another "
        "format (--format)",
        uri=uri,
    )


def _scan_parquet(uri: str, size: int, list_column: str) -> ShardLayout:
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


def read_rows(
    uri: str,
    wanted: str,
    *,
    row_start: int,
    num_rows: int,
    byte_start: int,
    number: int = 0,
    header: tuple[str, ...] = (),
    keep: list[str] | None,
    drop: frozenset[str] = frozenset(),
    text_columns: list[str],
    types: dict[str, pa.DataType] | None = None,
    size: int | None = None,
    etag: str = "",
    top_k: int | None = None,
) -> Rows:
    """Read a range of a shard's rows.

    Args:
        uri: the shard.
        wanted: the job's `--format`.
        row_start: first row, counted in the shard.
        num_rows: rows to read.
        byte_start: where they begin, as `layout.Block` has it; unused for Parquet.
        number: the number of the line or row there, likewise.
        header: as `scan_shard` has it.
        keep: columns of the table, None for all.
        drop: of these, columns to leave out.
        text_columns: columns whose values are wanted as Python texts, where the shard has them.
        types: types that JSON columns had when the plan was made.
        size: stored size of the shard as planned; None when that does not matter.
        etag: its version mark as planned; "" where storage has none.
        top_k: as `scan_shard` has it.

    Raises:
        ShardChangedError: it is no longer the shard that was planned.
        ShardError: the shard is broken, or has fewer rows than planned.
        StorageError, JobError: it cannot be reached.
    """
    kind, compression = detect_format(uri, wanted)
    try:
        try:
            if kind == "parquet":
                rows = _read_parquet(uri, size, etag, row_start, num_rows, keep, drop, text_columns)
            elif kind == "arrow":
                table = read_arrow(uri, size, etag, row_start, num_rows, byte_start, number)
                rows = _make_rows(table, choose_columns(table.column_names, keep, drop), text_columns)
            elif kind in RANKING_FORMATS:
                file = RankingFile(uri, size, etag, kind, compression, top_k)
                table, faults = read_ranking(file, byte_start, num_rows, number, row_start)
                rows = _make_rows(table, choose_columns(table.column_names, keep, drop), text_columns)
                rows = replace(rows, faults=faults)
            else:
                text = cast(TextFormat, kind)
                place = LineRange(uri, size, etag, text, compression, row_start, num_rows, byte_start, number, header)
                rows = read_lines(place, keep, drop, text_columns, types or {})
        except (pa.ArrowException, EOFError, OSError, ValueError, csv.Error) as error:
            storage.refuse_changed(uri, size, etag)  # what looks broken may be two shards' halves
            raise _unreadable(uri, kind, error) from error
        storage.refuse_changed(uri, size, etag)
    except ObjectChangedError as error:
        detail = str(error).removeprefix(f"{uri}: ")
        raise ShardChangedError(
            f"{uri}: changed since it was planned ({detail}); run again, with --rescore-changed if some of it was "
            "scored already",
            uri=uri,
        ) from error
    if rows.table.num_rows != num_rows:
        raise ShardError(
            f"{uri}: {rows.table.num_rows} rows from row {row_start} on where the plan has {num_rows}; it changed since "
            "it was planned",
            uri=uri,
        )
    return rows


def _read_parquet(
    uri: str,
    size: int | None,
    etag: str,
    row_start: int,
    num_rows: int,
    keep: list[str] | None,
    drop: frozenset[str],
    text_columns: list[str],
) -> Rows:
    with storage.open_input(uri, size=size, etag=etag) as source:
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
    return _make_rows(table, kept, text_columns)


def _make_rows(table: pa.Table, kept: list[str], text_columns: list[str]) -> Rows:
    texts = {name: to_texts(table.column(name)) for name in text_columns if name in table.column_names}
    lists = frozenset(name for name in texts if is_list(table.schema.field(name).type))
    return Rows(table.select(kept), texts, [None] * table.num_rows, lists)


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
