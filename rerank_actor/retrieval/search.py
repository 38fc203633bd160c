"""The exact best documents of some queries, by the cosines of their vectors, block by block.

Takes vectors of length 1. A block's products, in float32, say which documents may be among the best; the cosines of those are
then computed in float64 and rounded to float32, so that a pair has one cosine in whatever block it is, and texts that are the
same have the same. Ties go by the document's id, ascending. Memory is bounded by a block and by the best so far. Knows nothing
of files.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from rerank_actor.retrieval.vectors import Vectors

QUERY_ROWS, DOCUMENT_ROWS = 1024, 16_384  # of a block of products: 64 MiB
PRODUCT_NUMBERS = 2**22  # of vectors whose cosines are computed in float64 at a time
SLACK = 1e-5  # by which a product in float32 may differ from the cosine

BEST_SCHEMA = pa.schema({"query": pa.int32(), "document_id": pa.string(), "cosine": pa.float32()})
ORDER = [("query", "ascending"), ("cosine", "descending"), ("document_id", "ascending")]


def search(queries: np.ndarray, parts: Iterable[Vectors], top_k: int, *, distinct: bool = False) -> pa.Table:
    """Return the best documents of each query.

    Args:
        queries: float32 [num_queries, size].
        parts: of the documents.
        top_k: documents of a query at most.
        distinct: whether several parts may have a document, which then counts once; within a part none does.

    Returns:
        A table of `BEST_SCHEMA`, the number of the query, best first.
    """
    starts = range(0, len(queries), QUERY_ROWS)
    best = {start: BEST_SCHEMA.empty_table() for start in starts}
    bounds = np.full(len(queries), -np.inf, np.float32)
    for part in parts:
        for first in range(0, len(part.ids), DOCUMENT_ROWS):
            ids, documents = part.ids.slice(first, DOCUMENT_ROWS), part.values[first : first + DOCUMENT_ROWS]
            for start in starts:
                rows = slice(start, start + QUERY_ROWS)
                found = _find_better(queries[rows], documents, bounds[rows], top_k)
                if len(found[0]):
                    more = pa.table([pa.array(found[0]), ids.take(pa.array(found[1])), pa.array(found[2])], BEST_SCHEMA)
                    best[start] = keep_best(pa.concat_tables([best[start], more]), top_k, distinct=distinct)
                    bounds[rows] = _find_bounds(best[start], len(queries[rows]), top_k)
    numbered = []
    for start, table in best.items():
        query = pa.array(table.column("query").to_numpy() + np.int32(start))
        numbered.append(table.set_column(0, BEST_SCHEMA.field(0), query))
    return pa.concat_tables([BEST_SCHEMA.empty_table(), *numbered])


def keep_best(table: pa.Table, top_k: int, *, distinct: bool = False) -> pa.Table:
    """Return the best rows of each query, best first; further columns are lost where each document is to be there once."""
    if distinct:
        once = table.group_by(["query", "document_id"]).aggregate([("cosine", "max")])
        table = once.select(["query", "document_id", "cosine_max"]).rename_columns(BEST_SCHEMA.names).cast(BEST_SCHEMA)
    table = table.sort_by(ORDER)
    query = table.column("query").to_numpy()
    places = np.arange(len(query)) - np.searchsorted(query, query)
    return table.filter(pa.array(places < top_k))


def _find_better(
    queries: np.ndarray, documents: np.ndarray, bounds: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return query, document and cosine of the pairs of a block that may be among the best."""
    products = queries @ documents.T
    if top_k < len(documents) and not np.isfinite(bounds).all():
        own = np.partition(products, len(documents) - top_k, axis=1)[:, len(documents) - top_k]
        bounds = np.maximum(bounds, own)
    query, document = np.nonzero(products >= (bounds - np.float32(SLACK))[:, None])
    cosines = np.empty(len(query), np.float32)
    step = max(1, PRODUCT_NUMBERS // queries.shape[1])
    for start in range(0, len(query), step):
        left = queries[query[start : start + step]].astype(np.float64)
        right = documents[document[start : start + step]].astype(np.float64)
        cosines[start : start + step] = np.einsum("ij,ij->i", left, right)
    return query.astype(np.int32), document, cosines


def _find_bounds(best: pa.Table, num_queries: int, top_k: int) -> np.ndarray:
    """Return the least cosine among the best of each query, minus infinity where there are fewer than are wanted."""
    query, cosines = best.column("query").to_numpy(), best.column("cosine").to_numpy()
    ends = np.searchsorted(query, np.arange(num_queries), side="right")
    counts = np.bincount(query, minlength=num_queries)
    return np.where(counts >= top_k, cosines[np.maximum(ends - 1, 0)], np.float32(-np.inf))
