"""Which description is a model's: its own, a built-in one or the user's. Nothing is guessed but one thing, which is said.

Takes a model folder and its parsed `config.json`; gives a `ModelDescription`, or refuses in a sentence. What a folder says of
itself in the files of sentence-transformers comes first, then what is known of its architecture: a Qwen3 that nothing
tells more of is taken for Qwen3-Reranker. A user's description settles what neither does.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rerank_actor.engines.families.chat_template import ChatTemplate
from rerank_actor.engines.families.description import EmbeddingHead, LabelHead, ModelDescription, TokenHead
from rerank_actor.engines.families.entries import (
    EXAMPLE,
    Entry,
    find_entry,
    get_architecture,
    knows_segments,
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
    controls, find = _read_controls(folder), partial(find_token, name, folder)
    if entry is not None:
        return entry.to_description(name, config, controls, find)
    declared = read_declared(name, folder, config)
    labels = read_labels(config)
    own_name = str(folder.absolute()) if folder == Path(name).expanduser() else name
    called = (own_name, str(config.get("_name_or_path") or ""))
    entry = find_entry(called, architecture, config, labels)
    known = None if entry is None else entry.to_description(name, config, controls, find)
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
    if template is None:
        template = known.template if known is not None else _find_template(name, architecture, config)
    head = declared.head
    if head is None and known_head is not None and _fits(known_head, labels):
        head = known_head
    if head is None:
        head = _read_label_head(name, architecture, labels) or TokenHead(find("yes"), find("no"))
    if known is not None:
        return replace(known, template=template, head=head)
    return ModelDescription(template.name, template, head, make_runtime(architecture, head))


def is_early(name: str, folder: Path, config: dict[str, Any], description: ModelDescription) -> bool:
    """Whether a description is one that models had before there were descriptions, whose outputs name none.

    That is Qwen3-Reranker by its two answers or its one label, and a tokenizer's pair with one label.
    """
    template, head = replace(description.template, instruction=None), description.head
    if isinstance(head, EmbeddingHead):
        return False
    plain = ModelDescription(template.name, template, head, make_runtime(get_architecture(config), head))
    if replace(description, template=template) != plain:
        return False
    if isinstance(head, LabelHead):
        return head == LabelHead() and template in (QWEN3_RERANKER, CROSS_ENCODER)
    return template == QWEN3_RERANKER and head == TokenHead(*(find_token(name, folder, word) for word in ("yes", "no")))


def find_assumption(name: str, folder: Path, config: dict[str, Any], description: ModelDescription) -> str:
    """Return what is taken for granted of a model that the user did not describe, in words; empty where its files say it."""
    called = f"{name} {folder.absolute()} {config.get('_name_or_path')}".casefold().replace("_", "-")
    tokenizer_settings = read_json(folder / "tokenizer_config.json", name) or {}
    if (
        description.name != QWEN3_RERANKER.name
        or QWEN3_RERANKER.name in called
        or (folder / "modules.json").is_file()
        or _names_texts(_read_chat_source(folder, tokenizer_settings))
    ):
        return ""
    return f"{name}: nothing in the folder says which reranker it is; taken for Qwen3-Reranker; --model-description settles it"


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


def _find_template(name: str, architecture: str, config: dict[str, Any]) -> Template:
    """Return the prompt that goes with an architecture where the folder has none."""
    if architecture in ("Qwen3ForCausalLM", "Qwen3ForSequenceClassification"):
        return QWEN3_RERANKER
    stem = architecture.removesuffix("ForSequenceClassification")
    if stem != architecture and stem in ENCODERS:
        return CROSS_ENCODER_WITH_SEGMENTS if knows_segments(config) else CROSS_ENCODER
    raise ModelError(
        f"{name}: {architecture} is not a reranker that this job knows, and its files do not say how query and document "
        f"become a prompt; say it with --model-description FILE, which holds for example\n{EXAMPLE}",
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
    return ModelDescription("cross-encoder-chain", CROSS_ENCODER, head, make_runtime(wanted, head, loading="folded"))


def _read_controls(folder: Path) -> tuple[str, ...]:
    """Return the added tokens of a folder's tokenizer, none where it has no such file."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # the tokenizers library raises bare Exception; who needs the tokenizer says more
        return ()
    return tuple(token.content for token in tokenizer.get_added_tokens_decoder().values())


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
            f"{name}: its vocabulary has no single token `{token}`, so its score cannot be read from that answer",
            model=name,
        )
    return int(token_id)
