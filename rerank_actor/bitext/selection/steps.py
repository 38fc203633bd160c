"""The steps of a selection: what a worker does with a unit of scored rows, or with a bucket of the shuffle.

    read -> duplicates -> sources -> targets (-> filter) -> choose | greedy | rounds of both -> fetch -> write

Each takes the rows of its bucket and gives rows for the buckets of the next: by normalized pair, by source, by target, by
the unit where their texts lie, by the part they are delivered in. One-to-one matching in falling order is, in rounds, to
take every pair that is the best left of both its sides. Everything a worker needs is in `StepSpec`. Knows nothing of Ray.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rerank_actor import storage
from rerank_actor.bitext.languages import LanguagePair
from rerank_actor.bitext.selection import hashed_pairs as own
from rerank_actor.bitext.selection.hashed_pairs import HashedPairs, find_ties
from rerank_actor.bitext.selection.job import Format
from rerank_actor.bitext.selection.labelled_pairs import LabelledPairs
from rerank_actor.bitext.selection.margins import (
    average_best,
    average_others,
    compute_margin,
    compute_ratio,
    find_best,
    match_greedily,
    sort_groups,
    to_space,
)
from rerank_actor.bitext.selection.output import SelectOutput
from rerank_actor.bitext.selection.rules import SelectionRules
from rerank_actor.bitext.selection.scored import Columns, RowGroups
from rerank_actor.bitext.selection.tally import SelectionTally
from rerank_actor.bitext.selection.writers import ADDED, build_objects, rename_taken
from rerank_actor.storage.shuffle import find_buckets, pack_slices, read_slices

SAMPLES_PER_PART = 4096
ROW_MASK = 2**own.ROW_BITS - 1
TARGET_BEST, TAKEN = 1, 2

Slices = list[tuple[str, int, int, int]]


@dataclass(frozen=True)
class StepTask:
    """What one task of a step works on: a unit, slices of the shuffle, or both."""

    number: int
    slices: Slices = field(default_factory=list)
    runs: tuple[RowGroups, ...] = ()


@dataclass(frozen=True)
class StepSpec:
    """What is the same for all tasks of a step.

    Attributes:
        output: where all goes.
        parts: the scored files.
        columns: what their columns are called.
        pair: the languages.
        rules: in force, thresholds of the calibration among them.
        known: known pairs.
        num_buckets, num_units, num_parts: of the shuffle, of the scored files, of the delivery.
        waits: whether thresholds wait for the calibration.
        sampled: of the kept pairs one in so many says where parts begin.
        starts: rank and tie with which each part but the first begins.
        formats: to write.
        schema: of delivered Parquet, for a part without rows.
        environment: AWS variables of the driver.
    """

    output: SelectOutput
    parts: tuple[storage.StoredObject, ...]
    columns: Columns
    pair: LanguagePair
    rules: SelectionRules
    known: LabelledPairs | None
    num_buckets: int
    num_units: int
    num_parts: int = 1
    waits: bool = False
    sampled: int = 1
    starts: tuple[np.ndarray, np.ndarray] | None = None
    formats: tuple[Format, ...] = ()
    schema: pa.Schema | None = None
    environment: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass
class StepResult:
    """What a task came to: rows for buckets of the next steps, a tally, and more for its record."""

    tally: SelectionTally = field(default_factory=SelectionTally)
    told: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, tuple[pa.Table, np.ndarray, int]] = field(default_factory=dict)

    def send(self, name: str, rows: HashedPairs, bucket: np.ndarray, num_buckets: int) -> None:
        """Pass rows on."""
        if len(bucket):
            self.outputs[name] = (own.to_table(rows), bucket, num_buckets)


def do_task(task: StepTask, step: str, spec: StepSpec) -> dict[str, Any]:
    """Do a task, write what it passes on and, last, its record; return the record.

    Raises:
        RerankError: something cannot be read or written.
    """
    found = STEPS[step.partition("-")[0]](task, spec)
    record: dict[str, Any] = {"number": task.number, "tally": found.tally.to_dict(), **found.told, "outputs": {}}
    with storage.patient():
        for name, (table, bucket, num_buckets) in found.outputs.items():
            data, places = pack_slices(table, bucket, num_buckets)
            uri = spec.output.at("steps", step, f"{task.number:06d}.{name}")
            storage.write_bytes(uri, data, scratch=spec.output.scratch)
            record["outputs"][name] = {"uri": uri, "size": len(data), "rows": table.num_rows, "places": places}
        spec.output.write_json(f"steps/{step}/{task.number:06d}.json", record)
    return record


def _read(task: StepTask) -> pa.Table | None:
    tables = [table for table in (read_slices([one]) for one in task.slices) if table is not None]
    return pa.concat_tables(tables, promote_options="permissive") if tables else None


def _read_edges(task: StepTask) -> HashedPairs | None:
    table = _read(task)
    return own.from_table(table) if table is not None else None


def read_unit(task: StepTask, spec: StepSpec) -> StepResult:
    """Read scored rows; to the buckets of their normalized texts."""
    edges, told = own.read_edges(task.number, task.runs, spec.parts, spec.columns, spec.rules, spec.known)
    found = StepResult(told={"fingerprints": told["fingerprints"], "reasons": told["reasons"]})
    found.tally.counts["rows"] = told["rows"]
    found.tally.removed["unscored"] = told["unscored"]
    if edges is not None:
        found.send("pairs", edges, find_buckets(edges["n0"], spec.num_buckets), spec.num_buckets)
    return found


def drop_duplicates(task: StepTask, spec: StepSpec) -> StepResult:
    """Keep the best-scored of pairs that are one; to the buckets of sources."""
    found, edges = StepResult(), _read_edges(task)
    if edges is None:
        return found
    tie = find_ties(edges)
    if spec.rules.deduplicate != "none":
        # A pair's exact texts are told apart by all four words of their hashes.
        exact = sort_groups(edges["s0"], edges["s1"], edges["t0"], edges["t1"], -edges["logit"], edges["position"])
        rows = exact.order
        differs = np.ones(len(rows), bool)
        differs[1:] = np.any(
            [edges[name][rows][1:] != edges[name][rows][:-1] for name in ("s0", "s1", "t0", "t1")], axis=0
        )
        found.tally.removed["exact"] = int((~differs).sum())
        edges, tie = own.take(edges, rows[differs]), tie[rows[differs]]
    if spec.rules.deduplicate == "normalized":
        best = find_best(edges["n0"], edges["n1"], edges["logit"], tie, edges["position"])
        found.tally.removed["normalized"] = int((~best).sum())
        edges = own.take(edges, best)
    del edges["n0"], edges["n1"]
    found.tally.add_scores("candidates", to_space(edges["logit"], spec.rules.space), spec.rules.space)
    found.send("pairs", edges, find_buckets(edges["s0"], spec.num_buckets), spec.num_buckets)
    return found


def look_at_sources(task: StepTask, spec: StepSpec) -> StepResult:
    """Add what the other candidates of each source come to; to the buckets of targets."""
    found, edges = StepResult(), _read_edges(task)
    if edges is not None:
        _add_neighbors(edges, "s", "source", spec.rules.neighbors)
        found.send("pairs", edges, find_buckets(edges["t0"], spec.num_buckets), spec.num_buckets)
    return found


def _add_neighbors(edges: HashedPairs, side: str, name: str, neighbors: int) -> None:
    high, low, tie = edges[f"{side}0"], edges[f"{side}1"], find_ties(edges)
    groups = sort_groups(high, low, -edges["logit"], tie)
    edges[f"{name}_rest"] = average_others(edges["logit"], groups, neighbors)
    if np.isfinite(edges["cosine"]).any():
        groups = sort_groups(high, low, -edges["cosine"], tie)
        edges[f"{name}_near"] = average_best(edges["cosine"], groups, neighbors)
    else:
        edges[f"{name}_near"] = np.full(len(high), np.nan)


def look_at_targets(task: StepTask, spec: StepSpec) -> StepResult:
    """Add the margins; what is known of pairs goes into the record, and the pairs through the thresholds."""
    found, edges = StepResult(), _read_edges(task)
    if edges is None:
        return found
    _add_neighbors(edges, "t", "target", spec.rules.neighbors)
    margin = compute_margin(edges["logit"], edges.pop("source_rest"), edges.pop("target_rest"))
    ratio = compute_ratio(edges["cosine"], edges.pop("source_near"), edges.pop("target_near"))
    edges |= {"margin": margin, "ratio": ratio}
    found.tally.counts["without_rivals"] = int(np.isnan(margin).sum())
    if spec.known is not None:
        found.told["known"] = _tell_known(own.take(edges, edges["label"] >= 0), spec.rules)
    if spec.waits:
        found.send("pairs", edges, np.full(own.count(edges), task.number), spec.num_buckets)
        return found
    return _filter(edges, spec, found)


def _tell_known(edges: HashedPairs, rules: SelectionRules) -> dict[str, list[float]]:
    """Return the scores of known pairs by kind, in the job's space, and their labels."""
    values = {
        "forward": to_space(edges["forward"], rules.space),
        "backward": to_space(edges["backward"], rules.space),
        "combined": to_space(edges["logit"], rules.space),
        "margin": edges["margin"],
        "ratio margin": edges["ratio"],
        "labels": edges["label"],
    }
    return {name: own_values.tolist() for name, own_values in values.items()}


