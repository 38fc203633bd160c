"""Values of a pair: two directions combined, margins over other candidates, and who is best, as arithmetic on arrays.

Log-odds are combined without passing through probabilities that have saturated. All sums run in the order of the pairs'
values, so that they are the same however pairs lie in files. Margins in distance form because a ratio of log-odds has no
meaning near zero; the ratio of Artetxe and Schwenk (arXiv 1811.01136) is for cosines. Knows nothing of texts or files.
"""

from typing import NamedTuple

import numpy as np

from rerank_actor.bitext.selection.rules import Combine, Space

SEVERAL = 64  # of so many best values the sums are kept one by one; beyond, all are summed at once


class Groups(NamedTuple):
    """Rows sorted by a key of two 64-bit words and further values.

    Attributes:
        order: int64 [num_rows], the rows in order.
        starts: int64 [num_groups], where each group begins in that order.
        sizes: int64 [num_groups].
    """

    order: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def sort_groups(high: np.ndarray, low: np.ndarray, *then: np.ndarray) -> Groups:
    """Sort rows by a key and, within it, by other values, the first of which counts most."""
    order = np.lexsort((*reversed(then), low, high))
    if not len(order):
        return Groups(order, np.zeros(0, np.int64), np.zeros(0, np.int64))
    first = np.ones(len(order), bool)
    sorted_high, sorted_low = high[order], low[order]
    first[1:] = (sorted_high[1:] != sorted_high[:-1]) | (sorted_low[1:] != sorted_low[:-1])
    starts = np.flatnonzero(first)
    return Groups(order, starts, np.diff(np.append(starts, len(order))))


def _log_sigmoid(logit: np.ndarray) -> np.ndarray:
    log_probability: np.ndarray = -np.logaddexp(0.0, -logit)
    return log_probability


def to_probability(logit: np.ndarray) -> np.ndarray:
    """Return probabilities of log-odds: float64."""
    probability: np.ndarray = np.exp(_log_sigmoid(np.asarray(logit, np.float64)))
    return probability


def to_space(logit: np.ndarray, space: Space) -> np.ndarray:
    """Return log-odds as the scores of a space: float64."""
    return to_probability(logit) if space == "probability" else np.asarray(logit, np.float64)


def combine(forward: np.ndarray, backward: np.ndarray, how: Combine, space: Space) -> np.ndarray:
    """Return the log-odds of the combined score: float64 [num_pairs]; `to_space` makes the score of them.

    A mean is taken in the space. The lower of two is the same in both spaces, and so is the product, which is one of
    probabilities: in logit space it is told as their product's log-odds.

    Args:
        forward: log-odds of source to target.
        backward: of target to source.
        how: mean, minimum or product.
        space: of the score.
    """
    forward, backward = np.asarray(forward, np.float64), np.asarray(backward, np.float64)
    combined: np.ndarray
    if how == "min":
        combined = np.minimum(forward, backward)
    elif how == "mean" and space == "logit":
        combined = (forward + backward) / 2
    elif how == "mean":
        right = np.logaddexp(_log_sigmoid(forward), _log_sigmoid(backward))
        combined = right - np.logaddexp(_log_sigmoid(-forward), _log_sigmoid(-backward))
    else:
        right = _log_sigmoid(forward) + _log_sigmoid(backward)
        combined = right - np.logaddexp(_log_sigmoid(-forward), _log_sigmoid(forward) + _log_sigmoid(-backward))
    return combined


