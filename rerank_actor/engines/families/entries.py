"""Descriptions as YAML: those of families that do not describe themselves, and a user's own.

Takes the text of a YAML file, gives an `Entry`; with a tokenizer and a configuration that becomes a `ModelDescription`.
Knows nothing of where model folders are.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rerank_actor.engines.families.description import (
    LabelHead,
    Loading,
    ModelDescription,
    Runtime,
    ScoreScale,
    TokenHead,
)
from rerank_actor.engines.families.vllm_classes import CLASSIFIERS, find_unread
from rerank_actor.engines.template import QWEN3_RERANKER, Template, cut_prefix
from rerank_actor.errors import JobError, ModelError

EXAMPLE = """\
    prompt: "<|im_start|>user\\nquery: {query}\\ndocument: {document}<|im_end|>\\n"   # or: pair
    true_token: "1"     # the logit of this token after the prompt,
    false_token: "0"    # less that of this one; or `label: 0` for an output of a classifier"""


class Match(BaseModel):
    """Which models an entry is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    architectures: tuple[str, ...]
    names: tuple[str, ...] = ()
    labels: int | None = None
    label_names: tuple[str, ...] | None = None
    facts: dict[str, Any] = Field(default_factory=dict)


class Entry(BaseModel):
    """One description, as it stands in a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    match: Match | None = None
    family: str = "described"
    refused: str | None = None
    prompt: str = "pair"
    instruction: str | None = None
    strip: tuple[Literal["query", "document"], ...] = ()
    special_tokens: Literal["none", "single", "pair"] | None = None
    longest_first: bool | None = None
    query_share: float = Field(1.0, gt=0, le=1)
    segment_ids: bool | None = None
    true_token: str | None = None
    false_token: str | None = None
    label: int | None = Field(None, ge=0)
    minus_label: int | None = Field(None, ge=0)
    scale: float = Field(1.0, gt=0)
    scale_setting: str | None = None
    shift: float = 0.0
    vllm: str | None = None
    without_vllm: str | None = None
    loading: Loading = "as_is"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.refused is not None:
            return self
        if (self.true_token is None) == (self.label is None):
            raise ValueError("give either true_token (with or without false_token) or label, which the logit is")
        if self.false_token is not None and self.true_token is None:
            raise ValueError("false_token goes with true_token")
        if self.minus_label is not None and self.minus_label in (self.label, None):
            raise ValueError("minus_label is another label than label")
        if self.prompt == "pair":
            return self
        for field in ("{query}", "{document}"):
            if self.prompt.count(field) != 1:
                raise ValueError(f"the prompt holds {field} {self.prompt.count(field)} times; it has to once")
        if self.prompt.count("{instruction}") > 1:
            raise ValueError("the prompt holds {instruction} more than once")
        return self

    def to_template(self, controls: tuple[str, ...], config: Mapping[str, Any]) -> Template:
        """Return the prompt as a template, for a tokenizer with some control tokens and a model's configuration."""
        special: Literal["none", "single", "pair"] = self.special_tokens or (
            "pair" if self.prompt == "pair" else "none"
        )
        text = "{query}{document}" if self.prompt == "pair" else self.prompt
        before, _, suffix = text.partition("{document}")
        prefix, head = cut_prefix(before, controls)
        if special == "pair":
            head, _, separator = head.partition("{query}")
            head += "{query}"
        else:
            separator = " " if head.endswith(" ") else ""
            head = head.removesuffix(separator) if separator else head
            if (
                self.family == QWEN3_RERANKER.name and text == QWEN3_RERANKER.text
            ):  # cut as in outputs that name no template
                prefix, head = QWEN3_RERANKER.prefix, QWEN3_RERANKER.head
        longest_first = self.prompt == "pair" if self.longest_first is None else self.longest_first
        return Template(
            self.family,
            prefix,
            head,
            suffix,
            separator,
            control=special,
            strips=self.strip,
            longest_first=longest_first,
            query_share=self.query_share,
            has_segments=special == "pair" and knows_segments(config) if self.segment_ids is None else self.segment_ids,
            instruction=self.instruction,
        )

    def to_description(
        self, name: str, config: Mapping[str, Any], controls: tuple[str, ...], find_token: Callable[[str], int]
    ) -> ModelDescription:
        """Return the description of a model.

        Args:
            name: of the model, for messages.
            config: its `config.json`.
            controls: tokens that its tokenizer finds in a text before anything else.
            find_token: gives the id of a token, or raises.

        Raises:
            ModelError: a family that cannot be scored, or a token that is none.
        """
        if self.refused is not None:
            raise ModelError(f"{name}: {self.refused}", model=name)
        head: TokenHead | LabelHead
        if self.true_token is not None:
            head = TokenHead(
                find_token(self.true_token), None if self.false_token is None else find_token(self.false_token)
            )
        else:
            head = LabelHead(self.label or 0, self.minus_label)
        runtime = make_runtime(get_architecture(config), head, config, self.vllm, self.without_vllm, self.loading)
        template = self.to_template(controls, config)
        return ModelDescription(
            self.family, template, head, runtime, ScoreScale(self._read_scale(name, config), self.shift)
        )

    def _read_scale(self, name: str, config: Mapping[str, Any]) -> float:
        scale = self.scale if self.scale_setting is None else config.get(self.scale_setting, self.scale)
        if type(scale) not in (int, float) or not 0 < scale < math.inf:
            raise ModelError(
                f"{name}: config.json has {self.scale_setting} {scale!r}, by which logits cannot be divided", model=name
            )
        return float(scale)


