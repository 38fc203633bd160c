"""What the demo's model must reach on the held-out queries."""

from typing import Any

import numpy as np

from rerank_actor.benchmark.ndcg import compute_ndcg, load_ranking_queries

LEAST_NDCG = 0.85


def measure_ndcg(rows: list[dict[str, Any]]) -> float:
    """Return the mean nDCG@10 of the held-out queries' rows."""
    values = []
    for query in load_ranking_queries():
        mine = [row for row in rows if row["query_id"] == query.query_id]
        assert len(mine) == 20
        values.append(compute_ndcg([row["score"] for row in mine], [float(row["relevant"]) for row in mine]))
    return float(np.mean(values))
