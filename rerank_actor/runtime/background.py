"""Work in the background: a generator that drives Ray runs in a thread, while signals and the lease are watched in this one.

It has a thread of its own because Ray swallows what is raised inside it. Takes any generator, gives what it yields, or ticks
to those who look elsewhere for what came of it. Knows nothing of what is yielded.
"""

import contextlib
import gc
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from rerank_actor.errors import RerankError, describe_cause
from rerank_actor.runtime.connection import PIPELINE_THREAD, Connection

POLL_SECONDS = 0.5
STOP_SECONDS = 20.0  # to wait for a pipeline on a Ray that lives on
OWN_STOP_SECONDS = 1.0  # on one that ends with this process; a stopped job has three seconds in all

Item = TypeVar("Item")


class BackgroundWork(Generic[Item]):
    """A generator at work in a thread; iterate over it for what it yields, or over its ticks.

    Args:
        work: the generator, which is closed in its thread.
        check: called at each tick and item; may raise.

    Attributes:
        error: what the work ended with, None while it goes on and where it ended well.
    """

    def __init__(self, work: Generator[Item], check: Callable[[], None]) -> None:
        self._work, self._check = work, check
        self._batches: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()  # None is the end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=PIPELINE_THREAD, daemon=True)
        self.error: BaseException | None = None
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        """Yield what the work yields.

        Raises:
            RerankError: what the work ended with, and whatever `check` raises.
        """
        for batch in self._poll():
            yield from batch
        if self.error is not None:
            raise _explain(self.error)

    def ticks(self) -> Iterator[None]:
        """Yield twice a second while the work goes on, and once more when it has ended; `error` says how."""
        for _ in self._poll():
            yield

    def stop(self, seconds: float, on_stop: Callable[[], Any]) -> None:
        """Have the work end at its next item, and wait for that so long."""
        if self._thread.is_alive():
            on_stop()
            self._stopped.set()
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            for item in self._work:
                self._batches.put([item])
                if self._stopped.is_set():
                    break
        except BaseException as error:
            self.error = error
        finally:
            self._work.close()  # while Ray is there; a pipeline that ends after it looks for another one
            self._batches.put(None)

    def _poll(self) -> Iterator[list[Item]]:
        """Yield each item in a list of its own, an empty list at each tick and at the end."""
        batch: list[Item] | None = []
        while batch is not None:
            self._check()  # first, so that nothing that has come is dropped, and what has ended has ended well
            try:
                batch = self._batches.get(timeout=POLL_SECONDS)
            except queue.Empty:
                batch = []
            yield batch or []


@contextlib.contextmanager
def run_in_background(
    work: Generator[Item],
    connection: Connection,
    check: Callable[[], None],
    on_stop: Callable[[], Any] = lambda: None,
) -> Iterator[BackgroundWork[Item]]:
    """Run a generator in a thread for as long as the block lasts; iterating over what is given raises once a signal came.

    Args:
        work: the generator.
        connection: to Ray; says how long a pipeline that is to stop is waited for.
        check: called twice a second and at each item; may raise, as `Lease.check` does.
        on_stop: called where the block ends before the work, to hurry it.
    """

    def check_all() -> None:
        connection.watch.check()
        check()

    running = BackgroundWork(work, check_all)
    try:
        yield running
    finally:
        running.stop(OWN_STOP_SECONDS if connection.is_ours else STOP_SECONDS, on_stop)
        if running.error is not None:
            running.error = None
            gc.collect()  # the error's frames hold the actors, and these their CPUs and GPUs, on a Ray that lives on


def _explain(error: BaseException) -> BaseException:
    if isinstance(error, RerankError):
        return error
    inner = getattr(error, "cause", None) or error
    return RerankError(f"Ray ended the pipeline early ({describe_cause(inner)}); run the same command again")
