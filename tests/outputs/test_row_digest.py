"""The digest of rows: what Parquet gives back has it, and any row that is another has another."""

import datetime
import io
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_actor.outputs.row_digest import _digest_around, digest_rows, has_digest

TIMES = [datetime.datetime(2026, 1, 2, 3, 4, 5), None, *(datetime.datetime(2026, 2, day) for day in (3, 4))]
COLUMNS: dict[str, pa.Array] = {
    "text": pa.array(["a", None, "", "ü"]),
    "large text": pa.array(["a", None, "", "b"], pa.large_string()),
    "bytes": pa.array([b"\0", None, b"", b"b"], pa.binary()),
    "fixed bytes": pa.array([b"ab", None, b"cd", b"ef"], pa.binary(2)),
    "truth": pa.array([True, None, False, True]),
    "small": pa.array([1, None, 3, 4], pa.uint8()),
    "half": pa.array(np.array([1, 2, 3, 4], np.float16)),
    "number": pa.array([1.5, None, float("nan"), -0.0]),
    "decimal": pa.array([Decimal("1.5"), None, Decimal("2.5"), Decimal("3.5")]),
    "seconds": pa.array(TIMES, pa.timestamp("s")),
    "zone": pa.array(TIMES, pa.timestamp("ns", tz="Europe/Zurich")),
    "day": pa.array([time and time.date() for time in TIMES], pa.date64()),
    "duration": pa.array([1, None, 3, 4], pa.duration("ms")),
    "nothing": pa.nulls(4),
    "dictionary": pa.array(["a", None, "b", "a"]).dictionary_encode(),
    "list": pa.array([["a", None], None, [], ["b"]]),
    "large list": pa.array([[1], None, [], [2, 3]], pa.large_list(pa.int16())),
    "list of lists": pa.array([[[1], []], None, [], [None, [2, 3]]]),
    "fixed list": pa.array([[1, 2], None, [3, 4], [5, None]], pa.list_(pa.int32(), 2)),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": []}, {"a": 4, "b": None}]),
    "map": pa.array([[("a", 1)], None, [], [("b", 2), ("c", None)]], pa.map_(pa.string(), pa.int32())),
}


def read_back(table: pa.Table, **options: object) -> pa.Table:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return pq.read_table(pa.BufferReader(sink.getvalue()))


@pytest.mark.parametrize("name", COLUMNS)
def test_column_has_its_digest_after_parquet_in_chunks_and_slices_and_another_in_another_order(name: str) -> None:
    column = COLUMNS[name]
    table = pa.table({"a": column})
    expected = digest_rows(table)
    assert digest_rows(read_back(table)) == expected
    assert digest_rows(read_back(table, row_group_size=1)) == expected
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert digest_rows(chunked) == expected
    padded = pa.table({"a": pa.concat_arrays([column[2:], column, column[:2]])})
    assert digest_rows(padded.slice(2, 4)) == expected
    if name != "nothing":
        assert digest_rows(table.take([0, 1, 3, 2])) != expected
        assert digest_rows(table.take([0, 1, 2, 2])) != expected
        assert digest_rows(table.take([0, 0, 2, 3])) != expected
    assert digest_rows(table.rename_columns(["b"])) != expected
    assert digest_rows(table.slice(0, 3)) != expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), st.none() | st.lists(st.none() | st.integers(0, 3)))), st.data())
def test_rows_that_differ_have_other_digests(
    rows: list[tuple[str, list[int | None] | None]], data: st.DataObject
) -> None:
    schema = pa.schema({"text": pa.string(), "numbers": pa.list_(pa.int64())})
    names = schema.names

    def make(some: list[tuple[str, list[int | None] | None]]) -> pa.Table:
        return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in some], schema)

    other = data.draw(st.permutations(rows) | st.lists(st.sampled_from(rows)) if rows else st.just(rows))
    assert (digest_rows(make(rows)) == digest_rows(make(list(other)))) == (rows == list(other))
    assert digest_rows(read_back(make(rows))) == digest_rows(make(rows))


UUIDS = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16), None, b"2" * 16, b"3" * 16], pa.binary(16)))


@pytest.mark.parametrize(
    "column",
    [
        UUIDS,
        pa.ListArray.from_arrays([0, 1, 1, 3, 4], UUIDS),
        pa.StructArray.from_arrays([UUIDS], ["a"]),
        pa.MapArray.from_arrays([0, 1, 1, 3, 4], pa.array(["a", "b", "c", "d"]), UUIDS),
    ],
    ids=["plain", "list", "struct", "map"],
)
def test_values_of_extension_types_count_and_digests_of_before_are_still_taken(column: pa.Array) -> None:
    table = pa.table({"a": column, "b": [1, 2, 3, 4]})
    digest = digest_rows(table)
    assert digest.startswith("s")
    assert digest_rows(read_back(table)) == digest
    other = table.set_column(0, "a", table["a"].take([0, 1, 3, 2]))
    assert not has_digest(other, digest)
    before = _digest_around(table, ["a"])  # of a version that went by the name
    assert has_digest(table, before)
    assert not has_digest(table.rename_columns(["c", "b"]), before)


class Degrees(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.list_(pa.int32()), "test.degrees")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Degrees":
        return cls()


def test_reader_that_does_not_know_an_extension_type_finds_the_digest_of_one_that_does() -> None:
    storage = pa.array([[1], None, [2, 3]], pa.list_(pa.int32()))
    table = pa.table({"a": pa.ExtensionArray.from_storage(Degrees(), storage)})
    unknown = read_back(table)  # nobody has registered it
    assert unknown.schema.field("a").type == storage.type
    assert digest_rows(unknown) == digest_rows(table)
