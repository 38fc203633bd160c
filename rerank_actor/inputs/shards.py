"""Shards: input objects of rows, in Parquet, Arrow, JSON lines, CSV, TSV or rankings, and how to read some.

`scan_shard` finds how many rows an object has and where a unit of rows may begin; `read_rows` reads one unit's rows
as an Arrow table. Memory is bounded by the unit, not by the shard. Knows nothing of prompts, plans or Ray. The formats
of text are in `text` and `text_scan`, Parquet and Arrow in `columnar`, rankings in `rankings`; files that are read from
their beginning to their end are in `batches`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import ObjectChangedError, ShardChangedError, ShardError, describe_cause
from rerank_actor.inputs.columnar import read_arrow, read_parquet, scan_arrow, scan_parquet
from rerank_actor.inputs.formats import TextFormat, detect_format
from rerank_actor.inputs.rankings.files import RankingFile, read_ranking, scan_ranking
from rerank_actor.inputs.rankings.lines import COLUMNS, RANKING_FORMATS
from rerank_actor.inputs.rows import (
    LIMITS,
    ReadLimits,
    Rows,
    ShardLayout,
    Unit,
    add_partitions,
    choose_columns,
    make_rows,
)
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.syntax.column_types import conform_column
from rerank_actor.inputs.text import READ_ERRORS, TextFile, read_lines
from rerank_actor.inputs.text_scan import LineScan, scan_lines

LONGEST_BLOCK_ROWS = 16384
BLOCK_ROWS, BLOCK_PAIRS = 512, 512  # of a run of lines at most; several make a unit


def scan_shard(
    item: storage.StoredObject, spec: InputSpec, break_at: int = -1, limits: ReadLimits = LIMITS
) -> ShardLayout:
    """Find rows, columns and unit borders of a shard: a Parquet footer is read, a text file is read once.

    Args:
        item: the shard, as it was listed.
        spec: how it is read.
        break_at: row at which a block of lines begins whatever else.
        limits: of memory.

    Raises:
        ShardError: the shard is not what its format says.
        ObjectChangedError: it is no longer the one that was listed.
        StorageError, JobError: it cannot be reached.
    """
    uri, size, etag = item.uri, item.size, item.etag
    list_columns = tuple(spec.texts.document_columns)
    block_rows = min(spec.unit_rows or BLOCK_ROWS, LONGEST_BLOCK_ROWS)
    kind, compression = detect_format(uri, spec.format)
    try:
        if kind == "parquet":
            return scan_parquet(uri, size, list_columns)
        if kind == "arrow":
            return scan_arrow(uri, size, etag)
        if kind in RANKING_FORMATS:
            ranking = RankingFile(uri, size, etag, kind, compression, spec.top_k, limits.line_bytes)
            blocks = scan_ranking(ranking, block_rows, break_at)
            columns = dict(zip(_name_columns(kind, spec), COLUMNS[kind].values(), strict=True))
            return ShardLayout(sum(block.num_rows for block in blocks), columns, blocks)
        text = _name_text(item, spec, limits)
        return scan_lines(LineScan(text, block_rows, BLOCK_PAIRS, list_columns, limits.range_bytes), break_at)
    except READ_ERRORS as error:
        raise _refuse_unreadable(uri, kind, error) from error


def _name_columns(kind: str, spec: InputSpec) -> list[str]:
    """Return the columns of a ranking, whose ids have no name in the file and take that of the texts' ids."""
    names = {f"{source.role}_id": source.id_column for source in spec.sources if source.id_column not in COLUMNS[kind]}
    return [names.get(name, name) for name in COLUMNS[kind]]


def _name_text(item: storage.StoredObject | Unit, spec: InputSpec, limits: ReadLimits) -> TextFile:
    kind, compression = detect_format(item.uri, spec.format)
    text = cast(TextFormat, kind)
    return TextFile(item.uri, item.size, item.etag, text, compression, spec.header, limits.line_bytes, spec.dialect)


def _refuse_unreadable(uri: str, kind: str, error: Exception) -> ShardError:
    return ShardError(
        f"{uri}: cannot be read as {kind} ({describe_cause(error)}); it may be broken, cut short or of another "
        "format (--format)",
        uri=uri,
    )


