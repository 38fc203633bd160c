"""The configuration under which vLLM runs gte-multilingual-reranker: its own class asks for one by the name `NewConfig`.

Takes the configuration that Transformers has read of the converted folder, gives the same one as that class, so that no code
of the model's own is needed. A module of its own, so that vLLM's workers in other processes can import it. vLLM 0.32.
"""

from typing import Any

from transformers import GteConfig

NewConfig: Any = type("NewConfig", (GteConfig,), {"__doc__": "Transformers' configuration of a GTE, as vLLM calls it."})


def take_class(config: Any) -> Any:
    """Return a configuration as vLLM's GteNewForSequenceClassification takes it."""
    config.__class__ = NewConfig
    config.architectures = ["GteNewForSequenceClassification"]
    config.position_embedding_type = "rope"
    return config
