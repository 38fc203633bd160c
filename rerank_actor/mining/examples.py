"""The chosen: what was selected of some queries, with texts and teacher values, in the shape that formats want.

Takes a table of pairs and a selection, gives row numbers grouped by query, and the values to write beside passages:
scores or logits as stored, or at a temperature, or normalized over the passages of their query. Knows no format.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from rerank_actor.engines.base import compute_score
from rerank_actor.mining.near_duplicates import expand
from rerank_actor.mining.select import Selection


@dataclass(frozen=True)
class Teacher:
    """Which value goes beside a passage: a score or a logit, at a temperature, normalized for each query."""

    value: Literal["none", "score", "logit"] = "none"
    normalize: Literal["none", "min-max", "softmax"] = "none"
    temperature: float | None = None


@dataclass(frozen=True)
class TrainingExamples:
    """Positives and negatives of the kept queries.

    Attributes:
        table: the pairs, with a string column for each role.
        positives, negatives: row numbers, by query.
        ranking: row numbers of all candidates of the kept queries, by query and falling value.
        num_positives, num_negatives, num_ranked: int64 [num_queries], of each kept query.
        teacher: float32 [num_pairs], values of positives and negatives, NaN elsewhere; None where none are wanted.
        own: float32 [num_pairs] of each of several teachers, by its number from 1, as they gave it.
    """

    table: pa.Table
    positives: np.ndarray
    negatives: np.ndarray
    ranking: np.ndarray
    num_positives: np.ndarray
    num_negatives: np.ndarray
    num_ranked: np.ndarray
    teacher: np.ndarray | None
    own: Mapping[int, np.ndarray] = field(default_factory=dict)

    @property
    def num_queries(self) -> int:
        """Kept queries."""
        return len(self.num_positives)

    @property
    def first_positives(self) -> np.ndarray:
        """The row of each kept query's first positive."""
        rows: np.ndarray = self.positives[np.cumsum(self.num_positives) - self.num_positives]
        return rows

    def split(self, num_queries: int) -> Iterator["TrainingExamples"]:
        """Yield the queries in runs of at most so many."""
        for start in range(0, self.num_queries, num_queries):
            queries = slice(start, start + num_queries)
            yield TrainingExamples(
                table=self.table,
                positives=_cut(self.positives, self.num_positives, queries),
                negatives=_cut(self.negatives, self.num_negatives, queries),
                ranking=_cut(self.ranking, self.num_ranked, queries),
                num_positives=self.num_positives[queries],
                num_negatives=self.num_negatives[queries],
                num_ranked=self.num_ranked[queries],
                teacher=self.teacher,
                own=self.own,
            )

    def pair_up(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of all pairs of a positive and a negative of one query, by positive and then negative."""
        number = self.negatives_of_positives()
        starts = np.repeat(np.cumsum(self.num_negatives) - self.num_negatives, self.num_positives)
        return np.repeat(self.positives, number), self.negatives[expand(starts, number)]

    def negatives_of_positives(self) -> np.ndarray:
        """Return how many negatives the query of each positive has: int64 [num_positives]."""
        return np.repeat(self.num_negatives, self.num_positives)


def group_examples(table: pa.Table, query: np.ndarray, selection: Selection, teacher: Teacher) -> TrainingExamples:
    """Return the selected examples, by kept query.

    Args:
        table: the pairs.
        query: int64 [num_pairs], number of each pair's query.
        selection: of these pairs.
        teacher: the values to add.
    """
    kept, positive_query = np.unique(query[selection.positives], return_inverse=True)
    negative_query = np.searchsorted(kept, query[selection.negatives])
    ranked_query = np.searchsorted(kept, query[selection.ranking])
    values = None
    if teacher.value != "none":
        rows = np.concatenate([selection.positives, selection.negatives])
        owner = np.concatenate([positive_query, negative_query])
        values = np.full(table.num_rows, np.nan, np.float32)
        values[rows] = compute_teacher(table, rows, owner, len(kept), teacher)
    return TrainingExamples(
        table=table,
        positives=selection.positives,
        negatives=selection.negatives,
        ranking=selection.ranking,
        num_positives=np.bincount(positive_query, minlength=len(kept)),
        num_negatives=np.bincount(negative_query, minlength=len(kept)),
        num_ranked=np.bincount(ranked_query, minlength=len(kept)),
        teacher=values,
        own=_list_own(table, teacher),
    )


def _list_own(table: pa.Table, teacher: Teacher) -> dict[int, np.ndarray]:
    """Return what each of several teachers gave, its logit or the sigmoid of that, none where no value is wanted."""
    numbers = [int(name[6:]) for name in table.column_names if name.startswith("logit_")]
    own = {number: table[f"logit_{number}"].to_numpy() for number in numbers if teacher.value != "none"}
    return own if teacher.value == "logit" else {number: compute_score(values) for number, values in own.items()}


def _cut(rows: np.ndarray, number: np.ndarray, queries: slice) -> np.ndarray:
    """Return the rows of some queries, of which each has a number of them."""
    start = int(number[: queries.start].sum())
    return rows[start : start + int(number[queries].sum())]


def compute_teacher(
    table: pa.Table, rows: np.ndarray, query: np.ndarray, num_queries: int, teacher: Teacher
) -> np.ndarray:
    """Return the teacher's value of some pairs: float32 [num_rows].

    A temperature divides the logit; a score is the sigmoid of that. `min-max` maps the lowest value of a query to 0 and
    the highest to 1 (all to 0.5 where they are equal); `softmax` makes the values of a query sum to 1.
    """
    if teacher.temperature is not None:
        values: np.ndarray = table["logit"].to_numpy()[rows].astype(np.float64) / teacher.temperature
        if teacher.value == "score":
            values = 1.0 / (1.0 + np.exp(-values))
    else:
        values = table[teacher.value].to_numpy()[rows].astype(np.float64)
    if teacher.normalize == "none" or not len(rows):
        return values.astype(np.float32)
    lowest, highest = np.full(num_queries, np.inf), np.full(num_queries, -np.inf)
    np.minimum.at(lowest, query, values)
    np.maximum.at(highest, query, values)
    if teacher.normalize == "min-max":
        span = (highest - lowest)[query]
        normalized = np.where(span > 0, (values - lowest[query]) / np.where(span > 0, span, 1.0), 0.5)
    else:
        weight = np.exp(values - highest[query])
        normalized = weight / np.bincount(query, weight, minlength=num_queries)[query]
    return normalized.astype(np.float32)
