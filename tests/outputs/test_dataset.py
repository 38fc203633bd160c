"""An output is a dataset: whoever reads the folder gets its rows, and nothing that the job keeps for itself."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from scoring_in_process import score_here

from rerank_actor.job import ScoreJob
from rerank_actor.outputs.folder import CARD, Output
from rerank_actor.outputs.verify import verify_output
from rerank_actor.progress import QuietReporter
from rerank_actor.scoring.committer import OutputCommitter
from rerank_actor.scoring.context import RunContext
from rerank_actor.scoring.preflight import prepare_job
from rerank_actor.storage.lease import Lease

ROWS, BAD, UNIT = 60, 12, 15


def load_with_datasets(folder: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as cache:
        return list(datasets.load_dataset(folder, cache_dir=cache)["train"])


def load_by_suffix(folder: str) -> list[dict[str, Any]]:
    """Read what DuckDB reads of a bare folder, and it and Polars of `**/*.parquet`: files of that suffix at any depth."""
    return [row for path in Path(folder).rglob("*.parquet") for row in pq.ParquetFile(path).read().to_pylist()]


def load_with_duckdb(folder: str) -> list[dict[str, Any]]:
    duckdb = pytest.importorskip("duckdb")
    return list(duckdb.sql(f"FROM read_parquet('{folder}')").to_arrow_table().to_pylist())


READERS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "datasets": load_with_datasets,
    "datasets in streams": lambda folder: list(datasets.load_dataset(folder, streaming=True)["train"]),
    "pyarrow.dataset": lambda folder: ds.dataset(folder).to_table().to_pylist(),
    "pyarrow.parquet": lambda folder: pq.read_table(folder).to_pylist(),
    "files of Parquet's suffix": load_by_suffix,
    "duckdb": load_with_duckdb,
    "pandas": lambda folder: pd.read_parquet(folder, dtype_backend="pyarrow").to_dict("records"),
}


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    """A scored output, of which each of two parts has six rows with an error."""
    queries = [None if row < UNIT * 2 and row % 5 in (1, 3) else f"query {row}" for row in range(ROWS)]
    (tmp_path / "input").mkdir()
    table = pa.table({"query": queries, "document": [f"document {row}" for row in range(ROWS)], "id": range(ROWS)})
    pq.write_table(table, tmp_path / "input/pairs.parquet")
    job = ScoreJob(
        input=[str(tmp_path / "input")], output=str(tmp_path / "output"), engine="fake", unit_rows=UNIT
    ).normalized()
    score_here(job)
    return job


@pytest.mark.parametrize("reader", READERS)
def test_readers_of_the_folder_get_its_rows_alone(job: ScoreJob, reader: str) -> None:
    rows = READERS[reader](job.output)
    assert [row["id"] for row in sorted(rows, key=lambda row: row["id"])] == list(range(ROWS))
    assert sum(isinstance(row["error"], str) for row in rows) == BAD
    next(Path(job.output).glob("part-*")).unlink()
    (Path(job.output) / "_SUCCESS").unlink()
    assert len(READERS[reader](job.output)) == ROWS - UNIT, "as while a run is at work"


def test_card_is_there_before_the_first_part_and_goes_with_the_job(job: ScoreJob) -> None:
    card = Path(job.output) / CARD
    Output(job.output).clear()
    assert not card.exists()
    lease = Lease(Output(job.output).lease_uri, job.output, "run")
    lease.acquire(QuietReporter().info)
    committer = OutputCommitter(prepare_job(job), lease, RunContext("run", job.output, QuietReporter()))
    assert len(committer.prepare()) == ROWS // UNIT
    lease.release()
    assert b"part-*.parquet" in card.read_bytes()


def test_card_of_another_is_left_alone(job: ScoreJob) -> None:
    card = Path(job.output) / CARD
    card.write_text("configs: []\n")
    score_here(job)
    assert verify_output(job.output).problems == []
    Output(job.output).clear()
    assert card.read_text() == "configs: []\n"
