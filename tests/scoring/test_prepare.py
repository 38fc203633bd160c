"""Units: from a shard's rows to a part, every row in its place with a score or a reason."""

import dataclasses
import datetime
import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as dataset
import pyarrow.parquet as pq
import pytest

from rerank_actor.engines.base import compute_score
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.template import QWEN3_RERANKER
from rerank_actor.inputs.pairs import TextSpec
from rerank_actor.inputs.plan import Plan, make_plan
from rerank_actor.inputs.rows import Unit
from rerank_actor.inputs.shards import scan_shard
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.job import load_job
from rerank_actor.outputs.part import check_part, read_part_metadata
from rerank_actor.scoring.prepare import PrepareSpec, prepare_unit
from rerank_actor.scoring.unit import UnitWork
from rerank_actor.scoring.write import build_part, write_part
from rerank_actor.storage import StoredObject

Write = Callable[..., Path]
Prepare = Callable[..., UnitWork]
ADDED = ["score", "logit", "num_tokens", "truncated_tokens", "error"]


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    return load_tokenizer_json(load_reranker_model("bytes"))


@pytest.fixture
def prepare(tokenizer_json: str) -> Prepare:
    """Return a function that prepares all rows of a shard as one unit, sent once between processes."""

    def prepare_all(path: Path, max_length: int = 8192, unit: Unit | None = None, **options: Any) -> UnitWork:
        layout = scan_shard(StoredObject(str(path), path.stat().st_size, ""), InputSpec(unit_rows=10**6))
        unit = unit or Unit(
            "0123456789ab-00000", str(path), path.stat().st_size, "", 0, layout.num_rows, layout.blocks[0][2]
        )
        spec: dict[str, Any] = {
            "encoder": {"template": QWEN3_RERANKER, "instruction": "i", "max_length": max_length},
            "json_types": {} if path.suffix == ".parquet" else layout.columns,
            "max_attempts": 1,
            "environment": {},
        }
        names = {field.name for field in dataclasses.fields(InputSpec)} & options.keys()
        spec["input"] = InputSpec(**{name: options.pop(name) for name in names})
        return send(prepare_unit(unit, PrepareSpec(**{**spec, **options}), tokenizer_json))

    return prepare_all


def send(work: UnitWork) -> UnitWork:
    return UnitWork.from_table(work.to_table())


def fill(work: UnitWork, logits: list[float] | None = None) -> UnitWork:
    """Score the pairs that have no error, the first one 0, the next one 1 and so on."""
    found = np.full(len(work.prompts), np.nan, np.float32)
    positions = work.prompts.scorable
    found[positions] = positions if logits is None else logits
    return send(work.with_logits(found, {"engine": "fake"}))


def finish(work: UnitWork, folder: Path) -> pa.Table:
    """Write the part of a unit and return what a reader of the file finds."""
    write_part(fill(work), str(folder), {}, None)
    return pq.read_table(folder / work.unit.part_name)


def test_part_of_good_and_bad_rows_keeps_every_row_in_place(
    write_shard: Write, prepare: Prepare, tmp_path: Path
) -> None:
    queries = ["a", None, "b", "q" * 400, "c", ""]
    documents = ["d", "d", None, "d", "", "d" * 400]
    pairs = enumerate(zip(queries, documents, strict=True))
    path = write_shard([{"query": query, "document": document, "id": number} for number, (query, document) in pairs])
    table = finish(prepare(path, max_length=500), tmp_path)
    rows = table.to_pylist()
    assert table.column_names == ["query", "document", "id", *ADDED]
    assert [str(table.schema.field(name).type) for name in ADDED] == ["float", "float", "int32", "int32", "string"]
    assert [(row["query"], row["document"], row["id"]) for row in rows] == list(
        zip(queries, documents, range(6), strict=True)
    )
    reasons = [
        None,
        "query is null",
        "document is null",
        "query leaves no room for the document within max_length",
        None,
        None,
    ]
    assert [row["error"] for row in rows] == reasons
    for number, row in enumerate(rows):
        assert (row["score"] is None) == (row["logit"] is None) == (row["error"] is not None)
        assert row["logit"] in (None, number)
        assert (row["num_tokens"] > 0) == (row["error"] is None)
    assert [row["truncated_tokens"] > 0 for row in rows] == [False] * 5 + [True]
    assert rows[5]["num_tokens"] == 500


