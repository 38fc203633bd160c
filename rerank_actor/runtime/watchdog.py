"""The watchdog: a process of its own that ends the process it watches when a piece of work takes too long.

It stands outside because an engine can hang in a way that stops every thread of Python (a kernel that sleeps, a call that
holds the interpreter's lock). Limits go to it through a pipe; it ends with the process it watches. Uses the standard
library alone, and runs as a script, so that it is small and starts at once.
"""

import contextlib
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import IO

POLL_SECONDS = 5.0
STOPPED_SECONDS = 30.0  # that a stopped process is waited for


class Watchdog:
    """Watches the process that makes it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """End this process with SIGKILL unless the block ends within some seconds."""
        self._notify(seconds)
        try:
            yield
        finally:
            self._notify(0)

    def close(self) -> None:
        """End the watchdog."""
        if self._process is not None:
            _pipe(self._process).close()
            self._process.wait()
            self._process = None

    def _notify(self, seconds: float) -> None:
        message = f"{seconds:.3f}\n".encode()
        with contextlib.suppress(OSError):
            if self._process is not None and self._process.poll() is None:
                _pipe(self._process).write(message)
                return
        self._process = self._start()
        _pipe(self._process).write(message)

    def _start(self) -> "subprocess.Popen[bytes]":
        # A session of its own: a signal to the watched process's group must not take the watchdog first.
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )


def _pipe(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    if process.stdin is None:
        raise ValueError("the watchdog was started without a pipe")
    return process.stdin


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal."""
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def watch(watched: int, source: int) -> None:
    """Read limits in seconds, a line each, and kill the watched process when one passes; 0 is no limit.

    A process that somebody stopped (SIGSTOP) and forgot is killed too, whatever it is at.
    """
    deadline, stopped_at = math.inf, math.inf
    pending = b""
    while os.getppid() == watched:
        ready, _, _ = select.select([source], [], [], max(0.0, min(deadline - time.monotonic(), POLL_SECONDS)))
        now = time.monotonic()
        stopped_at = min(stopped_at, now) if is_stopped(watched) else math.inf
        if (now >= deadline and not ready) or now - stopped_at >= STOPPED_SECONDS:
            os.kill(watched, signal.SIGKILL)
            return
        if not ready:
            continue
        data = os.read(source, 4096)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        if lines:
            deadline = now + float(lines[-1]) if float(lines[-1]) else math.inf


SLACK = 10.0  # a piece may be this much slower than the slowest of the last few
REMEMBERED = 8
START_SECONDS = 3600.0  # for an engine to start, weights fetched over a network included


class AdaptiveTimeout:
    """How long an engine may take, by what its last pieces of work took.

    Args:
        stall_seconds: allowed on top, however small the work.
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._seconds_per_token: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, tokens: int, seconds: float) -> None:
        """Record that a piece of so many tokens took so long."""
        if tokens:
            self._seconds_per_token.append(seconds / tokens)

    def allow(self, tokens: int) -> float:
        """Return the seconds that a piece of so many tokens may take."""
        return self._stall_seconds + SLACK * tokens * max(self._seconds_per_token, default=0.0)


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.stdin.fileno())
