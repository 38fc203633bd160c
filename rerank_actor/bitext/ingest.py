"""Candidates: the rows of all files brought into one form, Parquet with one set of columns, a folder a language pair.

Takes a `Source`, streams it once, and writes shards for the scoring job: `source`, `target`, ids, the generator's score, the
kept columns, `input_file` and `input_line`, and `dropped`, the reason of a row that is not to be scored. A bad row stays,
with its reason. The record of a file is written last and says that it is read. Memory is bounded by four shards. Knows
nothing of Ray, prompts or scores.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.bitext.candidate_columns import NOT_A_NUMBER, NOT_TEXT, TEXT, Candidates
from rerank_actor.bitext.filters import EMPTY_SOURCE, EMPTY_TARGET, CandidateFilters, compute_reasons
from rerank_actor.bitext.job import REASON_COLUMN, BitextJob
from rerank_actor.bitext.language_pairs import LanguagePair, make_pair, read_name
from rerank_actor.bitext.languages import find_language
from rerank_actor.bitext.layouts import Source
from rerank_actor.bitext.readers import OTHER_FIELDS, read_candidate_batches
from rerank_actor.bitext.translations import NO_TRANSLATION
from rerank_actor.errors import InputError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.inputs.batches import refuse_broken
from rerank_actor.inputs.listing.partitions import read_values
from rerank_actor.inputs.plan import ID_DIGITS
from rerank_actor.inputs.rows import LIMITS, ReadLimits
from rerank_actor.inputs.syntax.quoted import CSV_FAULTS
from rerank_actor.inputs.text import BROKEN_FIELDS, BROKEN_JSON, NOT_UNICODE

TOLD = (
    BROKEN_FIELDS,
    OTHER_FIELDS,
    NO_TRANSLATION,
    *CSV_FAULTS,
    BROKEN_JSON,
    NOT_UNICODE,
    NOT_A_NUMBER,
    *NOT_TEXT.values(),
    EMPTY_SOURCE,
    EMPTY_TARGET,
)


@dataclass(frozen=True)
class ShardSize:
    """Rows of a shard, and rows that are held at most of a file whose rows are of many language pairs."""

    rows: int = 131_072
    held_rows: int = 4 * 131_072


@dataclass(frozen=True)
class ReadSpec:
    """What reading needs besides the file.

    Attributes:
        job: names columns and languages.
        folder: for the shards.
        rules: in force, as the driver resolved them; a worker may have another language identifier installed, or none.
        settings: hash of all that can change a candidate.
        limits: of what is read at once.
        size: of shards.
    """

    job: BitextJob
    folder: str
    rules: CandidateFilters
    settings: str
    limits: ReadLimits = LIMITS
    size: ShardSize = ShardSize()

    @classmethod
    def of_job(cls, job: BitextJob, folder: str) -> Self:
        """Return the spec that all files of a job have in common."""
        return cls(job, folder, job.rules(), hash_fingerprint(job.candidate_settings()))


def name_record(source: Source, digits: int = ID_DIGITS) -> str:
    """Return the name of a file's record, hex digits that follow from its URI alone."""
    return hashlib.sha256(source.file.uri.encode()).hexdigest()[:digits]


def read_candidates(source: Source, spec: ReadSpec) -> dict[str, Any]:
    """Read a file, write its shards and, last, its record; return the record.

    Raises:
        InputError: the file is broken or cannot be what it is taken for; says the file and, where there is one, the line.
        StorageError: it cannot be read or the shards cannot be written.
    """
    writer = _ShardWriter(name_record(source), spec)
    first: LanguagePair | None = None
    for candidates in _read_batches(source, spec):
        if candidates.table.num_rows:
            for pair, table in split_candidates(candidates, source, spec.job, spec.rules, first):
                first = first or pair
                writer.add(pair, table)
    writer.finish()
    record = {
        "files": source.identity,
        "kind": source.kind,
        "partitions": writer.partitions,
        "reasons": {reason: [count, writer.first_lines[reason]] for reason, count in writer.reasons.items()},
        "settings": spec.settings,
    }
    name = storage.join_uri(spec.folder, "files", f"{name_record(source)}.json")
    storage.write_bytes(name, storage.seal_json(record, ensure_ascii=False))
    return record


def _read_batches(source: Source, spec: ReadSpec) -> Iterator[Candidates]:
    """Yield a file's candidates; what is wrong with the file is said of it, and of nothing that is done with them."""
    with refuse_broken(source.file.uri, source.kind):
        yield from read_candidate_batches(source, spec.job, spec.limits)


class _ShardWriter:
    """Gathers rows by language pair and writes a shard whenever there are enough."""

    def __init__(self, name: str, spec: ReadSpec) -> None:
        self._name, self._spec = name, spec
        self._tables: dict[str, list[pa.Table]] = {}
        self._held: Counter[str] = Counter()  # rows
        self.partitions: dict[str, dict[str, int]] = {}
        self.reasons: Counter[str] = Counter()
        self.first_lines: dict[str, int] = {}

    def add(self, pair: LanguagePair, table: pa.Table) -> None:
        self.partitions.setdefault(pair.name, {"rows": 0, "shards": 0})["rows"] += table.num_rows
        for line, reason in zip(*_list_reasons(table), strict=True):
            self.reasons[reason] += 1
            self.first_lines.setdefault(reason, line)
        self._tables.setdefault(pair.name, []).append(table)
        self._held[pair.name] += table.num_rows
        if self._held[pair.name] >= self._spec.size.rows:
            self._write(pair.name)
        elif self._held.total() >= self._spec.size.held_rows:
            self._write(max(self._held, key=lambda name: self._held[name]))

    def finish(self) -> None:
        for name, tables in self._tables.items():
            if tables:
                self._write(name)

    def _write(self, partition: str) -> None:
        written = self.partitions[partition]
        table = _name_nulls(pa.concat_tables(self._tables[partition], promote_options="permissive"))
        data = storage.to_parquet(table, row_group_size=self._spec.limits.batch_rows)
        name = f"{self._name}-{written['shards']:05d}.bin"  # Parquet, which readers of the scores are not to find
        storage.write_bytes(storage.join_uri(self._spec.folder, f"lang_pair={partition}", name), data)
        written["shards"] += 1
        self._tables[partition] = []
        self._held[partition] = 0


