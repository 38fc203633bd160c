"""The rows of a report: examples of errors and of scores by their ids, from a bounded number of parts.

Takes facts, reads a few columns of a few parts, gives rows as dictionaries; the texts of the pairs, shortened, are among them
where they are wanted and the output has them. Knows nothing of HTML.
"""

import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.errors import RerankError
from rerank_actor.inputs.columns import RESERVED_COLUMNS, as_text, is_text, to_texts
from rerank_actor.inputs.pairs import INDEX_COLUMN
from rerank_actor.inputs.rows import Unit, strip_location
from rerank_actor.outputs.histograms import ScoreHistograms
from rerank_actor.outputs.part import flatten_columns, read_part_metadata
from rerank_actor.outputs.report.facts import EXAMPLES, Facts
from rerank_actor.outputs.row_groups import open_part
from rerank_actor.outputs.scored_columns import PairRows
from rerank_actor.outputs.scored_texts import ScoredTexts

SAMPLED_PARTS = 4
ERROR_PARTS = 12
HISTOGRAM_PARTS = 8  # where no unit has a record yet
LISTED_ROWS = 4  # highest, and as many in the middle and at the end
ID_LENGTH = 64
TEXT_LENGTH = 240
TEXT_ROLES = ("query", "document")
ID_NAME = re.compile(r"(^|[_.-])(id|ids|qid|pid|did|uid|idx|docid)$", re.IGNORECASE)


@dataclass
class Rows:
    """Examples.

    Attributes:
        errors: by reason, a few rows with it: unit, shard, row, and ids.
        scored: rows with high, middling and low scores.
        histograms: of the pairs of some parts, where no unit has a record; else None.
        sampled_parts: how many parts that is.
        columns: names of the columns that tell a row, besides shard and row.
    """

    errors: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    scored: list[dict[str, Any]] = field(default_factory=list)
    histograms: ScoreHistograms | None = None
    sampled_parts: int = 0
    columns: list[str] = field(default_factory=list)


def sample_rows(facts: Facts, examples: int = 0) -> Rows:
    """Return examples of a job's rows, named by the columns that look like ids; unreadable parts are passed over.

    Args:
        facts: of the job.
        examples: scored rows that have their texts, where the output holds them; with none they are told by ids alone.
    """
    listed = math.ceil(examples / 3) or LISTED_ROWS
    rows = Rows()
    committed = facts.scored.units
    job = facts.manifest.get("job") or {}
    texts = [job.get("query_column", "query"), job.get("document_column", "document")]
    columns: dict[str, None] = {}
    for unit, table in _read_parts(facts, _spread(committed, SAMPLED_PARTS), texts):
        columns |= dict.fromkeys(_list_others(table))
        picked = _pick_scored(unit, table, listed)
        rows.scored += _add_texts(facts, unit, picked) if examples else picked
    rows.scored = _thin(sorted(rows.scored, key=lambda row: -float(row["logit"])), listed)
    wanted = facts.select_units({name for names in facts.error_units.values() for name in names})

    def is_wanted(reason: str) -> bool:
        return reason in facts.error_units and len(rows.errors.get(reason, ())) < EXAMPLES

    for unit, table in _read_parts(facts, list(wanted.values())[:ERROR_PARTS], texts):
        columns |= dict.fromkeys(_list_others(table))
        for reason, row in _pick_errors(unit, table, is_wanted):
            rows.errors.setdefault(reason, []).append(row)
    if not facts.totals.units and committed:
        rows.histograms = ScoreHistograms()
        for _, table in _read_parts(facts, _spread(committed, HISTOGRAM_PARTS), texts):
            rows.histograms.add(ScoreHistograms.of_columns(flatten_columns(table)))
            rows.sampled_parts += 1
    rows.columns = list(columns)
    return rows


def _list_ids(schema: pa.Schema, texts: Container[str]) -> list[str]:
    """Return the columns, of those that hold no texts, that tell a person what row it is."""
    named = [name for name in schema.names if name not in texts and ID_NAME.search(name)]
    return [name for name in named if name not in RESERVED_COLUMNS and _may_be_id(schema.field(name).type)]


def _list_others(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name not in (*RESERVED_COLUMNS, INDEX_COLUMN)]


