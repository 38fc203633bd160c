"""The engines' interface: prompts of token ids in, logits out. Each engine lives in a module of its own.

Knows nothing of texts, units, storage or Ray, and of no engine in particular; `engine_check` starts one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from rerank_actor.model import RerankerModel

EngineKind = Literal["vllm", "transformers", "fake"]


class Engine(Protocol):
    """One loaded model.

    Attributes:
        name, version: the library that computes, and its version.
        dtype: the dtype it computes in.
    """

    name: str
    version: str
    dtype: str

    def compute_logits(self, prompts: Sequence[np.ndarray]) -> np.ndarray:
        """Return the log-odds of each prompt.

        Args:
            prompts: int32 arrays of token ids, none empty, none longer than the spec's `max_length`.

        Returns:
            float32 [num_prompts], order of the input.

        Raises:
            EngineError: the batch could not be computed.
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
        check_scores: compare them with Transformers in float32.
        device: `auto`, or `cpu` for a reference beside an engine that has the GPU to itself.
    """

    kind: EngineKind
    model: RerankerModel
    dtype: str
    max_length: int
    tensor_parallel_size: int
    engine_args: dict[str, Any]
    check_prompts: tuple[tuple[int, ...], ...]
    check_scores: bool = False
    device: Literal["auto", "cpu"] = "auto"
