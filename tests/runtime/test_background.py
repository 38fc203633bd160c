"""Work in a thread: what it yields, what it ends with, and what ends it, with plain generators in place of Ray."""

import threading
import time
from collections.abc import Generator

import pytest

from rerank_actor.errors import JobError, OutputConflictError, RerankError
from rerank_actor.runtime.background import run_in_background
from rerank_actor.runtime.connection import PIPELINE_THREAD, Connection, SignalWatch, is_pipeline_running


@pytest.fixture
def connection() -> Connection:
    return Connection(is_ours=True, watch=SignalWatch())


def allow() -> None:
    """A check that finds nothing wrong."""


def test_items_are_yielded_in_order_and_the_thread_is_gone_afterwards(connection: Connection) -> None:
    with run_in_background((number for number in range(1000)), connection, allow) as running:
        assert list(running) == list(range(1000))
    assert not is_pipeline_running()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [(JobError("bad"), JobError, "bad"), (ValueError("broke"), RerankError, "broke")],
)
def test_error_of_the_work_is_raised_behind_its_items(
    connection: Connection, error: Exception, kind: type[Exception], words: str
) -> None:
    def work() -> Generator[int]:
        yield 1
        raise error

    taken = []
    with pytest.raises(kind, match=words), run_in_background(work(), connection, allow) as running:
        for item in running:
            taken.append(item)
    assert taken == [1]


def test_ticks_go_on_while_the_work_does_and_come_once_more_at_its_end(connection: Connection) -> None:
    ended = threading.Event()

    def work() -> Generator[None]:
        ended.wait(30)
        yield from ()
        raise ValueError("broke")

    with run_in_background(work(), connection, allow) as running:
        for count, _ in enumerate(running.ticks(), 1):
            if count == 2:
                assert running.error is None
                ended.set()
        assert count >= 3
        assert isinstance(running.error, ValueError)


def test_check_that_raises_ends_the_work_and_closes_it_in_its_thread(connection: Connection) -> None:
    closed_in: list[str] = []
    hurried: list[bool] = []

    def work() -> Generator[int]:
        try:
            for number in range(10_000):
                yield number
                time.sleep(0.01)
        finally:
            closed_in.append(threading.current_thread().name)

    def refuse() -> None:
        raise OutputConflictError("another run took over")

    with (
        pytest.raises(OutputConflictError),
        run_in_background(work(), connection, refuse, lambda: hurried.append(True)) as running,
    ):
        list(running)
    assert closed_in == [PIPELINE_THREAD]
    assert hurried == [True]
    assert not is_pipeline_running()


def test_work_that_cannot_be_stopped_is_left_and_known_to_run(connection: Connection) -> None:
    released = threading.Event()

    def work() -> Generator[None]:
        released.wait(60)
        yield from ()

    started = time.monotonic()
    with run_in_background(work(), connection, allow):
        pass
    assert time.monotonic() - started < 20
    assert is_pipeline_running()
    released.set()
    deadline = time.monotonic() + 30
    while is_pipeline_running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_pipeline_running()
