"""The output folder: damaged parts are found and scored again, and sound ones are left alone."""

import io
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import read_output, run_command
from output_place import Place, open_place
from s3_server import S3Server
from scoring_in_process import score_here

from rerank_actor.errors import OutputConflictError, StorageError
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.folder import RECORD_SCHEMA, Output
from rerank_actor.outputs.manifest import UnitRecords, check_committed
from rerank_actor.outputs.part import check_part
from rerank_actor.outputs.verify import verify_output
from rerank_actor.progress import QuietReporter
from rerank_actor.scoring.committer import OutputCommitter
from rerank_actor.scoring.context import RunContext
from rerank_actor.scoring.preflight import is_up_to_date, prepare_job, refresh_job
from rerank_actor.scoring.run import run_job
from rerank_actor.storage.lease import Lease

UNITS = 4
ROWS = 6  # of a unit


# An output on either kind of storage, scored by the path of a unit without Ray.


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return open_place(request, tmp_path)


@pytest.fixture
def job(place: Place, tmp_path: Path) -> ScoreJob:
    return make_job(tmp_path, place.uri)


@pytest.fixture
def local_job(tmp_path: Path) -> ScoreJob:
    return make_job(tmp_path, str(tmp_path / "output"))


def make_job(folder: Path, output: str, **settings: Any) -> ScoreJob:
    """Return a job for the fake engine over a shard of a few units, some of whose rows are bad."""
    count = UNITS * ROWS
    table = pa.table(
        {
            "id": range(count),
            "query": pa.array([None if i % 7 == 3 else f"query {i // 3}" for i in range(count)], pa.string()),
            "document": [f"document {i} " * 40 for i in range(count)],
        }
    )
    shard = folder / "input/a.parquet"
    if not shard.exists():
        shard.parent.mkdir(parents=True)
        pq.write_table(table, shard)
    return ScoreJob(input=[str(shard)], output=output, engine="fake", unit_rows=ROWS, **settings).normalized()


def flip(data: bytes, position: int) -> bytes:
    """Return data with one bit changed."""
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def find_page(data: bytes, column: str = "document") -> int:
    """Return a position among the values of a column: at the end of its page, whose header holds copies of texts."""
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return int(start) + int(chunk.total_compressed_size) - 3


def test_job_that_was_prepared_is_up_to_date_until_another_run_writes_a_plan(local_job: ScoreJob) -> None:
    prepared = prepare_job(local_job)
    assert is_up_to_date(prepared)
    score_here(local_job)
    assert not is_up_to_date(prepared)
    assert is_up_to_date(prepare_job(local_job))
    assert is_up_to_date(prepare_job(local_job.model_copy(update={"overwrite": True})))


def test_job_that_another_run_overtook_before_its_lease_was_held_is_checked_again(local_job: ScoreJob) -> None:
    prepared = prepare_job(local_job)
    assert refresh_job(prepared) is prepared
    other = local_job.model_copy(update={"instruction": "Another task"})
    score_here(other)
    with pytest.raises(OutputConflictError, match="instruction: there 'Another task', now"):
        refresh_job(prepared)
    assert refresh_job(prepare_job(other)).parts == frozenset(path.name for path in Path(other.output).glob("part-*"))


def test_parts_that_came_since_a_job_was_prepared_are_seen_when_its_lease_is_held(local_job: ScoreJob) -> None:
    score_here(local_job)
    parts = {path: path.read_bytes() for path in Path(local_job.output).glob("part-*")}
    for path in parts:
        path.unlink()
    prepared = prepare_job(local_job)
    for path, data in parts.items():
        path.write_bytes(data)
    assert not is_up_to_date(prepared)
    assert refresh_job(prepared).parts == {path.name for path in parts}


def test_record_of_other_rows_than_planned_vouches_for_no_part(local_job: ScoreJob) -> None:
    score_here(local_job)
    output, prepared = Output(local_job.output), prepare_job(local_job)
    (path,) = (Path(local_job.output) / "_job/runs").glob("*")
    table = pq.read_table(path)
    rows = pa.array([rows + 5 for rows in table["rows"].to_pylist()], pa.int64())
    pq.write_table(table.set_column(table.column_names.index("rows"), "rows", rows), path)
    totals, damaged = check_committed(output, output.list_parts(), prepared.plan.units(), prepared.fingerprint)
    assert (totals.rows, damaged) == (prepared.plan.num_rows, {})


