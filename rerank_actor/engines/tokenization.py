"""Texts to token ids, as fast as is exact: a tokenizer of the Qwen kind run by tiktoken, any other as it is.

Takes a `tokenizers.Tokenizer` without added tokens, gives its ids. Tiktoken needs a seventh of the time, and is used
where it gives the same ids: the pre-tokenizer is Qwen's, the ranks of merges are their tokens' ids, and each token's own
bytes are merged to that token (else the two could merge in another order). Texts with characters on which versions of
Unicode disagree go through the tokenizer itself. Long texts are encoded in pieces, cut where the pattern ends a piece
whatever follows, so that memory and time are bounded. Knows nothing of templates or pairs.
"""

import functools
import itertools
import json
import re
import unicodedata
from typing import Any

import numpy as np
from tokenizers import Tokenizer

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONG_TEXT = 2**16  # characters from which on a text is encoded in pieces
LONGEST_TEXT = 2**22  # characters behind which what a prompt has no room for is not even counted
# A piece of the pattern with a letter or digit ends before any of these, none of which joins a letter in NFC; a digit is a
# piece of its own. So what stands before is cut into pieces, and these merged, without a look at what follows, and the
# pattern goes on from there without a look back: the ids of the two sides are those of the whole.
_SURE_CUT = r"[0-9](?=[\x00-\x7f])|[%s](?=[\x00-@\[-`{-\x7f\u3001\u3002\uff0c])"
# Of a million of white space in a row tiktoken's pattern overflows its stack, and panics.
_LONG_BLANK = re.compile(rf"[^\S\r\n]{{{LONG_TEXT}}}")
_QWEN_SPLIT = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}


class TextEncoder:
    """Encodes texts one by one, without added tokens.

    Args:
        tokenizer: gives the ids; has neither added tokens nor truncation or padding.
        is_plain: whether texts are all it encodes, so that it may be replaced by what gives the same ids.

    Attributes:
        is_fast: whether tiktoken encodes most texts.
        sure_cut: pattern that ends where a text may be cut, where that is so.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_plain: bool) -> None:
        self._tokenizer = tokenizer
        self._fast: Any = _make_tiktoken(tokenizer) if is_plain else None
        unusual, self.sure_cut = _make_patterns()
        self._is_unusual = unusual.search

    @property
    def is_fast(self) -> bool:
        """Whether tiktoken encodes most texts."""
        return self._fast is not None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        if self._fast is None:
            return self._encode_slowly(texts)
        if not _has_long(texts):
            return self._encode_pieces(texts)
        pieces = [self._split(text) for text in texts]
        encoded = iter(self._encode_pieces(list(itertools.chain.from_iterable(pieces))))
        return [
            next(encoded) if len(found) == 1 else list(itertools.chain(*itertools.islice(encoded, len(found))))
            for found in pieces
        ]

    def shorten(self, texts: list[str], num_tokens: int) -> tuple[list[str], np.ndarray]:
        """Return beginnings of long texts that have more than so many ids, all of them the whole texts' first.

        Returns:
            texts: the beginnings; whole where a text is not long, has no more ids, or tiktoken is not used.
            rest: int64 [num_texts], the ids behind each beginning; those of the text's first `LONGEST_TEXT` characters
                alone, and -1, with an empty beginning, where a longer text has no place to cut that is sure in these.
        """
        if self._fast is None or not _has_long(texts):
            return texts, np.zeros(len(texts), np.int64)
        shortened = [self._shorten(text, num_tokens) for text in texts]
        return [text for text, _ in shortened], np.array([rest for _, rest in shortened], np.int64)

    def _shorten(self, text: str, num_tokens: int) -> tuple[str, int]:
        if len(text) <= LONG_TEXT:
            return text, 0
        pieces = self._split(text[:LONGEST_TEXT])
        if len(text) > LONGEST_TEXT:
            pieces.pop()  # what follows could change its ids
        totals = np.cumsum([len(self._encode_pieces([piece])[0]) for piece in pieces])
        keeps = int(np.searchsorted(totals, num_tokens, side="right")) + 1
        if keeps <= len(pieces):
            return "".join(pieces[:keeps]), int(totals[-1] - totals[keeps - 1])
        return (text, 0) if len(text) <= LONGEST_TEXT else ("", -1)

    def _split(self, text: str) -> list[str]:
        """Return the pieces of a text, about half of a long text each where it has sure places to cut."""
        pieces, start = [], 0
        while len(text) - start > LONG_TEXT and (match := self.sure_cut.search(text, start + LONG_TEXT // 2)):
            pieces.append(text[start : match.end()])
            start = match.end()
        return [*pieces, text[start:]]

    def _encode_pieces(self, pieces: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = []
        left: list[int] = []
        encode = self._fast.encode_ordinary
        for index, text in enumerate(pieces):
            if len(text) > LONG_TEXT and _LONG_BLANK.search(text):
                left.append(index)
                encoded.append([])
            elif text.isascii():
                encoded.append(encode(text))
            elif self._is_unusual(text):
                left.append(index)
                encoded.append([])
            else:
                encoded.append(encode(unicodedata.normalize("NFC", text)))
        for index, ids in zip(left, self._encode_slowly([pieces[index] for index in left]), strict=True):
            encoded[index] = ids
        return encoded

    def _encode_slowly(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _has_long(texts: list[str]) -> bool:
    return max(map(len, texts), default=0) > LONG_TEXT


@functools.cache
def _make_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns of the characters whose category may differ between versions of Unicode, and of the sure cuts.

    The first leaves out those of one category from 3.2 to Python's version: what was a letter in 2002 and is one today
    is a letter in any tables that a tokenizer was built with.
    """
    old = unicodedata.ucd_3_2_0
    usual = [
        code
        for code in range(0x10000)
        if old.category(chr(code)) == unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    letters = [
        code
        for code in usual
        if unicodedata.category(chr(code))[0] == "L" and unicodedata.is_normalized("NFC", chr(code))
    ]
    return re.compile(f"[^{_write_ranges(usual)}]"), re.compile(_SURE_CUT % _write_ranges(letters))


def _write_ranges(codes: list[int]) -> str:
    breaks = [0, *(index for index in range(1, len(codes)) if codes[index] != codes[index - 1] + 1), len(codes)]
    return "".join(f"\\u{codes[start]:04x}-\\u{codes[end - 1]:04x}" for start, end in itertools.pairwise(breaks))


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
