"""How well candidates are ranked: nDCG@10 of scores, and the queries written by hand that it is measured on.

Takes scores and gains of one query's candidates; knows nothing of models. nDCG is that of Järvelin and Kekäläinen
(2002) with linear gains; candidates of one score count in the worst order, so a model that says the same of all gains
nothing. The queries (data/ranking_queries.jsonl) are the measure of the demo's model, which was not trained on them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

DEPTH = 10


@dataclass(frozen=True)
class RankingQuery:
    """One query with its candidates and which of them answer it."""

    query_id: str
    language: str
    query: str
    documents: list[str]
    relevant: list[bool]


def load_ranking_queries() -> list[RankingQuery]:
    """Return the held-out queries: 64 in four languages with 20 candidates each."""
    text = resources.files("rerank_actor").joinpath("data/ranking_queries.jsonl").read_text(encoding="utf-8")
    return [RankingQuery(**json.loads(line)) for line in text.splitlines()]


def compute_ndcg(scores: Sequence[float], gains: Sequence[float], depth: int = DEPTH) -> float:
    """Return the nDCG of one query's candidates in the order of their scores; 0 where none has a gain."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], gains[index]))
    gain = sum(gains[index] * _discount(rank) for rank, index in enumerate(order[:depth]))
    ideal = _compute_ideal(gains, depth)
    return gain / ideal if ideal else 0.0


def compute_random_ndcg(gains: Sequence[float], depth: int = DEPTH) -> float:
    """Return the nDCG to be expected of a random order."""
    ideal = _compute_ideal(gains, depth)
    mean = sum(gains) / len(gains)
    return mean * sum(_discount(rank) for rank in range(min(depth, len(gains)))) / ideal if ideal else 0.0


def _compute_ideal(gains: Sequence[float], depth: int) -> float:
    return sum(gain * _discount(rank) for rank, gain in enumerate(sorted(gains, reverse=True)[:depth]))


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 2)
