"""Shared pairs: those that several units of a job have, found by a shuffle of the whole input.

Each unit's different pairs are spilled by the hash of their key, with their texts; a bucket brings those of all units
together and keeps each pair that came from more than one, as a row of a small input of its own. That is scored first, as any
input is, by a job within the job on engines of its own, and the units then find its scores by key. So a unit stays one
block, and no unit waits for another.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from rerank_actor import storage
from rerank_actor.engines.settings import EngineSettings
from rerank_actor.errors import RerankError, StorageError
from rerank_actor.inputs.rows import Unit
from rerank_actor.job import ClusterSettings, RunSettings, ScoreJob
from rerank_actor.outputs.folder import Output
from rerank_actor.runtime.connection import Connection
from rerank_actor.runtime.store_builder import RunTasks, run_all
from rerank_actor.runtime.tasks import run_tasks
from rerank_actor.scoring.committer import OutputCommitter
from rerank_actor.scoring.context import RunContext
from rerank_actor.scoring.driver import Driver, EngineSetup, OutputWork
from rerank_actor.scoring.lookups import index_scores
from rerank_actor.scoring.preflight import make_prepare_spec, prepare_job
from rerank_actor.scoring.prepare import PrepareSpec, read_new_pairs
from rerank_actor.scoring.reuse import load_reused
from rerank_actor.storage.exchange import Exchange, Slice, collect_slices, read_slices
from rerank_actor.storage.keyed_store import BucketLayout, spill_rows

UNPACKED = 4  # bytes of rows for a stored one
JOINED_BYTES = 2048  # of a pair whose row holds ids


@dataclass(frozen=True)
class SharedPairs:
    """The input of pairs that several units have.

    Attributes:
        uri: its folder.
        num_pairs: rows in it.
        passes_before: forward passes that were spent on shared pairs of earlier plans.
    """

    uri: str
    num_pairs: int
    passes_before: int = 0


def collect_shared(
    output: Output,
    units: Sequence[Unit],
    num_bytes: int,
    spec: PrepareSpec,
    run_tasks: RunTasks,
    check: Callable[[], None],
) -> SharedPairs:
    """Find the pairs that several of these units have, or those that an earlier run found for the same units and more.

    Args:
        output: of the job.
        units: those that are left to score.
        num_bytes: of their shards.
        spec: how they are read.
        run_tasks: does work on the cluster.
        check: called between tasks; may raise.

    Raises:
        StorageError, JobError: storage failed.
    """
    earlier = output.read_own("dedupe/pairs.json")
    names = {unit.name for unit in units}
    folder = output.at("dedupe", "pairs")
    passes = int(output.load_manifest().get("dedupe", {}).get("forward_passes", 0))
    if earlier and names <= set(earlier["units"]):
        return SharedPairs(folder, earlier["num_pairs"], earlier["passes_before"])
    storage.delete_folder(output.at("dedupe"))
    environment = storage.capture_environment()
    rows = sum(unit.num_rows for unit in units)
    layout = BucketLayout.for_bytes(max(UNPACKED * num_bytes, JOINED_BYTES * rows if spec.lookups else 0))
    exchange = Exchange(output.at("dedupe", "spilled"), layout.num_buckets, output.scratch)
    spill = functools.partial(_spill_unit, spec=spec, layout=layout, exchange=exchange)
    reports = run_all(spill, list(units), environment, run_tasks, check, StorageError)
    spilled = [written for report in reports for written in report["spilled"]]
    buckets = list(enumerate(collect_slices(spilled, layout.num_buckets)))
    keep = functools.partial(_keep_shared, folder=folder, scratch=output.scratch)
    kept = run_all(keep, buckets, environment, run_tasks, check, StorageError)
    num_pairs = sum(report["rows"] for report in kept)
    record = {"units": sorted(names), "num_pairs": num_pairs, "passes_before": passes}
    output.write_json("dedupe/pairs.json", record)
    exchange.delete()
    return SharedPairs(folder, num_pairs, passes)


def make_shared_job(job: ScoreJob, shared: SharedPairs, output: str) -> ScoreJob:
    """Return the job that scores shared pairs as the job itself would, with pair keys to find them by."""
    values = {
        **job.pick(EngineSettings, RunSettings, ClusterSettings),
        "input": [shared.uri],
        "format": "parquet",
        "instruction": job.instruction,
        "instruction_column": "instruction",
        "output": output,
        "keep_columns": ["query"],
        "with_pair_key": True,
        "dedupe": "unit",
        "retry_failed": False,
    }
    return ScoreJob(**values)


def _spill_unit(unit: Unit, spec: PrepareSpec, layout: BucketLayout, exchange: Exchange) -> dict[str, Any]:
    """Write the different pairs of a unit; one that fails here fails, or not, when it is its turn to be scored."""
    try:
        table = read_new_pairs(unit, spec)
    except RerankError:
        return {"spilled": []}
    name = f"{hashlib.sha256(unit.name.encode()).hexdigest()[:24]}.bin"
    with storage.patient():
        return {"spilled": [spill_rows(table, layout, exchange, name)]}


def _keep_shared(item: tuple[int, list[Slice]], folder: str, scratch: str | None) -> dict[str, Any]:
    """Write the pairs of a bucket that came from more than one unit, those of one query together."""
    bucket, slices = item
    with storage.patient():
        table = read_slices(slices)
        if table is None:
            return {"rows": 0}
        key = table.column("key").combine_chunks().dictionary_encode().indices.to_numpy()
        _, first, counts = np.unique(key, return_index=True, return_counts=True)
        shared = table.take(pa.array(first[counts > 1])).select(["instruction", "query", "document"])
        if shared.num_rows:
            order = [(name, "ascending") for name in ("instruction", "query")]
            data = storage.to_parquet(shared.sort_by(order), row_group_size=16_384)
            name = storage.join_uri(folder, f"bucket-{bucket:05d}.bin")
            storage.write_bytes(name, data, scratch=scratch)
        return {"rows": shared.num_rows}


Check = Callable[[], None]


def score_shared_pairs(
    work: Sequence[OutputWork], setup: EngineSetup, context: RunContext, connection: Connection, check: Check
) -> tuple[list[OutputWork], Counter[str]]:
    """Score the pairs that several units of an output have.

    Args:
        work: all that is to be scored.
        setup: what all workers take.
        context: the run.
        connection: to Ray.
        check: called between tasks; may raise.

    Returns:
        The work, whose specs find the scores of those pairs; and the faults that were survived meanwhile, by kind.

    Raises:
        EngineStartError, JobError: nothing can be scored.
        OutputConflictError: another run took over an output.
        RunInterruptedError: a signal came.
    """
    shared = [_collect_pairs(item, context, check) for item in work]
    inner = {
        index: _open_inner(item, pairs, context)
        for index, (item, pairs) in enumerate(zip(work, shared, strict=True))
        if pairs.num_pairs
    }
    faults = _score_inner(list(inner.values()), setup, context, connection)
    done = list(work)
    for index, committer in inner.items():
        committer.finish(reports=False)
        _record(work[index].output, shared[index], committer)
        done[index] = _look_up(work[index], committer, check)
    return done, faults


def _collect_pairs(item: OutputWork, context: RunContext, check: Check) -> SharedPairs:
    units, num_bytes = list(item.output.outcomes.left.values()), item.output.prepared.plan.num_bytes
    pairs = collect_shared(item.output.output, units, num_bytes, item.spec, run_tasks, check)
    context.reporter.info(f"--dedupe global: {pairs.num_pairs:,} pairs are in several units; they are scored first")
    return pairs


def _open_inner(item: OutputWork, pairs: SharedPairs, context: RunContext) -> OutputCommitter:
    """Return the committer of the job that scores an output's shared pairs."""
    prepared = item.output.prepared
    job = make_shared_job(prepared.job, pairs, item.output.output.at("dedupe", "scores"))
    return OutputCommitter(prepare_job(job, model=prepared.model), item.output.lease, context)


