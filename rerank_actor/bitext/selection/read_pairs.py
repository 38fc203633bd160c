"""Reading: the scored pairs of a unit as hashed pairs, and the row groups in which their texts lie.

Takes runs of row groups of the scored parts, gives log-odds, hashes and labels, and counts what has no score. Knows nothing
of thresholds or modes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.bitext.selection.hashed_pairs import ROW_BITS, HashedPairs, concatenate
from rerank_actor.bitext.selection.labelled_pairs import LabelledPairs
from rerank_actor.bitext.selection.margins import combine
from rerank_actor.bitext.selection.normalize import hash_texts, mix_hashes, normalize_texts
from rerank_actor.bitext.selection.rules import SelectionRules
from rerank_actor.bitext.selection.scored import Columns
from rerank_actor.errors import InputError, ShardError, describe_cause
from rerank_actor.inputs.text import NOT_UNICODE
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.row_groups import RowGroups, open_runs
from rerank_actor.storage.utf8 import is_utf8

NO_REASON = "no score and no reason"
LISTED_REASONS = 40
COSINE_SLACK = 1e-3
LEAST_SCORE, MOST_SCORE = 1e-38, 1 - 2.0**-24  # what float32 tells from 0 and 1


@dataclass
class ReadCounts:
    """What was read of a unit: rows, those without a score by reason, and a file of each fingerprint."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    fingerprints: dict[str, str] = field(default_factory=dict)


def read_groups(
    runs: tuple[RowGroups, ...], parts: tuple[storage.StoredObject, ...]
) -> Iterator[tuple[Any, str, int, int]]:
    """Yield each row group of a unit: the open file, its URI, the group, and how many rows of the unit come before."""
    before = 0
    for file, uri, groups, _ in open_runs(runs, parts):
        for group in groups:
            yield file, uri, group, before
            before += file.metadata.row_group(group).num_rows


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


def read_pairs(
    number: int,
    runs: tuple[RowGroups, ...],
    parts: tuple[storage.StoredObject, ...],
    columns: Columns,
    rules: SelectionRules,
    known: LabelledPairs | None,
) -> tuple[HashedPairs | None, ReadCounts]:
    """Return the scored pairs of a unit, and what was counted.

    Raises:
        InputError, ShardError, StorageError: a part cannot be read or is not what it should be.
    """
    pieces: list[HashedPairs] = []
    counts = ReadCounts()
    for file, uri, group, before in read_groups(runs, parts):
        names = [name for name in columns.names if name != columns.cosine or name in file.schema_arrow.names]
        has_error = "error" in file.schema_arrow.names
        table = read_group(file, uri, group, [*names, *(["error"] if has_error else [])])
        counts.fingerprints[read_part_metadata(file.schema_arrow).get("fingerprint") or ""] = uri
        counts.rows += table.num_rows
        forward, backward = (
            _read_logits(table, name, columns.is_score) for name in (columns.forward, columns.backward)
        )
        logit = _combine(forward, backward, rules)
        read = [_read_texts(table[name].combine_chunks()) for name in (columns.source, columns.target)]
        sides, lost = [texts for texts, _ in read], read[0][1] | read[1][1]
        whole = pc.and_(pc.is_valid(sides[0]), pc.is_valid(sides[1])).to_numpy(zero_copy_only=False)
        scored = np.isfinite(logit) & whole
        counts.reasons.update(_list_reasons(table, ~scored, has_error, lost))
        chosen = np.flatnonzero(scored)
        if not len(chosen):
            continue
        nothing = np.full(table.num_rows, np.nan)
        source, target = (_hash_side(side.take(pa.array(chosen))) for side in sides)
        pieces.append(
            HashedPairs(
                position=(np.int64(number) << ROW_BITS) + before + chosen.astype(np.int64),
                **_name_hashes(source, target, rules),
                forward=(nothing if forward is None else forward).astype(np.float32)[chosen],
                backward=(nothing if backward is None else backward).astype(np.float32)[chosen],
                logit=logit[chosen],
                cosine=_read_cosines(table, columns.cosine, uri, rules)[chosen],
                label=_look_up_labels(source, target, known),
            )
        )
    return (concatenate(pieces) if pieces else None), counts


def _combine(forward: np.ndarray | None, backward: np.ndarray | None, rules: SelectionRules) -> np.ndarray:
    if forward is None or backward is None:
        single = backward if forward is None else forward
        return np.zeros(0) if single is None else single
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


def _read_texts(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return a column as text, and which rows are not Unicode, whose text is null: bool [num_rows]."""
    try:
        texts = column.cast(pa.string())
        texts.validate(full=True)
        return texts, np.zeros(len(column), bool)
    except pa.ArrowInvalid:
        raw = column.cast(pa.binary()).to_pylist()
        whole = [value if value is None or is_utf8(value) else None for value in raw]
        lost = [value is None and was is not None for value, was in zip(whole, raw, strict=True)]
        return pa.array(whole, pa.binary()).cast(pa.string()), np.array(lost, bool)


def _list_reasons(table: pa.Table, unscored: np.ndarray, has_error: bool, lost: np.ndarray) -> list[str]:
    if not unscored.any():
        return []
    errors = table["error"].to_pylist() if has_error else [None] * table.num_rows
    return [errors[row] or (NOT_UNICODE if lost[row] else NO_REASON) for row in np.flatnonzero(unscored).tolist()]


class _SideHashes(NamedTuple):
    """Hashes of the texts of one side, as written and normalized: uint64 [num_texts, 2]."""

    exact: np.ndarray
    normal: np.ndarray


def _hash_side(side: pa.Array) -> _SideHashes:
    encoded = side.dictionary_encode()
    index = encoded.indices.to_numpy(zero_copy_only=False)
    return _SideHashes(hash_texts(encoded.dictionary)[index], hash_texts(normalize_texts(encoded.dictionary))[index])


def _name_hashes(source: _SideHashes, target: _SideHashes, rules: SelectionRules) -> dict[str, np.ndarray]:
    """Return the columns of `HashedPairs` that hold hashes; sides are compared as the pairs of them are."""
    is_normal = rules.deduplicate == "normalized"
    compared = {
        f"{side}{word}": (hashes.normal if is_normal else hashes.exact)[:, word].copy()
        for side, hashes in (("s", source), ("t", target))
        for word in (0, 1)
    }
    tie, rest = (mix_hashes(source.exact[:, word], target.exact[:, word], word) for word in (0, 1))
    return {**compared, "tie": tie, "rest": rest}


def _look_up_labels(source: _SideHashes, target: _SideHashes, known: LabelledPairs | None) -> np.ndarray:
    """Return the label of each pair: int8, -1 where it has none."""
    if known is None:
        return np.full(len(source.normal), -1, np.int8)
    sides = source.normal[:, 0], target.normal[:, 0]
    return known.look_up_labels(mix_hashes(*sides), *sides)
