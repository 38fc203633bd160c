"""What the tests of mining share: scored parts as the scoring job leaves them, and rows of mined parts."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor.engines.base import compute_score

FINGERPRINT = {"rerank_actor.fingerprint": "f" * 32, "rerank_actor.instruction": "Find the answer"}

SCHEMA = pa.schema(
    {
        "query_id": pa.string(),
        "query": pa.string(),
        "document_id": pa.int64(),
        "document": pa.string(),
        "label": pa.int64(),
        "score": pa.float32(),
        "logit": pa.float32(),
        "error": pa.string(),
    }
)


def make_pairs(num_queries: int = 20, per_query: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Return scored pairs, by query; the first of each query is positive."""
    draw = np.random.default_rng(seed)
    rows = []
    for query in range(num_queries):
        for place in range(per_query):
            logit = np.float32(draw.normal(4 if place == 0 else 0, 2))
            rows.append(
                {
                    "query_id": f"q{query}",
                    "query": f"query number {query}",
                    "document_id": 1000 * query + place,
                    "document": f"document {place} of {query}",
                    "label": int(place == 0),
                    "score": compute_score(np.array([logit]))[0],
                    "logit": logit,
                    "error": None,
                }
            )
    return rows


def write_scored(
    folder: Path, rows: list[dict[str, Any]], part_rows: int = 1000, metadata: dict[str, str] | None = None
) -> Path:
    """Write rows as scored parts of so many rows; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), part_rows)):
        table = pa.Table.from_pylist(rows[start : start + part_rows], SCHEMA)
        table = table.replace_schema_metadata(FINGERPRINT if metadata is None else metadata)
        pq.write_table(table, folder / f"part-{'0' * 12}-{number:05d}.parquet")
    return folder


def scatter(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Return the rows in another order, in which those of a query lie apart."""
    return random.Random(seed).sample(rows, len(rows))


def group(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the rows as the scoring job leaves lists of documents: a row for each query."""
    lists = ("document_id", "document", "label", "score", "logit", "error")
    queries: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = queries.setdefault(row["query_id"], {"query_id": row["query_id"], "query": row["query"]})
        for name in lists:
            own.setdefault(name, []).append(row[name])
    schema = pa.schema(
        [field if field.name not in lists else pa.field(field.name, pa.list_(field.type)) for field in SCHEMA]
    )
    return pa.Table.from_pylist(list(queries.values()), schema).replace_schema_metadata(FINGERPRINT)


def read_mined(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of mined Parquet, in order of parts."""
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def sort_rows(rows: list[dict[str, Any]]) -> list[str]:
    """Return rows as texts, in an order of their own."""
    return sorted(map(repr, rows))
