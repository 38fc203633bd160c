"""Rules of selection: the settings that decide which scored pairs are kept, and what each of them means.

Takes a job's settings, gives a frozen record that workers share. Thresholds on scores are in the space of the job;
margins are differences of log-odds, ratio margins are those of Artetxe and Schwenk (arXiv 1811.01136) on cosines. Knows
nothing of files.
"""

from dataclasses import dataclass
from typing import Any, Literal

Combine = Literal["mean", "min", "product"]
Space = Literal["probability", "logit"]
Mode = Literal["all", "forward", "backward", "intersection", "greedy"]
RankBy = Literal["score", "margin", "ratio"]
Deduplicate = Literal["none", "exact", "normalized"]

# Each rule that removes pairs, in the order in which they apply, and in words.
STEPS = {
    "unscored": "without a score",
    "exact": "exact duplicates",
    "normalized": "duplicates once normalized",
    "threshold": "--threshold",
    "forward_threshold": "--forward-threshold",
    "backward_threshold": "--backward-threshold",
    "margin": "--margin",
    "ratio_margin": "--ratio-margin",
    "mode": "--mode",
}
COMBINED = {
    ("mean", "logit"): "mean of the two directions' log-odds",
    ("mean", "probability"): "mean of the two directions' probabilities",
    ("min", "logit"): "lower of the two directions' log-odds",
    ("min", "probability"): "lower of the two directions' probabilities",
    ("product", "logit"): "log-odds of the product of the two directions' probabilities",
    ("product", "probability"): "product of the two directions' probabilities",
}
MODES = {
    "all": "all that pass",
    "forward": "the best target of each source",
    "backward": "the best source of each target",
    "intersection": "pairs that are the best of their source and of their target",
    "greedy": "one to one: in falling order, each source and each target once",
}


@dataclass(frozen=True)
class SelectionRules:
    """Which pairs are kept.

    Attributes:
        direction: `both` combines what directions there are; `forward` and `backward` take one.
        combine, space: how two directions become one score, and what scores and their thresholds are.
        deduplicate: which pairs are one pair, of which the best-scored stays, and which sides are one text for margins and
            modes; with `none` sides that are equal.
        neighbors: how many other candidates of a side a margin looks at, and how many cosines; 0 for all.
        threshold, forward_threshold, backward_threshold: least score, None for no such rule.
        margin, ratio_margin: least margin. A pair whose sides have no other candidate passes the first.
        rank_by: the value that the mode compares and the output is ordered by.
        mode: which of the pairs that pass are kept.
    """

    direction: Literal["both", "forward", "backward"] = "both"
    combine: Combine = "mean"
    space: Space = "logit"
    deduplicate: Deduplicate = "normalized"
    neighbors: int = 4
    threshold: float | None = None
    forward_threshold: float | None = None
    backward_threshold: float | None = None
    margin: float | None = None
    ratio_margin: float | None = None
    rank_by: RankBy = "score"
    mode: Mode = "greedy"

    @property
    def needs_cosines(self) -> bool:
        """Whether a rule looks at the candidate generator's score."""
        return self.ratio_margin is not None or self.rank_by == "ratio"

    def define(self) -> dict[str, str]:
        """Return each rule that is in force in words, in the order in which they apply."""
        others = f"the {self.neighbors} best other candidates" if self.neighbors else "all other candidates"
        combined = COMBINED[self.combine, self.space] if self.direction == "both" else f"{self.direction}, {self.space}"
        rules = {"score": combined}
        if self.deduplicate != "none":
            rules["duplicates"] = "pairs of the same two texts are one, the best-scored stays"
        if self.deduplicate == "normalized":
            rules["normalized"] = (
                "so are pairs, and sides, whose texts differ in NFKC form, case, space or punctuation alone"
            )
        rules["margin"] = f"combined log-odds minus the mean, over both sides, of those of {others}"
        rules["ratio margin"] = f"cosine over the mean, over both sides, of its {self.neighbors or 'all'} best cosines"
        for name in ("threshold", "forward_threshold", "backward_threshold", "margin", "ratio_margin"):
            value = getattr(self, name)
            if value is not None:
                rules[f"--{name.replace('_', '-')}"] = f"at least {value:.6g}"
        rules["mode"] = f"{MODES[self.mode]}, by {self.rank_by}; ties by a hash of both texts"
        return rules

    def to_dict(self) -> dict[str, Any]:
        """Return the rules as JSON values."""
        return dict(vars(self))
