"""Ratios of a benchmark: what may be compared between machines, stored in the repository, and what of it moved.

Absolute times are of a machine and an hour; how the job stands to its engine and to other tools is not. Takes results of
`suite.run_suite` and of `dev/bench_scale.py`, gives flat mappings of names to numbers.
"""

import json
from pathlib import Path
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


def report_moved(ratios: dict[str, float], path: Path) -> None:
    """Print which ratios moved from those stored in a file, of the kinds that were measured."""
    measured = {name.split("/")[0] for name in ratios}
    stored = {name: value for name, value in json.loads(path.read_text()).items() if name.split("/")[0] in measured}
    print("\n".join(compare_ratios(ratios, stored)) or "no ratio moved by a tenth or more")


def store_ratios(ratios: dict[str, float], path: Path) -> None:
    """Put ratios into those stored in a file."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(sorted((stored | ratios).items())), indent=1) + "\n")