def filter_pairs(task: StepTask, spec: StepSpec) -> StepResult:
    """Apply thresholds that had to wait for the calibration."""
    edges = _read_edges(task)
    return StepResult() if edges is None else _filter(edges, spec, StepResult())


def apply_thresholds(edges: HashedPairs, rules: SelectionRules) -> tuple[HashedPairs, dict[str, int]]:
    """Return the pairs that pass every threshold, with the `rank` that modes compare, and how many each removed."""
    removed: dict[str, int] = {}
    values = {
        "threshold": to_space(edges["logit"], rules.space),
        "forward_threshold": to_space(edges["forward"], rules.space),
        "backward_threshold": to_space(edges["backward"], rules.space),
        "margin": np.where(np.isnan(edges["margin"]), np.inf, edges["margin"]),
        "ratio_margin": np.where(np.isnan(edges["ratio"]), -np.inf, edges["ratio"]),
    }
    passes = np.ones(own.count(edges), bool)
    for name, value in values.items():
        least = getattr(rules, name)
        if least is not None:
            holds = value >= least
            removed[name] = int((passes & ~holds).sum())
            passes &= holds
    rank = {"score": edges["logit"], "margin": values["margin"], "ratio": values["ratio_margin"]}[rules.rank_by]
    return own.take(edges | {"rank": rank}, passes), removed


