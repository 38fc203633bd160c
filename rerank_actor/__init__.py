"""Score query-document pairs with an LLM reranker, from one call in Python to a job over billions of pairs.

`Reranker` scores pairs in this process, `score_job` runs the distributed job, which is also started by `rerank score` or
`python -m jobs.score`, and `RerankStage` is a stage of a Ray Data pipeline. Importing this package loads neither Ray, torch
nor vLLM.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_actor.api.job import score_job
    from rerank_actor.api.stage import RerankStage
    from rerank_actor.reranker import Reranker

__all__ = ["RerankStage", "Reranker", "__version__", "score_job"]
__version__ = "0.1.0"

_HOMES = {
    "RerankStage": "rerank_actor.api.stage",
    "Reranker": "rerank_actor.reranker",
    "score_job": "rerank_actor.api.job",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
