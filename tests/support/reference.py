"""The reference of prompt and score, written from the model card alone; shares no code with the library."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


def encode(
    tokenizer: object,
    query: str,
    document: str,
    instruction: str = INSTRUCTION,
    max_length: int = 8192,
    *,
    prefix: str = PREFIX,
    suffix: str = SUFFIX,
) -> list[int]:
    """Return the prompt ids of the model card's Transformers example; another prefix or suffix makes it wrong."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    before, after = ids(prefix), ids(suffix)
    body = ids(f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}")
    return before + body[: max_length - len(before) - len(after)] + after


def score(
    folder: Path, pairs: Sequence[tuple[str, str]], max_length: int = 8192, **template: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and logits of pairs, one prompt at a time in float32, as the model card computes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    scores, logits = [], []
    for query, document in pairs:
        with torch.no_grad():
            last = model(torch.tensor([encode(tokenizer, query, document, max_length=max_length, **template)])).logits[
                0, -1
            ]
        both = torch.nn.functional.log_softmax(torch.stack([last[no], last[yes]]).double(), dim=0)
        scores.append(both[1].exp().item())
        logits.append((last[yes].double() - last[no].double()).item())
    return np.array(scores), np.array(logits)
