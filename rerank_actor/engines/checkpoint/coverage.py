"""Whether a model's weight files hold just what the model is made of, told by Transformers itself without loading one.

Takes the headers of the files and the class that the model will be run as; Transformers builds that class without memory
(on torch's meta device) and loads tensors of the headers' shapes into it, so that its own rules for names, tied weights
and renamed tensors decide. What it would make up at random, leave out of the model or not fit in is refused: vLLM leaves
a layer that no file has as uninitialised memory. Knows nothing of where the files lie.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rerank_actor.engines.checkpoint.files import name_some
from rerank_actor.engines.checkpoint.weights import Weights
from rerank_actor.errors import ModelError, describe_cause

PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
ALWAYS_PACKED = ("awq", "gptq", "auto-round", "fp8", "fbgemm_fp8", "mxfp4")  # ways that leave no file of plain weights
SHOWN_TENSORS = 3
_IN_A_LAYER = re.compile(r"\.\d+\.")
_BUFFER = re.compile(r"(inv_freq|position_ids|masked_bias|num_batches_tracked)$")  # remade by whoever loads them
_name_tensors = partial(name_some, shown=SHOWN_TENSORS, kind=" tensors")


def check_coverage(
    name: str,
    folder: Path,
    weights: Weights,
    auto_class: str,
    quantization: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> list[tuple[str, str]]:
    """Refuse weights that are not those of the model.

    Args:
        name: as the user gave it, for messages.
        folder: with the model's `config.json`.
        weights: what the headers tell.
        auto_class: of Transformers, by which the model is loaded: `AutoModelForCausalLM` or the like.
        quantization: how the weights are packed, None for plain ones; of packed ones only their modules' names are compared.
        config: what the model is loaded by, where that is not its `config.json`.

    Returns:
        Pairs of tensors that are one in the model and both in the files, so that they have to be the same.

    Raises:
        ModelError: tensors are missing, have other shapes, are of a part that the model has not, or are packed.
    """
    if quantization is None:
        _refuse_packed(name, weights)
    elif quantization in ALWAYS_PACKED and {*weights.dtypes.values()} <= {*PLAIN_DTYPES}:
        raise ModelError(
            f"{name}: config.json has weights that are quantised ({quantization}), and its files hold plain ones; take out "
            "quantization_config, or fetch the weights that belong to it",
            model=name,
        )
    report = _load_shapes(name, folder if config is None else config, weights.shapes, auto_class)
    missing = sorted(report["missing_keys"])
    if quantization is not None:
        modules = {tensor.rpartition(".")[0] for tensor in weights.shapes}
        missing = [tensor for tensor in missing if tensor.rpartition(".")[0] not in modules]
    elif report["mismatched_keys"]:
        tensor, stored, built = min(report["mismatched_keys"])
        raise ModelError(
            f"{name}: {tensor} is {list(stored)} in the weight files and {list(built)} by config.json; they are not of one "
            "model",
            model=name,
        )
    if missing:
        raise ModelError(
            f"{name}: its weight files lack {_name_tensors(missing)}, which {report['class']} needs and which would be made "
            "up at random; fetch the model again, or correct config.json (architectures, num_hidden_layers, "
            "tie_word_embeddings)",
            model=name,
        )
    strange = sorted(tensor for tensor in report["unexpected_keys"] if _is_part(tensor, weights.shapes))
    if strange and quantization is None:
        raise ModelError(
            f"{name}: its weight files hold {_name_tensors(strange)}, for which {report['class']} as config.json describes it "
            "has no place; the scores would be those of another model",
            model=name,
        )
    if _get_stem(report["named"]) != _get_stem(report["class"]):
        raise ModelError(
            f"{name}: config.json names the class {report['named']} and the model_type {report['model_type']}, which is "
            f"{report['class']}; one engine goes by the one and one by the other, so correct what is wrong",
            model=name,
        )
    return [pair for pair in report["tied"] if weights.shapes.keys() >= {*pair}]


def _refuse_packed(name: str, weights: Weights) -> None:
    packed = sorted(tensor for tensor, dtype in weights.dtypes.items() if dtype not in PLAIN_DTYPES)
    packed = [tensor for tensor in packed if not _BUFFER.search(tensor)]
    if packed:
        raise ModelError(
            f"{name}: {packed[0]} is stored as {weights.dtypes[packed[0]]}, which are no plain weights, and config.json "
            "does not say how they are quantised (quantization_config); take a copy in float32, float16 or bfloat16",
            model=name,
        )


def _is_part(tensor: str, shapes: Mapping[str, Any]) -> bool:
    """Whether a tensor without a place is of the model's own layers, not a buffer or the head of another task."""
    if _BUFFER.search(tensor):
        return False
    module, _, leaf = tensor.rpartition(".")
    return bool(_IN_A_LAYER.search(tensor)) or (leaf == "bias" and f"{module}.weight" in shapes)


def _load_shapes(
    name: str, source: Path | Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], auto_class: str
) -> dict[str, Any]:
    """Return Transformers' report of loading tensors of these shapes, with the model's class and its tied tensors."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tensors = {tensor: torch.empty(shape, dtype=torch.float32, device="meta") for tensor, shape in shapes.items()}
    try:
        if isinstance(source, Path):
            config = transformers.AutoConfig.from_pretrained(source)
        else:
            config = transformers.CONFIG_MAPPING[source["model_type"]].from_dict(dict(source))
        vars(config).pop("quantization_config", None)
        built: Any = getattr(transformers, auto_class)._model_mapping[type(config)]
        with _quiet(transformers.utils.logging):
            model, report = built.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # a configuration can be wrong in as many ways as there are classes
        raise ModelError(
            f"{name}: Transformers cannot build this model from its config.json ({describe_cause(error)})", model=name
        ) from error
    named = str((config.architectures or [built.__name__])[0])
    return {
        **report,
        "class": built.__name__,
        "named": named,
        "model_type": config.model_type,
        "tied": list(getattr(model, "all_tied_weights_keys", {}).items()),
    }


def _get_stem(architecture: str) -> str:
    """Return the kind of model that a class is of, whatever its head."""
    stem = re.split(r"For[A-Z]|Model$", architecture)[0]
    return "Roberta" if stem in ("XLMRoberta", "Camembert") else stem  # of one layout


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep Transformers' report out of the log; what it found is said in one sentence."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
