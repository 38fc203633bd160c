"""The timeline of a job: pairs a second and engines at work, from when its units were done, with what happened meanwhile.

Takes when each unit ended and how long an engine computed it, and the figures of runs. A unit's pairs are spread evenly over
that time, so that a rate is smooth however large units are. Knows nothing of HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STEPS = 96
SHORTEST_SECONDS = 1e-3  # of a unit whose scores were all copied
MARKS = 60


@dataclass(frozen=True)
class Mark:
    """Something that happened: when, of what kind (`start`, `resume`, `ready`, `fault`), and in words."""

    at: float
    kind: str
    words: str


@dataclass(frozen=True)
class Timeline:
    """What went on in steps of `step_seconds` from `first_at` on.

    Attributes:
        pairs_per_second: of each step.
        engines: that computed in each step, on average.
        actors: the most that a run had.
        marks: in the order of time.
    """

    first_at: float = 0.0
    step_seconds: float = 0.0
    pairs_per_second: list[float] = field(default_factory=list)
    engines: list[float] = field(default_factory=list)
    actors: int = 0
    marks: list[Mark] = field(default_factory=list)

    @property
    def last_at(self) -> float:
        """When it ends."""
        return self.first_at + self.step_seconds * len(self.pairs_per_second)


def draw_timeline(
    finished: np.ndarray, pairs: np.ndarray, seconds: np.ndarray, runs: Sequence[Mapping[str, Any]]
) -> Timeline:
    """Return the timeline of some units, empty where they are too few.

    Args:
        finished: float64 [num_units], when each was done, in seconds since 1970; 0 where nobody knows.
        pairs: [num_units].
        seconds: [num_units], that an engine computed.
        runs: of the manifest.
    """
    known = finished > 0
    if known.sum() < 2:
        return Timeline()
    ends, spans = finished[known], np.maximum(seconds[known], SHORTEST_SECONDS)
    starts = [float(run["started"]) for run in runs if run.get("started")]
    first = min(float((ends - spans).min()), max((at for at in starts if at <= ends.min()), default=np.inf))
    step = (float(ends.max()) - first) / STEPS
    if step <= 0:
        return Timeline()
    done, computed = np.zeros(STEPS + 1), np.zeros(STEPS + 1)
    for edge, at in enumerate(np.linspace(0, float((ends - first).max()), STEPS + 1)):
        share = np.clip((at - (ends - first)) / spans + 1, 0.0, 1.0)
        done[edge], computed[edge] = (share * pairs[known]).sum(), (share * spans).sum()
    actors = max((int(run.get("actors") or 0) for run in runs), default=0)
    return Timeline(
        first,
        step,
        (np.diff(done) / step).tolist(),
        (np.diff(computed) / step).tolist(),
        actors,
        [mark for mark in list_marks(runs) if first <= mark.at <= float(ends.max())][:MARKS],
    )


def list_marks(runs: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """Return what happened in some runs, in the order of time."""
    marks = []
    for number, run in enumerate(runs):
        if started := float(run.get("started") or 0):
            kind, words = ("resume", "went on: another run") if number else ("start", "the run began")
            marks.append(Mark(started, kind, words))
        if ready := float(run.get("ready_at") or 0):
            marks.append(Mark(ready, "ready", "the first engine was ready"))
        for at, fault, count in run.get("faults_at") or ():
            marks.append(Mark(float(at), "fault", f"{int(count):,} x {str(fault).replace('_', ' ')}"))
    return sorted(marks, key=lambda mark: mark.at)
