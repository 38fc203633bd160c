"""The page of a report: what its facts and rows look like to a person, as one HTML file.

Takes `Facts` and `Rows`, gives the text of a page. Knows nothing of storage.
"""

import time
from collections.abc import Mapping
from typing import Any

from rerank_actor.outputs.histograms import ScoreHistograms, compute_edge
from rerank_actor.outputs.html import (
    Page,
    format_number,
    make_bars,
    make_figures,
    make_histogram,
    make_table,
    make_text,
    make_timeline,
)
from rerank_actor.outputs.price import format_dollars
from rerank_actor.outputs.report.facts import Facts
from rerank_actor.outputs.report.rows import Rows
from rerank_actor.outputs.status import count_actors
from rerank_actor.progress import format_seconds

SHOWN_REASONS = 20
SHOWN_FAILURES = 20
SHOWN_RUNS = 30
QUANTILES = {"1 %": 0.01, "10 %": 0.1, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "90 %": 0.9, "99 %": 0.99}
STATE_WORDS = {
    "complete": "complete",
    "running": "a run is at work",
    "failed": "ended with failed units",
    "stopped": "stopped before it was done",
}


def render_report(facts: Facts, rows: Rows) -> str:
    """Return the page."""
    page = Page(f"Scores: {STATE_WORDS[facts.status.state]}", about=_describe(facts))
    page.add("In short", make_figures(_list_figures(facts)))
    if facts.status.planned:
        page.add("As planned?", _compare_estimate(facts))
    page.add("Throughput", _show_timeline(facts))
    _add_distributions(page, facts, rows)
    _add_errors(page, facts, rows)
    if rows.scored:
        page.add("Rows with high, middling and low scores", _show_scored(rows))
    _add_runs(page, facts)
    if facts.slowest:
        page.add("Slowest units", _show_slowest(facts))
    page.add("What ran", make_table(["setting", "value"], _list_settings(facts)))
    return page.render()


def _describe(facts: Facts) -> str:
    model = facts.manifest.get("model") or {}
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    words = [
        facts.output.uri,
        str(model.get("name") or ""),
        str(facts.manifest.get("dtype") or ""),
        f"report of {made}",
    ]
    return " · ".join(word for word in words if word)


def _list_figures(facts: Facts) -> dict[str, str]:
    totals, status = facts.totals, facts.status
    share = 100 * status.committed_rows / status.rows if status.rows else 100.0
    figures = {
        "rows scored": f"{status.committed_rows:,} of {status.rows:,} ({share:.1f} %)",
        "pairs": _format_count(totals.pairs),
        **({"rows passed through by --where": f"{totals.passed:,}"} if totals.passed else {}),
        "pairs with an error": f"{totals.failed_pairs:,}",
        "pairs truncated": _format_share(totals.truncated, totals.scored),
        "prompt tokens": _format_count(totals.tokens),
        "tokens from the prefix cache": _format_share(totals.cached_tokens, totals.tokens),
        "failed units": f"{len(status.failed):,}",
    }
    seconds = sum(float(run.get("seconds") or 0) for run in facts.runs)
    if seconds:
        figures["time of all runs"] = format_seconds(seconds)
    if status.eta_seconds is not None:
        figures["left, as it goes"] = format_seconds(status.eta_seconds)
    if status.engines_busy is not None:
        figures["engines busy"] = f"{100 * status.engines_busy:.1f} %"
    if facts.gpu_hours is not None:
        figures["GPU hours"] = f"{facts.gpu_hours:,.2f}"
    if facts.cost is not None:
        figures["cost"] = format_dollars(facts.cost)
        if totals.scored:
            figures["per million pairs"] = format_dollars(facts.cost / totals.scored * 1e6)
    return figures


def _format_share(part: int, whole: int) -> str:
    return f"{_format_count(part)} ({100 * part / whole:.1f} %)" if whole else _format_count(part)


