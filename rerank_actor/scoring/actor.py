"""The actor: a Ray process that owns one engine and fills in the logits of the units that come by.

Takes a prepared unit as a table of one row and gives the same unit with logits, as failed, or handed back. Knows
nothing of texts, shards or parts. What is tried again, and in which slices, the coordinator says, which outlives this
process: an engine that raised is not trusted with the whole unit again, so the process ends and Ray replaces it. While
a unit is being split, and after logits that are not finite, an engine that still scores the built-in pairs as it did
at its start is kept, because starting one takes long.
"""

import logging
import os
import time
from dataclasses import asdict, replace
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import ray

from rerank_actor import storage
from rerank_actor.engines.base import Engine, EngineSpec, compute_within_memory
from rerank_actor.engines.start import EngineCheck, scores_as_before, start_engine
from rerank_actor.errors import EngineError, EngineStartError, RerankError
from rerank_actor.runtime.pool import find_place
from rerank_actor.runtime.watchdog import START_SECONDS, AdaptiveTimeout, Watchdog
from rerank_actor.scoring.bisection import Outcome, UnitSlice
from rerank_actor.scoring.coordinator import START_ATTEMPTS
from rerank_actor.scoring.metrics import ActorMeter
from rerank_actor.scoring.unit import UnitWork

# Before a process whose engine did not start is replaced, and twice as long after each further failure; the driver ends
# a run without any engine meanwhile.
START_PAUSE_SECONDS = 2.0
POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


