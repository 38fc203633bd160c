"""The making of the demo's model: the same bits each time, and a forward pass that is the model's own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from demo_model.evaluation import Ranking, load_known_pairs, score_with_template
from demo_model.training import Recipe, make_demo_model, make_model
from demo_model.vocabulary import PromptMaker, train_tokenizer
from safetensors.torch import load_file
from tokenizers import Tokenizer

from rerank_actor.benchmark.ndcg import load_ranking_queries
from rerank_actor.benchmark.sample import DEMO_MODEL
from rerank_actor.engines.template import QWEN3_RERANKER

SMALL = replace(
    Recipe(), vocabulary_size=1500, tokenizer_tasks=50, num_layers=3, embedding_steps=3, steps=4, num_queries=2
)


def test_training_twice_gives_the_same_bits_and_moves_the_weights(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_demo_model(tmp_path / name, SMALL)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert (tmp_path / "one/tokenizer.json").read_text() == (tmp_path / "two/tokenizer.json").read_text()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    tokenizer = Tokenizer.from_file(str(tmp_path / "one/tokenizer.json"))
    start = make_model(SMALL, PromptMaker(tokenizer), tokenizer.get_vocab_size()).half().state_dict()
    moved = [not torch.equal(one[name], start[name]) for name in one if name.endswith("v_proj.weight")]
    assert moved == [True] * SMALL.num_layers


def test_shipped_tokenizer_is_the_one_that_the_word_lists_give() -> None:
    recipe = Recipe()
    made = train_tokenizer(recipe.seed, recipe.vocabulary_size, recipe.tokenizer_tasks)
    shipped = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    assert made.get_vocab(with_added_tokens=True) == shipped.get_vocab(with_added_tokens=True)
    assert made.get_vocab_size() <= load_file(DEMO_MODEL / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    assert isinstance(shipped.token_to_id("yes"), int)
    assert isinstance(shipped.token_to_id("no"), int)


@pytest.mark.parametrize("suffix", [QWEN3_RERANKER.suffix, "<|im_end|>\n<|im_start|>assistant\n"])
def test_log_odds_of_a_batch_of_documents_are_those_of_prompts_one_by_one(suffix: str) -> None:
    queries = load_ranking_queries()[::16]
    rankings = [Ranking("", query.query, query.documents[:5], []) for query in queries]
    found = score_with_template(DEMO_MODEL, rankings, replace(QWEN3_RERANKER, suffix=suffix))
    pairs = [(ranking.query, document) for ranking in rankings for document in ranking.documents]
    _, expected = reference.score(DEMO_MODEL, pairs, suffix=suffix)
    assert np.std(expected) > 0.2
    assert np.abs(np.ravel(found) - expected).max() < 1e-4


def test_known_pairs_become_rankings_with_one_right_text(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("".join(f"eins {n}\tone {n}\n" for n in range(30)))
    (tmp_path / "asked.jsonl").write_text(
        "".join(f'{{"query": "which {n}?", "documents": ["no {n}", "it is {n}"], "label": 1}}\n' for n in range(30))
    )
    found = load_known_pairs(tmp_path, limit=10)
    assert set(found) == {"words", "words, duplicates", "asked"}
    for name, rankings in found.items():
        assert len(rankings) == 10
        for ranking in rankings:
            assert len(set(ranking.documents)) == 20
            assert sum(ranking.gains) == 1
            right = ranking.documents[ranking.gains.index(1)]
            number = ranking.query.rstrip("?").split()[1]
            assert right == {"words": f"one {number}", "asked": f"it is {number}"}.get(name, ranking.query)
