"""The evaluation as a Markdown table and as plain values. Takes an `Evaluation`; knows nothing of where it goes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rerank_actor.evaluation.evaluate import Evaluation


def to_record(result: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain values: each ranking's means and intervals, and its measures of each query."""
    measures = [measure.name for measure in result.measures]
    return {
        "measures": measures,
        "num_queries": len(result.queries),
        "rankings": [
            {
                "name": row.name,
                "means": _name(measures, row.means),
                "intervals": _name(measures, row.intervals),
                "differences_from_the_first": _name(measures, row.differences),
                "by_query": {
                    query: _name(measures, values)
                    for query, values in zip(result.queries, row.values.tolist(), strict=True)
                },
            }
            for row in result.rows
        ],
        "left_out": {uri: dict(counts) for uri, counts in result.left_out.items()},
    }


def _name(measures: list[str], values: Sequence[Any]) -> dict[str, Any]:
    """Return values by measure, without those that are not there."""
    return {name: value for name, value in zip(measures, values, strict=False) if not np.isnan(value).any()}


def make_table(result: Evaluation) -> str:
    """Return an evaluation as a Markdown table: means with the middle 95 % of bootstrapped means, in hundredths."""
    measures = [measure.name for measure in result.measures]
    lines = [
        f"{len(result.queries):,} queries",
        "",
        "| ranking | " + " | ".join(measures) + " |",
        "|---|" + "---|" * len(measures),
    ]
    for row in result.rows:
        cells = [
            "-" if math.isnan(mean) else f"{100 * mean:.2f} ({100 * low:.1f} to {100 * high:.1f})"
            for mean, (low, high) in zip(row.means, row.intervals, strict=True)
        ]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    if len(result.rows) > 1:
        lines += ["", f"Differences from {result.rows[0].name}, query by query:", ""]
        for row in result.rows[1:]:
            differences = [
                f"{name} {100 * (mean - first):+.2f} ({100 * low:+.1f} to {100 * high:+.1f})"
                for name, mean, first, (low, high) in zip(
                    measures, row.means, result.rows[0].means, row.differences, strict=True
                )
                if not math.isnan(mean)
            ]
            lines.append(f"- {row.name}: {', '.join(differences)}")
    notes = [
        f"- {uri}: {count:,} {reason}"
        for uri, counts in result.left_out.items()
        for reason, count in counts.items()
        if count
    ]
    return "\n".join([*lines, *(["", "Not counted, or counted with 0:", "", *notes] if notes else [])]) + "\n"
