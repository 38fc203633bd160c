"""Parts joined into few files: the same rows in the input's order, of a finished and undamaged output alone."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring_in_process import score_here

from rerank_actor import storage
from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.compact import compact
from rerank_actor.commands.export import export
from rerank_actor.commands.verify import verify
from rerank_actor.errors import InputError
from rerank_actor.job import ScoreJob
from rerank_actor.outputs import compact as compaction
from rerank_actor.outputs.export import ExportSpec, export_scores
from rerank_actor.outputs.folder import Output, digest_parts
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.row_digest import digest_rows
from rerank_actor.outputs.scored import open_scored, require_scored
from rerank_actor.publishing.contents import list_contents

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


def mark_again(uri: str) -> None:
    """Let `_SUCCESS` be of the files that are there now."""
    output, parts = Output(uri), open_scored(uri).parts
    fingerprint = read_part_metadata(pq.read_schema(parts[0].uri))["fingerprint"]
    mark = {**(output.read_success() or {}), "fingerprint": fingerprint, "digest": digest_parts(parts)}
    storage.write_bytes(output.success_uri, storage.seal_json(mark))


def test_files_joined_before_digests_are_right_as_far_as_can_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, target = make_output(tmp_path / "in"), str(tmp_path / "joined")
    compaction.compact_output(job.output, target, 10**9)
    (file,) = Path(target).glob("part-*")
    table = pq.read_table(file)
    metadata = {name: value for name, value in table.schema.metadata.items() if b"joined_digest" not in name}
    for rows, code, told in ((table, 0, "1 files were joined without a digest"), (table[1:], 1, "60 were joined")):
        pq.write_table(rows.replace_schema_metadata(metadata), file, write_page_checksum=True)
        mark_again(target)
        capsys.readouterr()
        assert verify([target]) == code
        assert told in capsys.readouterr().out


def test_parts_of_an_earlier_version_are_joined_and_exported_as_those_of_this_one(tmp_path: Path) -> None:
    names = ["anchor", "positive", "negative_1", "negative_10", "negative_2"]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({name: [f"{name} {row}" for row in range(4)] for name in names}), path)
    output, target = str(tmp_path / "out"), str(tmp_path / "joined")
    job = ScoreJob(input=[str(path)], output=output, engine="fake", format="tuples", unit_rows=2).normalized()
    score_here(job, records=False)
    before, first = read_parts(job), require_scored(output).parts[0].uri
    table = pq.read_table(first)
    places = iter(names)
    table = table.select([next(places) if name in names else name for name in table.column_names])
    at = table.column_names.index("negative_1")
    table = table.set_column(at, "negative_1", table["negative_1"].cast(pa.string_view()))
    facts = {**json.loads(table.schema.metadata[b"rerank_actor.facts"]), "digest": digest_rows(table)}
    metadata = {**table.schema.metadata, b"rerank_actor.facts": json.dumps(facts).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), first, write_page_checksum=True)
    mark_again(output)
    assert compact([output, "--output", target]) == 0 == verify([target])
    (joined,) = open_scored(target).parts
    assert pq.read_table(joined.uri).replace_schema_metadata().equals(before)
    assert export([output, "--format", "tuples", "--output", str(tmp_path / "rows.parquet")]) == 0
    exported = pq.read_table(tmp_path / "rows.parquet")
    assert exported.equals(before.select(exported.column_names))
    with pytest.raises(InputError, match="in another order than their scores"):
        list_contents(output)
    assert list_contents(target).counts == {"rows": 4}


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
