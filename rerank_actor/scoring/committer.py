"""One output of a run: what is to be scored for it, what became of that, and how it is written down.

Takes a `PreparedJob` and a lease, brings plan and parts into step, takes the reports of units, and ends with a manifest and,
last of all, `_SUCCESS`. A run may have several outputs, which share its engines; each is planned, recorded and finished on
its own. Knows nothing of Ray.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rerank_actor import storage
from rerank_actor.errors import RerankError, describe_cause
from rerank_actor.inputs.unit import Unit
from rerank_actor.outputs.folder import find_pending
from rerank_actor.outputs.manifest import Totals, UnitRecords, check_committed, find_versions, limit_failures
from rerank_actor.outputs.report.build import write_report
from rerank_actor.progress import Reporter
from rerank_actor.scoring.preflight import PreparedJob
from rerank_actor.storage.lease import Lease

LISTED_ENGINES = 100
MANIFEST_SECONDS = 60.0  # between two manifests of a run at work, so that one that is killed leaves its figures


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


@dataclass
class EngineFacts:
    """What a run has learned of its engines, which all its outputs share."""

    engines: list[dict[str, Any]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    least_batch_tokens: int | None = None
    ready_at: float | None = None
    actors: int = 0  # the most at a time
    actor_seconds: float = 0.0
    gpus_per_actor: float = 0.0
    is_shared: bool = False  # by several outputs


class OutputCommitter:
    """An output whose lease this run holds.

    Args:
        ground: the job, checked and planned.
        run_id: of the run.
        lease: of the output; held.
        reporter: is told what happens.
        warn: is told what needs a person's eye.

    Attributes:
        left: units of this run that are not known to be committed.
        failed: of these, the records of those that failed.
        totals, scored_now: of all that is committed, and of what this run did.
        dedupe: what scoring shared pairs first came to.
        joins: what the stores of texts by id hold, and what was left out of them.
        crew: what is known of the engines at work.
    """

    def __init__(
        self, prepared: PreparedJob, run_id: str, lease: Lease, reporter: Reporter, warn: Callable[[str], None]
    ) -> None:
        self.prepared, self.run_id, self.lease, self.reporter, self.warn = prepared, run_id, lease, reporter, warn
        self.output = prepared.output
        self.totals, self.scored_now = Totals(), Totals()
        self.left: dict[str, Unit] = {}
        self.failed: dict[str, dict[str, Any]] = {}
        self.dedupe: dict[str, Any] = {}
        self.joins: dict[str, Any] = {}
        self.shared_dtype: str | None = None
        self.crew = EngineFacts()
        self.actor_seconds = 0.0  # its share of the crew's
        self.num_units = 0
        self._records = UnitRecords(prepared.output, run_id)
        self._earlier: dict[str, Any] = {}  # the manifest of the runs before this one
        self._read_retries = 0
        self._started = time.time()
        self._begun_at: float | None = None
        self._finished_at: float | None = None
        self._manifest_at = time.monotonic()

    # Before scoring

    def prepare(self) -> list[Unit]:
        """Bring plan and parts into step, and return the units that are left to score."""
        prepared, output = self.prepared, self.output
        if prepared.job.overwrite:
            output.clear()
        output.clear_scratch()
        earlier = output.load_manifest()
        self._earlier = earlier if earlier.get("fingerprint") == prepared.fingerprint else {}
        output.delete_parts(list(prepared.change.stale_parts))
        parts = output.list_parts()
        units = prepared.plan.units()
        self.totals, damaged = check_committed(output, parts, units, prepared.fingerprint, self.reporter.say)
        self.dedupe = self._earlier.get("dedupe", {})
        self.totals.shared_passes = int(self.dedupe.get("forward_passes", 0))
        for name, problem in damaged.items():
            self.reporter.say(f"{storage.join_uri(output.uri, name)} {problem}; its unit is scored again")
            del parts[name]
        pending = find_pending(prepared.plan, parts)
        if pending:
            storage.delete_objects([output.success_uri])
        if prepared.plan != prepared.earlier:
            output.write_own("plan.parquet", prepared.plan.to_bytes(prepared.settings))
        output.write_own("job.yaml", prepared.job.model_copy(update={"overwrite": False}).to_yaml().encode())
        output.delete_parts(list(damaged))
        for uri in prepared.change.vanished:
            self.reporter.say(f"{uri}: no longer in the input; its parts stay")
        count = self.num_units = sum(1 for _ in prepared.plan.units())
        done = f", {count - len(pending):,} committed already" if count > len(pending) else ""
        size = f"{prepared.plan.num_rows:,} rows of {len(prepared.plan.shards):,} shards in {count:,} units"
        self.reporter.say(f"{size}{done}; output {output.uri}")
        if prepared.job.retry_failed:
            wanted = {record["unit"] for record in output.list_failed()}
            pending = [unit for unit in pending if unit.name in wanted]
            self.reporter.say(f"--retry-failed: {len(pending):,} units failed in an earlier run")
        self.left = {unit.name: unit for unit in pending}
        return self._drop_unreadable(pending)

    def _drop_unreadable(self, pending: list[Unit]) -> list[Unit]:
        """Return the units whose shard could be read when it was planned; the others have failed."""
        unreadable = {shard.uri: shard.error for shard in self.prepared.plan.shards if shard.error}
        for unit in pending:
            if unit.uri in unreadable:
                self._note_failure(unit.name, {"failure": unreadable[unit.uri], "attempts": 1})
        return [unit for unit in pending if unit.uri not in unreadable]

    # While units are scored

    @property
    def is_settled(self) -> bool:
        """Whether every unit is committed or has failed."""
        return len(self.left) == len(self.failed)

    def count_settled(self) -> int:
        """Return how many units this run committed or saw failing."""
        return self.scored_now.units + len(self.failed)

    def count_errors(self) -> int:
        """Return how many rows or pairs of this run have an error, those aside that were left out on purpose."""
        directions = self.prepared.job.directions()
        errors = self.scored_now.errors
        return directions.count_errors(errors) if directions is not None else sum(errors.values())

    def take_report(self, report: dict[str, Any]) -> bool:
        """Take down what a worker says of a unit; return whether that was a unit committed."""
        name = report.pop("unit")
        if name not in self.left or report.get("handed_back"):
            return False  # a worker that died after it had reported was replaced, and its successor reports again
        if report.get("failure"):
            self._note_failure(name, report)
            return False
        finished_at = float(report["finished_at"])
        begun_at = finished_at - float(report.get("seconds") or 0.0)
        self._begun_at = min(self._begun_at or begun_at, begun_at)
        self._finished_at = max(self._finished_at or 0.0, finished_at)
        self._read_retries += report.get("read_retries", 0)
        del self.left[name]
        self.failed.pop(name, None)
        self._records.add(name, report)
        self.totals.add(report)
        self.scored_now.add(report)
        return True

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
        self.warn(f"unit {name} failed: {report['failure']}")

    def flush_periodically(self) -> None:
        """Write records and a manifest now and then; they may fail, the end of the run writes them again."""
        self._records.flush_if_due()
        if time.monotonic() - self._manifest_at >= MANIFEST_SECONDS:
            self._manifest_at = time.monotonic()
            with contextlib.suppress(RerankError):
                self._write_manifest("running", self.failed)

    def find_dtype(self) -> str | None:
        """Return what the engines compute in, None while that is open."""
        return self.crew.engines[0]["dtype"] if self.crew.engines else None

    def find_earlier_dtype(self) -> str | None:
        """Return what `--dtype auto` came to in an earlier run, so that all parts have one dtype."""
        if self._earlier.get("dtype"):
            return str(self._earlier["dtype"])
        return self.shared_dtype or (self.prepared.reused.dtype if self.prepared.reused is not None else None)

    def make_part_metadata(self) -> dict[str, str]:
        """Return what the metadata of each part say."""
        prepared = self.prepared
        return {
            "fingerprint": prepared.fingerprint,
            "model": prepared.model.name,
            "model_digest": prepared.model.digest,
            "revision": prepared.model.revision or "",
            "template": prepared.model.template_name,
            "instruction": prepared.job.instruction,
            "instruction_column": prepared.job.instruction_column or "",
            **({"explode": "true"} if prepared.job.explode else {}),
            **{
                name: json.dumps(prepared.settings[name], ensure_ascii=False)
                for name in ("query_template", "document_template", "instruction_map", "dataset_column", "directions")
                if name in prepared.settings
            },
            "engine": prepared.job.engine,
            "run": self.run_id,
        }

    # At the end

    def finish(self, *, reports: bool = True) -> RunResult:
        """Look at what is committed, write the manifest, and `_SUCCESS` last."""
        self.lease.check(fresh=True)
        parts = self.output.list_parts()
        self._add_unreported(parts)
        missing = find_pending(self.prepared.plan, parts)
        failed = {unit.name: self.failed[unit.name] for unit in missing if unit.name in self.failed}
        if len(missing) > len(failed):
            self.reporter.say(f"{len(missing) - len(failed):,} units were not tried before the run ended")
        self.output.replace_failed(failed)
        if self.prepared.job.check_scores and self.crew.engines and not self._checked():
            self.reporter.say(
                "--check-scores: the engine that was to be compared died before it was; run again to compare"
            )
        self._records.flush()
        status = "failed" if missing else "complete"
        self._write_manifest(status, failed)
        if reports and (self.scored_now.units or failed or self._earlier.get("status", "complete") != "complete"):
            self._write_report()
        if not missing:
            storage.write_bytes(self.output.success_uri, b"")
            for folder in ("stores", "dedupe"):
                storage.delete_folder(self.output.at(folder))
        return RunResult(status, self.totals, failed, len(missing) - len(failed), self._run_figures(status))

    def write_stopped_manifest(self) -> None:
        """Leave a truthful manifest behind when a signal ends the run; it may fail, nothing depends on it."""
        with contextlib.suppress(RerankError):
            self._records.flush()
            self._write_manifest("stopped", self.failed)

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
        """Count the parts of which no report came, because a worker or the coordinator died before it."""
        unreported = [unit for unit in self.left.values() if unit.part_name in parts]
        if not unreported:
            return
        found, damaged = check_committed(self.output, parts, unreported, self.prepared.fingerprint)
        self.totals.merge(found)
        self.scored_now.merge(found)
        self.output.delete_parts(list(damaged))
        for name in damaged:
            del parts[name]

    def _checked(self) -> bool:
        kinds = (engine.get("max_difference") for engine in self.crew.engines)
        return self.prepared.job.engine == "fake" or any(difference is not None for difference in kinds)

    def _count_faults(self) -> Counter[str]:
        return self.crew.faults + Counter({"read_retried": self._read_retries})

    def _write_manifest(self, status: str, failed: dict[str, dict[str, Any]]) -> None:
        prepared, earlier, crew = self.prepared, self._earlier, self.crew
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
                "units": self.num_units,
                "rows": plan.num_rows,
                "bytes": plan.num_bytes,
                "vanished": list(prepared.change.vanished),
            },
            "totals": self.totals.to_dict(),
            "dedupe": self.dedupe,
            "joins": self.joins or earlier.get("joins", {}),
            "failed_units": len(failed),
            "failed": limit_failures(failed.values()),
            "runs": [*earlier.get("runs", []), self._run_figures(status)],
            "faults": dict(sorted((Counter(earlier.get("faults", {})) + self._count_faults()).items())),
            "least_batch_tokens": crew.least_batch_tokens or earlier.get("least_batch_tokens"),
            "engines": crew.engines[:LISTED_ENGINES] or earlier.get("engines", []),
            "versions": find_versions(),
            "job": prepared.job.to_record(),
        }
        self.output.write_own("manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode())

    def _run_figures(self, status: str) -> dict[str, Any]:
        crew, done = self.crew, self.scored_now
        # Another output's units may have been scored before the first of this one's.
        since = max(crew.ready_at or 0.0, (self._begun_at or 0.0) if crew.is_shared else 0.0)
        scoring = max(0.0, (self._finished_at or 0.0) - since)
        return {
            "run": self.run_id,
            "status": status,
            "started": self._started,
            "seconds": round(time.time() - self._started, 3),
            "scoring_seconds": round(scoring, 3),
            "units": done.units,
            "pairs": done.pairs,
            "tokens": done.tokens,
            "cached_tokens": done.cached_tokens,
            "engine_seconds": round(done.engine_seconds, 3),
            "pairs_per_second": round(done.pairs / scoring, 3) if scoring > 0 else None,
            "actors": crew.actors,
            "actor_seconds": round(self.actor_seconds, 3),
            "gpu_seconds": round(self.actor_seconds * crew.gpus_per_actor, 3),
            "failed_units": len(self.failed),
            "faults": dict(sorted(self._count_faults().items())),
        }
