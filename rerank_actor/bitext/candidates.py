"""Candidates: the rows of all formats brought into one form, Parquet with one set of columns, a folder a language pair.

Takes a `Source`, streams it once, and writes shards for the scoring job: `source`, `target`, ids, the generator's score, the
kept columns, `input_file` and `input_line`, and `dropped`, the reason of a row that is not to be scored. A bad row stays,
with its reason. The record of a file is written last and says that it is read. Memory is bounded by the shard. Knows
nothing of Ray, prompts or scores.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.bitext.job import REASON_COLUMN, BitextJob
from rerank_actor.bitext.languages import LanguagePair, make_pair
from rerank_actor.bitext.overlap import name_shard, write_hashes
from rerank_actor.bitext.rules import EMPTY_SOURCE, EMPTY_TARGET, find_reasons
from rerank_actor.bitext.sources import Source, open_text, read_lines
from rerank_actor.columns import is_list
from rerank_actor.directions import BACKWARD, DIRECTED_VALUES, FORWARD, name_column
from rerank_actor.errors import InputError, ShardError, describe_cause
from rerank_actor.job import hash_fingerprint, suggest
from rerank_actor.pair_key import PAIR_KEY
from rerank_actor.shards import RESERVED_COLUMNS

ROWS_AT_ONCE = 16_384
SHARD_ROWS = 131_072
TEXT, NUMBER = pa.string(), pa.float64()
OWN_COLUMNS = ("source", "target", "source_id", "target_id", "candidate_score", "input_file", "input_line")
SCORE_NAMES = ("candidate_score", "score")
BROKEN_LINE = "line has another number of fields"
BROKEN_JSON = "line is not a JSON object"
NOT_UNICODE = "not valid Unicode"
NOT_TEXT = "not text"
NOT_A_NUMBER = "score is not a number"
TOLD = (BROKEN_LINE, BROKEN_JSON, NOT_UNICODE, NOT_TEXT, NOT_A_NUMBER, EMPTY_SOURCE, EMPTY_TARGET)


@dataclass(frozen=True)
class ReadSpec:
    """What reading needs besides the file: the job, the folder for the shards, and one for what is half written."""

    job: BitextJob
    folder: str
    scratch: str | None


@dataclass
class _Batch:
    """Some rows: their columns, the line of each, and why some cannot be scored."""

    table: pa.Table
    lines: list[int] | range
    faults: dict[int, str] = field(default_factory=dict)


def name_record(source: Source) -> str:
    """Return the name of a file's record, which follows from its URI alone."""
    return hashlib.sha256(source.file.uri.encode()).hexdigest()[:12]


def read_candidates(source: Source, spec: ReadSpec) -> dict[str, Any]:
    """Read a file, write its shards and, last, its record; return the record.

    Raises:
        InputError: the file cannot be what it is taken for; says the file and the line.
        ShardError: it is broken.
        StorageError: it cannot be read or the shards cannot be written.
    """
    uri = source.file.uri
    writer = _ShardWriter(name_record(source), spec)
    try:
        for batch in _READERS[source.kind](source, spec.job):
            if batch.table.num_rows:
                _add_batch(batch, source, spec.job, writer)
    except (pa.ArrowException, EOFError, OSError, csv.Error) as error:
        raise ShardError(
            f"{uri}: cannot be read as {source.kind} ({describe_cause(error)}); it may be broken, cut short or of another "
            "format (--format)",
            uri=uri,
        ) from error
    writer.finish()
    record = {
        "files": [[one.uri, one.size, one.etag] for one in (source.file, source.twin) if one is not None],
        "kind": source.kind,
        "partitions": writer.partitions,
        "reasons": {reason: [count, writer.first_lines[reason]] for reason, count in writer.reasons.items()},
        "settings": hash_fingerprint(spec.job.candidate_settings()),
    }
    name = storage.join_uri(spec.folder, "files", f"{name_record(source)}.json")
    storage.write_bytes(name, json.dumps(record, ensure_ascii=False).encode(), scratch=spec.scratch)
    return record


