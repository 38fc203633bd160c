"""The driver of a run: its engines, at work on the units of one output or of several.

Takes outputs that are ready to be scored, runs the pipeline over the units of all of them in rounds, follows it, and tells
each output what became of its units. Engines are started once for all, because that takes minutes of a GPU; an output
whose units are all settled is given back at once. Knows nothing of plans or manifests.
"""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rerank_actor import storage
from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.model import load_tokenizer_json
from rerank_actor.errors import EngineStartError, JobError, RunInterruptedError, describe_cause
from rerank_actor.inputs.unit import Unit
from rerank_actor.outputs.price import find_price
from rerank_actor.progress import Reporter, RunProgress
from rerank_actor.runtime.connection import Connection, SignalWatch
from rerank_actor.scoring.committer import EngineFacts, OutputCommitter
from rerank_actor.scoring.preflight import make_prepare_spec, make_specs
from rerank_actor.scoring.prepare import PrepareSpec

POLL_SECONDS = 0.5
RATE_WINDOW_SECONDS = 120.0
STOP_SECONDS = 20.0  # to wait for a pipeline on a Ray that lives on
OWN_STOP_SECONDS = 1.0  # on one that ends with this process; a stopped job has three seconds in all
# What Ray Data keeps of each unit, and the time until it hands out the first, grow with their number. Engines start again
# for each round, which is some minutes of days.
ROUND_UNITS = 50_000
STANDSTILL_SECONDS = 240.0  # without anything going on; longer than Ray takes to start a process, on a busy machine too
FIRST_STANDSTILL_SECONDS = 1200.0  # while no engine has started; nodes may still install the job's runtime environment

Settle = Callable[[OutputCommitter], None]


