"""Starting an engine: load it, settle its dtype, and let it score eight built-in pairs before it scores anything else.

Takes a spec, gives a running engine and the figures of its check, or refuses. The engines are imported only when asked
for, because vLLM and torch are heavy.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rerank_actor.engines.base import Engine, EngineSpec, allow_noise, allow_rounding, compute_within_memory
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.reference import Reference, ask_sentence_transformers, tokenize_whole
from rerank_actor.errors import EngineStartError, RerankError, describe_cause

CHECK_PAIRS = (
    ("what is the capital of China?", "The capital of China is Beijing."),
    ("what is the capital of China?", "Photosynthesis turns light into sugar."),
    ("explain gravity", "Gravity is a force that attracts two bodies towards each other."),
    ("explain gravity", "The recipe asks for two eggs and a spoon of sugar."),
    ("Wie hoch ist die Zugspitze?", "Die Zugspitze ist 2962 Meter hoch."),
    ("Wie hoch ist die Zugspitze?", "Der Rhein m\u00fcndet in die Nordsee."),
    (
        "\u5149\u5408\u4f5c\u7528\u662f\u4ec0\u4e48\uff1f",
        "\u690d\u7269\u628a\u5149\u80fd\u53d8\u6210\u5316\u5b66\u80fd\u3002",
    ),
    ("\u5149\u5408\u4f5c\u7528\u662f\u4ec0\u4e48\uff1f", ""),
)


@dataclass(frozen=True)
class EngineCheck:
    """Figures of the check at an engine's start: logits of the built-in pairs, how long they took, the reference's.

    Of an embedding model the logits are cosines of their documents with the first one.
    """

    engine: str
    version: str
    dtype: str
    path: str
    logits: list[float]
    seconds: float
    reference: str | None = None
    reference_logits: list[float] | None = None
    max_difference: float | None = None


def encode_check_pairs(encoder: PairEncoder) -> dict[str, Any]:
    """Return the built-in pairs as `check_prompts` and `check_heads`; where one is too long, its last tokens."""
    queries, documents = zip(*CHECK_PAIRS, strict=True)
    whole = encoder.with_max_length(10**9).encode(queries, documents)
    readable = np.flatnonzero(whole.num_tokens)  # an embedding model may have no token of an empty text
    ids = whole.ids_at(readable)
    lost = np.maximum(whole.num_tokens - encoder.max_length, 0)[readable]
    return {
        "check_prompts": tuple(tuple(int(token) for token in prompt[-encoder.max_length :]) for prompt in ids),
        "check_heads": tuple(np.maximum(whole.head_tokens[readable] - lost, 0).tolist()),
    }


def start_engine(spec: EngineSpec, report: Callable[[int], object] | None = None) -> tuple[Engine, EngineCheck]:
    """Start an engine and let it score the built-in pairs; `auto` settles its dtype on what comes out finite.

    Args:
        spec: what to start.
        report: is told a budget in tokens, when memory runs out already on these pairs.

    Raises:
        EngineStartError: it cannot start, or its logits are not finite, all equal, or too far from the reference.
    """
    dtypes = ["float16", "bfloat16"] if spec.dtype == "auto" else [spec.dtype]
    for dtype in dtypes:
        engine = _load(replace(spec, dtype=dtype))
        started = time.monotonic()
        try:
            prompts = [np.array(ids, np.int32) for ids in spec.check_prompts]
            logits = _to_figures(compute_within_memory(engine, prompts, spec.check_heads, report))
        except RerankError as error:
            raise EngineStartError(f"the {spec.kind} engine started but cannot score: {error}") from error
        if np.isfinite(logits).all():
            return engine, _check(engine, spec, logits, time.monotonic() - started)
        engine.close()
        del engine
        gc.collect()
    raise EngineStartError(
        f"{spec.model.name}: logits of the built-in pairs are not finite in {' nor '.join(dtypes)}; the weights may be "
        "damaged, or need another --dtype",
        model=spec.model.name,
    )


def _to_figures(outputs: np.ndarray) -> np.ndarray:
    """Return a number for each built-in pair: its logit, or the cosine of its document's vector with the first one's."""
    return outputs if outputs.ndim == 1 else np.asarray(outputs @ outputs[0], np.float32)


def scores_as_before(engine: Engine, prompts: Sequence[np.ndarray], heads: Sequence[int], check: EngineCheck) -> bool:
    """Return whether an engine in doubt still gives the built-in pairs the logits of its start, within their noise."""
    try:
        logits = _to_figures(compute_within_memory(engine, prompts, heads))
    except RerankError:
        return False
    return float(np.abs(logits - np.array(check.logits)).max()) <= allow_noise(engine.dtype, np.array(check.logits))


def _check(engine: Engine, spec: EngineSpec, logits: np.ndarray, seconds: float) -> EngineCheck:
    check = EngineCheck(
        engine.name, engine.version, engine.dtype, engine.path, [float(logit) for logit in logits], round(seconds, 4)
    )
    if np.ptp(logits) == 0:
        engine.close()
        raise EngineStartError(
            f"{spec.model.name}: the built-in pairs all have the same logit {check.logits[0]:.6g}; the yes and no rows of "
            "the head may be missing",
            model=spec.model.name,
        )
    if not spec.check_scores or spec.kind == "fake":
        return check
    reference = compute_reference(spec)
    try:
        difference = compare_with_reference(engine, spec, logits, reference)
    except EngineStartError:
        engine.close()
        raise
    return replace(
        check,
        reference=reference.name,
        reference_logits=[float(logit) for logit in reference.logits],
        max_difference=difference,
    )


def compute_reference(spec: EngineSpec) -> Reference:
    """Return what the publisher's own way makes of the built-in pairs, in float32 on CPUs.

    Raises:
        EngineStartError: neither sentence-transformers nor Transformers loads the model.
    """
    found = ask_sentence_transformers(spec.model, CHECK_PAIRS, spec.instruction, spec.max_length)
    if found is not None:
        return found
    engine = _load(replace(spec, kind="transformers", dtype="float32", device="cpu"))
    try:
        prompts = [np.array(ids, np.int32) for ids in spec.check_prompts]
        logits = engine.compute_logits(prompts, spec.check_heads)
    finally:
        engine.close()
    return Reference(
        f"{engine.name} {engine.version}", tokenize_whole(spec.model, CHECK_PAIRS, spec.instruction), logits
    )


def compare_with_reference(engine: Engine, spec: EngineSpec, logits: np.ndarray, reference: Reference) -> float:
    """Return by how much an engine's logits of the built-in pairs differ from the reference's at most.

    Raises:
        EngineStartError: by more than the noise of the engine's dtype, or a prompt is not the reference's.
    """
    name = spec.model.name
    whole = np.array([len(prompt) < spec.max_length for prompt in spec.check_prompts])  # the others were cut
    pairs = enumerate(zip(spec.check_prompts, reference.prompts or [], strict=False))
    for index, (prompt, theirs) in pairs:
        ours = list(prompt)
        if whole[index] and ours != theirs:
            at = next(
                (at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), "the end"
            )
            raise EngineStartError(
                f"{name}: the prompt of built-in pair {index + 1} is not that of {reference.name} ({len(ours)} and "
                f"{len(theirs)} tokens, different from token {at} on); scores would be wrong, so the run is refused",
                model=name,
            )
    if not whole.any():
        raise EngineStartError(
            f"{name}: --max-length {spec.max_length} cuts all built-in pairs; raise it to compare scores"
        )
    difference = float(np.abs(logits.astype(np.float64) - reference.logits)[whole].max())
    allowed = allow_difference(spec, engine.dtype, reference.logits[whole])
    if not difference <= allowed:
        raise EngineStartError(
            f"{name}: logits of the built-in pairs in {engine.dtype} differ by {difference:.4g} from {reference.name} in "
            f"float32, allowed is {allowed:.4g}; scores would be wrong, so the run is refused",
            model=name,
        )
    return difference


def allow_difference(spec: EngineSpec, dtype: str, reference_logits: np.ndarray) -> float:
    """Return by how much an engine's logits in a dtype may differ from the reference's, which are computed on CPUs.

    On GPUs attention in float32 may multiply in fewer bits (TF32), so that there the noise of engines is allowed.
    """
    import torch

    is_alike = (
        dtype == "float32" and spec.quantization is None and (spec.device == "cpu" or not torch.cuda.is_available())
    )
    return allow_rounding(reference_logits) if is_alike else allow_noise(dtype, reference_logits, spec.quantization)


def _load(spec: EngineSpec) -> Engine:
    spec.model.refuse_engine(spec.kind, spec.quantization)
    try:
        if spec.kind == "vllm":
            from rerank_actor.engines.vllm import VllmEngine

            return VllmEngine(spec)
        if spec.kind == "transformers":
            from rerank_actor.engines.transformers import TransformersEngine

            return TransformersEngine(spec)
        from rerank_actor.engines.fake import FakeEngine

        return FakeEngine(spec)
    except ImportError as error:
        cure = (
            "; install rerank-actor[gpu] or rerank-actor[cpu], or use --engine transformers"
            if spec.kind == "vllm"
            else ""
        )
        raise EngineStartError(f"the {spec.kind} engine is not installed here ({error}){cure}") from error
    except RerankError:
        raise
    except Exception as error:
        raise EngineStartError(
            f"{spec.model.name}: the {spec.kind} engine cannot start ({describe_cause(error, 400)})",
            model=spec.model.name,
        ) from error
