"""What a precision does to scores: logits of the held-out queries' candidates beside those of float32.

Takes an engine, or logits, gives figures: by how much logits differ, whether candidates stay in their order, and how well
they are ranked. Knows nothing of what made the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from rerank_actor.benchmark.ndcg import RankingQuery, compute_ndcg
from rerank_actor.engines.base import Engine, compute_within_memory
from rerank_actor.engines.prompts import PairEncoder

COLUMNS = ("precision", "largest difference", "median", "of the spread", "Kendall's tau", "nDCG@10", "change")


@dataclass(frozen=True)
class Fidelity:
    """Logits of some precision beside those of float32, over pairs that both score.

    Attributes:
        pairs: how many.
        largest, median: of the absolute differences.
        spread: the standard deviation of float32's logits.
        tau: Kendall's tau-b between the two orders of a query's candidates, the mean over queries.
        ndcg, ndcg_change: nDCG@10 of the held-out queries, the mean, and how much more it is than float32's.
    """

    pairs: int
    largest: float
    median: float
    spread: float
    tau: float
    ndcg: float
    ndcg_change: float


def compute_held_out(engine: Engine, encoder: PairEncoder, queries: Sequence[RankingQuery]) -> np.ndarray:
    """Return an engine's logits of the queries' candidates in turn, NaN where a query leaves no room: float32 [num_pairs]."""
    texts = [(query.query, document) for query in queries for document in query.documents]
    prompts = encoder.encode(*zip(*texts, strict=True))
    places = prompts.scorable
    logits = np.full(len(texts), np.nan, np.float32)
    if len(places):
        heads = prompts.head_tokens[places].tolist()
        logits[places] = compute_within_memory(engine, prompts.ids_at(places), heads)
    of_pairs: np.ndarray = logits[prompts.original]
    return of_pairs


def compare_logits(logits: np.ndarray, base: np.ndarray, queries: Sequence[RankingQuery]) -> Fidelity:
    """Compare logits with those of float32.

    Args:
        logits: of the queries' candidates in turn, float32 [num_pairs]; pairs that one of both lacks count nowhere.
        base: those of float32.
        queries: the queries.

    Raises:
        ValueError: there is no pair that both have.
    """
    both = np.isfinite(logits) & np.isfinite(base)
    if not both.any():
        raise ValueError("no pair has a logit of both")
    differences = np.abs(logits[both].astype(np.float64) - base[both])
    taus, gained, gained_before = [], [], []
    ends = np.cumsum([len(query.documents) for query in queries])
    for query, end in zip(queries, ends, strict=True):
        here = slice(end - len(query.documents), end)
        mine, theirs = logits[here][both[here]], base[here][both[here]]
        gains = np.array(query.relevant, np.float64)[both[here]]
        if len(mine) > 1:
            taus.append(float(kendalltau(mine, theirs).statistic))
        gained.append(compute_ndcg(mine.tolist(), gains.tolist()))
        gained_before.append(compute_ndcg(theirs.tolist(), gains.tolist()))
    ndcg, before = float(np.mean(gained)), float(np.mean(gained_before))
    return Fidelity(
        pairs=int(both.sum()),
        largest=float(differences.max()),
        median=float(np.median(differences)),
        spread=float(np.std(base[both])),
        tau=float(np.nanmean(taus)) if np.isfinite(taus).any() else float("nan"),
        ndcg=ndcg,
        ndcg_change=ndcg - before,
    )


def make_rows(found: dict[str, Fidelity]) -> list[list[Any]]:
    """Return the cells of a table under `COLUMNS`, a row for each precision by its name."""
    return [
        [
            name,
            f"{one.largest:.2g}",
            f"{one.median:.2g}",
            f"{one.median / one.spread:.2%}" if one.spread else "",
            f"{one.tau:.4f}",
            f"{one.ndcg:.4f}",
            f"{one.ndcg_change:+.4f}",
        ]
        for name, one in found.items()
    ]
