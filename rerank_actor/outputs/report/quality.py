"""Scores by label and by group: how well they tell relevant pairs, and how they differ by dataset, language or the like.

Takes facts, reads scores, labels and a few columns of a bounded number of parts, evenly from first to last, gives AUC, nDCG and
figures of groups. Labels and groups are the columns that are called so, or those that the user names. Knows nothing of HTML.
"""

import contextlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytrec_eval
from scipy.stats import rankdata

from rerank_actor.errors import InputError, RerankError
from rerank_actor.inputs.columns import decode_dictionary
from rerank_actor.inputs.where.rows import SELECTED
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
from rerank_actor.outputs.scored_texts import ScoredTexts, refuse_repeated
from rerank_actor.storage.exchange import hash_keys

PARTS = 24
PAIRS = 300_000  # about so many are read
LABEL_NAMES = ("label", "labels", "relevance", "is_relevant", "is_selected", "qrel", "grade")
GROUP_NAMES = ("dataset", "subset", "source", "domain", "category", "split", "language", "lang", "lang_pair")
VALUES = 24  # of a group column
MOST_VALUES, LONGEST_VALUE = 1_000, 64  # of a column that is found by its name; with more it names no groups
DEPTH = 10  # of nDCG
PRIME = np.uint64(1_000_003)


