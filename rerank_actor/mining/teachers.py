"""Several teachers: the scores that some outputs give the same pairs, joined and made one.

Takes the pairs of whole queries as several teachers scored them, gives each pair once: with the combined logit, each
teacher's own, and by how much they differ. Pairs that a teacher lacks are counted, to be refused. Knows nothing of files.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from rerank_actor.engines.base import compute_score

Method = Literal["mean", "min", "max", "zscore", "rank"]
DEFINITIONS: dict[Method, str] = {
    "mean": "the mean of the teachers' logits",
    "min": "the lowest of the teachers' logits",
    "max": "the highest of the teachers' logits",
    "zscore": "the mean of the teachers' z-scores: logits less their mean over the query's candidates, by their deviation",
    "rank": "less the mean of the candidate's ranks (from 1, ties at their mean) in its query by each teacher",
}
CLASSES = 10  # of a query's candidates, of equal size, from the best
COMPARED_CANDIDATES = 200  # of a query, the best ones, whose order two teachers are compared by
KEY = ("document", "document_id", "title")


@dataclass(frozen=True)
class Combination:
    """How the logits of several teachers become one.

    Attributes:
        method: of `DEFINITIONS`.
        weights: of each teacher, in the order of the outputs.
    """

    method: Method
    weights: tuple[float, ...]

    def combine(self, values: np.ndarray) -> np.ndarray:
        """Return one value for each pair: float64 [num_pairs], of comparable values [num_pairs, num_teachers]."""
        if self.method == "min":
            combined: np.ndarray = values.min(axis=1)
        elif self.method == "max":
            combined = values.max(axis=1)
        else:
            combined = values @ (np.array(self.weights) / sum(self.weights))
        return combined


def combine_teachers(table: pa.Table, query: np.ndarray, combination: Combination) -> tuple[pa.Table, dict[str, Any]]:
    """Join the scores of several teachers.

    Args:
        table: all pairs of whole queries, with `teacher`, the number of the output, and NaN where one gave no score.
        query: int64 [num_pairs], number of each pair's query.
        combination: how to make them one.

    Returns:
        The pairs that all teachers scored, as the first one has them, with the combined `score` and `logit`, the `logit_1`,
        `logit_2`, .. of each teacher and `disagreement`, the highest less the lowest of what was combined; and counts: of
        pairs that an output lacks, of those that a teacher could not score, and of what agreement follows from.
    """
    pair, occurrences = _match(table, query)
    teacher, logit = table["teacher"].to_numpy(), table["logit"].to_numpy().astype(np.float64)
    logits = np.full((int(pair.max(initial=-1)) + 1, len(combination.weights)), np.nan)
    logits[pair, teacher] = logit
    first = np.full(len(logits), -1)
    first[pair[::-1]] = np.arange(len(pair))[::-1]
    is_whole = np.isfinite(logits).all(axis=1)
    counts: dict[str, Any] = {
        "pairs_unmatched": int((occurrences < len(combination.weights)).sum()),
        "pairs_without_a_score": int((~is_whole).sum()),
    }
    rows = np.sort(first[is_whole])
    logits = logits[pair[rows]]
    owner = query[rows]
    values = logits
    if combination.method in ("zscore", "rank"):
        scale = _standardize if combination.method == "zscore" else _rank
        values = np.stack([scale(column, owner) for column in logits.T], axis=1)
    combined = combination.combine(values).astype(np.float32)
    joined = table.take(pa.array(rows)).drop_columns(["teacher"])
    for name, column in (("logit", combined), ("score", compute_score(combined))):
        if name in joined.column_names:
            joined = joined.set_column(joined.column_names.index(name), name, pa.array(column, pa.float32()))
    for number, column in enumerate(logits.T):
        joined = joined.append_column(f"logit_{number + 1}", pa.array(column, pa.float32()))
    spread = values.max(axis=1, initial=-np.inf) - values.min(axis=1, initial=np.inf)
    joined = joined.append_column("disagreement", pa.array(spread, pa.float64()))
    return joined, counts | _compare(logits, combined, owner)


def _match(table: pa.Table, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each row's pair, and how many teachers have each pair; what one has twice are two pairs."""
    teacher = table["teacher"].to_numpy()
    codes = [
        table[name].combine_chunks().dictionary_encode().indices.to_numpy()
        for name in KEY
        if name in table.column_names
    ]
    keys = [*codes, query]
    order = np.lexsort((table["position"].to_numpy(), *keys, teacher))
    is_first = _mark_firsts([key[order] for key in (*keys, teacher)])
    starts = np.flatnonzero(is_first)
    occurrence = np.zeros(len(order), np.int64)
    occurrence[order] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    keys = [occurrence, *keys]
    order = np.lexsort(keys)
    pair = np.zeros(len(order), np.int64)
    pair[order] = np.cumsum(_mark_firsts([key[order] for key in keys])) - 1
    return pair, np.bincount(pair)


