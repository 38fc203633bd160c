"""Following a step of Ray tasks: what they yield is taken while signals and the lease are watched.

The step runs in a thread of its own, because Ray swallows what is raised inside it. Knows nothing of what is yielded.
"""

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from rerank_actor.errors import RerankError, describe_cause
from rerank_actor.runtime.connection import Connection, SignalWatch
from rerank_actor.storage.lease import Lease

POLL_SECONDS = 0.5
STOP_SECONDS = 20.0
OWN_STOP_SECONDS = 1.0  # on a Ray that ends with this process; a stopped job has three seconds in all

Item = TypeVar("Item")


def follow(
    source: Generator[Item], take: Callable[[Item], None], watch: SignalWatch, connection: Connection, lease: Lease
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
