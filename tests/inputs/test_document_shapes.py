"""Documents of one shape: lists beside texts are told when a job is planned, and never read as the other."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs import shards
from rerank_actor.inputs.plan import Plan, make_plan
from rerank_actor.inputs.rows import ReadLimits
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.syntax.document_shapes import refuse_mixed_shapes
from rerank_actor.job import load_job


def plan(folder: Path, earlier: Plan | None = None, *, written: bool = True, **flags: Any) -> Plan:
    job = load_job(None, {"input": str(folder / "in"), "output": str(folder / "out"), "engine": "fake", **flags})
    earlier = earlier or Plan()
    return make_plan(job.input_spec(), earlier, [unit.part_name for unit in earlier.units()] if written else ())[0]


def write(folder: Path, name: str, documents: Any, **columns: Any) -> None:
    path = folder / "in" / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"query": ["a"] * len(documents), "document": documents, **columns}), path)
    else:
        path.write_text("".join(json.dumps({"query": "a", "document": one}) + "\n" for one in documents))


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        ([["b", "c"], 5], "line 2: `document` is a text or a number, and in line 1 a list"),
        (["x", None, ["b"]], "line 3: `document` is a list, and in line 1 a text or a number"),
        ([{"text": "x"}, "y"], "line 2: `document` is a text or a number, and in line 1 an object"),
        ([["b"], [], None, [{"text": "x"}]], "line 4: `document` is a list of objects, and in line 1 a list of texts"),
        ([["b", {"text": "x"}]], "`document` is a list of texts, and in line 1 a list of objects"),
    ],
)
def test_rows_of_several_shapes_are_refused_with_their_lines(tmp_path: Path, documents: Any, told: str) -> None:
    write(tmp_path, "rows.jsonl", documents)
    with pytest.raises(InputError, match=told):
        plan(tmp_path)


def test_odd_row_refuses_the_job_and_not_its_shard_and_other_columns_are_free(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", ["b", ["x"]])
    write(tmp_path, "b.jsonl", ["b"])
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: `document` is a list"):
        plan(tmp_path)
    assert plan(tmp_path, document_template="{query}").num_rows == 3


def test_shape_is_one_over_ranges_that_are_looked_at_apart(tmp_path: Path) -> None:
    path = tmp_path / "in" / "rows.jsonl"
    for odd in (None, 150):
        write(tmp_path, "rows.jsonl", [["b", "c"] if row != odd else "x" for row in range(200)])
        item = storage.StoredObject(str(path), path.stat().st_size, "")
        layout = shards.scan_shard(item, InputSpec(), limits=ReadLimits(range_bytes=500))
        if odd is None:
            assert layout.num_pairs == 400
            refuse_mixed_shapes(layout.shapes, str(path), "document")
        else:
            with pytest.raises(
                InputError, match=f"line {odd + 1}: `document` is a text or a number, and in line 1 a list"
            ):
                refuse_mixed_shapes(layout.shapes, str(path), "document")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("1.parquet", ["b"]), ("2.parquet", [["b", "c"]])),
        (("1.parquet", pa.array([None], pa.null())), ("2.parquet", [["b", "c"]])),
        (("1.jsonl", ["b"]), ("2.jsonl", [["b", "c"]])),
        (("1.jsonl", ["b"]), ("2.parquet", [["b", "c"]])),
    ],
)
def test_shards_of_several_shapes_are_refused_with_both(tmp_path: Path, first: Any, second: Any) -> None:
    write(tmp_path, *first)
    earlier = plan(tmp_path)
    write(tmp_path, *second)
    with pytest.raises(
        InputError, match=r"column `document` (is|holds) .*in .* it is a list of documents; score them apart"
    ):
        plan(tmp_path)
    if first[0] == "1.parquet" and first[1] == ["b"]:
        with pytest.raises(InputError, match="the parts already written"):
            (tmp_path / "in" / first[0]).unlink()
            plan(tmp_path, earlier)
        assert plan(tmp_path, earlier, written=False).num_rows == 1
        write(tmp_path, *first)
        assert plan(tmp_path, explode=True).num_rows == 2


def test_shard_of_empty_lists_and_nulls_goes_with_lists(tmp_path: Path) -> None:
    write(tmp_path, "1.jsonl", [None, []])
    write(tmp_path, "2.jsonl", [["b", "c"], ["d"]])
    write(tmp_path, "3.parquet", [["b", "c"]])
    assert plan(tmp_path).num_rows == 5


def test_new_shard_with_a_column_that_the_parts_have_not_is_refused(tmp_path: Path) -> None:
    """Some parts with it and some without are no dataset that readers open."""
    write(tmp_path, "1.parquet", ["b"], x=[1])
    earlier = plan(tmp_path)
    write(tmp_path, "2.parquet", ["b"])
    assert plan(tmp_path, earlier).num_rows == 2, "one that lacks a column has nulls there"
    write(tmp_path, "3.parquet", ["b"], x=[1], y=[2])
    with pytest.raises(InputError, match=r"3\.parquet: has a column `y`, which the parts already written have not"):
        plan(tmp_path, earlier)
    assert plan(tmp_path, earlier, keep_columns=["query", "document"]).num_rows == 3
    assert plan(tmp_path).num_rows == plan(tmp_path, earlier, written=False).num_rows == 3, "then all parts have it"
