"""Runs that are frozen, thaw or die between any two requests: the protocol of lease, parts, manifest and mark, against a store
in memory. The code is that of a run without Ray; leases go stale at once, so that any run may take over from any other.
"""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from memory_s3 import Fate, Process, memory_s3

from rerank_actor import storage
from rerank_actor.engines.fake import FakeEngine
from rerank_actor.engines.model import load_tokenizer_json
from rerank_actor.errors import OutputConflictError, RerankError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.inputs.rows import Unit
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.scored import open_scored
from rerank_actor.outputs.verify import verify_output
from rerank_actor.progress import QuietReporter
from rerank_actor.scoring.committer import OutputCommitter
from rerank_actor.scoring.context import RunContext
from rerank_actor.scoring.preflight import make_engine_spec, make_prepare_spec, prepare_job, refresh_job
from rerank_actor.scoring.prepare import prepare_unit
from rerank_actor.scoring.unit import UnitWork
from rerank_actor.scoring.write import write_part
from rerank_actor.storage.lease import Lease

OUTPUT = "s3://bucket/out"
NEIGHBOURS = {
    "out/qwen8b/part-0123456789ab-00000.parquet": b"theirs",
    "out/old/_SUCCESS": b"",
    "out/part-a.csv": b"theirs",
}
ROWS = 4
READ = ("out/_SUCCESS", "out/part-", "out/_job/plan")  # what readers of an output decide by
RUNS = 4  # at a time
EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "40"))


class Jobs:
    """Jobs of two instructions over one shard and over two, and what scoring their units gives."""

    def __init__(self, folder: Path) -> None:
        for name in ("a", "b"):
            rows = {"query": ["q"] * ROWS, "document": [f"{name}{row}" for row in range(ROWS)]}
            pq.write_table(pa.table(rows), folder / f"{name}.parquet")
        self.jobs = [
            ScoreJob(
                input=[str(folder / f"{name}.parquet") for name in names],
                output=OUTPUT,
                engine="fake",
                unit_rows=2,
                instruction=text,
            ).normalized()
            for text in ("first", "second")
            for names in ("a", "ab")
        ]
        self.model = prepare_job(self.jobs[0].model_copy(update={"output": str(folder / "nowhere")})).model
        self._tokenizer = load_tokenizer_json(self.model)
        self._scored: dict[tuple[str, str], UnitWork] = {}

    def score(self, prepared: Any, unit: Unit) -> UnitWork:
        """Return a unit scored, whose requests, if any, are nobody's."""
        key = (prepared.fingerprint, unit.name)
        if key not in self._scored:
            engine = FakeEngine(make_engine_spec(prepared, self._tokenizer))
            work = prepare_unit(unit, make_prepare_spec(prepared, {}), self._tokenizer)
            logits = np.asarray(engine.compute_logits(work.prompts.ids_at(work.prompts.scorable)), np.float32)
            self._scored[key] = work.with_logits(logits, {"attempts": 1, "seconds": 0.0, "dtype": "float32"})
        return self._scored[key]

    def run(self, number: int, job: ScoreJob, seconds_ahead: float = 0.0) -> str:
        """Do a whole run, as `rerank_actor.scoring.run` does, without Ray, by a clock that may be wrong; return its status."""
        prepared = prepare_job(job, model=self.model)
        lease = Lease(
            prepared.output.lease_uri,
            OUTPUT,
            f"run-{number}",
            heartbeat_seconds=1e6,
            stale_seconds=0.0,
            host=f"host-{number}",
            clock=lambda: time.time() + seconds_ahead,
        )
        lease.acquire(lambda message: None)
        committer = None
        try:
            committer = OutputCommitter(
                refresh_job(prepared), lease, RunContext(f"run-{number}", OUTPUT, QuietReporter())
            )
            for unit in committer.prepare():
                metadata = committer.make_part_metadata()
                report = write_part(self.score(committer.prepared, unit), OUTPUT, metadata, None, lease.mark)
                committer.record_report({"unit": unit.name, **report})
            return committer.finish(reports=False).status
        except OutputConflictError:
            if committer is not None:
                committer.write_stopped_manifest()  # what a signal that comes just then makes a run do
            return "refused"
        finally:
            lease.release()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("protocol"))


@pytest.fixture
def objects() -> Iterator[dict[str, bytes]]:
    with memory_s3() as found:
        yield found


def refuse_wrong_reading() -> None:
    """Check that what calls itself complete holds the rows of its plan's job, each once."""
    stored = Output(OUTPUT).load_plan()
    scored = open_scored(OUTPUT) if stored is not None else None
    if scored is None or scored.explain_incomplete() is not None:
        return
    documents: list[str] = []
    for part in scored.parts:
        table = pq.read_table(io.BytesIO(storage.read_bytes(part.uri)))
        assert read_part_metadata(table.schema)["fingerprint"] == hash_fingerprint(scored.settings)
        documents += table["document"].to_pylist()
    expected = [f"{Path(shard.uri).stem}{row}" for shard in scored.plan.shards for row in range(ROWS)]
    assert sorted(documents) == sorted(expected)


