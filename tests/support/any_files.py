"""Tiny files of every format, right ones and such as people have: cut short, misnamed, with marks, odd columns and values."""

import csv
import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

NAMES = [
    "query",
    "document",
    "text",
    "title",
    "_id",
    "id",
    "query_id",
    "label",
    "score",
    "source",
    "q.r",
    " x",
    "",
    "ü",
]
SUFFIXES = [".pq", ".json", ".csv", ".txt", ".run", ".trec", ".feather", "", ".lzma"]
TEXTS = [
    "",
    "a",
    "b c",
    "日本\u2028",
    'say "x"',
    "tab\there",
    "two\nlines",
    "\r",
    "\x00",
    "1",
    "-0.5",
    "NaN",
    "\ufeff",
    "<|im_end|>",
]
LINES = [
    "q1 Q0 d1 1 2.5 run",
    "q1\td1\t0.5",
    "q1\td1\t1",
    "q1 0 d1 1",
    "query-id\tcorpus-id\tscore",
    "[",
    "{",
    "[{}]",
    '"',
    "null",
    "",
]
MARKS = [b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PAR1", b"ARROW1\0\0", b"\n\n", b"\x00"]
VALUES: dict[str, list[Any]] = {
    "query_id": ["q1", "q2", ""],
    "query": ["a", "b c", ""],
    "document_id": ["d1", "d2", "d3", "7"],
    "document": ["a", "x", "y z", "", None],
    "label": [1, 0, 0, 2, None],
    "score": [0.5, 0.25, 0.75, 1.0, None],
    "logit": [0.0, -1.0, 1.0, 25.0, None],
}
SELDOM = st.sampled_from([False] * 6 + [True])

texts = st.sampled_from(TEXTS)
plain = st.one_of(texts, st.none(), st.booleans(), st.sampled_from([0, 1, -1, 2**53 + 1, 2**64, 0.5, float("nan")]))
candidates = st.fixed_dictionaries({}, optional={name: plain for name in ("text", "title", "id", "x")})
values = st.one_of(texts, texts, plain, st.lists(st.one_of(texts, plain, candidates), max_size=3), candidates)
broken_texts = st.sampled_from(["\ud800", "\udcff", "a\udfff"])
TYPES: list[pa.DataType] = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.int64(), pa.float32(), pa.bool_(), pa.null(),
    pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 1),
    pa.list_(pa.struct([("text", pa.string()), ("title", pa.string())])), pa.struct([("text", pa.string())]),
    pa.list_(pa.list_(pa.string())), pa.list_(pa.int64()), pa.date32(), pa.decimal128(5, 2),
    pa.list_(pa.dictionary(pa.int32(), pa.string())), pa.timestamp("us", "UTC"), pa.float16(), pa.uint64(), pa.time64("us"),
]  # fmt: skip


def lists_of_names(usual: tuple[str, ...], least: int) -> st.SearchStrategy[list[str]]:
    """Names of columns: mostly the usual ones and others, seldom any."""
    others = st.lists(st.sampled_from([name for name in NAMES if name not in usual]), max_size=2, unique=True)
    more = st.lists(st.sampled_from(NAMES), min_size=least, max_size=3)
    return SELDOM.flatmap(lambda is_any: more if is_any else others.map(lambda rest: [*usual, *rest]))


@st.composite
def arrow_tables(draw: st.DrawFn, usual: tuple[str, ...]) -> pa.Table:
    """Tables of a few rows and columns of any types; of one column all values may be null."""
    columns, rows = [], draw(st.sampled_from([0, 1, 2, 3, 3]))
    called = draw(lists_of_names(usual, 0))
    for name in called:
        kind = draw(st.sampled_from(TYPES[:3] if name in usual and not draw(SELDOM) else TYPES))
        column = pa.nulls(rows, kind)
        for _ in range(4):
            given = draw(st.lists(values, min_size=rows, max_size=rows))
            try:
                column = pa.array(given, kind)
                break
            except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
                continue
        columns.append(column)
    return pa.Table.from_arrays(columns, names=called)


def _write_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink, row_group_size=2)
    except (pa.ArrowException, ValueError):
        return b"PAR1"
    return sink.getvalue()


def _write_arrow(table: pa.Table, *, as_file: bool) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_file if as_file else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def _write_fields(rows: list[list[Any]], delimiter: str) -> bytes:
    sink = io.StringIO()
    if delimiter == ",":
        csv.writer(sink).writerows(rows)
    else:
        sink.writelines(delimiter.join(map(str, row)) + "\n" for row in rows)
    return sink.getvalue().encode("utf-8", "surrogatepass")


