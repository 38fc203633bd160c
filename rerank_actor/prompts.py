r"""Prompts as token ids: from texts to what an engine reads, tokenized in parts, truncated in the document only.

Takes lists of instructions, queries and documents; gives `Prompts`, flat integer arrays. Knows nothing of engines,
shards or Ray. The reference is the model card's Transformers recipe: ids of the prefix, then of
`<Instruct>: i\n<Query>: q\n<Document>: d` encoded as one string, then of the suffix. Encoding the head (up to the
colon) once for each query and the document with the space before it apart gives the same ids, because the
tokenizer's pattern ends a piece between a colon and a space; `PairEncoder` checks this for the tokenizer at hand and
encodes the whole string where it does not hold.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from rerank_actor.template import TEMPLATES

QUERY_NULL = "query is null"
QUERY_NOT_TEXT = "query is not text"
QUERY_BAD_UNICODE = "query is not valid Unicode"
QUERY_TOO_LONG = "query leaves no room for the document within max_length"
DOCUMENT_NULL = "document is null"
DOCUMENT_NOT_TEXT = "document is not text"
DOCUMENT_BAD_UNICODE = "document is not valid Unicode"
INSTRUCTION_NOT_TEXT = "instruction is not text"
INSTRUCTION_BAD_UNICODE = "instruction is not valid Unicode"

# Texts that tell whether a tokenizer may be fed in parts: spaces, newlines, marks and digits on both sides of a cut.
_PROBES = (
    "", " ", "  ", "\n", "\n\n", " \n ", "\t", "a", " a", "  a", "A b", "7", " 7", ".", ":", "::", "?\n", "\u0301",
    "\u3000", "\u00a0x", "\u4f60\u597d", "\u0645\u0631\u062d\u0628\u0627", "\U0001f600", "e\u0301", "-1", "\r\n", "'s", "<",
    "word\n", "a: b",
)  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """Prompts of one or more pairs, in the order of the pairs.

    Attributes:
        token_ids: list<int32> [num_pairs]; empty where the pair has an error.
        group: int32 [num_pairs]; equal for pairs that share instruction and query, so that engines can keep them
            together.
        truncated_tokens: int32 [num_pairs], document tokens cut off.
        errors: string [num_pairs], null where the pair can be scored.
    """

    token_ids: pa.ListArray
    group: np.ndarray
    truncated_tokens: np.ndarray
    errors: pa.StringArray

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_tokens(self) -> np.ndarray:
        """int32 [num_pairs], tokens of each prompt; 0 where the pair has an error."""
        return np.diff(self.token_ids.offsets.to_numpy()).astype(np.int32)

    @property
    def scorable(self) -> np.ndarray:
        """int64 [num_scorable], positions of the pairs without error, those of one query side by side."""
        positions = np.flatnonzero(self.errors.is_null().to_numpy(zero_copy_only=False))
        return positions[np.argsort(self.group[positions], kind="stable")]

    def ids_at(self, positions: np.ndarray) -> list[np.ndarray]:
        """Return the token ids of some pairs: int32 arrays that share memory with this object."""
        values = self.token_ids.values.to_numpy()
        offsets = self.token_ids.offsets.to_numpy()
        return [values[offsets[position] : offsets[position + 1]] for position in positions]

    def with_errors(self, reasons: Mapping[int, str]) -> Self:
        """Return these prompts with further pairs that cannot be scored, by position."""
        errors = self.errors.to_pylist()
        for position, reason in reasons.items():
            errors[position] = reason
        return replace(self, errors=pa.array(errors, pa.string()))

    def to_batch(self) -> pa.RecordBatch:
        """Return the prompts as one Arrow batch, for the way between processes."""
        return pa.record_batch(
            [self.token_ids, pa.array(self.group), pa.array(self.truncated_tokens), self.errors],
            names=["token_ids", "group", "truncated_tokens", "errors"],
        )

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch) -> Self:
        """Inverse of `to_batch`, without a copy."""
        return cls(
            batch.column("token_ids"),
            batch.column("group").to_numpy(),
            batch.column("truncated_tokens").to_numpy(),
            batch.column("errors"),
        )


class PairEncoder:
    """Turns pairs into prompts for one model.

    Args:
        tokenizer_json: text of the model's `tokenizer.json`.
        template_name: key of `template.TEMPLATES`.
        instruction: used where a pair has none of its own.
        max_length: tokens of a prompt at most, prefix and suffix included.
        parse_special_tokens: let special tokens in the texts act as such; otherwise they are encoded as plain text.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        template_name: str,
        instruction: str,
        max_length: int,
        parse_special_tokens: bool = False,
    ) -> None:
        self.template = TEMPLATES[template_name]
        self.instruction = instruction
        self.max_length = max_length
        full = Tokenizer.from_str(tokenizer_json)
        # Truncation or padding settings saved in tokenizer.json would cut prompts behind our back.
        full.no_truncation()
        full.no_padding()
        self._text_tokenizer = full if parse_special_tokens else _without_added_tokens(full)
        if self.template.prefix:
            self.prefix_ids = full.encode(self.template.prefix, add_special_tokens=False).ids
            self.suffix_ids = full.encode(self.template.suffix, add_special_tokens=False).ids
            self._separator_ids: list[int] = []
        else:
            self.prefix_ids, self._separator_ids, self.suffix_ids = _control_tokens(full)
        self._document_prefix = self.template.document_separator
        self._blank_ids = self._encode([self._document_prefix])[0] if self._document_prefix else []
        self.encodes_in_parts = not self.template.prefix or self._can_cut()

    def with_max_length(self, max_length: int) -> "PairEncoder":
        """Return an encoder that differs in the length alone."""
        other = copy.copy(self)
        other.max_length = max_length
        return other

    def encode(
        self, queries: Sequence[Any], documents: Sequence[Any], instructions: Sequence[Any] | None = None
    ) -> Prompts:
        """Encode pairs; whatever cannot be scored gets an error instead of ids.

        Args:
            queries: one for each pair; anything but text becomes an error.
            documents: as many; an empty text is a legal document.
            instructions: as many, or None; None or null takes the encoder's own.
        """
        num_pairs = len(queries)
        errors: list[str | None] = [None] * num_pairs
        group = np.zeros(num_pairs, np.int32)
        heads: dict[tuple[str, str], int] = {}
        head_texts: list[str] = []
        to_encode: list[int] = []
        for index, (query, document) in enumerate(zip(queries, documents, strict=True)):
            instruction = self.instruction
            if instructions is not None and instructions[index] is not None:
                instruction = instructions[index]
            errors[index] = _find_fault(query, document, instruction)
            if errors[index] is not None:
                continue
            key = (instruction, query)
            number = heads.get(key)
            if number is None:
                number = heads[key] = len(head_texts)
                head_texts.append(self.template.format_head(instruction, query))
            group[index] = number
            to_encode.append(index)

        bodies = self._encode_bodies(
            head_texts, [int(group[index]) for index in to_encode], [documents[i] for i in to_encode]
        )
        chunks: list[list[int]] = [[]] * num_pairs
        truncated = np.zeros(num_pairs, np.int32)
        fixed = len(self.prefix_ids) + len(self.suffix_ids)
        for index, (head_ids, document_ids) in zip(to_encode, bodies, strict=True):
            room = self.max_length - fixed - len(head_ids)
            if len(document_ids) > room:
                # Of an empty document only the space before it can be cut, as the reference does.
                if room < 0 or not (documents[index] == "" or self._has_room(document_ids, room)):
                    errors[index] = QUERY_TOO_LONG
                    continue
                truncated[index] = len(document_ids) - room
                document_ids = document_ids[:room]
            chunks[index] = [*self.prefix_ids, *head_ids, *document_ids, *self.suffix_ids]
        return _pack(chunks, group, truncated, errors)

    def _has_room(self, document_ids: list[int], room: int) -> bool:
        """Whether at least one token of the document itself, not only the space before it, fits."""
        blank = len(self._blank_ids)
        starts_apart = blank > 0 and document_ids[:blank] == self._blank_ids and len(document_ids) > blank
        return room >= (blank + 1 if starts_apart else 1)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._text_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_bodies(
        self, head_texts: list[str], heads: list[int], documents: list[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Return ids of head and of document for each pair; the head's include what separates the two."""
        if self.encodes_in_parts:
            head_ids = [[*ids, *self._separator_ids] for ids in self._encode(head_texts)]
            document_ids = self._encode([self._document_prefix + document for document in documents])
            return [(head_ids[head], ids) for head, ids in zip(heads, document_ids, strict=True)]
        bodies = []
        for head, document in zip(heads, documents, strict=True):
            encoding = self._text_tokenizer.encode(
                head_texts[head] + self._document_prefix + document, add_special_tokens=False
            )
            cut = sum(start < len(head_texts[head]) for start, _ in encoding.offsets)
            bodies.append((encoding.ids[:cut], encoding.ids[cut:]))
        return bodies

    def _can_cut(self) -> bool:
        """Whether encoding head and document apart gives the ids of the whole, on texts made to break it."""
        for query in _PROBES:
            head = self.template.format_head(self.instruction, query)
            tails = [self._document_prefix + probe for probe in _PROBES]
            head_ids = self._encode([head])[0]
            apart = [head_ids + ids for ids in self._encode(tails)]
            if apart != self._encode([head + tail for tail in tails]):
                return False
        return True


def _find_fault(query: Any, document: Any, instruction: Any) -> str | None:
    if query is None:
        return QUERY_NULL
    if not isinstance(query, str):
        return QUERY_NOT_TEXT
    if document is None:
        return DOCUMENT_NULL
    if not isinstance(document, str):
        return DOCUMENT_NOT_TEXT
    if not isinstance(instruction, str):
        return INSTRUCTION_NOT_TEXT
    if not is_unicode(query):
        return QUERY_BAD_UNICODE
    if not is_unicode(document):
        return DOCUMENT_BAD_UNICODE
    if not is_unicode(instruction):
        return INSTRUCTION_BAD_UNICODE
    return None


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which no tokenizer and no file format can hold."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pack(chunks: list[list[int]], group: np.ndarray, truncated: np.ndarray, errors: list[str | None]) -> Prompts:
    offsets = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum([len(chunk) for chunk in chunks], out=offsets[1:])
    values = np.empty(int(offsets[-1]), np.int32)
    for index, chunk in enumerate(chunks):
        values[offsets[index] : offsets[index + 1]] = chunk
    token_ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    return Prompts(token_ids, group, truncated, pa.array(errors, pa.string()))


def _without_added_tokens(full: Tokenizer) -> Tokenizer:
    """Return the tokenizer without its added tokens: control tokens in a text are then plain text like any other."""
    parsed = json.loads(full.to_str())
    control = {token["content"] for token in parsed["added_tokens"] if token["special"]}
    model = parsed["model"]
    if model["type"] == "Unigram":
        # Its vocabulary holds the control tokens too, where they would match like any other piece.
        model["vocab"] = [[f"\0{i}" if piece in control else piece, s] for i, (piece, s) in enumerate(model["vocab"])]
    elif model["type"] != "BPE" or model.get("ignore_merges"):
        keep = model.get("unk_token")
        model["vocab"] = {
            f"\0{i}" if piece in control and piece != keep else piece: i for piece, i in model["vocab"].items()
        }
    parsed["added_tokens"] = []
    parsed["post_processor"] = None
    return Tokenizer.from_str(json.dumps(parsed))


def _control_tokens(full: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """Return the ids that a cross-encoder's tokenizer puts before the query, between the texts, and at the end."""
    encoding = full.encode("a", "a", add_special_tokens=True)
    runs: list[list[int]] = [[]]
    previous = None
    for token_id, sequence in zip(encoding.ids, encoding.sequence_ids, strict=True):
        if sequence is None:
            runs[-1].append(token_id)
        elif sequence != previous:
            runs.append([])
            previous = sequence
    before, between, after = ([*runs, [], [], []])[:3]
    return before, between, after
