"""The plan: every row in one unit, names that follow from the shard's URI, growth without change, and refusals."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_actor.errors import InputError, JobError, OutputConflictError, RerankError
from rerank_actor.inputs.listing import list_input
from rerank_actor.inputs.plan import Plan, PlanChange, make_plan
from rerank_actor.inputs.rows import Unit
from rerank_actor.job import ScoreJob, load_job

Write = Callable[..., Path]


def make_job(folder: Path, **flags: Any) -> ScoreJob:
    return load_job(None, {"input": str(folder / "input"), "output": str(folder / "out"), **flags})


def change_plan(folder: Path, earlier: Plan, **flags: Any) -> tuple[Plan, PlanChange]:
    """Plan on top of an earlier plan whose every unit is committed."""
    return make_plan(make_job(folder, **flags).input_spec(), earlier, {unit.part_name for unit in earlier.units()})


def plan_job(folder: Path, earlier: Plan | None = None, **flags: Any) -> Plan:
    return change_plan(folder, earlier or Plan(), **flags)[0]


def write_groups(path: Path, groups: list[int]) -> None:
    """Write a shard with row groups of these sizes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema({"query": pa.string(), "document": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for rows in groups:
            writer.write_table(pa.Table.from_pylist([{"query": "q", "document": "d"}] * rows, schema))


def write_lines(path: Path, num_rows: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"query": "q", "document": f"d{i}"}) + "\n" for i in range(num_rows)))


def assert_each_row_once(plan: Plan, num_rows: int, unit_rows: int) -> None:
    units = list(plan.units())
    assert len({unit.name for unit in units}) == len(units)
    for shard in plan.shards:
        row = 0
        for unit in (unit for unit in units if unit.uri == shard.uri):
            assert unit.row_start == row
            assert 1 <= unit.num_rows <= unit_rows
            row += unit.num_rows
        assert row == shard.planned_rows
    assert sum(unit.num_rows for unit in units) == plan.num_rows == num_rows


def starts(plan: Plan) -> list[tuple[str, int, int]]:
    return [(unit.name, unit.row_start, unit.num_rows) for unit in plan.units()]


