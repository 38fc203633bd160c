"""What is positive: labels of any form and judgements of any format say the same, and what leaves a doubt is refused."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mining_in_process import make_job, mine_in_process
from mining_inputs import group, make_pairs, write_scored
from scoring_in_process import score_here

from rerank_actor.errors import InputError, JobError
from rerank_actor.inputs.rankings.qrels import load_qrels
from rerank_actor.job import load_job
from rerank_actor.mining.pairs import read_pairs
from rerank_actor.mining.preflight import prepare_mining
from rerank_actor.mining.report import list_remarks
from rerank_actor.mining.survey import survey_part

IDS = {"query_id_column": "query_id", "document_id_column": "document_id"}


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (pa.array(["1", "0", None, "1"]), [True, False, False, True]),
        (pa.array([True, False, None, True]), [True, False, False, True]),
        (pa.array([3.0, 0.5, None, 1.0]), [True, False, False, True]),
        (pa.array(["Pos", "neg", None, "positive"]), [True, False, False, True]),
        (pa.array(["relevant", "not relevant", "", "TRUE"]).dictionary_encode(), [True, False, False, True]),
    ],
)
def test_labels_may_be_numbers_truth_values_or_text(tmp_path: Path, labels: pa.Array, positive: list[bool]) -> None:
    table = pa.Table.from_pylist(make_pairs(1, 4)).drop_columns("label").append_column("label", labels)
    pq.write_table(table, tmp_path / "scores.parquet")
    scored = prepare_mining(make_job(tmp_path / "scores.parquet", tmp_path / "mined")).scored
    (survey,) = survey_part(0, scored.parts[0], scored.columns, None)
    assert survey.num_positives == sum(positive)


@pytest.mark.parametrize(
    ("labels", "values", "positive"),
    [
        (pa.array([3, 0, 2, 1]), {"min_relevance": 2}, [True, False, True, False]),
        (pa.array(["3", "0", "2.5", ""]), {"min_relevance": 2}, [True, False, True, False]),
        (
            pa.array(["exact", "partial", "other", None]),
            {"positive_labels": ["exact", "Partial "]},
            [True, True, False, False],
        ),
        (pa.array([3, 0, 2, 1]), {"positive_labels": ["2", "1.0"]}, [False, False, True, True]),
        (pa.array([True, False, True, False]), {"positive_labels": ["false"]}, [False, True, False, True]),
    ],
)
def test_grades_and_words_are_told_by_flags(
    tmp_path: Path, labels: pa.Array, values: dict[str, Any], positive: list[bool]
) -> None:
    table = pa.Table.from_pylist(make_pairs(1, 4)).drop_columns("label").append_column("label", labels)
    pq.write_table(table, tmp_path / "scores.parquet")
    columns = prepare_mining(make_job(tmp_path / "scores.parquet", tmp_path / "mined", **values)).scored.columns
    read = read_pairs(pq.ParquetFile(tmp_path / "scores.parquet"), "x", [0], columns, (), 0)
    assert read.table["positive"].to_pylist() == positive


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (pa.array(["entailment", "neutral"] * 2), r"2 labels that do not say what they mean \(`entailment`, `neutral`\).*"
         "--positive-labels"),
        (pa.array([[1.0, 2.0]] * 4), "holds no labels"),
        (pa.array([datetime.date(2026, 1, 1)] * 4), "holds no labels"),
    ],
)  # fmt: skip
def test_labels_that_nobody_understands_are_refused(tmp_path: Path, label: pa.Array, words: str) -> None:
    table = pa.Table.from_pylist(make_pairs(1, 4)).drop_columns("label").append_column("label", label)
    pq.write_table(table, tmp_path / "scores.parquet")
    with pytest.raises(InputError, match=words):
        mine_in_process(make_job(tmp_path / "scores.parquet", tmp_path / "mined"))


def test_a_truth_value_is_no_place_in_a_list(tmp_path: Path) -> None:
    table = group(make_pairs(2, 4)).drop_columns("label").append_column("label", pa.array([True, False]))
    pq.write_table(table, tmp_path / "scores.parquet")
    with pytest.raises(InputError, match="holds one label for a list of documents, which is no place in it"):
        mine_in_process(make_job(tmp_path / "scores.parquet", tmp_path / "mined"))


QRELS: dict[str, Callable[[list[tuple[str, int, int]]], str]] = {
    "a.qrels": lambda judged: "".join(f"{query} 0 {document} {label}\n" for query, document, label in judged),
    "b.tsv": lambda judged: "query-id\tcorpus-id\tscore\n" + "".join("\t".join(map(str, one)) + "\n" for one in judged),
    "c.jsonl": lambda judged: "".join(
        json.dumps({"query-id": query, "corpus-id": document, "score": label}) + "\n"
        for query, document, label in judged
    ),
    "d.jsonl": lambda judged: "".join(
        json.dumps({"query_id": query, "doc_id": str(document)}) + "\n" for query, document, label in judged if label
    ),
    "e.csv": lambda judged: "qid,docid,relevance\n" + "".join(",".join(map(str, one)) + "\n" for one in judged),
}


def write_qrels(path: Path, judged: list[tuple[str, int, int]]) -> None:
    if path.name in QRELS:
        path.write_text(QRELS[path.name](judged))
        return
    kept = [one for one in judged if one[2] or "graded" in path.name]
    columns = {"query-id": pa.array([one[0] for one in kept]), "corpus-id": pa.array([one[1] for one in kept])}
    grades = {"score": pa.array([one[2] for one in kept], pa.float32())} if "graded" in path.name else {}
    pq.write_table(pa.table(columns | grades), path)


@pytest.mark.parametrize("name", [*QRELS, "graded.parquet", "bare.parquet"])
def test_qrels_say_what_is_positive(tmp_path: Path, name: str) -> None:
    rows = make_pairs(6, 8)
    expected = mine_in_process(make_job(write_scored(tmp_path / "scored", rows), tmp_path / "by-label"))
    judged = [(row["query_id"], row["document_id"], row["label"]) for row in rows]
    judged += [
        ("q1", 99, 1),
        ("q1", 98, 1),
        ("other", 5, 1),
    ]  # positives without a score, and a query that is not there
    write_qrels(tmp_path / name, judged)
    job = make_job(tmp_path / "scored", tmp_path / "by-qrels", label_column=None, qrels=str(tmp_path / name), **IDS)
    found = mine_in_process(job)
    assert found[0] == expected[0]
    counts = found[1].counts
    names = ("unmatched_judgements", "queries_lacking_positives", "judged_queries")
    assert [counts[name] for name in names] == [2, 1, 6]
    remarks = list_remarks(found[1], job, job.rules(), "--qrels q")
    assert (
        "1 of 6 judged queries have a positive that is not among their scored candidates (2 judgements)" in remarks[0]
    )
    assert "--format qrels" in remarks[0]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.jsonl",
            '{"query-id": "q", "corpus-id": "d", "judgement": 0}',
            "no column of relevance; it has .*`judgement`",
        ),
        ("b.jsonl", '{"query-id": "q", "corpus-id": "d", "score": 1, "label": 0}', "several columns of relevance"),
        ("c.jsonl", '{"query-id": "q", "score": 1}', "no column of documents' ids"),
        ("d.jsonl", '{"query-id": "q", "corpus-id": null, "score": 1}', "line 1 is no judgement"),
        ("e.jsonl", '{"query-id": "q", "corpus-id": "d", "score": "high"}', "line 1 is no judgement"),
        ("f.csv", "qid,docid,rel\nq,d\n", "line 2 is no judgement"),
        ("g.jsonl", '{"q1": {"d1": 1}}', "no column of queries' ids"),
        ("h.qrels", "q 0 d nan", "line 1 is no judgement"),
        ("i.parquet", "PAR1", "cannot be read as qrels"),
    ],
)
def test_qrels_that_leave_a_doubt_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"--qrels .*{words}"):
        load_qrels(str(tmp_path / name), 1.0)


def test_a_positive_written_in_another_way_is_no_negative(tmp_path: Path) -> None:
    rows = [{**row, "label": int(place == 0)} for place, row in enumerate(make_pairs(1, 6))]
    texts = ["Who wrote it?", "who wrote  it", "Who wrote\nit? ", "“Who wrote it”!", "Who wrote it, then?", "Bacon."]
    rows = [
        {**row, "document": text, "logit": 5.0 - place}
        for place, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]
    found, tally, _ = mine_in_process(
        make_job(write_scored(tmp_path / "scored", rows), tmp_path / "mined", space="logit")
    )
    assert [row["negative"] for row in found] == texts[4:]
    assert tally.removed["equal_to_positive"] == 3


def test_positives_that_were_not_retrieved_are_scored_as_the_remark_says(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "capital?"}\n{"_id": "q2", "text": "sea?"}\n')
    texts = {f"d{number}": f"text {number}" for number in range(6)}
    lines = [json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items()]
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    retrieved = [("q1", 0), ("q1", 1), ("q1", 2), ("q2", 3), ("q2", 4)]
    (tmp_path / "bm25.run").write_text("".join(f"{query} Q0 d{number} 1 1.0 x\n" for query, number in retrieved))
    (tmp_path / "judged.qrels").write_text("q1 0 d0 1\nq2 0 d5 1\n")
    by_id = {name: str(tmp_path / f"{name}.jsonl") for name in ("queries", "corpus")}
    for source, flags in (("bm25.run", {}), ("judged.qrels", {"format": "qrels"})):
        values = {**by_id, **flags, "engine": "fake", "output": str(tmp_path / "scored" / source)}
        score_here(load_job(None, {"input": str(tmp_path / source), **values}))
    job = {"label_column": None, "qrels": str(tmp_path / "judged.qrels"), "format": "labeled-list", "teacher": "none"}
    job |= {"false_negatives": "report", "absolute_margin": None}
    once = mine_in_process(make_job(tmp_path / "scored/bm25.run", tmp_path / "once", **job))
    assert [row["anchor"] for row in once[0]] == ["capital?"]
    assert once[1].counts["queries_lacking_positives"] == 1
    both = [str(tmp_path / "scored" / name) for name in ("bm25.run", "judged.qrels")]
    twice = mine_in_process(make_job(tmp_path / "scored/bm25.run", tmp_path / "twice", scored=both, **job))
    assert {row["anchor"]: row["documents"][0] for row in twice[0]} == {"capital?": "text 0", "sea?": "text 5"}
    assert twice[1].counts["queries_lacking_positives"] == 0


def test_a_place_repeated_for_each_exploded_candidate_is_refused(tmp_path: Path) -> None:
    listed = [
        {"query": f"q{n}", "document": ["a", "b", "c"], "label": n, "grades": [n == k for k in range(3)]}
        for n in (0, 2)
    ]
    for row in listed:  # as MS MARCO has it
        row["one"] = {"text": row["document"], "inner": {"grades": row["grades"]}, "url": "x"}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    marked = {}
    apart = {"explode": True, "document_column": "one.text"}
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "lists": ("grades", {}),
        "field": ("one.inner.grades", {**apart, "explode_columns": ["one.inner.grades"]}),
        "fields": ("one.inner.grades", {**apart, "explode_columns": ["one.text", "one.inner.grades"]}),
        "rows": ("grades", {"explode": True, "explode_columns": ["grades"]}),
    }
    for name, (label, values) in forms.items():
        out = {"input": [str(tmp_path / "in.jsonl")], "engine": "fake", "output": str(tmp_path / name), **values}
        score_here(load_job(None, out))
        columns = prepare_mining(make_job(tmp_path / name, tmp_path / "mined", label_column=label)).scored.columns
        (part,) = (tmp_path / name).glob("part-*.parquet")
        marked[name] = read_pairs(pq.ParquetFile(part), "x", [0], columns, (), 0).table["positive"].to_pylist()
    bare = tmp_path / "bare.parquet"
    bare.write_bytes(part.read_bytes())  # whose metadata say how it was laid out
    assert all(found == [True, False, False, False, False, True] for found in marked.values())
    for scored in (tmp_path / "rows", bare):
        with pytest.raises(InputError, match=r"repeated column `label` for each candidate.*--explode-columns"):
            prepare_mining(make_job(scored, tmp_path / "mined", label_column="label"))
    with pytest.raises(InputError, match="column `label` holds one value for a list of documents"):
        prepare_mining(
            make_job(tmp_path / "lists", tmp_path / "mined", label_column="grades", document_id_column="label")
        )


def test_one_pair_with_two_judgements_is_refused_and_the_same_twice_is_one(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("q1 0 d1 1\nq1 0 d2 0\nq1 0 d1 1\n")
    assert load_qrels(str(path), 1.0).to_pylist() == [{"query_id": "q1", "document_id": "d1"}]
    for first, second in ((1, 0), (0, 1), (1, 2)):
        path.write_text(f"q0 0 d1 1\nq1 0 d1 {first}\nq1 0 d1 {second}\n")
        with pytest.raises(InputError, match="'d1' is judged twice for query 'q1', with"):
            load_qrels(str(path), 1.0)


def test_scores_without_a_word_on_what_is_positive_are_refused(tmp_path: Path) -> None:
    scored = write_scored(tmp_path / "scored", make_pairs(2, 3))
    with pytest.raises(
        JobError, match="nothing says which documents are positive: give --label-column NAME, --qrels URI"
    ):
        prepare_mining(make_job(scored, tmp_path / "mined", label_column=None))


@pytest.mark.parametrize(
    "says",
    [
        {"label_column": "label"},
        {"label_column": None, "min_positive_score": 0.0},
        {"label_column": None, "verdicts": True},
    ],
)
def test_rows_that_scoring_added_for_judgements_are_never_negatives(tmp_path: Path, says: dict[str, Any]) -> None:
    rows = [
        {
            "query_id": f"q{query}",
            "query": f"query {query}",
            "document_id": f"d{document}",
            "document": f"text {document}",
        }
        | {"label": int(place == 0)}
        for query in range(8)
        for place, document in enumerate((5 * query + step) % 40 for step in range(6))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    missed = {f"query {query}": (5 * query + 20) % 40 for query in range(8)}
    judged = [f"q{query}\td{missed[f'query {query}']}\t1" for query in range(8)]
    (tmp_path / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    (tmp_path / "v.csv").write_text("query_id,document_id,verdict\nq0,d0,yes\n")
    settings = {"input": [str(tmp_path / "in.parquet")], "engine": "fake", "output": str(tmp_path / "scored")}
    score_here(load_job(None, settings | {"qrels": str(tmp_path / "qrels.tsv")}))
    if "verdicts" in says:
        says = {**says, "verdicts": str(tmp_path / "v.csv"), **IDS}
    rules = {"absolute_margin": None, "false_negatives": "report", "num_negatives": 9, "depth": "all"}
    mined, _, _ = mine_in_process(make_job(tmp_path / "scored", tmp_path / "mined", **rules, **says))
    assert mined
    assert not [row for row in mined if row["negative"] == f"text {missed[row['anchor']]}"]
    if "min_positive_score" not in says:
        assert {row["anchor"] for row in mined if row["positive"] == f"text {missed[row['anchor']]}"} == set(missed)


def test_labels_of_training_files_stay_beside_verdicts_and_scores(tmp_path: Path) -> None:
    rows = [
        {"query": f"q{n}", "pos": [f"good {n}", f"fine {n}"], "neg": [f"bad {place} {n}" for place in range(6)]}
        for n in range(6)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_here(
        load_job(None, {"input": [str(tmp_path / "train.jsonl")], "output": str(tmp_path / "scored"), "engine": "fake"})
    )
    judge = tmp_path / "judge.jsonl"
    rules = {"label_column": None, "absolute_margin": None, "num_negatives": 9, "depth": "all"}

    def mine(name: str, **values: Any) -> list[dict[str, Any]]:
        mined, _, _ = mine_in_process(make_job(tmp_path / "scored", tmp_path / name, **rules, **values))
        assert not [row for row in mined if row["negative"].startswith(("good", "fine"))]
        return mined

    first = mine("first", suspects=str(judge))
    pieces = sorted((tmp_path / "first" / "_mine" / "suspects").glob("*.bin"))
    suspects = [row for piece in pieces for row in pq.read_table(piece).to_pylist()]
    judge.write_text("".join(json.dumps({**row, "verdict": "no"}) + "\n" for row in suspects))
    assert suspects
    second = mine("second", verdicts=str(judge))
    assert len(second) > len(first)
    assert {row["positive"] for row in second} >= {f"good {n}" for n in range(6)}
    mine("third", min_positive_score=0.0)
