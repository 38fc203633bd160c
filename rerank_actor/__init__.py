"""Score query-document pairs with an LLM reranker, from one call in Python to a job over billions of pairs.

`Reranker` scores pairs in this process. The distributed job is `rerank_actor.scoring.run.run_job`, started by
`rerank score` or `python -m jobs.score`. Importing this package loads neither Ray, torch nor vLLM.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_actor.reranker import Reranker

__all__ = ["Reranker", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Reranker":
        from rerank_actor.reranker import Reranker

        return Reranker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
