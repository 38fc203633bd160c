"""Measures of rankings, a value for each query: nDCG, MAP, MRR, recall, precision and success, computed by pytrec_eval.

Takes judgements and scores by ids. Ties are broken by the document's id, descending, as trec_eval and MTEB do. Knows nothing
of outputs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytrec_eval

from rerank_actor.errors import JobError

# Measures by their names here, with what trec_eval calls them; those of the second mapping need a depth.
_WHOLE = {"map": "map", "mrr": "recip_rank", "ndcg": "ndcg"}
_CUT = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "success": "success"}
KNOWN = "ndcg@K, map, map@K, mrr, mrr@K, recall@K, precision@K, success@K, p-mrr"
P_MRR = "p-mrr"  # of two rankings: see `changed`

Judgements = Mapping[str, Mapping[str, int]]
Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Measure:
    """One measure: `name` as users write it, `depth` in candidates, None for all of them."""

    name: str
    kind: str
    depth: int | None

    @property
    def trec_name(self) -> str:
        """What pytrec_eval is asked for."""
        if self.depth is None or self.kind == "mrr":
            return _WHOLE[self.kind]
        return f"{_CUT[self.kind]}.{self.depth}"

    def pick(self, values: Mapping[str, float]) -> float:
        """Return the measure from what pytrec_eval gives for a query."""
        value = float(values[self.trec_name.replace(".", "_")])
        if self.kind == "mrr" and self.depth is not None and (value == 0 or round(1 / value) > self.depth):
            return 0.0  # the first relevant candidate is below the depth
        return value


def parse_measure(text: str) -> Measure:
    """Return the measure of `ndcg@10`.

    Raises:
        JobError: there is none of that name.
    """
    if text.lower() == P_MRR:
        return Measure(P_MRR, P_MRR, None)
    form = re.fullmatch(r"([a-z]+)(?:@([1-9][0-9]*))?", text.lower())
    kind, depth = (form[1], int(form[2]) if form[2] else None) if form else ("", None)
    if kind not in (_WHOLE if depth is None else _CUT | {"mrr": ""}):
        raise JobError(f"--measures: `{text}` is no measure; take {KNOWN}, K a whole number")
    return Measure(text.lower(), kind, depth)


def compute_measures(
    judgements: Judgements, scores: Scores, measures: Sequence[Measure], queries: Sequence[str]
) -> np.ndarray:
    """Return the measures of each query.

    Args:
        judgements: relevance by query and document; 0 and less is not relevant.
        scores: of the candidates, by query and document; a higher one ranks before a lower.
        measures: to compute.
        queries: to compute them of; one without candidates has 0 of each.

    Returns:
        float64 [num_queries, num_measures], NaN of p-MRR.
    """
    trec = [(at, measure) for at, measure in enumerate(measures) if measure.kind != P_MRR]
    wanted = {query: dict(judgements[query]) for query in queries if scores.get(query)}
    evaluator = pytrec_eval.RelevanceEvaluator(wanted, {measure.trec_name for _, measure in trec})
    by_query = evaluator.evaluate({query: dict(scores[query]) for query in wanted})
    found = np.full((len(queries), len(measures)), np.nan)
    for row, query in enumerate(queries):
        for at, measure in trec:
            found[row, at] = measure.pick(by_query[query]) if query in by_query else 0.0
    return found
