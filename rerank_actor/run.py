"""The main job: from a `ScoreJob` to a scored output, and on again after whatever ended it.

`run_job` is the order of things: groundwork, lease, scoring what is not committed, saying what happened. It knows the
order and the words for the user; how each step works is known elsewhere.
"""

import contextlib
import gc
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rerank_actor import storage
from rerank_actor.connection import Connection, SignalWatch, connect_ray, watch_signals
from rerank_actor.errors import EngineStartError, JobError, RerankError, RunInterruptedError, describe_cause
from rerank_actor.groundwork import Groundwork, make_specs, prepare_job, refuse_dead_storage
from rerank_actor.job import ScoreJob
from rerank_actor.joins import index_scores, make_known, make_lookups
from rerank_actor.manifest import Totals, UnitRecords, check_committed, find_versions, limit_failures
from rerank_actor.model import load_tokenizer_json
from rerank_actor.notice import Notifier
from rerank_actor.output import Lease, find_pending
from rerank_actor.plan import Unit
from rerank_actor.price import find_price
from rerank_actor.progress import QuietReporter, Reporter, Standing
from rerank_actor.report.build import write_report
from rerank_actor.reuse import ScoreSource, find_reused
from rerank_actor.shared_pairs import SharedPairs, find_shared, make_shared_job
from rerank_actor.units import PrepareSpec

POLL_SECONDS = 0.5
RATE_WINDOW_SECONDS = 120.0
STOP_SECONDS = 20.0  # to wait for a pipeline on a Ray that lives on
OWN_STOP_SECONDS = 1.0  # on one that ends with this process; a stopped job has three seconds in all
LISTED_ENGINES = 100
MANIFEST_SECONDS = 60.0  # between two manifests of a run at work, so that one that is killed leaves its figures
# What Ray Data keeps of each unit, and the time until it hands out the first, grow with their number. Engines start again
# for each round, which is some minutes of days.
ROUND_UNITS = 50_000
STANDSTILL_SECONDS = 240.0  # without anything going on; longer than Ray takes to start a process, on a busy machine too
FIRST_STANDSTILL_SECONDS = 1200.0  # while no engine has started; nodes may still install the job's runtime environment


@dataclass
class RunResult:
    """How a run ended.

    Attributes:
        status: `complete`, or `failed` when units are missing.
        totals: of everything committed, earlier runs included.
        failed: records of the units that failed for good.
        untried: how many units the run did not come to before it ended.
        run: figures of this run alone.
    """

    status: str
    totals: Totals
    failed: dict[str, dict[str, Any]]
    untried: int = 0
    run: dict[str, Any] = field(default_factory=dict)


