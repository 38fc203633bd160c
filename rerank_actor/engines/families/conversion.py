"""A model folder in the form that engines load, where its own form needs code of its own or modules of another library.

Takes a folder with weights and says in a folder beside it the same model in the words of a class of Transformers: another
`config.json`, tensors under other names, a chain of modules as the head of a classifier. No weight changes its value, but
for the bias of a norm that is folded into the layer after it. Knows nothing of engines.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rerank_actor import storage
from rerank_actor.engines.checkpoint.files import ModelFiles, list_module_files
from rerank_actor.engines.checkpoint.folder import read_quantization
from rerank_actor.engines.checkpoint.weights import (
    INDEX_SUFFIX,
    SAFETENSORS,
    SINGLE_FILE,
    Weights,
    read_headers,
)
from rerank_actor.engines.families.description import Loading
from rerank_actor.engines.families.sentence_transformers import read_json
from rerank_actor.errors import ModelError

TORCH_NORM_EPS = 1e-5  # of the norm in a chain of modules
OWN_CODE = ("auto_map", "_name_or_path")
CHANGING = ("renamed_xlm_roberta", "folded")  # ways of loading in which tensors get other names


def convert_model(name: str, folder: Path, weights: Weights, loading: Loading) -> Path:
    """Return a folder with the model as a class of Transformers; made once on a machine.

    Args:
        name: of the model, for messages.
        folder: with its files.
        weights: which of its weight files are loaded.
        loading: how its weights become a model.

    Raises:
        ModelError: its files are not those of such a model.
    """
    files = [path for path in (*sorted(folder.glob("*")), *list_module_files(folder)) if path.is_file()]
    files = [path for path in files if path.suffix in (SAFETENSORS, ".json")]
    facts = [[str(path.relative_to(folder)), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in files]
    key = hashlib.sha256(json.dumps([str(folder.resolve()), facts, loading, 1]).encode()).hexdigest()[:24]
    target = storage.choose_cache("converted") / key
    if target.is_dir():
        return target
    temporary = target.with_name(f"{key}.{os.getpid()}.partial")
    temporary.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config, changed = _convert(
        name, folder, config, loading, partial(_load, folder, weights.files), partial(_load, folder)
    )
    for path in folder.iterdir():
        is_weight = path.name.endswith((SAFETENSORS, INDEX_SUFFIX))
        if path.is_file() and path.name != "config.json" and not (is_weight and changed is not None):
            (temporary / path.name).symlink_to(path.absolute())
    (temporary / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if changed is not None:
        from safetensors.torch import save_file

        save_file(changed, temporary / "model.safetensors", metadata={"format": "pt"})
    try:
        temporary.rename(target)
    except OSError:  # another process on this machine was first
        storage.delete_folder(str(temporary))
    return target


def convert_headers(
    name: str, folder: Path, files: ModelFiles, config: dict[str, Any], loading: Loading, weights: Weights
) -> tuple[dict[str, Any], Weights]:
    """Return configuration and headers of the model that `convert_model` would write; no weight is read.

    Args:
        name: of the model, for messages.
        folder: with its settings.
        files: all of them, those of its modules too.
        config: its `config.json`.
        loading: how its weights become a model.
        weights: what their headers say.

    Raises:
        ModelError: its files are not those of such a model.
    """
    import torch

    if loading in CHANGING and read_quantization(name, config) is not None:
        raise ModelError(
            f"{name}: its weights are quantised, and are loaded under other names; take a plain copy", model=name
        )

    def make(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {tensor: torch.empty(shape, device="meta") for tensor, shape in shapes.items()}

    def load(chosen: Sequence[str]) -> dict[str, Any]:
        absent = [file for file in chosen if file not in files.sizes]
        if absent:
            raise ModelError(
                f"{name}: modules.json needs {absent[0]}, which is not there; fetch the model again", model=name
            )
        return make(read_headers(name, files, Weights(tuple(chosen))).shapes)

    made, changed = _convert(name, folder, config, loading, lambda: make(weights.shapes), load)
    if changed is not None:
        weights = replace(weights, shapes={tensor: tuple(value.shape) for tensor, value in changed.items()})
    return made, weights


_LoadFiles = Callable[[Sequence[str]], dict[str, Any]]


def _convert(
    name: str,
    folder: Path,
    config: dict[str, Any],
    loading: Loading,
    load_model: Callable[[], dict[str, Any]],
    load: _LoadFiles,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the configuration that the model is loaded by, and its tensors, None where they stay as they lie."""
    config = {key: value for key, value in config.items() if key not in OWN_CODE}
    if loading == "bidirectional":
        if config.get("pooling", "avg") != "avg":
            raise ModelError(
                f"{name}: config.json has pooling {config['pooling']}, and a bidirectional Llama is scored by the mean of its "
                "tokens alone (avg); take another model",
                model=name,
            )
        return config | {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, None
    if loading == "renamed_xlm_roberta":
        config |= {"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"]}
        return config, _rename(name, load_model())
    if loading == "gte":
        return _describe_gte(name, config), None
    if loading == "folded":
        return _fold(name, folder, load_model(), config, load)
    return config, None


