"""Which description is a model's: its own, a built-in one or the user's. Nothing is guessed but one thing, which is said.

Takes a model folder and its parsed `config.json`; gives a `ModelDescription`, or refuses in a sentence. What a folder says of
itself in the files of sentence-transformers comes first, then what is known of its architecture: a Qwen3 is Qwen3-Reranker
where its configuration or its name says so, and is taken for one, with a word, where it is smaller than any that was
published and says nothing. A user's description settles the rest.
"""

import re
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rerank_actor.engines.families.chat_template import ChatTemplate
from rerank_actor.engines.families.contradictions import (
    doubt_tokenizer,
    refuse_labels_apart,
    refuse_larger_tokenizer,
    refuse_other_answers,
    refuse_other_prompt,
    refuse_other_task,
    refuse_several_classes,
)
from rerank_actor.engines.families.description import EmbeddingHead, LabelHead, ModelDescription, TokenHead
from rerank_actor.engines.families.entries import (
    EXAMPLE,
    Entry,
    find_entry,
    get_architecture,
    is_called,
    knows_segments,
    load_named_entries,
    make_runtime,
)
from rerank_actor.engines.families.sentence_transformers import CHAIN, Declared, read_declared, read_json
from rerank_actor.engines.template import (
    CROSS_ENCODER,
    CROSS_ENCODER_WITH_SEGMENTS,
    QWEN3_RERANKER,
    Template,
)
from rerank_actor.errors import ModelError

ROLES = re.compile(r"""["']query["'].*["']document["']|["']document["'].*["']query["']""", re.DOTALL)
# Classes whose prompt is the pair that their tokenizer makes.
ENCODERS = ("Bert", "Roberta", "XLMRoberta", "ModernBert", "Electra", "DistilBert", "DebertaV2", "Camembert", "Albert")
QWEN3 = ("Qwen3ForCausalLM", "Qwen3ForSequenceClassification")
QWEN3_RERANKER_NAMES = ("*/qwen3-reranker*", "*/*-qwen3-reranker*")
# What each published Qwen3-Reranker's config.json holds and those tuned or converted from it keep. Language models have more
# rows or other positions, embedding models fewer rows or another end.
QWEN3_RERANKER_FACTS = {"vocab_size": 151_669, "max_position_embeddings": 40_960, "eos_token_id": 151_645}
# All Qwen3 that are published are at least so wide and so deep; a smaller one is somebody's own.
SMALLEST_QWEN3 = {"hidden_size": 1_024, "num_hidden_layers": 28}
YES_NO = (("no", "yes"), ("0", "1"), ("false", "true"), ("irrelevant", "relevant"), ("not_relevant", "relevant"))


