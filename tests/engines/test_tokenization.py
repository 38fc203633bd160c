"""Texts to ids: tiktoken gives those of the tokenizer itself, and is not used where it might not."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rerank_actor.benchmark.sample import load_sample_rows, train_sample_tokenizer
from rerank_actor.engines.parts import without_added_tokens
from rerank_actor.engines.tokenization import LONG_TEXT, LONGEST_TEXT, TextEncoder

REAL = Path(__file__).parent.parent.parent.parent / "shared/qwen3-tokenizer/tokenizer.json"
CONTEXTS = ("ab{}cd", " x {} y", "a'{} b", "1{}2", "\n{}\n {}", "{0}{0}A{0}", "!{}? {}.", "{}")


def make_small() -> Tokenizer:
    texts = (text for row in load_sample_rows() for text in (row["query"], row["document"]) if text)
    return without_added_tokens(train_sample_tokenizer(texts))


@pytest.fixture(scope="module", params=["small", "real"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "small":
        return make_small()
    if not REAL.exists():
        pytest.skip("the real vocabulary is not here")
    return without_added_tokens(Tokenizer.from_file(str(REAL)))


def encode_slowly(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def test_fast_encoder_gives_the_same_ids_on_every_character_in_context(tokenizer: Tokenizer) -> None:
    encoder = TextEncoder(tokenizer, is_plain=True)
    assert encoder.is_fast
    characters = [chr(code) for code in range(0x11000) if not 0xD800 <= code < 0xE000]
    characters += [chr(code) for code in (*range(0x1F300, 0x1F700), *range(0x20000, 0x20100), 0xE0001, 0x10FFFF)]
    for context in CONTEXTS:
        texts = [context.format(character, character) for character in characters]
        assert encoder.encode(texts) == encode_slowly(tokenizer, texts), context


def test_fast_encoder_gives_the_same_ids_on_texts(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    words = [
        word for row in load_sample_rows() for text in (row["query"], row["document"]) if text for word in text.split()
    ]
    joints = (" ", "  ", "\n", "", "\t", "-", "'", "\u00a0", "\u0301", " \n\n ", "\u200d", "12", "\U0001f600")
    texts = ["".join(rng.choice(words) + rng.choice(joints) for _ in range(rng.randrange(40))) for _ in range(3000)]
    texts += [unicodedata.normalize("NFD", text) for text in texts[:500]]
    assert TextEncoder(tokenizer, is_plain=True).encode(texts) == encode_slowly(tokenizer, texts)


@pytest.mark.parametrize("blank", [" ", "\t\u3000"])
def test_long_blank_is_encoded_by_the_tokenizer_itself(blank: str, tokenizer: Tokenizer) -> None:
    """Tiktoken would panic on a million of white space in a row."""
    texts = ["a" + blank * (1_100_000 // len(blank)) + "b"]
    assert TextEncoder(tokenizer, is_plain=True).encode(texts) == encode_slowly(tokenizer, texts)


LONG_PIECES = (
    "word ", "don't ", "'s", " ", "\n", "\r\n", "  \n ", ", ", ".", "...", "; ", "7", "3.14", "e\u0301 ",
    "a\u0301", "\u0301 ", " \u0338", ".\u0338", ",\u0301", "\u3002", "\u4f60\u597d", "\u4f60\u597d\u3002",
    "\uff0c\u4e16", "\u3001\u3099", "\U0001f600", "\u200d", "\u00a0", "z" * 40, "^" * 30, "a ", "A.b",
    "\uac00\u11a8 ", "\u0130 ", "\U00020000 ",
)  # fmt: skip


def make_long(rng: random.Random, length: int) -> str:
    few = rng.sample(LONG_PIECES, rng.randint(1, 8))
    return "".join(rng.choices(few, k=length * len(few) // sum(map(len, few))))


def test_long_text_is_encoded_in_pieces_to_the_same_ids(tokenizer: Tokenizer) -> None:
    encoder, rng = TextEncoder(tokenizer, is_plain=True), random.Random(0)
    texts = [make_long(rng, rng.randint(LONG_TEXT // 2, LONG_TEXT * 2)) for _ in range(8)]
    whole = encode_slowly(tokenizer, texts)
    assert encoder.encode(["x", *texts, ""]) == [*encode_slowly(tokenizer, ["x"]), *whole, []]
    beginnings, rest = encoder.shorten(texts, 100)
    assert sum(begin != text for begin, text in zip(beginnings, texts, strict=True)) > 2
    for begin, behind, ids in zip(beginnings, rest.tolist(), whole, strict=True):
        kept = encode_slowly(tokenizer, [begin])[0]
        assert kept == ids[: len(kept)]
        assert len(kept) + behind == len(ids)
        assert len(kept) > 100


@pytest.mark.parametrize("text", ["\n", "\u0301", "\u4f60", " \n", "'s"])
def test_text_without_a_sure_place_is_encoded_whole(text: str, tokenizer: Tokenizer) -> None:
    text = text * (LONG_TEXT + 1)
    encoder = TextEncoder(tokenizer, is_plain=True)
    assert encoder.encode([text]) == encode_slowly(tokenizer, [text])


def test_tokens_are_counted_up_to_the_bound_and_no_further() -> None:
    text = "word, " * (LONGEST_TEXT // 6 + 50_000)
    for length in (LONGEST_TEXT, len(text)):
        [begin], [rest] = SMALL_ENCODER.shorten([text[:length]], 8192)
        counted = len(SMALL_ENCODER.encode([begin])[0]) + rest
        assert len(begin) < LONG_TEXT * 4
        whole = len(SMALL_ENCODER.encode([text[:length]])[0])
        assert counted == whole if length == LONGEST_TEXT else counted < whole


@pytest.mark.parametrize("text", ["\n" * 10_000_000, "a b" + " " * 10_000_000 + "c d"])
def test_longest_text_without_a_sure_place_is_not_encoded(text: str) -> None:
    beginnings, rest = SMALL_ENCODER.shorten([text], 8192)
    assert (beginnings, rest.tolist()) == ([""], [-1])


ANY = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


@given(
    ANY,
    st.one_of(
        st.sampled_from("azAZ09\u4e00\u9fff\u0431\u00e9\u0e01\u1100\u11a8"), st.characters(categories=["L", "Nd"])
    ),
    st.sampled_from([*map(chr, range(128)), *"\u3002\uff0c\u3001"]),
    ANY,
)
def test_ids_on_both_sides_of_a_sure_place_are_those_of_the_whole(
    before: str, letter: str, mark: str, after: str
) -> None:
    text = before + letter + mark + after
    pieces, start = [], 0
    for match in SMALL_ENCODER.sure_cut.finditer(text):
        pieces.append(text[start : match.end()])
        start = match.end()
    found = encode_slowly(SMALL, [*pieces, text[start:]])
    assert [number for ids in found for number in ids] == encode_slowly(SMALL, [text])[0]


def test_each_sure_place_keeps_the_ids_in_context(tokenizer: Tokenizer) -> None:
    """Each character that may stand before a cut, with each that may stand behind it."""
    sure_cut = TextEncoder(tokenizer, is_plain=True).sure_cut
    marks = [chr(code) for code in range(128)] + ["\u3002", "\uff0c", "\u3001"]
    letters = [chr(code) for code in range(0x10000) if sure_cut.match(chr(code) + ".")]
    assert len(letters) > 30_000
    contexts = (("ab", "\u0301c"), ("'", "s"), (" \u1100", "\u0338 "), ("e", "\n x"))
    pairs = []
    for number, letter in enumerate(letters):
        before, after = contexts[number % 4]
        pairs.append((before + letter, marks[number % len(marks)] + after))
    pairs = [(left, right) for left, right in pairs if sure_cut.match(left + right, len(left) - 1)]
    lefts, rights = (encode_slowly(tokenizer, list(side)) for side in zip(*pairs, strict=True))
    whole = encode_slowly(tokenizer, [left + right for left, right in pairs])
    assert [left + right for left, right in zip(lefts, rights, strict=True)] == whole


SMALL = make_small()
SMALL_ENCODER = TextEncoder(SMALL, is_plain=True)


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30), max_size=5))
def test_fast_encoder_gives_the_same_ids_on_any_text(texts: list[str]) -> None:
    assert SMALL_ENCODER.encode(texts) == encode_slowly(SMALL, texts)


def change(tokenizer: Tokenizer, **parts: object) -> Tokenizer:
    return Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), **parts}))


def test_tokenizer_whose_merges_are_not_in_order_is_used_as_it_is() -> None:
    """Its ranks are not its ids, so that tiktoken would merge in another order."""
    model = json.loads(SMALL.to_str())["model"]
    model["merges"] = model["merges"][::-1]
    found = TextEncoder(change(SMALL, model=model), is_plain=True)
    assert not found.is_fast


def test_tokenizer_that_merges_a_token_otherwise_is_used_as_it_is() -> None:
    """`abc` is in the vocabulary as ab+c, but `bc` merges first, so its own bytes never become it."""
    letters = sorted(json.loads(SMALL.to_str())["model"]["vocab"].items(), key=lambda item: item[1])[:256]
    vocabulary = dict(letters) | {"bc": 256, "ab": 257, "abc": 258}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [["b", "c"], ["a", "b"], ["ab", "c"]]}
    found = TextEncoder(change(SMALL, model=model), is_plain=True)
    assert not found.is_fast
    assert [len(ids) for ids in found.encode(["abc"])] == [2]


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer"])
def test_tokenizer_of_another_kind_is_used_as_it_is(part: str) -> None:
    tokenizer = change(SMALL, **{part: None})
    assert not TextEncoder(tokenizer, is_plain=True).is_fast


def test_tokenizer_that_parses_special_tokens_is_used_as_it_is() -> None:
    assert not TextEncoder(SMALL, is_plain=False).is_fast
