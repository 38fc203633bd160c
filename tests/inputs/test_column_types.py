"""A column that has other types in other shards has one in all parts, exactly, or the shard is refused by name."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from rerank_actor.errors import InputError
from rerank_actor.inputs import shards
from rerank_actor.inputs.plan import Plan, make_plan
from rerank_actor.job import load_job

PAIR = {"query": "q", "document": "d"}


def write(folder: Path, *columns: Any) -> None:
    """Write a shard for each column `kept`: an Arrow array as Parquet, text as CSV, anything else as JSON lines."""
    folder.mkdir(exist_ok=True)
    for index, column in enumerate(columns):
        name = folder / f"{index:02d}"
        if isinstance(column, pa.Array):
            texts = {side: pa.array([side] * len(column)) for side in PAIR}
            pq.write_table(pa.table({**texts, "kept": column}), name.with_suffix(".parquet"))
        elif isinstance(column, str):
            name.with_suffix(".csv").write_text("query,document,kept\n" + f"q,d,{column}\n")
        else:
            name.with_suffix(".jsonl").write_text(
                "".join(json.dumps({**PAIR, "kept": value}) + "\n" for value in column)
            )


def read(folder: Path, earlier: Plan | None = None, **flags: Any) -> list[pa.Table]:
    spec = load_job(None, {"input": str(folder), "output": "/nowhere", **flags}).input_spec()
    plan, _ = make_plan(spec, earlier or Plan())
    plan, _ = Plan.from_bytes(plan.to_bytes({}))
    return [shards.read_rows(unit, spec, plan.json_types).table for unit in plan.units()]


@pytest.mark.parametrize(
    ("columns", "kind", "expected"),
    [
        ([pa.array([1], pa.int32()), pa.array([2**40])], "int64", [1, 2**40]),
        ([pa.array(["a"]), pa.array(["b"], pa.large_string())], "string", ["a", "b"]),
        ([pa.array(["a"]), pa.array(["b"]).dictionary_encode()], "string", ["a", "b"]),
        ([pa.nulls(1), pa.array(["b"])], "string", [None, "b"]),
        ([pa.array([2**53 + 1]), pa.array([0.5])], "string", [str(2**53 + 1), "0.5"]),
        ([pa.array([7], pa.int32()), pa.array([0.5])], "double", [7.0, 0.5]),
        ([pa.array([0.5], pa.float32()), pa.array([0.1])], "double", [0.5, 0.1]),
        ([pa.array([7]), pa.array(["a"])], "string", ["7", "a"]),
        ([pa.array([True]), pa.array([7])], "string", ["true", "7"]),
        ([pa.array([2**63], pa.uint64()), pa.array([-1])], "string", [str(2**63), "-1"]),
        ([pa.array([["a"]]), pa.array([["b"]], pa.large_list(pa.string()))], "list<item: string>", [["a"], ["b"]]),
        ([pa.array([[1]]), pa.array([["b"]])], "list<item: string>", [["1"], ["b"]]),
        (
            [pa.array([{"a": 1}]), pa.array([{"b": "x", "a": 2}])],
            "struct<a: int64, b: string>",
            [{"a": 1, "b": None}, {"a": 2, "b": "x"}],
        ),
        ([pa.array([{"a": 1}]), pa.array(["x"])], "string", ['{"a": 1}', "x"]),
        ([[2**53 + 1], pa.array([1])], "int64", [2**53 + 1, 1]),
        ([pa.array([7]), "8"], "string", ["7", "8"]),
        ([[7], "8", [0.5]], "string", ["7", "8", "0.5"]),
        ([[{"a": 1}], pa.array([{"b": 2}])], "struct<a: int64, b: int64>", [{"a": 1, "b": None}, {"a": None, "b": 2}]),
        (
            [pa.array([datetime.date(2026, 1, 1)]).cast(pa.timestamp("s")), pa.array([0], pa.timestamp("us"))],
            "timestamp[us]",
            [datetime.datetime(2026, 1, 1), datetime.datetime(1970, 1, 1)],
        ),
    ],
    ids=lambda value: str(value)[:60].replace("\n", " ") if not isinstance(value, list) else "",
)
def test_column_has_one_type_in_all_parts(tmp_path: Path, columns: list[Any], kind: str, expected: list[Any]) -> None:
    write(tmp_path / "in", *columns)
    tables = read(tmp_path / "in")
    assert {str(table.schema.field("kept").type).replace("element", "item") for table in tables} == {kind}
    assert [value for table in tables for value in table.column("kept").to_pylist()] == expected
    for index, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"part-{index}.parquet")
    paths = [str(tmp_path / f"part-{index}.parquet") for index in range(len(tables))]
    assert pyarrow.dataset.dataset(paths).to_table().num_rows == len(expected)


@pytest.mark.parametrize(
    "columns",
    [
        [pa.array([0], pa.timestamp("s")), pa.array(["a"])],
        [pa.array([b"x"]), pa.array([1])],
        [pa.array([{"a": b"x"}]), pa.array([{"a": "x"}])],
    ],
    ids=["timestamp", "binary", "inner"],
)
def test_column_without_a_type_that_holds_all_is_refused_with_the_flag(tmp_path: Path, columns: list[Any]) -> None:
    write(tmp_path / "in", *columns)
    with pytest.raises(
        InputError, match=r"01\.parquet: column `kept` holds .* in .*00\.parquet it is .*--drop-columns kept"
    ):
        read(tmp_path / "in")
    assert [table.column_names for table in read(tmp_path / "in", drop_columns="kept")] == [["query", "document"]] * 2


def test_column_that_one_shard_has_is_null_in_the_others(tmp_path: Path) -> None:
    write(tmp_path / "in", pa.array([7]))
    pq.write_table(pa.table({"document": ["d"], "query": ["q"], "more": ["x"]}), tmp_path / "in/more.parquet")
    tables = read(tmp_path / "in")
    assert [table.column_names for table in tables] == [["query", "document", "kept", "more"]] * 2
    assert pa.concat_tables(tables).column("kept").to_pylist() == [7, None]
    assert pa.concat_tables(tables).column("more").to_pylist() == [None, "x"]


def test_later_shard_of_another_type_goes_into_that_of_the_parts_or_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in", pa.array([7]))
    spec = load_job(None, {"input": str(tmp_path / "in"), "output": "/nowhere"}).input_spec()
    earlier, _ = make_plan(spec, Plan())
    write(tmp_path / "in", pa.array([7]), pa.array([8], pa.int8()))
    (tmp_path / "in/00.parquet").touch()
    assert [str(table.schema.field("kept").type) for table in read(tmp_path / "in")] == ["int64", "int64"]
    write(tmp_path / "in", pa.array([7]), pa.array(["x"]))
    with pytest.raises(
        InputError, match="in the parts already written it is int64; give this shard an --output of its own"
    ):
        make_plan(spec, earlier, {unit.part_name for unit in ()})
