"""JSON columns nested deep or with many fields are kept as their text, in all shards."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rerank_actor.inputs import shards
from rerank_actor.inputs.batches import read_batches
from rerank_actor.inputs.listing.left_out import AS_TEXT
from rerank_actor.inputs.plan import Plan, make_plan
from rerank_actor.job import load_job
from rerank_actor.storage import look_at_object


def nest(depth: int, *, key: str | None = None) -> Any:
    value: Any = "leaf"
    for _ in range(depth):
        value = {key: value} if key else [value]
    return value


def read(folder: Path, files: list[list[Any]]) -> tuple[list[pa.Table], list[str | None], list[str]]:
    """Return the rows of each shard whose column `extra` has these values, their faults, and columns told as text."""
    for number, values in enumerate(files):
        rows = [{"query": "q", "document": "d", "extra": value, "plain": [1]} for value in values]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = load_job(None, {"input": [str(folder)], "output": "/out", "engine": "fake", "model": "m"}).input_spec()
    plan, change = make_plan(spec, Plan())
    found = [shards.read_rows(unit, spec, plan.json_types) for unit in plan.units()]
    faults = [fault for rows in found for fault in rows.faults]
    return [rows.table for rows in found], faults, [item.first for item in change.left_out if item.reason == AS_TEXT]


@pytest.mark.parametrize("depth", [17, 31, 60, 120, 190])
@pytest.mark.parametrize("key", [None, "k"])
def test_deep_value_in_one_row_is_kept_as_json_text_in_all_shards(depth: int, key: str | None, tmp_path: Path) -> None:
    files = [[["a"], nest(depth, key=key)], [["b"], None]]
    tables, faults, told = read(tmp_path, files)
    assert {table.schema.field("extra").type for table in tables} == {pa.string()}
    kept = [text and json.loads(text) for table in tables for text in table["extra"].to_pylist()]
    assert (kept, set(faults), told) == ([value for values in files for value in values], {None}, ["extra"])
    assert tables[0]["plain"].to_pylist() == [[1], [1]]


@pytest.mark.parametrize("depth", [300, 900, 5_000, 100_000])
def test_row_nested_beyond_all_reason_is_an_error_of_its_own(depth: int, tmp_path: Path) -> None:
    deep = "[" * depth + "]" * depth
    read(tmp_path, [[1], [2, 3]])
    with (tmp_path / "1.jsonl").open("a") as file:
        file.write('{"query": "q", "document": "d", "extra": ' + deep + "}\n")
    spec = load_job(None, {"input": [str(tmp_path)], "output": "/out", "engine": "fake", "model": "m"}).input_spec()
    plan, _ = make_plan(spec, Plan())
    faults = [fault for unit in plan.units() for fault in shards.read_rows(unit, spec, plan.json_types).faults]
    assert faults[:3] == [None, None, None]
    assert (faults[3] or "").startswith("line is not a JSON object")


def test_depth_and_fields_up_to_the_bound_keep_their_types(tmp_path: Path) -> None:
    files = [[nest(15, key="k")], [{f"key{number}": number for number in range(200)}]]
    tables, _, told = read(tmp_path, files)
    assert pa.types.is_struct(tables[0].schema.field("extra").type)
    assert (tables[0].schema, told) == (tables[1].schema, [])


@pytest.mark.parametrize("in_one", [True, False])
def test_keys_of_their_own_in_each_row_are_kept_as_json_text(in_one: bool, tmp_path: Path) -> None:
    values = [{f"key{number}": number} for number in range(600)]
    tables, _, told = read(tmp_path, [values] if in_one else [values[start : start + 200] for start in (0, 200, 400)])
    kept = [json.loads(text) for table in tables for text in table["extra"].to_pylist()]
    assert (kept, told) == (values, ["extra"])


def test_streamed_deep_lists_are_json_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"a": nest(60)}) + "\n")
    item = look_at_object(str(path))
    assert item is not None
    table, _ = next(read_batches(item, "jsonl")).to_table()
    assert json.loads(table["a"][0].as_py()) == nest(60)