SEGMENTS_BY_DEFAULT = {"bert": 2, "electra": 2}


def get_architecture(config: Mapping[str, Any]) -> str:
    """Return the class named in `config.json`."""
    return str((config.get("architectures") or [config.get("model_type", "none")])[0])


def knows_segments(config: Mapping[str, Any]) -> bool:
    """Whether a model tells the second text of a pair from the first by segment ids.

    Where `config.json` does not say, what Transformers takes for its kind of model decides.
    """
    size = config.get("type_vocab_size")
    return int(SEGMENTS_BY_DEFAULT.get(str(config.get("model_type")), 0) if size is None else size) > 1


def make_runtime(
    architecture: str,
    head: TokenHead | LabelHead,
    config: Mapping[str, Any],
    vllm: str | None = None,
    without_vllm: str | None = None,
    loading: Loading = "as_is",
) -> Runtime:
    """Return what runs a model: the class for vLLM where it has one, and how Transformers loads it."""
    wanted = vllm or architecture.replace("ForCausalLM", "ForSequenceClassification")
    if without_vllm is None and wanted not in CLASSIFIERS:
        without_vllm = f"vLLM 0.32 has no {wanted} that gives this model's logits"
    without_vllm = without_vllm or find_unread(architecture, head, config)
    return Runtime("" if without_vllm else wanted, without_vllm or "", loading)


def parse_entry(text: str, place: str) -> Entry:
    """Return the description in a YAML text.

    Raises:
        JobError: it is none, with the line or the key that is wrong.
    """
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"{place}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(parsed, dict):
        raise JobError(f"{place}: is no YAML mapping; it holds for example\n{EXAMPLE}")
    try:
        return Entry.model_validate(parsed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = f"; its keys are {', '.join(Entry.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise JobError(
            f"{place}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}{known}"
        ) from error


def read_user_entry(file: str) -> Entry:
    """Return the description in a user's file, or the one of `data/templates` that has this name.

    Raises:
        JobError: it cannot be read, or is none.
    """
    named = load_named_entries()
    if file in named:
        return named[file]
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(
            f"--model-description {file}: cannot be read ({type(error).__name__}); it takes a file, or {' or '.join(named)}"
        ) from error
    return parse_entry(text, f"--model-description {file}")


@lru_cache(maxsize=1)
def load_named_entries() -> dict[str, Entry]:
    """Return the descriptions that users may name, by name."""
    folder = resources.files("rerank_actor").joinpath("data/templates")
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): parse_entry(file.read_text(encoding="utf-8"), file.name) for file in files}


@lru_cache(maxsize=1)
def load_entries() -> tuple[Entry, ...]:
    """Return the built-in descriptions, in the order of their files' names."""
    folder = resources.files("rerank_actor").joinpath("data/models")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return tuple(
        parse_entry(part, file.name)
        for file in files
        for part in file.read_text(encoding="utf-8").split("\n---\n")
        if part.strip()
    )


def find_entry(
    names: tuple[str, ...], architecture: str, config: Mapping[str, Any], labels: Mapping[int, str]
) -> Entry | None:
    """Return the built-in description of a model, None where there is none.

    Args:
        names: what it calls itself and is called.
        architecture: the class in its configuration.
        config: that.
        labels: names of a classifier's outputs.
    """
    for entry in load_entries():
        match = entry.match
        if (
            match is not None
            and architecture in match.architectures
            and (match.labels is None or match.labels == len(labels))
            and (match.label_names is None or match.label_names == tuple(labels.values()))
            and all(config.get(key) == value for key, value in match.facts.items())
            and (not match.names or any(is_called(name, match.names) for name in names))
        ):
            return entry
    return None


def is_called(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a hub name, or the last part of a path, is one of those that patterns of hub names stand for."""
    name = name.rstrip("/").casefold()
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "~"))
    last = name.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(name, pattern.casefold())
        if is_hub_name
        else fnmatch.fnmatchcase(last, pattern.casefold().rpartition("/")[2])
        for pattern in patterns
    )
