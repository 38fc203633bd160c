"""The fake engine: logits that follow from the token ids alone, with no model, for rehearsals of faults and of scale.

Bit-identical on every machine and in every batch. Never for claiming scores. Its faults are real ones, done to its own
process: it raises, returns NaN, ends its process, hangs (also holding the interpreter's lock) or runs out of memory, at
random or on prompts with a certain token. A fault lasts: an engine that has raised or returned NaN at random goes on
doing so until its process is replaced, as after a CUDA error.
"""

import ctypes
import hashlib
import itertools
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.families.description import EmbeddingHead
from rerank_actor.engines.vectors import finish_vectors, make_outputs
from rerank_actor.errors import EngineError, EngineMemoryError, ModelError

SPREAD = 8.0  # logits are uniform in [-SPREAD, SPREAD)
HANG_SECONDS = 100_000
KINDS = ("raise", "nan", "die", "hang", "hang_with_lock")


class FakeEngine:
    """An engine without a model.

    Its engine arguments: `seconds_per_prompt`, the time it sleeps for each prompt, which stands for the work of a real
    engine; `cached_share`, the share of tokens that it says a cache had; `meet`, a folder and a number: no engine is at work
    before as many engines have met there; and `faults`, a mapping of

    - a kind (raise, nan, die, hang, hang_with_lock) to its probability for a batch,
    - `guilty_token` to a token id and `guilty_kind` to what happens on each prompt that holds it,
    - `start` to a kind that happens at the engine's start, `start_probability` to how often (default always), `start_mark` to a
      file that does not exist, so that only the engine that makes it is struck,
    - `memory_tokens` to the tokens above which a batch does not fit,
    - `seed` to a number.
    """

    name = "fake"
    version = "1"  # of the rule below
    dtype = "float32"
    path = ""

    def __init__(self, spec: EngineSpec) -> None:
        unknown = set(spec.engine_args) - {"seconds_per_prompt", "cached_share", "meet", "faults"}
        if unknown:
            raise ModelError(
                f"--engine-args: the fake engine has no `{min(unknown)}`; it takes `seconds_per_prompt`, `cached_share`, "
                "`meet` and `faults`"
            )
        self.cached_tokens = 0
        self._cached_share = float(spec.engine_args.get("cached_share", 0.0))
        self._seconds_per_prompt = float(spec.engine_args.get("seconds_per_prompt", 0.0))
        self._head = spec.model.description.head
        self._faults = _Faults(spec.engine_args.get("faults", {}), spec.check_prompts)
        self._batch_tokens: int | None = None
        self._faults.strike_start()
        if "meet" in spec.engine_args:
            _meet(*spec.engine_args["meet"])

    def compute_logits(self, prompts: Sequence[np.ndarray], head_tokens: Sequence[int] | None = None) -> np.ndarray:
        """Return a logit for each prompt: 32 bits of the BLAKE2 hash of its little-endian int32 ids, scaled; or a vector."""
        if self._seconds_per_prompt:
            time.sleep(self._seconds_per_prompt * len(prompts))
        self._faults.strike_memory(prompts, self._batch_tokens)
        logits = make_outputs(self._head, len(prompts))
        for index, ids in enumerate(prompts):
            if isinstance(self._head, EmbeddingHead):
                logits[index] = _make_vector(ids, self._head)
                continue
            digest = hashlib.blake2b(np.asarray(ids, "<i4").tobytes(), digest_size=4).digest()
            logits[index] = np.float32(int.from_bytes(digest, "little") / 2**32 * 2 * SPREAD - SPREAD)
        self.cached_tokens += int(self._cached_share * sum(len(ids) for ids in prompts))
        return self._faults.strike(prompts, logits)

    def shrink_batches(self) -> int | None:
        """Halve the tokens that are computed at once."""
        self._batch_tokens = (self._batch_tokens or 2**16) // 2
        return self._batch_tokens if self._batch_tokens >= 1 else None

    def close(self) -> None:
        """Nothing to give back."""


