"""The tally: what mining did, in numbers that can be added up over units.

Counts, what each step removed, the distributions of positives, negatives and margins in bins of fixed width, and a few
examples. A tally is plain JSON in a unit's record; the sum over all units is what the report shows. Quantiles follow from
the bins and are right to within one.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rerank_actor.mining.examples import TrainingExamples
from rerank_actor.mining.rules import Space
from rerank_actor.mining.select import Selection, mix

BIN_WIDTHS: dict[Space, float] = {"score": 1e-3, "logit": 0.05}
QUANTILES = (0.25, 0.5, 0.75)
EXAMPLES_PER_UNIT = 20
EXAMPLES_KEPT = 400
SHOWN_CHARACTERS = 400


@dataclass
class Distribution:
    """Values of one kind: their number, moments and bins."""

    width: float
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    lowest: float = float("inf")
    highest: float = float("-inf")
    bins: Counter[int] = field(default_factory=Counter)

    def add(self, values: np.ndarray) -> None:
        """Take in some values."""
        if not len(values):
            return
        wide = values.astype(np.float64)
        self.count += len(wide)
        self.total += float(wide.sum())
        self.squares += float((wide * wide).sum())
        self.lowest, self.highest = min(self.lowest, float(wide.min())), max(self.highest, float(wide.max()))
        numbers, counts = np.unique(np.floor(wide / self.width).astype(np.int64), return_counts=True)
        self.bins.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))

    def merge(self, other: "Distribution") -> None:
        """Take in what another one holds."""
        self.count, self.total, self.squares = (
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
        )
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self.bins.update(other.bins)

    def compute_quantile(self, share: float) -> float:
        """Return the value below which this share lies, to within a bin."""
        left = share * self.count
        for number in sorted(self.bins):
            if left <= self.bins[number]:
                inside = self.width * (number + left / self.bins[number])
                return min(max(inside, self.lowest), self.highest)
            left -= self.bins[number]
        return self.highest

    def summarize(self) -> dict[str, float | int]:
        """Return count, mean, standard deviation, least, quartiles and most; the count alone where there are no values."""
        if not self.count:
            return {"count": 0}
        mean = self.total / self.count
        spread = max(0.0, self.squares - self.count * mean * mean) / max(1, self.count - 1)
        quartiles = {f"{share:.0%}": self.compute_quantile(share) for share in QUANTILES}
        return {
            "count": self.count,
            "mean": mean,
            "std": spread**0.5,
            "min": self.lowest,
            **quartiles,
            "max": self.highest,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        values = {name: value for name, value in vars(self).items() if name != "bins"}
        if not self.count:
            values |= {"lowest": None, "highest": None}
        return {**values, "bins": {str(number): count for number, count in sorted(self.bins.items())}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Distribution":
        """Rebuild the record that `to_dict` wrote."""
        bins = Counter({int(number): count for number, count in values["bins"].items()})
        limits = {} if values["count"] else {"lowest": float("inf"), "highest": float("-inf")}
        return cls(**{**values, **limits, "bins": bins})


@dataclass
class MiningTally:
    """What mining did to some queries, or to all.

    Attributes:
        space: of the values.
        counts: of queries, pairs, positives, negatives and the like.
        removed: pairs that each step removed.
        positives, negatives: values of what was chosen.
        margins: positive minus negative, for each pair of a positive and a negative of one query.
        examples: of a positive and a negative, each with a random `ticket`; the lowest tickets are kept.
    """

    space: Space
    counts: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    positives: Distribution = field(init=False)
    negatives: Distribution = field(init=False)
    margins: Distribution = field(init=False)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        width = BIN_WIDTHS[self.space]
        self.positives, self.negatives, self.margins = Distribution(width), Distribution(width), Distribution(width)

    def add(self, chosen: TrainingExamples, selection: Selection, values: np.ndarray, *, with_examples: bool) -> None:
        """Take in what was chosen of some queries; `values` are float32 [num_pairs] in the tally's space."""
        self.counts.update(selection.counts)
        for step, number in selection.removed.items():
            self.removed[step] += number
        self.positives.add(values[chosen.positives])
        self.negatives.add(values[chosen.negatives][np.isfinite(values[chosen.negatives])])
        positive, negative = chosen.pair_up()
        is_scored = np.isfinite(values[negative])  # random ones are not
        positive, negative = positive[is_scored], negative[is_scored]
        margins = values[positive] - values[negative]
        self.margins.add(margins)
        if with_examples:
            self.examples += _draw_examples(chosen, values, positive, negative)

    def merge(self, other: "MiningTally") -> None:
        """Take in what another one holds."""
        self.counts.update(other.counts)
        for step, number in other.removed.items():
            self.removed[step] += number
        for name in ("positives", "negatives", "margins"):
            getattr(self, name).merge(getattr(other, name))
        self.examples = sorted([*self.examples, *other.examples], key=lambda example: example["ticket"])[:EXAMPLES_KEPT]

    def pick_examples(self, number: int) -> list[dict[str, Any]]:
        """Return some examples, from the smallest margin to the largest, evenly spread over those at hand."""
        ordered = sorted(self.examples, key=lambda example: (example["margin"], example["ticket"]))
        if len(ordered) <= number:
            return ordered
        return [ordered[round(index)] for index in np.linspace(0, len(ordered) - 1, number)] if number else []

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "space": self.space,
            "counts": dict(self.counts),
            "removed": dict(self.removed),
            **{name: getattr(self, name).to_dict() for name in ("positives", "negatives", "margins")},
            "examples": self.examples,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MiningTally":
        """Rebuild the record that `to_dict` wrote."""
        tally = cls(values["space"], Counter(values["counts"]), Counter(values["removed"]), values["examples"])
        for name in ("positives", "negatives", "margins"):
            setattr(tally, name, Distribution.from_dict(values[name]))
        return tally


def _draw_examples(
    chosen: TrainingExamples, values: np.ndarray, positive: np.ndarray, negative: np.ndarray
) -> list[dict[str, Any]]:
    """Return a few pairs of a positive and a negative, drawn by their positions, so that a resume draws the same."""
    position = chosen.table["position"].to_numpy().astype(np.uint64)
    tickets = mix(position[positive] ^ mix(position[negative]))
    drawn = np.argsort(tickets, kind="stable")[:EXAMPLES_PER_UNIT]
    texts = {
        "query": chosen.table["query"].take(positive[drawn]).to_pylist(),
        "positive": chosen.table["document"].take(positive[drawn]).to_pylist(),
        "negative": chosen.table["document"].take(negative[drawn]).to_pylist(),
    }
    return [
        {
            "ticket": int(tickets[row]),
            "positive_value": float(values[positive[row]]),
            "negative_value": float(values[negative[row]]),
            "margin": float(values[positive[row]] - values[negative[row]]),
            **{name: shown[number][:SHOWN_CHARACTERS] for name, shown in texts.items()},
        }
        for number, row in enumerate(drawn)
    ]
