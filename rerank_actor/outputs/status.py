"""Status: how far a job is, how fast and until when, from its output folder alone.

The listing of the parts says what is committed and when; the plan says of how much. Works while a run is at work, after
it, and from any machine that can read the folder.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from rerank_actor.inputs.listing import LeftOut
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.manifest import Totals
from rerank_actor.outputs.price import find_stored_price, format_dollars
from rerank_actor.outputs.scored import ScoredOutput, require_scored
from rerank_actor.progress import PlainConsole, format_seconds
from rerank_actor.storage.lease import is_running

RATE_WINDOW_SECONDS = 900.0
SHOWN_FAILURES = 20
SHOWN_LOGS = 3


@dataclass(frozen=True)
class JobStatus:
    """How a job stands.

    Attributes:
        state: `complete`, `running`, `failed` (ended with failed units) or `stopped`.
        units, rows, shards: planned.
        committed_units, committed_rows: in the output.
        rows_per_second: over the last quarter of an hour of commits, None when too few.
        eta_seconds: for what is left at that rate, while running.
        failed: records of failed units.
        totals: of the manifest, as of the last run's end.
        faults: survived by all runs, by kind, as of then.
        gpu_hours: of all runs, None where there was no GPU or no run has told it.
        cost: dollars that these cost, None where nobody knows a price.
        price: what that price is: the job's own, or the table's for the GPU that the job or its engines name.
        engines_busy: share of the actors' time in which their engines computed; the rest is their start, and waiting for units.
        planned: what `jobs.plan` foresaw, empty where it was not asked.
        left_out: what the last run found in the input and did not plan, as `LeftOut` has it.
        judged_rows: planned rows that were added for `--qrels`.
        engine_logs: files with the words of the last run's engines, each with its host.
        manifest_problem: that the manifest is damaged, so that totals are counted from the records of units.
    """

    output: str
    state: str
    shards: int
    units: int
    rows: int
    committed_units: int
    committed_rows: int
    rows_per_second: float | None
    eta_seconds: float | None
    failed: list[dict[str, Any]]
    totals: dict[str, Any]
    faults: dict[str, int]
    gpu_hours: float | None = None
    cost: float | None = None
    price: str = ""
    engines_busy: float | None = None
    planned: dict[str, Any] = field(default_factory=dict)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    judged_rows: int = 0
    engine_logs: list[str] = field(default_factory=list)
    manifest_problem: str | None = None


def sum_gpu_hours(manifest: dict[str, Any]) -> float | None:
    """Return the GPU hours of all runs; None where no run held a GPU or counted it."""
    counted = [float(run["gpu_seconds"]) for run in manifest.get("runs", []) if run.get("gpu_seconds")]
    return sum(counted) / 3600 if counted else None


def _measure_busy(manifest: dict[str, Any]) -> float | None:
    """Return the share of the actors' time in which their engines computed, of all runs that counted it."""
    counted = [run for run in manifest.get("runs", []) if run.get("actor_seconds")]
    held = sum(float(run["actor_seconds"]) for run in counted)
    return min(1.0, sum(float(run.get("engine_seconds") or 0) for run in counted) / held) if held else None


def count_actors(run: dict[str, Any]) -> int:
    """Return the most actors that a run of a manifest had at a time; 0 where it had none or did not tell."""
    return int(run.get("actors") or 0)


def read_status(uri: str) -> JobStatus:
    """Return how the job of an output folder stands.

    Raises:
        InputError: there is no job.
        JobError, StorageError: the folder cannot be read.
    """
    return judge_status(require_scored(uri), Output(uri).load_manifest())


