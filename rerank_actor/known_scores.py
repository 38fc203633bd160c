"""Known scores: logits of pairs that were scored before, found by the pair key in a store.

Takes pair keys, gives the logits that are known. Knows nothing of where the scores came from, or of Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rerank_actor.storage.keyed_store import Store, StoreSpec


@dataclass(frozen=True)
class KnownScores:
    """Logits by pair key.

    Attributes:
        kind: what a pair that is found here is counted as.
        store: where they are.
    """

    kind: Literal["reused", "shared"]
    store: StoreSpec

    def find_logits(self, keys: Sequence[str | None]) -> np.ndarray:
        """Return the logit of each pair, NaN where it is not known: float32 [num_pairs].

        Raises:
            ShardError, StorageError, JobError: the store cannot be read.
        """
        found = {row["key"]: row["logit"] for row in Store(self.store).find(key for key in keys if key is not None)}
        return np.array([np.nan if key is None else found.get(key, np.nan) for key in keys], np.float32)