class RerankActor:
    """One engine in one process; Ray Data calls it with a unit at a time.

    Args:
        spec: the engine to start.
        coordinator: handle of the run's coordinator, which is told why an engine does not start.
        stall_seconds: allowed to an engine for any piece of work, on top of what such work took before.
        environment: AWS variables of the driver, for models in S3.
        labels: of the run, for its metrics.
    """

    def __init__(
        self,
        spec: EngineSpec,
        coordinator: Any,
        stall_seconds: float,
        environment: dict[str, str],
        labels: dict[str, str],
    ) -> None:
        storage.adopt_environment(environment)
        self._coordinator, self._id = coordinator, ray.get_runtime_context().get_actor_id()
        self._watchdog, self._timeout = Watchdog(), AdaptiveTimeout(stall_seconds)
        self._engine: Engine | None = None
        self._busy_seconds = 0.0
        place = find_place()
        failures = ray.get(coordinator.begin_start.remote(self._id, place.log_words))
        if failures is None:
            raise EngineStartError("the run has ended")  # ends the pipeline, which is wanted
        if failures == START_ATTEMPTS:
            return
        started = time.monotonic()
        self._meter = ActorMeter(labels, str(self._id), coordinator)
        try:
            with self._watchdog.limit(START_SECONDS):
                self._engine, self._check = self._start(spec)
        except RerankError as error:
            ray.get(coordinator.note_engine_failure.remote(self._id, f"{error}{place.log_words}"))
            time.sleep(START_PAUSE_SECONDS * 2**failures)
            os._exit(1)  # an exception here would end the whole run
        self._check_prompts = [np.array(ids, np.int32) for ids in spec.check_prompts]
        self._check_heads = spec.check_heads
        self._timeout.note(sum(len(ids) for ids in self._check_prompts), self._check.seconds)
        facts = {**asdict(place), **asdict(self._check), "start_seconds": round(time.monotonic() - started, 1)}
        ray.get(coordinator.note_engine.remote(self._id, facts))
        self._meter.begin_idle()

    def _start(self, spec: EngineSpec) -> tuple[Engine, EngineCheck]:
        checks = spec.check_scores and ray.get(self._coordinator.claim_check.remote())
        engine, check = start_engine(replace(spec, check_scores=checks), self._coordinator.note_batch_tokens.remote)
        agreed = ray.get(self._coordinator.agree_dtype.remote(engine.dtype))
        if agreed != engine.dtype:
            engine.close()
            raise EngineStartError(
                f"{spec.model.name}: this actor came to {engine.dtype} where the run has {agreed}; name one with --dtype"
            )
        return engine, check

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score one unit."""
        work = UnitWork.from_table(block)
        if work.failure is not None:
            return block
        if self._engine is None:
            return self._hand_back(work).to_table()
        return self._score(work, self._engine).to_table()

    def _hand_back(self, work: UnitWork) -> UnitWork:
        """Keep a unit while others are at work, which would otherwise be handed back one after the other."""
        while not ray.get(self._coordinator.is_quiet.remote()):
            time.sleep(POLL_SECONDS)
        return work.with_failure("its actor has no engine", {"handed_back": True})

    def _score(self, work: UnitWork, engine: Engine) -> UnitWork:
        name, positions = work.unit.name, work.prompts.scorable
        busy_before, cached_before = self._busy_seconds, engine.cached_tokens

        def count_work() -> dict[str, Any]:
            return {
                "seconds": round(self._busy_seconds - busy_before, 4),
                "cached_tokens": engine.cached_tokens - cached_before,
            }

        while True:
            step = ray.get(self._coordinator.begin_slice.remote(self._id, name, len(positions)))
            if step is None:
                raise EngineError("the run has ended", unit=name)
            facts = {
                "attempts": step.ticket if isinstance(step, UnitSlice) else max(1, step.attempts),
                **count_work(),
                "engine_version": engine.version,
                "dtype": engine.dtype,
            }
            if isinstance(step, Outcome):
                if step.failure is not None:
                    return work.with_failure(step.failure, facts)
                prompts = work.prompts.with_errors({int(positions[at]): why for at, why in step.given_up.items()})
                return replace(work, prompts=prompts).with_logits(_scatter(work, step.logits), facts)
            logits = self._try_slice(work, engine, step)
            if step.positions is None and logits is not None and np.isfinite(logits).all():
                self._coordinator.end_bisection.remote(name, step.ticket)
                return work.with_logits(_scatter(work, logits), facts | count_work())
            if logits is not None:
                doubtful = not np.isfinite(logits).all() and not self._is_healthy(engine)
                ray.get(self._coordinator.finish_slice.remote(name, step.ticket, logits, doubtful))
                if doubtful:
                    self._end()

    def _try_slice(self, work: UnitWork, engine: Engine, unit_slice: UnitSlice) -> np.ndarray | None:
        """Return the logits of a slice; None when the engine raised, is still to be trusted, and the coordinator knows."""
        positions, ticket = work.prompts.scorable, unit_slice.ticket
        if unit_slice.positions is not None:
            positions = positions[unit_slice.positions]
        try:
            return self._compute(engine, work, positions, ticket)
        except RerankError as error:
            logger.warning("unit %s: attempt %d failed: %s", work.unit.name, ticket, error)
            doubtful = not unit_slice.is_split or not self._is_healthy(engine)
            ray.get(self._coordinator.fail_slice.remote(work.unit.name, ticket, str(error), doubtful))
            if doubtful:
                self._end()
            return None

    def _compute(self, engine: Engine, work: UnitWork, positions: np.ndarray, ticket: int) -> np.ndarray:
        prompts = work.prompts
        tokens = int(prompts.num_tokens[positions].sum())
        limit = self._timeout.allow(tokens)
        self._coordinator.limit_slice.remote(work.unit.name, ticket, limit)
        if ticket > 1:
            self._meter.count_retry()
        cached_before, pairs = engine.cached_tokens, 0
        started = time.monotonic()
        self._meter.begin_work()
        try:
            with self._watchdog.limit(limit):
                logits = compute_within_memory(
                    engine,
                    prompts.ids_at(positions),
                    prompts.head_tokens[positions].tolist(),
                    self._coordinator.note_batch_tokens.remote,
                )
            pairs = len(logits)
        finally:
            seconds = time.monotonic() - started
            self._busy_seconds += seconds
            computed = (pairs, tokens, engine.cached_tokens - cached_before) if pairs else (0, 0, 0)
            self._meter.end_work(*computed)
        self._timeout.note(tokens, seconds)
        return logits

    def _is_healthy(self, engine: Engine) -> bool:
        tokens = sum(len(ids) for ids in self._check_prompts)
        with self._watchdog.limit(self._timeout.allow(tokens)):
            return scores_as_before(engine, self._check_prompts, self._check_heads, self._check)

    def _end(self) -> NoReturn:
        """End this process; Ray starts another in its place and gives it the unit again."""
        ray.get(self._coordinator.end_actor.remote(self._id))
        os._exit(1)


def _scatter(work: UnitWork, scorable_logits: np.ndarray) -> np.ndarray:
    """Return logits of the scorable pairs in their places among all pairs, NaN elsewhere."""
    logits = np.full((len(work.prompts), *scorable_logits.shape[1:]), np.nan, np.float32)
    logits[work.prompts.scorable] = scorable_logits
    return logits
