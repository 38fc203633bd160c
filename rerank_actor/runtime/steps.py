"""Steps: tasks that have names and leave records, so that what an earlier run has done is not done again.

`run_step` skips the tasks whose records are stored, does the others on Ray, and lets each store its record last; a record so
says that its task is done. Takes work, items by name and the folder of records; gives the records of all, in order of the
items, and why tasks failed. Knows nothing of what the work is or of what a record says.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from rerank_actor import storage
from rerank_actor.runtime.background import run_in_background
from rerank_actor.runtime.connection import Connection
from rerank_actor.runtime.task_report import TaskFailure
from rerank_actor.storage.lease import Lease, LeaseMark, write_held

READ_THREADS = 16

Item = TypeVar("Item")
Kept = TypeVar("Kept")
Record = dict[str, Any]


@dataclass(frozen=True)
class TaskRunner:
    """Runs tasks on Ray while signals and the lease are watched.

    Attributes:
        connect: gives the connection; called when there are tasks to run.
        lease: of the output that tasks write to.
        environment: AWS variables of the driver.
    """

    connect: Callable[[], Connection]
    lease: Lease
    environment: dict[str, str]

    def run_tasks(
        self, work: Callable[[Item], Record], items: Sequence[Item]
    ) -> Generator[tuple[int, Record | TaskFailure]]:
        """Do some work for each item, and yield the number of each with its report or its failure, as they come.

        Raises:
            RunInterruptedError: a signal came.
            OutputConflictError: another run took the lease.
            RerankError: Ray failed.
        """
        if not items:
            return
        connection = self.connect()
        from rerank_actor.runtime.tasks import run_tasks

        with run_in_background(run_tasks(work, items, self.environment), connection, self.lease.check) as running:
            yield from running


@dataclass(frozen=True)
class StepRecords:
    """The records of a step's tasks, an object each in a folder.

    Attributes:
        uri: the folder.
        scratch: folder for temporary files on the same file system.
        lease: of the output; None where nobody else can write.
    """

    uri: str
    scratch: str | None = None
    lease: LeaseMark | None = None

    def write(self, name: str, record: Record) -> None:
        """Store the record of a task; arrays become lists of numbers."""
        data = storage.seal_json(record, default=np.ndarray.tolist)
        write_held(self.lease, storage.join_uri(self.uri, f"{name}.json"), data, self.scratch)

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Record]]:
        """Yield those of some tasks that have a record, with it, in order of names; damaged records are passed over."""
        listed = {
            item.uri.rpartition("/")[2].removesuffix(".json"): item.uri for item in storage.list_objects(self.uri)
        }
        stored = sorted(set(names) & set(listed))
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for name, data in zip(stored, pool.map(storage.read_if_present, map(listed.get, stored)), strict=True):
                record = storage.open_json(data)
                if record is not None:
                    yield name, record


@dataclass(frozen=True)
class StepOutcome(Generic[Kept]):
    """How a step ended.

    Attributes:
        records: what is kept of each task's record, in order of the items; those of failed tasks are missing.
        failures: why tasks failed, by name.
        num_run: tasks that were not done before.
    """

    records: list[Kept]
    failures: dict[str, TaskFailure] = field(default_factory=dict)
    num_run: int = 0


def run_step(
    work: Callable[[Item], Record],
    items: Mapping[str, Item],
    records: StepRecords | None,
    runner: TaskRunner,
    *,
    keep: Callable[[Record], Kept],
    done: Mapping[str, Kept] | None = None,
    on_failure: Callable[[str, TaskFailure], None] = lambda name, failure: None,
) -> StepOutcome[Kept]:
    """Do the tasks of a step that are not done.

    Args:
        work: of a task, on a worker; returns its record.
        items: what each task works on, by its name.
        records: where records are stored; None where nothing is to be stored.
        runner: does tasks on the cluster.
        keep: returns what to hold of a record; called for each as it comes.
        done: what is held of the tasks that are done; by default those that have a record.
        on_failure: is told of each task that fails, as it does.

    Raises:
        RunInterruptedError: a signal came.
        OutputConflictError: another run took the lease.
        RerankError: Ray failed, or storage.
    """
    if done is None:
        done = {name: keep(record) for name, record in records.load(items)} if records is not None else {}
    kept, failures = dict(done), dict[str, TaskFailure]()
    left = [name for name in items if name not in kept]

    do = functools.partial(_do, work=work, records=records)
    with contextlib.closing(runner.run_tasks(do, [(name, items[name]) for name in left])) as reports:
        for number, report in reports:
            if isinstance(report, TaskFailure):
                failures[left[number]] = report
                on_failure(left[number], report)
            else:
                kept[left[number]] = keep(report)
    return StepOutcome([kept[name] for name in items if name in kept], failures, len(left))


def _do(task: tuple[str, Any], work: Callable[[Any], Record], records: StepRecords | None) -> Record:
    """Do a task and store its record, on a worker."""
    name, item = task
    record = work(item)
    if records is not None:
        with storage.patient():
            records.write(name, record)
    return record
