"""Parquet files as objects: tables to bytes with the checksums of their pages, and objects as a dataset that compares these.

Knows nothing of what the rows mean.
"""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from rerank_actor.storage.objects import open_input
from rerank_actor.storage.s3_client import connect_s3
from rerank_actor.storage.uri import is_remote, is_s3, split_uri

PARQUET_SCAN = ds.ParquetFragmentScanOptions(page_checksum_verification=True)


def to_parquet(table: pa.Table, **options: Any) -> bytes:
    """Return a table as a Parquet file; `options` are of `pyarrow.parquet.write_table`."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, **options)
    return sink.getvalue()


def open_parquet(uris: Sequence[str]) -> ds.Dataset:
    """Return Parquet objects, all in one store, as a pyarrow dataset in their order; rows are read later."""
    checked = ds.ParquetFileFormat(default_fragment_scan_options=PARQUET_SCAN)
    if uris and is_s3(uris[0]):
        return ds.dataset(["/".join(split_uri(uri)) for uri in uris], filesystem=connect_s3(), format=checked)
    if uris and is_remote(uris[0]):
        fragments = [checked.make_fragment(open_input(uri)) for uri in uris]
        return ds.FileSystemDataset(fragments, fragments[0].physical_schema, checked)
    return ds.dataset(list(uris), format=checked)
