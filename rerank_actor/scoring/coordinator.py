"""The coordinator: a small Ray actor in which the workers of one run write down what happens, and the driver reads it.

It keeps the trials of units outside the processes that may die, counts faults by kind, and passes on finished units,
failures and engine facts. It holds what the driver has not read yet, so its memory does not grow with the run. The truth
about what is committed is the listing of the output, never this.
"""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import ray

from rerank_actor.runtime.watchdog import START_SECONDS
from rerank_actor.scoring.bisection import NOT_FINITE, Bisection, Outcome, Slice

# Ends of actors in a row, with nothing scored in between, after which the run is hopeless.
ENDS_ALLOWED, ENDS_ALLOWED_PER_ACTOR = 30, 10
QUIET_SECONDS = 10.0  # without a slice in hand, a start or a report: nothing goes on any more
HAND_SECONDS = 60.0  # for an actor to say how long a slice may take, and for a watchdog to end one that takes longer
PRESENCE_SECONDS = 60.0  # since an actor's last sign of life, after which it counts as gone
# The same for one whose engine starts, and whose libraries may hold the interpreter's lock for long. Ray may have put another
# process in its place that never comes to our first line.
START_SILENCE_SECONDS = 300.0
START_ATTEMPTS = 3  # of an actor in a row; then it starts its engine no more
ACTOR_DIED = "the actor died while scoring"
START_DIED = (
    f"an actor's process died {START_ATTEMPTS} times while its engine started (too little memory, or a crash of a library); "
    "its words are in Ray's worker logs"
)
ENGINE_HUNG = "the engine hung and was ended"

Stage = Literal["read", "write"]


@dataclass
class _EngineStart:
    """How an actor's engine stands: `starting`, `ready`, or `ended` by its own actor, to be replaced."""

    state: Literal["starting", "ready", "ended"] = "ended"
    failures: int = 0
    since: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)

    def is_under_way(self) -> bool:
        """Whether an engine is starting, in a process that shows signs of life.

        One whose start takes too long is ended by its watchdog before this says no.
        """
        now = time.monotonic()
        in_time = now < self.since + START_SECONDS + HAND_SECONDS
        return self.state == "starting" and in_time and now < self.seen + START_SILENCE_SECONDS


@dataclass
class _Assignment:
    """Which actor has a unit's slice, and until when it may."""

    actor: str
    deadline: float = field(default_factory=lambda: time.monotonic() + HAND_SECONDS)

    def is_at_work(self) -> bool:
        """Whether its actor may still come back; a watchdog ends it at the deadline."""
        return time.monotonic() < self.deadline + HAND_SECONDS


