"""Text formats in ranges of bytes, broken lines with their place, and blocks that follow candidates."""

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from rerank_actor import storage
from rerank_actor.errors import InputError, RerankError, ShardError
from rerank_actor.inputs import shards, text_scan
from rerank_actor.inputs.pairs import TextSpec
from rerank_actor.inputs.plan import MAX_UNIT_ROWS, Plan, make_plan
from rerank_actor.inputs.rows import LIMITS, ReadLimits, ShardLayout, Unit
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.syntax.quoted import Dialect
from rerank_actor.job import load_job


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def scan(
    path: Path, block_rows: int = 7, break_at: int = -1, limits: ReadLimits = LIMITS, **options: Any
) -> ShardLayout:
    item = storage.StoredObject(str(path), path.stat().st_size, "")
    return shards.scan_shard(item, InputSpec(unit_rows=block_rows, **options), break_at, limits)


def read(path: Path, layout: ShardLayout, **options: Any) -> list[shards.Rows]:
    """Read each block by itself."""
    found, row = [], 0
    for block in layout.blocks:
        found.append(
            shards.read_rows(
                Unit("", str(path), path.stat().st_size, "", row, block.num_rows, block.byte_start, block.number),
                InputSpec(**options),
                layout.columns,
            )
        )
        row += block.num_rows
    return found


def make_lines(seed: int) -> list[str]:
    """Return JSON lines of all lengths, with blank and broken ones among them."""
    chance = random.Random(seed)
    made = []
    for number in range(150):
        row = {"query": f"{number} \u00e9" + "x" * chance.choice([0, 3, 60, 900]), "n": number}
        made.append(json.dumps(row, ensure_ascii=chance.random() < 0.5))
        if chance.random() < 0.1:
            made.append(chance.choice(["", " ", "\r", "{broken", "[1]", '{"query": "two"} {"query": "rows"}']))
    return made


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("range_bytes", [40, 977, 10**6])
@pytest.mark.parametrize("end", ["\n", ""])
def test_ranges_of_any_size_find_the_rows_that_lines_hold(
    tmp_path: Path, range_bytes: int, packing: str, end: str
) -> None:
    made = make_lines(range_bytes)
    data = ("\n".join(made) + end).encode()
    path = write(tmp_path / f"rows.jsonl{packing}", gzip.compress(data) if packing else data)
    layout = scan(path, limits=ReadLimits(range_bytes=range_bytes))
    expected = [(number, line) for number, line in enumerate(made, start=1) if line.strip()]
    found = read(path, layout)
    assert layout.num_rows == len(expected)
    assert {name: str(kind) for name, kind in layout.columns.items()} == {"query": "string", "n": "int64"}
    faults = [fault for rows in found for fault in rows.faults]
    values = [value for rows in found for value in rows.table.column("n").to_pylist()]
    for (number, line), fault, value in zip(expected, faults, values, strict=True):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            assert (fault, value) == (None, row["n"])
        else:
            assert (fault, value) == (f"line is not a JSON object ({path}, line {number})", None)
    firsts = {block.number for block in layout.blocks}
    assert firsts <= {number for number, _ in expected}


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_fields_that_do_not_fit_the_header_name_their_line(tmp_path: Path, kind: str) -> None:
    mark = "," if kind == "csv" else "\t"
    quoted = '"two\nlines"' if kind == "csv" else "one line"
    rows = ["query,n", f"{quoted},1", "", "short", "q,2", "q,3,more"]
    path = write(tmp_path / f"rows.{kind}", "\n".join(row.replace(",", mark) for row in rows).encode())
    faults = [fault for found in read(path, scan(path, block_rows=1)) for fault in found.faults if fault]
    extra = 1 if kind == "csv" else 0
    assert [fault.rpartition("line ")[2] for fault in faults] == [f"{4 + extra})", f"{6 + extra})"]
    assert all(fault.startswith("row has another number of fields than the header (") for fault in faults)


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_text_without_a_header_has_the_columns_that_are_named(tmp_path: Path, kind: str) -> None:
    mark = "," if kind == "csv" else "\t"
    path = write(tmp_path / f"rows.{kind}", f"a{mark}1\n\nshort\nb{mark}2\n".encode())
    layout = scan(path, 1, header=("query", "n"))
    assert (list(layout.columns), layout.num_rows) == (["query", "n"], 3)
    found = read(path, layout, header=("query", "n"))
    assert [value for rows in found for value in rows.table.column("n").to_pylist()] == ["1", None, "2"]
    assert [fault for rows in found for fault in rows.faults if fault] == [
        f"row has another number of fields than the header ({path}, line 3)"
    ]
    job = {"input": str(path), "output": str(tmp_path / "out")}
    with pytest.raises(InputError, match="--columns where the first line is no header"):
        make_plan(load_job(None, job).input_spec(), Plan())
    assert make_plan(load_job(None, {**job, "columns": "query,document"}).input_spec(), Plan())[0].num_rows == 3


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz"])
@pytest.mark.parametrize("first", ["query,document", "Document,QUERY", '\ufeff"query","document"'])
def test_header_is_no_row_where_columns_are_named(tmp_path: Path, name: str, first: str) -> None:
    data = f"{first}\na,b\n".replace(",", "\t" if "tsv" in name else ",").encode()
    path = write(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    options = {"dialect": Dialect("csv")} if "tsv" in name else {}
    with pytest.raises(ShardError, match=r"its first line is a header .*leave out --columns"):
        scan(path, header=("query", "document"), **options)
    assert scan(path, header=("query", "answer"), **options).num_rows == 2


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.csv", "query;document\na;b\n", "separated by `;`, which is not read"),
        ("a.csv", "query\tdocument\na\tb\n", "separated by tabs, which --format tsv reads"),
        ("a.tsv", "query,document\na,b\n", "separated by commas, which --format csv reads"),
        ("a.csv", "sep=,\nquery,document\n", "its first line tells Excel the separator"),
        ("a.jsonl", '{"q0": {"d0": 1.5}}\n', "--format mteb-predictions reads it"),
        ("a.jsonl", '{"question": "q", "document": "d"}\n', "choose with --query-column"),
    ],
)
def test_header_of_another_separator_is_told(tmp_path: Path, name: str, data: str, told: str) -> None:
    path = write(tmp_path / name, data.encode())
    with pytest.raises(InputError, match=f"no column `query`; it has .*{re.escape(told)}"):
        make_plan(load_job(None, {"input": str(path), "output": str(tmp_path / "out")}).input_spec(), Plan())


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_null_of_a_database_is_told_until_somebody_says_what_it_is(tmp_path: Path, kind: str) -> None:
    data = "query,document\na,b\n\\N,b\na,\\N\na,\\No\n".replace(",", "," if kind == "csv" else "\t")
    path = write(tmp_path / f"rows.{kind}", data.encode())
    for escape, documents in (("none", ["b", "b", r"\N", r"\No"]), ("\\", ["b", "b", None, None])):
        options: dict[str, Any] = {"dialect": Dialect(escape=escape)}
        found = [value for rows in read(path, scan(path, **options), **options) for value in rows.texts["document"]]
        assert found[:3] == documents[:3]
    layout = scan(path)
    unread = shards.read_rows(
        Unit("", str(path), path.stat().st_size, "", 0, 4, layout.blocks[0].byte_start, layout.blocks[0].number),
        InputSpec(texts=TextSpec(query_column="document", document_column="document")),
    )
    assert [bool(fault) for fault in unread.faults] == [False, False, True, False], "a column that is not read keeps it"
    assert unread.table["query"].to_pylist()[1] == r"\N"
    faults = [fault for rows in read(path, scan(path)) for fault in rows.faults]
    assert [bool(fault) for fault in faults] == [False, True, True, False]
    assert faults[1] is not None
    assert f"a field is {chr(92)}N, which is null in dumps" in faults[1]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "rows.jsonl.gz"])
