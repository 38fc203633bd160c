"""The main job: from a `ScoreJob` to a scored output, and on again after whatever ended it.

`run_job` is the order of things: preflight, lease, scoring what is not committed, saying what happened. `run_jobs` does the
same for several jobs whose engines are the same, which are started once for all of them. It knows the order and the words
for the user; how each step works is known elsewhere.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rerank_actor import storage
from rerank_actor.engines.model import load_tokenizer_json
from rerank_actor.errors import AccessDeniedError, JobError, RerankError, RunInterruptedError
from rerank_actor.inputs.rows import Unit
from rerank_actor.job import EngineJob, ScoreJob
from rerank_actor.outputs.folder import Output
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.runtime.connection import Connection, connect_ray, watch_signals
from rerank_actor.runtime.notifications import Notifier, NotifyingReporter
from rerank_actor.scoring.committer import OutputCommitter
from rerank_actor.scoring.context import RunContext, RunLimits
from rerank_actor.scoring.lookups import make_known, make_lookups
from rerank_actor.scoring.outcomes import RunResult
from rerank_actor.scoring.preflight import (
    PreparedJob,
    look_at_model,
    make_engine_spec,
    make_prepare_spec,
    prepare_job,
    refresh_job,
    refuse_dead_storage,
)
from rerank_actor.scoring.prepare import PrepareSpec
from rerank_actor.storage.lease import Lease, make_run_id

__all__ = ["RunLimits", "RunResult", "run_job", "run_jobs"]

OPEN_THREADS = 8

Item = TypeVar("Item")
Made = TypeVar("Made")


def run_job(job: ScoreJob, reporter: Reporter | None = None, limits: RunLimits | None = None) -> RunResult:
    """Score everything that the job names and that is not yet committed.

    Args:
        job: what to score.
        reporter: is told what happens.
        limits: bounds that no flag sets.

    Returns:
        The totals of the output. `status` is `failed` when some units failed for good; the rest is committed.

    Raises:
        JobError: the job cannot start; nothing was started.
        OutputConflictError: the output belongs to another job, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    return run_jobs([job], reporter, limits=limits)[0]


def run_jobs(
    jobs: Sequence[ScoreJob],
    reporter: Reporter | None = None,
    owner: EngineJob | None = None,
    limits: RunLimits | None = None,
) -> list[RunResult]:
    """Score what several jobs name, with engines that are started once for all of them.

    Each job has an output of its own, which is planned and finished on its own, as soon as its last unit is committed.

    Args:
        jobs: one or more, that differ in their input, output and instruction alone.
        reporter: is told what happens.
        owner: the job that they are parts of, of which notices and metrics speak.
        limits: bounds that no flag sets.

    Returns:
        How each ended, in their order.

    Raises:
        JobError: one of the jobs cannot start; nothing was started.
        OutputConflictError: an output belongs to another job, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    run = _Run(owner or jobs[0], reporter or QuietReporter(), limits or RunLimits())
    try:
        results = run.execute(jobs)
    except RunInterruptedError as error:
        run.report_end("stopped", str(error))
        raise
    except RerankError as error:
        run.report_end("error", str(error))
        raise
    status = "failed" if any(result.status == "failed" for result in results) else "complete"
    rows = sum(result.totals.rows for result in results)
    failed = sum(len(result.failed) for result in results)
    run.report_end(status, f"{status}, {rows:,} rows, {failed:,} units failed")
    return results


def _map(work: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """Do work for each item, that of several side by side, because it mostly waits for storage."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(OPEN_THREADS) as pool:
        return list(pool.map(work, items))