class Coordinator:
    """Trials, counts and messages of one run.

    Args:
        dtype: of the output's earlier runs, None where there is none.
        max_attempts: tries of a whole unit, and of a pair alone.
    """

    def __init__(self, dtype: str | None, max_attempts: int) -> None:
        self._dtype, self._max_attempts = dtype, max_attempts
        self._check_claimed = self._stopped = False
        self._starts: defaultdict[str, _EngineStart] = defaultdict(_EngineStart)
        self._trials: dict[str, Bisection] = {}
        self._hands: dict[str, _Assignment] = {}
        self._stages: Counter[tuple[str, Stage]] = Counter()
        self._least_batch_tokens: int | None = None
        self._ends, self._last_reason = 0, ""
        self._active_at = time.monotonic()
        self._faults: Counter[str] = Counter()
        self._reports: list[dict[str, Any]] = []
        self._engines: list[dict[str, Any]] = []
        self._engine_failures: list[str] = []
        self._queued: set[str] = set()
        self._seen: dict[str, float] = {}

    # The run

    def begin_round(self) -> None:
        """Forget who has what: no worker of an earlier pipeline is at work any more."""
        self._trials.clear()
        self._hands.clear()
        self._stages.clear()
        self._starts.clear()
        self._queued.clear()
        self._seen.clear()
        self._stopped = False

    def stop(self) -> None:
        """Tell the workers that the run has ended, whatever is left to do."""
        self._stopped = True

    def is_stopped(self) -> bool:
        """Return whether the run has ended."""
        return self._stopped

    def is_quiet(self) -> bool:
        """Return whether the run has ended, or nothing has gone on for a while."""
        return self._stopped or self._count_idle_seconds() > QUIET_SECONDS

    def _count_idle_seconds(self) -> float:
        """Return for how long no unit was in anybody's hand, no engine was starting and no worker said a thing."""
        at_work = any(hand.is_at_work() for hand in self._hands.values())
        if at_work or any(start.is_under_way() for start in self._starts.values()):
            self._active_at = time.monotonic()
        return time.monotonic() - self._active_at

    def report_unit(self, name: str, report: dict[str, Any]) -> None:
        """Take down that a unit is committed, failed (`failure` is in the report) or handed back unscored."""
        self._trials.pop(name, None)
        self._hands.pop(name, None)
        self._queued.discard(name)
        del self._stages[name, "write"]
        self._reports.append({"unit": name, **report})
        self._active_at = time.monotonic()

    def drain(self) -> dict[str, Any]:
        """Return what was reported since the last call, and forget it.

        Beside it stands, as of now, how many actors are starting an engine for the first time, how many there are, and
        how many units wait for an engine or are at one.
        """
        since = time.monotonic() - PRESENCE_SECONDS
        self._seen = {actor: at for actor, at in self._seen.items() if at >= since}
        news = {
            "units": self._reports,
            "engines": self._engines,
            "engine_failures": self._engine_failures,
            "faults": dict(+self._faults),
            "least_batch_tokens": self._least_batch_tokens,
            "hopeless": self._last_reason if self._ends > self._allow_ends() else None,
            "idle_seconds": self._count_idle_seconds(),
            "actors": len(self._seen),
            "units_queued": len(self._queued),
            "units_at_engines": len(self._hands),
            "first_starts": sum(item.state == "starting" and not item.failures for item in self._starts.values()),
        }
        self._reports, self._engines, self._engine_failures, self._faults = [], [], [], Counter()
        return news

    # Engines

    def note_presence(self, actor: str) -> None:
        """Take down a sign of life of an actor, which holds its resources whether it has work or not."""
        self._seen[actor] = time.monotonic()
        if actor in self._starts:
            self._starts[actor].seen = self._seen[actor]

    def agree_dtype(self, dtype: str) -> str:
        """Return the dtype of the run: the first that an engine came to, or that of the output's earlier runs."""
        self._dtype = self._dtype or dtype
        return self._dtype

    def claim_check(self) -> bool:
        """Return whether the caller is to compare its engine with the reference: once a run, by the first that asks."""
        first, self._check_claimed = not self._check_claimed, True
        return first

    def begin_start(self, actor: str) -> int | None:
        """Take down that an actor, new or replaced, starts its engine.

        Returns:
            How often in a row that failed; None when the run has ended.
        """
        if self._stopped:
            return None
        start = self._starts[actor]
        in_hand = [unit for unit, hand in self._hands.items() if hand.actor == actor]
        for unit in in_hand:
            self._note_death(unit)
        if start.state == "ready" and not in_hand:
            self._faults["actor_died"] += 1
        elif start.state == "starting":
            self._faults["engine_start_died"] += 1
            start.failures += 1
            self._check_claimed = False
            if start.failures == START_ATTEMPTS:
                self.note_engine_failure(actor, START_DIED)
        start.state = "starting" if start.failures < START_ATTEMPTS else "ended"
        start.since = start.seen = time.monotonic()
        return start.failures

    def note_engine(self, actor: str, facts: dict[str, Any]) -> None:
        """Take down an engine that started and the figures of its check."""
        self._starts[actor] = _EngineStart("ready")
        self._engines.append({"ready_at": time.time(), **facts})

    def note_engine_failure(self, actor: str, message: str) -> None:
        """Take down why an engine did not start."""
        start = self._starts[actor]
        if start.state == "starting":
            start.failures += start.failures < START_ATTEMPTS
            self._faults["engine_start_failed"] += 1
        start.state = "ended"
        self._check_claimed = False
        self._engine_failures.append(message)

    def note_batch_tokens(self, tokens: int) -> None:
        """Take down that an engine ran out of memory and goes on with so many tokens at once."""
        self._faults["memory_ran_out"] += 1
        self._least_batch_tokens = min(tokens, self._least_batch_tokens or tokens)

    # Scoring

    def begin_piece(self, actor: str, unit: str, num_prompts: int) -> Slice | Outcome | None:
        """Hand out what of a unit is to be scored next, or say how its bisection ended; None when the run has ended.

        A slice that is still in somebody's hand killed its actor, for Ray gives a unit to one at a time.
        """
        if self._stopped:
            return None
        self._queued.discard(unit)
        if unit in self._hands:
            self._note_death(unit)
        bisection = self._trials.setdefault(unit, Bisection(num_prompts, self._max_attempts))
        found = bisection.begin()
        if isinstance(found, Slice):
            self._hands[unit] = _Assignment(actor)
        else:
            if found.given_up:
                self._faults["pair_given_up"] += len(found.given_up)
        return found

    def limit_piece(self, unit: str, ticket: int, seconds: float) -> None:
        """Take down when the watchdog will end the actor, which tells a hung engine from a killed one."""
        if self._is_current(unit, ticket):
            self._hands[unit].deadline = time.monotonic() + seconds

    def finish_piece(self, unit: str, ticket: int, logits: np.ndarray, ended: bool) -> None:
        """Take the logits of a slice, and whether its actor ends itself for those that are not finite."""
        if self._is_current(unit, ticket):
            del self._hands[unit]
            splits = self._trials[unit].splits
            if not self._trials[unit].finish(logits, ended=ended):
                self._count("engine_not_finite", unit, splits)
            self._ends, self._last_reason = self._ends + 1 if ended else 0, NOT_FINITE

    def fail_piece(self, unit: str, ticket: int, reason: str, ended: bool) -> None:
        """Take down that an engine raised on a slice, and whether its actor ends itself for it."""
        if self._is_current(unit, ticket):
            del self._hands[unit]
            self._fail(unit, reason, "engine_raised", ended=ended)

    def end_trial(self, unit: str, ticket: int) -> None:
        """Take down that a unit was scored whole, at the first try or a later one."""
        if self._is_current(unit, ticket):
            del self._trials[unit], self._hands[unit]
            self._ends = 0

    def end_actor(self, actor: str) -> None:
        """Take down that an actor ends itself, to be replaced by Ray."""
        self._starts[actor].state = "ended"

    def _is_current(self, unit: str, ticket: int) -> bool:
        return unit in self._hands and self._trials[unit].is_current(ticket)

    def _note_death(self, unit: str) -> None:
        hung = time.monotonic() >= self._hands.pop(unit).deadline
        self._fail(unit, ENGINE_HUNG if hung else ACTOR_DIED, "engine_hung" if hung else "actor_died", ended=True)

    def _fail(self, unit: str, reason: str, kind: str, *, ended: bool) -> None:
        splits = self._trials[unit].splits
        self._trials[unit].fail(reason, ended=ended)
        self._count(kind, unit, splits)
        self._ends, self._last_reason = self._ends + 1 if ended else 0, reason

    def _allow_ends(self) -> int:
        return max(ENDS_ALLOWED, ENDS_ALLOWED_PER_ACTOR * len(self._starts))

    def _count(self, kind: str, unit: str, splits_before: int) -> None:
        self._faults[kind] += 1
        self._faults["unit_split"] += splits_before == 0 < self._trials[unit].splits

    # Reading and writing

    def begin_stage(self, unit: str, stage: Stage) -> int | None:
        """Count a worker that begins to read or write a unit; return how many died at it so far, None at the run's end."""
        if self._stopped:
            return None
        self._active_at = time.monotonic()
        deaths = self._stages[unit, stage]
        self._faults["reader_died" if stage == "read" else "writer_died"] += deaths > 0
        self._stages[unit, stage] += 1
        return deaths

    def end_stage(self, unit: str, stage: Stage) -> None:
        """Take down that the worker is through with it."""
        self._active_at = time.monotonic()
        if stage == "read":
            self._queued.add(unit)
        del self._stages[unit, stage]


def start_coordinator(dtype: str | None, max_attempts: int) -> Any:
    """Start the run's coordinator on the driver's node and return its handle."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return (
        ray.remote(Coordinator)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(dtype, max_attempts)
    )
