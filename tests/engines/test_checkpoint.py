"""Checkpoints before anything starts: what is refused, with which words, and that both engines load what was looked at."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import write_chain, write_jina, write_nemotron
from safetensors.torch import load_file, save_file
from sample_model import write_sample_model
from scoring_in_process import score_here
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from rerank_actor import Reranker
from rerank_actor.engines.checkpoint.coverage import check_coverage
from rerank_actor.engines.checkpoint.files import list_model_files
from rerank_actor.engines.checkpoint.folder import make_loaded_folder
from rerank_actor.engines.checkpoint.weights import choose_weights, read_headers
from rerank_actor.engines.families.description import LabelHead, ModelDescription, Runtime
from rerank_actor.engines.model import check_weights, fetch_weights, load_reranker_model
from rerank_actor.engines.template import CROSS_ENCODER_WITH_SEGMENTS
from rerank_actor.errors import ModelError
from rerank_actor.job import ScoreJob
from rerank_actor.scoring.preflight import prepare_job

SIZES: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "max_positions": 512}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def sound(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    return write_sample_model(folder, tie_word_embeddings=request.param, **SIZES)


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(**changes: Any) -> Spoil:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def without(*tensors: str) -> Spoil:
    return lambda folder: change_weights(folder, lambda weights: [weights.pop(tensor) for tensor in tensors])


def with_tensor(name: str, *shape: int) -> Spoil:
    return lambda folder: change_weights(folder, lambda weights: weights.update({name: torch.zeros(shape)}))


def write_shards(folder: Path, *, lost: int = 0) -> None:
    """Spread a model over four files and an index, and lose some of them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(weights), {}
    for number in range(4):
        file = f"model-{number + 1:05}-of-00004.safetensors"
        shard = {name: weights[name].contiguous() for name in names[number::4]}
        weight_map |= dict.fromkeys(shard, file)
        if number >= lost:
            save_file(shard, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def leave_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def write_adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3-Reranker-0.6B"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(4, 64)}, folder / "adapter_model.safetensors")


def write_adapter_alone(folder: Path) -> None:
    write_adapter(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()


OTHER_SHAPE = "model.layers.1.mlp.down_proj.weight"
SPOILT: dict[str, tuple[Spoil, str]] = {
    "a layer lost": (
        lambda folder: change_weights(
            folder, lambda weights: [weights.pop(name) for name in list(weights) if "layers.1." in name]
        ),
        r"lack model\.layers\.1\.\S+ .*and 8 more tensors, which Qwen3ForCausalLM needs",
    ),
    "one matrix lost": (without("model.layers.0.self_attn.q_proj.weight"), r"lack model\.layers\.0\.self_attn\.q_proj"),
    "a norm lost": (without("model.norm.weight"), r"lack model\.norm\.weight"),
    "a layer too many": (
        change_config(num_hidden_layers=1, layer_types=["full_attention"]),
        r"hold model\.layers\.1\.",
    ),
    "a layer too few": (
        change_config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        r"lack model\.layers\.2\.",
    ),
    "another shape": (
        lambda folder: change_weights(folder, lambda weights: weights.update({OTHER_SHAPE: torch.zeros(64, 191)})),
        rf"{OTHER_SHAPE} is \[64, 191\] in the weight files and \[64, 192\] by config.json",
    ),
    "a bias": (
        with_tensor("model.layers.0.self_attn.q_proj.bias", 128),
        r"hold model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "a classifier without its head": (
        change_config(architectures=["Qwen3ForSequenceClassification"], id2label={"0": "yes"}),
        r"lack score\.weight, which Qwen3ForSequenceClassification needs",
    ),
    "vLLM's overrides": (
        change_config(
            architectures=["Qwen3ForSequenceClassification"], id2label={"0": "yes"}, classifier_from_token=["no", "yes"]
        ),
        r"settings that only vLLM follows \(classifier_from_token\)",
    ),
    "vLLM's overrides and two labels": (
        change_config(architectures=["Qwen3ForSequenceClassification"], is_original_qwen3_reranker=True),
        r"settings that only vLLM follows \(is_original_qwen3_reranker\)",
    ),
    "cut short": (
        cut_short,
        r"model\.safetensors has \S+ bytes where its header speaks of \S+; it is damaged or cut short",
    ),
    "no header": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
        "no safetensors file, or is cut short",
    ),
    "no JSON": (lambda folder: (folder / "model.safetensors").write_bytes(bytes(9000)), "is no safetensors file"),
    "a pointer": (
        lambda folder: (folder / "model.safetensors").write_text(POINTER),
        "model.safetensors is a Git LFS pointer",
    ),
    "a pointer as tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text(POINTER),
        "tokenizer.json is a Git LFS pointer",
    ),
    "half of the shards": (lambda folder: write_shards(folder, lost=2), "2 of the 4 files that .* names are missing"),
    "a pickle": (leave_pickle, "only pytorch_model.bin, and loading that could run code; convert it"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights as safetensors"),
    "weights by another name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "consolidated.safetensors"),
        "consolidated.safetensors has none of the names that Transformers loads",
    ),
    "an adapter alone": (write_adapter_alone, "a LORA adapter .*merge it into Qwen/Qwen3-Reranker-0.6B"),
    "an adapter beside": (write_adapter, "a LORA adapter .*merge it"),
    "quantised by a library": (
        change_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"quantised \(bitsandbytes\), which vLLM cannot read",
    ),
    "quantised by a library that does not say so": (
        change_config(quantization_config={"group_size": 64, "bits": 4}),
        r"quantised \(without a quant_method\), which vLLM cannot read",
    ),
    "float8 without a word": (
        lambda folder: change_weights(
            folder, lambda weights: weights.update({OTHER_SHAPE: weights[OTHER_SHAPE].to(torch.float8_e4m3fn)})
        ),
        "is stored as F8_E4M3, which are no plain weights",
    ),
    "quantised without a word": (
        lambda folder: change_weights(
            folder, lambda weights: weights.update({OTHER_SHAPE: torch.zeros(64, 192, dtype=torch.int8)})
        ),
        "is stored as I8, which are no plain weights",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_folder_that_is_not_the_model_is_refused_in_a_sentence(sound: Path, tmp_path: Path, kind: str) -> None:
    spoil, words = SPOILT[kind]
    folder = copy(sound, tmp_path / "model")
    spoil(folder)
    with pytest.raises(ModelError, match=words) as refused:
        load_reranker_model(str(folder))
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "compressed-tensors"])
def test_quantised_weights_are_for_vllm_alone(sound: Path, tmp_path: Path, method: str) -> None:
    folder = copy(sound, tmp_path / "model")
    change_config(quantization_config={"quant_method": method})(folder)
    if method != "compressed-tensors":
        with pytest.raises(ModelError, match=rf"quantised \({method}\), and its files hold plain ones"):
            load_reranker_model(str(folder))
    change_weights(folder, lambda weights: weights.update({OTHER_SHAPE: weights[OTHER_SHAPE].to(torch.float8_e4m3fn)}))
    model = load_reranker_model(str(folder))
    assert model.quantization == method
    model.refuse_engine("vllm")
    with pytest.raises(ModelError, match=rf"quantised already \({method}\); leave out --quantization"):
        model.refuse_engine("vllm", "fp8_per_channel")
    with pytest.raises(ModelError, match=rf"quantised \({method}\), .*give --engine vllm, or take a copy"):
        model.refuse_engine("transformers")


