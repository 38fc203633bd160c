"""Columns of candidates: a table of any names brought under the project's own, and what cannot be taken for what it should be.

Takes rows as a file has them, gives `source`, `target`, ids, languages, the generator's score and the kept columns, with a
fault of each row that cannot be scored. Knows nothing of formats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.bitext.job import REASON_COLUMN, BitextJob
from rerank_actor.bitext.layouts import Source
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import Batch
from rerank_actor.inputs.columns import RESERVED_COLUMNS, decode_dictionary, is_list, is_text
from rerank_actor.inputs.directions import BACKWARD, DIRECTED_VALUES, FORWARD, name_column
from rerank_actor.inputs.listing.partitions import find_columns, read_values
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.inputs.text import NOT_UNICODE
from rerank_actor.job_file import suggest
from rerank_actor.storage.utf8 import is_utf8

TEXT, NUMBER = pa.string(), pa.float64()
OWN_COLUMNS = ("source", "target", "source_id", "target_id", "candidate_score", "input_file", "input_line")
SCORE_NAMES = ("candidate_score", "score")
NOT_A_NUMBER = "score is not a number"
NOT_TEXT = {"source": "source is not text", "target": "target is not text"}
RESERVED = frozenset(
    {
        *(name_column(direction, value) for direction in (FORWARD, BACKWARD) for value in (*DIRECTED_VALUES, PAIR_KEY)),
        *RESERVED_COLUMNS,
        PAIR_KEY,
        REASON_COLUMN,
        *OWN_COLUMNS,
    }
)


@dataclass(frozen=True)
class Candidates:
    """Some rows under the project's own names: their columns, the line of each, and why some cannot be scored."""

    table: pa.Table
    lines: Sequence[int]
    faults: dict[int, str]


def name_candidates(batch: Batch) -> Candidates:
    """Return rows whose columns have the project's own names already."""
    table, not_unicode = batch.to_table()
    faults = {**dict.fromkeys(not_unicode, NOT_UNICODE), **batch.faults}
    columns = {name: table[name].cast(TEXT) for name in ("source", "target")}
    if "candidate_score" in table.column_names:
        columns["candidate_score"], rows = _to_number(table["candidate_score"].combine_chunks())
        faults = {**dict.fromkeys(rows, NOT_A_NUMBER), **faults}
    return Candidates(pa.table(columns), batch.numbers, faults)


def name_columns(batch: Batch, source: Source, job: BitextJob) -> Candidates:
    """Return rows under the project's own names, with what cannot be taken for what it should be as a fault.

    Raises:
        InputError: a column is missing, is not what it should be, or has a name that is taken.
    """
    uri = source.file.uri
    table, not_unicode = batch.to_table()
    faults = {**dict.fromkeys(not_unicode, NOT_UNICODE), **batch.faults}
    roles = _assign_roles(batch.names, uri, job)
    folders = _read_folders(uri, batch.names, job)
    for name, value in folders.items():
        table = table.append_column(name, pa.array([value] * table.num_rows, TEXT))
    names = (*batch.names, *folders)
    columns: dict[str, Any] = {}
    for role, name in roles.items():
        is_there = name in table.column_names
        column = table[name].combine_chunks() if is_there else pa.nulls(table.num_rows, TEXT)
        if role in NOT_TEXT and is_there:
            column, rows = _drop_others(column, batch.columns[name], uri, name)
            faults = {**dict.fromkeys(rows, NOT_TEXT[role]), **faults}
        columns[role], rows = _to_number(column) if role == "candidate_score" else _to_text(column, uri, name)
        reason = NOT_A_NUMBER if role == "candidate_score" else NOT_UNICODE
        faults = {**dict.fromkeys(rows, reason), **faults}
    for name, column in _choose_kept(names, table, [*columns], set(roles.values()), uri, job).items():
        columns[name] = column
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            columns[name], rows = _to_text(column.combine_chunks(), uri, name)
            faults = {**dict.fromkeys(rows, NOT_UNICODE), **faults}
    return Candidates(pa.table(columns), batch.numbers, faults)


def _read_folders(uri: str, names: Sequence[str], job: BitextJob) -> dict[str, str | None]:
    """Return the columns that folders below the input give, besides those of languages and of the file itself."""
    roots = [storage.find_root(one) if storage.is_glob(one) else one for one in job.input]
    found = dict.fromkeys(name for root in roots for name in find_columns([uri], root))
    others = {"lang_pair", *job.language_columns, *names}
    return read_values(uri, [name for name in found if name not in others])


