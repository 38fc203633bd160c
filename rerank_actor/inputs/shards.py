"""Shards: input objects of rows, in Parquet, Arrow, JSON lines, CSV, TSV or runs of retrieval, and how to read some.

`scan_shard` finds how many rows an object has and where a unit of rows may begin; `read_rows` reads one unit's rows
as an Arrow table. Memory is bounded by the unit, not by the shard. Knows nothing of prompts, plans or Ray. The formats
of text are in `lines` and `line_scan`, Arrow's own in `arrow_file`, runs in `retrieval_run`.
"""

import csv
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, ObjectChangedError, ShardChangedError, ShardError, describe_cause
from rerank_actor.inputs.arrow import read_arrow, scan_arrow
from rerank_actor.inputs.parquet import read_parquet, scan_parquet
from rerank_actor.inputs.rankings import COLUMNS, RANKING_FORMATS, RankingFile, read_ranking, scan_ranking
from rerank_actor.inputs.rows import Rows, ShardLayout, choose_columns, make_rows
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.text import LineRange, TextFormat, read_lines
from rerank_actor.inputs.text_scan import LineScan, scan_lines
from rerank_actor.inputs.unit import Unit

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
LONGEST_BLOCK_ROWS = 16384
BLOCK_ROWS, BLOCK_PAIRS = 512, 512  # of a run of lines at most; several make a unit


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


def scan_shard(item: storage.StoredObject, spec: InputSpec, break_at: int = -1) -> ShardLayout:
    """Find rows, columns and unit borders of a shard: a Parquet footer is read, a text file is read once.

    Args:
        item: the shard, as it was listed.
        spec: how it is read.
        break_at: row at which a block of lines begins whatever else.

    Raises:
        ShardError: the shard is not what its format says.
        ObjectChangedError: it is no longer the one that was listed.
        StorageError, JobError: it cannot be reached.
    """
    uri, size, etag = item.uri, item.size, item.etag
    list_column = spec.texts.document_column
    block_rows = min(spec.unit_rows or BLOCK_ROWS, LONGEST_BLOCK_ROWS)
    kind, compression = detect_format(uri, spec.format)
    try:
        if kind == "parquet":
            return scan_parquet(uri, size, list_column)
        if kind == "arrow":
            return scan_arrow(uri, size, etag)
        if kind in RANKING_FORMATS:
            file = RankingFile(uri, size, etag, kind, compression, spec.top_k)
            blocks = scan_ranking(file, block_rows, break_at)
            return ShardLayout(sum(block.num_rows for block in blocks), dict(COLUMNS[kind]), blocks)
        text = cast(TextFormat, kind)
        return scan_lines(
            LineScan(uri, size, etag, text, compression, block_rows, BLOCK_PAIRS, list_column, spec.header), break_at
        )
    except (pa.ArrowException, EOFError, OSError, ValueError, csv.Error) as error:
        raise _unreadable(uri, kind, error) from error


def _unreadable(uri: str, kind: str, error: Exception) -> ShardError:
    return ShardError(
        f"{uri}: cannot be read as {kind} ({describe_cause(error)}); it may be broken, cut short or of another "
        "format (--format)",
        uri=uri,
    )


def read_rows(unit: Unit, spec: InputSpec, types: Mapping[str, pa.DataType] | None = None) -> Rows:
    """Read a unit's rows.

    Args:
        unit: a range of a shard's rows.
        spec: how the shard is read; the same as when it was scanned.
        types: types that JSON columns had when the plan was made.

    Raises:
        ShardChangedError: it is no longer the shard that was planned.
        ShardError: the shard is broken, or has fewer rows than planned.
        StorageError, JobError: it cannot be reached.
    """
    uri, size, etag = unit.uri, unit.size, unit.etag
    keep, drop, text_columns = spec.keep, spec.drop, spec.text_columns
    row_start, num_rows, byte_start, number = unit.row_start, unit.num_rows, unit.byte_start, unit.number
    kind, compression = detect_format(uri, spec.format)
    try:
        try:
            if kind == "parquet":
                rows = read_parquet(unit, keep, drop, text_columns)
            elif kind == "arrow":
                table = read_arrow(uri, size, etag, row_start, num_rows, byte_start, number)
                rows = make_rows(table, choose_columns(table.column_names, keep, drop), text_columns)
            elif kind in RANKING_FORMATS:
                file = RankingFile(uri, size, etag, kind, compression, spec.top_k)
                table, faults = read_ranking(file, byte_start, num_rows, number)
                rows = make_rows(table, choose_columns(table.column_names, keep, drop), text_columns)
                rows = replace(rows, faults=faults)
            else:
                text = cast(TextFormat, kind)
                lines = LineRange(uri, size, etag, text, compression, num_rows, byte_start, number, spec.header)
                rows = read_lines(lines, keep, drop, text_columns, types or {})
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
