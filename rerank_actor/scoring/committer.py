"""One output of a run: what is to be scored for it, what became of that, and how it is written down.

Takes a `PreparedJob` and a lease, brings plan and parts into step, records the reports of units, and ends with a manifest
and, last of all, `_SUCCESS`. A run may have several outputs, which share its engines; each is planned, recorded and finished
on its own. Knows nothing of Ray.
"""

import contextlib
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from rerank_actor import storage
from rerank_actor.errors import JobError, RerankError, describe_cause
from rerank_actor.inputs.plan import Plan
from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.folder import (
    PLAN,
    Output,
    digest_parts,
    list_pending,
    list_strays,
    open_manifest,
    select_parts,
)
from rerank_actor.outputs.manifest import Totals, UnitRecords, check_committed, limit_failures, read_versions
from rerank_actor.outputs.part import TEXT_SETTINGS
from rerank_actor.outputs.report.build import write_report
from rerank_actor.outputs.scored import find_dtype
from rerank_actor.scoring.context import RunContext
from rerank_actor.scoring.outcomes import RunResult, UnitOutcomes
from rerank_actor.scoring.preflight import PreparedJob
from rerank_actor.storage.lease import Lease

LISTED_ENGINES = 100


@dataclass
class EngineFacts:
    """What a run has learned of its engines, which all its outputs share."""

    engines: list[dict[str, Any]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    least_batch_tokens: int | None = None
    ready_at: float | None = None
    faults_at: list[tuple[float, str, int]] = field(default_factory=list)  # when the first of them came
    actors: int = 0  # the most at a time
    gpus_per_actor: float = 0.0
    is_shared: bool = False  # by several outputs


@dataclass
class _SharedFacts:
    """Figures of pairs that several units have and that were scored first; `dedupe` is their entry in the manifest."""

    dedupe: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None


class OutputCommitter:
    """An output whose lease this run holds.

    Args:
        prepared: the job, checked and planned.
        lease: of the output; held.
        context: the run.

    Attributes:
        outcomes: what became of its units.
        actor_seconds: its share of the time that the run's actors held their resources.
        failed_commits: why the last units in a row, with none committed in between, could not be put into the folder.
    """

    def __init__(self, prepared: PreparedJob, lease: Lease, context: RunContext) -> None:
        self.prepared, self.lease, self._context = prepared, lease, context
        self.outcomes = UnitOutcomes()
        self.actor_seconds = 0.0
        self.failed_commits: list[str] = []
        self._engine_facts = EngineFacts()
        self._lookup_facts: dict[str, Any] = {}
        self._shared = _SharedFacts()
        self._passed_over: set[str] = set()  # by --retry-failed
        self._earlier: dict[str, Any] = {}  # the manifest of the runs before this one
        self._records = UnitRecords(prepared.output, context.run_id)
        self._manifest = prepared.output.guard(prepared.output.at("manifest.json"))
        self._plan = prepared.output.guard(prepared.output.at(PLAN))
        self._success = prepared.output.guard(prepared.output.success_uri)
        self._started = time.time()
        self._manifest_at = time.monotonic()

    @property
    def output(self) -> Output:
        """The folder."""
        return self.prepared.output

    def prepare(self) -> list[Unit]:
        """Bring plan and parts into step, and return the units that are left to score."""
        prepared, output = self.prepared, self.output
        if prepared.job.overwrite:
            output.clear(self._check_lease)
        output.clear_scratch()
        self._plan = output.guard(output.find_plan_uri())
        self._plan.look()
        stored = self._manifest.look()
        if stored is not None and (problem := output.explain_manifest(stored)) is not None:
            self._context.reporter.warn(problem)
        earlier = open_manifest(stored) or {}
        self._earlier = earlier if earlier.get("fingerprint") == prepared.fingerprint else {}
        self._delete_parts(list(prepared.change.stale_parts))
        listed = storage.list_children(output.uri)
        parts = select_parts(listed)
        self._report_strays(list_strays(listed, {unit.part_name for unit in prepared.plan.units()}))
        totals, damaged = self._check_parts(parts)
        pending = list_pending(prepared.plan, parts.keys() - damaged)
        if pending and not self._earlier.get("dtype"):
            own = (parts[unit.part_name] for unit in prepared.plan.units() if unit.part_name in parts)
            self._earlier["dtype"] = find_dtype(own)  # a run that was killed early left no manifest
        if pending:
            self._check_lease()
            storage.delete_objects([output.success_uri])
        self._success.look()
        if prepared.plan != prepared.earlier:
            self._plan.write(prepared.plan.to_bytes(prepared.settings), self._check_lease)
        self._write_definition()
        self._delete_parts(damaged)
        count = sum(1 for _ in prepared.plan.units())
        self._report_plan(count, len(pending))
        if prepared.job.retry_failed:
            wanted = {record["unit"] for record in output.list_failed()}
            self._passed_over = {unit.name for unit in pending} - wanted
            pending = [unit for unit in pending if unit.name in wanted]
            self._context.reporter.info(f"--retry-failed: {len(pending):,} units failed in an earlier run")
        self.outcomes = UnitOutcomes(count, {unit.name: unit for unit in pending}, totals=totals)
        return self._drop_unreadable(pending)

    def _check_parts(self, parts: dict[str, storage.StoredObject]) -> tuple[Totals, list[str]]:
        """Return the totals of what is committed, and the names of damaged parts."""
        output, reporter = self.output, self._context.reporter
        units = self.prepared.plan.units()
        totals, damaged = check_committed(output, parts, units, self.prepared.fingerprint, reporter.info)
        self._shared.dedupe = self._earlier.get("dedupe", {})
        totals.shared_passes = int(self._shared.dedupe.get("forward_passes", 0))
        for name, problem in damaged.items():
            reporter.info(f"{storage.join_uri(output.uri, name)} {problem}; its unit is scored again")
        return totals, list(damaged)

    def _report_strays(self, names: list[str]) -> None:
        if names:
            self._context.reporter.warn(
                f"{self.output.uri}: {len(names):,} Parquet files there are in no plan of this job ({names[0]}), though "
                "whoever reads the folder reads them; move or delete them"
            )

    def _report_plan(self, num_units: int, num_pending: int) -> None:
        plan, reporter = self.prepared.plan, self._context.reporter
        for uri in self.prepared.change.vanished:
            reporter.info(f"{uri}: no longer in the input; its parts stay")
        done = f", {num_units - num_pending:,} committed already" if num_units > num_pending else ""
        size = f"{plan.num_rows:,} rows of {len(plan.shards):,} shards in {num_units:,} units"
        reporter.info(f"{size}{done}; output {self.output.uri}")

    def _drop_unreadable(self, pending: list[Unit]) -> list[Unit]:
        """Return the units whose shard could be read when it was planned; the others have failed."""
        unreadable = {shard.uri: shard.error for shard in self.prepared.plan.shards if shard.error}
        for unit in pending:
            if unit.uri in unreadable:
                self._record_failure(unit.name, unreadable[unit.uri], attempts=1)
        return [unit for unit in pending if unit.uri not in unreadable]

    def use_engines(self, facts: EngineFacts) -> None:
        """Take what is known, and will be, of the engines that score this output."""
        self._engine_facts = facts

    def record_lookups(self, facts: dict[str, Any]) -> None:
        """Record what the stores of texts by id hold, and what was left out of them, by role."""
        self._lookup_facts = facts

    def record_shared(self, num_pairs: int, forward_passes: int, dtype: str | None, actor_seconds: float) -> None:
        """Record the figures of pairs that several units have and that were scored first."""
        self.outcomes.totals.shared_passes = forward_passes
        self._shared = _SharedFacts({"shared_pairs": num_pairs, "forward_passes": forward_passes}, dtype)
        self.add_actor_seconds(actor_seconds)

    def add_actor_seconds(self, seconds: float) -> None:
        """Add time that actors held their resources for this output."""
        self.actor_seconds += seconds

    @property
    def gpu_seconds(self) -> float:
        """GPU seconds that were held for this output."""
        return self.actor_seconds * self._engine_facts.gpus_per_actor

    def count_errors(self) -> int:
        """Return how many rows or pairs of this run have an error, those aside that were left out on purpose."""
        directions = self.prepared.job.directions()
        errors = self.outcomes.scored_now.errors
        return directions.count_errors(errors) if directions is not None else sum(errors.values())

    def record_report(self, report: dict[str, Any]) -> bool:
        """Record what a worker says of a unit; return whether that was a unit committed."""
        name = report["unit"]
        if name not in self.outcomes.left or report.get("handed_back"):
            return False  # a worker that died after it had reported was replaced, and its successor reports again
        if report.get("failure"):
            if report.get("not_committed"):
                self.failed_commits.append(f"unit {name}: {report['failure']}")
            self._record_failure(name, report["failure"], report.get("attempts", 1))
            return False
        self.outcomes.record_committed(report)
        self.failed_commits.clear()
        self._records.add(name, {**report, "fingerprint": self.prepared.fingerprint})
        return True

    def _record_failure(self, name: str, reason: str, attempts: int) -> None:
        self.outcomes.record_failure(name, reason, attempts, self._context.run_id)
        self._context.reporter.warn(f"unit {name} failed: {reason}")

    def flush_periodically(self) -> None:
        """Write records and a manifest now and then; they may fail, the end of the run writes them again."""
        self._records.flush_if_due()
        if time.monotonic() - self._manifest_at >= self._context.limits.manifest_seconds:
            self._manifest_at = time.monotonic()
            with contextlib.suppress(RerankError):
                self._write_manifest("running", self.outcomes.failed)

    def find_dtype(self) -> str | None:
        """Return the dtype that the engines compute in, None while that is open."""
        return self._engine_facts.engines[0]["dtype"] if self._engine_facts.engines else None

    def find_earlier_dtype(self) -> str | None:
        """Return the dtype that `--dtype auto` chose in an earlier run, so that all parts have one dtype."""
        if self._earlier.get("dtype"):
            return str(self._earlier["dtype"])
        return self._shared.dtype or (self.prepared.reused.dtype if self.prepared.reused is not None else None)

    def make_part_metadata(self) -> dict[str, str]:
        """Return the entries of the metadata of each part."""
        prepared = self.prepared
        return {
            "fingerprint": prepared.fingerprint,
            "model": prepared.model.name,
            "model_digest": prepared.model.digest,
            "revision": prepared.model.revision or "",
            "template": prepared.model.description.name,
            **{f"{name}_is": words for name, words in prepared.model.description.explain().items()},
            **prepared.model.description.to_metadata(),
            "instruction": prepared.job.instruction,
            "instruction_column": prepared.job.instruction_column or "",
            **({"explode": "true"} if prepared.job.explode else {}),
            **({"where": prepared.job.where} if prepared.job.where is not None else {}),
            **{
                name: json.dumps(prepared.settings[name], ensure_ascii=False)
                for name in TEXT_SETTINGS
                if name in prepared.settings
            },
            "engine": prepared.job.engine,
            "run": self._context.run_id,
        }

    def finish(self, *, reports: bool = True) -> RunResult:
        """Look at what is committed, write the manifest, and `_SUCCESS` last."""
        outcomes, reporter = self.outcomes, self._context.reporter
        self._check_lease()
        self._restore_plan()
        parts = self.output.list_parts()
        missing = list_pending(self.prepared.plan, parts.keys() - self._add_unreported(parts))
        if outcomes.totals.rows != self.prepared.plan.num_rows - sum(unit.num_rows for unit in missing):
            missing = self._count_again(parts)
        failed = {unit.name: outcomes.failed[unit.name] for unit in missing if unit.name in outcomes.failed}
        untried = sum(1 for unit in missing if outcomes.is_open(unit.name) or unit.name in self._passed_over)
        lost = len(missing) - len(failed) - untried
        if untried:
            reporter.info(f"{untried:,} units were not tried before the run ended")
        if lost:
            reporter.warn(
                f"{self.output.uri}: {lost:,} parts that were committed are there no longer or are damaged, so that something "
                "else writes to this folder; run again to score their units"
            )
        self.output.replace_failed(failed)
        if self.prepared.job.check_scores and self._engine_facts.engines and not self._is_checked():
            reporter.info("--check-scores: the engine that was to be compared died before it was; run again to compare")
        self._records.flush()
        status = "failed" if missing else "complete"
        self._write_manifest(status, failed)
        if reports and (outcomes.scored_now.units or failed or self._earlier.get("status", "complete") != "complete"):
            self._write_report()
        if not missing:
            self._success.write(self._make_success(parts), self._check_lease)
            for folder in ("stores", "dedupe"):
                storage.delete_folder(self.output.at(folder))
        return RunResult(status, outcomes.totals, failed, untried, lost, self._run_figures(status))

    def _delete_parts(self, names: list[str]) -> None:
        if names:
            self._check_lease()
            self.output.delete_parts(names)

    def _check_lease(self) -> None:
        self.lease.check(fresh=True)

    def _make_success(self, parts: dict[str, storage.StoredObject]) -> bytes:
        """Return the mark that says which parts it is of, so that one of other parts counts for nothing."""
        own = [parts[unit.part_name] for unit in self.prepared.plan.units()]
        mark = {
            "run": self._context.run_id,
            "epoch": self.lease.mark.epoch,
            "fingerprint": self.prepared.fingerprint,
            "parts": len(own),
            "digest": digest_parts(own),
        }
        return storage.seal_json(mark)

    def write_stopped_manifest(self) -> None:
        """Leave a truthful manifest behind when a signal ends the run; it may fail, nothing depends on it."""
        with contextlib.suppress(RerankError):
            self._records.flush()
            self._write_manifest("stopped", self.outcomes.failed)

    def _write_report(self) -> None:
        """Leave a report for people; nothing depends on it, and vectors have none."""
        if self.prepared.job.embedding() is not None:
            return
        try:
            self._context.reporter.info(f"report: {write_report(self.output)}")
        except Exception as error:  # whatever it stumbles over, the scores are there
            self._context.reporter.info(
                f"the report could not be written ({describe_cause(error)}); python -m jobs.report {self.output.uri} "
                "tries again"
            )

    def _add_unreported(self, parts: dict[str, storage.StoredObject]) -> set[str]:
        """Count the parts of which no report came, because a worker or the coordinator died; return damaged ones, deleted."""
        unreported = [unit for unit in self.outcomes.left.values() if unit.part_name in parts]
        if not unreported:
            return set()
        totals, damaged = check_committed(self.output, parts, unreported, self.prepared.fingerprint)
        self.outcomes.merge(totals)
        self._delete_parts(list(damaged))
        return set(damaged)

    def _restore_plan(self) -> None:
        """Write the plan again where somebody deleted or replaced it, without which no later run knows what the parts are."""
        prepared, data = self.prepared, self._plan.look()
        try:
            stored = Plan.from_bytes(data) if data is not None else None
        except JobError:
            stored = None
        if stored != (prepared.plan, prepared.settings):
            self._context.reporter.warn(
                f"{self._plan.uri}: was deleted or replaced while the run was at work; written again"
            )
            self._plan.write(prepared.plan.to_bytes(prepared.settings), self._check_lease)
            self._write_definition()

    def _write_definition(self) -> None:
        """Write what says to people and to other programs what the folder is."""
        self.output.write_card()
        job = self.prepared.job.model_copy(update={"overwrite": False})
        self.output.write_own("job.yaml", storage.seal_text(job.to_yaml()))

    def _count_again(self, parts: dict[str, storage.StoredObject]) -> list[Unit]:
        """Count all parts anew, whose rows are not those planned; return the units that have none, or not theirs."""
        plan = self.prepared.plan
        self._records.flush()
        totals, damaged = check_committed(self.output, parts, plan.units(), self.prepared.fingerprint)
        totals.shared_passes = self.outcomes.totals.shared_passes
        self.outcomes.totals = totals
        for name, problem in damaged.items():
            self._context.reporter.warn(
                f"{storage.join_uri(self.output.uri, name)} {problem}; run again to score its unit"
            )
        self._delete_parts(list(damaged))
        return list_pending(plan, parts.keys() - damaged.keys())

    def _is_checked(self) -> bool:
        """Whether an engine was compared with the reference."""
        differences = [engine.get("max_difference") for engine in self._engine_facts.engines]
        return self.prepared.job.engine == "fake" or any(difference is not None for difference in differences)

    def _count_faults(self) -> Counter[str]:
        return self._engine_facts.faults + Counter({"read_retried": self.outcomes.read_retries})

    def _write_manifest(self, status: str, failed: dict[str, dict[str, Any]]) -> None:
        prepared, earlier, engine_facts = self.prepared, self._earlier, self._engine_facts
        plan = prepared.plan
        manifest = {
            "status": status,
            "fingerprint": prepared.fingerprint,
            "fingerprint_settings": prepared.settings,
            "model": {
                "name": prepared.model.name,
                "revision": prepared.model.revision,
                "digest": prepared.model.digest,
                "architecture": prepared.model.architecture,
            },
            "dtype": self.find_dtype() or earlier.get("dtype"),
            "plan": {
                "shards": len(plan.shards),
                "units": self.outcomes.num_planned,
                "rows": plan.num_rows,
                "bytes": plan.num_bytes,
                "vanished": list(prepared.change.vanished),
                "left_out": [asdict(item) for item in prepared.change.left_out],
            },
            "totals": self.outcomes.totals.to_dict(),
            "dedupe": self._shared.dedupe,
            "joins": self._lookup_facts or earlier.get("joins", {}),
            "failed_units": len(failed),
            "failed": limit_failures(failed.values()),
            "runs": [*earlier.get("runs", []), self._run_figures(status)],
            "faults": dict(sorted((Counter(earlier.get("faults", {})) + self._count_faults()).items())),
            "least_batch_tokens": engine_facts.least_batch_tokens or earlier.get("least_batch_tokens"),
            "engines": engine_facts.engines[:LISTED_ENGINES] or earlier.get("engines", []),
            "versions": read_versions(),
            "job": prepared.job.to_record(),
        }
        self._manifest.write(storage.seal_json(manifest, indent=2, ensure_ascii=False), self._check_lease)

    def _run_figures(self, status: str) -> dict[str, Any]:
        engine_facts, outcomes = self._engine_facts, self.outcomes
        done = outcomes.scored_now
        # Another output's units may have been scored before the first of this one's.
        since = max(engine_facts.ready_at or 0.0, (outcomes.begun_at or 0.0) if engine_facts.is_shared else 0.0)
        scoring = max(0.0, (outcomes.finished_at or 0.0) - since)
        return {
            "run": self._context.run_id,
            "status": status,
            "started": self._started,
            "ready_at": engine_facts.ready_at,
            "seconds": round(time.time() - self._started, 3),
            "scoring_seconds": round(scoring, 3),
            "units": done.units,
            "pairs": done.pairs,
            "tokens": done.tokens,
            "cached_tokens": done.cached_tokens,
            "engine_seconds": round(done.engine_seconds, 3),
            "pairs_per_second": round(done.pairs / scoring, 3) if scoring > 0 else None,
            "actors": engine_facts.actors,
            "actor_seconds": round(self.actor_seconds, 3),
            "gpu_seconds": round(self.gpu_seconds, 3),
            "failed_units": len(outcomes.failed),
            "faults": dict(sorted(self._count_faults().items())),
            "faults_at": engine_facts.faults_at,
        }
