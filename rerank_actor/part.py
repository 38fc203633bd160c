"""The part: what a scored unit becomes in the output, what its metadata say, and whether it is still what was written.

Takes a `UnitWork` with logits, gives one Parquet object, whole or not at all, each page with a checksum; `check_part`
reads one in full and says what is wrong with it. Knows nothing of Ray or engines.
"""

import hashlib
import io
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.engines.base import compute_score
from rerank_actor.inputs.columns import RESERVED_COLUMNS
from rerank_actor.inputs.directions import DIRECTED_VALUES, find_directions, name_column
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.inputs.pairs import INDEX_COLUMN
from rerank_actor.inputs.rows import find_reason
from rerank_actor.inputs.unit import Unit
from rerank_actor.sketch import Sketch
from rerank_actor.units import UnitWork

ADDED_TYPES = dict(
    zip(RESERVED_COLUMNS, (pa.float32(), pa.float32(), pa.int32(), pa.int32(), pa.string()), strict=True)
)
NOT_FINITE = "engine returned a logit that is not finite"
METADATA_PREFIX = "rerank_actor."


def build_part(work: UnitWork) -> tuple[pa.Table, dict[str, Any]]:
    """Return a scored unit's part and its totals.

    Returns:
        The kept columns in input order with `score`, `logit`, `num_tokens`, `truncated_tokens` and `error` behind
        them, lists of these where documents are lists; and the totals: rows, pairs, scored, truncated, tokens,
        forward passes (scored pairs that went through the engine) and errors by reason.
    """
    if work.logits is None:
        raise ValueError(f"unit {work.unit.name} has not been scored")
    prompts = work.prompts
    finite = np.isfinite(work.logits)
    pair_errors = prompts.errors.to_numpy(zero_copy_only=False)
    pair_errors = np.where((pair_errors == None) & ~finite, NOT_FINITE, pair_errors)  # noqa: E711 - elementwise
    if work.list_lengths is None:
        row_errors = np.tile(work.row_errors.to_numpy(zero_copy_only=False), max(1, len(work.directions)))
        pair_errors = np.where(row_errors != None, row_errors, pair_errors)  # noqa: E711 - elementwise
    scored = pair_errors == None  # noqa: E711 - elementwise
    columns: dict[str, pa.Array] = {
        "score": pa.array(compute_score(work.logits), pa.float32(), mask=~scored),
        "logit": pa.array(work.logits, pa.float32(), mask=~scored),
        "num_tokens": pa.array(np.where(scored, prompts.num_tokens, 0), pa.int32()),
        "truncated_tokens": pa.array(np.where(scored, prompts.truncated_tokens, 0), pa.int32()),
        "error": pa.array(pair_errors, pa.string()),
    }
    if work.pair_keys is not None:
        columns[PAIR_KEY] = work.pair_keys
    if work.directions:
        columns = _join_directions(work.directions, columns, work.row_errors)
        pair_errors = columns["error"].to_numpy(zero_copy_only=False)
    errors = Counter(find_reason(str(reason)) for reason in pair_errors if reason is not None)
    if work.list_lengths is not None:
        lacking = work.list_lengths < 0
        offsets = np.concatenate([[0], np.cumsum(np.maximum(work.list_lengths, 0))]).astype(np.int32)
        lists = {name: _to_lists(offsets, values, lacking) for name, values in columns.items() if name != "error"}
        columns = {**columns, **lists, "error": _list_errors(work.row_errors.to_pylist(), offsets, pair_errors)}
        errors.update(find_reason(str(reason)) for reason in work.row_errors.to_pylist() if reason is not None)
    table = pa.ipc.open_stream(work.rows).read_all()
    for name, values in columns.items():
        table = table.append_column(name, values)
    totals = {
        "rows": work.unit.num_rows,
        "pairs": len(scored),
        "scored": int(scored.sum()),
        "truncated": int((np.where(scored, prompts.truncated_tokens, 0) > 0).sum()),
        "tokens": int(prompts.num_tokens[scored].sum()),
        "forward_passes": int(scored[prompts.scorable].sum()),
        "errors": dict(sorted(errors.items())),
    }
    return table, totals


