"""Random negatives: documents of the corpus that no query was scored with, a few for each query.

A pool of documents is drawn once, those whose hashes with the seed are lowest, so that it does not depend on how the corpus
lies; a query takes from it at random what is none of its candidates, nor judged for it, the query itself or empty, nor one of
these in another writing or under another id. Corpus is what rows name by id, or else all scored documents. Knows no scores.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.text_sources import SourcePiece, TextSource
from rerank_actor.mining.judging.verdicts import Verdicts
from rerank_actor.mining.near_duplicates import UNSEEN, strip_texts
from rerank_actor.mining.pairs import Columns, mark_scored, read_pairs
from rerank_actor.mining.select import mix
from rerank_actor.outputs.row_groups import batch_by_size, open_part
from rerank_actor.runtime.steps import TaskRunner
from rerank_actor.runtime.task_report import TaskFailure
from rerank_actor.storage.exchange import hash_keys

POOL_DOCUMENTS = 20_000
TASK_BYTES, PIECES_PER_TASK = 256 * 2**20, 32
ROLES = ("document", "document_id", "title")

Piece = storage.StoredObject | SourcePiece


def draw_pool(
    parts: Sequence[storage.StoredObject],
    columns: Columns,
    sources: Sequence[TextSource],
    seed: int,
    runner: TaskRunner,
    judged: pa.Table | None = None,
) -> pa.Table:
    """Draw the documents that queries take random negatives from.

    Args:
        parts: the scored files.
        columns: what their columns are called.
        sources: what rows name by id; where documents are among them, these are the corpus.
        seed: of the draw.
        runner: runs the tasks.
        judged: judgements as `query_id` and `document_id`, None for none.

    Returns:
        `document` and, where there are, `document_id` and `title`, each document once, in random order; with judgements also
        `judged`, a list of the ids of judged documents that have the text of this one.

    Raises:
        InputError: a file cannot be read.
        RunInterruptedError, OutputConflictError, RerankError: the run was ended.
    """
    corpus = next((source for source in sources if source.role == "document"), None)
    pieces: list[Piece] = [*parts] if corpus is None else [*corpus.cut()]
    bundles = batch_by_size(pieces, lambda piece: piece.size, TASK_BYTES, PIECES_PER_TASK)
    pool: pa.Table | None = None
    texts: list[pa.Table] = []
    ids = pc.unique(judged["document_id"]) if judged is not None else None
    work = functools.partial(draw_some, columns=columns, corpus=corpus, seed=seed, judged=ids)
    with contextlib.closing(runner.run_tasks(work, bundles)) as reports:
        for _, report in reports:
            if isinstance(report, TaskFailure):
                raise InputError(f"{report.reason}; nothing was mined")
            if len(report["pool"]):
                pool = _draw([*([pool] if pool is not None else []), unpack_pool(report["pool"])], seed)
            if len(report["judged"]):
                texts.append(unpack_pool(report["judged"]))
    if pool is None or not pool.num_rows:
        raise InputError("--random-negatives: there is no document to draw from")
    return pool if judged is None else _add_judged(pool, texts)


def _add_judged(pool: pa.Table, texts: list[pa.Table]) -> pa.Table:
    """Return a pool with the ids of judged documents that have the text of each of its own."""
    ids: dict[int, list[str]] = {}
    for table in texts:
        for text, name in zip(table["text"].to_pylist(), table["document_id"].to_pylist(), strict=True):
            ids.setdefault(text, []).append(name)
    found = [ids.get(text, []) for text in _hash_texts(pool["document"]).tolist()]
    return pool.append_column("judged", pa.array(found, pa.list_(pa.large_string())))


def draw_some(
    bundle: Sequence[Piece], columns: Columns, corpus: TextSource | None, seed: int, judged: pa.Array | None = None
) -> dict[str, Any]:
    """Return as `pool` the documents of some files that a pool of these alone would have, packed.

    And as `judged` hashes of the texts, and the ids, of the documents with some ids.
    """
    pool: pa.Table | None = None
    texts: list[pa.Table] = []
    for piece in bundle:
        for table, is_offered in _read_scored(piece, columns) if corpus is None else _read_corpus(piece, corpus):
            if judged is not None:
                own = table.filter(pc.is_in(table["document_id"], value_set=judged.cast(pa.large_string())))
                hashes = pa.array(_hash_texts(own["document"]))
                texts.append(pa.table({"text": hashes, "document_id": own["document_id"]}))
            pool = _draw([*([pool] if pool is not None else []), table.filter(is_offered)], seed)
    known = pa.concat_tables(texts).group_by(["text", "document_id"]).aggregate([]) if texts else None
    packed = {
        name: pack_pool(table) if table is not None else b"" for name, table in (("pool", pool), ("judged", known))
    }
    return {name: np.frombuffer(data, np.uint8) for name, data in packed.items()}


def _hash_texts(documents: pa.ChunkedArray) -> np.ndarray:
    """Return a hash of each text, one for those that differ in their writing alone."""
    return hash_keys(strip_texts(documents.combine_chunks().cast(pa.large_string())))


def pack_pool(pool: pa.Table) -> bytes:
    """Return a pool as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pool.schema) as writer:
        writer.write_table(pool)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack_pool(data: Any) -> pa.Table:
    """Rebuild the pool that `pack_pool` packed."""
    return pa.ipc.open_stream(pa.py_buffer(data)).read_all()


