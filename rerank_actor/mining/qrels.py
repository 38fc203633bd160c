"""Judgements: which document is relevant to which query, from a qrels file.

Takes what `inputs.rankings` reads: TREC's four fields (query, iteration, document, relevance; blanks or tabs) and BEIR's TSV
(query-id, corpus-id, score; with or without a header), also packed. Gives all of it by query and document, or what is
positive as two columns of ids, and marks pairs with it; ids are compared as text, blanks around them apart. Knows nothing of
scores.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import refuse_broken
from rerank_actor.inputs.formats import find_format
from rerank_actor.inputs.rankings import RankingFile, iterate_ranking

SCHEMA = pa.schema({"query_id": pa.string(), "document_id": pa.string()})


def iterate_qrels(uri: str) -> Iterator[tuple[str, str, float]]:
    """Yield query, document and relevance of each judgement of a file.

    Raises:
        InputError: it is not there, or a line is no judgement.
        StorageError, JobError: it cannot be read.
    """
    with refuse_broken(uri, "qrels", "--qrels"):
        for line in iterate_ranking(RankingFile(uri, None, "", "qrels", find_format(uri)[1], any_header=True)):
            if line.values is None:
                raise InputError(
                    f"--qrels {uri}: line {line.number} is no judgement ({line.fault}); expected query, iteration, "
                    "document, relevance (TREC) or query, document, relevance separated by tabs (BEIR)",
                    uri=uri,
                    row=line.number,
                )
            yield line.values["query_id"], line.values["document_id"], line.values["relevance"]


def load_qrels(uri: str, min_relevance: float) -> pa.Table:
    """Return the positive judgements of a file: string columns `query_id` and `document_id`, each pair once.

    Raises:
        InputError: as `iterate_qrels`, or none is positive.
        StorageError, JobError: it cannot be read.
    """
    queries, documents = [], []
    total = 0
    for query, document, relevance in iterate_qrels(uri):
        total += 1
        if relevance >= min_relevance:
            queries.append(query)
            documents.append(document)
    if not queries:
        raise InputError(
            f"--qrels {uri}: none of its {total:,} judgements has a relevance of at least {min_relevance:g}; check the "
            "file, or lower --min-relevance",
            uri=uri,
        )
    judged = pa.table([queries, documents], schema=SCHEMA)
    return judged.group_by(["query_id", "document_id"]).aggregate([])


def load_judgements(uri: str) -> dict[str, dict[str, int]]:
    """Return all judgements of a file: relevance by query and document.

    Raises:
        InputError: as `iterate_qrels`, a relevance is no whole number, or one pair has two.
        StorageError, JobError: it cannot be read.
    """
    judgements: dict[str, dict[str, int]] = {}
    for query, document, relevance in iterate_qrels(uri):
        if not relevance.is_integer():
            raise InputError(
                f"--qrels {uri}: the relevance {relevance:g} of document {document!r} for query {query!r} is no whole number, "
                "which measures of graded relevance need",
                uri=uri,
            )
        first = judgements.setdefault(query, {}).setdefault(document, int(relevance))
        if first != relevance:
            raise InputError(
                f"--qrels {uri}: document {document!r} is judged twice for query {query!r}, with {first} and {relevance:g}; "
                "leave one of them",
                uri=uri,
            )
    return judgements


def mark_judged(query_ids: pa.ChunkedArray, document_ids: pa.ChunkedArray, qrels: pa.Table) -> tuple[np.ndarray, int]:
    """Return which pairs are judged positive, bool [num_pairs], and how many judgements of these queries no pair meets."""
    known_queries = pc.unique(query_ids)
    qrels = qrels.filter(pc.is_in(qrels["query_id"], value_set=known_queries))
    documents = pc.unique(qrels["document_id"])
    width = len(documents)

    def encode(queries: pa.ChunkedArray, names: pa.ChunkedArray) -> np.ndarray:
        query = pc.index_in(queries, value_set=known_queries).to_numpy().astype(np.float64)
        document = pc.index_in(names, value_set=documents).to_numpy().astype(np.float64)
        known = np.isfinite(query) & np.isfinite(document)
        return np.where(known, np.nan_to_num(query) * width + np.nan_to_num(document), -1).astype(np.int64)

    judged = encode(qrels["query_id"], qrels["document_id"])
    pairs = encode(query_ids, document_ids)
    is_judged = np.isin(pairs, judged) & (pairs >= 0)
    return is_judged, int((~np.isin(judged, pairs)).sum())
