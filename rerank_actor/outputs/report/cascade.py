"""Cascades: what the scores of a larger model change in the rankings of a smaller one, where `--where` chose what it scored.

Takes an earlier value and the new logit of some pairs, gives how many queries have other ten best. Pairs that were passed
through keep their place, and those that both scored share out their places by the new logit. Knows nothing of files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rerank_actor.inputs.where.expression import parse_where

DEPTH = 10
OWN = ("score", "logit")  # the new ones
SCORE_NAME = re.compile("score|logit|similarity", re.IGNORECASE)


@dataclass(frozen=True)
class Cascade:
    """How the new scores changed rankings.

    Attributes:
        column: the earlier value.
        pairs: that have both.
        queries: that have a pair with both, and one to change places with.
        others, reordered: of these, whose ten best are other documents, and those whose ten best are in another order alone.
    """

    column: str
    pairs: int
    queries: int
    others: int
    reordered: int


def find_earlier(settings: Mapping[str, Any], schema: pa.Schema) -> str | None:
    """Return the one score of an earlier ranking that `--where` wants more of, None where there is none or are several.

    It is called a score, logit or similarity and holds fractions, one a row; a distance or a price ranks otherwise.

    Args:
        settings: that the output was scored with; the expression has names of the input.
        schema: of the output.
    """
    try:
        columns = parse_where(str(settings["where"])).floored if settings.get("where") else ()
    except ValueError:
        return None
    renamed = settings.get("rename_columns") or {}
    names = [str(renamed.get(name, name)) for name in columns if SCORE_NAME.search(name)]
    known = [schema.field(name) for name in names if name in schema.names and name not in OWN]
    found = [field.name for field in known if pa.types.is_floating(field.type)]
    return found[0] if len(found) == 1 else None


def compare_tops(column: str, queries: np.ndarray, earlier: np.ndarray, logits: np.ndarray) -> Cascade:
    """Compare the ten best of each query before and after.

    Args:
        column: the earlier value's.
        queries: [num_pairs], numbers that tell queries apart.
        earlier: float64 [num_pairs], NaN where there is none; such pairs do not count.
        logits: float64 [num_pairs], NaN for what was passed through or has an error.
    """
    known = np.isfinite(earlier)
    _, query = np.unique(queries[known], return_inverse=True)
    earlier, logits = earlier[known], logits[known]
    before = np.lexsort((-earlier, query))
    after, is_scored = before.copy(), np.isfinite(logits)
    rows = np.flatnonzero(is_scored)
    after[is_scored[before]] = rows[np.lexsort((-logits[rows], query[rows]))]
    sizes = np.bincount(query)
    rank = np.arange(len(before)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    top, owner = rank < DEPTH, query[before]
    was_top = np.zeros(len(before), bool)
    was_top[before[top]] = True
    has_other, is_moved = np.zeros(len(sizes), bool), np.zeros(len(sizes), bool)
    has_other[owner[top & ~was_top[after]]] = True
    is_moved[owner[top & (before != after)]] = True
    compared = (np.bincount(query[rows], minlength=len(sizes)) > 0) & (sizes > 1)
    return Cascade(
        column, len(rows), int(compared.sum()), int((has_other & compared).sum()), int((is_moved & ~has_other).sum())
    )
