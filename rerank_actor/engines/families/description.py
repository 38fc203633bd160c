"""What a reranker is, in one frozen description: its prompt, its head, what its logit means and what can run it.

Encoders read the prompt from it, engines the head, whoever writes scores the scale. Knows nothing of files: `detect`
finds the description of a model folder.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from rerank_actor.engines.template import Template

Loading = Literal["as_is", "native", "bidirectional", "renamed_xlm_roberta", "gte", "sequence_to_sequence", "folded"]


@dataclass(frozen=True)
class TokenHead:
    """The logit is that of a token after the prompt, less that of another: of `true_id`, and `false_id` or nothing."""

    true_id: int
    false_id: int | None = None


@dataclass(frozen=True)
class LabelHead:
    """The logit is an output of a classifier, less another: label `row`, and `minus` or nothing."""

    row: int = 0
    minus: int | None = None


@dataclass(frozen=True)
class EmbeddingHead:
    """There is no logit, but a normalised vector of a text.

    Attributes:
        pooling: which hidden states of the last layer it is made of.
        width: numbers of the model's own vectors.
        size: numbers of the vectors that are kept, the first of them, which are normalised again.
        stored: type of the numbers in outputs.
    """

    pooling: Literal["last", "mean", "cls"]
    width: int
    size: int
    stored: Literal["float32", "float16"] = "float32"

    def to_metadata(self) -> dict[str, str]:
        """Return what parts keep of it."""
        return {"embedding_size": str(self.size), "embedding_type": self.stored}


@dataclass(frozen=True)
class ScoreScale:
    """The score of a logit is `sigmoid((logit - shift) / scale)`; the logit itself is the model's raw output."""

    scale: float = 1.0
    shift: float = 0.0

    def to_metadata(self) -> dict[str, str]:
        """Return what parts keep of it: nothing where the score is the sigmoid of the logit."""
        return {} if self == ScoreScale() else {"score_scale": repr(self.scale), "score_shift": repr(self.shift)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "ScoreScale":
        """Inverse of `to_metadata`."""
        return cls(float(metadata.get("score_scale", 1.0)), float(metadata.get("score_shift", 0.0)))


@dataclass(frozen=True)
class Runtime:
    """What runs the model.

    Attributes:
        vllm: the class that vLLM is given, empty where it has none.
        without_vllm: why vLLM cannot run it.
        loading: how its weights become a model: as they lie; by Transformers' own class though the folder names another
            (`native`); with attention both ways and the mean of all tokens; as plain XLM-R under other names; as the GTE of
            Transformers (`gte`); as an encoder and a decoder; or folded, where modules that follow the model are the head of
            a classifier.
    """

    vllm: str
    without_vllm: str = ""
    loading: Loading = "as_is"


DECODERS = ("Qwen2", "Qwen3", "Llama", "Mistral", "Gemma", "Gemma2")  # stems of their classes


@dataclass(frozen=True)
class ModelDescription:
    """One reranker, or one embedding model.

    Attributes:
        name: of the family; stands in outputs as `template`.
        template: the prompt, and which of its texts loses tokens.
        head: what the logit is read from, or the vector.
        runtime: what runs it.
        score: how the score follows from the logit.
        group: what is scored at once; a pair, until listwise models are known.
    """

    name: str
    template: Template
    head: TokenHead | LabelHead | EmbeddingHead
    runtime: Runtime
    score: ScoreScale = field(default_factory=ScoreScale)
    group: Literal["pair"] = "pair"

    def explain(self) -> dict[str, str]:
        """Return in words what `logit` and `score` of an output are."""
        head = self.head
        if isinstance(head, EmbeddingHead):
            states = {"last": "of the last token", "mean": "of all tokens, their mean", "cls": "of the first token"}
            cut = "" if head.size == head.width else f", the first {head.size} of {head.width} numbers"
            return {"embedding": f"the hidden state {states[head.pooling]}{cut}, normalised"}
        if isinstance(head, TokenHead):
            first, second = (f"the logit of token {token} after the prompt" for token in (head.true_id, head.false_id))
            logit = first if head.false_id is None else f"{first} less {second}"
        else:
            logit = f"output {head.row} of the classifier" + (
                "" if head.minus is None else f" less output {head.minus}"
            )
        shifted = "logit" if not self.score.shift else f"(logit - {self.score.shift:g})"
        scaled = shifted if self.score.scale == 1 else f"{shifted} / {self.score.scale:g}"
        return {"logit": logit, "score": f"sigmoid({scaled})"}

    def to_metadata(self) -> dict[str, str]:
        """Return what parts keep of how their values are to be read."""
        return self.head.to_metadata() if isinstance(self.head, EmbeddingHead) else self.score.to_metadata()

    @property
    def is_encoder(self) -> bool:
        """Whether tokens see those after them, so that prompts share nothing that could be cached."""
        stem = self.runtime.vllm.removesuffix("ForSequenceClassification")
        if isinstance(self.head, EmbeddingHead):
            return stem.removesuffix("ForCausalLM") not in DECODERS
        return self.runtime.loading == "bidirectional" or (isinstance(self.head, LabelHead) and stem not in DECODERS)

    @property
    def auto_class(self) -> str:
        """Class of Transformers by which the model is loaded."""
        if self.runtime.loading == "sequence_to_sequence":
            return "AutoModelForSeq2SeqLM"
        if isinstance(self.head, EmbeddingHead):
            return "AutoModel"
        return "AutoModelForCausalLM" if isinstance(self.head, TokenHead) else "AutoModelForSequenceClassification"

    @property
    def digest(self) -> str:
        """Short hash of all that can change a logit or a score, for the fingerprint; a reason in words is none of it."""
        runtime = {**asdict(self.runtime), "without_vllm": ""}
        described = {**asdict(self), "template": self.template.digest, "runtime": runtime}
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
