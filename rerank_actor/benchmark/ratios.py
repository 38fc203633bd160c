"""Ratios of a benchmark: what may be compared between machines, stored in the repository, and what of it moved.

Absolute times are of a machine and an hour; how the job stands to its engine and to other tools is not. Takes results of
`suite.run_suite` and `scale.measure_scale`, gives flat mappings of names to numbers.
"""

from typing import Any

MOVED = 0.1  # less than this share is the machine's noise


def extract_ratios(result: dict[str, Any]) -> dict[str, float]:
    """Return the ratios and shares of a result by name."""
    ratios: dict[str, float] = {}
    for entry in result.get("measured", []):
        prefix = f"{entry['shape']}/{entry['workload']}"
        for figure, others in entry.get("job_by_others", {}).items():
            ratios |= {f"{prefix}/{figure}/job by {name}": value for name, value in others.items()}
        for contender in ("job", "engine"):
            for figure in ("cached_share", "busy_share"):
                value = entry["medians"].get(contender, {}).get(figure)
                if value is not None:
                    ratios[f"{prefix}/{figure}/{contender}"] = value
    scale = result.get("scale", {})
    actors = {row["actors"]: row["pairs_per_second"] for row in scale.get("actors", [])}
    if 1 in actors:
        for size in [size for size in actors if size > 1]:
            ratios[f"scale/{size} actors by {size} times one"] = actors[size] / size / actors[1]
    memory = {row["rows"]: row for row in scale.get("memory", [])}
    if len(memory) > 1:
        least, most = min(memory), max(memory)
        for figure in ("driver_mib", "largest_worker_mib"):
            ratios[f"scale/{figure} at {most // least} times the rows"] = memory[most][figure] / memory[least][figure]
    ratios |= {f"scale/busy share in units of {row['unit_rows']}": row["busy_share"] for row in scale.get("busy", [])}
    return {name: round(value, 4) for name, value in ratios.items()}


def compare_ratios(measured: dict[str, float], stored: dict[str, float]) -> list[str]:
    """Return a line for each ratio that moved, came or went."""
    lines = []
    for name in sorted({*measured, *stored}):
        if name not in stored:
            lines.append(f"new: {name} is {measured[name]:.4g}")
        elif name not in measured:
            lines.append(f"not measured: {name} was {stored[name]:.4g}")
        elif abs(measured[name] - stored[name]) > MOVED * abs(stored[name]):
            change = measured[name] / stored[name] - 1 if stored[name] else float("inf")
            lines.append(f"moved: {name} is {measured[name]:.4g}, was {stored[name]:.4g} ({change:+.0%})")
    return lines
