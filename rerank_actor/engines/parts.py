"""A template cut at its control tokens, for one tokenizer: what is fixed as ids, what has fields as texts to be encoded.

Takes a `Template` and a `tokenizers.Tokenizer`. A tokenizer looks for its added tokens first and encodes what is between
them apart; so do prompts here, which lets texts of users be encoded without any added token. Knows nothing of pairs.
"""

import json
import re
from dataclasses import dataclass

from tokenizers import Tokenizer

from rerank_actor.engines.template import Template

_FIELDS = ("{instruction}", "{query}")
CUT = "{cut}"

# Texts that tell whether a tokenizer may be fed in parts: spaces, newlines, marks and digits on both sides of a cut.
PROBES = (
    "", " ", "  ", "\n", "\n\n", " \n ", "\t", "a", " a", "  a", "A b", "7", " 7", ".", ":", "::", "?\n", "\u0301",
    "\u3000", "\u00a0x", "\u4f60\u597d", "\u0645\u0631\u062d\u0628\u0627", "\U0001f600", "e\u0301", "-1", "\r\n", "'s", "<",
    "word\n", "a: b",
)  # fmt: skip


@dataclass(frozen=True)
class TemplateParts:
    """What an encoder needs of a template.

    Attributes:
        prefix_ids: before the first text that has a field.
        head: from there to the document, ids and texts in turn; ends in a text, which may be empty and meets the document.
        closing: fixed text after the document, which is encoded with it.
        rest: text up to the next control token or field, which is encoded apart.
        tail: from there on, ids and texts in turn.
        separator_ids: between the two texts of a pair.
        suffix_ids: after everything.
    """

    prefix_ids: list[int]
    head: tuple[tuple[int, ...] | str, ...]
    closing: str
    rest: str
    tail: tuple[tuple[int, ...] | str, ...]
    separator_ids: list[int]
    suffix_ids: list[int]


def split_template(template: Template, full: Tokenizer, *, closes_whole: bool = False) -> TemplateParts:
    """Cut a template for a tokenizer that has its added tokens.

    Args:
        template: the text.
        full: the tokenizer.
        closes_whole: let all of the fixed text after the document be encoded with it, not its blanks alone.
    """
    before, between, after = _control_tokens(full, template.control)
    prefix_ids = full.encode(template.prefix, add_special_tokens=False).ids if template.prefix else []
    head = _split(template.head, full)
    if not head or not isinstance(head[-1], str):
        head.append("")
    if template.control == "pair":
        return TemplateParts([*before, *prefix_ids], tuple(_encode_fixed(head, full)), "", "", (), between, after)
    tail = _split(template.suffix, full)
    closing = rest = ""
    if tail and isinstance(tail[0], str):
        fixed = re.split(r"\{instruction\}|\{query\}", tail[0])[0]
        blanks = len(fixed) - len(fixed.lstrip())
        closing = fixed if closes_whole or not blanks else fixed[:blanks]
        tail[0], rest = tail[0][len(closing) :], fixed[len(closing) :]
    tail = _encode_fixed([part for part in tail if part], full, keep_last=False)
    suffix_ids = after
    while tail and not isinstance(tail[-1], str):
        suffix_ids = [*tail.pop(), *suffix_ids]
    heads = tuple(_encode_fixed(head, full))
    return TemplateParts([*before, *prefix_ids], heads, closing, rest, tuple(tail), between, suffix_ids)


def _split(text: str, full: Tokenizer) -> list[tuple[int, ...] | str]:
    """Return a text cut at added tokens and at marks of cuts: ids of control tokens, and texts between them."""
    names = {token.content: number for number, token in full.get_added_tokens_decoder().items()}
    pattern = "|".join(re.escape(name) for name in [CUT, *sorted(names, key=len, reverse=True)])
    pieces = re.split(f"({pattern})", text)
    parts: list[tuple[int, ...] | str] = []
    for position, piece in enumerate(pieces):
        if position % 2:
            parts.append(() if piece == CUT else (names[piece],))
        elif piece:
            parts.append(piece)
    return parts


def _encode_fixed(
    parts: list[tuple[int, ...] | str], full: Tokenizer, *, keep_last: bool = True
) -> list[tuple[int, ...] | str]:
    """Return parts with texts that have no field as ids, but for the last one where it meets the document."""
    last = len(parts) - 1 if keep_last else -1
    return [
        tuple(full.encode(part, add_special_tokens=False).ids)
        if isinstance(part, str) and position != last and not any(field in part for field in _FIELDS)
        else part
        for position, part in enumerate(parts)
    ]


def without_added_tokens(full: Tokenizer, *, keeps_plain: bool = False) -> Tokenizer:
    """Return the tokenizer without its added tokens: control tokens in a text are then plain text like any other.

    Args:
        full: with them.
        keeps_plain: keep those that are not special, as a classic tokenizer has them for blanks and markup; without it
            those of blanks alone are kept.
    """
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
    parsed["added_tokens"] = [
        token
        for token in parsed["added_tokens"]
        if not token["special"] and (keeps_plain or not token["content"].strip())
    ]
    parsed["post_processor"] = None
    return Tokenizer.from_str(json.dumps(parsed))


def _control_tokens(full: Tokenizer, control: str) -> tuple[list[int], list[int], list[int]]:
    """Return the ids that a tokenizer itself puts before the texts, between them and at the end."""
    if control == "none":
        return [], [], []
    encoding = full.encode("a", "a") if control == "pair" else full.encode("a")
    runs: list[list[int]] = [[]]
    previous = None
    for token_id, sequence in zip(encoding.ids, encoding.sequence_ids, strict=True):
        if sequence is None:
            runs[-1].append(token_id)
        elif sequence != previous:
            runs.append([])
            previous = sequence
    before, *middle, after = runs if len(runs) > 1 else [*runs, []]
    return before, middle[0] if middle else [], after
