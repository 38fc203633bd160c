r"""Prompts as token ids: from texts to what an engine reads, tokenized in parts, truncated in the document only.

Takes lists of instructions, queries and documents; gives `Prompts`, flat integer arrays. Knows nothing of engines,
shards or Ray. The reference is the model card's Transformers recipe: ids of the prefix, then of
`<Instruct>: i\n<Query>: q\n<Document>: d` encoded as one string, then of the suffix. Encoding the head (up to the
colon) once for each query and the document with the space before it apart gives the same ids, because the
tokenizer's pattern ends a piece between a colon and a space; `PairEncoder` checks this for the tokenizer at hand and
encodes the whole string where it does not hold.
"""

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from rerank_actor.engines.template import Template
from rerank_actor.engines.tokenization import TextEncoder
from rerank_actor.storage.utf8 import is_unicode

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
        token_ids: list<int32> [num_pairs]; empty where the pair has an error, and once the pairs are scored.
        num_tokens: int32 [num_pairs], tokens of each prompt; 0 where the pair has an error.
        group: int32 [num_pairs]; equal for pairs that share instruction and query, so that engines can keep them
            together.
        head_tokens: int32 [num_pairs], tokens before the document, which pairs of one group share.
        truncated_tokens: int32 [num_pairs], document tokens cut off.
        errors: string [num_pairs], null where the pair can be scored.
        original: int32 [num_pairs], the pair whose logit this one gets: itself, or the first that is the same, which
            alone has token ids.
        known_logits: float32 [num_pairs], NaN where the logit is still to be found.
    """

    token_ids: pa.ListArray
    num_tokens: np.ndarray
    group: np.ndarray
    head_tokens: np.ndarray
    truncated_tokens: np.ndarray
    errors: pa.StringArray
    original: np.ndarray
    known_logits: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def none(cls) -> Self:
        """Return the prompts of no pairs."""
        nothing = np.zeros(0, np.int32)
        errors = pa.array([], pa.string())
        return cls(_no_ids(0), nothing, nothing, nothing, nothing, errors, nothing, nothing.astype(np.float32))

    @property
    def scorable(self) -> np.ndarray:
        """int64 [num_scorable], positions of the pairs that are for the engine, those of one query side by side."""
        is_own = self.original == np.arange(len(self))
        can_be = self.errors.is_null().to_numpy(zero_copy_only=False)
        positions = np.flatnonzero(can_be & is_own & np.isnan(self.known_logits))
        return positions[np.argsort(self.group[positions], kind="stable")]

    def ids_at(self, positions: np.ndarray) -> list[np.ndarray]:
        """Return the token ids of some pairs: int32 arrays that share memory with this object."""
        values = self.token_ids.values.to_numpy()
        offsets = self.token_ids.offsets.to_numpy()
        return [values[offsets[position] : offsets[position + 1]] for position in positions]

    def with_errors(self, reasons: Mapping[int, str]) -> Self:
        """Return these prompts with further pairs that cannot be scored, by position, and those that are the same."""
        errors = self.errors.to_pylist()
        for position, reason in reasons.items():
            errors[position] = reason
        for position in np.flatnonzero(self.original != np.arange(len(self))).tolist():
            errors[position] = errors[self.original[position]]
        return replace(self, errors=pa.array(errors, pa.string()))

    def without_ids(self) -> Self:
        """Return these prompts without what the engine reads, for the way back from it."""
        return replace(self, token_ids=_no_ids(len(self)))

    def spread(self, original: np.ndarray) -> Self:
        """Return the prompts of pairs of which these are the different ones, in order of first sight.

        Args:
            original: int32 [num_pairs], position of the first pair that is the same, as `compute_originals` gives it.
        """
        is_own = original == np.arange(len(original))
        own = np.cumsum(is_own)[original] - 1
        offsets = np.concatenate([[0], np.cumsum(np.where(is_own, self.num_tokens[own], 0))]).astype(np.int32)
        return replace(
            self,
            token_ids=pa.ListArray.from_arrays(pa.array(offsets), self.token_ids.values),
            num_tokens=self.num_tokens[own],
            group=self.group[own],
            head_tokens=self.head_tokens[own],
            truncated_tokens=self.truncated_tokens[own],
            errors=self.errors.take(pa.array(own)),
            original=original,
            known_logits=self.known_logits[own],
        )

    def fill_in(self, logits: np.ndarray) -> np.ndarray:
        """Return the logits of all pairs, of those that the engine was given: float32 [num_pairs], NaN where none."""
        distinct = np.where(np.isnan(self.known_logits), logits, self.known_logits)
        return np.asarray(distinct[self.original], np.float32)

    def to_batch(self) -> pa.RecordBatch:
        """Return the prompts as one Arrow batch, for the way between processes."""
        return pa.record_batch(
            [
                self.token_ids,
                pa.array(self.num_tokens),
                pa.array(self.group),
                pa.array(self.head_tokens),
                pa.array(self.truncated_tokens),
                self.errors,
                pa.array(self.original),
                pa.array(self.known_logits),
            ],
            names=[field.name for field in fields(self)],
        )

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch) -> Self:
        """Inverse of `to_batch`, without a copy."""
        return cls(
            batch.column("token_ids"),
            batch.column("num_tokens").to_numpy(),
            batch.column("group").to_numpy(),
            batch.column("head_tokens").to_numpy(),
            batch.column("truncated_tokens").to_numpy(),
            batch.column("errors"),
            batch.column("original").to_numpy(),
            batch.column("known_logits").to_numpy(),
        )


class PairEncoder:
    """Turns pairs into prompts for one model.

    Args:
        tokenizer_json: text of the model's `tokenizer.json`.
        template: how the texts of a pair make a prompt.
        instruction: used where a pair has none of its own.
        max_length: tokens of a prompt at most, prefix and suffix included.
        parse_special_tokens: let special tokens in the texts act as such; otherwise they are encoded as plain text.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        template: Template,
        instruction: str,
        max_length: int,
        parse_special_tokens: bool = False,
    ) -> None:
        self.template = template
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
        self._texts = TextEncoder(self._text_tokenizer, is_plain=not parse_special_tokens)
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
        errors, groups, heads = self._group_pairs(queries, documents, instructions)
        scorable = np.flatnonzero([error is None for error in errors])
        group = np.array(groups, np.int32)
        head_ids, document_ids, owner = self._encode_bodies(
            heads, group[scorable], [documents[pair] for pair in scorable]
        )
        head_lengths = np.array([len(ids) for ids in head_ids], np.int64)[owner]
        lengths = np.array([len(ids) for ids in document_ids], np.int64)
        room = self.max_length - len(self.prefix_ids) - len(self.suffix_ids) - head_lengths
        truncated = np.maximum(lengths - room, 0)
        for index in np.flatnonzero(truncated):
            # Of an empty document only the space before it can be cut, as the reference does.
            is_empty = documents[scorable[index]] == ""
            if room[index] < 0 or not (is_empty or self._has_room(document_ids[index], int(room[index]))):
                errors[scorable[index]] = QUERY_TOO_LONG
        fits = np.array([errors[index] is None for index in scorable], bool)
        flat = self._join(head_ids, document_ids, owner[fits], fits, (lengths - truncated)[fits])

        def spread(values: np.ndarray) -> np.ndarray:
            """Return values of the pairs that have a prompt in their places among all pairs, 0 elsewhere."""
            spread_values = np.zeros(len(errors), np.int32)
            spread_values[scorable[fits]] = values
            return spread_values

        head_tokens = len(self.prefix_ids) + head_lengths[fits]
        num_tokens = spread(head_tokens + (lengths - truncated)[fits] + len(self.suffix_ids))
        offsets = np.concatenate([[0], np.cumsum(num_tokens)]).astype(np.int32)
        return Prompts(
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            num_tokens,
            group,
            spread(head_tokens),
            spread(truncated[fits]),
            pa.array(errors, pa.string()),
            np.arange(len(errors), dtype=np.int32),
            np.full(len(errors), np.nan, np.float32),
        )

    def _group_pairs(
        self, queries: Sequence[Any], documents: Sequence[Any], instructions: Sequence[Any] | None
    ) -> tuple[list[str | None], list[int], list[str]]:
        """Return why pairs cannot be scored, a number for each pair's head, and the texts of the heads."""
        errors: list[str | None] = []
        groups: list[int] = []
        numbers: dict[tuple[Any, Any], int] = {}
        heads: list[str] = []
        given = instructions if instructions is not None else [None] * len(queries)
        for query, document, instruction in zip(queries, documents, given, strict=True):
            instruction = self.instruction if instruction is None else instruction
            # What is no text may not even be hashable.
            key = (instruction, query) if type(query) is str and type(instruction) is str else None
            number = numbers.get(key, -1) if key is not None else -1
            error = _find_fault(query, document, instruction) if number < 0 else _find_document_fault(document)
            if error is None and number < 0:
                number = len(heads)
                numbers[instruction, query] = number
                heads.append(self.template.format_head(instruction, query))
            errors.append(error)
            groups.append(number if error is None else 0)
        return errors, groups, heads

    def _join(
        self,
        head_ids: list[list[int]],
        document_ids: list[list[int]],
        owner: np.ndarray,
        fits: np.ndarray,
        lengths: np.ndarray,
    ) -> np.ndarray:
        """Return the ids of all prompts one after the other: prefix and head, what is left of a document, suffix."""
        whole_heads = [[*self.prefix_ids, *ids] for ids in head_ids]
        runs = [*whole_heads, *document_ids, self.suffix_ids]
        source = np.fromiter(itertools.chain.from_iterable(runs), np.int32)
        run_lengths = np.array([len(run) for run in runs], np.int64)
        run_starts = np.cumsum(run_lengths) - run_lengths
        document_runs = len(whole_heads) + np.flatnonzero(fits)
        starts = np.stack([run_starts[owner], run_starts[document_runs], np.full(len(owner), run_starts[-1])], axis=1)
        sizes = np.stack([run_lengths[owner], lengths, np.full(len(owner), run_lengths[-1])], axis=1)
        starts, sizes = starts.ravel(), sizes.ravel()
        positions: np.ndarray = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        return np.asarray(source[positions], np.int32)

    def _has_room(self, document_ids: list[int], room: int) -> bool:
        """Whether at least one token of the document itself, not only the space before it, fits."""
        blank = len(self._blank_ids)
        starts_apart = blank > 0 and document_ids[:blank] == self._blank_ids and len(document_ids) > blank
        return room >= (blank + 1 if starts_apart else 1)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self._texts.encode(texts)

    def _encode_bodies(
        self, heads: list[str], owner: np.ndarray, documents: list[str]
    ) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
        """Return ids of heads, which include what separates head and document, ids of documents, and each one's head."""
        if self.encodes_in_parts:
            head_ids = [[*ids, *self._separator_ids] for ids in self._encode(heads)]
            return head_ids, self._encode([self._document_prefix + document for document in documents]), owner
        head_ids, document_ids = [], []
        for head, document in zip(owner, documents, strict=True):
            encoding = self._text_tokenizer.encode(
                heads[head] + self._document_prefix + document, add_special_tokens=False
            )
            cut = sum(start < len(heads[head]) for start, _ in encoding.offsets)
            head_ids.append(encoding.ids[:cut])
            document_ids.append(encoding.ids[cut:])
        return head_ids, document_ids, np.arange(len(owner))

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


