"""A run of the whole job with the fake engine, and the rate that it reaches.

Takes a folder with an input, gives figures of the steady part. Knows nothing of what is measured around it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STEADY_FROM = 0.25


def run_fake_job(folder: Path, model: Path, engine_args: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Score `folder/input` into `folder/output`.

    Args:
        folder: of the input and the output.
        model: folder.
        engine_args: of the fake engine.
        settings: of the job.

    Returns:
        `pairs_per_second` and `busy_share` after the first quarter; nothing for a run too short to have them.
    """
    from rerank_actor.job import ScoreJob
    from rerank_actor.scoring.run import run_job

    job = ScoreJob(
        input=[str(folder / "input")],
        output=str(folder / "output"),
        engine="fake",
        model=str(model),
        max_length=4096,
        engine_args=engine_args,
        **settings,
    ).normalized()
    result = run_job(job)
    if result.status != "complete":
        raise RuntimeError(f"the job is {result.status}")
    steady = find_steady((folder / "output/_job/runs").glob("*"))
    if steady is None:
        return {}
    busy = steady.engine_seconds / steady.seconds / max(1, result.run["actors"])
    return {"pairs_per_second": round(steady.pairs / steady.seconds, 1), "busy_share": round(busy, 4)}


@dataclass(frozen=True)
class Steady:
    """What was done in the steady part of a run."""

    pairs: int
    engine_seconds: float
    seconds: float


def find_steady(records: Iterable[Path]) -> Steady | None:
    """Return the rates after the first quarter of the pairs, by the records of units; None for a run too short."""
    columns = ["pairs", "finished_at", "seconds"]
    table = pa.concat_tables([pq.read_table(path, columns=columns) for path in records]).sort_by("finished_at")
    pairs, finished, seconds = (table[name].to_numpy() for name in columns)
    first = int(np.searchsorted(np.cumsum(pairs), STEADY_FROM * pairs.sum()))
    if first + 1 >= len(pairs):
        return None
    later = slice(first + 1, None)
    return Steady(int(pairs[later].sum()), float(seconds[later].sum()), float(finished[-1] - finished[first]))
