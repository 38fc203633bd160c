"""Judgements: which document is relevant to which query, from a qrels file.

Takes what `files` reads: TREC's four fields (query, iteration, document, relevance; blanks or tabs) and BEIR's TSV
(query-id, corpus-id, score; with or without a header), also packed; and Parquet, JSON lines and CSV with such columns, as
MTEB and the hub have them. Gives all of it by query and document, or what is positive as two columns of ids, and marks pairs
with it; ids are compared as text. Knows nothing of scores.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import read_batches, refuse_broken
from rerank_actor.inputs.formats import find_format
from rerank_actor.inputs.ids import read_id
from rerank_actor.inputs.rankings.files import RankingFile, iterate_ranking
from rerank_actor.inputs.rankings.lines import choose_qrels_columns

SCHEMA = pa.schema({"query_id": pa.string(), "document_id": pa.string()})


def iterate_qrels(uri: str) -> Iterator[tuple[str, str, float]]:
    """Yield query, document and relevance of each judgement of a file.

    Raises:
        InputError: it is not there, or a line is no judgement.
        StorageError, JobError: it cannot be read.
    """
    if any(item.uri != uri for item in storage.list_objects(uri)):
        raise InputError(
            f"--qrels {uri}: is a folder or a glob; name the one file of judgements that is meant", uri=uri
        )
    kind, compression = find_format(uri)
    with refuse_broken(uri, "qrels", "--qrels"):
        if kind in ("parquet", "jsonl", "csv"):
            yield from _iterate_columns(uri, cast(Any, kind), compression)
            return
        for line in iterate_ranking(RankingFile(uri, None, "", "qrels", compression, any_header=True)):
            if line.values is None:
                raise InputError(
                    f"--qrels {uri}: line {line.number} is no judgement ({line.fault}); expected query, iteration, "
                    "document, relevance (TREC) or query, document, relevance separated by tabs (BEIR)",
                    uri=uri,
                    row=line.number,
                )
            yield line.values["query_id"], line.values["document_id"], line.values["relevance"]


def _iterate_columns(
    uri: str, kind: Literal["parquet", "jsonl", "csv"], compression: str
) -> Iterator[tuple[str, str, float]]:
    """Yield the judgements of a file with columns; where none is of relevance, all are relevant."""
    objects = storage.list_objects(uri)
    if [item.uri for item in objects] != [uri]:
        raise InputError(f"--qrels {uri}: no such file", uri=uri)
    chosen = None
    for batch in read_batches(objects[0], kind, compression):
        query, document, relevance = choose_qrels_columns(batch.names, f"--qrels {uri}")
        if (chosen := chosen or (query, document, relevance)) != (query, document, relevance):
            raise InputError(f"--qrels {uri}: {batch.describe(0)} and others before have other columns", uri=uri)
        grades = batch.values(relevance) if relevance is not None else [1] * batch.num_rows
        rows = zip(batch.values(query), batch.values(document), grades, strict=True)
        for row, (query_id, document_id, grade) in enumerate(rows):
            ids, number = (read_id(query_id), read_id(document_id)), _read_grade(grade)
            if row in batch.faults or ids[0] is None or ids[1] is None or number is None:
                fault = batch.faults.get(row, f"expected ids in `{query}` and `{document}` and a number of relevance")
                raise InputError(f"--qrels {uri}: {batch.describe(row)} is no judgement ({fault})", uri=uri)
            yield ids[0], ids[1], number


def _read_grade(value: Any) -> float | None:
    """Return a relevance as a number, None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def load_qrels(uri: str, min_relevance: float) -> pa.Table:
    """Return the positive judgements of a file: string columns `query_id` and `document_id`, each pair once.

    Raises:
        InputError: as `iterate_qrels`, none is positive, or one pair has two.
        StorageError, JobError: it cannot be read.
    """
    columns = list(zip(*iterate_qrels(uri), strict=True)) or [(), (), ()]
    grades = pa.table(columns, schema=SCHEMA.append(pa.field("relevance", pa.float64())))
    judged = grades.group_by(SCHEMA.names).aggregate([("relevance", "min"), ("relevance", "max")])
    twice = judged.filter(pc.not_equal(judged["relevance_min"], judged["relevance_max"]))
    for query, document, *found in zip(*twice.slice(0, 1).to_pydict().values(), strict=True):
        raise _refuse_two(uri, query, document, *found)
    positive = judged.filter(pc.greater_equal(judged["relevance_max"], min_relevance)).select(SCHEMA.names)
    if not positive.num_rows:
        raise InputError(
            f"--qrels {uri}: none of its {grades.num_rows:,} judgements has a relevance of at least {min_relevance:g}; check "
            "the file, or lower --min-relevance",
            uri=uri,
        )
    return positive


def _refuse_two(uri: str, query: str, document: str, first: float, second: float) -> InputError:
    return InputError(
        f"--qrels {uri}: document {document!r} is judged twice for query {query!r}, with {first:g} and {second:g}; leave one "
        "of them",
        uri=uri,
    )


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
            raise _refuse_two(uri, query, document, first, relevance)
    return judgements


@dataclass(frozen=True)
class Judged:
    """What judgements say of some pairs.

    Attributes:
        positive: bool [num_pairs], which are judged positive.
        num_queries: queries of these pairs that have a positive judgement.
        num_missing: positive judgements of these queries that no pair meets.
        num_lacking: queries that these are of.
    """

    positive: np.ndarray
    num_queries: int
    num_missing: int
    num_lacking: int


def mark_judged(query_ids: pa.ChunkedArray, document_ids: pa.ChunkedArray, qrels: pa.Table) -> Judged:
    """Return which pairs are judged positive, and what judgements of their queries no pair meets."""
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
    missing = qrels["query_id"].filter(pa.array(~np.isin(judged, pairs)))
    return Judged(
        positive=np.isin(pairs, judged) & (pairs >= 0),
        num_queries=len(pc.unique(qrels["query_id"])),
        num_missing=len(missing),
        num_lacking=len(pc.unique(missing)),
    )
