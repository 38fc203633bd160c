"""The tally: what a selection did, in numbers that can be added up over tasks and come back from their records.

Counts, what each step removed, sums for means, and the distribution of scores before and after. Knows nothing of files.
"""

from collections import Counter
from typing import Any

import numpy as np

BIN_WIDTHS = {"logit": 0.25, "probability": 0.01}
LEAST, MOST = -40.0, 40.0  # log-odds beyond stand in the outermost bins


class SelectionTally:
    """Numbers of one task, or of many together.

    Attributes:
        counts: by name.
        removed: by step.
        bins: by name, how many scores lie in each bin.
        sums: by name.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()
        self.bins: dict[str, Counter[int]] = {"candidates": Counter(), "kept": Counter()}
        self.sums: dict[str, float] = {}

    def add_scores(self, name: str, scores: np.ndarray, space: str) -> None:
        """Take in scores: `candidates` or `kept`."""
        numbers, counts = np.unique(
            np.floor(np.clip(scores, LEAST, MOST) / BIN_WIDTHS[space]).astype(np.int64), return_counts=True
        )
        self.bins[name].update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        self.sums[name] = self.sums.get(name, 0.0) + float(scores.sum())
        self.counts[name] += len(scores)

    def merge(self, other: "SelectionTally") -> None:
        """Take in another one."""
        self.counts.update(other.counts)
        self.removed.update(other.removed)
        for name, bins in other.bins.items():
            self.bins[name].update(bins)
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def find_mean(self, name: str) -> float | None:
        """Return the mean score of `candidates` or `kept`, None of none."""
        return self.sums[name] / self.counts[name] if self.counts[name] else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        bins = {name: {str(number): count for number, count in own.items()} for name, own in self.bins.items()}
        return {"counts": dict(self.counts), "removed": dict(self.removed), "bins": bins, "sums": self.sums}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SelectionTally":
        """Return what `to_dict` gave."""
        found = cls()
        found.counts.update(values["counts"])
        found.removed.update(values["removed"])
        for name, bins in values["bins"].items():
            found.bins[name].update({int(number): count for number, count in bins.items()})
        found.sums.update(values["sums"])
        return found
