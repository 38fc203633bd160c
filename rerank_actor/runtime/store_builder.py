"""The builder of stores: pieces of a source are spilled by bucket, then each bucket is packed, in tasks on Ray.

A task holds a few tens of MiB of rows, however large the source is. The store's own object is written last; without it
the next run starts over. Knows nothing of what the rows mean.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rerank_actor import storage
from rerank_actor.errors import InputError, StorageError
from rerank_actor.storage.keyed_store import BucketLayout, StoreSpec, name_bucket, pack_bucket, spill_rows

ROUNDS = 3
SPILL_BYTES = 64 * 2**20

# What reads a piece: yields tables with a column `key`, and returns JSON facts that are added up.
Read = Callable[[Any], Iterator[Any]]
RunTasks = Callable[
    [Callable[[Any], dict[str, Any]], Sequence[Any], dict[str, str]], Iterable[tuple[int, dict[str, Any]]]
]


def build_store(
    uri: str,
    digest: str,
    layout: BucketLayout,
    pieces: Sequence[Any],
    read: Read,
    run_tasks: RunTasks,
    *,
    scratch: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> StoreSpec:
    """Make a store, or find it made.

    Args:
        uri: its folder, of which everything is deleted first.
        digest: of the source.
        layout: buckets and blocks.
        pieces: of the source, small records that pickle.
        read: yields a piece's rows as tables and last of all a dict of counts; pickles.
        run_tasks: `tasks.run_tasks`, or what does the same in this process.
        scratch: folder for temporary files on the file system of `uri`.
        check: called between tasks; may raise to end the building.

    Raises:
        InputError: a piece cannot be read.
        StorageError: a bucket cannot be written.
    """
    found = StoreSpec.load(uri, digest)
    if found is not None:
        return found
    storage.delete_folder(uri)
    environment = storage.capture_environment()
    spill = functools.partial(_spill_piece, read=read, layout=layout, uri=uri, scratch=scratch)
    reports = run_all(spill, list(enumerate(pieces)), environment, run_tasks, check, InputError)
    spilled: list[tuple[str, int, np.ndarray]] = []
    facts: dict[str, Any] = {}
    for number in range(len(pieces)):
        report = reports.pop(number)
        places = np.frombuffer(report["places"], np.int64).reshape(-1, layout.num_buckets + 1)
        names = [_name_spill(uri, number, batch) for batch in range(len(places))]
        spilled += zip(names, report["sizes"], places, strict=True)
        for name, value in report["facts"].items():
            facts[name] = facts.get(name, 0) + value if isinstance(value, int) else facts.get(name) or value
    buckets = [
        (
            bucket,
            [
                (name, size, int(places[bucket]), int(places[bucket + 1]))
                for name, size, places in spilled
                if places[bucket + 1] > places[bucket]
            ],
        )
        for bucket in range(layout.num_buckets)
    ]
    pack = functools.partial(_pack, layout=layout, uri=uri, scratch=scratch)
    packed = run_all(pack, buckets, environment, run_tasks, check, StorageError)
    sizes = tuple(packed[bucket]["size"] for bucket in range(layout.num_buckets))
    store = StoreSpec(uri, digest, layout, sizes, facts)
    storage.write_bytes(storage.join_uri(uri, "store.json"), store.to_bytes(), scratch=scratch)
    storage.delete_folder(storage.join_uri(uri, "spilled"))
    return store


def choose_copies(store: StoreSpec, num_lookups: int, block_bytes: int) -> StoreSpec:
    """Return the store with copies on each machine where a job looks up more than the store holds."""
    return replace(store, keeps_copies=num_lookups * block_bytes >= store.num_bytes)


def run_all(
    work: Callable[[Any], dict[str, Any]],
    items: Sequence[Any],
    environment: dict[str, str],
    run_tasks: RunTasks,
    check: Callable[[], None],
    kind: type[Exception],
) -> dict[int, dict[str, Any]]:
    """Do the work of all items, that of those which fail a few times, and return their reports by number.

    Args:
        work: what `run_tasks` runs.
        items: what it runs it for.
        environment: AWS variables of the driver.
        run_tasks: `tasks.run_tasks`, or what does the same.
        check: called between tasks; may raise.
        kind: of the error when an item keeps failing.

    Raises:
        InputError: an item failed for what is wrong with the input.
    """
    done: dict[int, dict[str, Any]] = {}
    failure = ""
    for _ in range(ROUNDS):
        left = [number for number in range(len(items)) if number not in done]
        for place, report in run_tasks(work, [items[number] for number in left], environment):
            if "failure" in report:
                failure = report["failure"]
                if report["kind"] in ("InputError", "JobError", "AccessDeniedError"):
                    raise InputError(failure)
            else:
                done[left[place]] = report
            check()
        if len(done) == len(items):
            return done
    raise kind(failure or "Ray did not do all of the work")


def _name_spill(uri: str, number: int, batch: int) -> str:
    return storage.join_uri(uri, "spilled", f"{number:06d}-{batch:04d}.bin")


def _spill_piece(
    item: tuple[int, Any], read: Read, layout: BucketLayout, uri: str, scratch: str | None
) -> dict[str, Any]:
    number, piece = item
    sizes: list[int] = []
    places: list[np.ndarray] = []
    facts: dict[str, Any] = {}
    with storage.patient():
        for found in read(piece):
            if isinstance(found, dict):
                facts = found
                continue
            size, starts = spill_rows(found, layout, _name_spill(uri, number, len(sizes)), scratch)
            sizes.append(size)
            places.append(starts)
    empty = np.zeros(0, np.int64)
    return {"sizes": sizes, "facts": facts, "places": np.concatenate(places) if places else empty}


def _pack(
    item: tuple[int, list[tuple[str, int, int, int]]], layout: BucketLayout, uri: str, scratch: str | None
) -> dict[str, Any]:
    bucket, slices = item
    with storage.patient():
        data = pack_bucket(slices, layout)
        if data:
            storage.write_bytes(storage.join_uri(uri, name_bucket(bucket)), data, scratch=scratch)
    return {"size": len(data)}


def run_here(
    work: Callable[[Any], dict[str, Any]], items: Sequence[Any], environment: dict[str, str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Do as `tasks.run_tasks` does, in this process and without Ray; what fails raises."""
    for number, item in enumerate(items):
        report = work(item)
        yield (
            number,
            {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in report.items()},
        )
