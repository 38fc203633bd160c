"""The lease: of many runs one writes. Holders are processes or threads of their own; `host` stands for their machine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from output_place import Place, open_place

from rerank_actor import storage
from rerank_actor.errors import OutputConflictError
from rerank_actor.outputs.folder import Output
from rerank_actor.storage.lease import Lease


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return open_place(request, tmp_path)


HOLDER = """
import sys, threading, time
from rerank_actor.errors import OutputConflictError
from rerank_actor.storage.lease import Lease; from rerank_actor.outputs.folder import Output

uri, name, heartbeat = sys.argv[1], sys.argv[2], float(sys.argv[3])
lease = Lease(Output(uri).lease_uri, uri, name, heartbeat_seconds=heartbeat, stale_seconds=2.0, host=name)
try:
    print("waiting", flush=True)
    lease.acquire(lambda message: None)
    print("held", flush=True)
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    while not done.wait(0.02):
        lease.check(fresh=heartbeat > 10)
except OutputConflictError as error:
    print(f"refused: {error}", flush=True)
lease.release()
print("ended", flush=True)
"""


class Holder:
    """A process that takes a lease and keeps it until it is told to end, or until it lost it."""

    def __init__(self, uri: str, name: str, heartbeat: float = 0.2) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, uri, name, str(heartbeat)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> list[str]:
        """Tell it to end, and return what it still had to say."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        return self.process.stdout.read().splitlines()


@pytest.fixture
def hold(place: Place) -> Iterator[Callable[..., Holder]]:
    started: list[Holder] = []

    def begin(name: str, heartbeat: float = 0.2) -> Holder:
        started.append(Holder(place.uri, name, heartbeat))
        assert started[-1].read_line() == "waiting"
        return started[-1]

    yield begin
    for holder in started:
        with contextlib.suppress(ProcessLookupError):
            holder.process.send_signal(signal.SIGCONT)
            holder.process.kill()
        holder.process.wait()
        holder.end()


def list_leases(place: Place) -> list[str]:
    """Return leases and claims; the epoch that who took over leaves stays, and files half written come and go."""
    return [name for name in place.names("_job/lease") if name != "_job/lease-epoch.json"]


def read_lease(place: Place) -> dict[str, Any]:
    return dict(json.loads(place.read("_job/lease.json")))


@pytest.mark.parametrize("heartbeat", [0.2, 100.0], ids=["found by the heartbeat", "found by a fresh look"])
def test_frozen_run_that_thaws_finds_its_lease_taken_and_leaves_it_alone(
    place: Place, hold: Callable[..., Holder], heartbeat: float
) -> None:
    frozen = hold("frozen", heartbeat)
    assert frozen.read_line() == "held"
    frozen.process.send_signal(signal.SIGSTOP)
    second = hold("second")
    assert second.read_line() == "held"
    assert read_lease(place)["run"] == "second"
    frozen.process.send_signal(signal.SIGCONT)
    line = frozen.read_line()
    assert line.startswith("refused: ")
    assert "another run took over (host second" in line
    assert frozen.end() == ["ended"]
    beat = read_lease(place)["heartbeat"]
    deadline = time.monotonic() + 30
    while read_lease(place)["heartbeat"] == beat and time.monotonic() < deadline:
        time.sleep(0.1)
    assert read_lease(place)["heartbeat"] > beat, "the second run's lease is still kept"
    assert read_lease(place)["run"] == "second"
    assert second.end() == ["ended"]
    assert list_leases(place) == []


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_run_frozen_for_a_moment_keeps_its_lease(place: Place, hold: Callable[..., Holder]) -> None:
    frozen = hold("frozen")
    assert frozen.read_line() == "held"
    second = hold("second")
    frozen.process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    frozen.process.send_signal(signal.SIGCONT)
    assert second.read_line().startswith("refused: ")
    assert read_lease(place)["run"] == "frozen"
    assert frozen.end() == ["ended"]
    assert list_leases(place) == []


def put_lease(place: Place, **holder: Any) -> bytes:
    """Leave the lease of another run behind."""
    data = json.dumps({"run": "old", "host": "gone", "pid": 1, "heartbeat": 1.0, **holder}).encode()
    Output(place.uri).write_own("lease.json", data)
    return data


def test_of_many_processes_that_wait_for_a_stale_lease_one_wins(place: Place, hold: Callable[..., Holder]) -> None:
    put_lease(place)
    holders = [hold(f"run-{number}") for number in range(3)]
    said = {holder.name: holder.read_line() for holder in holders}
    winners = [name for name, line in said.items() if line == "held"]
    assert len(winners) == 1, said
    assert all(line.startswith("refused: ") for name, line in said.items() if name not in winners)
    assert read_lease(place)["run"] == winners[0]
    assert list_leases(place) == ["_job/lease.json"]


def find_ended_process() -> dict[str, Any]:
    """Return a process of this machine that has ended, as a lease describes it."""
    code = (
        "import json; from rerank_actor.storage.lease import _identify_process; print(json.dumps(_identify_process()))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(ended.stdout))


def race(place: Place, number: int, **settings: Any) -> list[Lease]:
    """Let threads go for the lease at once and return those that have it."""
    barrier, won, refused = threading.Barrier(number), [], []

    def take(index: int) -> None:
        lease = Lease(Output(place.uri).lease_uri, place.uri, f"run-{index}", **settings)
        barrier.wait()
        try:
            lease.acquire(lambda message: None)
            won.append(lease)
        except OutputConflictError as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(refused) == number
    return won


def test_of_many_that_find_a_dead_runs_lease_one_wins(place: Place) -> None:
    dead = find_ended_process()
    for _ in range(2):
        put_lease(place, **dead)
        won = race(place, 8)
        assert len(won) == 1
        assert read_lease(place)["pid"] == os.getpid()
        won[0].check(fresh=True)
        won[0].release()
        assert list_leases(place) == []


def test_of_many_that_find_no_lease_one_wins(place: Place) -> None:
    won = race(place, 8)
    assert len(won) == 1
    won[0].release()


@pytest.mark.parametrize("maker", ["ended", "silent"])
def test_claim_whose_maker_is_gone_goes_stale_too(place: Place, maker: str) -> None:
    stale = put_lease(place)
    lease = Lease(Output(place.uri).lease_uri, place.uri, "new", stale_seconds=1.0)
    made_by = find_ended_process() if maker == "ended" else {"host": "gone", "pid": 1}
    name = lease._claim_uri(stale, 0).rpartition("/")[2]
    Output(place.uri).write_own(name, json.dumps({"run": "dead taker", **made_by}).encode())
    lease.acquire(lambda message: None)
    assert read_lease(place)["run"] == "new"
    assert list_leases(place) == ["_job/lease.json"]
    lease.release()


def test_process_number_of_another_container_is_no_sign_of_a_dead_run(place: Place) -> None:
    """Containers may share host name and boot, and still each count their processes by themselves."""
    put_lease(place, **{**find_ended_process(), "namespace": "pid:[1]"})
    told: list[str] = []
    lease = Lease(Output(place.uri).lease_uri, place.uri, "new", stale_seconds=0.5)
    lease.acquire(told.append)
    lease.release()
    assert len(told) == 1


def test_lease_deleted_by_hand_is_made_again(place: Place) -> None:
    lease = Lease(Output(place.uri).lease_uri, place.uri, "run", heartbeat_seconds=0.1)
    lease.acquire(print)
    storage.delete_objects([Output(place.uri).at("lease.json")])
    lease.check(fresh=True)
    assert read_lease(place)["run"] == "run"
    lease.release()
    assert list_leases(place) == []