class _ShardWriter:
    """Gathers rows by language pair and writes a shard whenever there are enough."""

    def __init__(self, name: str, spec: ReadSpec) -> None:
        self._name, self._spec = name, spec
        self._tables: dict[str, list[pa.Table]] = {}
        self.partitions: dict[str, dict[str, int]] = {}
        self.reasons: Counter[str] = Counter()
        self.first_lines: dict[str, int] = {}

    def add(self, pair: LanguagePair, table: pa.Table) -> None:
        own = self.partitions.setdefault(pair.name, {"rows": 0, "shards": 0})
        own["rows"] += table.num_rows
        for row, reason in zip(*_list_reasons(table), strict=True):
            self.reasons[reason] += 1
            self.first_lines.setdefault(reason, row)
        held = self._tables.setdefault(pair.name, [])
        held.append(table)
        if sum(one.num_rows for one in held) >= SHARD_ROWS:
            self._write(pair.name)

    def finish(self) -> None:
        for name, held in self._tables.items():
            if held:
                self._write(name)

    def _write(self, partition: str) -> None:
        own = self.partitions[partition]
        table = pa.concat_tables(self._tables[partition], promote_options="permissive")
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_AT_ONCE)
        uri, hashes = name_shard(self._spec.folder, partition, self._name, own["shards"])
        storage.write_bytes(uri, sink.getvalue(), scratch=self._spec.scratch)
        write_hashes(table, REASON_COLUMN, hashes, self._spec.scratch)
        own["shards"] += 1
        self._tables[partition] = []


def _list_reasons(table: pa.Table) -> tuple[list[int], list[str]]:
    found = table.filter(pc.is_valid(table[REASON_COLUMN])).select(["input_line", REASON_COLUMN])
    return found["input_line"].to_pylist(), found[REASON_COLUMN].to_pylist()


def _add_batch(batch: _Batch, source: Source, job: BitextJob, writer: _ShardWriter) -> None:
    table, lines = batch.table, pa.array(batch.lines, pa.int64())
    columns = {"input_file": pa.array([source.file.uri] * table.num_rows, TEXT), "input_line": lines}
    faults = pa.array([batch.faults.get(row) for row in range(table.num_rows)], TEXT)
    for name, values in columns.items():
        table = table.append_column(name, values)
    for pair, rows in _split_pairs(table, source, job):
        own = table if rows is None else table.take(rows)
        own_faults = faults if rows is None else faults.take(rows)
        names = [name for name in own.column_names if name not in ("source_language", "target_language")]
        texts = [own[name].combine_chunks() for name in ("source", "target")]
        reasons = pc.coalesce(own_faults, find_reasons(texts[0], texts[1], pair, job.rules()))
        writer.add(pair, own.select(names).append_column(REASON_COLUMN, reasons))


def _split_pairs(table: pa.Table, source: Source, job: BitextJob) -> Iterator[tuple[LanguagePair, pa.Array | None]]:
    """Yield each language pair and its rows, None for all."""
    if source.pair is not None:
        yield source.pair, None
        return
    uri = source.file.uri
    lacking = [name for name in ("source_language", "target_language") if name not in table.column_names]
    if lacking:
        raise InputError(
            f"{uri}: nothing says its language pair; give --lang-pair deu-eng, put it into a folder lang_pair=deu-eng, or "
            f"name columns with codes (--{lacking[0].replace('_', '-')}-column)",
            uri=uri,
        )
    codes = [table[name].to_pylist() for name in ("source_language", "target_language")]
    rows: dict[tuple[Any, Any], list[int]] = {}
    for row, key in enumerate(zip(*codes, strict=True)):
        rows.setdefault(key, []).append(row)
    for key, own in rows.items():
        line = table["input_line"][own[0]].as_py()
        yield make_pair(str(key[0]), str(key[1]), job.languages, f"{uri}, line {line}"), pa.array(own)


# Formats with columns


