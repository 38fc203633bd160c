"""The whole job while engines fail: they raise, return NaN, die, hang, run out of memory, cannot start."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from commands import ROOT, read_output

from rerank_actor import Reranker
from rerank_actor.commands.status import status
from rerank_actor.errors import AccessDeniedError, EngineStartError, InputError, JobError, RerankError
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.verify import verify_output
from rerank_actor.scoring.coordinator import START_SILENCE_SECONDS, Coordinator
from rerank_actor.scoring.pipeline import restart_stuck_actors
from rerank_actor.scoring.run import finish_output, run_job

GUILTY = "\x07"
GUILTY_TOKEN = 197  # of the byte tokenizer
NUM_ROWS = 60
GUILTY_ROWS = [21]
UNIT_ROWS = 6


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, three of which are guilty where that is a fault."""
    path = tmp_path_factory.mktemp("faults") / "pairs.parquet"
    documents = [f"d {i}{GUILTY * (i in GUILTY_ROWS)}" for i in range(NUM_ROWS)]
    pq.write_table(pa.table({"query": [f"q {i // 4}" for i in range(NUM_ROWS)], "document": documents}), path)
    return path


@pytest.fixture(scope="module")
def calm(shard: Path) -> np.ndarray:
    """The logits of all pairs without any fault."""
    table = pq.read_table(shard)
    pairs = list(zip(table["query"].to_pylist(), table["document"].to_pylist(), strict=True))
    return Reranker(engine="fake").logits(pairs)


def make_job(shard: Path, output: Path, faults: dict[str, Any] | None = None, **settings: Any) -> ScoreJob:
    """Return a job with faults."""
    engine_args = {"faults": faults} if faults else {}
    settings = {"unit_rows": UNIT_ROWS, **settings}
    return ScoreJob(
        input=[str(shard)], output=str(output), engine="fake", engine_args=engine_args, **settings
    ).normalized()


def read_manifest(output: Path) -> dict[str, Any]:
    """Return the manifest."""
    return json.loads((output / "_job/manifest.json").read_text())


def check_rows(output: Path, calm: np.ndarray, failing: list[int] | None = None) -> list[str]:
    """Check that every row is there once with its calm logit, save those that fail; return their reasons."""
    failing = failing or []
    table = read_output(output)
    assert table["document"].to_pylist() == [f"d {i}{GUILTY * (i in GUILTY_ROWS)}" for i in range(NUM_ROWS)]
    errors = table["error"].to_pylist()
    assert [i for i, error in enumerate(errors) if error is not None] == failing
    innocent = np.setdiff1d(np.arange(NUM_ROWS), failing)
    assert np.array_equal(table["logit"].to_numpy()[innocent], calm[innocent])
    assert verify_output(str(output)).problems == []
    return [errors[i] for i in failing]


@pytest.mark.parametrize(
    ("kind", "counted", "reason"),
    [
        ("raise", "engine_raised", "a prompt with the guilty token was in the batch"),
        ("nan", "engine_not_finite", "engine returned a logit that is not finite"),
        ("hang_with_lock", "engine_hung", "the engine hung and was ended"),
    ],
)
def test_guilty_rows_alone_lose_their_scores(
    shard: Path, calm: np.ndarray, tmp_path: Path, local_ray: str, kind: str, counted: str, reason: str
) -> None:
    faults = {"guilty_token": GUILTY_TOKEN, "guilty_kind": kind}
    stall_seconds = 0.7 if counted == "engine_hung" else 60
    result = run_job(make_job(shard, tmp_path, faults, max_attempts=1 + (kind == "raise"), stall_seconds=stall_seconds))
    reasons = check_rows(tmp_path, calm, GUILTY_ROWS)
    assert all(found.startswith(reason) for found in reasons)
    assert result.status == "complete"
    manifest = read_manifest(tmp_path)
    assert manifest["faults"][counted] >= 1
    assert manifest["faults"]["pair_given_up"] == len(GUILTY_ROWS)
    assert manifest["runs"][-1]["actors"] == 1, "at a time, however often it was replaced"
    assert (len(manifest["engines"]) > 1) == (kind != "nan")
    attempts = Counter({int(count): units for count, units in manifest["totals"]["units_by_attempts"].items()})
    assert attempts[1] >= NUM_ROWS // UNIT_ROWS - 1  # all units but the guilty row's


