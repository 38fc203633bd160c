"""Rankings in and out: TREC runs, Tevatron's ranklists, qrels, and what evaluation reads."""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import read_output, run_command

from rerank_actor import Reranker
from rerank_actor.commands.export import export
from rerank_actor.engines.base import compute_score
from rerank_actor.errors import InputError, JobError
from rerank_actor.inputs.rankings.files import RankingFile, iterate_ranking, read_ranking, scan_ranking
from rerank_actor.inputs.rankings.lines import parse_line
from rerank_actor.inputs.rankings.predictions import iterate_sections
from rerank_actor.inputs.rankings.qrels import load_judgements, load_qrels
from rerank_actor.inputs.rankings.sniff import sniff_format
from rerank_actor.inputs.shards import read_rows
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.outputs.export import ExportSpec, export_scores
from rerank_actor.scoring.preflight import prepare_job
from rerank_actor.scoring.run import run_job

QUERIES = {f"q{number}": f"query {number}" for number in range(1, 4)}
DOCUMENTS = {f"d{number}": f"document {number}" for number in range(9)}
RUN = """q1 Q0 d3 1 9.5 bm25
q1 Q0 d1 2 8.5 bm25
q1 Q0 d0 3 7.5 bm25
q2 Q0 d5 1 1e-3 bm25
q2 Q0 d6
q2 Q0 d7 2 -4 bm25
q2 Q0 nowhere 3 -5 bm25
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def make_job(tmp_path: Path, ranking: Path, **settings: Any) -> ScoreJob:
    """Return a job for the fake engine with a ranking as input."""
    queries = write(
        tmp_path / "beir/queries.jsonl", "".join(json.dumps({"_id": k, "text": v}) + "\n" for k, v in QUERIES.items())
    )
    corpus = write(
        tmp_path / "beir/corpus.jsonl", "".join(json.dumps({"_id": k, "text": v}) + "\n" for k, v in DOCUMENTS.items())
    )
    values = {
        "input": [str(ranking)],
        "queries": [str(queries)],
        "corpus": [str(corpus)],
        "output": str(tmp_path / "out"),
        "engine": "fake",
    }
    return check_job(ScoreJob, {**values, **settings}).normalized()


def score_ids(pairs: list[tuple[str, str]]) -> list[float]:
    with Reranker(engine="fake") as reranker:
        return reranker.score([(QUERIES[query], DOCUMENTS[document]) for query, document in pairs]).tolist()


def open_ranking(path: Path, kind: str, top_k: int | None = None) -> RankingFile:
    return RankingFile(str(path), path.stat().st_size, "", kind, "gz" if path.suffix == ".gz" else "", top_k)


def test_trec_run_is_scored_line_by_line_and_exported_best_first(tmp_path: Path, local_ray: str) -> None:
    job = make_job(tmp_path, write(tmp_path / "bm25.run", RUN))
    run_job(job)
    table = read_output(tmp_path / "out")
    assert table.column_names[:5] == ["query_id", "document_id", "rank", "retrieval_score", "tag"]
    assert table["document_id"].to_pylist() == ["d3", "d1", "d0", "d5", None, "d7", "nowhere"]
    good = [("q1", "d3"), ("q1", "d1"), ("q1", "d0"), ("q2", "d5"), ("q2", "d7")]
    scores = dict(zip(good, score_ids(good), strict=True))
    assert table["score"].to_pylist() == [*list(scores.values())[:4], None, scores["q2", "d7"], None]
    errors = table["error"].to_pylist()
    assert errors[4].startswith("line is not of a TREC run")
    assert errors[4].endswith(f"({tmp_path}/bm25.run, line 5)")
    assert errors[6] == "document id is not in --corpus"

    target = tmp_path / "scored.trec"
    assert export([str(tmp_path / "out"), "--format", "trec", "--output", str(target), "--tag", "ours"]) == 0
    fields = [line.split() for line in target.read_text().splitlines()]
    ranked = sorted(good, key=lambda pair: (pair[0], -scores[pair]))
    assert [(query, document) for query, _, document, *_ in fields] == ranked
    assert [int(rank) for _, _, _, rank, _, _ in fields] == [1, 2, 3, 1, 2]
    logits = {(row["query_id"], row["document_id"]): row["logit"] for row in table.to_pylist()}
    assert [np.float32(score) for *_, score, _ in fields] == [np.float32(logits[pair]) for pair in ranked]
    assert {(constant, tag) for _, constant, *_, tag in fields} == {("Q0", "ours")}

    # What was exported is a run to score again, the best of each query alone.
    again = make_job(tmp_path, target, output=str(tmp_path / "again"), top_k=1)
    run_job(again)
    found = read_output(tmp_path / "again")
    best = [next(pair for pair in ranked if pair[0] == query) for query in ("q1", "q2")]
    assert list(zip(found["query_id"].to_pylist(), found["document_id"].to_pylist(), strict=True)) == best
    assert found["score"].to_pylist() == [scores[pair] for pair in best]


def test_mteb_predictions_and_tevatron_hold_the_scores_of_the_output(tmp_path: Path, local_ray: str) -> None:
    run_job(make_job(tmp_path, write(tmp_path / "run.trec", RUN)))
    target = tmp_path / "predictions.json"
    assert export_scores(ExportSpec(str(tmp_path / "out"), "mteb-predictions", str(target))).candidates == 5
    found = json.loads(target.read_text())
    assert found["mteb_model_meta"]["model_name"] == "bytes"
    rows = [row for row in read_output(tmp_path / "out").to_pylist() if row["error"] is None]
    expected: dict[str, dict[str, float]] = {}
    for row in rows:
        expected.setdefault(row["query_id"], {})[row["document_id"]] = pytest.approx(row["logit"], abs=1e-6)
    assert found["default"]["test"] == expected

    target = tmp_path / "ranklist.tsv.gz"
    result = export_scores(ExportSpec(str(tmp_path / "out"), "tevatron", str(target), space="score", top_k=2))
    assert (result.queries, result.candidates, result.unscored) == (2, 4, 2)
    lines = [line.split("\t") for line in gzip.decompress(target.read_bytes()).decode().splitlines()]
    scores = {(row["query_id"], row["document_id"]): row["score"] for row in rows}
    assert [float(score) for *_, score in lines] == pytest.approx([scores[q, d] for q, d, _ in lines], abs=1e-8)
    assert sniff_format(str(target), target.stat().st_size, "gz") == "tevatron"


def make_predictions(num_queries: int, depth: int) -> dict[str, dict[str, float]]:
    """Return scores by ids in which what JSON escapes and what ends its objects stand."""
    marks = ['q"{}', "q\\", "q é\u2028", "q}}}", 'q"}, "x": {', "q b"]
    return {
        f"{marks[number % len(marks)]}{number}": {f"d,{at}{{:}}": float(at % 7) / (number + 1) for at in range(depth)}
        for number in range(num_queries)
    }


@pytest.mark.parametrize("layout", [{}, {"indent": 1}, {"ensure_ascii": False, "separators": (",", ":")}])
@pytest.mark.parametrize("name", ["t_predictions.json", "t_predictions.json.gz"])
@pytest.mark.parametrize("top_k", [None, 3])
def test_mteb_predictions_are_read_query_by_query_from_any_of_them(
    tmp_path: Path, layout: dict[str, Any], name: str, top_k: int | None
) -> None:
    made = make_predictions(30, 11)
    whole = {"mteb_model_meta": {"model_name": "a/b", "revision": None}, "default": {"test": made | {"none": {}}}}
    path = write(tmp_path / name, json.dumps(whole, **layout))
    file = open_ranking(path, "mteb-predictions", top_k)
    assert sniff_format(str(path), path.stat().st_size, file.compression) == "mteb-predictions"
    blocks = scan_ranking(file, 20, -1)
    assert len(blocks) > 3
    found: dict[str, dict[str, float]] = {}
    for block in reversed(blocks):
        table, faults = read_ranking(file, block.byte_start, block.num_rows, block.number)
        assert faults == [None] * block.num_rows
        for row in table.to_pylist():
            assert (
                found.setdefault(row["query_id"], {}).setdefault(row["document_id"], row["retrieval_score"]) is not None
            )
    best = {query: dict(sorted(names.items(), key=lambda item: -item[1])[:top_k]) for query, names in made.items()}
    assert found == best


@pytest.mark.parametrize(("text", "said"), [
    ('{"mteb_model_meta": {}, "default": {"test": {"q1": {"d1": 1}}, "dev": {}}}', "several subsets or splits"),
    ('{"de": {"test": {"q1": {"d1": 1}}}, "en": {"test": {}}}', "several subsets or splits"),
    ('{"default": {"test": {"q1": {"d1": 1}, "q1": {"d2": 1}}}}', "query 'q1' is there twice"),
    ('{"default": {"test": {"q1": {"d1": 1, "d1": 2}}}}', "query 'q1' has a document twice"),
    ('{"default": {"test": {"q1": {"d1": NaN}}}}', "score of document 'd1' for query 'q1' is no finite number"),
    ('{"default": {"test": {"q1": {"d1": "2"}}}}', "score of document 'd1' for query 'q1' is no finite number"),
    ('{"default": {"test": {"q1": {"d1": 1}', "another JSON or cut short at byte"),
    ('{"default": {"test": {"q1": {"d1": 1}}}} {}', "another JSON or cut short at byte"),
    ('{"default": {"test": {"q1": ["d1"]}}}', "another JSON or cut short at byte"),
    ('{"default": {"test": {"q1": {"": 1}}}}', "has an empty id"),
    ('{"default": {"test": {"q1": {"\\ud800": 1}}}}', "is not valid Unicode"),
])  # fmt: skip
def test_predictions_that_are_broken_or_several_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "x.json", text)
    with pytest.raises(InputError, match=re.escape(said)):
        scan_ranking(open_ranking(path, "mteb-predictions"), 10, -1)


@pytest.mark.parametrize("text", [
    '{"en": {"test": {"q": {"d": 1}}}, "de": {}}',
    '{"de": {}, "mteb_model_meta": null, "en": {"test": {"q": {"d": 1}}}}',
    '{"en": {"test": {"q": {"d": 1}}}, "mteb_model_meta": {"name": "m {"}}\n',
    '{"en": {"test": {"q": {"d": 1}}}, "mteb_model_meta": {}, "de": { }, "fr": {"test": {"q": {"d": 1}}}}',
])  # fmt: skip
def test_empty_subsets_and_the_model_may_stand_anywhere_in_predictions(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "x.json", text)
    sections = list(iterate_sections(open_ranking(path, "mteb-predictions").text))
    assert sections == [((name, "test"), "q", [("d", 1.0)]) for name in ("en", "fr")][: text.count("test")]
    if "fr" in text:
        with pytest.raises(InputError, match="several subsets or splits"):
            scan_ranking(open_ranking(path, "mteb-predictions"), 10, -1)
    else:
        scan_ranking(open_ranking(path, "mteb-predictions"), 10, -1)


def write_part(folder: Path, logits: list[float]) -> Path:
    """Write an output of one query with these logits."""
    logit = np.array(logits, np.float32)
    ids = {"query_id": ["q"] * len(logit), "document_id": [f"d{number:02d}" for number in range(len(logit))]}
    folder.mkdir()
    columns = {**ids, "score": compute_score(logit), "logit": logit, "error": pa.nulls(len(logit), pa.string())}
    pq.write_table(pa.table(columns), folder / "part-0123456789ab-00000.parquet")
    (folder / "_SUCCESS").touch()
    return folder


@pytest.mark.parametrize("kind", ["trec", "tevatron", "mteb-predictions"])
def test_exported_numbers_alone_give_the_order_of_logits_that_saturate(tmp_path: Path, kind: str) -> None:
    """Tools for TREC read a number as float32 and break ties by id."""
    logits = [17.5, 25.0, 18.0, np.nextafter(np.float32(18), np.float32(19)), 40.0, -90.0, -91.0, 0.25]
    target = tmp_path / "ranking"
    ids = {"query_id_column": "query_id", "document_id_column": "document_id"}
    scored = str(write_part(tmp_path / "out", logits))
    export_scores(ExportSpec(scored, kind, str(target), **ids))
    text = target.read_text()
    if kind == "mteb-predictions":
        numbers = {name: np.float32(value) for name, value in json.loads(text)["default"]["test"]["q"].items()}
    else:
        fields = [line.split() for line in text.splitlines()]
        numbers = {line[2 if kind == "trec" else 1]: np.float32(line[4 if kind == "trec" else 2]) for line in fields}
    expected = [f"d{number:02d}" for number in np.argsort(-np.array(logits, np.float32), kind="stable")]
    assert list(numbers) == expected
    assert sorted(numbers, key=lambda name: -numbers[name]) == expected
    assert len(set(numbers.values())) == len(logits)
    with pytest.raises(InputError, match="--space logit"):
        export_scores(ExportSpec(scored, kind, str(tmp_path / "by score"), space="score", **ids))
    assert not (tmp_path / "by score").exists()


@pytest.mark.parametrize(
    ("name", "text", "kind", "column"),
    [
        ("test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t0\n", "qrels", "relevance"),
        ("qrels.txt", "q1 0 d1 1\nq2 0 d2 0\n", "qrels", "relevance"),
        ("rank.txt", "q1\td1\t1.0\nq2\td2\t0.0\n", "tevatron", "retrieval_score"),
    ],
)
def test_formats_are_told_by_their_first_lines(tmp_path: Path, name: str, text: str, kind: str, column: str) -> None:
    path = write(tmp_path / name, text)
    prepared = prepare_job(make_job(tmp_path, path))
    assert [shard.format for shard in prepared.plan.shards] == [kind]
    assert prepared.plan.num_rows == 2
    table, faults = read_ranking(open_ranking(path, kind), 0, 2, 1)
    expected = {"query_id": ["q1", "q2"], "document_id": ["d1", "d2"], column: [1.0, 0.0]}
    assert table.to_pydict() == expected
    assert faults == [None, None]
    if kind == "qrels":
        judged = load_qrels(str(path), 0.0).to_pydict()
        assert judged == {name: expected[name] for name in ("query_id", "document_id")}


@pytest.mark.parametrize(
    "text",
    ["q1\td1\t1\nq1\td2\t2\nq2\td1\t1\n", "q1\td1\t7067032\nq1\td2\t42\n", "q1\td1\t1\n"],
    ids=["ranks", "ids of documents", "one line"],
)
def test_whole_numbers_behind_two_ids_are_not_guessed_to_be_scores(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "run.dev.small.tsv", text)
    with pytest.raises(
        InputError, match=r"run\.dev\.small\.tsv: its third column.*--format msmarco.*--format tevatron"
    ):
        prepare_job(make_job(tmp_path, path))
    assert prepare_job(make_job(tmp_path, path, format="tevatron")).plan.num_rows == text.count("\n")


@pytest.mark.parametrize(
    "lines",
    [
        ["1\t0\t1\t25.3", "1\t5\t2\t24.1"],
        ["1\t5\t1\t25.3", "1\t0\t2\t24.1"],
        ["1\t5\t1\t25.3", "1\t6\t2\t24.1"],
        ["1\t0\t1\t25", "1\t5\t2\t24"],
        ["1\t0\t1\t25.3", "2\t0\t1\t24.1"],
    ],
)
def test_ranks_and_scores_behind_two_ids_are_not_taken_for_qrels(tmp_path: Path, lines: list[str]) -> None:
    path = write(tmp_path / "ranking.tsv", "\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"ranking.tsv: its lines have four fields.*--format qrels.*--columns"):
        prepare_job(make_job(tmp_path, path))
    columns = ["query_id", "document_id", "rank", "retrieval_score"]
    job = make_job(tmp_path, path, format="tsv", columns=columns)
    rows = read_rows(next(prepare_job(job).plan.units()), job.input_spec()).table.to_pylist()
    assert [row["document_id"] for row in rows] == [line.split()[1] for line in lines]


@pytest.mark.parametrize("lines", ["q1 Q0 1 1\nq1 Q0 2 0\ncut\n", "q1\t0\t7\t-2\nq2 0 1\nq2\t0\t8\t1\n"])
def test_qrels_of_trec_are_told_whatever_line_is_broken(tmp_path: Path, lines: str) -> None:
    path = write(tmp_path / "qrels.txt", lines)
    assert sniff_format(str(path), path.stat().st_size, "") == "qrels"


@pytest.mark.parametrize("separator", ["\t", " "])
def test_ranks_are_read_as_such_where_the_best_is_the_first(tmp_path: Path, separator: str) -> None:
    lines = [("q1", "d3", 2), ("q1", "d1", 1), ("q1", "d0", 10), ("q2", "d5", 3), ("q2", "d6", "x"), ("q2", "d7", 1)]
    path = write(tmp_path / "run.tsv", "".join(separator.join(map(str, line)) + "\n" for line in lines))
    prepared = prepare_job(make_job(tmp_path, path, format="msmarco", top_k=1))
    unit = next(prepared.plan.units())
    rows = read_rows(unit, prepared.job.input_spec())
    assert rows.table.to_pylist() == [
        {"query_id": "q1", "document_id": "d1", "rank": 1},
        {"query_id": None, "document_id": None, "rank": None},
        {"query_id": "q2", "document_id": "d7", "rank": 1},
    ]
    assert [fault is None for fault in rows.faults] == [True, False, True]


def test_header_of_qrels_that_is_not_beirs_is_a_row_of_a_plan_and_none_of_judgements(tmp_path: Path) -> None:
    """A plan counts rows, so that another notion of a header would shift those of outputs that are there."""
    path = write(tmp_path / "qrels.tsv", "qid\tdocid\trelevance\nq1\td1\t1\nq1\td2\t0\n")
    prepared = prepare_job(make_job(tmp_path, path, format="qrels"))
    assert prepared.plan.num_rows == 3
    table, faults = read_ranking(open_ranking(path, "qrels"), 0, 3, 1)
    assert table["document_id"].to_pylist() == [None, "d1", "d2"]
    assert [fault is None for fault in faults] == [False, True, True]
    assert load_qrels(str(path), 1.0).to_pylist() == [{"query_id": "q1", "document_id": "d1"}]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("corpus-id\tquery-id\tscore", "d1\tq1\t{}"),
        ("query-id corpus-id score rank", "q1 d1 {} 7"),
        ("qid\tpid\titeration\trelevance", "q1\td1\t0\t{}"),
        ("Query-ID\tdocid\trel", "q1\td1\t{}"),
        ("docno\titer\trelevance\ttopic_id", "d1\t0\t{}\tq1"),
    ],
)
def test_names_of_a_header_decide_which_field_of_qrels_is_which(tmp_path: Path, header: str, line: str) -> None:
    path = write(tmp_path / "qrels.tsv", f"{header}\n{line.format(2)}\n")
    assert load_judgements(str(path)) == {"q1": {"d1": 2}}
    rows = list(iterate_ranking(open_ranking(path, "qrels")))
    assert rows[0].fault is not None
    assert [row.values for row in rows] == [None, {"query_id": "q1", "document_id": "d1", "relevance": 2.0}]
    assert [row.values for row in iterate_ranking(open_ranking(path, "qrels"), rows[1].start)] == [rows[1].values]


def test_qrels_in_a_folder_are_refused_as_such(tmp_path: Path) -> None:
    write(tmp_path / "qrels/test.tsv", "q1 0 d1 1\n")
    with pytest.raises(InputError, match=r"--qrels .*qrels: is a folder or a glob; name the one file"):
        load_judgements(str(tmp_path / "qrels"))


def test_qrels_of_ids_alone_are_all_relevant(tmp_path: Path) -> None:
    path = write(tmp_path / "qrels.tsv", "query-id\tcorpus-id\nq1\td1\n")
    assert load_judgements(str(path)) == {"q1": {"d1": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query-id\tcorpus-id\tscore\tlabel\nq1\td1\t1\t2\n", r"several columns of relevance \(score, label\)"),
        ("query-id\tcorpus-id\trank\nq1\td1\t1\n", "no column of relevance"),
        ("qid\tquery-id\tdocid\tscore\nq1\tq2\td1\t1\n", "several columns of queries' ids"),
        ("docid\tpid\tscore\nd1\tq1\t1\n", "no column of queries' ids"),
        ("one\ttwo\tthree\nd1\tq1\t1\n", "no column of queries' ids"),
        ("q1 0 d1 1 bm25\n", "no column of queries' ids"),
    ],
)
def test_qrels_whose_first_line_does_not_say_what_is_what_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "qrels.tsv", text)
    with pytest.raises(InputError, match=f"--qrels .*qrels.tsv: {message}"):
        load_judgements(str(path))
    with pytest.raises(InputError, match=message):
        prepare_job(make_job(tmp_path, path, format="qrels"))


@pytest.mark.parametrize(
    ("first", "other"),
    [("0\tQ0\t0\t1", "0 Q0 1"), ("q1\td1\t1", "q1 0 d2 1"), ("query-id\tcorpus-id\tscore", "q 0 d 1")],
)
def test_a_line_of_qrels_has_as_many_fields_as_the_first(tmp_path: Path, first: str, other: str) -> None:
    path = write(tmp_path / "qrels.txt", f"{first}\n{other}\n")
    with pytest.raises(InputError, match=r"qrels.txt: line 2 is no judgement \(.*another number of fields"):
        load_judgements(str(path))
    *_, last = iterate_ranking(open_ranking(path, "qrels"))
    assert (last.number, last.values, last.fault) == (
        2,
        None,
        "line of qrels has another number of fields than the first",
    )


@pytest.mark.parametrize("name", ["src.tar.gz", "code.tgz", "old.7z"])
def test_archive_beside_shards_is_none_of_them(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "a.run", RUN)
    write(folder / name, "no text")
    prepared = prepare_job(make_job(tmp_path, folder))
    assert [shard.uri for shard in prepared.plan.shards] == [str(folder / "a.run")]
    write(folder / "b.run.tgz", "no text")
    with pytest.raises(InputError, match=r"b\.run\.tgz: is packed as \.tgz"):
        prepare_job(make_job(tmp_path, folder))


def test_text_beside_a_run_is_not_read_as_one(tmp_path: Path) -> None:
    write(tmp_path / "run/a.txt", RUN)
    write(tmp_path / "run/notes.txt", "how it was made\n")
    write(tmp_path / "run/notes.tsv", "")
    with pytest.raises(JobError, match="score them apart"):
        prepare_job(make_job(tmp_path, tmp_path / "run"))
    (tmp_path / "run/notes.tsv").unlink()
    prepared = prepare_job(make_job(tmp_path, tmp_path / "run"))
    assert (prepared.plan.num_rows, [item.count for item in prepared.change.left_out]) == (7, [1])


def test_ranking_told_by_its_lines_is_read_so_in_an_output_from_before(tmp_path: Path) -> None:
    """Plans of then said nothing of formats, which the whole job had one of."""
    path = write(tmp_path / "rank.tsv", "q1\td1\t1.5\nq2\td2\t0.5\n")
    job = make_job(tmp_path, path)
    prepared = prepare_job(job)
    earlier = replace(prepared.plan, shards=tuple(replace(shard, format="") for shard in prepared.plan.shards))
    prepared.output.write_own("plan.bin", earlier.to_bytes(prepared.settings))
    write(tmp_path / "out" / next(earlier.units()).part_name, "x")
    assert prepare_job(job).plan == prepared.plan


@pytest.mark.parametrize("other", ["bm25.run", "bm25.txt", "pairs.jsonl"])
def test_run_and_qrels_in_one_input_are_refused(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "rankings"
    folder.mkdir()
    write(folder / "qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    write(folder / other, '{"query_id": "q1", "document_id": "d1"}\n' if other.endswith("jsonl") else RUN)
    with pytest.raises(JobError, match="score them apart"):
        prepare_job(make_job(tmp_path, folder))


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
@pytest.mark.parametrize("block_rows", [1, 3, 100])
def test_blocks_of_a_ranking_give_the_best_of_each_query_once(tmp_path: Path, name: str, block_rows: int) -> None:
    lines = [f"q{q} Q0 d{d} {d} {(d * 7) % 11}.5 t" for q in range(6) for d in range(q + 1)]
    path = write(tmp_path / name, "\n".join(lines) + "\n")
    for top_k in (None, 1, 3):
        file = open_ranking(path, "trec", top_k)
        blocks = scan_ranking(file, block_rows, -1)
        tables = [read_ranking(file, block.byte_start, block.num_rows, block.number)[0] for block in blocks]
        found = [(row["query_id"], row["document_id"]) for table in tables for row in table.to_pylist()]
        expected = []
        for q in range(6):
            ranked = sorted(range(q + 1), key=lambda d: -((d * 7) % 11))[:top_k]
            expected += [(f"q{q}", f"d{d}") for d in sorted(ranked)]
        assert found == expected
        firsts = [lines[block.number - 1].split() for block in blocks]
        chosen = [table.to_pylist()[0] for table in tables]
        assert [fields[0] for fields in firsts] == [row["query_id"] for row in chosen]
        assert top_k or [fields[2] for fields in firsts] == [row["document_id"] for row in chosen]


def test_broken_lines_are_named_by_their_place_in_whatever_unit_they_are(tmp_path: Path, local_ray: str) -> None:
    lines = ["\n" if at == 1 else "broken\n" if at in (4, 7) else f"q1 Q0 d{at} {at} 1 t\n" for at in range(9)]
    run_job(make_job(tmp_path, write(tmp_path / "run.trec", "".join(lines)), unit_rows=1))
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 8
    errors = [error for error in read_output(tmp_path / "out")["error"].to_pylist() if error]
    assert [error.rpartition(", ")[2] for error in errors] == ["line 5)", "line 8)"]


def test_export_takes_ids_from_renamed_and_exploded_columns(tmp_path: Path, local_ray: str) -> None:
    line = {"query_id": "q1", "document_id": ["d1", "d2", "nowhere"]}
    path = write(tmp_path / "lists.jsonl", json.dumps(line) + "\n")
    run_job(make_job(tmp_path, path, explode=True, rename_columns={"query_id": "qid", "document_id": "docid"}))
    target = tmp_path / "scored.tsv"
    assert export_scores(ExportSpec(str(tmp_path / "out"), "tevatron", str(target))).candidates == 2
    found = {tuple(line.split("\t")[:2]) for line in target.read_text().splitlines()}
    assert found == {("q1", "d1"), ("q1", "d2")}


def test_top_k_refuses_what_it_cannot_rank(tmp_path: Path) -> None:
    path = write(tmp_path / "mixed.trec", "q1 Q0 d1 1 3 t\nq2 Q0 d1 1 3 t\nq1 Q0 d2 2 1 t\n")
    with pytest.raises(
        InputError, match=r"mixed.trec: line 3 is of a query whose other lines stand apart.*sort the file"
    ):
        prepare_job(make_job(tmp_path, path, top_k=1))
    assert prepare_job(make_job(tmp_path, path)).plan.num_rows == 3
    pairs = write(tmp_path / "pairs.jsonl", '{"query_id": "q1", "document_id": "d1"}\n')
    with pytest.raises(JobError, match="--top-k goes with --format trec"):
        prepare_job(make_job(tmp_path, pairs, top_k=1))
    with pytest.raises(JobError, match="--format trec holds ids alone"):
        make_job(tmp_path, path, format="trec", corpus=[])


@pytest.mark.parametrize("line", ["", "a b", "q Q0 d one 1 t", "q Q0 d 1 high t", "q Q0 d 1 1 t u"])
def test_a_line_that_is_not_of_a_run_is_broken(line: str) -> None:
    assert parse_line("trec", line) is None


@pytest.mark.parametrize("number", ["nan", "NaN", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    ("kind", "line"), [("trec", "q1 Q0 {} 1 {} t\n"), ("tevatron", "q1\t{}\t{}\n"), ("qrels", "q1 0 {} {}\n")]
)
def test_a_candidate_whose_score_is_no_finite_number_is_broken_and_never_among_the_best(
    tmp_path: Path, kind: str, line: str, number: str
) -> None:
    scores = {"d0": number, "d1": "5", "d2": number, "d3": "7", "d4": "6"}
    path = write(tmp_path / "run", "".join(line.format(*item) for item in scores.items()))
    job = make_job(tmp_path, path, format=kind, top_k=2)
    rows = read_rows(next(prepare_job(job).plan.units()), job.input_spec())
    assert rows.table["document_id"].to_pylist() == [None, None, "d3", "d4"]
    faults = [str(fault) for fault in rows.faults]
    assert [fault.rpartition(", ")[2] for fault in faults[:2]] == ["line 1)", "line 3)"]
    assert faults[2:] == ["None", "None"]


def make_scored(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a folder that looks like a scored output of two parts."""
    folder.mkdir()
    schema = None
    for number, half in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        table = pa.Table.from_pylist(half, schema)
        schema = table.schema
        pq.write_table(table, folder / f"part-0-{number}.parquet")
    (folder / "_SUCCESS").touch()
    return folder


