"""Outcomes: what became of the units of one output in a run, and the sums over them.

Takes the reports of units, says which are left, which have failed and what the rest add up to. Knows nothing of storage.
"""

from dataclasses import dataclass, field
from typing import Any

from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.manifest import Totals


@dataclass
class RunResult:
    """How a run ended.

    Attributes:
        status: `complete`, or `failed` when units are missing.
        totals: of everything committed, earlier runs included.
        failed: records of the units that failed for good.
        untried: how many units the run did not begin before it ended.
        lost: how many units were committed and are not there at the end.
        run: figures of this run alone.
    """

    status: str
    totals: Totals
    failed: dict[str, dict[str, Any]]
    untried: int = 0
    lost: int = 0
    run: dict[str, Any] = field(default_factory=dict)


@dataclass
class UnitOutcomes:
    """What became of an output's units.

    Attributes:
        num_planned: units of the plan, those of earlier runs included.
        left: units of this run that are not known to be committed.
        failed: of these, the records of those that failed.
        totals, scored_now: of all that is committed, and of what this run did.
        read_retries: requests to storage that readers made again.
        begun_at, finished_at: of the first and the last unit that an engine scored, in seconds since 1970.
    """

    num_planned: int = 0
    left: dict[str, Unit] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    scored_now: Totals = field(default_factory=Totals)
    read_retries: int = 0
    begun_at: float | None = None
    finished_at: float | None = None

    @property
    def is_settled(self) -> bool:
        """Whether every unit is committed or has failed."""
        return len(self.left) == len(self.failed)

    @property
    def num_settled(self) -> int:
        """How many units this run committed or saw failing."""
        return self.scored_now.units + len(self.failed)

    def is_open(self, name: str) -> bool:
        """Whether a unit is neither committed nor failed."""
        return name in self.left and name not in self.failed

    def record_committed(self, report: dict[str, Any]) -> None:
        """Record a unit that is committed, by what its worker says of it."""
        finished_at = float(report["finished_at"])
        begun_at = finished_at - float(report.get("seconds") or 0.0)
        self.begun_at = min(self.begun_at or begun_at, begun_at)
        self.finished_at = max(self.finished_at or 0.0, finished_at)
        self.read_retries += report.get("read_retries", 0)
        del self.left[report["unit"]]
        self.failed.pop(report["unit"], None)
        self.totals.add(report)
        self.scored_now.add(report)

    def record_failure(self, name: str, reason: str, attempts: int, run_id: str) -> None:
        """Record a unit that failed for good."""
        unit = self.left[name]
        self.failed[name] = {
            "unit": name,
            "shard": unit.uri,
            "row_start": unit.row_start,
            "num_rows": unit.num_rows,
            "error": reason,
            "attempts": attempts,
            "run": run_id,
        }

    def merge(self, totals: Totals) -> None:
        """Add to the sums units of this run of which no report arrived."""
        self.totals.merge(totals)
        self.scored_now.merge(totals)