def test_engines_that_fail_now_and_then_cost_no_score(
    shard: Path, calm: np.ndarray, tmp_path: Path, local_ray: str
) -> None:
    """A fault of this kind is of the process: it lasts until the actor is replaced."""
    faults = dict.fromkeys(("raise", "nan", "die", "hang"), 0.12)
    # So many attempts that no pair meets chance alone each time.
    run_job(make_job(shard, tmp_path, faults, stall_seconds=1, max_attempts=12))
    check_rows(tmp_path, calm)
    assert sum(read_manifest(tmp_path)["faults"].values()) > 0


def test_run_that_is_out_of_memory_goes_on_and_says_so(
    shard: Path, calm: np.ndarray, tmp_path: Path, local_ray: str
) -> None:
    run_job(make_job(shard, tmp_path, {"memory_tokens": 1000}))
    check_rows(tmp_path, calm)
    manifest = read_manifest(tmp_path)
    assert manifest["faults"]["memory_ran_out"] >= 1
    assert 500 <= manifest["least_batch_tokens"] <= 1000


@pytest.mark.parametrize(("kind", "cause"), [("raise", "fails at the start"), ("die", "died 3 times")])
def test_engine_that_cannot_start_ends_the_run_with_its_cause(
    shard: Path, tmp_path: Path, local_ray: str, kind: str, cause: str
) -> None:
    with pytest.raises(EngineStartError, match=cause):
        run_job(make_job(shard, tmp_path, {"start": kind}, actors="2"))
    assert not list(tmp_path.glob("part-*"))


def test_actor_that_ray_cannot_create_is_replaced(tmp_path: Path, local_ray: str) -> None:
    """Its process is stopped before a line of ours has run, so that no watchdog looks after it."""

    @ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    class StuckRerankActor:
        def __init__(self, mark: Path) -> None:
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGSTOP)

        def answer(self) -> int:
            return 1

    mark = tmp_path / "mark"
    actor = StuckRerankActor.remote(mark)
    while not mark.exists():
        time.sleep(0.05)
    answer = actor.answer.remote()
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(answer, timeout=1)
    assert restart_stuck_actors() == 1
    assert ray.get(answer, timeout=300) == 1
    assert restart_stuck_actors() == 0
    ray.kill(actor)