def test_part_totals_count_rows_pairs_and_errors(write_shard: Write, prepare: Prepare) -> None:
    path = write_shard([{"query": q, "document": "d" * 400} for q in ("a", None, "b", "c", None)])
    table, totals = build_part(fill(prepare(path, max_length=500), [1.0, float("nan"), 2.0]))
    errors = {"engine returned a logit that is not finite": 1, "query is null": 2}
    assert totals == {
        "rows": 5,
        "pairs": 5,
        "scored": 2,
        "truncated": 2,
        "tokens": 1000,
        "forward_passes": 2,
        "errors": errors,
    }
    assert table.column("error").to_pylist()[2] == "engine returned a logit that is not finite"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_part_of_a_logit_that_is_not_finite_is_an_error_row(write_shard: Write, prepare: Prepare, bad: float) -> None:
    path = write_shard([{"query": "a", "document": "d"}] * 3)
    rows = build_part(fill(prepare(path), [1.0, bad, -1.0]))[0].to_pylist()
    assert [row["logit"] for row in rows] == [1.0, None, -1.0]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["score"] is None


def test_score_of_any_logit_is_its_sigmoid_in_float32() -> None:
    logits = np.array([0, 1, -1, 20, -20, 88.7, -88.7, 104, -104, 1e4, -1e4, 3e38, -3e38, 1e-30], np.float32)
    scores = compute_score(logits)
    wide = np.clip(logits.astype(np.float64), -700, 700)
    assert scores.dtype == np.float32
    assert np.array_equal(
        scores, np.where(wide >= 0, 1 / (1 + np.exp(-wide)), np.exp(wide) / (1 + np.exp(wide))).astype("f4")
    )
    assert scores.min() >= 0 and scores.max() <= 1 and np.isfinite(scores).all()
    assert (scores[9], scores[10]) == (1.0, 0.0)


LIST_KINDS = [pa.list_(pa.string()), pa.large_list(pa.large_string())]


@pytest.mark.parametrize("kind", LIST_KINDS, ids=str)
def test_part_of_document_lists_has_lists_of_the_same_length(
    write_shard: Write, prepare: Prepare, tmp_path: Path, kind: pa.DataType
) -> None:
    documents = [["a", "b"], [], None, ["c", None, ""], ["d"]]
    path = write_shard(pa.table({"query": ["p", "q", "r", "s", None], "document": pa.array(documents, kind)}))
    rows = finish(prepare(path), tmp_path).to_pylist()
    assert [row["document"] for row in rows] == documents
    assert [row["logit"] for row in rows] == [[0, 1], [], None, [2, None, 4], [None]]
    for row in rows:
        if row["document"] is None:
            assert row["score"] is None and row["error"] == ["document list is null"]
            continue
        assert {len(row[name]) for name in ADDED} == {len(row["document"])}
        assert [score is None for score in row["score"]] == [error is not None for error in row["error"]]
    assert rows[3]["error"] == [None, "document is null", None]
    assert rows[4]["error"] == ["query is null"]


def test_part_of_lists_without_a_single_pair_has_empty_lists(
    write_shard: Write, prepare: Prepare, tmp_path: Path
) -> None:
    path = write_shard(pa.table({"query": ["p", "q"], "document": pa.array([[], None], pa.list_(pa.string()))}))
    table = finish(prepare(path), tmp_path)
    assert table.column("score").to_pylist() == [[], None]
    assert table.column("score").type.value_type == pa.float32()


def test_instruction_column_with_nulls_falls_to_the_job_and_follows_lists(write_shard: Write, prepare: Prepare) -> None:
    rows = [{"query": "q", "document": ["d", "e"], "task": task} for task in ("longer task", None)]
    prompts = prepare(write_shard(rows), texts=TextSpec(instruction_column="task")).prompts
    assert (prompts.num_tokens[:2] - prompts.num_tokens[2:]).tolist() == [len("longer task") - len("i")] * 2


