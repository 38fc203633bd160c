"""Bytes that changed in a Parquet file with page checksums are found by each of the readers."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_actor import storage
from rerank_actor.errors import RerankError
from rerank_actor.inputs.batches import read_batches, refuse_broken
from rerank_actor.inputs.pairs import TextSpec
from rerank_actor.inputs.rows import ReadLimits, Unit
from rerank_actor.inputs.shards import read_rows
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.outputs.row_groups import open_part, refuse_damaged

ROWS = 400
TABLE = pa.table({"query": [f"q {row}" for row in range(ROWS)], "document": [f"text {row}" for row in range(ROWS)]})


def read_unit(file: storage.StoredObject) -> pa.Table:
    unit = Unit("x-00000", file.uri, file.size, file.etag, 0, ROWS, -1)
    return read_rows(unit, InputSpec((file.uri,), TextSpec("query", "document"))).table


def read_unit_piecewise(file: storage.StoredObject) -> pa.Table:
    unit = Unit("x-00000", file.uri, file.size, file.etag, 0, ROWS, -1)
    spec = InputSpec((file.uri,), TextSpec("query", "document"))
    return read_rows(unit, spec, limits=ReadLimits(group_bytes=1)).table


def read_streamed(file: storage.StoredObject) -> pa.Table:
    with refuse_broken(file.uri, "parquet"):
        return pa.concat_tables([batch.to_table()[0] for batch in read_batches(file, "parquet")])


def read_scored(file: storage.StoredObject) -> pa.Table:
    with open_part(file) as parquet, refuse_damaged(file.uri):
        return parquet.read()


def read_dataset(file: storage.StoredObject) -> pa.Table:
    with refuse_damaged(file.uri):
        return storage.open_parquet([file.uri]).to_table()


@pytest.mark.parametrize("read", [read_unit, read_unit_piecewise, read_streamed, read_scored, read_dataset])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_flipped_byte_of_a_page_is_refused_by_each_reader(
    read: Callable[[storage.StoredObject], pa.Table], compression: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(TABLE, path, compression=compression, use_dictionary=False, write_page_checksum=True)
    sound = path.read_bytes()
    assert read(storage.list_objects(str(path))[0]).equals(TABLE)
    column = pq.read_metadata(path).row_group(0).column(1)
    end = column.data_page_offset + column.total_compressed_size
    for place in range(end - 200, end, 50):  # behind the page's header
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(RerankError, match=r"x\.parquet"):
            read(storage.list_objects(str(path))[0])