DAMAGES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "cut short": lambda data, other: data[: len(data) * 2 // 3],
    "footer cut off": lambda data, other: data[:-20],
    "garbage": lambda data, other: random.Random(0).randbytes(len(data)),
    "zeros": lambda data, other: bytes(len(data)),
    "page with a flipped bit": lambda data, other: flip(data, find_page(data)),
    "score with a flipped bit": lambda data, other: flip(data, find_page(data, "score")),
    "another unit's part": lambda data, other: other,
    "one byte": lambda data, other: b"P",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_part_is_named_by_the_resume_and_scored_again_alone(job: ScoreJob, place: Place, damage: str) -> None:
    first = score_here(job)
    before = place.parts()
    name, other = sorted(before)[1:3]
    place.write(name, DAMAGES[damage](before[name], before[other]))
    if place.s3 is not None:
        place.s3.requests.clear()
    resumed = score_here(job, "again")
    assert list(resumed.damaged) == [name]
    assert resumed.scored == [name.removeprefix("part-").removesuffix(".parquet")]
    assert resumed.totals == first.totals
    after = place.parts()
    assert {n: data for n, data in after.items() if n != name} == {n: d for n, d in before.items() if n != name}
    assert read_rows(after[name]).equals(read_rows(before[name]))
    assert verify_output(job.output).problems == []
    assert score_here(job).scored == []


def read_rows(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data)).replace_schema_metadata(None)


def test_empty_part_is_pending(job: ScoreJob, place: Place) -> None:
    score_here(job)
    name = sorted(place.parts())[0]
    place.write(name, b"")
    assert any(name in problem for problem in verify_output(job.output).problems)
    assert len(score_here(job).scored) == 1
    assert verify_output(job.output).problems == []


def test_resume_reads_no_part_that_its_record_vouches_for(s3: S3Server, tmp_path: Path) -> None:
    job = make_job(tmp_path, s3.uri("out"))
    first = score_here(job)
    s3.requests.clear()
    resumed = score_here(job)
    assert resumed.totals == first.totals
    assert resumed.totals.units == UNITS
    assert resumed.notes == []
    assert [path for method, path in s3.requests if "part-" in path] == []


def test_parts_of_a_killed_run_are_read_once(job: ScoreJob, place: Place) -> None:
    first = score_here(job, records=False)
    assert place.names("_job/runs") == []
    second = score_here(job)
    assert second.totals == first.totals
    assert (second.damaged, second.scored) == ({}, [])
    assert [f"{UNITS} parts" in note for note in second.notes] == [True]
    third = score_here(job)
    assert third.notes == []
    assert third.totals == first.totals


def test_sound_part_that_was_copied_is_kept_and_read_once(local_job: ScoreJob) -> None:
    first = score_here(local_job)
    part = sorted(Path(local_job.output).glob("part-*"))[0]
    os.utime(part, ns=(1, 1))
    second, third = score_here(local_job), score_here(local_job)
    assert (second.damaged, second.scored, len(second.notes), third.notes) == ({}, [], 1, [])
    assert second.totals == third.totals == first.totals


@pytest.mark.parametrize("of_other_columns", [False, True])
def test_damaged_record_file_costs_a_look_at_its_parts(job: ScoreJob, place: Place, of_other_columns: bool) -> None:
    first = score_here(job)
    (name,) = place.names("_job/runs/")
    sink = io.BytesIO()
    pq.write_table(pa.table({"unit": ["a"], "part_bytes": ["many"]}), sink)
    place.write(name, sink.getvalue() if of_other_columns else b"PAR1 garbage")
    resumed = score_here(job)
    assert (resumed.damaged, resumed.scored) == ({}, [])
    assert resumed.totals == first.totals


