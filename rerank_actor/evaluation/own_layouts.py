"""Two tasks whose repositories are laid out in ways of their own: Belebele, and edits of code.

Takes a task, writes its subsets as corpus, queries and judgements into a folder, as MTEB makes them of the same rows; gives
that folder's files. Knows nothing of what becomes of them.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.evaluation.task_files import CORPUS, QRELS, QUERIES, TaskFiles, copy_from_hub, find_by_names
from rerank_actor.evaluation.tasks import Task
from rerank_actor.inputs.batches import read_batches, refuse_broken
from rerank_actor.inputs.formats import find_format
from rerank_actor.inputs.listing.datasets import list_configuration
from rerank_actor.storage import hub

EDITS = 1000  # of a language that count, the first ones

Row = dict[str, Any]


def find_files_of_own_layout(task: Task, folder: str, subsets: Sequence[str]) -> TaskFiles:
    """Write the subsets of a task that are not written, and return its files.

    Args:
        task: of a layout of its own.
        folder: of the task, in the evaluation.
        subsets: that are wanted.

    Raises:
        InputError: the repository is not there, or not laid out as it was.
        StorageError, JobError: storage failed.
    """
    place = storage.join_uri(folder, "files")
    there = {item.uri for item in storage.list_objects(place)}
    rows: dict[str, list[Row]] = {}

    def read(name: str) -> list[Row]:
        if name not in rows:
            rows[name] = list(_read_rows(task, name, place))
        return rows[name]

    make = LAYOUTS[task.layout]
    for subset in subsets:
        targets = {role: storage.join_uri(place, f"{subset}-{role}.jsonl") for role in (CORPUS, QUERIES, QRELS)}
        if not there.issuperset(targets.values()):
            for role, lines in make(subset, read).items():
                storage.write_bytes(targets[role], "".join(json.dumps(line) + "\n" for line in lines).encode())
    return find_by_names(place)


def _make_belebele(subset: str, read: Callable[[str], list[Row]]) -> Mapping[str, list[Row]]:
    """Return passages in one language, questions in the other, and which question is of which passage."""
    corpus_language, query_language = subset.split("-")
    passages: dict[str, str] = {}
    for row in read(corpus_language):
        passages.setdefault(row["link"], row["flores_passage"])
    names = {link: f"C{number}" for number, link in enumerate(passages)}
    questions = {
        text: f"Q{number}" for number, text in enumerate(dict.fromkeys(r["question"] for r in read(query_language)))
    }
    judged = dict.fromkeys((questions[row["question"]], names[row["link"]]) for row in read(query_language))
    return {
        CORPUS: [_make_document(names[link], text) for link, text in passages.items()],
        QUERIES: [{"_id": name, "text": text} for text, name in questions.items()],
        QRELS: [_judge(query, document) for query, document in judged],
    }


def _make_edits(subset: str, read: Callable[[str], list[Row]]) -> Mapping[str, list[Row]]:
    """Return edits and the instructions for them."""
    rows = list(enumerate(itertools.islice(read(subset), EDITS)))
    edits = {str(row["commit"]): row["diff"] for _, row in rows}
    return {
        CORPUS: [_make_document(commit, diff) for commit, diff in edits.items()],
        QUERIES: [{"_id": str(number), "text": row["instruction"]} for number, row in rows],
        QRELS: [_judge(str(number), str(row["commit"])) for number, row in rows],
    }


def _make_document(name: str, text: str) -> Row:
    return {"_id": name, "title": "", "text": text}  # with a title, whose place MTEB strips of blanks


def _judge(query: str, document: str) -> Row:
    return {"query-id": query, "corpus-id": document, "score": 1}


def _read_rows(task: Task, name: str, folder: str) -> Iterator[Row]:
    """Yield the rows of a configuration, or of a folder of that name."""
    if task.layout == "belebele":
        objects = list_configuration(task.place, name).get(str(task.split), [])
    else:
        objects = [i for i in storage.list_objects(task.place) if hub.split_hub_uri(i.uri)[2].startswith(f"{name}/")]
    if not objects:
        raise InputError(f"{task.place}: has no files of `{name}`", uri=task.place)
    for item in copy_from_hub(objects, storage.join_uri(folder, "source", name)):
        kind, compression = find_format(item.uri)
        with refuse_broken(item.uri, str(kind), "--tasks"):
            for batch in read_batches(item, cast(Any, kind), compression):
                columns = {column: batch.values(column) for column in COLUMNS[task.layout]}
                for values in zip(*columns.values(), strict=True):
                    yield dict(zip(columns, values, strict=True))


LAYOUTS = {"belebele": _make_belebele, "code-edits": _make_edits}
COLUMNS = {"belebele": ("link", "flores_passage", "question"), "code-edits": ("commit", "diff", "instruction")}
