"""What the model must beat: the share of shared words, and BM25.

BM25 is that of Robertson and Zaragoza (2009) with their usual constants; the counts of words are those of all documents
that are ranked. Both split texts at what is no letter or digit and ignore case.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

Scorer = Callable[[str, Sequence[str]], list[float]]


def split_words(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case."""
    return re.findall(r"\w+", text.lower())


def score_overlap(query: str, documents: Sequence[str]) -> list[float]:
    """Return the share of the query's words that each document has."""
    words = set(split_words(query))
    return [len(words & set(split_words(document))) / max(1, len(words)) for document in documents]


def make_bm25(collection: Sequence[str], k: float = 1.2, b: float = 0.75) -> Scorer:
    """Return a function that scores documents for a query, with the word counts of a collection."""
    frequency = Counter(word for text in collection for word in set(split_words(text)))
    mean_length = sum(len(split_words(text)) for text in collection) / len(collection)

    def weigh(word: str) -> float:
        return math.log(1 + (len(collection) - frequency[word] + 0.5) / (frequency[word] + 0.5))

    def score(query: str, documents: Sequence[str]) -> list[float]:
        scores = []
        for document in documents:
            counts = Counter(split_words(document))
            norm = k * (1 - b + b * sum(counts.values()) / mean_length)
            matched = [word for word in split_words(query) if counts[word]]
            scores.append(sum(weigh(word) * counts[word] * (k + 1) / (counts[word] + norm) for word in matched))
        return scores

    return score
