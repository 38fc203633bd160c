"""Verification: every planned row present exactly once, every part readable, one fingerprint.

Reads all parts in full, columns of the scores checked row by row, and compares them with the plan. Needs no model and
no Ray.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import RerankError
from rerank_actor.job import hash_fingerprint
from rerank_actor.output import Output
from rerank_actor.part import compute_score, read_part_metadata
from rerank_actor.plan import Unit
from rerank_actor.shards import RESERVED_COLUMNS

THREADS = 8


@dataclass
class Verification:
    """What verifying an output found; without problems the output is right."""

    units: int = 0
    rows: int = 0
    scored: int = 0
    errors: int = 0
    problems: list[str] = field(default_factory=list)


def verify_output(uri: str) -> Verification:
    """Check an output against its plan.

    Raises:
        InputError: there is no job.
        JobError, StorageError: the folder cannot be read.
    """
    output = Output(uri)
    plan, settings = output.require_plan()
    fingerprint = hash_fingerprint(settings)
    parts = output.list_parts()
    result = Verification()
    present: list[tuple[Unit, storage.StoredObject]] = []
    for unit in plan.units():
        result.units += 1
        if unit.part_name not in parts:
            result.problems.append(f"{unit.part_name}: missing (rows {_range(unit)} of {unit.uri}); run the job again")
            continue
        present.append((unit, parts.pop(unit.part_name)))
    result.problems += [f"{name}: in no plan; delete it" for name in sorted(parts)]
    with ThreadPoolExecutor(THREADS) as pool:
        for rows, scored, errors, problems in pool.map(
            lambda item: _verify_part(item[0], item[1], fingerprint), present
        ):
            result.rows += rows
            result.scored += scored
            result.errors += errors
            result.problems += problems
    marked = storage.read_if_present(output.success_uri) is not None
    complete = len(present) == result.units
    if marked and not complete:
        result.problems.append("_SUCCESS is there though parts are missing; run the job again")
    if complete and not marked:
        result.problems.append("_SUCCESS is missing though every part is there; run the job again")
    return result


def _range(unit: Unit) -> str:
    return f"{unit.row_start} to {unit.row_start + unit.num_rows}"


def _verify_part(unit: Unit, part: storage.StoredObject, fingerprint: str) -> tuple[int, int, int, list[str]]:
    def wrong(what: str) -> tuple[int, int, int, list[str]]:
        return 0, 0, 0, [f"{unit.part_name}: {what}; delete it and run the job again"]

    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(part.uri)))
    except (pa.ArrowException, OSError, RerankError) as error:
        return wrong(f"cannot be read ({type(error).__name__})")
    found = read_part_metadata(table.schema)
    if found.get("fingerprint") != fingerprint:
        return wrong(f"has the fingerprint {found.get('fingerprint')} of another job, the plan's is {fingerprint}")
    if (found.get("unit"), found.get("shard"), found.get("row_start")) != (
        unit.name,
        unit.uri,
        str(unit.row_start),
    ):
        return wrong(f"holds another unit ({found.get('unit')} of {found.get('shard')})")
    if found.get("shard_etag") != unit.etag:
        return wrong("was scored from another version of its shard")
    if table.num_rows != unit.num_rows:
        return wrong(f"has {table.num_rows} rows, the plan {unit.num_rows}")
    lacking = [name for name in RESERVED_COLUMNS if name not in table.column_names]
    if lacking:
        return wrong(f"has no column {', '.join(lacking)}")
    scored, errors, problem = _verify_scores(table)
    if problem:
        return wrong(problem)
    facts = json.loads(found.get("facts", "{}"))
    if facts.get("scored") != scored:
        return wrong(f"has {scored} scores where its metadata say {facts.get('scored')}")
    return table.num_rows, scored, errors, []


def _verify_scores(table: pa.Table) -> tuple[int, int, str | None]:
    """Check that each pair has a score or a reason, and that scores are the sigmoid of logits."""
    columns = {name: table.column(name).combine_chunks() for name in ("score", "logit", "error")}
    if pa.types.is_list(columns["score"].type):
        rows_without = int(pc.sum(pc.is_null(columns["score"])).as_py() or 0)
        columns = {
            name: pc.list_flatten(pc.filter(column, pc.is_valid(table.column("score"))))
            for name, column in columns.items()
        }
        columns = {
            name: column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            for name, column in columns.items()
        }
    else:
        rows_without = 0
    has_score, has_error = pc.is_valid(columns["score"]), pc.is_valid(columns["error"])
    if pc.any(pc.equal(has_score, has_error)).as_py():
        return 0, 0, "has rows with neither or both of score and error"
    if not has_score.equals(pc.is_valid(columns["logit"])):
        return 0, 0, "has rows with only one of score and logit"
    scores = columns["score"].drop_null().to_numpy(zero_copy_only=False)
    logits = columns["logit"].drop_null().to_numpy(zero_copy_only=False)
    if not np.isfinite(logits).all() or not np.array_equal(compute_score(logits), scores):
        return 0, 0, "has scores that are not the sigmoid of their logits"
    return len(scores), int(pc.sum(has_error).as_py() or 0) + rows_without, None