def test_unreachable_part_is_not_taken_for_a_damaged_one(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    job = make_job(tmp_path, s3.uri("out"))
    score_here(job, records=False)
    prepared, before = prepare_job(job), s3.read_all("out/part-")
    s3.fault = lambda method, path: 503 if method == "GET" and "/part-" in path else 0
    with pytest.raises(StorageError):
        check_committed(prepared.output, prepared.output.list_parts(), prepared.plan.units(), prepared.fingerprint)
    with_delete = verify_output(job.output, delete_damaged=True)
    assert with_delete.deleted == 0
    assert len(with_delete.problems) >= UNITS
    s3.fault = None
    assert s3.read_all("out/part-") == before


def test_flipped_bit_anywhere_is_found_or_changes_no_value(local_job: ScoreJob) -> None:
    """Checksums cover pages, not their headers nor the footer: what goes unseen there must not reach a row."""
    score_here(local_job)
    prepared = prepare_job(local_job)
    unit = next(iter(prepared.plan.units()))
    data = (Path(local_job.output) / unit.part_name).read_bytes()
    assert check_part(unit, data, prepared.fingerprint).problem is None
    table, choose = read_rows(data), random.Random(0)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for position in choose.sample(range(footer), min(footer, 1500)):
        found = flip(data, position)
        if check_part(unit, found, prepared.fingerprint).problem is None:
            assert read_rows(found).equals(table), position
    for column in ("id", "query", "document", "score", "logit", "num_tokens", "truncated_tokens", "error"):
        assert check_part(unit, flip(data, find_page(data, column)), prepared.fingerprint).problem is not None, column


# What verification says, and what it deletes.


def rot(part: Path) -> None:
    """Flip a bit in a page, as a bad disk does: size and time stay."""
    times = part.stat()
    part.write_bytes(flip(part.read_bytes(), find_page(part.read_bytes())))
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_rotten_part_with_its_time_kept_is_found_by_verify_and_deleted_on_demand(local_job: ScoreJob) -> None:
    first = score_here(local_job)
    output = Path(local_job.output)
    parts = sorted(output.glob("part-*"))
    rot(parts[2])
    assert score_here(local_job).damaged == {}, "a resume sees sizes and times"
    problems = verify_output(local_job.output).problems
    assert len(problems) == 1
    assert parts[2].name in problems[0]
    assert "--delete-damaged" in problems[0]
    assert parts[2].exists()
    kept = {part: part.read_bytes() for part in parts if part != parts[2]}
    found = run_command("verify", output, "--delete-damaged")
    assert found.returncode == 1, found.stderr
    assert "1 damaged parts deleted" in found.stdout
    assert not parts[2].exists()
    assert not (output / "_SUCCESS").exists(), "who waits for it would read an output with a hole"
    assert not (output / "_job/lease.json").exists()
    assert {part: part.read_bytes() for part in kept} == kept
    assert score_here(local_job).totals == first.totals
    assert run_command("verify", output).returncode == 0


def test_verify_says_that_the_next_run_mends_what_it_can_see(job: ScoreJob, place: Place) -> None:
    score_here(job)
    name = sorted(place.parts())[0]
    place.write(name, flip(place.read(name), find_page(place.read(name))))
    (problem,) = verify_output(job.output).problems
    assert problem.startswith(name)
    assert problem.endswith("; run the job again")
    assert len(score_here(job).scored) == 1
    assert verify_output(job.output).problems == []


def test_delete_damaged_while_a_run_is_at_work_is_refused(job: ScoreJob, place: Place) -> None:
    score_here(job)
    name = sorted(place.parts())[0]
    place.write(name, b"garbage")
    lease = Lease(Output(job.output).lease_uri, job.output, "a run")
    lease.acquire(print)
    with pytest.raises(OutputConflictError, match="another run is writing"):
        verify_output(job.output, delete_damaged=True)
    assert place.read(name) == b"garbage"
    assert verify_output(job.output).problems, "without deleting it may look"
    lease.release()
    assert verify_output(job.output, delete_damaged=True).deleted == 1
    assert name not in place.parts()


def test_delete_damaged_of_a_sound_output_deletes_nothing(job: ScoreJob, place: Place) -> None:
    score_here(job)
    before = place.names()
    result = verify_output(job.output, delete_damaged=True)
    assert (result.problems, result.deleted) == ([], 0)
    assert place.names() == before


def test_units_in_a_row_that_could_not_be_committed_are_counted(local_job: ScoreJob) -> None:
    lease = Lease(Output(local_job.output).lease_uri, local_job.output, "run")
    lease.acquire(print)
    committer = OutputCommitter(prepare_job(local_job), lease, RunContext("run", local_job.output, QuietReporter()))
    first, second, third, _ = committer.prepare()
    committer.record_report({"unit": first.name, "failure": "the engine failed"})
    assert committer.failed_commits == []
    committer.record_report({"unit": second.name, "failure": "storage is full", "not_committed": True})
    assert committer.failed_commits == [f"unit {second.name}: storage is full"]
    committer.record_report({"unit": third.name, "finished_at": 1.0, "rows": ROWS})
    assert committer.failed_commits == []
    lease.release()


def test_plan_that_was_deleted_while_a_run_was_at_work_is_written_again(local_job: ScoreJob) -> None:
    score_here(local_job)
    output = Output(local_job.output)
    lease = Lease(output.lease_uri, local_job.output, "run")
    lease.acquire(print)
    committer = OutputCommitter(prepare_job(local_job), lease, RunContext("run", local_job.output, QuietReporter()))
    assert committer.prepare() == []
    Path(output.at("plan.bin")).unlink()
    assert committer.finish(reports=False).status == "complete"
    lease.release()
    assert verify_output(local_job.output).problems == []
    assert score_here(local_job).scored == []


# The whole job.


def test_run_with_damaged_part_names_it_and_scores_it_again(local_job: ScoreJob, local_ray: str) -> None:
    assert run_job(local_job).status == "complete"
    output = Path(local_job.output)
    table, totals = read_output(output), manifest_totals(output)
    parts = sorted(output.glob("part-*"))
    parts[1].write_bytes(DAMAGES["cut short"](parts[1].read_bytes(), b""))
    before = {part.name: part.read_bytes() for part in parts if part != parts[1]}
    notes = Notes()
    result = run_job(local_job, notes)
    assert (result.status, result.run["units"]) == ("complete", 1)
    assert any(parts[1].name in line for line in notes.lines)
    assert read_output(output).equals(table)
    assert {name: (output / name).read_bytes() for name in before} == before
    assert manifest_totals(output) == totals
    assert verify_output(str(output)).problems == []


class Notes(QuietReporter):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, message: str) -> None:
        self.lines.append(message)


