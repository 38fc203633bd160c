"""Prompt templates: the exact text around one (instruction, query, document).

Takes texts, gives text; knows nothing of tokens or models. The Qwen3-Reranker text is that of the publisher's
Transformers example on the model card of Qwen/Qwen3-Reranker-0.6B, byte for byte: single newlines between the
fields and an empty pair of think tags in the suffix. Copies that lost the tags, or that have blank lines between
the fields, give other scores.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Template:
    """Text of one prompt: prefix, `head` with instruction and query, separator, the document, suffix.

    The head of Qwen3-Reranker ends in a colon and the document follows after one space. Tokenizers of the GPT-2 and Qwen
    families always cut between the two, which is what lets the head be tokenized once for each query.

    Attributes:
        name: of the family.
        prefix: fixed text before the first field, with control tokens.
        head: from there to the document, with `{instruction}` and `{query}`; `{cut}` is a place where two tokenized texts meet.
        suffix: after the document; holds `{query}` where the document stands first.
        document_separator: between head and document.
        control: tokens that the tokenizer itself puts around the texts: none, those of a single text or those of a pair.
        strips: the texts that lose the blanks around them.
        longest_first: whether the longer of the two texts loses tokens, as tokenizers cut pairs; else the document alone.
        query_share: part of a prompt that a query may fill before it is cut.
        has_segments: whether the model is told where the second text begins.
        instruction: used where the user gives none; None for that of the job.
    """

    name: str
    prefix: str
    head: str
    suffix: str
    document_separator: str = " "
    control: Literal["none", "single", "pair"] = "none"
    strips: tuple[Literal["query", "document"], ...] = ()
    longest_first: bool = False
    query_share: float = 1.0
    has_segments: bool = False
    instruction: str | None = None

    def format_head(self, instruction: str, query: str) -> str:
        """Return the part of the prompt that all documents of one query share, without the prefix."""
        return fill(self.head, instruction, query)

    @property
    def takes_instruction(self) -> bool:
        """Whether the instruction is part of the prompt."""
        return "{instruction}" in self.head + self.suffix

    @property
    def text(self) -> str:
        """The whole prompt, with its fields."""
        return f"{self.prefix}{self.head}{self.document_separator}{{document}}{self.suffix}"

    @property
    def digest(self) -> str:
        """Short hash of the template's bytes, for the fingerprint."""
        parts = [self.prefix, self.head, self.document_separator, self.suffix]
        return hashlib.sha256("\0".join([*parts, *_list_changes(asdict(self))]).encode()).hexdigest()[:16]


def _list_changes(fields: Mapping[str, Any]) -> list[str]:
    """Return those fields that are not at their defaults and that can change ids, as text."""
    names = ("control", "strips", "longest_first", "query_share", "has_segments")
    return [f"{name}={fields[name]}" for name in names if fields[name] != Template.__dataclass_fields__[name].default]


def fill(text: str, instruction: str, query: str) -> str:
    """Return a text with its fields filled in; what they hold is not looked at for fields."""
    before_query, found, after_query = text.partition("{query}")
    before_query = before_query.replace("{instruction}", instruction, 1)
    return before_query + query + after_query.replace("{instruction}", instruction, 1) if found else before_query


def cut_prefix(before: str, controls: Sequence[str]) -> tuple[str, str]:
    """Return the text before a document in two, cut behind the last control token that comes before any field."""
    first_field = min(
        (at for at in (before.find("{instruction}"), before.find("{query}")) if at >= 0), default=len(before)
    )
    fixed = before[:first_field]
    cut = max((fixed.rfind(token) + len(token) for token in controls if token in fixed), default=0)
    return before[:cut], before[cut:]


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
CROSS_ENCODER = Template(
    name="cross-encoder",
    prefix="",
    head="{query}",
    suffix="",
    document_separator="",
    control="pair",
    longest_first=True,
)
CROSS_ENCODER_WITH_SEGMENTS = replace(CROSS_ENCODER, name="cross-encoder-with-segments", has_segments=True)
