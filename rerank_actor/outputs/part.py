"""The part: what a scored unit becomes in the output, what its metadata say, and whether it is still what was written.

Takes a `UnitWork` with logits, gives one Parquet object, whole or not at all, each page with a checksum; `check_part`
reads one in full and says what is wrong with it. Knows nothing of Ray or engines.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor.engines.base import compute_score
from rerank_actor.engines.families.description import ScoreScale
from rerank_actor.engines.vectors import EMBEDDING, VECTOR_COLUMNS, VectorForm
from rerank_actor.inputs.columns import RESERVED_COLUMNS, settle_schema
from rerank_actor.inputs.directions import DIRECTED_VALUES, list_directions, name_column
from rerank_actor.inputs.pairs import INDEX_COLUMN
from rerank_actor.inputs.rows import Unit, strip_location
from rerank_actor.inputs.where.rows import SELECTED
from rerank_actor.outputs.row_digest import has_digest
from rerank_actor.outputs.training.place import find_misplaced, list_document_columns, order_texts

ADDED_TYPES = dict(
    zip(RESERVED_COLUMNS, (pa.float32(), pa.float32(), pa.int32(), pa.int32(), pa.string()), strict=True)
)
METADATA_PREFIX = "rerank_actor."
OF_ONE_PART = {"unit", "shard", "shard_etag", "row_start", "num_rows", "facts", "run", "epoch"}  # of its metadata
# Settings that say how the texts of a pair were made; the metadata have those that are given, as JSON.
TEXT_SETTINGS = (
    *(
        "query_column",
        "document_column",
        "negative_columns",
        "queries",
        "corpus",
        "query_id_column",
        "document_id_column",
    ),
    *("query_template", "document_template", "instruction_map", "dataset_column"),
    *("rename_columns", "keep_fields", "directions", "explode_columns"),
)


def read_part_metadata(schema: pa.Schema) -> dict[str, str]:
    """Return the entries that the project wrote into a part's Parquet metadata, empty where it wrote nothing."""
    return {
        name.decode()[len(METADATA_PREFIX) :]: value.decode()
        for name, value in (schema.metadata or {}).items()
        if name.decode(errors="replace").startswith(METADATA_PREFIX)
    }


def settle_rows(table: pa.Table) -> pa.Table:
    """Return rows of a part as parts are written now, whichever version wrote it: tuples in the order of scores, no views."""
    table = order_texts(table, read_part_metadata(table.schema))
    settled = settle_schema(table.schema)
    return table if table.schema.equals(settled) else table.cast(settled)


@dataclass(frozen=True)
class PartCheck:
    """What reading a part in full found.

    Attributes:
        problem: what is wrong with it; None for a sound part.
        facts: what its metadata say of the unit (totals, attempts, seconds); empty for a damaged part.
    """

    problem: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def check_part(unit: Unit, data: bytes, fingerprint: str) -> PartCheck:
    """Read a part in full, checksums of all pages included, and compare it with the plan and with its own metadata.

    Args:
        unit: what the plan says that the part holds.
        data: the part.
        fingerprint: that of the plan.
    """
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        metadata = read_part_metadata(table.schema)
        facts = json.loads(metadata.get("facts", "{}"))
        problem = _compare_with_plan(unit, table, metadata, fingerprint)
        form = VectorForm.from_metadata(metadata)
        problem = problem or (form.find_problem(table) if form else _check_types(table) or _check_scores(table))
        problem = problem or _compare_with_facts(table, facts)
        problem = problem or _compare_digest(table, facts)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return PartCheck(f"cannot be read ({type(error).__name__})")
    return PartCheck(problem) if problem else PartCheck(facts=facts)


def _compare_with_plan(unit: Unit, table: pa.Table, metadata: dict[str, str], fingerprint: str) -> str | None:
    if metadata.get("fingerprint") != fingerprint:
        return f"has the fingerprint {metadata.get('fingerprint')} of another job, the plan's is {fingerprint}"
    unit_there = [metadata.get(name) for name in ("unit", "shard", "row_start")]
    if unit_there != [unit.name, unit.uri, str(unit.row_start)]:
        return f"holds another unit ({metadata.get('unit')} of {metadata.get('shard')})"
    if metadata.get("shard_etag") != unit.etag:
        return "was scored from another version of its shard"
    num_rows = count_input_rows(table, metadata)
    if num_rows != unit.num_rows:
        return f"has {'no whole number of' if num_rows is None else num_rows} rows, the plan {unit.num_rows}"
    return None


def count_input_rows(table: pa.Table, metadata: dict[str, str]) -> int | None:
    """Return how many input rows a part's rows are of; None where candidates of an exploded row are missing."""
    if not metadata.get("explode"):
        return int(table.num_rows)
    index = table.column(INDEX_COLUMN).fill_null(0).to_numpy()
    begins = index == 0
    follows = np.append(False, index[1:] == index[:-1] + 1)
    return int(begins.sum()) if (begins | follows).all() else None


def _check_types(table: pa.Table) -> str | None:
    lacking = [name for name in RESERVED_COLUMNS if name not in table.column_names]
    if lacking:
        return f"has no column {', '.join(lacking)}"
    of_lists = pa.types.is_list(table.schema.field("score").type)
    for name, kind in ADDED_TYPES.items():
        if table.schema.field(name).type != (pa.list_(kind) if of_lists else kind):
            return f"has a column {name} of another type"
    return None


