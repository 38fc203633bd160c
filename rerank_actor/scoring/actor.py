"""The actor: a Ray process that owns one engine and fills in the logits of the units that come by.

Takes a prepared unit as a table of one row and gives the same unit with logits, as failed, or handed back. Knows
nothing of texts, shards or parts. What is tried again, and in which pieces, the coordinator says, which outlives this
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
from rerank_actor.runtime.watchdog import START_SECONDS, AdaptiveTimeout, Watchdog
from rerank_actor.scoring.bisection import Outcome, Slice
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
        self._ledger, self._id = coordinator, ray.get_runtime_context().get_actor_id()
        self._watchdog, self._pace = Watchdog(), AdaptiveTimeout(stall_seconds)
        self._engine: Engine | None = None
        self._busy_seconds = 0.0
        failures = ray.get(coordinator.begin_start.remote(self._id))
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
            ray.get(coordinator.note_engine_failure.remote(self._id, str(error)))
            time.sleep(START_PAUSE_SECONDS * 2**failures)
            os._exit(1)  # an exception here would end the whole run
        self._check_prompts = [np.array(ids, np.int32) for ids in spec.check_prompts]
        self._pace.note(sum(len(ids) for ids in self._check_prompts), self._check.seconds)
        facts = {"pid": os.getpid(), **asdict(self._check), "start_seconds": round(time.monotonic() - started, 1)}
        ray.get(coordinator.note_engine.remote(self._id, facts))
        self._meter.begin_idle()

    def _start(self, spec: EngineSpec) -> tuple[Engine, EngineCheck]:
        checks = spec.check_scores and ray.get(self._ledger.claim_check.remote())
        engine, check = start_engine(replace(spec, check_scores=checks), self._ledger.note_batch_tokens.remote)
        agreed = ray.get(self._ledger.agree_dtype.remote(engine.dtype))
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
        while not ray.get(self._ledger.is_quiet.remote()):
            time.sleep(POLL_SECONDS)
        return replace(UnitWork.failed(work.unit, "its actor has no engine", {"handed_back": True}), place=work.place)

    def _score(self, work: UnitWork, engine: Engine) -> UnitWork:
        name, positions = work.unit.name, work.prompts.scorable
        busy_before, cached_before = self._busy_seconds, engine.cached_tokens

        def count_work() -> dict[str, Any]:
            return {
                "seconds": round(self._busy_seconds - busy_before, 4),
                "cached_tokens": engine.cached_tokens - cached_before,
            }

        while True:
            piece = ray.get(self._ledger.begin_piece.remote(self._id, name, len(positions)))
            if piece is None:
                raise EngineError("the run has ended", unit=name)
            facts = {
                "attempts": piece.ticket if isinstance(piece, Slice) else max(1, piece.attempts),
                **count_work(),
                "engine_version": engine.version,
                "dtype": engine.dtype,
            }
            if isinstance(piece, Outcome):
                if piece.failure is not None:
                    return work.with_failure(piece.failure, facts)
                prompts = work.prompts.with_errors({int(positions[at]): why for at, why in piece.given_up.items()})
                return replace(work, prompts=prompts).with_logits(_scatter(work, piece.logits), facts)
            found = self._try_piece(work, engine, piece)
            if piece.positions is None and found is not None and np.isfinite(found).all():
                self._ledger.end_trial.remote(name, piece.ticket)
                return work.with_logits(_scatter(work, found), facts | count_work())
            if found is not None:
                doubtful = not np.isfinite(found).all() and not self._is_healthy(engine)
                ray.get(self._ledger.finish_piece.remote(name, piece.ticket, found, doubtful))
                if doubtful:
                    self._end()

    def _try_piece(self, work: UnitWork, engine: Engine, piece: Slice) -> np.ndarray | None:
        """Return the logits of a piece; None when the engine raised, is still to be trusted, and the coordinator knows."""
        positions = work.prompts.scorable
        if piece.positions is not None:
            positions = positions[piece.positions]
        try:
            return self._compute(engine, work, positions, piece.ticket)
        except RerankError as error:
            logger.warning("unit %s: attempt %d failed: %s", work.unit.name, piece.ticket, error)
            doubtful = not piece.is_split or not self._is_healthy(engine)
            ray.get(self._ledger.fail_piece.remote(work.unit.name, piece.ticket, str(error), doubtful))
            if doubtful:
                self._end()
            return None

    def _compute(self, engine: Engine, work: UnitWork, positions: np.ndarray, ticket: int) -> np.ndarray:
        prompts = work.prompts
        tokens = int(prompts.num_tokens[positions].sum())
        limit = self._pace.allow(tokens)
        self._ledger.limit_piece.remote(work.unit.name, ticket, limit)
        if ticket > 1:
            self._meter.count_retry()
        cached_before, pairs = engine.cached_tokens, 0
        started = time.monotonic()
        self._meter.begin_work()
        try:
            with self._watchdog.limit(limit):
                found = compute_within_memory(
                    engine,
                    prompts.ids_at(positions),
                    prompts.head_tokens[positions].tolist(),
                    self._ledger.note_batch_tokens.remote,
                )
            pairs = len(found)
        finally:
            seconds = time.monotonic() - started
            self._busy_seconds += seconds
            computed = (pairs, tokens, engine.cached_tokens - cached_before) if pairs else (0, 0, 0)
            self._meter.end_work(*computed)
        self._pace.note(tokens, seconds)
        return found

    def _is_healthy(self, engine: Engine) -> bool:
        tokens = sum(len(ids) for ids in self._check_prompts)
        with self._watchdog.limit(self._pace.allow(tokens)):
            return scores_as_before(engine, self._check_prompts, self._check)

    def _end(self) -> NoReturn:
        """End this process; Ray starts another in its place and gives it the unit again."""
        ray.get(self._ledger.end_actor.remote(self._id))
        os._exit(1)


def _scatter(work: UnitWork, found: np.ndarray) -> np.ndarray:
    """Return logits of the scorable pairs in their places among all pairs, NaN elsewhere."""
    logits = np.full(len(work.prompts), np.nan, np.float32)
    logits[work.prompts.scorable] = found
    return logits
