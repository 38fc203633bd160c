"""What a process and all below it use: CPU seconds, those of children that have ended included, and memory.

Takes a process, gives samples over time. Knows nothing of what the processes do.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import psutil

SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Usage:
    """Use of a tree of processes: CPU seconds since each began, and bytes in memory that are not shared."""

    cpu_seconds: float
    memory_bytes: int


def read_usage(root: psutil.Process) -> Usage:
    """Return CPU seconds and memory that a process and its descendants have used so far."""
    cpu, memory = 0.0, 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times, sizes = process.cpu_times(), process.memory_info()
            cpu += times.user + times.system + times.children_user + times.children_system
            memory += sizes.rss - sizes.shared
    return Usage(cpu, memory)


def measure_peaks(run: Callable[[], Any]) -> tuple[dict[str, int], Any]:
    """Call a function and return the peak memory of this process, of one Ray worker and of all together, and its result."""
    root = psutil.Process()
    peaks = {"driver_mib": 0.0, "largest_worker_mib": 0.0}

    def look() -> None:
        peaks["driver_mib"] = max(peaks["driver_mib"], count_own_mib(root))
        for process in root.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline() and process.cmdline()[0].startswith("ray::"):
                    peaks["largest_worker_mib"] = max(peaks["largest_worker_mib"], count_own_mib(process))

    with Meter(look) as meter:
        result = run()
    return {**{name: round(value) for name, value in peaks.items()}, "all_mib": meter.peak_bytes >> 20}, result


def count_own_mib(process: psutil.Process) -> float:
    """Return the memory of one process that it shares with no other."""
    sizes = process.memory_info()
    return float(sizes.rss - sizes.shared) / 2**20


class Meter:
    """Samples this process and its descendants in a thread, for as long as it is entered.

    Args:
        look: is called at each sample too.

    Attributes:
        peak_bytes: the most memory that a sample found.
    """

    def __init__(self, look: Callable[[], None] | None = None) -> None:
        self._look = look
        self._root = psutil.Process()
        self._times: list[float] = []
        self._cpu: list[float] = []
        self._ended = threading.Event()
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        usage = read_usage(self._root)
        self._times.append(time.time())
        self._cpu.append(usage.cpu_seconds)
        self.peak_bytes = max(self.peak_bytes, usage.memory_bytes)
        if self._look is not None:
            self._look()

    def count_cpu_seconds(self, start: float, end: float) -> float:
        """Return the CPU seconds between two times (`time.time()`), between samples by proportion."""
        # A process that ends before its parent has waited for it is missing from one sample.
        cpu = np.maximum.accumulate(self._cpu)
        used = np.interp([start, end], self._times, cpu)
        return float(used[1] - used[0])
