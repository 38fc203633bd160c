"""What a scan finds in a shard, the unit that is cut of it, and what reading it gives: the records that all formats share.

Also the bounds of what reading holds at once, and the words for a row that cannot be parsed: an error that ends in its
place, `reason (URI, line N)`. Knows nothing of any one format.
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa

from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import LARGE_GROUP_BYTES, find_type, is_list, locate, take_fields, to_texts

UNIT_BYTES = 32 * 2**20  # of uncompressed input; a prepared unit stays well under what Ray's object store likes

_PLACE = re.compile(r" \(.*, line \d+\)", re.DOTALL)


@dataclass(frozen=True)
class ReadLimits:
    """Bounds of what reading holds at once; no row is another because of them.

    Attributes:
        line_bytes: of a line, and of a CSV field, where an unclosed quote would swallow the rest of the file; one with more
            is refused.
        range_bytes: of lines that are scanned together.
        group_bytes: a larger Parquet row group is decoded piecewise, never as a whole.
        batch_rows, batch_bytes: of a batch of a file that is streamed; whichever comes first.
    """

    line_bytes: int = 256 * 2**20
    range_bytes: int = 8 * 2**20
    group_bytes: int = LARGE_GROUP_BYTES
    batch_rows: int = 16_384
    batch_bytes: int = 64 * 2**20


LIMITS = ReadLimits()


class Block(NamedTuple):
    """A stretch of rows that is cheap to read by itself: a Parquet row group, an Arrow batch or a run of lines.

    Attributes:
        num_rows: rows in it.
        num_bytes: their uncompressed size, as far as it is known.
        byte_start: where it begins: a byte of the uncompressed text or of an Arrow stream, the number of a batch in an
            Arrow file, -1 in Parquet.
        number: what is there: in text the number of the line, from 1; in Arrow the number of the row, from 0.
        num_pairs: pairs in it, where documents are lists; 0 where a row is a pair.
        is_divisible: whether a unit may begin inside.
    """

    num_rows: int
    num_bytes: int
    byte_start: int = -1
    number: int = 0
    num_pairs: int = 0
    is_divisible: bool = True


@dataclass(frozen=True)
class ShardLayout:
    """What a scan finds: rows, columns and places where a unit may begin.

    Attributes:
        num_rows: rows in the shard.
        columns: name and Arrow type of each column, in order.
        blocks: stretches of rows, in order.
        format: by which it is read.
        partitions: of `columns`, those whose value stands in the path and not in the file.
        shapes: of the documents of JSON lines, with the first line of each, as `syntax.document_shapes` tells them.
    """

    num_rows: int
    columns: dict[str, pa.DataType]
    blocks: list[Block]
    format: str = ""
    partitions: Mapping[str, str | None] = field(default_factory=dict)
    shapes: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_pairs(self) -> int:
        """Pairs in the shard, a row without a list counted as one."""
        return sum(block.num_pairs or block.num_rows for block in self.blocks)


@dataclass(frozen=True)
class Unit:
    """A row range of one shard: planned, scored, committed and retried whole.

    Attributes:
        name: names the part, `<shard>-<number>`.
        uri, size, etag: the shard as it was planned.
        row_start, num_rows: the rows, counted in the shard. A shard that could not be read has one unit of 0 rows.
        byte_start: where the rows begin, as `Block` has it; -1 for Parquet.
        number: of the line or row that is there.
        format: of the shard; "" where the name tells it, or the job.
        partitions: columns whose value stands in the shard's path.
    """

    name: str
    uri: str
    size: int
    etag: str
    row_start: int
    num_rows: int
    byte_start: int
    number: int = 0
    format: str = ""
    partitions: Mapping[str, str | None] = field(default_factory=dict, hash=False)

    @property
    def part_name(self) -> str:
        """File name of the unit's part in the output."""
        return f"part-{self.name}.parquet"


@dataclass(frozen=True)
class Rows:
    """Some rows of a shard.

    Attributes:
        table: the kept columns.
        texts: Python values of each named text column, one a row (a list where the column holds lists).
        faults: why a row could not be parsed, None where it could.
        list_columns: those of the text columns that hold lists.
    """

    table: pa.Table
    texts: dict[str, list[Any]]
    faults: list[str | None]
    list_columns: frozenset[str]


def make_rows(table: pa.Table, kept: list[str], text_columns: list[str]) -> Rows:
    """Return rows that could all be parsed.

    Args:
        table: all columns that were read.
        kept: of these, the ones to keep.
        text_columns: of these, the ones whose values are wanted as Python texts.
    """
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    values = {name: to_texts(table.column(name)) for name in list_sources(types, text_columns)}
    return Rows(
        table.select(kept), take_texts(values, text_columns), [None] * table.num_rows, list_lists(types, text_columns)
    )


def list_sources(names: Container[str], text_columns: Iterable[str]) -> list[str]:
    """Return the columns that texts are in, those that are there."""
    return list(dict.fromkeys(column for name in text_columns if (column := locate(names, name)[0]) in names))


def take_texts(values: Mapping[str, list[Any]], text_columns: Iterable[str]) -> dict[str, list[Any]]:
    """Return the values that names mean, of columns and of fields below them."""
    texts = {}
    for name in text_columns:
        column, fields = locate(values, name)
        if column in values:
            texts[name] = [take_fields(value, fields) for value in values[column]] if fields else values[column]
    return texts


def list_lists(types: Mapping[str, pa.DataType], text_columns: Iterable[str]) -> frozenset[str]:
    """Return the names that mean lists."""
    found = {name: find_type(types, name) for name in text_columns}
    return frozenset(name for name, kind in found.items() if kind is not None and is_list(kind))


def choose_columns(names: Iterable[str], keep: Sequence[str] | None, drop: Container[str]) -> list[str]:
    """Return the columns of a table: those to keep (None for all) that are not to be left out."""
    return [name for name in (names if keep is None else keep) if name not in drop]


def add_partitions(
    rows: Rows, unit: Unit, keep: Sequence[str] | None, drop: Container[str], text_columns: list[str]
) -> Rows:
    """Return rows of a file with the columns that its path gives, behind its own; those to keep as `choose_columns` says."""
    if not unit.partitions:
        return rows
    given = {name: [value] * rows.table.num_rows for name, value in unit.partitions.items()}
    columns = {name: rows.table.column(name) for name in rows.table.column_names}
    columns |= {name: pa.array(values, pa.string()) for name, values in given.items()}
    kept = choose_columns(columns, keep, drop)
    table = pa.table({name: columns[name] for name in kept}) if kept else rows.table
    texts = {name: given[name] for name in text_columns if name in given}
    return replace(rows, table=table, texts={**rows.texts, **texts})


def refuse_doubled(uri: str, names: list[str]) -> None:
    """Refuse a shard that has two columns of one name.

    Raises:
        InputError: it has.
    """
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(
            f"{uri}: has more than one column `{doubled[0]}`; rename one of them", uri=uri, column=doubled[0]
        )


def add_location(reason: str, uri: str, line: int) -> str:
    """Return a reason with its place."""
    return f"{reason} ({uri}, line {line})"


def strip_location(error: str) -> str:
    """Return a row's error without its place, so that errors can be counted by reason."""
    position = _PLACE.search(error)
    return error[: position.start()] if position and position.end() == len(error) else error
