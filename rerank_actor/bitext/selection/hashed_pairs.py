"""Hashed pairs: scored pairs without their texts, as numbers that can be exchanged, sorted and grouped.

A row is 128-bit hashes of source and target, equal where `--deduplicate` takes them for one text, where the pair lies, its
log-odds, its cosine and what is known of it; steps add columns. Texts stay in the scored parts until it is certain which are
delivered. Knows nothing of thresholds or modes.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa

ROW_BITS = 32  # of a position; above them stands the number of the unit
NOT_YET = np.zeros(0)  # a column that no step has added


def _not_yet() -> np.ndarray:
    return NOT_YET


@dataclass(frozen=True, eq=False)
class _Rows:
    """Arrays of one length under names; columns that are not there yet are empty."""

    position: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def select(self, rows: np.ndarray) -> Self:
        """Return some rows, by number or by mask."""
        return type(self)(**{name: values[rows] if len(values) else values for name, values in vars(self).items()})

    def to_table(self) -> pa.Table:
        """Return the columns that are there as a table; there must be rows."""
        return pa.table({name: pa.array(values) for name, values in vars(self).items() if len(values)})

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Return the columns of a table."""
        return cls(**{name: table[name].to_numpy() for name in table.column_names})


@dataclass(frozen=True, eq=False)
class HashedPairs(_Rows):
    """Scored pairs.

    Attributes:
        position: int64, number of the unit and, in the lower bits, of the row in it.
        s0, s1, t0, t1: uint64, the two words of the hashes of source and target as they are compared.
        tie: uint64, what ties go by: a hash of both texts as they are, the same however pairs lie in files.
        forward, backward: float32, log-odds of each direction, NaN where there is none.
        logit: float64, combined log-odds.
        cosine: float64, of the candidate generator, NaN where there is none.
        label: int8, 1 known right, 0 known wrong, -1 unknown.
        rest: uint64, with `tie` the hash of both texts as they are; until duplicates are dropped.
        source_rest, source_near: float64, means of the other candidates of the source; until there are margins.
        margin, ratio: float64, NaN for none.
        rank: float64, what modes compare.
        mark: int8, what a half of a round tells the other.
    """

    s0: np.ndarray
    s1: np.ndarray
    t0: np.ndarray
    t1: np.ndarray
    tie: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    logit: np.ndarray
    cosine: np.ndarray
    label: np.ndarray
    rest: np.ndarray = field(default_factory=_not_yet)
    source_rest: np.ndarray = field(default_factory=_not_yet)
    source_near: np.ndarray = field(default_factory=_not_yet)
    margin: np.ndarray = field(default_factory=_not_yet)
    ratio: np.ndarray = field(default_factory=_not_yet)
    rank: np.ndarray = field(default_factory=_not_yet)
    mark: np.ndarray = field(default_factory=_not_yet)


@dataclass(frozen=True, eq=False)
class KeptPairs(_Rows):
    """Pairs that are delivered, without what only led there; `tie` is what ties go by."""

    rank: np.ndarray
    logit: np.ndarray
    margin: np.ndarray
    ratio: np.ndarray
    tie: np.ndarray


def concatenate(pieces: list[HashedPairs]) -> HashedPairs:
    """Return the rows of several pieces with the same columns, of at least one."""
    return HashedPairs(**{name: np.concatenate([vars(piece)[name] for piece in pieces]) for name in vars(pieces[0])})