def describe_model(name: str, folder: Path, config: dict[str, Any], entry: Entry | None = None) -> ModelDescription:
    """Return the description of a model.

    Args:
        name: as the user gave it.
        folder: where its files are.
        config: its `config.json`.
        entry: the user's description, which beats all others.

    Raises:
        ModelError: it is no reranker that is known, or its files contradict each other.
    """
    architecture = get_architecture(config)
    tokenizer, find = _load_tokenizer(folder), partial(find_token, name, folder)
    controls = _list_controls(tokenizer)
    if entry is not None:
        described = entry.to_description(name, config, controls, find)
        is_named = entry in load_named_entries().values()  # a prompt of the publisher; converted models have it too
        labels_head = _read_label_head(name, architecture, read_labels(config)) if is_named else None
        return described if labels_head is None else replace(described, head=labels_head)
    refuse_several_classes(name, config)
    declared = read_declared(name, folder, config)
    labels = read_labels(config)
    entry = find_built_in(name, folder, config)
    known = None if entry is None else entry.to_description(name, config, controls, find)
    refuse_other_task(name, architecture, declared.modules, declared.settings)
    known_head = None if known is None or isinstance(known.head, EmbeddingHead) else known.head
    template = _read_chat_template(name, folder, declared, controls, architecture)
    if declared.modules[1:] == CHAIN:
        return _describe_chain(name, architecture, template)
    if known is not None and declared.head is not None and known.head != declared.head:
        raise ModelError(
            f"{name}: is called {known.name}, whose score is that of other tokens ({known.head}) than its files say "
            f"({declared.head}); say which with --model-description FILE, which holds for example\n{EXAMPLE}",
            model=name,
        )
    if template is not None and known is not None:
        refuse_other_prompt(name, known, template)
    if template is None:
        has_segments = knows_segments(config) and _marks_segments(name, folder, tokenizer)
        template = _find_template(name, folder, config, declared, has_segments) if known is None else known.template
        template = _put_default_prompt(name, template, declared)
    if tokenizer is not None:
        refuse_larger_tokenizer(name, tokenizer, config.get("vocab_size"))
        if declared.head is not None and isinstance(declared.head, TokenHead):
            refuse_other_answers(name, template, declared.head, tokenizer)
    head = declared.head
    if head is None and known_head is not None and _fits(known_head, labels):
        head = known_head
    if head is None:
        head = _read_label_head(name, architecture, labels)
        if head is not None:
            refuse_labels_apart(name, config, head, declared.activation)
    if head is None:
        if template.name != QWEN3_RERANKER.name:
            raise ModelError(
                f"{name}: its chat template makes a prompt of a query and a document, and nothing says which token after it is "
                f"the answer; say it with --model-description FILE, which holds for example\n{EXAMPLE}",
                model=name,
            )
        head = TokenHead(find("yes"), find("no"))
    if known is not None:
        return replace(known, template=template, head=head)
    return ModelDescription(template.name, template, head, make_runtime(architecture, head, config))


def find_built_in(name: str, folder: Path, config: dict[str, Any]) -> Entry | None:
    """Return the built-in description of a model by its architecture or by what it calls itself, None where there is none."""
    return find_entry(_list_names(name, folder, config), get_architecture(config), config, read_labels(config))


def _list_names(name: str, folder: Path, config: dict[str, Any]) -> tuple[str, str]:
    """Return what a model is called, by the hub where its folder is of the hub's cache, and what it was made from."""
    own_name = str(folder.absolute()) if folder == Path(name).expanduser() else name
    *_, cached, snapshots, _ = ("", "", *folder.absolute().parts)
    if snapshots == "snapshots" and cached.startswith("models--"):
        own_name = cached.removeprefix("models--").replace("--", "/")
    return own_name, str(config.get("_name_or_path") or "")


def is_early(name: str, folder: Path, config: dict[str, Any], description: ModelDescription) -> bool:
    """Whether a description is one that models had before there were descriptions, whose outputs name none.

    That is Qwen3-Reranker by its two answers or its one label, and a tokenizer's pair with one label.
    """
    template, head = replace(description.template, instruction=None), description.head
    if isinstance(head, EmbeddingHead):
        return False
    plain = ModelDescription(template.name, template, head, make_runtime(get_architecture(config), head, config))
    if replace(description, template=template) != plain:
        return False
    if isinstance(head, LabelHead):
        return head == LabelHead() and template in (QWEN3_RERANKER, CROSS_ENCODER)
    return template == QWEN3_RERANKER and head == TokenHead(*(find_token(name, folder, word) for word in ("yes", "no")))


def find_assumption(name: str, folder: Path, config: dict[str, Any], description: ModelDescription) -> str:
    """Return what is taken for granted of a model that the user did not describe, in words; empty where its files say it."""
    tokenizer = _load_tokenizer(folder)
    doubts = [] if tokenizer is None else [doubt_tokenizer(tokenizer, config.get("vocab_size"))]
    is_silent = description.template.name == QWEN3_RERANKER.name and _is_qwen3_reranker(name, folder, config) is None
    settings = read_json(folder / "tokenizer_config.json", name) or {} if is_silent else {}
    if is_silent and not (folder / "modules.json").is_file() and not _names_texts(_read_chat_source(folder, settings)):
        words = "nothing in the folder says which reranker it is; taken for Qwen3-Reranker"
        doubts.append(f"{words}; --model-description qwen3-reranker settles it")
    found = "; ".join(filter(None, doubts))
    return f"{name}: {found}" if found else ""


