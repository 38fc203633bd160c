"""Duplicates: pairs of a unit that are the same, of which one is scored and the others get its logit.

The same are pairs with equal instruction, query and document; equal texts give equal prompts, so that a copied score is the
one that scoring again would give. Knows nothing of rows, engines or Ray.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def find_originals(queries: Sequence[Any], documents: Sequence[Any], instructions: Sequence[Any] | None) -> np.ndarray:
    """Return for each pair the position of the first that is the same: int32 [num_pairs].

    A pair with anything but text is the same as no other.
    """
    first: dict[tuple[Any, str, str], int] = {}
    found = np.arange(len(queries), dtype=np.int32)
    given = instructions if instructions is not None else [None] * len(queries)
    for position, (query, document, instruction) in enumerate(zip(queries, documents, given, strict=True)):
        if type(query) is str and type(document) is str and (instruction is None or type(instruction) is str):
            found[position] = first.setdefault((instruction, query, document), position)
    return found
