"""What a task comes to for those who retrieve, score and judge: its judged queries, its corpus, its judgements.

Takes a task's files, gives `TaskData`, whose files lie in a folder of the evaluation: the queries of the split that have a
judgement, each with its own instruction behind it where the task has such, as MTEB joins them; judgements as one file; the
lists of candidates where the task brings them; and what of the hub has to be near. The record is written last, and what it
holds is not made again. Knows nothing of models.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, OutputConflictError
from rerank_actor.evaluation.own_layouts import find_files_of_own_layout
from rerank_actor.evaluation.task_files import (
    CHANGED,
    CORPUS,
    INSTRUCTION,
    QRELS,
    QUERIES,
    TOP_RANKED,
    TaskFiles,
    copy_from_hub,
    find_files,
    is_pinned,
    pin_place,
)
from rerank_actor.evaluation.tasks import DEFAULT, Task
from rerank_actor.inputs.batches import Batch, read_batches, refuse_broken
from rerank_actor.inputs.formats import find_format
from rerank_actor.inputs.ids import read_id
from rerank_actor.inputs.rankings.qrels import load_judgements
from rerank_actor.inputs.rows import LIMITS
from rerank_actor.inputs.text_sources import ID_NAMES, TEXT_NAMES, SourcePiece, TextSource

RECORD = "task.json"
ROLES = (CORPUS, QUERIES, QRELS, INSTRUCTION, TOP_RANKED, CHANGED)
QUERY, DOCUMENTS = "query-id", "corpus-ids"


@dataclass(frozen=True)
class TaskData:
    """A task's subset, ready to be retrieved for, scored and judged.

    Attributes:
        task: name of the task.
        place: where it is from, with its subset and split.
        subset: of the task.
        split: of its judgements.
        num_queries: that are judged.
        without_text: judged queries that have no text and do not count.
        queries, qrels: files.
        corpus: files.
        candidates: file of the lists that the task brings, None where it brings none.
        changed: documents whose relevance a changed instruction changes, by query, where the task says them.
    """

    task: str
    place: str
    subset: str
    split: str
    num_queries: int
    without_text: int
    queries: str
    qrels: str
    corpus: list[str]
    candidates: str | None = None
    changed: dict[str, list[str]] | None = None


def prepare_task(task: Task, root: str, split: str | None, subsets: Sequence[str]) -> list[TaskData]:
    """Return the subsets of a task, after making those that are not made, or whose files are others by now.

    Args:
        task: to prepare.
        root: folder of the evaluation.
        split: of the judgements, in place of the task's own.
        subsets: of those that the task has; empty for all.

    Raises:
        InputError: the task is not there, lacks a file, or has no judgement in the split.
        OutputConflictError: the folder was begun with another task or split.
        StorageError, JobError: storage failed.
    """
    folder = storage.join_uri(root, "tasks", task.name)
    task = replace(task, place=pin_place(task.place), split=split or task.split)
    names = [name for name in task.subsets or (DEFAULT,) if not subsets or name in subsets]
    if is_pinned(task.place) and task.split is not None:  # what cannot change needs no look at the hub
        stored = [_load(storage.join_uri(folder, name), task, task.split, None) for name in names]
        if stored and all(stored):
            return [data for data in stored if data is not None]
    files = find_files(task) if task.layout == "beir" else find_files_of_own_layout(task, folder, names)
    known = files.list_subsets()
    wanted = list(subsets) or list(task.subsets) or known
    lacking = [name for name in wanted if name not in known]
    if lacking or not known:
        fault = (
            f"no subset `{lacking[0]}` with judgements, but {', '.join(known[:20]) or 'none'}" if lacking else "none"
        )
        raise InputError(
            f"{task.place}: has {fault}; a task has corpus, queries and qrels (qrels/test.tsv), as BEIR and MTEB lay them out",
            uri=task.place,
        )
    made = []
    for name in wanted:
        place = storage.join_uri(folder, name)
        chosen = files.choose_split(name, task.split)
        sources = [item.identity for role in ROLES for item in files.pick(role, name, chosen)]
        made.append(_load(place, task, chosen, sources) or _make(task, files, name, chosen, place, sources))
    return made


def load_prepared(task: Task, root: str, split: str | None, subsets: Sequence[str]) -> list[TaskData]:
    """Return the subsets of a task that were made before, none where one lacks; nothing is made or written.

    Raises:
        OutputConflictError: they were made of another task or split.
    """
    folder = storage.join_uri(root, "tasks", task.name)
    if not any(item.uri.endswith(f"/{RECORD}") for item in storage.list_objects(folder)):
        return []
    task = replace(task, place=pin_place(task.place))
    names = subsets or task.subsets or (find_files(task).list_subsets() if task.layout == "beir" else [DEFAULT])
    found = [_load(storage.join_uri(folder, name), task, split or task.split, None) for name in names]
    return [data for data in found if data is not None] if all(found) else []


def _load(folder: str, task: Task, split: str | None, sources: list[list[Any]] | None) -> TaskData | None:
    """Return what was made of a subset before, of any split where none is told; None where it is to be made.

    Raises:
        OutputConflictError: it was made of another task or split.
    """
    record = storage.open_json(storage.read_if_present(storage.join_uri(folder, RECORD)))
    if record is None:
        return None
    own = record.pop("sources")
    data = TaskData(**record)
    if data.place != task.place or split not in (None, data.split):
        raise OutputConflictError(
            f"{folder}: holds split {data.split} of {data.place}, and {split} of {task.place} is wanted; choose another "
            "--output",
            uri=folder,
        )
    return data if sources is None or own == sources else None


def _make(task: Task, files: TaskFiles, subset: str, split: str, folder: str, sources: list[list[Any]]) -> TaskData:
    judgements = _read_judgements(task, files, subset, split, folder)
    found = {role: _fetch(files.require(role, subset, split), folder, role) for role in (QUERIES, CORPUS)}
    more = {role: _fetch(files.pick(role, subset, split), folder, role) for role in (INSTRUCTION, TOP_RANKED, CHANGED)}
    texts = _read_queries(found[QUERIES], judgements, _read_instructions(more[INSTRUCTION]))
    if not texts:
        raise InputError(
            f"{task.place}: none of the {len(judgements):,} queries that split {split} judges is among its queries; the ids of "
            "both are of other files",
            uri=task.place,
        )
    judged = {query: documents for query, documents in judgements.items() if query in texts}
    queries, qrels = storage.join_uri(folder, "queries.jsonl"), storage.join_uri(folder, "qrels.parquet")
    lines = [json.dumps({"_id": query, "text": texts[query]}, ensure_ascii=False) for query in judged]
    write_if_other(queries, ("\n".join(lines) + "\n").encode())
    rows = [(query, document, grade) for query, of in judged.items() for document, grade in of.items()]
    write_if_other(qrels, storage.to_parquet(pa.table([*zip(*rows, strict=True)], [QUERY, "corpus-id", "score"])))
    candidates = None
    lists = _read_lists(more[TOP_RANKED])
    if lists:
        candidates = storage.join_uri(folder, "candidates.parquet")
        pairs = [(query, document) for query, of in lists.items() if query in judged for document in of]
        if not pairs:
            raise InputError(f"{task.place}: {TOP_RANKED} has none of the judged queries", uri=task.place)
        table = pa.table([*zip(*pairs, strict=True)], ["query_id", "document_id"])
        write_if_other(candidates, storage.to_parquet(table))
    data = TaskData(
        task=task.name,
        place=task.place,
        subset=subset,
        split=split,
        num_queries=len(judged),
        without_text=len(judgements) - len(judged),
        queries=queries,
        qrels=qrels,
        corpus=[item.uri for item in found[CORPUS]],
        candidates=candidates,
        changed=_read_lists(more[CHANGED]) or None,
    )
    storage.write_bytes(storage.join_uri(folder, RECORD), storage.seal_json({**asdict(data), "sources": sources}))
    return data


def write_if_other(uri: str, data: bytes) -> None:
    """Write a file unless it is there already, so that jobs that read it find it unchanged."""
    if storage.read_if_present(uri) != data:
        storage.write_bytes(uri, data)


def _fetch(objects: list[storage.StoredObject], folder: str, role: str) -> list[storage.StoredObject]:
    return copy_from_hub(objects, storage.join_uri(folder, "files", role)) if objects else []


def _read_judgements(task: Task, files: TaskFiles, subset: str, split: str, folder: str) -> dict[str, dict[str, int]]:
    judgements: dict[str, dict[str, int]] = {}
    for item in _fetch(files.require(QRELS, subset, split), folder, QRELS):
        for query, documents in load_judgements(item.uri).items():
            known = judgements.setdefault(query, {})
            other = next((one for one, grade in documents.items() if known.get(one, grade) != grade), None)
            if other is not None:
                raise InputError(
                    f"{item.uri}: document {other!r} is judged otherwise for query {query!r} in another file of split {split}; "
                    "leave one of them",
                    uri=item.uri,
                )
            known.update(documents)
    if not judgements:
        raise InputError(f"{task.place}: split {split} holds no judgement", uri=task.place)
    return judgements


def _read_queries(
    objects: list[storage.StoredObject], judged: dict[str, Any], instructions: dict[str, str]
) -> dict[str, str]:
    """Return the texts of judged queries; a query's own instruction stands behind it, and before a conversation."""
    source = TextSource("query", tuple(objects), ("query_id", *ID_NAMES), TEXT_NAMES)
    texts: dict[str, str] = {}
    conversations: set[str] = set()
    own: dict[str, str] = {}
    for item in objects:
        for batch, columns in source.read_batches(SourcePiece(item.uri, item.size, item.etag), LIMITS):
            values = batch.values(columns.text)
            for query, text in zip(source.read_ids(batch, item.uri), values, strict=True):
                if query in judged and (whole := _join_turns(text)) is not None:
                    texts[query] = whole
                    conversations |= {query} if isinstance(text, list) else set()
        own |= dict(_iterate_columns(item, ID_NAMES, INSTRUCTION))
    own |= instructions
    for query in own.keys() & texts.keys():
        parts = (texts[query], own[query]) if query not in conversations else (own[query], texts[query])
        texts[query] = " ".join(filter(None, parts))
    return texts


