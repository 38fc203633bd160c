"""The engines' interface: prompts of token ids in, logits out. Each engine lives in a module of its own.

Knows nothing of texts, units, storage or Ray, and of no engine in particular; `engine_check` starts one.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from rerank_actor.engines.families.description import ScoreScale
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.model import RerankerModel
from rerank_actor.errors import EngineMemoryError


def compute_score(logits: np.ndarray, scale: ScoreScale | None = None) -> np.ndarray:
    """Return the score of each logit, its sigmoid: float32 [num_pairs] in [0, 1], computed in float64.

    Args:
        logits: raw outputs of a model.
        scale: what is taken off and divided by before, as the publisher does; None for neither.
    """
    wide = logits.astype(np.float64)
    if scale is not None:
        wide = (wide - scale.shift) / scale.scale
    with np.errstate(over="ignore"):
        return (1.0 / (1.0 + np.exp(-wide))).astype(np.float32)


logger = logging.getLogger(__name__)


EngineKind = Literal["vllm", "transformers", "fake"]


# Noise of the log-odds against float32 as a share of their spread, measured on a random model with a spread of 22
# (standard error 0.06 in float16, 0.41 in bfloat16). Five standard errors and a small floor are allowed.
NOISE_SHARE = {"float32": 1e-4, "float16": 0.06 / 22, "bfloat16": 0.41 / 22}
QUANTIZED_NOISE = 3.0  # of weights packed in fp8, times bfloat16's; 2.9 on the demo's model, at most and in the median
NOISE_FLOOR = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
# Two computations in float32 on CPUs differ by their rounding alone: by at most 1.1e-5 of the spread over all families, and by
# few units in the last place of a logit whose spread is small beside it. Five times that is allowed, and at least what changes
# no score by more than 1e-5: a logit may be the difference of two that are much larger.
ROUNDING_SHARE, ROUNDING_OF_LOGIT, ROUNDING_FLOOR = 5e-5, 1e-6, 4e-5


class Engine(Protocol):
    """One loaded model.

    Attributes:
        name, version: the library that computes, and its version.
        dtype: the dtype it computes in.
        path: how prompts reach the model, where there is more than one way.
        cached_tokens: prompt tokens since the start that were not computed again, because a cache had them.
    """

    name: str
    version: str
    dtype: str
    path: str
    cached_tokens: int

    def compute_logits(self, prompts: Sequence[np.ndarray], head_tokens: Sequence[int] | None = None) -> np.ndarray:
        """Return the log-odds of each prompt, or the vector of each where the model is one of embeddings.

        Args:
            prompts: int32 arrays of token ids, none empty, none longer than the spec's `max_length`.
            head_tokens: leading tokens of each prompt that others may share (prefix, instruction, query), a hint for
                caches, and where the second text begins for models that have segment ids; None where nothing is known.

        Returns:
            float32 [num_prompts], or [num_prompts, size] with rows of length 1; order of the input.

        Raises:
            EngineError: the batch could not be computed.
            EngineMemoryError: it did not fit into memory; smaller batches may, and the engine can go on.
        """

    def shrink_batches(self) -> int | None:
        """Halve the tokens that are computed at once.

        Returns:
            The new budget in tokens, None where it cannot be less.
        """

    def close(self) -> None:
        """Give the model's memory back."""


@dataclass(frozen=True)
class EngineSpec:
    """Everything that starting an engine takes.

    Attributes:
        kind: which engine.
        model: the model; its weights are fetched where the engine runs.
        dtype: `auto` or a dtype.
        max_length: tokens of the longest prompt.
        tensor_parallel_size: GPUs that the model is spread over.
        engine_args: further arguments for vLLM.
        check_prompts: token ids of the built-in pairs.
        check_heads: of each, the tokens before the document.
        gpu_share: the part of a GPU that is this engine's, where several share one.
        check_scores: compare them with Transformers in float32.
        device: `auto`, or `cpu` for a reference beside an engine that has the GPU to itself.
        instruction: that of the built-in pairs, for a reference that makes their prompts by itself.
    """

    kind: EngineKind
    model: RerankerModel
    dtype: str
    max_length: int
    tensor_parallel_size: int
    engine_args: dict[str, Any]
    check_prompts: tuple[tuple[int, ...], ...]
    check_heads: tuple[int, ...]
    gpu_share: float = 1.0
    check_scores: bool = False
    device: Literal["auto", "cpu"] = "auto"
    instruction: str = DEFAULT_INSTRUCTION

    @property
    def quantization(self) -> str | None:
        """How vLLM is to pack the weights as it loads them; None for as they are."""
        return self.engine_args.get("quantization")


def let_threads_sleep() -> None:
    """Let OpenMP's threads sleep while they wait; of use before anything has imported torch, a tokenizer's loader included.

    Threads that spin took two thirds of the speed of an engine on cores that readers and writers use too.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def allow_noise(dtype: str, logits: np.ndarray, quantization: str | None = None) -> float:
    """Return by how much log-odds in a dtype, of weights that are packed or not, may differ from another computation's."""
    if quantization is not None:
        return QUANTIZED_NOISE * allow_noise("bfloat16", logits)
    return NOISE_FLOOR[dtype] + 5 * NOISE_SHARE[dtype] * float(np.std(logits))


def allow_rounding(logits: np.ndarray) -> float:
    """Return by how much log-odds in float32 on CPUs may differ from those of another library on CPUs."""
    share = ROUNDING_SHARE * float(np.std(logits)) + ROUNDING_OF_LOGIT * float(np.abs(logits).max())
    return max(ROUNDING_FLOOR, share)


def compute_within_memory(
    engine: Engine,
    prompts: Sequence[np.ndarray],
    head_tokens: Sequence[int] | None = None,
    report: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Return the log-odds of each prompt, in smaller and smaller batches while memory runs out.

    Args:
        engine: the engine.
        prompts: as `Engine.compute_logits` takes them.
        head_tokens: as it takes them.
        report: is told each new budget in tokens.

    Raises:
        EngineError: the batch could not be computed, however small.
    """
    while True:
        try:
            return engine.compute_logits(prompts, head_tokens)
        except EngineMemoryError as error:
            budget = engine.shrink_batches()
            if budget is None:
                raise
            if report is not None:
                report(budget)
            logger.warning("%s; the %s engine goes on with %d tokens at once", error, engine.name, budget)
