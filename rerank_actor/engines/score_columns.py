"""The columns that a score is told in: `score`, `logit`, `num_tokens`, `truncated_tokens` and `error`, a value for each pair.

Takes prompts and logits, gives Arrow arrays. Knows nothing of rows and parts.
"""

import numpy as np
import pyarrow as pa

from rerank_actor.engines.base import compute_score
from rerank_actor.engines.families.description import ScoreScale
from rerank_actor.engines.prompts import Prompts

NOT_FINITE = "engine returned a logit that is not finite"


def list_errors(prompts: Prompts, logits: np.ndarray) -> np.ndarray:
    """Return why each pair has no score: object [num_pairs], None where it has one."""
    errors = prompts.errors.to_numpy(zero_copy_only=False)
    return np.where((errors == None) & ~np.isfinite(logits), NOT_FINITE, errors)  # noqa: E711 - elementwise


def make_score_columns(
    prompts: Prompts, logits: np.ndarray, errors: np.ndarray, scale: ScoreScale | None = None
) -> dict[str, pa.Array]:
    """Return the columns of some pairs.

    Args:
        prompts: of the pairs.
        logits: float32 [num_pairs], anything where a pair has an error.
        errors: object [num_pairs], why a pair has no score, else None.
        scale: how the score follows from the logit; None for its sigmoid.
    """
    scored = errors == None  # noqa: E711 - elementwise
    return {
        "score": pa.array(compute_score(logits, scale), pa.float32(), mask=~scored),
        "logit": pa.array(logits, pa.float32(), mask=~scored),
        "num_tokens": pa.array(np.where(scored, prompts.num_tokens, 0), pa.int32()),
        "truncated_tokens": pa.array(np.where(scored, prompts.truncated_tokens, 0), pa.int32()),
        "error": pa.array(errors, pa.string()),
    }
