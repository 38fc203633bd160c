"""`--dedupe global`: pairs that several units of an output have are scored first, as a job within the job.

Takes the outputs of a run before their units are scored, gives the same work with the scores of those pairs to look up. The
inner jobs run on engines of their own and write into the outputs' own folders, under the leases that the run holds.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from rerank_actor.runtime.connection import Connection
from rerank_actor.runtime.tasks import run_tasks
from rerank_actor.scoring.committer import OutputCommitter
from rerank_actor.scoring.context import RunContext
from rerank_actor.scoring.driver import Driver, EngineSetup, OutputWork
from rerank_actor.scoring.lookups import index_scores
from rerank_actor.scoring.preflight import make_prepare_spec, prepare_job
from rerank_actor.scoring.reuse import load_reused
from rerank_actor.scoring.shared_pairs import SharedPairs, find_shared, make_shared_job

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
    shared = [_find_pairs(item, context, check) for item in work]
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


def _find_pairs(item: OutputWork, context: RunContext, check: Check) -> SharedPairs:
    units, num_bytes = list(item.output.outcomes.left.values()), item.output.prepared.plan.num_bytes
    pairs = find_shared(item.output.output, units, num_bytes, item.spec, run_tasks, check)
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
