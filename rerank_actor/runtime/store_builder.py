"""The builder of stores: pieces of a source are spilled by bucket, then each bucket is packed, in tasks on Ray.

A task holds a few tens of MiB of rows, however large the source is. The store's own object is written last; without it
the next run starts over. Knows nothing of what the rows mean.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rerank_actor import storage
from rerank_actor.errors import InputError, StorageError
from rerank_actor.runtime.task_report import TaskFailure
from rerank_actor.storage.exchange import Exchange, Slice, SlicedObject, collect_slices
from rerank_actor.storage.keyed_store import BucketLayout, StoreSpec, name_bucket, pack_bucket, spill_rows, sum_places

ROUNDS = 3
FINAL_KINDS = ("InputError", "JobError", "AccessDeniedError")  # of failures that another try does not mend

# What reads a piece: yields tables with a column `key`, and returns JSON facts that are added up.
Read = Callable[[Any], Iterator[Any]]
Report = dict[str, Any]
RunTasks = Callable[
    [Callable[[Any], Report], Sequence[Any], dict[str, str]], Iterable[tuple[int, Report | TaskFailure]]
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
    finished = StoreSpec.load(uri, digest)
    if finished is not None:
        return finished
    storage.delete_folder(uri)
    environment = storage.capture_environment()
    exchange = Exchange(storage.join_uri(uri, "spilled"), layout.num_buckets, scratch)
    spill = functools.partial(_spill_piece, read=read, layout=layout, exchange=exchange)
    reports = run_all(spill, list(enumerate(pieces)), environment, run_tasks, check, InputError)
    spilled = [written for report in reports for written in report["spilled"]]
    buckets = list(enumerate(collect_slices(spilled, layout.num_buckets)))
    pack = functools.partial(_pack, layout=layout, uri=uri, scratch=scratch)
    packed = run_all(pack, buckets, environment, run_tasks, check, StorageError)
    facts = _add_facts(report["facts"] for report in reports)
    sizes, crcs = (tuple(report[name] for report in packed) for name in ("size", "crc"))
    store = StoreSpec(uri, digest, layout, sizes, facts, crcs=crcs)
    storage.write_bytes(storage.join_uri(uri, "store.json"), store.to_bytes(), scratch=scratch)
    exchange.delete()
    return store


def _add_facts(facts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of what are numbers, and the first that says something of what is not."""
    total: dict[str, Any] = {}
    for counts in facts:
        for name, value in counts.items():
            total[name] = total.get(name, 0) + value if isinstance(value, int) else total.get(name) or value
    return total


def choose_copies(store: StoreSpec, num_lookups: int, block_bytes: int) -> StoreSpec:
    """Return the store with copies on each machine where a job looks up more than the store holds."""
    return replace(store, keeps_copies=num_lookups * block_bytes >= store.num_bytes)


def run_all(
    work: Callable[[Any], Report],
    items: Sequence[Any],
    environment: dict[str, str],
    run_tasks: RunTasks,
    check: Callable[[], None],
    kind: type[Exception],
) -> list[Report]:
    """Do the work of all items, that of those which fail a few times, and return their reports, in order of the items.

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
    reports: dict[int, Report] = {}
    reason = ""
    for _ in range(ROUNDS):
        left = [number for number in range(len(items)) if number not in reports]
        for index, report in run_tasks(work, [items[number] for number in left], environment):
            if isinstance(report, TaskFailure):
                reason = report.reason
                if report.kind in FINAL_KINDS:
                    raise InputError(reason)
            else:
                reports[left[index]] = report
            check()
        if len(reports) == len(items):
            return [reports[number] for number in range(len(items))]
    raise kind(reason or "Ray did not do all of the work")


def _spill_piece(item: tuple[int, Any], read: Read, layout: BucketLayout, exchange: Exchange) -> Report:
    number, piece = item
    spilled: list[SlicedObject] = []
    facts: dict[str, Any] = {}
    with storage.patient():
        for rows in read(piece):
            if isinstance(rows, dict):
                facts = rows
            else:
                spilled.append(spill_rows(rows, layout, exchange, f"{number:06d}-{len(spilled):04d}.bin"))
    return {"spilled": spilled, "facts": facts}


def _pack(item: tuple[int, list[Slice]], layout: BucketLayout, uri: str, scratch: str | None) -> Report:
    bucket, slices = item
    with storage.patient():
        data = pack_bucket(slices, layout)
        if data:
            storage.write_bytes(storage.join_uri(uri, name_bucket(bucket)), data, scratch=scratch)
    return {"size": len(data), "crc": sum_places(data, layout)}


def run_here(
    work: Callable[[Any], Report], items: Sequence[Any], environment: dict[str, str]
) -> Iterator[tuple[int, Report]]:
    """Do as `tasks.run_tasks` does, in this process and without Ray; what fails raises."""
    for number, item in enumerate(items):
        yield number, work(item)
