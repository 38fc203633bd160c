"""The driver of a run: its engines, at work on the units of one output or of several.

Takes outputs that are ready to be scored, runs the pipeline over the units of all of them in rounds, watches it, and records
with each output what became of its units. Engines are started once for all, because that takes minutes of a GPU; an output
whose units are all settled is yielded at once, while others go on. Knows nothing of plans or manifests.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from rerank_actor.engines.base import EngineSpec
from rerank_actor.errors import EngineStartError, JobError, OutputConflictError, RunInterruptedError, describe_cause
from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.price import find_price
from rerank_actor.runtime.background import run_in_background
from rerank_actor.runtime.connection import Connection, is_pipeline_running
from rerank_actor.runtime.pool import ActorPool, list_nodes, plan_pool
from rerank_actor.scoring.committer import EngineFacts, OutputCommitter
from rerank_actor.scoring.context import RunContext
from rerank_actor.scoring.coordinator import News, start_coordinator
from rerank_actor.scoring.monitor import RunMonitor
from rerank_actor.scoring.pipeline import PartSpec, UnitPath, restart_stuck_actors, score_units
from rerank_actor.scoring.prepare import PrepareSpec

DRAIN_SECONDS = 30.0
FAULTS_TIMED = 100  # of a run, for its report
FAILED_COMMITS_ALLOWED = (
    5  # in a row; each was tried for a minute and a half, or failed for a reason that does not pass
)


@dataclass(frozen=True)
class EngineSetup:
    """What all workers of a run take: the tokenizer, the engine to start, and AWS variables of the driver."""

    tokenizer_json: str
    engine: EngineSpec
    environment: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class OutputWork:
    """Units to score for an output, and how they are read."""

    output: OutputCommitter
    units: Sequence[Unit]
    spec: PrepareSpec


class Driver:
    """Engines at work on the units of some outputs, whose jobs have the same model, engine and settings of the run.

    Args:
        work: the outputs, prepared, and their units.
        setup: what all workers take.
        context: the run.
        connection: to Ray.
        faults: that the run has survived before, by kind.
    """

    def __init__(
        self,
        work: Sequence[OutputWork],
        setup: EngineSetup,
        context: RunContext,
        connection: Connection,
        faults: Counter[str] | None = None,
    ) -> None:
        self._work, self._setup, self._context, self._connection = work, setup, context, connection
        self.facts = EngineFacts(faults=faults or Counter(), is_shared=len(work) > 1)
        self._open = [item.output for item in work]
        self._owners = {unit.name: item.output for item in work for unit in item.units}
        job = work[0].output.prepared.job
        self._monitor = RunMonitor(self._open[:], self.facts, context, find_price(job.gpu_type, job.gpu_price))
        self._news = News()  # the last
        self._engine_failures: list[str] = []
        self._standstills = 0

    def score(self) -> Generator[OutputCommitter]:
        """Run the pipeline, round after round of units, again for those that are left, as long as that helps.

        Yields:
            Each of several outputs as soon as all its units are committed or failed, while the others go on. What is not
            yielded has units that nobody tries any more, or is alone.

        Raises:
            EngineStartError, JobError: nothing can be scored.
            OutputConflictError: another run took over an output.
            RunInterruptedError: a signal came.
        """
        left = [(index, unit) for index, item in enumerate(self._work) for unit in item.units]
        pool = self._plan_pool(len(left))
        dtypes = [dtype for output in self._open if (dtype := output.find_earlier_dtype())]
        coordinator = start_coordinator(dtypes[0] if dtypes else None, self._work[0].output.prepared.job.max_attempts)
        for output in self._open:
            output.use_engines(self.facts)
        round_units = self._context.limits.round_units
        try:
            while left:
                coordinator.begin_round.remote()
                self._drain(coordinator)  # what engines of the round before have still reported
                settled = self._count_settled()
                is_hopeless = yield from self._run_round(left[:round_units], pool, coordinator)
                if is_hopeless or self._count_settled() == settled:
                    break
                again = [
                    item for item in left[:round_units] if self._owners[item[1].name].outcomes.is_open(item[1].name)
                ]
                left = again + left[round_units:]
                if again:
                    self.facts.faults["round_repeated"] += 1
                    self._context.reporter.info(f"{len(again):,} units are left over; going over them again")
        finally:
            if not is_pipeline_running():
                ray.kill(coordinator)  # on a Ray that lives on it would stay until Python collects its handle

    def _plan_pool(self, num_units: int) -> ActorPool:
        """Return how many actors are to be started, and say so."""
        job, reporter = self._work[0].output.prepared.job, self._context.reporter
        pool = plan_pool(list_nodes(), job.actor_range, job.gpus_per_actor, job.group_size, num_units)
        self.facts.gpus_per_actor = pool.num_gpus
        count = f"{pool.most}" if pool.least == pool.most else f"{pool.least} to {pool.most}"
        reporter.info(f"starting {count} {job.engine} actor(s); an engine takes a while to start")
        if pool.fitting is not None and pool.fitting < pool.least:
            reporter.info(f"the cluster has GPUs for {pool.fitting} of {pool.least} actor(s) now; waiting for nodes")
        return pool

    def _run_pipeline(self, units: list[tuple[int, Unit]], pool: ActorPool, coordinator: Any) -> Generator[None]:
        """Run the pipeline over some units; it yields nothing, because their reports come from the coordinator."""
        outputs = []
        for item in self._work:
            folder, metadata = item.output.output, item.output.make_part_metadata()
            part = PartSpec(folder.uri, metadata, folder.scratch, item.output.lease.mark, self._setup.environment)
            outputs.append(UnitPath(item.spec, part))
        score_units(
            units,
            outputs,
            self._setup.tokenizer_json,
            self._setup.engine,
            pool,
            coordinator,
            self._work[0].output.prepared.job.stall_seconds,
            self._context.labels,
        )
        yield from ()

    def _run_round(
        self, units: list[tuple[int, Unit]], pool: ActorPool, coordinator: Any
    ) -> Generator[OutputCommitter, None, bool]:
        """Run a pipeline in the background and watch it; yield what it settles, return whether to go on is hopeless."""
        pipeline = self._run_pipeline(units, pool, coordinator)
        is_hopeless = False
        with run_in_background(pipeline, self._connection, self._check_leases, coordinator.stop.remote) as running:
            try:
                for _ in running.ticks():
                    self._drain(coordinator)
                    yield from self._pop_settled()
                    if self._engine_failures and not self.facts.engines and not self._news.first_starts:
                        raise EngineStartError(self._engine_failures[0])
                    if is_hopeless := self._is_hopeless():
                        break
                    self._end_standstill()
            except RunInterruptedError:
                coordinator.stop.remote()
                self._drain(coordinator)
                for output in self._list_begun():  # first, because stopping may take longer than we are given
                    output.write_stopped_manifest()
                raise
            if running.error is not None and not is_hopeless:  # else it is what the pipeline says of being stopped
                self._explain(running.error)
        self._drain(coordinator)
        yield from self._pop_settled()
        return is_hopeless

    def _check_leases(self) -> None:
        for item in self._work:
            item.output.lease.check()

    def _count_settled(self) -> int:
        return sum(item.output.outcomes.num_settled for item in self._work)

    def _list_begun(self) -> list[OutputCommitter]:
        """Return the outputs at work; those of which no unit has come back have nothing to write down yet."""
        return [output for output in self._open if output.outcomes.num_settled or not self.facts.is_shared]

    def _pop_settled(self) -> Iterator[OutputCommitter]:
        """Yield the outputs that have become settled, and be through with them; one that is alone waits for the end."""
        if self.facts.is_shared:
            for output in [output for output in self._open if output.outcomes.is_settled]:
                self._open.remove(output)
                yield output

    def _is_hopeless(self) -> bool:
        """Say so when more failed than the job allows."""
        job, reporter = self._work[0].output.prepared.job, self._context.reporter
        outputs = [item.output for item in self._work]
        if job.max_failed_units and sum(len(output.outcomes.failed) for output in outputs) > job.max_failed_units:
            reporter.warn(f"more than {job.max_failed_units:,} units failed; stopping (--max-failed-units)")
            return True
        if job.max_error_rows and sum(output.count_errors() for output in outputs) > job.max_error_rows:
            reporter.warn(f"more than {job.max_error_rows:,} rows have an error; stopping (--max-error-rows)")
            return True
        for output in outputs:
            if len(output.failed_commits) >= FAILED_COMMITS_ALLOWED:
                reporter.warn(
                    f"{len(output.failed_commits):,} units in a row were scored and could not be committed to "
                    f"{output.output.uri}; stopping, for the next would be lost too; what is committed stays "
                    f"({output.failed_commits[-1]})"
                )
                return True
        if self._news.hopeless is not None:
            reporter.warn(f"every engine fails and nothing is scored any more; stopping ({self._news.hopeless})")
            return True
        return False

    def _end_standstill(self) -> None:
        """Restart the actors that hold up a run in which nothing goes on."""
        limits, reporter, idle_seconds = self._context.limits, self._context.reporter, self._news.idle_seconds
        allowed = limits.standstill_seconds if self.facts.engines else limits.first_standstill_seconds
        if idle_seconds < allowed * (1 + self._standstills):
            return
        self._standstills += 1
        gpus = self.facts.gpus_per_actor
        if gpus and not any(node.count_fitting(gpus) for node in list_nodes()):
            reporter.info("there is no node with a GPU for an actor; waiting for one")
            return
        count = restart_stuck_actors()
        self.facts.faults["actor_stuck"] += count
        reporter.warn(f"nothing has gone on for {idle_seconds:.0f} s; {count} actors that do not start are replaced")

    def _explain(self, error: BaseException) -> None:
        """Say why a pipeline ended early: an engine that cannot start is the job's fault, the rest is survived."""
        if self._engine_failures and not self.facts.engines:
            raise EngineStartError(self._engine_failures[0])
        inner = getattr(error, "cause", None) or error  # Ray's error around what a worker raised
        if isinstance(inner, JobError | OutputConflictError):
            raise inner
        self.facts.faults["pipeline_ended"] += 1
        self._context.reporter.info(f"Ray ended the pipeline early ({describe_cause(inner)})")

    def _drain(self, coordinator: Any) -> None:
        """Record what the coordinator has heard since the last time."""
        try:
            news: News = ray.get(coordinator.drain.remote(), timeout=DRAIN_SECONDS)
        except ray.exceptions.RayError:
            return
        self._standstills = self._standstills if news.idle_seconds > self._news.idle_seconds else 0
        self._news = news
        self._record_engines(news)
        committed = [
            (output, report) for report in news.units if (output := self._owners[report["unit"]]).record_report(report)
        ]
        self._monitor.update(news, committed)
        for output in self._list_begun():
            output.flush_periodically()

    def _record_engines(self, news: News) -> None:
        facts, reporter = self.facts, self._context.reporter
        facts.engines += news.engines
        if facts.engines and facts.ready_at is None:
            facts.ready_at = min(engine["ready_at"] for engine in facts.engines)
        for kind in news.faults.keys() - facts.faults.keys():
            reporter.info(f"survived a fault: {kind.replace('_', ' ')}; the manifest counts these")
        facts.faults.update(news.faults)
        known_faults = [(time.time(), kind, count) for kind, count in news.faults.items()]
        facts.faults_at += known_faults[: max(0, FAULTS_TIMED - len(facts.faults_at))]
        facts.least_batch_tokens = news.least_batch_tokens or facts.least_batch_tokens
        facts.actors = max(facts.actors, news.actors)
        self._engine_failures += news.engine_failures
        if facts.engines:
            for failure in news.engine_failures:
                reporter.warn(f"an engine could not start, others are at work: {failure}")