def average_others(value: np.ndarray, groups: Groups, count: int) -> np.ndarray:
    """Return, for each row, the mean of the best values of its group without its own; NaN where it is alone.

    Args:
        value: float64 [num_rows].
        groups: of the rows, by falling value.
        count: how many others at most; 0 for all.
    """
    means = np.full(len(value), np.nan)
    if not len(value):
        return means
    ordered = value[groups.order]
    size = np.repeat(groups.sizes, groups.sizes)
    others = size - 1 if not count else np.minimum(count, size - 1)
    rank = np.arange(len(ordered)) - np.repeat(groups.starts, groups.sizes)
    if not count or count >= SEVERAL:
        taken = rank <= count if count else np.ones(len(rank), bool)
        total = np.add.reduceat(np.where(taken, ordered, 0.0), groups.starts)
    else:
        total = np.zeros(len(groups.starts))
        for index in range(count + 1):
            total += _take_at(ordered, groups, index)
    # The total is of one more than is wanted: a row among them leaves itself out, any other the last of them.
    last = np.repeat(_take_at(ordered, groups, count), groups.sizes)
    left_out = np.where(rank < count, ordered, last) if count else ordered
    with np.errstate(invalid="ignore", divide="ignore"):
        means[groups.order] = np.where(others > 0, (np.repeat(total, groups.sizes) - left_out) / others, np.nan)
    return means


def _take_at(ordered: np.ndarray, groups: Groups, index: int) -> np.ndarray:
    """Return the value at an index of each group: float64 [num_groups], 0 where the group is shorter."""
    is_long = groups.sizes > index
    values = np.zeros(len(groups.starts))
    values[is_long] = ordered[groups.starts[is_long] + index]
    return values


def average_best(value: np.ndarray, groups: Groups, count: int) -> np.ndarray:
    """Return, for each row, the mean of the best values of its group, its own among them if it is one of these.

    Args:
        value: float64 [num_rows], NaN for none.
        groups: of the rows, by falling value with NaN last.
        count: how many at most; 0 for all.
    """
    means = np.full(len(value), np.nan)
    if not len(value):
        return means
    ordered = value[groups.order]
    rank = np.arange(len(ordered)) - np.repeat(groups.starts, groups.sizes)
    taken = np.isfinite(ordered) & ((rank < count) if count else True)
    total = np.add.reduceat(np.where(taken, ordered, 0.0), groups.starts)
    number = np.add.reduceat(taken.astype(np.int64), groups.starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        means[groups.order] = np.repeat(total / number, groups.sizes)
    return means


def compute_margin(logit: np.ndarray, source_rest: np.ndarray, target_rest: np.ndarray) -> np.ndarray:
    """Return log-odds minus the mean of both sides' other candidates; of one side where the other has none; else NaN."""
    rest = np.where(np.isnan(source_rest), target_rest, source_rest)
    both = ~np.isnan(source_rest) & ~np.isnan(target_rest)
    margin: np.ndarray = logit - np.where(both, (source_rest + target_rest) / 2, rest)
    return margin


def compute_ratio(cosine: np.ndarray, source_near: np.ndarray, target_near: np.ndarray) -> np.ndarray:
    """Return the ratio margin; NaN where there is no cosine or the neighbours' mean is not above 0."""
    near = (source_near + target_near) / 2
    ratio: np.ndarray = np.where(near > 0, cosine / np.where(near > 0, near, 1.0), np.nan)
    return ratio


def mark_best(high: np.ndarray, low: np.ndarray, rank: np.ndarray, tie: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return which row is the best of its group: bool [num_rows]; ties go to the lower `tie`, then `position`."""
    groups = sort_groups(high, low, -rank, tie, position)
    is_best = np.zeros(len(rank), bool)
    is_best[groups.order[groups.starts]] = True
    return is_best


def match_greedily(source: np.ndarray, target: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return which pairs a one-to-one matching takes that goes through them in some order: bool [num_pairs].

    Args:
        source: int64 [num_pairs], numbers of the sources, from 0.
        target: the same of targets.
        order: int64 [num_pairs], the pairs, best first.
    """
    is_taken = np.zeros(len(source), bool)
    if not len(source):
        return is_taken
    free_source = bytearray(b"\x01") * (int(source.max()) + 1)
    free_target = bytearray(b"\x01") * (int(target.max()) + 1)
    taken = []
    for row, left, right in zip(order.tolist(), source[order].tolist(), target[order].tolist(), strict=True):
        if free_source[left] and free_target[right]:
            free_source[left] = free_target[right] = 0
            taken.append(row)
    is_taken[taken] = True
    return is_taken