def _score_inner(
    committers: Sequence[OutputCommitter], setup: EngineSetup, context: RunContext, connection: Connection
) -> Counter[str]:
    """Score what is pending of the inner jobs, and return the faults that were survived."""
    pending = [(committer, committer.prepare()) for committer in committers]
    work = [
        OutputWork(committer, units, make_prepare_spec(committer.prepared, setup.environment))
        for committer, units in pending
        if units
    ]
    if not work:
        return Counter()
    driver = Driver(work, setup, context, connection)
    for _ in driver.score():
        pass  # all are finished together, because nothing waits for one alone
    return driver.facts.faults


def _record(output: OutputCommitter, pairs: SharedPairs, inner: OutputCommitter) -> None:
    passes = pairs.passes_before + inner.outcomes.totals.forward_passes
    dtype = inner.find_dtype() or inner.find_earlier_dtype()
    output.record_shared(pairs.num_pairs, passes, dtype, inner.actor_seconds)


def _look_up(item: OutputWork, inner: OutputCommitter, check: Check) -> OutputWork:
    """Return an output's work with the scores of the inner job to look up."""
    source = load_reused(inner.output.uri, inner.prepared.settings)
    scores = index_scores("shared", source, item.output.prepared, run_tasks, check)
    return replace(item, spec=replace(item.spec, known=(*item.spec.known, scores)))
