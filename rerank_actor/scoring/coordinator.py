"""The coordinator: a small Ray actor in which the workers of one run write down what happens, and the driver reads it.

It keeps the bisections of units outside the processes that may die, counts faults by kind, and passes on finished units,
failures and engine facts. It holds what the driver has not read yet, so its memory does not grow with the run. The truth
about what is committed is the listing of the output, never this.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import ray

from rerank_actor.engines.score_columns import NOT_FINITE
from rerank_actor.runtime.watchdog import START_SECONDS
from rerank_actor.scoring.bisection import Bisection, Outcome, UnitSlice

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
    f"an actor's process died {START_ATTEMPTS} times while its engine started (too little memory, or a library crashed)"
)
ENGINE_HUNG = "the engine hung and was ended"

Stage = Literal["read", "write"]


@dataclass
class _EngineStart:
    """How an actor's engine stands: `starting`, `ready`, or `ended` by its own actor, to be replaced."""

    since: float
    seen: float
    state: Literal["starting", "ready", "ended"] = "ended"
    failures: int = 0
    log: str = ""

    def is_under_way(self, now: float) -> bool:
        """Whether an engine is starting, in a process that shows signs of life.

        One whose start takes too long is ended by its watchdog before this says no.
        """
        in_time = now < self.since + START_SECONDS + HAND_SECONDS
        return self.state == "starting" and in_time and now < self.seen + START_SILENCE_SECONDS


@dataclass
class _Assignment:
    """Which actor has a unit's slice, and until when it may."""

    actor: str
    deadline: float

    def is_at_work(self, now: float) -> bool:
        """Whether its actor may still come back; a watchdog ends it at the deadline."""
        return now < self.deadline + HAND_SECONDS


@dataclass
class _UnitsAtWork:
    """Who is at which unit: bisections and slices by unit, workers that read or write one, units that wait for an engine."""

    bisections: dict[str, Bisection] = field(default_factory=dict)
    assignments: dict[str, _Assignment] = field(default_factory=dict)
    stages: Counter[tuple[str, Stage]] = field(default_factory=Counter)
    queued: set[str] = field(default_factory=set)


@dataclass
class _ActorEnds:
    """Ends of actors in a row, with nothing scored in between, and the reason of the last."""

    count: int = 0
    reason: str = ""

    def add(self, reason: str, *, ended: bool) -> None:
        """Count one more, or begin anew where the actor lives on."""
        self.count, self.reason = self.count + 1 if ended else 0, reason


@dataclass
class News:
    """What was reported since the driver last asked, and how the run stands as it asks.

    Attributes:
        units: reports of units.
        engines: facts of engines that started.
        engine_failures: why others did not.
        faults: by kind.
        least_batch_tokens: that an engine goes on with since it ran out of memory, None where none did.
        hopeless: why every engine fails, None while the run may go on.
        idle_seconds: for how long nothing has gone on.
        actors: how many there are.
        units_queued, units_at_engines: that wait for an engine, and that are at one.
        first_starts: actors that start an engine for the first time.
    """

    units: list[dict[str, Any]] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)
    engine_failures: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    least_batch_tokens: int | None = None
    hopeless: str | None = None
    idle_seconds: float = 0.0
    actors: int = 0
    units_queued: int = 0
    units_at_engines: int = 0
    first_starts: int = 0


