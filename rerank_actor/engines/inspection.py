"""What a model is, shown to a person: family, prompt, cut, head, score and weights, and how far engines are from its reference.

Takes a `RerankerModel`, gives plain records. Says from which files each thing was read, and makes the prompt of one pair with
the encoder that jobs use. Knows nothing of command lines.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rerank_actor.engines.base import Engine, EngineSpec
from rerank_actor.engines.checkpoint.files import list_model_files
from rerank_actor.engines.checkpoint.pinning import is_hub_model
from rerank_actor.engines.checkpoint.weights import choose_weights, read_headers
from rerank_actor.engines.families.description import ModelDescription, TokenHead
from rerank_actor.engines.families.detect import find_built_in
from rerank_actor.engines.model import RerankerModel, load_tokenizer_json
from rerank_actor.engines.options import QUANTIZED_AT_LOAD
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.reference import Reference
from rerank_actor.engines.start import (
    CHECK_PAIRS,
    EngineCheck,
    allow_difference,
    compare_with_reference,
    compute_reference,
    start_engine,
)
from rerank_actor.errors import EngineStartError

# What a description may be read from, beside config.json and the tokenizer.
DESCRIBING_FILES = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "chat_template.jinja",
)
SAMPLE = CHECK_PAIRS[0]


@dataclass(frozen=True)
class EngineDifference:
    """How far an engine's logits of the built-in pairs are from the reference's, and what its dtype allows."""

    engine: str
    version: str
    dtype: str
    quantization: str | None
    reference: str
    logits: list[float]
    reference_logits: list[float]
    max_difference: float
    allowed: float
    problem: str = ""


def inspect_model(model: RerankerModel, encoder: PairEncoder, source: str | None = None) -> dict[str, Any]:
    """Return what is known of a model, by name, as JSON values.

    Args:
        model: what was found.
        encoder: its encoder, for the instruction and the length of a job.
        source: the file with the user's description, where one was given.

    Raises:
        ModelError: its files are not whole.
    """
    described = model.description
    template = described.template
    return {
        "model": model.name,
        "revision": model.revision,
        "folder": model.folder,
        "digest": model.digest,
        "family": described.name,
        "read_from": [source] if source is not None else _list_sources(model),
        "architecture": model.architecture,
        "weights": _describe_weights(model),
        "prompt": template.prefix + template.head + template.document_separator + "{document}" + template.suffix,
        "sample": _make_sample(encoder),
        "max_length": encoder.max_length,
        "positions": model.max_positions,
        **described.explain(),
        "tokens": _name_tokens(described, Tokenizer.from_str(load_tokenizer_json(model))),
        "quantization": model.quantization,
        "vllm": described.runtime.vllm or described.runtime.without_vllm,
        "transformers": described.auto_class if model.quantization is None else "",
        "loading": described.runtime.loading,
    }


def _list_sources(model: RerankerModel) -> list[str]:
    """Return where the description of a folder was read from."""
    folder = Path(model.folder)
    entry = find_built_in(model.name, folder, json.loads((folder / "config.json").read_text()))
    own = [file for file in DESCRIBING_FILES if (folder / file).is_file()]
    modules = sorted(f"{path.parent.name}/config.json" for path in folder.glob("[0-9]*_*/config.json"))
    built_in = [] if entry is None else [f"the built-in description of {entry.family}"]
    return ["config.json", "tokenizer.json", *own, *modules, *built_in]


def _describe_weights(model: RerankerModel) -> dict[str, Any]:
    folder = Path(model.folder)
    files = list_model_files(model.name, folder, model.revision if is_hub_model(model.name) else None)
    config = json.loads((folder / "config.json").read_text())
    weights = read_headers(model.name, files, choose_weights(model.name, files, config))
    sizes = {tensor: int(np.prod(shape, dtype=np.int64)) for tensor, shape in weights.shapes.items()}
    return {
        "files": list(weights.files),
        "tensors": len(sizes),
        "weights": sum(sizes.values()),
        "dtypes": sorted(set(weights.dtypes.values())),
        "bytes": sum(end - start for _, start, end in weights.places.values()),
    }


def _make_sample(encoder: PairEncoder) -> dict[str, Any]:
    """Return the prompt of one pair, and what it leaves for a document."""
    query, document = SAMPLE
    prompts = encoder.with_max_length(10**9).encode([query, query], [document, ""])
    whole, without = (ids.tolist() for ids in prompts.ids_at(np.arange(2)))
    head = int(prompts.head_tokens[0])
    after = _count_shared(whole[head:][::-1], without[head:][::-1])
    return {
        "query": query,
        "document": document,
        "ids": whole,
        "before_document": head,
        "document_tokens": len(whole) - head - after,
        "after_document": after,
        "room_for_document": encoder.max_length - head - after,
    }


def _count_shared(first: list[int], second: list[int]) -> int:
    """Return how many ids two lists have in common at their beginnings."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def _name_tokens(described: ModelDescription, tokenizer: Tokenizer) -> dict[str, str]:
    """Return the tokens that the logit is read from, by id."""
    head = described.head
    ids = [head.true_id, head.false_id] if isinstance(head, TokenHead) else []
    return {str(token): str(tokenizer.id_to_token(token)) for token in ids if token is not None}


def format_cut(described: ModelDescription, sample: dict[str, Any], max_length: int) -> str:
    """Return in words which text of a prompt that is too long loses tokens."""
    if sample["room_for_document"] < 1:
        return f"at {max_length:,} tokens: no room for a document beside this query"
    room = f"a document of more than {sample['room_for_document']:,} tokens beside this query loses its last ones"
    if described.template.longest_first:
        return f"at {max_length:,} tokens: {room}; where the query is the longer text, it loses tokens as its tokenizer cuts it"
    return f"at {max_length:,} tokens: {room}; query and template are never cut"


def list_precisions(spec: EngineSpec) -> list[EngineSpec]:
    """Return an engine in float32, in its own dtype, and as it is meant where vLLM packs the weights besides."""
    packed = ["quantization"] if spec.quantization in QUANTIZED_AT_LOAD else []
    plain = replace(spec, engine_args={name: value for name, value in spec.engine_args.items() if name not in packed})
    kinds = [replace(plain, dtype="float32"), plain, spec]
    return [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]]


def compare_engine(spec: EngineSpec, precisions: list[EngineSpec]) -> Iterator[tuple[EngineDifference, Engine]]:
    """Yield how far an engine is from the model's reference in each precision, and the engine, as long as it lasts.

    Args:
        spec: of the engine.
        precisions: it in other dtypes; `auto` is what it settles on.

    Raises:
        EngineStartError: it cannot start, or the model has no reference here.
    """
    reference = compute_reference(spec)
    for precision in precisions:
        engine, check = start_engine(replace(precision, check_scores=False))
        try:
            yield _compare(precision, check, engine, reference), engine
        finally:
            engine.close()


def _compare(spec: EngineSpec, check: EngineCheck, engine: Engine, reference: Reference) -> EngineDifference:
    problem, logits = "", np.array(check.logits, np.float32)
    try:
        difference = compare_with_reference(engine, spec, logits, reference)
    except EngineStartError as error:
        problem, difference = str(error), float(np.abs(logits - reference.logits).max())
    return EngineDifference(
        check.engine,
        check.version,
        engine.dtype,
        spec.quantization,
        reference.name,
        logits.tolist(),
        [float(logit) for logit in reference.logits],
        difference,
        allow_difference(spec, engine.dtype, reference.logits),
        problem,
    )
