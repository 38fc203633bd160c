"""The store: rows found by their key, in the objects of a folder, when all of them are too many for memory.

Bucket and block of a row follow from the hash of its key, so that nobody holds an index: a bucket is one object, a block a
slice of it (an Arrow stream of some 16 KiB), and a reader takes just the blocks that its keys fall into. Behind the blocks
stands the byte where each begins, 64 bits each. A store is made by an exchange: `spill_rows` of each piece of the source,
then `pack_bucket`. In S3 a machine keeps copies of whole buckets where that is cheaper than asking for blocks. Knows
nothing of what the rows mean, or of Ray.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import ShardError
from rerank_actor.storage.exchange import (
    Exchange,
    Slice,
    SlicedObject,
    assign_buckets,
    hash_keys,
    open_slice,
    pack_slices,
    read_slices,
)

BLOCK_BYTES = 16 * 1024
BUCKET_BYTES = 64 * 2**20
MAX_BUCKETS = 4096
READ_THREADS = 32
OFFSET_BYTES = 8
FREE_BYTES = 2**30  # left on a machine's disk whatever its copies would like
KEPT_SECONDS = 86_400.0  # of a machine's copies of a store since they were last read


@dataclass(frozen=True)
class BucketLayout:
    """Into how many buckets a store is cut, and each of these into how many blocks."""

    num_buckets: int
    num_blocks: int

    @classmethod
    def for_bytes(cls, num_bytes: int) -> Self:
        """Return the layout for about so many bytes of rows."""
        buckets = min(MAX_BUCKETS, max(1, -(-num_bytes // BUCKET_BYTES)))
        return cls(buckets, max(1, -(-num_bytes // (buckets * BLOCK_BYTES))))

    def compute_bucket_and_block(self, keys: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Return bucket and block of each key: int64 [num_keys] both."""
        hashes = hash_keys(keys)
        block: np.ndarray = (hashes >> np.uint64(40)) % np.uint64(self.num_blocks)
        return assign_buckets(hashes, self.num_buckets), block.astype(np.int64)


@dataclass(frozen=True)
class StoreSpec:
    """A finished store.

    Attributes:
        uri: its folder.
        digest: of what it was made from; names a machine's copies.
        layout: buckets and blocks.
        sizes: bytes of each bucket; an empty one has no object.
        facts: what making it found (rows, what was left out).
        crcs: checksum of each bucket's list of places; empty in what was written before.
        keeps_copies: whether readers copy whole buckets to their machine.
    """

    uri: str
    digest: str
    layout: BucketLayout
    sizes: tuple[int, ...]
    facts: dict[str, Any] = field(hash=False)
    keeps_copies: bool = False
    crcs: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all buckets."""
        return sum(self.sizes)

    def to_bytes(self) -> bytes:
        """Return the spec as its object, which is written last and so says that the store is whole."""
        return storage.seal_json({name: value for name, value in asdict(self).items() if name != "uri"})

    @classmethod
    def load(cls, uri: str, digest: str) -> Self | None:
        """Return the finished store of a folder, None where there is none of this digest."""
        data = storage.read_if_present(storage.join_uri(uri, "store.json"))
        values = storage.open_json(data) or {}
        try:
            if values.get("digest") != digest:
                return None
            return cls(
                uri,
                digest,
                BucketLayout(**values["layout"]),
                tuple(values["sizes"]),
                values["facts"],
                crcs=tuple(values.get("crcs", ())),
            )
        except (ValueError, KeyError, TypeError, AttributeError):  # damaged, so that it is made anew
            return None


def name_bucket(number: int) -> str:
    """Return the name of a bucket's object."""
    return f"bucket-{number:05d}.bin"


def spill_rows(table: pa.Table, layout: BucketLayout, exchange: Exchange, name: str) -> SlicedObject:
    """Write some rows of the source, which have a string column `key`, as an object of an exchange; return its record."""
    bucket, _ = layout.compute_bucket_and_block(table.column("key").combine_chunks())
    return exchange.write(name, table, bucket)


def pack_bucket(slices: list[Slice], layout: BucketLayout) -> bytes:
    """Return the object of a bucket, made of its slices of all that was spilled; no bytes for no rows."""
    table = read_slices(slices)
    if table is None:
        return b""
    _, block = layout.compute_bucket_and_block(table.column("key").combine_chunks())
    data, offsets = pack_slices(table, block, layout.num_blocks)
    return data + offsets.astype("<i8").tobytes()


