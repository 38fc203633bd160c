"""The classes of vLLM 0.32 that give a model's logits, and the settings of a model that they leave unread.

Takes a class, a head and a parsed `config.json`; gives the reason why vLLM would compute something else than Transformers.
Each setting was found by comparing the two in float32 on random weights. Knows nothing of prompts.
"""

from collections.abc import Mapping
from typing import Any

from rerank_actor.engines.families.description import DECODERS, EmbeddingHead, LabelHead, TokenHead

# Classes of Transformers that vLLM has as classifiers or turns into one.
CLASSIFIERS = frozenset(
    """BertForSequenceClassification RobertaForSequenceClassification XLMRobertaForSequenceClassification
    ModernBertForSequenceClassification Qwen2ForSequenceClassification Qwen3ForSequenceClassification
    LlamaForSequenceClassification MistralForSequenceClassification GemmaForSequenceClassification
    Gemma2ForSequenceClassification LlamaBidirectionalForSequenceClassification
    GteNewForSequenceClassification""".split()  # noqa: SIM905 - a table
)
# Stem of a class, a setting, and what it is in vLLM whatever `config.json` says. A bias of the attention's last layer has no
# place in Qwen3, none of the attention has in Gemma; both are left out without a word.
FIXED: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("ModernBert", "classifier_activation", ("gelu",)),
    ("Qwen3", "attention_bias", (False,)),
    ("Gemma", "attention_bias", (False,)),
    ("Gemma", "hidden_act", ("gelu", "gelu_pytorch_tanh")),
    ("Gemma", "hidden_activation", ("gelu_pytorch_tanh",)),
    ("Gemma", "is_causal", (True,)),
    ("Gemma", "use_bidirectional_attention", (False,)),
    ("Gemma2", "is_causal", (True,)),
)
GEMMA2_SOFTCAP = 30.0  # what Transformers takes where `final_logit_softcapping` is not written


def find_unread(
    architecture: str, head: TokenHead | LabelHead | EmbeddingHead, config: Mapping[str, Any]
) -> str | None:
    """Return why vLLM would give another result than Transformers, in words; None where it reads what there is to read."""
    stem = architecture.partition("For")[0].removesuffix("Model")
    for own, key, values in FIXED:
        if own == stem and config.get(key) is not None and config[key] not in values:
            return f"vLLM 0.32 does not follow {key} {config[key]} of this {architecture}"
    if stem in DECODERS and not isinstance(head, EmbeddingHead) and config.get("is_causal") is False:
        return f"{architecture} with is_causal False shares no beginnings of prompts, and vLLM 0.32 was not compared with it"
    capped = config.get("final_logit_softcapping", GEMMA2_SOFTCAP) is not None
    if stem == "Gemma2" and isinstance(head, TokenHead) and capped:
        return f"vLLM 0.32 does not follow final_logit_softcapping of this {architecture}"
    return None
