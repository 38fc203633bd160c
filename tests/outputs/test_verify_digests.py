"""What `jobs.verify` finds by the digests of rows, and what it says of parts that were written without."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring_in_process import score_here

from rerank_actor.commands.verify import verify
from rerank_actor.engines.base import compute_score
from rerank_actor.errors import InputError
from rerank_actor.inputs.plan import ID_DIGITS_BEFORE, Plan, Shard, refuse_same_ids
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.export import ExportSpec, export_scores
from rerank_actor.outputs.folder import Output, digest_parts
from rerank_actor.outputs.verify import verify_output
from rerank_actor.scoring.preflight import prepare_job

ROWS = 4  # of a unit


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    shard = tmp_path / "input/a.parquet"
    shard.parent.mkdir()
    ids = {"query_id": ["q"] * 2 * ROWS, "document_id": [f"d{row}" for row in range(2 * ROWS)]}
    texts = {"query": ["query"] * 2 * ROWS, "document": [f"document {row}" for row in range(2 * ROWS)]}
    pq.write_table(pa.table({**texts, **ids}), shard)
    job = ScoreJob(input=[str(shard)], output=str(tmp_path / "out"), engine="fake", unit_rows=ROWS).normalized()
    score_here(job)
    assert verify_output(job.output).problems == []
    return job


def set_logits(table: pa.Table, change: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    logits = change(table["logit"].to_numpy()).astype(np.float32)
    for name, values in (("logit", logits), ("score", compute_score(logits))):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.float32()))
    return table


def set_texts(table: pa.Table) -> pa.Table:
    return table.set_column(1, "document", pa.array(["another"] * table.num_rows))


CHANGES: dict[str, Callable[[pa.Table, pa.Table], pa.Table]] = {
    "negated": lambda table, other: set_logits(table, np.negative),
    "permuted": lambda table, other: set_logits(table, lambda logits: np.roll(logits, 1)),
    "constant": lambda table, other: set_logits(table, np.zeros_like),
    "texts": lambda table, other: set_texts(table),
    "row doubled, another dropped": lambda table, other: table.take([0, 0, 2, 3]),
    "order": lambda table, other: table.take([1, 0, 2, 3]),
    "row of another part": lambda table, other: pa.concat_tables([table.slice(0, 3), other.slice(0, 1)]),
    "column lost": lambda table, other: table.drop_columns(["document_id"]),
    "column added": lambda table, other: table.append_column("more", pa.nulls(ROWS, pa.string())),
    "type": lambda table, other: table.set_column(0, "query", table["query"].cast(pa.large_string())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_rows_is_found_and_scored_again(job: ScoreJob, change: str) -> None:
    part, other = sorted(Path(job.output).glob("part-*"))
    before = pq.read_table(part)
    changed = CHANGES[change](before, pq.read_table(other))
    metadata = json.loads(json.dumps({key.decode(): value.decode() for key, value in before.schema.metadata.items()}))
    facts = json.loads(metadata["rerank_actor.facts"])
    metadata["rerank_actor.facts"] = json.dumps({**facts, "tokens": sum(changed["num_tokens"].to_pylist())})
    pq.write_table(changed.replace_schema_metadata(metadata), part, write_page_checksum=True)
    (problem,) = verify_output(job.output).problems
    assert problem.startswith(part.name)
    assert len(score_here(job).scored) == 1
    assert verify_output(job.output).problems == []
    assert pq.read_table(part).equals(before)


def test_part_that_says_nothing_of_its_rows_is_compared_with_its_record(job: ScoreJob) -> None:
    part = min(Path(job.output).glob("part-*"))
    table = pq.read_table(part)
    forget_digest(part, set_texts(table))
    (problem,) = verify_output(job.output).problems
    assert "has other rows than the records of its run say" in problem


def forget_digest(part: Path, table: pa.Table) -> None:
    facts = json.loads(table.schema.metadata[b"rerank_actor.facts"])
    del facts["digest"]
    metadata = {**table.schema.metadata, b"rerank_actor.facts": json.dumps(facts).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), part, write_page_checksum=True)


def test_output_written_without_digests_is_right_and_says_what_was_not_compared(
    job: ScoreJob, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in Path(job.output).glob("part-*"):
        forget_digest(part, pq.read_table(part))
    for record in (Path(job.output) / "_job/runs").glob("*"):
        record.unlink()
    assert verify([job.output]) == 0
    assert "2 parts were written without a digest of their rows" in capsys.readouterr().out
    result = verify_output(job.output)
    assert (result.problems, result.compared, result.sound) == ([], 0, 2)


def test_parts_of_two_dtypes_are_told(job: ScoreJob) -> None:
    part = min(Path(job.output).glob("part-*"))
    table = pq.read_table(part)
    facts: dict[str, Any] = json.loads(table.schema.metadata[b"rerank_actor.facts"])
    metadata = {**table.schema.metadata, b"rerank_actor.facts": json.dumps({**facts, "dtype": "float16"}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), part, write_page_checksum=True)
    (problem,) = verify_output(job.output).problems
    assert "was computed in float16" in problem or "was computed in float32" in problem


def test_output_whose_mark_is_of_other_parts_is_not_complete(job: ScoreJob, tmp_path: Path) -> None:
    output = Output(job.output)
    spec = ExportSpec(job.output, "trec", str(tmp_path / "run"))
    mark = {"fingerprint": prepare_job(job).fingerprint, "digest": digest_parts(output.list_parts().values())}
    (Path(job.output) / "_SUCCESS").write_text(json.dumps(mark))
    assert export_scores(spec).candidates == 2 * ROWS
    for wrong in ({**mark, "digest": "0"}, {**mark, "fingerprint": "0"}):
        (Path(job.output) / "_SUCCESS").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="not those that _SUCCESS was written for"):
            export_scores(spec)
        assert any("_SUCCESS" in problem for problem in verify_output(job.output).problems)


def test_parts_without_plan_are_not_a_whole_output_where_their_mark_is_of_others(job: ScoreJob, tmp_path: Path) -> None:
    output, spec = Output(job.output), ExportSpec(job.output, "trec", str(tmp_path / "run"))
    mark = {"fingerprint": prepare_job(job).fingerprint, "digest": digest_parts(output.list_parts().values())}
    (Path(job.output) / "_SUCCESS").write_text(json.dumps(mark))
    shutil.rmtree(Path(job.output) / "_job")
    assert export_scores(spec).candidates == 2 * ROWS
    min(Path(job.output).glob("part-*")).unlink()
    with pytest.raises(InputError, match="has no plan, and its parts are not those"):
        export_scores(spec)


# Names of shards.


def test_shards_of_one_id_are_refused_and_new_plans_have_long_ones(job: ScoreJob) -> None:
    (shard,) = prepare_job(job).plan.shards
    assert len(shard.id) == 24
    many = [Shard(f"{number}", 1, "", 1, (0, 1), (-1,), (0,), id_digits=1) for number in range(17)]
    with pytest.raises(InputError, match="have the same id"):
        refuse_same_ids(many)


def test_output_of_an_older_plan_goes_on_under_its_names(tmp_path: Path, job: ScoreJob) -> None:
    output = Path(job.output)
    data = (output / "_job/plan.bin").read_bytes()
    plan, settings = Plan.from_bytes(data)
    table = pq.read_table(pa.BufferReader(data))
    pq.write_table(table.drop_columns(["id_digits"]), output / "_job/plan.bin")
    older, same = Plan.from_bytes((output / "_job/plan.bin").read_bytes())
    assert same == settings
    assert [unit.name[:ID_DIGITS_BEFORE] for unit in older.units()] == [unit.name[:12] for unit in plan.units()]
    for part in output.glob("part-*"):
        part.unlink()
    assert len(score_here(job).scored) == 2
    assert {len(path.name) for path in output.glob("part-*")} == {len("part-0123456789ab-00000.parquet")}
    assert score_here(job).scored == []
    assert verify_output(job.output).problems == []