def test_export_of_lists_and_of_more_than_fits_in_memory_is_the_same(tmp_path: Path) -> None:
    rows = [
        {
            "query_id": q % 5,
            "document_id": [f"d{q}-{d}" for d in range(3)],
            "score": [0.5, None, 0.25],
            "logit": [q / 10, None, -q / 10],
        }
        for q in range(40)
    ]
    folder = make_scored(tmp_path / "scored", rows)
    texts = []
    for number, pairs_at_once in enumerate((10**6, 7)):
        target = tmp_path / f"{number}.trec"
        spec = ExportSpec(str(folder), "trec", str(target), pairs_at_once=pairs_at_once)
        result = export_scores(spec)
        assert (result.queries, result.candidates, result.unscored) == (5, 80, 40)
        texts.append(target.read_text().splitlines())
    assert sorted(texts[0]) == sorted(texts[1])
    assert texts[0][0].split()[:4] == ["0", "Q0", "d35-0", "1"]


def test_export_refuses_what_would_be_wrong(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    good = {"query_id": "q", "document_id": "d", "score": 0.5, "logit": 0.0}
    with pytest.raises(InputError, match="holds no scored parts"):
        export_scores(ExportSpec(str(tmp_path / "none"), "trec"))
    folder = make_scored(tmp_path / "blank", [{**good, "document_id": "two words"}, good])
    with pytest.raises(InputError, match="document id 'two words' is empty or has blanks"):
        export_scores(ExportSpec(str(folder), "trec", str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match=r"no column `qid`.*--query-id-column"):
        export_scores(ExportSpec(str(folder), "trec", query_id_column="qid"))
    (folder / "_SUCCESS").unlink()
    with pytest.raises(InputError, match="is not complete"):
        export_scores(ExportSpec(str(folder), "tevatron", str(tmp_path / "x")))
    assert export_scores(ExportSpec(str(folder), "tevatron", str(tmp_path / "x"), partial=True)).candidates == 2
    twice = make_scored(tmp_path / "twice", [good, good])
    assert export_scores(ExportSpec(str(twice), "trec", str(tmp_path / "y"))).doubled == 1


def test_export_command_ends_with_2_and_a_sentence(tmp_path: Path) -> None:
    found = run_command("export", tmp_path / "none", "--format", "trec")
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert run_command("export", "--format", "trec").returncode == 2


@pytest.mark.parametrize("line", ['"q"\t0\t"d"\t1', '"q"\t"d"\t1.0', 'q\t"d"\t2'])
def test_ids_in_quotes_are_no_ids_of_judgements(tmp_path: Path, line: str) -> None:
    assert parse_line("qrels", line) is None
    (tmp_path / "qrels.tsv").write_text(("q\td\t1\n" if line.count("\t") == 2 else "q\t0\td\t1\n") + f"{line}\n")
    with pytest.raises(InputError, match=r"line 2.*ids without quotes"):
        load_qrels(str(tmp_path / "qrels.tsv"), 1)
