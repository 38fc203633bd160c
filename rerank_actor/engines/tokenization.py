"""Texts to token ids, as fast as is exact: a tokenizer of the Qwen kind run by tiktoken, any other as it is.

Takes a `tokenizers.Tokenizer` without added tokens, gives its ids. Tiktoken needs a seventh of the time, and is used
where it gives the same ids: the pre-tokenizer is Qwen's, the ranks of merges are their tokens' ids, and each token's own
bytes are merged to that token (else the two could merge in another order). Texts with characters on which versions of
Unicode disagree go through the tokenizer itself. Knows nothing of templates or pairs.
"""

import functools
import itertools
import json
import re
import unicodedata
from typing import Any

from tokenizers import Tokenizer

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPLIT = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}


class TextEncoder:
    """Encodes texts one by one, without added tokens.

    Args:
        tokenizer: gives the ids; has neither added tokens nor truncation or padding.
        is_plain: whether texts are all it encodes, so that it may be replaced by what gives the same ids.

    Attributes:
        is_fast: whether tiktoken encodes most texts.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_plain: bool) -> None:
        self._tokenizer = tokenizer
        self._fast = _make_tiktoken(tokenizer) if is_plain else None
        self._is_unusual = _make_unusual_pattern().search

    @property
    def is_fast(self) -> bool:
        """Whether tiktoken encodes most texts."""
        return self._fast is not None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        if self._fast is None:
            return self._encode_slowly(texts)
        encoded: list[list[int]] = []
        left: list[int] = []
        encode = self._fast.encode_ordinary
        for index, text in enumerate(texts):
            if text.isascii():
                encoded.append(encode(text))
            elif self._is_unusual(text):
                left.append(index)
                encoded.append([])
            else:
                encoded.append(encode(unicodedata.normalize("NFC", text)))
        for index, ids in zip(left, self._encode_slowly([texts[index] for index in left]), strict=True):
            encoded[index] = ids
        return encoded

    def _encode_slowly(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@functools.cache
def _make_unusual_pattern() -> re.Pattern[str]:
    """Return a pattern of the characters that are not, with one category, in Unicode from 3.2 to Python's version.

    What was a letter in 2002 and is one today is a letter in any tables that a tokenizer was built with.
    """
    old = unicodedata.ucd_3_2_0
    usual = [
        code
        for code in range(0x10000)
        if old.category(chr(code)) == unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    breaks = [0, *(index for index in range(1, len(usual)) if usual[index] != usual[index - 1] + 1), len(usual)]
    ranges = [(usual[start], usual[end - 1]) for start, end in itertools.pairwise(breaks)]
    return re.compile("[^" + "".join(f"\\u{low:04x}-\\u{high:04x}" for low, high in ranges) + "]")


def _make_tiktoken(tokenizer: Tokenizer) -> Any:
    """Return a tiktoken encoding with the ids of a tokenizer, None where they might differ."""
    parsed = json.loads(tokenizer.to_str())
    model = parsed["model"]
    normalizer = parsed.get("normalizer") or {}
    steps = (parsed.get("pre_tokenizer") or {}).get("pretokenizers") or []
    is_qwen = (
        model["type"] == "BPE"
        and not any(
            model.get(key) for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
        )
        and not parsed["added_tokens"]
        and normalizer.get("type") == "NFC"
        and len(steps) == 2
        and steps[0] == _QWEN_SPLIT
        and (steps[1]["type"], steps[1]["add_prefix_space"], steps[1]["use_regex"]) == ("ByteLevel", False, False)
    )
    if not is_qwen:
        return None
    vocabulary = model["vocab"]
    merged = [vocabulary[first + second] for first, second in model["merges"]]
    bytes_of = _read_byte_alphabet()
    base = [vocabulary.get(letter, len(vocabulary)) for letter in bytes_of]
    in_order = all(earlier < later for earlier, later in itertools.pairwise([max(base), *merged]))
    tokenize = tokenizer.model.tokenize
    if (
        not in_order
        or len(merged) + len(base) != len(vocabulary)
        or any([piece.id for piece in tokenize(token)] != [number] for token, number in vocabulary.items())
    ):
        return None
    from tiktoken import Encoding

    ranks = {bytes(bytes_of[letter] for letter in token): number for token, number in vocabulary.items()}
    return Encoding("qwen", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _read_byte_alphabet() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for, as GPT-2 defined it.

    Printable bytes stand for themselves; the others, in order, are the letters from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}
