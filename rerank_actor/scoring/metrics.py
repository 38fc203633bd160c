"""Metrics: what Ray's metrics agents show to Prometheus while a run is at work, from each actor and from the driver.

Takes counts from the process it lives in, gives them to `ray.util.metrics`; Ray puts `ray_` before each name and
`_total` behind a counter's. Each has the labels `run` and `output`, an actor's also `actor`. Knows nothing of units.
`cluster/grafana/dashboard.json` shows them.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from ray.util.metrics import Counter, Gauge

TICK_SECONDS = 5.0  # between two bookings of an engine that is at work or idle for long
REASONS_TOLD = 20  # as labels; what is beyond them is told as `other`
REASON_LENGTH = 80

ACTOR_COUNTERS: Final = {
    "rerank_pairs": "pairs that an engine computed",
    "rerank_tokens": "prompt tokens of these pairs",
    "rerank_cached_tokens": "prompt tokens of these pairs that the prefix cache had",
    "rerank_engine_busy_seconds": "seconds in which the engine computed",
    "rerank_engine_idle_seconds": "seconds in which the engine waited for a unit",
    "rerank_retries": "pieces of units that were not the first of their unit",
}
RUN_GAUGES: Final = {
    "rerank_rows_planned": "rows of the plan",
    "rerank_rows_committed": "rows in the output, those of earlier runs included",
    "rerank_units_planned": "units of the plan",
    "rerank_units_committed": "units in the output, those of earlier runs included",
    "rerank_units_failed": "units that failed for good in this run",
    "rerank_units_queued": "units that are read and wait for an engine",
    "rerank_units_at_engines": "units that an engine has in hand",
    "rerank_actors": "actors that hold their resources",
    "rerank_gpus": "GPUs that these actors hold",
    "rerank_eta_seconds": "seconds until the run is done, at the speed of the last minutes",
    "rerank_gpu_price_dollars": "dollars an hour for one GPU, as the job was told",
}
RUN_COUNTERS: Final = {
    "rerank_gpu_seconds": "GPU seconds that the run held",
    "rerank_cost_dollars": "dollars that these came to",
}

logger = logging.getLogger(__name__)


class ActorMeter:
    """The metrics of one engine's process, and its sign of life to the coordinator.

    Args:
        labels: `run` and `output`.
        actor: id of the actor.
        coordinator: handle of the run's coordinator.
    """

    def __init__(self, labels: Mapping[str, str], actor: str, coordinator: Any) -> None:
        tags = {**labels, "actor": actor}
        self._counters = {name: _make_counter(name, words, tags) for name, words in ACTOR_COUNTERS.items()}
        self._actor, self._coordinator = actor, coordinator
        self._lock = threading.Lock()
        self._at_work, self._booked_at = False, time.monotonic()
        self._has_engine = False
        threading.Thread(target=self._tick, name="metrics", daemon=True).start()

    def begin_idle(self) -> None:
        """Count from now on what the engine does; before it starts it is neither busy nor idle."""
        with self._lock:
            self._has_engine, self._booked_at = True, time.monotonic()

    def begin_work(self) -> None:
        """The engine computes from now on."""
        self._book()
        self._at_work = True

    def end_work(self, pairs: int = 0, tokens: int = 0, cached_tokens: int = 0) -> None:
        """The engine is idle from now on, and has computed this much."""
        self._book()
        self._at_work = False
        for name, value in (
            ("rerank_pairs", pairs),
            ("rerank_tokens", tokens),
            ("rerank_cached_tokens", cached_tokens),
        ):
            _increase(self._counters[name], value)

    def count_retry(self) -> None:
        """A piece was handed out again, or is a half of one."""
        _increase(self._counters["rerank_retries"], 1)

    def _book(self) -> None:
        with self._lock:
            now = time.monotonic()
            seconds, self._booked_at = now - self._booked_at, now
            if self._has_engine:
                name = "rerank_engine_busy_seconds" if self._at_work else "rerank_engine_idle_seconds"
                _increase(self._counters[name], seconds)

    def _tick(self) -> None:
        while True:
            try:
                self._book()
                self._coordinator.note_presence.remote(self._actor)
            except Exception:  # of a Ray that is going down; nothing depends on it
                logger.debug("metrics could not be told", exc_info=True)
            time.sleep(TICK_SECONDS)


class RunMeter:
    """The metrics of a run, told by its driver.

    Args:
        labels: `run` and `output`.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        keys = tuple(labels)
        self._gauges: dict[str, Any] = {}
        for name, words in RUN_GAUGES.items():
            self._gauges[name] = Gauge(name, description=words, tag_keys=keys)
            self._gauges[name].set_default_tags(dict(labels))
        self._counters = {name: _make_counter(name, words, labels) for name, words in RUN_COUNTERS.items()}
        self._errors = _make_counter("rerank_errors", "pairs that have an error instead of a score", labels, "reason")
        self._faults = _make_counter("rerank_faults", "faults that the run survived", labels, "kind")
        self._reasons: set[str] = set()

    def set(self, **values: float | None) -> None:
        """Set gauges, each by its name without `rerank_`; None leaves one as it is."""
        for name, value in values.items():
            if value is not None:
                self._gauges[f"rerank_{name}"].set(float(value))

    def count_gpus(self, seconds: float, dollars: float) -> None:
        """Add GPU seconds held, and what they cost."""
        _increase(self._counters["rerank_gpu_seconds"], seconds)
        _increase(self._counters["rerank_cost_dollars"], dollars)

    def count_errors(self, errors: Mapping[str, int]) -> None:
        """Add pairs that have an error, by reason."""
        for reason, count in errors.items():
            label = reason[:REASON_LENGTH]
            if label not in self._reasons and len(self._reasons) >= REASONS_TOLD:
                label = "other"
            self._reasons.add(label)
            _increase(self._errors, count, {"reason": label})

    def count_faults(self, faults: Mapping[str, int]) -> None:
        """Add faults that were survived, by kind."""
        for kind, count in faults.items():
            _increase(self._faults, count, {"kind": kind})


def _make_counter(name: str, words: str, labels: Mapping[str, str], *more: str) -> Any:
    counter: Any = Counter(name, description=words, tag_keys=(*labels, *more))
    counter.set_default_tags(dict(labels))
    return counter


def _increase(counter: Any, value: float, tags: dict[str, str] | None = None) -> None:
    if value > 0:  # Ray refuses a zero
        counter.inc(float(value), tags)
