"""The facts of a report: numbers of a job, from its plan, its manifest and its unit records.

Takes an output folder, gives a `Facts`; the records of units that are no longer in the output do not count. Reads no
part, so that its cost follows the number of units. Knows nothing of HTML.
"""

import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.folder import HISTOGRAM_COLUMNS, Output, is_as_recorded
from rerank_actor.outputs.histograms import NAMES, ScoreHistograms, compute_edge
from rerank_actor.outputs.manifest import Totals
from rerank_actor.outputs.price import Price, find_stored_price
from rerank_actor.outputs.report.timeline import Timeline, draw_timeline
from rerank_actor.outputs.scored import ScoredOutput, require_scored
from rerank_actor.outputs.status import JobStatus, judge_status

SLOWEST_UNITS = 10
EXAMPLES = 3  # units named for each reason of an error


@dataclass
class ShardFacts:
    """Sums over the recorded units of a shard; `score_sum` is to within a bin, `passed` are rows that `--where` left."""

    rows: int = 0
    passed: int = 0
    pairs: int = 0
    errors: int = 0
    scored: int = 0
    truncated: int = 0
    tokens: int = 0
    score_sum: float = 0.0

    @property
    def mean_score(self) -> float | None:
        """The mean score of its pairs, None where none has one."""
        return self.score_sum / self.scored if self.scored else None

    def add(self, record: dict[str, Any]) -> None:
        """Add a unit's record."""
        for name in ("rows", "passed", "pairs", "scored", "truncated", "tokens"):
            setattr(self, name, getattr(self, name) + int(record.get(name) or 0))
        self.errors += sum(_read_errors(record).values())
        bins = record["score_bins"] or []
        self.score_sum += sum(count * compute_edge("score", at + 0.5) for at, count in enumerate(bins))


@dataclass
class Facts:
    """What is known of a job.

    Attributes:
        scored: its parts, in the plan's order.
        status: how it stands.
        manifest: as stored, empty where no run has ended yet.
        totals: of all units that a record vouches for.
        histograms: of the pairs of these units.
        unrecorded: committed units without a record, of a run that was killed or is at work.
        slowest: records of the units that their engine took longest for.
        error_units: for each reason, the names of a few units that have it.
        timeline: of these units.
        shards: sums of the units of each shard, by its URI.
        price: of a GPU hour, None where nobody told it.
    """

    scored: ScoredOutput
    status: JobStatus
    manifest: dict[str, Any]
    totals: Totals = field(default_factory=Totals)
    histograms: ScoreHistograms = field(default_factory=ScoreHistograms)
    unrecorded: int = 0
    slowest: list[dict[str, Any]] = field(default_factory=list)
    error_units: dict[str, list[str]] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)
    shards: dict[str, "ShardFacts"] = field(default_factory=dict)
    price: Price | None = None

    @property
    def output(self) -> Output:
        """The folder."""
        return Output(self.scored.uri)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Figures of each run, from the first to the last."""
        return list(self.manifest.get("runs", []))

    @property
    def gpu_hours(self) -> float | None:
        """GPU hours of all runs; None where no run counted them or there was no GPU."""
        return self.status.gpu_hours

    @property
    def cost(self) -> float | None:
        """Dollars of all runs."""
        return self.gpu_hours * self.price.dollars if self.gpu_hours is not None and self.price is not None else None

    def select_units(self, names: set[str]) -> dict[str, Unit]:
        """Return units of the plan by name."""
        return {unit.name: unit for unit in self.scored.plan.units() if unit.name in names}


def gather_facts(uri: str, price: Price | None = None, *, running: bool | None = None) -> Facts:
    """Gather the figures of the job of an output folder.

    Args:
        uri: the folder.
        price: of a GPU hour; None takes the job's own.
        running: whether a run is at work; None looks at its lease.

    Raises:
        InputError: there is no job.
        JobError, StorageError: the folder cannot be read.
    """
    scored, manifest = require_scored(uri), Output(uri).load_manifest()
    facts = Facts(
        scored=scored,
        status=judge_status(scored, manifest, running),
        manifest=manifest,
        price=price or find_stored_price(manifest),
    )
    _add_records(facts)
    return facts


def _add_records(facts: Facts) -> None:
    names = ("finished_at", "pairs", "seconds")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    slowest: list[tuple[float, str, dict[str, Any]]] = []
    shards = {unit.name: unit.uri for unit in facts.scored.units}
    seen: set[str] = set()
    for table in _match_tables(facts, seen):
        for record in table.drop_columns([*HISTOGRAM_COLUMNS - {"score_bins"}]).to_pylist():
            facts.totals.add(record)
            facts.shards.setdefault(shards[record["unit"]], ShardFacts()).add(record)
            slowest.append((float(record["seconds"] or 0), record["unit"], record))
            for reason in _read_errors(record):
                examples = facts.error_units.setdefault(reason, [])
                if len(examples) < EXAMPLES:
                    examples.append(record["unit"])
        slowest = heapq.nlargest(SLOWEST_UNITS, slowest, key=lambda entry: entry[0])
        for name in names:
            columns[name].append(table[name].fill_null(0).to_numpy())
        for name in NAMES:
            facts.histograms.add_lists(name, table[f"{name}_bins"].combine_chunks())
    facts.slowest = [record for _, _, record in slowest]
    facts.unrecorded = facts.status.committed_units - len(seen)
    if columns["pairs"]:
        finished, pairs, seconds = (np.concatenate(columns[name]) for name in names)
        facts.timeline = draw_timeline(finished, pairs, seconds, facts.runs)


def _match_tables(facts: Facts, seen: set[str]) -> Iterator[pa.Table]:
    """Yield the records that vouch for a part, one for each."""
    parts = dict(zip((unit.part_name for unit in facts.scored.units), facts.scored.parts, strict=True))
    for table in facts.output.read_record_tables():
        keep = []
        for number, record in enumerate(table.select(["unit", "part_bytes", "part_etag"]).to_pylist()):
            name = f"part-{record['unit']}.parquet"
            part = parts.get(name) if name not in seen else None
            if part is not None and is_as_recorded(part, record):
                seen.add(name)
                keep.append(number)
        yield table.take(pa.array(keep, pa.int64()))


def _read_errors(record: dict[str, Any]) -> dict[str, int]:
    errors = json.loads(record["errors"] or "{}")
    return errors if isinstance(errors, dict) else {}
