"""Comparison: two scoring jobs side by side, such as a model before and after its training.

Takes the facts of both, gives blocks of a page. Pairs are not matched; the distributions say how the scores moved.
"""

from collections.abc import Callable

from rerank_actor.outputs.histograms import compute_edge
from rerank_actor.outputs.price import format_dollars
from rerank_actor.outputs.report.facts import Facts
from rerank_actor.outputs.report.html import format_number, make_histogram, make_table, make_text
from rerank_actor.progress import format_seconds


def compare_jobs(facts: Facts, earlier: Facts) -> list[str]:
    """Return figures of a job beside those of an earlier one, and how the scores of both are distributed."""
    rows = []
    for name, (find, write) in FIGURES.items():
        now, before = find(facts), find(earlier)
        ratio = f"{now / before:.2f} x" if now is not None and before else "-"
        rows.append([name, *("-" if value is None else write(value) for value in (before, now)), ratio])
    names = {"earlier": earlier, "this": facts}
    scores = {name: one.histograms.to_shares("score") for name, one in names.items()}
    logits = {name: one.histograms.to_shares("logit") for name, one in names.items()}
    return [
        make_text(f"Earlier: {earlier.output.uri} ({_name_model(earlier)}); this: {_name_model(facts)}."),
        make_table(["", "earlier", "this", "ratio"], rows),
        make_text("Scores of both."),
        make_histogram(scores, compute_edge=lambda number: compute_edge("score", number)),
        make_text("Logits of both."),
        make_histogram(logits, compute_edge=lambda number: compute_edge("logit", number)),
    ]


def _name_model(facts: Facts) -> str:
    return str((facts.manifest.get("model") or {}).get("name") or "model not known")


def _find_speed(facts: Facts) -> float | None:
    speeds = [float(run["pairs_per_second"]) for run in facts.runs if run.get("pairs_per_second")]
    return speeds[-1] if speeds else None


def _find_median(name: str) -> Callable[[Facts], float | None]:
    def find(facts: Facts) -> float | None:
        found = facts.histograms.compute_quantiles(name, [0.5])
        return found[0] if found else None

    return find


FIGURES: dict[str, tuple[Callable[[Facts], float | None], Callable[[float], str]]] = {
    "pairs": (lambda facts: float(facts.totals.pairs), format_number),
    "pairs with an error": (lambda facts: float(facts.totals.failed_pairs), format_number),
    "pairs truncated": (lambda facts: float(facts.totals.truncated), format_number),
    "prompt tokens": (lambda facts: float(facts.totals.tokens), format_number),
    "mean score": (lambda facts: facts.histograms.estimate_mean("score"), "{:.4f}".format),
    "median score": (_find_median("score"), "{:.4f}".format),
    "median logit": (_find_median("logit"), "{:.3f}".format),
    "pairs a second of the last run": (_find_speed, format_number),
    "time of all runs": (lambda facts: sum(float(run.get("seconds") or 0) for run in facts.runs), format_seconds),
    "GPU hours": (lambda facts: facts.gpu_hours, format_number),
    "cost": (lambda facts: facts.cost, format_dollars),
}