def _name_nulls(table: pa.Table) -> pa.Table:
    """Return a table whose columns all have a type: one that holds nothing is of text."""
    fields = [field.with_type(TEXT) if pa.types.is_null(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))


def _list_reasons(table: pa.Table) -> tuple[list[int], list[str]]:
    dropped = table.filter(pc.is_valid(table[REASON_COLUMN]))
    return dropped["input_line"].to_pylist(), dropped[REASON_COLUMN].to_pylist()


def split_candidates(
    candidates: Candidates,
    source: Source,
    job: BitextJob,
    rules: CandidateFilters,
    first: LanguagePair | None = None,
) -> Iterator[tuple[LanguagePair, pa.Table]]:
    """Yield the rows of each language pair in the form of candidates, with the reason of those not to be scored.

    Args:
        candidates: rows of a file.
        source: the file.
        job: names columns and languages.
        rules: in force.
        first: language pair that the file has first, to which broken rows without languages go; None if not yet known.

    Raises:
        InputError: a language pair cannot be told, or a code is unknown; says the file and the line.
    """
    table, lines = candidates.table, pa.array(candidates.lines, pa.int64())
    columns = {"input_file": pa.array([source.file.uri] * table.num_rows, TEXT), "input_line": lines}
    faults = pa.array([candidates.faults.get(row) for row in range(table.num_rows)], TEXT)
    for name, values in columns.items():
        table = table.append_column(name, values)
    for pair, rows in _split_pairs(table, set(candidates.faults), source, job, first):
        chosen = table if rows is None else table.take(rows)
        chosen_faults = faults if rows is None else faults.take(rows)
        names = [name for name in chosen.column_names if name not in ("source_language", "target_language")]
        texts = [chosen[name].combine_chunks() for name in ("source", "target")]
        reasons = pc.coalesce(chosen_faults, compute_reasons(texts[0], texts[1], pair, rules))
        yield pair, chosen.select(names).append_column(REASON_COLUMN, reasons)


def _split_pairs(
    table: pa.Table, broken: set[int], source: Source, job: BitextJob, first: LanguagePair | None
) -> Iterator[tuple[LanguagePair, pa.Array | None]]:
    """Yield each language pair and its rows, None for all."""
    uri = source.file.uri
    if source.pair is not None:
        if job.lang_pair is None:
            _refuse_other_languages(table, source.pair, uri, job)
        yield source.pair, None
        return
    for role, name in zip(("source_language", "target_language"), job.language_columns, strict=True):
        if role not in table.column_names and (code := read_values(uri, [name])[name]) is not None:
            table = table.append_column(role, pa.repeat(code, table.num_rows))
    lacking = [name for name in ("source_language", "target_language") if name not in table.column_names]
    if lacking and source.folder_pair is not None:
        yield source.folder_pair, None
        return
    if lacking:
        readings = " or ".join(pair.name for pair in read_name(uri.rpartition("/")[2], job.languages))
        raise InputError(
            f"{uri}: {f'its name may mean {readings}' if readings else 'nothing says its language pair'}; "
            "give --lang-pair deu-eng, put it into a folder lang_pair=deu-eng, or "
            f"name columns with codes (--{lacking[0].replace('_', '-')}-column)",
            uri=uri,
        )
    codes = [table[name].to_pylist() for name in ("source_language", "target_language")]
    rows: dict[tuple[Any, Any], list[int]] = {}
    lost: list[int] = []
    for row, key in enumerate(zip(*codes, strict=True)):
        is_lost = row in broken and any(find_language(code or "", job.languages) is None for code in key)
        (lost if is_lost else rows.setdefault(key, [])).append(row)
    pairs: dict[LanguagePair, list[int]] = {}
    for key, of_key in rows.items():
        line = table["input_line"][of_key[0]].as_py()
        pair = make_pair(str(key[0]), str(key[1]), job.languages, f"{uri}, line {line}")
        pairs.setdefault(pair, []).extend(of_key)
    if lost:
        first = first or next(iter(pairs), None)
        if first is None:
            raise InputError(f"{uri}: its first {len(lost):,} rows are broken, and none says its languages", uri=uri)
        pairs.setdefault(first, []).extend(lost)
    for pair, of_pair in pairs.items():
        yield pair, pa.array(sorted(of_pair))


def _refuse_other_languages(table: pa.Table, pair: LanguagePair, uri: str, job: BitextJob) -> None:
    """Refuse rows whose language columns contradict the language pair that the file's name tells."""
    for name, side in (("source_language", pair.source), ("target_language", pair.target)):
        codes = pc.unique(table[name]).to_pylist() if name in table.column_names else []
        for code in codes:
            language = find_language(str(code), job.languages)
            if language is not None and language.tag != side.tag:
                line = table["input_line"][pc.index(table[name], code).as_py()].as_py()
                raise InputError(
                    f"{uri}, line {line}: column {name} has `{code}`, and the file's name says {pair.name}; rename it, or give "
                    "--lang-pair if the name is right",
                    uri=uri,
                    line=line,
                )
