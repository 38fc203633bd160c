"""The connection to Ray: a start that fails once, one that fails again, and what it leaves behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from commands import ROOT

from rerank_actor.errors import ClusterError, JobError
from rerank_actor.runtime import connection
from rerank_actor.runtime.connection import connect_ray, leave_out_line, list_signals, watch_signals


class OnThisMachine:
    """A job that names no cluster."""

    ray_address: str | None = None


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Failures of Ray's next starts; empty means that it starts."""
    failures: list[str | None] = []

    def init(**arguments: Any) -> None:
        failure = failures.pop(0)
        if failure is not None:
            raise RuntimeError(failure)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in connection.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a token of the test")
    return failures


def connect(job: Any) -> None:
    with watch_signals() as watch, connect_ray(job, watch):
        pass


def test_dashboard_is_told_from_a_cluster(starts: list[str | None]) -> None:
    job = OnThisMachine()
    job.ray_address = "http://127.0.0.1:8265"
    with pytest.raises(JobError, match="dashboard, which `ray job submit --address` takes"):
        connect(job)


def test_ray_that_did_not_come_up_is_started_once_more(starts: list[str | None]) -> None:
    starts += ["The node did not come up in 30 s", None]
    connect(OnThisMachine())
    assert starts == []


def test_ray_that_does_not_come_up_is_no_fault_of_the_job(starts: list[str | None]) -> None:
    starts += ["The node did not come up in 30 s"] * 3
    with pytest.raises(ClusterError, match=r"in 2 attempts \(RuntimeError: The node did not come up"):
        connect(OnThisMachine())
    assert len(starts) == 1


def test_cluster_that_takes_no_token_is_told_of(
    starts: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = OnThisMachine()
    job.ray_address = "cluster"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    starts += ["unauthenticated"] * 2
    with pytest.raises(JobError, match=r"check --ray-address or RAY_ADDRESS$"):
        connect(job)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of another cluster")
    with pytest.raises(JobError, match="auth_token makes Ray ask with a token: RAY_AUTH_MODE=disabled"):
        connect(job)


def test_hang_up_ends_a_run_unless_it_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signal.SIGHUP in list_signals()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert list_signals() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_local_ray_leaves_no_token_in_the_home_folder(tmp_path: Path) -> None:
    script = (
        "from rerank_actor.runtime.connection import connect_ray, watch_signals\n"
        "class Job: ray_address = None\n"
        "for _ in range(2):\n"
        "    with watch_signals() as watch, connect_ray(Job(), watch):\n"
        "        import ray\n"
        "        print(ray.get(ray.remote(lambda: 7).remote()))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**environment, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert (found.returncode, found.stdout) == (0, "7\n7\n"), found.stderr
    assert not (tmp_path / ".ray").exists()


def test_line_of_a_library_is_left_out_of_standard_error_and_all_others_come(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="meant"), leave_out_line(b"noise"):
        os.write(2, b"one\n[I] some noise here\n")
        os.write(2, b"two\n")
        raise ValueError("meant")
    os.write(2, b"three\n")
    assert capfd.readouterr().err == "one\ntwo\nthree\n"