def freeze(jobs: Jobs, objects: dict[str, bytes], frozen_after: int, second_steps: int, first_does: str) -> bool:
    """Freeze a run before one of its requests, let another take its output, thaw it; return whether it got so far.

    Args:
        jobs: what they score.
        objects: the store.
        frozen_after: requests of the first until it is frozen.
        second_steps: requests of the second until the first thaws.
        first_does: `begin`, `overwrite`, or `extend` what an earlier run did with a shard more.
    """
    objects.clear()
    objects.update(NEIGHBOURS)
    if first_does == "extend":
        assert jobs.run(2, jobs.jobs[0]) == "complete"
    job = jobs.jobs[1].model_copy(update={"overwrite": first_does == "overwrite"})
    first = Process(lambda: jobs.run(0, job))
    for _ in range(frozen_after):
        if first.is_alive:
            first.step()
    if not first.is_alive:
        return False
    standing = first.standing
    second = Process(lambda: jobs.run(1, jobs.jobs[2].model_copy(update={"overwrite": True})))
    for _ in range(second_steps):
        if second.is_alive:
            second.step()
    for process in (first, second):
        while process.is_alive:
            process.step()
            if "out/_SUCCESS" in objects:
                refuse_wrong_reading()
    assert isinstance(first.outcome, str | OutputConflictError), first.outcome
    assert {key: objects.get(key) for key in NEIGHBOURS} == NEIGHBOURS
    if second.outcome == "complete" and first.outcome != "complete" and not standing.startswith("delete"):
        scored = open_scored(OUTPUT)
        assert scored.explain_incomplete() is None, standing
        assert scored.settings["instruction"] == jobs.jobs[2].instruction, standing
        manifest = Output(OUTPUT).load_manifest()
        assert (manifest["status"], manifest["fingerprint"]) == ("complete", hash_fingerprint(scored.settings)), (
            standing
        )
        problems = verify_output(OUTPUT).problems
        is_late = standing.startswith("put_object out/part-")  # behind its last look: what it puts is a stray, and told
        assert [problem for problem in problems if not (is_late and "in no plan" in problem)] == [], standing
    return True


@pytest.mark.parametrize(
    ("first_does", "second_steps"),
    [("begin", 25), ("begin", 1000), ("overwrite", 25), ("overwrite", 1000), ("extend", 1000)],
)
def test_run_frozen_before_any_request_changes_nothing_of_the_run_that_took_over(
    jobs: Jobs, objects: dict[str, bytes], second_steps: int, first_does: str
) -> None:
    reached = 0
    while freeze(jobs, objects, reached, second_steps, first_does):
        reached += 1
    assert reached > 20


def meet_foreign_part(jobs: Jobs, objects: dict[str, bytes]) -> tuple[Process, str, bytes]:
    """Return a run that stands before the put of a part, the part's key, and the part of another job that is there since."""
    assert jobs.run(0, jobs.jobs[2]) == "complete"
    foreign = dict(objects)
    objects.clear()
    process = Process(lambda: jobs.run(1, jobs.jobs[0]))
    step_until(process, "put_object out/part-")
    key = process.standing.split()[1]
    objects[key] = foreign[key]
    return process, key, foreign[key]


def test_part_of_another_job_that_appears_under_a_planned_name_gives_way(jobs: Jobs, objects: dict[str, bytes]) -> None:
    process, key, foreign = meet_foreign_part(jobs, objects)
    while process.is_alive:
        process.step()
    assert process.outcome == "complete"
    assert objects[key] != foreign
    refuse_wrong_reading()
    assert verify_output(OUTPUT).problems == []
    objects[key] = foreign
    assert open_scored(OUTPUT).explain_incomplete() is not None, "_SUCCESS is of other parts"


def test_run_frozen_before_it_replaces_a_part_replaces_none_of_the_run_that_took_over(
    jobs: Jobs, objects: dict[str, bytes]
) -> None:
    process, key, foreign = meet_foreign_part(jobs, objects)
    process.step()  # it is not created
    step_until(process, f"put_object {key}")
    assert jobs.run(2, jobs.jobs[2].model_copy(update={"overwrite": True})) == "complete"
    assert objects[key] != foreign
    while process.is_alive:
        process.step()
    refuse_wrong_reading()
    assert verify_output(OUTPUT).problems == []


def test_run_frozen_before_it_takes_a_stale_lease_ends_and_leaves_it_to_the_one_that_took_it(
    jobs: Jobs, objects: dict[str, bytes]
) -> None:
    dead, first, second = (Process(lambda number=number: jobs.run(number, jobs.jobs[0])) for number in range(3))
    step_until(dead, "put_object out/part-")
    dead.kill()
    step_until(first, "put_object out/_job/lease.json")
    first.step()  # it is not created
    step_until(first, "put_object out/_job/lease.json")
    step_until(second, "put_object out/part-")
    for process in (first, second):
        while process.is_alive:
            process.step()
    assert isinstance(first.outcome, OutputConflictError)
    assert second.outcome == "complete"
    assert verify_output(OUTPUT).problems == []


