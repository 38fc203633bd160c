"""The checks of a model's folder before anything starts, and the folder that engines load: what was checked, nothing else.

Files that one engine would read and another not are left out of what is loaded (other weight files, Mistral's own formats,
the length that vLLM takes from sentence-transformers' settings), and what would be ignored without a word is refused: an
adapter, settings meant for vLLM, weights packed in a way that vLLM cannot read. Knows nothing of prompts or engines that run.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rerank_actor import storage
from rerank_actor.engines.checkpoint.coverage import check_coverage
from rerank_actor.engines.checkpoint.files import ModelFiles
from rerank_actor.engines.checkpoint.weights import (
    INDEX_SUFFIX,
    SAFETENSORS,
    Weights,
    are_same,
    choose_weights,
    read_headers,
)
from rerank_actor.errors import ModelError

ADAPTER_FILE = "adapter_config.json"
# Keys that vLLM takes as overrides; Transformers and sentence-transformers know none of them. Of vLLM 0.32.
OVERRIDES = ("classifier_from_token", "method", "is_original_qwen3_reranker", "head_dtype")
# Ways of packing weights that vLLM 0.32 reads from safetensors, as `quant_method` names them.
QUANTIZATIONS = frozenset(
    {
        *(
            "awq",
            "gptq",
            "auto-round",
            "compressed-tensors",
            "fp8",
            "fbgemm_fp8",
            "modelopt",
            "mxfp4",
            "quark",
            "torchao",
        ),
    }
)
# What vLLM reads beside `config.json`: Mistral's own formats, which it prefers, and the lengths of sentence-transformers,
# of which this job has its own notion.
MISLEADING = ("params.json", "tekken.json")
LENGTH_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


def refuse_adapter(name: str, files: ModelFiles) -> None:
    """Refuse the folder of an adapter, alone or beside base weights.

    Raises:
        ModelError: there is one.
    """
    if ADAPTER_FILE not in files.sizes:
        return
    try:
        settings = json.loads(files.read(ADAPTER_FILE, 0, files.sizes[ADAPTER_FILE]))
        kind, base = settings.get("peft_type") or "PEFT", settings.get("base_model_name_or_path") or "its base model"
    except (ValueError, AttributeError):
        kind, base = "PEFT", "its base model"
    raise ModelError(
        f"{name}: holds a {kind} adapter ({ADAPTER_FILE}), which would be left out; merge it into {base} first (PEFT: "
        "`model.merge_and_unload().save_pretrained(folder)`), or take its files out",
        model=name,
    )


def refuse_overrides(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration into which vLLM's overrides were written, which Transformers would not follow.

    Raises:
        ModelError: there is one.
    """
    found = [key for key in OVERRIDES if config.get(key) is not None]
    if found:
        raise ModelError(
            f"{name}: config.json has settings that only vLLM follows ({', '.join(found)}); take them out and give the "
            "architecture that the weights are of (for Qwen3-Reranker Qwen3ForCausalLM), vLLM is told what it needs",
            model=name,
        )


def read_quantization(name: str, config: Mapping[str, Any]) -> str | None:
    """Return how a model's weights are packed, None for plain ones.

    Raises:
        ModelError: in a way that vLLM cannot read.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return None
    method = str((settings.get("quant_method") if isinstance(settings, dict) else settings) or "without a quant_method")
    if method not in QUANTIZATIONS:
        raise ModelError(
            f"{name}: its weights are quantised ({method}), which vLLM cannot read; take a copy in float32, float16 or "
            f"bfloat16, or one quantised as {', '.join(sorted(QUANTIZATIONS))}",
            model=name,
        )
    return method


def check_checkpoint(
    name: str,
    folder: Path,
    files: ModelFiles,
    config: Mapping[str, Any],
    auto_class: str,
    convert: Callable[[Weights], tuple[dict[str, Any], Weights]] | None = None,
) -> None:
    """Refuse a model whose weight files are not those of the model that would be run; no weight is read.

    Args:
        name: as the user gave it, for messages.
        folder: with its settings, perhaps without its weights.
        files: all of them, where they lie.
        config: its `config.json`.
        auto_class: of Transformers, by which it is loaded.
        convert: gives the configuration and the headers of what is made of the files before it is loaded; None where they are
            loaded as they are.

    Raises:
        ModelError: says what is wrong and what to do.
    """
    if not files.is_complete and not any(file.endswith(SAFETENSORS) for file in files.sizes):
        return  # without a network nobody knows of others; an engine looks before it loads them
    quantization = read_quantization(name, config)
    found = read_headers(name, files, choose_weights(name, files, config))
    made = None
    if convert is not None:
        made, found = convert(found)
    elif config.get("auto_map"):
        return  # a class of the model's own may not be built without memory
    for tied in check_coverage(name, folder, found, auto_class, quantization, made):
        if not are_same(files, found, tied):
            raise ModelError(
                f"{name}: {tied[0]} and {tied[1]} differ in the weight files, and by config.json they are one "
                "(tie_word_embeddings); one engine would take the one and one the other, so set it to false or take one out",
                model=name,
            )


def read_usual_length(folder: Path) -> int | None:
    """Return the tokens of a prompt at most by sentence-transformers' settings of a model, None where they say nothing."""
    for file in LENGTH_FILES:
        try:
            length = json.loads((folder / file).read_text()).get("max_seq_length")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(length, int) and length > 0:
            return length
    return None


def make_loaded_folder(folder: Path, weights: Weights) -> Path:
    """Return a folder with just what is to be loaded: the model's own, or one of links where more lie there.

    Args:
        folder: the model's, with its weights.
        weights: which of them are loaded.
    """
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    kept = [path for path in files if not _is_left_out(path.name, weights)]
    if kept == files:
        return folder
    facts = [[path.name, (stat := path.stat()).st_size, stat.st_mtime_ns] for path in kept]
    key = hashlib.sha256(json.dumps([str(folder.resolve()), facts]).encode()).hexdigest()[:24]
    target = storage.choose_cache("loaded") / key
    if not target.is_dir():
        temporary = target.with_name(f"{key}.{os.getpid()}.partial")
        temporary.mkdir(parents=True, exist_ok=True)
        for path in kept:
            (temporary / path.name).symlink_to(path.absolute())
        try:
            temporary.rename(target)
        except OSError:  # another process on this machine was first
            storage.delete_folder(str(temporary))
    return target


def _is_left_out(file: str, weights: Weights) -> bool:
    """Whether a file would be read by one engine alone, or as what it is not."""
    if file.endswith(SAFETENSORS):
        return file not in weights.files
    if file.endswith(INDEX_SUFFIX):
        return file != weights.index
    return file in MISLEADING or file in LENGTH_FILES
