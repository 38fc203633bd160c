"""An output of which nothing has a score is said to be so, with its most frequent error and an example."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring_in_process import score_here

from rerank_actor.commands.bitext import bitext
from rerank_actor.commands.score import score
from rerank_actor.job import load_job
from rerank_actor.outputs.unscored import describe_unscored

SCHEMA = pa.schema({"query": pa.string(), "document": pa.list_(pa.string())})


def score_rows(folder: Path, rows: list[dict[str, Any]]) -> str | None:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "in.parquet")
    job = load_job(None, {"input": str(folder / "in.parquet"), "output": str(folder / "out"), "engine": "fake"})
    return describe_unscored({job.output: score_here(job).totals})


def test_nothing_scored_names_the_most_frequent_error_and_a_row(tmp_path: Path) -> None:
    rows = [{"query": "q", "document": None}, {"query": None, "document": ["a", "b"]}]
    said = score_rows(tmp_path / "errors", rows) or ""
    assert said.startswith(
        "nothing was scored: each of 2 rows has an error instead, the most frequent 2 times: query is null"
    )
    [part] = (tmp_path / "errors/out").glob("part-*")
    assert f"(as in row 1 of {part}, counted from 0)" in said
    assert score_rows(tmp_path / "one", [*rows, {"query": "q", "document": ["a"]}]) is None
    assert score_rows(tmp_path / "empty", [{"query": "q", "document": []}]) is None


def test_a_run_that_scores_nothing_does_not_exit_with_0(
    tmp_path: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("query,document\n" + "only one field\n" * 3)
    (tmp_path / "c.deu-eng.tsv").write_text("source\ttarget\n" + "Hallo\t1234567\n" * 3)
    flags = ["--engine", "fake", "--output"]
    assert score(["--input", str(tmp_path / "rows.csv"), *flags, str(tmp_path / "scores")]) == 1
    assert "error: nothing was scored" in capsys.readouterr().err
    assert (tmp_path / "scores/_SUCCESS").exists(), "every row is in place"
    assert score(["--input", str(tmp_path / "rows.csv"), *flags, str(tmp_path / "scores")]) == 1
    assert (
        bitext(["--input", str(tmp_path / "c.deu-eng.tsv"), "--min-letters", "0.9", *flags, str(tmp_path / "b")]) == 1
    )
    assert "error: nothing was scored: each of 3 rows" in capsys.readouterr().err
