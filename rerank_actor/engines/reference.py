"""The reference of an engine: what the publisher's own way makes of the built-in pairs, in float32.

That is sentence-transformers' `CrossEncoder` where it is installed and loads the model as it is meant: it reads prompt, head
and length from the model's files by itself, so that a check shares none of our assumptions. Elsewhere it is Transformers'
own model, given our reading of the head, and its own tokenizer, given the whole text of a prompt at once. Knows nothing of
the engine that is compared.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rerank_actor.engines.families.description import LabelHead
from rerank_actor.engines.families.entries import knows_segments
from rerank_actor.engines.model import RerankerModel, fetch_model
from rerank_actor.engines.template import CROSS_ENCODER
from rerank_actor.errors import describe_cause

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Reference:
    """What a reference makes of some pairs.

    Attributes:
        name: the library and its version.
        prompts: token ids of each pair, None where it was given ours.
        logits: float64 [num_pairs].
    """

    name: str
    prompts: list[list[int]] | None
    logits: np.ndarray


def ask_sentence_transformers(
    model: RerankerModel, pairs: Pairs, instruction: str, max_length: int
) -> Reference | None:
    """Return what sentence-transformers makes of pairs; None where it is not installed or does not load the model as meant.

    Args:
        model: with its files.
        pairs: query and document.
        instruction: the task, for models that take one.
        max_length: tokens of a prompt at most.
    """
    if not _describes_itself(model):
        return None
    try:
        import sentence_transformers
        import torch
    except ImportError:
        return None
    template, head = model.description.template, model.description.head
    folder = fetch_model(model.name, model.revision, code=model.trust_remote_code)
    try:
        encoder: Any = sentence_transformers.CrossEncoder(
            str(folder),
            device="cpu",
            max_length=max_length,
            model_kwargs={"dtype": torch.float32, "use_safetensors": True},  # never a pickle
            trust_remote_code=model.trust_remote_code,
            local_files_only=True,
        )
        own = encoder.prompts.get(encoder.default_prompt_name)
        prompt = instruction if template.takes_instruction else own
        outputs = encoder.predict(
            list(pairs), prompt=prompt, activation_fn=torch.nn.Identity(), batch_size=1, show_progress_bar=False
        )
        prompts = [encoder.preprocess([pair], prompt=prompt)["input_ids"][0].tolist() for pair in pairs]
    except Exception as error:  # a library of many models fails in many ways; Transformers is asked instead
        logger.warning("sentence-transformers does not load %s (%s)", model.name, describe_cause(error))
        return None
    outputs = np.asarray(outputs, np.float64)
    if outputs.ndim == 2 and isinstance(head, LabelHead):
        outputs = outputs[:, head.row] - (outputs[:, head.minus] if head.minus is not None else 0.0)
    return Reference(f"sentence-transformers {sentence_transformers.__version__}", prompts, outputs)


def _describes_itself(model: RerankerModel) -> bool:
    """Whether sentence-transformers knows the model's prompt: from its files, or because it is the tokenizer's own pair.

    It follows files that a user's description overrides, and segment ids that one may withhold.
    """
    folder = fetch_model(model.name, model.revision, weights=False, code=model.trust_remote_code)
    template = model.description.template
    is_pair = replace(template, name=CROSS_ENCODER.name, has_segments=False) == CROSS_ENCODER
    if (folder / "modules.json").is_file():
        return not model.is_users
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    is_meant = not model.is_users or template.has_segments == knows_segments(config)
    return is_pair and is_meant and isinstance(model.description.head, LabelHead)


def tokenize_whole(model: RerankerModel, pairs: Pairs, instruction: str) -> list[list[int]] | None:
    """Return the prompts that Transformers' tokenizer makes of whole texts.

    None where a prompt is not one text: the publisher tokenizes its parts apart, or texts change in it.
    """
    template = model.description.template
    is_text = bool(template.prefix) and not any("{" + field in template.suffix for field in ("query", "cut", "instr"))
    if not is_text or "{cut}" in template.head or template.strips:
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        model.folder, trust_remote_code=model.trust_remote_code, local_files_only=True
    )
    special = template.control != "none"
    texts = [
        template.prefix
        + template.format_head(instruction, query)
        + template.document_separator
        + document
        + template.suffix
        for query, document in pairs
    ]
    return [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
