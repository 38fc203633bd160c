"""The pipeline of selection: the tasks of a step on Ray Data, one read task each. The only module of the package with Ray.

Rows go from storage to storage within a task and never through Ray; what comes back is a record.
"""

import functools
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from rerank_actor.connection import Connection, SignalWatch
from rerank_actor.errors import RerankError, describe_cause
from rerank_actor.output import Lease
from rerank_actor.selection.steps import Spec, Task, do_task
from rerank_actor.tasks import run_tasks

POLL_SECONDS = 0.5
STOP_SECONDS = 20.0
OWN_STOP_SECONDS = 1.0  # on a Ray that ends with this process; a stopped job has three seconds in all

Done = tuple[int, dict[str, Any]]


def run_step(step: str, tasks: Sequence[Task], spec: Spec) -> Generator[Done]:
    """Do the tasks of a step; yields the number of each with its record, or with its failure, in no order."""
    work = functools.partial(do_task, step=step, spec=spec)
    for place, record in run_tasks(work, tasks, spec.environment):
        yield tasks[place].number, record


def follow(
    source: Generator[Done], take: Callable[[Done], None], watch: SignalWatch, connection: Connection, lease: Lease
) -> None:
    """Take what a step yields, from a thread of its own, while signals and the lease are watched.

    Raises:
        RunInterruptedError: a signal came.
        OutputConflictError: another run took the lease.
        RerankError: Ray failed.
    """
    found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    stop = threading.Event()

    def pump() -> None:
        try:
            for item in source:
                found.put(("item", item))
                if stop.is_set():
                    break
            found.put(("end", None))
        except BaseException as error:
            found.put(("error", error))
        finally:
            source.close()  # while Ray is there; a pipeline that ends after it looks for another one

    thread = threading.Thread(target=pump, name="pipeline", daemon=True)
    thread.start()
    try:
        while True:
            watch.check()
            lease.check()
            try:
                kind, item = found.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if kind == "end":
                return
            if kind == "error":
                raise _explain(item)
            take(item)
    finally:
        stop.set()
        thread.join(OWN_STOP_SECONDS if connection.is_ours else STOP_SECONDS)
        connection.is_busy = thread.is_alive()


def _explain(error: BaseException) -> BaseException:
    if isinstance(error, RerankError):
        return error
    inner = getattr(error, "cause", None) or error
    return RerankError(f"Ray ended the pipeline early ({describe_cause(inner)}); run the same command again")
