"""Models for the benchmark: random weights in the shapes of the Qwen3-Reranker family, and small ones for a CPU.

What a forward pass costs does not depend on the values of the weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_actor.benchmark.sample import CHAT_TEMPLATE, load_sample_rows, train_sample_tokenizer
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.template import QWEN3_RERANKER

FAMILY_VOCABULARY = 151_936


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model. Those of the family are of the `config.json` of its three checkpoints."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head: int
    intermediate: int
    is_tied: bool = True
    vocabulary: int = FAMILY_VOCABULARY

    @property
    def parameters(self) -> int:
        """Weights that each token passes, without embeddings and norms."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.key_value_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def count_flops(self, num_tokens: float, context_tokens: float) -> float:
        """Return the operations of a forward pass.

        Args:
            num_tokens: tokens computed.
            context_tokens: sum over them of the tokens each attends to.
        """
        return 2.0 * self.parameters * num_tokens + 4.0 * self.layers * self.heads * self.head * context_tokens


SHAPES = {
    "tiny": Shape(64, 1, 2, 1, 32, 192),
    "small": Shape(128, 2, 4, 2, 32, 384),
    "0.6B": Shape(1024, 28, 16, 8, 128, 3072),
    "4B": Shape(2560, 36, 32, 8, 128, 9728),
    "8B": Shape(4096, 36, 32, 8, 128, 12288, is_tied=False),
}


def make_tokenizer() -> Any:
    """Return a small `tokenizers.Tokenizer` of the Qwen kind that knows the template, so that prompts have usual lengths."""
    texts = [text for row in load_sample_rows() for text in (row["query"], row["document"]) if text]
    frame = QWEN3_RERANKER.prefix + QWEN3_RERANKER.format_head(DEFAULT_INSTRUCTION, "")
    return train_sample_tokenizer([*texts, *[frame] * 50], 4096)


def write_weights(folder: Path, shape: Shape, *, dtype: str, seed: int = 0) -> Path:
    """Write a random model of a shape, with its tokenizer; an existing folder stays as it is."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.is_tied,
    )
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            model = Qwen3ForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