class Driver:
    """Engines at work on the units of some outputs, whose jobs have the same model, engine and settings of the run.

    Args:
        outputs: prepared.
        where: the output, or what the outputs lie in, for metrics.
        reporter: is told what happens.
        warn: is told what needs a person's eye.
        connection: to Ray.
        watch: of signals.
    """

    def __init__(
        self,
        outputs: Sequence[OutputCommitter],
        where: str,
        reporter: Reporter,
        warn: Callable[[str], None],
        connection: Connection,
        watch: SignalWatch,
    ) -> None:
        self.outputs, self.where, self.reporter, self.warn = list(outputs), where, reporter, warn
        self.connection, self.watch = connection, watch
        self.facts = EngineFacts(is_shared=len(self.outputs) > 1)
        self._open = list(self.outputs)
        self._job = self.outputs[0].prepared.job
        self._owners: dict[str, OutputCommitter] = {}  # by name of the unit
        self._settle: Settle | None = None
        self._engine_failures: list[str] = []
        self._first_starts = 0
        self._hopeless: str | None = None
        self._idle_seconds, self._standstills = 0.0, 0
        self._meter: Any = None
        price = find_price(self._job.gpu_type, self._job.gpu_price)
        self._price = price.dollars if price is not None else None
        self._window: list[tuple[float, int, int]] = []
        self._unshared_seconds = 0.0
        self._drained_at = time.monotonic()

    def check(self) -> None:
        """Raise where a signal came or a lease was lost."""
        self.watch.check()
        for output in self._open:
            output.lease.check()

    def make_specs(self) -> tuple[list[PrepareSpec], EngineSpec]:
        """Return what read tasks need for each output, and what all actors need."""
        tokenizer_json = load_tokenizer_json(self.outputs[0].prepared.model)
        environment = storage.capture_environment()
        first, engine = make_specs(self.outputs[0].prepared, tokenizer_json, environment)
        return [first, *(make_prepare_spec(one.prepared, environment) for one in self.outputs[1:])], engine

    def score(
        self,
        units: Sequence[Sequence[Unit]],
        specs: Sequence[PrepareSpec],
        engine: EngineSpec,
        settle: Settle | None = None,
    ) -> None:
        """Run the pipeline, round after round of units, again for those that are left, as long as that helps.

        Args:
            units: of each output.
            specs: how they are read.
            engine: that of all.
            settle: is given each output as soon as all its units are committed or failed, while others go on.

        Raises:
            EngineStartError, JobError: nothing can be scored.
            OutputConflictError: another run took over an output.
            RunInterruptedError: a signal came.
        """
        import ray

        from rerank_actor.runtime.pool import find_nodes, plan_pool
        from rerank_actor.scoring.coordinator import start_coordinator
        from rerank_actor.scoring.metrics import RunMeter
        from rerank_actor.scoring.pipeline import PartSpec, ScoredOutput, score_units

        job, self._settle = self._job, settle
        left = [(place, unit) for place, own in enumerate(units) for unit in own]
        self._owners = {unit.name: self.outputs[place] for place, unit in left}
        pool = plan_pool(find_nodes(), job.actor_range, job.gpus_per_actor, job.group_size, len(left))
        dtypes = [dtype for output in self.outputs if (dtype := output.find_earlier_dtype())]
        coordinator = start_coordinator(dtypes[0] if dtypes else None, job.max_attempts)
        labels = {"run": self.outputs[0].run_id, "output": self.where}
        self._meter, self.facts.gpus_per_actor = RunMeter(labels), pool.num_gpus
        self._drained_at = time.monotonic()
        tokenizer_json, environment = load_tokenizer_json(self.outputs[0].prepared.model), storage.capture_environment()
        scored = []
        for output, spec in zip(self.outputs, specs, strict=True):
            output.crew = self.facts
            metadata, scratch = output.make_part_metadata(), output.output.scratch
            scored.append(ScoredOutput(spec, PartSpec(output.output.uri, metadata, scratch, environment)))
        count = f"{pool.most}" if pool.least == pool.most else f"{pool.least} to {pool.most}"
        self.reporter.say(f"starting {count} {job.engine} actor(s); an engine takes a while to start")
        if pool.fitting is not None and pool.fitting < pool.least:
            self.reporter.say(
                f"the cluster has GPUs for {pool.fitting} of {pool.least} actor(s) now; waiting for nodes"
            )
        try:
            while left:
                coordinator.begin_round.remote()
                self._drain(coordinator)  # what engines of the round before have still told
                settled = self._count_settled()

                def work(units: list[tuple[int, Unit]] = left[:ROUND_UNITS]) -> None:
                    score_units(units, scored, tokenizer_json, engine, pool, coordinator, job.stall_seconds, labels)

                if not self._follow(work, coordinator) or self._count_settled() == settled:
                    break
                again = [item for item in left[:ROUND_UNITS] if self._is_left(item[1])]
                left = again + left[ROUND_UNITS:]
                if again:
                    self.facts.faults["round_repeated"] += 1
                    self.reporter.say(f"{len(again):,} units are left over; going over them again")
        finally:
            if not self.connection.is_busy:
                ray.kill(coordinator)  # on a Ray that lives on it would stay until Python collects its handle

    def _is_left(self, unit: Unit) -> bool:
        output = self._owners[unit.name]
        return unit.name in output.left and unit.name not in output.failed

    def _count_settled(self) -> int:
        return sum(output.count_settled() for output in self.outputs)

    def _follow(self, work: Callable[[], None], coordinator: Any) -> bool:
        """Run a pipeline in a thread and follow it from this one; return whether another may go on from it."""
        problem: list[BaseException] = []

        def attempt() -> None:
            try:
                work()
            except BaseException as error:
                problem.append(error)

        thread = threading.Thread(target=attempt, name="pipeline", daemon=True)
        thread.start()
        hopeless = False
        try:
            while thread.is_alive() and not hopeless:
                thread.join(POLL_SECONDS)
                self.check()
                self._drain(coordinator)
                if self._engine_failures and not self.facts.engines and not self._first_starts:
                    raise EngineStartError(self._engine_failures[0])
                hopeless = self._is_hopeless()
                self._end_standstill()
        except RunInterruptedError:
            coordinator.stop.remote()
            self._settle = None  # to finish an output takes longer than there is
            self._drain(coordinator)
            for output in self._list_begun():  # first, because stopping may take longer than we are given
                output.write_stopped_manifest()
            raise
        finally:
            self._stop(coordinator, thread)
        self._drain(coordinator)
        try:
            if problem and not hopeless:  # else it is what the pipeline says of being stopped
                self._explain(problem[0])
        finally:
            if problem:
                problem.clear()
                gc.collect()  # the error's frames hold the actors, and these their CPUs and GPUs, on a Ray that lives on
        return not hopeless

    def _is_hopeless(self) -> bool:
        """Say so when more failed than the job allows."""
        job = self._job
        if job.max_failed_units and sum(len(output.failed) for output in self.outputs) > job.max_failed_units:
            self.warn(f"more than {job.max_failed_units:,} units failed; stopping (--max-failed-units)")
            return True
        if job.max_error_rows and sum(output.count_errors() for output in self.outputs) > job.max_error_rows:
            self.warn(f"more than {job.max_error_rows:,} rows have an error; stopping (--max-error-rows)")
            return True
        if self._hopeless is not None:
            self.warn(f"every engine fails and nothing is scored any more; stopping ({self._hopeless})")
            return True
        return False

    def _end_standstill(self) -> None:
        """Restart the actors that hold up a run in which nothing goes on."""
        from rerank_actor.runtime.pool import find_nodes
        from rerank_actor.scoring.pipeline import restart_stuck_actors

        most = STANDSTILL_SECONDS if self.facts.engines else FIRST_STANDSTILL_SECONDS
        if self._idle_seconds < most * (1 + self._standstills):
            return
        self._standstills += 1
        gpus = self.facts.gpus_per_actor
        if gpus and not any(node.count_fitting(gpus) for node in find_nodes()):
            self.reporter.say("there is no node with a GPU for an actor; waiting for one")
            return
        count = restart_stuck_actors()
        self.facts.faults["actor_stuck"] += count
        self.warn(f"nothing has gone on for {self._idle_seconds:.0f} s; {count} actors that do not start are replaced")

    def _stop(self, coordinator: Any, thread: threading.Thread) -> None:
        """Tell a pipeline that is at work to stop, and wait a little for it."""
        if thread.is_alive():
            coordinator.stop.remote()
            thread.join(OWN_STOP_SECONDS if self.connection.is_ours else STOP_SECONDS)
            self.connection.is_busy = thread.is_alive()

    def _explain(self, error: BaseException) -> None:
        """Say why a pipeline ended early: an engine that cannot start is the job's fault, the rest is told."""
        if self._engine_failures and not self.facts.engines:
            raise EngineStartError(self._engine_failures[0])
        inner = getattr(error, "cause", None) or error  # Ray's error around what a worker raised
        if isinstance(inner, JobError):
            raise inner
        self.facts.faults["pipeline_ended"] += 1
        self.reporter.say(f"Ray ended the pipeline early ({describe_cause(inner)})")

    def _drain(self, coordinator: Any) -> None:
        import ray

        try:
            news = ray.get(coordinator.drain.remote(), timeout=30)
        except ray.exceptions.RayError:
            return
        facts = self.facts
        facts.engines += news["engines"]
        if facts.engines and facts.ready_at is None:
            facts.ready_at = min(engine["ready_at"] for engine in facts.engines)
        self._first_starts, self._hopeless = news["first_starts"], news["hopeless"]
        self._standstills = self._standstills if news["idle_seconds"] > self._idle_seconds else 0
        self._idle_seconds = news["idle_seconds"]
        self._meter.set(units_queued=news["units_queued"], units_at_engines=news["units_at_engines"])
        self._meter.count_faults(news["faults"])
        for kind in news["faults"].keys() - facts.faults.keys():
            self.reporter.say(f"survived a fault: {kind.replace('_', ' ')}; the manifest counts these")
        facts.faults.update(news["faults"])
        facts.least_batch_tokens = news["least_batch_tokens"] or facts.least_batch_tokens
        for failure in news["engine_failures"]:
            self._engine_failures.append(failure)
            if facts.engines:
                self.warn(f"an engine could not start, others are at work: {failure}")
        tokens: dict[int, int] = {}
        for report in news["units"]:
            output = self._owners[report["unit"]]
            if output.take_report(report):
                tokens[id(output)] = tokens.get(id(output), 0) + int(report.get("tokens", 0))
                self._meter.count_errors(report.get("errors") or {})
        self._count_time(news["actors"], tokens)
        self._tell()
        for output in self._list_begun():
            output.flush_periodically()
        self._give_back()

    def _list_begun(self) -> list[OutputCommitter]:
        """Return the outputs at work; those of which no unit has come back have nothing to write down yet."""
        return [output for output in self._open if output.count_settled() or not self.facts.is_shared]

    def _give_back(self) -> None:
        """Hand over the outputs that have become settled."""
        if self._settle is None:
            return
        for output in [output for output in self._open if output.is_settled]:
            self._open.remove(output)
            self._settle(output)

    def _count_time(self, actors: int, tokens: dict[int, int]) -> None:
        """Count for how long actors have held their resources since the last call, for the outputs that had it."""
        now = time.monotonic()
        seconds, self._drained_at = actors * (now - self._drained_at), now
        self.facts.actor_seconds += seconds
        self.facts.actors = max(self.facts.actors, actors)
        if len(self.outputs) == 1:
            self.outputs[0].actor_seconds += seconds
        else:
            self._unshared_seconds += seconds
            if in_all := sum(tokens.values()):
                for output in self.outputs:
                    output.actor_seconds += self._unshared_seconds * tokens.get(id(output), 0) / in_all
                self._unshared_seconds = 0.0
        gpus, price = self.facts.gpus_per_actor, self._price
        self._meter.count_gpus(seconds * gpus, seconds * gpus / 3600 * (price or 0.0))
        self._meter.set(actors=actors, gpus=actors * gpus, gpu_price_dollars=price)

    def _tell(self) -> None:
        now = time.time()
        rows, pairs = (sum(getattr(output.scored_now, name) for output in self.outputs) for name in ("rows", "pairs"))
        done, failed_pairs = (
            sum(getattr(output.totals, name) for output in self.outputs) for name in ("rows", "failed_pairs")
        )
        total = sum(output.prepared.plan.num_rows for output in self.outputs)
        failed_units = sum(len(output.failed) for output in self.outputs)
        self._window.append((now, pairs, rows))
        while self._window[0][0] < now - RATE_WINDOW_SECONDS:
            self._window.pop(0)
        self._meter.set(
            rows_planned=total,
            rows_committed=done,
            units_planned=sum(output.num_units for output in self.outputs),
            units_committed=sum(output.totals.units for output in self.outputs),
            units_failed=failed_units,
        )
        if self.facts.ready_at is None:
            self.reporter.update(RunProgress(done, total, failed_pairs, failed_units, 0, 0.0, None))
            return
        begin, pairs_before, rows_before = max(self._window[0], (self.facts.ready_at, 0, 0))
        seconds = max(1e-3, now - begin)
        rows_per_second = (rows - rows_before) / seconds
        eta_seconds = (total - done) / rows_per_second if rows_per_second > 0 else None
        self._meter.set(eta_seconds=eta_seconds)
        self.reporter.update(
            RunProgress(
                rows=done,
                total_rows=total,
                failed_rows=failed_pairs,
                failed_units=failed_units,
                pairs=sum(output.totals.pairs for output in self.outputs),
                pairs_per_second=(pairs - pairs_before) / seconds,
                eta_seconds=eta_seconds,
            )
        )