def step_until(process: Process, standing: str) -> None:
    while not process.standing.startswith(standing):
        process.step()


def test_run_that_was_prepared_before_another_job_had_the_output_is_refused(
    jobs: Jobs, objects: dict[str, bytes]
) -> None:
    late = Process(lambda: jobs.run(0, jobs.jobs[2]))
    step_until(late, "put_object out/_job/lease.json")
    assert jobs.run(1, jobs.jobs[0]) == "complete"
    before = {key: data for key, data in objects.items() if "lease" not in key}
    while late.is_alive:
        late.step()
    assert late.outcome == "refused"
    assert {key: data for key, data in objects.items() if "lease" not in key} == before


def test_plan_that_is_deleted_while_a_run_is_at_work_is_written_again(jobs: Jobs, objects: dict[str, bytes]) -> None:
    process = Process(lambda: jobs.run(0, jobs.jobs[0]))
    step_until(process, "put_object out/part-")
    plan = objects.pop("out/_job/plan.bin")
    while process.is_alive:
        process.step()
    assert (process.outcome, objects["out/_job/plan.bin"]) == ("complete", plan)
    assert verify_output(OUTPUT).problems == []


def test_runs_that_both_found_no_lease_are_one_behind_the_other(jobs: Jobs, objects: dict[str, bytes]) -> None:
    first = Process(lambda: jobs.run(0, jobs.jobs[0]))
    second = Process(lambda: jobs.run(1, jobs.jobs[2].model_copy(update={"overwrite": True})))
    for process in (first, second):
        step_until(process, "put_object out/_job/lease.json")
    step_until(first, "put_object out/part-")
    for process in (second, first):
        while process.is_alive:
            process.step()
    assert (second.outcome, first.outcome) == ("complete", "refused")
    refuse_wrong_reading()
    assert [problem for problem in verify_output(OUTPUT).problems if "in no plan" not in problem] == []


class Runs(RuleBasedStateMachine):
    """Runs of some jobs at one output, each of which goes on by a request at a time."""

    jobs: Jobs
    objects: dict[str, bytes]

    def __init__(self) -> None:
        super().__init__()
        self.objects.clear()
        self.objects.update(NEIGHBOURS)
        self.processes: list[Process] = []
        self.looked_at: dict[str, bytes] = {}

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes if process.is_alive]

    @precondition(lambda self: len(self.alive) < RUNS)
    @rule(job=st.integers(0, 3), overwrite=st.booleans(), seconds_ahead=st.sampled_from([0.0, 0.0, -1e9, 1e9]))
    def start(self, job: int, overwrite: bool, seconds_ahead: float) -> None:
        number, chosen = len(self.processes), self.jobs.jobs[job].model_copy(update={"overwrite": overwrite})
        self.processes.append(Process(lambda: self.jobs.run(number, chosen, seconds_ahead)))

    @precondition(lambda self: self.alive)
    @rule(
        which=st.integers(0, RUNS - 1),
        count=st.sampled_from([1, 1, 2, 5, 20, 60]),
        fate=st.sampled_from(["done", "twice", "lost", "late"]),
    )
    def go_on(self, which: int, count: int, fate: Fate) -> None:
        process = self.alive[which % len(self.alive)]
        for index in range(count):
            if process.is_alive:
                process.step(fate if index == 0 else "done")

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, RUNS - 1))
    def die(self, which: int) -> None:
        self.alive[which % len(self.alive)].kill()

    @invariant()
    def what_is_complete_is_right(self) -> None:
        read = {key: data for key, data in self.objects.items() if key.startswith(READ)}
        if read != self.looked_at and "out/_SUCCESS" in read:
            self.looked_at = read
            refuse_wrong_reading()
        assert {key: self.objects.get(key) for key in NEIGHBOURS} == NEIGHBOURS

    def teardown(self) -> None:
        while self.alive:
            self.alive[-1].step()
            self.what_is_complete_is_right()
        for process in self.processes:
            expected = RerankError if process.lost > 1 else OutputConflictError  # two of one request end a run
            assert process.is_killed or isinstance(process.outcome, str | expected), process.outcome
        stored = Output(OUTPUT).load_plan()
        last = self.jobs.jobs[1].model_copy(update={"overwrite": True})
        for job in self.jobs.jobs[1::2]:  # of the instruction that the plan is of, the one that names both shards
            if stored is not None and stored[1]["instruction"] == job.instruction:
                last = job
        assert self.jobs.run(len(self.processes), last) == "complete"
        problems = [problem for problem in verify_output(OUTPUT).problems if "in no plan" not in problem]
        assert problems == []


def test_runs_that_freeze_and_thaw_anywhere_leave_no_wrong_output(jobs: Jobs, objects: dict[str, bytes]) -> None:
    Runs.jobs, Runs.objects = jobs, objects
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Runs,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=20, deadline=None, suppress_health_check=checks, database=None
        ),
    )
