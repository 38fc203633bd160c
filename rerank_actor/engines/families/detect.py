"""Which description is a model's: from its configuration and its tokenizer.

Takes the parsed `config.json` of a model folder; gives a `ModelDescription`, or refuses in a sentence. Nothing is guessed.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rerank_actor.engines.families.description import LabelHead, ModelDescription, Runtime, TokenHead
from rerank_actor.engines.template import CROSS_ENCODER, QWEN3_RERANKER
from rerank_actor.errors import ModelError


def describe_model(name: str, folder: Path, config: dict[str, Any]) -> ModelDescription:
    """Return the description of a model.

    Args:
        name: as the user gave it, for messages.
        folder: where its files are.
        config: its `config.json`.

    Raises:
        ModelError: it is no reranker that is known.
    """
    architecture = get_architecture(config)
    if architecture == "Qwen3ForCausalLM":
        yes, no = (find_token(name, folder, answer) for answer in ("yes", "no"))
        runtime = Runtime("Qwen3ForSequenceClassification")
        return ModelDescription(QWEN3_RERANKER.name, QWEN3_RERANKER, TokenHead(yes, no), runtime)
    if architecture.endswith("ForSequenceClassification"):
        _refuse_classifier(name, architecture, config)
        template = QWEN3_RERANKER if architecture.startswith("Qwen3") else CROSS_ENCODER
        return ModelDescription(template.name, template, LabelHead(), Runtime(architecture))
    raise ModelError(
        f"{name}: {architecture} is not a reranker that this job knows; it takes Qwen3ForCausalLM models that answer "
        "yes or no (Qwen3-Reranker) and ...ForSequenceClassification models with one label",
        model=name,
    )


def get_architecture(config: dict[str, Any]) -> str:
    """Return the class named in `config.json`."""
    return str((config.get("architectures") or [config.get("model_type", "none")])[0])


def _refuse_classifier(name: str, architecture: str, config: dict[str, Any]) -> None:
    labels = config.get("num_labels") or len(config.get("id2label") or {}) or 2
    if labels != 1:
        raise ModelError(
            f"{name}: {architecture} with {labels} labels is a classifier, not a reranker; a reranker has one label",
            model=name,
        )
    if not architecture.startswith("Qwen3") and int(config.get("type_vocab_size") or 0) > 1:
        raise ModelError(
            f"{name}: {architecture} tells query from document by segment ids (type_vocab_size "
            f"{config['type_vocab_size']}), which prompts of token ids alone cannot carry; use a model without them",
            model=name,
        )


def find_token(name: str, folder: Path, token: str) -> int:
    """Return the id of a token of a model's vocabulary.

    Raises:
        ModelError: there is no `tokenizer.json`, or it has no such token.
    """
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(
            f"{name}: tokenizer.json is missing or cannot be read; a fast tokenizer is needed", model=name
        ) from error
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ModelError(
            f"{name}: its vocabulary has no single token `{token}`, so it is not a yes/no reranker", model=name
        )
    return int(token_id)