def _no_ids(num_pairs: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.zeros(num_pairs + 1, np.int32)), pa.array([], pa.int32()))


def _find_fault(query: Any, document: Any, instruction: Any) -> str | None:
    if query is None:
        return QUERY_NULL
    if not isinstance(query, str):
        return QUERY_NOT_TEXT
    if not isinstance(document, str):
        return _find_document_fault(document)
    if not isinstance(instruction, str):
        return INSTRUCTION_NOT_TEXT
    if not is_unicode(query):
        return QUERY_BAD_UNICODE
    if not is_unicode(instruction):
        return INSTRUCTION_BAD_UNICODE
    return _find_document_fault(document)


def _find_document_fault(document: Any) -> str | None:
    if document is None:
        return DOCUMENT_NULL
    if not isinstance(document, str):
        return DOCUMENT_NOT_TEXT
    return None if is_unicode(document) else DOCUMENT_BAD_UNICODE


def _without_added_tokens(full: Tokenizer) -> Tokenizer:
    """Return the tokenizer without its added tokens: control tokens in a text are then plain text like any other."""
    parsed = json.loads(full.to_str())
    control = {token["content"] for token in parsed["added_tokens"] if token["special"]}
    model = parsed["model"]
    if model["type"] == "Unigram":
        # Its vocabulary holds the control tokens too, where they would match like any other piece.
        model["vocab"] = [
            [f"\0{i}" if piece in control else piece, score] for i, (piece, score) in enumerate(model["vocab"])
        ]
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