def test_kept_columns_of_odd_types_pass_through_unchanged(write_shard: Write, prepare: Prepare, tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 2, 29, 12, 30, 1, 123456)
    table = pa.table(
        {
            "query": ["q", "r", "s"],
            "document": ["d", "e", "f"],
            "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": []}]),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
            "zoned": pa.array([moment, None, moment], pa.timestamp("us", tz="Europe/Berlin")),
            "nanos": pa.array([1, None, -1], pa.timestamp("ns")),
            "decimal": pa.array([decimal.Decimal("1.20"), None, decimal.Decimal("-9.99")], pa.decimal128(20, 2)),
            "lists": pa.array([[[1], []], None, [None]], pa.list_(pa.list_(pa.int8()))),
            "dictionary": pa.array(["x", None, "x"]).dictionary_encode(),
            "binary": pa.array([b"\xff\x00", None, b""]),
            "date": pa.array([datetime.date(1, 1, 1), None, datetime.date(9999, 12, 31)]),
            "time": pa.array([1, None, 2], pa.time64("us")),
            "duration": pa.array([1, None, 2], pa.duration("ms")),
            "half": pa.array(np.array([0.5, 1, 2], np.float16)),
            "nothing": pa.nulls(3),
            "a.dot": [1, 2, 3],
        }
    )
    path = write_shard(table)
    found = finish(prepare(path), tmp_path)
    assert found.select(table.column_names).replace_schema_metadata(None).equals(pq.read_table(path))
    assert found.column_names[-5:] == ADDED


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
@pytest.mark.parametrize("keep", [[], ["id"], ["id", "query"]])
def test_kept_columns_are_those_named_and_no_others(
    write_shard: Write, prepare: Prepare, tmp_path: Path, name: str, keep: list[str]
) -> None:
    path = write_shard([{"query": "q", "document": "d", "id": i} for i in range(3)])
    if name.endswith("jsonl"):
        path = path.with_name(name)
        path.write_text('{"query": "q", "document": "d", "id": 0}\n' * 3)
    table = finish(prepare(path, keep=keep), tmp_path)
    assert table.column_names == [*keep, *ADDED]
    assert table.column("logit").to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("last", ['{"query": "q", "document": "d", "later": 2}', "{}", '{"query": 7}'])
def test_json_rows_of_other_keys_stay_in_place_in_a_readable_part(prepare: Prepare, tmp_path: Path, last: str) -> None:
    lines = ['{"query": "q", "document": "d", "meta": {}, "more": {"a": {}}}'] * 1500 + [last]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    table = finish(prepare(path), tmp_path)
    assert table.num_rows == 1501
    assert len(set(table.column_names)) == len(table.column_names)
    assert set(ADDED) < set(table.column_names)
    assert table.column("score").to_pylist()[:1500] == compute_score(np.arange(1500, dtype=np.float32)).tolist()


@pytest.mark.parametrize(
    ("first", "later"), [(None, "x"), (1.5, 2**60), (1, "x"), (1, 1.5), ("x", 1), ([1], ["x"]), ({"a": 1}, {"b": 1})]
)
def test_json_values_of_another_type_later_give_parts_of_one_schema(
    prepare: Prepare, tmp_path: Path, first: Any, later: Any
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"query": "q", "document": "d", "value": value}) for value in [first] * 1000 + [later] * 9]
    path.write_text("\n".join(lines))
    job = load_job(None, {"input": str(path), "output": str(tmp_path / "out"), "unit_rows": 1000})
    plan, _ = make_plan(job.input_spec(), Plan())
    for unit in plan.units():
        finish(prepare(path, unit=unit, json_types=plan.json_types), tmp_path / "out")
    found = dataset.dataset(tmp_path / "out", format="parquet").to_table().to_pylist()
    assert [row["score"] is None for row in found] == [False] * 1009
    assert len({str(pq.read_schema(path).field("value").type) for path in (tmp_path / "out").iterdir()}) == 1
    for kept, value in ((found[0]["value"], first), (found[-1]["value"], later)):
        kept = {name: inner for name, inner in kept.items() if inner is not None} if isinstance(kept, dict) else kept
        texts = [str(item) for item in value] if isinstance(value, list) else value
        assert kept in (value, json.dumps(value), texts)


def test_bytes_that_are_no_utf8_are_an_error_row_in_a_written_part(
    write_shard: Write, prepare: Prepare, tmp_path: Path
) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 3], np.int32))
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff\xfe")])
    path = write_shard(pa.table({"query": ["q", "q"], "document": broken}))
    assert finish(prepare(path), tmp_path).column("error").to_pylist() == [None, "document is not valid Unicode"]
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), broken)
    rows = finish(prepare(write_shard(pa.table({"query": ["q", "q"], "document": lists}))), tmp_path)
    assert rows.column("logit").to_pylist()[0] == [0]
    assert any(rows.column("error").to_pylist()[1])


