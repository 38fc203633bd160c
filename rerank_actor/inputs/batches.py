"""Files read from their beginning to their end: batches of columns as they are in the file, with the number of each row.

Takes a stored file, gives `Batch` after `Batch`, of Parquet, JSON lines, CSV, TSV and bare lines, packed or not. Records,
headers and faults are those of `text`, so that a file means the same here as where its rows are planned and read by ranges.
Says which rows could not be parsed and leaves it to the caller whether these are refused, counted or kept. Memory is bounded
by a batch. Knows nothing of what columns are for.
"""

import contextlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import InputError, ShardError, describe_cause
from rerank_actor.inputs.columnar import iterate_parquet, spare_memory
from rerank_actor.inputs.columns import to_texts, to_whole_array
from rerank_actor.inputs.formats import TextFormat
from rerank_actor.inputs.rows import LIMITS, ReadLimits, refuse_doubled
from rerank_actor.inputs.syntax.quoted import AUTO, Dialect
from rerank_actor.inputs.text import (
    READ_ERRORS,
    Content,
    Header,
    Record,
    TextFile,
    iterate_records,
    parse_records,
    read_header,
    refuse_other,
)


@dataclass(frozen=True)
class Batch:
    """Some rows of a file.

    Attributes:
        names: columns that the file has; of JSON lines, those that it has had so far.
        columns: those that were read and that some row has: Arrow's of Parquet, lists of Python values of text.
        numbers: of each row: its line, or its first byte where only a piece of a file is read, or in Parquet its row from 1.
        faults: why some rows could not be parsed.
        counts: what the numbers count.
    """

    names: tuple[str, ...]
    columns: dict[str, Any]
    numbers: Sequence[int]
    faults: dict[int, str] = field(default_factory=dict)
    counts: Literal["line", "byte", "row"] = "line"

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.numbers)

    def describe(self, row: int) -> str:
        """Return where a row is, in words."""
        return f"{self.counts} {self.numbers[row]}"

    def values(self, name: str) -> list[Any]:
        """Return the Python values of a column, None where there are none, lone surrogates for what is not Unicode."""
        column = self.columns.get(name)
        if column is None:
            return [None] * self.num_rows
        return column if isinstance(column, list) else to_texts(column)

    def to_table(self) -> tuple[pa.Table, frozenset[int]]:
        """Return the columns as a table, and the rows of which a text was not Unicode and is now.

        Parquet's columns stay as they are. A column of text has the type of its values; objects of JSON lines become JSON
        text, for the next batch may have others.
        """
        arrays: dict[str, Any] = {}
        replaced: set[int] = set()
        for name, column in self.columns.items():
            if isinstance(column, list):
                arrays[name], rows = to_whole_array(column)
                replaced.update(rows)
            else:
                arrays[name] = column
        if not arrays:
            return pa.table({"": pa.nulls(self.num_rows)}).select([]), frozenset()
        return pa.table(arrays), frozenset(replaced)


def read_batches(
    file: storage.StoredObject,
    kind: Literal["parquet"] | TextFormat,
    compression: str = "",
    *,
    header: tuple[str, ...] = (),
    dialect: Dialect = AUTO,
    wanted: Container[str] | None = None,
    part: int = 0,
    parts: int = 1,
    limits: ReadLimits = LIMITS,
) -> Iterator[Batch]:
    """Yield the rows of a file in order; where it has columns and no row, a batch without rows.

    Args:
        file: as it was listed.
        kind: its format.
        compression: its packing, `gz`, `zst`, `bz2`, `xz` or none.
        header: names of the columns of CSV, TSV and bare lines whose first line does not have them.
        dialect: of CSV and TSV.
        wanted: columns of Parquet to read, those that are there; of text those that matter; None for all.
        part: of `parts` about equal ones, which to read; of packed text and of what may span lines there is only one.
        parts: how many there are.
        limits: of a batch and of a line.

    Raises:
        InputError: two columns have one name.
        ShardError: a line is longer than any is, or the first is not of the format.
        StorageError, JobError: it cannot be reached.
        One of `READ_ERRORS`: it is broken, cut short or not what its name says; `refuse_broken` makes an `InputError` of it.
    """
    if kind == "parquet":
        yield from _read_parquet(file, wanted, part, parts, limits)
        return
    text = TextFile(file.uri, file.size, file.etag, kind, compression, header, limits.line_bytes, dialect)
    refuse_other(text)
    top = read_header(text)
    records = iterate_records(text, top.start, top.line) if parts == 1 else _iterate_piece(text, top, part, parts)
    yield from _gather(text, top, records, "byte" if part else "line", wanted, limits)


