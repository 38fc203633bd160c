"""The main job: from a `ScoreJob` to a scored output, and on again after whatever ended it.

`run_job` is the order of things: preflight, lease, scoring what is not committed, saying what happened. `run_jobs` does the
same for several jobs whose engines are the same, which are started once for all of them. It knows the order and the words
for the user; how each step works is known elsewhere.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from rerank_actor.engines.model import RerankerModel
from rerank_actor.errors import RerankError, RunInterruptedError
from rerank_actor.inputs.unit import Unit
from rerank_actor.job import EngineJob, ScoreJob
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.runtime.connection import Connection, SignalWatch, connect_ray, watch_signals
from rerank_actor.runtime.notifications import Notifier
from rerank_actor.scoring.committer import OutputCommitter, RunResult
from rerank_actor.scoring.driver import Driver
from rerank_actor.scoring.lookups import index_scores, make_known, make_lookups
from rerank_actor.scoring.preflight import PreparedJob, prepare_job, refuse_dead_storage
from rerank_actor.scoring.prepare import PrepareSpec
from rerank_actor.scoring.reuse import ScoreSource, load_reused
from rerank_actor.scoring.shared_pairs import SharedPairs, find_shared, make_shared_job
from rerank_actor.storage.lease import Lease, make_run_id

__all__ = ["RunResult", "run_job", "run_jobs"]

OPEN_AT_ONCE = 100  # outputs of a run whose lease is held; each is a request every five seconds
OPEN_THREADS = 8

Item = TypeVar("Item")
Made = TypeVar("Made")


def run_job(job: ScoreJob, reporter: Reporter | None = None) -> RunResult:
    """Score everything that the job names and that is not yet committed.

    Returns:
        The totals of the output. `status` is `failed` when some units failed for good; the rest is committed.

    Raises:
        JobError: the job cannot start; nothing was started.
        OutputConflictError: the output belongs to another job, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    return run_jobs([job], reporter)[0]


def run_jobs(
    jobs: Sequence[ScoreJob], reporter: Reporter | None = None, owner: EngineJob | None = None
) -> list[RunResult]:
    """Score what several jobs name, with engines that are started once for all of them.

    Each job has an output of its own, which is planned and finished on its own, as soon as its last unit is committed.

    Args:
        jobs: one or more, that differ in their input, output and instruction alone.
        reporter: is told what happens.
        owner: the job that they are parts of, of which notices and metrics speak.

    Returns:
        How each ended, in their order.

    Raises:
        JobError: one of the jobs cannot start; nothing was started.
        OutputConflictError: an output belongs to another job, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    reporter = reporter or QuietReporter()
    run = _Run(owner or jobs[0], reporter)
    if len(jobs) > OPEN_AT_ONCE:
        run.prepare(jobs)  # what is refused is refused before anything starts
    try:
        for at in range(0, len(jobs), OPEN_AT_ONCE):
            run.execute(jobs[at : at + OPEN_AT_ONCE])
    except RunInterruptedError as error:
        run.report_end("stopped", str(error))
        raise
    except RerankError as error:
        run.report_end("error", str(error))
        raise
    status = "failed" if any(result.status == "failed" for result in run.results) else "complete"
    rows = sum(result.totals.rows for result in run.results)
    failed = sum(len(result.failed) for result in run.results)
    run.report_end(status, f"{status}, {rows:,} rows, {failed:,} units failed")
    return run.results


def _map(work: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """Do work for each item, that of several side by side, because it mostly waits for storage."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(OPEN_THREADS) as pool:
        return list(pool.map(work, items))