def judge_status(scored: ScoredOutput, manifest: dict[str, Any], running: bool | None = None) -> JobStatus:
    """Return how a job stands whose parts and manifest are at hand.

    Args:
        scored: the parts, and those that are missing.
        manifest: empty where there is none.
        running: whether a run is at work; None looks at the lease.
    """
    output, plan = Output(scored.uri), scored.plan
    running = is_running(output.lease_uri) if running is None else running
    commits = [(part.modified_seconds, unit.num_rows) for unit, part in zip(scored.units, scored.parts, strict=True)]
    rate = _measure_rate(commits, time.time() if running else None)
    committed_rows = sum(unit.num_rows for unit in scored.units)
    gpu_hours = sum_gpu_hours(manifest)
    price = find_stored_price(manifest)
    problem = output.explain_manifest() if not manifest else None
    return JobStatus(
        output=output.uri,
        state=_name_state(scored, manifest, running),
        shards=len(plan.shards),
        units=scored.num_planned,
        rows=plan.num_rows,
        committed_units=len(scored.units),
        committed_rows=committed_rows,
        rows_per_second=rate,
        eta_seconds=(plan.num_rows - committed_rows) / rate if running and rate else None,
        failed=output.list_failed() if not running else [],
        totals=manifest.get("totals", {}) if problem is None else _count_recorded(scored),
        faults=manifest.get("faults", {}),
        gpu_hours=gpu_hours,
        cost=gpu_hours * price.dollars if gpu_hours is not None and price is not None else None,
        price=price.origin if price is not None else "",
        engines_busy=_measure_busy(manifest),
        planned=output.load_estimate(),
        judged_rows=sum(shard.planned_rows for shard in plan.shards if shard.uri.startswith(output.at("judged"))),
        left_out=manifest.get("plan", {}).get("left_out", []),
        engine_logs=[
            f"{engine['log']} on {engine.get('host')}" for engine in manifest.get("engines", []) if engine.get("log")
        ],
        manifest_problem=problem,
    )


def _count_recorded(scored: ScoredOutput) -> dict[str, Any]:
    """Return the totals of the units that a record vouches for, as a manifest has them."""
    totals = Totals()
    parts = {unit.part_name: part for unit, part in zip(scored.units, scored.parts, strict=True)}
    for _, record in Output(scored.uri).match_records(parts):
        totals.add(record)
    return totals.to_dict()


def _name_state(scored: ScoredOutput, manifest: dict[str, Any], running: bool) -> str:
    if running:
        return "running"
    if not scored.missing:
        return "complete"
    return "failed" if manifest.get("status") == "failed" else "stopped"


def _measure_rate(commits: list[tuple[float, int]], now: float | None) -> float | None:
    """Return rows a second, of commits with their time and rows; None where there are too few."""
    if len(commits) < 2:
        return None
    commits = sorted(commits)
    end = now or commits[-1][0]
    window = [commit for commit in commits if commit[0] >= end - RATE_WINDOW_SECONDS]
    if len(window) < 2:
        return None
    seconds = end - window[0][0]
    # The first commit of the window opens it; its rows were scored before.
    return sum(rows for _, rows in window[1:]) / seconds if seconds > 0 else None


def _describe_plan(planned: dict[str, Any]) -> str:
    words = [f"{format_seconds(3600 * float(planned['wall_hours']))} on {planned.get('actors')} actor(s)"]
    if planned.get("gpu_hours"):
        words.append(f"{float(planned['gpu_hours']):,.2f} GPU hours")
    if planned.get("cost"):
        words.append(format_dollars(float(planned["cost"])))
    return f"{', '.join(words)} ({planned.get('speed_origin')})"


