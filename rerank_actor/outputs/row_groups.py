"""Row groups of scored parts: shared out into pieces of bounded size, and read back one open file after the other.

Takes parts by number and the bytes of their row groups, gives runs of row groups that a task reads by itself. Knows nothing
of what the rows hold or of who reads them.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import RerankError, ShardError, describe_cause
from rerank_actor.inputs.columnar import spare_memory

UNREADABLE = "cannot be read as Parquet ({cause})"

Item = TypeVar("Item")


class SizedGroup(NamedTuple):
    """A row group of a part, or the whole part (`group` None), with what it weighs.

    Attributes:
        part: number of the part.
        num_rows: rows or pairs, whichever positions are counted in.
    """

    part: int
    group: int | None
    num_rows: int
    num_bytes: int


@dataclass(frozen=True)
class RowGroups:
    """Some row groups of one part, in order.

    Attributes:
        part: number of the part.
        groups: the row groups, None for all.
        start: position of the first row or pair among all that were shared out.
    """

    part: int
    groups: tuple[int, ...] | None
    start: int = 0


def batch_by_size(
    items: Iterable[Item], get_bytes: Callable[[Item], int], most_bytes: int, most_items: int | None = None
) -> list[list[Item]]:
    """Return items in batches of bounded size, in order; an item that is larger is a batch by itself."""
    batches: list[list[Item]] = []
    num_bytes = 0
    for item in items:
        size = get_bytes(item)
        if not batches or num_bytes + size > most_bytes or len(batches[-1]) == most_items:
            batches.append([])
            num_bytes = 0
        batches[-1].append(item)
        num_bytes += size
    return batches


def share_out_groups(groups: Iterable[SizedGroup], most_bytes: int) -> list[tuple[RowGroups, ...]]:
    """Return the row groups of each unit of work; none is larger than `most_bytes` unless a single group is."""
    units: list[tuple[RowGroups, ...]] = []
    start = 0
    for batch in batch_by_size(groups, lambda group: group.num_bytes, most_bytes):
        units.append(tuple(_join_groups(batch, start)))
        start += sum(group.num_rows for group in batch)
    return units


def _join_groups(groups: Iterable[SizedGroup], start: int) -> list[RowGroups]:
    """Return the row groups of a unit, those of one part together."""
    runs: list[RowGroups] = []
    for part, group, num_rows, _ in groups:
        last = runs[-1] if runs else None
        if group is None:
            runs.append(RowGroups(part, None, start))
        elif last is not None and last.part == part and last.groups is not None:
            runs[-1] = RowGroups(part, (*last.groups, group), last.start)
        else:
            runs.append(RowGroups(part, (group,), start))
        start += num_rows
    return runs


@contextlib.contextmanager
def open_part(
    part: storage.StoredObject, problem: str = UNREADABLE, kind: type[RerankError] = ShardError
) -> Iterator[pq.ParquetFile]:
    """Give a scored file, of which nothing but the footer is read yet; it is closed again.

    Args:
        part: the file.
        problem: what an error says of a file that Arrow cannot read, with `{cause}` in it.
        kind: of that error.

    Raises:
        ShardError: or `kind`; it is no Parquet file. What is damaged behind its footer, `refuse_damaged` says.
        StorageError, JobError: it cannot be reached, or is not the file with this size and version mark.
    """
    with contextlib.ExitStack() as stack:
        with refuse_damaged(part.uri, problem, kind):
            source = stack.enter_context(storage.open_input(part.uri, size=part.size, etag=part.etag))
            plain = pq.ParquetFile(source, buffer_size=2**20, page_checksum_verification=True)
            file = spare_memory(plain, source, part.uri, range(plain.metadata.num_row_groups))
        yield file


@contextlib.contextmanager
def refuse_damaged(uri: str, problem: str = UNREADABLE, kind: type[RerankError] = ShardError) -> Iterator[None]:
    """Say of a file what Arrow says while it is read; arguments as of `open_part`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a damaged footer
        raise kind(f"{uri}: {problem.format(cause=describe_cause(error))}", uri=uri) from error


def open_runs(
    runs: Iterable[RowGroups], parts: Sequence[storage.StoredObject]
) -> Iterator[tuple[pq.ParquetFile, str, list[int], int]]:
    """Yield what a unit reads: an open file, its URI, which of its row groups, and the position of the first row.

    Raises:
        ShardError, StorageError, JobError: as of `open_part`.
    """
    for run in runs:
        with open_part(parts[run.part]) as file:
            groups = range(file.metadata.num_row_groups) if run.groups is None else run.groups
            yield file, parts[run.part].uri, list(groups), run.start
