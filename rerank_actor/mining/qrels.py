"""Judgements: which document is relevant to which query, from a qrels file.

Reads TREC's four fields (query, iteration, document, relevance; blanks or tabs) and BEIR's TSV (query-id, corpus-id,
score; with a header). Keeps what is positive, as two columns of ids, and marks pairs with it; ids are compared as text,
exactly. Knows nothing of scores.
"""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError

SCHEMA = pa.schema({"query_id": pa.string(), "document_id": pa.string()})


def load_qrels(uri: str, min_relevance: float) -> pa.Table:
    """Return the positive judgements of a file: string columns `query_id` and `document_id`, each pair once.

    Raises:
        InputError: it is not there, a line is no judgement, or none is positive.
        StorageError, JobError: it cannot be read.
    """
    data = storage.read_bytes(uri)
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"--qrels {uri}: not a text file ({type(error).__name__})", uri=uri) from None
    queries, documents = [], []
    total = 0
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not any(fields) or (number == 1 and _is_header(fields)):
            continue
        total += 1
        try:
            query, document, relevance = fields if len(fields) == 3 else (fields[0], fields[2], fields[3])
            is_positive = float(relevance) >= min_relevance
        except (ValueError, IndexError):
            raise InputError(
                f"--qrels {uri}: line {number} is no judgement; expected query, iteration, document, relevance (TREC) or "
                "query, document, relevance separated by tabs (BEIR)",
                uri=uri,
                row=number,
            ) from None
        if is_positive:
            queries.append(query)
            documents.append(document)
    if not queries:
        raise InputError(
            f"--qrels {uri}: none of its {total:,} judgements has a relevance of at least {min_relevance:g}; check the "
            "file, or lower --min-relevance",
            uri=uri,
        )
    found = pa.table([queries, documents], schema=SCHEMA)
    return found.group_by(["query_id", "document_id"]).aggregate([])


def _is_header(fields: list[str]) -> bool:
    try:
        float(fields[-1])
    except ValueError:
        return True
    return False


def mark_judged(query_ids: pa.ChunkedArray, document_ids: pa.ChunkedArray, qrels: pa.Table) -> tuple[np.ndarray, int]:
    """Return which pairs are judged positive, bool [num_pairs], and how many judgements of these queries no pair meets."""
    own = pc.unique(query_ids)
    qrels = qrels.filter(pc.is_in(qrels["query_id"], value_set=own))
    documents = pc.unique(qrels["document_id"])
    width = len(documents)

    def encode(queries: pa.ChunkedArray, names: pa.ChunkedArray) -> np.ndarray:
        query = pc.index_in(queries, value_set=own).to_numpy().astype(np.float64)
        document = pc.index_in(names, value_set=documents).to_numpy().astype(np.float64)
        known = np.isfinite(query) & np.isfinite(document)
        return np.where(known, np.nan_to_num(query) * width + np.nan_to_num(document), -1).astype(np.int64)

    judged = encode(qrels["query_id"], qrels["document_id"])
    pairs = encode(query_ids, document_ids)
    is_judged = np.isin(pairs, judged) & (pairs >= 0)
    return is_judged, int((~np.isin(judged, pairs)).sum())
