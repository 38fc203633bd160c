"""Formats of candidates: Parquet, JSON lines, CSV, TSV, LASER's, bare pairs and Moses, each streamed as batches of rows.

Takes a `Source`, gives tables with the line of each row, and why some cannot be scored. A bad row stays, with its reason.
Knows nothing of what becomes of the rows.
"""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.bitext.candidate_columns import NOT_A_NUMBER, NOT_UNICODE, TEXT, Batch, name_columns, to_number
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.sources import Source, open_text, read_lines
from rerank_actor.errors import InputError
from rerank_actor.storage.utf8 import is_utf8

ROWS_AT_ONCE = 16_384
BROKEN_LINE = "line has another number of fields"
BROKEN_JSON = "line is not a JSON object"


def read_batches(source: Source, job: BitextJob) -> Iterator[Batch]:
    """Yield the rows of a file, in order.

    Raises:
        InputError: the file cannot be what it is taken for; says the file and the line.
        StorageError, JobError: it cannot be read.
        pa.ArrowException, EOFError, OSError, csv.Error: it is broken.
    """
    yield from _READERS[source.kind](source, job)


# Formats with columns


def _read_parquet(source: Source, job: BitextJob) -> Iterator[Batch]:
    file = source.file
    with storage.open_input(file.uri, size=file.size, etag=file.etag) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=2**20)
        start = 1
        for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE):
            table = pa.Table.from_batches([batch])
            yield name_columns(table, range(start, start + table.num_rows), {}, source, job)
            start += table.num_rows


def _read_jsonl(source: Source, job: BitextJob) -> Iterator[Batch]:
    for lines, chunk in _chunk(read_lines(source.file)):
        faults: dict[int, str] = {}
        objects: list[dict[str, Any]] = []
        for row, line in enumerate(chunk):
            found = _parse_object(line)
            objects.append(found or {})
            if found is None:
                faults[row] = BROKEN_JSON
        names = dict.fromkeys([job.source_column, job.target_column, *(name for one in objects for name in one)])
        if all(job.source_column not in one or job.target_column not in one for one in objects):
            names = dict.fromkeys(name for one in objects for name in one)
        columns = {name: _to_array([one.get(name) for one in objects]) for name in names}
        yield name_columns(pa.table(columns), lines, faults, source, job)


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _to_array(values: list[Any]) -> pa.Array:
    """Return values of JSON as a column; as JSON text where they have no common type."""
    try:
        found = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        found = None
    if found is None or pa.types.is_struct(found.type):
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array([None if text is None else text.encode(errors="replace").decode() for text in texts], TEXT)
    return found.cast(TEXT) if pa.types.is_null(found.type) else found


