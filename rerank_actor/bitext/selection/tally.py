"""The tally: what a selection did, in numbers that can be added up over tasks and come back from their records.

Counts, what each step removed, sums for means, and the distribution of scores before and after. Knows nothing of files.
"""

from collections import Counter
from typing import Any

import numpy as np

from rerank_actor.bitext.selection.calibration import estimate_share
from rerank_actor.bitext.selection.rules import STEPS, SelectionRules

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

    def summarize(self, rules: SelectionRules) -> dict[str, Any]:
        """Return the counts, funnel and mean scores of a selection by some rules, as JSON values."""
        left, funnel = self.counts["rows"], []
        for step, words in STEPS.items():
            if removed := self.removed[step]:
                left -= removed
                label = f"{words} {rules.mode}" if step == "mode" else words
                funnel.append({"step": label, "removed": removed, "left": left})
        right, wrong = self.counts["kept_right"], self.counts["kept_wrong"]
        return {
            "counts": dict(sorted(self.counts.items())),
            "funnel": funnel,
            "mean_score": {
                name: self.sums[name] / self.counts[name] if self.counts[name] else None
                for name in ("candidates", "kept")
            },
            "space": rules.space,
            "bins": {
                name: {str(number): count for number, count in sorted(bins.items())} for name, bins in self.bins.items()
            },
            "estimated_precision": estimate_share(right, right + wrong),
            "estimated_recall": estimate_share(right, self.counts["known_right"]),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        bins = {name: {str(number): count for number, count in kind.items()} for name, kind in self.bins.items()}
        return {"counts": dict(self.counts), "removed": dict(self.removed), "bins": bins, "sums": self.sums}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SelectionTally":
        """Rebuild the tally that `to_dict` wrote."""
        tally = cls()
        tally.counts.update(values["counts"])
        tally.removed.update(values["removed"])
        for name, bins in values["bins"].items():
            tally.bins[name].update({int(number): count for number, count in bins.items()})
        tally.sums.update(values["sums"])
        return tally
