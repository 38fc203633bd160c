"""A unit of mining: what a worker does with some row groups, or with a bucket of the shuffle.

The path of a unit is read -> split off what goes through the exchange -> select by the rules -> write what was chosen -> give
the record, which the step stores. Everything a worker needs is in `MiningSpec`. Knows nothing of Ray.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.rankings.qrels import Judged, mark_judged
from rerank_actor.mining.by_column.values import count_most, find_values, name_folder
from rerank_actor.mining.examples import Teacher, group_examples
from rerank_actor.mining.formats import build_objects
from rerank_actor.mining.judging.suspects import build_suspects, name_piece
from rerank_actor.mining.judging.verdicts import UNSURE, Verdicts, list_pair_keys, overrule
from rerank_actor.mining.near_duplicates import UNSEEN, mark_near_duplicates, mark_variants
from rerank_actor.mining.output import MineOutput
from rerank_actor.mining.pairs import (
    NUMBER_ROLES,
    TEXT_ROLES,
    Columns,
    encode_keys,
    encode_texts,
    mark_scored,
    read_pairs,
    spell_questions,
)
from rerank_actor.mining.random_negatives import add_random_negatives, join_judged, unpack_pool
from rerank_actor.mining.rules import MiningRules
from rerank_actor.mining.select import Candidates, Selection, mix, select
from rerank_actor.mining.survey import MiningUnit, is_split
from rerank_actor.mining.tally import MiningTally
from rerank_actor.mining.teachers import Combination, combine_teachers
from rerank_actor.outputs.delivered import digest_bytes
from rerank_actor.outputs.row_groups import open_runs
from rerank_actor.outputs.scored_columns import refuse_two_spellings, refuse_two_texts
from rerank_actor.storage.exchange import Exchange, Slice, assign_buckets, hash_keys, read_slices
from rerank_actor.storage.lease import LeaseMark, write_held


@dataclass(frozen=True)
class MiningSpec:
    """What is the same for all units of a run.

    Attributes:
        output: the folder.
        parts: the scored files.
        columns: what their columns are called.
        rule_sets: by name.
        max_positives: the most that any query has.
        split: of the plan.
        exchange: takes the pairs of queries that lie in several units.
        qrels: positive judgements, where these say what is positive.
        teacher, format, prompt, with_examples: of the job.
        combination: of several teachers, None for one.
        verdicts: of a judge, None where there are none.
        with_suspects: whether suspected false negatives are written too.
        value_rules: of the values, of the column that mining goes by, that have rules of their own.
        max_by_value: the most positives of a query of each value.
        pool: where the documents are that random negatives are drawn from, None where there are none.
        only_tally: whether nothing is written, because rule sets are compared.
        lease: of the output; None where nobody else can write.
    """

    output: MineOutput
    parts: tuple[storage.StoredObject, ...]
    columns: Columns
    rule_sets: dict[str, MiningRules]
    max_positives: int
    split: np.ndarray | None
    exchange: Exchange
    qrels: pa.Table | None
    teacher: Teacher
    format: str
    prompt: str | None
    with_examples: bool
    only_tally: bool = False
    lease: LeaseMark | None = None
    pool: str | None = None
    combination: Combination | None = None
    verdicts: Verdicts | None = None
    with_suspects: bool = False
    value_rules: dict[str, MiningRules] = field(default_factory=dict)
    max_by_value: dict[str, int] = field(default_factory=dict)

    def of_value(self, value: str) -> "MiningSpec":
        """Return the same for the queries of one value."""
        own = {"as given": self.value_rules[value]} if value in self.value_rules else self.rule_sets
        most = max(1, self.max_by_value.get(value, self.max_positives))
        return replace(self, rule_sets=own, max_positives=most)


def mine_unit(unit: MiningUnit, spec: MiningSpec) -> dict[str, Any]:
    """Mine the queries that lie in a unit alone, pass the others on to the exchange, and return the unit's record.

    Raises:
        RerankError: the unit cannot be read or written.
    """
    table = _read_unit(unit, spec)
    query, _ = encode_keys(table, spec.columns)
    hashes = hash_keys(spell_questions(table, query))
    moved = is_split(hashes, spec.split)
    begun: dict[str, Any] = {"unit": unit.name}
    if spec.exchange.num_buckets and moved.any():
        rows = np.flatnonzero(moved[query])
        bucket = assign_buckets(hashes, spec.exchange.num_buckets)[query[rows]]
        begun["shuffled"] = spec.exchange.write(f"{unit.name}.arrow", table.take(pa.array(rows)), bucket)
        table = table.filter(pa.array(~moved[query]))
    return _finish(unit, table, spec, begun)


def mine_bucket(bucket: tuple[MiningUnit, list[Slice]], spec: MiningSpec) -> dict[str, Any]:
    """Mine the queries of a bucket of the exchange, and return its record.

    Raises:
        RerankError: it cannot be read or written.
    """
    unit, slices = bucket
    return _finish(unit, read_slices(slices), spec, {"unit": unit.name})


def count_positives(
    slices: list[Slice], columns: Columns, qrels: pa.Table | None, verdicts: Verdicts | None = None
) -> dict[str, Any]:
    """Return the most positives that a query of a bucket has, as `most`, and `by_value`."""
    table = read_slices(slices)
    if table is None:
        return {"most": 0, "by_value": {}}
    if columns.teachers:
        table = table.filter(pc.equal(table["teacher"], 0))
    table = table.filter(pa.array(mark_scored(table, columns)))
    query, keys = encode_keys(table, columns)
    positive = _mark_positives(table, qrels).positive
    if verdicts is not None:
        positive = overrule(positive, verdicts.mark(table, columns.texts.instruction))
    number = np.bincount(query[positive], minlength=len(keys))
    names, codes = find_values(table, query)
    return {"most": int(number.max(initial=0)), "by_value": count_most(number, codes, names)}


def _read_unit(unit: MiningUnit, spec: MiningSpec) -> pa.Table:
    return pa.concat_tables(
        read_pairs(file, uri, groups, spec.columns, (*TEXT_ROLES, *NUMBER_ROLES, "by"), start).table
        for file, uri, groups, start in open_runs(unit.runs, spec.parts)
    )


def _mark_positives(table: pa.Table, qrels: pa.Table | None) -> Judged:
    """Return which pairs are positive, and what positive judgements have no scored pair."""
    if qrels is not None:
        return mark_judged(table["query_id"], table["document_id"], qrels)
    labels = table["positive"].to_numpy() if "positive" in table.column_names else np.zeros(table.num_rows, bool)
    return Judged(labels, 0, 0, 0)


def _mark_unusable(table: pa.Table, query: np.ndarray) -> np.ndarray:
    """Return which documents show nothing, or are the query itself but for case, space and punctuation at the ends."""
    document, asked = table["document"].combine_chunks(), table["query"].combine_chunks()
    first = pa.array(np.unique(query, return_index=True)[1])
    is_itself = mark_variants(document, query, asked.take(first), np.unique(query))
    is_empty: np.ndarray = pc.match_substring_regex(document, UNSEEN).to_numpy(zero_copy_only=False)
    unusable: np.ndarray = is_empty | is_itself
    return unusable


def _read_wanted(table: pa.Table, query: np.ndarray, keys: pa.Array) -> np.ndarray | None:
    """Return how many negatives each query is to have, NaN where its rows do not say it: float64 [num_queries]."""
    if "num_negatives" not in table.column_names:
        return None
    number, known = np.full(len(keys), np.nan), table["num_negatives"].to_numpy()
    rows = np.flatnonzero(np.isfinite(known))
    number[query[rows]] = known[rows]
    others = len(np.unique(query[rows[number[query[rows]] != known[rows]]]))
    if others:
        raise InputError(
            f"--num-negatives-column: {others:,} queries have rows that name different numbers; give all rows of a query one"
        )
    return number


def _count_contradicting(table: pa.Table, query: np.ndarray, text: np.ndarray) -> int:
    """Return how many pairs are those of another row of their query, by text, id and title, and have another score."""
    value = table["logit" if "logit" in table.column_names else "score"].to_numpy()
    names = [encode_texts(table[role])[0] for role in ("document_id", "title") if role in table.column_names]
    keys = [*names, text, query]
    order = np.lexsort((value, *keys))
    is_same = np.ones(max(0, len(order) - 1), bool)
    for key in keys:
        is_same &= np.diff(key[order]) == 0
    return int((is_same & (np.diff(value[order]) != 0)).sum())


def _count_several_ids(table: pa.Table, columns: Columns) -> int:
    """Return how many queries, which are told apart by their texts, have more than one id."""
    if "unused_id" not in table.column_names:
        return 0
    pairs = pa.table({"query": encode_keys(table, columns)[0], "id": table["unused_id"]}).drop_null()
    num_ids = pairs.group_by("query").aggregate([("id", "count_distinct")])["id_count_distinct"]
    return int(pc.sum(pc.greater(num_ids, 1)).as_py() or 0)


def _finish(unit: MiningUnit, table: pa.Table | None, spec: MiningSpec, begun: dict[str, Any]) -> dict[str, Any]:
    """Select and write, and return the record that is begun."""
    objects, tallies = mine_values(unit.name, table, spec)
    with storage.patient():
        for name, data in objects.items():
            write_held(spec.lease, storage.join_uri(spec.output.uri, name), data, spec.output.scratch)
    return {
        **begun,
        "objects": {name: len(data) for name, data in objects.items()},
        "digests": {name: digest_bytes(data) for name, data in objects.items()},
        "tallies": {name: tally.to_dict() for name, tally in tallies.items()},
    }


def mine_values(unit: str, table: pa.Table | None, spec: MiningSpec) -> tuple[dict[str, bytes], dict[str, MiningTally]]:
    """Return what `mine_table` does: of each value apart where mining goes by a column, with a tally of each too."""
    if spec.columns.by is None or table is None:
        return mine_table(unit, table, spec)
    objects: dict[str, bytes] = {}
    tallies = {name: MiningTally(rules.space) for name, rules in spec.rule_sets.items()}
    values = sorted(pc.unique(table["by"]).to_pylist())
    for number, value in enumerate(values):
        made, tally = mine_table(unit, table.filter(pc.equal(table["by"], value)), spec.of_value(value))
        suspects = made.pop(f"{spec.output.own_folder}/{name_piece(unit)}", None)
        if suspects is not None:
            objects[f"{spec.output.own_folder}/{name_piece(f'{unit}-{number:03d}')}"] = suspects
        objects |= {f"{name_folder(spec.columns.by, value)}/{name}": data for name, data in made.items()}
        tallies["as given"].merge(tally["as given"])
        tallies[f"by {value}"] = tally["as given"]
    return objects, tallies


def mine_table(unit: str, table: pa.Table | None, spec: MiningSpec) -> tuple[dict[str, bytes], dict[str, MiningTally]]:
    """Return the objects to write for the pairs of some whole queries, and the tally of each rule set.

    Args:
        unit: its name.
        table: the pairs, None for none.
        spec: of the run.

    Raises:
        InputError: the format cannot hold them.
    """
    objects: dict[str, bytes] = {}
    tallies = {name: MiningTally(rules.space) for name, rules in spec.rule_sets.items()}
    if table is None or not table.num_rows:
        return objects, tallies
    if "query_id" in table.column_names:
        refuse_two_spellings("--scored", "query", table["query_id"])
        refuse_two_texts("--scored", table["query_id"], encode_texts(table["query"])[0])
    is_scored = mark_scored(table, spec.columns)
    unscored = table.filter(pa.array(~is_scored))
    joined: dict[str, Any] = {"queries_of_several_ids": _count_several_ids(table, spec.columns)}
    if spec.combination is not None:
        table, counts = combine_teachers(table, encode_keys(table, spec.columns)[0], spec.combination)
        joined |= counts
    elif not is_scored.all():
        table = table.filter(pa.array(is_scored))
    if not table.num_rows:  # of which the counts still say why
        for tally in tallies.values():
            tally.counts.update(joined)
        return objects, tallies
    queries = _Queries(table, spec, unscored)
    for name, rules in spec.rule_sets.items():
        selection = select(
            queries.candidates, rules, spec.max_positives, queries.make_finder(rules), queries.mark_variants
        )
        pairs, query, counts = queries.add_random(selection, rules)
        chosen = group_examples(pairs, query, selection, Teacher() if spec.only_tally else spec.teacher)
        tallies[name].counts.update(counts)
        values = pairs[rules.space].to_numpy()
        tallies[name].add(chosen, selection, values, with_examples=spec.with_examples and not spec.only_tally)
        tallies[name].counts.update({**queries.counts, **joined})
        if not spec.only_tally:
            number = rules.num_negatives + rules.random_negatives
            objects = build_objects(spec.format, unit, chosen, num_negatives=number, prompt=spec.prompt)
            if spec.with_suspects and len(selection.suspects):
                suspects = build_suspects(table, queries.candidates.query, selection, rules.space, spec.columns)
                objects[f"{spec.output.own_folder}/{name_piece(unit)}"] = storage.to_parquet(suspects)
    return objects, tallies


class _Queries:
    """The pairs of whole queries as the selection wants them."""

    def __init__(self, table: pa.Table, spec: MiningSpec, unscored: pa.Table) -> None:
        query, keys = encode_keys(table, spec.columns)
        text, _ = encode_texts(table["document"])
        judged = _mark_positives(table, spec.qrels)
        self.table, self.spec, self.unscored = table, spec, unscored
        self.asked, self.questions = encode_texts(pa.chunked_array([spell_questions(table, query)]))  # of each query
        self.counts = {
            "unmatched_judgements": judged.num_missing,
            "judged_queries": judged.num_queries,
            "queries_lacking_positives": judged.num_lacking,
            "pairs_with_two_scores": _count_contradicting(table, query, text),
        }
        self.candidates = Candidates(
            query=query,
            text=text,
            values={space: table[space].to_numpy() for space in ("score", "logit") if space in table.column_names},
            positive=judged.positive,
            unusable=_mark_unusable(table, query),
            position=table["position"].to_numpy(),
            query_hash=hash_keys(keys),
            rank=table["rank"].to_numpy() if "rank" in table.column_names else None,
            num_negatives=_read_wanted(table, query, keys),
            disagreement=table["disagreement"].to_numpy() if "disagreement" in table.column_names else None,
            verdict=spec.verdicts.mark(table, spec.columns.texts.instruction) if spec.verdicts is not None else None,
        )

    def add_random(self, selection: Selection, rules: MiningRules) -> tuple[pa.Table, np.ndarray, dict[str, int]]:
        """Return the pairs with random negatives, which the selection then has, the query of each pair, and counts."""
        query, number = self.candidates.query, rules.random_negatives
        if self.spec.pool is None or not number:
            return self.table, query, {}
        pool = unpack_pool(storage.read_bytes(self.spec.pool))
        kept = np.unique(query[selection.positives])
        seeds = self.candidates.query_hash ^ mix(np.array([rules.seed], np.uint64))
        judged = join_judged(self.spec.qrels, self.spec.verdicts)
        given = self.table, query, self.asked, kept, pool, number, seeds, judged
        table, query = add_random_negatives(*given, self._list_unscored(), self._make_judge(pool))
        added = np.arange(self.table.num_rows, table.num_rows)
        rows = np.concatenate([selection.negatives, added])
        selection.negatives = rows[np.argsort(query[rows], kind="stable")]
        short = int((np.bincount(query[added], minlength=int(kept.max(initial=0)) + 1)[kept] < number).sum())
        return table, query, {"random_negatives": len(added), "queries_short_of_random": short}

    def _list_unscored(self) -> tuple[pa.ChunkedArray, np.ndarray]:
        """Return the documents without a score, and of each what is asked, -1 for what no scored pair asks."""
        query, _ = encode_keys(self.unscored, self.spec.columns)
        asked = pc.index_in(spell_questions(self.unscored, query), value_set=self.questions).fill_null(-1)
        return self.unscored["document"], asked.to_numpy(zero_copy_only=False).astype(np.int64)[query]

    def _make_judge(self, pool: pa.Table) -> Callable[[int, int], bool]:
        """Return whether the query of a row and a document of the pool have a verdict by their pair key."""
        verdicts = self.spec.verdicts
        if verdicts is None or verdicts.by_ids:
            return lambda row, place: False
        keys, documents = set(verdicts.no_negatives.to_pylist()), pool["document"].to_pylist()
        asking = self.table.select([name for name in ("query", "instruction") if name in self.table.column_names])

        def is_judged(row: int, place: int) -> bool:
            pair = asking.slice(row, 1).append_column("document", pa.array([documents[place]]))
            return list_pair_keys(pair, self.spec.columns.texts.instruction)[0] in keys

        return is_judged

    def make_finder(self, rules: MiningRules) -> Any:
        """Return a function that finds near-duplicates, None where the rules do not ask for them."""
        likeness = rules.near_duplicates
        if likeness is None:
            return None

        def find(rows: np.ndarray, query: np.ndarray, positives: np.ndarray) -> np.ndarray:
            asked, (positives, owners) = self.asked[query], self._list_positives(positives)
            order = np.argsort(asked, kind="stable")
            is_near = np.zeros(len(rows), bool)
            is_near[order] = mark_near_duplicates(
                self._take(rows[order]), asked[order], self._take(positives), owners, likeness
            )
            return is_near

        return find

    def mark_variants(self, rows: np.ndarray, query: np.ndarray, positives: np.ndarray) -> np.ndarray:
        """Return which of some rows are a positive of what their query asks, written in another way or under another id."""
        verdict = self.candidates.verdict
        if verdict is not None:  # nor may one be that was judged unsure
            positives = np.union1d(positives, np.flatnonzero(verdict == UNSURE))
        positives, owners = self._list_positives(positives)
        return mark_variants(self._take(rows), self.asked[query], self._take(positives), owners)

    def _list_positives(self, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of positives, those that no rule takes too, and what is asked, in its order."""
        labelled, verdict = self.candidates.positive, self.candidates.verdict
        labelled = labelled if verdict is None else overrule(labelled, verdict)
        rows = np.union1d(positives, np.flatnonzero(labelled))
        asked = self.asked[self.candidates.query[rows]]
        order = np.argsort(asked, kind="stable")
        return rows[order], asked[order]

    def _take(self, rows: np.ndarray) -> pa.Array:
        return self.table["document"].take(pa.array(rows)).combine_chunks()
