"""Training files as input: each trainer's rows, scored, with the scores where its reader looks, exported and mined."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from mining_in_process import mine_in_process
from scoring_in_process import score_here

from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.export import export
from rerank_actor.errors import JobError
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.mining.job import MineJob
from rerank_actor.outputs.part import check_part
from rerank_actor.outputs.scored import open_scored
from rerank_actor.scoring.preflight import prepare_job

FLAGEMBEDDING: list[dict[str, Any]] = [
    {"query": "q1", "pos": ["p1"], "neg": ["n1", "n2"], "type": "normal"},
    {"query": "q2", "pos": "p2 alone", "neg": ["n3"]},
    {"query": "q3", "pos": ["p3", "p4"], "neg": []},
    {"query": "q4", "pos": ["p5", None], "neg": None},
    {"query": None, "pos": ["p6"], "neg": ["n4"]},
]
TEVATRON: list[dict[str, Any]] = [
    {
        "query_id": f"q{number}",
        "query": f"query {number}",
        "positive_passages": [{"docid": f"a{number}", "title": "T", "text": f"good {number}"}],
        "negative_passages": [{"docid": f"b{at}", "title": "", "text": f"bad {at} {number}"} for at in range(number)],
    }
    for number in range(9)
]
TUPLES: list[dict[str, Any]] = [
    {"anchor": f"q{row}", "positive": f"p{row}", **{f"negative_{at}": f"n{row} {at}" for at in (10, 2, 1)}}
    for row in range(3)
]


PASSAGES = ("positive_passages", "negative_passages")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def make_job(path: Path, **values: Any) -> ScoreJob:
    return check_job(
        ScoreJob, {"input": [str(path)], "output": str(path.parent / "out"), "engine": "fake", **values}
    ).normalized()


def score_rows(job: ScoreJob) -> list[dict[str, Any]]:
    """Score in this process, check each part, and return the rows."""
    score_here(job)
    prepared, rows = prepare_job(job), list[dict[str, Any]]()
    scored = open_scored(job.output)
    for unit, part in zip(scored.units, scored.parts, strict=True):
        data = Path(part.uri).read_bytes()
        assert check_part(unit, data, prepared.fingerprint).problem is None
        rows += pq.read_table(pa.BufferReader(data)).to_pylist()
    return rows


def export_lines(folder: Path, kind: str, *flags: str) -> list[dict[str, Any]]:
    target = folder / "back.jsonl"
    assert call_command(lambda: export([str(folder / "out"), "--format", kind, "--output", str(target), *flags])) == 0
    return [json.loads(line) for line in target.read_text().splitlines()]


def score_alone(tmp_path: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """Return the logits of pairs that are scored as plain rows."""
    (tmp_path / "plain").mkdir()
    path = write_lines(tmp_path / "plain" / "in.jsonl", [{"query": one, "document": other} for one, other in pairs])
    return [row["logit"] for row in score_rows(make_job(path))]


def test_flagembedding_rows_get_pos_scores_and_neg_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(write_lines(tmp_path / "train.jsonl", FLAGEMBEDDING), format="flagembedding")
    rows = score_rows(job)
    expected = score_alone(tmp_path, [("q1", "p1"), ("q1", "n1"), ("q1", "n2"), ("q2", "p2 alone"), ("q2", "n3")])
    assert [*rows[0]["pos_scores"], *rows[0]["neg_scores"], *rows[1]["pos_scores"], *rows[1]["neg_scores"]] == expected
    assert [row["label"] for row in rows] == [[1, 0, 0], [1, 0], [1, 1], [1, 1], [1, 0]]
    assert rows[1]["pos"] == ["p2 alone"] and rows[2]["neg_scores"] == [] and rows[3]["pos_scores"][1] is None
    back = export_lines(tmp_path, "flagembedding")
    assert [row["query"] for row in back] == ["q1", "q2", "q3", "q4"]
    assert {**FLAGEMBEDDING[0], "pos_scores": rows[0]["pos_scores"], "neg_scores": rows[0]["neg_scores"]} == back[0]
    assert (back[3]["pos"], len(back[3]["pos_scores"]), back[3]["neg"]) == (["p5"], 1, [])
    assert "left out 3 documents without a score; left out 1 rows" in capsys.readouterr().err
    loaded = load_dataset("json", data_files=str(tmp_path / "back.jsonl"), split="train", cache_dir=str(tmp_path / "c"))
    assert {"pos_scores", "neg_scores"} <= set(loaded.column_names) and isinstance(loaded[0]["pos"], list)
    assert export_lines(tmp_path, "flagembedding", "--space", "score")[0]["pos_scores"] == [rows[0]["score"][0]]


ODD_DOCUMENTS: list[dict[str, Any]] = [
    {"query": "q0", "pos": ["p0"], "neg": ["a", {"text": "x"}, "b", 3, ["y"], {}]},
    {"query": "q1", "pos": ["p1"], "neg": {"text": "x"}},
    {"query": "q2", "pos": 5, "neg": "alone"},
    {"query": "q3", "pos": ["p3"], "neg": [[]]},
]


@pytest.mark.parametrize("odd", [ODD_DOCUMENTS, ODD_DOCUMENTS[1:], ODD_DOCUMENTS[:1], ODD_DOCUMENTS[3:]])
def test_document_that_is_no_text_has_an_error_and_no_other_is_exported(
    tmp_path: Path, odd: list[dict[str, Any]]
) -> None:
    plain = {"query": "q9", "pos": ["p9"], "neg": ["n9"]}
    rows = score_rows(make_job(write_lines(tmp_path / "train.jsonl", [*odd, plain]), format="flagembedding"))
    for row, given in zip(rows, [*odd, plain], strict=True):
        documents = [
            one for side in ("pos", "neg") for one in (given[side] if isinstance(given[side], list) else [given[side]])
        ]
        assert [error is None for error in row["error"]] == [isinstance(one, str) for one in documents]
        assert {error for error in row["error"] if error} <= {"document is not text"}
        kept = [one if isinstance(one, str) else json.dumps(one) for one in documents]
        assert [*row["pos"], *row["neg"]] == kept and [*row["pos_scores"], *row["neg_scores"]] == row["logit"]
    back = export_lines(tmp_path, "flagembedding")
    expected = [row for row in [*odd, plain] if row["pos"] != 5]
    assert [row["query"] for row in back] == [row["query"] for row in expected]
    for row, given in zip(back, expected, strict=True):
        texts = [one for one in given["neg"] if isinstance(one, str)] if isinstance(given["neg"], list) else []
        assert (row["pos"], row["neg"]) == (given["pos"], texts)
        pairs = list(zip([*row["pos"], *row["neg"]], [*row["pos_scores"], *row["neg_scores"]], strict=True))
        whole = rows[[*(one["query"] for one in odd), "q9"].index(row["query"])]
        assert set(pairs) <= set(zip([*whole["pos"], *whole["neg"]], whole["logit"], strict=True))


def test_texts_alone_in_all_rows_are_lists_of_their_format(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", [{"query": "q", "pos": "p", "neg": "n"}])
    assert score_rows(make_job(path, format="flagembedding"))[0]["neg"] == ["n"]
    (row,) = export_lines(tmp_path, "flagembedding")
    assert (row["pos"], row["neg"], len(row["neg_scores"])) == (["p"], ["n"], 1)


def test_passage_of_another_kind_has_an_error_and_takes_no_other_with_it(tmp_path: Path) -> None:
    odd = ["alone", 3, [], {}, {"docid": "z"}, None]
    rows = [{**TEVATRON[2], PASSAGES[1]: [*TEVATRON[2][PASSAGES[1]], *odd]}, TEVATRON[1]]
    rows.append({**TEVATRON[3], PASSAGES[1]: TEVATRON[3][PASSAGES[1]][0]})  # alone
    scored = score_rows(make_job(write_lines(tmp_path / "train.jsonl", rows), format="tevatron"))
    assert [error is None for error in scored[0]["error"]] == [True] * 3 + [False] * len(odd)
    assert [one and one["text"] for one in scored[0][PASSAGES[1]][2:]] == ["alone", "3", "[]", "{}", None, None]
    back = export_lines(tmp_path, "tevatron")
    for row, other in zip(back, [*TEVATRON[2:0:-1], {**rows[2], PASSAGES[1]: [rows[2][PASSAGES[1]]]}], strict=True):
        scores = [passage.pop("score") for name in PASSAGES for passage in row[name]]
        assert row == other and None not in scores


def test_passage_alone_is_a_list_of_one(tmp_path: Path) -> None:
    passages = {
        "positive_passages": {"docid": "a", "text": "good"},
        "negative_passages": [{"docid": "b", "text": "bad"}],
    }
    path = write_lines(tmp_path / "train.jsonl", [{"query_id": "1", "query": "q", **passages}])
    rows = score_rows(make_job(path, format="tevatron"))
    (row,) = export_lines(tmp_path, "tevatron")
    assert [row[name][0]["score"] for name in PASSAGES] == rows[0]["logit"]
    assert row["positive_passages"][0]["text"] == "good"


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"neg_id": [10, 20, 30], "pos_id": ["1"]}, {"neg_id": [10, 30], "pos_id": ["1"]}),
        ({"negative_ids": ["x", None, "z"], "tags": ["only"]}, {"negative_ids": ["x", "z"], "tags": ["only"]}),
        ({"position": 3, "neg_source": "bm25"}, {"position": 3, "neg_source": "bm25"}),
        ({"neg_id": [10, 20]}, None),  # of which it is not known which is of which document
        ({"ids": [1, 10, 20, 30]}, None),
        ({"teacher": [0.1, 0.2, 0.3]}, None),
        ({"meta": {"neg": [1, 2, 3]}}, None),
    ],
)
def test_lists_beside_the_documents_are_cut_with_them(
    tmp_path: Path, beside: dict[str, Any], expected: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"query": "q", "pos": ["p"], "neg": ["a", None, "b"], **beside}
    whole = {"query": "w", "pos": ["p"], "neg": ["a", "c", "b"], **beside}
    score_rows(make_job(write_lines(tmp_path / "train.jsonl", [row, whole]), format="flagembedding"))
    back = export_lines(tmp_path, "flagembedding")
    assert {name: back[-1].get(name) for name in beside} == beside and back[-1]["query"] == "w"
    if expected is None:
        assert len(back) == 1 and "left out 1 documents without a score; left out 1 rows" in capsys.readouterr().err
    else:
        assert back[0]["neg"] == ["a", "b"] and {name: back[0].get(name) for name in beside} == expected


def test_file_of_mixed_rows_is_exported_as_its_format_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"query": "q", "pos": ["p"], "neg": [["x"]]}, {"query": "q", "pos": 5, "neg": "n"}]
    score_rows(make_job(write_lines(tmp_path / "train.jsonl", rows), format="flagembedding"))
    assert call_command(lambda: export([str(tmp_path / "out"), "--format", "tuples"])) == 2
    assert "those of --format flagembedding" in capsys.readouterr().err
    (back,) = export_lines(tmp_path, "flagembedding")
    assert (back["pos"], back["neg"]) == (["p"], [])


def test_tevatron_passages_get_a_score_and_their_title_is_scored(tmp_path: Path) -> None:
    rows = score_rows(make_job(write_lines(tmp_path / "train.jsonl.gz", TEVATRON), format="tevatron"))
    expected = score_alone(tmp_path, [("query 1", "T good 1"), ("query 1", "bad 0 1")])
    assert [rows[1][f"{side}_passages"][0]["score"] for side in ("positive", "negative")] == expected
    back = export_lines(tmp_path, "tevatron")
    for row, other in zip(back, TEVATRON, strict=True):
        scores = [passage.pop("score") for side in ("positive", "negative") for passage in row[f"{side}_passages"]]
        assert row == other and len(scores) == 1 + len(other["negative_passages"])


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_tuples_get_scores_in_the_order_of_their_negatives(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_lines(path, TUPLES) if name.endswith("jsonl") else pq.write_table(pa.Table.from_pylist(TUPLES), path)
    rows = score_rows(make_job(path, format="tuples"))
    texts = [("q1", text) for text in ("p1", "n1 1", "n1 2", "n1 10")]
    assert rows[1]["scores"] == score_alone(tmp_path, texts)
    target = tmp_path / "back.parquet"
    assert call_command(lambda: export([str(tmp_path / "out"), "--format", "tuples", "--output", str(target)])) == 0
    assert pq.read_table(target).to_pylist() == [
        {**other, "scores": row["scores"]} for row, other in zip(rows, TUPLES, strict=True)
    ]


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        ("id,anchor,positive,negative_1,negative_10,negative_2", {}),
        ("negative_2,id,negative_1,positive,anchor", {}),
        ("anchor,positive,negative_1,negative_2", {"keep_columns": "negative_2,positive,negative_1,anchor"}),
        ("c,a,b,d", {"query_column": "a", "document_column": "b", "negative_columns": "d,c"}),
        ("negative,anchor,positive", {"rename_columns": "negative=x,anchor=y"}),
    ],
)
def test_texts_of_tuples_stand_where_trainers_take_them_for_their_scores(
    tmp_path: Path, columns: str, flags: dict[str, Any]
) -> None:
    names = columns.split(",")
    row = {name: 7 if name == "id" else f"text of {name}" for name in names}
    (scored,) = score_rows(make_job(write_lines(tmp_path / "train.jsonl", [row]), format="tuples", **flags))
    (back,) = export_lines(tmp_path, "tuples")
    query, *documents = [value for value in back.values() if isinstance(value, str)]  # as a trainer goes by place
    assert query == row["a" if "a" in row else "anchor"]
    assert [value for value in scored.values() if isinstance(value, str)] == [query, *documents]
    assert back["scores"] == scored["scores"] == score_alone(tmp_path, [(query, text) for text in documents])
    assert sorted(map(str, [*back.values()][:-1])) == sorted(map(str, row.values()))


def test_ids_by_system_get_scores_of_the_texts_that_they_name(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "hard.jsonl.gz",
        [
            {"qid": 1, "pos": [11], "neg": {"bm25": [12, 13], "dense": [13]}},
            {"qid": 2, "pos": [12], "neg": {"dense": [99], "bm25": [11]}},  # in the other order, one not in the corpus
        ],
    )
    (tmp_path / "queries.tsv").write_text("1\tone\n2\ttwo\n")
    (tmp_path / "corpus.tsv").write_text("".join(f"{key}\ttext {key}\n" for key in (11, 12, 13)))
    texts = {"queries": str(tmp_path / "queries.tsv"), "corpus": str(tmp_path / "corpus.tsv")}
    rows = score_rows(make_job(path, **texts))
    expected = score_alone(tmp_path, [("one", "text 12"), ("one", "text 13"), ("two", "text 11")])
    assert rows[0]["neg_scores"] == {"bm25": expected[:2], "dense": expected[1:2]}
    assert rows[1]["neg_scores"] == {"bm25": expected[2:], "dense": [None]}
    back = export_lines(tmp_path, "msmarco-hard-negatives")
    assert back[1]["neg"] == {"bm25": [{"pid": 11, "ce-score": expected[2]}], "dense": []}
    mining = {"scored": [str(tmp_path / "out")], "output": str(tmp_path / "mined"), "num_negatives": 1}
    mined, _, _ = mine_in_process(check_job(MineJob, {**mining, "false_negatives": "report"}).normalized())
    assert {(row["anchor"], row["positive"]) for row in mined} == {("one", "text 11"), ("two", "text 12")}
    with pytest.raises(JobError, match="--queries and --corpus"):
        prepare_job(make_job(path, format="msmarco-hard-negatives", output=str(tmp_path / "other")))


def test_scored_training_file_is_mined_by_its_own_labels(tmp_path: Path) -> None:
    score_rows(make_job(write_lines(tmp_path / "train.jsonl", TEVATRON)))
    job = check_job(
        MineJob,
        {"scored": [str(tmp_path / "out")], "output": str(tmp_path / "mined"), "num_negatives": 1},
    ).normalized()
    mined, _, _ = mine_in_process(job)
    assert {(row["anchor"], row["positive"]) for row in mined} <= {(f"query {at}", f"T good {at}") for at in range(9)}
    assert mined and all(
        row["negative"].startswith("bad ") and row["negative"].endswith(row["anchor"][-1]) for row in mined
    )


@pytest.mark.parametrize(
    ("row", "values", "problem"),
    [
        ({"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1.0]}, {}, "--rename-columns pos_scores=NEW"),
        ({"query": "q", "pos": ["p"], "neg": ["n"], "prompt": "find"}, {}, "--instruction-column prompt"),
        ({"query": "q", "positives": ["p"]}, {"format": "flagembedding"}, "no column `pos`"),
        ({"anchor": "q", "a": "p", "b": "r", "negative": "n"}, {"format": "tuples"}, "--document-column"),
        ({"query": "q", "pos": ["p"], "neg": ["n"]}, {"negative_columns": "neg"}, "no column `document`"),
        ({"query": "q", "pos": "p", "neg": "n"}, {}, "--format flagembedding"),
        ({"query": "q", "answer": "p", "negative_1": "n"}, {}, "--format tuples"),
        (
            {"query": "q", **{key: [{"text": "p", "score": 1}] for key in PASSAGES}},
            {},
            "--keep-fields text",
        ),
        ({"query": "q", "pos": [{"text": "p", "id": 2}], "neg": [3]}, {"format": "flagembedding"}, "has texts"),
        ({"query": "q", "pos": ["p"], "neg": [{"text": "n"}]}, {"format": "flagembedding"}, "are structs, where"),
        ({"anchor": "q", "positive": "p", "negative_1": {"text": "n"}}, {"format": "tuples"}, "are structs, where"),
        ({"query": "q", "a": ["p"], "b": [{"text": "n"}]}, {"document_column": "a", "negative_columns": "b"}, "of `a`"),
        ({"query": "q", "pos": ["p"], "neg": ["n"]}, {"explode": True}, "--explode takes one list"),
        ({"query": "q", "pos": ["p"], "neg": ["n"]}, {"rename_columns": "pos=good"}, "renames `pos`"),
        ({"query": "q", "pos": ["p"], "neg": ["n"]}, {"rename_columns": "pos=neg,neg=pos"}, "--rename-columns"),
        (
            {"query": "q", "pos": ["p"], "neg": ["n"], "raw": ["r", "s"]},
            {"rename_columns": "raw=neg", "drop_columns": "neg"},
            "gives another column the name",
        ),
        (
            {"query": "q", "pos": ["p"], "neg": ["n"]},
            {"format": "flagembedding", "document_column": "neg"},
            "names a column twice",
        ),
    ],
)
def test_file_that_has_two_readings_is_refused(
    tmp_path: Path, row: dict[str, Any], values: dict[str, Any], problem: str
) -> None:
    with pytest.raises(JobError, match=problem):
        prepare_job(make_job(write_lines(tmp_path / "train.jsonl", [row]), **values))


def test_prompts_of_rows_are_instructions_where_that_is_said(tmp_path: Path) -> None:
    row = {"query": "q", "pos": ["p"], "neg": ["n"], "prompt": "find"}
    path = write_lines(tmp_path / "train.jsonl", [row])
    with_prompt = score_rows(make_job(path, instruction_column="prompt"))
    other = score_rows(make_job(path, instruction="find", output=str(tmp_path / "other")))
    assert with_prompt[0]["logit"] == other[0]["logit"]


def test_plain_ranklist_is_still_one_of_tevatron(tmp_path: Path) -> None:
    (tmp_path / "run.tsv").write_text("1\td1\t0.5\n")
    write_lines(tmp_path / "q.jsonl", [{"_id": "1", "text": "one"}])
    write_lines(tmp_path / "c.jsonl", [{"_id": "d1", "text": "doc"}])
    texts = {"queries": str(tmp_path / "q.jsonl"), "corpus": str(tmp_path / "c.jsonl")}
    assert score_rows(make_job(tmp_path / "run.tsv", format="tevatron", **texts))[0]["document_id"] == "d1"
    with pytest.raises(JobError, match="holds ids alone"):
        prepare_job(make_job(tmp_path / "run.tsv", format="tevatron", output=str(tmp_path / "none")))


def test_placed_scores_of_another_document_are_found(tmp_path: Path) -> None:
    job = make_job(write_lines(tmp_path / "train.jsonl", FLAGEMBEDDING[:1]))
    score_rows(job)
    (part,) = open_scored(job.output).parts
    table = pq.read_table(part.uri)
    swapped = table.set_column(
        table.column_names.index("neg_scores"), "neg_scores", pa.array([[1.0, 2.0]], pa.list_(pa.float32()))
    )
    pq.write_table(swapped, part.uri)
    (unit,) = open_scored(job.output).units
    problem = check_part(unit, Path(part.uri).read_bytes(), prepare_job(job).fingerprint).problem
    assert problem is not None and "beside documents" in problem