class Coordinator:
    """Bisections, counts and messages of one run.

    Args:
        dtype: of the output's earlier runs, None where there is none.
        max_attempts: tries of a whole unit, and of a pair alone.
        clock: seconds that only grow.
    """

    def __init__(self, dtype: str | None, max_attempts: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._dtype, self._max_attempts, self._clock = dtype, max_attempts, clock
        self._check_claimed = self._stopped = False
        self._starts = defaultdict[str, _EngineStart](lambda: _EngineStart(clock(), clock()))
        self._seen: dict[str, float] = {}
        self._work = _UnitsAtWork()
        self._ends = _ActorEnds()
        self._news = News()
        self._active_at = clock()

    def begin_round(self) -> None:
        """Forget who has what: no worker of an earlier pipeline is at work any more."""
        self._work = _UnitsAtWork()
        self._starts.clear()
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
        now = self._clock()
        at_work = any(assignment.is_at_work(now) for assignment in self._work.assignments.values())
        if at_work or any(start.is_under_way(now) for start in self._starts.values()):
            self._active_at = now
        return now - self._active_at

    def report_unit(self, name: str, report: dict[str, Any]) -> None:
        """Record that a unit is committed, failed (`failure` is in the report) or handed back unscored."""
        self._work.bisections.pop(name, None)
        self._work.assignments.pop(name, None)
        self._work.queued.discard(name)
        del self._work.stages[name, "write"]
        self._news.units.append({"unit": name, **report})
        self._active_at = self._clock()

    def drain(self) -> News:
        """Return the news since the last call, and forget it."""
        since = self._clock() - PRESENCE_SECONDS
        self._seen = {actor: at for actor, at in self._seen.items() if at >= since}
        allowed = max(ENDS_ALLOWED, ENDS_ALLOWED_PER_ACTOR * len(self._starts))
        news = replace(
            self._news,
            faults=+self._news.faults,
            hopeless=self._ends.reason if self._ends.count > allowed else None,
            idle_seconds=self._count_idle_seconds(),
            actors=len(self._seen),
            units_queued=len(self._work.queued),
            units_at_engines=len(self._work.assignments),
            first_starts=sum(start.state == "starting" and not start.failures for start in self._starts.values()),
        )
        self._news = News(least_batch_tokens=news.least_batch_tokens)
        return news

    def note_presence(self, actor: str) -> None:
        """Record a sign of life of an actor, which holds its resources whether it has work or not."""
        self._seen[actor] = self._clock()
        if actor in self._starts:
            self._starts[actor].seen = self._seen[actor]

    def agree_dtype(self, dtype: str) -> str:
        """Return the dtype of the run: the first that an engine chose, or that of the output's earlier runs."""
        self._dtype = self._dtype or dtype
        return self._dtype

    def claim_check(self) -> bool:
        """Return whether the caller is to compare its engine with the reference: once a run, by the first that asks."""
        first, self._check_claimed = not self._check_claimed, True
        return first

    def begin_start(self, actor: str, log: str = "") -> int | None:
        """Record that an actor, new or replaced, starts its engine.

        Args:
            actor: its id.
            log: where the words of its process are, as the end of a sentence.

        Returns:
            How often in a row that failed; None when the run has ended.
        """
        if self._stopped:
            return None
        start = self._starts[actor]
        in_hand = [unit for unit, assignment in self._work.assignments.items() if assignment.actor == actor]
        for unit in in_hand:
            self._note_death(unit)
        if start.state == "ready" and not in_hand:
            self._news.faults["actor_died"] += 1
        elif start.state == "starting":
            self._news.faults["engine_start_died"] += 1
            start.failures += 1
            self._check_claimed = False
            if start.failures == START_ATTEMPTS:
                self.note_engine_failure(actor, START_DIED + (start.log or log))
        start.log = log
        start.state = "starting" if start.failures < START_ATTEMPTS else "ended"
        start.since = start.seen = self._clock()
        return start.failures

    def note_engine(self, actor: str, facts: dict[str, Any]) -> None:
        """Record an engine that started and the figures of its check."""
        self._starts[actor] = _EngineStart(self._clock(), self._clock(), "ready")
        self._news.engines.append({"ready_at": time.time(), **facts})

    def note_engine_failure(self, actor: str, message: str) -> None:
        """Record why an engine did not start."""
        start = self._starts[actor]
        if start.state == "starting":
            start.failures += start.failures < START_ATTEMPTS
            self._news.faults["engine_start_failed"] += 1
        start.state = "ended"
        self._check_claimed = False
        self._news.engine_failures.append(message)

    def note_batch_tokens(self, tokens: int) -> None:
        """Record that an engine ran out of memory and goes on with so many tokens at once."""
        self._news.faults["memory_ran_out"] += 1
        self._news.least_batch_tokens = min(tokens, self._news.least_batch_tokens or tokens)

    def begin_slice(self, actor: str, unit: str, num_prompts: int) -> UnitSlice | Outcome | None:
        """Hand out what of a unit is to be scored next, or say how its bisection ended; None when the run has ended.

        A slice that is still in somebody's hand killed its actor, for Ray gives a unit to one at a time.
        """
        if self._stopped:
            return None
        self._work.queued.discard(unit)
        if unit in self._work.assignments:
            self._note_death(unit)
        bisection = self._work.bisections.setdefault(unit, Bisection(num_prompts, self._max_attempts))
        step = bisection.begin()
        if isinstance(step, UnitSlice):
            self._work.assignments[unit] = _Assignment(actor, self._clock() + HAND_SECONDS)
        elif step.given_up:
            self._news.faults["pair_given_up"] += len(step.given_up)
        return step

    def limit_slice(self, unit: str, ticket: int, seconds: float) -> None:
        """Record when the watchdog will end the actor, which tells a hung engine from a killed one."""
        if self._is_current(unit, ticket):
            self._work.assignments[unit].deadline = self._clock() + seconds

    def finish_slice(self, unit: str, ticket: int, logits: np.ndarray, ended: bool) -> None:
        """Take the logits of a slice, and whether its actor ends itself for those that are not finite."""
        if self._is_current(unit, ticket):
            del self._work.assignments[unit]
            splits = self._work.bisections[unit].splits
            if not self._work.bisections[unit].finish(logits, ended=ended):
                self._count("engine_not_finite", unit, splits)
            self._ends.add(NOT_FINITE, ended=ended)

    def fail_slice(self, unit: str, ticket: int, reason: str, ended: bool) -> None:
        """Record that an engine raised on a slice, and whether its actor ends itself for it."""
        if self._is_current(unit, ticket):
            del self._work.assignments[unit]
            self._fail(unit, reason, "engine_raised", ended=ended)

    def end_bisection(self, unit: str, ticket: int) -> None:
        """Record that a unit was scored whole, at the first try or a later one."""
        if self._is_current(unit, ticket):
            del self._work.bisections[unit], self._work.assignments[unit]
            self._ends.count = 0

    def end_actor(self, actor: str) -> None:
        """Record that an actor ends itself, to be replaced by Ray."""
        self._starts[actor].state = "ended"

    def _is_current(self, unit: str, ticket: int) -> bool:
        return unit in self._work.assignments and self._work.bisections[unit].is_current(ticket)

    def _note_death(self, unit: str) -> None:
        hung = self._clock() >= self._work.assignments.pop(unit).deadline
        self._fail(unit, ENGINE_HUNG if hung else ACTOR_DIED, "engine_hung" if hung else "actor_died", ended=True)

    def _fail(self, unit: str, reason: str, kind: str, *, ended: bool) -> None:
        splits = self._work.bisections[unit].splits
        self._work.bisections[unit].fail(reason, ended=ended)
        self._count(kind, unit, splits)
        self._ends.add(reason, ended=ended)

    def _count(self, kind: str, unit: str, splits_before: int) -> None:
        self._news.faults[kind] += 1
        self._news.faults["unit_split"] += splits_before == 0 < self._work.bisections[unit].splits

    def begin_stage(self, unit: str, stage: Stage) -> int | None:
        """Count a worker that begins to read or write a unit; return how many died at it so far, None at the run's end."""
        if self._stopped:
            return None
        self._active_at = self._clock()
        deaths = self._work.stages[unit, stage]
        self._news.faults["reader_died" if stage == "read" else "writer_died"] += deaths > 0
        self._work.stages[unit, stage] += 1
        return deaths

    def end_stage(self, unit: str, stage: Stage) -> None:
        """Record that the worker is through with it."""
        self._active_at = self._clock()
        if stage == "read":
            self._work.queued.add(unit)
        del self._work.stages[unit, stage]


def start_coordinator(dtype: str | None, max_attempts: int) -> Any:
    """Start the run's coordinator on the driver's node and return its handle."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return (
        ray.remote(Coordinator)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(dtype, max_attempts)
    )
