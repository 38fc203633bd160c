"""Scores of an earlier output are reused by the content of pairs, under one fingerprint alone."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from commands import read_output, run_command
from scoring_in_process import score_here

from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.inputs.pair_key import make_pair_keys
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.verify import verify_output
from rerank_actor.scoring.preflight import prepare_job
from rerank_actor.scoring.run import run_job


def make_job(tmp_path: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> ScoreJob:
    shard = tmp_path / "input" / f"{name}.parquet"
    shard.parent.mkdir(exist_ok=True)
    if not shard.exists():
        pq.write_table(pa.Table.from_pylist(rows), shard)
    values = {"input": [str(shard)], "output": str(tmp_path / name), "engine": "fake", **settings}
    return ScoreJob(**values).normalized()


def read_totals(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "_job/manifest.json").read_text())["totals"]


def make_pairs(start: int, end: int) -> list[dict[str, Any]]:
    return [{"query": f"q {i // 3}", "document": f"d {i}"} for i in range(start, end)]


def test_only_new_pairs_are_scored_and_both_outputs_read_as_one_dataset(tmp_path: Path, local_ray: str) -> None:
    bad = {"query": None, "document": "d"}
    first, second = tmp_path / "first", tmp_path / "second"
    run_job(make_job(tmp_path, "first", [*make_pairs(0, 30), bad], with_pair_key=True))
    assert read_output(first).column_names[-2:] == ["error", "pair_key"]
    rows = [*make_pairs(20, 50), bad, *make_pairs(20, 22)]
    run_job(make_job(tmp_path, "second", rows, reuse=str(first)))
    run_job(make_job(tmp_path, "fresh", rows, input=[str(tmp_path / "input/second.parquet")], with_pair_key=True))

    assert read_output(second).equals(read_output(tmp_path / "fresh"))
    totals = read_totals(second)
    assert (totals["rows"], totals["scored"], totals["forward_passes"], totals["reused"]) == (33, 32, 20, 12)
    assert totals["saved_forward_passes"] == 0
    assert verify_output(str(second)).problems == []
    both = ds.dataset([str(path) for folder in (first, second) for path in sorted(folder.glob("part-*.parquet"))])
    table = both.to_table()
    assert table.num_rows == 31 + 33
    assert len(set(table["pair_key"].drop_null().to_pylist())) == 50
    keys = table.filter(pa.compute.is_null(table["pair_key"]))
    assert keys["error"].to_pylist() == ["query is null"] * 2
    # The same command again has nothing left to do.
    assert run_job(make_job(tmp_path, "second", [], reuse=str(first), ray_address="127.0.0.1:1")).status == "complete"


def test_scores_of_lists_are_reused_for_pairs_of_ids(tmp_path: Path, local_ray: str) -> None:
    run_job(make_job(tmp_path, "first", [{"query": "q", "document": ["a", "b", None]}], with_pair_key=True))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": text, "text": text}) + "\n" for text in "abc"))
    rows = [{"query": "q", "document_id": ["c", "b"]}, {"query": "other", "document_id": ["a"]}]
    run_job(make_job(tmp_path, "second", rows, corpus=[str(corpus)], reuse=str(tmp_path / "first")))
    totals = read_totals(tmp_path / "second")
    assert (totals["forward_passes"], totals["reused"]) == (2, 1)
    earlier, now = read_output(tmp_path / "first"), read_output(tmp_path / "second")
    assert now["score"][0][1].as_py() == earlier["score"][0][1].as_py()
    assert now["pair_key"][0][1].as_py() == earlier["pair_key"][0][1].as_py()
    assert earlier["pair_key"].to_pylist()[0][2] is None


@pytest.mark.parametrize(
    ("then", "now", "reused"),
    [
        ({}, {"where": "lab = 1"}, 1),
        ({"where": "lab = 1"}, {}, 1),
        ({"where": "lab = 1"}, {"where": "lab >= 0"}, 1),
        ({}, {"qrels": "more"}, 3),
        ({"qrels": "one"}, {"qrels": "more"}, 4),
        ({"qrels": "more"}, {}, 3),
        ({"document_column": "document", "negative_columns": ["other"]}, {}, 3),
    ],
)
def test_which_rows_are_scored_does_not_keep_their_scores_from_being_reused(
    tmp_path: Path, then: dict[str, Any], now: dict[str, Any], reused: int
) -> None:
    (tmp_path / "one").write_text("1 0 d3 1\n")
    (tmp_path / "more").write_text("1 0 d3 1\n2 0 d1 1\n")
    ids = [("1", "d1", 1), ("1", "d2", 0), ("2", "d3", 0)]
    rows = [
        {"query_id": q, "query": f"q{q}", "document_id": d, "document": f"t{d}", "other": "x", "lab": lab}
        for q, d, lab in ids
    ]
    given = [{**one, "qrels": str(tmp_path / one["qrels"])} if "qrels" in one else one for one in (then, now)]
    score_here(make_job(tmp_path, "first", rows, with_pair_key=True, **given[0]))
    outcome = score_here(make_job(tmp_path, "second", rows, reuse=str(tmp_path / "first"), **given[1]))
    assert outcome.totals.reused == reused
    assert verify_output(str(tmp_path / "second")).problems == []


def test_scores_of_lists_are_reused_for_templates_and_exploded_rows(tmp_path: Path, local_ray: str) -> None:
    run_job(make_job(tmp_path, "first", [{"query": "q", "document": ["T a", "b", "T c"]}], with_pair_key=True))
    rows = [
        {"query": "q", "set": "x", "document": [{"title": "T", "text": "a"}, {"title": None, "text": "new"}]},
        {"query": "q", "set": "y", "document": [{"title": "T", "text": "c"}]},
    ]
    layout = {"document_template": "{title} {text}", "explode": True, "rename_columns": {"query": "question"}}
    instructions = {"x": ScoreJob.model_fields["instruction"].default, "y": "another task"}
    settings = {**layout, "instruction_map": instructions, "dataset_column": "set"}
    run_job(make_job(tmp_path, "second", rows, reuse=str(tmp_path / "first"), **settings))
    fresh = [str(tmp_path / "input/second.parquet")]
    run_job(make_job(tmp_path, "fresh", rows, input=fresh, with_pair_key=True, **settings))
    totals = read_totals(tmp_path / "second")
    assert (totals["scored"], totals["forward_passes"], totals["reused"]) == (3, 2, 1)
    found = read_output(tmp_path / "second")
    assert found.equals(read_output(tmp_path / "fresh"))
    assert found["question"].to_pylist() == ["q"] * 3
    assert found["pair_key"][0].as_py() == read_output(tmp_path / "first")["pair_key"][0][0].as_py()
    assert verify_output(str(tmp_path / "second")).problems == []


def test_another_fingerprint_or_no_keys_or_oneself_is_refused(tmp_path: Path, local_ray: str) -> None:
    rows = make_pairs(0, 3)
    first = make_job(tmp_path, "first", rows, with_pair_key=True)
    run_job(first)
    with pytest.raises(OutputConflictError, match=r"--reuse .*max_length: there 8192, now 700"):
        prepare_job(make_job(tmp_path, "second", rows, reuse=first.output, max_length=700))
    found = run_command(
        "score", "--input", first.input[0], "--output", tmp_path / "x", "--engine", "fake", "--reuse", first.output,
        "--max-length", "700",
    )  # fmt: skip
    assert found.returncode == 3
    assert "refused: --reuse" in found.stderr
    with pytest.raises(JobError, match="is the --output itself"):
        prepare_job(make_job(tmp_path, "first", rows, reuse=first.output))
    run_job(make_job(tmp_path, "plain", rows))
    with pytest.raises(InputError, match="scored without --with-pair-key"):
        prepare_job(make_job(tmp_path, "second", rows, reuse=str(tmp_path / "plain")))
    with pytest.raises(InputError, match="no job has written here"):
        prepare_job(make_job(tmp_path, "second", rows, reuse=str(tmp_path / "nothing")))
    with pytest.raises(OutputConflictError, match="with_pair_key: there True, now None"):
        prepare_job(make_job(tmp_path, "first", rows))
    with pytest.raises(InputError, match="column `pair_key` has the name of a column that scoring adds"):
        prepare_job(make_job(tmp_path, "again", read_output(tmp_path / "first").select(["query", "document", "pair_key"])
            .to_pylist(), with_pair_key=True))  # fmt: skip


TASK = ScoreJob.model_fields["instruction"].default


@pytest.mark.parametrize(
    ("rows", "settings", "reused"),
    [
        (
            [{"query": "capital?", "passage": "Paris."}, {"query": "sea?", "passage": "Deep."}],
            {"document_column": "passage"},
            1,
        ),
        ([{"question": "sea?", "document": "Blue.", "n": 1}], {"query_column": "question", "keep_columns": ["n"]}, 1),
        ([{"query": "capital?", "documents": ["Paris.", "Rome."]}], {"document_column": "documents"}, 1),
        ([{"query": "capital?", "document": "Paris.", "task": TASK}], {"instruction_column": "task"}, 1),
        ([{"query": "capital?", "document": "Paris.", "task": "other"}], {"instruction_column": "task"}, 0),
        (
            [{"a": "sea?", "c": ""}],
            {"query_template": "{a}", "document_template": "Blue.{c}", "rename_columns": {"a": "z"}},
            1,
        ),
    ],
)
def test_pairs_of_the_same_texts_are_reused_whatever_their_columns_are_called(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], reused: int
) -> None:
    monday = [{"query": "capital?", "document": "Paris."}, {"query": "sea?", "document": "Blue."}]
    score_here(make_job(tmp_path, "monday", monday, with_pair_key=True))
    reusing = score_here(make_job(tmp_path, "now", rows, reuse=str(tmp_path / "monday"), **settings))
    assert reusing.totals.reused == reused
    shard = {"input": [str(tmp_path / "input/now.parquet")], "with_pair_key": True}
    score_here(make_job(tmp_path, "fresh", rows, **shard, **settings))
    assert read_output(tmp_path / "now").equals(read_output(tmp_path / "fresh"))


def test_pair_keys_tell_texts_apart_wherever_they_join() -> None:
    queries = ["ab", "a", "a", "a", "ab", "a", None, "\udc80"]
    documents = ["c", "bc", "bc", "bc", "c", 5, "c", "c"]
    tasks = [None, None, "i", "j", "i", None, None, None]
    keys = make_pair_keys(queries, documents, tasks, "i")
    assert keys[1] == keys[2]
    assert keys[0] == keys[4]
    assert len({keys[0], keys[1], keys[3]}) == 3
    assert keys[5:] == [None, None, None]
    assert all(len(key or "") == 32 for key in keys[:5])
