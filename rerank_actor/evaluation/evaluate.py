"""The evaluation of scored outputs: each one's ranking, its candidates' own order, and the best order of the same candidates.

Takes outputs and judgements, gives measures with intervals. A judged query counts with 0 where it has no candidates, as it
would where it is searched for, and where no document is relevant to it, as in MTEB; a query that nobody judged does not count.
All are counted. A part of the pairs is in memory at a time. Knows nothing of files that are written.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.errors import InputError
from rerank_actor.evaluation.changed import CHANGED, ORIGINAL, compute_p_mrr, find_changed, rank_documents
from rerank_actor.evaluation.intervals import compute_interval
from rerank_actor.evaluation.measures import P_MRR, Judgements, Measure, Scores, compute_measures
from rerank_actor.inputs.ids import find_fractions
from rerank_actor.outputs.export import Exported, ExportSpec, iterate_candidates
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.scored_columns import refuse_judged_otherwise

RETRIEVAL_COLUMN = "retrieval_score"

OWN_ORDER, BEST_ORDER = "candidates' own order", "best possible order"

Order = Literal["reranked", "retrieved", "best"]


@dataclass(frozen=True)
class EvaluationSpec:
    """What to evaluate.

    Attributes:
        scored: outputs of the scoring job, of the same queries.
        measures: in the order of the table.
        query_id_column, document_id_column: columns with ids; None for those of the job.
        retrieval_column: column with the score that the candidates were retrieved by; where it is not there, their own order
            is not known.
        ignore_identical_ids: leave out candidates whose id is the query's, as MTEB does for some tasks (ArguAna).
        partial: evaluate outputs that are not complete.
        seed: of the intervals.
        changed: documents whose relevance a changed instruction changes, by the query's id without its ending; None for those
            that judgements tell.
        names: of the outputs, for the table; by default their models and places.
    """

    scored: tuple[str, ...]
    measures: tuple[Measure, ...]
    query_id_column: str | None = None
    document_id_column: str | None = None
    retrieval_column: str = RETRIEVAL_COLUMN
    ignore_identical_ids: bool = False
    partial: bool = False
    seed: int = 0
    changed: Mapping[str, list[str]] | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One ranking's line of the table.

    Attributes:
        name: the output and its model, or whose order it is.
        values: float64 [num_queries, num_measures]; NaN of p-MRR but for queries with a changed instruction.
        means, intervals: of each measure.
        differences: of each measure, the bounds of the mean difference from the first row; none for the first row.
        order: whose ranking it is.
        output: the place in `EvaluationSpec.scored` of the output that it is of.
    """

    name: str
    values: np.ndarray
    means: list[float]
    intervals: list[tuple[float, float]]
    differences: list[tuple[float, float]]
    order: Order
    output: int


@dataclass
class Evaluation:
    """What came of it: the rows in the order of the table, the queries that count, and what does not, by output and reason.

    Documents whose relevance an instruction changes are by the query's id without its ending; none where nobody asks.
    """

    measures: tuple[Measure, ...]
    queries: list[str]
    changed: dict[str, list[str]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)


@dataclass
class _Ranked:
    """The measures of one output's queries, by query, of each order of its candidates."""

    reranked: dict[str, np.ndarray] = field(default_factory=dict)
    retrieved: dict[str, np.ndarray] = field(default_factory=dict)
    best: dict[str, np.ndarray] = field(default_factory=dict)
    ranks: dict[str, dict[str, list[int]]] = field(default_factory=lambda: {"reranked": {}, "retrieved": {}})
    left_out: Counter[str] = field(default_factory=Counter)


def evaluate_outputs(spec: EvaluationSpec, judgements: Judgements) -> Evaluation:
    """Evaluate scored outputs.

    Args:
        spec: what to evaluate.
        judgements: relevance by query and document.

    Raises:
        InputError: no document is relevant; an output has no ids, is not complete, or has nothing that is judged.
        ShardError: a part is damaged.
        StorageError, JobError: storage failed.
    """
    barren = sum(max(documents.values(), default=0) <= 0 for documents in judgements.values())
    if barren == len(judgements):
        raise InputError(
            f"none of {sum(map(len, judgements.values())):,} judgements is of a relevant document, with 1 or more"
        )
    result = Evaluation(spec.measures, sorted(judgements), _find_changed(spec, judgements))
    for place, uri in enumerate(spec.scored):
        ranked = _rank_output(spec, uri, judgements, result.changed)
        ranked.left_out["judged queries without a relevant document, which count with 0"] += barren
        name = spec.names[place] if spec.names else _name_output(uri)
        _add_rows(result, spec, name, ranked, place)
        result.left_out[uri] = ranked.left_out
    return result


