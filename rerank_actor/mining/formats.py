"""Formats: training data as the tools that train on them read it.

Takes what was chosen of some queries, gives the objects to write, by name. sentence-transformers gets Parquet with the
columns, rows and order of its own `mine_hard_negatives`; FlagEmbedding and Tevatron get JSON lines, Tevatron's distillation
a folder that the datasets library loads from disk; NeMo Automodel gets corpus-id JSON and the corpus beside it. Knows
nothing of scores, rules or storage.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from rerank_actor.errors import InputError
from rerank_actor.mining.examples import TrainingExamples

SUFFIXES = {
    "triplet": "parquet",
    "n-tuple": "parquet",
    "labeled-pair": "parquet",
    "labeled-list": "parquet",
    "flagembedding": "jsonl",
    "tevatron": "jsonl",
    "tevatron-distillation": "arrow",
    "nemo": "json",
}
CORPUS = "corpus"
QUERIES_AT_ONCE = 10_000


def build_objects(
    kind: str, unit: str, chosen: TrainingExamples, *, num_negatives: int, prompt: str | None
) -> dict[str, bytes]:
    """Return the objects of a unit, by their name in the output; none for a unit of which no query is kept.

    Args:
        kind: the format.
        unit: name of the unit.
        chosen: of its queries.
        num_negatives: of an n-tuple.
        prompt: instruction beside a query, where the format has one and the rows have none of their own.

    Raises:
        InputError: ids do not tell documents apart.
    """
    if not chosen.num_queries:
        return {}
    name, runs = f"part-{unit}.{SUFFIXES[kind]}", chosen.split(QUERIES_AT_ONCE)
    if kind in _TABLES:
        return {name: _to_parquet(_TABLES[kind](run, num_negatives) for run in runs)}
    if kind == "flagembedding":
        return {name: b"".join(_to_lines(_list_flagembedding(run, prompt)) for run in runs)}
    if kind == "tevatron":
        ranklist = b"".join(_rank(run) for run in chosen.split(QUERIES_AT_ONCE))
        return {name: b"".join(_to_lines(_list_tevatron(run)) for run in runs), f"ranklist-{unit}.tsv": ranklist}
    if kind == "tevatron-distillation":
        return {name: _to_arrow(_build_distillation(run) for run in runs)}
    return _build_nemo(name, unit, chosen)


def name_configuration(fingerprint: str) -> str:
    """Return the configuration of a dataset card; datasets 5 caches by that name and the pattern, not by what is there."""
    return f"mined-{fingerprint}"


def list_configurations(kind: str, fingerprint: str, folders: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the configurations of a dataset card: of all data, and of each value that was mined apart.

    Args:
        kind: the format.
        fingerprint: of the mining.
        folders: of the values, `column=value`; none where all data are in one folder.
    """
    files, values = f"part-*.{SUFFIXES[kind]}", sorted(set(folders))
    everything = f"{values[0].partition('=')[0]}=*/{files}" if values else files
    first = {"config_name": name_configuration(fingerprint), "data_files": everything, "default": True}
    return [first, *({"config_name": one.partition("=")[2], "data_files": f"{one}/{files}"} for one in values)]


