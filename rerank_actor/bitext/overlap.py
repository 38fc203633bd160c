"""The overlap: pairs that several partitions have, whichever side stands first, found without their texts in memory.

For each shard of candidates lie 64-bit hashes of its pairs beside it, sorted, behind the places where each of 256 ranges
of hashes begins; and the row of each. As many ranges are brought together at once as memory allows, read from all shards,
and sorted. What two partitions share is looked up in the candidates themselves, so that a sentence is never about a chance
of hashes. Knows nothing of scores.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage

RANGES = 256
HEAD_BYTES = 8 * (RANGES + 1)
BYTES_A_ROW = 12
HASHES_AT_ONCE = 16 * 2**20  # some 400 MB while they are sorted
READ_THREADS = 16
TRIED = 8  # hashes of two partitions, before their being equal is taken for chance
TOLD = 20


@dataclass(frozen=True)
class Shared:
    """What two partitions have in common.

    Attributes:
        partitions: the two, in order of names.
        count: pairs.
        places: file and line of one of them, in each.
    """

    partitions: tuple[str, str]
    count: int
    places: tuple[tuple[str, int], tuple[str, int]]


@dataclass(frozen=True)
class _Shard:
    partition: str
    candidates: str
    hashes: str
    size: int  # of the object of hashes


def write_hashes(table: pa.Table, reason_column: str, uri: str) -> None:
    """Write the hashes of a shard's pairs, without those that are not scored."""
    rows = np.flatnonzero(table[reason_column].is_null().to_numpy()).astype(np.int32)
    sides = [table[name].take(pa.array(rows)).to_pylist() for name in ("source", "target")]
    digests = b"".join(_hash_pair(a.encode(), b.encode()) for a, b in zip(*sides, strict=True))
    hashes = np.frombuffer(digests, ">u8").astype("<u8")
    order = np.argsort(hashes, kind="stable")
    places = np.searchsorted(hashes[order] >> np.uint64(56), np.arange(RANGES + 1, dtype=np.uint64))
    data = [places.astype("<i8"), hashes[order], rows[order].astype("<i4")]
    storage.write_bytes(uri, b"".join(array.tobytes() for array in data))


def _hash_pair(source: bytes, target: bytes) -> bytes:
    first, second = (source, target) if source <= target else (target, source)
    return hashlib.blake2b(b"%d %b%b" % (len(first), first, second), digest_size=8).digest()


