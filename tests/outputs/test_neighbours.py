"""What lies beside or below a job's parts is another's: no command reads it, counts it or deletes it."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from output_place import Place, open_place
from scoring_in_process import score_here

from rerank_actor.bitext.selection.output import SelectOutput
from rerank_actor.errors import OutputConflictError
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.output import MineOutput
from rerank_actor.mining.scored import load_scored
from rerank_actor.outputs.export import ExportSpec, export_scores
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.report.facts import gather_facts
from rerank_actor.outputs.scored import open_scored
from rerank_actor.outputs.status import read_status
from rerank_actor.outputs.verify import verify_output
from rerank_actor.scoring.preflight import prepare_job
from rerank_actor.scoring.reuse import load_reused

ROWS = 12
SPARK = "part-00000-6fd7b0a2-4ad0-4c5e-9d1f-1d8f7d2a6c11-c000.snappy.parquet"


def make_job(folder: Path, output: str, **settings: object) -> ScoreJob:
    shard = folder / "input/pairs.parquet"
    if not shard.exists():
        shard.parent.mkdir(parents=True)
        columns = {
            "query": [f"query {row // 3}" for row in range(ROWS)],
            "document": [f"document {row}" for row in range(ROWS)],
            "query_id": [f"q{row // 3}" for row in range(ROWS)],
            "document_id": [f"d{row}" for row in range(ROWS)],
            "label": [row % 3 == 0 for row in range(ROWS)],
        }
        pq.write_table(pa.table(columns), shard)
    values = {"input": [str(shard)], "output": output, "engine": "fake", "unit_rows": 3, "with_pair_key": True}
    return ScoreJob(**{**values, **settings}).normalized()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return open_place(request, tmp_path)


@pytest.fixture
def job(place: Place, tmp_path: Path) -> ScoreJob:
    """A scored output with a finished job of the same plan, a table of Spark's and moved parts in folders below it."""
    job = make_job(tmp_path, place.uri)
    score_here(job)
    score_here(make_job(tmp_path, f"{place.uri}/qwen8b"))
    parts = place.parts()
    if place.s3 is None:
        for folder in ("old", "moved"):
            (Path(place.uri) / folder).mkdir()
    data = next(iter(parts.values()))
    place.write(f"old/{SPARK}", data)
    place.write("old/_SUCCESS", b"")
    for name, part in parts.items():
        place.write(f"moved/{name}", part)
    return job


def list_neighbours(place: Place) -> dict[str, bytes]:
    return {name: place.read(name) for name in place.names() if name.startswith(("qwen8b/", "old/", "moved/"))}


def test_readers_take_the_parts_of_the_folder_itself(job: ScoreJob, place: Place, tmp_path: Path) -> None:
    own = [f"{place.uri}/{name}" for name in sorted(place.parts())]
    scored = open_scored(job.output)
    assert ([part.uri for part in scored.parts], scored.strays) == (own, ())
    result = verify_output(job.output)
    assert (result.problems, result.rows) == ([], ROWS)
    (note,) = result.notes
    assert "9 Parquet files lie in folders below it" in note
    status = read_status(job.output)
    assert (status.committed_units, status.committed_rows) == (4, ROWS)
    assert gather_facts(job.output).totals.rows == ROWS
    exported = export_scores(ExportSpec(job.output, "trec", str(tmp_path / "run")))
    assert (exported.candidates, exported.doubled) == (ROWS, 0)
    mining = check_job(
        MineJob,
        {"scored": [job.output], "output": str(tmp_path / "mined"), "label_column": "label", "num_negatives": 1},
    )
    assert [part.uri for part in load_scored(mining).parts] == own
    assert [part.uri for part in load_reused(job.output, scored.settings).parts] == own


def test_parts_that_were_moved_below_the_folder_are_scored_again_once(job: ScoreJob, place: Place) -> None:
    neighbours = list_neighbours(place)
    Output(job.output).delete_parts(sorted(place.parts()))
    assert read_status(job.output).committed_units == 0
    assert len(score_here(job).scored) == 4
    assert score_here(job).scored == []
    assert list_neighbours(place) == neighbours
    assert verify_output(job.output).problems == []


def test_deleting_takes_parts_that_the_plan_names_alone(job: ScoreJob, place: Place) -> None:
    neighbours = list_neighbours(place)
    name = sorted(place.parts())[0]
    place.write(f"moved/{name}", b"garbage")
    assert verify_output(job.output, delete_damaged=True).deleted == 0
    place.write(name, b"garbage")
    assert verify_output(job.output, delete_damaged=True).deleted == 1
    assert list_neighbours(place) == {**neighbours, f"moved/{name}": b"garbage"}
    place.write(SPARK, b"of Spark")
    Output(job.output).clear()
    assert list(place.parts()) == [SPARK]
    assert list_neighbours(place) == {**neighbours, f"moved/{name}": b"garbage"}
    assert verify_output(f"{job.output}/qwen8b").problems == []


def test_foreign_parquet_in_the_folder_is_told_and_a_new_output_beside_it_refused(tmp_path: Path) -> None:
    output = tmp_path / "output"
    job = make_job(tmp_path, str(output))
    score_here(job)
    shutil.copy(tmp_path / "input/pairs.parquet", output / "pairs.parquet")
    (problem,) = verify_output(job.output).problems
    assert problem.startswith("pairs.parquet: in no plan")
    others = ["PAIRS.PARQUET", "pairs.parq", "pairs"]
    for name in others:
        shutil.copy(tmp_path / "input/pairs.parquet", output / name)
    (output / "notes.txt").write_text("PAR2: no rows")
    assert {problem.split(":")[0] for problem in verify_output(job.output).problems} == {"pairs.parquet", *others}
    for name in others:
        (output / name).unlink()
    shutil.rmtree(output / "_job")
    for path in output.glob("part-*"):
        path.unlink()
    with pytest.raises(OutputConflictError, match=r"1 Parquet files that no scoring job wrote \(pairs.parquet\)"):
        prepare_job(job.model_copy(update={"overwrite": True}))
    assert (output / "pairs.parquet").exists()


def test_mining_and_selection_delete_what_they_named_alone(tmp_path: Path) -> None:
    mined = MineOutput(str(tmp_path / "mined"))
    kept = [f"{folder}{SPARK}" for folder in ("", "old/")] + [
        "old/part-00000.parquet",
        "corpus/old/train-00000.parquet",
    ]
    for name in [*kept, "part-00000.parquet", "ranklist-00000.tsv", "corpus/train-00000.parquet"]:
        path = tmp_path / "mined" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"rows")
    mined.clear()
    assert sorted(str(path.relative_to(mined.uri)) for path in Path(mined.uri).rglob("*.*")) == sorted(kept)
    selected = SelectOutput(str(tmp_path / "selected"), "deu-eng")
    folder = Path(selected.data_folder("parquet"))
    for name in ("part-00000.parquet", "_SUCCESS", "notes.txt", "old/part-00000.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"rows")
    selected.clear()
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "notes.txt",
        "old/part-00000.parquet",
    ]
