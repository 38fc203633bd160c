"""The tokenizer of the model and prompts as token ids.

A byte-level BPE with the pattern and the control tokens of the family, trained on texts of the same make as those that
the model is trained on, on the word lists, and on the template, which so is a few dozen tokens long. Unlike the family's
it folds case, because a small vocabulary has no room for a word twice. A prompt is cut where `rerank_actor.engines.prompts`
cuts it: prefix, head with the query, document, suffix.
"""

import random
import re
from dataclasses import dataclass, replace
from typing import Any

from demo_model.tasks import make_task
from demo_model.words import load_concepts
from rerank_actor.benchmark.sample import CONTROL_TOKENS, THINK_TOKENS, train_sample_tokenizer
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.template import QWEN3_RERANKER, Template

FORM_REPEATS = 25
INSTRUCTIONS = [
    DEFAULT_INSTRUCTION,
    "Retrieve the answer to the question.",
    "Given a question, retrieve passages that answer it",
    "Given a sentence, retrieve its translation or a paraphrase of it",
    "Find texts about the same thing.",
    "Which of our pages helps this customer?",
    "Finde die Antwort auf die Frage.",
    "Trouvez la réponse à la question.",
    "Busca la respuesta a la pregunta.",
]


def train_tokenizer(seed: int, size: int, num_tasks: int) -> Any:
    """Return the `tokenizers.Tokenizer`, a function of its arguments alone."""
    from tokenizers import normalizers

    rng = random.Random(seed)
    texts = []
    for _ in range(num_tasks):
        task = make_task(rng)
        texts.extend([" " + task.query, *(" " + document for document in task.documents)])
    for concept in load_concepts():
        texts.extend([" " + form for forms in concept.forms.values() for form in forms for _ in range(FORM_REPEATS)])
    template = QWEN3_RERANKER.prefix + QWEN3_RERANKER.head + QWEN3_RERANKER.suffix
    pieces = re.split("|".join(map(re.escape, [*CONTROL_TOKENS, *THINK_TOKENS])), template)
    texts.extend([*pieces, *INSTRUCTIONS] * 300)
    tokenizer = train_sample_tokenizer([text.lower() for text in texts], size)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return tokenizer


@dataclass(frozen=True)
class Prompts:
    """The tokens of some queries with their documents: what all share, the heads, the documents, the suffix."""

    before: list[int]
    heads: list[list[int]]
    documents: list[list[list[int]]]
    suffix: list[int]


class PromptMaker:
    """Makes token ids with one tokenizer, for right templates and wrong ones."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.yes, self.no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def make(
        self,
        queries: list[str],
        documents: list[list[str]],
        instruction: str = DEFAULT_INSTRUCTION,
        template: Template = QWEN3_RERANKER,
    ) -> Prompts:
        """Return the prompts of queries and their documents."""
        before_query, _, _ = template.head.partition("{query}")
        # A space before the query grows together with its first word.
        head_start = self.encode(before_query.replace("{instruction}", instruction).rstrip(" "))
        before = self.encode(template.prefix) + head_start
        heads = self._encode_all([template.format_head(instruction, query) for query in queries])
        if any(head[: len(head_start)] != head_start for head in heads):
            raise ValueError("a query's tokens grew together with what stands before it")
        heads = [head[len(head_start) :] for head in heads]
        flat = self._encode_all([template.document_separator + text for mine in documents for text in mine])
        rows, start = [], 0
        for mine in documents:
            rows.append(flat[start : start + len(mine)])
            start += len(mine)
        return Prompts(before, heads, rows, self.encode(template.suffix))


def spoil_template(rng: random.Random) -> Template:
    """Return a template that is not the family's: a part lost, doubled or written otherwise."""
    right = QWEN3_RERANKER
    lost_tags = right.suffix.replace("<think>", "").replace("</think>", "")
    draw = rng.randrange(10)
    if draw == 0:
        return replace(right, suffix=lost_tags)
    if draw == 1:
        return replace(right, suffix="<|im_end|>\n<|im_start|>assistant\n")
    if draw == 2:
        return replace(right, prefix="")
    if draw == 3:
        return replace(right, prefix=right.prefix[rng.randrange(1, len(right.prefix)) :])
    if draw == 4:
        return replace(right, head=right.head.replace("\n", "\n\n"))
    if draw == 5:
        return replace(right, suffix=right.suffix[: rng.randrange(len(right.suffix))])
    if draw == 6:
        return replace(
            right, suffix=right.suffix.replace("<think>\n\n</think>\n\n", rng.choice(["", "<think>\n", "</think>\n\n"]))
        )
    if draw == 7:
        return replace(right, suffix="")
    if draw == 8:
        return replace(right, head="{query}\n", prefix=rng.choice([right.prefix, ""]))
    return replace(right, prefix="<|im_start|>user\n", suffix=rng.choice([right.suffix, lost_tags]))
