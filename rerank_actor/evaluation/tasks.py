"""Tasks of retrieval: a corpus, queries and judgements, with the instruction and the measure that they are evaluated by.

Takes what `--tasks` and `--suite` name (BEIR folders, repositories on the hub, tasks of `data/suites.yaml`), gives a `Task` for
each, and the columns of a suite's table with the values that were published. Knows nothing of files or models.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rerank_actor import storage
from rerank_actor.errors import JobError
from rerank_actor.job_file import suggest
from rerank_actor.storage import hub

DEFAULT = "default"  # the subset of a task that has no subsets, as MTEB calls it


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: of the task.
        place: folder, local or s3://, or hf:// dataset.
        split: of its judgements; None for `test`, or the only one.
        subsets: of the task; empty for all that are there.
        instruction: what a reranker is asked; None for the job's.
        measure: that stands in the table; None for the job's first.
        ignore_identical_ids: whether candidates with the id of their query do not count.
        layout: `beir`, which is MTEB's too, or that of one of the two repositories that have one of their own.
        queries, documents: how many, and their mean length in characters, where that is known without reading them.
        characters_per_token: of these, about.
        listed: documents of a query in lists of the task's own.
    """

    name: str
    place: str
    split: str | None = None
    subsets: tuple[str, ...] = ()
    instruction: str | None = None
    measure: str | None = None
    ignore_identical_ids: bool = False
    layout: str = "beir"
    queries: tuple[int, int] | None = None
    documents: tuple[int, int] | None = None
    characters_per_token: float = 4.0
    listed: int | None = None


@dataclass(frozen=True)
class Suite:
    """Tasks that make a table.

    Attributes:
        columns: names of tasks by column; a column's value is the mean over them.
        retriever: whose candidates the published values are of.
        published: values by model, in hundredths, in the order of the columns.
        source: who published them.
    """

    columns: Mapping[str, Sequence[str]]
    retriever: str | None = None
    published: Mapping[str, Sequence[float]] = field(default_factory=dict)
    source: str = ""

    def list_names(self) -> list[str]:
        """Return the names of its tasks, each once."""
        return list(dict.fromkeys(name for names in self.columns.values() for name in names))


def choose_tasks(names: Sequence[str], suite_name: str | None) -> tuple[list[Task], Suite]:
    """Return the tasks to evaluate, and the table that they stand in.

    Args:
        names: folders, hf:// datasets, `OWNER/NAME` on the hub, or tasks of a suite; with a suite, tasks of it.
        suite_name: of a suite, all of whose tasks are meant where no names are given.

    Raises:
        JobError: one is not known, or two have one name.
    """
    suites = load_suites()
    if suite_name is not None:
        if suite_name not in suites:
            raise JobError(
                f"--suite: no suite `{suite_name}`{suggest(suite_name, suites)}; there are {', '.join(suites)}"
            )
        suite = suites[suite_name]
        own = suite.list_names()
        for name in names:
            if name not in own:
                raise JobError(
                    f"--tasks: `{name}` is no task of {suite_name}{suggest(name, own)}; it has {', '.join(own)}"
                )
        return [load_tasks()[name] for name in own if not names or name in names], suite
    tasks = [find_task(name) for name in names]
    doubled = {task.name for task in tasks if sum(other.name == task.name for other in tasks) > 1}
    if doubled:
        raise JobError(f"--tasks: two are called {min(doubled)}, which is the name of their results; rename a folder")
    return tasks, Suite({task.name: [task.name] for task in tasks})


def find_task(name: str) -> Task:
    """Return the task that a name means: one of a suite, a folder, or a repository on the hub.

    Raises:
        JobError: it means none.
    """
    known = load_tasks()
    if name in known:
        return known[name]
    is_path = storage.is_remote(name) or name.startswith(("/", ".", "~", "file:")) or Path(name).is_dir()
    if not is_path and (hub.is_hub(name) or name.count("/") == 1):
        try:
            place = hub.normalize_hub_uri(name if hub.is_hub(name) else hub.SCHEME + name)
        except ValueError as error:
            raise JobError(f"--tasks: {error}") from None
        repository = hub.split_hub_uri(place)[0]
        by_place = {hub.split_hub_uri(task.place)[0]: task for task in known.values()}
        if repository in by_place and not hub.split_hub_uri(place)[1]:
            return by_place[repository]
        return Task(repository.partition("/")[2], place)
    if not is_path:
        raise JobError(
            f"--tasks: `{name}` is no folder here and no task that is known{suggest(name, known)}; give a folder with corpus, "
            "queries and qrels, or OWNER/NAME of a dataset on the hub"
        )
    place = storage.normalize_uri(name)
    return Task(place.rpartition("/")[2], place)


@functools.lru_cache(maxsize=1)
def _load() -> dict[str, Any]:
    text = resources.files("rerank_actor").joinpath("data/suites.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@functools.lru_cache(maxsize=1)
def load_suites() -> dict[str, Suite]:
    """Return the suites by name."""
    return {name: Suite(**values) for name, values in _load()["suites"].items()}


@functools.lru_cache(maxsize=1)
def load_tasks() -> dict[str, Task]:
    """Return the tasks of all suites by name."""
    return {name: _make_task(name, values) for name, values in _load()["tasks"].items()}


def _make_task(name: str, values: dict[str, Any]) -> Task:
    place = hub.normalize_hub_uri(hub.SCHEME + values["data"])
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    given.pop("data")
    return Task(name, place, **given)
