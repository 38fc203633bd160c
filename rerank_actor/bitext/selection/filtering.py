"""The steps before the mode: pairs are read, duplicates dropped, margins computed, thresholds applied.

Each step takes a unit of scored parts or a bucket of pairs and passes pairs on to the buckets of the next. Knows nothing of
one-to-one matching or of files.
"""

from dataclasses import replace

import numpy as np

from rerank_actor.bitext.selection.hashed_pairs import NOT_YET, HashedPairs
from rerank_actor.bitext.selection.margins import (
    average_best,
    average_others,
    compute_margin,
    compute_ratio,
    mark_best,
    sort_groups,
    to_space,
)
from rerank_actor.bitext.selection.matching import mark_best_of_targets
from rerank_actor.bitext.selection.normalize import mix_hashes
from rerank_actor.bitext.selection.read_pairs import LISTED_REASONS, read_pairs
from rerank_actor.bitext.selection.rules import SelectionRules
from rerank_actor.bitext.selection.step_task import StepResult, StepSpec, StepTask
from rerank_actor.storage.exchange import assign_buckets


def read_unit(task: StepTask, spec: StepSpec) -> StepResult:
    """Read scored rows; to the buckets of their texts as they are compared."""
    pairs, counts = read_pairs(task.number, task.runs, spec.parts, spec.columns, spec.rules, spec.known)
    reasons = dict(counts.reasons.most_common(LISTED_REASONS))
    result = StepResult(facts={"fingerprints": counts.fingerprints, "reasons": reasons})
    result.tally.counts["rows"] = counts.rows
    result.tally.removed["unscored"] = counts.reasons.total()
    if pairs is not None:
        both = mix_hashes(pairs.s0, pairs.t0)
        result.send("pairs", pairs, assign_buckets(both, spec.num_buckets), spec.num_buckets)
    return result


def drop_duplicates(task: StepTask, spec: StepSpec) -> StepResult:
    """Keep the best-scored of pairs that are one; to the buckets of sources."""
    result, pairs = StepResult(), task.read_pairs()
    if pairs is None:
        return result
    if spec.rules.deduplicate != "none":
        before = len(pairs)
        pairs = _keep_best(pairs, pairs.tie, pairs.rest)
        result.tally.removed["exact"] = before - len(pairs)
    if spec.rules.deduplicate == "normalized":
        before = len(pairs)
        pairs = _keep_best(pairs, pairs.s0, pairs.s1, pairs.t0, pairs.t1)
        result.tally.removed["normalized"] = before - len(pairs)
    pairs = replace(pairs, rest=NOT_YET)
    result.tally.add_scores("candidates", to_space(pairs.logit, spec.rules.space), spec.rules.space)
    result.send("pairs", pairs, assign_buckets(pairs.s0, spec.num_buckets), spec.num_buckets)
    return result


def _keep_best(pairs: HashedPairs, *words: np.ndarray) -> HashedPairs:
    """Return the best-scored of pairs that are one, which all words of a hash tell."""
    rows = sort_groups(words[0], words[1], *words[2:], -pairs.logit, pairs.tie, pairs.position).order
    differs = np.ones(len(rows), bool)
    differs[1:] = np.any([word[rows][1:] != word[rows][:-1] for word in words], axis=0)
    return pairs.select(rows[differs])


def look_at_sources(task: StepTask, spec: StepSpec) -> StepResult:
    """Add the sums over the other candidates of each source; to the buckets of targets."""
    result, pairs = StepResult(), task.read_pairs()
    if pairs is not None:
        rest, near = _average_neighbors(pairs, pairs.s0, pairs.s1, spec.rules.neighbors)
        pairs = replace(pairs, source_rest=rest, source_near=near)
        result.send("pairs", pairs, assign_buckets(pairs.t0, spec.num_buckets), spec.num_buckets)
    return result