def _mark_firsts(keys: list[np.ndarray]) -> np.ndarray:
    """Return which rows of some sorted keys differ from the row before."""
    is_first = np.zeros(len(keys[0]), bool)
    is_first[:1] = True
    for key in keys:
        is_first[1:] |= key[1:] != key[:-1]
    return is_first


def _standardize(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return z-scores within each query, 0 where all of its values are equal: float64 [num_pairs]."""
    size = np.maximum(1, np.bincount(query))
    centred = values - (np.bincount(query, values) / size)[query]
    deviation = np.sqrt(np.bincount(query, centred**2) / size)[query]
    standard: np.ndarray = np.where(deviation > 0, centred / np.where(deviation > 0, deviation, 1), 0.0)
    return standard


def _rank(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return minus the rank of each value within its query, from 1 for the highest, ties at their mean."""
    order = np.lexsort((-values, query))
    starts = np.searchsorted(query[order], query[order])
    is_first = _mark_firsts([query[order], values[order]])
    tie = np.cumsum(is_first) - 1
    place = np.arange(len(order)) - starts + 1
    ranks = np.empty(len(order))
    ranks[order] = (np.bincount(tie, place) / np.maximum(1, np.bincount(tie)))[tie] if len(order) else 0.0
    return -ranks


def _classify(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the tenth of its query's candidates that each value is in, from 0 for the highest, ties by their mean rank.

    By their places, two teachers with ties would agree where neither ranks: int64 [num_pairs].
    """
    tenth: np.ndarray = (-_rank(values, query) - 1) * CLASSES // np.maximum(1, np.bincount(query))[query]
    return tenth.astype(np.int64)


def _compare(logits: np.ndarray, combined: np.ndarray, query: np.ndarray) -> dict[str, Any]:
    """Return sums that the agreement of each two teachers follows from, over any number of calls."""
    counts: dict[str, Any] = {}
    order = np.lexsort((-combined, query))
    own = np.split(order, np.flatnonzero(np.diff(query[order])) + 1) if len(order) else []
    tops = [rows[:COMPARED_CANDIDATES] for rows in own if len(rows) > 1]
    signs = [
        [np.sign(logits[rows, None, one] - logits[None, rows, one]) for one in range(logits.shape[1])] for rows in tops
    ]
    classes = [_classify(column, query) for column in logits.T]
    for one, other in itertools.combinations(range(logits.shape[1]), 2):
        x, y = logits[:, one], logits[:, other]
        sums = {"n": len(x), "x": x.sum(), "y": y.sum(), "xx": x @ x, "yy": y @ y, "xy": x @ y}
        taus = [
            float((sign[one] * sign[other]).sum() / np.sqrt((sign[one] ** 2).sum() * (sign[other] ** 2).sum()))
            for sign in signs
            if sign[one].any() and sign[other].any()
        ]
        sums |= {"tau": sum(taus), "queries": len(taus)}
        cells = np.bincount(classes[one] * CLASSES + classes[other], minlength=CLASSES**2)
        sums |= {f"cell{cell}": int(cells[cell]) for cell in np.flatnonzero(cells)}
        counts |= {f"agreement {one + 1} {other + 1} {name}": float(value) for name, value in sums.items()}
    return counts


def list_agreement(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how far each two teachers agree, of the sums of `combine_teachers`' counts.

    Returns:
        Records with `teachers` (numbers from 1), `pairs`, `correlation` (Pearson's, of logits) and `kendall_tau` (tau-b, the
        mean over queries, of each query's 200 best candidates), None where it is not defined; and `classes`, of the pairs in
        each tenth of a query's candidates by the first teacher how many are in each tenth by the second, the best first.
    """
    found = []
    for name in counts:
        if not name.startswith("agreement ") or not name.endswith(" n"):
            continue
        of = {what: counts[f"{name[:-2]} {what}"] for what in ("n", "x", "y", "xx", "yy", "xy", "tau", "queries")}
        spread = (of["n"] * of["xx"] - of["x"] ** 2) * (of["n"] * of["yy"] - of["y"] ** 2)
        _, one, other, _ = name.split()
        found.append(
            {
                "teachers": [int(one), int(other)],
                "pairs": int(of["n"]),
                "correlation": (of["n"] * of["xy"] - of["x"] * of["y"]) / spread**0.5 if spread > 0 else None,
                "kendall_tau": of["tau"] / of["queries"] if of["queries"] else None,
                "classes": [
                    [int(counts.get(f"{name[:-2]} cell{row * CLASSES + place}", 0)) for place in range(CLASSES)]
                    for row in range(CLASSES)
                ],
            }
        )
    return found
