"""The pair key: what a pair is by its content, so that a score can be found again in another output.

128 bits of BLAKE2 over the lengths and the UTF-8 bytes of instruction, query and document, as 32 hex digits. Two pairs
have the same key where they have the same three texts, whatever shard, row, id or job they are of; the model is not in it,
because scores are reused under one fingerprint alone.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rerank_actor.storage.utf8 import is_unicode

PAIR_KEY = "pair_key"


def make_pair_keys(
    queries: Sequence[Any], documents: Sequence[Any], instructions: Sequence[Any] | None, instruction: str
) -> list[str | None]:
    """Return the key of each pair, None for a pair with anything but text.

    Args:
        queries: one for each pair.
        documents: as many.
        instructions: as many, or None; None or null takes `instruction`.
        instruction: the job's own.
    """
    given = instructions if instructions is not None else [None] * len(queries)
    heads: dict[tuple[str, str], Any] = {}
    keys: list[str | None] = []
    for query, document, task in zip(queries, documents, given, strict=True):
        task = instruction if task is None else task
        if not all(type(text) is str and is_unicode(text) for text in (task, query, document)):
            keys.append(None)
            continue
        head = heads.get((task, query))
        if head is None:
            head = heads[task, query] = hashlib.blake2b(digest_size=16)
            _update(head, task)
            _update(head, query)
        digest = head.copy()
        _update(digest, document)
        keys.append(digest.hexdigest())
    return keys


def _update(digest: Any, text: str) -> None:
    data = text.encode()
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def compute_originals(
    queries: Sequence[Any], documents: Sequence[Any], instructions: Sequence[Any] | None
) -> np.ndarray:
    """Return for each pair the position of the first that is the same: int32 [num_pairs].

    A pair with anything but text is the same as no other.
    """
    first: dict[tuple[Any, str, str], int] = {}
    originals = np.arange(len(queries), dtype=np.int32)
    given = instructions if instructions is not None else [None] * len(queries)
    for position, (query, document, instruction) in enumerate(zip(queries, documents, given, strict=True)):
        if type(query) is str and type(document) is str and (instruction is None or type(instruction) is str):
            originals[position] = first.setdefault((instruction, query, document), position)
    return originals
