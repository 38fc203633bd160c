"""Delivered objects: whether they still are what a job wrote, by the sizes and digests in its records.

Takes what lies there and what was written, gives faults in sentences. Records written before hold sizes alone, and of their
objects a change that leaves the size is not found. Knows nothing of formats or of how records are kept.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from rerank_actor import storage

THREADS = 8
READ_BYTES = 32 * 2**20


def digest_bytes(data: bytes) -> str:
    """Return the digest of an object that a record holds."""
    return hashlib.sha256(data).hexdigest()


def list_lost(present: Mapping[str, storage.StoredObject], sizes: Mapping[str, int]) -> list[str]:
    """Return in sentences which of the objects that were written, with their sizes, are missing or of another size."""
    lost = [f"{uri}: is missing" for uri in sizes if uri not in present]
    return lost + [
        f"{uri}: holds {present[uri].size:,} bytes where {size:,} were written"
        for uri, size in sizes.items()
        if uri in present and present[uri].size != size
    ]


def list_changed(
    present: Mapping[str, storage.StoredObject], sizes: Mapping[str, int], digests: Mapping[str, str]
) -> list[str]:
    """Return in sentences which objects of the size that was written hold other bytes; all are read in full.

    Raises:
        JobError, StorageError: one cannot be read.
    """
    wanted = [uri for uri in digests if uri in present and present[uri].size == sizes.get(uri)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda uri: _digest_object(present[uri]), wanted)
        return [
            f"{uri}: holds other bytes than were written"
            for uri, digest in zip(wanted, found, strict=True)
            if digest != digests[uri]
        ]


def _digest_object(item: storage.StoredObject) -> str:
    hashed = hashlib.sha256()
    for start in range(0, item.size, READ_BYTES):
        hashed.update(storage.read_range(item.uri, start, min(item.size, start + READ_BYTES), item.size))
    return hashed.hexdigest()
