"""p-MRR of FollowIR: how far a changed instruction moves the documents whose relevance it changes, from -1 to 1.

A query stands in the judgements twice, as `ID-og` with the original instruction and as `ID-changed`; the documents that count
are those whose relevance differs between the two, where one that is not judged is not relevant. Takes their ranks, gives a
value for each such query, as MTEB defines it: a document that goes down counts positive. Knows nothing of outputs.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from rerank_actor.errors import InputError
from rerank_actor.evaluation.measures import Judgements

ORIGINAL, CHANGED = "-og", "-changed"


def find_changed(judgements: Judgements) -> dict[str, list[str]]:
    """Return the documents whose relevance a changed instruction changes, by the query's id without its ending.

    Raises:
        InputError: there are none.
    """
    found: dict[str, list[str]] = {}
    for query, after in judgements.items():
        name = query.removesuffix(CHANGED)
        before = judgements.get(name + ORIGINAL)
        if name == query or before is None:
            continue
        documents = [one for one in {**before, **after} if before.get(one, 0) != after.get(one, 0)]
        if documents:
            found[name] = documents
    if not found:
        raise InputError(
            "--measures p-mrr: no query is judged as ID-og and as ID-changed with documents of another relevance, as the "
            "tasks of FollowIR have them; leave p-mrr out"
        )
    return found


def rank_documents(scores: Mapping[str, float], documents: Iterable[str]) -> list[int]:
    """Return the rank of each document, from 1; behind the last where it is no candidate."""
    order = sorted(scores, key=lambda name: (scores[name], name), reverse=True)
    ranks = {name: rank for rank, name in enumerate(order, start=1)}
    return [ranks.get(name, len(ranks) + 1) for name in documents]


def compute_p_mrr(before: Iterable[int], after: Iterable[int]) -> float:
    """Return the mean over documents of how far they went, from their ranks with both instructions."""
    moved = [new / old - 1 if old >= new else 1 - old / new for old, new in zip(before, after, strict=True)]
    return float(np.mean(moved))