def _read_scored(piece: Any, columns: Columns) -> Iterator[tuple[pa.Table, pa.Array]]:
    """Yield documents, and which of them have a score."""
    with open_part(piece) as file:
        for group in range(file.metadata.num_row_groups):
            pairs = read_pairs(file, piece.uri, [group], columns, ROLES, 0).table
            documents = _widen(pairs.select([role for role in ROLES if role in pairs.column_names]))
            yield documents, pa.array(mark_scored(pairs, columns))


def _read_corpus(piece: Any, corpus: TextSource) -> Iterator[tuple[pa.Table, pa.Array]]:
    """Yield documents, each of which is one to draw."""
    for table in corpus.read(piece):
        if isinstance(table, pa.Table):
            sound = table.filter(pc.and_(pc.is_null(table["fault"]), pc.is_valid(table["text"])))
            documents = _widen(sound.select(["text", "key"]).rename_columns(["document", "document_id"]))
            yield documents, pa.array(np.ones(documents.num_rows, bool))


def _draw(tables: Iterable[pa.Table], seed: int) -> pa.Table:
    """Return each text once that is not empty, those with the lowest draws: of the rows of a text that with the lowest id."""
    table = pa.concat_tables(tables)
    table = table.filter(pc.invert(pc.match_substring_regex(table["document"], UNSEEN)))
    draws = mix(hash_keys(table["document"].combine_chunks()) + mix(np.array([seed], np.uint64)))
    table = table.append_column("draw", pa.array(draws))
    table = table.sort_by([(name, "ascending") for name in ("draw", *table.column_names[:-1])])
    draws = table["draw"].to_numpy()
    is_first = np.ones(len(draws), bool)
    is_first[1:] = draws[1:] != draws[:-1]
    return table.take(pa.array(np.flatnonzero(is_first)[:POOL_DOCUMENTS])).drop_columns(["draw"])


def _widen(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names]))


def join_judged(qrels: pa.Table | None, verdicts: Verdicts | None) -> pa.Table | None:
    """Return the pairs that are judged relevant, or not surely none, as `query_id` and `document_id`; None for none."""
    tables = [qrels.select(["query_id", "document_id"])] if qrels is not None else []
    if verdicts is not None and verdicts.by_ids:
        ids = pc.split_pattern(verdicts.no_negatives, "\x1f")
        columns = [pc.list_element(ids, place) for place in range(2)]
        tables.append(pa.table(columns, ["query_id", "document_id"]))
    return pa.concat_tables(map(_widen, tables)) if tables else None