def _assign_roles(names: Sequence[str], uri: str, job: BitextJob) -> dict[str, str]:
    """Return which column of a file is what of a candidate.

    Raises:
        InputError: one that is asked for is not there.
    """
    roles = {"source": job.source_column, "target": job.target_column}
    optional = {"source_id": job.source_id_column, "target_id": job.target_id_column}
    optional |= {"source_language": job.source_language_column, "target_language": job.target_language_column}
    folders = {name for name in job.language_columns if read_values(uri, [name])[name] is not None}
    roles |= {role: name for role, name in optional.items() if name is not None and name not in folders - {*names}}
    score = job.score_column or next((name for name in SCORE_NAMES if name in names), None)
    if score is not None:
        roles["candidate_score"] = score
    roles |= {role: role for role in optional if role not in roles and role in names}
    for role, name in roles.items():
        if name not in names:
            flag = "--score-column" if role == "candidate_score" else f"--{role.replace('_', '-')}-column"
            raise InputError(
                f"{uri}: no column `{name}`{suggest(name, names)}; it has "
                f"{', '.join(f'`{column}`' for column in names) or 'none'}; choose with {flag}",
                uri=uri,
                column=name,
            )
    return roles


def _choose_kept(
    names: Sequence[str], table: pa.Table, given: Sequence[str], taken: set[str], uri: str, job: BitextJob
) -> dict[str, Any]:
    """Return the columns that the output is to have besides those of the candidates themselves.

    Raises:
        InputError: one that is named is not there, or has the name of another.
    """
    for flag, flagged in (("--drop-columns", job.drop_columns), ("--rename-columns", job.rename_columns)):
        for name in flagged:
            if name not in names:
                raise InputError(
                    f"{uri}: no column `{name}`{suggest(name, names)}; choose with {flag}", uri=uri, column=name
                )
    kept: dict[str, Any] = {}
    for name in names if job.keep_columns == "all" else job.keep_columns:
        if name in job.drop_columns or name in taken or (name in OWN_COLUMNS and name in given):
            continue
        target = job.rename_columns.get(name, name)
        if target in RESERVED or target in given or target in kept or name not in names:
            problem = "is not there"
            if name in names:
                problem = f"has the name of a column that the output has already, `{target}`"
            raise InputError(
                f"{uri}: column `{name}` {problem}; rename it with --rename-columns {name}=NEW, or leave it out with "
                "--drop-columns or --keep-columns",
                uri=uri,
                column=name,
            )
        if name in table.column_names:
            kept[target] = table[name]
    return kept


def _drop_others(column: pa.Array, values: Any, uri: str, name: str) -> tuple[pa.Array, set[int]]:
    """Return a column of texts without what is none in JSON, whose values may be of any kind, and the rows that had it.

    Args:
        column: of Arrow, which may have JSON text in the place of a value.
        values: as they were read: Python's of JSON, Arrow's of Parquet.
        uri: of the file, for messages.
        name: of the column.

    Raises:
        InputError: a column of Parquet is of another type than text.
    """
    if not isinstance(values, list):
        if not is_text(column.type):
            raise InputError(f"{uri}: column `{name}` is {column.type}, expected text", uri=uri, column=name)
        return column, set()
    rows = {row for row, value in enumerate(values) if value is not None and not isinstance(value, str)}
    if not rows:
        return column, rows
    texts = pa.array([row not in rows for row in range(len(values))])
    return pc.if_else(texts, column if is_text(column.type) else pa.nulls(len(values), TEXT), None), rows


def _to_text(column: pa.Array, uri: str, name: str) -> tuple[pa.Array, set[int]]:
    """Return a column as text, and the rows whose bytes are no Unicode."""
    column = decode_dictionary(column)
    if is_list(column.type) or pa.types.is_struct(column.type) or pa.types.is_binary(column.type):
        raise InputError(f"{uri}: column `{name}` is {column.type}, expected text", uri=uri, column=name)
    try:
        texts = column.cast(TEXT)
        texts.validate(full=True)
        return texts, set()
    except pa.ArrowInvalid:
        raw = column.cast(pa.binary()).to_pylist()
        rows = {row for row, value in enumerate(raw) if value is not None and not is_utf8(value)}
        return pa.array([None if value is None else value.decode("utf-8", "replace") for value in raw], TEXT), rows


def _to_number(column: pa.Array) -> tuple[pa.Array, set[int]]:
    """Return a column as numbers, and the rows that hold none.

    A null, an empty text, NaN and what is infinite are no score, which is no fault.
    """
    column = decode_dictionary(column)
    if not is_text(column.type):
        return _drop_infinite(column.cast(NUMBER)), set()
    values: list[float | None] = []
    rows = set()
    for row, text in enumerate(column.to_pylist()):
        try:
            values.append(float(text) if text else None)
        except ValueError:
            values.append(None)
            rows.add(row)
    return _drop_infinite(pa.array(values, NUMBER)), rows


def _drop_infinite(numbers: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_finite(numbers), numbers, None)
