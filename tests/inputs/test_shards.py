"""Shards: what is cut into units reads back as the rows that were written, and what cannot be read says so."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from s3_server import S3Server

from rerank_actor import storage
from rerank_actor.errors import InputError, RerankError, ShardError
from rerank_actor.inputs import shards
from rerank_actor.inputs.batches import read_batches
from rerank_actor.inputs.formats import detect_format
from rerank_actor.inputs.plan import Plan, make_plan
from rerank_actor.inputs.rows import LIMITS, ReadLimits, Unit
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.job import load_job
from rerank_actor.storage.limits import override_limits

Write = Callable[..., Path]
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
TRICKY = [
    "plain",
    "comma, 'quoted' \"twice\"",
    "\u4f60\u597d \U0001f600",
    " spaces ",
    "tab-free;|",
    '"',
    "7",
    "",
    "a,b",
]
ROWS = [{"id": str(i), "query": TRICKY[i % 9], "document": TRICKY[i * 2 % 9] + f" {i}"} for i in range(23)]


def write_text(kind: str, rows: list[dict[str, str]], end: str = "\n") -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    if kind == "tsv":
        return "".join("\t".join(fields) + end for fields in table).encode()
    sink = io.StringIO(newline="")
    csv.writer(sink, lineterminator=end).writerows(table)
    return sink.getvalue().encode()


def store(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read_back(
    path: Path,
    unit_rows: int,
    wanted: str = "auto",
    keep: list[str] | None = None,
    limits: ReadLimits = LIMITS,
) -> list[shards.Rows]:
    """Plan one shard and read all of its units."""
    flags = {"input": str(path), "output": str(path.parent.parent / "out"), "format": wanted, "unit_rows": unit_rows}
    plan, _ = make_plan(load_job(None, flags).input_spec(), Plan())
    units = list(plan.units())
    assert max(unit.num_rows for unit in units) <= unit_rows
    return [
        shards.read_rows(
            unit, InputSpec(format=wanted, keep=tuple(keep) if keep is not None else None), plan.json_types, limits
        )
        for unit in units
    ]


def join(found: list[shards.Rows]) -> list[dict[str, Any]]:
    rows = pa.concat_tables([part.table for part in found]).to_pylist()
    texts = [text for part in found for text in part.texts["document"]]
    assert texts == [row["document"] for row in rows]
    return rows


def scan(path: Path, wanted: str = "auto") -> shards.ShardLayout:
    item = storage.StoredObject(str(path), path.stat().st_size, "")
    return shards.scan_shard(item, InputSpec(format=wanted, unit_rows=100))


@pytest.mark.parametrize("unit_rows", [1, 4, 100])
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_text_shard_in_units_reads_back_as_written(tmp_path: Path, kind: str, packing: str, unit_rows: int) -> None:
    path = store(tmp_path / "in" / f"rows.{kind}{packing}", PACK[packing](write_text(kind, ROWS)))
    found = read_back(path, unit_rows)
    assert join(found) == ROWS
    assert not any(fault for part in found for fault in part.faults)


@pytest.mark.parametrize("unit_rows", [1, 4, 100])
@pytest.mark.parametrize("group_rows", [1, 5, 100])
@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_parquet_shard_in_units_reads_back_as_written(
    write_shard: Write, codec: str, group_rows: int, unit_rows: int
) -> None:
    path = write_shard(ROWS, row_group_size=group_rows, compression=codec)
    assert join(read_back(path, unit_rows)) == ROWS


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_packed_shard_of_several_frames_reads_back_whole(tmp_path: Path, packing: str) -> None:
    data = write_text("csv", ROWS)
    framed = b"".join(PACK[packing](data[start : start + 100]) for start in range(0, len(data), 100))
    assert join(read_back(store(tmp_path / "in" / f"rows.csv{packing}", framed), 5)) == ROWS


@pytest.mark.parametrize("unit_rows", [1, 3, 100])
@pytest.mark.parametrize(
    ("label", "change"),
    [
        ("windows line ends", lambda data: data.replace(b"\n", b"\r\n")),
        ("no last line end", lambda data: data.rstrip(b"\n")),
        ("byte order mark", lambda data: b"\xef\xbb\xbf" + data),
        ("blank lines between", lambda data: data.replace(b"\n", b"\n\n\r\n")),
        ("blank lines last", lambda data: data + b"\n\n\n"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_text_shard_of_another_editor_reads_back_as_written(
    tmp_path: Path, kind: str, label: str, change: Callable[[bytes], bytes], unit_rows: int
) -> None:
    path = store(tmp_path / "in" / f"rows.{kind}", change(write_text(kind, ROWS)))
    found = read_back(path, unit_rows)
    assert join(found) == ROWS, label
    assert not any(fault for part in found for fault in part.faults)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_fields_with_line_ends_inside_quotes_read_back(tmp_path: Path, end: str) -> None:
    inner = ['two\nlines, "quoted"', "\n", 'ends in a quote"\n', "\r\nwindows", "a\n\n\nb", '""']
    rows = [{"query": text, "document": f"{text}{i}"} for i, text in enumerate(inner * 3)]
    path = store(tmp_path / "in" / "rows.csv", write_text("csv", rows, end))
    for unit_rows in (1, 4, 100):
        assert join(read_back(path, unit_rows)) == rows


def test_csv_quote_inside_an_unquoted_field_loses_no_row(tmp_path: Path) -> None:
    path = store(tmp_path / "in" / "rows.csv", b'query,document\n5" pipe,foo\nbar,baz\n6" x,zz\nlast,row\n')
    found = [(row["query"], row["document"]) for row in join(read_back(path, 2))]
    assert found == [('5" pipe', "foo"), ("bar", "baz"), ('6" x', "zz"), ("last", "row")]


def test_csv_carriage_return_in_an_unquoted_field_loses_no_other_row(tmp_path: Path) -> None:
    path = store(tmp_path / "in" / "rows.csv", b"query,document\nq,d\nold\rmac,text\nlast,row\n")
    found = join(read_back(path, 10))
    assert (found[0]["query"], found[0]["document"]) == ("q", "d")
    assert (found[-1]["query"], found[-1]["document"]) == ("last", "row")


@pytest.mark.parametrize("unit_rows", [1, 2, 100])
def test_jsonl_broken_lines_stay_as_rows_with_a_fault(tmp_path: Path, unit_rows: int) -> None:
    good = '{"query": "q", "document": "d", "n": 1}'
    lines = [good, '{"query": "q"', good, "[1, 2]", "null", '"text"', "\xff", good, "[" * 100_000, "7", good]
    path = store(tmp_path / "in" / "rows.jsonl", "\n".join(lines).encode("latin-1"))
    found = read_back(path, unit_rows)
    faults = [fault for part in found for fault in part.faults]
    assert [fault is None for fault in faults] == [line == good for line in lines]
    assert [row["n"] for row in join(found)] == [1 if line == good else None for line in lines]
    assert {str(part.table.schema.field("n").type) for part in found} == {"int64"}


def test_jsonl_key_that_is_not_unicode_fails_no_other_row(tmp_path: Path) -> None:
    lines = b'{"query": "q", "document": "d"}\n{"query": "q", "document": "e", "\\ud800": 1}\n'
    path = store(tmp_path / "in" / "rows.jsonl", lines)
    assert join(read_back(path, 10))[0]["document"] == "d"
    assert Plan.from_bytes(
        make_plan(load_job(None, {"input": str(path), "output": "/out"}).input_spec(), Plan())[0].to_bytes({})
    )


@pytest.mark.parametrize(("kind", "mark"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("unit_rows", [1, 100])
def test_text_row_of_too_few_or_many_fields_stays_with_a_fault(
    tmp_path: Path, kind: str, mark: str, unit_rows: int
) -> None:
    fields = [["query", "document"], ["q", "d"], ["short"], ["q", "d", "more"], ["q", "last"]]
    data = "\n".join(mark.join(row) for row in fields).encode()
    found = read_back(store(tmp_path / "in" / f"rows.{kind}", data), unit_rows)
    assert [fault is None for part in found for fault in part.faults] == [True, False, False, True]
    assert [row["document"] for row in join(found)] == ["d", None, "d", "last"]


@pytest.mark.parametrize(
    ("kind", "is_list"),
    [
        (pa.dictionary(pa.int32(), pa.string()), False),
        (pa.large_string(), False),
        (pa.string_view(), False),
        (pa.list_(pa.string()), True),
        (pa.large_list(pa.large_string()), True),
        (pa.list_(pa.string(), 2), True),
    ],
    ids=str,
)
def test_parquet_text_type_reads_as_python_text(write_shard: Write, kind: pa.DataType, is_list: bool) -> None:
    values = [["a", None], ["b", "c"], None] if is_list else ["a", None, "\u4f60"]
    documents = pa.array(values).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values, kind)
    path = write_shard(pa.table({"query": ["q"] * 3, "document": documents}))
    found = read_back(path, 2)
    assert join(found) == [{"query": "q", "document": value} for value in values]
    assert all(("document" in part.list_columns) is is_list for part in found)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_parquet_bytes_that_are_no_utf8_leave_other_rows_readable(write_shard: Write, kind: pa.DataType) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 4, 5], np.int32))
    broken = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"ab\xff\xfec")])
    if pa.types.is_dictionary(kind):
        broken = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), broken)
    elif pa.types.is_large_string(kind):
        broken = broken.cast(kind)
    found = read_back(write_shard(pa.table({"query": ["q"] * 3, "document": broken})), 10)[0]
    assert (found.texts["document"][0], found.texts["document"][2]) == ("a", "c")
    with pytest.raises(UnicodeEncodeError):
        found.texts["document"][1].encode()


@pytest.mark.parametrize("keep", [None, [], ["id"], ["document", "query"]])
def test_parquet_large_row_groups_read_piecewise_are_the_same(write_shard: Write, keep: list[str] | None) -> None:
    rows = [{"id": i, "query": f"q{i}", "document": f"d{i}", "lists": [str(i)]} for i in range(3000)]
    path = write_shard(pa.Table.from_pylist(rows), row_group_size=2500)
    whole = read_back(path, 700, keep=keep)
    pieces = read_back(path, 700, keep=keep, limits=ReadLimits(group_bytes=1))
    assert [part.texts for part in pieces] == [part.texts for part in whole]
    assert all(a.table.equals(b.table) and a.faults == b.faults for a, b in zip(pieces, whole, strict=True))
    assert [text for part in pieces for text in part.texts["query"]] == [row["query"] for row in rows]


def test_unit_of_a_large_row_group_reads_few_bytes_behind_its_rows(s3: S3Server) -> None:
    block_bytes = 2**18
    documents = [random.Random(i).randbytes(4_000).hex() for i in range(6000)]
    sink = io.BytesIO()
    table = pa.table({"query": ["q"] * len(documents), "document": documents})
    pq.write_table(table, sink, compression="none", use_dictionary=False, data_page_size=2**16)
    s3.put("in/a.parquet", sink.getvalue())
    [found] = storage.list_objects(s3.uri("in"))
    s3.requests.clear()
    unit = Unit("0-0", found.uri, found.size, found.etag, 0, 20, 0, format="parquet")
    spec = load_job(None, {"input": s3.uri("in"), "output": s3.uri("out")}).input_spec()
    with override_limits(read_ahead_bytes=block_bytes):
        rows = shards.read_rows(unit, spec, limits=ReadLimits(group_bytes=1))
    assert list(rows.texts["document"]) == documents[:20]
    assert len(s3.requests) < found.size // block_bytes // 2

    s3.requests.clear()
    with override_limits(read_ahead_bytes=block_bytes):
        limits = ReadLimits(group_bytes=1, batch_rows=20)
        first = next(read_batches(found, "parquet", limits=limits))
    assert first.values("document") == documents[:20]
    assert len(s3.requests) < found.size // block_bytes // 2


GOOD_JSON = write_text("jsonl", [{"query": f"q{i}", "document": f"d{i * 7919 % 10007}"} for i in range(2000)])


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cut.parquet", lambda data: data[:-10]),
        ("head.parquet", lambda data: data[:30]),
        ("zero.parquet", lambda data: b""),
        ("text.parquet", lambda data: b"query,document\n" * 10),
        ("damaged.parquet", lambda data: data[:-30] + b"\xff" * 20 + data[-10:]),
        ("cut.jsonl.gz", lambda _: gzip.compress(GOOD_JSON)[:-1000]),
        ("cut.jsonl.zst", lambda _: zstandard.compress(GOOD_JSON)[:-1000]),
        ("other.jsonl.gz", lambda _: GOOD_JSON),
        ("other.jsonl.zst", lambda _: GOOD_JSON),
        ("damaged.jsonl.gz", lambda _: gzip.compress(GOOD_JSON)[:100] + b"\xff" * 500),
        ("damaged.jsonl.zst", lambda _: zstandard.compress(GOOD_JSON)[:100] + b"\xff" * 500),
    ],
)
def test_broken_shard_when_scanned_is_an_error_that_names_it(
    tmp_path: Path, name: str, make: Callable[[bytes], bytes]
) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    path = store(tmp_path / name, make(sink.getvalue()))
    with pytest.raises(ShardError, match=str(path)):
        scan(path)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.csv", "rows.tsv.gz"])
def test_shard_that_shrank_since_planned_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    kind, packing = name.split(".")[1], "." + name.split(".")[2] if name.count(".") > 1 else ""

    def write(rows: list[dict[str, str]]) -> Path:
        if kind != "parquet":
            return store(tmp_path / name, PACK[packing](write_text(kind, rows)))
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        return tmp_path / name

    start = max(0, scan(write(ROWS)).blocks[0][2])
    path = write(ROWS[:5])
    with pytest.raises(ShardError, match=str(path)):
        shards.read_rows(Unit("", str(path), path.stat().st_size, "", 0, len(ROWS), start), InputSpec())


def test_parquet_columns_of_one_name_are_refused_by_name(write_shard: Write) -> None:
    path = write_shard(pa.table([["q"], ["r"], ["d"]], names=["query", "query", "document"]))
    with pytest.raises(RerankError, match="`query`"):
        scan(path)


@pytest.mark.parametrize("name", ["rows.dat", "rows", "rows.dat.gz", "parquet"])
def test_shard_of_unknown_suffix_is_refused_with_the_flag(name: str) -> None:
    with pytest.raises(InputError, match="--format"):
        detect_format(f"/data/{name}")
    assert detect_format("/data/rows.dat.gz", "csv") == ("csv", "gz")
    assert detect_format("s3://bucket/ROWS.PARQUET") == ("parquet", "")


@pytest.mark.parametrize(
    ("name", "data", "header", "requests"),
    [
        ("a.jsonl", b'{"query": "q", "document": "d"}\n' * 3, (), 1),
        ("a.tsv", b"q\td\n" * 3, ("query", "document"), 1),
        ("b.tsv", b"query\tdocument\n" + b"q\td\n" * 3, (), 2),
    ],
    ids=["json lines", "names that were given", "names of the first line"],
)
def test_unit_of_text_in_s3_takes_a_request_and_one_for_a_header(
    s3: S3Server, name: str, data: bytes, header: tuple[str, ...], requests: int
) -> None:
    s3.put(f"in/{name}", data)
    [item] = storage.list_objects(s3.uri(f"in/{name}"))
    spec = InputSpec(header=header)
    [block] = shards.scan_shard(item, spec).blocks
    unit = Unit("", item.uri, item.size, item.etag, 0, block.num_rows, block.byte_start, block.number)
    s3.requests.clear()
    assert shards.read_rows(unit, spec).texts["query"] == ["q"] * 3
    assert [method for method, _ in s3.requests] == ["GET"] * requests
