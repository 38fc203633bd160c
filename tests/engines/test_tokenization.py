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
from rerank_actor.engines.tokenization import TextEncoder

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