def _make_vector(ids: np.ndarray, head: EmbeddingHead) -> np.ndarray:
    """Return the mean of a vector for each pair of neighbouring tokens, so that texts that share words are close."""
    pairs = itertools.pairwise(ids) if len(ids) > 1 else [(ids[0], ids[0])]
    digests = [hashlib.shake_128(np.array(pair, "<i4").tobytes()).digest(head.width) for pair in pairs]
    states = np.frombuffer(b"".join(digests), np.int8).reshape(-1, head.width)
    whole = states.sum(axis=0, dtype=np.int64, keepdims=True) + 0.5  # which no sum of whole numbers takes to zero
    return np.asarray(finish_vectors(head, whole)[0])


def _meet(folder: str, number: int) -> None:
    """Wait until so many engines have come to a folder."""
    Path(folder, str(os.getpid())).touch()
    while sum(1 for _ in Path(folder).iterdir()) < number:
        time.sleep(0.05)


class _Faults:
    """The faults of a fake engine."""

    def __init__(self, wanted: Mapping[str, Any], check_prompts: Sequence[Sequence[int]]) -> None:
        known = {
            *KINDS,
            "guilty_token",
            "guilty_kind",
            "start",
            "start_probability",
            "start_mark",
            "memory_tokens",
            "seed",
        }
        unknown = set(wanted) - known
        kinds = {wanted.get("guilty_kind", "raise"), wanted.get("start", "raise")} - {*KINDS}
        if unknown or kinds:
            raise ModelError(f"--engine-args: the fake engine has no fault `{min(unknown | kinds)}`; see its docstring")
        self._wanted = wanted
        self._check_prompts = {tuple(prompt) for prompt in check_prompts}
        self._random = random.Random(f"{wanted.get('seed', 0)} {os.getpid()} {time.time_ns()}")
        self._lasting: str | None = None

    def strike_start(self) -> None:
        kind = self._wanted.get("start")
        if not kind or self._random.random() >= self._wanted.get("start_probability", 1.0):
            return
        if "start_mark" in self._wanted:
            try:
                Path(self._wanted["start_mark"]).touch(exist_ok=False)
            except FileExistsError:
                return
        self._do(kind, "the start")

    def strike_memory(self, prompts: Sequence[np.ndarray], batch_tokens: int | None) -> None:
        limit = self._wanted.get("memory_tokens")
        at_once = min(sum(len(ids) for ids in prompts), batch_tokens or 2**62)
        if limit is not None and max(at_once, max((len(ids) for ids in prompts), default=0)) > limit:
            raise EngineMemoryError(f"fake memory holds {limit} tokens, not the {at_once} of a batch")

    def strike(self, prompts: Sequence[np.ndarray], logits: np.ndarray) -> np.ndarray:
        is_check = all(tuple(ids.tolist()) in self._check_prompts for ids in prompts)
        if not is_check and self._lasting is None:
            for kind in KINDS:
                if self._random.random() < self._wanted.get(kind, 0.0):
                    self._do(kind, "a batch")
        if self._lasting == "raise":
            raise EngineError("the fake engine is broken, as was wanted")
        if self._lasting == "nan":
            return np.full_like(logits, np.nan)
        token = self._wanted.get("guilty_token")
        guilty = np.array([token is not None and bool((ids == token).any()) for ids in prompts], bool)
        kind = self._wanted.get("guilty_kind", "raise")
        if not guilty.any():
            return logits
        if kind == "nan":
            logits[guilty] = np.nan
            return logits
        if kind == "raise":
            raise EngineError("a prompt with the guilty token was in the batch")
        self._do(kind, "a guilty prompt")
        return logits

    def _do(self, kind: str, where: str) -> None:
        if kind in ("raise", "nan") and where != "the start":
            self._lasting = kind
        elif kind in ("raise", "nan"):
            raise EngineError(f"the fake engine fails at {where}, as was wanted")
        elif kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "hang":
            time.sleep(HANG_SECONDS)
        else:
            ctypes.PyDLL(None).sleep(HANG_SECONDS)  # unlike CDLL it keeps the interpreter's lock
