"""The main job: from a `ScoreJob` to a scored output, and on again after whatever ended it.

`run_job` is the order of things: look at model, input and output; refuse or plan; take the lease; score what is not
committed; say what happened. It knows the order and the words for the user; how each step works is known elsewhere.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rerank_actor import storage
from rerank_actor.engine import EngineSpec
from rerank_actor.engine_check import encode_check_pairs
from rerank_actor.errors import (
    EngineStartError,
    JobError,
    ModelError,
    OutputConflictError,
    RerankError,
    RunInterruptedError,
    describe_cause,
)
from rerank_actor.job import ScoreJob, hash_fingerprint
from rerank_actor.manifest import Totals, UnitRecords, find_versions, limit_failures, load_totals
from rerank_actor.model import RerankerModel, load_reranker_model, load_tokenizer_json
from rerank_actor.output import Lease, Output, find_pending
from rerank_actor.plan import Plan, PlanChange, Unit, make_plan
from rerank_actor.progress import QuietReporter, Reporter, Standing
from rerank_actor.prompts import PairEncoder
from rerank_actor.template import TEMPLATES
from rerank_actor.units import PrepareSpec

POLL_SECONDS = 0.5
CONNECT_SECONDS = 10.0
STOP_SECONDS = 60.0
RATE_WINDOW_SECONDS = 120.0


@dataclass(frozen=True)
class Groundwork:
    """What is known of a job before anything is written or started."""

    job: ScoreJob
    output: Output
    model: RerankerModel
    settings: dict[str, Any]
    earlier: Plan
    plan: Plan
    change: PlanChange

    @property
    def fingerprint(self) -> str:
        """Hash of everything that can change a score."""
        return hash_fingerprint(self.settings)


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


def prepare_job(job: ScoreJob, reporter: Reporter | None = None) -> Groundwork:
    """Check a job against its model, its input and its output; nothing is written and nothing started.

    Raises:
        JobError: something about the job, the model or the input is wrong.
        OutputConflictError: the output belongs to another job, or a shard changed since it was scored.
    """
    reporter = reporter or QuietReporter()
    output = Output(job.output)
    model = load_reranker_model(job.model_name, job.revision)
    job = _fit_max_length(job, model, reporter)
    settings = {
        **job.scoring_settings(),
        **model.fingerprint_settings(),
        "template_digest": TEMPLATES[model.template_name].digest,
    }
    stored = None if job.overwrite else output.load_plan()
    parts = {} if job.overwrite else output.list_parts()
    if stored is not None and stored[1] != settings:
        if parts:
            _refuse_other_job(output, stored[1], settings)
        stored = None  # the other job left no score, so nothing can be mixed up
    elif stored is None and parts:
        raise OutputConflictError(
            f"{output.uri}: holds parts but no plan, so it is not known what job they are of; choose another --output, or "
            "--overwrite",
            uri=output.uri,
        )
    earlier = stored[0] if stored is not None else Plan()

    def tell(done: int, total: int) -> None:
        if total >= 1000 and done % 1000 == 0:
            reporter.say(f"planning: {done:,} of {total:,} shards")

    plan, change = make_plan(job, earlier, parts, tell)
    return Groundwork(job, output, model, settings, earlier, plan, change)


def _fit_max_length(job: ScoreJob, model: RerankerModel, reporter: Reporter) -> ScoreJob:
    if job.max_length <= model.max_positions:
        return job
    if "max_length" in job.model_fields_set:
        raise ModelError(
            f"--max-length {job.max_length} is more than {model.name} was built for ({model.max_positions} tokens); lower it"
        )
    reporter.say(f"--max-length is {model.max_positions}, the longest that {model.name} was built for")
    return job.model_copy(update={"max_length": model.max_positions})


def _refuse_other_job(output: Output, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    differing = sorted(name for name in {*stored, *settings} if stored.get(name) != settings.get(name))
    shown = "; ".join(f"{name}: there {stored.get(name)!r}, now {settings.get(name)!r}" for name in differing)
    raise OutputConflictError(
        f"{output.uri}: belongs to another job, whose scores would not be comparable ({shown}); choose another --output, "
        "or --overwrite to start afresh",
        uri=output.uri,
        differing=differing,
    )


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
    lease.acquire(reporter.say)
    try:
        return _Run(ground, run_id, reporter).execute()
    finally:
        lease.release()


class _Run:
    """One run that holds the lease: what it has to do, and what it has learned so far."""

    def __init__(self, ground: Groundwork, run_id: str, reporter: Reporter) -> None:
        self.ground, self.run_id, self.reporter = ground, run_id, reporter
        self.output = ground.output
        self.records = UnitRecords(ground.output, run_id)
        self.totals = Totals()
        self.scored_now = Totals()
        self.units: dict[str, Unit] = {}
        self.failed: dict[str, dict[str, Any]] = {}
        self.engines: list[dict[str, Any]] = []
        self.engine_failures: list[str] = []
        self.started = time.time()
        self.first_scored: float | None = None
        self.last_scored: float | None = None
        self._window: list[tuple[float, int, int]] = []

    def execute(self) -> RunResult:
        """Do the run: prepare the output, score what is pending, write down how it ended."""
        pending = self._prepare_output()
        self.units = {unit.name: unit for unit in pending}
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
        output.delete_parts(list(ground.change.stale_parts))
        parts = output.list_parts()
        pending = find_pending(ground.plan, parts)
        if pending:
            storage.delete_objects([output.success_uri])
        if ground.plan != ground.earlier:
            output.write_own("plan.parquet", ground.plan.to_bytes(ground.settings))
        output.write_own("job.yaml", ground.job.model_copy(update={"overwrite": False}).to_yaml().encode())
        committed = {unit.part_name for unit in ground.plan.units()} & parts.keys()
        self.totals = load_totals(output, {name: parts[name] for name in committed})
        for uri in ground.change.vanished:
            self.reporter.say(f"{uri}: no longer in the input; its parts stay")
        count = sum(1 for _ in ground.plan.units())
        done = f", {count - len(pending):,} committed already" if count > len(pending) else ""
        self.reporter.say(
            f"{ground.plan.num_rows:,} rows of {len(ground.plan.shards):,} shards in {count:,} units{done}; output {output.uri}"
        )
        return pending

    def _score(self, pending: list[Unit]) -> None:
        unreadable = {shard.uri: shard.error for shard in self.ground.plan.shards if shard.error}
        for unit in pending:
            if unit.uri in unreadable:
                self._note_failure(unit.name, {"failure": unreadable[unit.uri], "attempts": 1})
        scorable = [unit for unit in pending if unit.uri not in unreadable]
        if scorable:
            with _signals_raise(), _connected_ray(self.ground.job) as owns_ray:
                self._drive(scorable, owns_ray)

    def _drive(self, units: list[Unit], owns_ray: bool) -> None:
        """Run the pipeline in a thread and follow it from this one, where signals arrive."""
        from rerank_actor.ledger import start_ledger
        from rerank_actor.pipeline import PartSpec, plan_pool, score_units

        ground, job = self.ground, self.ground.job
        pool = plan_pool(job.actor_range, job.gpus_per_actor, job.tensor_parallel_size, len(units))
        environment = storage.capture_environment()
        tokenizer_json = load_tokenizer_json(ground.model)
        prepare, engine = make_specs(ground, tokenizer_json, environment)
        ledger = start_ledger(self._find_earlier_dtype())
        part = PartSpec(self.output.uri, self._part_metadata(), self.output.scratch, environment)
        count = f"{pool.most}" if pool.least == pool.most else f"{pool.least} to {pool.most}"
        self.reporter.say(f"starting {count} {job.engine} actor(s); an engine takes a while to start")

        problem: list[BaseException] = []

        def work() -> None:
            try:
                score_units(units, prepare, tokenizer_json, engine, part, pool, ledger, job.max_attempts)
            except BaseException as error:
                problem.append(error)

        thread = threading.Thread(target=work, name="pipeline", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                self._drain(ledger)
                if self.engine_failures and not self.engines:
                    raise EngineStartError(self.engine_failures[0])
                if job.max_failed_units and len(self.failed) > job.max_failed_units:
                    self.reporter.say(f"more than {job.max_failed_units} units failed; stopping (--max-failed-units)")
                    break
            self._drain(ledger)
        except RunInterruptedError:
            self._write_farewell()  # before Ray is shut down, which may take longer than we are given
            raise
        finally:
            if thread.is_alive() and not owns_ray:
                ledger.stop.remote()
                thread.join(STOP_SECONDS)
        if problem:
            self._explain(problem[0])

    def _explain(self, error: BaseException) -> None:
        """Say why the pipeline ended early: an engine that cannot start is the job's fault, the rest is told."""
        if self.engine_failures and not self.engines:
            raise EngineStartError(self.engine_failures[0])
        if isinstance(error, RerankError):
            raise error
        inner = getattr(error, "cause", None) or error
        self.reporter.say(f"Ray ended the run early ({describe_cause(inner)})")

    def _drain(self, ledger: Any) -> None:
        import ray

        try:
            news = ray.get(ledger.drain.remote(), timeout=30)
        except ray.exceptions.RayError:
            return
        self.engines += news["engines"]
        for failure in news["engine_failures"]:
            self.engine_failures.append(failure)
            if self.engines:
                self.reporter.say(f"an engine could not start, others are at work: {failure}")
        for report in news["units"]:
            name = report.pop("unit")
            if report.get("failure"):
                self._note_failure(name, report)
            else:
                self._note_commit(name, report)
        self._tell()

    def _note_commit(self, name: str, report: dict[str, Any]) -> None:
        self.last_scored = time.time()
        if self.first_scored is None:
            self.first_scored = self.last_scored - float(report.get("seconds") or 0)
        self.failed.pop(name, None)
        self.records.add(name, report)
        self.totals.add(report)
        self.scored_now.add(report)

    def _note_failure(self, name: str, report: dict[str, Any]) -> None:
        unit = self.units[name]
        self.failed[name] = {
            "unit": name,
            "shard": unit.uri,
            "row_start": unit.row_start,
            "num_rows": unit.num_rows,
            "error": report["failure"],
            "attempts": report.get("attempts", 1),
            "run": self.run_id,
        }
        self.reporter.say(f"unit {name} failed: {report['failure']}")

    def _tell(self) -> None:
        now = time.time()
        self._window.append((now, self.scored_now.pairs, self.scored_now.rows))
        while self._window[0][0] < now - RATE_WINDOW_SECONDS:
            self._window.pop(0)
        total = self.ground.plan.num_rows
        if self.first_scored is None:
            self.reporter.update(
                Standing(self.totals.rows, total, self.totals.failed_pairs, len(self.failed), 0, 0.0, None)
            )
            return
        begin, pairs, rows = max(self._window[0], (self.first_scored, 0, 0))
        seconds = max(1e-3, now - begin)
        rows_per_second = (self.scored_now.rows - rows) / seconds
        self.reporter.update(
            Standing(
                rows=self.totals.rows,
                total_rows=total,
                failed_rows=self.totals.failed_pairs,
                failed_units=len(self.failed),
                pairs=self.totals.pairs,
                pairs_per_second=(self.scored_now.pairs - pairs) / seconds,
                eta_seconds=(total - self.totals.rows) / rows_per_second if rows_per_second > 0 else None,
            )
        )

    def _finish(self) -> RunResult:
        """Look at what is committed, write the manifest, and `_SUCCESS` last."""
        parts = self.output.list_parts()
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
        if not missing:
            storage.write_bytes(self.output.success_uri, b"")
        return RunResult(status, self.totals, failed, len(missing) - len(failed), self._run_figures(status))

    def _write_farewell(self) -> None:
        """Leave a truthful manifest behind when a signal ends the run; it may fail, nothing depends on it."""
        with contextlib.suppress(RerankError):
            self.records.flush()
            self._write_manifest("stopped", self.failed)

    def _write_manifest(self, status: str, failed: dict[str, dict[str, Any]]) -> None:
        ground = self.ground
        earlier = self.output.load_manifest()
        if earlier.get("fingerprint") != ground.fingerprint:
            earlier = {}
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
                "units": sum(1 for _ in plan.units()),
                "rows": plan.num_rows,
                "bytes": plan.num_bytes,
                "vanished": list(ground.change.vanished),
            },
            "totals": self.totals.to_dict(),
            "failed_units": len(failed),
            "failed": limit_failures(failed.values()),
            "runs": [*earlier.get("runs", []), self._run_figures(status)],
            "engines": self.engines[:LISTED_ENGINES] or earlier.get("engines", []),
            "versions": find_versions(),
            "job": ground.job.model_dump(mode="json"),
        }
        self.output.write_own("manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode())

    def _run_figures(self, status: str) -> dict[str, Any]:
        scoring = (self.last_scored or 0.0) - (self.first_scored or 0.0)
        return {
            "run": self.run_id,
            "status": status,
            "started": self.started,
            "seconds": round(time.time() - self.started, 3),
            "scoring_seconds": round(scoring, 3),
            "units": self.scored_now.units,
            "pairs": self.scored_now.pairs,
            "tokens": self.scored_now.tokens,
            "pairs_per_second": round(self.scored_now.pairs / scoring, 3) if scoring > 0 else None,
            "actors": len(self.engines),
            "failed_units": len(self.failed),
        }

    def _find_dtype(self) -> str | None:
        return self.engines[0]["dtype"] if self.engines else None

    def _checked(self) -> bool:
        kinds = (engine.get("max_difference") for engine in self.engines)
        return self.ground.job.engine == "fake" or any(difference is not None for difference in kinds)

    def _find_earlier_dtype(self) -> str | None:
        """Return what `--dtype auto` came to in an earlier run, so that all parts have one dtype."""
        found = self.output.load_manifest()
        same = found.get("fingerprint") == self.ground.fingerprint
        return str(found["dtype"]) if same and found.get("dtype") else None

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
            "engine": ground.job.engine,
            "run": self.run_id,
        }


