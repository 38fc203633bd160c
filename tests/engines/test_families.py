"""Families of rerankers: each equal to its own reference in ids and logits, or refused by name; see `families` in support."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import (
    PAIRS,
    WITH_SENTENCE_TRANSFORMERS,
    build,
    choose_length,
    compute_gte,
    make_llama_bpe,
    predict,
    write_gte,
    write_jina,
    write_nemotron,
    write_t5,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rerank_actor import Reranker
from rerank_actor.engines.model import load_reranker_model
from rerank_actor.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", WITH_SENTENCE_TRANSFORMERS)
def test_family_gives_ids_and_logits_of_its_cross_encoder(tmp_path: Path, family: str) -> None:
    folder = WITH_SENTENCE_TRANSFORMERS[family](tmp_path / "model")
    length = choose_length(folder)
    expected, ids = predict(folder, PAIRS, length)
    if expected.ndim == 2:
        expected = expected[:, 1] - expected[:, 0]
    with Reranker(str(folder), engine="transformers", dtype="float32", max_length=length) as found:
        prompts = found._encoder.encode(*zip(*PAIRS, strict=True))
        logits = found.logits(PAIRS)
    wrong = [pair for pair, own, theirs in zip(PAIRS, prompts.token_ids.to_pylist(), ids, strict=True) if own != theirs]
    # What a document-first prompt loses is the document here, and the query there.
    wrong = [pair for pair in wrong if family != "ctxl-v2" or len(pair[1]) < 600]
    assert wrong == []
    same = np.array([own == theirs for own, theirs in zip(prompts.token_ids.to_pylist(), ids, strict=True)])
    assert np.abs(logits - expected)[same].max() <= 1e-5 * np.std(expected)
    assert np.std(expected) > 1e-3
    assert any(len(one) == length for one in ids)


@pytest.mark.parametrize("family", ["electra", "deberta-v2", "distilbert"])
def test_family_that_vllm_cannot_run_is_refused_with_the_engine_that_can(tmp_path: Path, family: str) -> None:
    model = load_reranker_model(str(WITH_SENTENCE_TRANSFORMERS[family](tmp_path / "model")))
    model.refuse_engine("transformers")
    with pytest.raises(ModelError, match=r"vLLM 0.32 has no .*; give --engine transformers"):
        model.refuse_engine("vllm")


def check(
    folder: Path, pairs: list[tuple[str, str]], ids: list[list[int]], expected: list[float], **options: Any
) -> None:
    """Compare prompt ids and logits of a folder with those of a reference."""
    with Reranker(str(folder), engine="transformers", dtype="float32", **options) as found:
        prompts = found._encoder.encode(*zip(*pairs, strict=True))
        assert prompts.token_ids.to_pylist() == ids
        assert np.abs(found.logits(pairs) - expected).max() <= 1e-5 * np.std(expected)
    assert np.std(expected) > 1e-3


def test_bge_gemma_equals_the_recipe_of_its_publisher(tmp_path: Path) -> None:
    tokenizer, length = make_llama_bpe(), 300
    folder = build("Gemma", tokenizer, tmp_path / "bge-reranker-v2-gemma", task="CausalLM")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    task = (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
        "prediction of either 'Yes' or 'No'."
    )

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    end = [*encode("\n"), *encode(task)]
    ids, expected = [], []
    for query, document in PAIRS:
        both = [tokenizer.bos_token_id, *encode(f"A: {query}")[: (length - len(end)) * 3 // 4], *encode("\n")]
        ids.append([*[*both, *encode(f"B: {document}")][: length - len(end)], *end])
        with torch.no_grad():
            expected.append(model(torch.tensor([ids[-1]])).logits[0, -1, tokenizer.convert_tokens_to_ids("Yes")].item())
    assert any(len(one) == length for one in ids)
    check(folder, PAIRS, ids, expected, max_length=length)


def test_rankllama_equals_its_classifier_on_pairs(tmp_path: Path) -> None:
    tokenizer = make_llama_bpe()
    folder = build("Llama", tokenizer, tmp_path / "rankllama-v1-7b", max_position_embeddings=1024)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [tokenizer(f"query: {query}", f"document: {document}")["input_ids"] for query, document in PAIRS]
    with torch.no_grad():
        expected = [model(torch.tensor([one])).logits[0, 0].item() for one in ids]
    check(folder, PAIRS, ids, expected, max_length=1024)


def test_nemotron_equals_llama_that_sees_both_ways(tmp_path: Path) -> None:
    plain = write_nemotron(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    model = AutoModelForSequenceClassification.from_pretrained(plain, dtype=torch.float32).eval()
    folder = tmp_path / "model"
    ids = [tokenizer(f"question:{query} \n \n passage:{document}")["input_ids"] for query, document in PAIRS]
    expected = []
    for one in ids:
        with torch.no_grad():
            mask = torch.zeros(1, 1, len(one), len(one))
            hidden = model.model(torch.tensor([one]), attention_mask=mask).last_hidden_state
            expected.append(model.score(hidden.mean(dim=1))[0, 0].item())
    check(folder, PAIRS, ids, expected, max_length=1024)


def test_jina_v2_equals_the_same_weights_as_plain_xlm_roberta(tmp_path: Path) -> None:
    plain = write_jina(tmp_path / "model")
    expected, ids = predict(plain, PAIRS, 160)
    check(tmp_path / "model", PAIRS, ids, expected.tolist(), max_length=160)


def test_gte_multilingual_equals_its_architecture(tmp_path: Path) -> None:
    folder, length = write_gte(tmp_path / "model"), 160
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(*map(list, zip(*PAIRS, strict=True)), truncation=True, max_length=length)["input_ids"]
    expected = [compute_gte(folder, one) for one in ids]
    check(folder, PAIRS, ids, expected, max_length=length)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "logn_attention_scale": True}))
    with pytest.raises(ModelError, match="differs from gte-multilingual-reranker's in logn_attention_scale"):
        load_reranker_model(str(folder))


def test_monot5_equals_true_less_false_of_the_first_token(tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "monot5-base-msmarco")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    pairs = [pair for pair in PAIRS if len(pair[1]) < 900]
    ids = [tokenizer(f"Query: {query} Document: {document} Relevant:")["input_ids"] for query, document in pairs]
    true, false = (tokenizer.convert_tokens_to_ids(f"\u2581{word}") for word in ("true", "false"))
    expected = []
    for one in ids:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([one]), decoder_input_ids=torch.tensor([[1]])).logits[0, 0]
        expected.append((logits[true] - logits[false]).item())
    check(folder, pairs, ids, expected, max_length=4096)
    with pytest.raises(ModelError, match="--engine transformers"):
        Reranker(str(folder), dtype="float32")