def _filter(edges: HashedPairs, spec: StepSpec, found: StepResult) -> StepResult:
    edges, removed = apply_thresholds(edges, spec.rules)
    found.tally.removed.update(removed)
    mode = spec.rules.mode
    if mode == "all":
        _keep(edges, spec, found)
        return found
    best = find_best(edges["t0"], edges["t1"], edges["rank"], find_ties(edges), edges["position"])
    if mode == "backward":
        found.tally.removed["mode"] = int((~best).sum())
        _keep(own.take(edges, best), spec, found)
        return found
    edges["mark"] = np.where(best, TARGET_BEST, 0).astype(np.int8)
    found.send("alive", edges, find_buckets(edges["s0"], spec.num_buckets), spec.num_buckets)
    return found


def choose_pairs(task: StepTask, spec: StepSpec) -> StepResult:
    """Keep the best of each source, of both sides for the intersection."""
    found, edges = StepResult(), _read_edges(task)
    if edges is not None:
        best = find_best(edges["s0"], edges["s1"], edges["rank"], find_ties(edges), edges["position"])
        if spec.rules.mode == "intersection":
            best &= edges["mark"] == TARGET_BEST
        found.tally.removed["mode"] = int((~best).sum())
        _keep(own.take(edges, best), spec, found)
    return found


