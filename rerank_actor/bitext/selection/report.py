"""The report: what was selected of each language pair, as one page for people and as tables for a terminal.

Takes the numbers of `result.json` files. The page needs no network and no script; of each pair it shows what every rule
removed, how scores are distributed before and after, and how each kind of score does on known pairs. Knows nothing of
files.
"""

import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from rerank_actor.bitext.selection.tally import BIN_WIDTHS
from rerank_actor.outputs.report.html import (
    Page,
    format_number,
    make_curves,
    make_figures,
    make_funnel,
    make_histogram,
    make_table,
    make_text,
)
from rerank_actor.progress import PlainConsole

OVERVIEW = ("lang pair", "candidates", "scored", "kept", "share", "mean score", "space", "estimated precision")
CURVE_NAMES = ("precision", "recall", "f1")
SHOWN_PAIRS = 200


def list_overview(results: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Return a row for each language pair."""
    rows = []
    for result in results:
        counts = result["counts"]
        total, kept = counts.get("rows", 0), counts.get("kept", 0)
        unscored = sum(step["removed"] for step in result["funnel"] if step["step"] == "without a score")
        mean = result["mean_score"]["kept"]
        rows.append(
            [
                result["lang_pair"],
                total,
                total - unscored,
                kept,
                f"{kept / total:.1%}" if total else "-",
                "-" if mean is None else f"{mean:.4g}",
                result["space"],
                format_share(result["estimated_precision"]),
            ]
        )
    return rows


def format_share(share: dict[str, Any] | None) -> str:
    """Return an estimated share in words."""
    if share is None:
        return "-"
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%}, {share['known']:,} known pairs)"


def list_calibration(result: dict[str, Any]) -> list[list[Any]]:
    """Return a row for each kind of score and threshold; the best of a kind is marked."""
    rows = []
    for kind, curve in result["calibration"].items():
        for point in curve["table"]:
            best = "best" if point["threshold"] == curve["best"]["threshold"] else ""
            measures = [f"{point[name]:.4f}" for name in CURVE_NAMES]
            rows.append([kind, f"{point['threshold']:.6g}", *measures, point["kept"], best])
    return rows


CALIBRATION = ("score", "threshold", "precision", "recall", "F1", "known pairs kept", "")


def print_table(title: str, header: Sequence[str], rows: list[list[Any]]) -> None:
    """Print a table for a person."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    PlainConsole(width=None if sys.stdout.isatty() else 140).print(table)


def render_report(results: Sequence[dict[str, Any]], deliver: str, title: str = "Selected translation pairs") -> str:
    """Return the page over all language pairs."""
    page = Page(title, about=f"{len(results):,} language pairs in {deliver}")
    kept = sum(result["counts"].get("kept", 0) for result in results)
    rows = sum(result["counts"].get("rows", 0) for result in results)
    figures = {"language pairs": f"{len(results):,}", "candidates": f"{rows:,}", "kept": f"{kept:,}"}
    page.add("In short", make_figures(figures), make_table(OVERVIEW, list_overview(results)))
    page.add("Language pairs")
    for result in results[:SHOWN_PAIRS]:
        _add_pair(page, result)
    if len(results) > SHOWN_PAIRS:
        page.add("More", make_text(f"{len(results) - SHOWN_PAIRS:,} more language pairs stand in report.json."))
    return page.render()


def rank_kinds(result: dict[str, Any]) -> str:
    """Return in words which kind of score tells known pairs apart best."""
    best = {kind: curve["best"] for kind, curve in result["calibration"].items()}
    ranked = sorted(best, key=lambda kind: -best[kind]["f1"])
    shown = ", ".join(
        f"{kind} {best[kind]['f1']:.4f} (from {format_number(best[kind]['threshold'])})" for kind in ranked
    )
    return f"Best F1 on known pairs, by the score that a rule looks at: {shown}."


def _add_pair(page: Page, result: dict[str, Any]) -> None:
    note = f"{result['counts'].get('kept', 0):,} of {result['counts'].get('rows', 0):,} candidates kept"
    if result["estimated_precision"] is not None:
        note += f", estimated precision {result['estimated_precision']['value']:.1%}"
    steps = [(step["step"], step["removed"], step["left"]) for step in result["funnel"]]
    width = BIN_WIDTHS[result["space"]]
    bins = {name: {int(number): count for number, count in counts.items()} for name, counts in result["bins"].items()}
    blocks = [
        make_text("What each rule left, in order, and how many it removed; what the last leaves is kept."),
        make_funnel("candidates", result["counts"].get("rows", 0), steps),
    ]
    if result["unscored_reasons"]:
        blocks.append(make_table(["why without a score", "candidates"], list(result["unscored_reasons"].items())))
    blocks += [make_text(f"Combined scores ({result['space']})."), make_histogram(bins, width)]
    for kind, curve in result["calibration"].items():
        best = curve["best"]
        words = (
            f"{kind}: best F1 {best['f1']:.4f} at {format_number(best['threshold'])} (precision {best['precision']:.4f}, "
            f"recall {best['recall']:.4f})"
        )
        thresholds = [point["threshold"] for point in curve["curve"]]
        series = {name: [point[name] for point in curve["curve"]] for name in CURVE_NAMES}
        blocks += [make_text(words), make_curves(thresholds, series, mark=best["threshold"])]
    if result["calibration"]:
        blocks.insert(0, make_text(rank_kinds(result)))
        blocks.append(make_table(CALIBRATION, list_calibration(result)))
        blocks.append(make_text(f"Estimated precision of what is kept: {format_share(result['estimated_precision'])}."))
        blocks.append(make_text(f"Known right pairs that are kept: {format_share(result['estimated_recall'])}."))
    if lowest := result.get("lowest"):
        blocks.append(make_text("The lowest pairs that are kept, the first to go were the rules stricter."))
        rows = [[f"{score:.4f}", source, target] for score, source, target in lowest]
        blocks.append(make_table(["score", "source", "target"], rows))
    blocks.append(make_table(["rule", "definition"], list(result["rules"].items())))
    page.fold(result["lang_pair"], note, *blocks)