LISTED_ENGINES = 100


def make_encoder_settings(ground: Groundwork) -> dict[str, Any]:
    """Return the keyword arguments of the job's `PairEncoder`."""
    return {
        "template_name": ground.model.template_name,
        "instruction": ground.job.instruction,
        "max_length": ground.job.max_length,
        "parse_special_tokens": ground.job.parse_special_tokens,
    }


def make_prepare_spec(ground: Groundwork, environment: dict[str, str]) -> PrepareSpec:
    """Return what read tasks need."""
    job = ground.job
    return PrepareSpec(
        fingerprint=ground.fingerprint,
        encoder=make_encoder_settings(ground),
        format=job.format,
        query_column=job.query_column,
        document_column=job.document_column,
        instruction_column=job.instruction_column,
        keep=None if job.keep_columns == "all" else list(job.keep_columns),
        json_types=ground.plan.json_types,
        max_attempts=job.max_attempts,
        environment=environment,
    )


def make_specs(ground: Groundwork, tokenizer_json: str, environment: dict[str, str]) -> tuple[PrepareSpec, EngineSpec]:
    """Return what read tasks and what actors need."""
    job = ground.job
    encoder = PairEncoder(tokenizer_json, **make_encoder_settings(ground))
    engine = EngineSpec(
        kind=job.engine,
        model=ground.model,
        dtype=job.dtype,
        max_length=job.max_length,
        tensor_parallel_size=job.tensor_parallel_size,
        engine_args=job.engine_args,
        check_prompts=encode_check_pairs(encoder),
        check_scores=job.check_scores,
    )
    return make_prepare_spec(ground, environment), engine


