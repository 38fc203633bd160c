"""How a job ran: throughput over time, the plan against what came, where the time went, hosts, runs and slow units.

Takes `Facts`, adds sections to a page. Knows nothing of what was scored.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from rerank_actor.outputs.price import format_dollars
from rerank_actor.outputs.report.facts import Facts
from rerank_actor.outputs.report.html import Page, format_number, make_bars, make_table, make_text, make_timeline
from rerank_actor.outputs.status import count_actors
from rerank_actor.progress import format_seconds

SHOWN_RUNS = 30
SHOWN_HOSTS = 40
SIGNS = {"start": "start", "resume": "resume", "ready": "ready", "fault": "!"}


def add_throughput(page: Page, facts: Facts) -> None:
    """Add pairs a second and engines at work over time, the plan against what came, and where the time went."""
    page.add("Throughput", *_show_timeline(facts))
    if facts.status.planned:
        page.add("As planned?", _compare_estimate(facts))
    if spent := _split_time(facts):
        words = "Seconds that actors held their resources, by what they did; those that compute are what scores."
        page.add("Where the time went", make_text(words), make_bars(spent))
    if hosts := _list_hosts(facts):
        header = ["host", "GPU", "engines", "engine", "start", "log"]
        page.add("Hosts", make_text("Of the last run that started engines."), make_table(header, hosts))


def add_runs(page: Page, facts: Facts) -> None:
    """Add runs, the faults they survived, and the slowest units."""
    _add_runs(page, facts)
    if facts.slowest:
        page.add("Slowest units", _show_slowest(facts))


def _compare_estimate(facts: Facts) -> str:
    planned, rows = facts.status.planned, []
    done = facts.status.committed_rows / facts.status.rows if facts.status.rows else 1.0
    scoring = sum(float(run.get("scoring_seconds") or 0) for run in facts.runs)
    scored = [run for run in facts.runs if run.get("scoring_seconds") and run.get("tokens")]
    actor_seconds = sum(float(run["scoring_seconds"]) * (count_actors(run) or 1) for run in scored)
    speed = sum(int(run["tokens"]) for run in scored) / actor_seconds if actor_seconds else None
    figures: dict[str, tuple[Any, float | None]] = {
        "prompt tokens": (planned.get("tokens"), float(facts.totals.tokens)),
        "tokens a second of an actor": (planned.get("tokens_per_second"), speed),
        "wall hours": (planned.get("wall_hours"), scoring / 3600 if scoring else None),
        "GPU hours": (planned.get("gpu_hours"), facts.gpu_hours),
        "cost in dollars": (planned.get("cost"), facts.cost),
    }
    for name, (wanted, measured) in figures.items():
        if not isinstance(wanted, int | float):
            continue
        ratio = f"{measured / wanted:.2f} x" if measured is not None and wanted else "-"
        shown = "not known" if measured is None else format_number(measured)
        rows.append([name, format_number(wanted), shown, ratio])
    words = f"Planned for all rows with {planned.get('actors', '?')} actor(s); found for {100 * done:.1f} % of them."
    return make_text(words) + make_table(["", "planned", "so far", "ratio"], rows)


def _show_timeline(facts: Facts) -> list[str]:
    timeline = facts.timeline
    if not timeline.pairs_per_second:
        return [make_text("Too few units are recorded; records are written once a minute and at the end of a run.")]
    first, last = timeline.first_at, timeline.last_at
    form = "%H:%M:%S" if last - first < 600 else "%H:%M" if last - first < 86400 else "%b %d %H:%M"
    ticks = [time.strftime(form, time.gmtime(first + share * (last - first))) for share in (0, 0.25, 0.5, 0.75, 1)]
    marks = [
        (
            (mark.at - first) / (last - first),
            SIGNS[mark.kind],
            f"{time.strftime(form, time.gmtime(mark.at))} {mark.words}",
        )
        for mark in timeline.marks
    ]
    words = (
        "A unit's pairs count evenly over the time that its engine took; the curve is the mean of five steps. Times are UTC, "
        f"from {_format_time(first)} on."
    )
    busy = f"engines at work of {timeline.actors:,}" if timeline.actors else "engines at work"
    blocks = [
        make_timeline(timeline.pairs_per_second, ticks, "pairs a second", marks=marks),
        make_text(words),
        make_timeline(timeline.engines, ticks, busy, most=float(timeline.actors), marks=marks),
    ]
    if timeline.marks:
        table = [[time.strftime(form, time.gmtime(mark.at)), SIGNS[mark.kind], mark.words] for mark in timeline.marks]
        blocks.append(make_table(["at (UTC)", "mark", "what"], table))
    return blocks


def _split_time(facts: Facts) -> dict[str, int]:
    """Return the actors' seconds by what they did, empty where no run counted them."""
    held = sum(float(run.get("actor_seconds") or 0) for run in facts.runs)
    if held < 1:
        return {}
    computing = min(held, sum(float(run.get("engine_seconds") or 0) for run in facts.runs if run.get("actor_seconds")))
    starting = min(
        held - computing,
        sum(
            max(0.0, float(run["ready_at"]) - float(run["started"])) * (count_actors(run) or 1)
            for run in facts.runs
            if run.get("ready_at") and run.get("started")
        ),
    )
    return {
        "engines compute": round(computing),
        "Ray and engines start": round(starting),
        "engines wait for units, or are replaced": round(held - computing - starting),
    }


