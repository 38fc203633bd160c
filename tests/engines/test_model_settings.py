"""Settings of a model that change its logits, and are read by one library alone: followed, or refused with the reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import PAIRS, build, declare, make_bpe, make_unigram, make_wordpiece, predict, write_nemotron

from rerank_actor import Reranker
from rerank_actor.engines.families.description import ScoreScale
from rerank_actor.engines.families.embedding import EmbeddingRequest
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
MODERNBERT = {"architectures": ["ModernBertForSequenceClassification"], "model_type": "modernbert", "num_labels": 1}
GEMMA = {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}
GEMMA2 = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "model"
    tokenizer = make_bpe()
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    ids = [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    return declare(folder, "qwen3", head={"true_token_id": ids[0], "false_token_id": ids[1]})


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("Bert", make_wordpiece(), tmp_path_factory.mktemp("classic") / "model", type_vocab_size=2)


def change(folder: Path, file: str, **settings: Any) -> None:
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | settings))


@pytest.mark.parametrize(
    ("config", "unread"),
    [
        ({**QWEN3, "attention_bias": True}, "attention_bias True"),
        ({**QWEN3, "attention_bias": False}, None),
        ({**MODERNBERT, "classifier_activation": "relu"}, "classifier_activation relu"),
        ({**MODERNBERT, "classifier_activation": "gelu"}, None),
        ({**GEMMA, "hidden_act": "gelu", "hidden_activation": None}, None),
        ({**GEMMA, "hidden_activation": "gelu"}, "hidden_activation gelu"),
        ({**GEMMA, "hidden_act": "silu"}, "hidden_act silu"),
        ({**GEMMA, "attention_bias": True}, "attention_bias True"),
        ({**GEMMA, "is_causal": False}, "is_causal False"),
        (GEMMA2, "final_logit_softcapping"),
        ({**GEMMA2, "final_logit_softcapping": None}, None),
    ],
)
def test_setting_that_vllm_does_not_follow_leaves_transformers(
    bare: Path, tmp_path: Path, config: dict[str, Any], unread: str | None
) -> None:
    folder = Path(shutil.copytree(bare, tmp_path / "model"))
    (folder / "config.json").write_text(json.dumps(config))
    if config["architectures"] == MODERNBERT["architectures"]:
        (folder / "modules.json").unlink()
        (folder / "chat_template.jinja").unlink()
    model = load_reranker_model(str(folder), weights=False)
    model.refuse_engine("transformers")
    if unread is None:
        model.refuse_engine("vllm")
        return
    with pytest.raises(ModelError, match=f"does not follow {unread}.*--engine transformers"):
        model.refuse_engine("vllm")


def test_decoder_that_sees_both_ways_is_left_to_transformers(bare: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bare, tmp_path / "model"))
    change(folder, "config.json", **QWEN3, is_causal=False)
    with pytest.raises(ModelError, match=r"is_causal False.*--engine transformers"):
        load_reranker_model(str(folder), weights=False).refuse_engine("vllm")


def test_embedding_model_with_a_setting_that_vllm_does_not_follow_leaves_transformers(
    bare: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bare, tmp_path / "model"))
    change(folder, "config.json", **QWEN3, attention_bias=True)
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    change(folder / "1_Pooling", "config.json", embedding_dimension=8, pooling_mode="lasttoken")
    (folder / "sentence_bert_config.json").unlink()
    model = load_reranker_model(str(folder), weights=False, embedding=EmbeddingRequest())
    with pytest.raises(ModelError, match="attention_bias True"):
        model.refuse_engine("vllm")


def test_temperature_of_a_nemotron_divides_its_logits_in_the_score(tmp_path: Path) -> None:
    write_nemotron(tmp_path / "model")
    change(tmp_path / "model", "config.json", temperature=0.2)
    assert load_reranker_model(str(tmp_path / "model")).description.score == ScoreScale(0.2)
    change(tmp_path / "model", "config.json", temperature=0)
    with pytest.raises(ModelError, match="temperature 0, by which logits cannot be divided"):
        load_reranker_model(str(tmp_path / "model"))
    change(tmp_path / "model", "config.json", temperature=1.0, pooling="cls")
    with pytest.raises(ModelError, match=r"pooling cls.*mean of its tokens alone"):
        load_reranker_model(str(tmp_path / "model"))


@pytest.mark.parametrize("prompt", ["Given a question: ", "two\nlines [SEP] "])
def test_default_prompt_of_a_pair_stands_before_the_query(tmp_path: Path, classic: Path, prompt: str) -> None:
    from sentence_transformers import CrossEncoder

    folder = tmp_path / "model"
    CrossEncoder(str(classic), device="cpu", prompts={"task": prompt}, default_prompt_name="task").save_pretrained(
        str(folder)
    )
    expected, _ = predict(folder, PAIRS, 160)
    with Reranker(str(folder), engine="transformers", dtype="float32", max_length=160, check_scores=True) as found:
        assert np.abs(found.logits(PAIRS) - expected).max() <= 1e-5 * np.std(expected)
    plain, _ = predict(classic, PAIRS, 160)
    assert np.abs(plain - expected).max() > 1e-3


def test_default_prompt_that_has_no_place_is_refused(tmp_path: Path, classic: Path) -> None:
    folder = Path(shutil.copytree(classic, tmp_path / "model"))
    change(folder, "config_sentence_transformers.json", prompts={"task": "Given "}, default_prompt_name="task")
    with pytest.raises(ModelError, match=r"names a default prompt.*--model-description FILE"):
        load_reranker_model(str(folder), weights=False)  # sentence-transformers reads it beside a modules.json alone


def test_tokenizer_that_cuts_beginnings_is_refused(tmp_path: Path, classic: Path) -> None:
    folder = Path(shutil.copytree(classic, tmp_path / "model"))
    change(folder, "tokenizer_config.json", truncation_side="left")
    with pytest.raises(ModelError, match="truncation_side left"):
        load_tokenizer_json(load_reranker_model(str(folder), weights=False))


def test_length_of_a_pair_is_that_of_its_tokenizer(tmp_path: Path) -> None:
    folder = build("XLMRoberta", make_unigram(), tmp_path / "model", type_vocab_size=1, pad_token_id=1)
    change(folder, "tokenizer_config.json", model_max_length=96)
    assert load_reranker_model(str(folder), weights=False).default_length == 96
    change(folder, "tokenizer_config.json", model_max_length=10**30)
    assert load_reranker_model(str(folder), weights=False).default_length == 510


def test_zerank_runs_without_the_code_that_it_names(tmp_path: Path) -> None:
    folder = build("Qwen3", make_bpe(), tmp_path / "zerank-2", task="CausalLM", tie_word_embeddings=True)
    named = Path(shutil.copytree(folder, tmp_path / "zerank-1-small"))
    change(named, "config.json", auto_map={"AutoConfig": "modeling_zeranker.ZEConfig"})
    logits = []
    for one in (folder, named):
        with Reranker(str(one), engine="transformers", dtype="float32", max_length=440) as found:
            logits.append(found.logits(PAIRS[:6]))
    assert logits[0].tolist() == logits[1].tolist()
    change(folder, "config.json", auto_map={"AutoConfig": "modeling_zeranker.ZEConfig"})
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load_reranker_model(str(folder), weights=False)