def _read_parquet(source: Source, job: BitextJob) -> Iterator[_Batch]:
    file = source.file
    with storage.open_input(file.uri, size=file.size, etag=file.etag) as stream:
        parquet = pq.ParquetFile(stream, buffer_size=2**20)
        start = 1
        for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE):
            table = pa.Table.from_batches([batch])
            yield _name_columns(table, range(start, start + table.num_rows), {}, source, job)
            start += table.num_rows


def _read_jsonl(source: Source, job: BitextJob) -> Iterator[_Batch]:
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
        yield _name_columns(pa.table(columns), lines, faults, source, job)


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


def _read_csv(source: Source, job: BitextJob) -> Iterator[_Batch]:
    with open_text(source.file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        reader = csv.reader(text)
        header = next(reader, [])
        yield from _read_fields(header, ((reader.line_num, fields) for fields in reader if fields), source, job)


def _read_tsv(source: Source, job: BitextJob) -> Iterator[_Batch]:
    lines = read_lines(source.file)
    header = next(lines, b"").decode("utf-8", "surrogateescape").split("\t")
    split = (
        (number, line.decode("utf-8", "surrogateescape").split("\t")) for number, line in enumerate(lines, 2) if line
    )
    yield from _read_fields(header, split, source, job)


def _read_fields(
    header: list[str], records: Iterator[tuple[int, list[str]]], source: Source, job: BitextJob
) -> Iterator[_Batch]:
    """Yield the rows of a text format with a header; where fields are missing or too many, the row has a fault."""
    rows: list[list[str]] = []
    lines: list[int] = []

    def flush() -> _Batch:
        faults = {row: BROKEN_LINE for row, fields in enumerate(rows) if len(fields) != len(header)}
        filled = [[*fields, *[""] * len(header)][: len(header)] for fields in rows]
        columns, bad = {}, set[int]()
        for place, name in enumerate(header):
            columns[name], wrong = _to_texts([fields[place] for fields in filled])
            bad |= wrong
        return _name_columns(pa.table(columns), list(lines), {**dict.fromkeys(bad, NOT_UNICODE), **faults}, source, job)

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


def _name_columns(
    table: pa.Table, lines: list[int] | range, faults: dict[int, str], source: Source, job: BitextJob
) -> _Batch:
    """Return rows under the project's own names, with what cannot be taken for what it should be as a fault."""
    uri, names = source.file.uri, table.column_names
    wanted = {"source": job.source_column, "target": job.target_column}
    optional = {"source_id": job.source_id_column, "target_id": job.target_id_column}
    given = {"source_language": job.source_language_column, "target_language": job.target_language_column}
    score = job.score_column or next((name for name in SCORE_NAMES if name in names), None)
    wanted |= {role: name for role, name in (*optional.items(), *given.items()) if name is not None}
    if score is not None:
        wanted["candidate_score"] = score
    for role in given:
        if role not in wanted and role in names:
            wanted[role] = role
    for role, name in wanted.items():
        if name not in names:
            flag = "--score-column" if role == "candidate_score" else f"--{role.replace('_', '-')}-column"
            raise InputError(
                f"{uri}: no column `{name}`{suggest(name, names)}; it has {', '.join(f'`{one}`' for one in names) or 'none'}; "
                f"choose with {flag}",
                uri=uri,
                column=name,
            )
    found: dict[str, Any] = {}
    for role, name in wanted.items():
        column = table[name].combine_chunks() if table.num_rows else pa.array([], table.schema.field(name).type)
        found[role], bad = _to_number(column) if role == "candidate_score" else _to_text(column, uri, name)
        reason = NOT_A_NUMBER if role == "candidate_score" else NOT_UNICODE
        faults = {**{row: reason for row in bad}, **faults}
    _keep_columns(table, found, set(wanted.values()), uri, job)
    return _Batch(pa.table(found), lines, faults)


def _keep_columns(table: pa.Table, found: dict[str, Any], taken: set[str], uri: str, job: BitextJob) -> None:
    """Add the columns that the output is to have besides those of the candidates themselves."""
    names = table.column_names
    added = (*DIRECTED_VALUES, PAIR_KEY)
    reserved = {name_column(one, value) for one in (FORWARD, BACKWARD) for value in added}
    reserved |= {*RESERVED_COLUMNS, PAIR_KEY, REASON_COLUMN, *OWN_COLUMNS}
    for flag, given in (("--drop-columns", job.drop_columns), ("--rename-columns", job.rename_columns)):
        for name in given:
            if name not in names:
                raise InputError(
                    f"{uri}: no column `{name}`{suggest(name, names)}; choose with {flag}", uri=uri, column=name
                )
    for name in names if job.keep_columns == "all" else job.keep_columns:
        if name in job.drop_columns or name in taken or (name in OWN_COLUMNS and name in found):
            continue
        target = job.rename_columns.get(name, name)
        if target in reserved or target in found or name not in names:
            what = "is not there"
            if name in names:
                what = f"has the name of a column that the output has already, `{target}`"
            raise InputError(
                f"{uri}: column `{name}` {what}; rename it with --rename-columns {name}=NEW, or leave it out with "
                "--drop-columns or --keep-columns",
                uri=uri,
                column=name,
            )
        found[target] = table[name]


def _to_text(column: pa.Array, uri: str, name: str) -> tuple[pa.Array, set[int]]:
    """Return a column as text, and the rows whose bytes are no Unicode."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_list(column.type) or pa.types.is_struct(column.type) or pa.types.is_binary(column.type):
        raise InputError(f"{uri}: column `{name}` is {column.type}, expected text", uri=uri, column=name)
    try:
        found = column.cast(TEXT)
        found.validate(full=True)
        return found, set()
    except pa.ArrowInvalid:
        raw = column.cast(pa.binary()).to_pylist()
        bad = {row for row, value in enumerate(raw) if value is not None and not _is_unicode(value)}
        return pa.array([None if value is None else value.decode("utf-8", "replace") for value in raw], TEXT), bad


def _is_unicode(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _to_number(column: pa.Array) -> tuple[pa.Array, set[int]]:
    """Return a column as numbers, and the rows that hold none; a null or an empty text is no score, which is no fault."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        found = column.cast(NUMBER)
        return pc.if_else(pc.is_finite(found), found, None), set()
    values: list[float | None] = []
    bad = set()
    for row, text in enumerate(column.to_pylist()):
        try:
            values.append(float(text) if text else None)
        except ValueError:
            values.append(None)
            bad.add(row)
    return pa.array(values, NUMBER), bad


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
            row for row, line in enumerate(lines) if not _is_unicode(line)
        }


def _read_laser(source: Source, job: BitextJob) -> Iterator[_Batch]:
    yield from _read_bare(source, 3)


def _read_pairs(source: Source, job: BitextJob) -> Iterator[_Batch]:
    yield from _read_bare(source, 2)


def _read_bare(source: Source, num_fields: int) -> Iterator[_Batch]:
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
            found["candidate_score"], wrong = _to_number(pa.array(columns[0], TEXT))
            faults = {**dict.fromkeys(wrong, NOT_A_NUMBER), **faults}
        yield _Batch(pa.table(found), lines, faults)


def _read_moses(source: Source, job: BitextJob) -> Iterator[_Batch]:
    files = [source.file, source.twin or source.file]
    sides = [_chunk(read_lines(file)) for file in files]
    for (lines, chunk), (_, other) in zip(*sides, strict=False):
        if len(chunk) != len(other):
            raise _differ(files, lines.start + min(len(chunk), len(other)), len(chunk) < len(other))
        texts = [_decode(chunk), _decode(other)]
        table = pa.table({name: pa.array(own[0], TEXT) for name, own in zip(("source", "target"), texts, strict=True)})
        yield _Batch(table, lines, dict.fromkeys(texts[0][1] | texts[1][1], NOT_UNICODE))
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