@dataclass(frozen=True)
class Asked:
    """What the user wants to see besides what is found by its name: a label column, and columns to break down by."""

    label: str | None = None
    groups: tuple[str, ...] = ()
    positive_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Pairs with one value of a column; some were passed through. Measures are None where nothing tells them."""

    name: str
    pairs: int
    scored: int
    passed: int
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
    """Columns of the sampled pairs; grades are NaN where there is no label, queries empty where nobody names them.

    `left_out` are columns that name no groups.
    """

    scores: list[np.ndarray] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    grades: list[np.ndarray] = field(default_factory=list)
    passed: list[np.ndarray] = field(default_factory=list)
    queries: list[np.ndarray] = field(default_factory=list)
    earlier: list[np.ndarray] = field(default_factory=list)
    groups: dict[str, list[pa.ChunkedArray]] = field(default_factory=lambda: defaultdict(list))
    left_out: set[str] = field(default_factory=set)


def measure_quality(facts: Facts, asked: Asked | None = None, max_pairs: int = PAIRS) -> Quality:
    """Return what a bounded number of parts say of labels and groups.

    Args:
        facts: of the output.
        asked: what the user named.
        max_pairs: as many parts are read as have about so many.

    Raises:
        InputError: a column that the user named is not there, or its labels say nothing.
    """
    asked, quality, pairs = asked or Asked(), Quality(), _Pairs()
    parts, can_label = facts.scored.parts, True
    for at in _spread(facts, max_pairs):
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
        rows, label = PairRows(table, "logit", part_uri), names.label if can_label else None
        try:
            refuse_repeated(part_uri, [parts[at]], facts.scored.settings, [label] if label is not None else [])
            grades = _read_labels(rows, label, asked.positive_labels)
        except InputError as error:
            if asked.label is not None:
                raise
            quality.remarks.append(str(error))
            label, can_label, grades = None, False, _read_labels(rows, None)
        quality.label = label
        quality.pairs += _add_part(pairs, rows, names, grades)
        for name in names.groups:
            _add_group(pairs, quality, rows, name, is_asked=name in asked.groups)
        quality.sampled_parts += 1
    if quality.pairs:
        _measure(quality, pairs, asked.groups)
        _compare(quality, pairs, names.earlier)
    return quality


def _spread(facts: Facts, max_pairs: int) -> list[int]:
    """Return the numbers of as many parts as have about so many pairs, evenly from first to last."""
    units, totals = facts.scored.units, facts.totals
    mean = totals.pairs / totals.units if totals.units else sum(unit.num_rows for unit in units) / max(1, len(units))
    number = max(1, min(PARTS, len(units), int(max_pairs / max(1.0, mean))))
    return [int((place + 0.5) * len(units) / number) for place in range(number)] if units else []


@dataclass(frozen=True)
class _Names:
    """The columns with labels, with groups, with what tells queries apart, and with a score that `--where` goes by."""

    label: str | None
    groups: tuple[str, ...]
    queries: tuple[str, ...]  # ids and texts
    earlier: str | None = None
    selected: str | None = None

    def list_columns(self, schema: pa.Schema) -> list[str]:
        """Return the columns that hold them, besides scores."""
        names = (self.label, *self.groups, *self.queries, self.earlier, self.selected)
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
    texts = ScoredTexts.from_settings(settings).list_columns(schema.names, ("query", "document"))
    texts += [columns.query, columns.document]
    groups = asked.groups or tuple(name for name in GROUP_NAMES if name in schema.names and name not in texts)
    found = (find_ids(schema, columns.query_id), columns.query if find_field_type(schema, columns.query) else None)
    queries = tuple(dict.fromkeys(name for name in found if name is not None))  # an id may stand for two texts
    earlier = find_earlier(settings, schema) if queries else None
    return _Names(label, groups, queries, earlier, SELECTED if settings.get("where") else None)


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


def _add_part(pairs: _Pairs, rows: PairRows, names: _Names, grades: np.ndarray) -> int:
    if not len(grades):
        return 0
    pairs.logits.append(rows.spread("logit").cast(pa.float64()).fill_null(np.nan).to_numpy())
    pairs.scores.append(rows.spread("score").cast(pa.float64()).fill_null(np.nan).to_numpy())
    pairs.grades.append(grades)
    selected = find_column(rows.table.schema, names.selected) if names.selected is not None else None
    pairs.passed.append(~rows.spread(selected).to_numpy() if selected is not None else np.zeros(len(grades), bool))
    if rows.lengths is not None:
        pairs.queries.append(_hash_rows(rows).repeat(rows.lengths))
    elif names.queries:
        with contextlib.suppress(pa.ArrowException):  # of a type that is no text
            pairs.queries.append(_hash_queries(rows, names.queries))
    if names.earlier is not None and rows.lengths is None:
        pairs.earlier.append(rows.spread(names.earlier).cast(pa.float64()).fill_null(np.nan).to_numpy())
    return len(grades)


def _hash_rows(rows: PairRows) -> np.ndarray:
    """Return a number for each row: uint64 [num_rows]."""
    return hash_keys(pa.array([f"{rows.uri} {row}" for row in range(rows.table.num_rows)]))


def _hash_queries(rows: PairRows, names: tuple[str, ...]) -> np.ndarray:
    """Return a number for each row's query, the same where all columns are the same and not null: uint64 [num_rows]."""
    hashes, is_known = np.zeros(rows.table.num_rows, np.uint64), np.zeros(rows.table.num_rows, bool)
    for name in names:
        encoded = _to_words(rows.spread(name)).combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
        hashes = hashes * PRIME + np.append(hash_keys(encoded.dictionary), np.uint64(0))[codes]
        is_known |= codes < len(encoded.dictionary)
    return hashes if is_known.all() else np.where(is_known, hashes, _hash_rows(rows))


def _add_group(pairs: _Pairs, quality: Quality, rows: PairRows, name: str, *, is_asked: bool) -> None:
    """Add the values of a column; one that was found by its name and names no groups is left out with a remark."""
    if name in pairs.left_out:
        return
    try:
        words = _to_words(rows.spread(name))
        if not is_asked and (pc.max(pc.utf8_length(words)).as_py() or 0) > LONGEST_VALUE:
            raise InputError(
                f"{rows.uri}: column `{name}` holds texts; --by {name} breaks scores down by it all the same"
            )
    except (InputError, pa.ArrowException) as error:
        if is_asked:
            problem = f"{rows.uri}: column `{name}` cannot be broken down by ({error})"
            raise error if isinstance(error, InputError) else InputError(problem, uri=rows.uri, column=name) from None
        pairs.left_out.add(name)
        pairs.groups.pop(name, None)
        quality.remarks.append(str(error) if isinstance(error, InputError) else f"{rows.uri}: column `{name}`: {error}")
        return
    pairs.groups[name].append(words)