@pytest.mark.parametrize("break_at", [1, 5, 19])
def test_block_begins_where_it_is_told_to(tmp_path: Path, name: str, break_at: int) -> None:
    mark = "\t" if ".tsv" in name else ","
    made = [f"query{mark}n", *(f"q{mark}{row}" for row in range(20))]
    if ".jsonl" in name:
        made = [json.dumps({"query": "q", "n": str(row)}) for row in range(20)]
    data = "\n\n".join(made).encode()
    path = write(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    layout = scan(path, 8, break_at)
    row = 0
    starts = [row := row + block.num_rows for block in layout.blocks]
    assert break_at in starts and starts[-1] == 20
    values = [value for rows in read(path, layout) for value in rows.table.column("n").to_pylist()]
    assert values == [str(row) for row in range(20)]


def test_json_array_is_refused_with_the_cure(tmp_path: Path) -> None:
    for text in ('[{"query": "q"}]', '[\n{"query": "q"}\n]'):
        with pytest.raises(ShardError, match=r"JSON array.*jq"):
            scan(write(tmp_path / "rows.json", text.encode()))


def test_line_without_end_is_refused_and_never_held(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"query": "' + b"x" * 5000 + b'"}')
    with pytest.raises(RerankError, match=f"{path}: a line of more than"):
        scan(path, limits=ReadLimits(line_bytes=1000, range_bytes=100))


def test_lines_parsed_by_arrow_have_the_types_that_python_finds(tmp_path: Path) -> None:
    limits = ReadLimits(range_bytes=200)
    objects = [{"query": "q", "n": 1, "when": "2026-01-01", "deep": {"a": [1.5]}} for _ in range(30)]
    path = write(tmp_path / "rows.jsonl", "".join(json.dumps(found) + "\n" for found in objects).encode())
    types = scan(path, limits=limits).columns
    assert str(types["when"]) == "string"
    parsed = text_scan._parse_with_arrow(path.read_bytes(), types)
    assert parsed is not None and parsed.num_rows == 30
    objects[20]["n"] = "text"
    path.write_text("".join(json.dumps(found) + "\n" for found in objects))
    assert str(scan(path, limits=limits).columns["n"]) == "string"
    objects[20] = {"query": "q", "n": 1, "later": True}
    path.write_text("".join(json.dumps(found) + "\n" for found in objects))
    assert str(scan(path, limits=limits).columns["later"]) == "bool"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_units_hold_as_many_rows_as_their_candidates_allow(tmp_path: Path, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sizes = [10_000, 3, 10_000, *[1000] * 40, *[0, 1, 2] * 400]
    rows = [{"query": str(row), "document": ["d"] * size} for row, size in enumerate(sizes)]
    path = tmp_path / "in" / name
    path.parent.mkdir()
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan, _ = make_plan(load_job(None, {"input": str(path), "output": str(tmp_path / "out")}).input_spec(), Plan())
    units = list(plan.units())
    pairs = [sum(sizes[unit.row_start : unit.row_start + unit.num_rows]) for unit in units]
    assert sum(unit.num_rows for unit in units) == len(sizes)
    assert max(pairs) <= MAX_UNIT_ROWS
    assert len(units) > 5
    assert units[-1].num_rows > 100  # rows of few candidates stay together