def sum_places(data: bytes, layout: BucketLayout) -> int:
    """Return the checksum of the list of places at the end of a bucket's object."""
    return zlib.crc32(data[-OFFSET_BYTES * (layout.num_blocks + 1) :])


class KeyedStore:
    """Reads a finished store.

    Args:
        spec: the store.
    """

    def __init__(self, spec: StoreSpec) -> None:
        self.spec = spec
        self._is_remote = storage.is_remote(spec.uri)

    def find(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows with one of these keys, in no order; a key may have none or several.

        Raises:
            ShardError: the store is damaged.
            StorageError, JobError: it cannot be read.
        """
        wanted = set(keys)
        if not wanted:
            return
        bucket, block = self.spec.layout.compute_bucket_and_block(pa.array(wanted, pa.string()))
        blocks_of: dict[int, set[int]] = {}
        for number, block_number in zip(bucket.tolist(), block.tolist(), strict=True):
            blocks_of.setdefault(number, set()).add(block_number)
        items = [(number, sorted(blocks)) for number, blocks in sorted(blocks_of.items()) if self.spec.sizes[number]]
        if not self._is_remote:
            for number, blocks in items:
                yield from self._read(number, blocks, wanted)
            return
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for rows in pool.map(lambda item: list(self._read(item[0], item[1], wanted)), items):
                yield from rows

    def _read(self, number: int, blocks: list[int], wanted: set[str]) -> Iterator[dict[str, Any]]:
        uri, size = storage.join_uri(self.spec.uri, name_bucket(number)), self.spec.sizes[number]
        if self._is_remote and self.spec.keeps_copies:
            uri = self._copy(number, uri, size)
        with _open(uri, size) as read:
            start = size - OFFSET_BYTES * (self.spec.layout.num_blocks + 1)
            places = read(start, size)
            if self.spec.crcs and zlib.crc32(places) != self.spec.crcs[number]:
                raise _refuse(uri, "ChecksumError")
            offsets = np.frombuffer(places, "<i8")
            for first, last in _join_neighbours(blocks):
                begin, end = int(offsets[first]), int(offsets[last + 1])
                data = pa.py_buffer(read(begin, end))
                for block in range(first, last + 1):
                    slice_start, slice_end = int(offsets[block]) - begin, int(offsets[block + 1]) - begin
                    if slice_end > slice_start:
                        yield from _match(uri, data[slice_start:slice_end], wanted)

    def _copy(self, number: int, uri: str, size: int) -> str:
        """Return the path of this machine's copy of a bucket, or where it is in storage if there is no room for one."""
        path = storage.choose_cache("stores") / self.spec.digest / name_bucket(number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.utime(path.parent)
            if _has_size(path, size):
                return str(path)
            _delete_unused(path.parent.parent)
            with (path.parent / f"{path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # of the readers on a machine one fetches
                if not _has_size(path, size):
                    folder = os.statvfs(path.parent)
                    if folder.f_bavail * folder.f_frsize < size + FREE_BYTES:
                        return uri
                    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
                    try:
                        temporary.write_bytes(storage.read_bytes(uri))
                        temporary.replace(path)
                    finally:
                        temporary.unlink(missing_ok=True)
            return str(path)
        except OSError:  # a disk that is full, or a cache that may not be written
            return uri


def _delete_unused(folder: Path) -> None:
    """Delete a machine's copies of stores that nobody has read for long; their jobs have ended."""
    for copies in folder.iterdir():
        with contextlib.suppress(OSError):  # another process deletes it
            if time.time() - copies.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(copies)


def _has_size(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


@contextlib.contextmanager
def _open(uri: str, size: int) -> Iterator[Any]:
    """Give a function that reads the bytes of an object from a start to an end."""
    if storage.is_remote(uri):
        yield lambda start, end: storage.read_range(uri, start, end, size)
        return
    with storage.open_input(uri, size=size) as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        yield read


def _join_neighbours(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of each run of consecutive numbers."""
    first = last = blocks[0]
    for block in blocks[1:]:
        if block != last + 1:
            yield first, last
            first = block
        last = block
    yield first, last


def _refuse(uri: str, cause: str) -> ShardError:
    return ShardError(f"{uri}: is damaged ({cause}); delete its folder, and the next run makes it anew", uri=uri)


def _match(uri: str, data: pa.Buffer, wanted: set[str]) -> Iterator[dict[str, Any]]:
    try:
        columns = open_slice(data).to_pydict()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _refuse(uri, type(error).__name__) from error
    for index, key in enumerate(columns["key"]):
        if key in wanted:
            yield {name: values[index] for name, values in columns.items()}
