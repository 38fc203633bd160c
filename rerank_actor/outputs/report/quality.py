"""Scores by label and by group: how well they tell relevant pairs, and how they differ by dataset, language or the like.

Takes facts, reads scores, labels and a few columns of a bounded number of parts, evenly from first to last, gives AUC, nDCG and
figures of groups. Labels and groups are the columns that are called so, or those that the user names. Knows nothing of HTML.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytrec_eval

from rerank_actor.errors import InputError, RerankError
from rerank_actor.inputs.rows import Unit
from rerank_actor.job_file import suggest
from rerank_actor.outputs.histograms import LOGIT_FLOOR, LOGIT_WIDTH
from rerank_actor.outputs.labels import read_grades
from rerank_actor.outputs.report.cascade import Cascade, compare_tops, find_earlier
from rerank_actor.outputs.report.facts import Facts
from rerank_actor.outputs.row_groups import open_part
from rerank_actor.outputs.scored_columns import (
    PairRows,
    describe_columns,
    find_column,
    find_field_type,
    find_ids,
)

PARTS = 24
PAIRS = 300_000  # after which no further part is read
LABEL_NAMES = ("label", "labels", "relevance", "is_relevant", "is_selected", "qrel", "grade")
GROUP_NAMES = ("dataset", "subset", "source", "domain", "category", "split", "language", "lang", "lang_pair")
VALUES = 24  # of a group column
DEPTH = 10  # of nDCG


@dataclass(frozen=True)
class Asked:
    """What the user wants to see besides what is found by its name: a label column, and columns to break down by."""

    label: str | None = None
    groups: tuple[str, ...] = ()
    positive_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Pairs with one value of a column. Measures are None where nothing tells them."""

    name: str
    pairs: int
    scored: int
    mean: float | None
    quantiles: tuple[float, ...]
    positives: int | None
    auc: float | None


@dataclass
class Quality:
    """What the sampled parts say.

    Attributes:
        sampled_parts, pairs: that were read.
        label: column with labels, None where there is none that can be read.
        labelled, positives: pairs with a label and a score, and those of them that are relevant.
        auc: the chance that a relevant pair is scored above another one; None without both.
        ndcg, num_queries: mean of nDCG@10 over the queries that have both, and how many these are.
        bins: logits of relevant and of other pairs, by bin.
        groups: by column, those with the most pairs, and how many values it has.
        remarks: what was left out.
        cascade: what the scores changed in an earlier ranking that `--where` goes by, None where it does not.
    """

    sampled_parts: int = 0
    pairs: int = 0
    label: str | None = None
    labelled: int = 0
    positives: int = 0
    auc: float | None = None
    ndcg: float | None = None
    num_queries: int = 0
    bins: dict[str, dict[int, int]] = field(default_factory=dict)
    groups: dict[str, tuple[list[Group], int]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    cascade: Cascade | None = None


@dataclass
class _Pairs:
    """Columns of the sampled pairs; grades are NaN where there is no label, queries empty where nobody names them."""

    scores: list[np.ndarray] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    grades: list[np.ndarray] = field(default_factory=list)
    queries: list[np.ndarray] = field(default_factory=list)
    earlier: list[np.ndarray] = field(default_factory=list)
    groups: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))


def measure_quality(facts: Facts, asked: Asked | None = None) -> Quality:
    """Return what a bounded number of parts say of labels and groups.

    Raises:
        InputError: a column that the user named is not there, or its labels say nothing.
    """
    asked, quality, pairs = asked or Asked(), Quality(), _Pairs()
    units, parts = facts.scored.units, facts.scored.parts
    for at in np.unique(np.linspace(0, len(units) - 1, min(PARTS, len(units))).astype(int)):
        if quality.pairs >= PAIRS:
            break
        try:
            with open_part(parts[at]) as file:
                schema, part_uri = file.schema_arrow, parts[at].uri
                names = _choose(schema, facts.scored.settings, asked, part_uri)
                if names.label is None and not names.groups and names.earlier is None:
                    return quality
                table = file.read(["score", "logit", *names.list_columns(schema)])
        except InputError:
            raise
        except (RerankError, pa.ArrowException, OSError, ValueError, KeyError):
            continue  # jobs.verify says what is wrong with it
        rows, label = PairRows(table, "logit", part_uri), None if quality.remarks else names.label
        try:
            grades = _read_labels(rows, label, asked.positive_labels)
        except InputError as error:
            if asked.label is not None:
                raise
            quality.remarks.append(str(error))
            label, grades = None, _read_labels(rows, None)
        quality.label = label
        quality.pairs += _add_part(pairs, rows, units[at], names, grades)
        quality.sampled_parts += 1
    if quality.pairs:
        _measure(quality, pairs)
        _compare(quality, pairs, names.earlier)
    return quality


