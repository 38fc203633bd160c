"""Own files that lie: whatever byte of them is flipped, wherever they are cut, they give what was written, or one sentence."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scoring_in_process import score_here

from rerank_actor import storage
from rerank_actor.errors import InputError, OutputConflictError, PlanDamagedError, RerankError
from rerank_actor.inputs.plan import Plan
from rerank_actor.job import ScoreJob
from rerank_actor.mining.output import MineOutput, restore_plan, store_plan
from rerank_actor.mining.survey import MiningPlan, MiningUnit
from rerank_actor.outputs.export import Exported, ExportSpec, iterate_candidates
from rerank_actor.outputs.folder import PLAN, PLAN_BEFORE, Output
from rerank_actor.outputs.report.build import build_report
from rerank_actor.outputs.row_groups import RowGroups
from rerank_actor.outputs.status import read_status
from rerank_actor.outputs.verify import verify_output
from rerank_actor.progress import QuietReporter
from rerank_actor.runtime.steps import StepRecords
from rerank_actor.runtime.store_builder import build_store, run_here
from rerank_actor.scoring.committer import OutputCommitter
from rerank_actor.scoring.context import RunContext
from rerank_actor.scoring.preflight import prepare_job, refresh_job
from rerank_actor.storage.exchange import Exchange, collect_slices, read_slices
from rerank_actor.storage.keyed_store import BucketLayout, KeyedStore, StoreSpec
from rerank_actor.storage.lease import Lease, LeaseMark, hold_lease, is_running

FLIPS = int(os.environ.get("OWN_FILES_FLIPS", "25"))  # of each file
Reading = tuple[Path, Callable[[], Any]]  # a file, and what reads it


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ScoreJob:
    folder = tmp_path_factory.mktemp("own")
    texts = {"query": ["query"] * 8, "document": [f"document {row}" for row in range(8)]}
    pq.write_table(pa.table(texts), folder / "a.parquet")
    job = ScoreJob(input=[str(folder / "a.parquet")], output=str(folder / "out"), engine="fake", unit_rows=4)
    job = job.normalized()
    score_here(job)
    finish(job)
    return job


def finish(job: ScoreJob) -> str:
    """Do the end of a run whose units are all committed; return its status."""
    prepared = prepare_job(job)
    lease = Lease(prepared.output.lease_uri, job.output, "run")
    lease.acquire(lambda message: None)
    try:
        context = RunContext("run", job.output, QuietReporter())
        committer = OutputCommitter(refresh_job(prepared), lease, context)
        assert committer.prepare() == []
        return committer.finish(reports=False).status
    finally:
        lease.release()


def list_scoring(job: ScoreJob, folder: Path) -> dict[str, Reading]:
    output, own = Output(job.output), Path(job.output, "_job")
    output.replace_failed(
        {"u": {"unit": "u", "shard": "s", "row_start": 0, "num_rows": 1, "error": "e", "attempts": 1}}
    )
    output.write_json("estimate.json", {"wall_hours": 1.5})
    records = next(own.glob("runs/*"))
    return {
        "plan": (own / "plan.bin", output.load_plan),
        "manifest": (own / "manifest.json", output.load_manifest),
        "success": (Path(job.output, "_SUCCESS"), output.read_success),
        "records": (records, lambda: list(output.read_records())),
        "failed": (own / "failed/u.json", output.list_failed),
        "estimate": (own / "estimate.json", output.load_estimate),
        "job": (own / "job.yaml", lambda: read_unbroken(own / "job.yaml")),
    }


def read_unbroken(path: Path) -> Any:
    data = path.read_bytes()
    return None if storage.is_broken(data) else yaml.safe_load(data)


def list_steps(folder: Path) -> dict[str, Reading]:
    records = StepRecords(str(folder / "steps"))
    records.write("a", {"places": np.arange(20), "tally": {"kept": 7}})
    mined = MineOutput(str(folder / "mined"))
    units = [MiningUnit("u", (RowGroups(0, (0, 1), 0),))]
    store_plan(mined, {"format": "x"}, MiningPlan(units, np.arange(50, dtype=np.uint64), 2, 3, {"pairs": 9}))

    def read_mined() -> Any:
        stored = mined.load_stored_plan()
        plan = restore_plan(mined, stored) if stored is not None else None
        return plan and (plan.units, plan.split.tolist() if plan.split is not None else None, plan.totals)

    return {
        "step": (folder / "steps/a.json", lambda: list(records.load(["a"]))),
        "mining plan": (folder / "mined/_mine/plan.json", read_mined),
        "mining split": (folder / "mined/_mine/split.bin", read_mined),
    }


def list_exchanged(folder: Path) -> dict[str, Reading]:
    rows = pa.table({"key": [f"k{row}" for row in range(40)], "text": [f"text {row}" for row in range(40)]})
    written = Exchange(str(folder / "exchange"), 3).write("a.bin", rows, np.arange(40) % 3)
    slices = collect_slices([written], 3)
    layout, uri = BucketLayout(1, 4), str(folder / "store")
    build_store(uri, "d", layout, [0], lambda piece: iter([rows, {"rows": 40}]), run_here)

    def find() -> Any:
        store = StoreSpec.load(uri, "d")
        return store and sorted(row["text"] for row in KeyedStore(store).find(rows["key"].to_pylist()))

    return {
        "exchange": (folder / "exchange/a.bin", lambda: [read_slices(one).to_pylist() for one in slices]),
        "bucket": (folder / "store/bucket-00000.bin", find),
        "store": (folder / "store/store.json", find),
    }


def list_leases(folder: Path) -> dict[str, Reading]:
    uri = str(folder / "lease.json")
    lease = Lease(uri, str(folder), "run")
    lease.acquire(lambda message: None)
    lease._stop.set()
    mark = LeaseMark(uri, str(folder), "run", lease.mark.epoch)
    return {"lease": (folder / "lease.json", lambda: (mark.check(), is_running(uri)))}


def damage(data: bytes, rng: random.Random, cuts: bool) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] if cuts else data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def test_flipped_or_cut_files_give_what_was_written_or_one_sentence(job: ScoreJob, tmp_path: Path) -> None:
    readings = list_scoring(job, tmp_path) | list_steps(tmp_path) | list_exchanged(tmp_path) | list_leases(tmp_path)
    rng, other = random.Random(0), list[str]()
    for name, (path, read) in readings.items():
        whole = path.read_bytes()
        right = json.dumps(read(), default=str)
        accepted = {right, *(json.dumps(value, default=str) for value in EMPTY.get(name, ()))}
        for index in range(FLIPS):
            path.write_bytes(damage(whole, rng, cuts=index % 5 == 0))
            try:
                found = json.dumps(strip(read()), default=str)
            except RerankError as error:
                assert "\n" not in str(error)
                continue
            if found not in accepted:
                other.append(f"{name}: {found[:300]}")
        path.write_bytes(whole)
        assert json.dumps(read(), default=str) == right
    assert other == []


# What readers take a damaged file for, which leads to its being made again, or to a refusal.
EMPTY: dict[str, tuple[Any, ...]] = {
    "manifest": ({},),
    "success": ({"damaged": True}, {}),  # emptied it is a mark of before
    "records": ([],),
    "failed": ([{"shard": "a shard", "row_start": 0, "num_rows": 0, "error": "the record of it is damaged"}],),
    "estimate": ({},),
    "job": (None,),
    "step": ([],),
    "mining plan": (None,),
    "store": (None,),
    "lease": ((None, False),),
}


def strip(value: Any) -> Any:
    """Return values without a seal whose name was flipped, and a damaged record of failure without what says nothing."""
    if isinstance(value, dict):
        return {name: strip(item) for name, item in value.items() if not is_flipped_seal(name)}
    if isinstance(value, list | tuple):
        if len(value) == 1 and isinstance(value[0], dict) and value[0].get("error") == "the record of it is damaged":
            return [{name: value[0][name] for name in ("shard", "row_start", "num_rows", "error")}]
        return type(value)(map(strip, value)) if not hasattr(value, "_fields") else value
    return value


def is_flipped_seal(name: str) -> bool:
    return len(name) == 13 and sum(one != two for one, two in zip(name, "sealed_sha256", strict=True)) == 1


class HeardReporter(QuietReporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def begin(job: ScoreJob, lease: Lease, reporter: HeardReporter) -> OutputCommitter:
    return OutputCommitter(refresh_job(prepare_job(job)), lease, RunContext("run", job.output, reporter))


@pytest.mark.parametrize("layout", [None, {}, {"units": [{}]}, {"units": [], "all_shuffled": True}])
def test_mining_plan_of_another_shape_is_a_damaged_one(tmp_path: Path, layout: object) -> None:
    with pytest.raises(InputError, match=r"plan\.json: is damaged"):
        restore_plan(MineOutput(str(tmp_path)), {"settings": {}, "layout": layout})


@pytest.mark.parametrize(
    "manifest",
    ['{"runs": null}', '{"runs": ["run"]}', '{"engines": null}', '{"engines": ["x"]}', '{"plan": []}', "[]", ""],
)
def test_manifest_of_another_shape_is_a_damaged_one(tmp_path: Path, manifest: str) -> None:
    output = Output(str(tmp_path))
    output.write_own("manifest.json", manifest.encode())
    assert output.load_manifest() == {}
    assert "manifest.json: is damaged" in (output.explain_manifest() or "")


def test_damaged_manifest_is_said_by_each_reader_and_its_totals_are_counted_again(
    tmp_path: Path, job: ScoreJob
) -> None:
    job = copy_output(job, tmp_path)
    manifest = Path(job.output, "_job/manifest.json")
    whole = read_status(job.output)
    assert whole.manifest_problem is None and whole.totals["scored"] == 8
    manifest.write_bytes(manifest.read_bytes().replace(b'"rows": 8', b'"rows": 9'))
    found = read_status(job.output)
    assert "manifest.json: is damaged" in (found.manifest_problem or "")
    assert found.totals == whole.totals
    verified = verify_output(job.output)
    assert (verified.problems, verified.notes) == ([], [found.manifest_problem])
    assert "is damaged" in build_report(job.output)
    with pytest.raises(InputError, match=r"manifest\.json: is damaged"):
        list(iterate_candidates(ExportSpec(job.output, "trec"), Exported()))
    next(Path(job.output).glob("part-*.parquet")).unlink()
    reporter = HeardReporter()
    with hold_lease(Output(job.output).lease_uri, job.output, "run", lambda message: None) as lease:
        committer = begin(job, lease, reporter)
        assert len(committer.prepare()) == 1
        assert reporter.warnings == [found.manifest_problem]
        assert committer.find_earlier_dtype() == "float32"  # of the part that is there
        assert committer.outcomes.totals.rows == 4
        committer.finish(reports=False)
    assert read_status(job.output).totals["scored"] == 4


def test_parts_that_vanish_while_a_run_is_at_work_are_told_and_not_counted(tmp_path: Path, job: ScoreJob) -> None:
    job = copy_output(job, tmp_path)
    reporter = HeardReporter()
    with hold_lease(Output(job.output).lease_uri, job.output, "run", lambda message: None) as lease:
        committer = begin(job, lease, reporter)
        assert committer.prepare() == []
        held = Path(job.output, "_job/lease.json").read_bytes()
        shutil.rmtree(Path(job.output))
        Path(job.output, "_job").mkdir(parents=True)
        Path(job.output, "_job/lease.json").write_bytes(held)
        result = committer.finish(reports=False)
    assert (result.status, result.lost, result.untried, result.totals.scored) == ("failed", 2, 0, 0)
    assert "2 parts that were committed are there no longer" in reporter.warnings[-1]
    assert Path(job.output, "_job/job.yaml").exists()


def copy_output(job: ScoreJob, folder: Path) -> ScoreJob:
    copy = str(folder / "copy")
    shutil.copytree(job.output, copy)
    return job.model_copy(update={"output": copy})


def test_output_whose_plan_has_the_name_of_before_goes_on_with_it(tmp_path: Path, job: ScoreJob) -> None:
    job = copy_output(job, tmp_path)
    own = Path(job.output, "_job")
    (own / PLAN).rename(own / PLAN_BEFORE)
    next(own.glob("runs/*")).rename(own / "runs/before.parquet")
    assert verify_output(job.output).problems == []
    shutil.copy(job.input[0], tmp_path / "b.parquet")
    longer = job.model_copy(update={"input": [*job.input, str(tmp_path / "b.parquet")]})
    score_here(longer)
    assert finish(longer) == "complete"
    assert (own / PLAN_BEFORE).exists() and not (own / PLAN).exists()
    assert verify_output(job.output).units == 4
    Output(job.output).clear()
    assert not (own / PLAN_BEFORE).exists()


@pytest.mark.parametrize("loss", ["damaged", "gone"])
def test_plan_that_is_lost_is_made_again_where_the_parts_fit_it(tmp_path: Path, job: ScoreJob, loss: str) -> None:
    output = Output(job.output)
    plan = Path(job.output, "_job/plan.bin")
    before, stored = plan.read_bytes(), output.load_plan()
    if loss == "damaged":
        plan.write_bytes(before[:100] + bytes([before[100] ^ 1]) + before[101:])
        with pytest.raises(PlanDamagedError, match="makes it again"):
            verify_output(job.output)
    else:
        plan.unlink()
    with pytest.raises(OutputConflictError, match="another fingerprint"):
        prepare_job(job.model_copy(update={"instruction": "another"}))
    assert finish(job) == "complete"
    assert output.load_plan() == stored
    assert verify_output(job.output).problems == []


def test_plan_that_is_lost_is_refused_where_a_part_is_of_other_rows(tmp_path: Path, job: ScoreJob) -> None:
    plan = Path(job.output, "_job/plan.bin")
    before = plan.read_bytes()
    plan.unlink()
    try:
        with pytest.raises(OutputConflictError, match="holds parts but no plan"):
            prepare_job(job.model_copy(update={"unit_rows": 2}))
    finally:
        plan.write_bytes(before)


def test_plan_written_before_seals_is_still_read(job: ScoreJob) -> None:
    stored = Output(job.output).load_plan()
    assert stored is not None
    data = Path(job.output, "_job/plan.bin").read_bytes().replace(b"sealed_sha256", b"another_sha25")
    assert Plan.from_bytes(data) == stored
