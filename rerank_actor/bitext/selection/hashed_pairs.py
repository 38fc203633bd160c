"""Edges: scored pairs without their texts, as numbers that can be shuffled, sorted and grouped.

A row is 128-bit hashes of source and target, where the pair lies, its log-odds, its cosine and what is known of it. Texts
stay in the scored parts until it is certain which are delivered. Knows nothing of thresholds or modes.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.bitext.selection.labelled_pairs import LabelledPairs
from rerank_actor.bitext.selection.margins import combine
from rerank_actor.bitext.selection.normalize import hash_texts, mix_hashes, normalize_texts
from rerank_actor.bitext.selection.rules import SelectionRules
from rerank_actor.bitext.selection.scored import Columns, RowGroups
from rerank_actor.errors import InputError, ShardError, describe_cause
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.scored import open_parquet

HashedPairs = dict[str, np.ndarray]
ROW_BITS = 32  # of a position; above them stands the number of the unit
NO_REASON = "no score and no reason"
COSINE_SLACK = 1e-3
LEAST_SCORE, MOST_SCORE = 1e-38, 1 - 2.0**-24  # what float32 tells from 0 and 1


def take(edges: HashedPairs, rows: np.ndarray) -> HashedPairs:
    """Return some rows, by number or by mask."""
    return {name: values[rows] for name, values in edges.items()}


def count(edges: HashedPairs) -> int:
    """Return the number of rows."""
    return len(edges["position"])


def join(pieces: list[HashedPairs]) -> HashedPairs:
    """Return the rows of several, of at least one."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def to_table(edges: HashedPairs) -> pa.Table:
    """Return edges as a table for the shuffle."""
    return pa.table({name: pa.array(values) for name, values in edges.items()})


def from_table(table: pa.Table) -> HashedPairs:
    """Return a table's columns as arrays."""
    return {name: table[name].to_numpy() for name in table.column_names}


def find_ties(edges: HashedPairs) -> np.ndarray:
    """Return what ties go by: uint64 [num_edges], a hash of both texts, the same however pairs lie in files."""
    return mix_hashes(edges["s0"], edges["t0"])


def read_groups(
    runs: tuple[RowGroups, ...], parts: tuple[storage.StoredObject, ...]
) -> Iterator[tuple[Any, str, int, int]]:
    """Yield each row group of a unit: the open file, its URI, the group, and how many rows of the unit come before."""
    before = 0
    for run in runs:
        part = parts[run.part]
        file = open_parquet(part)
        try:
            for group in range(file.metadata.num_row_groups) if run.groups is None else run.groups:
                yield file, part.uri, group, before
                before += file.metadata.row_group(group).num_rows
        finally:
            file.close()


