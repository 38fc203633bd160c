"""What ties a run to its surroundings on this machine: the connection to Ray, and signals."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rerank_actor.errors import ClusterError, JobError, RunInterruptedError, describe_cause

CONNECT_SECONDS = 10.0
START_ATTEMPTS = 2
STANDARD_ERROR = 2
LOG_LEVEL_LINE = b"Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL"  # of its C++ side, at any level
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
PIPELINE_THREAD = "rerank-actor pipeline"


def is_pipeline_running() -> bool:
    """Whether a pipeline is at work that could not be stopped.

    Then Ray is left as it is, and this process must leave without Ray's exit hook: Ray would end it, with a code of its own,
    when the pipeline's thread speaks to it after a shutdown.
    """
    return any(thread.name == PIPELINE_THREAD for thread in threading.enumerate())


class NamesCluster(Protocol):
    """A job that may name the Ray cluster to run on."""

    @property
    def ray_address(self) -> str | None:
        """Address of the cluster; None leaves it to the environment."""


@dataclass(frozen=True)
class Connection:
    """A connection to Ray: whether this run made it, and the signals that end the work on it."""

    is_ours: bool
    watch: "SignalWatch"


@contextlib.contextmanager
def connect_ray(job: NamesCluster, watch: "SignalWatch") -> Iterator[Connection]:
    """Connect to the cluster that the job or the environment names, or start a Ray on this machine.

    A connection that the caller had made is used and left as it is. So is one whose pipeline could not be stopped.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a pipeline that is being shut down must not start a new Ray
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ side writes to our terminal
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of actors of Ray's own that died
    # Of each worker that died Ray prints paragraphs; the run says in its own words what it survived.
    os.environ.setdefault(
        "RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|There are infinite retries remaining"
    )
    import ray

    address = job.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # Two more than there are: reading and writing are short next to what an engine computes on a CPU.
        arguments |= {"num_cpus": (os.cpu_count() or 1) + 2, "include_dashboard": False}
    connection = Connection(not ray.is_initialized(), watch)
    if connection.is_ours:
        _refuse_silent_address(address)
        try:
            with leave_out_line(LOG_LEVEL_LINE):
                _start_local(arguments) if address == "local" else _join_cluster(address, arguments)
        except SystemExit as error:  # Ray's own handler of SIGTERM, until ours is back in place
            raise RunInterruptedError("stopped by SIGTERM", signum=signal.SIGTERM) from error
    watch.install()  # ray.init puts a handler of its own in the place of ours
    try:
        watch.check()
        yield connection
    finally:
        if connection.is_ours and not is_pipeline_running():
            ray.shutdown()


@contextlib.contextmanager
def leave_out_line(words: bytes) -> Iterator[None]:
    """Keep lines with these words off standard error, written past Python's streams too; all others come a moment later."""
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(tempfile.TemporaryFile())
        try:
            ours = os.dup(STANDARD_ERROR)
        except OSError:  # there is none
            yield
            return
        os.dup2(held.fileno(), STANDARD_ERROR)
        try:
            yield
        finally:
            os.dup2(ours, STANDARD_ERROR)
            held.seek(0)
            with contextlib.suppress(OSError):  # nobody reads it any more
                os.write(ours, b"".join(line for line in held if words not in line))
            os.close(ours)


def _start_local(arguments: dict[str, Any]) -> None:
    """Start a Ray on this machine; once more where it did not come up, as on a machine that is busy.

    Ray's servers listen on all interfaces and take calls from who has its token. Left alone it writes one to the home folder
    that every user of the machine can read; this one is known to this process and its children.
    """
    import ray

    if not any(name in os.environ for name in TOKEN_VARIABLES):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # for good: Ray keeps the first that it sees
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(address="local", **arguments)
            return
        except Exception as error:  # Ray raises a plain one where a node does not come up in time
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS:
                raise ClusterError(
                    f"Ray did not start on this machine in {START_ATTEMPTS} attempts ({describe_cause(error)}); nothing was "
                    "scored; give the same command when the machine is less busy, or name a cluster with --ray-address"
                ) from error


def _join_cluster(address: str, arguments: dict[str, Any]) -> None:
    import ray

    is_token_chosen = any(name in os.environ for name in TOKEN_VARIABLES)
    token = Path.home() / ".ray" / "auth_token"
    try:
        ray.init(address=address, **arguments)
    except Exception as error:
        hint = f"; {token} makes Ray ask with a token: RAY_AUTH_MODE=disabled where the cluster takes none"
        raise JobError(
            f"no Ray cluster at {address} ({describe_cause(error)}); check --ray-address or RAY_ADDRESS"
            + (hint if token.exists() and not is_token_chosen else "")
        ) from error


def _refuse_silent_address(address: str) -> None:
    """Raise for what is no address of a cluster, and where nothing listens at HOST:PORT: Ray would wait without a word."""
    if address.startswith(("http://", "https://")):
        raise JobError(
            f"{address} is the address of Ray's dashboard, which `ray job submit --address` takes; a run on the cluster itself "
            "needs none, one from outside takes --ray-address ray://HOST:10001: check --ray-address or RAY_ADDRESS"
        )
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise JobError(
            f"no Ray cluster at {address} ({describe_cause(error)}); check --ray-address or RAY_ADDRESS"
        ) from error


class SignalWatch:
    """Remembers SIGINT, SIGTERM and, unless it is ignored (`nohup`), SIGHUP until the run asks for them.

    A handler that raised would do so in the middle of whatever Ray's compiled code is at, which swallows the exception
    or ends the process.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None

    def install(self) -> None:
        """Take the signals; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in list_signals():
                signal.signal(number, self._take)

    def _take(self, signum: int, frame: Any) -> None:
        for number in list_signals():
            signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        self._received = signal.Signals(signum)

    def check(self) -> None:
        """Raise `RunInterruptedError` once a signal has come."""
        if self._received is not None:
            raise RunInterruptedError(f"stopped by {self._received.name}", signum=int(self._received))


def list_signals() -> list[signal.Signals]:
    """Return the signals that end a run."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


@contextlib.contextmanager
def watch_signals() -> Iterator[SignalWatch]:
    """Watch for the signals that end a run, and put back afterwards what was there."""
    watch = SignalWatch()
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    before = {number: signal.getsignal(number) for number in list_signals()}
    watch.install()
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