@dataclass(frozen=True)
class _Names:
    """The columns with labels, with groups, with what tells queries apart, and with a score that `--where` goes by."""

    label: str | None
    groups: tuple[str, ...]
    query: str | None
    earlier: str | None = None

    def list_columns(self, schema: pa.Schema) -> list[str]:
        """Return the columns that hold them, besides scores."""
        names = (self.label, *self.groups, self.query, self.earlier)
        found = {find_column(schema, name) for name in names if name is not None}
        return sorted(name for name in found if name not in (None, "score", "logit"))


def _choose(schema: pa.Schema, settings: Mapping[str, Any], asked: Asked, uri: str) -> _Names:
    columns = describe_columns(settings, schema)
    for name in (asked.label, *asked.groups):
        if name is not None and find_field_type(schema, name) is None:
            there = ", ".join(schema.names)
            hint = suggest(name, schema.names)
            raise InputError(f"{uri}: has no column `{name}`{hint}; its columns are {there}", uri=uri)
    beside = columns.document.rpartition(".")[0]  # of lists of structs
    names = [f"{beside}.{name}" for name in LABEL_NAMES if beside] + list(LABEL_NAMES)
    label = asked.label or next((name for name in names if find_field_type(schema, name) is not None), None)
    groups = asked.groups or tuple(name for name in GROUP_NAMES if name in schema.names)
    query = find_ids(schema, columns.query_id) or (columns.query if find_field_type(schema, columns.query) else None)
    earlier = find_earlier(settings, schema) if query is not None else None
    return _Names(label, groups, query, earlier)


def _read_labels(rows: PairRows, label: str | None, positive_labels: tuple[str, ...] = ()) -> np.ndarray:
    """Return the grade of each pair, NaN where there is no label."""
    if label is None:
        return np.full(len(rows.spread("logit")), np.nan)
    grades = read_grades(rows, label, positive_labels)
    finite = grades[np.isfinite(grades)]
    if (finite != np.floor(finite)).any():
        raise InputError(
            f"{rows.uri}: column `{label}` holds fractions, which say of no pair whether it is relevant; give the column "
            "of labels with --label-column",
            uri=rows.uri,
            column=label,
        )
    return grades


def _add_part(pairs: _Pairs, rows: PairRows, unit: Unit, names: _Names, grades: np.ndarray) -> int:
    if not len(grades):
        return 0
    pairs.logits.append(rows.spread("logit").cast(pa.float64()).fill_null(np.nan).to_numpy())
    pairs.scores.append(rows.spread("score").cast(pa.float64()).fill_null(np.nan).to_numpy())
    pairs.grades.append(grades)
    if rows.lengths is not None:
        pairs.queries.append(np.repeat([f"{unit.name} {row}" for row in range(len(rows.lengths))], rows.lengths))
    elif names.query is not None:
        with contextlib.suppress(pa.ArrowException):  # of a type that is no text
            pairs.queries.append(_to_words(rows.spread(names.query)))
    if names.earlier is not None and rows.lengths is None:
        pairs.earlier.append(rows.spread(names.earlier).cast(pa.float64()).fill_null(np.nan).to_numpy())
    for name in names.groups:
        pairs.groups[name].append(_to_words(rows.spread(name)))
    return len(grades)


