"""Label words: what a label says, as a number or in words that speak for themselves.

Takes one label, gives its number. A word counts for what it says in English; of any other nobody knows, because a wrong guess
would turn right into wrong. Knows nothing of columns, or of what is labelled.
"""

import math

POSITIVE = frozenset({"true", "yes", "right", "pos", "positive", "relevant"})
NEGATIVE = frozenset(
    {"false", "no", "wrong", "neg", "negative"}
    | {"irrelevant", "nonrelevant", "non-relevant", "non_relevant", "not relevant", "not-relevant", "not_relevant"}
)


def grade_label(label: object) -> float | None:
    """Return what a label says: its number, infinite for a word, NaN where it is blank; None where nobody knows."""
    word = str(label).strip().casefold()
    if word in POSITIVE:
        return math.inf
    if word in NEGATIVE:
        return -math.inf
    try:
        return float(word) if word else math.nan
    except ValueError:
        return None