def _list_hosts(facts: Facts) -> list[list[Any]]:
    """Return a row for each host: its GPU, how many engines started there, which, the median of their starts, and a log."""
    by_host: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for engine in facts.manifest.get("engines") or []:
        if engine.get("host"):
            by_host[str(engine["host"]), str(engine.get("gpu") or "none")].append(engine)
    rows: list[list[Any]] = []
    for (host, gpu), engines in sorted(by_host.items())[:SHOWN_HOSTS]:
        starts = sorted(float(engine.get("start_seconds") or 0) for engine in engines)
        kind = f"{engines[0].get('engine')} {engines[0].get('version')}"
        rows.append(
            [
                host,
                gpu,
                len(engines),
                kind,
                format_seconds(starts[len(starts) // 2]),
                str(engines[-1].get("log") or "-"),
            ]
        )
    return rows


def _add_runs(page: Page, facts: Facts) -> None:
    runs = facts.runs[-SHOWN_RUNS:]
    if not runs:
        page.add("Runs", make_text("No run has left figures yet; they come once a minute and at the end of a run."))
        return
    table = []
    for index, run in enumerate(runs):
        status = str(run.get("status", ""))
        if status == "running" and (index < len(runs) - 1 or facts.status.state != "running"):
            status = "killed"  # it never came to say how it ended
        gpu_hours = float(run["gpu_seconds"]) / 3600 if run.get("gpu_seconds") else None
        cost = gpu_hours * facts.price.dollars if gpu_hours is not None and facts.price is not None else None
        table.append(
            [
                _format_time(float(run.get("started") or 0)),
                status,
                format_seconds(float(run.get("seconds") or 0)),
                count_actors(run),
                int(run.get("units") or 0),
                int(run.get("pairs") or 0),
                "-" if not run.get("pairs_per_second") else f"{run['pairs_per_second']:,.1f}",
                "-" if gpu_hours is None else f"{gpu_hours:,.2f}",
                "-" if cost is None else format_dollars(cost),
                _list_faults(run.get("faults") or {}) or "none",
            ]
        )
    header = [
        "began (UTC)",
        "ended",
        "time",
        "actors",
        "units",
        "pairs",
        "pairs/s",
        "GPU hours",
        "cost",
        "faults survived",
    ]
    page.add("Runs", make_table(header, table))
    faults = facts.manifest.get("faults") or {}
    if faults:
        named = {str(kind).replace("_", " "): int(count) for kind, count in faults.items()}
        page.add("Faults survived", make_bars(dict(sorted(named.items(), key=lambda item: -item[1]))))
    tried = facts.totals.units_by_attempts
    if set(tried) - {1}:
        named = {f"{count} attempt{'s' if count > 1 else ''}": units for count, units in sorted(tried.items())}
        page.add("Units by attempts", make_bars(named))


def _list_faults(faults: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} x {kind.replace('_', ' ')}" for kind, count in faults.items())


def _show_slowest(facts: Facts) -> str:
    units = facts.select_units({record["unit"] for record in facts.slowest})
    table = []
    for record in facts.slowest:
        unit, seconds = units[record["unit"]], float(record["seconds"] or 0)
        tokens = int(record["tokens"] or 0)
        table.append(
            [
                record["unit"],
                f"{unit.row_start:,} to {unit.row_start + unit.num_rows:,} of {unit.uri}",
                f"{seconds:,.2f}",
                tokens,
                f"{tokens / seconds:,.0f}" if seconds > 0 else "-",
                int(record["attempts"] or 1),
            ]
        )
    words = "Seconds are the engine's own; a unit that was tried again counts all its attempts on the last actor."
    return make_text(words) + make_table(["unit", "rows", "seconds", "tokens", "tokens/s", "attempts"], table)


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) if seconds else "-"