@contextlib.contextmanager
def _connected_ray(job: ScoreJob) -> Iterator[bool]:
    """Connect to the cluster that the job or the environment names, or start a Ray on this machine.

    Yields whether the connection is ours; one that the caller had made is used and left as it is.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a pipeline that is being shut down must not start a new Ray
    import logging

    import ray

    address = job.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # At least one for the actor and one for reading; writing mostly waits, so it gets one that is not there.
        arguments |= {"num_cpus": max(2, os.cpu_count() or 1) + 1, "include_dashboard": False}
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ side writes to our terminal
    already = ray.is_initialized()
    if not already:
        _refuse_silent_address(address)
        try:
            ray.init(address=address, **arguments)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise JobError(
                f"no Ray cluster at {address} ({describe_cause(error)}); check --ray-address or RAY_ADDRESS"
            ) from error
    _raise_on_signals()  # ray.init puts a handler of its own in the place of ours
    try:
        yield not already
    finally:
        if not already:
            ray.shutdown()


def _refuse_silent_address(address: str) -> None:
    """Raise where nothing listens at HOST:PORT, which Ray would wait for without a word."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise JobError(
            f"no Ray cluster at {address} ({describe_cause(error)}); check --ray-address or RAY_ADDRESS"
        ) from error


def _raise_on_signals() -> None:
    def stop(signum: int, frame: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        raise RunInterruptedError(f"stopped by {signal.Signals(signum).name}", signum=signum)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `RunInterruptedError` in the main thread, and put back what was there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _raise_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
