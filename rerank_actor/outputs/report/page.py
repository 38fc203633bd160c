"""The page of a report: what its facts and rows look like to a person, as one HTML file.

Takes `Facts`, `Rows` and `Quality`, gives the text of a page. Knows nothing of storage.
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rerank_actor import storage
from rerank_actor.outputs.histograms import ScoreHistograms, compute_edge
from rerank_actor.outputs.price import format_dollars
from rerank_actor.outputs.report.cascade import Cascade
from rerank_actor.outputs.report.comparison import compare_jobs
from rerank_actor.outputs.report.facts import Facts
from rerank_actor.outputs.report.html import Page, make_code, make_figures, make_histogram, make_table, make_text
from rerank_actor.outputs.report.quality import DEPTH, Group, Quality
from rerank_actor.outputs.report.rows import ID_LENGTH, TEXT_ROLES, Rows, shorten
from rerank_actor.outputs.report.run_sections import add_runs, add_throughput
from rerank_actor.progress import format_seconds

SHOWN_REASONS = 20
SHOWN_FAILURES = 20
SHOWN_SHARDS = 30
PASSED = ["passed through"]
QUANTILES = {"1 %": 0.01, "10 %": 0.1, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "90 %": 0.9, "99 %": 0.99}
STATE_WORDS = {
    "complete": "complete",
    "running": "a run is at work",
    "failed": "ended with failed units",
    "stopped": "stopped before it was done",
}


def render_report(facts: Facts, rows: Rows, quality: Quality, earlier: Facts | None = None) -> str:
    """Return the page.

    Args:
        facts: of the job.
        rows: examples.
        quality: what labels and groups say.
        earlier: facts of another job to compare it with.
    """
    page = Page(f"Scores: {STATE_WORDS[facts.status.state]}", about=_describe(facts))
    page.add("In short", make_figures(_list_figures(facts)))
    if earlier is not None:
        page.add("Compared", *compare_jobs(facts, earlier))
    add_throughput(page, facts)
    _add_distributions(page, facts, rows)
    _add_quality(page, quality)
    if rows.scored:
        page.add("Rows with high, middling and low scores", _show_scored(rows))
    _add_errors(page, facts, rows)
    if len(facts.shards) > 1:
        page.add("By shard", *_show_shards(facts))
    add_runs(page, facts)
    page.add("What ran", make_table(["setting", "value"], _list_settings(facts)))
    _add_commands(page, facts)
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


_ROW_KEYS = frozenset({"shard", "row", "place", "unit", "score", "logit", "num_tokens", "part_row", "part_place"})


def _show_scored(rows: Rows) -> str:
    texts = [name for name in TEXT_ROLES if any(name in row for row in rows.scored)]
    header = ["score", "logit", *texts, "tokens", "row", *rows.columns]
    lines = []
    for row in rows.scored:
        shard = str(row["shard"]).rpartition("/")[2]
        document = f" ({row['place']:,})" if row["place"] else ""
        ids = [str(row.get(name, "")) for name in rows.columns]
        lines.append(
            [
                f"{row['score']:.4f}",
                f"{row['logit']:.3f}",
                *(str(row.get(name, "")) for name in texts),
                row["num_tokens"],
                f"{shard} {row['row']:,}{document}",
                *ids,
            ]
        )
    shown = " Texts are shortened; --examples 0 leaves them out." if texts else ""
    return make_text(f"From a few parts; rows count from 0 in their shard.{shown}") + make_table(header, lines)


def _add_quality(page: Page, quality: Quality) -> None:
    """Add what labels and groups say, where there are any."""
    origin = f"From {quality.pairs:,} pairs of {quality.sampled_parts:,} parts, evenly from first to last."
    if quality.label is not None and quality.labelled:
        _add_labels(page, quality, origin)
    if quality.cascade is not None and quality.cascade.queries:
        _add_cascade(page, quality.cascade, origin)
    if quality.remarks:
        page.add("Columns that were not read", *map(make_text, quality.remarks))
    for name, (groups, num_values) in quality.groups.items():
        more = f" {num_values - len(groups):,} more values have fewer pairs." if num_values > len(groups) else ""
        page.add(f"By {name}", make_text(origin + more), _tabulate(name, groups, has_label=quality.label is not None))


def _add_labels(page: Page, quality: Quality, origin: str) -> None:
    queries = f" of {quality.num_queries:,} queries" if quality.num_queries else ""
    figures = {
        "AUC": _format_measure(quality.auc),
        f"mean nDCG@{DEPTH}{queries}": _format_measure(quality.ndcg),
        "relevant": f"{quality.positives:,} of {quality.labelled:,}",
    }
    words = (
        f"Labels of column {quality.label}. {origin} AUC is the chance that a relevant pair is scored above another "
        "one; nDCG is of the queries that have relevant and other pairs, as far as these parts hold them."
    )
    page.add(
        "Scores by label",
        make_figures(figures),
        make_text(words),
        make_histogram(quality.bins, compute_edge=lambda number: compute_edge("logit", number)),
    )


def _add_cascade(page: Page, cascade: Cascade, origin: str) -> None:
    page.add(
        "What the cascade changed",
        make_figures(
            {
                "other documents among the ten best": f"{cascade.others:,} of {cascade.queries:,} queries",
                "the same ten in another order": f"{cascade.reordered:,} of {cascade.queries:,}",
                "pairs that both scored": f"{cascade.pairs:,}",
            }
        ),
        make_text(
            f"{origin} Queries count as far as these parts hold them. Before: the ten best by column {cascade.column}, by "
            "which --where chose. After: the pairs that were "
            "scored share out their places among themselves by the new scores, and all others keep theirs."
        ),
    )


def _tabulate(name: str, groups: Sequence[Group], *, has_label: bool) -> str:
    label = ["relevant", "AUC"] if has_label else []
    has_passed = any(group.passed for group in groups)
    table = [
        [
            shorten(group.name, ID_LENGTH),
            group.pairs,
            *([group.passed] if has_passed else []),
            group.pairs - group.scored - group.passed,
            _format_measure(group.mean),
            *([f"{value:.4f}" for value in group.quantiles] or ["-"] * 3),
            *([group.positives, _format_measure(group.auc)] if label else []),
        ]
        for group in groups
    ]
    header = [name, "pairs", *PASSED[:has_passed], "errors", "mean score", "10 %", "50 %", "90 %", *label]
    return make_table(header, table)


def _format_measure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _show_shards(facts: Facts) -> list[str]:
    """Return the shards whose mean score is farthest from that of all."""
    mean = facts.histograms.estimate_mean("score") or 0.0
    has_passed = bool(facts.totals.passed)
    ordered = sorted(facts.shards.items(), key=lambda item: -abs((item[1].mean_score or 0.0) - mean))
    table = [
        [
            uri.rpartition("/")[2],
            shard.rows,
            shard.pairs,
            *([shard.passed] if has_passed else []),
            shard.errors,
            _format_percent(shard.truncated, shard.scored),
            f"{shard.tokens / shard.scored:,.0f}" if shard.scored else "-",
            _format_measure(shard.mean_score),
        ]
        for uri, shard in ordered[:SHOWN_SHARDS]
    ]
    words = f"{len(ordered):,} shards; first those whose mean score is farthest from that of all, {mean:.4f}."
    header = ["shard", "rows", "pairs", *PASSED[:has_passed], "errors", "truncated", "tokens a pair", "mean score"]
    return [make_text(words), make_table(header, table)]


def _add_commands(page: Page, facts: Facts) -> None:
    """Add the job file and the command that runs it, to copy."""
    file = facts.output.at("job.yaml")
    job = (storage.read_if_present(file) or b"").decode(errors="replace")
    if not job:
        return
    page.add(
        "To run it again",
        make_text("The same job goes on, or scores what is new; with another --output it is scored afresh."),
        make_code(f"rerank score {shlex.quote(file) if not storage.is_remote(file) else 'job.yaml'}"),
        make_text(f"The job file, {file}:"),
        make_code("\n".join(line for line in job.splitlines() if not line.startswith("#")).strip()),
    )


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
