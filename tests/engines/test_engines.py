"""Engines without vLLM: Transformers against the model card's recipe, cross-encoders, the fake, and refusals at the start."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from safetensors.torch import load_file, save_file
from sample_model import write_sample_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from rerank_actor import Reranker
from rerank_actor.benchmark.sample import load_sample_rows, train_sample_tokenizer
from rerank_actor.engines.families.description import LabelHead
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.errors import EngineStartError, InputError, ModelError

ROWS = [row for row in load_sample_rows() if isinstance(row["query"], str) and isinstance(row["document"], str)]
PAIRS = [(row["query"], row["document"]) for row in ROWS[::7]] + [("q", ""), ("", "d"), ("7", " 7 ")]
SIZES: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "max_positions": 512}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_sample_tokenizer(text for row in ROWS for text in (row["query"], row["document"]))


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return write_sample_model(tmp_path_factory.mktemp("small") / "model", tokenizer=tokenizer, **SIZES)


@pytest.fixture(scope="module")
def reranker(small_folder: Path) -> Iterator[Reranker]:
    with Reranker(str(small_folder), engine="transformers", dtype="float32") as found:
        yield found


def change_weights(folder: Path, change: Any) -> str:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(("seed", "tied"), [(0, True), (1, True), (2, False), (3, False)])
def test_transformers_scores_equal_the_card(tmp_path: Path, tokenizer: Any, seed: int, tied: bool) -> None:
    folder = write_sample_model(
        tmp_path / "model", seed=seed, tie_word_embeddings=tied, spread=4.0 + seed, tokenizer=tokenizer, **SIZES
    )
    pairs = [*PAIRS, ("long", "word " * 900)]
    scores, logits = reference.score(folder, pairs, max_length=512)
    with Reranker(str(folder), engine="transformers", dtype="float32") as found:
        assert (found.score(pairs).dtype, found.logits(pairs).dtype) == (np.float32, np.float32)
        assert np.abs(found.score(pairs) - scores).max() < 1e-5
        assert np.abs(found.logits(pairs) - logits).max() < 1e-4
    assert np.std(logits) > 0.3


def test_transformers_score_is_the_same_in_any_batch_and_order(reranker: Reranker) -> None:
    pairs = [*PAIRS, *((f"q{i % 5}", "word " * i) for i in range(60))]
    whole = reranker.score(pairs)
    order = np.random.default_rng(0).permutation(len(pairs))
    assert np.abs(reranker.score([pairs[index] for index in order]) - whole[order]).max() <= 1e-6
    assert np.abs(np.concatenate([reranker.score([pair]) for pair in pairs]) - whole).max() <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "auto"])
def test_check_of_a_sound_model_passes_and_says_how_far_off_it_is(small_folder: Path, dtype: str) -> None:
    with Reranker(str(small_folder), engine="transformers", dtype=dtype, check_scores=True) as found:
        assert found.check.dtype == ("float16" if dtype == "auto" else dtype)
        assert found.check.reference_logits is not None and found.check.max_difference is not None
        assert len(found.check.logits) == len(found.check.reference_logits) == 8
        gap = np.abs(np.subtract(found.check.logits, found.check.reference_logits)).max()
        assert found.check.max_difference == pytest.approx(gap)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_start_with_nan_in_the_weights_is_refused(tmp_path: Path, tokenizer: Any, name: str) -> None:
    folder = write_sample_model(tmp_path / "model", tokenizer=tokenizer, **SIZES)
    for dtype in ("float32", "auto"):
        place = change_weights(folder, lambda weights: weights[name].view(-1)[3:4].fill_(float("nan")))
        with pytest.raises(EngineStartError, match=f"{place}.*not finite"):
            Reranker(place, engine="transformers", dtype=dtype)


def test_start_with_equal_rows_of_yes_and_no_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    folder = write_sample_model(tmp_path / "model", tokenizer=tokenizer, **SIZES)
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    place = change_weights(
        folder,
        lambda weights: weights["model.embed_tokens.weight"][yes].copy_(weights["model.embed_tokens.weight"][no]),
    )
    with pytest.raises(EngineStartError, match="same logit"):
        Reranker(place, engine="transformers", dtype="float32")


def test_start_in_auto_dtype_takes_bfloat16_where_float16_is_not_finite(tmp_path: Path, tokenizer: Any) -> None:
    folder = write_sample_model(tmp_path / "model", tokenizer=tokenizer, **SIZES)
    place = change_weights(folder, lambda weights: weights["model.layers.0.mlp.down_proj.weight"].mul_(1e7))
    with pytest.raises(EngineStartError, match="not finite"):
        Reranker(place, engine="transformers", dtype="float16")
    with Reranker(place, engine="transformers") as found:
        assert found.check.dtype == "bfloat16"
        assert np.isfinite(found.logits(PAIRS)).all()


def test_start_with_weights_missing_or_cut_short_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    weights = write_sample_model(tmp_path / "model", tokenizer=tokenizer, **SIZES) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=str(tmp_path / "model")):
        Reranker(str(tmp_path / "model"), engine="transformers")
    weights.unlink()
    with pytest.raises(ModelError, match=str(tmp_path / "model")):
        Reranker(str(tmp_path / "model"), engine="transformers")


def test_cross_encoder_of_qwen_kind_gives_its_raw_output(tmp_path: Path, tokenizer: Any) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 32,
    }
    config = Qwen3Config(vocab_size=tokenizer.get_vocab_size(), num_key_value_heads=1, num_labels=1, **sizes)
    assert config.pad_token_id is None  # a batch must not need one
    model = Qwen3ForSequenceClassification(config).eval()
    folder = tmp_path / "Qwen3-Reranker-seq-cls"
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    pairs = [*PAIRS, *PAIRS[:3]]
    with torch.no_grad():
        expected = [model(torch.tensor([reference.encode(fast, *pair)])).logits[0, 0].item() for pair in pairs]
    with Reranker(str(folder), engine="transformers", dtype="float32", check_scores=True) as found:
        assert found.model.description.head == LabelHead()
        assert np.abs(found.logits(pairs) - expected).max() < 1e-5
        assert np.abs(found.score(pairs) - 1 / (1 + np.exp(-np.array(expected)))).max() < 1e-6


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A small cross-encoder of the XLM-R kind: its folder, its tokenizer and its model."""
    folder = tmp_path_factory.mktemp("classic")
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    own = Tokenizer(models.Unigram())
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [text for pair in PAIRS for text in pair if text.isascii()]  # other letters become <unk>
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=names, unk_token="<unk>", show_progress=False)
    own.train_from_iterator(texts, trainer)
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    ends = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", unk_token="<unk>", **ends)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    positions = {"max_position_embeddings": 66, "type_vocab_size": 1, "initializer_range": 0.3}
    config = XLMRobertaConfig(vocab_size=own.get_vocab_size(), num_labels=1, pad_token_id=1, **sizes, **positions)
    model = XLMRobertaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return folder, fast, model