def _join_turns(text: Any) -> str | None:
    """Return a text, a conversation with its turns joined as MTEB joins them; None for what is neither."""
    if isinstance(text, str) or not isinstance(text, list):
        return text if isinstance(text, str) else None
    turns = [f"{turn.get('role')}: {turn.get('content')}" if isinstance(turn, dict) else turn for turn in text]
    return "; ".join(turns) if turns and all(isinstance(turn, str) for turn in turns) else None


def _read_instructions(objects: list[storage.StoredObject]) -> dict[str, str]:
    return {query: text for item in objects for query, text in _iterate_columns(item, (QUERY,), INSTRUCTION)}


def _read_lists(objects: list[storage.StoredObject]) -> dict[str, list[str]]:
    """Return lists of documents by query."""
    found: dict[str, list[str]] = {}
    for item in objects:
        for query, documents in _iterate_columns(item, (QUERY,), DOCUMENTS):
            found[query] = [name for one in documents if (name := read_id(one)) is not None]
    return found


def _iterate_columns(item: storage.StoredObject, ids: tuple[str, ...], column: str) -> Iterator[tuple[str, Any]]:
    """Yield id and value of the rows of a file that have both."""
    kind, compression = find_format(item.uri)
    with refuse_broken(item.uri, cast(Any, kind), "--tasks"):
        for batch in read_batches(item, cast(Any, kind), compression, wanted={*ids, column}):
            name = next((name for name in ids if name in batch.names), None)
            if name is None or column not in batch.names:
                return
            for key, value in zip(batch.values(name), _list_values(batch, column), strict=True):
                if (query := read_id(key)) is not None and value is not None:
                    yield query, value


def _list_values(batch: Batch, column: str) -> list[Any]:
    values = batch.columns[column]
    return values if isinstance(values, list) else list(values.to_pylist())
