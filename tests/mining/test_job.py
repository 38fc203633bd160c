"""The mining job as a whole: from scored parts to training data, on again, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mining_in_process import make_job, mine_in_process
from mining_inputs import FINGERPRINT, group, make_pairs, read_mined, scatter, sort_rows, write_scored
from s3_server import S3Server

from rerank_actor import storage
from rerank_actor.commands.mine import mine
from rerank_actor.commands.score import score
from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.mining.output import MineOutput
from rerank_actor.mining.preflight import look_again, prepare_mining
from rerank_actor.mining.run import mine_scores
from rerank_actor.mining.survey import plan_units, survey_part
from rerank_actor.storage.lease import Lease

# Where the pairs of a query lie makes no difference.


IDS = {"query_id_column": "query_id", "document_id_column": "document_id"}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6),
    st.integers(3, 120),
    st.sampled_from([1, 3000, 20_000, 10**8]),
    st.booleans(),
    st.sampled_from([10, 10**9]),
)
def test_rows_are_the_same_however_the_pairs_lie(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    part_rows: int,
    unit_bytes: int,
    strewn: bool,
    hashes_at_once: int,
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    rows = make_pairs(15, 8, seed)
    rows += [{**row, "label": 1} for row in rows[3::29]]  # some queries have more positives than others
    rows = scatter(rows, seed) if strewn else rows
    whole = mine_in_process(make_job(write_scored(folder / "whole", rows), folder / "whole-mined"))
    pieces = write_scored(folder / "pieces", rows, part_rows)
    found = mine_in_process(make_job(pieces, folder / "pieces-mined"), unit_bytes, hashes_at_once)
    assert sort_rows(found[0]) == sort_rows(whole[0])
    assert whole[0]
    assert found[1].counts == whole[1].counts
    assert found[1].removed == whole[1].removed
    assert found[1].margins.bins == whole[1].margins.bins
    if part_rows < 60 and strewn and unit_bytes == 1:
        assert found[2] > 0
    shutil.rmtree(folder)


def test_empty_texts_and_the_query_itself_are_no_negatives(tmp_path: Path) -> None:
    rows = make_pairs(3, 6)
    texts = ["query number 0", "", " query number 0\n", "\u200b \ufeff", "Query\u00a0number 0?"]
    for number, text in zip((1, 2, 3, 7, 4), texts, strict=True):
        rows[number] |= {"document": text, "logit": 3.5, "score": 0.9}
    rows[13] |= {"document": "query number 0", "logit": -3.0, "score": 0.04}  # of query 2, so that it may be a negative
    job = make_job(write_scored(tmp_path / "scored", rows), tmp_path / "mined", false_negatives="report", depth="all")
    mined, tally, _ = mine_in_process(job)
    negatives = {(row["anchor"], row["negative"]) for row in mined}
    assert not {text for _, text in negatives} & set(texts[1:])
    assert ("query number 0", "query number 0") not in negatives
    assert ("query number 2", "query number 0") in negatives
    assert tally.removed["unusable"] == 5


def test_queries_that_lie_in_one_unit_are_not_shuffled(tmp_path: Path) -> None:
    rows = make_pairs(12, 10)
    scored = write_scored(tmp_path / "scored", rows, 30)
    parts = prepare_mining(make_job(scored, tmp_path / "mined")).scored
    surveys = [one for number, part in enumerate(parts.parts) for one in survey_part(number, part, parts.columns, None)]
    plan = plan_units(surveys, 1)
    assert (len(plan.units), plan.num_buckets, plan.max_positives) == (4, 0, 1)
    scored = write_scored(tmp_path / "crossing", rows, 25)
    parts = prepare_mining(make_job(scored, tmp_path / "mined")).scored
    surveys = [one for number, part in enumerate(parts.parts) for one in survey_part(number, part, parts.columns, None)]
    plan = plan_units(surveys, 1)
    assert plan.split is not None
    assert len(plan.split) == 2, "of queries 2 and 7 pairs lie in two parts"


@pytest.mark.parametrize("hashes_at_once", [1, 10**9])
def test_most_positives_are_those_of_a_query_in_all_units(tmp_path: Path, hashes_at_once: int) -> None:
    rows = make_pairs(3, 8)
    for number in (2, 4):  # of the first query, which so has a positive in each of three units
        rows[number]["label"] = 1
    rules = {"depth": 1, "false_negatives": "report", "max_score": "-0.8@logit", "num_negatives": 1}
    rules["absolute_margin"] = None
    whole = make_job(write_scored(tmp_path / "whole", rows), tmp_path / "whole-mined", **rules)
    job = make_job(write_scored(tmp_path / "scored", rows, 2), tmp_path / "mined", **rules)
    parts = prepare_mining(job).scored
    surveys = [one for number, part in enumerate(parts.parts) for one in survey_part(number, part, parts.columns, None)]
    assert plan_units(surveys, 1).max_positives == 3
    found = mine_in_process(job, 1, hashes_at_once)
    assert sort_rows(found[0]) == sort_rows(mine_in_process(whole)[0])


def test_row_groups_of_a_large_file_are_units_of_their_own(tmp_path: Path) -> None:
    rows = make_pairs(12, 10)
    whole = mine_in_process(make_job(write_scored(tmp_path / "a", rows), tmp_path / "a-mined"))
    (tmp_path / "b").mkdir()
    table = pq.read_table(next((tmp_path / "a").glob("*.parquet")))
    pq.write_table(table, tmp_path / "b/scores.parquet", row_group_size=17)
    found = mine_in_process(make_job(tmp_path / "b/scores.parquet", tmp_path / "b-mined"), 1)
    assert sort_rows(found[0]) == sort_rows(whole[0])
    assert found[2] > 0


# Shapes of input.


@pytest.mark.parametrize("place", [False, True])
def test_lists_of_documents_give_the_rows_of_single_ones(tmp_path: Path, place: bool) -> None:
    rows = make_pairs(10, 7)
    flat = mine_in_process(make_job(write_scored(tmp_path / "flat", rows), tmp_path / "flat-mined"))
    table = group(rows)
    if place:  # the place of the positive document in its list
        table = table.set_column(table.schema.get_field_index("label"), "label", pa.array([0] * table.num_rows))
    (tmp_path / "lists").mkdir()
    pq.write_table(table, tmp_path / "lists/part-a.parquet")
    lists = mine_in_process(make_job(tmp_path / "lists", tmp_path / "lists-mined"))
    assert lists[0] == flat[0]


def test_rows_without_a_score_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = make_pairs(4, 5)
    for number in (0, 7):
        rows[number] |= {"score": None, "logit": None, "error": "query is null"}
    scored = prepare_mining(make_job(write_scored(tmp_path / "scored", rows), tmp_path / "mined")).scored
    (survey,) = survey_part(0, scored.parts[0], scored.columns, None)
    assert (survey.num_pairs, survey.unscored, survey.unscored_positives, survey.num_positives) == (18, 2, 1, 3)
    table = group(rows)
    broken = dict.fromkeys(table.column_names) | {"query_id": "q9", "query": "query 9", "error": ["document is null"]}
    (tmp_path / "lists").mkdir()
    pq.write_table(
        pa.concat_tables([table, pa.Table.from_pylist([broken], table.schema)]), tmp_path / "lists/part-a.parquet"
    )
    scored = prepare_mining(make_job(tmp_path / "lists", tmp_path / "mined")).scored
    (survey,) = survey_part(0, scored.parts[0], scored.columns, None)
    assert (survey.num_pairs, survey.unscored, survey.num_positives) == (18, 3, 3)


def test_two_teachers_without_fingerprints_are_never_merged_unasked(tmp_path: Path, local_ray: str) -> None:
    rows = make_pairs(4, 5)
    others = [{**row, "logit": row["logit"] + 1} for row in rows]
    folders = [write_scored(tmp_path / name, part, metadata={}) for name, part in (("a", rows), ("b", others))]
    scored = [str(folder) for folder in folders]
    for values in ({"what_if": ["perc-pos=0.9"]}, {}):
        with pytest.raises(InputError, match=r"20 pairs have two scores.*--allow-mixed-scores"):
            mine_scores(make_job(folders[0], tmp_path / "mined", scored=scored, **values))
    assert not list((tmp_path / "mined").glob("part-*"))
    assert (
        mine_scores(make_job(folders[0], tmp_path / "mined", scored=scored, allow_mixed_scores=True)).status
        == "complete"
    )
    twice = make_job(
        folders[0], tmp_path / "twice", scored=[scored[0], str(write_scored(tmp_path / "c", rows, metadata={}))]
    )
    assert mine_scores(twice).status == "complete"


def test_rows_with_other_instructions_are_other_queries(tmp_path: Path, local_ray: str) -> None:
    table = pa.table(
        {
            "query": ["q"] * 6,
            "document": [f"d{number}" for number in range(3)] * 2,
            "label": [1, 0, 0] * 2,
            "task": ["one"] * 3 + ["two"] * 3,
        }
    )
    pq.write_table(table, tmp_path / "pairs.parquet")
    scored, mined = tmp_path / "scored", tmp_path / "mined"
    flags = ["--engine", "fake", "--input", str(tmp_path / "pairs.parquet"), "--output", str(scored)]
    assert score([*flags, "--instruction-column", "task"]) == 0
    flags = ["--scored", str(scored), "--output", str(mined), "--label-column", "label", "--false-negatives", "report"]
    assert mine([*flags, "--format", "flagembedding"]) == 0
    (part,) = mined.glob("part-*.jsonl")
    assert [json.loads(line)["prompt"] for line in part.read_text().splitlines()] == ["one", "two"]


# The whole job.


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, local_ray: str) -> Path:
    """The output of the scoring job, in several parts."""
    root = tmp_path_factory.mktemp("scored")
    rows = [
        {"query": row["query"], "passage": row["document"], "label": row["label"]}
        for row in scatter(make_pairs(30, 10))
    ]
    rows[5]["passage"] = None
    pq.write_table(pa.Table.from_pylist(rows), root / "pairs.parquet")
    flags = ["--engine", "fake", "--input", str(root / "pairs.parquet"), "--output", str(root / "output")]
    assert score([*flags, "--document-column", "passage", "--unit-rows", "60"]) == 0
    return root / "output"


def make_flags(scored: Path, output: Path, *more: str) -> list[str]:
    flags = ["--scored", str(scored), "--output", str(output), "--label-column", "label", "--num-negatives", "2"]
    return [*flags, "--space", "logit", "--unit-mb", "0.01", *more]


def snapshot(output: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.glob("part-*")}


def test_job_mines_reports_resumes_and_refuses_other_rules(
    scored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mined"
    flags = make_flags(scored, output)
    assert mine(flags) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{output}\n"
    assert "column `score`: 1 rows have no score" in shown.err
    rows = read_mined(output)
    numbers = json.loads((output / "_mine/report.json").read_text())
    assert len(rows) == numbers["counts"]["negatives"] > 0
    assert numbers["counts"]["queries"] == 30
    assert load_dataset(str(output))["train"].num_rows == len(rows)
    assert "<svg" in (output / "_mine/report.html").read_text()
    assert not (output / "_mine/shuffle").exists()
    definition = json.loads((output / "_mine/definition.json").read_text())
    assert definition["settings"]["document_column"] == "passage", "as it was scored"
    assert definition["fingerprint"] == numbers["fingerprint"]

    before = snapshot(output)
    assert mine([*flags, "--ray-address", "127.0.0.1:1"]) == 0, "all is committed, so no Ray is asked for"
    assert "committed already" in capfd.readouterr().err
    assert snapshot(output) == before

    gone = sorted(output.glob("part-*"))[1]
    gone.unlink()
    assert mine(flags) == 0
    after = snapshot(output)
    assert {name: part for name, part in after.items() if name != gone.name} == {
        name: part for name, part in before.items() if name != gone.name
    }
    assert after[gone.name][1] == before[gone.name][1]

    with pytest.raises(OutputConflictError) as error:
        mine([*flags, "--max-score", "0.5", "--seed", "3"])
    assert "max-score: there None, now '0.5'" in str(error.value)
    assert snapshot(output) == after
    assert mine([*flags, "--overwrite", "--num-negatives", "1"]) == 0
    assert len(read_mined(output)) < len(rows)
    assert load_dataset(str(output))["train"].num_rows == len(read_mined(output)), "and not what was cached before"


def test_units_of_which_some_were_lost_are_mined_again(scored: Path, tmp_path: Path) -> None:
    """As after a kill: parts and records of some units are there, the shuffle is not, and there is no mark."""
    job = make_job(scored, tmp_path / "mined", space="logit", unit_mb=0.01)
    whole = mine_scores(job)
    rows, records = read_mined(tmp_path / "mined"), sorted((tmp_path / "mined/_mine/units").iterdir())
    assert "shuffled" in records[0].read_text()
    for lost in (records[::2], records[-1:], [sorted((tmp_path / "mined").glob("part-*"))[-1]]):
        for path in lost:
            path.unlink()
        (tmp_path / "mined/_SUCCESS").unlink()
        again = mine_scores(job)
        assert read_mined(tmp_path / "mined") == rows
        assert again.tally.counts == whole.tally.counts
        assert (tmp_path / "mined/_SUCCESS").exists()


def test_overwriting_leaves_what_is_not_of_mining(tmp_path: Path, local_ray: str) -> None:
    folder, output = write_scored(tmp_path / "scored", make_pairs(4, 6)), tmp_path / "mined"
    kept = {output / "README.md": "mine", output / "corpus/notes.txt": "mine too", output / "notes.json": "{}"}
    for path, text in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert mine_scores(make_job(folder, output, format="nemo")).status == "complete"
    assert (output / "corpus/merlin_metadata.json").exists()
    assert mine_scores(make_job(folder, output, overwrite=True)).status == "complete"
    assert {path: path.read_text() for path in kept} == kept
    left = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file() and "_mine" not in path.parts}
    assert left == {"README.md", "corpus/notes.txt", "notes.json", "_SUCCESS", "part-00000.parquet"}


def test_changed_scores_are_refused(scored: Path, tmp_path: Path) -> None:
    rows = make_pairs(5, 5)
    job = make_job(write_scored(tmp_path / "scored", rows), tmp_path / "mined")
    assert mine_scores(job).status == "complete"
    write_scored(tmp_path / "scored", make_pairs(6, 5), 10)
    with pytest.raises(OutputConflictError) as error:
        mine_scores(job)
    assert "scored files: 1 there that are gone or changed, 3 new or changed" in str(error.value)


def test_what_if_compares_rule_sets_and_writes_no_data(
    scored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sets = ["max-score=0", "false-negatives=report depth=all", "num-negatives=1"]
    assert mine(make_flags(scored, tmp_path / "mined", "--what-if", *sets)) == 0
    assert "suspected false" in capfd.readouterr().out
    compared = json.loads((tmp_path / "mined/_mine/what-if.json").read_text())
    table = {row["rules"]: row for row in compared["sets"]}
    assert list(table) == ["as given", *sets]
    assert not list((tmp_path / "mined").glob("part-*"))
    assert not (tmp_path / "mined/_SUCCESS").exists()
    flags = {"max-score=0": ["--max-score", "0"], "as given": []}
    for name, more in flags.items():
        output = tmp_path / f"mined-{len(more)}"
        assert mine(make_flags(scored, output, *more)) == 0
        numbers = json.loads((output / "_mine/report.json").read_text())
        assert table[name]["queries_kept"] == numbers["counts"]["queries_kept"]
        assert table[name]["negatives"] == numbers["counts"]["negatives"]
        assert table[name]["mean_margin"] == pytest.approx(numbers["values"]["margins"]["mean"])
        assert table[name]["suspected_false_negatives"] == numbers["counts"]["suspected_false_negatives"]
    assert table["num-negatives=1"]["negatives_per_query"] == 1


def test_s3_in_and_out(s3: S3Server, tmp_path: Path, local_ray: str) -> None:
    rows = make_pairs(10, 10)
    for path in write_scored(tmp_path / "scored", scatter(rows), 30).iterdir():
        s3.client.put_object(Bucket=s3.bucket, Key=f"scored/{path.name}", Body=path.read_bytes())
    expected = mine_in_process(make_job(tmp_path / "scored", tmp_path / "mined"))
    places = {"scored": [f"s3://{s3.bucket}/scored"], "output": f"s3://{s3.bucket}/mined"}
    job = make_job(tmp_path, tmp_path, unit_mb=0.005, **places)
    assert mine_scores(job).tally.counts == expected[1].counts
    listed = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix="mined/")["Contents"]
    names = [item["Key"].removeprefix("mined/") for item in listed]
    found = []
    for name in names:
        if name.startswith("part-"):
            data = s3.client.get_object(Bucket=s3.bucket, Key=f"mined/{name}")["Body"].read()
            found += pq.read_table(pa.BufferReader(data)).to_pylist()
    assert sort_rows(found) == sort_rows(expected[0])
    assert {"_SUCCESS", "README.md", "_mine/report.html"} <= set(names)
    assert not [name for name in names if "shuffle" in name]
    assert mine_scores(job).run["pairs"] == 0


def test_unit_that_cannot_be_read_fails_alone(tmp_path: Path, local_ray: str) -> None:
    folder = write_scored(tmp_path / "scored", make_pairs(20, 10), 50)
    damaged = sorted(folder.iterdir())[2]
    place = pq.read_metadata(damaged).row_group(0).column(3)  # documents, which the survey does not read
    data = bytearray(damaged.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    damaged.write_bytes(data)
    result = mine_scores(make_job(folder, tmp_path / "mined", unit_mb=0.005))
    assert result.status == "failed"
    assert list(result.failed) == ["00002"]
    assert str(damaged) in result.failed["00002"]
    assert not (tmp_path / "mined/_SUCCESS").exists()
    assert len(list((tmp_path / "mined").glob("part-*"))) == 3
    assert json.loads((tmp_path / "mined/_mine/report.json").read_text())["status"] == "failed"


# Bad input: a sentence that names the rule or the column, and nothing written.


def refuse(tmp_path: Path, rows: list[dict[str, Any]] | None = None, **values: Any) -> str:
    folder = write_scored(tmp_path / "scored", make_pairs(4, 5) if rows is None else rows)
    with pytest.raises(JobError) as error:
        mine_scores(make_job(folder, tmp_path / "mined", **values))
    assert not list(tmp_path.glob("mined/part-*"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"label_column": "labell"}, "no column `labell` (did you mean label?)"),
        ({"document_column": "passage"}, "no column `passage`"),
        ({"query_column": "label"}, "column `label` holds int64, not text"),
        ({"scored": ["/nothing/there"]}, "--scored /nothing/there: nothing there"),
        ({"qrels": "/no/qrels", "label_column": None, **IDS}, "/no/qrels"),
        ({"qrels": "/no/qrels", "label_column": None}, "give --query-id-column and --document-id-column"),
        ({"document_column": "document_id", **IDS}, "--document-column document_id: holds ids"),
        ({"corpus": ["/corpus.jsonl"]}, "was scored without --corpus"),
    ],
)
def test_input_that_does_not_fit_is_refused_before_ray_starts(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    assert words in refuse(tmp_path, ray_address="127.0.0.1:1", **values)


def test_pairs_that_were_never_scored_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(make_pairs(2, 3)).drop_columns(["score", "logit", "error"])
    pq.write_table(table, tmp_path / "pairs.parquet")
    with pytest.raises(InputError) as error:
        prepare_mining(make_job(tmp_path / "pairs.parquet", tmp_path / "mined", document_column="passage"))
    assert "has no column `score`, so that it is no scored output (run jobs.score first)" in str(error.value)


def test_input_without_a_positive_is_refused(tmp_path: Path, local_ray: str) -> None:
    rows = [{**row, "label": 0} for row in make_pairs(4, 5)]
    assert "--label-column `label`: none of 20 scored pairs is positive" in refuse(tmp_path, rows)


def test_input_without_a_score_is_refused(tmp_path: Path, local_ray: str) -> None:
    rows = [{**row, "score": None, "logit": None, "error": "x"} for row in make_pairs(4, 5)]
    assert "column `score`: none of 20 rows has a score" in refuse(tmp_path, rows)


def test_rules_that_leave_nothing_are_refused_by_name_and_leave_room_for_others(tmp_path: Path, local_ray: str) -> None:
    told = refuse(tmp_path, max_score=0.001, absolute_margin=None)
    assert "--max-score" in told
    assert mine_scores(make_job(tmp_path / "scored", tmp_path / "mined")).status == "complete"
    rows = [{**row, "label": 1} for row in make_pairs(4, 5)]
    assert "no query has a candidate besides its positives" in refuse(tmp_path / "other", rows)
    told = refuse(tmp_path / "third", label_column=None, min_positive_score="99@logit")
    assert "none of 4 queries has a positive; lower --min-positive-score" in told


def test_scores_of_different_fingerprints_are_refused_unless_allowed(tmp_path: Path, local_ray: str) -> None:
    first = write_scored(tmp_path / "a", make_pairs(4, 5))
    second = write_scored(
        tmp_path / "b", make_pairs(4, 5, 1), metadata={**FINGERPRINT, "rerank_actor.fingerprint": "e" * 32}
    )
    values = {"scored": [str(first), str(second)]}
    with pytest.raises(InputError) as error:
        mine_scores(make_job(first, tmp_path / "mined", **values))
    assert "fingerprint" in str(error.value)
    assert "--allow-mixed-scores" in str(error.value)
    assert mine_scores(make_job(first, tmp_path / "mined", allow_mixed_scores=True, **values)).status == "complete"


def test_outputs_scored_with_other_settings_are_refused_with_what_differs(
    scored: Path, tmp_path: Path, local_ray: str
) -> None:
    pq.write_table(pa.Table.from_pylist(make_pairs(2, 3)), tmp_path / "pairs.parquet")
    flags = ["--engine", "fake", "--input", str(tmp_path / "pairs.parquet"), "--output", str(tmp_path / "other")]
    assert score([*flags, "--keep-columns", "query,document,label", "--instruction", "Another task"]) == 0
    with pytest.raises(InputError) as error:
        prepare_mining(make_job(scored, tmp_path / "mined", scored=[str(scored), str(tmp_path / "other")]))
    assert "instruction: " in str(error.value)
    assert "Another task" in str(error.value)


def test_output_that_is_not_complete_is_refused_unless_allowed(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored, tmp_path / "scored")
    sorted((tmp_path / "scored").glob("part-*"))[0].unlink()
    with pytest.raises(InputError) as error:
        prepare_mining(make_job(tmp_path / "scored", tmp_path / "mined"))
    assert "1 of 5 parts are not scored yet" in str(error.value)
    assert (
        len(prepare_mining(make_job(tmp_path / "scored", tmp_path / "mined", allow_incomplete=True)).scored.parts) == 4
    )


def test_output_that_holds_something_else_is_refused(scored: Path, tmp_path: Path) -> None:
    folder = write_scored(tmp_path / "scored", make_pairs(4, 5))
    with pytest.raises(OutputConflictError) as error:
        prepare_mining(make_job(folder, scored))
    assert "output of a scoring job" in str(error.value)
    with pytest.raises(InputError) as overlap:
        prepare_mining(make_job(folder, folder / "mined"))
    assert "--output" in str(overlap.value)
    write_scored(tmp_path / "mined", make_pairs(4, 5))
    with pytest.raises(OutputConflictError) as unknown:
        prepare_mining(make_job(folder, tmp_path / "mined"))
    assert "no plan of a mining job" in str(unknown.value)
    write_scored(tmp_path / "others/old", make_pairs(4, 5))
    for name in ("set=a/old/part-00000.jsonl", "set=a/part-00000.jsonl"):
        assert not prepare_mining(make_job(folder, tmp_path / "others")).replaces
        (tmp_path / "others" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "others" / name).write_bytes(b"{}")
    with pytest.raises(OutputConflictError, match="no plan of a mining job"):
        prepare_mining(make_job(folder, tmp_path / "others"))


def test_two_runs_on_one_output_are_kept_apart(tmp_path: Path) -> None:
    folder = write_scored(tmp_path / "scored", make_pairs(4, 5))
    lease = Lease(MineOutput(str(tmp_path / "mined")).lease_uri, str(tmp_path / "mined"), "other")
    lease.acquire(lambda message: None)
    try:
        with pytest.raises(OutputConflictError) as error:
            mine_scores(make_job(folder, tmp_path / "mined"))
    finally:
        lease.release()
    assert "another run is writing" in str(error.value)


def test_job_that_another_overtook_before_its_lease_was_held_is_checked_again(tmp_path: Path) -> None:
    job = make_job(write_scored(tmp_path / "scored", make_pairs()), tmp_path / "mined")
    prepared = prepare_mining(job)
    other = prepare_mining(job.model_copy(update={"num_negatives": 2}))
    storage.write_bytes(other.output.at("plan.json"), json.dumps({"settings": other.settings}).encode())
    storage.write_bytes(f"{other.output.uri}/part-00000.parquet", b"rows")
    with pytest.raises(OutputConflictError, match="num-negatives: there 2, now 4"):
        look_again(prepared)


def test_label_that_is_no_place_of_its_list_is_refused(tmp_path: Path) -> None:
    table = group(make_pairs(3, 4))
    table = table.set_column(table.schema.get_field_index("label"), "label", pa.array([0, 4, 1]))
    pq.write_table(table, tmp_path / "lists.parquet")
    scored = prepare_mining(make_job(tmp_path / "lists.parquet", tmp_path / "mined")).scored
    with pytest.raises(InputError) as error:
        survey_part(0, scored.parts[0], scored.columns, None)
    assert "column `label`" in str(error.value)
    assert "1 rows have no document there" in str(error.value)


def test_scores_of_another_length_than_documents_are_refused(tmp_path: Path) -> None:
    table = group(make_pairs(2, 3)).to_pylist()
    table[1]["document"] = ["only one"]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "lists.parquet")
    job = make_job(tmp_path / "lists.parquet", tmp_path / "mined")
    with pytest.raises(InputError) as error:
        mine_in_process(job)
    assert "column `document` has lists of other lengths" in str(error.value)


def test_example_texts_are_escaped_in_the_report(tmp_path: Path, local_ray: str) -> None:
    rows = [{**row, "query": f"<script>alert({row['query_id']!r})</script>"} for row in make_pairs(4, 5)]
    write_scored(tmp_path / "scored", rows)
    mine_scores(make_job(tmp_path / "scored", tmp_path / "mined"))
    page = (tmp_path / "mined/_mine/report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    examples = json.loads((tmp_path / "mined/_mine/report.json").read_text())["examples"]
    assert np.isfinite([one["margin"] for one in examples]).all()
