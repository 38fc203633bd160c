"""The fake engine: logits that follow from the token ids alone, with no model, for rehearsals of faults and of scale.

Bit-identical on every machine and in every batch. Never for claiming scores.
"""

import hashlib
import time
from collections.abc import Sequence

import numpy as np

from rerank_actor.engine import EngineSpec
from rerank_actor.errors import ModelError

SPREAD = 8.0  # logits are uniform in [-SPREAD, SPREAD)


class FakeEngine:
    """An engine without a model.

    Its one engine argument is `seconds_per_prompt`, the time it sleeps for each prompt, which stands for the work of a
    real engine.
    """

    name = "fake"
    version = "1"  # of the rule below
    dtype = "float32"

    def __init__(self, spec: EngineSpec) -> None:
        unknown = set(spec.engine_args) - {"seconds_per_prompt"}
        if unknown:
            raise ModelError(f"--engine-args: the fake engine has no `{min(unknown)}`; it takes `seconds_per_prompt`")
        self._seconds_per_prompt = float(spec.engine_args.get("seconds_per_prompt", 0.0))

    def compute_logits(self, prompts: Sequence[np.ndarray]) -> np.ndarray:
        """Return a logit for each prompt: 32 bits of the BLAKE2 hash of its little-endian int32 ids, scaled."""
        if self._seconds_per_prompt:
            time.sleep(self._seconds_per_prompt * len(prompts))
        logits = np.empty(len(prompts), np.float32)
        for index, ids in enumerate(prompts):
            digest = hashlib.blake2b(np.asarray(ids, "<i4").tobytes(), digest_size=4).digest()
            logits[index] = np.float32(int.from_bytes(digest, "little") / 2**32 * 2 * SPREAD - SPREAD)
        return logits

    def close(self) -> None:
        """Nothing to give back."""
