"""Candidates that were changed or lost after the search: told by `jobs.verify`, and found again by the next run."""

from pathlib import Path
from typing import Any

import pytest
from mining_in_process import _TasksHere
from scoring_in_process import score_here

from rerank_actor.commands.verify import verify
from rerank_actor.errors import OutputConflictError
from rerank_actor.outputs.folder import JobFolder
from rerank_actor.progress import QuietReporter
from rerank_actor.retrieval.candidates import SearchPlace
from rerank_actor.retrieval.job import RetrieveJob
from rerank_actor.retrieval.run import RetrieveResult, _Search, make_embed_jobs
from rerank_actor.retrieval.written import RECORD
from rerank_actor.runtime.steps import StepRecords
from rerank_actor.storage.lease import Lease, hold_lease


def search(job: RetrieveJob, run: str) -> RetrieveResult:
    """Search what is not searched, in this process and without Ray."""
    folder, runner = JobFolder(job.output), _TasksHere()
    with hold_lease(folder.lease_uri, folder.uri, run, lambda message: None) as lease:
        return _Search(job, make_embed_jobs(job), lease, QuietReporter()).execute(runner)  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: Path) -> RetrieveJob:
    values: dict[str, Any] = {"engine": "fake", "top_k": 2, "output": str(tmp_path / "out")}
    for name, text in (("source", "Ja\nNein\nVielleicht\n"), ("target", "Yes\nNo\nPerhaps\n")):
        (tmp_path / name).write_text(text)
        values[name] = [str(tmp_path / name)]
    job = RetrieveJob(**values).normalized()
    for embed in make_embed_jobs(job):
        score_here(embed)
    assert search(job, "first").num_candidates == 6
    return job


def test_changed_and_lost_candidates_are_told_and_lost_ones_found_again(
    job: RetrieveJob, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = (Path(job.output) / "candidates").glob("part-*")
    data = file.read_bytes()
    assert verify([job.output]) == 0
    for change, told in (
        (data[:40] + bytes([data[40] ^ 1]) + data[41:], "holds other bytes than were written"),
        (b"", "holds 0 bytes where"),
    ):
        file.write_bytes(change)
        assert verify([job.output]) == 1
        assert f"{file}: {told}" in capsys.readouterr().out
    assert search(job, "second").num_candidates == 6
    assert (file.read_bytes(), verify([job.output])) == (data, 0)
    (file.parent / "part-00001.parquet").write_bytes(data)
    assert verify([job.output]) == 1
    assert "part-00001.parquet: was not written by this search" in capsys.readouterr().out
    (Path(job.output) / "_SUCCESS").unlink()
    assert verify([job.output]) == 1


def test_search_that_lost_its_lease_writes_no_candidates(job: RetrieveJob) -> None:
    folder = JobFolder(job.output)
    frozen = Lease(folder.lease_uri, folder.uri, "frozen", heartbeat_seconds=1e6, host="frozen")
    frozen.acquire(lambda message: None)
    place = SearchPlace("", f"{job.output}/candidates", folder.scratch, frozen.mark)
    taker = Lease(folder.lease_uri, folder.uri, "taker", stale_seconds=0.0)
    taker.acquire(lambda message: None)
    with pytest.raises(OutputConflictError):
        place.write("part-00000.parquet", b"of another top_k")
    taker.release()
    assert verify([job.output]) == 0


def test_candidates_of_which_some_were_written_without_digests_count_as_all_without(
    job: RetrieveJob, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = JobFolder(job.output)
    with hold_lease(folder.lease_uri, folder.uri, "again", lambda message: None) as lease:
        searched = _Search(job, make_embed_jobs(job), lease, QuietReporter())
        StepRecords(searched._records("files")).write("part-00000", {"candidates": 6})
        files = {f"part-{number:05d}": number for number in range(2)}
        record = searched._write(_record_file, files, _TasksHere())  # type: ignore[arg-type]
    assert record == {"candidates": 7}
    folder.write_json(RECORD, {**folder.read_own(RECORD), "objects": {}, "digests": {}})
    assert verify([job.output]) == 1
    whole = {name: value for name, value in folder.read_own(RECORD).items() if name not in ("objects", "digests")}
    folder.write_json(RECORD, whole)
    assert verify([job.output]) == 0
    assert "its candidates without digests" in capsys.readouterr().out


def _record_file(number: int) -> dict[str, Any]:
    return {"candidates": number, "objects": {f"part-{number:05d}": 1}, "digests": {f"part-{number:05d}": "d"}}
