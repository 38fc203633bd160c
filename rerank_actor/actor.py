"""The actor: a Ray process that owns one engine and fills in the logits of the units that come by.

Takes a prepared unit as a table of one row and gives the same unit with logits, or as failed. Knows nothing of
texts, shards or parts. An engine that raises is given `max_attempts` tries for a unit; attempts are counted by the
ledger, outside this process, so that a unit that kills its actor is counted too.
"""

import logging
import os
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from rerank_actor import storage
from rerank_actor.engine import Engine, EngineSpec, compute_within_memory
from rerank_actor.engine_check import start_engine
from rerank_actor.errors import EngineError, EngineStartError, RerankError
from rerank_actor.units import UnitWork

# Time for the driver to end a run without any engine, before Ray prints pages about this actor and starts it again.
DRIVER_REACTION_SECONDS = 10.0

logger = logging.getLogger(__name__)


class RerankActor:
    """One engine in one process; Ray Data calls it with a unit at a time.

    Args:
        spec: the engine to start.
        ledger: handle of the run's ledger.
        max_attempts: tries for a unit before it counts as failed.
        environment: AWS variables of the driver, for models in S3.

    Raises:
        EngineStartError: the engine cannot start; the ledger knows why before this is raised.
    """

    def __init__(self, spec: EngineSpec, ledger: Any, max_attempts: int, environment: dict[str, str]) -> None:
        storage.adopt_environment(environment)
        self._ledger, self._max_attempts = ledger, max_attempts
        started = time.monotonic()
        try:
            self._engine, check = self._start(spec)
        except RerankError as error:
            ray.get(ledger.note_engine_failure.remote(str(error)))
            time.sleep(DRIVER_REACTION_SECONDS)
            raise
        facts = {**asdict(check), "start_seconds": round(time.monotonic() - started, 1)}
        ray.get(ledger.note_engine.remote(os.getpid(), facts))

    def _start(self, spec: EngineSpec) -> tuple[Engine, Any]:
        checks = spec.check_scores and ray.get(self._ledger.claim_check.remote())
        engine, check = start_engine(replace(spec, check_scores=checks))
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
        return self._score(work).to_table()

    def _score(self, work: UnitWork) -> UnitWork:
        prompts = work.prompts
        positions = prompts.scorable
        while True:
            attempt = ray.get(self._ledger.begin_attempt.remote(work.unit.name))
            if attempt == 0:
                raise EngineError("the run has ended", unit=work.unit.name)
            if attempt > self._max_attempts:
                return work.with_failure(
                    f"the actor died {self._max_attempts} times while scoring this unit",
                    {"attempts": self._max_attempts},
                )
            started = time.monotonic()
            try:
                found = compute_within_memory(self._engine, prompts.ids_at(positions))
            except RerankError as error:
                logger.warning("unit %s: attempt %d failed: %s", work.unit.name, attempt, error)
                if attempt >= self._max_attempts or not error.retryable:
                    return work.with_failure(str(error), {"attempts": attempt})
                continue
            logits = np.full(len(prompts), np.nan, np.float32)
            logits[positions] = found
            return work.with_logits(
                logits,
                {
                    "attempts": attempt,
                    "seconds": round(time.monotonic() - started, 4),
                    "engine_version": self._engine.version,
                    "dtype": self._engine.dtype,
                },
            )
