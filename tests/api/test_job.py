"""`score_job`: the job as a call, with settings by the names of the flags."""

import json
from pathlib import Path

import pytest

from rerank_actor import score_job
from rerank_actor.errors import JobError
from rerank_actor.reranker import Reranker


def test_job_from_python_gives_its_rows(tmp_path: Path, local_ray: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"number": number, "query": f"q{number}", "document": None if number == 3 else "d"} for number in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"input": str(tmp_path / "rows.jsonl"), "output": str(tmp_path / "out"), "engine": "fake"}
    result = score_job(**settings, unit_rows=4, ray_address=local_ray, progress=False)
    assert result.is_complete
    assert (result.run.totals.rows, result.run.totals.scored) == (9, 8)
    table = result.to_dataset().to_table()
    assert table["number"].to_pylist() == list(range(9))
    with Reranker(engine="fake") as reranker:
        expected = reranker.score([(row["query"], row["document"]) for row in rows if row["document"]]).tolist()
    assert [score for score in table["score"].to_pylist() if score is not None] == expected
    assert capsys.readouterr().out == ""
    again = score_job(**settings, unit_rows=4, ray_address=local_ray, progress=False)
    assert again.run.run["pairs"] == 0


def test_job_from_python_is_refused_as_the_command_is(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="did you mean query_column"):
        score_job(input=str(tmp_path), output=str(tmp_path / "out"), query_colum="q")
    with pytest.raises(JobError, match="dry_run is for the command"):
        score_job(input=tmp_path, output=tmp_path / "out", dry_run=True)
