"""Calibration: precision, recall and F1 of each kind of score over its thresholds, from pairs of which the truth is known.

Takes values and labels, gives curves, the threshold of the best F1 (half way to the next lower value; of equals the
highest, for precision), and shares with Wilson's 95 % interval. Knows nothing of texts or files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

SCORES = ("forward", "backward", "combined", "margin", "ratio margin")
TABLE_ROWS = 10
CURVE_POINTS = 120
Z = 1.959964


@dataclass(frozen=True)
class LabelledScores:
    """Scores of known pairs.

    Attributes:
        labels: [num_known], 1 right and 0 wrong.
        values: float64 [num_known] of each kind of score.
    """

    labels: np.ndarray
    values: dict[str, np.ndarray]

    @classmethod
    def join(cls, pieces: Sequence[Mapping[str, Sequence[float]]]) -> Self:
        """Return the scores of several tasks, with `labels` among them; a margin without rivals is above every threshold."""
        columns = {
            name: np.array([value for piece in pieces for value in piece[name]], float) for name in (pieces or [{}])[0]
        }
        values = {
            name: np.where(np.isnan(column), np.inf if name == "margin" else -np.inf, column)
            for name, column in columns.items()
            if name != "labels" and (name == "margin" or not np.isnan(column).all())
        }
        return cls(columns.get("labels", np.zeros(0)), values)

    @property
    def num_right(self) -> int:
        """Known right pairs."""
        return int((self.labels == 1).sum())

    @property
    def num_wrong(self) -> int:
        """Known wrong pairs."""
        return int((self.labels == 0).sum())

    def estimate(self, least: Mapping[str, float | None]) -> dict[str, Any]:
        """Return, by kind of score, what thresholds give on these pairs: estimated precision and recall, as JSON values."""
        passes = np.ones(len(self.labels), bool)
        for name, threshold in least.items():
            if threshold is not None and name in self.values:
                passes &= self.values[name] >= threshold
        right = int((passes & (self.labels == 1)).sum())
        return {
            "estimated_precision": estimate_share(right, int(passes.sum())),
            "estimated_recall": estimate_share(right, self.num_right),
        }


@dataclass(frozen=True)
class Curve:
    """A kind of score over its thresholds.

    Attributes:
        thresholds: float64, falling; a pair is kept from there on.
        precision, recall, f1, kept: at each threshold.
        best: number of the best one.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    kept: np.ndarray
    best: int

    @property
    def best_f1(self) -> float:
        """F1 at the best threshold."""
        return float(self.f1[self.best])

    def at(self, index: int) -> dict[str, Any]:
        """Return a threshold and what it gives, as JSON values."""
        return {
            "threshold": float(self.thresholds[index]),
            "precision": float(self.precision[index]),
            "recall": float(self.recall[index]),
            "f1": float(self.f1[index]),
            "kept": int(self.kept[index]),
        }

    def summarize(self) -> dict[str, Any]:
        """Return the best threshold, a table of those that first reach each tenth of recall, and points of the curve."""
        last = len(self.thresholds) - 1
        reached = np.searchsorted(self.recall, np.linspace(0, 1, TABLE_ROWS + 1)[1:] - 1e-12)
        rows = sorted({*np.minimum(reached, last).tolist(), self.best})
        points = sorted({*np.linspace(0, last, min(CURVE_POINTS, last + 1)).astype(int).tolist(), self.best})
        return {
            "best": self.at(self.best),
            "table": [self.at(index) for index in rows],
            "curve": [self.at(index) for index in points],
        }


def trace_curve(values: np.ndarray, labels: np.ndarray) -> Curve | None:
    """Return precision, recall and F1 over the thresholds that lie between the values; None without values of both labels.

    Args:
        values: float64 [num_known]; infinite for what no threshold drops or keeps.
        labels: [num_known], 1 right and 0 wrong.
    """
    if not len(values) or labels.min() == labels.max() or not np.isfinite(values).any():
        return None
    order = np.argsort(-values, kind="stable")
    ordered, right = values[order], labels[order].astype(np.int64)
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    hits = np.cumsum(right)[ends]
    kept = ends + 1
    precision, recall = hits / kept, hits / right.sum()
    f1 = 2 * hits / (kept + right.sum())
    thresholds = _compute_thresholds(ordered[ends])
    finite = np.isfinite(thresholds)
    precision, recall, f1, kept = precision[finite], recall[finite], f1[finite], kept[finite]
    return Curve(thresholds[finite], precision, recall, f1, kept, int(np.argmax(f1)))


def _compute_thresholds(distinct: np.ndarray) -> np.ndarray:
    """Return, for each of some falling values, a threshold that keeps it and not the next; the value where it is the last."""
    thresholds = distinct.copy()
    upper, lower = distinct[:-1], distinct[1:]
    with np.errstate(invalid="ignore", over="ignore"):
        middle = lower + (upper - lower) / 2
    middle = np.where(np.isposinf(upper) & np.isfinite(lower), np.nextafter(lower, np.inf), middle)
    middle = np.where(np.isneginf(lower), upper, middle)
    thresholds[:-1] = np.where(middle > lower, middle, upper)
    return thresholds


def estimate_share(right: int, total: int) -> dict[str, Any] | None:
    """Return a share with Wilson's 95 % interval, None of nothing."""
    if not total:
        return None
    share, square = right / total, Z * Z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = Z * math.sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    return {"value": share, "low": max(0.0, centre - half), "high": min(1.0, centre + half), "known": total}


def calibrate(scores: LabelledScores) -> dict[str, Curve]:
    """Return the curve of each kind of score that tells something."""
    curves = {name: trace_curve(scores.values[name], scores.labels) for name in SCORES if name in scores.values}
    return {name: curve for name, curve in curves.items() if curve is not None}