@settings(deadline=None, max_examples=100)
@given(
    layouts=st.lists(st.lists(st.integers(0, 30), max_size=5), min_size=1, max_size=3),
    lines=st.integers(0, 60),
    unit_rows=st.one_of(st.integers(1, 8), st.integers(9, 40)),
    shares=st.lists(st.integers(1, 99), max_size=3).map(sorted),
)
def test_units_of_any_layout_cover_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, layouts: list[list[int]], lines: int, unit_rows: int, shares: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    for number, groups in enumerate(layouts):
        write_groups(folder / "input" / f"{number}.parquet", groups)
    write_lines(folder / "input" / "1-lines.jsonl", lines)
    total = sum(map(sum, layouts)) + lines
    if total == 0:
        with pytest.raises(InputError, match="without a single row"):
            plan_job(folder)
        return
    plan = Plan()
    for limit in [
        *(max(1, total * share // 100) for share in shares),
        None,
    ]:  # each larger limit extends the plan before it
        earlier, plan = plan, plan_job(folder, plan, limit=limit, unit_rows=unit_rows)
        assert_each_row_once(plan, total if limit is None else min(limit, total), unit_rows)
        assert set(starts(earlier)) <= set(starts(plan))


def test_limit_when_raised_appends_units_and_keeps_those_before(tmp_path: Path) -> None:
    write_groups(tmp_path / "input" / "a.parquet", [10, 10])
    write_lines(tmp_path / "input" / "b.jsonl", 20)
    first = plan_job(tmp_path, limit=13, unit_rows=5)
    second = plan_job(tmp_path, first, limit=27, unit_rows=5)
    third = plan_job(tmp_path, second, unit_rows=5)
    for plan, num_rows in ((first, 13), (second, 27), (third, 40)):
        assert_each_row_once(plan, num_rows, 5)
    assert set(starts(first)) < set(starts(second)) < set(starts(third))
    assert plan_job(tmp_path, third, limit=13, unit_rows=5) == third


def test_shard_names_follow_from_the_uri_alone(tmp_path: Path) -> None:
    write_groups(tmp_path / "input" / "m.parquet", [10, 10])
    alone = plan_job(tmp_path, unit_rows=5)
    for name in ("a.parquet", "z.parquet"):
        write_groups(tmp_path / "input" / name, [7])
    together = plan_job(tmp_path, unit_rows=5)
    grown = plan_job(tmp_path, alone, unit_rows=5)
    assert set(starts(alone)) < set(starts(together))
    assert sorted(starts(together)) == sorted(starts(grown))
    assert list(grown.units())[: len(list(alone.units()))] == list(alone.units())
    write_groups(tmp_path / "input" / "m.parquet", [3])
    assert starts(alone)[0][0] in {unit.name for unit in plan_job(tmp_path).units()}


def test_plan_as_bytes_and_back_is_the_same(tmp_path: Path) -> None:
    write_groups(tmp_path / "input" / "a.parquet", [10])
    (tmp_path / "input" / "broken.parquet").write_bytes(b"PAR1")
    rows = [{"query": "q", "document": "d", "nested": {"a": [1, None]}, "empty": None}] * 3
    (tmp_path / "input" / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = plan_job(tmp_path, unit_rows=2)
    fingerprint = {"model": "m", "keep_columns": ["a"], "n": 1, "none": None}
    assert Plan.from_bytes(plan.to_bytes(fingerprint)) == (plan, fingerprint)
    assert plan.json_types["nested"] == pa.struct({"a": pa.list_(pa.int64())})
    with pytest.raises(JobError, match="--overwrite"):
        Plan.from_bytes(b"not a plan")


def test_changed_shard_is_refused_by_name_unless_rescored(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_groups(tmp_path / "input" / name, [10])
    earlier = plan_job(tmp_path, unit_rows=4)
    changed = tmp_path / "input" / "b.parquet"
    write_groups(changed, [6])
    with pytest.raises(OutputConflictError, match=rf"{changed}.*--rescore-changed") as caught:
        plan_job(tmp_path, earlier, unit_rows=4)
    assert "a.parquet" not in str(caught.value)
    plan, change = change_plan(tmp_path, earlier, unit_rows=4, rescore_changed=True)
    assert_each_row_once(plan, 16, 4)
    assert set(change.stale_parts) == {unit.part_name for unit in earlier.units() if unit.uri == str(changed)}
    assert change_plan(tmp_path, plan, unit_rows=4) == (plan, PlanChange())


def test_changed_shard_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "input" / "a.parquet"
    write_groups(path, [10])
    earlier = plan_job(tmp_path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1000))
    with pytest.raises(OutputConflictError, match=str(path)):
        plan_job(tmp_path, earlier)


def test_changed_shard_when_rescored_under_a_limit_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "input" / "a.parquet"
    write_groups(path, [10])
    earlier = plan_job(tmp_path, limit=10)
    write_groups(path, [9])
    assert plan_job(tmp_path, earlier, limit=10, rescore_changed=True).num_rows == 9


def test_vanished_shard_is_reported_and_its_units_stay(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_groups(tmp_path / "input" / name, [10])
    earlier = plan_job(tmp_path)
    (tmp_path / "input" / "a.parquet").unlink()
    plan, change = change_plan(tmp_path, earlier)
    assert plan == earlier
    assert change == PlanChange(vanished=(str(tmp_path / "input" / "a.parquet"),))


def test_shard_without_a_committed_part_may_change_or_go(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet", "c.parquet"):
        write_groups(tmp_path / "input" / name, [10])
    earlier = plan_job(tmp_path)
    write_groups(tmp_path / "input" / "b.parquet", [6])
    (tmp_path / "input" / "c.parquet").unlink()
    plan, change = make_plan(make_job(tmp_path).input_spec(), earlier, {next(earlier.units()).part_name})
    assert change.stale_parts == ()
    assert sorted(plan.units(), key=str) == sorted(plan_job(tmp_path).units(), key=str)


def test_input_named_twice_is_listed_once(tmp_path: Path) -> None:
    for name in ("a.parquet", "sub/b.parquet", "_skipped/c.parquet", ".hidden.parquet"):
        write_groups(tmp_path / "input" / name, [10])
    inputs = ["input/sub/b.parquet", "input", "input/*.parquet", "input/../input/a.parquet"]
    job = make_job(tmp_path, input=[str(tmp_path / name) for name in inputs])
    expected = [str(tmp_path / "input" / name) for name in ("sub/b.parquet", "a.parquet")]
    assert [found.uri for found in list_input(job.input_spec()).shards] == expected
    assert [shard.uri for shard in make_plan(job.input_spec(), Plan())[0].shards] == expected


@pytest.mark.parametrize(
    ("place", "output", "refused"),
    [
        ("input", "input", True),
        ("input", "input/out", True),
        ("input/sub", "input", True),
        ("input/a.parquet", "input", True),
        ("input/*.parquet", "input", True),
        ("input/**/*.parquet", "input/out", True),
        ("inp*/*.parquet", "input", True),
        ("input", "input-scored", False),
        ("input/a.parquet", "input/out", False),
        ("input/a*.parquet", "out", False),
        ("a*.parquet", "out", False),
    ],
)
def test_output_among_the_shards_is_refused(tmp_path: Path, place: str, output: str, refused: bool) -> None:
    for name in ("a.parquet", "input/a.parquet", "input/sub/b.parquet"):
        write_groups(tmp_path / name, [10])
    flags = {"input": str(tmp_path / place), "output": str(tmp_path / output)}
    if not refused:
        assert plan_job(tmp_path, **flags).num_rows
        return
    with pytest.raises(InputError, match="--output"):
        plan_job(tmp_path, **flags)


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ({"query_column": "qeury"}, "--query-column"),
        ({"document_column": "documents"}, "--document-column"),
        ({"instruction_column": "quer"}, "--instruction-column"),
        ({"keep_columns": "document,quer"}, "--keep-columns"),
    ],
)
def test_missing_column_is_refused_with_flag_and_nearest_name(tmp_path: Path, flags: Any, flag: str) -> None:
    write_groups(tmp_path / "input" / "a.parquet", [10])
    with pytest.raises(InputError) as caught:
        plan_job(tmp_path, **flags)
    nearest = "document" if flag == "--document-column" else "query"
    for words in ("a.parquet", "`query`, `document`", flag, f"did you mean {nearest}?"):
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["score", "logit", "num_tokens", "truncated_tokens", "error"])
def test_reserved_column_is_refused_unless_left_out(write_shard: Write, tmp_path: Path, name: str) -> None:
    write_shard([{"query": "q", "document": "d", name: 1.0}])
    with pytest.raises(InputError, match=rf"`{name}`.*--keep-columns"):
        plan_job(tmp_path)
    assert plan_job(tmp_path, keep_columns="query").num_rows == 1
    assert plan_job(tmp_path, keep_columns=[]).num_rows == 1


def test_reserved_key_in_a_late_json_line_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "input" / "a.jsonl", 3000)
    with (tmp_path / "input" / "a.jsonl").open("a") as file:
        file.write('{"query": "q", "document": "d", "score": 1}')
    with pytest.raises(InputError, match=r"`score`.*--keep-columns"):
        plan_job(tmp_path)


@pytest.mark.parametrize("value", [1.5, "x", {"a": 1}])
def test_json_shard_added_with_values_of_another_type_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    (tmp_path / "input").mkdir()
    for name, held in (("a.jsonl", 1), ("b.jsonl", value)):
        earlier = plan_job(tmp_path) if name == "b.jsonl" else Plan()
        (tmp_path / "input" / name).write_text(json.dumps({"query": "q", "document": "d", "value": held}))
    with pytest.raises(RerankError, match=r"b\.jsonl.*`value`"):
        plan_job(tmp_path, earlier)
    assert plan_job(tmp_path).num_rows == 2  # in one plan from the start a type for both is found


@pytest.mark.parametrize("flag", ["--query-column", "--document-column"])
def test_column_of_numbers_is_refused_only_when_it_is_so_everywhere(
    write_shard: Write, tmp_path: Path, flag: str
) -> None:
    name = flag.strip("-").partition("-")[0]
    write_shard([{"query": "q", "document": "d", name: 7}] * 3, "a.parquet")
    with pytest.raises(InputError, match=rf"`{name}` is int64.*{flag}"):
        plan_job(tmp_path)
    write_shard([{"query": "q", "document": "d"}], "b.parquet")
    assert plan_job(tmp_path).num_rows == 4


def test_column_of_lists_is_for_documents_alone(write_shard: Write, tmp_path: Path) -> None:
    write_shard([{"query": "q", "document": ["d"]}])
    assert plan_job(tmp_path).num_rows == 1
    with pytest.raises(InputError, match="--query-column"):
        plan_job(tmp_path, query_column="document", document_column="query")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "nothing there"),
        ({"_SUCCESS": b"", ".hidden.parquet": b"x"}, "nothing there"),
        ({"a.txt": b"x", "b.md": b"x"}, "--format"),
        ({"a.jsonl": b"\n\n", "b.csv": b"query,document\n", "c.tsv": b"", "d.jsonl": b""}, "without a single row"),
        ({"a.parquet": b"PAR1", "b.parquet": b""}, "no shard can be read.*a.parquet"),
    ],
)
def test_input_without_a_row_is_refused(tmp_path: Path, content: dict[str, bytes], words: str) -> None:
    (tmp_path / "input").mkdir()
    for name, data in content.items():
        (tmp_path / "input" / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        plan_job(tmp_path)
    with pytest.raises(InputError, match="nothing there"):
        plan_job(tmp_path, input=str(tmp_path / "elsewhere"))


def test_unreadable_shard_among_good_ones_is_one_unit_until_repaired(tmp_path: Path) -> None:
    for name in ("a.parquet", "c.parquet"):
        write_groups(tmp_path / "input" / name, [10])
    broken = tmp_path / "input" / "b.parquet"
    broken.write_bytes((tmp_path / "input" / "a.parquet").read_bytes()[:-20])
    plan = plan_job(tmp_path)
    assert [shard.error is None for shard in plan.shards] == [True, False, True]
    assert str(broken) in str(plan.shards[1].error)
    found = [unit for unit in plan.units() if unit.uri == str(broken)]
    assert found == [Unit(f"{plan.shards[1].id}-00000", str(broken), broken.stat().st_size, found[0].etag, 0, 0, -1)]
    write_groups(broken, [5])
    repaired = plan_job(tmp_path, plan)
    assert [shard.error for shard in repaired.shards] == [None] * 3
    assert repaired.num_rows == 25


def test_units_of_text_know_the_number_of_their_first_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "input" / "a.jsonl", 20)
    plan = plan_job(tmp_path, unit_rows=5)
    assert [unit.number for unit in plan.units()] == [1, 6, 11, 16]