def read_group(file: pq.ParquetFile, uri: str, group: int, names: list[str] | None) -> pa.Table:
    """Return some columns of a row group, all where none are named.

    Raises:
        ShardError: it is damaged.
        InputError: a column is not there.
    """
    lacking = [name for name in names or [] if name not in file.schema_arrow.names]
    if lacking:
        raise InputError(
            f"{uri}: no column `{lacking[0]}`, which other scored files have; select from them apart", uri=uri
        )
    try:
        return file.read_row_group(group, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{uri}: row group {group} is damaged ({describe_cause(error)})", uri=uri) from error


def read_edges(
    number: int,
    runs: tuple[RowGroups, ...],
    parts: tuple[storage.StoredObject, ...],
    columns: Columns,
    rules: SelectionRules,
    known: LabelledPairs | None,
) -> tuple[HashedPairs | None, dict[str, Any]]:
    """Return the scored pairs of a unit, and what was counted: rows, those without a score by reason, fingerprints.

    Raises:
        InputError, ShardError, StorageError: a part cannot be read or is not what it should be.
    """
    pieces: list[HashedPairs] = []
    reasons: Counter[str] = Counter()
    rows, fingerprints = 0, {}
    for file, uri, group, before in read_groups(runs, parts):
        names = [name for name in columns.names if name != columns.cosine or name in file.schema_arrow.names]
        has_error = "error" in file.schema_arrow.names
        table = read_group(file, uri, group, [*names, *(["error"] if has_error else [])])
        fingerprints[read_part_metadata(file.schema_arrow).get("fingerprint") or ""] = uri
        rows += table.num_rows
        forward, backward = (
            _read_logits(table, name, columns.is_score) for name in (columns.forward, columns.backward)
        )
        logit = _combine(forward, backward, rules)
        sides = [table[name].combine_chunks().cast(pa.string()) for name in (columns.source, columns.target)]
        whole = pc.and_(pc.is_valid(sides[0]), pc.is_valid(sides[1])).to_numpy(zero_copy_only=False)
        scored = np.isfinite(logit) & whole
        for reason in _list_reasons(table, ~scored, has_error):
            reasons[reason] += 1
        chosen = np.flatnonzero(scored)
        if not len(chosen):
            continue
        nothing = np.full(table.num_rows, np.nan)
        edges: HashedPairs = {
            "position": (np.int64(number) << ROW_BITS) + before + np.arange(table.num_rows, dtype=np.int64),
            "forward": (nothing if forward is None else forward).astype(np.float32),
            "backward": (nothing if backward is None else backward).astype(np.float32),
            "logit": logit,
            "cosine": _read_cosines(table, columns.cosine, uri, rules),
        }
        edges = take(edges, chosen) | _hash_sides([side.take(pa.array(chosen)) for side in sides])
        labels = np.full(len(chosen), -1, np.int8)
        if known is not None:
            labels = known.find_labels(edges["n0"], edges.pop("ns"), edges.pop("nt"))
        else:
            del edges["ns"], edges["nt"]
        pieces.append(edges | {"label": labels})
    told = {"rows": rows, "reasons": dict(reasons.most_common(40)), "unscored": reasons.total()}
    return (join(pieces) if pieces else None), {**told, "fingerprints": fingerprints}


def _combine(forward: np.ndarray | None, backward: np.ndarray | None, rules: SelectionRules) -> np.ndarray:
    if forward is None or backward is None:
        one = backward if forward is None else forward
        return np.zeros(0) if one is None else one
    return combine(forward, backward, rules.combine, rules.space)


def _read_logits(table: pa.Table, name: str | None, is_score: bool) -> np.ndarray | None:
    if name is None:
        return None
    values: np.ndarray = table[name].cast(pa.float64()).to_numpy()
    if is_score:
        values = np.clip(values, LEAST_SCORE, MOST_SCORE)
        values = np.log(values) - np.log1p(-values)
    return values


def _read_cosines(table: pa.Table, name: str | None, uri: str, rules: SelectionRules) -> np.ndarray:
    if name is None or name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    values: np.ndarray = table[name].cast(pa.float64()).to_numpy()
    largest = np.nanmax(np.abs(values), initial=0.0)
    if rules.needs_cosines and largest > 1 + COSINE_SLACK:
        raise InputError(
            f"{uri}: column `{name}` reaches {largest:.4g}, so that it holds no cosines; a ratio margin cannot be made of it "
            "(LASER's files hold margins already); leave out --ratio-margin and --rank-by ratio",
            uri=uri,
            column=name,
        )
    return values


def _list_reasons(table: pa.Table, unscored: np.ndarray, has_error: bool) -> list[str]:
    number = int(unscored.sum())
    if not number:
        return []
    if not has_error:
        return [NO_REASON] * number
    return [reason or NO_REASON for reason in table["error"].filter(pa.array(unscored)).to_pylist()]


def _hash_sides(sides: list[pa.Array]) -> HashedPairs:
    """Return hashes of both sides: `s0`, `s1`, `t0`, `t1`; of the normalized pair `n0`, `n1`, and of its sides `ns`, `nt`."""
    found: HashedPairs = {}
    normal = []
    for name, side in zip("st", sides, strict=True):
        encoded = side.dictionary_encode()
        which = encoded.indices.to_numpy(zero_copy_only=False)
        own = hash_texts(encoded.dictionary)[which]
        found |= {f"{name}0": own[:, 0].copy(), f"{name}1": own[:, 1].copy()}
        normal.append(hash_texts(normalize_texts(encoded.dictionary))[which])
    found |= {f"n{place}": mix_hashes(normal[0][:, place], normal[1][:, place], place) for place in (0, 1)}
    return found | {"ns": normal[0][:, 0].copy(), "nt": normal[1][:, 0].copy()}