class _Run:
    """One run: the outputs whose leases it holds, and how those ended that it is through with."""

    def __init__(self, owner: EngineJob, reporter: Reporter) -> None:
        self.owner, self.reporter = owner, reporter
        self.run_id = make_run_id()
        self.results: list[RunResult] = []
        self._outputs: list[OutputCommitter] = []  # those of earlier waves too
        self._notifier: Notifier | None = None
        self._model: RerankerModel | None = None
        self._started = time.time()

    def report_end(self, status: str, message: str) -> None:
        """Tell that the run has ended, where it had begun."""
        if self._notifier is not None:
            self._notifier.report_end(status, message, self._tell_figures())

    def prepare(self, jobs: Sequence[ScoreJob]) -> list[PreparedJob]:
        """Check jobs, looking at their model once."""
        first = prepare_job(jobs[0], self.reporter, self._model)
        self._model = first.model
        # What holds for all of them is told once, by the first.
        return [first, *_map(lambda job: prepare_job(job, model=first.model), jobs[1:])]

    def execute(self, jobs: Sequence[ScoreJob]) -> None:
        """Take the leases, prepare the outputs, score what is pending, write down how it ended."""
        prepared_jobs = self.prepare(jobs)
        leases = [Lease(prepared.output.lease_uri, prepared.output.uri, self.run_id) for prepared in prepared_jobs]
        held: list[Lease] = []

        def acquire(lease: Lease) -> None:
            with refuse_dead_storage():
                lease.acquire(self.reporter.say)
            held.append(lease)

        try:
            _map(acquire, leases)
            self._score(prepared_jobs, leases)
        finally:
            _map(Lease.release, held)

    def _score(self, prepared_jobs: list[PreparedJob], leases: list[Lease]) -> None:
        """Score what is pending of some outputs and finish each."""
        if self._notifier is None:
            self._notifier = Notifier(self.owner, self.run_id, self.reporter.say)
        outputs = [
            OutputCommitter(prepared, self.run_id, lease, self.reporter, self._warn)
            for prepared, lease in zip(prepared_jobs, leases, strict=True)
        ]
        self._outputs += outputs
        finished: dict[int, RunResult] = {}

        def finish(output: OutputCommitter) -> None:
            finished[id(output)] = output.finish()
            if len(outputs) > 1:
                output.lease.release()

        pending = _map(OutputCommitter.prepare, outputs)
        busy = [(output, units) for output, units in zip(outputs, pending, strict=True) if units]
        if len(outputs) > 1:
            _map(finish, [output for output, units in zip(outputs, pending, strict=True) if not units])
        try:
            if busy:
                with watch_signals() as watch, connect_ray(self.owner, watch) as connection:
                    for group in _group_by_dtype(busy):
                        self._drive(group, connection, watch, finish if len(outputs) > 1 else None)
        finally:
            self.reporter.close()
        for output in outputs:
            if id(output) not in finished:
                finish(output)
        self.results += [finished[id(output)] for output in outputs]

    def _drive(
        self,
        group: list[tuple[OutputCommitter, list[Unit]]],
        connection: Connection,
        watch: SignalWatch,
        finish: Callable[[OutputCommitter], None] | None,
    ) -> None:
        """Start engines and score the units of some outputs."""
        outputs, units = [output for output, _ in group], [own for _, own in group]
        crew = Driver(outputs, self.owner.output, self.reporter, self._warn, connection, watch)
        specs, engine = crew.make_specs()
        specs = self._make_stores(crew, specs)
        crew.score(units, specs, engine, finish)

    def _make_stores(self, crew: Driver, specs: list[PrepareSpec]) -> list[PrepareSpec]:
        """Make what ids and known scores are looked up in."""
        from rerank_actor.runtime.tasks import run_tasks

        found = []
        for output, spec in zip(crew.outputs, specs, strict=True):
            lookups = make_lookups(output.prepared, run_tasks, self.reporter.say, crew.check)
            output.joins = {lookup.role: lookup.store.facts for lookup in lookups}
            known = make_known(output.prepared, run_tasks, self.reporter.say, crew.check)
            found.append(replace(spec, lookups=lookups, known=known))
        if self.owner.dedupe != "global":
            return found
        shared = {}
        for place, (output, spec) in enumerate(zip(crew.outputs, found, strict=True)):
            units, size = list(output.left.values()), output.prepared.plan.num_bytes
            pairs = find_shared(output.output, units, size, spec, run_tasks, crew.check)
            self.reporter.say(f"--dedupe global: {pairs.num_pairs:,} pairs are in several units; they are scored first")
            if pairs.num_pairs:
                shared[place] = pairs
        for place, source in self._score_shared(crew, shared).items():
            scores = index_scores("shared", source, crew.outputs[place].prepared, run_tasks, crew.check)
            found[place] = replace(found[place], known=(*found[place].known, scores))
        return found

    def _score_shared(self, crew: Driver, shared: dict[int, SharedPairs]) -> dict[int, ScoreSource]:
        """Score the pairs that several units of an output have, as jobs within the jobs; return where the scores are."""
        inner: dict[int, OutputCommitter] = {}
        for place, pairs in shared.items():
            outer = crew.outputs[place]
            job = make_shared_job(outer.prepared.job, pairs, outer.output.at("dedupe", "scores"))
            inner[place] = OutputCommitter(
                prepare_job(job, model=self._model), self.run_id, outer.lease, self.reporter, self._warn
            )
        pending = {place: output.prepare() for place, output in inner.items()}
        busy = [place for place, units in pending.items() if units]
        if busy:
            outputs = [inner[place] for place in busy]
            engines = Driver(outputs, self.owner.output, self.reporter, self._warn, crew.connection, crew.watch)
            specs, engine = engines.make_specs()
            engines.score([pending[place] for place in busy], specs, engine)
            crew.facts.faults.update(engines.facts.faults)
        sources = {}
        for place, output in inner.items():
            output.finish(reports=False)
            outer, pairs = crew.outputs[place], shared[place]
            outer.totals.shared_passes = pairs.passes_before + output.totals.forward_passes
            outer.dedupe = {"shared_pairs": pairs.num_pairs, "forward_passes": outer.totals.shared_passes}
            outer.shared_dtype = output.find_dtype() or output.find_earlier_dtype()
            outer.actor_seconds += output.actor_seconds
            sources[place] = load_reused(output.output.uri, output.prepared.settings)
        return sources

    def _warn(self, message: str) -> None:
        """Say what needs a person's eye, here and where notices go."""
        self.reporter.say(message)
        if self._notifier is not None:
            self._notifier.report_trouble(message, self._tell_figures())

    def _tell_figures(self) -> dict[str, Any]:
        """Return how far the run is, for notices."""
        outputs = self._outputs
        seconds = sum(output.actor_seconds * output.crew.gpus_per_actor for output in outputs)
        return {
            "rows": sum(output.totals.rows for output in outputs),
            "total_rows": sum(output.prepared.plan.num_rows for output in outputs),
            "pairs_with_error": sum(output.totals.failed_pairs for output in outputs),
            "failed_units": sum(len(output.failed) for output in outputs),
            "seconds": round(time.time() - self._started, 1),
            "gpu_hours": round(seconds / 3600, 3),
            **({"report": outputs[0].output.at("report.html")} if len(outputs) == 1 else {}),
        }


def _group_by_dtype(busy: list[tuple[OutputCommitter, list[Unit]]]) -> list[list[tuple[OutputCommitter, list[Unit]]]]:
    """Return outputs that one crew can score: those whose earlier parts are of one dtype, or that have none."""
    groups: dict[str | None, list[tuple[OutputCommitter, list[Unit]]]] = {}
    for item in busy:
        groups.setdefault(item[0].find_earlier_dtype(), []).append(item)
    free = groups.pop(None, [])
    found = list(groups.values())
    return [[*found[0], *free], *found[1:]] if found else [free]