def _join_directions(
    directions: tuple[str, ...], columns: dict[str, pa.Array], row_errors: pa.StringArray
) -> dict[str, pa.Array]:
    """Return the columns of each direction, and those of the row: the mean of its log-odds, tokens added up."""
    num_rows = len(columns["score"]) // len(directions)
    own = {
        direction: {name: values.slice(place * num_rows, num_rows) for name, values in columns.items()}
        for place, direction in enumerate(directions)
    }
    logits = [one["logit"].to_numpy(zero_copy_only=False).astype(np.float64) for one in own.values()]
    mean = np.mean(logits, axis=0).astype(np.float32)
    errors: list[str | None] = row_errors.to_pylist()
    for direction, one in own.items():
        for row, error in enumerate(one["error"].to_pylist()):
            if error is not None and errors[row] is None:
                errors[row] = f"{direction}: {error}"
    lacking = np.array([error is not None for error in errors], bool)
    joined = {
        "score": pa.array(compute_score(mean), pa.float32(), mask=lacking),
        "logit": pa.array(mean, pa.float32(), mask=lacking),
        **{
            name: pa.array(np.sum([one[name].to_numpy() for one in own.values()], axis=0), pa.int32())
            for name in ("num_tokens", "truncated_tokens")
        },
        "error": pa.array(errors, pa.string()),
    }
    names = [*DIRECTED_VALUES, *([PAIR_KEY] if PAIR_KEY in columns else [])]
    directed = {name_column(direction, name): own[direction][name] for direction in own for name in names}
    return {**directed, **joined}


def _to_lists(offsets: np.ndarray, values: pa.Array, lacking: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(lacking))


def _list_errors(row_errors: list[str | None], offsets: np.ndarray, pair_errors: np.ndarray) -> pa.Array:
    lists = [
        [row_error] if row_error is not None else list(pair_errors[offsets[row] : offsets[row + 1]])
        for row, row_error in enumerate(row_errors)
    ]
    return pa.array(lists, pa.list_(pa.string()))


def write_part(work: UnitWork, output: str, metadata: dict[str, str], scratch: str | None) -> dict[str, Any]:
    """Write a scored unit's part, whole or not at all, and return its totals with the part's size and version mark.

    Its totals and the sketch of its scores are in its metadata too, so that they outlive a run that is killed.

    Doing it twice is harmless: the name follows from the unit and the content from the job.

    Raises:
        StorageError, JobError: the part could not be written.
    """
    table, totals = build_part(work)
    facts = {**totals, **Sketch.of_columns(flatten_columns(table)).to_record(), **work.facts}
    own = {
        **metadata,
        "unit": work.unit.name,
        "shard": work.unit.uri,
        "shard_etag": work.unit.etag,
        "row_start": str(work.unit.row_start),
        "num_rows": str(work.unit.num_rows),
        "engine_version": str(work.facts.get("engine_version", "")),
        "dtype": str(work.facts.get("dtype", "")),
        "facts": json.dumps(facts),
    }
    sink = io.BytesIO()
    table = table.replace_schema_metadata({METADATA_PREFIX + name: value for name, value in own.items()})
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data = sink.getvalue()
    uri = storage.join_uri(output, work.unit.part_name)
    with storage.patient():
        storage.write_bytes(uri, data, scratch=scratch)
    written = {"part_bytes": len(data), "part_etag": _find_etag(uri, data), "finished_at": time.time()}
    return {**facts, **written}


def _find_etag(uri: str, data: bytes) -> str:
    """Return the version mark that a listing will show of a part just written.

    In S3 that is the MD5 of the bytes, save for uploads in pieces and buckets encrypted with keys of their own; there
    the mark is another, and a resume reads the part once to be sure of it.
    """
    if storage.is_s3(uri):
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    return str(os.stat(uri).st_mtime_ns)


def read_part_metadata(schema: pa.Schema) -> dict[str, str]:
    """Return what the project wrote into a part's Parquet metadata, empty where it wrote nothing."""
    return {
        name.decode()[len(METADATA_PREFIX) :]: value.decode()
        for name, value in (schema.metadata or {}).items()
        if name.decode(errors="replace").startswith(METADATA_PREFIX)
    }


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
        found = read_part_metadata(table.schema)
        facts = json.loads(found.get("facts", "{}"))
        problem = _compare_with_plan(unit, table, found, fingerprint)
        problem = problem or _check_types(table) or _check_scores(table) or _compare_with_facts(table, facts)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return PartCheck(f"cannot be read ({type(error).__name__})")
    return PartCheck(problem) if problem else PartCheck(facts=facts)