def _iterate_piece(file: TextFile, top: Header, part: int, parts: int) -> Iterator[Record]:
    """Yield the records that begin in a span of bytes; one that only ends there is of the piece before."""
    size = file.size or 0
    begin, end = max(top.start, size * part // parts), size * (part + 1) // parts
    for record in iterate_records(file, max(top.start, begin - 1), top.line):
        if record.start >= end:
            return
        if record.start >= begin:
            yield record


def _gather(
    file: TextFile,
    top: Header,
    records: Iterator[Record],
    counts: Literal["line", "byte"],
    wanted: Container[str] | None,
    limits: ReadLimits,
) -> Iterator[Batch]:
    """Yield batches of records."""
    names = dict.fromkeys(top.names)
    contents: list[Content] = []
    numbers: list[int] = []
    num_bytes = 0
    is_first = True

    def flush() -> Batch:
        columns, faults = parse_records(file, top.names, contents, wanted)
        names.update(dict.fromkeys(columns))
        return Batch(tuple(names), columns, numbers, faults, counts)

    # Bare lines are counted alone, because those of two files stand for one another.
    most_bytes = limits.batch_bytes if file.kind != "lines" else file.line_bytes * limits.batch_rows
    for record in records:
        contents.append(record.content)
        numbers.append(record.line if counts == "line" else record.start)
        num_bytes += record.end - record.start
        if len(contents) == limits.batch_rows or num_bytes >= most_bytes:
            yield flush()
            contents, numbers, num_bytes, is_first = [], [], 0, False
    if contents or (is_first and names):
        yield flush()


def _read_parquet(
    file: storage.StoredObject, wanted: Container[str] | None, part: int, parts: int, limits: ReadLimits
) -> Iterator[Batch]:
    with storage.open_input(file.uri, size=file.size, etag=file.etag) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=2**20, page_checksum_verification=True)
        metadata, names = parquet.metadata, tuple(parquet.schema_arrow.names)
        refuse_doubled(file.uri, list(names))
        columns = [name for name in names if wanted is None or name in wanted]
        lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if not metadata.num_rows and part == 0:
            empty = parquet.schema_arrow.empty_table()
            yield Batch(names, {name: empty[name] for name in columns}, [], counts="row")
        batch_rows = _count_batch_rows(metadata, limits)
        parquet = spare_memory(parquet, stream, file.uri, range(len(lengths)), limits.group_bytes)
        every = list(range(len(lengths)))
        for groups in [every] if parts == 1 else [[group] for group in every[part::parts]]:
            first = 1 + sum(lengths[: groups[0]] if groups else ())
            for batch in iterate_parquet(parquet, groups, columns, batch_rows):
                arrays = {name: pa.chunked_array([batch.column(name)]) for name in columns}
                yield Batch(names, arrays, range(first, first + batch.num_rows), counts="row")
                first += batch.num_rows


def _count_batch_rows(metadata: pq.FileMetaData, limits: ReadLimits) -> int:
    """Return the rows of a batch of Parquet, as few as its row groups' mean row asks for."""
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    row_bytes = max(1.0, num_bytes / max(1, metadata.num_rows))
    return max(1, min(limits.batch_rows, int(limits.batch_bytes / row_bytes)))


@contextlib.contextmanager
def refuse_broken(uri: str, kind: str, flag: str = "") -> Iterator[None]:
    """Turn what a reader stumbles over into an `InputError` that names the file, and the flag that named it."""
    mark = f"{flag} " if flag else ""
    try:
        yield
    except READ_ERRORS as error:
        raise InputError(
            f"{mark}{uri}: cannot be read as {kind} ({describe_cause(error)}); it may be broken, cut short or of "
            f"another format {'than its name says' if flag else '(--format)'}",
            uri=uri,
        ) from error
    except ShardError as error:
        raise InputError(f"{mark}{error}", uri=uri) from error