def _to_words(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values as text: large_string [num_pairs]."""
    column = decode_dictionary(column)
    if pa.types.is_nested(column.type):
        words = [None if value is None else str(value) for value in column.to_pylist()]
        column = pa.chunked_array([pa.array(words, pa.large_string())])
    return column.cast(pa.large_string())


def _measure(quality: Quality, pairs: _Pairs, asked_groups: tuple[str, ...]) -> None:
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
        queries = np.concatenate(pairs.queries) if pairs.queries else np.zeros(0)
        if len(queries) == len(logits):
            quality.ndcg, quality.num_queries = _compute_ndcg(queries[is_known], logits[is_known], grades[is_known])
    passed = np.concatenate(pairs.passed)
    for name, words in pairs.groups.items():
        values = pa.chunked_array([chunk for column in words for chunk in column.chunks], pa.large_string())
        figures = scores, logits, is_scored, is_known, positive, passed
        found, num_values = _split_groups(values, *figures, has_label=bool(quality.label))
        if name not in asked_groups and num_values > MOST_VALUES:
            quality.remarks.append(
                f"column `{name}` has {num_values:,} values; --by {name} shows those with the most pairs"
            )
        else:
            quality.groups[name] = found, num_values


def _compare(quality: Quality, pairs: _Pairs, column: str | None) -> None:
    """Say what the scores changed in an earlier ranking, where each pair has its place in one."""
    logits, earlier, queries = (
        np.concatenate(one) if one else np.zeros(0) for one in (pairs.logits, pairs.earlier, pairs.queries)
    )
    if column is not None and len(earlier) == len(queries) == len(logits):
        quality.cascade = compare_tops(column, queries, earlier, logits)


def _split_groups(
    values: pa.ChunkedArray,
    scores: np.ndarray,
    logits: np.ndarray,
    is_scored: np.ndarray,
    is_known: np.ndarray,
    positive: np.ndarray,
    passed: np.ndarray,
    *,
    has_label: bool,
) -> tuple[list[Group], int]:
    """Return the values with the most pairs, and how many there are."""
    encoded = values.fill_null("null").combine_chunks().dictionary_encode()
    numbers, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    counts = np.bincount(numbers)
    groups = []
    for number in sorted(range(len(names)), key=lambda number: (-counts[number], names[number]))[:VALUES]:
        rows = np.flatnonzero(numbers == number)
        scored, known = rows[is_scored[rows]], rows[is_known[rows]]
        groups.append(
            Group(
                names[number],
                len(rows),
                len(scored),
                int(passed[rows].sum()),
                float(scores[scored].mean()) if len(scored) else None,
                tuple(np.quantile(scores[scored], (0.1, 0.5, 0.9)).tolist()) if len(scored) else (),
                int(positive[known].sum()) if has_label else None,
                compute_auc(logits[known], positive[known]) if has_label else None,
            )
        )
    return groups, len(names)


def compute_auc(values: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the chance that a positive has a higher value than another one, ties as half; None without both kinds."""
    num_positives, num_others = int(positive.sum()), int((~positive).sum())
    if not num_positives or not num_others:
        return None
    ranks: np.ndarray = rankdata(values)
    return float((ranks[positive].sum() - num_positives * (num_positives + 1) / 2) / (num_positives * num_others))


def _compute_ndcg(queries: np.ndarray, logits: np.ndarray, grades: np.ndarray) -> tuple[float | None, int]:
    """Return the mean nDCG of the queries that have relevant and other pairs, and how many these are."""
    gains = np.where(np.isinf(grades), grades > 0, np.maximum(grades, 0)).astype(np.int64)
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    scored: dict[str, dict[str, float]] = defaultdict(dict)
    names = map(str, queries.tolist())
    for row, (query, gain, logit) in enumerate(zip(names, gains.tolist(), logits.tolist(), strict=True)):
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
