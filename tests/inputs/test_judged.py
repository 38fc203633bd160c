"""Judged pairs beside an input: those that the candidates lack are scored too, once, and told from the others."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mining_in_process import mine_in_process
from scoring_in_process import read_checked, score_here

from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.mining.job import MineJob
from rerank_actor.outputs.status import read_status
from rerank_actor.progress import QuietReporter
from rerank_actor.scoring.preflight import prepare_job

QRELS = "query-id\tcorpus-id\tscore\n1\t10\t1\n1\t12\t1\n2\t21\t2\n2\t29\t1\n2\t20\t0\n9\t90\t1\n"


class Notes(QuietReporter):
    """Keeps what a user is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, message: str) -> None:
        self.said.append(message)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_job(folder: Path, layout: str, **values: Any) -> ScoreJob:
    """Return a job on candidates 1: 10, 11 and 2: 20, 22, in a layout."""
    (folder / "qrels.tsv").write_text(QRELS)
    ids = [(1, 10), (1, 11), (2, 20), (2, 22)]
    documents = [{"_id": str(key), "text": f"doc {key}"} for key in (*range(10, 13), *range(20, 23))]
    texts = {
        "queries": write_lines(folder / "q.jsonl", [{"_id": str(key), "text": f"query {key}"} for key in (1, 2)]),
        "corpus": write_lines(folder / "c.jsonl", documents),
    }
    given: dict[str, Any] = {"qrels": str(folder / "qrels.tsv"), "output": str(folder / "out"), "engine": "fake"}
    if layout == "run":
        lines = [f"{query} Q0 {document} 1 0.5 tag" for query, document in ids]
        (folder / "in.trec").write_text("\n".join(lines) + "\n")
        given |= texts | {"input": [str(folder / "in.trec")]}
    elif layout == "lists":
        table = pa.table({"query_id": [1, 2], "document_id": [[10, 11], [20, 22]], "note": ["a", "b"]})
        pq.write_table(table, folder / "in.parquet")
        given |= texts | {"input": [str(folder / "in.parquet")]}
    else:
        rows = [
            {"query_id": query, "query": f"query {query}", "document_id": document, "document": f"doc {document}"}
            for query, document in [*ids, (3, 12), (3, 21)]
        ]
        given |= {"input": [write_lines(folder / "in.jsonl", rows)]}
    return check_job(ScoreJob, {**given, **values}).normalized()


@pytest.mark.parametrize("layout", ["run", "lists", "texts"])
def test_pairs_that_candidates_lack_are_scored_and_marked(layout: str, tmp_path: Path) -> None:
    job, notes = make_job(tmp_path, layout), Notes()
    prepare_job(job, notes)
    score_here(job)
    rows = read_checked(job)
    found = [row for row in rows if row["added_from_qrels"]]
    others = [row for row in rows if not row["added_from_qrels"]]
    pairs = [
        (str(row["query_id"]), str(document))
        for row in found
        for document in (row["document_id"] if layout == "lists" else [row["document_id"]])
    ]
    lacking = [("1", "12"), ("2", "21")] if layout == "texts" else [("1", "12"), ("2", "21"), ("2", "29")]
    assert pairs == lacking and len(others) == {"run": 4, "lists": 2, "texts": 6}[layout]
    errors = [error for row in found for error in (row["error"] if layout == "lists" else [row["error"]])]
    assert errors == [None, None, *(["document id is not in --corpus"] if layout != "texts" else [])]
    said = next(note for note in notes.said if note.startswith("--qrels"))
    assert f"adds {len(lacking)} judged pairs of 2 queries" in said and "1 judged queries are not in the input" in said
    assert ("1 more are left out" in said) == (layout == "texts")
    assert read_status(job.output).judged_rows == {"run": 3, "lists": 2, "texts": 2}[layout]


def test_added_pairs_score_as_they_would_among_the_candidates(tmp_path: Path) -> None:
    job = make_job(tmp_path, "texts")
    score_here(job)
    (row,) = [row for row in read_checked(job) if row["added_from_qrels"] and row["query_id"] == 1]
    (tmp_path / "alone").mkdir()
    alone = make_job(tmp_path / "alone", "texts", qrels=None)
    write_lines(tmp_path / "alone" / "in.jsonl", [{"query": "query 1", "document": "doc 12"}])
    score_here(alone)
    assert read_checked(alone)[0]["logit"] == row["logit"]


def test_resume_adds_nothing_again_and_other_judgements_are_another_job(tmp_path: Path) -> None:
    job = make_job(tmp_path, "run")
    assert len(score_here(job).scored) == 2 and score_here(job).scored == []
    plan = prepare_job(job).plan
    assert (plan.num_rows, prepare_job(job).change.vanished) == (7, ())
    (tmp_path / "qrels.tsv").write_text(QRELS.replace("1\t12\t1", "1\t12\t0"))
    with pytest.raises(OutputConflictError, match="qrels"):
        prepare_job(job)


