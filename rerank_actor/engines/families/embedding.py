r"""Embedding models, by the files of sentence-transformers: pooling, size, prompts, and what is not understood.

Takes a model folder and its `config.json`; gives a `ModelDescription` with an `EmbeddingHead`, and the prompt of a role.
A chain is a Transformer, a Pooling and perhaps a Normalize; vectors are normalised in any case, as their cosines are what is
compared. The query's prompt of Qwen3-Embedding is `Instruct: {task}\nQuery:`, whose task the user may give. Nothing is loaded.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rerank_actor.engines.families.description import DECODERS, EmbeddingHead, ModelDescription, Runtime
from rerank_actor.engines.families.entries import get_architecture
from rerank_actor.engines.families.sentence_transformers import read_json
from rerank_actor.engines.families.vllm_classes import find_unread
from rerank_actor.engines.template import Template
from rerank_actor.errors import ModelError

Role = Literal["query", "document"]

# The whole prompt stands for the instruction, so that queries and documents have one template.
EMBEDDING_TEMPLATE = Template(
    name="embedding", prefix="", head="{instruction}", suffix="", document_separator="", control="single"
)
POOLINGS: dict[str, Literal["last", "mean", "cls"]] = {"lasttoken": "last", "mean": "mean", "cls": "cls"}
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Names of the prompts in config_sentence_transformers.json, of which the first that is there counts.
PROMPT_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
TASK_PROMPT = re.compile(r"(Instruct: ?).*?(\nQuery: ?)", re.DOTALL)
VLLM_ENCODERS = ("BertModel", "RobertaModel", "XLMRobertaModel", "ModernBertModel")
FAKE_SIZE = 64
LONGEST = 10**6  # tokens that a tokenizer's settings say where they know no bound


@dataclass(frozen=True)
class EmbeddingRequest:
    """What is wanted of an embedding model: vectors of so many numbers (None for all), and the type they are stored in."""

    dimensions: int | None = None
    stored: Literal["float32", "float16"] = "float32"

    def make_head(self, name: str, pooling: Literal["last", "mean", "cls"], width: int) -> EmbeddingHead:
        """Return the head of a model.

        Raises:
            ModelError: more numbers are wanted than the model has.
        """
        if self.dimensions is not None and self.dimensions > width:
            raise ModelError(
                f"--dimensions {self.dimensions} is more than the {width} numbers of a vector of {name}; lower it",
                model=name,
            )
        return EmbeddingHead(pooling, width, self.dimensions or width, self.stored)

    def describe_fake(self) -> ModelDescription:
        """Return the description of the fake engine's vectors."""
        head = self.make_head("the fake engine", "mean", max(FAKE_SIZE, self.dimensions or 0))
        return ModelDescription(EMBEDDING_TEMPLATE.name, EMBEDDING_TEMPLATE, head, Runtime("none"))


def describe_embedding(name: str, folder: Path, config: dict[str, Any], request: EmbeddingRequest) -> ModelDescription:
    """Return the description of an embedding model.

    Args:
        name: as the user gave it.
        folder: where its files are.
        config: its `config.json`.
        request: what is wanted of its vectors.

    Raises:
        ModelError: it is none, or its files say something that is not understood.
    """
    architecture = get_architecture(config)
    listed = read_json(folder / "modules.json", name)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in listed or ()]
    if listed is None or "Pooling" not in kinds:
        reranker = architecture.endswith("ForSequenceClassification") or "LogitScore" in kinds
        what = "is a reranker" if reranker else "is no embedding model by its files"
        raise ModelError(
            f"{name}: {what} (modules.json {'lists ' + ', '.join(kinds) if kinds else 'is missing'}), and candidates are "
            "found by vectors; take an embedding model of sentence-transformers, and give a reranker to jobs.score",
            model=name,
        )
    own = [str(module.get("type", "")) for module in listed]
    foreign = next((kind for kind in own if not kind.startswith("sentence_transformers.")), None)
    if foreign or kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            f"{name}: modules.json lists {foreign or ', '.join(kinds)}, and only a Transformer, a Pooling and a Normalize are "
            "understood; take another model",
            model=name,
        )
    _refuse_settings(name, folder / str(listed[0].get("path") or ""))
    _refuse_similarity(name, folder, normalizes="Normalize" in kinds)
    pooling, width = _read_pooling(name, folder / str(listed[1].get("path") or ""))
    if width != int(config.get("hidden_size") or width):
        raise ModelError(
            f"{name}: pools vectors of {width} numbers where config.json has {config.get('hidden_size')} (hidden_size); they "
            "are not of one model",
            model=name,
        )
    head = request.make_head(name, pooling, width)
    return ModelDescription(
        EMBEDDING_TEMPLATE.name, EMBEDDING_TEMPLATE, head, _make_runtime(architecture, head, config)
    )