def read_rows(
    unit: Unit, spec: InputSpec, types: Mapping[str, pa.DataType] | None = None, limits: ReadLimits = LIMITS
) -> Rows:
    """Read a unit's rows.

    Args:
        unit: a range of a shard's rows.
        spec: how the shard is read; the same as when it was scanned.
        types: types of columns that all parts have, as planned.
        limits: of memory.

    Raises:
        ShardChangedError: it is no longer the shard that was planned.
        ShardError: the shard is broken, or has fewer rows than planned.
        StorageError, JobError: it cannot be reached.
    """
    uri = unit.uri
    spec = replace(spec, format=unit.format or spec.format)
    try:
        try:
            rows = _read_unit(unit, spec, types or {}, limits)
            rows = replace(rows, table=_conform(rows.table, unit, spec, types or {}))
        except READ_ERRORS as error:
            storage.refuse_changed(uri, unit.size, unit.etag)  # what looks broken may be two shards' halves
            raise _refuse_unreadable(uri, detect_format(uri, spec.format)[0], error) from error
        storage.refuse_changed(uri, unit.size, unit.etag)
    except ObjectChangedError as error:
        detail = str(error).removeprefix(f"{uri}: ")
        raise ShardChangedError(
            f"{uri}: changed since it was planned ({detail}); run again, with --rescore-changed if some of it was "
            "scored already",
            uri=uri,
        ) from error
    if rows.table.num_rows != unit.num_rows:
        raise ShardError(
            f"{uri}: {rows.table.num_rows} rows from row {unit.row_start} on where the plan has {unit.num_rows}; it changed "
            "since it was planned",
            uri=uri,
        )
    return rows


def _read_unit(unit: Unit, spec: InputSpec, types: Mapping[str, pa.DataType], limits: ReadLimits) -> Rows:
    """Read a unit's rows from what is taken for its shard."""
    in_file = None if spec.keep is None else tuple(name for name in spec.keep if name not in unit.partitions)
    rows = _read_file(unit, replace(spec, keep=in_file), types, limits)
    return add_partitions(rows, unit, spec.keep, spec.drop, spec.text_columns)


def _conform(table: pa.Table, unit: Unit, spec: InputSpec, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Return kept columns as the plan has them for all parts, with nulls for those that other shards have alone."""
    names = table.column_names
    if spec.keep is None:
        known = [name for name in types if spec.keeps(name) and name not in unit.partitions]
        names = [*known, *(name for name in names if name not in known)]
    found = dict(zip(table.column_names, table.schema.types, strict=True))
    if names == table.column_names and all(types.get(name, kind) == kind for name, kind in found.items()):
        return table
    columns = {
        name: conform_column(table.column(name), types.get(name, found[name]))
        if name in found
        else pa.nulls(table.num_rows, types[name])
        for name in names
    }
    return pa.table(columns)


def _read_file(unit: Unit, spec: InputSpec, types: Mapping[str, pa.DataType], limits: ReadLimits) -> Rows:
    """Read what a unit's rows have in their file."""
    keep, drop, text_columns = spec.keep, spec.drop, spec.text_columns
    kind, compression = detect_format(unit.uri, spec.format)
    if kind == "parquet":
        return read_parquet(unit, keep, drop, text_columns, limits.group_bytes)
    if kind != "arrow" and kind not in RANKING_FORMATS:
        return read_lines(_name_text(unit, spec, limits), unit, keep, drop, text_columns, types)
    faults: list[str | None] = [None] * unit.num_rows
    if kind == "arrow":
        table = read_arrow(unit)
    else:
        ranking = RankingFile(unit.uri, unit.size, unit.etag, kind, compression, spec.top_k, limits.line_bytes)
        table, faults = read_ranking(ranking, unit.byte_start, unit.num_rows, unit.number)
        table = table.rename_columns(_name_columns(kind, spec))
    rows = make_rows(table, choose_columns(table.column_names, keep, drop), text_columns)
    return replace(rows, faults=faults)
