"""The Python interface says of what is no list of pairs that it is none, instead of scoring other texts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from families import make_bpe

from rerank_actor import Reranker
from rerank_actor.errors import InputError


@pytest.fixture(scope="module")
def reranker() -> Iterator[Reranker]:
    with Reranker(engine="fake") as loaded:
        yield loaded


def test_pairs_may_be_any_sequence_of_two_texts(reranker: Reranker) -> None:
    pairs = [("q", "a"), ("q", "b")]
    expected = reranker.score(pairs)
    for same in (tuple(pairs), [list(pair) for pair in pairs], np.array(pairs), np.array(pairs, object), iter(pairs)):
        assert (reranker.score(same) == expected).all()
    assert reranker.score([]).shape == (0,)


def test_predict_is_called_as_a_cross_encoder_is(reranker: Reranker) -> None:
    pairs = [("q", "a"), ("q", "b")]
    scores = reranker.score(pairs)
    assert (reranker.predict(pairs, batch_size=8, show_progress_bar=False) == scores).all()
    assert reranker.predict(pairs[1]) == reranker.predict([*pairs[1]]) == scores[1]
    with pytest.raises(TypeError, match="pairs are a str"):
        reranker.predict("qd")


def test_rank_goes_by_place_whatever_index_a_series_has(reranker: Reranker) -> None:
    documents = pd.Series(["one", "two", "three"], index=[2, 0, 7])
    ranked = reranker.rank("a", documents, return_documents=True)
    assert {entry["corpus_id"]: entry["text"] for entry in ranked} == {0: "one", 1: "two", 2: "three"}


def test_closing_one_reranker_leaves_another(reranker: Reranker) -> None:
    before = reranker.score([("q", "a")])
    Reranker(engine="fake").close()
    assert (reranker.score([("q", "a")]) == before).all()


@pytest.mark.parametrize(
    ("pairs", "kind", "words"),
    [
        ([{"query": "q", "document": "d"}], TypeError, "pair 0 is a dict: give each as"),
        ({"query": "q", "document": "d"}, TypeError, "pairs are a dict: give a sequence of pairs"),
        ("qd", TypeError, "pairs are a str"),
        (("q", "d"), TypeError, "pair 0 is a str"),
        (["qd"], TypeError, "pair 0 is a str"),
        ([("q", "d"), ("q", "d", 1)], ValueError, "pair 1 has 3 elements"),
        ([("q",)], ValueError, "pair 0 has 1 elements"),
        ([{"q", "d"}], TypeError, "pair 0 is a set"),
        (None, TypeError, "pairs are a NoneType"),
        (7, TypeError, "pairs are a int"),
        ([("q", ["a", "b"])], InputError, "pair 0: document is not text"),
        ([("q", None)], InputError, "pair 0: document is null"),
    ],
)
def test_what_is_no_pair_is_refused(reranker: Reranker, pairs: Any, kind: type[Exception], words: str) -> None:
    for compute in (reranker.score, reranker.logits):
        with pytest.raises(kind, match=words):
            compute(pairs)


def test_an_instruction_is_one_text_for_all(reranker: Reranker) -> None:
    instructions: Any = ["one", "two"]
    with pytest.raises(TypeError, match="the instruction is a list"):
        reranker.score([("q", "a"), ("q", "b")], instructions)
    documents: Any = {"d1": "a"}
    with pytest.raises(TypeError, match="documents are a dict"):
        reranker.rank("q", documents)


@pytest.mark.parametrize(("value", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("5", TypeError)])
def test_what_is_no_count_is_refused(reranker: Reranker, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"top_k is .*give a whole number from 1 on"):
        reranker.rank("q", ["a", "b"], top_k=value)
    with pytest.raises(kind, match="max_length is "):
        Reranker(engine="fake", max_length=value)


def test_folder_may_be_a_path_and_what_is_doubted_of_it_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "qwen3-reranker"
    make_bpe().save_pretrained(folder)
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151669}
    (folder / "config.json").write_text(json.dumps(config))
    with Reranker(folder, engine="fake") as found:
        assert found.model.name == str(folder)
    assert "see that they belong together" in caplog.text
