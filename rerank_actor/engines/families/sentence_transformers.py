"""What a model folder says of itself in the files of sentence-transformers: its modules, its prompt, its default task.

Takes the folder, gives `Declared` or refuses what cannot be scored as pairs. Nothing is loaded and no code is run.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank_actor.engines.families.contradictions import refuse_other_kind
from rerank_actor.engines.families.description import LabelHead, TokenHead
from rerank_actor.engines.families.entries import EXAMPLE
from rerank_actor.errors import ModelError

ACTIVATIONS = (
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.activation.Sigmoid",
    "torch.nn.Identity",
    "torch.nn.Sigmoid",
)
CHAIN = ("Pooling", "Dense", "LayerNorm", "Dense")


@dataclass(frozen=True)
class Declared:
    """What the files say.

    Attributes:
        modules: kinds of the modules, in order; empty where there is no `modules.json`.
        head: what the score is, None where the model's own labels are.
        uses_chat: whether pairs are messages for the chat template.
        is_structured: whether the content of a message is a list of typed parts.
        chat_settings: what the chat template is given.
        instruction: the default prompt, None where there is none.
        activation: what makes scores of the outputs, empty where nothing is said.
        settings: of the first module.
    """

    modules: tuple[str, ...] = ()
    head: TokenHead | LabelHead | None = None
    uses_chat: bool = False
    is_structured: bool = False
    chat_settings: dict[str, Any] = field(default_factory=dict)
    instruction: str | None = None
    activation: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def read_declared(name: str, folder: Path, config: dict[str, Any]) -> Declared:
    """Return what a folder says of itself.

    Args:
        name: of the model, for messages.
        folder: with its settings.
        config: its `config.json`.

    Raises:
        ModelError: it says that it is no reranker of pairs, or something that is not known.
    """
    own = read_json(folder / "config_sentence_transformers.json", name) or {}
    refuse_other_kind(name, own)
    activation = _check_activation(name, own.get("activation_fn"), config)
    listed = read_json(folder / "modules.json", name)
    instruction = _read_instruction(name, own)
    if listed is None:
        return Declared(instruction=instruction, activation=activation)
    kinds = tuple(_name_module(name, module) for module in listed)
    folders = tuple(str(module.get("path") or "") for module in listed)
    if "Normalize" in kinds or kinds == ("Transformer", "Pooling"):
        raise ModelError(
            f"{name}: modules.json lists {', '.join(kinds)}, so it is an embedding model, whose vectors are compared; a "
            "reranker has a LogitScore or a classifier there. Take a reranker",
            model=name,
        )
    head: TokenHead | LabelHead | None = None
    if kinds == ("Transformer", "LogitScore"):
        head = _read_logit_score(name, folder / folders[1])
    elif kinds != ("Transformer",) and kinds != ("Transformer", *CHAIN):
        raise ModelError(
            f"{name}: modules.json lists {', '.join(kinds)}, a chain that this job does not know; say what the model is with "
            f"--model-description FILE, which holds for example\n{EXAMPLE}",
            model=name,
        )
    settings = read_json(folder / folders[0] / "sentence_bert_config.json", name) or {}
    message = (settings.get("modality_config") or {}).get("message")
    processing = settings.get("processing_kwargs") or {}
    return Declared(
        kinds,
        head,
        uses_chat=message is not None,
        is_structured=(message or {}).get("format") == "structured",
        chat_settings=_read_chat_settings(name, processing),
        instruction=instruction,
        activation=activation,
        settings=settings,
    )


def read_json(path: Path, name: str) -> Any:
    """Return a file's JSON, None where there is no such file.

    Raises:
        ModelError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name}: {path.name} cannot be read ({type(error).__name__}); check --model", model=name
        ) from None


def _name_module(name: str, module: dict[str, Any]) -> str:
    kind = str(module.get("type", ""))
    if not kind.startswith("sentence_transformers."):
        raise ModelError(
            f"{name}: modules.json lists {kind}, code of its own that this job does not run; say what the model is with "
            f"--model-description FILE, which holds for example\n{EXAMPLE}",
            model=name,
        )
    return kind.rpartition(".")[2]


def _read_logit_score(name: str, folder: Path) -> TokenHead:
    settings = read_json(folder / "config.json", name) or {}
    true_id, false_id = settings.get("true_token_id"), settings.get("false_token_id")
    if type(true_id) is not int or type(false_id) not in (int, type(None)) or true_id == false_id:
        raise ModelError(
            f"{name}: {folder.name}/config.json gives true_token_id {true_id!r} and false_token_id {false_id!r}; the first has "
            "to be a token's number, the second another or null",
            model=name,
        )
    return TokenHead(true_id, false_id)


def _read_chat_settings(name: str, processing: dict[str, Any]) -> dict[str, Any]:
    unknown = [key for key in processing if key not in ("chat_template", "text", "common")]
    changed = {**processing.get("text", {}), **processing.get("common", {})}
    unknown += [key for key in changed if key not in ("padding", "truncation", "max_length", "logits_to_keep")]
    if unknown:
        raise ModelError(
            f"{name}: sentence_bert_config.json has processing_kwargs ({', '.join(unknown)}) that this job does not follow; "
            "say what the prompt is with --model-description FILE",
            model=name,
        )
    return {key: value for key, value in processing.get("chat_template", {}).items() if key != "restore_suffix"}


def _read_instruction(name: str, own: dict[str, Any]) -> str | None:
    chosen, prompts = own.get("default_prompt_name"), own.get("prompts") or {}
    if chosen is None:
        return None
    if not isinstance(prompts.get(chosen), str):
        raise ModelError(
            f"{name}: config_sentence_transformers.json names the default prompt {chosen!r}, which is not among its prompts",
            model=name,
        )
    return str(prompts[chosen]) or None


def _check_activation(name: str, own: Any, config: dict[str, Any]) -> str:
    declared = own or (config.get("sentence_transformers") or {}).get("activation_fn")
    declared = declared or config.get("sbert_ce_default_activation_function")
    if declared and declared not in ACTIVATIONS:
        raise ModelError(
            f"{name}: its scores are made by {declared}, which this job does not know; say with --model-description FILE what "
            "the logit is, and how the score follows from it: sigmoid((logit - shift) / scale)",
            model=name,
        )
    return str(declared or "")
