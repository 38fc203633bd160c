"""Confidence intervals of a mean over queries, by the bootstrap: queries are drawn anew with replacement.

Takes a value for each query, gives the bounds of the middle 95 % of the means. Rankings of the same queries are compared by
their differences, query by query, which is a narrower interval than two that are looked at side by side.
"""

import numpy as np

SHARE = 0.95
RESAMPLES = 2_000
DRAWN_AT_ONCE = 4_000_000


def compute_interval(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the bounds of the mean of some values.

    Args:
        values: [num_queries]; differences for a paired comparison.
        seed: of the draws.
        resamples: how often the queries are drawn.

    Returns:
        Lower and upper bound; the mean itself twice for a single query.
    """
    draw = np.random.default_rng(seed)
    step = max(1, DRAWN_AT_ONCE // max(1, len(values)))
    means = [
        values[draw.integers(0, len(values), (min(step, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)