def _read_csv(source: Source, job: BitextJob) -> Iterator[Batch]:
    with open_text(source.file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        reader = csv.reader(text)
        header = next(reader, [])
        yield from _read_fields(header, ((reader.line_num, fields) for fields in reader if fields), source, job)


def _read_tsv(source: Source, job: BitextJob) -> Iterator[Batch]:
    lines = read_lines(source.file)
    header = next(lines, b"").decode("utf-8", "surrogateescape").split("\t")
    split = (
        (number, line.decode("utf-8", "surrogateescape").split("\t")) for number, line in enumerate(lines, 2) if line
    )
    yield from _read_fields(header, split, source, job)


def _read_fields(
    header: list[str], records: Iterator[tuple[int, list[str]]], source: Source, job: BitextJob
) -> Iterator[Batch]:
    """Yield the rows of a text format with a header; where fields are missing or too many, the row has a fault."""
    rows: list[list[str]] = []
    lines: list[int] = []

    def flush() -> Batch:
        faults = {row: BROKEN_LINE for row, fields in enumerate(rows) if len(fields) != len(header)}
        filled = [[*fields, *[""] * len(header)][: len(header)] for fields in rows]
        columns, bad = {}, set[int]()
        for place, name in enumerate(header):
            columns[name], wrong = _to_texts([fields[place] for fields in filled])
            bad |= wrong
        return name_columns(pa.table(columns), list(lines), {**dict.fromkeys(bad, NOT_UNICODE), **faults}, source, job)

    for line, fields in records:
        rows.append(fields)
        lines.append(line)
        if len(rows) == ROWS_AT_ONCE:
            yield flush()
            rows, lines = [], []
    yield flush()


def _to_texts(values: list[str]) -> tuple[pa.Array, set[int]]:
    """Return texts as a column, and the rows of those that are no Unicode, whose bad characters are replaced."""
    try:
        return pa.array(values, TEXT), set()
    except UnicodeEncodeError:
        fixed = [value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for value in values]
        return pa.array(fixed, TEXT), {row for row, (a, b) in enumerate(zip(values, fixed, strict=True)) if a != b}


# Formats without a header


def _chunk(lines: Iterator[bytes]) -> Iterator[tuple[range, list[bytes]]]:
    start, held = 1, []
    for line in lines:
        held.append(line)
        if len(held) == ROWS_AT_ONCE:
            yield range(start, start + len(held)), held
            start, held = start + len(held), []
    yield range(start, start + len(held)), held


def _decode(lines: list[bytes]) -> tuple[list[str], set[int]]:
    try:
        return b"\n".join(lines).decode().split("\n") if lines else [], set()
    except UnicodeDecodeError:
        return [line.decode("utf-8", "replace") for line in lines], {
            row for row, line in enumerate(lines) if not is_utf8(line)
        }


def _read_laser(source: Source, job: BitextJob) -> Iterator[Batch]:
    yield from _read_bare(source, 3)


def _read_pairs(source: Source, job: BitextJob) -> Iterator[Batch]:
    yield from _read_bare(source, 2)


def _read_bare(source: Source, num_fields: int) -> Iterator[Batch]:
    for lines, chunk in _chunk(read_lines(source.file)):
        texts, bad = _decode(chunk)
        faults = dict.fromkeys(bad, NOT_UNICODE)
        columns: list[list[Any]] = [[] for _ in range(num_fields)]
        for row, text in enumerate(texts):
            fields = text.split("\t")
            if len(fields) != num_fields:
                faults[row] = BROKEN_LINE
                fields = ["", *fields][:num_fields] if num_fields == 3 and len(fields) < 3 else fields
                fields = [*fields, *[""] * num_fields][:num_fields]
            for column, value in zip(columns, fields, strict=True):
                column.append(value)
        found: dict[str, Any] = {
            name: pa.array(values, TEXT) for name, values in zip(("source", "target"), columns[-2:], strict=True)
        }
        if num_fields == 3:
            found["candidate_score"], wrong = to_number(pa.array(columns[0], TEXT))
            faults = {**dict.fromkeys(wrong, NOT_A_NUMBER), **faults}
        yield Batch(pa.table(found), lines, faults)


def _read_moses(source: Source, job: BitextJob) -> Iterator[Batch]:
    files = [source.file, source.twin or source.file]
    sides = [_chunk(read_lines(file)) for file in files]
    for (lines, chunk), (_, other) in zip(*sides, strict=False):
        if len(chunk) != len(other):
            raise _differ(files, lines.start + min(len(chunk), len(other)), len(chunk) < len(other))
        texts = [_decode(chunk), _decode(other)]
        table = pa.table({name: pa.array(own[0], TEXT) for name, own in zip(("source", "target"), texts, strict=True)})
        yield Batch(table, lines, dict.fromkeys(texts[0][1] | texts[1][1], NOT_UNICODE))
        if len(chunk) < ROWS_AT_ONCE:
            return
    # Both chunkings end with a chunk that is not full, so that one is over only where the other is too.


def _differ(files: list[storage.StoredObject], line: int, first_is_short: bool) -> InputError:
    short, long = files if first_is_short else files[::-1]
    return InputError(
        f"{long.uri}, line {line:,}: has no partner, because {short.uri} ends after {line - 1:,} lines; the two sides of a "
        "Moses pair have the same number of lines",
        uri=long.uri,
        line=line,
    )


_READERS = {
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "laser": _read_laser,
    "pairs": _read_pairs,
    "moses": _read_moses,
}
