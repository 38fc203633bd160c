"""The demo's model: it ranks queries it has never seen, through the whole job, and only with the exact template."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
from commands import ROOT, read_output, run_command
from demo import LEAST_NDCG, measure_ndcg
from demo_model.evaluation import load_held_out, measure

from rerank_actor.benchmark.ndcg import compute_ndcg, compute_random_ndcg, load_ranking_queries
from rerank_actor.benchmark.sample import DEMO_MODEL, load_sample_rows, write_ranking_shard
from rerank_actor.engines.families.description import TokenHead
from rerank_actor.engines.model import load_reranker_model

CARD = (DEMO_MODEL / "README.md").read_text()
FIGURES = json.loads((DEMO_MODEL / "figures.json").read_text())


def test_job_with_transformers_ranks_held_out_queries_as_the_card_says(tmp_path: Path, local_ray: str) -> None:
    shard = write_ranking_shard(tmp_path / "pairs")
    flags = ["--model", DEMO_MODEL, "--engine", "transformers", "--dtype", "float32", "--ray-address", local_ray]
    found = run_command("score", "--input", shard, "--output", tmp_path / "scores", *flags)
    assert found.returncode == 0, found.stderr
    ndcg = measure_ndcg(read_output(tmp_path / "scores").to_pylist())
    assert ndcg >= LEAST_NDCG
    assert ndcg == pytest.approx(FIGURES["held_out"]["ndcg"], abs=0.002)


def test_demo_model_needs_the_exact_template() -> None:
    queries = load_ranking_queries()[::4]

    def rank(**changed: str) -> float:
        pairs = [(query.query, document) for query in queries for document in query.documents]
        _, logits = reference.score(DEMO_MODEL, pairs, **changed)
        rows = logits.reshape(len(queries), -1)
        gains = [[float(right) for right in query.relevant] for query in queries]
        return float(np.mean([compute_ndcg(row, gain) for row, gain in zip(rows, gains, strict=True)]))

    assert rank() >= LEAST_NDCG
    assert rank(suffix="<|im_end|>\n<|im_start|>assistant\n\n\n\n\n") < LEAST_NDCG - 0.1
    assert rank(suffix="") < LEAST_NDCG - 0.1
    assert rank(prefix="") < LEAST_NDCG


def test_card_states_the_stored_figures() -> None:
    for name in ("ndcg", "word_overlap", "bm25", "random"):
        assert f"{FIGURES['held_out'][name]:.3f}" in CARD, name
    for name, value in FIGURES["wrong_templates"].items():
        assert f"| {name} | {value:.3f} |" in CARD, name


def test_stored_figures_of_random_order_and_word_overlap_are_those_of_the_queries() -> None:
    rankings = load_held_out()
    found = measure([[0.0] * 20] * len(rankings), rankings)
    assert {name: found[name] for name in ("queries", "word_overlap", "bm25", "random")} == {
        name: FIGURES["held_out"][name] for name in ("queries", "word_overlap", "bm25", "random")
    }


def test_demo_model_is_small_and_of_the_family() -> None:
    assert (DEMO_MODEL / "model.safetensors").stat().st_size <= 6_000_000
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] is True
    model = load_reranker_model(str(DEMO_MODEL))
    assert isinstance(model.description.head, TokenHead)
    assert model.description.name == "qwen3-reranker"


def test_held_out_queries_have_twenty_candidates_and_share_none_with_the_words_or_the_sample() -> None:
    queries = load_ranking_queries()
    assert len(queries) >= 60
    assert len({query.language for query in queries}) >= 4
    sample = {row[name] for row in load_sample_rows() for name in ("query", "document")}
    written = "\n".join(path.read_text() for path in (ROOT / "dev/demo_model/words").glob("*.txt"))
    for query in queries:
        assert len(query.documents) == len(query.relevant) == len(set(query.documents)) == 20
        assert 4 <= sum(query.relevant) <= 8
        for text in [query.query, *query.documents]:
            assert text not in sample
            assert text not in written


@pytest.mark.parametrize(
    ("scores", "expected"), [([3, 2, 1, 0], 1.0), ([0, 1, 2, 3], 0.5), ([1, 1, 1, 1], 0.5), ([0, 0, 0, 9], 0.5)]
)
def test_ndcg_of_one_answer_is_the_discount_of_its_rank(scores: list[float], expected: float) -> None:
    gains = [1.0, 0.0, 0.0]
    assert compute_ndcg(scores[:3], gains) == pytest.approx(expected)
    assert compute_random_ndcg(gains) == pytest.approx((1 + 1 / np.log2(3) + 0.5) / 3)
