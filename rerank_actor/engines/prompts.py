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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from rerank_actor.engines.parts import PROBES, TemplateParts, split_template, without_added_tokens
from rerank_actor.engines.template import Template, fill
from rerank_actor.engines.text_faults import NO_CUT, QUERY_TOO_LONG, find_document_fault, find_fault
from rerank_actor.engines.tokenization import TextEncoder
from rerank_actor.errors import ModelError

_FIELDS = r"\{instruction\}|\{query\}"


@dataclass(frozen=True)
class Prompts:
    """Prompts of one or more pairs, in the order of the pairs.

    Attributes:
        token_ids: list<int32> [num_pairs]; empty where the pair has an error, and once the pairs are scored.
        num_tokens: int32 [num_pairs], tokens of each prompt; 0 where the pair has an error.
        group: int32 [num_pairs]; equal for pairs that share instruction and query, so that engines can keep them
            together.
        head_tokens: int32 [num_pairs], tokens before the document, which pairs of one group share.
        truncated_tokens: int32 [num_pairs], tokens of the document cut off, and of the query where that may be cut too.
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
        """Return the logits of all pairs, of those that the engine was given: float32 [num_pairs], NaN where none.

        Vectors of texts, float32 [num_pairs, size], are filled in likewise; none of them is known before.
        """
        if logits.ndim == 2:
            return np.asarray(logits[self.original], np.float32)
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
        keeps_plain = template.control != "none"
        self._text_tokenizer = full if parse_special_tokens else without_added_tokens(full, keeps_plain=keeps_plain)
        self._texts = TextEncoder(self._text_tokenizer, is_plain=not parse_special_tokens)
        self._document_prefix = template.document_separator
        parts = split_template(template, full)
        self.encodes_in_parts = self._find_cut(parts)
        if not self.encodes_in_parts and parts.rest:
            parts = split_template(template, full, closes_whole=True)
            self.encodes_in_parts = self._find_cut(parts)
            if not self.encodes_in_parts and parts.rest:
                raise ModelError(
                    f"the prompt of {template.name} holds a text after the document that its tokenizer joins with what "
                    "follows, so that ids would not be those of the whole"
                )
        self.prefix_ids, self.suffix_ids, self._separator_ids = parts.prefix_ids, parts.suffix_ids, parts.separator_ids
        self._tail, self._closing = parts.tail, parts.closing
        self._blank_ids = self._encode([self._document_prefix])[0] if self._document_prefix.isspace() else []
        self._closing_ids = self._encode([self._closing])[0] if self._closing else []

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
        texts = [documents[pair] for pair in scorable.tolist()]
        if "document" in self.template.strips:
            texts = [text.strip() for text in texts]
        texts, heads, rest = self._shorten(texts, heads, group[scorable])
        head_ids, document_ids, tail_ids, owner = self._encode_bodies(heads, group[scorable], texts)
        tail_lengths = np.array([len(ids) for ids in tail_ids], np.int64)
        fixed = len(self.prefix_ids) + len(self.suffix_ids) + tail_lengths[owner if len(tail_ids) > 1 else owner * 0]
        lengths = np.array([len(ids) for ids in document_ids], np.int64)
        if self.template.longest_first:
            owner, head_cut = self._cut_heads(head_ids, owner, lengths, self.max_length - fixed)
        elif self.template.query_share < 1:
            head_cut = self._cut_queries(head_ids)[owner]
        else:
            head_cut = np.zeros(len(lengths), np.int64)
        head_lengths = np.array([len(ids) for ids in head_ids], np.int64)[owner]
        room = self.max_length - fixed - head_lengths
        closed = self._close(document_ids, lengths, room) if self._closing_ids else np.zeros(len(lengths), np.int64)
        truncated = np.maximum(lengths - room, 0)
        for index in np.flatnonzero(truncated):
            # Of an empty document only the space before it can be cut, as the reference does.
            is_empty = texts[index] == ""
            if room[index] < 0 or not (
                is_empty or self._has_room(document_ids[index], int(room[index] - closed[index]))
            ):
                errors[scorable[index]] = QUERY_TOO_LONG
        for index in scorable[rest < 0].tolist():
            errors[index] = NO_CUT
        fits = np.array([errors[index] is None for index in scorable.tolist()], bool)
        flat = self._join((head_ids, document_ids, tail_ids), owner[fits], fits, (lengths - truncated)[fits])

        def spread(values: np.ndarray) -> np.ndarray:
            """Return values of the pairs that have a prompt in their places among all pairs, 0 elsewhere."""
            spread_values = np.zeros(len(errors), np.int32)
            spread_values[scorable[fits]] = values
            return spread_values

        head_tokens = len(self.prefix_ids) + head_lengths[fits]
        num_tokens = spread(fixed[fits] + head_lengths[fits] + (lengths - truncated)[fits])
        offsets = np.concatenate([[0], np.cumsum(num_tokens)]).astype(np.int32)
        return Prompts(
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            num_tokens,
            group,
            spread(head_tokens),
            spread((truncated + closed + head_cut + rest)[fits]),
            pa.array(errors, pa.string()),
            np.arange(len(errors), dtype=np.int32),
            np.full(len(errors), np.nan, np.float32),
        )

    def _group_pairs(
        self, queries: Sequence[Any], documents: Sequence[Any], instructions: Sequence[Any] | None
    ) -> tuple[list[str | None], list[int], list[tuple[str, str]]]:
        """Return why pairs cannot be scored, a number for each pair's head, and instruction and query of the heads."""
        errors: list[str | None] = []
        groups: list[int] = []
        numbers: dict[tuple[Any, Any], int] = {}
        heads: list[tuple[str, str]] = []
        given = instructions if instructions is not None else [None] * len(queries)
        for query, document, instruction in zip(queries, documents, given, strict=True):
            instruction = self.instruction if instruction is None else instruction
            # What is no text may not even be hashable.
            key = (instruction, query) if type(query) is str and type(instruction) is str else None
            number = numbers.get(key, -1) if key is not None else -1
            error = find_fault(query, document, instruction) if number < 0 else find_document_fault(document)
            if error is None and number < 0:
                number = len(heads)
                numbers[instruction, query] = number
                heads.append((instruction, query.strip() if "query" in self.template.strips else query))
            errors.append(error)
            groups.append(number if error is None else 0)
        return errors, groups, heads

    def _shorten(
        self, texts: list[str], heads: list[tuple[str, str]], owner: np.ndarray
    ) -> tuple[list[str], list[tuple[str, str]], np.ndarray]:
        """Cut long texts to more than a prompt takes; return the tokens that documents lose, -1 where no cut is sure."""
        if self.template.longest_first or self.template.query_share < 1 or self._closing:
            return texts, heads, np.zeros(len(texts), np.int64)  # the end or both lengths say what is cut
        enough = self.max_length + 16  # a first piece may join what stands before it
        texts, rest = self._texts.shorten(texts, enough)
        queries, query_rest = self._texts.shorten([query for _, query in heads], enough)
        heads = [(instruction, query) for (instruction, _), query in zip(heads, queries, strict=True)]
        return texts, heads, np.where(query_rest[owner] < 0, -1, rest)

    def _cut_heads(
        self, head_ids: list[list[int]], owner: np.ndarray, lengths: np.ndarray, room: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add heads with shorter queries where tokenizers would cut those too; return each pair's head and tokens cut."""
        separators = len(self._separator_ids)
        head_cut, owner = np.zeros(len(owner), np.int64), owner.copy()
        queries = np.array([len(ids) for ids in head_ids], np.int64)[owner] - separators
        for index in np.flatnonzero(queries + lengths + separators > room):
            query, texts = int(queries[index]), int(room[index]) - separators
            shorter = min(query, int(lengths[index]))
            if shorter + max(shorter, texts - shorter) <= texts:
                keeps = query if query == shorter else texts - shorter
            else:  # halves; the odd token is the longer text's
                keeps = texts // 2 + (texts % 2 if query > lengths[index] else 0)
            if 0 < keeps < query:
                whole = head_ids[owner[index]]
                head_ids.append([*whole[:keeps], *whole[len(whole) - separators :]])
                owner[index], head_cut[index] = len(head_ids) - 1, query - keeps
        return owner, head_cut

    def _cut_queries(self, head_ids: list[list[int]]) -> np.ndarray:
        """Cut queries that are longer than their share of a prompt; return the tokens cut of each head."""
        separators = len(self._encode_pieces(self._head[1:], [("", "")])[0])
        own = len(self.suffix_ids) + sum(len(part) for part in self._tail) + len(self._closing_ids)
        most = int((self.max_length - own) * self.template.query_share)
        cut = np.zeros(len(head_ids), np.int64)
        for number, ids in enumerate(head_ids):
            query = len(ids) - separators
            if query > most:
                head_ids[number] = [*ids[:most], *ids[query:]]
                cut[number] = query - most
        return cut

    def _close(self, document_ids: list[list[int]], lengths: np.ndarray, room: np.ndarray) -> np.ndarray:
        """Give documents that fill a prompt the fixed text after them; return the tokens they lose by it.

        As the reference does it, which writes that text over the last tokens of each prompt that is as long as may be.
        """
        closed = np.zeros(len(lengths), np.int64)
        for index in np.flatnonzero(lengths >= room):
            keeps = int(room[index]) - len(self._closing_ids)
            if keeps < 0:
                room[index] = min(room[index], lengths[index] - 1, -1)
            else:
                closed[index] = max(0, int(lengths[index]) - len(self._closing_ids) - keeps)
                document_ids[index] = [*document_ids[index][:keeps], *self._closing_ids]
                lengths[index] = len(document_ids[index])
        return closed

    def _join(
        self,
        runs_by_kind: tuple[list[list[int]], list[list[int]], list[list[int]]],
        owner: np.ndarray,
        fits: np.ndarray,
        lengths: np.ndarray,
    ) -> np.ndarray:
        """Return the ids of all prompts one after the other: prefix and head, what is left of a document, the rest."""
        head_ids, document_ids, tail_ids = runs_by_kind
        whole_heads = [[*self.prefix_ids, *ids] for ids in head_ids]
        runs = [*whole_heads, *document_ids, *([*ids, *self.suffix_ids] for ids in tail_ids)]
        source = np.fromiter(itertools.chain.from_iterable(runs), np.int32)
        run_lengths = np.array([len(run) for run in runs], np.int64)
        run_starts = np.cumsum(run_lengths) - run_lengths
        document_runs = len(whole_heads) + np.flatnonzero(fits)
        tail_runs = len(runs) - len(tail_ids) + (owner if len(tail_ids) > 1 else owner * 0)
        starts = np.stack([run_starts[owner], run_starts[document_runs], run_starts[tail_runs]], axis=1)
        sizes = np.stack([run_lengths[owner], lengths, run_lengths[tail_runs]], axis=1)
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

    def _encode_pieces(self, parts: Sequence[tuple[int, ...] | str], fields: list[tuple[str, str]]) -> list[list[int]]:
        """Return the ids of parts with their fields filled in, for each instruction and query."""
        if len(parts) == 1 and isinstance(parts[0], str):
            return self._encode([fill(parts[0], *pair) for pair in fields])
        whole: list[list[int]] = [[] for _ in fields]
        for part in parts:
            found = (
                self._encode([fill(part, *pair) for pair in fields]) if isinstance(part, str) else [part] * len(fields)
            )
            for ids, more in zip(whole, found, strict=True):
                ids.extend(more)
        return whole

    def _encode_bodies(
        self, heads: list[tuple[str, str]], owner: np.ndarray, documents: list[str]
    ) -> tuple[list[list[int]], list[list[int]], list[list[int]], np.ndarray]:
        """Return ids of heads, with what separates head and document, of documents, of what follows, and each one's head."""
        tail_ids = self._encode_pieces(self._tail, heads) if self._tail else [[]]
        if self.encodes_in_parts:
            head_ids = self._encode_pieces(self._head, heads)
            if self._separator_ids:
                head_ids = [[*ids, *self._separator_ids] for ids in head_ids]
            bodies = [self._document_prefix + document + self._closing for document in documents]
            return head_ids, self._encode(bodies), tail_ids, owner
        before = self._encode_pieces(self._head[:-1], heads)
        lefts = [fill(str(self._head[-1]), *pair) for pair in heads]
        head_ids, document_ids = [], []
        for head, document in zip(owner, documents, strict=True):
            encoding = self._text_tokenizer.encode(
                lefts[head] + self._document_prefix + document + self._closing, add_special_tokens=False
            )
            cut = sum(start < len(lefts[head]) for start, _ in encoding.offsets)
            head_ids.append([*before[head], *encoding.ids[:cut]])
            document_ids.append(encoding.ids[cut:])
        tails = [tail_ids[head] for head in owner] if len(tail_ids) > 1 else tail_ids
        return head_ids, document_ids, tails, np.arange(len(owner))

    def _find_cut(self, parts: TemplateParts) -> bool:
        """Find where head and document can be encoded apart: before the separator, or some characters earlier."""
        self._head = parts.head
        left, separator = str(self._head[-1]), self.template.document_separator
        if self.template.control == "pair" or self._can_cut(left, separator, parts):
            return True
        fixed = re.split(_FIELDS, left)[-1]
        for moved in range(1, min(3, len(fixed)) + 1):
            if self._can_cut(left[:-moved], left[-moved:] + separator, parts):
                self._head = (*self._head[:-1], left[:-moved])
                self._document_prefix = left[-moved:] + separator
                return True
        return False

    def _can_cut(self, left: str, separator: str, parts: TemplateParts) -> bool:
        """Whether encoding head, document and what follows apart gives the ids of the whole, on texts made to break it."""
        rest = parts.rest
        heads = [fill(left, self.instruction, query) for query in (PROBES if "{query}" in left else PROBES[:1])]
        bodies = [separator + probe + parts.closing for probe in PROBES]
        head_ids = self._encode(heads) if left else [[]] * len(heads)
        body_ids, rest_ids = self._encode(bodies), self._encode([rest])[0] if rest else []
        apart = [[*head, *body, *rest_ids] for head in head_ids for body in body_ids]
        return apart == self._encode([head + body + rest for head in heads for body in bodies])


def _no_ids(num_pairs: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.zeros(num_pairs + 1, np.int32)), pa.array([], pa.int32()))
