"""Columns in columns: a field of structs named with dots, and dictionaries in lists and structs, in Parquet and JSON."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_actor.errors import InputError
from rerank_actor.inputs import shards
from rerank_actor.inputs.batches import read_batches
from rerank_actor.inputs.pairs import Pairs, make_pairs
from rerank_actor.inputs.plan import Plan, make_plan
from rerank_actor.inputs.rows import ReadLimits
from rerank_actor.job import load_job
from rerank_actor.storage import look_at_object

PASSAGES = [
    {"query": "a", "passages": {"passage_text": ["x", "y"], "is_selected": [1, 0], "url": ["u", "v"]}},
    {"query": "b", "passages": {"passage_text": [], "is_selected": [], "url": []}},
    {"query": "c", "passages": {"passage_text": ["z"], "is_selected": [0], "url": ["w"]}},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_pairs(path: Path, **flags: Any) -> list[Pairs]:
    job = load_job(None, {"input": str(path), "output": str(path.parent / "out"), **flags})
    spec = job.input_spec()
    plan, _ = make_plan(spec, Plan())
    return [make_pairs(shards.read_rows(unit, spec, plan.json_types), spec.texts) for unit in plan.units()]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_field_of_a_struct_is_taken_by_a_name_with_a_dot(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, PASSAGES)
    pairs = read_pairs(path, document_column="passages.passage_text", unit_rows=2)
    assert [text for found in pairs for text in found.documents] == ["x", "y", "z"]
    assert [text for found in pairs for text in found.queries] == ["a", "a", "c"]
    assert [row for found in pairs for row in found.table.to_pylist()] == PASSAGES
    pairs = read_pairs(path, document_column="passages.passage_text", keep_columns="query")
    assert pairs[0].table.column_names == ["query"] and pairs[0].documents == ["x", "y", "z"]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_struct_without_a_text_is_refused_with_the_field_that_has_one(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, PASSAGES)
    with pytest.raises(InputError, match=r"one of its fields \(`passages.passage_text`\)"):
        read_pairs(path, document_column="passages")
    for column in ("passages.other", "passages.is_selected", "query.text"):
        with pytest.raises(InputError, match=f"column `{column}`.*--document-column"):
            read_pairs(path, document_column=column)
    with pytest.raises(InputError, match=r"no column `passages\.url`"):
        read_pairs(path, document_column="passages.passage_text", keep_columns="passages.url")


def test_column_whose_name_has_a_dot_is_itself(tmp_path: Path) -> None:
    rows = [{"query": "q", "a": {"b": "field"}, "a.b": "column", "c": [{"d": "one"}, {"d": "two"}]}]
    path = write(tmp_path / "rows.parquet", rows)
    assert read_pairs(path, document_column="a.b")[0].documents == ["column"]
    assert read_pairs(path, document_column="c.d")[0].documents == ["one", "two"]


WORDS = pa.dictionary(pa.int32(), pa.string())
VALUES = [["a", "b"], ["b", "c"], ["c", "a"], ["d", "e"], ["e", "a"]]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.list_(WORDS), VALUES),
        (pa.large_list(WORDS), VALUES),
        (pa.list_(WORDS, 2), VALUES),
        (pa.list_(pa.struct([("text", WORDS)])), [[{"text": text} for text in row] for row in VALUES]),
        (pa.struct([("text", WORDS)]), [{"text": row[0]} for row in VALUES]),
    ],
    ids=str,
)
def test_dictionaries_in_lists_and_structs_are_read_over_row_groups(
    tmp_path: Path, kind: pa.DataType, values: list[Any]
) -> None:
    table = pa.table({"query": ["q"] * 5, "document": pa.array(values, kind)})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=2)
    documents = [text for row in values for text in (row if isinstance(row, list) else [row])]
    expected = [text["text"] if isinstance(text, dict) else text for text in documents]
    for found in (read_pairs(path), read_pairs(path, unit_rows=3)):
        assert [text for pairs in found for text in pairs.documents] == expected
        assert pa.concat_tables([pairs.table for pairs in found]).to_pylist() == table.to_pylist()
    item = look_at_object(str(path))
    assert item is not None
    for limits in (ReadLimits(), ReadLimits(group_bytes=1, batch_rows=1)):
        batches = list(read_batches(item, "parquet", limits=limits))
        assert [value for batch in batches for value in batch.values("document")] == values
        [unit] = make_plan(load_job(None, {"input": str(path), "output": "/out"}).input_spec(), Plan())[0].units()
        rows = shards.read_rows(unit, load_job(None, {"input": str(path), "output": "/out"}).input_spec(), {}, limits)
        assert rows.table.to_pylist() == table.to_pylist()