def _to_words(column: pa.ChunkedArray) -> np.ndarray:
    """Return values as text: object [num_pairs], null as nothing."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        column = pa.chunked_array([pa.array([str(value) for value in column.to_pylist()], pa.large_string())])
    words: np.ndarray = column.cast(pa.large_string()).fill_null("null").to_numpy()
    return words


def _measure(quality: Quality, pairs: _Pairs) -> None:
    logits, scores, grades = (np.concatenate(one) for one in (pairs.logits, pairs.scores, pairs.grades))
    is_scored = np.isfinite(logits)
    is_known, positive = is_scored & ~np.isnan(grades), grades >= 1
    if quality.label is not None:
        quality.labelled, quality.positives = int(is_known.sum()), int((is_known & positive).sum())
        quality.auc = compute_auc(logits[is_known], positive[is_known])
        for name, mask in (("relevant", positive), ("not relevant", ~positive)):
            bins = np.floor((logits[is_known & mask] - LOGIT_FLOOR) / LOGIT_WIDTH).astype(np.int64)
            numbers, counts = np.unique(bins, return_counts=True)
            quality.bins[name] = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        queries = np.concatenate(pairs.queries) if pairs.queries else np.zeros(0, object)
        if len(queries) == len(logits):
            quality.ndcg, quality.num_queries = _compute_ndcg(queries[is_known], logits[is_known], grades[is_known])
    for name, words in pairs.groups.items():
        values = np.concatenate(words)
        found = list(
            _split_groups(values, scores, logits, is_scored, is_known, positive, has_label=bool(quality.label))
        )
        quality.groups[name] = sorted(found, key=lambda group: -group.pairs)[:VALUES], len(found)


def _compare(quality: Quality, pairs: _Pairs, column: str | None) -> None:
    """Say what the scores changed in an earlier ranking, where each pair has its place in one."""
    logits, earlier, queries = (
        np.concatenate(one) if one else np.zeros(0) for one in (pairs.logits, pairs.earlier, pairs.queries)
    )
    if column is not None and len(earlier) == len(queries) == len(logits):
        quality.cascade = compare_tops(column, queries, earlier, logits)


def _split_groups(
    values: np.ndarray,
    scores: np.ndarray,
    logits: np.ndarray,
    is_scored: np.ndarray,
    is_known: np.ndarray,
    positive: np.ndarray,
    *,
    has_label: bool,
) -> Iterator[Group]:
    names, numbers = np.unique(values.astype(str), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    for name, rows in zip(names, np.split(order, np.cumsum(np.bincount(numbers))[:-1]), strict=True):
        scored, known = rows[is_scored[rows]], rows[is_known[rows]]
        yield Group(
            str(name),
            len(rows),
            len(scored),
            float(scores[scored].mean()) if len(scored) else None,
            tuple(np.quantile(scores[scored], (0.1, 0.5, 0.9)).tolist()) if len(scored) else (),
            int(positive[known].sum()) if has_label else None,
            compute_auc(logits[known], positive[known]) if has_label else None,
        )


def compute_auc(values: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the chance that a positive has a higher value than another one, ties as half; None without both kinds."""
    num_positives, num_others = int(positive.sum()), int((~positive).sum())
    if not num_positives or not num_others:
        return None
    _, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[numbers]  # from 1, the mean of those that are equal
    return float((ranks[positive].sum() - num_positives * (num_positives + 1) / 2) / (num_positives * num_others))


def _compute_ndcg(queries: np.ndarray, logits: np.ndarray, grades: np.ndarray) -> tuple[float | None, int]:
    """Return the mean nDCG of the queries that have relevant and other pairs, and how many these are."""
    gains = np.where(np.isinf(grades), grades > 0, np.maximum(grades, 0)).astype(np.int64)
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    scored: dict[str, dict[str, float]] = defaultdict(dict)
    for row, (query, gain, logit) in enumerate(zip(queries.tolist(), gains.tolist(), logits.tolist(), strict=True)):
        judged[query][str(row)] = gain
        scored[query][str(row)] = logit
    kept = {
        query: found for query, found in judged.items() if 0 < sum(gain > 0 for gain in found.values()) < len(found)
    }
    if not kept:
        return None, 0
    measure = f"ndcg_cut.{DEPTH}"
    evaluator: Any = pytrec_eval.RelevanceEvaluator(kept, {measure})
    values = evaluator.evaluate({query: scored[query] for query in kept}).values()
    return float(np.mean([one[measure.replace(".", "_")] for one in values])), len(kept)
