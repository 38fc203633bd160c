"""The bisection of a unit: tried whole, retried, then split in halves until only the pairs are left that bring engines down.

A state machine without clock, Ray or engine: it hands out slices (positions among the unit's prompts) and is told what
became of them. It lives in the coordinator, outside the processes that a slice may kill, so a slice that was handed out and
never reported counts as one that killed its actor. A pair is given up only when it has failed alone.
"""

from dataclasses import dataclass, field

import numpy as np

from rerank_actor.engines.score_columns import NOT_FINITE

ENDS_ALLOWED = 64  # of actors, for one unit; each costs an engine's start


@dataclass(frozen=True)
class UnitSlice:
    """Prompts to score in one go.

    Attributes:
        ticket: tells this hand-out from every other of the unit.
        attempt: tries of these prompts so far, this one included.
        positions: int64, which of the unit's prompts; None for all of them.
        is_split: whether the unit is already known to fail whole, and is being split.
    """

    ticket: int
    attempt: int
    positions: np.ndarray | None
    is_split: bool


@dataclass(frozen=True)
class Outcome:
    """How a bisection ended.

    Attributes:
        logits: float32 [num_prompts], or [num_prompts, size] of vectors, NaN for pairs given up.
        given_up: reason for each pair given up, by position.
        attempts: slices handed out.
        failure: why the unit was given up as a whole; then the rest means nothing.
    """

    logits: np.ndarray
    given_up: dict[int, str]
    attempts: int
    failure: str | None = None


@dataclass
class _Pending:
    positions: np.ndarray
    is_split: bool
    failures: int = 0


@dataclass
class Bisection:
    """One unit under bisection.

    Attributes:
        num_prompts: prompts of the unit that can be scored.
        max_attempts: tries of the whole unit, and of a pair alone.
    """

    num_prompts: int
    max_attempts: int
    attempts: int = 0
    ends: int = 0
    splits: int = 0
    _current: _Pending | None = None
    _failure: str | None = None
    _given_up: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._logits = np.full(self.num_prompts, np.nan, np.float32)
        self._stack = [_Pending(np.arange(self.num_prompts), is_split=False)] if self.num_prompts else []

    @property
    def is_at_work(self) -> bool:
        """Whether a slice is handed out and not yet reported."""
        return self._current is not None

    def begin(self) -> UnitSlice | Outcome:
        """Hand out the next slice, or say how the bisection ended. Call `fail` first for a slice that never came back."""
        if self._failure is not None or not self._stack:
            return Outcome(self._logits, self._given_up, self.attempts, self._failure)
        self._current = self._stack.pop()
        self.attempts += 1
        is_all = len(self._current.positions) == self.num_prompts
        return UnitSlice(
            self.attempts,
            self._current.failures + 1,
            None if is_all else self._current.positions,
            self._current.is_split,
        )

    def is_current(self, ticket: int) -> bool:
        """Whether a ticket is of the slice that is handed out, and not of an actor that was thought dead."""
        return self._current is not None and ticket == self.attempts

    def finish(self, logits: np.ndarray, *, ended: bool = False) -> bool:
        """Take the logits of the slice, and whether they were the end of its actor.

        Returns:
            Whether all are finite; those that are not are tried again, and the slice has failed.
        """
        unit_slice = self._take()
        finite = np.isfinite(logits).reshape(len(logits), -1).all(axis=1)
        if self._logits.shape[1:] != logits.shape[1:]:  # nothing has come back yet, and these are vectors
            self._logits = np.full((self.num_prompts, *logits.shape[1:]), np.nan, np.float32)
        self._logits[unit_slice.positions[finite]] = logits[finite]
        if finite.all():
            return True
        self._retry(
            _Pending(unit_slice.positions[~finite], unit_slice.is_split, unit_slice.failures), NOT_FINITE, ended=ended
        )
        return False

    def fail(self, reason: str, *, ended: bool) -> None:
        """Record that the slice failed, and whether that was the end of its actor."""
        self._retry(self._take(), reason, ended=ended)

    def _take(self) -> _Pending:
        if self._current is None:
            raise ValueError("no slice is handed out")
        unit_slice, self._current = self._current, None
        return unit_slice

    def _retry(self, unit_slice: _Pending, reason: str, *, ended: bool) -> None:
        self.ends += ended
        if self.ends >= self.max_attempts + ENDS_ALLOWED:
            self._failure = f"{reason}, {self.ends} times on this unit; its guilty pairs could not be told apart"
            return
        unit_slice.failures += 1
        is_single = len(unit_slice.positions) == 1
        if unit_slice.failures < (self.max_attempts if is_single or not unit_slice.is_split else 1):
            self._stack.append(unit_slice)
        elif is_single:
            times = f" ({unit_slice.failures} times)" if unit_slice.failures > 1 else ""
            self._given_up[int(unit_slice.positions[0])] = f"{reason}{times}"
        else:
            self.splits += 1
            middle = len(unit_slice.positions) // 2
            halves = unit_slice.positions[middle:], unit_slice.positions[:middle]
            self._stack += [_Pending(half, is_split=True) for half in halves]