def _may_be_id(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return any(check(kind) for check in (pa.types.is_integer, pa.types.is_decimal, is_text))


def _spread(units: Sequence[Unit], number: int) -> list[Unit]:
    """Return some units, evenly from first to last."""
    positions = np.unique(np.linspace(0, len(units) - 1, min(number, len(units))).round().astype(int))
    return [units[position] for position in positions]


def _read_parts(facts: Facts, units: Iterable[Unit], texts: Container[str]) -> Iterator[tuple[Unit, pa.Table]]:
    """Yield the added columns, and those of ids, of each unit's part."""
    parts = dict(zip(facts.scored.units, facts.scored.parts, strict=True))
    for unit in units:
        try:
            with open_part(parts[unit]) as file:
                places = [INDEX_COLUMN] if read_part_metadata(file.schema_arrow).get("explode") else []
                table = file.read([*_list_ids(file.schema_arrow, texts), *RESERVED_COLUMNS, *places])
            yield unit, table
        except (RerankError, pa.ArrowException, OSError, ValueError, KeyError):
            continue  # jobs.verify says what is wrong with it; a report does without


def _explode(table: pa.Table, name: str) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Return a column with a value a pair, and of each its row and its place in the row's list."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no rows
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if not pa.types.is_list(column.type):
        rows = np.arange(len(column))
        return column, rows, np.zeros(len(column), np.int64)
    parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    firsts = np.searchsorted(parents, parents)
    return pc.list_flatten(column), parents, np.arange(len(parents)) - firsts


def _name_row(unit: Unit, table: pa.Table, row: int, position: int) -> dict[str, Any]:
    """Return where a row is, and its ids, shortened."""
    number = row
    if INDEX_COLUMN in table.column_names:  # of a list that was taken apart
        index = table[INDEX_COLUMN].fill_null(0).to_numpy()
        number, position = int((index[: row + 1] == 0).sum()) - 1, int(index[row])
    named: dict[str, Any] = {"shard": unit.uri, "row": unit.row_start + number, "place": position, "unit": unit.name}
    for name in _list_others(table):
        [value] = to_texts(table[name].slice(row, 1))
        if isinstance(value, list):  # one for each document of the row
            value = value[position] if position < len(value) else None
        text = as_text(value) or ""
        named[name] = shorten(text, ID_LENGTH)
    return named


def _pick_scored(unit: Unit, table: pa.Table, listed: int) -> list[dict[str, Any]]:
    logits, parents, positions = _explode(table, "logit")
    scores, tokens = _explode(table, "score")[0], _explode(table, "num_tokens")[0]
    values = logits.to_numpy(zero_copy_only=False).astype(np.float64)
    scored = np.flatnonzero(np.isfinite(values))
    order = scored[np.argsort(-values[scored], kind="stable")]
    picked = []
    for at in _thin(order.tolist(), listed):
        row = _name_row(unit, table, int(parents[at]), int(positions[at]))
        picked.append(
            row
            | {"score": scores[at].as_py(), "logit": logits[at].as_py(), "num_tokens": tokens[at].as_py()}
            | {"part_row": int(parents[at]), "part_place": int(positions[at])}
        )
    return picked


def _add_texts(facts: Facts, unit: Unit, picked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the texts of their pairs, as far as the part holds them."""
    made = ScoredTexts.from_settings(facts.scored.settings)
    roles = [role for role in TEXT_ROLES if not getattr(made.spec, f"{role}_is_id")]
    part = dict(zip(facts.scored.units, facts.scored.parts, strict=True))[unit]
    try:
        with open_part(part) as file:
            names = made.list_columns(file.schema_arrow.names, roles)
            table = file.read([*names, "logit"]).take([row["part_row"] for row in picked])
        pairs = PairRows(table, "logit", part.uri)
        texts = made.make(pairs, roles)
    except (RerankError, pa.ArrowException, OSError, ValueError, KeyError):
        return picked
    starts = np.arange(len(picked)) if pairs.lengths is None else np.cumsum(pairs.lengths) - pairs.lengths
    for row, start in zip(picked, starts.tolist(), strict=True):
        place = start + (row["part_place"] if pairs.lengths is not None else 0)
        row |= {role: shorten(values[place].as_py() or "", TEXT_LENGTH) for role, values in texts.items()}
    return picked


def shorten(text: str, length: int) -> str:
    """Return a text of at most so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _thin(ordered: list[Any], listed: int) -> list[Any]:
    """Return the first few, as many of the middle and the last."""
    if len(ordered) <= 3 * listed:
        return ordered
    middle = (len(ordered) - listed) // 2
    return ordered[:listed] + ordered[middle : middle + listed] + ordered[-listed:]


def _pick_errors(unit: Unit, table: pa.Table, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    errors, parents, positions = _explode(table, "error")
    for at in np.flatnonzero(errors.is_valid().to_numpy(zero_copy_only=False)):
        reason = strip_location(str(errors[at].as_py()))  # which is how the records count them
        if is_wanted(reason):
            yield reason, _name_row(unit, table, int(parents[at]), int(positions[at]))
