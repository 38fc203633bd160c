"""A step does what is not done: records are stored last, found again, and damaged ones done anew; failures are told."""

import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_actor.errors import OutputConflictError
from rerank_actor.runtime.steps import StepRecords, TaskRunner, run_step
from rerank_actor.runtime.task_report import TaskFailure
from rerank_actor.storage import open_json
from rerank_actor.storage.lease import Lease


class RunnerHere(TaskRunner):
    """Runs tasks in this process, the last one first."""

    def __init__(self) -> None:
        """Nothing to connect to."""

    def run_tasks(self, work: Callable[[Any], dict[str, Any]], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for number in reversed(range(len(items))):
            try:
                report: Any = work(items[number])
            except ValueError as error:
                report = TaskFailure(str(error), "ValueError")
            yield number, report


def square(item: int) -> dict[str, Any]:
    if item < 0:
        raise ValueError(f"{item} is negative")
    return {"square": item * item, "places": np.array([0, item])}


def run(items: dict[str, int], records: StepRecords | None, **options: Any) -> Any:
    return run_step(square, items, records, RunnerHere(), keep=operator.itemgetter("square"), **options)


def test_tasks_that_are_done_are_not_done_again_and_all_come_in_order(tmp_path: Path) -> None:
    records, items = StepRecords(str(tmp_path / "step"), str(tmp_path / "tmp")), {"a": 1, "b": 2, "c": 3}
    first = run({"b": 2, "other": 9}, records)
    assert (first.records, first.num_run) == ([4, 81], 2)
    assert open_json((tmp_path / "step/b.json").read_bytes()) == {"square": 4, "places": [0, 2]}
    again = run(items, records)
    assert (again.records, again.num_run, again.failures) == ([1, 4, 9], 2, {})
    (tmp_path / "step/a.json").write_text('{"square": ')
    (tmp_path / "step/c.json").write_text("[]")
    assert (run(items, records).num_run, run(items, records).num_run) == (2, 0)


def test_failed_tasks_are_told_and_leave_no_record(tmp_path: Path) -> None:
    records, told = StepRecords(str(tmp_path)), []
    outcome = run({"a": 1, "b": -2, "c": -3}, records, on_failure=lambda name, failure: told.append((name, failure)))
    assert outcome.records == [1]
    assert outcome.failures == dict(told)
    assert told == [
        (name, TaskFailure(f"{number} is negative", "ValueError")) for name, number in (("c", -3), ("b", -2))
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_step_without_records_goes_by_what_is_known_to_be_done(tmp_path: Path) -> None:
    outcome = run({"a": 1, "b": 2}, None, done={"a": 7})
    assert (outcome.records, outcome.num_run) == ([7, 4], 1)


def test_run_that_lost_its_lease_writes_neither_records_nor_objects(tmp_path: Path) -> None:
    folder = str(tmp_path)
    uri = str(tmp_path / "lease.json")

    def take(number: int) -> Lease:
        lease = Lease(uri, folder, f"run-{number}", heartbeat_seconds=1e6, stale_seconds=0.0, host=f"host-{number}")
        lease.acquire(lambda message: None)
        return lease

    frozen = take(0).mark
    StepRecords(folder, lease=frozen).write("a", {"square": 1})
    taker = take(1)
    StepRecords(folder, lease=taker.mark).write("a", {"square": 4})
    for name in ("a", "b"):
        with pytest.raises(OutputConflictError, match="took over"):
            StepRecords(folder, lease=frozen).write(name, {"square": 1})
    taker.release()  # and has ended: its epoch stays
    with pytest.raises(OutputConflictError, match="took over"):
        frozen.write(str(tmp_path / "part.jsonl"), b"late")
    assert dict(StepRecords(folder).load(["a", "b"])) == {"a": {"square": 4}}
    assert not (tmp_path / "part.jsonl").exists()
