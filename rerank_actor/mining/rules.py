"""Rules: which candidates of a query become its negatives, as one frozen record with a definition in words.

The order in which rules apply, and how each compares, follow `mine_hard_negatives` of sentence-transformers 6, so that
the same scores and settings give the same rows; TopK-PercPos and TopK-MarginPos follow NV-Retriever (arXiv 2407.15831).
Knows nothing of how scores are read or rows written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

Space = Literal["score", "logit"]
SPACES: tuple[Space, ...] = ("score", "logit")
VERSION = 4  # of what the same settings and scores give, with their texts; to be raised with every rule that changes
LATER = frozenset(
    {"rank_window", "random_negatives", "max_disagreement", "promote_above", "uncertain_band"}
)  # rules that fingerprints of earlier versions do not have
DEPTH_FACTOR = 10  # of num_negatives, where rules may drop candidates; sentence-transformers 6


@dataclass(frozen=True)
class Threshold:
    """A number in score or in logit space; without a space it is in that of the rules. Written `0.9` or `2@logit`."""

    value: float
    space: Space | None = None

    @classmethod
    def parse(cls, text: object) -> "Threshold":
        """Return the threshold that a text or a number stands for.

        Raises:
            ValueError: it is neither a number nor NUMBER@score or NUMBER@logit.
        """
        if isinstance(text, cls):
            return text
        number, separator, space = str(text).partition("@")
        try:
            value = float(number)
        except ValueError:
            raise ValueError("expected a number, or NUMBER@score or NUMBER@logit") from None
        if value != value or (separator and space not in SPACES):
            raise ValueError("expected a number, or NUMBER@score or NUMBER@logit")
        return cls(value, "logit" if space == "logit" else "score" if separator else None)

    def __str__(self) -> str:
        return repr(self.value).removesuffix(".0") + (f"@{self.space}" if self.space else "")


@dataclass(frozen=True)
class RankWindow:
    """Ranks that a retriever gave, from `start` to before `end`, None for no end. Written `30:200`, `30:` or `:200`."""

    start: int = 0
    end: int | None = None

    @classmethod
    def parse(cls, text: object) -> "RankWindow":
        """Return the window that a text stands for.

        Raises:
            ValueError: it is no two ranks with a colon between, of which the second is higher.
        """
        if isinstance(text, cls):
            return text
        start, separator, end = str(text).strip().partition(":")
        if not separator or not all(bound == "" or bound.isdecimal() for bound in (start, end)):
            raise ValueError("expected FIRST:END, as in 30:200, which takes ranks from 30 to 199")
        window = cls(int(start or 0), int(end) if end else None)
        if window.end is not None and window.end <= window.start:
            raise ValueError(f"there is no rank from {window.start} to before {window.end}; FIRST:END is as in 30:200")
        return window

    def __str__(self) -> str:
        return f"{self.start}:{'' if self.end is None else self.end}"


@dataclass(frozen=True)
class MiningRules:
    """A set of rules.

    Attributes:
        space: of every threshold that names none, of the ranking, and of what counts as above a positive.
        labelled: whether positives are known; else each query's best candidate is its positive.
        min_positive_score: least value of a positive; below it a known one is weak, and a best candidate is none.
        weak_positives: what becomes of the weak.
        skip_top, depth: the rank window; depth is a number, `all`, or `auto` as sentence-transformers chooses it.
        max_score, min_score: bounds of a negative.
        absolute_margin, relative_margin, margin_pos, perc_pos: distance from the query's lowest positive.
        false_negatives: what becomes of candidates above the query's lowest positive.
        promote_above: how far above all positives of its query a candidate becomes one, None for no distance.
        uncertain_band: distance from the highest value that the rules leave to a negative, within which a candidate is none.
        near_duplicates: likeness to a positive, 0 to 1, from which a candidate is none.
        num_negatives, sampling, seed: how many to take for each query, where its rows do not say it, and how.
        max_disagreement: of several teachers, above which a candidate is no negative.
        random_negatives: documents of the corpus to add to these.
        rank_window: retriever's ranks that negatives are taken from, None for all.
        min_negatives: queries with fewer are dropped whole.
    """

    space: Space = "score"
    labelled: bool = True
    min_positive_score: Threshold | None = None
    weak_positives: Literal["report", "drop"] = "report"
    skip_top: int = 0
    depth: int | Literal["auto", "all"] = "auto"
    max_score: Threshold | None = None
    min_score: Threshold | None = None
    absolute_margin: Threshold | None = None
    relative_margin: Threshold | None = None
    margin_pos: Threshold | None = None
    perc_pos: Threshold | None = None
    false_negatives: Literal["drop", "promote", "report"] = "drop"
    near_duplicates: float | None = None
    num_negatives: int = 3
    sampling: Literal["top", "random", "stratified"] = "top"
    seed: int = 0
    min_negatives: int = 1
    rank_window: RankWindow | None = None
    random_negatives: int = 0
    max_disagreement: float | None = None
    promote_above: Threshold | None = None
    uncertain_band: Threshold | None = None

    def space_of(self, threshold: Threshold) -> Space:
        """Return the space that a threshold is in."""
        return threshold.space or self.space

    @property
    def spaces(self) -> frozenset[Space]:
        """The spaces that the rules look at, each of which must be a column of the scores."""
        thresholds = [value for value in vars(self).values() if isinstance(value, Threshold)]
        return frozenset({self.space, *(self.space_of(threshold) for threshold in thresholds)})

    @property
    def bounds(self) -> dict[str, Threshold]:
        """The rules in force that bound a negative's value from above, by name."""
        names = ("absolute_margin", "relative_margin", "margin_pos", "perc_pos", "max_score")
        return {name: bound for name in names if (bound := getattr(self, name)) is not None}

    def resolve_depth(self, max_positives: int, num_negatives: np.ndarray | None = None) -> Any:
        """Return the rank at which the window ends, None for no end.

        Args:
            max_positives: the most that any query has.
            num_negatives: int64, for each query or pair how many are wanted; None for as many as the rules say.
        """
        if self.depth == "all" or (self.depth == "auto" and self.sampling == "stratified"):
            return None
        if self.depth != "auto":
            return self.depth
        number = self.num_negatives if num_negatives is None else num_negatives
        margins = (self.absolute_margin, self.relative_margin, self.margin_pos, self.perc_pos)
        others = (self.max_score, self.min_score, self.near_duplicates, self.uncertain_band)
        may_drop = self.false_negatives != "report" or any(rule is not None for rule in (*margins, *others))
        return self.skip_top + (DEPTH_FACTOR if may_drop else 1) * number + max_positives

    def define(self) -> dict[str, str]:
        """Return each rule that is in force in words, in the order in which they apply; s is a candidate's value."""
        rules = {
            "space": f"values are compared as {self.space}s unless a rule names another space",
            "text": "of a query's candidates with one text the best-scored stands for all; one with a positive's text is none, "
            "nor is the query itself, also where case, Unicode form, space or punctuation at the ends differ, nor one that "
            "shows nothing; positives of a question are those of all its ids",
            "positives": "the labelled ones; p is the lowest value among those of a query",
        }
        if not self.labelled:
            rules["positives"] = f"a query's best-scored candidate, if s >= {self.min_positive_score}; p is its value"
        elif self.min_positive_score is not None:
            fate = "dropped, before p is found" if self.weak_positives == "drop" else "reported"
            rules["weak positives"] = f"positives with a value < {self.min_positive_score} are {fate}"
        if self.rank_window is not None:
            first, end = self.rank_window.start, self.rank_window.end
            bound = "" if end is None else f" or >= {end}"
            rules["rank window"] = f"candidates whose retriever's rank is < {first}{bound} or unknown are no negatives"
        auto = "all" if self.sampling == "stratified" else "what sentence-transformers takes by default"
        depth = {"all": "all", "auto": auto}.get(str(self.depth), str(self.depth))
        rules["depth"] = (
            f"of a query's ranking, the first DEPTH + most positives of any query are looked at; DEPTH is {depth}"
        )
        rules["false negatives"] = {
            "drop": "s > p is dropped",
            "promote": "s > the query's highest positive becomes a positive, else s > p is dropped",
            "report": "s > p is counted and stays",
        }[self.false_negatives]
        if self.promote_above is not None:
            rules["promote above"] = (
                f"a candidate whose value is {self.promote_above} or more above the query's highest positive becomes a positive"
            )
        forms = {
            "absolute_margin": "s + {} > p is dropped",
            "relative_margin": "s > p - |p| * {} is dropped",
            "margin_pos": "s >= p - {} is dropped (TopK-MarginPos)",
            "perc_pos": "s >= p - |p| * (1 - {}) is dropped (TopK-PercPos)",
            "max_score": "s > {} is dropped",
            "min_score": "s < {} is dropped",
        }
        rules |= {
            name: words.format(getattr(self, name)) for name, words in forms.items() if getattr(self, name) is not None
        }
        if self.max_disagreement is not None:
            rules["max_disagreement"] = (
                f"a candidate is dropped whose teachers' values, as they are combined, differ by more than "
                f"{self.max_disagreement:g}"
            )
        if self.uncertain_band is not None:
            rules["uncertain band"] = (
                f"a candidate is dropped that is no more than {self.uncertain_band} from the highest value that margins and "
                "maximum leave to a negative, or from p without these"
            )
        if self.near_duplicates is not None:
            rules["near duplicates"] = (
                f"a candidate is dropped whose set of 5-character pieces, of the text in lower case without punctuation, "
                f"has a Jaccard similarity >= {self.near_duplicates:g} with that of a positive of its query"
            )
        rules["window"] = f"of what is left, ranks from {self.skip_top} (counted from 0) to before DEPTH stay"
        how = {
            "top": "the first",
            "random": f"at random (seed {self.seed})",
            "stratified": f"one at random (seed {self.seed}) of each of as many runs of nearly equal length of the ranking",
        }[self.sampling]
        rules["sampling"] = f"{self.num_negatives} of these are taken, {how}"
        if self.random_negatives:
            rules["random negatives"] = (
                f"{self.random_negatives} documents of the corpus are added to these, drawn at random (seed {self.seed}) from "
                "a pool of at most 20,000; none has the text of a candidate or of the query, or is judged relevant"
            )
        rules["min_negatives"] = f"queries with fewer than {self.min_negatives} are dropped"
        return rules

    def to_dict(self) -> dict[str, Any]:
        """Return the rules as plain values, for the fingerprint; of later ones those that are in force."""
        unused = {rule.name for rule in fields(self) if rule.name in LATER and getattr(self, rule.name) == rule.default}
        return {
            name: str(value) if isinstance(value, Threshold | RankWindow) else value
            for name, value in vars(self).items()
            if name not in unused
        }


def define_values(rules: MiningRules, own: Mapping[str, MiningRules], by: str | None) -> dict[str, str]:
    """Return in words what is mined apart, and of each value with rules of its own where these are others.

    Args:
        rules: of all other values.
        own: by value.
        by: column of the values, None where nothing is mined apart.
    """
    if by is None:
        return {}
    common, defined = rules.define(), {"values": f"the queries of each value of `{by}` are mined apart"}
    for value, given in own.items():
        others = [words for name, words in given.define().items() if common.get(name) != words]
        defined[f"{by} {value}"] = "; ".join(others) or "as all"
    return defined
