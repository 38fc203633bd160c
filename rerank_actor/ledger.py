"""The ledger: a small Ray actor in which the workers of one run write down what happens, and the driver reads it.

It counts attempts outside the processes that may die, and passes on finished units, failures and engine facts. It
holds what the driver has not read yet, so its memory does not grow with the run. The truth about what is committed is
the listing of the output, never this.
"""

import time
from collections import defaultdict
from typing import Any

import ray


class Ledger:
    """Counts and messages of one run."""

    def __init__(self, dtype: str | None) -> None:
        self._dtype = dtype
        self._check_claimed = self._stopped = False
        self._attempts: defaultdict[str, int] = defaultdict(int)
        self._reports: list[dict[str, Any]] = []
        self._engines: list[dict[str, Any]] = []
        self._engine_failures: list[str] = []

    def agree_dtype(self, dtype: str) -> str:
        """Return the dtype of the run: the first that an engine came to, or that of the output's earlier runs."""
        self._dtype = self._dtype or dtype
        return self._dtype

    def claim_check(self) -> bool:
        """Return whether the caller is to compare its engine with the reference: once a run, by the first that asks."""
        first, self._check_claimed = not self._check_claimed, True
        return first

    def stop(self) -> None:
        """Tell the workers that the run has ended, whatever is left to do."""
        self._stopped = True

    def is_stopped(self) -> bool:
        """Return whether the run has ended."""
        return self._stopped

    def begin_attempt(self, unit: str) -> int:
        """Count a try to score a unit and return its number, from 1; 0 when the run has ended."""
        if self._stopped:
            return 0
        self._attempts[unit] += 1
        return self._attempts[unit]

    def note_engine(self, pid: int, facts: dict[str, Any]) -> None:
        """Take down an engine that started and the figures of its check."""
        self._engines.append({"pid": pid, "ready_at": time.time(), **facts})

    def note_engine_failure(self, message: str) -> None:
        """Take down why an engine did not start."""
        self._check_claimed = False
        self._engine_failures.append(message)

    def report_unit(self, name: str, report: dict[str, Any]) -> None:
        """Take down that a unit is committed, or failed (`failure` is then in the report)."""
        self._attempts.pop(name, None)
        self._reports.append({"unit": name, **report})

    def drain(self) -> dict[str, Any]:
        """Return what was reported since the last call, and forget it."""
        news = {"units": self._reports, "engines": self._engines, "engine_failures": self._engine_failures}
        self._reports, self._engines, self._engine_failures = [], [], []
        return news


def start_ledger(dtype: str | None) -> Any:
    """Start the run's ledger on the driver's node and return its handle."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return (
        ray.remote(Ledger)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(dtype)
    )