def flatten_columns(table: pa.Table) -> dict[str, pa.Array]:
    """Return the added columns of a part with a value a pair; of lists, those of rows that have one."""
    has_list = pc.is_valid(table.column("score"))
    columns = {}
    for name in RESERVED_COLUMNS:
        column = table.column(name)
        if pa.types.is_list(column.type):
            column = pc.list_flatten(pc.filter(column, has_list))
        columns[name] = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return columns


def _check_scores(table: pa.Table) -> str | None:
    """Check that each pair has a score or a reason, and that scores are the sigmoid of logits."""
    columns = flatten_columns(table)
    if len({len(column) for column in columns.values()}) > 1:
        return "has lists of different lengths in a row"
    has_score, has_error = pc.is_valid(columns["score"]), pc.is_valid(columns["error"])
    metadata = read_part_metadata(table.schema)
    is_passed = pc.and_(pc.invert(has_score), pc.invert(has_error))
    if "where" in metadata:
        if _has_others(table, is_passed):
            return "has rows that were passed through with a score or an error, or others without both"
    elif pc.any(is_passed).as_py():
        return "has rows with neither or both of score and error"
    if pc.any(pc.and_(has_score, has_error)).as_py():
        return "has rows with neither or both of score and error"
    if not has_score.equals(pc.is_valid(columns["logit"])):
        return "has rows with only one of score and logit"
    scale = ScoreScale.from_metadata(metadata)
    scores = columns["score"].drop_null().to_numpy(zero_copy_only=False)
    logits = columns["logit"].drop_null().to_numpy(zero_copy_only=False)
    if not np.isfinite(logits).all() or not np.array_equal(compute_score(logits, scale), scores):
        return "has scores that are not the sigmoid of their logits"
    documents = list_document_columns(metadata)
    if documents and find_misplaced(table, documents):
        return "has scores beside documents that are not those of its logits"
    return _check_directions(table, scale)


def _has_others(table: pa.Table, is_passed: pa.Array) -> bool:
    """Whether rows without score and error are not those that say that they were passed through."""
    not_selected = pc.invert(table[SELECTED])
    if pa.types.is_list(table.schema.field("score").type):  # of a list that is there, each pair has one of both
        lacking = pc.and_(pc.is_null(table["score"]), pc.is_null(table["error"]))
        return bool(pc.any(is_passed).as_py()) or not lacking.equals(not_selected)
    return not pa.chunked_array([is_passed]).equals(not_selected)


def _check_directions(table: pa.Table, scale: ScoreScale) -> str | None:
    """Check that each direction's scores are the sigmoid of its logits, and that a scored row has both."""
    directions = list_directions(table.column_names)
    for direction in directions:
        score, logit = (table.column(name_column(direction, name)).combine_chunks() for name in ("score", "logit"))
        if not pc.is_valid(score).equals(pc.is_valid(logit)):
            return f"has rows with only one of {direction} score and logit"
        values = logit.drop_null().to_numpy(zero_copy_only=False)
        if not np.array_equal(compute_score(values, scale), score.drop_null().to_numpy(zero_copy_only=False)):
            return f"has {direction} scores that are not the sigmoid of their logits"
    if directions:
        names = [name_column(direction, "logit") for direction in directions]
        logits = np.array([table.column(name).to_numpy() for name in names], np.float64)
        mean = np.mean(logits, axis=0).astype(np.float32)
        combined = table.column("logit").to_numpy()
        if not np.array_equal(mean[np.isfinite(combined)], combined[np.isfinite(combined)]):
            return "has logits that are not the mean of their directions'"
    return None


def _compare_digest(table: pa.Table, facts: dict[str, Any]) -> str | None:
    """Compare the rows with those that the worker scored; parts written before do not tell."""
    if "digest" in facts and not has_digest(table, facts["digest"]):
        return "has other rows than were scored (other values, columns or order)"
    return None


def _compare_with_facts(table: pa.Table, facts: dict[str, Any]) -> str | None:
    is_scored = "score" in table.column_names
    columns = flatten_columns(table) if is_scored else {name: table.column(name) for name in VECTOR_COLUMNS}
    reasons = [columns["error"].drop_null()]
    if pa.types.is_list(table.schema.field("error").type):  # a row without a list has its reason alone
        reasons.append(pc.list_flatten(pc.filter(table.column("error"), pc.is_null(table.column("score")))))
    if directions := list_directions(table.column_names):  # each row is a pair in each
        columns = {
            name: pa.concat_arrays([table.column(name_column(one, name)).combine_chunks() for one in directions])
            for name in DIRECTED_VALUES
        }
    values = columns["score" if is_scored else EMBEDDING]
    metadata = read_part_metadata(table.schema)
    counted = {
        "rows": count_input_rows(table, metadata),
        **({"passed": int(pc.sum(pc.invert(table[SELECTED])).as_py() or 0)} if "where" in metadata else {}),
        "pairs": len(values),
        "scored": len(values) - values.null_count,
        "truncated": int(pc.sum(pc.greater(columns["truncated_tokens"], 0)).as_py() or 0),
        "tokens": int(pc.sum(columns["num_tokens"]).as_py() or 0),
        "errors": dict(Counter(strip_location(reason) for values in reasons for reason in values.to_pylist())),
    }
    for name, count in counted.items():
        if facts.get(name) != count:
            return f"has other {name} than its metadata say"
    return None
