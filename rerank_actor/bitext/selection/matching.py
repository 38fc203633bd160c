"""The modes: which of the pairs that pass are kept, bucket by bucket.

One-to-one matching in falling order is, in rounds, to take every pair that is the best left of both its sides; a round goes
through the buckets of sources, then through those of targets. Knows nothing of thresholds or files.
"""

from dataclasses import replace

import numpy as np

from rerank_actor.bitext.selection.hashed_pairs import HashedPairs
from rerank_actor.bitext.selection.margins import mark_best, match_greedily, sort_groups
from rerank_actor.bitext.selection.step_task import StepResult, StepSpec, StepTask
from rerank_actor.storage.exchange import assign_buckets

TARGET_BEST, TAKEN = 1, 2


def mark_best_of_targets(pairs: HashedPairs) -> HashedPairs:
    """Return the pairs with a mark on the best of each target."""
    best = mark_best(pairs.t0, pairs.t1, pairs.rank, pairs.tie, pairs.position)
    return replace(pairs, mark=np.where(best, TARGET_BEST, 0).astype(np.int8))


def choose_pairs(task: StepTask, spec: StepSpec) -> StepResult:
    """Keep the best of each source, of both sides for the intersection."""
    result, pairs = StepResult(), task.read_pairs()
    if pairs is not None:
        best = mark_best(pairs.s0, pairs.s1, pairs.rank, pairs.tie, pairs.position)
        if spec.rules.mode == "intersection":
            best &= pairs.mark == TARGET_BEST
        result.tally.removed["mode"] = int((~best).sum())
        result.deliver(pairs.select(best), spec)
    return result


def match_pairs(task: StepTask, spec: StepSpec) -> StepResult:
    """Match one to one all pairs that are left, in one task."""
    result, pairs = StepResult(), task.read_pairs()
    if pairs is not None:
        order = np.lexsort((pairs.position, pairs.tie, -pairs.rank))
        taken = match_greedily(_number(pairs.s0, pairs.s1), _number(pairs.t0, pairs.t1), order)
        result.tally.removed["mode"] = int((~taken).sum())
        result.deliver(pairs.select(taken), spec)
    return result


def _number(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return the number of each text: int64 [num_pairs], from 0."""
    groups = sort_groups(high, low)
    numbers = np.empty(len(high), np.int64)
    numbers[groups.order] = np.repeat(np.arange(len(groups.starts)), groups.sizes)
    return numbers


def _spread(rows: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return which pairs have a text that one of some rows has: bool [num_pairs]."""
    number = _number(high, low)
    is_matched = np.zeros(int(number.max()) + 1, bool)
    is_matched[number[rows]] = True
    matched: np.ndarray = is_matched[number]
    return matched


def match_sources(task: StepTask, spec: StepSpec) -> StepResult:
    """Half a round: take the pairs that are the best left of both sides; other pairs of their sources go."""
    result, pairs = StepResult(), task.read_pairs()
    if pairs is None:
        return result
    best = mark_best(pairs.s0, pairs.s1, pairs.rank, pairs.tie, pairs.position)
    taken = best & (pairs.mark == TARGET_BEST)
    left = ~_spread(taken, pairs.s0, pairs.s1)
    result.tally.removed["mode"] = int((~left & ~taken).sum())
    marked = replace(pairs, mark=np.where(taken, TAKEN, 0).astype(np.int8)).select(left | taken)
    result.send("alive", marked, assign_buckets(marked.t0, spec.num_buckets), spec.num_buckets)
    return result


def match_targets(task: StepTask, spec: StepSpec) -> StepResult:
    """The other half: taken pairs are kept, other pairs of their targets go, and of each target left the best is marked."""
    result, pairs = StepResult(), task.read_pairs()
    if pairs is None:
        return result
    taken = pairs.mark == TAKEN
    matched = _spread(taken, pairs.t0, pairs.t1)
    result.tally.removed["mode"] = int((matched & ~taken).sum())
    result.deliver(pairs.select(taken), spec)
    marked = mark_best_of_targets(pairs.select(~matched))
    result.send("alive", marked, assign_buckets(marked.s0, spec.num_buckets), spec.num_buckets)
    return result