def _find_changed(spec: EvaluationSpec, judgements: Judgements) -> dict[str, list[str]]:
    """Return the documents whose relevance a changed instruction changes, where a measure asks for them."""
    if not any(measure.kind == P_MRR for measure in spec.measures):
        return {}
    if spec.changed is None:
        return find_changed(judgements)
    return {
        name: found
        for name, found in spec.changed.items()
        if found and {name + ORIGINAL, name + CHANGED} <= judgements.keys()
    }


def _rank_output(spec: EvaluationSpec, uri: str, judged: Judgements, changed: dict[str, list[str]]) -> _Ranked:
    ranked, exported = _Ranked(), Exported()
    known = {document for documents in judged.values() for document in documents}
    is_met = False
    for scores, retrieved in _iterate_queries(spec, uri, exported, ranked.left_out, judged):
        names = list(scores)
        is_met = is_met or any(not known.isdisjoint(found) for found in scores.values())
        best = {query: {name: judged[query].get(name, 0) for name in found} for query, found in scores.items()}
        orders: list[tuple[dict[str, np.ndarray], Scores | None]] = [
            (ranked.reranked, scores),
            (ranked.retrieved, retrieved),
            (ranked.best, best),
        ]
        for by_query, values in orders:
            if values is not None:
                by_query.update(zip(names, compute_measures(judged, values, spec.measures, names), strict=True))
        for order, found in (("reranked", scores), ("retrieved", retrieved or {})):
            for query, candidates in found.items() if changed else ():
                documents = changed.get(query.removesuffix(ORIGINAL).removesuffix(CHANGED), [])
                ranked.ranks[order][query] = rank_documents(candidates, documents)
    if not ranked.reranked:
        raise InputError(
            f"{uri}: none of its queries is among the {len(judged):,} judged ones; check that --qrels "
            "belongs to it, and which column holds the ids (--query-id-column, --document-id-column)",
            uri=uri,
        )
    if not is_met and Output(uri).load_manifest().get("job", {}).get("engine") != "fake":
        raise InputError(
            f"{uri}: none of its candidates is among the {len(known):,} judged documents, so that every measure would be 0; "
            "check that --qrels belongs to it, and which column holds the ids (--document-id-column)",
            uri=uri,
        )
    if len(ranked.retrieved) < len(ranked.reranked):
        if spec.retrieval_column != RETRIEVAL_COLUMN:
            raise InputError(
                f"{uri}: not every candidate has a number in `{spec.retrieval_column}`, so that their own order is not known; "
                "leave --retrieval-column out",
                uri=uri,
                column=spec.retrieval_column,
            )
        ranked.retrieved.clear()
    _add_p_mrr(spec.measures, ranked, changed)
    ranked.left_out["candidates without a score"] += exported.unscored
    ranked.left_out["candidates that --qrels of the scoring job added, which were not retrieved"] += exported.added
    ranked.left_out["judged queries without a candidate, which count with 0"] += len(judged) - len(ranked.reranked)
    return ranked


def _add_p_mrr(measures: tuple[Measure, ...], ranked: _Ranked, changed: dict[str, list[str]]) -> None:
    """Add p-MRR to the measures of queries with a changed instruction; 0 where one of both has no candidates."""
    columns = [at for at, measure in enumerate(measures) if measure.kind == P_MRR]
    for by_query, ranks in ((ranked.reranked, ranked.ranks["reranked"]), (ranked.retrieved, ranked.ranks["retrieved"])):
        for name in changed:
            before, after = ranks.get(name + ORIGINAL), ranks.get(name + CHANGED)
            if name + CHANGED in by_query:
                value = compute_p_mrr(before, after) if before and after else 0.0
                by_query[name + CHANGED][columns] = value


def _iterate_queries(
    spec: EvaluationSpec, uri: str, exported: Exported, left_out: Counter[str], judged: Judgements
) -> Iterator[tuple[dict[str, dict[str, float]], dict[str, dict[str, float]] | None]]:
    """Yield the logits, and the scores of the retrieval, of some judged queries: whole ones, by query and document."""
    reading = ExportSpec(
        uri,
        "trec",
        query_id_column=spec.query_id_column,
        document_id_column=spec.document_id_column,
        partial=spec.partial,
        more_columns=(spec.retrieval_column,),
    )
    has_order = True
    documents = {document for by_document in judged.values() for document in by_document}
    names = {"query": pa.array(list(judged), pa.string()), "document": pa.array(list(documents), pa.string())}
    fractions = {role: find_fractions(ids) for role, ids in names.items()}
    for table in iterate_candidates(reading, exported):
        for role, ids in names.items():
            refuse_judged_otherwise(uri, role, table[role], ids, fractions[role])
        known = pc.is_in(table["query"], value_set=names["query"])
        unjudged = table.filter(pc.invert(known))
        left_out["queries without a judgement"] += len(pc.unique(unjudged["query"]))
        # The best of those that are there twice comes last, and stays.
        table = table.filter(known).sort_by("logit")
        told = _explain_order(table, spec.retrieval_column, exported.unscored)
        if spec.ignore_identical_ids:
            kept = table.filter(pc.not_equal(table["query"], table["document"]))
            left_out["candidates with the id of their query"] += table.num_rows - kept.num_rows
            table = kept
        retrieved = _read_order(table, spec.retrieval_column) if told is None else None
        if told is not None and spec.retrieval_column != RETRIEVAL_COLUMN:
            column = spec.retrieval_column
            raise InputError(
                f"{uri}: {told}; name the column of scores with --retrieval-column", uri=uri, column=column
            )
        if told is not None:
            left_out[f"candidates whose own order is not known: {told} (--retrieval-column names another)"] += len(
                table
            )
        has_order = has_order and retrieved is not None
        scores = _group(table, "logit")
        left_out["candidates that are there twice"] += table.num_rows - sum(map(len, scores.values()))
        yield scores, retrieved if has_order else None