def test_rows_that_are_added_have_the_texts_of_today(tmp_path: Path) -> None:
    job = make_job(tmp_path, "texts")
    score_here(job)
    path = tmp_path / "in.jsonl"
    path.write_text(path.read_text().replace("query 1", "query one").replace("doc 12", "doc twelve"))
    prepared = prepare_job(job.model_copy(update={"overwrite": True}))
    (shard,) = [shard for shard in prepared.plan.shards if "/_job/judged/" in shard.uri]
    rows = pq.read_table(shard.uri).to_pylist()
    assert ("query one", "doc twelve") in [(row["query"], row["document"]) for row in rows]
    with pytest.raises(InputError, match="--rescore-changed does not make the rows anew that were added"):
        prepare_job(job.model_copy(update={"rescore_changed": True}))


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.decimal128(5, 0), pa.int32()],
    ids=str,
)
def test_added_rows_have_the_types_of_the_input(tmp_path: Path, kind: pa.DataType) -> None:
    job = make_job(tmp_path, "texts")
    ids = pa.array([10, 20, 12, 21], pa.int64())
    numbers = pa.types.is_decimal(kind) or pa.types.is_integer(kind)
    text = pa.string() if numbers else kind
    columns = {
        "query_id": pa.array([1, 2, 3, 3], pa.int64()).cast(pa.int32()),
        "query": pa.array([None, "query 2", "query 3", "query 3"], pa.string()),
        "document_id": pa.array([Decimal(one) for one in ids.to_pylist()], kind)
        if numbers and pa.types.is_decimal(kind)
        else pa.array(ids.to_pylist() if numbers else [str(one) for one in ids.to_pylist()], kind),
        "document": pa.array([f"doc {one}" for one in ids.to_pylist()], text),
    }
    again = {**columns, "query": pa.array(["query 1"] * 4, pa.string()), "query_id": pa.array([1] * 4, pa.int32())}
    path = tmp_path / "typed.parquet"
    table = pa.concat_tables([pa.table(columns), pa.table(again).slice(0, 1)])
    pq.write_table(table, path)
    job = job.model_copy(update={"input": [str(path)]})
    score_here(job)
    added = [row for row in read_checked(job) if row["added_from_qrels"]]
    assert [(row["query"], str(row["document_id"]), row["error"]) for row in added] == [
        ("query 1", "12", None),
        ("query 2", "21", None),
    ]


def test_new_shards_beside_one_that_is_gone_are_refused(tmp_path: Path) -> None:
    """Which judged pairs it had is not to be seen any more."""
    job = make_job(tmp_path, "texts")
    first, second = tmp_path / "in" / "1.jsonl", tmp_path / "in" / "2.jsonl"
    first.parent.mkdir()
    first.write_text((tmp_path / "in.jsonl").read_text())
    second.write_text(first.read_text().splitlines()[0] + "\n")
    job = job.model_copy(update={"input": [str(first.parent)]})
    score_here(job)
    first.unlink()
    assert score_here(job).scored == []
    (first.parent / "3.jsonl").write_text(second.read_text())
    with pytest.raises(InputError, match=r"1\.jsonl: is no longer there, .*3\.jsonl; give the new shards an --output"):
        prepare_job(job)


def test_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    notes = Notes()
    prepared = prepare_job(make_job(tmp_path, "run", dry_run=True), notes)
    assert prepared.plan.num_rows == 4 and any("would add 3 judged pairs" in note for note in notes.said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"limit": 2}, "--limit"),
        ({"input": ["LANG"]}, "--drop-columns lang"),
        ({"document_id_column": "docid"}, "no column `docid`.*--document-id-column"),
        ({"document_template": "{document}"}, "give --corpus"),
        ({"min_relevance": 7}, "none of its 6 judgements"),
    ],
)
def test_judgements_that_fit_no_row_are_refused(values: dict[str, Any], problem: str, tmp_path: Path) -> None:
    (tmp_path / "parts" / "lang=de").mkdir(parents=True)
    row = {"query_id": 1, "query": "q", "document_id": 10, "document": "d"}
    write_lines(tmp_path / "parts" / "lang=de" / "in.jsonl", [row])
    given = {name: [str(tmp_path / "parts")] if value == ["LANG"] else value for name, value in values.items()}
    with pytest.raises(JobError, match=problem):
        prepare_job(make_job(tmp_path, "texts", **given))


def test_mining_takes_added_rows_for_positives_and_no_window_counts_them(tmp_path: Path) -> None:
    lines = [
        f"{query} Q0 {document} {rank} 0.5 tag" for query in (1, 2) for rank, document in enumerate((10, 11, 20, 22), 1)
    ]
    job = make_job(tmp_path, "run")
    (tmp_path / "in.trec").write_text("\n".join(lines) + "\n")
    score_here(job)
    values = {
        "qrels": job.qrels,
        "rank_column": "rank",
        "rank_window": "2:4",
        "num_negatives": 2,
        "false_negatives": "report",
    }
    mining = {"scored": [job.output], "output": str(tmp_path / "mined"), "min_negatives": 1, **values}
    mined, tally, _ = mine_in_process(check_job(MineJob, mining).normalized())
    assert {(row["anchor"], row["positive"]) for row in mined} == {
        ("query 1", "doc 10"), ("query 1", "doc 12"), ("query 2", "doc 21")
    }  # fmt: skip
    assert {row["negative"] for row in mined} <= {"doc 11", "doc 20", "doc 22"}
    assert tally.counts["queries_without_positive"] == 0


def test_judged_rows_are_scored_whatever_where_says(tmp_path: Path) -> None:
    job = make_job(tmp_path, "texts", where="document_id < 11")
    score_here(job)
    rows = read_checked(job)
    assert [row["selected"] for row in rows if row["added_from_qrels"]] == [True, True]
    assert [row["document_id"] for row in rows if row["selected"] and not row["added_from_qrels"]] == [10]
