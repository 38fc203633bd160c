"""Tasks of the search: ids that stand twice, the best of a group of documents, and the candidates of some queries as a file.

Each reads parts from storage and writes what it found there; records are small. Knows nothing of Ray.
"""

import io
import itertools
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.columnar import read_own_table
from rerank_actor.outputs.delivered import digest_bytes
from rerank_actor.outputs.predictions import PredictionsWriter
from rerank_actor.retrieval.job import OutputFormat
from rerank_actor.retrieval.search import keep_best, search
from rerank_actor.retrieval.vectors import VectorPart, Vectors, read_part, read_part_ids
from rerank_actor.storage.exchange import Exchange, Slice, assign_buckets, hash_keys, read_slices
from rerank_actor.storage.lease import LeaseMark, write_held

TAG = "retrieve"
BLANK = r"\s"


@dataclass(frozen=True)
class SearchPlace:
    """Where a search keeps what it finds.

    Attributes:
        partial: folder of the best of groups of documents.
        candidates: folder of the candidates.
        scratch: folder for temporary files on the same file system.
        lease: of the output; None where nobody else can write.
    """

    partial: str
    candidates: str
    scratch: str | None
    lease: LeaseMark | None = None

    def write(self, name: str, data: bytes) -> dict[str, Any]:
        """Write a file of candidates while the lease is held; return its size and digest by its name, for the record."""
        write_held(self.lease, storage.join_uri(self.candidates, name), data, self.scratch)
        return {"objects": {name: len(data)}, "digests": {name: digest_bytes(data)}}


@dataclass(frozen=True)
class SearchBlock:
    """Some parts of queries against some parts of documents; of pairs of texts that stand for themselves where `distinct`."""

    name: str
    queries: tuple[VectorPart, ...]
    documents: tuple[VectorPart, ...]
    distinct: bool = False


def find_twice(item: tuple[str, Sequence[VectorPart], int, int]) -> dict[str, Any]:
    """Return how many ids stand more than once and the first of them, of those whose hash is of one number of several.

    Raises:
        InputError: there is one.
    """
    flag, parts, number, numbers = item
    found: list[pa.Array] = []
    for part in parts:
        ids = read_part_ids(part).drop_null()
        found.append(ids.filter(pa.array(assign_buckets(hash_keys(ids), numbers) == number)))
    counts = pc.value_counts(pa.chunked_array(found, pa.string()))
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise InputError(
            f"{flag}: {len(twice):,} ids stand more than once, {pc.min(twice.field('values')).as_py()!r} among them, and a "
            "candidate names its text by its id; give each text an id of its own, or take the doubled rows out"
        )
    return {"ids": sum(map(len, found))}


def search_block(block: SearchBlock, top_k: int, place: SearchPlace) -> dict[str, Any]:
    """Write the best documents of a block for each of its queries; return what was left out of it, and what is blank."""
    left_out: Counter[str] = Counter()
    empty: Counter[str] = Counter()

    def read_documents() -> Iterator[Vectors]:
        for part in block.documents:
            vectors = read_part(part, distinct=block.distinct)
            left_out.update(vectors.left_out)
            empty["documents"] += vectors.num_empty
            yield vectors

    queries = [read_part(part, distinct=block.distinct) for part in block.queries]
    values = np.concatenate([part.values for part in queries])
    best = search(values, read_documents(), top_k, distinct=block.distinct)
    ids = pa.concat_arrays([part.ids for part in queries])
    left_queries: Counter[str] = Counter()
    for part in queries:
        left_queries.update(part.left_out)
        empty["queries"] += part.num_empty
    table = best.append_column("query_id", ids.take(best.column("query").combine_chunks()))
    uri = storage.join_uri(place.partial, f"{block.name}.parquet")
    storage.write_bytes(uri, storage.to_parquet(table), scratch=place.scratch)
    counts = {"left_out": left_out, "left_queries": left_queries, "empty": empty}
    return {"queries": len(values), **{name: dict(found) for name, found in counts.items()}}


def write_candidates(
    item: tuple[str, Sequence[str]], top_k: int, output_format: OutputFormat, place: SearchPlace
) -> dict[str, Any]:
    """Write the candidates of some queries, of all groups of documents; return how many there are.

    Raises:
        InputError: an id has a blank in it, which a TREC run cannot hold.
    """
    name, blocks = item
    table = _read_best(blocks, top_k, place)
    query = table.column("query").to_numpy()
    ranks = pa.array(np.arange(len(query)) - np.searchsorted(query, query) + 1, pa.int64())
    candidates = pa.table(
        {
            "query_id": table.column("query_id"),
            "document_id": table.column("document_id"),
            "rank": ranks,
            "retrieval_score": table.column("cosine"),
        }
    )
    content = _write_trec(candidates) if output_format == "trec" else storage.to_parquet(candidates)
    written = place.write(f"{name}.{output_format}", content)
    return {"queries": len(np.unique(query)), "candidates": len(query), **written}