def _compare_with_plan(unit: Unit, table: pa.Table, found: dict[str, str], fingerprint: str) -> str | None:
    if found.get("fingerprint") != fingerprint:
        return f"has the fingerprint {found.get('fingerprint')} of another job, the plan's is {fingerprint}"
    if (found.get("unit"), found.get("shard"), found.get("row_start")) != (unit.name, unit.uri, str(unit.row_start)):
        return f"holds another unit ({found.get('unit')} of {found.get('shard')})"
    if found.get("shard_etag") != unit.etag:
        return "was scored from another version of its shard"
    num_rows = count_input_rows(table, found)
    if num_rows != unit.num_rows:
        return f"has {'no whole number of' if num_rows is None else num_rows} rows, the plan {unit.num_rows}"
    return None


def count_input_rows(table: pa.Table, found: dict[str, str]) -> int | None:
    """Return how many input rows a part's rows are of; None where candidates of an exploded row are missing."""
    if not found.get("explode"):
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
    has_score = pc.is_valid(columns["score"])
    if pc.any(pc.equal(has_score, pc.is_valid(columns["error"]))).as_py():
        return "has rows with neither or both of score and error"
    if not has_score.equals(pc.is_valid(columns["logit"])):
        return "has rows with only one of score and logit"
    scores = columns["score"].drop_null().to_numpy(zero_copy_only=False)
    logits = columns["logit"].drop_null().to_numpy(zero_copy_only=False)
    if not np.isfinite(logits).all() or not np.array_equal(compute_score(logits), scores):
        return "has scores that are not the sigmoid of their logits"
    return _check_directions(table)


def _check_directions(table: pa.Table) -> str | None:
    """Check that each direction's scores are the sigmoid of its logits, and that a scored row has both."""
    directions = find_directions(table.column_names)
    for direction in directions:
        score, logit = (table.column(name_column(direction, name)).combine_chunks() for name in ("score", "logit"))
        if not pc.is_valid(score).equals(pc.is_valid(logit)):
            return f"has rows with only one of {direction} score and logit"
        values = logit.drop_null().to_numpy(zero_copy_only=False)
        if not np.array_equal(compute_score(values), score.drop_null().to_numpy(zero_copy_only=False)):
            return f"has {direction} scores that are not the sigmoid of their logits"
    if directions:
        names = [name_column(direction, "logit") for direction in directions]
        logits = np.array([table.column(name).to_numpy() for name in names], np.float64)
        mean = np.mean(logits, axis=0).astype(np.float32)
        found = table.column("logit").to_numpy()
        if not np.array_equal(mean[np.isfinite(found)], found[np.isfinite(found)]):
            return "has logits that are not the mean of their directions'"
    return None


def _compare_with_facts(table: pa.Table, facts: dict[str, Any]) -> str | None:
    columns = flatten_columns(table)
    reasons = [columns["error"].drop_null()]
    if pa.types.is_list(table.schema.field("error").type):  # a row without a list has its reason alone
        reasons.append(pc.list_flatten(pc.filter(table.column("error"), pc.is_null(table.column("score")))))
    if directions := find_directions(table.column_names):  # each row is a pair in each
        columns = {
            name: pa.concat_arrays([table.column(name_column(one, name)).combine_chunks() for one in directions])
            for name in DIRECTED_VALUES
        }
    counted = {
        "rows": count_input_rows(table, read_part_metadata(table.schema)),
        "pairs": len(columns["score"]),
        "scored": len(columns["score"]) - columns["score"].null_count,
        "truncated": int(pc.sum(pc.greater(columns["truncated_tokens"], 0)).as_py() or 0),
        "tokens": int(pc.sum(columns["num_tokens"]).as_py() or 0),
        "errors": dict(Counter(find_reason(reason) for values in reasons for reason in values.to_pylist())),
    }
    for name, count in counted.items():
        if facts.get(name) != count:
            return f"has other {name} than its metadata say"
    return None