def _load(folder: Path, files: Sequence[str]) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {tensor: value for file in files for tensor, value in load_file(folder / file).items()}


# Names of jina-reranker-v2, whose code fuses the projections of XLM-R.
_JINA_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^roberta\.emb_ln\.", "roberta.embeddings.LayerNorm."),
    (r"^roberta\.encoder\.layers\.(\d+)\.mixer\.out_proj\.", r"roberta.encoder.layer.\1.attention.output.dense."),
    (r"^roberta\.encoder\.layers\.(\d+)\.norm1\.", r"roberta.encoder.layer.\1.attention.output.LayerNorm."),
    (r"^roberta\.encoder\.layers\.(\d+)\.norm2\.", r"roberta.encoder.layer.\1.output.LayerNorm."),
    (r"^roberta\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"roberta.encoder.layer.\1.intermediate.dense."),
    (r"^roberta\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"roberta.encoder.layer.\1.output.dense."),
)
_FUSED = re.compile(r"^roberta\.encoder\.layers\.(\d+)\.mixer\.Wqkv\.(weight|bias)$")


def _rename(name: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """Return tensors under the names of XLM-R, with the fused projections of attention apart."""
    renamed: dict[str, Any] = {}
    for tensor, value in tensors.items():
        fused = _FUSED.match(tensor)
        if fused is not None:
            if len(value) % 3:
                raise ModelError(f"{name}: {tensor} has {len(value)} rows, which are not three projections", model=name)
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                own = f"roberta.encoder.layer.{fused[1]}.attention.self.{part}.{fused[2]}"
                renamed[own] = piece.contiguous()
            continue
        for pattern, plain in _JINA_NAMES:
            tensor = re.sub(pattern, plain, tensor)
        renamed[tensor] = value
    if not any("attention.self.query" in tensor for tensor in renamed):
        raise ModelError(f"{name}: its weights are not those of jina-reranker-v2, as its config.json says", model=name)
    return renamed


def _describe_gte(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of Transformers' GTE for one of gte-multilingual-reranker's own code.

    Its "ntk" scaling by a factor makes the base of the angles that much larger, and the angles smaller by factor ** (2 / width
    of a head) (https://kexue.fm/archives/9706, formula 6): a linear scaling of that larger base.
    """
    scaling = config.get("rope_scaling") or {}
    factor = float(scaling.get("factor", 1.0))
    width = int(config["hidden_size"]) // int(config["num_attention_heads"])
    expected = {
        "position_embedding_type": "rope",
        "layer_norm_type": "layer_norm",
        "hidden_act": "gelu",
        "pack_qkv": True,
        "logn_attention_scale": False,
        "type_vocab_size": 1,
    }
    defaults = {"layer_norm_type": "layer_norm", "hidden_act": "gelu", "pack_qkv": True, "logn_attention_scale": False}
    other = [key for key, value in expected.items() if config.get(key, defaults.get(key)) != value]
    if scaling and (scaling.get("type", scaling.get("rope_type")) != "ntk" or scaling.get("mixed_b") is not None):
        other.append("rope_scaling")
    if other:
        raise ModelError(
            f"{name}: config.json differs from gte-multilingual-reranker's in {', '.join(other)}, for which there is no class "
            "without the model's own code; take another model",
            model=name,
        )
    rope = {"rope_theta": float(config.get("rope_theta", 10_000.0)) * factor, "rope_type": "default"}
    if factor != 1:
        rope |= {"rope_type": "linear", "factor": factor ** (2 / width)}
    left_out = ("rope_scaling", "rope_theta")
    config = {key: value for key, value in config.items() if key not in left_out}
    return config | {"model_type": "gte", "architectures": ["GteForSequenceClassification"], "rope_parameters": rope}


def _fold(
    name: str, folder: Path, tensors: dict[str, Any], config: dict[str, Any], load: _LoadFiles
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configuration and tensors of a classifier that does what a ModernBert and the modules after it do."""
    listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    places = [str(module.get("path") or "") for module in listed]
    settings = [read_json(folder / place / "config.json", f"{name}: {place}") or {} for place in places[1:]]
    pooling, dense, _, last = settings
    mode = pooling.get("pooling_mode") or next(
        (key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens") for key, on in pooling.items()
         if key.startswith("pooling_mode_") and on is True), "mean")  # fmt: skip
    activations = (dense.get("activation_function"), last.get("activation_function"))
    if (
        mode not in ("cls", "mean")
        or not str(activations[0]).endswith("activation.GELU")
        or not str(activations[1]).endswith("linear.Identity")
        or int(last.get("out_features", 0)) != 1
        or dense.get("use_residual")
        or last.get("use_residual")
        or pooling.get("include_prompt") is False
        or float(config.get("norm_eps", TORCH_NORM_EPS)) != TORCH_NORM_EPS
    ):
        raise ModelError(
            f"{name}: the modules after its ModernBert are not the head of a classifier (pooling {mode}, {activations}, "
            f"{last.get('out_features')} outputs), so they cannot be folded into one",
            model=name,
        )
    stored = {place: load([f"{place}/{SINGLE_FILE}"]) for place in places[2:]}
    for place, needed in zip(places[2:], ("linear.weight", "norm.weight norm.bias", "linear.weight"), strict=True):
        absent = needed.split() - stored[place].keys()
        if absent:
            raise ModelError(
                f"{name}: {place}/{SINGLE_FILE} lacks {min(absent)}, without which its classifier has no such layer; fetch the "
                "model again",
                model=name,
            )
    first, norm, final = stored.values()
    if final["linear.weight"].shape[-1:] != norm["norm.bias"].shape:
        raise ModelError(
            f"{name}: {places[3]} and {places[4]} have other widths; they are not of one model", model=name
        )
    folded = {
        (tensor if tensor.startswith("model.") else f"model.{tensor}"): value for tensor, value in tensors.items()
    }
    folded["head.dense.weight"] = first["linear.weight"]
    if "linear.bias" in first:
        folded["head.dense.bias"] = first["linear.bias"]
    folded["head.norm.weight"] = norm["norm.weight"]
    if config.get("norm_bias"):
        folded["head.norm.bias"], norm["norm.bias"] = norm["norm.bias"], norm["norm.bias"] * 0
    weight, bias = final["linear.weight"].double(), final.get("linear.bias")
    shift = weight @ norm["norm.bias"].double() + (0.0 if bias is None else bias.double())
    folded["classifier.weight"], folded["classifier.bias"] = (
        final["linear.weight"],
        shift.to(final["linear.weight"].dtype),
    )
    config = config | {
        "model_type": "modernbert",
        "architectures": ["ModernBertForSequenceClassification"],
        "classifier_pooling": mode,
        "classifier_activation": "gelu",
        "classifier_bias": "linear.bias" in first,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    return config, folded
