"""The exchange: rows that lie in several pieces of work and belong together, brought together through storage.

A piece of work writes one object with a slice for each bucket, an Arrow stream of its own, and gives the record of where
each begins; a bucket reads its slices of all objects. So there are as many objects as pieces, however many buckets there
are, and each row is written and read once. Knows nothing of what the rows mean, or of Ray.
"""

import hashlib
import io
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import ShardError

MARK = b"crc\0"


class Slice(NamedTuple):
    """The rows of one bucket in one object: its URI and size, and the first byte and the end of the slice in it."""

    uri: str
    size: int
    start: int
    end: int


class SlicedObject(TypedDict):
    """The record of an object with a slice for each bucket, as reports of tasks and stored records hold it.

    Attributes:
        uri: of the object.
        size: its bytes.
        places: the byte where each bucket's slice begins, then where the last ends: int64 [num_buckets + 1], a list of
            numbers where the record was stored.
    """

    uri: str
    size: int
    places: np.ndarray | list[int]


@dataclass(frozen=True)
class Exchange:
    """Objects in a folder, each with a slice for each bucket.

    Attributes:
        uri: the folder.
        num_buckets: slices of each object; one without rows has no bytes.
        scratch: folder for temporary files on the file system of `uri`.
    """

    uri: str
    num_buckets: int
    scratch: str | None = None

    def write(self, name: str, table: pa.Table, bucket: np.ndarray) -> SlicedObject:
        """Write rows as one object.

        Args:
            name: of the object in the folder.
            table: the rows.
            bucket: int64 [num_rows], bucket of each.

        Raises:
            StorageError, JobError: it cannot be written.
        """
        data, offsets = pack_slices(table, bucket, self.num_buckets)
        uri = storage.join_uri(self.uri, name)
        storage.write_bytes(uri, data, scratch=self.scratch)
        return SlicedObject(uri=uri, size=len(data), places=offsets)

    def delete(self) -> None:
        """Delete all objects."""
        storage.delete_folder(self.uri)


def collect_slices(objects: Iterable[SlicedObject], num_buckets: int) -> list[list[Slice]]:
    """Return the slices of each bucket that hold rows, in order of the objects."""
    slices: list[list[Slice]] = [[] for _ in range(num_buckets)]
    for written in objects:
        offsets = np.asarray(written["places"], np.int64)
        buckets = np.flatnonzero(np.diff(offsets))
        bounds = zip(buckets.tolist(), offsets[buckets].tolist(), offsets[buckets + 1].tolist(), strict=True)
        for bucket, start, end in bounds:
            slices[bucket].append(Slice(written["uri"], written["size"], start, end))
    return slices


def read_slices(slices: list[Slice], *, widens: bool = False) -> pa.Table | None:
    """Return the rows of a bucket, in order of its slices; None where there are none.

    Args:
        slices: of the bucket.
        widens: where slices differ, take the wider type, and null for a column that one lacks; else that is an error.

    Raises:
        ShardError: a slice is damaged.
        pyarrow.ArrowInvalid: slices differ.
        StorageError, JobError: an object cannot be read.
    """
    tables = [_read_slice(piece) for piece in slices]
    return pa.concat_tables(tables, promote_options="permissive" if widens else "none") if tables else None


def _read_slice(piece: Slice) -> pa.Table:
    uri, size, start, end = piece
    data = storage.read_range(uri, start, end, size)
    try:
        return open_slice(data)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{uri}: bytes {start} to {end} are damaged ({type(error).__name__})", uri=uri) from error


def open_slice(data: bytes | pa.Buffer) -> pa.Table:
    """Return the rows of a slice; behind its stream is its checksum, but in what was written before.

    Raises:
        pyarrow.ArrowException: it is damaged.
    """
    view = memoryview(data)
    packed, mark, digest = view[:-8], bytes(view[-8:-4]), bytes(view[-4:])
    if mark == MARK and zlib.crc32(packed).to_bytes(4, "little") != digest:
        raise pa.ArrowInvalid("its checksum is of other bytes")
    return pa.ipc.open_stream(pa.py_buffer(data)).read_all()


def pack_slices(table: pa.Table, bucket: np.ndarray, num_buckets: int) -> tuple[bytes, np.ndarray]:
    """Return rows as one object, and the byte where each bucket's slice begins, then where the last ends.

    Args:
        table: the rows.
        bucket: int64 [num_rows], bucket of each.
        num_buckets: in all; one without rows has a slice of no bytes.
    """
    order = np.argsort(bucket, kind="stable")
    ends = np.searchsorted(bucket[order], np.arange(num_buckets), side="right")
    table = table.take(pa.array(order))
    sink, offsets, start = io.BytesIO(), [0], 0
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for end in ends.tolist():
        if end > start:
            slice_sink = io.BytesIO()
            with pa.ipc.new_stream(slice_sink, table.schema, options=options) as writer:
                writer.write_table(table.slice(start, end - start))
            packed = slice_sink.getvalue()
            sink.write(packed + MARK + zlib.crc32(packed).to_bytes(4, "little"))
        offsets.append(sink.tell())
        start = end
    return sink.getvalue(), np.array(offsets, np.int64)


def hash_keys(keys: pa.Array) -> np.ndarray:
    """Return a 64-bit hash of each key, the same in every process: uint64 [num_keys]."""
    digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys.cast(pa.large_binary()).to_pylist())
    return np.frombuffer(digests, "<u8")


def assign_buckets(hashes: np.ndarray, num_buckets: int) -> np.ndarray:
    """Return the bucket of each hash: int64 [num_hashes]."""
    buckets: np.ndarray = (hashes >> np.uint64(16)) % np.uint64(num_buckets)
    return buckets.astype(np.int64)
