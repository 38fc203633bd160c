"""Prompt templates: the exact text around one (instruction, query, document).

Takes texts, gives text; knows nothing of tokens or models. The Qwen3-Reranker text is that of the publisher's
Transformers example on the model card of Qwen/Qwen3-Reranker-0.6B, byte for byte: single newlines between the
fields and an empty pair of think tags in the suffix. Copies that lost the tags, or that have blank lines between
the fields, give other scores.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """Text of one prompt: prefix, then `head` with instruction and query, a space, the document, suffix.

    `head` ends in a colon and the document follows after one space. Tokenizers of the GPT-2 and Qwen families always
    cut between the two, which is what lets the head be tokenized once for each query.
    """

    name: str
    prefix: str
    head: str
    suffix: str
    document_separator: str = " "

    def format_head(self, instruction: str, query: str) -> str:
        """Return the part of the prompt that all documents of one query share, without the prefix."""
        before_query, _, after_query = self.head.partition("{query}")
        return before_query.replace("{instruction}", instruction, 1) + query + after_query

    @property
    def takes_instruction(self) -> bool:
        """Whether the instruction is part of the prompt."""
        return "{instruction}" in self.head

    @property
    def digest(self) -> str:
        """Short hash of the template's bytes, for the fingerprint."""
        parts = (self.prefix, self.head, self.document_separator, self.suffix)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


QWEN3_RERANKER = Template(
    name="qwen3-reranker",
    prefix=(
        "<|im_start|>system\n"
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    ),
    head="<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",
    suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)


# A classic cross-encoder has no template text: its tokenizer joins the two texts with its own control tokens.
CROSS_ENCODER = Template(name="cross-encoder", prefix="", head="{query}", suffix="", document_separator="")