def _format_count(count: int) -> str:
    """Return a count that fits a tile."""
    for size, word in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if count >= 10 * size:
            return f"{count / size:,.1f} {word}"
    return f"{count:,}"


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


def _show_timeline(facts: Facts) -> str:
    if not facts.timeline:
        return make_text("Too few units are recorded; records are written once a minute and at the end of a run.")
    end = facts.first_at + facts.step_seconds * len(facts.timeline)
    form = "%H:%M:%S" if end - facts.first_at < 600 else "%H:%M" if end - facts.first_at < 86400 else "%b %d %H:%M"
    ticks = [time.strftime(form, time.gmtime(facts.first_at + share * (end - facts.first_at))) for share in (0, 0.5, 1)]
    words = f"Pairs are counted when their unit is committed. Times are UTC, from {_format_time(facts.first_at)} on."
    return make_timeline(facts.timeline, ticks, "pairs a second") + make_text(words)


def _add_distributions(page: Page, facts: Facts, rows: Rows) -> None:
    histograms, origin = facts.histograms, ""
    if rows.histograms is not None:
        histograms = rows.histograms
        origin = f"From a sample of {rows.sampled_parts:,} parts, because no unit record has counts of these scores."
    elif facts.unrecorded:
        origin = (
            f"From {facts.totals.units:,} of {facts.status.committed_units:,} committed units, those with a record."
        )
    note = make_text(origin) if origin else ""
    if not histograms.count("score"):
        page.add("Scores", make_text("no scores yet"))
        return

    def draw(name: str) -> str:
        def find(number: float) -> float:
            edge = compute_edge(name, number)
            return edge if name in ("score", "logit") else round(edge)

        return make_histogram({name: histograms.to_shares(name)}, compute_edge=find)

    page.add("Scores", note, draw("score"), _show_quantiles(histograms))
    page.add("Logits", make_text("Log-odds; they do not saturate where scores do."), draw("logit"))
    page.add("Prompt tokens", make_text("The axis doubles from step to step."), draw("token"))
    if histograms.count("truncation"):
        share = _format_share(histograms.count("truncation"), histograms.count("score"))
        words = f"{share} pairs lost tokens of the document to fit --max-length; this many each:"
        page.add("Truncated tokens", make_text(words), draw("truncation"))
    else:
        page.add("Truncated tokens", make_text("No document was cut."))


def _show_quantiles(histograms: ScoreHistograms) -> str:
    names = {"score": "score", "logit": "logit", "token": "prompt tokens"}
    columns = [histograms.compute_quantiles(name, list(QUANTILES.values())) for name in names]
    rows: list[list[object]] = []
    for index, label in enumerate(QUANTILES):
        score, logit, tokens = ([] if column is None else column for column in columns)
        rows.append([label, f"{score[index]:.3f}", f"{logit[index]:.2f}", f"{tokens[index]:,.0f}"])
    means = [histograms.estimate_mean(name) or 0.0 for name in names]
    rows.append(["mean", f"{means[0]:.3f}", f"{means[1]:.2f}", f"{means[2]:,.0f}"])
    words = (
        "Below which the share of the pairs lies, to within a bin: 0.02 of a score, 0.25 of a logit, 9 % of the tokens."
    )
    return make_text(words) + make_table(["share", *names.values()], rows)