def _explain_order(table: pa.Table, column: str, num_without: int) -> str | None:
    """Return why a column of all candidates but some holds others than scores of the retrieval; None where it may hold them."""
    kind, values = table.schema.field(column).type, table[column]
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return f"column `{column}` is {kind}, not numbers"
    if values.null_count == table.num_rows:
        return None
    if values.null_count:
        return f"not every candidate has a number in `{column}`"
    if not pc.all(pc.equal(pc.floor(values), values)).as_py():
        return None
    grouped = table.select(["query", "document", column]).group_by("query")
    counts = grouped.aggregate(
        [("document", "count_distinct"), (column, "count_distinct"), (column, "min"), (column, "max")]
    )
    documents, different, least, most = (
        counts[name].to_numpy()
        for name in ("document_count_distinct", *(f"{column}_{how}" for how in ("count_distinct", "min", "max")))
    )
    # Of n candidates ranks are at most n, but for those that lack here.
    num_lacking = num_without + table.num_rows - documents.sum()
    holes = np.maximum(most - documents, 0).sum()
    if documents.max() > 1 and (different >= documents).all() and least.min() >= 0 and holes <= num_lacking:
        return f"column `{column}` counts the candidates of each query, so that it holds ranks"
    return None


def _read_order(table: pa.Table, column: str) -> dict[str, dict[str, float]] | None:
    """Return the scores of the retrieval, None where candidates have none."""
    return None if table[column].null_count else _group(table, column)


def _group(table: pa.Table, value: str) -> dict[str, dict[str, float]]:
    grouped: dict[str, dict[str, float]] = {}
    columns = (table[name].to_pylist() for name in ("query", "document", value))
    for query, document, score in zip(*columns, strict=True):
        grouped.setdefault(query, {})[document] = float(score)
    return grouped


def _name_output(uri: str) -> str:
    model = Output(uri).load_manifest().get("model", {}).get("name")
    return f"{model} ({uri})" if model else uri


def _add_rows(result: Evaluation, spec: EvaluationSpec, name: str, ranked: _Ranked, place: int) -> None:
    """Add the rows of an output; the orders of its candidates only where an output before has not the same."""
    whose = "" if len(spec.scored) == 1 else f" of {name}"
    orders: list[tuple[Order, str, dict[str, np.ndarray]]] = [
        ("reranked", name, ranked.reranked),
        ("retrieved", f"{OWN_ORDER}{whose}", ranked.retrieved),
        ("best", f"{BEST_ORDER}{whose}", ranked.best),
    ]
    for order, title, by_query in orders:
        if not by_query:
            continue
        values = np.array(
            [by_query[query] if query in by_query else _make_nothing(result, query) for query in result.queries]
        )
        if by_query is ranked.best:
            values[:, [measure.kind == P_MRR for measure in spec.measures]] = np.nan  # it is the best of each alone
        orders_before = [row.values for row in result.rows if row.order == order]
        if order != "reranked" and any(np.array_equal(values, before, equal_nan=True) for before in orders_before):
            continue
        first = result.rows[0].values if result.rows else None
        result.rows.append(
            Row(
                title,
                values,
                [float(column.mean()) if len(column) else float("nan") for column in map(_drop_nan, values.T)],
                _bound(values, spec.seed),
                [] if first is None else _bound(values - first, spec.seed),
                order,
                place,
            )
        )


def _bound(values: np.ndarray, seed: int) -> list[tuple[float, float]]:
    bounds = [compute_interval(column, seed) if len(column) else None for column in map(_drop_nan, values.T)]
    return [found or (float("nan"), float("nan")) for found in bounds]


def _drop_nan(values: np.ndarray) -> np.ndarray:
    return np.asarray(values[~np.isnan(values)])


def _make_nothing(result: Evaluation, query: str) -> np.ndarray:
    """Return the measures of a query without candidates."""
    has_p_mrr = query.endswith(CHANGED) and query.removesuffix(CHANGED) in result.changed
    return np.array([np.nan if measure.kind == P_MRR and not has_p_mrr else 0.0 for measure in result.measures])
