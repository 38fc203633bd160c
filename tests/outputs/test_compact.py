"""Parts joined into few files: the same rows in the input's order, of a finished and undamaged output alone."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring_in_process import score_here

from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.compact import compact
from rerank_actor.commands.verify import verify
from rerank_actor.errors import InputError
from rerank_actor.job import ScoreJob
from rerank_actor.outputs import compact as compaction
from rerank_actor.outputs.export import ExportSpec, export_scores
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.scored import open_scored, require_scored

SHARDS, ROWS, UNIT = 3, 20, 6


def make_output(folder: Path, with_lists: bool = True, **values: Any) -> ScoreJob:
    folder.mkdir()
    for shard in "cab":
        documents = [[f"{shard} {row} {rank}" for rank in range(row % 3)] for row in range(ROWS)]
        table = {
            "query_id": [f"{shard}{row}" for row in range(ROWS)],
            "query": [None, *[f"q {row}" for row in range(1, ROWS)]],
        }
        if not with_lists:
            documents = table["document_id"] = [f"{shard} {row}" for row in range(ROWS)]
        pq.write_table(pa.table({**table, "document": documents}), folder / f"{shard}.parquet")
    job = ScoreJob(input=[str(folder)], output=f"{folder}-out", engine="fake", unit_rows=UNIT, **values).normalized()
    score_here(job)
    return job


def read_parts(job: ScoreJob) -> pa.Table:
    """Return the rows in the input's order."""
    return pa.concat_tables(
        pq.read_table(part.uri) for part in require_scored(job.output).parts
    ).replace_schema_metadata()


@pytest.mark.parametrize("explode", [False, True])
def test_files_hold_the_rows_in_order_and_what_all_parts_say(tmp_path: Path, explode: bool) -> None:
    job, target = make_output(tmp_path / "in", explode=explode), tmp_path / "joined"
    parts = require_scored(job.output).parts
    result = compaction.compact_output(job.output, str(target), 3 * max(part.size for part in parts))
    files = sorted(target.glob("part-*"))
    assert (result.parts, result.files, result.rows) == (len(parts), len(files), SHARDS * ROWS)
    assert 1 < len(files) < len(parts) and files[0].name == f"part-00000-of-{len(files):05d}.parquet"
    joined = pa.concat_tables(pq.read_table(file) for file in files)
    assert joined.replace_schema_metadata().equals(read_parts(job))
    before, after = (read_part_metadata(pq.read_schema(path)) for path in (parts[0].uri, files[0]))
    assert {name: value for name, value in after.items() if not name.startswith("joined_")}.items() <= before.items()
    assert "fingerprint" in after and "unit" not in after and "facts" not in after
    loaded = datasets.load_dataset(str(target), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["query_id"][:] == joined["query_id"].to_pylist()


def test_files_are_an_output_to_export(tmp_path: Path) -> None:
    job = make_output(tmp_path / "in", with_lists=False)
    compaction.compact_output(job.output, str(tmp_path / "joined"), 10**9)
    for name, scored in (("one", job.output), ("other", str(tmp_path / "joined"))):
        export_scores(ExportSpec(scored, "tevatron", str(tmp_path / name), "query_id", "document_id"))
    one, other = (
        sorted((tmp_path / name).read_text().splitlines()) for name in ("one", "other")
    )  # of queries in any order
    assert one == other and len(one) == SHARDS * (ROWS - 1)


def test_same_command_goes_on_where_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, target = make_output(tmp_path / "in"), tmp_path / "joined"
    command = [job.output, "--output", str(target), "--target-file-mb", "0.02"]
    assert compact(command) == 0
    files = sorted(target.glob("part-*"))
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    open_scored(str(target)).refuse_incomplete("--scored ", "finish it")
    files[1].unlink()
    _expect_half(target, "are not those that _SUCCESS was written for")
    files[2].write_bytes(b"cut")
    table = pq.read_table(files[3])
    pq.write_table(table.set_column(0, "query_id", pa.array(["other"] * table.num_rows)), files[3])
    assert verify([str(target)]) == 1
    told = capsys.readouterr().out
    assert f"{files[2]}: cannot be read" in told and f"{files[3]}: holds other rows than were joined" in told
    (target / "_SUCCESS").unlink()
    _expect_half(target, "jobs.compact is at work on it or was ended")
    assert compact(command) == 0
    open_scored(str(target)).refuse_incomplete("--scored ", "finish it")
    assert f"{len(files) - 3} of them there already" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in files} == {file: data for file, (data, _) in before.items()}
    assert verify([str(target)]) == 0
    assert files[0].stat().st_mtime_ns == before[files[0]][1]
    command[-1] = "0.03"
    assert call_command(lambda: compact(command)) == 3


def _expect_half(target: Path, words: str) -> None:
    """Expect that files that parts are not all joined into are no complete output."""
    with pytest.raises(InputError, match=words):
        open_scored(str(target)).refuse_incomplete("--scored ", "finish it")


def test_what_is_not_finished_or_not_as_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_output(tmp_path / "in")
    command = [job.output, "--output", str(tmp_path / "joined")]
    part = Path(require_scored(job.output).parts[1].uri)
    table = pq.read_table(part)
    other = table.set_column(0, "query_id", pa.array(["other"] * table.num_rows))
    pq.write_table(other, part)
    assert call_command(lambda: compact(command)) != 0
    assert f"{part}: has other rows" in capsys.readouterr().err
    assert not (tmp_path / "joined/_SUCCESS").exists()
    part.unlink()
    assert call_command(lambda: compact(command)) == 2
    assert "1 of 12 parts are not scored yet" in capsys.readouterr().err
    for wrong in ([job.output, "--output", f"{job.output}/joined"], [*command, "--target-file-mb", "0"]):
        assert call_command(lambda arguments=wrong: compact(arguments)) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.parquet").write_bytes(b"mine")
    score_here(job)
    assert call_command(lambda: compact([job.output, "--output", str(tmp_path / "full")])) == 3
