"""A Qwen3-Reranker with random weights, which its chat template says it is, for tests that need no ranking that means anything.

It runs through every line that a real one does. Its tokenizer is by default trained on the sample pairs.
"""

from pathlib import Path
from typing import Any

from rerank_actor.benchmark.sample import CHAT_TEMPLATE, load_sample_rows, train_sample_tokenizer


def write_sample_model(
    folder: Path,
    *,
    seed: int = 0,
    hidden_size: int = 128,
    num_layers: int = 4,
    max_positions: int = 8192,
    tie_word_embeddings: bool = True,
    tokenizer: Any = None,
    spread: float = 3.0,
) -> Path:
    """Write a random Qwen3ForCausalLM with tokenizer, as float32 safetensors; an existing folder stays as it is.

    Args:
        folder: where to.
        seed: of the weights.
        hidden_size: width of the model, a multiple of 64.
        num_layers: its depth.
        max_positions: longest prompt in tokens.
        tie_word_embeddings: as in 0.6B and 4B; false as in 8B.
        tokenizer: a `tokenizers.Tokenizer`; by default one trained on the sample pairs.
        spread: rough standard deviation of the log-odds.
    """
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if tokenizer is None:
        rows = load_sample_rows()
        tokenizer = train_sample_tokenizer(text for row in rows for text in (row["query"], row["document"]) if text)
    config = Qwen3Config(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=0.1,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config).float().eval()
    with torch.no_grad():
        head = model.lm_head.weight
        yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
        # The final norm gives positions a length of sqrt(hidden_size), so this difference has about that spread.
        difference = torch.randn(hidden_size) * spread / hidden_size**0.5
        middle = (head[yes] + head[no]) / 2
        head[yes], head[no] = middle + difference / 2, middle - difference / 2
    folder.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