def test_head_is_needed_where_it_is_not_the_embedding(tmp_path: Path) -> None:
    tied = write_sample_model(tmp_path / "tied", **SIZES)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load_reranker_model(str(tied))
    change_config(tie_word_embeddings=False)(tied)
    with pytest.raises(ModelError, match=r"lack lm_head\.weight"):
        load_reranker_model(str(tied))
    untied = write_sample_model(tmp_path / "untied", tie_word_embeddings=False, **SIZES)
    change_config(tie_word_embeddings=True)(untied)
    with pytest.raises(ModelError, match=r"lm_head\.weight and model\.embed_tokens\.weight differ"):
        load_reranker_model(str(untied))


def test_tied_model_that_stores_its_head_too_is_taken(tmp_path: Path) -> None:
    folder = write_sample_model(tmp_path / "model", **SIZES)
    change_weights(
        folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    )
    load_reranker_model(str(folder))


def test_tensors_that_no_model_needs_are_let_alone(sound: Path, tmp_path: Path) -> None:
    folder = copy(sound, tmp_path / "model")
    with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", 16)(folder)
    load_reranker_model(str(folder))


ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
CLASSIFIERS: dict[str, tuple[Any, Any, str]] = {
    "bert": (BertForSequenceClassification, BertConfig(**ENCODER, num_labels=1), "bert.pooler.dense.weight"),
    "xlm-roberta": (
        XLMRobertaForSequenceClassification,
        XLMRobertaConfig(**ENCODER, num_labels=1),
        "classifier.out_proj.weight",
    ),
    "modernbert": (
        ModernBertForSequenceClassification,
        ModernBertConfig(**ENCODER, num_labels=1, pad_token_id=0, cls_token_id=1, sep_token_id=2),
        "head.norm.weight",
    ),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifier_is_covered_by_its_own_file_and_not_by_one_without_a_tensor(tmp_path: Path, kind: str) -> None:
    model, config, tensor = CLASSIFIERS[kind]
    model(config).save_pretrained(tmp_path)
    check_folder(tmp_path)
    with_tensor("cls.predictions.bias", 64)(tmp_path)  # a base checkpoint's head
    check_folder(tmp_path)
    without(tensor)(tmp_path)
    with pytest.raises(ModelError, match=f"lack {tensor}"):
        check_folder(tmp_path)


def check_folder(folder: Path) -> None:
    files = list_model_files(str(folder), folder, None)
    weights = read_headers(str(folder), files, choose_weights(str(folder), files, {}))
    check_coverage(str(folder), folder, weights, "AutoModelForSequenceClassification")


def test_names_of_old_checkpoints_are_those_that_transformers_renames(tmp_path: Path) -> None:
    BertForSequenceClassification(BertConfig(**ENCODER, num_labels=1)).save_pretrained(tmp_path)

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "LayerNorm" in name]:
            weights[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta")] = (
                weights.pop(name)
            )

    change_weights(tmp_path, rename)
    check_folder(tmp_path)