def describe_dataset(kind: str, fingerprint: str, folders: Iterable[str] = ()) -> str:
    """Return a dataset card that tells Hugging Face's `load_dataset` which objects of the output are the data."""
    configurations = list_configurations(kind, fingerprint, folders)
    front = yaml.safe_dump({"configs": configurations}, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\nTraining data in the format {kind}: `{configurations[0]['data_files']}`.\n"


def describe_saved(names: list[str], fingerprint: str) -> dict[str, bytes]:
    """Return the objects that make Arrow files what `save_to_disk` of the datasets library writes (5.2), by name.

    `load_from_disk` takes the columns' types from the files.
    """
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    return {"dataset_info.json": b"{}", "state.json": json.dumps(state, indent=2).encode()}


def describe_corpus() -> bytes:
    """Return the file that NeMo Automodel wants beside the documents of a corpus."""
    return json.dumps({"corpus_id": CORPUS, "class": "TextQADataset"}).encode()


def _take(chosen: TrainingExamples, role: str, rows: np.ndarray) -> pa.Array:
    """Return a text column at some rows, as plain strings, which every reader of Parquet knows."""
    texts = chosen.table[role].take(pa.array(rows))
    return texts.combine_chunks().cast(pa.string()) if isinstance(texts, pa.ChunkedArray) else texts.cast(pa.string())


def _to_lists(values: pa.Array, lengths: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _list_teachers(chosen: TrainingExamples) -> list[tuple[str, np.ndarray]]:
    """Return what ends the name of each column of values, and the values: the one to train on, then each teacher's own."""
    own = [(f"_{number}", values) for number, values in chosen.own.items()]
    return [("", chosen.teacher), *own] if chosen.teacher is not None else []


def _build_triplets(chosen: TrainingExamples, num_negatives: int) -> pa.Table:
    positive, negative = chosen.pair_up()
    columns = {
        "anchor": _take(chosen, "query", positive),
        "positive": _take(chosen, "document", positive),
        "negative": _take(chosen, "document", negative),
    }
    for suffix, teacher in _list_teachers(chosen):
        values = np.stack([teacher[positive], teacher[negative]], axis=1).ravel()
        columns[f"scores{suffix}"] = _to_lists(pa.array(values), np.full(len(positive), 2))
    return pa.table(columns)


def _build_tuples(chosen: TrainingExamples, num_negatives: int) -> pa.Table:
    number = chosen.negatives_of_positives()
    _, negative = chosen.pair_up()
    is_whole = np.repeat(number, number) == num_negatives
    positives, negatives = chosen.positives[number == num_negatives], negative[is_whole].reshape(-1, num_negatives)
    columns = {"anchor": _take(chosen, "query", positives), "positive": _take(chosen, "document", positives)}
    for index in range(num_negatives):
        columns[f"negative_{index + 1}"] = _take(chosen, "document", negatives[:, index])
    for suffix, teacher in _list_teachers(chosen):
        values = teacher[np.concatenate([positives[:, None], negatives], axis=1)].ravel()
        columns[f"scores{suffix}"] = _to_lists(pa.array(values), np.full(len(positives), num_negatives + 1))
    return pa.table(columns)


def _build_pairs(chosen: TrainingExamples, num_negatives: int) -> pa.Table:
    queries = np.arange(chosen.num_queries)
    query = np.concatenate([np.repeat(queries, chosen.num_positives), np.repeat(queries, chosen.num_negatives)])
    order = np.argsort(query, kind="stable")  # of each query the positives first
    rows = np.concatenate([chosen.positives, chosen.negatives])[order]
    columns = {"anchor": _take(chosen, "query", rows), "document": _take(chosen, "document", rows)}
    for suffix, teacher in _list_teachers(chosen):
        columns[f"score{suffix}"] = pa.array(teacher[rows])
    if chosen.teacher is None:
        columns["label"] = pa.array((order < len(chosen.positives)).astype(np.int64))
    return pa.table(columns)


def _build_lists(chosen: TrainingExamples, num_negatives: int) -> pa.Table:
    rows, positives, lengths, is_positive = _list_rows(chosen)
    columns = {
        "anchor": _take(chosen, "query", positives),
        "documents": _to_lists(_take(chosen, "document", rows), lengths),
    }
    for suffix, teacher in _list_teachers(chosen):
        columns[f"scores{suffix}"] = _to_lists(pa.array(teacher[rows]), lengths)
    if chosen.teacher is None:
        columns["labels"] = _to_lists(pa.array(is_positive.astype(np.int64)), lengths)
    return pa.table(columns)


def _list_rows(chosen: TrainingExamples) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each positive with a negative, its row and its negatives' rows, all in one run.

    Returns:
        The run of rows, the positives' rows, the length of each list, and which rows of the run are a list's positive.
    """
    number = chosen.negatives_of_positives()
    _, negative = chosen.pair_up()
    owner = np.concatenate([np.arange(len(number)), np.repeat(np.arange(len(number)), number)])
    order = np.argsort(owner, kind="stable")  # the positive, then its negatives
    order = order[np.repeat(number > 0, number + 1)]
    rows = np.concatenate([chosen.positives, negative])[order]
    return rows, chosen.positives[number > 0], number[number > 0] + 1, order < len(number)


_TABLES: dict[str, Callable[[TrainingExamples, int], pa.Table]] = {
    "triplet": _build_triplets,
    "n-tuple": _build_tuples,
    "labeled-pair": _build_pairs,
    "labeled-list": _build_lists,
}


def _to_parquet(tables: Iterable[pa.Table]) -> bytes:
    sink, writer = io.BytesIO(), None
    for table in tables:
        writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return sink.getvalue()


def _to_arrow(tables: Iterable[pa.Table]) -> bytes:
    sink, writer = io.BytesIO(), None
    for table in tables:
        writer = writer or pa.ipc.new_stream(sink, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return sink.getvalue()


def _to_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _list_by_query(chosen: TrainingExamples, positives: pa.Array, negatives: pa.Array) -> tuple[list[Any], list[Any]]:
    """Return the values of positives and of negatives as a list for each query."""
    return (
        _to_lists(positives, chosen.num_positives).to_pylist(),
        _to_lists(negatives, chosen.num_negatives).to_pylist(),
    )


def _list_flagembedding(chosen: TrainingExamples, prompt: str | None) -> list[dict[str, Any]]:
    """The JSON of FlagEmbedding's fine-tuning (April 2026): query, pos, neg and, where wanted, their scores."""
    columns: dict[str, list[Any]] = {"query": _take(chosen, "query", chosen.first_positives).to_pylist()}
    columns["pos"], columns["neg"] = _list_by_query(
        chosen, _take(chosen, "document", chosen.positives), _take(chosen, "document", chosen.negatives)
    )
    if chosen.teacher is not None:
        columns["pos_scores"], columns["neg_scores"] = _list_by_query(
            chosen, pa.array(chosen.teacher[chosen.positives]), pa.array(chosen.teacher[chosen.negatives])
        )
    if "instruction" in chosen.table.column_names:
        columns["prompt"] = _take(chosen, "instruction", chosen.first_positives).to_pylist()
    elif prompt:
        columns["prompt"] = [prompt] * chosen.num_queries
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _list_ids(chosen: TrainingExamples, rows: np.ndarray) -> pa.Array:
    """Return the ids of documents; where there are none, 16 hex digits that follow from the text."""
    if "document_id" in chosen.table.column_names:
        return _take(chosen, "document_id", rows)
    return _hash_texts(_take(chosen, "document", rows))


def _list_query_ids(chosen: TrainingExamples) -> list[str]:
    rows = chosen.first_positives
    if "query_id" in chosen.table.column_names:
        return list(_take(chosen, "query_id", rows).to_pylist())
    return list(_hash_texts(_take(chosen, "query", rows)).to_pylist())


def _hash_texts(texts: pa.Array) -> pa.Array:
    encoded = texts.dictionary_encode()
    names = [hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in encoded.dictionary.to_pylist()]
    return pa.array(names, pa.string()).take(encoded.indices)


def _build_passages(chosen: TrainingExamples, rows: np.ndarray) -> pa.Array:
    """Return Tevatron's passages: docid, title, text and, where wanted, score."""
    has_title = "title" in chosen.table.column_names
    columns = {
        "docid": _list_ids(chosen, rows),
        "title": _take(chosen, "title", rows) if has_title else pa.array([""] * len(rows), pa.string()),
        "text": _take(chosen, "document", rows),
    }
    if chosen.teacher is not None:
        columns["score"] = pa.array(chosen.teacher[rows])
    return pa.StructArray.from_arrays(list(columns.values()), list(columns))


def _list_tevatron(chosen: TrainingExamples) -> list[dict[str, Any]]:
    """Tevatron's training JSON (July 2026)."""
    queries = _take(chosen, "query", chosen.first_positives).to_pylist()
    positives, negatives = _list_by_query(
        chosen, _build_passages(chosen, chosen.positives), _build_passages(chosen, chosen.negatives)
    )
    return [
        {"query_id": query_id, "query": query, "positive_passages": positive, "negative_passages": negative}
        for query_id, query, positive, negative in zip(
            _list_query_ids(chosen), queries, positives, negatives, strict=True
        )
    ]


def _build_distillation(chosen: TrainingExamples) -> pa.Table:
    """Tevatron's distillation data (July 2026): for each positive its passages, itself first, and the teacher's values."""
    rows, positives, lengths, _ = _list_rows(chosen)
    number = chosen.negatives_of_positives()
    ids = np.repeat(np.array(_list_query_ids(chosen), object), chosen.num_positives)[number > 0]
    passages = _build_passages(chosen, rows)
    parts = [passages.field(name) for name in ("title", "text")]
    return pa.table(
        {
            "query_id": pa.array(ids, pa.string()),
            "query": _take(chosen, "query", positives),
            "passages": _to_lists(pa.StructArray.from_arrays(parts, ["title", "text"]), lengths),
            "scores": _to_lists(passages.field("score"), lengths),
        }
    )


def _rank(chosen: TrainingExamples) -> bytes:
    """Return the ranking of all candidates of the kept queries: query id, document id and value, separated by tabs."""
    rows = chosen.ranking
    role = "query_id" if "query_id" in chosen.table.column_names else "query"
    query = _take(chosen, role, rows)
    query = query if role == "query_id" else _hash_texts(query)
    value = chosen.table["logit" if "logit" in chosen.table.column_names else "score"].to_numpy()[rows]
    lines = pc.binary_join_element_wise(query, _list_ids(chosen, rows), pa.array(value).cast(pa.string()), "\t")
    return "".join(line + "\n" for line in lines.to_pylist()).encode()


def _build_nemo(name: str, unit: str, chosen: TrainingExamples) -> dict[str, bytes]:
    """NeMo Automodel's corpus-id JSON (August 2026), and the unit's share of the corpus."""
    rows = np.concatenate([chosen.positives, chosen.negatives])
    ids = _list_ids(chosen, rows)
    documents = pa.table({"id": ids, "text": _take(chosen, "document", rows)})
    documents = documents.group_by(["id", "text"], use_threads=False).aggregate([])
    if len(pc.unique(documents["id"])) != documents.num_rows:
        raise InputError(
            "--document-id-column: an id stands for more than one text; name a column that tells them apart"
        )
    columns = {"id": ids}
    if chosen.teacher is not None:
        columns["score"] = pa.array(chosen.teacher[rows])
    entries = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    number = len(chosen.positives)
    positives, negatives = _list_by_query(chosen, entries.slice(0, number), entries.slice(number))
    queries = _take(chosen, "query", chosen.first_positives).to_pylist()
    data = [
        {"question_id": query_id, "question": query, "corpus_id": CORPUS, "pos_doc": positive, "neg_doc": negative}
        for query_id, query, positive, negative in zip(
            _list_query_ids(chosen), queries, positives, negatives, strict=True
        )
    ]
    content = json.dumps({"corpus": [{"path": CORPUS}], "data": data}, ensure_ascii=False).encode()
    return {name: content, f"{CORPUS}/train-{unit}.parquet": _to_parquet([documents])}
