"""Rows brought together through storage: what several tasks wrote is read by bucket, also after its records were stored."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rerank_actor.errors import ShardError
from rerank_actor.runtime.task_report import pack_report, unpack_report
from rerank_actor.storage.exchange import Exchange, assign_buckets, collect_slices, hash_keys, read_slices


def write_pieces(folder: Path, num_buckets: int) -> tuple[Exchange, list[pa.Table], list[dict[str, object]]]:
    exchange = Exchange(str(folder), num_buckets, scratch=str(folder / "tmp"))
    pieces = [pa.table({"key": [f"{piece}-{row}" for row in range(40)], "row": range(40)}) for piece in range(3)]
    written = []
    for number, table in enumerate(pieces):
        bucket = assign_buckets(hash_keys(table["key"].combine_chunks()), num_buckets)
        written.append(dict(exchange.write(f"{number}.bin", table, bucket)))
    return exchange, pieces, written


@pytest.mark.parametrize("num_buckets", [1, 7, 500])
def test_each_row_is_read_once_from_the_bucket_of_its_key_in_order_of_pieces(tmp_path: Path, num_buckets: int) -> None:
    exchange, pieces, written = write_pieces(tmp_path, num_buckets)
    stored = json.loads(json.dumps(written, default=np.ndarray.tolist))
    travelled = unpack_report(*pack_report({"written": written}))["written"]
    assert collect_slices(stored, num_buckets) == collect_slices(travelled, num_buckets)
    rows = []
    for bucket, slices in enumerate(collect_slices(stored, num_buckets)):
        table = read_slices(slices)
        if table is None:
            assert not slices
            continue
        assert set(assign_buckets(hash_keys(table["key"].combine_chunks()), num_buckets).tolist()) == {bucket}
        keys = table["key"].to_pylist()
        assert keys == sorted(keys, key=lambda key: [int(part) for part in key.split("-")])
        rows += table.to_pylist()
    assert sorted(rows, key=str) == sorted(pa.concat_tables(pieces).to_pylist(), key=str)
    exchange.delete()
    assert not list(tmp_path.glob("*.bin"))


def test_slices_with_other_columns_are_read_together_where_that_is_wanted_alone(tmp_path: Path) -> None:
    exchange = Exchange(str(tmp_path), 2)
    tables = [pa.table({"a": [1]}), pa.table({"a": [2], "b": ["x"]})]
    written = [exchange.write(f"{number}.bin", table, np.array([1])) for number, table in enumerate(tables)]
    empty, both = collect_slices(written, 2)
    assert read_slices(empty) is None
    table = read_slices(both, widens=True)
    assert table is not None
    assert table.to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    with pytest.raises(pa.ArrowInvalid, match="Schema"):
        read_slices(both)


def test_damaged_slice_is_refused_with_its_bytes(tmp_path: Path) -> None:
    _, _, written = write_pieces(tmp_path, 4)
    path = tmp_path / "1.bin"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(ShardError, match=r"1\.bin: bytes 0 to \d+ are damaged"):
        read_slices(collect_slices(written, 4)[0])


def test_report_comes_back_with_its_arrays_at_any_depth() -> None:
    report = {"a": np.array([1, 2], np.uint64), "b": [{"c": np.zeros(0), "d": "\ud800", "e": None}], "f": 1.5}
    found = unpack_report(*pack_report(report))
    assert found["a"].dtype == np.uint64
    assert found["a"].tolist() == [1, 2]
    assert found["b"][0]["c"].dtype == np.float64
    assert (found["b"][0]["d"], found["b"][0]["e"], found["f"]) == ("\ud800", None, 1.5)