def test_part_metadata_name_job_unit_and_shard(write_shard: Write, prepare: Prepare, tmp_path: Path) -> None:
    path = write_shard([{"query": "q", "document": "d"}] * 2)
    work = fill(prepare(path)).with_logits(np.zeros(2, np.float32), {"engine_version": "1.2", "dtype": "float32"})
    job = {
        "fingerprint": "f",
        "model": "m",
        "revision": "r",
        "template": "t",
        "instruction": "\u4f60",
        "engine": "fake",
    }
    write_part(work, str(tmp_path), job, str(tmp_path / "scratch"))
    found = read_part_metadata(pq.read_schema(tmp_path / work.unit.part_name))
    own = {"unit": work.unit.name, "shard": str(path), "engine_version": "1.2", "row_start": "0", "num_rows": "2"}
    assert {**job, **own}.items() <= found.items()
    assert [path.name for path in tmp_path.glob("*.parquet")] == [work.unit.part_name]
    assert not list((tmp_path / "scratch").iterdir())
    assert read_part_metadata(pa.schema({"a": pa.int8()})) == {}


def test_part_written_twice_is_the_same(write_shard: Write, prepare: Prepare, tmp_path: Path) -> None:
    work = prepare(write_shard([{"query": "q", "document": "d"}] * 2))
    first = finish(work, tmp_path)
    assert finish(work, tmp_path).equals(first, check_metadata=True)


def test_unit_of_an_unreadable_shard_is_failed_and_survives_the_way(write_shard: Write, prepare: Prepare) -> None:
    path = write_shard([{"query": "q", "document": "d"}] * 9)
    whole = prepare(path)
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    spec = PrepareSpec({}, InputSpec(), {}, 2, {})
    failed = send(prepare_unit(whole.unit, spec, ""))
    assert str(path) in str(failed.failure)
    assert failed.facts["attempts"] == 2
    assert (failed.unit, len(failed.prompts), failed.logits) == (whole.unit, 0, None)
    again = send(whole.with_failure("engine died", {"attempts": 3}))
    assert (again.failure, again.facts["attempts"], len(again.prompts)) == ("engine died", 3, 0)
    with pytest.raises(ValueError, match="has not been scored"):
        build_part(whole)


def test_unit_as_table_and_back_is_the_same(write_shard: Write, prepare: Prepare) -> None:
    lists = pa.table({"query": ["q", "r"], "document": pa.array([["a", None], None], pa.list_(pa.string()))})
    work = prepare(write_shard(lists))
    assert work.to_table().num_rows == 1
    scored = fill(work, [0.5])
    assert np.array_equal(scored.logits, np.array([0.5, np.nan], np.float32), equal_nan=True)
    assert scored.list_lengths is not None and scored.list_lengths.tolist() == [2, -1]
    assert scored.row_errors.to_pylist() == [None, "document list is null"]
    assert scored.prompts.errors.to_pylist() == [None, "document is null"]
    assert (scored.unit, scored.facts) == (work.unit, {"engine": "fake"})


def test_exploded_part_is_checked_against_the_rows_of_its_unit(
    write_shard: Write, prepare: Prepare, tmp_path: Path
) -> None:
    documents = pa.array([["a", "b"], [], None, ["c"]], pa.list_(pa.string()))
    path = write_shard(pa.table({"query": ["p", "q", "r", "s"], "document": documents}))
    work = prepare(path, texts=TextSpec(explode=True), rename={"document": "candidate"})
    metadata = {"fingerprint": "f", "explode": "true"}
    totals = write_part(fill(work), str(tmp_path), metadata, None)
    part = tmp_path / work.unit.part_name
    table = pq.read_table(part)
    assert table.column_names == ["query", "candidate", "candidate_index", *ADDED]
    assert table.column("candidate").to_pylist() == ["a", "b", None, None, "c"]
    assert (totals["rows"], totals["pairs"], totals["scored"]) == (4, 5, 3)
    assert check_part(work.unit, part.read_bytes(), "f").problem is None
    for kept in ([0, 2, 3, 4], [1, 2, 3, 4], [0, 1, 2, 4], [0, 1, 3, 2]):
        sink = pa.BufferOutputStream()
        pq.write_table(table.take(kept), sink)
        assert check_part(work.unit, sink.getvalue().to_pybytes(), "f").problem is not None


def test_row_of_ten_thousand_candidates_is_one_row_with_as_many_scores(
    write_shard: Write, prepare: Prepare, tmp_path: Path
) -> None:
    documents = [
        [{"id": str(i), "title": "T", "text": f"{i}"} for i in range(10_000)],
        [{"id": "x", "title": "", "text": "y"}],
    ]
    path = write_shard([{"query": "q", "document": found} for found in documents])
    rows = finish(prepare(path, texts=TextSpec(keep_fields=("id",))), tmp_path).to_pylist()
    assert [len(row["score"]) for row in rows] == [10_000, 1]
    assert rows[0]["logit"] == list(range(10_000))
    assert rows[0]["document"][9_999] == {"id": "9999"}