def match_pairs(task: StepTask, spec: StepSpec) -> StepResult:
    """Match one to one all pairs that are left, in one task."""
    found, edges = StepResult(), _read_edges(task)
    if edges is not None:
        edges = own.take(edges, edges["mark"] != TAKEN) if "mark" in edges else edges
        order = np.lexsort((edges["position"], find_ties(edges), -edges["rank"]))
        numbers = [_number(edges[f"{side}0"], edges[f"{side}1"]) for side in "st"]
        taken = match_greedily(numbers[0], numbers[1], order)
        found.tally.removed["mode"] = int((~taken).sum())
        _keep(own.take(edges, taken), spec, found)
    return found


def _number(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    groups = sort_groups(high, low)
    found = np.empty(len(high), np.int64)
    found[groups.order] = np.repeat(np.arange(len(groups.starts)), groups.sizes)
    return found


def match_sources(task: StepTask, spec: StepSpec) -> StepResult:
    """Half a round: take the pairs that are the best left of both sides; other pairs of their sources go."""
    found, edges = StepResult(), _read_edges(task)
    if edges is None:
        return found
    best = find_best(edges["s0"], edges["s1"], edges["rank"], find_ties(edges), edges["position"])
    taken = best & (edges["mark"] == TARGET_BEST)
    number = _number(edges["s0"], edges["s1"])
    matched = np.zeros(int(number.max()) + 1, bool)
    matched[number[taken]] = True
    left = ~matched[number]
    found.tally.removed["mode"] = int((~left & ~taken).sum())
    edges["mark"] = np.where(taken, TAKEN, 0).astype(np.int8)
    rows = own.take(edges, left | taken)
    found.send("alive", rows, find_buckets(rows["t0"], spec.num_buckets), spec.num_buckets)
    return found


def match_targets(task: StepTask, spec: StepSpec) -> StepResult:
    """The other half: taken pairs are kept, other pairs of their targets go, and of each target left the best is marked."""
    found, edges = StepResult(), _read_edges(task)
    if edges is None:
        return found
    taken = edges["mark"] == TAKEN
    number = _number(edges["t0"], edges["t1"])
    matched = np.zeros(int(number.max()) + 1, bool)
    matched[number[taken]] = True
    found.tally.removed["mode"] = int((matched[number] & ~taken).sum())
    _keep(own.take(edges, taken), spec, found)
    edges = own.take(edges, ~matched[number])
    best = find_best(edges["t0"], edges["t1"], edges["rank"], find_ties(edges), edges["position"])
    edges["mark"] = np.where(best, TARGET_BEST, 0).astype(np.int8)
    found.send("alive", edges, find_buckets(edges["s0"], spec.num_buckets), spec.num_buckets)
    return found


def _keep(edges: HashedPairs, spec: StepSpec, found: StepResult) -> None:
    """Pass pairs on to where their texts are."""
    tie, labels = find_ties(edges), edges["label"]
    found.tally.add_scores("kept", to_space(edges["logit"], spec.rules.space), spec.rules.space)
    found.tally.counts.update({"kept_right": int((labels == 1).sum()), "kept_wrong": int((labels == 0).sum())})
    sample = tie % np.uint64(spec.sampled) == 0
    found.told["sample"] = [edges["rank"][sample].tolist(), tie[sample].tolist()]
    rows = {name: edges[name] for name in ("position", "rank", "logit", "margin", "ratio")} | {"tie": tie}
    found.send("kept", rows, edges["position"] >> own.ROW_BITS, spec.num_units)


def find_parts(rank: np.ndarray, tie: np.ndarray, starts: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """Return the part of each pair: int64 [num_pairs], best first.

    Args:
        rank: of the pairs.
        tie: of the pairs.
        starts: rank and tie with which each part but the first begins.
    """
    if starts is None or not len(starts[0]):
        return np.zeros(len(rank), np.int64)
    ranks, ties = starts
    low = np.searchsorted(-ranks, -rank, side="left")
    high = np.searchsorted(-ranks, -rank, side="right")
    for first, last in {*zip(low[low < high].tolist(), high[low < high].tolist(), strict=True)}:
        rows = (low == first) & (high == last)
        low[rows] = first + np.searchsorted(ties[first:last], tie[rows], side="right")
    return low.astype(np.int64)


def fetch_texts(task: StepTask, spec: StepSpec) -> StepResult:
    """Read the rows of kept pairs; to their parts."""
    found, edges = StepResult(), _read_edges(task)
    if edges is None:
        return found
    order = np.argsort(edges["position"])
    edges = own.take(edges, order)
    rows = edges["position"] & ROW_MASK
    tables = []
    for file, uri, group, before in own.read_groups(task.runs, spec.parts):
        first, last = np.searchsorted(rows, [before, before + file.metadata.row_group(group).num_rows]).tolist()
        if last > first:
            tables.append(own.read_group(file, uri, group, None).take(pa.array(rows[first:last] - before)))
    table = pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata(None)
    table = rename_taken(table)
    added = {"combined_score": to_space(edges["logit"], spec.rules.space), "margin": edges["margin"]}
    for name, values in (added | {"ratio_margin": edges["ratio"]}).items():
        table = table.append_column(name, pa.array(values.astype(np.float32), ADDED[name], from_pandas=True))
    for name, values in (("_rank", edges["rank"]), ("_tie", edges["tie"]), ("_position", edges["position"])):
        table = table.append_column(name, pa.array(values))
    found.outputs["rows"] = (table, find_parts(edges["rank"], edges["tie"], spec.starts), spec.num_parts)
    return found


def write_part(task: StepTask, spec: StepSpec) -> StepResult:
    """Write a part in each format, best pair first."""
    found, table = StepResult(), _read(task)
    if table is None:
        if spec.schema is None:
            return found
        empty = pa.schema([*spec.schema, pa.field("_rank", pa.float64())])
        table = empty.empty_table()
    else:
        keys = [("_rank", "descending"), ("_tie", "ascending"), ("_position", "ascending")]
        table = table.take(pa.compute.sort_indices(table, sort_keys=keys))
    rank = table["_rank"].to_numpy()
    scores = to_space(rank, spec.rules.space) if spec.rules.rank_by == "score" else rank
    sides, objects = (spec.columns.source, spec.columns.target), {}
    for kind in spec.formats:
        files, altered = build_objects(kind, table, scores, sides, spec.pair)
        found.tally.counts[f"altered_{kind}"] = altered
        for suffix, data in files.items():
            uri = storage.join_uri(spec.output.data_folder(kind), f"part-{task.number:05d}.{suffix}")
            storage.write_bytes(uri, data, scratch=spec.output.scratch)
            objects[uri] = len(data)
    found.told["objects"] = objects
    return found


STEPS: dict[str, Callable[[StepTask, StepSpec], StepResult]] = {
    "read": read_unit,
    "duplicates": drop_duplicates,
    "sources": look_at_sources,
    "targets": look_at_targets,
    "filter": filter_pairs,
    "choose": choose_pairs,
    "match": match_pairs,
    "match_sources": match_sources,
    "match_targets": match_targets,
    "fetch": fetch_texts,
    "write": write_part,
}
