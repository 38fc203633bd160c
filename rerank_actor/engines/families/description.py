"""What a reranker is, in one frozen description: its prompt, its head, what its logit means and what can run it.

Encoders read the prompt from it, engines the head, whoever writes scores the scale. Knows nothing of files: `detect`
finds the description of a model folder.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from rerank_actor.engines.template import Template

Loading = Literal["as_is", "native", "bidirectional", "renamed_xlm_roberta", "sequence_to_sequence", "folded"]


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
class ScoreScale:
    """The score of a logit is `sigmoid((logit - shift) / scale)`; the logit itself is the model's raw output."""

    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Runtime:
    """What runs the model.

    Attributes:
        vllm: the class that vLLM is given, empty where it has none.
        without_vllm: why vLLM cannot run it.
        loading: how its weights become a model: as they lie; by Transformers' own class though the folder names another
            (`native`); with attention both ways and the mean of all tokens; as plain XLM-R under other names; as an encoder
            and a decoder; or folded, where modules that follow the model are the head of a classifier.
    """

    vllm: str
    without_vllm: str = ""
    loading: Loading = "as_is"


@dataclass(frozen=True)
class ModelDescription:
    """One reranker.

    Attributes:
        name: of the family; stands in outputs as `template`.
        template: the prompt, and which of its texts loses tokens.
        head: what the logit is read from.
        runtime: what runs it.
        score: how the score follows from the logit.
        group: what is scored at once; a pair, until listwise models are known.
    """

    name: str
    template: Template
    head: TokenHead | LabelHead
    runtime: Runtime
    score: ScoreScale = field(default_factory=ScoreScale)
    group: Literal["pair"] = "pair"

    @property
    def auto_class(self) -> str:
        """Class of Transformers by which the model is loaded."""
        return "AutoModelForCausalLM" if isinstance(self.head, TokenHead) else "AutoModelForSequenceClassification"

    @property
    def digest(self) -> str:
        """Short hash of all that can change a logit or a score, for the fingerprint."""
        described = {**asdict(self), "template": self.template.digest}
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