SPOIL_STARTS = """
import importlib.util, os, pathlib, signal, sys

FATES, FOLDER = {fates!r}, pathlib.Path({folder!r})

def spoil(module):
    if module.__name__ == "rerank_actor.scoring.coordinator":
        module.START_SILENCE_SECONDS = 5.0
        return
    begin = module.RerankActor.__init__

    def begin_spoilt(self, spec, coordinator, *arguments):
        for number, fate in enumerate(FATES):
            mark = FOLDER / f"mark-{{number}}"
            if not mark.exists():
                mark.touch()
                if fate == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                else:
                    module.ray.get(coordinator.begin_start.remote(module.ray.get_runtime_context().get_actor_id()))
                    os._exit(1)
        begin(self, spec, coordinator, *arguments)

    module.RerankActor.__init__ = begin_spoilt

class Finder:
    names = ["rerank_actor.scoring.actor", "rerank_actor.scoring.coordinator"]

    @classmethod
    def find_spec(cls, name, path, target=None):
        if name not in cls.names:
            return None
        cls.names.remove(name)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            spoil(module)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("fates", [["stop"], ["die", "stop"]], ids=["at once", "after one that died"])
def test_run_whose_first_actor_stands_still_before_its_first_line_goes_on(
    shard: Path, calm: np.ndarray, tmp_path: Path, fates: list[str]
) -> None:
    """Nothing tells the run of such a process; where another began to start in its place, even less."""
    output = tmp_path / "output"
    (tmp_path / "sitecustomize.py").write_text(SPOIL_STARTS.format(fates=fates, folder=str(tmp_path)))
    script = (
        "import sys\n"
        "from rerank_actor.job import load_job\n"
        "from rerank_actor.scoring.run import RunLimits, run_job\n"
        "run_job(load_job(sys.argv[1], {}), limits=RunLimits(first_standstill_seconds=5))"
    )
    job_file = tmp_path / "job.yaml"
    job_file.write_text(f"input: [{shard}]\noutput: {output}\nengine: fake\nunit_rows: {UNIT_ROWS}\n")
    found = subprocess.run(
        [sys.executable, "-c", script, str(job_file)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(tmp_path)},
    )
    assert len(list(tmp_path.glob("mark-*"))) == len(fates)
    assert found.returncode == 0, found.stderr
    check_rows(output, calm)
    assert read_manifest(output)["faults"]["actor_stuck"] >= 1


def test_engine_start_counts_as_work_while_its_process_shows_signs_of_life() -> None:
    now = 1000.0
    coordinator = Coordinator(None, 3, lambda: now)
    coordinator.begin_start("actor")
    for _ in range(4):
        now += 200
        assert coordinator.drain().idle_seconds == 0
        coordinator.note_presence("actor")
    now += START_SILENCE_SECONDS
    silent_for = coordinator.drain().idle_seconds
    assert silent_for == START_SILENCE_SECONDS
    coordinator.begin_start("actor")
    assert coordinator.drain().idle_seconds == 0


def test_engines_that_start_at_a_later_try_score_everything(
    shard: Path, calm: np.ndarray, tmp_path: Path, local_ray: str
) -> None:
    mark = tmp_path / "mark"
    output = tmp_path / "output"
    run_job(make_job(shard, output, {"start": "die", "start_mark": str(mark)}, actors="2"))
    assert mark.exists()
    check_rows(output, calm)


def test_retry_failed_scores_the_failed_units_alone(
    shard: Path, tmp_path: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    for name in ("good", "torn"):
        pq.write_table(pq.read_table(shard), folder / f"{name}.parquet", compression="none", use_dictionary=False)
    whole = (folder / "torn.parquet").read_bytes()
    (folder / "torn.parquet").write_bytes(whole[:4] + b"\xff" * 56 + whole[60:])
    job = make_job(folder, tmp_path / "output", unit_rows=NUM_ROWS)
    assert run_job(job).status == "failed"
    assert status([job.output]) == 0
    printed = capsys.readouterr().out
    assert "torn.parquet" in printed
    assert "3 attempts" in printed
    for part in Path(job.output).glob("part-*"):
        part.unlink()  # the good unit is pending now, and was not a failure
    (folder / "torn.parquet").write_bytes(whole)
    result = run_job(job.model_copy(update={"retry_failed": True, "rescore_changed": True}))
    assert (result.run["units"], result.untried) == (1, 1)


def test_run_with_too_many_error_rows_is_stopped(tmp_path: Path, local_ray: str) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"query": ["q"] * 4000, "document": pa.array([None] * 4000, pa.string())}), path)
    job = make_job(path, tmp_path / "output", max_error_rows=30, unit_rows=20)
    result = run_job(job)
    assert result.status == "failed"
    assert 30 < result.totals.failed_pairs < 4000
    assert result.untried > 0


def test_damaged_part_is_scored_again(shard: Path, calm: np.ndarray, tmp_path: Path, local_ray: str) -> None:
    run_job(make_job(shard, tmp_path))
    cut, flipped, *_ = sorted(tmp_path.glob("part-*"))
    cut.write_bytes(cut.read_bytes()[:-100])
    data = bytearray(flipped.read_bytes())
    data[30] ^= 0xFF  # in the first page
    time.sleep(0.01)  # so that its time of change is another
    flipped.write_bytes(data)
    result = run_job(make_job(shard, tmp_path))
    assert result.run["units"] == 2
    assert result.totals.rows == NUM_ROWS
    check_rows(tmp_path, calm)


@pytest.mark.parametrize("kind", [JobError, AccessDeniedError])
def test_storage_that_refuses_at_the_end_is_a_failed_run_and_no_bad_job(kind: type[JobError]) -> None:
    def refuse() -> None:
        raise kind("/disk/lease: the file system is read-only while writing")

    output: Any = SimpleNamespace(finish=refuse, output=SimpleNamespace(uri="/disk"), lease=None)
    with pytest.raises(RerankError, match=r"read-only .* the same command goes on") as error:
        finish_output(output)
    assert not isinstance(error.value, JobError)  # which would end with 2


def test_other_words_of_the_end_stay_what_they_are() -> None:
    def refuse() -> None:
        raise InputError("plan.parquet: not found")

    output: Any = SimpleNamespace(finish=refuse, output=SimpleNamespace(uri="/disk"), lease=None)
    with pytest.raises(InputError, match="not found"):
        finish_output(output)