def find_shared(folder: str) -> list[Shared]:
    """Return which partitions have pairs in common, most first: what an earlier run found, where nothing is new.

    Args:
        folder: of the candidates.

    Raises:
        InputError, StorageError, JobError: the folder cannot be read.
    """
    records = sorted(storage.list_objects(storage.join_uri(folder, "files")), key=lambda item: item.uri)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = [json.loads(data) for data in pool.map(lambda item: storage.read_bytes(item.uri), records)]
    partitions = {name for record in found for name in record["partitions"]}
    if len(partitions) < 2:
        return []
    mark = storage.join_uri(folder, "shared.json")
    digest = hashlib.sha256(json.dumps([record["partitions"] for record in found]).encode()).hexdigest()
    earlier = json.loads(storage.read_if_present(mark) or b"{}")
    if earlier.get("digest") != digest:
        shards = list(_list_shards(folder, records, found))
        shared = _compare(shards, sum(shard.size for shard in shards) // BYTES_A_ROW)
        values = [{"partitions": one.partitions, "count": one.count, "places": one.places} for one in shared]
        earlier = {"digest": digest, "shared": values}
        storage.write_bytes(mark, json.dumps(earlier, ensure_ascii=False).encode())
    return [
        Shared(
            (one["partitions"][0], one["partitions"][1]),
            one["count"],
            tuple((str(uri), int(line)) for uri, line in one["places"]),  # type: ignore[arg-type]
        )
        for one in earlier["shared"]
    ]


def _list_shards(
    folder: str, records: Sequence[storage.StoredObject], found: Sequence[dict[str, Any]]
) -> Iterator[_Shard]:
    sizes = {item.uri: item.size for item in storage.list_objects(storage.join_uri(folder, "hashes"))}
    for item, record in zip(records, found, strict=True):
        name = item.uri.rpartition("/")[2].removesuffix(".json")
        for partition, own in record["partitions"].items():
            for number in range(own["shards"]):
                candidates, hashes = name_shard(folder, partition, name, number)
                yield _Shard(partition, candidates, hashes, sizes.get(hashes, 0))


def name_shard(folder: str, partition: str, name: str, number: int) -> tuple[str, str]:
    """Return where a shard of a file's candidates lies, and its hashes."""
    own = f"lang_pair={partition}", f"{name}-{number:05d}"
    return (
        storage.join_uri(folder, own[0], f"{own[1]}.parquet"),
        storage.join_uri(folder, "hashes", own[0], f"{own[1]}.bin"),
    )


def _compare(shards: list[_Shard], num_rows: int) -> list[Shared]:
    names = sorted({shard.partition for shard in shards})
    number = {name: place for place, name in enumerate(names)}
    counts: dict[tuple[int, int], int] = {}
    samples: dict[tuple[int, int], list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    step = max(1, RANGES * HASHES_AT_ONCE // max(num_rows, 1))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for first in range(0, RANGES, step):
            last = min(first + step, RANGES)
            read = list(pool.map(lambda shard: _read_range(shard, first, last), shards))  # noqa: B023 - used at once
            hashes = np.concatenate([own for own, _ in read])
            owner = np.repeat(np.arange(len(shards), dtype=np.int32), [len(own) for own, _ in read])
            row = np.concatenate([own for _, own in read])
            for couple, one, other in _find_couples(hashes, owner, np.array([number[s.partition] for s in shards])):
                counts[couple] = counts.get(couple, 0) + 1
                held = samples.setdefault(couple, [])
                if len(held) < TRIED:
                    held.append(((int(owner[one]), int(row[one])), (int(owner[other]), int(row[other]))))
    shared = []
    for couple, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        places = next((found for one, other in samples[couple] if (found := _look_up(shards, one, other))), None)
        if places is not None:
            shared.append(Shared((names[couple[0]], names[couple[1]]), count, places))
        if len(shared) == TOLD:
            break
    return shared


def _read_range(shard: _Shard, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of a shard that lie in some ranges, and their rows."""
    places = np.frombuffer(storage.read_range(shard.hashes, 0, HEAD_BYTES, shard.size), "<i8")
    start, end, count = int(places[first]), int(places[last]), int(places[-1])
    if end == start:
        return np.zeros(0, "<u8"), np.zeros(0, "<i4")
    rows_at = HEAD_BYTES + 8 * count
    hashes = storage.read_range(shard.hashes, HEAD_BYTES + 8 * start, HEAD_BYTES + 8 * end, shard.size)
    rows = storage.read_range(shard.hashes, rows_at + 4 * start, rows_at + 4 * end, shard.size)
    return np.frombuffer(hashes, "<u8"), np.frombuffer(rows, "<i4")


def _find_couples(
    hashes: np.ndarray, owner: np.ndarray, partition: np.ndarray
) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Yield each hash that two partitions have: the two, and a place of it in each; a neighbour stands for several."""
    order = np.lexsort((partition[owner], hashes))
    same = hashes[order][1:] == hashes[order][:-1]
    part = partition[owner][order]
    for place in np.flatnonzero(same & (part[1:] != part[:-1])).tolist():
        yield (int(part[place]), int(part[place + 1])), int(order[place]), int(order[place + 1])


def _look_up(
    shards: list[_Shard], one: tuple[int, int], other: tuple[int, int]
) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Return file and line of two rows, None where they are not the same pair, or a shard cannot be read."""
    try:
        rows = [_read_row(shards[owner].candidates, row) for owner, row in (one, other)]
    except pa.ArrowException:  # its units fail, by name, and others go on
        return None
    if {rows[0]["source"], rows[0]["target"]} != {rows[1]["source"], rows[1]["target"]}:
        return None
    first, second = ((str(row["input_file"]), int(row["input_line"])) for row in rows)
    return first, second


def _read_row(uri: str, row: int) -> dict[str, Any]:
    with storage.open_input(uri) as stream:
        file = pq.ParquetFile(stream)
        for number in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(number).num_rows
            if row < size:
                table = file.read_row_group(number, columns=["source", "target", "input_file", "input_line"])
                return dict(table.slice(row, 1).to_pylist()[0])
            row -= size
    raise IndexError(f"{uri}: has no row {row}")
