"""The last steps: texts of the kept pairs are fetched from the scored parts, and written in order as parts of the delivery.

Takes kept pairs without texts, gives files in each format. Knows nothing of why a pair was kept.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.bitext.selection.hashed_pairs import ROW_BITS, KeptPairs
from rerank_actor.bitext.selection.margins import to_space
from rerank_actor.bitext.selection.read_pairs import read_group, read_groups
from rerank_actor.bitext.selection.step_task import Rows, StepResult, StepSpec, StepTask
from rerank_actor.bitext.selection.writers import ADDED, SORTING, build_objects, rename_taken
from rerank_actor.outputs.delivered import digest_bytes
from rerank_actor.storage.exchange import read_slices
from rerank_actor.storage.lease import write_held

ROW_MASK = 2**ROW_BITS - 1
TEXT_LENGTH = 240  # of an example


def assign_parts(rank: np.ndarray, tie: np.ndarray, starts: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
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
    result, slices = StepResult(), read_slices(task.slices, widens=True)
    if slices is None:
        return result
    unordered = KeptPairs.from_table(slices)
    pairs = unordered.select(np.argsort(unordered.position))
    rows = pairs.position & ROW_MASK
    tables = []
    for file, uri, group, before in read_groups(task.runs, spec.parts):
        first, last = np.searchsorted(rows, [before, before + file.metadata.row_group(group).num_rows]).tolist()
        if last > first:
            tables.append(read_group(file, uri, group, None).take(pa.array(rows[first:last] - before)))
    table = pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata(None)
    table = rename_taken(table)
    added = {
        "combined_score": to_space(pairs.logit, spec.rules.space),
        "margin": pairs.margin,
        "ratio_margin": pairs.ratio,
    }
    for name, values in added.items():
        table = table.append_column(name, pa.array(values.astype(np.float32), ADDED[name], from_pandas=True))
    for name, values in zip(SORTING, (pairs.rank, pairs.tie, pairs.position), strict=True):
        table = table.append_column(name, pa.array(values))
    result.outputs["rows"] = Rows(table, assign_parts(pairs.rank, pairs.tie, spec.starts), spec.num_parts)
    return result


def write_part(task: StepTask, spec: StepSpec) -> StepResult:
    """Write a part in each format, best pair first."""
    result, table = StepResult(), read_slices(task.slices, widens=True)
    if table is None:
        if spec.schema is None:
            return result
        table = pa.schema([*spec.schema, pa.field("_rank", pa.float64())]).empty_table()
    else:
        keys = list(zip(SORTING, ("descending", "ascending", "ascending"), strict=True))
        table = table.take(pc.sort_indices(table, sort_keys=keys))
    rank = table["_rank"].to_numpy()
    scores = to_space(rank, spec.rules.space) if spec.rules.rank_by == "score" else rank
    sides, objects, digests = (spec.columns.source, spec.columns.target), {}, {}
    for kind in spec.formats:
        files, altered = build_objects(kind, table, scores, sides, spec.pair)
        result.tally.counts[f"altered_{kind}"] = altered
        for suffix, data in files.items():
            uri = storage.join_uri(spec.output.data_folder(kind), f"part-{task.number:05d}.{suffix}")
            write_held(spec.lease, uri, data, spec.output.scratch)
            objects[uri], digests[uri] = len(data), digest_bytes(data)
    result.facts |= {"objects": objects, "digests": digests, "lowest": _list_last(table, scores, sides, spec.examples)}
    return result


def _list_last(table: pa.Table, scores: np.ndarray, sides: tuple[str, str], number: int) -> list[list[Any]]:
    """Return score, source and target, shortened, of the last pairs of a part, which are those that were nearly dropped."""
    if not set(sides) <= set(table.column_names):
        return []
    first = max(0, table.num_rows - number)
    texts = (table[side].slice(first).cast(pa.large_string()).to_pylist() for side in sides)
    shown = ([(text or "")[:TEXT_LENGTH] for text in side] for side in texts)
    return [list(row) for row in zip(scores[first:].tolist(), *shown, strict=True)]