def read_prompt(name: str, folder: Path, role: Role, instruction: str | None = None) -> str:
    """Return what is put before a text of a role, as sentence-transformers does.

    Args:
        name: of the model.
        folder: with its files.
        role: of the text.
        instruction: the task, for a prompt that has one.

    Raises:
        ModelError: a task is given and the model's prompt has no place for it, or prompts are no texts.
    """
    own = read_json(folder / "config_sentence_transformers.json", name) or {}
    prompts = own.get("prompts") or {}
    names = [*PROMPT_NAMES[role], own.get("default_prompt_name")]
    prompt = next((prompts[key] for key in names if key is not None and key in prompts), "")
    if not isinstance(prompt, str):
        raise ModelError(f"{name}: config_sentence_transformers.json has a prompt that is no text", model=name)
    if instruction is None:
        return prompt
    found = TASK_PROMPT.fullmatch(prompt)
    if found is None:
        raise ModelError(
            f"{name}: --instruction has no place in its {role}'s prompt {prompt!r}, which is not `Instruct: TASK` and "
            f"`Query:` on a line of its own; give the whole prompt with --{role}-prompt",
            model=name,
        )
    return found[1] + instruction + found[2]


def takes_instruction(name: str, folder: Path) -> bool:
    """Whether the query's prompt of a model has a place for a task. Errors as of `read_prompt`."""
    return TASK_PROMPT.fullmatch(read_prompt(name, folder, "query")) is not None


def read_length(name: str, folder: Path) -> int | None:
    """Return the tokens of a text at most by the tokenizer's settings, None where they say nothing."""
    length = (read_json(folder / "tokenizer_config.json", name) or {}).get("model_max_length")
    return length if isinstance(length, int) and 0 < length < LONGEST else None


def _read_pooling(name: str, folder: Path) -> tuple[Literal["last", "mean", "cls"], int]:
    """Return the pooling, and the numbers of a vector."""
    settings = read_json(folder / "config.json", name) or {}
    modes = (
        settings.get("pooling_mode") or [mode for key, mode in OLD_POOLINGS.items() if settings.get(key)] or ["mean"]
    )
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ModelError(
            f"{name}: pools by {', '.join(map(str, modes))}, and only lasttoken, mean or cls is understood; take another model",
            model=name,
        )
    if settings.get("include_prompt") is False:
        raise ModelError(
            f"{name}: leaves its prompt out of the pooling (include_prompt), which is not understood; take another model",
            model=name,
        )
    width = settings.get("embedding_dimension", settings.get("word_embedding_dimension"))
    if type(width) is not int or width < 1:
        raise ModelError(
            f"{name}: {folder.name}/config.json does not say how many numbers a vector has (embedding_dimension)",
            model=name,
        )
    return POOLINGS[modes[0]], width


def _refuse_settings(name: str, folder: Path) -> None:
    """Refuse settings of the Transformer that change a text or where its states are read."""
    settings = read_json(folder / "sentence_bert_config.json", name) or {}
    message = (settings.get("modality_config") or {}).get("message")
    changed = {
        "do_lower_case": settings.get("do_lower_case"),
        "modality_config with messages": message is not None
        and settings.get("modality_config", {}).get("text") is None,
        "transformer_task": settings.get("transformer_task") not in (None, "feature-extraction"),
        "processing_kwargs": settings.get("processing_kwargs"),
    }
    found = [key for key, is_set in changed.items() if is_set]
    if found:
        raise ModelError(
            f"{name}: sentence_bert_config.json has {', '.join(found)}, which this job does not follow; take another model",
            model=name,
        )


def _refuse_similarity(name: str, folder: Path, *, normalizes: bool) -> None:
    """Refuse a model whose vectors are not compared by their cosine."""
    own = read_json(folder / "config_sentence_transformers.json", name) or {}
    similarity = own.get("similarity_fn_name")
    if similarity not in (None, "cosine") and not (similarity == "dot" and normalizes):
        raise ModelError(
            f"{name}: its vectors are compared by {similarity} (similarity_fn_name), and only cosines are computed here; take "
            "another model",
            model=name,
        )


def _make_runtime(architecture: str, head: EmbeddingHead, config: dict[str, Any]) -> Runtime:
    """Return what runs a model, whose vLLM class is the decoder's own or the encoder's without a head."""
    stem = re.sub(r"(Model|For[A-Za-z]+)$", "", architecture)
    wanted = f"{stem}ForCausalLM" if stem in DECODERS else f"{stem}Model"
    unread = find_unread(architecture, head, config)
    if unread is not None:
        return Runtime("", unread)
    if stem in DECODERS or wanted in VLLM_ENCODERS:
        return Runtime(wanted)
    return Runtime("", f"vLLM 0.32 has no {wanted} whose vectors were compared")
