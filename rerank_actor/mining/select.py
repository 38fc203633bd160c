"""Selection: from the scored candidates of whole queries to positives and negatives, by the rules.

Takes arrays with a value for each pair, gives row numbers and a count of what each rule removed. All of it is sorting and
segment arithmetic in numpy, float32 where sentence-transformers' miner is, so that no comparison comes out differently.
Knows nothing of texts, files or Ray.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rerank_actor.mining.judging.verdicts import NAMES, NOT_JUDGED, RELEVANT, UNSURE, overrule
from rerank_actor.mining.rules import MiningRules, Space, Threshold

NearDuplicates = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
REASONS = (  # why a candidate is a probable false negative, by the code that a selection has
    "",
    "promoted",
    "false_negatives",
    "absolute_margin",
    "relative_margin",
    "margin_pos",
    "perc_pos",
    "max_score",
    "max_disagreement",
    "uncertain_band",
    "near_duplicates",
)


@dataclass(frozen=True)
class Candidates:
    """The pairs of some queries, all of each query's.

    Attributes:
        query: int64 [num_pairs], number of the pair's query, from 0 without gaps.
        text: int64 [num_pairs], equal for pairs with equal document text.
        values: float32 [num_pairs] by space, all finite.
        positive: bool [num_pairs].
        unusable: bool [num_pairs], documents that are empty or the query itself.
        position: int64 [num_pairs], place in the input; it settles ties.
        query_hash: uint64 [num_queries], of the query's key; it seeds random sampling.
        rank: float64 [num_pairs], that a retriever gave, NaN where unknown; needed for the rank window alone.
        num_negatives: float64 [num_queries], that each query is to have, NaN where the rules say it; None where they always do.
        disagreement: float64 [num_pairs], of several teachers; needed for that rule alone.
        verdict: int8 [num_pairs], codes of `verdicts` of what a judge said, None where none did.
    """

    query: np.ndarray
    text: np.ndarray
    values: dict[Space, np.ndarray]
    positive: np.ndarray
    unusable: np.ndarray
    position: np.ndarray
    query_hash: np.ndarray
    rank: np.ndarray | None = None
    num_negatives: np.ndarray | None = None
    disagreement: np.ndarray | None = None
    verdict: np.ndarray | None = None

    @property
    def num_queries(self) -> int:
        """How many queries there are."""
        return len(self.query_hash)


@dataclass
class Selection:
    """What the rules chose.

    Attributes:
        positives: row numbers, by query and then place in the input, promoted ones behind the others of their query.
        negatives: row numbers, by query and then from the highest value down.
        ranking: row numbers of all candidates of the kept queries, each text once, from the highest value down.
        removed: pairs that each step removed, in order of the steps.
        counts: of pairs, queries, negatives, positives, weak and promoted ones, suspected false negatives.
        suspects: row numbers of candidates that a rule takes for false negatives, whatever became of them, by query and then
            from the highest value down.
        reasons: int8 [num_suspects], the first such rule, by its place in `REASONS`.
        lowest: float32 [num_queries] by space, the lowest positive of each query.
    """

    positives: np.ndarray
    negatives: np.ndarray
    ranking: np.ndarray
    removed: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    suspects: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    reasons: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    lowest: dict[Space, np.ndarray] = field(default_factory=dict)


def select(
    candidates: Candidates,
    rules: MiningRules,
    max_positives: int,
    mark_near: NearDuplicates | None = None,
    mark_variants: NearDuplicates | None = None,
) -> Selection:
    """Choose positives and negatives.

    Args:
        candidates: of whole queries.
        rules: to follow.
        max_positives: the most that any query of the whole input has; as in sentence-transformers it widens the window.
        mark_near: tells of candidates (rows), their queries and all positives (rows) which candidates are
            near-duplicates of one of their query's positives: bool [num_candidates]. Needed for that rule alone.
        mark_variants: tells in the same way which are such a positive written in another way.
    """
    return _Selector(candidates, rules, max_positives, mark_near, mark_variants).run()


class _Selector:
    """One selection under way. Rows are in order of query and falling value throughout; `rows` maps them back."""

    def __init__(
        self,
        candidates: Candidates,
        rules: MiningRules,
        max_positives: int,
        mark_near: NearDuplicates | None,
        mark_variants: NearDuplicates | None,
    ) -> None:
        self.rules, self.max_positives = rules, max_positives
        self.mark_near, self.mark_variants = mark_near, mark_variants
        self.num_queries, self.query_hash = candidates.num_queries, candidates.query_hash
        self.removed: dict[str, int] = {}
        self.counts = {"pairs": len(candidates.query), "queries": candidates.num_queries}
        value = candidates.values[rules.space]
        other = candidates.values.get("logit", value)
        self.rows = np.lexsort((candidates.position, -other, -value, candidates.query))
        self.query = candidates.query[self.rows]
        self.text = candidates.text[self.rows]
        self.values = {space: values[self.rows] for space, values in candidates.values.items()}
        self.positive = candidates.positive[self.rows]
        self.unusable = candidates.unusable[self.rows]
        self.position = candidates.position[self.rows]
        self.rank = None if candidates.rank is None else candidates.rank[self.rows]
        self.disagreement = None if candidates.disagreement is None else candidates.disagreement[self.rows]
        self.verdict = None if candidates.verdict is None else candidates.verdict[self.rows]
        self.num_negatives = np.full(self.num_queries, rules.num_negatives)
        if candidates.num_negatives is not None:
            known = np.isfinite(candidates.num_negatives)
            self.num_negatives[known] = candidates.num_negatives[known]

    def run(self) -> Selection:
        """Apply the steps in their order."""
        rules = self.rules
        self._merge_equal_texts()
        unusable = self.unusable & ~self.positive
        self._count("unusable", int(unusable.sum()))
        self._shrink(~unusable)
        self._choose_positives()
        keep = ~self.positive
        self._count("positive", int(self.positive.sum()))
        is_outside = self._mark_outside()
        keep = self._drop("rank_window", keep, is_outside)
        depth = rules.resolve_depth(self.max_positives, self.num_negatives[self.query])
        if depth is not None:
            rank = _rank(self.query, ~is_outside, self.num_queries)
            keep = self._drop("depth", keep, rank >= depth + self.max_positives)
        self.reasons = np.zeros(len(keep), np.int8)
        if self.verdict is not None:
            keep = self._drop("unsure", keep, self.verdict == UNSURE)
        keep, promoted = self._judge_false_negatives(keep)
        for name, is_too_near in self._compare():
            keep = self._drop(name, keep, is_too_near)
        if self.mark_variants is not None:
            keep = self._drop("equal_to_positive", keep, self._compare_texts(self.mark_variants, keep, promoted))
        if rules.near_duplicates is not None:
            if self.mark_near is None:
                raise ValueError("near-duplicates cannot be found without a function that finds them")
            keep = self._drop("near_duplicates", keep, self._compare_texts(self.mark_near, keep, promoted))
        rank = _rank(self.query, keep, self.num_queries)
        keep = self._drop("skip_top", keep, rank < rules.skip_top)
        if depth is not None:
            keep = self._drop("depth", keep, rank >= depth)
        keep = self._drop("num_negatives", keep, ~self._sample(keep))
        number = np.bincount(self.query[keep], minlength=self.num_queries)
        has_positive = np.bincount(self.query[self.positive], minlength=self.num_queries) > 0
        is_kept = has_positive & (number >= rules.min_negatives)
        keep = self._drop("min_negatives", keep, ~is_kept[self.query])
        self.counts |= {
            "queries_kept": int(is_kept.sum()),
            "queries_short": int((has_positive & ~is_kept).sum()),
            "negatives": int(keep.sum()),
        }
        return self._conclude(keep, promoted, is_kept)

    def _conclude(self, negative: np.ndarray, promoted: np.ndarray, is_kept: np.ndarray) -> Selection:
        chosen = np.flatnonzero((self.positive | promoted) & is_kept[self.query])
        self.counts["positives"] = len(chosen)
        chosen = chosen[np.lexsort((self.position[chosen], promoted[chosen], self.query[chosen]))]
        ranking = np.flatnonzero(is_kept[self.query])
        suspects = np.flatnonzero(self.reasons)
        return Selection(
            positives=self.rows[chosen],
            negatives=self.rows[negative],
            ranking=self.rows[ranking],
            removed=self.removed,
            counts=self.counts,
            suspects=self.rows[suspects],
            reasons=self.reasons[suspects],
            lowest=self.lowest,
        )

    def _count(self, step: str, number: int) -> None:
        self.removed[step] = self.removed.get(step, 0) + number

    def _drop(self, step: str, keep: np.ndarray, is_out: np.ndarray) -> np.ndarray:
        """Return what a step leaves; one that suspects false negatives leaves what was judged to be none."""
        if step in REASONS:
            is_out = self._suspect(step, keep & is_out)
        left: np.ndarray = keep & ~is_out
        self._count(step, int(keep.sum() - left.sum()))
        return left

    def _suspect(self, step: str, rows: np.ndarray) -> np.ndarray:
        """Note the rule for those of some rows that no rule suspected before and nobody judged, and return these rows."""
        if self.verdict is not None:
            rows = rows & (self.verdict == NOT_JUDGED)
        self.reasons[rows & (self.reasons == 0)] = REASONS.index(step)
        return rows

    def _shrink(self, keep: np.ndarray) -> None:
        """Forget all other rows."""
        self.rows, self.query, self.text = self.rows[keep], self.query[keep], self.text[keep]
        self.positive, self.unusable = self.positive[keep], self.unusable[keep]
        self.position = self.position[keep]
        self.rank = None if self.rank is None else self.rank[keep]
        self.disagreement = None if self.disagreement is None else self.disagreement[keep]
        self.verdict = None if self.verdict is None else self.verdict[keep]
        self.values = {space: values[keep] for space, values in self.values.items()}

    def _merge_equal_texts(self) -> None:
        """Keep the best-scored pair of each query and text; it is positive where one of them is."""
        order = np.lexsort((self.text, self.query))  # stable, so that the best-scored comes first
        query, text = self.query[order], self.text[order]
        is_first = np.ones(len(order), bool)
        is_first[1:] = (query[1:] != query[:-1]) | (text[1:] != text[:-1])
        number = np.cumsum(is_first) - 1
        is_positive = np.zeros(int(is_first.sum()), bool)
        is_positive[number[self.positive[order]]] = True
        equal = ~is_first & is_positive[number] & ~self.positive[order]
        self._count("equal_to_positive", int(equal.sum()))
        self._count("duplicate", int((~is_first).sum() - equal.sum()))
        keep = np.zeros(len(order), bool)
        keep[order[is_first]] = True
        self.positive[order[is_first]] = is_positive
        if self.verdict is not None:
            self._merge_verdicts(order, number, is_first)
        self._shrink(keep)

    def _merge_verdicts(self, order: np.ndarray, number: np.ndarray, is_first: np.ndarray) -> None:
        """Let what was said of one pair count for all of its query with the same text."""
        verdict = self.verdict[order] if self.verdict is not None else np.zeros(0, np.int8)
        said = verdict != NOT_JUDGED
        merged, least = np.zeros(int(is_first.sum()), np.int8), np.full(int(is_first.sum()), UNSURE, np.int8)
        np.maximum.at(merged, number[said], verdict[said])
        np.minimum.at(least, number[said], verdict[said])
        self.counts["texts_with_two_verdicts"] = int((merged > least).sum())
        rows = order[is_first]
        self.verdict = np.zeros(len(order), np.int8)
        self.verdict[rows] = merged
        labelled = self.positive[rows]
        self.positive[rows] = overrule(labelled, merged)
        self.counts |= {f"verdicts_{name}": int((merged == code).sum()) for code, name in NAMES.items()}
        self.counts["verdicts_against_labels"] = int((labelled & ~self.positive[rows]).sum())

    def _choose_positives(self) -> None:
        """Settle what each query's positives are, and forget queries that have none."""
        least, labelled = self.rules.min_positive_score, self.rules.labelled
        judged = np.zeros(len(self.query), bool) if self.verdict is None else self.verdict == RELEVANT
        if not labelled:
            self.positive = self._take_best(judged)
        weak = np.zeros(len(self.query), bool)
        if least is not None:
            weak = self.positive & (self.values[self.rules.space_of(least)] < least.value)
        if not labelled:
            self.positive = judged | (self.positive & ~weak)
        self.counts["weak_positives"] = int(weak.sum()) if labelled else 0
        if labelled and self.rules.weak_positives == "drop":
            self._count("weak_positives", int(weak.sum()))
            self._shrink(~weak)
        has_positive = np.bincount(self.query[self.positive], minlength=self.num_queries) > 0
        self.counts["queries_without_positive"] = int((~has_positive).sum())
        self._count("no_positive", int((~has_positive[self.query]).sum()))
        self._shrink(has_positive[self.query])
        self.lowest = {space: self._compute_extreme(space, np.minimum, np.inf) for space in self.values}

    def _take_best(self, judged: np.ndarray) -> np.ndarray:
        """Return the best candidate, but for those judged to be none, of each query without a positive by verdict."""
        may_be = np.ones(len(self.query), bool) if self.verdict is None else self.verdict == NOT_JUDGED
        has_positive = np.bincount(self.query[judged], minlength=self.num_queries) > 0
        best: np.ndarray = may_be & (_rank(self.query, may_be, self.num_queries) == 0) & ~has_positive[self.query]
        return best

    def _mark_outside(self) -> np.ndarray:
        """Return which candidates are outside the window of the retriever's ranks, which leaves positives alone."""
        window = self.rules.rank_window
        if window is None or self.rank is None:
            return np.zeros(len(self.query), bool)
        end = np.inf if window.end is None else window.end
        is_inside: np.ndarray = (self.rank >= window.start) & (self.rank < end)
        is_outside: np.ndarray = ~(is_inside | self.positive)
        return is_outside

    def _compute_extreme(self, space: Space, ufunc: np.ufunc, start: float) -> np.ndarray:
        """Return the lowest or highest positive of each query: float32 [num_queries]."""
        extreme = np.full(self.num_queries, start, np.float32)
        ufunc.at(extreme, self.query[self.positive], self.values[space][self.positive])
        return extreme

    def _judge_false_negatives(self, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the candidates that stay, and those that became positives."""
        suspect = keep & self._is_above(self.lowest)
        if self.verdict is not None:
            suspect &= self.verdict == NOT_JUDGED
        self.counts["suspected_false_negatives"] = int(suspect.sum())
        promoted = suspect & self._is_far_above()
        self._suspect("promoted", promoted)
        self._suspect("false_negatives", suspect)
        self.counts["promoted"] = int(promoted.sum())
        if promoted.any():
            self._count("promoted", int(promoted.sum()))
        keep = keep & ~promoted
        if self.rules.false_negatives != "report":
            keep = self._drop("false_negatives", keep, suspect)
        return keep, promoted

    def _is_far_above(self) -> np.ndarray:
        """Return which rows are so far above all positives of their query that they are to become positives."""
        distance = self.rules.promote_above
        if distance is None and self.rules.false_negatives != "promote":
            return np.zeros(len(self.query), bool)
        highest = {space: self._compute_extreme(space, np.maximum, -np.inf) for space in self.values}
        if distance is None:
            return self._is_above(highest)
        space = self.rules.space_of(distance)
        is_far: np.ndarray = self.values[space] - highest[space][self.query] >= distance.value
        return is_far

    def _compute_bound(self, space: Space) -> np.ndarray:
        """Return the highest value that the rules leave to a negative of each row's query; they are all in one space."""
        lowest = self.lowest[space][self.query]
        bounds = [lowest]
        for name, rule in self.rules.bounds.items():
            share = 1 - rule.value if name == "perc_pos" else rule.value
            distance = np.abs(lowest) * share if name in ("relative_margin", "perc_pos") else rule.value
            bounds.append(np.full(len(lowest), rule.value) if name == "max_score" else lowest - distance)
        bound: np.ndarray = np.min(bounds, axis=0)
        return bound

    def _is_above(self, extreme: dict[Space, np.ndarray]) -> np.ndarray:
        """Return which rows are above a value of their query; equal scores are told apart by logits, which do not saturate."""
        space: Space = self.rules.space
        order: Space = "logit" if "logit" in self.values else space
        value, bound = self.values[space], extreme[space][self.query]
        above: np.ndarray = (value > bound) | ((value == bound) & (self.values[order] > extreme[order][self.query]))
        return above

    def _compare(self) -> list[tuple[str, np.ndarray]]:
        """Return, for each rule on values that is in force, which rows it drops."""
        rules = self.rules

        def read(threshold: Threshold) -> tuple[np.ndarray, np.ndarray, float]:
            space = rules.space_of(threshold)
            return self.values[space], self.lowest[space][self.query], threshold.value

        dropped: list[tuple[str, np.ndarray]] = []
        if rules.absolute_margin is not None:
            value, lowest, margin = read(rules.absolute_margin)
            dropped.append(("absolute_margin", value + margin > lowest))
        if rules.relative_margin is not None:
            value, lowest, margin = read(rules.relative_margin)
            dropped.append(("relative_margin", value > lowest - np.abs(lowest) * margin))
        if rules.margin_pos is not None:
            value, lowest, margin = read(rules.margin_pos)
            dropped.append(("margin_pos", value >= lowest - margin))
        if rules.perc_pos is not None:
            value, lowest, share = read(rules.perc_pos)
            dropped.append(("perc_pos", value >= lowest - np.abs(lowest) * (1 - share)))
        if rules.max_score is not None:
            value, _, bound = read(rules.max_score)
            dropped.append(("max_score", value > bound))
        if rules.min_score is not None:
            value, _, bound = read(rules.min_score)
            dropped.append(("min_score", value < bound))
        if rules.max_disagreement is not None and self.disagreement is not None:
            dropped.append(("max_disagreement", self.disagreement > rules.max_disagreement))
        if rules.uncertain_band is not None:
            space = rules.space_of(rules.uncertain_band)
            distance = np.abs(self.values[space] - self._compute_bound(space))
            dropped.append(("uncertain_band", distance <= rules.uncertain_band.value))
        return dropped

    def _compare_texts(self, mark: NearDuplicates, keep: np.ndarray, promoted: np.ndarray) -> np.ndarray:
        is_marked = np.zeros(len(keep), bool)
        rows = np.flatnonzero(keep)
        positives = np.flatnonzero(self.positive | promoted)
        is_marked[rows] = mark(self.rows[rows], self.query[rows], self.rows[positives])
        return is_marked

    def _sample(self, keep: np.ndarray) -> np.ndarray:
        """Return which of the kept rows are taken."""
        rank, number = _rank(self.query, keep, self.num_queries), self.num_negatives[self.query]
        sampled: np.ndarray = keep & (rank < number)
        if self.rules.sampling == "top":
            return sampled
        rows = np.flatnonzero(keep)
        query, rank, number = self.query[rows], rank[rows], number[rows]
        ticket = rank.astype(np.uint64) + np.uint64((self.rules.seed * int(_STEP)) % 2**64)
        draw = mix(self.query_hash[query] + mix(ticket))
        is_taken = np.zeros(len(rows), bool)
        if self.rules.sampling == "random":
            order = np.lexsort((draw, query))
            is_taken[order] = _rank(query, np.ones(len(rows), bool), self.num_queries) < number
        else:
            stratum = rank * number // np.bincount(query, minlength=self.num_queries)[query]
            order = np.lexsort((draw, stratum, query))
            is_first = np.ones(len(rows), bool)
            is_first[1:] = (np.diff(query) != 0) | (np.diff(stratum[order]) != 0)
            is_taken[order] = is_first & (number > 0)
        sampled[rows] = is_taken
        return sampled


def _rank(query: np.ndarray, keep: np.ndarray, num_queries: int) -> np.ndarray:
    """Return the place of each kept row among those of its query, from 0; rows are in order of queries."""
    before = np.cumsum(keep) - keep
    starts = np.searchsorted(query, np.arange(num_queries))
    base = np.concatenate([before, [0]])[np.minimum(starts, len(before))]
    rank: np.ndarray = before - base[query]
    return rank


_STEP = np.uint64(0x9E3779B97F4A7C15)


def mix(number: np.ndarray) -> np.ndarray:
    """Return well spread 64-bit numbers (splitmix64, public domain, Vigna 2015)."""
    with np.errstate(over="ignore"):
        number = number + _STEP
        number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        spread: np.ndarray = number ^ (number >> np.uint64(31))
    return spread