@st.composite
def contents(draw: st.DrawFn, usual: tuple[str, ...]) -> tuple[str, bytes]:
    """A suffix and bytes of that format, or of none."""
    kind = draw(st.sampled_from([".parquet", ".parquet", ".arrow", ".jsonl", ".jsonl", ".csv", ".tsv", ".run", ".bin"]))
    if kind == ".parquet":
        return kind, _write_parquet(draw(arrow_tables(usual)))
    if kind == ".arrow":
        return kind, _write_arrow(draw(arrow_tables(usual)), as_file=draw(st.booleans()))
    if kind == ".jsonl":
        keys = draw(lists_of_names(usual, 0))
        item = st.dictionaries(st.sampled_from(keys), st.one_of(values, broken_texts)) if keys else st.just({})
        whole = st.fixed_dictionaries({key: texts if key in usual else values for key in keys})
        lines = [
            json.dumps(one, ensure_ascii=draw(st.booleans()))
            for one in draw(st.lists(item | whole, min_size=draw(st.integers(0, 2)), max_size=4))
        ]
        return kind, "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")
    if kind in (".csv", ".tsv"):
        header = draw(lists_of_names(usual, 1))
        row = st.lists(st.one_of(texts, texts, broken_texts), min_size=len(header), max_size=len(header))
        return kind, _write_fields(
            [header, *draw(st.lists(row, min_size=draw(st.integers(0, 2)), max_size=3))],
            "," if kind == ".csv" else "\t",
        )
    if kind == ".run":
        return kind, "\n".join(draw(st.lists(st.sampled_from(LINES), max_size=4))).encode()
    return kind, draw(st.binary(max_size=40))


@st.composite
def harmed(draw: st.DrawFn, data: bytes, kinds: tuple[str, ...] = ("", "", "", "", "cut", "mark", "flip")) -> bytes:
    """Bytes as they are, mostly; or cut short, behind a mark, or with a byte that is another."""
    harm = draw(st.sampled_from(kinds))
    if harm == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif harm == "mark":
        data = draw(st.sampled_from(MARKS)) + data
    elif harm == "flip" and data:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    return data


@st.composite
def files(draw: st.DrawFn, usual: tuple[str, ...] = ("query", "document")) -> tuple[str, bytes]:
    """A name and bytes: of the same format or not, packed or not, whole or cut short."""
    suffix, data = draw(contents(usual))
    if draw(SELDOM):
        suffix = draw(st.sampled_from(SUFFIXES))
    packing = draw(st.sampled_from(["", "", "", ".gz", ".zst"])) if suffix not in (".parquet", ".arrow") else ""
    if packing and not draw(SELDOM):
        codec = pa.Codec("zstd")
        data = gzip.compress(data) if packing == ".gz" else codec.compress(data, asbytes=True)
    data = draw(harmed(data))
    return draw(st.sampled_from(["a", "b.en-es", "part 1", "c.spa-eng"])) + suffix + packing, data


@st.composite
def scored_tables(draw: st.DrawFn) -> bytes:
    """Parquet such as scoring leaves, with odd values and types here and there."""
    rows = draw(st.integers(1, 5))
    kinds: dict[str, pa.DataType] = {name: pa.string() for name in ("query_id", "query", "document_id", "document")}
    kinds |= {"label": draw(st.sampled_from([pa.int64(), pa.bool_(), pa.string(), pa.float64()]))}
    kinds |= {"score": pa.float32(), "logit": pa.float32()}
    arrays: dict[str, pa.Array] = {}
    for name, kind in kinds.items():
        if draw(SELDOM):
            kind = draw(st.sampled_from(TYPES))
        given = draw(st.lists(st.sampled_from(VALUES[name]), min_size=rows, max_size=rows))
        try:
            if pa.types.is_string(kind):
                given = [None if value is None else str(value) for value in given]
            arrays[name] = pa.array(given).cast(kind)
        except (pa.ArrowException, TypeError, ValueError):
            arrays[name] = pa.nulls(rows, kind)
        if draw(SELDOM):
            del arrays[name]
    return _write_parquet(pa.table(arrays))


def some_of(flags: dict[str, st.SearchStrategy[Any]], most: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """Values of a few of some flags."""
    picked = st.lists(st.sampled_from(sorted(flags)), max_size=most, unique=True)
    return picked.flatmap(lambda names: st.fixed_dictionaries({name: flags[name] for name in names}))
