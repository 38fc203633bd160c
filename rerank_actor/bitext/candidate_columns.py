"""Columns of candidates: a table of any names brought under the project's own, and what cannot be taken for what it should be.

Takes rows as a file has them, gives `source`, `target`, ids, languages, the generator's score and the kept columns, with a
fault of each row that cannot be scored. Knows nothing of formats.
"""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.bitext.job import REASON_COLUMN, BitextJob
from rerank_actor.bitext.sources import Source
from rerank_actor.errors import InputError, suggest
from rerank_actor.inputs.columns import RESERVED_COLUMNS, is_list
from rerank_actor.inputs.directions import BACKWARD, DIRECTED_VALUES, FORWARD, name_column
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.storage.utf8 import is_utf8

TEXT, NUMBER = pa.string(), pa.float64()
OWN_COLUMNS = ("source", "target", "source_id", "target_id", "candidate_score", "input_file", "input_line")
SCORE_NAMES = ("candidate_score", "score")
NOT_UNICODE = "not valid Unicode"
NOT_A_NUMBER = "score is not a number"


@dataclass
class Batch:
    """Some rows: their columns, the line of each, and why some cannot be scored."""

    table: pa.Table
    lines: list[int] | range
    faults: dict[int, str] = field(default_factory=dict)


def name_columns(
    table: pa.Table, lines: list[int] | range, faults: dict[int, str], source: Source, job: BitextJob
) -> Batch:
    """Return rows under the project's own names, with what cannot be taken for what it should be as a fault."""
    uri, names = source.file.uri, table.column_names
    wanted = {"source": job.source_column, "target": job.target_column}
    optional = {"source_id": job.source_id_column, "target_id": job.target_id_column}
    given = {"source_language": job.source_language_column, "target_language": job.target_language_column}
    score = job.score_column or next((name for name in SCORE_NAMES if name in names), None)
    wanted |= {role: name for role, name in (*optional.items(), *given.items()) if name is not None}
    if score is not None:
        wanted["candidate_score"] = score
    for role in (*optional, *given):
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
        found[role], bad = to_number(column) if role == "candidate_score" else _to_text(column, uri, name)
        reason = NOT_A_NUMBER if role == "candidate_score" else NOT_UNICODE
        faults = {**{row: reason for row in bad}, **faults}
    _keep_columns(table, found, set(wanted.values()), uri, job)
    return Batch(pa.table(found), lines, faults)


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
        bad = {row for row, value in enumerate(raw) if value is not None and not is_utf8(value)}
        return pa.array([None if value is None else value.decode("utf-8", "replace") for value in raw], TEXT), bad


def to_number(column: pa.Array) -> tuple[pa.Array, set[int]]:
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
