"""Folders whose files say different things of the model: what each file tells is compared, and refused where they differ.

Takes parsed settings, the tokenizer and what was found of a model; gives nothing back. Each check is of two things that are
written down; nothing is told from a name, and what a user's description settles is not looked at. Knows nothing of weights.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from rerank_actor.engines.families.description import LabelHead, ModelDescription, TokenHead
from rerank_actor.engines.families.entries import EXAMPLE
from rerank_actor.engines.template import QWEN3_RERANKER, Template, fill
from rerank_actor.errors import ModelError

CLASSIFIER = "ForSequenceClassification"
# What sentence-transformers loads the model as, before each chain of modules.
TASKS = {
    "LogitScore": ("text-generation", "any-to-any"),
    "": ("sequence-classification",),
    "Dense": ("feature-extraction",),
}
LEAST_SHARE = 0.8  # of a model's rows that its tokenizer uses; published ones use 0.98 and more
SPARE_ROWS = 1024  # that a small vocabulary may be padded by


def refuse_several_classes(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that names more than one class: engines would take one or the other.

    Raises:
        ModelError: it does.
    """
    named = list(dict.fromkeys(config.get("architectures") or []))
    if len(named) > 1:
        raise ModelError(
            f"{name}: config.json names several classes ({', '.join(map(str, named))}); leave the one that the weights are of",
            model=name,
        )


def refuse_other_kind(name: str, own: Mapping[str, Any]) -> None:
    """Refuse a folder that sentence-transformers has saved as a model of another kind.

    Args:
        name: of the model, for messages.
        own: its `config_sentence_transformers.json`.

    Raises:
        ModelError: vectors are compared, there is no score of a pair.
    """
    kind = own.get("model_type") or ("SentenceTransformer" if own.get("similarity_fn_name") else "CrossEncoder")
    if kind != "CrossEncoder":
        raise ModelError(
            f"{name}: config_sentence_transformers.json is of a {kind}, an embedding model; take "
            "a reranker, or say what the model is with --model-description FILE",
            model=name,
        )


def refuse_other_task(name: str, architecture: str, modules: tuple[str, ...], settings: Mapping[str, Any]) -> None:
    """Refuse modules that do not follow a model of the class or the task that is written beside them.

    Args:
        name: of the model, for messages.
        architecture: the class in `config.json`.
        modules: kinds of the modules, as `modules.json` lists them.
        settings: `sentence_bert_config.json` of the first.

    Raises:
        ModelError: one is of another kind of model than the other.
    """
    if not modules:
        return
    last = modules[-1] if len(modules) > 1 else ""
    task = settings.get("transformer_task")
    if settings.get("do_lower_case"):
        raise ModelError(
            f"{name}: sentence_bert_config.json has do_lower_case, which this job does not follow; change "
            "the texts, and say what the prompt is with --model-description FILE",
            model=name,
        )
    is_classifier = architecture.endswith(CLASSIFIER)
    found = f"{architecture} in config.json" if is_classifier == bool(last) else f"transformer_task {task}"
    if (task is not None and task not in TASKS[last]) or is_classifier == bool(last):
        raise ModelError(
            f"{name}: modules.json lists {', '.join(modules)}, which goes with the task {TASKS[last][0]}, and there is "
            f"{found}; say what the model is with --model-description FILE, which holds for example\n{EXAMPLE}",
            model=name,
        )


def refuse_other_prompt(name: str, known: ModelDescription, template: Template) -> None:
    """Refuse a chat template that makes another prompt than the model that the folder is called after has.

    Raises:
        ModelError: it does.
    """
    if _render(template) != _render(known.template):
        raise ModelError(
            f"{name}: is called {known.name}, and its chat template makes another prompt than that has; say which with "
            f"--model-description FILE, which holds for example\n{EXAMPLE}",
            model=name,
        )


def _render(template: Template) -> str:
    head = fill(template.head, "i", "q")
    text = template.prefix + head + template.document_separator + "d" + fill(template.suffix, "i", "q")
    return " ".join(text.replace("{cut}", "").split())


def refuse_other_answers(name: str, template: Template, head: TokenHead, answers: Tokenizer) -> None:
    """Refuse answers that the prompt asks for the other way round, or that are no tokens of the vocabulary.

    Args:
        name: of the model, for messages.
        template: its prompt.
        head: the answers that `1_LogitScore` declares.
        answers: the tokenizer.

    Raises:
        ModelError: they are.
    """
    ids = [token for token in (head.true_id, head.false_id) if token is not None]
    strange = [token for token in ids if token < 0 or answers.id_to_token(token) is None]
    if strange:
        raise ModelError(
            f"{name}: 1_LogitScore reads token {strange[0]}, which its vocabulary of {answers.get_vocab_size():,} tokens does "
            "not have; it is of another tokenizer",
            model=name,
        )
    is_turned = answers.token_to_id("no") == head.true_id or answers.token_to_id("yes") == head.false_id
    if template.name == QWEN3_RERANKER.name and is_turned:
        raise ModelError(
            f"{name}: its prompt asks for yes or no, and 1_LogitScore counts them the other way round (true_token_id "
            f"{head.true_id}, false_token_id {head.false_id}); correct that file, or settle it with --model-description FILE",
            model=name,
        )


def refuse_labels_apart(name: str, config: Mapping[str, Any], head: LabelHead, activation: str) -> None:
    """Refuse two labels whose difference means nothing, because the model was trained to give each by itself.

    Args:
        name: of the model, for messages.
        config: its `config.json`.
        head: what the labels' names tell.
        activation: that of its scores, as its files say; empty where they do not.

    Raises:
        ModelError: they are such.
    """
    task = config.get("problem_type")
    apart = f"problem_type {task}" if task in ("regression", "multi_label_classification") else ""
    apart = apart or (f"the activation {activation}" if activation.endswith("Sigmoid") else "")
    if head.minus is not None and apart:
        raise ModelError(
            f"{name}: has two labels, no and yes, and {apart}, so each is a score of its own; say which is meant with "
            "--model-description FILE, which holds for example\n    prompt: pair\n    label: 1",
            model=name,
        )


def refuse_larger_tokenizer(name: str, tokenizer: Tokenizer, rows: int | None) -> None:
    """Refuse a tokenizer that makes tokens for which the model has no embeddings.

    Args:
        name: of the model, for messages.
        tokenizer: of the folder; tokens added to it are let alone, a text seldom has them.
        rows: tokens that the model has embeddings for, None where its configuration does not say.

    Raises:
        ModelError: it is of another model.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
    if rows and largest >= rows:
        raise ModelError(
            f"{name}: its tokenizer has tokens up to {largest:,}, and its model rows for {rows:,} (vocab_size); they are of "
            "two models",
            model=name,
        )


def doubt_tokenizer(tokenizer: Tokenizer, rows: int | None) -> str:
    """Return that a tokenizer is far smaller than its model, in words; empty where it is not."""
    used = tokenizer.get_vocab_size()
    if not rows or used >= min(LEAST_SHARE * rows, rows - SPARE_ROWS):
        return ""
    return f"its tokenizer has {used:,} tokens and the model rows for {rows:,}; see that they belong together"
