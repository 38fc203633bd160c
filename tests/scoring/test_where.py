"""Rows that are scored and rows that are passed through: what an expression means, and what becomes of the others."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mining_in_process import mine_in_process
from scoring_in_process import read_checked, score_here

from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.export import export
from rerank_actor.commands.plan import plan
from rerank_actor.commands.verify import verify
from rerank_actor.errors import JobError
from rerank_actor.inputs.where.expression import parse_where
from rerank_actor.inputs.where.rows import select_rows
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.preflight import prepare_mining
from rerank_actor.outputs.part import check_part
from rerank_actor.outputs.scored import open_scored
from rerank_actor.scoring.preflight import prepare_job

COLUMNS: dict[str, Any] = {
    "score": pa.array([0.1, 0.5, 0.9, None], pa.float32()),
    "lang": ["de", "en", "it's", None],
    "n": [1, 2, 3, 4],
    "text": ["1", "2", "x", None],
    "a b": [True, False, None, True],
    "nothing": pa.nulls(4),
    "price": pa.array([Decimal("1.00"), Decimal("1.01"), Decimal("2.50"), None], pa.decimal128(5, 2)),
    "meta": [{"depth": 1}, {"depth": 2}, None, {"depth": None}],
    "day": pa.array([1, 2, 3, 4], pa.timestamp("ns")),
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("score > 0.2 and score < 0.8", "0100"),
        ("0.2 < score <= 0.95 OR n = 4", "0111"),
        ("not score > 0.2", "1000"),
        ("score is null or lang <> 'de'", "0111"),
        ("score IS NOT NULL", "1110"),
        ("lang in ('de', 'en')", "1100"),
        ("lang not in ('de')", "0110"),
        ('lang == "it\'s"', "0010"),
        ("n / 2 > 1 and -n < -2", "0011"),
        ("n * 2 - 1 == 3", "0100"),
        ("float(text) >= 1", "1100"),
        ('col("a b") == true', "1001"),
        ("nothing > 3", "0000"),
        ("nothing is null", "1111"),
        ("score == 0.9 or score in (0.1, 0.7)", "1010"),
        ("price > 1 and price <= 2.5", "0110"),
        ("meta.depth == 2", "0100"),
        ('col("a b") in (true, false)', "1101"),
    ],
)
def test_expression_holds_for_rows_as_in_sql(expression: str, expected: str) -> None:
    table = pa.table(COLUMNS)
    where = parse_where(expression)
    assert "".join(str(int(one)) for one in select_rows(table, where)) == expected


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("score >", "is no expression"),
        ("__import__('os').system('true')", "is not taken"),
        ("score == null", "`is null`"),
        ("1 == 1", "about no column"),
        ("lang == 'it''s'", "stand side by side"),
        ("score if n else n", "is not taken"),
        ("((((", "is no expression"),
        ("not " * 2400 + "n", "is no expression|is not taken"),
        ("skore > 1", r"no column `skore`.*--where \(did you mean `?score"),
        ("lang < 3", "float\\(NAME\\)"),
        ("score + 1", "no truth value"),
        ("lang in ('a', 1)", "give values of one kind"),
        ("lang in (b'a',)", "give values of one kind"),
        ("n > 1000000000000000000000", "a value that cannot be compared"),
        ("n in (1, 1000000000000000000000)", "a value that cannot be compared"),
        ("day > '2024-01-01'", "compared with other columns of them alone"),
    ],
)
def test_expression_that_is_none_is_refused_before_anything_starts(
    expression: str, problem: str, tmp_path: Path
) -> None:
    columns = {**COLUMNS, "query": ["q"] * 4, "document": ["d"] * 4}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    with pytest.raises(JobError, match=problem):
        prepare_job(make_job(tmp_path, rename_columns="score=small", where=expression))


def make_job(folder: Path, **values: Any) -> ScoreJob:
    job = {"input": [str(folder / "in.parquet")], "output": str(folder / "out"), "engine": "fake", **values}
    return check_job(ScoreJob, job).normalized()


def write_rows(folder: Path, **columns: Any) -> None:
    count = len(next(iter(columns.values())))
    rows = {"query": [f"q{at}" for at in range(count)], "document": [f"d{at}" for at in range(count)]}
    pq.write_table(pa.table({**rows, **columns}), folder / "in.parquet")


def test_second_model_scores_what_the_first_left_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path, document=[*(f"d{at}" for at in range(39)), None], query_id=list(range(40)))
    first = make_job(tmp_path, instruction="small")
    score_here(first)
    (tmp_path / "second").mkdir()
    second = make_job(
        tmp_path / "second",
        input=[first.output],
        where="score > 0.2 and score < 0.8",
        rename_columns="score=small_score",
        drop_columns="logit,num_tokens,truncated_tokens,error",
    )
    totals = score_here(second).totals
    small, large = read_checked(first), read_checked(second)
    open_rows = [row["score"] is not None and 0.2 < row["score"] < 0.8 for row in small]
    assert 0 < sum(open_rows) < 39 and [row["selected"] for row in large] == open_rows
    for row, before, is_open in zip(large, small, open_rows, strict=True):
        assert row["small_score"] == before["score"] and row["error"] is None and row["num_tokens"] >= 0
        assert (row["score"] is None, row["logit"] is None) == (not is_open, not is_open)
    assert (totals.passed, totals.scored, totals.failed_pairs) == (40 - sum(open_rows), sum(open_rows), 0)
    capsys.readouterr()
    assert call_command(lambda: verify([second.output, "--rescore", "1"])) in (0, 1)
    said = capsys.readouterr().out
    assert (
        f"{40 - sum(open_rows)} rows passed through" in said
        and f"scored again: {sum(open_rows)} of {sum(open_rows)} rows" in said
    )
    assert "equal within the noise" in said


@pytest.mark.parametrize("dropped", ["", "s", "s,t", "price", "day,again", "meta"])
@pytest.mark.parametrize("expression", ["s in (0.1, 0.7)", "s == t", "price > 1.2", "day == again", "meta.depth > 1"])
def test_rows_are_the_same_whatever_columns_are_kept(expression: str, dropped: str, tmp_path: Path) -> None:
    write_rows(
        tmp_path,
        s=pa.array([0.1, 0.7, 0.8], pa.float32()),
        t=pa.array([0.1, 0.7, 0.9], pa.float64()),
        price=pa.array([Decimal("1.20"), Decimal("1.21"), None], pa.decimal128(3, 2)),
        day=pa.array([10**18 + 1, 10**18 + 2, 10**18 + 3], pa.timestamp("ns")),
        again=pa.array([10**18 + 1, 10**18, 10**18 + 3], pa.timestamp("ns")),
        meta=[{"depth": 1}, {"depth": 2}, {"depth": 3}],
    )
    expected = {"s": [1, 1, 0], "p": [0, 1, 0], "d": [1, 0, 1], "m": [0, 1, 1]}[expression[0]]
    for keep in ({"drop_columns": dropped} if dropped else {}, {"keep_columns": "query,document"}):
        job = make_job(tmp_path, where=expression, overwrite=True, **keep)
        score_here(job)
        rows = read_checked(job)
        assert [row["selected"] for row in rows] == list(map(bool, expected))
        assert not {*dropped.split(",")} & {*rows[0]}


def test_rows_are_not_taken_apart_beside_an_expression(tmp_path: Path) -> None:
    """Those that are passed through would lose their candidates."""
    with pytest.raises(JobError, match="--explode gives each document a row"):
        make_job(tmp_path, where="hard", explode=True)


def test_lists_of_rows_that_are_passed_through_stay_whole(tmp_path: Path) -> None:
    write_rows(tmp_path, document=[["a", "b"], ["c"], [], ["d", None]], hard=[True, False, True, True])
    job = make_job(tmp_path, where="hard", keep_columns="query,document")
    score_here(job)
    rows = read_checked(job)
    passed = [row for row in rows if not row["selected"]]
    assert [row["query"] for row in passed] == ["q1"] and passed[0]["score"] is None and passed[0]["error"] is None
    assert sum(row["selected"] for row in rows) == 3


@pytest.mark.parametrize("dropped", ["", "s"])
@pytest.mark.parametrize(
    "row", [{"document": ["b", "c"], "label": [1, 0]}, {"pos": ["b"], "neg": ["c"]}, {"positive": "b", "negative": "c"}]
)
def test_lists_of_rows_that_are_passed_through_are_mined(tmp_path: Path, row: dict[str, Any], dropped: str) -> None:
    rows = [{"query": f"q{n}", **row, "s": n % 2} for n in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = make_job(tmp_path, input=[str(tmp_path / "in.jsonl")], where="s > 0", drop_columns=dropped)
    score_here(job)
    given = {"scored": [job.output], "output": str(tmp_path / "mined"), "false_negatives": "report"}
    mined, _, _ = mine_in_process(check_job(MineJob, {**given, "label_column": "label"}).normalized())
    assert [(one["anchor"], one["positive"], one["negative"]) for one in mined] == [("q1", "b", "c"), ("q3", "b", "c")]


def test_row_that_hides_its_score_or_its_error_is_found(tmp_path: Path) -> None:
    write_rows(tmp_path, n=list(range(8)))
    job = make_job(tmp_path, where="n > 3")
    score_here(job)
    (part,), (unit,) = open_scored(job.output).parts, open_scored(job.output).units
    table = pq.read_table(part.uri)
    turned = table.set_column(table.column_names.index("selected"), "selected", pa.array([True] * 8))
    pq.write_table(turned, part.uri)
    problem = check_part(unit, Path(part.uri).read_bytes(), prepare_job(job).fingerprint).problem
    assert problem is not None and "passed through" in problem


def test_plan_says_what_scoring_all_would_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path, n=list(range(100)))
    flags = ["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out"), "--engine", "fake"]
    flags += ["--where", "n < 25", "--tokens-per-second", "100", "--gpu-price", "2"]
    assert call_command(lambda: plan([*flags, "--json"])) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tokens_of_all"] == pytest.approx(4 * record["tokens"], rel=0.05)
    assert call_command(lambda: plan(flags)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "holds for 25.0 % of 100 sampled rows" in said and "4.0 times as many" in said


def test_export_ranks_what_was_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = {"query_id": [0] * 4 + [1] * 4, "document_id": list(range(8))}
    write_rows(tmp_path, query=["x"] * 4 + ["y"] * 4, n=list(range(8)), **ids)
    job = make_job(tmp_path, where="n != 0")
    score_here(job)
    target = tmp_path / "run.trec"
    flags = [job.output, "--format", "trec", "--output", str(target), "--allow-incomplete"]
    assert call_command(lambda: export(flags)) == 0
    assert len(target.read_text().splitlines()) == 7 and "left out 1 without a score" in capsys.readouterr().err


def test_negatives_are_not_drawn_at_random_beside_candidates_without_a_score(tmp_path: Path) -> None:
    """A cascade passes through the best candidates of a query, which would be drawn as if they were none of its."""
    write_rows(tmp_path, label=[1, 0, 0, 1], n=[1, 2, 3, 4])
    job = make_job(tmp_path, where="n < 4")
    score_here(job)
    mining = {"scored": [job.output], "output": str(tmp_path / "mined"), "label_column": "label"}
    with pytest.raises(JobError, match=r"candidates that --where passed through, .*leave out --random-negatives"):
        prepare_mining(check_job(MineJob, {**mining, "random_negatives": 1}).normalized())
    assert prepare_mining(check_job(MineJob, mining).normalized()).scored.parts