def write_predictions(
    item: tuple[str, Sequence[Sequence[str]]], top_k: int, model: tuple[str, str | None], place: SearchPlace
) -> dict[str, Any]:
    """Write the candidates of all queries as one JSON, a group of queries in memory at a time; return how many there are."""
    name, groups = item
    num_candidates = 0
    with io.BytesIO() as sink, io.TextIOWrapper(sink, "utf-8") as text:
        writer = PredictionsWriter(text, *model)
        for blocks in groups:
            table = _read_best(blocks, top_k, place)
            num_candidates += table.num_rows
            rows = zip(*(table.column(name).to_pylist() for name in ("query_id", "document_id", "cosine")), strict=True)
            for query, candidates in itertools.groupby(rows, key=operator.itemgetter(0)):
                writer.write(query, {document: cosine for _, document, cosine in candidates})
        writer.finish()
        text.flush()
        return {"candidates": num_candidates, **place.write(f"{name}.json", sink.getvalue())}


def _read_best(blocks: Sequence[str], top_k: int, place: SearchPlace) -> pa.Table:
    """Return the best of the same queries in several blocks."""
    data = [storage.read_bytes(storage.join_uri(place.partial, f"{block}.parquet")) for block in blocks]
    return keep_best(pa.concat_tables([read_own_table(part) for part in data]), top_k)


def spill_pairs(
    item: tuple[str, Sequence[str], bool], top_k: int, exchange: Exchange, place: SearchPlace
) -> dict[str, Any]:
    """Write the candidates of some sentences for the exchange that brings a pair together with itself.

    Args:
        item: name, blocks, and whether the queries were targets.
        top_k: candidates of a sentence at most.
        exchange: of pairs.
        place: of the search.
    """
    name, blocks, is_backward = item
    tables = [_read_best([block], top_k, place) for block in blocks]
    table = pa.concat_tables(tables)
    # A text of several documents' groups may be there several times; the best of each query are chosen without these.
    once = table.group_by(["query", "query_id", "document_id"]).aggregate([("cosine", "max")])
    once = once.rename_columns([column.removesuffix("_max") for column in once.column_names])
    best = keep_best(once, top_k)
    sides = ("document_id", "query_id") if is_backward else ("query_id", "document_id")
    pairs = pa.table(
        [best.column(sides[0]), best.column(sides[1]), best.column("cosine")], ["source", "target", "cosine"]
    )
    keys = pc.binary_join_element_wise(pairs.column("source"), pairs.column("target"), "\0").combine_chunks()
    return {"spilled": exchange.write(f"{name}.bin", pairs, assign_buckets(hash_keys(keys), exchange.num_buckets))}


def write_pairs(item: tuple[str, list[Slice]], place: SearchPlace) -> dict[str, Any]:
    """Write the pairs of a bucket, each once, as `jobs.bitext` reads candidates."""
    name, slices = item
    table = read_slices(slices)
    if table is None:
        return {"candidates": 0}
    pairs = table.group_by(["source", "target"]).aggregate([("cosine", "max")])
    pairs = pairs.sort_by([("source", "ascending"), ("cosine_max", "descending"), ("target", "ascending")])
    columns = {"source": pairs["source"], "target": pairs["target"], "candidate_score": pairs["cosine_max"]}
    return {"candidates": pairs.num_rows, **place.write(f"{name}.parquet", storage.to_parquet(pa.table(columns)))}


def _write_trec(candidates: pa.Table) -> bytes:
    for name in ("query_id", "document_id"):
        ids = candidates.column(name)
        blank = ids.filter(pc.match_substring_regex(ids, BLANK))
        if len(blank):
            raise InputError(
                f"id {blank[0].as_py()!r} has a blank in it, which a TREC run cannot hold; give --output-format parquet"
            )
    columns = [candidates.column(name).to_pylist() for name in ("query_id", "document_id", "rank", "retrieval_score")]
    lines = (
        f"{query} Q0 {document} {rank} {cosine:.9g} {TAG}\n"
        for query, document, rank, cosine in zip(*columns, strict=True)
    )
    return "".join(lines).encode()