def manifest_totals(output: Path) -> dict[str, Any]:
    totals = json.loads((output / "_job/manifest.json").read_text())["totals"]
    return {name: value for name, value in totals.items() if name != "engine_seconds"}


# Unit records.


def test_records_are_written_when_the_oldest_has_waited_long_enough(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    records = UnitRecords(output, "run", seconds=0.3)
    records.add("a", {"rows": 1})
    records.add("b", {"rows": 2})
    assert list(output.read_records()) == []
    time.sleep(0.4)
    records.flush_if_due()
    assert [record["unit"] for record in output.read_records()] == ["a", "b"]
    records.add("c", {"rows": 3})
    time.sleep(0.4)
    records.add("d", {"rows": 4})
    assert [record["unit"] for record in output.read_records()] == ["a", "b", "c", "d"]
    assert pq.read_schema(tmp_path / "_job/runs/run-00000.bin").equals(RECORD_SCHEMA)


def test_records_that_cannot_be_written_are_kept_for_later(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    output = Output(s3.uri("out"))
    records = UnitRecords(output, "run", seconds=0.0)
    s3.fault = lambda method, path: 503 if method == "PUT" and "/runs/" in path else 0
    records.add("a", {"rows": 1})
    assert list(output.read_records()) == []
    s3.fault = None
    records.add("b", {"rows": 2})
    assert [record["unit"] for record in output.read_records()] == ["a", "b"]