def _is_qwen3_reranker(name: str, folder: Path, config: dict[str, Any]) -> bool | None:
    """Whether a Qwen3 whose files describe no prompt is Qwen3-Reranker, by its configuration or by what it is called.

    None where nothing says what it is: one that is smaller than all that are published.
    """
    if all(config.get(key) == value for key, value in QWEN3_RERANKER_FACTS.items()):
        return True
    names = [called.replace("_", "-") for called in _list_names(name, folder, config)]
    if any(is_called(called, QWEN3_RERANKER_NAMES) for called in names):
        return True
    return False if all(int(config.get(key) or 0) >= least for key, least in SMALLEST_QWEN3.items()) else None


def read_labels(config: dict[str, Any]) -> dict[int, str]:
    """Return the names of a classifier's outputs as Transformers has them: two without names where nothing is said."""
    named, number = config.get("id2label") or {}, config.get("num_labels")
    if not named or len(named) != (number or len(named)):  # names of another number of outputs are not kept
        named = {at: f"LABEL_{at}" for at in range(int(number or 2))}
    return {int(at): str(label) for at, label in sorted(named.items(), key=lambda item: int(item[0]))}


def _fits(head: TokenHead | LabelHead, labels: dict[int, str]) -> bool:
    """Whether a head that is known of a model does without the names of its labels: it reads tokens, or they have none."""
    return isinstance(head, TokenHead) or all(label == f"LABEL_{number}" for number, label in labels.items())


def _read_label_head(name: str, architecture: str, labels: dict[int, str]) -> LabelHead | None:
    if not architecture.endswith("ForSequenceClassification"):
        return None
    if len(labels) == 1:
        return LabelHead()
    if tuple(label.lower() for label in labels.values()) in YES_NO:
        return LabelHead(1, 0)
    shown = ", ".join(list(labels.values())[:4])
    raise ModelError(
        f"{name}: {architecture} with {len(labels)} labels ({shown}) is a classifier, not a reranker, and nothing "
        "says which is relevance; a reranker has one label, or two called no and yes. Otherwise give "
        "--model-description FILE, which holds for example\n"
        "    prompt: pair\n    label: 1         # the logit of this output,\n    minus_label: 0   # less that of this one",
        model=name,
    )


def _find_template(name: str, folder: Path, config: dict[str, Any], declared: Declared, has_segments: bool) -> Template:
    """Return the prompt that goes with an architecture where the folder has none."""
    architecture = get_architecture(config)
    if architecture in QWEN3:
        is_told = _is_qwen3_reranker(name, folder, config)
        if is_told is not False and not declared.modules:
            return QWEN3_RERANKER
        found = "neither its files nor its name say that this is Qwen3-Reranker"
        if declared.modules:
            found = "modules.json without a chat template says that the tokenizer is given the pair as it is"
            found += ", unlike Qwen3-Reranker's, which its settings or its name say it is" if is_told else ""
        raise ModelError(
            f"{name}: {architecture} is the class of rerankers, language models and others, and {found}; give "
            "--model-description qwen3-reranker if it is that, or a FILE that says what it is and holds for example\n"
            f"{EXAMPLE}",
            model=name,
        )
    stem = architecture.removesuffix("ForSequenceClassification")
    if stem != architecture and stem in ENCODERS:
        return CROSS_ENCODER_WITH_SEGMENTS if has_segments else CROSS_ENCODER
    raise ModelError(
        f"{name}: {architecture} is not a reranker that this job knows, and its files do not say how query and document "
        f"become a prompt; say it with --model-description FILE, which holds for example\n{EXAMPLE}",
        model=name,
    )


def _put_default_prompt(name: str, template: Template, declared: Declared) -> Template:
    """Return a template with the default prompt of a folder where sentence-transformers puts it."""
    prompt = declared.instruction
    if prompt is None:
        return template
    if template.takes_instruction:
        return replace(template, instruction=prompt)
    if declared.modules and template.control == "pair" and template.head == "{query}" and "{" not in prompt:
        return replace(template, head=prompt + template.head)
    raise ModelError(
        f"{name}: config_sentence_transformers.json names a default prompt ({prompt[:60]!r}), for which the prompt of "
        f"{template.name} has no place; say what the prompt is with --model-description FILE",
        model=name,
    )


