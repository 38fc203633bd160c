"""Speed: how many prompt tokens a second an engine may compute on a GPU, where nobody has measured it.

Takes a model's `config.json` and the length of prompts, gives operations a token: twice the weights that a token meets,
and attention to the tokens before it. A speed follows from the GPU's float16 figure and the share of it that prefill is
assumed to reach. An assumption is off by a factor of two easily; a measured speed always wins.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from rerank_actor.engines.model import RerankerModel
from rerank_actor.engines.options import BUILT_IN_TOKENIZER
from rerank_actor.outputs.price import GpuType

ASSUMED_SHARE = 0.4  # of the GPU's float16 operations; small models reach less, large ones more


@dataclass(frozen=True)
class ModelSize:
    """What a model costs to run.

    Attributes:
        active_weights: weights that each token meets, embeddings left out.
        weights: all of them.
        attention: operations of a token for each token before it.
    """

    active_weights: float
    weights: float
    attention: float

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Self | None:
        """Return the size that a configuration tells; None where it tells too little."""
        try:
            layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
            heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
            vocabulary = int(config.get("vocab_size") or 0)
        except (KeyError, TypeError, ValueError):
            return None
        width = int(config.get("head_dim") or hidden // heads)
        shared_heads = int(config.get("num_key_value_heads") or heads)
        matrices = 3 if "num_key_value_heads" in config else 2  # of the feed-forward layer: with a gate, or without
        layer = hidden * (2 * heads + 2 * shared_heads) * width + matrices * hidden * inner
        return cls(layers * layer, layers * layer + vocabulary * hidden, 4.0 * layers * heads * width)

    def count_operations(self, num_tokens: np.ndarray) -> float:
        """Return the operations for a token of prompts of these lengths, on average."""
        lengths = num_tokens.astype(np.float64)
        before = float((lengths**2).sum() / lengths.sum()) / 2 if len(lengths) and lengths.sum() else 0.0
        return 2 * self.active_weights + self.attention * before


def read_model_size(model: RerankerModel) -> ModelSize | None:
    """Return the size of a model, None for one without weights or with an unknown configuration."""
    if model.folder == BUILT_IN_TOKENIZER:
        return None
    try:
        config = json.loads((Path(model.folder) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return ModelSize.of_config(config) if isinstance(config, dict) else None


def assume_speed(size: ModelSize, gpu: GpuType, num_tokens: np.ndarray, cached_share: float) -> float:
    """Return prompt tokens a second on one GPU.

    Args:
        size: of the model.
        gpu: the GPU.
        num_tokens: lengths of the prompts.
        cached_share: of their tokens, which the prefix cache has and nobody computes.
    """
    operations = size.count_operations(num_tokens) * (1 - cached_share)
    return ASSUMED_SHARE * gpu.tflops * 1e12 / operations
