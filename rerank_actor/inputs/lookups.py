"""Lookups: from ids in the rows of a unit to the texts that they stand for.

Takes ids, one a pair, and a finished store of texts; gives a text for each pair, or why there is none. Memory is bounded by
the unit: of the store only the rows that were asked for are kept. Knows nothing of where ids come from or of prompts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from rerank_actor.inputs.ids import read_id
from rerank_actor.inputs.pairs import Pairs
from rerank_actor.storage.keyed_store import KeyedStore, StoreSpec

Role = Literal["query", "document"]

ID_NULL = "{role} id is null"
ID_NOT_TEXT = "{role} id is neither text nor a whole number"
ID_MISSING = {"query": "query id is not in --queries", "document": "document id is not in --corpus"}
ID_AMBIGUOUS = {
    "query": "query id has more than one text in --queries",
    "document": "document id has more than one text in --corpus",
}


@dataclass(frozen=True)
class TextLookup:
    """Texts of one role, to be found by id."""

    role: Role
    store: StoreSpec

    def load_texts(self, ids: Sequence[Any]) -> tuple[list[str | None], dict[int, str]]:
        """Return the text of each id, and why there is none, by position; a null text is the encoder's to judge.

        Raises:
            ShardError, StorageError, JobError: the store cannot be read.
        """
        keys = [read_id(value) for value in ids]
        values: dict[str, tuple[str | None, str | None]] = {}
        for row in KeyedStore(self.store).find(key for key in keys if key is not None):
            value = row["text"], f"{self.role} {row['fault']}" if row["fault"] else None
            if values.setdefault(row["key"], value) != value:
                values[row["key"]] = None, ID_AMBIGUOUS[self.role]
        texts: list[str | None] = []
        faults: dict[int, str] = {}
        for position, (value, key) in enumerate(zip(ids, keys, strict=True)):
            text, fault = values.get(key, (None, ID_MISSING[self.role])) if key is not None else (None, None)
            if key is None:
                fault = (ID_NULL if value is None else ID_NOT_TEXT).format(role=self.role)
            texts.append(text)
            if fault is not None:
                faults[position] = fault
        return texts, faults


def look_up_texts(pairs: Pairs, lookups: Iterable[TextLookup]) -> tuple[Pairs, dict[int, str]]:
    """Return pairs with the texts of their ids, and why an id has none, by position of the pair.

    Raises:
        ShardError, StorageError, JobError: a store cannot be read.
    """
    missing: dict[int, str] = {}
    for lookup in lookups:
        is_query = lookup.role == "query"
        texts, faults = lookup.load_texts(pairs.queries if is_query else pairs.documents)
        pairs = replace(pairs, queries=texts) if is_query else replace(pairs, documents=texts)
        missing = {**faults, **missing}
    return pairs, missing


@dataclass(frozen=True)
class ScoreLookup:
    """Logits by pair key.

    Attributes:
        kind: what a pair that is found here is counted as.
        store: where they are.
    """

    kind: Literal["reused", "shared"]
    store: StoreSpec

    def load_logits(self, keys: Sequence[str | None]) -> np.ndarray:
        """Return the logit of each pair, NaN where it is not known: float32 [num_pairs].

        Raises:
            ShardError, StorageError, JobError: the store cannot be read.
        """
        logits = {
            row["key"]: row["logit"] for row in KeyedStore(self.store).find(key for key in keys if key is not None)
        }
        return np.array([np.nan if key is None else logits.get(key, np.nan) for key in keys], np.float32)
