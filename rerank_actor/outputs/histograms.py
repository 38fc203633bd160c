"""Histograms: how scores, logits, tokens and truncations of a unit are distributed, in a few hundred counts.

Takes the added columns of a part, gives counts by bin that can be added up over any number of units, and quantiles of
them. Scores and logits have bins of one width; tokens have eight bins to each doubling, so that a quantile is at most a
tenth off. Knows nothing of units, files or reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa

SCORE_WIDTH, SCORE_BINS = 0.02, 50
LOGIT_WIDTH, LOGIT_BINS, LOGIT_FLOOR = 0.25, 256, -32.0
BINS_PER_DOUBLING, TOKEN_BINS = 8, 160  # up to a million tokens
NAMES = ("score", "logit", "token", "truncation")
SIZES = {"score": SCORE_BINS, "logit": LOGIT_BINS, "token": TOKEN_BINS, "truncation": TOKEN_BINS}


def bin_tokens(tokens: np.ndarray) -> np.ndarray:
    """Return the bin of each number of tokens, all from 1: bin n begins at 2 to the power of n / 8."""
    return np.floor(np.log2(tokens.astype(np.float64)) * BINS_PER_DOUBLING + 1e-9)


def compute_edge(name: str, number: float) -> float:
    """Return the value at which a bin begins; `place` may lie between bins."""
    if name == "score":
        return number * SCORE_WIDTH
    if name == "logit":
        return LOGIT_FLOOR + number * LOGIT_WIDTH
    return float(2 ** (number / BINS_PER_DOUBLING))


def _count(bins: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(np.clip(bins, 0, size - 1).astype(np.int64), minlength=size).astype(np.int64)


@dataclass
class ScoreHistograms:
    """Counts by bin: int64 arrays of `SIZES`. Values beyond the first and last bin are counted in these."""

    bins: dict[str, np.ndarray] = field(
        default_factory=lambda: {name: np.zeros(size, np.int64) for name, size in SIZES.items()}
    )

    @classmethod
    def of_columns(cls, columns: Mapping[str, pa.Array]) -> Self:
        """Return the histograms of `score`, `logit`, `num_tokens` and `truncated_tokens`, a value a pair."""

        def values(name: str) -> np.ndarray:
            return np.asarray(columns[name].drop_null().to_numpy(zero_copy_only=False))

        tokens, cut = values("num_tokens"), values("truncated_tokens")
        bins = {
            "score": np.floor(values("score").astype(np.float64) / SCORE_WIDTH + 1e-9),
            "logit": np.floor((values("logit").astype(np.float64) - LOGIT_FLOOR) / LOGIT_WIDTH),
            "token": bin_tokens(tokens[tokens > 0]),
            "truncation": bin_tokens(cut[cut > 0]),
        }
        return cls({name: _count(numbers, SIZES[name]) for name, numbers in bins.items()})

    def to_record(self) -> dict[str, list[int]]:
        """Return the counts as lists without the zeros at their ends, under the names of the unit records."""
        return {f"{name}_bins": np.trim_zeros(counts, "b").tolist() for name, counts in self.bins.items()}

    def add_lists(self, name: str, column: pa.Array) -> None:
        """Add the lists of a column of unit records; a null has nothing to add."""
        column = column.drop_null()
        offsets = np.asarray(column.offsets)
        values = np.asarray(column.values)[offsets[0] : offsets[-1]] if len(offsets) else np.zeros(0, np.int64)
        lengths = np.diff(offsets)
        positions = np.arange(len(values)) - np.repeat(offsets[:-1] - offsets[0], lengths)
        self.bins[name] += np.bincount(
            np.minimum(positions, SIZES[name] - 1), weights=values, minlength=SIZES[name]
        ).astype(np.int64)

    def add(self, other: "ScoreHistograms") -> None:
        """Add the counts of other pairs."""
        for name, counts in other.bins.items():
            self.bins[name] += counts

    def count(self, name: str) -> int:
        """Return how many values there are."""
        return int(self.bins[name].sum())

    def compute_quantiles(self, name: str, shares: Sequence[float]) -> list[float] | None:
        """Return the values below which these shares lie, within a bin's width; None where there is no value."""
        counts = self.bins[name]
        reached = np.cumsum(counts)
        if not reached[-1]:
            return None
        quantiles = []
        for share in shares:
            rank = share * reached[-1]
            number = int(np.searchsorted(reached, rank, side="left")) if rank > 0 else int(np.flatnonzero(counts)[0])
            before = reached[number] - counts[number]
            quantiles.append(compute_edge(name, number + float((rank - before) / counts[number])))
        return quantiles

    def estimate_mean(self, name: str) -> float | None:
        """Return the mean, as if each value lay in the middle of its bin."""
        counts = self.bins[name]
        total = counts.sum()
        middles = [compute_edge(name, number + 0.5) for number in range(len(counts))]
        return float(np.dot(counts, middles) / total) if total else None

    def to_shares(self, name: str) -> dict[int, int]:
        """Return the counts of the bins that have any, by number."""
        return {int(number): int(self.bins[name][number]) for number in np.flatnonzero(self.bins[name])}