def print_status(status: JobStatus, *, as_json: bool = False) -> None:
    """Print a status for a person, or as JSON for a program."""
    if as_json:
        print(json.dumps(asdict(status), indent=2))
        return
    console = PlainConsole()
    share = 100 * status.committed_rows / status.rows if status.rows else 100.0
    table = Table(show_header=False)
    table.add_row("output", status.output)
    table.add_row("state", status.state)
    table.add_row("rows", f"{status.committed_rows:,} of {status.rows:,} ({share:.1f} %)")
    table.add_row("units", f"{status.committed_units:,} of {status.units:,}, from {status.shards:,} shards")
    if status.rows_per_second is not None:
        table.add_row("speed", f"{status.rows_per_second:,.1f} rows/s")
    if status.eta_seconds is not None:
        table.add_row("ETA", format_seconds(status.eta_seconds))
    if status.judged_rows:
        table.add_row("from --qrels", f"{status.judged_rows:,} rows for judged pairs that the input lacks")
    if status.totals:
        errors = ", ".join(f"{count:,} x {reason}" for reason, count in status.totals["errors_by_reason"].items())
        table.add_row("scored", f"{status.totals['scored']:,} pairs, {status.totals['truncated']:,} truncated")
        if status.totals.get("passed_through"):
            table.add_row(
                "passed through", f"{status.totals['passed_through']:,} rows, for which --where does not hold"
            )
        table.add_row("errors", errors or "none")
    if status.faults:
        survived = ", ".join(f"{count:,} x {kind.replace('_', ' ')}" for kind, count in status.faults.items())
        table.add_row("faults survived", survived)
    if status.gpu_hours is not None:
        spent = f", {format_dollars(status.cost)} (price: {status.price})" if status.cost is not None else ""
        table.add_row("GPU hours", f"{status.gpu_hours:,.2f}{spent}")
    if status.engines_busy is not None:
        table.add_row("engines busy", f"{status.engines_busy:.1%} of their time; the rest: starting, waiting for units")
    if status.planned.get("wall_hours") is not None:
        table.add_row("planned", _describe_plan(status.planned))
    if status.left_out:
        table.add_row("left out", "\n".join(LeftOut(**item).describe() for item in status.left_out))
    table.add_row("failed units", f"{len(status.failed):,}")
    console.print(table)
    if status.manifest_problem is not None:
        console.print(status.manifest_problem, soft_wrap=True)
    for log in status.engine_logs[:SHOWN_LOGS]:
        console.print(f"engine log: {log}", soft_wrap=True)
    if len(status.engine_logs) > SHOWN_LOGS:
        console.print(f"and {len(status.engine_logs) - SHOWN_LOGS:,} more engine logs (--json)")
    for record in status.failed[:SHOWN_FAILURES]:
        console.print(
            f"unit {record['unit']} (rows {record['row_start']} to {record['row_start'] + record['num_rows']} of "
            f"{record['shard']}), {record['attempts']} attempts: {record['error']}",
            soft_wrap=True,
        )
    if len(status.failed) > SHOWN_FAILURES:
        console.print(f"and {len(status.failed) - SHOWN_FAILURES:,} more in {status.output}/_job/failed/")


def print_statuses(statuses: Sequence[JobStatus], *, as_json: bool = False) -> None:
    """Print how several outputs stand, a line each and one for all, or as a list in JSON."""
    if as_json:
        print(json.dumps([asdict(status) for status in statuses], indent=2))
        return
    table = Table("output", "state", "rows", "of", "failed units", "rows/s", "ETA")
    for status in statuses:
        rate, eta = status.rows_per_second, status.eta_seconds
        table.add_row(
            status.output.rpartition("/")[2],
            status.state,
            f"{status.committed_rows:,}",
            f"{status.rows:,}",
            f"{len(status.failed):,}",
            "" if rate is None else f"{rate:,.1f}",
            "" if eta is None else format_seconds(eta),
        )
    done, rows = (sum(getattr(status, name) for status in statuses) for name in ("committed_rows", "rows"))
    failed = sum(len(status.failed) for status in statuses)
    table.add_row(f"{len(statuses):,} in all", "", f"{done:,}", f"{rows:,}", f"{failed:,}", "", "", style="bold")
    console = PlainConsole()
    console.print(table)
    for problem in filter(None, (status.manifest_problem for status in statuses)):
        console.print(problem, soft_wrap=True)
