"""The shuffle: rows that lie in several units of work and belong together, brought together through the output folder.

A unit writes one object with a slice for each bucket, an Arrow stream of its own, and says at what byte each begins; a
bucket reads its slices of all units. So there are as many objects as units, however many buckets there are, and each row
is written and read once. Knows nothing of what the rows mean, or of Ray.
"""

import hashlib
import io

import numpy as np
import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import ShardError


def hash_keys(keys: pa.Array) -> np.ndarray:
    """Return a 64-bit hash of each key, the same in every process: uint64 [num_keys]."""
    digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys.cast(pa.large_binary()).to_pylist())
    return np.frombuffer(digests, "<u8")


def find_buckets(hashes: np.ndarray, num_buckets: int) -> np.ndarray:
    """Return the bucket of each hash: int64 [num_hashes]."""
    found: np.ndarray = (hashes >> np.uint64(16)) % np.uint64(num_buckets)
    return found.astype(np.int64)


def pack_slices(table: pa.Table, bucket: np.ndarray, num_buckets: int) -> tuple[bytes, list[int]]:
    """Return rows as one object, and the byte where each bucket's slice begins, then where the last ends.

    Args:
        table: the rows.
        bucket: int64 [num_rows], bucket of each.
        num_buckets: in all; one without rows has a slice of no bytes.
    """
    order = np.argsort(bucket, kind="stable")
    ends = np.searchsorted(bucket[order], np.arange(num_buckets), side="right")
    table = table.take(pa.array(order))
    sink, places, start = io.BytesIO(), [0], 0
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for end in ends.tolist():
        if end > start:
            with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
                writer.write_table(table.slice(start, end - start))
        places.append(sink.tell())
        start = end
    return sink.getvalue(), places


def read_slices(slices: list[tuple[str, int, int, int]]) -> pa.Table | None:
    """Return the rows of a bucket, in order of units; None where there are none.

    Args:
        slices: the object of each unit, its size, and the first byte and the end of the bucket's slice in it.

    Raises:
        ShardError: a slice is damaged.
        StorageError, JobError: an object cannot be read.
    """
    tables = []
    for uri, size, start, end in slices:
        if end > start:
            try:
                tables.append(pa.ipc.open_stream(storage.read_range(uri, start, end, size)).read_all())
            except pa.ArrowException as error:
                raise ShardError(
                    f"{uri}: bytes {start} to {end} are damaged ({type(error).__name__})", uri=uri
                ) from error
    return pa.concat_tables(tables) if tables else None