@pytest.mark.parametrize("others", ["consolidated.safetensors", "model-00001-of-00001.safetensors"])
def test_other_weights_beside_are_not_loaded(sound: Path, tmp_path: Path, others: str) -> None:
    folder = copy(sound, tmp_path / "model")
    changed = {name: tensor * 2 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(changed, folder / others, metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(changed, others)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = fetch_weights(load_reranker_model(str(folder)))
    assert [path.name for path in loaded.glob("*.safetensors*")] == ["model.safetensors"]
    assert {path.name for path in loaded.iterdir()} >= {"config.json", "tokenizer.json"}
    assert fetch_weights(load_reranker_model(str(folder))) == loaded
    with (
        Reranker(str(folder), "transformers", dtype="float32") as found,
        Reranker(str(sound), "transformers", dtype="float32") as expected,
    ):
        assert found.logits([("q", "d")]) == expected.logits([("q", "d")])


def test_folder_without_others_is_loaded_where_it_lies(sound: Path) -> None:
    assert fetch_weights(load_reranker_model(str(sound))) == sound


def test_shards_of_an_index_are_loaded_as_the_whole(sound: Path, tmp_path: Path) -> None:
    folder = copy(sound, tmp_path / "model")
    write_shards(folder)
    files = list_model_files(str(folder), folder, None)
    weights = choose_weights(str(folder), files, {})
    assert len(weights.files) == 4 and make_loaded_folder(folder, weights) == folder
    whole = Qwen3ForCausalLM.from_pretrained(sound).state_dict()
    spread = Qwen3ForCausalLM.from_pretrained(fetch_weights(load_reranker_model(str(folder)))).state_dict()
    assert all(torch.equal(whole[name], spread[name]) for name in whole)
    np.testing.assert_equal(set(whole), set(spread))


def test_model_on_s3_is_looked_at_without_copying_its_weights(sound: Path, tmp_path: Path, s3: Any) -> None:
    folder = copy(sound, tmp_path / "model")
    s3.put_folder(folder, "model")
    load_reranker_model(s3.uri("model"))
    without("model.norm.weight")(folder)
    s3.put_folder(folder, "model")
    with pytest.raises(ModelError, match=r"lack model\.norm\.weight"):
        load_reranker_model(s3.uri("model"))


@pytest.mark.parametrize(("written", "expected"), [(128, 128), (1024, 512), (None, 512)])
def test_length_of_sentence_transformers_is_the_default_and_no_limit(
    sound: Path, tmp_path: Path, written: int | None, expected: int
) -> None:
    folder = copy(sound, tmp_path / "model")
    if written is not None:
        (folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": written, "do_lower_case": False})
        )
    model = load_reranker_model(str(folder))
    assert (model.default_length, model.max_positions) == (expected, 512)
    assert not (fetch_weights(model) / "sentence_bert_config.json").exists(), "vLLM takes no more tokens than it says"


def test_weights_are_looked_at_only_where_something_is_left_to_score(tmp_path: Path) -> None:
    folder = write_sample_model(tmp_path / "model", **SIZES)
    (tmp_path / "in.jsonl").write_text('{"query": "q", "document": "d"}\n')
    source, output = [str(tmp_path / "in.jsonl")], str(tmp_path / "out")
    job = ScoreJob(input=source, output=output, model=str(folder), engine="transformers", dtype="float32")
    score_here(job)
    check_weights.cache_clear()
    prepared = prepare_job(job)
    assert prepared.parts and check_weights.cache_info().misses == 0, "torch is imported to find that nothing is left"
    for part in Path(output).glob("part-*"):
        part.unlink()
    prepare_job(job)
    assert check_weights.cache_info().misses == 1
    without("model.norm.weight")(folder)
    with pytest.raises(ModelError, match=r"lack model\.norm\.weight"):
        prepare_job(job.model_copy(update={"overwrite": True}))


def test_reason_in_other_words_leaves_a_fingerprint_alone() -> None:
    template = CROSS_ENCODER_WITH_SEGMENTS
    one, other, real = (
        ModelDescription(template.name, template, LabelHead(), runtime)
        for runtime in (Runtime("", "no such class"), Runtime("", "no class"), Runtime("BertForSequenceClassification"))
    )
    assert one.digest == other.digest != real.digest


def spoil_module(folder: Path, place: str, tensor: str) -> None:
    weights = load_file(folder / place / "model.safetensors")
    del weights[tensor]
    save_file(weights, folder / place / "model.safetensors", metadata={"format": "pt"})


CONVERTED: dict[str, tuple[Callable[[Path], object], dict[str, tuple[Spoil, str]]]] = {
    "ettin": (
        write_chain,
        {
            "a layer lost": (without("layers.1.mlp.Wi.weight"), r"lack model\.layers\.1\.mlp\.Wi"),
            "a layer too few": (
                change_config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
                r"lack model\.layers\.2\.",
            ),
            "a head lost": (
                lambda folder: spoil_module(folder, "4_Dense", "linear.weight"),
                r"4_Dense/model\.safetensors lacks linear\.weight",
            ),
            "a module lost": (
                lambda folder: (folder / "2_Dense/model.safetensors").unlink(),
                r"needs 2_Dense/model\.safetensors, which is not there",
            ),
        },
    ),
    "jina-v2": (
        write_jina,
        {
            "a layer lost": (
                without("roberta.encoder.layers.1.mixer.Wqkv.weight"),
                r"lack roberta\.encoder\.layer\.1\.attention\.self\.key\.weight.* and 1 more|query\.weight",
            ),
            "a head lost": (without("classifier.out_proj.weight"), r"lack classifier\.out_proj\.weight"),
            "another width": (change_config(hidden_size=32), r"by config\.json; they are not of one model"),
        },
    ),
    "nemotron": (
        write_nemotron,
        {
            "a layer lost": (without("model.layers.1.mlp.up_proj.weight"), r"lack model\.layers\.1\.mlp\.up_proj"),
            "a head lost": (without("score.weight"), r"lack score\.weight"),
        },
    ),
}


@pytest.mark.parametrize("family", CONVERTED)
def test_converted_family_is_looked_at_before_it_is_converted(family: str, tmp_path: Path) -> None:
    make, faults = CONVERTED[family]
    make(tmp_path / "sound")
    load_reranker_model(str(tmp_path / "sound"))
    for what, (spoil, words) in faults.items():
        folder = copy(tmp_path / "sound", tmp_path / what)
        spoil(folder)
        with pytest.raises(ModelError, match=words) as refused:
            load_reranker_model(str(folder))
        assert "\n" not in str(refused.value)


def test_modules_of_a_chain_on_s3_are_looked_at_where_they_lie(tmp_path: Path, s3: Any) -> None:
    folder = write_chain(tmp_path / "model")
    s3.put_folder(folder, "chain")
    load_reranker_model(s3.uri("chain"))
    spoil_module(folder, "3_LayerNorm", "norm.bias")
    s3.put_folder(folder, "chain")
    with pytest.raises(ModelError, match=r"3_LayerNorm/model\.safetensors lacks norm\.bias"):
        load_reranker_model(s3.uri("chain"))