def _average_neighbors(
    pairs: HashedPairs, high: np.ndarray, low: np.ndarray, neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of other log-odds and of cosines over the pairs of each text of a side."""
    rest = average_others(pairs.logit, sort_groups(high, low, -pairs.logit, pairs.tie), neighbors)
    if not np.isfinite(pairs.cosine).any():
        return rest, np.full(len(pairs), np.nan)
    return rest, average_best(pairs.cosine, sort_groups(high, low, -pairs.cosine, pairs.tie), neighbors)


def look_at_targets(task: StepTask, spec: StepSpec) -> StepResult:
    """Add the margins; what is known of pairs goes into the record, and the pairs through the thresholds."""
    result, pairs = StepResult(), task.read_pairs()
    if pairs is None:
        return result
    rest, near = _average_neighbors(pairs, pairs.t0, pairs.t1, spec.rules.neighbors)
    margin = compute_margin(pairs.logit, pairs.source_rest, rest)
    ratio = compute_ratio(pairs.cosine, pairs.source_near, near)
    pairs = replace(pairs, source_rest=NOT_YET, source_near=NOT_YET, margin=margin, ratio=ratio)
    result.tally.counts["without_rivals"] = int(np.isnan(margin).sum())
    if spec.known is not None:
        result.facts["known"] = _list_known(pairs.select(pairs.label >= 0), spec.rules)
    if spec.waits:
        result.send("pairs", pairs, np.full(len(pairs), task.number), spec.num_buckets)
    else:
        _filter(pairs, spec, result)
    return result


def _list_known(pairs: HashedPairs, rules: SelectionRules) -> dict[str, list[float]]:
    """Return the scores of known pairs by kind, in the job's space, and their labels."""
    values = {
        "forward": to_space(pairs.forward, rules.space),
        "backward": to_space(pairs.backward, rules.space),
        "combined": to_space(pairs.logit, rules.space),
        "margin": pairs.margin,
        "ratio margin": pairs.ratio,
        "labels": pairs.label,
    }
    return {name: numbers.tolist() for name, numbers in values.items()}


def filter_pairs(task: StepTask, spec: StepSpec) -> StepResult:
    """Apply thresholds that had to wait for the calibration."""
    result, pairs = StepResult(), task.read_pairs()
    if pairs is not None:
        _filter(pairs, spec, result)
    return result


def apply_thresholds(pairs: HashedPairs, rules: SelectionRules) -> tuple[HashedPairs, dict[str, int]]:
    """Return the pairs that pass every threshold, with the `rank` that modes compare, and how many each removed."""
    removed: dict[str, int] = {}
    values = {
        "threshold": to_space(pairs.logit, rules.space),
        "forward_threshold": to_space(pairs.forward, rules.space),
        "backward_threshold": to_space(pairs.backward, rules.space),
        "margin": np.where(np.isnan(pairs.margin), np.inf, pairs.margin),
        "ratio_margin": np.where(np.isnan(pairs.ratio), -np.inf, pairs.ratio),
    }
    passes = np.ones(len(pairs), bool)
    for name, value in values.items():
        least = getattr(rules, name)
        if least is not None:
            holds = value >= least
            removed[name] = int((passes & ~holds).sum())
            passes &= holds
    rank = {"score": pairs.logit, "margin": values["margin"], "ratio": values["ratio_margin"]}[rules.rank_by]
    return replace(pairs, rank=rank).select(passes), removed


def _filter(pairs: HashedPairs, spec: StepSpec, result: StepResult) -> None:
    """Pass on the pairs that pass the thresholds: to the mode, or to where their texts are if it keeps them here."""
    passed, removed = apply_thresholds(pairs, spec.rules)
    result.tally.removed.update(removed)
    if spec.rules.mode == "all":
        result.deliver(passed, spec)
    elif spec.rules.mode == "backward":
        best = mark_best(passed.t0, passed.t1, passed.rank, passed.tie, passed.position)
        result.tally.removed["mode"] = int((~best).sum())
        result.deliver(passed.select(best), spec)
    else:
        marked = mark_best_of_targets(passed)
        result.send("alive", marked, assign_buckets(marked.s0, spec.num_buckets), spec.num_buckets)