def _add_errors(page: Page, facts: Facts, rows: Rows) -> None:
    totals = facts.totals
    blocks = []
    if totals.errors:
        most = totals.errors.most_common(SHOWN_REASONS)
        blocks.append(make_text(f"{len(totals.errors):,} reasons; rows count from 0 in their shard."))
        blocks.append(
            make_table(
                ["reason", "pairs", "share", "for example"],
                [
                    [
                        reason,
                        count,
                        _format_percent(count, totals.pairs),
                        "; ".join(map(_name_row, rows.errors.get(reason, []))) or "-",
                    ]
                    for reason, count in most
                ],
            )
        )
    else:
        blocks.append(make_text("Every pair of the committed units has a score."))
    page.add("Errors", *blocks)
    if facts.status.failed:
        page.add(
            "Failed units",
            make_text("These have no part; the same command tries them again, --retry-failed just them."),
            make_table(
                ["unit", "rows", "attempts", "reason"],
                [
                    [
                        str(unit["unit"]),
                        f"{unit['row_start']:,} to {unit['row_start'] + unit['num_rows']:,} of {unit['shard']}",
                        int(unit["attempts"]),
                        str(unit["error"]),
                    ]
                    for unit in facts.status.failed[:SHOWN_FAILURES]
                ],
            ),
        )


def _format_percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "-"


def _name_row(row: Mapping[str, Any]) -> str:
    shard = str(row["shard"]).rpartition("/")[2]
    document = f", document {row['place']:,}" if row["place"] else ""
    ids = [f"{name} {value}" for name, value in row.items() if name not in _ROW_KEYS and value]
    return f"{shard} row {row['row']:,}{document}" + (f" ({', '.join(ids)})" if ids else "")


_ROW_KEYS = frozenset({"shard", "row", "place", "unit", "score", "logit", "num_tokens"})


def _show_scored(rows: Rows) -> str:
    header = ["score", "logit", "tokens", "row", *rows.columns]
    lines = []
    for row in rows.scored:
        shard = str(row["shard"]).rpartition("/")[2]
        document = f" ({row['place']:,})" if row["place"] else ""
        ids = [str(row.get(name, "")) for name in rows.columns]
        lines.append(
            [f"{row['score']:.4f}", f"{row['logit']:.3f}", row["num_tokens"], f"{shard} {row['row']:,}{document}", *ids]
        )
    return make_text("From a few parts; rows count from 0 in their shard.") + make_table(header, lines)


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


def _list_settings(facts: Facts) -> list[list[str]]:
    manifest = facts.manifest
    model, job = manifest.get("model") or {}, manifest.get("job") or {}
    engines = manifest.get("engines") or []
    kinds = sorted({f"{engine.get('engine')} {engine.get('version')} {engine.get('dtype')}" for engine in engines})
    starts = sorted(float(engine["start_seconds"]) for engine in engines if engine.get("start_seconds") is not None)
    differences = [float(engine["max_difference"]) for engine in engines if engine.get("max_difference") is not None]
    price = facts.price
    settings = {
        "output": facts.output.uri,
        "input": ", ".join(map(str, job.get("input") or [])),
        "model": " ".join(str(model[name]) for name in ("name", "revision") if model.get(name)),
        "instruction": str(job.get("instruction_column") or job.get("instruction") or ""),
        "engine": ", ".join(kinds) or str(job.get("engine") or ""),
        "engine start": f"{format_seconds(starts[len(starts) // 2])} (median of {len(starts):,})" if starts else "",
        "largest difference from the reference": f"{max(differences):.3g} of a logit"
        if differences
        else "not compared",
        "longest prompt": f"{job['max_length']:,} tokens" if job.get("max_length") else "",
        "least batch after memory ran out": (
            f"{manifest['least_batch_tokens']:,} tokens" if manifest.get("least_batch_tokens") else ""
        ),
        "shards and units": f"{facts.status.shards:,} and {facts.status.units:,}",
        "manifest": facts.status.manifest_problem or "",
        "units without a record": f"{facts.unrecorded:,}" if facts.unrecorded else "",
        "price of a GPU hour": f"{format_dollars(price.dollars)} ({price.origin})"
        if price
        else "not told (--gpu-type, --gpu-price)",
        "fingerprint": str(manifest.get("fingerprint") or ""),
        "versions": ", ".join(f"{name} {version}" for name, version in (manifest.get("versions") or {}).items()),
    }
    return [[name, value] for name, value in settings.items() if value]


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) if seconds else "-"
