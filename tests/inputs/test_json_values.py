"""JSON values in kept columns come back as they went in, whatever stands beside them, or are told."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_actor.errors import InputError
from rerank_actor.inputs import shards
from rerank_actor.inputs.plan import Plan, make_plan
from rerank_actor.inputs.rows import Rows
from rerank_actor.job import load_job

BEYOND = 2**53 + 1
NUMBERS = st.one_of(
    st.integers(-(2**66), 2**66).map(str),
    st.sampled_from([str(BEYOND), str(-BEYOND), str(2**63), "1.0", "0.1", "1e400", "1.5e-7", "0.12345678901234567890"]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=20).map(str),
)
LEAVES = st.one_of(NUMBERS, st.sampled_from(["null", "true", '"text"', '"1.0"', '""', '"\\u00e9"']))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2).map(
            lambda items: "{" + ", ".join(f'"{name}": {item}' for name, item in items.items()) + "}"
        ),
    ),
    max_leaves=5,
)


def write(path: Path, values: list[str]) -> str:
    path.write_text("".join(f'{{"query": "q", "document": "d", "kept": {value}}}\n' for value in values))
    return str(path)


def read(folder: Path, unit_rows: int = 1000, **flags: Any) -> list[Rows]:
    job = load_job(None, {"input": str(folder), "output": "/nowhere", "unit_rows": unit_rows, **flags})
    plan, _ = make_plan(job.input_spec(), Plan())
    return [shards.read_rows(unit, job.input_spec(), plan.json_types) for unit in plan.units()]


def parse(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


def is_same(value: Any, written: Any) -> bool:
    """Whether a value of a part is what was written: itself, or its JSON as text; a field that is null may be lacking."""
    if isinstance(written, dict) and isinstance(value, dict):
        return all(is_same(value.get(name), written.get(name)) for name in {*value, *written})
    if isinstance(written, list) and isinstance(value, list):
        return len(value) == len(written) and all(map(is_same, value, written))
    if isinstance(value, str):
        return value == written or (not isinstance(written, str) and parse(value) == written)
    if isinstance(value, float) and isinstance(written, int | Decimal) and not isinstance(written, bool):
        return (
            Decimal(repr(value)) == written and Decimal(value) == written
            if isinstance(written, int)
            else (Decimal(repr(value)) == written)
        )
    return type(value) is type(written) and bool(value == written)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(VALUES, min_size=1, max_size=5), second=st.lists(VALUES, max_size=3), unit_rows=st.integers(1, 5))
def test_any_json_value_that_is_kept_comes_back_as_it_went_in(
    tmp_path: Path, first: list[str], second: list[str], unit_rows: int
) -> None:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    write(folder / "a.jsonl", first)
    write(folder / "b.jsonl", second)
    found = read(folder, unit_rows)
    assert len({part.table.schema for part in found}) == 1
    values = [value for part in found for value in part.table.column("kept").to_pylist()]
    for value, written in zip(values, [*first, *second], strict=True):
        assert is_same(value, parse(written)), (value, written)


@pytest.mark.parametrize("other", ["1.0", "NaN", "0.5"])
@pytest.mark.parametrize("apart", [False, True])
def test_large_integers_beside_a_float_become_text(tmp_path: Path, other: str, apart: bool) -> None:
    write(tmp_path / "a.jsonl", [str(BEYOND), *([] if apart else [other]), str(BEYOND + 2)])
    if apart:
        write(tmp_path / "b.jsonl", [other])
    found = pa.concat_tables([part.table for part in read(tmp_path)]).column("kept").to_pylist()
    assert sorted(found) == sorted([str(BEYOND), other, str(BEYOND + 2)])


@pytest.mark.parametrize("other", ["0", "7", "1.5", "0.98765432109876543210"])
@pytest.mark.parametrize("apart", [False, True])
def test_numbers_that_no_float_holds_become_text_beside_any_other(tmp_path: Path, other: str, apart: bool) -> None:
    number = "0.12345678901234567890"
    write(tmp_path / "a.jsonl", [number, *([] if apart else [other])])
    if apart:
        write(tmp_path / "b.jsonl", [other])
    found = pa.concat_tables([part.table for part in read(tmp_path)]).column("kept").to_pylist()
    assert sorted(map(str, found)) == sorted([number, other])


@pytest.mark.parametrize("form", ["{}", "[{}]", '{{"inner": {}}}', '[{{"inner": [{}]}}]'])
@pytest.mark.parametrize("number", ["1", "2.5"])
@pytest.mark.parametrize("apart", [False, True])
def test_truth_beside_a_number_is_kept_as_it_is_written(tmp_path: Path, form: str, number: str, apart: bool) -> None:
    values = [form.format("true"), form.format(number)]
    write(tmp_path / "a.jsonl", values[: 1 if apart else 2])
    if apart:
        write(tmp_path / "b.jsonl", values[1:])
    found = pa.concat_tables([part.table for part in read(tmp_path)]).column("kept").to_pylist()
    leaves = [str(value).replace('"', "").replace("'", "") for value in found]
    assert leaves == [str(parse(form.format(f'"{value}"'))).replace("'", "") for value in ("true", number)]


@pytest.mark.parametrize(
    ("last", "expected"),
    [("1", "double"), (str(BEYOND), "string"), ("0.1234567890123456", "double"), ("0.12345678901234567891", "string")],
)
def test_lines_far_behind_the_first_are_looked_at_as_closely(tmp_path: Path, last: str, expected: str) -> None:
    pad = ", ".join(["0.5"] * 2000)
    rows = [
        f'{{"query": "q", "document": "d", "pad": [{pad}], "kept": {value}}}\n' for value in ["0.5"] * 1200 + [last]
    ]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    found = read(tmp_path)
    assert str(found[0].table.schema.field("kept").type) == expected
    values = [value for part in found for value in part.table.column("kept").to_pylist()]
    assert is_same(values[-1], parse(last))


def test_large_integers_alone_stay_integers_and_refuse_a_later_shard_of_floats(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [str(BEYOND), "1"])
    job = load_job(None, {"input": str(tmp_path), "output": "/nowhere"})
    plan, _ = make_plan(job.input_spec(), Plan())
    assert plan.json_types["kept"] == pa.int64()
    write(tmp_path / "b.jsonl", ["0.5"])
    with pytest.raises(InputError, match="column `kept` holds double, in the parts already written it is int64"):
        make_plan(job.input_spec(), plan)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.csv", b"query,document,author\nq,d,Bj\xf6rn\nq,d,Bo\n"),
        ("rows.tsv", b"query\tdocument\tauthor\nq\td\tBj\xf6rn\nq\td\tBo\n"),
        (
            "rows.jsonl",
            b'{"query": "q", "document": "d", "author": "Bj\\ud800rn"}\n{"query": "q", "document": "d", "author": "Bo"}\n',
        ),
        (
            "rows.jsonl",
            b'{"query": "q", "document": "d", "author": {"a": ["\\ud800"]}}\n{"query": "q", "document": "d", "author": null}\n',
        ),
    ],
)
def test_kept_text_that_is_not_unicode_is_an_error_of_its_row(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    [part] = read(tmp_path)
    assert part.faults[0] is not None and "column `author` is not valid Unicode" in part.faults[0]
    assert "--drop-columns author" in part.faults[0]
    assert part.faults[1] is None
    assert read(tmp_path, drop_columns="author")[0].faults == [None, None]