def _read_chat_template(
    name: str, folder: Path, declared: Declared, controls: tuple[str, ...], architecture: str
) -> Template | None:
    """Return the prompt that the chat template makes, None where pairs are not given to it."""
    tokenizer_settings = read_json(folder / "tokenizer_config.json", name) or {}
    source = _read_chat_source(folder, tokenizer_settings)
    if not (declared.uses_chat if declared.modules else _names_texts(source)):
        return None
    if not isinstance(source, str):
        raise ModelError(
            f"{name}: its files say that pairs go through a chat template, and there is no chat_template.jinja",
            model=name,
        )
    tokens = {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in tokenizer_settings.items()
        if key.endswith("_token") and value is not None
    }
    chat = ChatTemplate(name, source, {**tokens, **declared.chat_settings}, is_structured=declared.is_structured)
    family = architecture.removesuffix("ForCausalLM").removesuffix("ForSequenceClassification").lower()
    return chat.to_template(f"{family}-chat", controls, declared.instruction)


def _read_chat_source(folder: Path, tokenizer_settings: dict[str, Any]) -> Any:
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else tokenizer_settings.get("chat_template")
    return (
        {item.get("name"): item.get("template") for item in source}.get("default")
        if isinstance(source, list)
        else source
    )


def _names_texts(source: Any) -> bool:
    """Whether a chat template is one of messages of the roles query and document."""
    return isinstance(source, str) and ROLES.search(source) is not None


def _describe_chain(name: str, architecture: str, template: Template | None) -> ModelDescription:
    if architecture != "ModernBertModel" or template is not None:
        raise ModelError(
            f"{name}: {architecture} with {', '.join(CHAIN)} after it is not known to fold into a classifier, as a "
            "ModernBertModel does; say what the model is with --model-description FILE",
            model=name,
        )
    head, wanted = LabelHead(), "ModernBertForSequenceClassification"
    return ModelDescription(
        "cross-encoder-chain", CROSS_ENCODER, head, make_runtime(wanted, head, {}, loading="folded")
    )


def _load_tokenizer(folder: Path) -> Tokenizer | None:
    """Return a folder's tokenizer, None where it has no such file."""
    file = folder / "tokenizer.json"
    try:
        facts = file.stat()
        return _load_tokenizer_file(str(file), facts.st_mtime_ns, facts.st_size)
    except Exception:  # the tokenizers library raises bare Exception; who needs the tokenizer says more
        return None


@lru_cache(maxsize=2)
def _load_tokenizer_file(file: str, _changed: int, _size: int) -> Tokenizer:
    """Return a tokenizer, read once: a large one takes most of a second."""
    return Tokenizer.from_file(file)


def _list_controls(tokenizer: Tokenizer | None) -> tuple[str, ...]:
    """Return the added tokens of a tokenizer."""
    added = {} if tokenizer is None else tokenizer.get_added_tokens_decoder()
    return tuple(token.content for token in added.values())


def _marks_segments(name: str, folder: Path, tokenizer: Tokenizer | None) -> bool:
    """Whether a tokenizer tells the second text of a pair from the first, without which a model takes both for the first."""
    settings = read_json(folder / "tokenizer_config.json", name) or {}
    gives = "token_type_ids" in (settings.get("model_input_names") or ["token_type_ids"])
    return gives and (tokenizer is None or 1 in tokenizer.encode("a", "b").type_ids)


def find_token(name: str, folder: Path, token: str) -> int:
    """Return the id of a token of a model's vocabulary.

    Raises:
        ModelError: there is no `tokenizer.json`, or it has no such token.
    """
    tokenizer = _load_tokenizer(folder)
    if tokenizer is None:
        raise ModelError(f"{name}: tokenizer.json is missing or cannot be read; a fast tokenizer is needed", model=name)
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ModelError(
            f"{name}: its vocabulary has no single token `{token}`, so its score cannot be read from that answer",
            model=name,
        )
    return int(token_id)
