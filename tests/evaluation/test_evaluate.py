"""Evaluation of scored outputs: measures against a few lines of Python, what does not count, and the table."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_in_process import score_here

from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.evaluate import evaluate
from rerank_actor.commands.export import export
from rerank_actor.errors import InputError, JobError
from rerank_actor.evaluation.evaluate import EvaluationSpec, evaluate_outputs
from rerank_actor.evaluation.intervals import compute_interval
from rerank_actor.evaluation.measures import compute_measures, parse_measure
from rerank_actor.job import ScoreJob
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.preflight import prepare_mining
from rerank_actor.mining.survey import survey_part

IDS = st.sampled_from([f"d{number}" for number in range(12)])
# What mteb made of some scores: see dev/make_mteb_cases.py.
MTEB = json.loads((Path(__file__).parent / "mteb_cases.json").read_text())
# What trec_eval's 32-bit scores tell apart, as float32 logits are.
NUMBERS = st.floats(-30, 30, width=32, allow_subnormal=False)


def expect(judged: dict[str, int], scores: dict[str, float], kind: str, depth: int) -> float:
    """Return a measure of one query by its definition."""
    ranking = sorted(scores, key=lambda name: (scores[name], name), reverse=True)
    gains = [max(0, judged.get(name, 0)) for name in ranking]
    hits = [gain > 0 for gain in gains]
    relevant = sum(value > 0 for value in judged.values())
    match kind:
        case "ndcg":
            ideal = sorted((value for value in judged.values() if value > 0), reverse=True)
            dcg, best = (
                sum(gain / math.log2(at + 2) for at, gain in enumerate(found[:depth])) for found in (gains, ideal)
            )
            return dcg / best
        case "map":
            return sum(sum(hits[: at + 1]) / (at + 1) for at, hit in enumerate(hits[:depth]) if hit) / relevant
        case "mrr":
            return next((1 / (at + 1) for at, hit in enumerate(hits[:depth]) if hit), 0.0)
        case "recall":
            return sum(hits[:depth]) / relevant
        case "precision":
            return sum(hits[:depth]) / depth
    return float(any(hits[:depth]))


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(IDS, st.integers(-1, 3), min_size=1).filter(lambda found: max(found.values()) > 0),
    st.dictionaries(IDS, NUMBERS, min_size=1),
    st.sampled_from(["ndcg", "map", "mrr", "recall", "precision", "success"]),
    st.integers(1, 12),
)
def test_measures_are_those_of_their_definitions(
    judged: dict[str, int], scores: dict[str, float], kind: str, depth: int
) -> None:
    found = compute_measures({"q": judged}, {"q": scores}, [parse_measure(f"{kind}@{depth}")], ["q"])
    assert found[0, 0] == pytest.approx(expect(judged, scores, kind, depth), abs=1e-9)


@pytest.mark.parametrize("name", ["ndcg@0", "recall", "ndcg@x", "hits@10", "", "ndcg@10@3"])
def test_measure_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(JobError, match="is no measure; take ndcg@K"):
        parse_measure(name)


def test_interval_holds_the_mean_and_narrows_with_queries() -> None:
    draw = np.random.default_rng(1)
    few, many = draw.random(20), draw.random(2000)
    low, high = compute_interval(few)
    assert low < few.mean() < high
    assert np.diff(compute_interval(many))[0] < (high - low) / 5
    assert np.diff(compute_interval(many))[0] == pytest.approx(2 * 1.96 * many.std() / math.sqrt(2000), rel=0.1)
    assert compute_interval(np.full(7, 0.25)) == (0.25, 0.25)


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """An output of ids: three queries with four candidates, of which one has no judgement, and one candidate is no text."""
    rows = [
        {"query_id": f"q{query}", "document_id": f"d{document}", "query": f"query {query}",
         "retrieval_score": 1.0 - document / 8,
         "document": f"what {document} says of {query}" if (query, document) != (2, 3) else None}
        for query in range(3)
        for document in range(4)
    ]  # fmt: skip
    (tmp_path / "input").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "input/pairs.parquet")
    job = ScoreJob(input=[str(tmp_path / "input")], output=str(tmp_path / "out"), engine="fake").normalized()
    score_here(job)
    (tmp_path / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td3\t1\nq0\td9\t1\nq1\td2\t0\nq2\td1\t1\nq9\td1\t1\n"
    )
    return tmp_path


def write_output(folder: Path, scores: dict[str, dict[str, float]]) -> None:
    """Write what a scored output of ids is, with these logits and candidates that all were retrieved alike."""
    rows = [(query, document, logit) for query, of in scores.items() for document, logit in of.items()]
    queries, documents, logits = zip(*rows, strict=True)
    numbers = {"score": np.linspace(0.9, 0.1, len(rows)), "logit": np.array(logits, np.float32)}
    table = pa.table({"query_id": queries, "document_id": documents, "retrieval_score": [0.5] * len(rows), **numbers})
    folder.mkdir()
    pq.write_table(table.append_column("error", pa.nulls(len(rows), pa.string())), folder / "part-0-00000.parquet")
    (folder / "_SUCCESS").touch()


def read_logits(output: Path) -> dict[str, dict[str, float]]:
    logits: dict[str, dict[str, float]] = {}
    for part in sorted(output.glob("part-*")):
        for row in pq.read_table(part).to_pylist():
            if row["logit"] is not None:
                logits.setdefault(row["query_id"], {})[row["document_id"]] = row["logit"]
    return logits


def run(*flags: Any) -> int:
    return call_command(lambda: evaluate([str(flag) for flag in flags]))


def test_evaluation_of_an_output(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--measures", "ndcg@3", "mrr@10", "--output", scored / "told"]
    assert run("--scored", scored / "out", "--qrels", scored / "qrels.tsv", *flags) == 0
    logits = read_logits(scored / "out")
    judged = {"q0": {"d0": 2, "d3": 1, "d9": 1}, "q2": {"d1": 1}, "q9": {"d1": 1}}
    expected = {query: expect(judged[query], logits[query], "ndcg", 3) for query in ("q0", "q2")} | {
        "q1": 0.0,
        "q9": 0.0,
    }
    record = json.loads((scored / "told/evaluation.json").read_text())
    reranked, retrieved, best = record["rankings"]
    assert {query: values["ndcg@3"] for query, values in reranked["by_query"].items()} == pytest.approx(expected)
    assert reranked["means"]["ndcg@3"] == pytest.approx(sum(expected.values()) / 4)
    in_order = {f"d{number}": -number for number in range(4)}
    assert retrieved["by_query"]["q0"]["ndcg@3"] == pytest.approx(expect(judged["q0"], in_order, "ndcg", 3))
    assert best["by_query"]["q0"]["ndcg@3"] == pytest.approx(
        expect(judged["q0"], {"d0": 2, "d3": 1, "d1": 0}, "ndcg", 3)
    )
    assert best["by_query"]["q2"]["mrr@10"] == 1
    assert set(retrieved["differences_from_the_first"]) == {"ndcg@3", "mrr@10"}
    printed = capsys.readouterr().out
    assert (scored / "told/table.md").read_text() == printed
    assert printed.startswith("4 queries\n")
    for line in (
        "1 candidates without a score",
        "1 judged queries without a candidate, which count with 0",
        "1 judged queries without a relevant document, which count with 0",
    ):
        assert f"- {scored / 'out'}: {line}\n" in printed


def test_pairs_that_scoring_added_for_judgements_are_no_candidates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, of, kind in (("queries", range(4), "q"), ("corpus", range(40), "d")):
        lines = [json.dumps({"_id": f"{kind}{number}", "text": f"{name} {number}"}) for number in of]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    found = [
        f"q{query} Q0 d{10 * query + place} {place} {10 - place} t\n" for query in range(4) for place in range(1, 6)
    ]
    (tmp_path / "run.trec").write_text("".join(found))
    judged = {query: 10 * query + (8 if query else 1) for query in range(4)}  # one of four is among the candidates
    (tmp_path / "qrels").write_text("".join(f"q{query} 0 d{document} 1\n" for query, document in judged.items()))
    texts = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("queries", "corpus")}
    exported = []
    for place, more in enumerate([{}, {"qrels": str(tmp_path / "qrels")}]):
        output = tmp_path / f"out{place}"
        job = ScoreJob(input=[str(tmp_path / "run.trec")], output=str(output), engine="fake", **texts, **more)
        score_here(job.normalized())
        told = tmp_path / f"told{place}"
        assert run("--scored", output, "--qrels", tmp_path / "qrels", "--measures", "recall@100", "--output", told) == 0
        capsys.readouterr()
        assert call_command(lambda output=output: export([str(output), "--format", "trec"])) == 0
        exported.append(capsys.readouterr())
    plain, added = (json.loads((tmp_path / f"told{place}/evaluation.json").read_text()) for place in range(2))
    assert [row["means"] for row in added["rankings"]] == [row["means"] for row in plain["rankings"]]
    assert len(plain["rankings"]) == 3 and plain["rankings"][0]["means"] == {"recall@100": 0.25}
    said = "candidates that --qrels of the scoring job added, which were not retrieved"
    assert added["left_out"][str(tmp_path / "out1")][said] == 3
    assert exported[0].out == exported[1].out and len(exported[0].out.splitlines()) == 20
    assert "20 candidates; 3 that --qrels of the scoring job added" in exported[1].err


def test_two_outputs_are_compared_query_by_query(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--qrels", scored / "qrels.tsv", "--measures", "ndcg@10", "--output", scored / "told"]
    assert run("--scored", scored / "out", scored / "out", *flags) == 0
    record = json.loads((scored / "told/evaluation.json").read_text())
    assert len(record["rankings"]) == 4, "orders of the same candidates stand there once"
    again = next(ranking for ranking in record["rankings"][1:] if "order" not in ranking["name"])
    assert again["differences_from_the_first"] == {"ndcg@10": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("qrels", "said"),
    [
        ("q7\t0\td1\t1\n", "none of its queries is among the 1 judged ones"),
        (
            "query-id\tcorpus-id\tscore\nq0\td1\t0.5\n",
            "relevance 0.5 of document 'd1' for query 'q0' is no whole number",
        ),
        ("q0 0 d1 1\nq0 0 d1 2\n", "document 'd1' is judged twice for query 'q0', with 1 and 2"),
        ("q0 0 d1 0\n", "none of 1 judgements is of a relevant document"),
        ("q0 0 x1 1\nq1 0 x2 1\n", "none of its candidates is among the 2 judged documents"),
    ],
)
def test_judgements_that_do_not_fit(scored: Path, qrels: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (scored / "other.tsv").write_text(qrels)
    assert run("--scored", scored / "out", "--qrels", scored / "other.tsv") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ids", "judged", "said"),
    [
        (["7.0", "8.0"], "7\td0", "has the query id '7.0' where --qrels has '7'"),
        (["7", "8"], "7.0\td0", "has the query id '7' where --qrels has '7.0'"),
    ],
)
def test_ids_that_are_written_otherwise_do_not_miss_each_other(
    tmp_path: Path, ids: list[str], judged: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query_id": one, "document_id": "d0", "query": "q", "document": "x"} for one in ids]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    score_here(
        ScoreJob(input=[str(tmp_path / "pairs.parquet")], output=str(tmp_path / "out"), engine="fake").normalized()
    )
    (tmp_path / "q.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\t1\n")
    assert run("--scored", tmp_path / "out", "--qrels", tmp_path / "q.tsv") == 2
    assert said in capsys.readouterr().err
    ids_of = {"query_id_column": "query_id", "document_id_column": "document_id"}
    job = MineJob(scored=[str(tmp_path / "out")], output=str(tmp_path / "m"), qrels=str(tmp_path / "q.tsv"), **ids_of)
    prepared = prepare_mining(job.normalized())
    with pytest.raises(InputError, match=re.escape(said)):
        survey_part(0, prepared.scored.parts[0], prepared.scored.columns, prepared.qrels)


def test_reciprocal_rank_at_its_depth_counts_at_any_depth() -> None:
    names = [f"d{number:03d}" for number in range(200)]
    scores = {name: -float(place) for place, name in enumerate(names)}
    for depth in range(1, 200):
        measures = [parse_measure(f"mrr@{depth}")]
        last, behind = (
            compute_measures({"q": {name: 1}}, {"q": scores}, measures, ["q"])[0, 0]
            for name in names[depth - 1 : depth + 1]
        )
        assert (last, behind) == (pytest.approx(1 / depth), 0)


def test_order_of_the_retrieval_is_known_for_all_candidates_or_not_at_all(
    scored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = next((scored / "out").glob("part-*"))
    table = pq.read_table(part)
    place = table.schema.get_field_index("retrieval_score")
    some = pa.array([None, *table["retrieval_score"].to_pylist()[1:]])
    pq.write_table(table.set_column(place, "retrieval_score", some).append_column("mine", some), part)
    flags = ["--scored", scored / "out", "--qrels", scored / "qrels.tsv", "--partial"]
    assert run(*flags) == 0
    told = capsys.readouterr().out
    assert "candidates' own order" not in told
    assert "own order is not known: not every candidate has a number in `retrieval_score`" in told
    pq.write_table(table.append_column("rank", pa.array([1, 2, 3, 4] * 3)), part)
    assert run(*flags, "--retrieval-column", "rank") == 2
    assert "so that it holds ranks" in capsys.readouterr().err
    assert run(*flags, "--retrieval-column", "query") == 2
    assert "column `query` is string, not numbers" in capsys.readouterr().err
    pq.write_table(table.append_column("mine", some), part)
    for name in ("mine", "nothing"):
        assert run(*flags, "--retrieval-column", name) == 2
        assert f"not every candidate has a number in `{name}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "are_ranks"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 4]], True),
        ([[1, 2, None, 4], [1, 2, 3, 4]], True),
        ([[None, 2, 3, 4], [1, 2, 3, 4]], True),
        ([[0, 1, 2, 3], [0, 1, 2, None]], True),
        ([[3.0, 1.0, 2.0], [4.0, None, 3.0, 1.0]], True),
        ([[9, 8, 7, 6], [9, 8, 7, None]], False),  # scores that were made of ranks
        ([[7, 2, 1, 0], [9, 2, 1, 0]], False),  # counts
        ([[2, 2, 1, 0], [1, 1, 0, 0]], False),
        ([[1.5, 2, 3, 4], [1, 2, 3, 4]], False),
        ([[-1, -2, -3, -4], [-1, -2, -3, None]], False),
    ],
)
@pytest.mark.parametrize("has_own", [True, False])
def test_ranks_are_no_scores_where_some_candidates_lack(
    tmp_path: Path, values: list[list[float | None]], are_ranks: bool, has_own: bool
) -> None:
    judged = {f"q{at}": {"d0": 1, "d1": 0} for at in range(len(values))}
    write_output(
        tmp_path / "out",
        {query: {f"d{at}": 1.0 for at in range(len(of))} for query, of in zip(judged, values, strict=True)},
    )
    part = next((tmp_path / "out").glob("part-*"))
    table = pq.read_table(part)
    flat = pa.array([value for of in values for value in of], pa.float64())
    lacks = flat.is_null()
    if has_own:  # the candidate that lacks is the query itself, else it has no score
        ids = pc.if_else(lacks, table["query_id"], table["document_id"])
        table = table.set_column(1, "document_id", ids)
    else:
        for name in ("score", "logit"):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pc.if_else(lacks, pa.scalar(None, table[name].type), table[name]))
    ranks = [at + 1 if value is None else value for of in values for at, value in enumerate(of)]
    pq.write_table(table.set_column(2, "retrieval_score", pa.array(ranks, pa.float64())), part)
    spec = EvaluationSpec(
        (str(tmp_path / "out"),), (parse_measure("mrr"),), "query_id", "document_id",
        ignore_identical_ids=has_own, partial=True,
    )  # fmt: skip
    result = evaluate_outputs(spec, judged)
    said = " ".join(name for name, count in result.left_out[spec.scored[0]].items() if count)
    assert ("retrieved" not in [row.order for row in result.rows]) is are_ranks
    assert ("so that it holds ranks" in said) is are_ranks


@pytest.mark.parametrize("explode", [True, False])
def test_own_order_of_candidates_in_lists_and_structs(
    tmp_path: Path, explode: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [{"id": f"d{place}", "text": f"text {place}", "bm25": 9.5 - place} for place in range(3)]
    rows = [{"query_id": "1", "query": "q", "document": found, "retrieval_score": [1, 2, 3]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    given = {"input": [str(tmp_path / "in.parquet")], "output": str(tmp_path / "out"), "explode": explode}
    score_here(ScoreJob(**given, engine="fake").normalized())
    (tmp_path / "q").write_text("1 0 d0 1\n")
    flags = ["--scored", tmp_path / "out", "--qrels", tmp_path / "q", "--measures", "mrr"]
    assert run(*flags) == 0
    told = capsys.readouterr().out
    assert "candidates' own order" not in told
    assert f"is not known: column `retrieval_score` {'is list' if explode else 'counts the candidates'}" in told
    assert run(*flags, "--retrieval-column", "document.bm25") == 0
    assert "| candidates' own order | 100.00" in capsys.readouterr().out


def test_output_that_is_not_complete_is_refused(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scored / "out/_SUCCESS").unlink()
    flags = ["--scored", scored / "out", "--qrels", scored / "qrels.tsv"]
    assert run(*flags) == 2
    assert "is not complete" in capsys.readouterr().err
    assert run(*flags, "--partial") == 0


def test_candidates_with_the_id_of_their_query(scored: Path) -> None:
    parts = list((scored / "out").glob("part-*"))
    assert len(parts) == 1
    table = pq.read_table(parts[0])
    alike = pa.array([name.replace("d", "q") if name == "d0" else name for name in table["document_id"].to_pylist()])
    pq.write_table(table.set_column(table.schema.get_field_index("document_id"), "document_id", alike), parts[0])
    (scored / "other.tsv").write_text("q0 0 q0 1\nq0 0 d1 1\n")
    flags = ["--scored", scored / "out", "--qrels", scored / "other.tsv", "--output", scored / "told", "--partial"]
    assert run(*flags, "--ignore-identical-ids", "--measures", "recall@10") == 0
    record = json.loads((scored / "told/evaluation.json").read_text())
    assert record["rankings"][0]["by_query"]["q0"]["recall@10"] == 0.5
    assert record["left_out"][str(scored / "out")]["candidates with the id of their query"] == 1


@pytest.mark.parametrize("case", MTEB["cases"], ids=lambda case: str(case["name"]))
def test_measures_are_what_mteb_makes_of_the_same_scores(case: dict[str, Any], tmp_path: Path) -> None:
    write_output(tmp_path / "out", case["scores"])
    names = {"ndcg@10": "ndcg_cut_10", "map@100": "map_cut_100", "recall@5": "recall_5"}
    means = {"ndcg@10": "ndcg_at_10", "ndcg@1": "ndcg_at_1", "map@100": "map_at_100", "mrr@10": "mrr_at_10",
             "recall@5": "recall_at_5", "precision@5": "precision_at_5", "success@3": "hit_rate_at_3"}  # fmt: skip
    means |= {"p-mrr": "p-MRR"} if case["changed"] else {}
    spec = EvaluationSpec(
        (str(tmp_path / "out"),),
        tuple(map(parse_measure, means)),
        "query_id",
        "document_id",
        ignore_identical_ids=case["ignore_identical_ids"],
        partial=True,
    )
    told = EvaluationSpec(**{**vars(spec), "changed": case["changed"] or None})
    for one in (spec, told):  # documents that change are those of the judgements, or those that the task says
        result = evaluate_outputs(one, case["qrels"])
        row = result.rows[0]
        for name, theirs in names.items():
            values = dict(zip(result.queries, row.values[:, list(means).index(name)], strict=True))
            assert values == pytest.approx({query: of[theirs] for query, of in case["by_query"].items()}, abs=1e-9)
        for name, theirs in means.items():
            exact = name in ("mrr@10", "p-mrr")  # the others are rounded to five digits
            value = row.means[list(means).index(name)]
            assert value == pytest.approx(case["means"][theirs], abs=1e-9 if exact else 5.1e-6)


def test_p_mrr_is_how_far_documents_go_whose_relevance_the_instruction_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = {"1-og": "abcd", "1-changed": "bcda", "2-og": "abcd", "2-changed": "bacd", "3-og": "ab", "4-og": "ab"}
    scores = {query: {one: float(-rank) for rank, one in enumerate(order)} for query, order in orders.items()}
    write_output(tmp_path / "out", scores)
    judged = [
        ("1-og", "a 1, b 1, d 0, z 1"), ("1-changed", "b 1, d 1"),  # of a, d and z
        ("2-og", "a 2, b 1"), ("2-changed", "a 2, b 1, c 0"),  # of none
        ("3-og", "a 1"), ("3-changed", "b 1"),  # whose second ranking is not there
        ("4-og", "a 1, b 1"), ("4-changed", "a 0, b 0"),  # of which nothing is relevant, and no ranking there
    ]  # fmt: skip
    lines = [f"{query} 0 {one}" for query, found in judged for one in found.split(", ")]
    (tmp_path / "qrels").write_text("\n".join(lines))
    flags = ["--scored", tmp_path / "out", "--qrels", tmp_path / "qrels", "--output", tmp_path / "told"]
    flags += ["--query-id-column", "query_id", "--document-id-column", "document_id"]
    assert run(*flags, "--measures", "ndcg@10", "p-mrr") == 0
    reranked, retrieved, best = json.loads((tmp_path / "told/evaluation.json").read_text())["rankings"]
    values = {query: found["p-mrr"] for query, found in reranked["by_query"].items() if "p-mrr" in found}
    assert values == pytest.approx(
        {"1-changed": ((1 - 1 / 4) + (3 / 4 - 1) + 0) / 3, "3-changed": 0.0, "4-changed": 0.0}
    )
    assert reranked["means"]["p-mrr"] == pytest.approx(1 / 12 * 2 / 3)
    assert retrieved["means"]["p-mrr"] == 0
    assert "p-mrr" not in best["means"]
    printed = capsys.readouterr().out
    assert "| 5.56 (" in printed
    assert "1 judged queries without a relevant document, which count with 0" in printed
    (tmp_path / "qrels").write_text("1-og 0 a 1\n")
    assert run(*flags, "--measures", "p-mrr") == 2
    assert "no query is judged as ID-og and as ID-changed" in capsys.readouterr().err