def run_job(job: ScoreJob, reporter: Reporter | None = None) -> RunResult:
    """Score everything that the job names and that is not yet committed.

    Returns:
        The totals of the output. `status` is `failed` when some units failed for good; the rest is committed.

    Raises:
        JobError: the job cannot start; nothing was started.
        OutputConflictError: the output belongs to another job, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    reporter = reporter or QuietReporter()
    ground = prepare_job(job, reporter)
    run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    lease = Lease(ground.output, run_id)
    with refuse_dead_storage():
        lease.acquire(reporter.say)
    notifier = Notifier(ground.job, run_id, reporter.say)
    run = _Run(ground, run_id, lease, reporter, notifier)
    try:
        result = run.execute()
    except RunInterruptedError as error:
        notifier.report_end("stopped", str(error), run.tell_figures())
        raise
    except RerankError as error:
        notifier.report_end("error", str(error), run.tell_figures())
        raise
    finally:
        lease.release()
    words = f"{result.status}, {result.totals.rows:,} rows, {len(result.failed):,} units failed"
    notifier.report_end(result.status, words, run.tell_figures())
    return result


class _Run:
    """One run that holds the lease: what it has to do, and what it has learned so far."""

    def __init__(self, ground: Groundwork, run_id: str, lease: Lease, reporter: Reporter, notifier: Notifier) -> None:
        self.ground, self.run_id, self.lease, self.reporter = ground, run_id, lease, reporter
        self.notifier = notifier
        self.output = ground.output
        self.records = UnitRecords(ground.output, run_id)
        self.totals = Totals()
        self.scored_now = Totals()
        self.left: dict[str, Unit] = {}  # units of this run that are not known to be committed
        self.failed: dict[str, dict[str, Any]] = {}
        self.engines: list[dict[str, Any]] = []
        self.engine_failures: list[str] = []
        self.first_starts = 0
        self.hopeless: str | None = None
        self.idle_seconds, self.standstills = 0.0, 0
        self.engines_before, self.actors = 0, 0  # engines of earlier rounds; most engines of a round
        self.faults: Counter[str] = Counter()
        self.least_batch_tokens: int | None = None
        self.dedupe: dict[str, Any] = {}  # what scoring shared pairs first came to
        self.shared_dtype: str | None = None
        self.joins: dict[str, Any] = {}  # what the stores of texts by id hold, and what was left out of them
        self.started = time.time()
        self.ready_at: float | None = None
        self.finished_at: float | None = None
        self.num_units = 0
        self.actors_most, self.gpus_per_actor = 0, 0.0
        self.actor_seconds = 0.0
        self.earlier: dict[str, Any] = {}  # the manifest of the runs before this one
        self._meter: Any = None
        price = find_price(ground.job.gpu_type, ground.job.gpu_price)
        self._price = price.dollars if price is not None else None
        self._window: list[tuple[float, int, int]] = []
        self._drained_at = self._manifest_at = time.monotonic()

    def tell_figures(self) -> dict[str, Any]:
        """Return how far the run is, for notices."""
        return {
            "rows": self.totals.rows,
            "total_rows": self.ground.plan.num_rows,
            "pairs_with_error": self.totals.failed_pairs,
            "failed_units": len(self.failed),
            "seconds": round(time.time() - self.started, 1),
            "gpu_hours": round(self.actor_seconds * self.gpus_per_actor / 3600, 3),
            "report": self.output.at("report.html"),
        }

    def execute(self) -> RunResult:
        """Do the run: prepare the output, score what is pending, write down how it ended."""
        pending = self._prepare_output()
        self.left = {unit.name: unit for unit in pending}
        try:
            self._score(pending)
        finally:
            self.reporter.close()
        return self._finish()

    def _prepare_output(self) -> list[Unit]:
        """Bring plan and parts into step, and return the units that are left to score."""
        ground, output = self.ground, self.output
        if ground.job.overwrite:
            output.clear()
        output.clear_scratch()
        earlier = output.load_manifest()
        self.earlier = earlier if earlier.get("fingerprint") == ground.fingerprint else {}
        output.delete_parts(list(ground.change.stale_parts))
        parts = output.list_parts()
        units = ground.plan.units()
        self.totals, damaged = check_committed(output, parts, units, ground.fingerprint, self.reporter.say)
        self.dedupe = self.earlier.get("dedupe", {})
        self.totals.shared_passes = int(self.dedupe.get("forward_passes", 0))
        for name, problem in damaged.items():
            self.reporter.say(f"{storage.join_uri(output.uri, name)} {problem}; its unit is scored again")
            del parts[name]
        pending = find_pending(ground.plan, parts)
        if pending:
            storage.delete_objects([output.success_uri])
        if ground.plan != ground.earlier:
            output.write_own("plan.parquet", ground.plan.to_bytes(ground.settings))
        output.write_own("job.yaml", ground.job.model_copy(update={"overwrite": False}).to_yaml().encode())
        output.delete_parts(list(damaged))
        for uri in ground.change.vanished:
            self.reporter.say(f"{uri}: no longer in the input; its parts stay")
        count = self.num_units = sum(1 for _ in ground.plan.units())
        done = f", {count - len(pending):,} committed already" if count > len(pending) else ""
        self.reporter.say(
            f"{ground.plan.num_rows:,} rows of {len(ground.plan.shards):,} shards in {count:,} units{done}; output {output.uri}"
        )
        if ground.job.retry_failed:
            wanted = {record["unit"] for record in output.list_failed()}
            pending = [unit for unit in pending if unit.name in wanted]
            self.reporter.say(f"--retry-failed: {len(pending):,} units failed in an earlier run")
        return pending

    def _score(self, pending: list[Unit]) -> None:
        unreadable = {shard.uri: shard.error for shard in self.ground.plan.shards if shard.error}
        for unit in pending:
            if unit.uri in unreadable:
                self._note_failure(unit.name, {"failure": unreadable[unit.uri], "attempts": 1})
        scorable = [unit for unit in pending if unit.uri not in unreadable]
        if scorable:
            with watch_signals() as watch, connect_ray(self.ground.job, watch) as connection:
                self._drive(scorable, connection, watch)

    def _drive(self, units: list[Unit], connection: Connection, watch: SignalWatch) -> None:
        """Run the pipeline, round after round of units, again for those that are left, as long as that helps."""
        import ray

        from rerank_actor.ledger import start_ledger
        from rerank_actor.metrics import RunMeter
        from rerank_actor.pipeline import PartSpec, score_units
        from rerank_actor.pool import find_nodes, plan_pool

        ground, job = self.ground, self.ground.job
        pool = plan_pool(find_nodes(), job.actor_range, job.gpus_per_actor, job.group_size, len(units))
        environment = storage.capture_environment()
        tokenizer_json = load_tokenizer_json(ground.model)
        prepare, engine = make_specs(ground, tokenizer_json, environment)
        prepare = self._make_stores(prepare, connection, watch)
        ledger = start_ledger(self._find_earlier_dtype(), job.max_attempts)
        labels = {"run": self.run_id, "output": self.output.uri}
        self._meter, self.gpus_per_actor = RunMeter(labels), pool.num_gpus
        self._drained_at = time.monotonic()
        part = PartSpec(self.output.uri, self._part_metadata(), self.output.scratch, environment)
        count = f"{pool.most}" if pool.least == pool.most else f"{pool.least} to {pool.most}"
        self.reporter.say(f"starting {count} {job.engine} actor(s); an engine takes a while to start")
        if pool.fitting is not None and pool.fitting < pool.least:
            self.reporter.say(
                f"the cluster has GPUs for {pool.fitting} of {pool.least} actor(s) now; waiting for nodes"
            )

        try:
            while units:
                settled, self.engines_before = self._count_settled(), len(self.engines)
                ledger.begin_round.remote()

                def work(units: list[Unit] = units[:ROUND_UNITS]) -> None:
                    score_units(units, prepare, tokenizer_json, engine, part, pool, ledger, job.stall_seconds, labels)

                if not self._follow(work, ledger, connection, watch) or self._count_settled() == settled:
                    break
                left = [unit for unit in units[:ROUND_UNITS] if unit.name in self.left and unit.name not in self.failed]
                units = left + units[ROUND_UNITS:]
                if left:
                    self.faults["round_repeated"] += 1
                    self.reporter.say(f"{len(left):,} units are left over; going over them again")
        finally:
            if not connection.is_busy:
                ray.kill(ledger)  # on a Ray that lives on it would stay until Python collects its handle

    def _make_stores(self, prepare: PrepareSpec, connection: Connection, watch: SignalWatch) -> PrepareSpec:
        """Make what ids and known scores are looked up in."""
        from rerank_actor.tasks import run_tasks

        def check() -> None:
            watch.check()
            self.lease.check()

        lookups = make_lookups(self.ground, run_tasks, self.reporter.say, check)
        self.joins = {lookup.role: lookup.store.facts for lookup in lookups}
        known = make_known(self.ground, run_tasks, self.reporter.say, check)
        prepare = replace(prepare, lookups=lookups, known=known)
        if self.ground.job.dedupe != "global":
            return prepare
        shared = find_shared(
            self.output, list(self.left.values()), self.ground.plan.num_bytes, prepare, run_tasks, check
        )
        self.reporter.say(f"--dedupe global: {shared.num_pairs:,} pairs are in several units; they are scored first")
        if not shared.num_pairs:
            return prepare
        source = self._score_shared(shared, connection, watch)
        return replace(prepare, known=(*known, index_scores("shared", source, self.ground, run_tasks, check)))

    def _score_shared(self, shared: SharedPairs, connection: Connection, watch: SignalWatch) -> ScoreSource:
        """Score the pairs that several units have, as a job within the job, and return where the scores are."""
        ground = prepare_job(make_shared_job(self.ground.job, shared, self.output.at("dedupe", "scores")))
        inner = _Run(ground, self.run_id, self.lease, self.reporter, self.notifier)
        pending = inner._prepare_output()
        inner.left = {unit.name: unit for unit in pending}
        if pending:
            inner._drive(pending, connection, watch)
        inner._finish(reports=False)
        self.totals.shared_passes = shared.passes_before + inner.totals.forward_passes
        self.dedupe = {"shared_pairs": shared.num_pairs, "forward_passes": self.totals.shared_passes}
        self.faults.update(inner.faults)
        self.shared_dtype = inner._find_dtype() or inner._find_earlier_dtype()
        return find_reused(ground.job.output, ground.settings)

    def _count_settled(self) -> int:
        return self.scored_now.units + len(self.failed)

    def _follow(self, work: Callable[[], None], ledger: Any, connection: Connection, watch: SignalWatch) -> bool:
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
                watch.check()
                self.lease.check()
                self._drain(ledger)
                if self.engine_failures and not self.engines and not self.first_starts:
                    raise EngineStartError(self.engine_failures[0])
                hopeless = self._is_hopeless()
                self._end_standstill()
        except RunInterruptedError:
            ledger.stop.remote()
            self._drain(ledger)
            self._write_farewell()  # first, because stopping may take longer than we are given
            raise
        finally:
            self._stop(ledger, thread, connection)
        self._drain(ledger)
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
        job = self.ground.job
        if job.max_failed_units and len(self.failed) > job.max_failed_units:
            self._warn(f"more than {job.max_failed_units:,} units failed; stopping (--max-failed-units)")
            return True
        if job.max_error_rows and self.scored_now.failed_pairs > job.max_error_rows:
            self._warn(f"more than {job.max_error_rows:,} rows have an error; stopping (--max-error-rows)")
            return True
        if self.hopeless is not None:
            self._warn(f"every engine fails and nothing is scored any more; stopping ({self.hopeless})")
            return True
        return False

    def _end_standstill(self) -> None:
        """Restart the actors that hold up a run in which nothing goes on."""
        from rerank_actor.pipeline import restart_stuck_actors
        from rerank_actor.pool import find_nodes

        most = STANDSTILL_SECONDS if self.engines else FIRST_STANDSTILL_SECONDS
        if self.idle_seconds < most * (1 + self.standstills):
            return
        self.standstills += 1
        if self.gpus_per_actor and not any(node.count_fitting(self.gpus_per_actor) for node in find_nodes()):
            self.reporter.say("there is no node with a GPU for an actor; waiting for one")
            return
        count = restart_stuck_actors()
        self.faults["actor_stuck"] += count
        self._warn(f"nothing has gone on for {self.idle_seconds:.0f} s; {count} actors that do not start are replaced")

    def _stop(self, ledger: Any, thread: threading.Thread, connection: Connection) -> None:
        """Tell a pipeline that is at work to stop, and wait a little for it."""
        if thread.is_alive():
            ledger.stop.remote()
            thread.join(OWN_STOP_SECONDS if connection.is_ours else STOP_SECONDS)
            connection.is_busy = thread.is_alive()

    def _explain(self, error: BaseException) -> None:
        """Say why a pipeline ended early: an engine that cannot start is the job's fault, the rest is told."""
        if self.engine_failures and not self.engines:
            raise EngineStartError(self.engine_failures[0])
        inner = getattr(error, "cause", None) or error  # Ray's error around what a worker raised
        if isinstance(inner, JobError):
            raise inner
        self.faults["pipeline_ended"] += 1
        self.reporter.say(f"Ray ended the pipeline early ({describe_cause(inner)})")

    def _drain(self, ledger: Any) -> None:
        import ray

        try:
            news = ray.get(ledger.drain.remote(), timeout=30)
        except ray.exceptions.RayError:
            return
        self.engines += news["engines"]
        self.actors = max(self.actors, len(self.engines) - self.engines_before)
        if self.engines and self.ready_at is None:
            self.ready_at = min(engine["ready_at"] for engine in self.engines)
        self.first_starts, self.hopeless = news["first_starts"], news["hopeless"]
        self.standstills = self.standstills if news["idle_seconds"] > self.idle_seconds else 0
        self.idle_seconds = news["idle_seconds"]
        self._count_time(news["actors"])
        self._meter.set(units_queued=news["units_queued"], units_at_engines=news["units_at_engines"])
        self._meter.count_faults(news["faults"])
        for kind in news["faults"].keys() - self.faults.keys():
            self.reporter.say(f"survived a fault: {kind.replace('_', ' ')}; the manifest counts these")
        self.faults.update(news["faults"])
        self.least_batch_tokens = news["least_batch_tokens"] or self.least_batch_tokens
        for failure in news["engine_failures"]:
            self.engine_failures.append(failure)
            if self.engines:
                self._warn(f"an engine could not start, others are at work: {failure}")
        for report in news["units"]:
            name = report.pop("unit")
            if name not in self.left or report.get("handed_back"):
                continue  # a worker that died after it had reported was replaced, and its successor reports again
            if report.get("failure"):
                self._note_failure(name, report)
            else:
                self._note_commit(name, report)
        self._tell()
        self._keep_books()

    def _count_time(self, actors: int) -> None:
        """Count for how long actors have held their resources, since the last call."""
        now = time.monotonic()
        seconds, self._drained_at = actors * (now - self._drained_at), now
        self.actor_seconds += seconds
        self.actors_most = max(self.actors_most, actors)
        gpus, price = self.gpus_per_actor, self._price
        self._meter.count_gpus(seconds * gpus, seconds * gpus / 3600 * (price or 0.0))
        self._meter.set(actors=actors, gpus=actors * gpus, gpu_price_dollars=price)

    def _keep_books(self) -> None:
        """Write records and a manifest now and then; they may fail, the end of the run writes them again."""
        self.records.flush_if_due()
        if time.monotonic() - self._manifest_at >= MANIFEST_SECONDS:
            self._manifest_at = time.monotonic()
            with contextlib.suppress(RerankError):
                self._write_manifest("running", self.failed)

    def _note_commit(self, name: str, report: dict[str, Any]) -> None:
        self.finished_at = max(self.finished_at or 0.0, report["finished_at"])
        self.faults["read_retried"] += report.get("read_retries", 0)
        del self.left[name]
        self.failed.pop(name, None)
        self.records.add(name, report)
        self.totals.add(report)
        self.scored_now.add(report)
        self._meter.count_errors(report.get("errors") or {})

    def _note_failure(self, name: str, report: dict[str, Any]) -> None:
        unit = self.left[name]
        self.failed[name] = {
            "unit": name,
            "shard": unit.uri,
            "row_start": unit.row_start,
            "num_rows": unit.num_rows,
            "error": report["failure"],
            "attempts": report.get("attempts", 1),
            "run": self.run_id,
        }
        self._warn(f"unit {name} failed: {report['failure']}")

    def _warn(self, message: str) -> None:
        """Say what needs a person's eye, here and where notices go."""
        self.reporter.say(message)
        self.notifier.report_trouble(message, self.tell_figures())

    def _tell(self) -> None:
        now = time.time()
        self._window.append((now, self.scored_now.pairs, self.scored_now.rows))
        while self._window[0][0] < now - RATE_WINDOW_SECONDS:
            self._window.pop(0)
        total = self.ground.plan.num_rows
        self._meter.set(
            rows_planned=total,
            rows_committed=self.totals.rows,
            units_planned=self.num_units,
            units_committed=self.totals.units,
            units_failed=len(self.failed),
        )
        if self.ready_at is None:
            self.reporter.update(
                Standing(self.totals.rows, total, self.totals.failed_pairs, len(self.failed), 0, 0.0, None)
            )
            return
        begin, pairs, rows = max(self._window[0], (self.ready_at, 0, 0))
        seconds = max(1e-3, now - begin)
        rows_per_second = (self.scored_now.rows - rows) / seconds
        eta_seconds = (total - self.totals.rows) / rows_per_second if rows_per_second > 0 else None
        self._meter.set(eta_seconds=eta_seconds)
        self.reporter.update(
            Standing(
                rows=self.totals.rows,
                total_rows=total,
                failed_rows=self.totals.failed_pairs,
                failed_units=len(self.failed),
                pairs=self.totals.pairs,
                pairs_per_second=(self.scored_now.pairs - pairs) / seconds,
                eta_seconds=eta_seconds,
            )
        )

    def _finish(self, *, reports: bool = True) -> RunResult:
        """Look at what is committed, write the manifest, and `_SUCCESS` last."""
        self.lease.check(fresh=True)
        parts = self.output.list_parts()
        self._add_unreported(parts)
        missing = find_pending(self.ground.plan, parts)
        failed = {unit.name: self.failed[unit.name] for unit in missing if unit.name in self.failed}
        if len(missing) > len(failed):
            self.reporter.say(f"{len(missing) - len(failed):,} units were not tried before the run ended")
        self.output.replace_failed(failed)
        if self.ground.job.check_scores and self.engines and not self._checked():
            self.reporter.say(
                "--check-scores: the engine that was to be compared died before it was; run again to compare"
            )
        self.records.flush()
        status = "failed" if missing else "complete"
        self._write_manifest(status, failed)
        if reports and (self.scored_now.units or failed or self.earlier.get("status", "complete") != "complete"):
            self._write_report()
        if not missing:
            storage.write_bytes(self.output.success_uri, b"")
            for folder in ("stores", "dedupe"):
                storage.delete_folder(self.output.at(folder))
        return RunResult(status, self.totals, failed, len(missing) - len(failed), self._run_figures(status))

    def _write_report(self) -> None:
        """Leave a report for people; nothing depends on it."""
        try:
            self.reporter.say(f"report: {write_report(self.output)}")
        except Exception as error:  # whatever it stumbles over, the scores are there
            self.reporter.say(
                f"the report could not be written ({describe_cause(error)}); python -m jobs.report {self.output.uri} "
                "tries again"
            )

    def _add_unreported(self, parts: dict[str, storage.StoredObject]) -> None:
        """Count the parts of which no report came, because a worker or the ledger died before it."""
        unreported = [unit for unit in self.left.values() if unit.part_name in parts]
        if not unreported:
            return
        found, damaged = check_committed(self.output, parts, unreported, self.ground.fingerprint)
        self.totals.merge(found)
        self.scored_now.merge(found)
        self.output.delete_parts(list(damaged))
        for name in damaged:
            del parts[name]

    def _write_farewell(self) -> None:
        """Leave a truthful manifest behind when a signal ends the run; it may fail, nothing depends on it."""
        with contextlib.suppress(RerankError):
            self.records.flush()
            self._write_manifest("stopped", self.failed)

    def _write_manifest(self, status: str, failed: dict[str, dict[str, Any]]) -> None:
        ground, earlier = self.ground, self.earlier
        plan = ground.plan
        manifest = {
            "status": status,
            "fingerprint": ground.fingerprint,
            "fingerprint_settings": ground.settings,
            "model": {
                "name": ground.model.name,
                "revision": ground.model.revision,
                "digest": ground.model.digest,
                "architecture": ground.model.architecture,
            },
            "dtype": self._find_dtype() or earlier.get("dtype"),
            "plan": {
                "shards": len(plan.shards),
                "units": self.num_units,
                "rows": plan.num_rows,
                "bytes": plan.num_bytes,
                "vanished": list(ground.change.vanished),
            },
            "totals": self.totals.to_dict(),
            "dedupe": self.dedupe,
            "joins": self.joins or earlier.get("joins", {}),
            "failed_units": len(failed),
            "failed": limit_failures(failed.values()),
            "runs": [*earlier.get("runs", []), self._run_figures(status)],
            "faults": dict(sorted((Counter(earlier.get("faults", {})) + self.faults).items())),
            "least_batch_tokens": self.least_batch_tokens or earlier.get("least_batch_tokens"),
            "engines": self.engines[:LISTED_ENGINES] or earlier.get("engines", []),
            "versions": find_versions(),
            "job": ground.job.to_record(),
        }
        self.output.write_own("manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode())

    def _run_figures(self, status: str) -> dict[str, Any]:
        scoring = max(0.0, (self.finished_at or 0.0) - (self.ready_at or 0.0))
        return {
            "run": self.run_id,
            "status": status,
            "started": self.started,
            "seconds": round(time.time() - self.started, 3),
            "scoring_seconds": round(scoring, 3),
            "units": self.scored_now.units,
            "pairs": self.scored_now.pairs,
            "tokens": self.scored_now.tokens,
            "cached_tokens": self.scored_now.cached_tokens,
            "engine_seconds": round(self.scored_now.engine_seconds, 3),
            "pairs_per_second": round(self.scored_now.pairs / scoring, 3) if scoring > 0 else None,
            "actors": self.actors,
            "actors_most": self.actors_most,
            "actor_seconds": round(self.actor_seconds, 3),
            "gpu_seconds": round(self.actor_seconds * self.gpus_per_actor, 3),
            "failed_units": len(self.failed),
            "faults": dict(sorted((+self.faults).items())),
        }

    def _find_dtype(self) -> str | None:
        return self.engines[0]["dtype"] if self.engines else None

    def _checked(self) -> bool:
        kinds = (engine.get("max_difference") for engine in self.engines)
        return self.ground.job.engine == "fake" or any(difference is not None for difference in kinds)

    def _find_earlier_dtype(self) -> str | None:
        """Return what `--dtype auto` came to in an earlier run, so that all parts have one dtype."""
        if self.earlier.get("dtype"):
            return str(self.earlier["dtype"])
        return self.shared_dtype or (self.ground.reused.dtype if self.ground.reused is not None else None)

    def _part_metadata(self) -> dict[str, str]:
        ground = self.ground
        return {
            "fingerprint": ground.fingerprint,
            "model": ground.model.name,
            "model_digest": ground.model.digest,
            "revision": ground.model.revision or "",
            "template": ground.model.template_name,
            "instruction": ground.job.instruction,
            "instruction_column": ground.job.instruction_column or "",
            **({"explode": "true"} if ground.job.explode else {}),
            **{
                name: json.dumps(ground.settings[name], ensure_ascii=False)
                for name in ("query_template", "document_template", "instruction_map", "dataset_column")
                if name in ground.settings
            },
            "engine": ground.job.engine,
            "run": self.run_id,
        }
