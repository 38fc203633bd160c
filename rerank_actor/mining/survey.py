"""The survey: which queries are where, so that all pairs of a query come together without moving most of them.

A first pass reads queries, labels and scores alone. Units are runs of row groups of bounded size; a query whose pairs all
lie in one unit is mined there, and only queries that lie in several units, or whose hashes collide, are brought together
by a shuffle. Queries that ask the same under several ids go together. Every row so goes exactly one way. Knows nothing of
Ray or of rules.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.ids import find_fractions
from rerank_actor.inputs.rankings.qrels import mark_judged
from rerank_actor.mining.by_column.values import count_most, find_values
from rerank_actor.mining.judging.verdicts import Verdicts, overrule
from rerank_actor.mining.pairs import (
    TEXT_ROLES,
    Columns,
    encode_keys,
    encode_texts,
    hash_queries,
    mark_scored,
    name_queries,
    read_pairs,
    spell_questions,
)
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.row_groups import RowGroups, SizedGroup, batch_by_size, open_part, share_out_groups
from rerank_actor.outputs.scored_columns import refuse_judged_otherwise, refuse_two_spellings, refuse_two_texts
from rerank_actor.runtime.steps import TaskRunner
from rerank_actor.runtime.task_report import TaskFailure
from rerank_actor.storage.exchange import hash_keys

PAIR_BYTES = 96  # of numbers and copies, beside the texts
NO_HASHES = np.zeros(0, np.uint64)
HASHES_AT_ONCE = 32_000_000  # that the driver holds; beyond that all queries are shuffled


@dataclass(frozen=True)
class Survey:
    """What one row group holds.

    Attributes:
        part, group: which row group of which file, by number.
        num_pairs, num_bytes: scored pairs, and what all that are read take in memory.
        unscored, unscored_positives: pairs without a score.
        num_positives: positive pairs.
        fingerprint: what the file says that it was scored with.
        hashes: of what each query asks, by which pairs come together.
        keys, positives: of each query the hash of its key, and how many positive pairs it has here.
        verdicts: int64, numbers of the verdicts that are of pairs here.
        ids: of each query the hash of its id, where judgements go by ids alone and mining by a column besides; else empty.
        values: of the column that mining goes by, and in `value` the place of each query's: int64 [num_queries].
    """

    part: int
    group: int
    num_pairs: int
    num_bytes: int
    unscored: int
    unscored_positives: int
    num_positives: int
    fingerprint: str | None
    hashes: np.ndarray
    keys: np.ndarray
    positives: np.ndarray
    verdicts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: np.ndarray = field(default_factory=lambda: NO_HASHES)
    values: list[str] = field(default_factory=list)
    value: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def survey_part(
    number: int,
    part: storage.StoredObject,
    columns: Columns,
    qrels: pa.Table | None,
    verdicts: Verdicts | None = None,
    fractions: Mapping[str, pa.Array] | None = None,
) -> list[Survey]:
    """Look at each row group of a file.

    Args:
        number: of the file.
        part: the file.
        columns: what its columns are called.
        qrels: positive judgements, where these say what is positive.
        verdicts: of a judge, None where there are none.
        fractions: what `find_judged_fractions` gives for these, None to find them here.

    Raises:
        InputError: a column is missing or of the wrong kind.
        ShardError, StorageError, JobError: the file cannot be read.
    """
    fractions = find_judged_fractions(qrels) if fractions is None else fractions
    with open_part(part) as file:
        columns.check(part.uri, file.schema_arrow)
        return [
            _survey_group(file, part.uri, number, group, columns, qrels, verdicts, fractions)
            for group in range(file.metadata.num_row_groups)
        ]


def find_judged_fractions(qrels: pa.Table | None) -> dict[str, pa.Array]:
    """Return the ids of judgements that are written as 7.0 is, by role: a search of all judgements, done once."""
    return {} if qrels is None else {role: find_fractions(qrels[f"{role}_id"]) for role in ("query", "document")}


def _survey_group(
    file: pq.ParquetFile,
    uri: str,
    part: int,
    group: int,
    columns: Columns,
    qrels: pa.Table | None,
    verdicts: Verdicts | None,
    fractions: Mapping[str, pa.Array],
) -> Survey:
    roles = (*columns.key, "query", *(("query_id", "document_id") if qrels is not None else ()))
    roles = (*roles, *verdicts.roles) if verdicts is not None else roles
    pairs = read_pairs(file, uri, [group], columns, tuple(dict.fromkeys(roles)), 0)
    query, keys = encode_keys(pairs.table, columns)
    is_scored = mark_scored(pairs.table, columns)
    if columns.query_id is not None:
        refuse_two_texts("--scored", name_queries(pairs.table), encode_texts(pairs.table["query"])[0])
    if qrels is not None:
        for role, found in fractions.items():
            refuse_judged_otherwise(uri, role, pairs.table[f"{role}_id"], qrels[f"{role}_id"], found)
        positive = mark_judged(pairs.table["query_id"], pairs.table["document_id"], qrels).positive
    elif columns.tells_positives:
        positive = pairs.table["positive"].to_numpy()
    else:
        positive = np.zeros(len(query), bool)
    said = np.zeros(0, np.int64)
    if verdicts is not None:
        for role, ids, found in verdicts.judged_ids:
            refuse_judged_otherwise(uri, role, pairs.table[f"{role}_id"], ids, found, "--verdicts")
        numbers = verdicts.find(pairs.table, columns.texts.instruction)
        positive, said = overrule(positive, verdicts.codes_of(numbers)), np.unique(numbers[(numbers >= 0) & is_scored])
    if columns.teachers:  # whose labels are those of the same pairs
        positive = positive & (pairs.table["teacher"].to_numpy() == 0)
    positive = positive & is_scored
    values, value = find_values(pairs.table, query)
    return Survey(
        part=part,
        group=group,
        num_pairs=int(is_scored.sum()),
        num_bytes=_weigh(file, group, columns) + pairs.table.nbytes + _weigh_pair(columns) * len(query),
        unscored=pairs.unscored,
        unscored_positives=pairs.unscored_positives,
        num_positives=int(positive.sum()),
        fingerprint=read_part_metadata(file.schema_arrow).get("fingerprint"),
        hashes=hash_keys(spell_questions(pairs.table, query)),
        keys=hash_queries(keys),
        positives=np.bincount(query[positive], minlength=len(keys)),
        verdicts=said,
        ids=hash_queries(_take_ids(pairs.table, query)) if _goes_by_ids(columns, qrels, verdicts) else NO_HASHES,
        values=values,
        value=value,
    )


def _goes_by_ids(columns: Columns, qrels: pa.Table | None, verdicts: Verdicts | None) -> bool:
    """Whether judgements go by ids of queries alone, where mining goes by a column besides."""
    return columns.by is not None and (qrels is not None or (verdicts is not None and verdicts.by_ids))


def _take_ids(table: pa.Table, query: np.ndarray) -> pa.Array:
    """Return the id of each query."""
    return table["query_id"].take(pa.array(np.unique(query, return_index=True)[1])).combine_chunks()


def refuse_ids_of_two_questions(
    surveys: list[Survey],
    parts: Sequence[storage.StoredObject],
    columns: Columns,
    qrels: pa.Table | None = None,
    verdicts: Verdicts | None = None,
) -> None:
    """Refuse an id of queries that asks one thing in one row group and another in another.

    Where mining goes by a column, an id may ask another thing in each value, unless judgements go by ids alone.

    Raises:
        InputError: naming the id.
        ShardError, StorageError, JobError: it cannot be read.
    """
    by_ids = _goes_by_ids(columns, qrels, verdicts)
    if columns.query_id is None and not by_ids:
        return
    names = [survey.ids if by_ids else survey.keys for survey in surveys]
    num_shares = 1 + sum(map(len, names)) // HASHES_AT_ONCE
    for share in range(num_shares):
        chosen = [known % num_shares == share for known in names]
        keys = np.concatenate([known[some] for known, some in zip(names, chosen, strict=True)])
        asked = np.concatenate([survey.hashes[some] for survey, some in zip(surveys, chosen, strict=True)])
        order = np.argsort(keys, kind="stable")
        differs = (np.diff(keys[order]) == 0) & (np.diff(asked[order]) != 0)
        for key in keys[order][1:][differs]:
            there = [survey for survey, known in zip(surveys, names, strict=True) if key in known]
            groups = [_read_questions(parts[survey.part], survey.group, columns, key, by_ids) for survey in there]
            table = pa.concat_tables(groups)
            refuse_two_spellings("--scored", "query", table["query_id"])
            ids, source = (
                (table["query_id"], "--qrels or --verdicts by id") if by_ids else (name_queries(table), "--scored")
            )
            refuse_two_texts(source, ids, encode_texts(table["query"])[0])


def _read_questions(
    part: storage.StoredObject, group: int, columns: Columns, name: np.uint64, by_ids: bool
) -> pa.Table:
    """Return the ids and texts of queries with a hash of their id or key, of the pairs of a row group."""
    roles = tuple(dict.fromkeys((*columns.key, "query", *(("query_id",) if by_ids else ()))))
    with open_part(part) as file:
        table = read_pairs(file, part.uri, [group], columns, roles, 0).table
    query, keys = encode_keys(table, columns)
    hashes = hash_queries(_take_ids(table, query) if by_ids else keys)
    return table.filter(pa.array((hashes == name)[query])).select(list(roles))


def _weigh(file: pq.ParquetFile, group: int, columns: Columns) -> int:
    """Return the uncompressed bytes of the text columns of a row group."""
    names = columns.list_columns(file.schema_arrow, TEXT_ROLES)
    metadata = file.metadata.row_group(group)
    stored = (metadata.column(index) for index in range(metadata.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in stored
        if any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in names)
    )


def _weigh_pair(columns: Columns) -> int:
    """Return what a pair takes beside its own columns: texts that are looked up, on average, numbers and copies."""
    stores = [lookup.store for lookup in columns.texts.lookups]
    return PAIR_BYTES + sum(store.num_bytes // max(1, int(store.facts.get("rows", 0))) for store in stores)


@dataclass(frozen=True)
class MiningUnit:
    """What one task mines: runs of row groups, or, with no runs, a bucket of the shuffle."""

    name: str
    runs: tuple[RowGroups, ...] = ()
    bucket: int | None = None


@dataclass(frozen=True)
class MiningPlan:
    """Where the pairs of each query are.

    Attributes:
        units: of runs.
        split: hashes of queries that lie in several units, sorted; None when all queries are to be shuffled.
        num_buckets: of the shuffle; 0 when no query lies in several units.
        max_positives: the most positives of any query; None when that is not known before the shuffle.
        max_by_value: the same of the queries of each value of the column that mining goes by; empty where it goes by none.
        totals: pairs, unscored, unscored_positives, positives, and `unmarked` pairs of files without a fingerprint.
    """

    units: list[MiningUnit]
    split: np.ndarray | None
    num_buckets: int
    max_positives: int | None
    totals: dict[str, int]
    max_by_value: dict[str, int] = field(default_factory=dict)

    @property
    def buckets(self) -> list[MiningUnit]:
        """The buckets of the shuffle as units."""
        first = len(self.units)
        return [MiningUnit(f"{first + number:05d}", bucket=number) for number in range(self.num_buckets)]


def plan_units(surveys: list[Survey], unit_bytes: int, *, hashes_at_once: int = HASHES_AT_ONCE) -> MiningPlan:
    """Cut row groups into units and find the queries that lie in several.

    Args:
        surveys: of all row groups, in order.
        unit_bytes: what a unit's pairs may take in memory; a larger row group is a unit by itself.
        hashes_at_once: above so many entries of queries in units, all queries are shuffled.
    """
    scored = {(survey.part, survey.group): survey for survey in surveys if len(survey.hashes)}
    units = share_out_groups(
        (
            SizedGroup(survey.part, survey.group, survey.num_pairs + survey.unscored, survey.num_bytes)
            for survey in scored.values()
        ),
        unit_bytes,
    )
    groups = [[scored[run.part, group] for run in runs for group in run.groups or ()] for runs in units]
    num_bytes = sum(survey.num_bytes for group in groups for survey in group)
    held = sum(len(survey.hashes) for group in groups for survey in group)
    max_by_value: dict[str, int] = {}
    if held > hashes_at_once and len(groups) > 1:
        split, max_positives = None, None
        num_moved, most_buckets = held, held
    else:
        split, max_positives, max_by_value = _list_split(groups)
        num_moved = sum(int(is_split(survey.hashes, split).sum()) for group in groups for survey in group)
        most_buckets = len(split)
    num_buckets = max(1, min(most_buckets, round(num_moved / held * num_bytes / unit_bytes))) if num_moved else 0
    named = [MiningUnit(f"{number:05d}", runs) for number, runs in enumerate(units)]
    return MiningPlan(named, split, num_buckets, max_positives, _add_up(surveys), max_by_value)


def _add_up(surveys: list[Survey]) -> dict[str, int]:
    return {
        "pairs": sum(survey.num_pairs for survey in surveys),
        "unscored": sum(survey.unscored for survey in surveys),
        "unscored_positives": sum(survey.unscored_positives for survey in surveys),
        "positives": sum(survey.num_positives for survey in surveys),
        "unmarked": sum(survey.num_pairs for survey in surveys if survey.fingerprint is None),
    }


def _list_split(groups: list[list[Survey]]) -> tuple[np.ndarray, int, dict[str, int]]:
    """Return the sorted hashes that occur in several units, and the most positives of a key, of all and by value."""
    hashes = [np.unique(np.concatenate([survey.hashes for survey in group])) for group in groups]
    distinct, num_units = np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]), return_counts=True)
    surveys = [survey for group in groups for survey in group]
    keys, first, index = np.unique(
        np.concatenate([np.zeros(0, np.uint64), *(survey.keys for survey in surveys)]),
        return_index=True,
        return_inverse=True,
    )
    counts = np.concatenate([np.zeros(0, np.int64), *(survey.positives for survey in surveys)])
    most = np.bincount(index, counts, minlength=len(keys))
    names = sorted({value for survey in surveys for value in survey.values})
    codes = [np.searchsorted(names, survey.values)[survey.value] for survey in surveys if survey.values]
    by_value = count_most(most.astype(np.int64), np.concatenate(codes)[first], names) if names else {}
    return distinct[num_units > 1], int(most.max(initial=0)), by_value


def is_split(hashes: np.ndarray, split: np.ndarray | None) -> np.ndarray:
    """Return which queries go into the shuffle, by its sorted hashes, None for all: bool [num_hashes]."""
    if split is None or not len(split):
        return np.full(len(hashes), split is None)
    nearest: np.ndarray = split[np.minimum(np.searchsorted(split, hashes), len(split) - 1)]
    matches: np.ndarray = nearest == hashes
    return matches


def require_pairs(plan: MiningPlan, columns: Columns, source: str) -> None:
    """Refuse an input that cannot be mined whatever the rules.

    Args:
        plan: of the input.
        columns: of the input.
        source: the flag that says what is positive, empty where positives are to be found by score.

    Raises:
        InputError: no pair has a score, or none is positive.
    """
    totals = plan.totals
    if not totals["pairs"]:
        raise InputError(
            f"column `{columns.spaces[0]}`: none of {totals['unscored']:,} rows has a score (column `error` says why); "
            "nothing can be mined"
        )
    if source and not totals["positives"]:
        lost = f", and {totals['unscored_positives']:,} positives have no score" if totals["unscored_positives"] else ""
        raise InputError(
            f"{source}: none of {totals['pairs']:,} scored pairs is positive (at least {columns.min_relevance:g}){lost}; "
            "check the column or file, or lower --min-relevance"
        )


def count_unknown(surveys: list[Survey], verdicts: Verdicts | None, *, allowed: bool) -> int:
    """Return how many verdicts are of no scored pair.

    Args:
        surveys: of all row groups.
        verdicts: of a judge, None where there are none.
        allowed: whether there may be such.

    Raises:
        InputError: there are, and may not be.
    """
    if verdicts is None:
        return 0
    unknown = np.setdiff1d(np.arange(len(verdicts.codes)), np.concatenate([survey.verdicts for survey in surveys]))
    if len(unknown) and not allowed:
        raise InputError(
            f"--verdicts {verdicts.uri}: {len(unknown):,} of {len(verdicts.codes):,} verdicts are of pairs that are not among "
            f"the scored ones ({verdicts.describe(unknown.tolist())}); give the outputs that were judged with --scored, or "
            "--allow-unknown-verdicts to leave these out",
            uri=verdicts.uri,
        )
    return len(unknown)


PARTS_PER_TASK = 32
TASK_BYTES = 256 * 2**20  # stored, that one task surveys at most


def survey_parts(
    parts: Sequence[storage.StoredObject],
    columns: Columns,
    qrels: pa.Table | None,
    runner: TaskRunner,
    verdicts: Verdicts | None = None,
) -> list[Survey]:
    """Survey files on the cluster; returns the surveys of their row groups, in order.

    Raises:
        InputError: a file cannot be read, or is not what it should be.
        RunInterruptedError, OutputConflictError, RerankError: the run was ended.
    """
    surveys: list[Survey] = []
    fractions = find_judged_fractions(qrels)
    survey_some = functools.partial(_survey_some, columns=columns, qrels=qrels, verdicts=verdicts, fractions=fractions)
    bundles = batch_by_size(enumerate(parts), lambda numbered: numbered[1].size, TASK_BYTES, PARTS_PER_TASK)
    with contextlib.closing(runner.run_tasks(survey_some, bundles)) as reports:
        for _, report in reports:
            if isinstance(report, TaskFailure):
                raise InputError(f"{report.reason}; nothing was mined")
            surveys.extend(Survey(**values) for values in report["surveys"])
    return sorted(surveys, key=lambda survey: (survey.part, survey.group))


def _survey_some(
    bundle: list[tuple[int, storage.StoredObject]],
    columns: Columns,
    qrels: pa.Table | None,
    verdicts: Verdicts | None,
    fractions: Mapping[str, pa.Array],
) -> dict[str, Any]:
    given = columns, qrels, verdicts, fractions
    surveys = (survey for number, part in bundle for survey in survey_part(number, part, *given))
    return {"surveys": [vars(survey) for survey in surveys]}