class _Run:
    """One run over some outputs, of which it holds the leases of a wave at a time."""

    def __init__(self, owner: EngineJob, reporter: Reporter, limits: RunLimits) -> None:
        run_id = make_run_id()
        self._owner = owner
        self._notifier = Notifier(owner, run_id, reporter)
        notifying = NotifyingReporter(reporter, self._notifier, self._make_figures)
        self._context = RunContext(run_id, owner.output, notifying, limits)
        self._outputs: list[OutputCommitter] = []  # of all waves so far
        self._started = time.time()

    def report_end(self, status: str, message: str) -> None:
        """Send a notice that the run has ended, where it had begun."""
        if self._outputs:
            self._notifier.report_end(status, message, self._make_figures())

    def execute(self, jobs: Sequence[ScoreJob]) -> list[RunResult]:
        """Check all jobs, then score them in waves; return how each ended."""
        prepared_jobs = self._prepare(jobs)  # what is refused is refused before anything starts
        size = self._context.limits.open_outputs
        results = []
        for start in range(0, len(jobs), size):
            wave = prepared_jobs[start : start + size]
            with self._hold_leases(wave) as leases:
                wave = _map(refresh_job, wave)
                results += self._score_wave(wave, leases)
        return results

    def _prepare(self, jobs: Sequence[ScoreJob]) -> list[PreparedJob]:
        """Check jobs, looking at their model once."""
        model = look_at_model(jobs[0], [Output(job.output) for job in jobs], self._context.reporter)
        first = prepare_job(jobs[0], self._context.reporter, model)
        # What holds for all of them is told once, by the first.
        return [first, *_map(lambda job: prepare_job(job, model=model), jobs[1:])]

    @contextlib.contextmanager
    def _hold_leases(self, prepared_jobs: list[PreparedJob]) -> Iterator[list[Lease]]:
        """Take the leases of some outputs, and give them back at the end, where that was not done before."""
        leases = [
            Lease(prepared.output.lease_uri, prepared.output.uri, self._context.run_id) for prepared in prepared_jobs
        ]
        held: list[Lease] = []

        def acquire(lease: Lease) -> None:
            with refuse_dead_storage():
                lease.acquire(self._context.reporter.info)
            held.append(lease)

        try:
            _map(acquire, leases)
            yield leases
        finally:
            _map(Lease.release, held)

    def _score_wave(self, prepared_jobs: list[PreparedJob], leases: list[Lease]) -> list[RunResult]:
        """Prepare some outputs, score what is pending of them, and finish each."""
        outputs = [
            OutputCommitter(prepared, lease, self._context)
            for prepared, lease in zip(prepared_jobs, leases, strict=True)
        ]
        self._outputs += outputs
        units = dict(zip(outputs, _map(OutputCommitter.prepare, outputs), strict=True))
        idle = [output for output in outputs if not units[output]]
        results = dict(zip(idle, _map(finish_output, idle), strict=True))
        with contextlib.closing(self._score({output: units[output] for output in outputs if units[output]})) as scored:
            for output in scored:
                results[output] = finish_output(output)
        return [results[output] for output in outputs]

    def _score(self, units: dict[OutputCommitter, list[Unit]]) -> Generator[OutputCommitter]:
        """Score units, and yield each output when nothing more is done for it, the last ones when Ray is gone."""
        left = list(units)
        try:
            if units:
                self._context.reporter.info("waiting for Ray")
                with watch_signals() as watch, connect_ray(self._owner, watch) as connection:
                    for group in _group_by_dtype(left):
                        work = {output: units[output] for output in group}
                        with contextlib.closing(self._drive(work, connection)) as settled:
                            for output in settled:
                                left.remove(output)
                                yield output
                        for output in group if len(units) > 1 else []:  # what was alone in its group
                            if output in left and output.outcomes.is_settled:
                                left.remove(output)
                                yield output
        finally:
            self._context.reporter.close()
        yield from left

    def _drive(self, units: dict[OutputCommitter, list[Unit]], connection: Connection) -> Generator[OutputCommitter]:
        """Make what rows are joined with, start engines, and yield each output as soon as its units are settled."""
        from rerank_actor.scoring.driver import Driver, EngineSetup, OutputWork
        from rerank_actor.scoring.shared_pairs import score_shared_pairs

        def check() -> None:
            connection.watch.check()
            for output in units:
                output.lease.check()

        first = next(iter(units)).prepared
        tokenizer_json, environment = load_tokenizer_json(first.model), storage.capture_environment()
        setup = EngineSetup(tokenizer_json, make_engine_spec(first, tokenizer_json), environment)
        work = [
            OutputWork(output, output_units, self._make_spec(output, environment, check))
            for output, output_units in units.items()
        ]
        faults: Counter[str] = Counter()
        if self._owner.dedupe == "global":
            work, faults = score_shared_pairs(work, setup, self._context, connection, check)
        yield from Driver(work, setup, self._context, connection, faults).score()

    def _make_spec(
        self, output: OutputCommitter, environment: dict[str, str], check: Callable[[], None]
    ) -> PrepareSpec:
        """Make what ids and known scores are looked up in, and return how units are read."""
        from rerank_actor.runtime.tasks import run_tasks

        lookups = make_lookups(output.prepared, run_tasks, self._context.reporter, check)
        output.record_lookups({lookup.role: lookup.store.facts for lookup in lookups})
        known = make_known(output.prepared, run_tasks, self._context.reporter, check)
        return make_prepare_spec(output.prepared, environment, lookups, known)

    def _make_figures(self) -> dict[str, Any]:
        """Return how far the run is, for notices."""
        outputs = self._outputs
        outcomes = [output.outcomes for output in outputs]
        return {
            "rows": sum(output.totals.rows for output in outcomes),
            "total_rows": sum(output.prepared.plan.num_rows for output in outputs),
            "pairs_with_error": sum(output.totals.failed_pairs for output in outcomes),
            "failed_units": sum(len(output.failed) for output in outcomes),
            "seconds": round(time.time() - self._started, 1),
            "gpu_hours": round(sum(output.gpu_seconds for output in outputs) / 3600, 3),
            **({"report": outputs[0].output.at("report.html")} if len(outputs) == 1 else {}),
        }


def finish_output(output: OutputCommitter) -> RunResult:
    """Finish an output; storage that refuses by now is a failed run, because the job was right when it began."""
    try:
        result = output.finish()
    except JobError as error:
        if type(error) not in (JobError, AccessDeniedError):
            raise
        raise RerankError(
            f"{error}; what is committed stays, and the same command goes on", uri=output.output.uri
        ) from error
    output.lease.release()
    return result


def _group_by_dtype(outputs: Sequence[OutputCommitter]) -> list[list[OutputCommitter]]:
    """Return outputs that the same engines can score: those whose earlier parts are of one dtype, or that have none."""
    groups: dict[str | None, list[OutputCommitter]] = {}
    for output in outputs:
        groups.setdefault(output.find_earlier_dtype(), []).append(output)
    free = groups.pop(None, [])
    typed = list(groups.values())
    return [[*typed[0], *free], *typed[1:]] if typed else [free]