def test_cross_encoder_ids_equal_its_tokenizer_on_pairs(classic: tuple[Path, Any, Any]) -> None:
    folder, fast, _ = classic
    model = load_reranker_model(str(folder))
    assert model.max_positions == 64
    encoder = PairEncoder(
        load_tokenizer_json(model), template=model.description.template, instruction="", max_length=64
    )
    pairs = [(query[:20], document) for query, document in PAIRS]
    prompts = encoder.encode(*zip(*pairs, strict=True))
    columns = [list(column) for column in zip(*pairs, strict=True)]
    expected = fast(*columns, truncation="only_second", max_length=64)["input_ids"]
    assert prompts.token_ids.to_pylist() == expected
    assert (prompts.truncated_tokens > 0).any()
    assert prompts.truncated_tokens.tolist() == [max(0, len(ids) - 64) for ids in fast(*columns)["input_ids"]]


def test_cross_encoder_of_classic_kind_gives_its_raw_output(classic: tuple[Path, Any, Any]) -> None:
    folder, fast, model = classic
    pairs = [(query[:20], document) for query, document in PAIRS]
    options = {"truncation": "only_second", "max_length": 64, "return_tensors": "pt"}
    with torch.no_grad():
        expected = np.array([model(**fast([query], [text], **options)).logits[0, 0].item() for query, text in pairs])
    with Reranker(str(folder), engine="transformers", dtype="float32") as found:
        assert np.abs(found.logits(pairs) - expected).max() < 1e-5
    assert np.std(expected) > 1e-3


def test_fake_engine_is_bit_identical_in_any_batch_and_order() -> None:
    pairs = [*PAIRS, *PAIRS[:3]]
    order = np.random.default_rng(0).permutation(len(pairs))
    with Reranker(engine="fake") as first, Reranker(engine="fake") as second:
        whole = first.logits(pairs)
        assert np.array_equal(second.logits([pairs[index] for index in order]), whole[order])
        assert np.array_equal(np.concatenate([second.logits([pair]) for pair in pairs]), whole)
        assert np.array_equal(whole[-3:], whole[:3])
        assert len(set(whole.tolist())) == len(set(pairs))
        assert not np.array_equal(first.logits(pairs, "another task"), whole)
    with pytest.raises(ModelError, match="seconds_per_prompt"):
        Reranker(engine="fake", engine_args={"speed": 1})


@pytest.mark.parametrize("engine", ["transformers", "fake"])
def test_reranker_gives_scores_in_order_and_an_instruction_changes_them(small_folder: Path, engine: Any) -> None:
    pairs = [(query, document) for document in ("a", "b", "") for query in ("one", "two", "three")]
    options = {"engine": engine, "dtype": "float32"}
    with (
        Reranker(str(small_folder), **options) as found,
        Reranker(str(small_folder), instruction="i", **options) as other,
    ):
        logits = found.logits(pairs)
        assert np.allclose(logits, np.concatenate([found.logits([pair]) for pair in pairs]), atol=1e-5)
        assert np.allclose(found.score(pairs), 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-7)
        assert np.array_equal(found.logits(pairs, instruction="i"), other.logits(pairs))
        assert not np.allclose(found.logits(pairs, "i"), logits)
        assert (found.score([]).shape, found.score([]).dtype) == ((0,), np.float32)


def test_reranker_bad_pairs_are_refused_by_position_without_their_text(reranker: Reranker) -> None:
    pairs: list[Any] = [("q", "d"), (None, "d"), ("q", 7), ("secret " * 900, "d"), ("\ud800", "d")]
    with pytest.raises(InputError) as caught:
        reranker.score(pairs)
    assert caught.value.where["pairs"] == [1, 2, 3, 4]
    assert "pair 1: query is null" in str(caught.value) and "secret" not in str(caught.value)
    assert len(reranker.score(pairs[:1])) == 1


def test_reranker_closed_by_hand_inside_its_context_ends_well(small_folder: Path) -> None:
    with Reranker(str(small_folder), engine="transformers", dtype="float32") as found:
        found.close()
    with pytest.raises(ModelError, match="sglang"):
        Reranker(str(small_folder), engine="sglang")  # type: ignore[arg-type]