def add_random_negatives(
    table: pa.Table,
    query: np.ndarray,
    asked: np.ndarray,
    kept: np.ndarray,
    pool: pa.Table,
    number: int,
    seeds: np.ndarray,
    judged: pa.Table | None = None,
    others: tuple[pa.ChunkedArray, np.ndarray] | None = None,
    is_judged: Callable[[int, int], bool] = lambda row, place: False,
) -> tuple[pa.Table, np.ndarray]:
    """Return the pairs with random negatives behind them, and the query of each.

    Args:
        table: all pairs of some queries.
        query: int64 [num_pairs], number of each pair's query.
        asked: int64 [num_queries], equal for queries that ask the same.
        kept: int64, the queries that get random negatives.
        pool: to take them from.
        number: for each query.
        seeds: uint64 [num_queries], of each query's draws.
        judged: judgements as `query_id` and `document_id`, whose documents are no negatives; None for none.
        others: more documents that are no negatives, and int64, the queries (numbers as in `asked`) that they are none of.
        is_judged: tells of a row of the table and of one of the pool whether the query of one has a verdict on the other.
    """
    num_pairs, (more, more_asked) = len(query), others or (table["document"].slice(0, 0), np.zeros(0, np.int64))
    texts = _number_texts([table["document"], more, table["query"], pool["document"]])
    own, themselves, offered = np.split(texts, np.cumsum([num_pairs + len(more_asked), num_pairs]))
    choices = offered.tolist()
    ids = pool["judged"].to_pylist() if judged is not None else []
    of_queries = _group_positives(table["query_id"], judged) if judged is not None else {}
    asking_rows = np.concatenate([asked[query], more_asked])
    order = np.argsort(asking_rows, kind="stable")
    starts = np.searchsorted(asking_rows[order], np.stack([asked[kept], asked[kept] + 1]))
    firsts = np.unique(query, return_index=True)[1][kept]
    owners, places = [], []
    for first, start, end in zip(firsts.tolist(), *starts.tolist(), strict=True):
        rows = order[start:end]
        taken = {*own[rows].tolist(), int(themselves[first])}
        asking = table["query_id"].take(pa.array(rows[rows < num_pairs])).unique().to_pylist() if of_queries else []
        positives = set().union(*(of_queries.get(one, ()) for one in asking))
        draw = random.Random(int(seeds[query[first]]))
        found: list[int] = []
        for place in _shuffle(len(choices), draw):
            if len(found) == number:
                break
            is_free = choices[place] not in taken and not (positives and not positives.isdisjoint(ids[place]))
            if is_free and not is_judged(first, place):
                taken.add(choices[place])
                found.append(place)
        owners += [first] * len(found)
        places += found
    of_query = [name for name in ("query", "query_id", "instruction") if name in table.column_names]
    added = {name: table[name].take(pa.array(owners, pa.int64())) for name in of_query}
    added |= {name: pool[name].take(pa.array(places, pa.int64())) for name in ROLES if name in pool.column_names}
    columns = {
        field.name: added[field.name].cast(field.type) if field.name in added else pa.nulls(len(places), field.type)
        for field in table.schema
    }
    for name in {"score", "logit"} & set(columns):
        columns[name] = pa.array(np.full(len(places), np.nan, np.float32))
    columns["position"] = pa.array(np.full(len(places), -1, np.int64))
    return pa.concat_tables([table, pa.table(columns, schema=table.schema)]), np.concatenate([query, query[owners]])


def _number_texts(columns: Iterable[pa.ChunkedArray]) -> np.ndarray:
    """Return a number for each text, equal where they differ in case, space and punctuation at the ends at most."""
    texts = pa.concat_arrays([strip_texts(column.cast(pa.large_string()).combine_chunks()) for column in columns])
    numbers: np.ndarray = texts.dictionary_encode().indices.to_numpy()
    return numbers


def _group_positives(queries: pa.ChunkedArray, judged: pa.Table) -> dict[str, list[str]]:
    """Return the documents that are judged for each of some queries, by its id."""
    known = judged.filter(pc.is_in(judged["query_id"], value_set=pc.unique(queries).cast(judged["query_id"].type)))
    documents: dict[str, list[str]] = {}
    for query, document in zip(known["query_id"].to_pylist(), known["document_id"].to_pylist(), strict=True):
        documents.setdefault(query, []).append(document)
    return documents


def _shuffle(size: int, draw: random.Random) -> Iterator[int]:
    """Yield the numbers below a size, each once, in random order, at the cost of those that are asked for."""
    moved: dict[int, int] = {}
    for left in range(size, 0, -1):
        place = int(draw.random() * left)
        yield moved.get(place, place)
        moved[place] = moved.get(left - 1, left - 1)
