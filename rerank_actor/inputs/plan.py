"""The plan: which shards there are, into which units they are cut, and how a plan grows when shards are added.

A plan is a frozen record, stored as one Parquet file with a row for each shard. Units follow from it without any
further state: the same plan names the same parts on every machine. Knows nothing of Ray or engines.
"""

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, OutputConflictError, PlanDamagedError, RerankError
from rerank_actor.inputs import shards
from rerank_actor.inputs.check_columns import check_columns
from rerank_actor.inputs.columnar import read_own_table
from rerank_actor.inputs.columns import find_type, settle_schema
from rerank_actor.inputs.listing import InputListing, LeftOut, count_left_out, list_input
from rerank_actor.inputs.listing.agreed_types import agree_on_types, list_texts
from rerank_actor.inputs.listing.left_out import AS_TEXT, EMPTY, IGNORED
from rerank_actor.inputs.rows import UNIT_BYTES, ShardLayout, Unit
from rerank_actor.inputs.scanning import refuse_other_values, scan_shards
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.syntax.document_shapes import refuse_mixed_shapes, refuse_unlike

MIN_UNIT_ROWS = 512
MAX_UNIT_ROWS = 16_384  # or pairs, where documents are lists and no single row has more
ID_DIGITS = 24  # of a shard's id: 96 bits, for which nobody finds two URIs; for 48 bits that takes a minute
ID_DIGITS_BEFORE = 12  # in plans that do not say
UNITS_WANTED = 64  # of a small input, so that several actors have work


@dataclass(frozen=True)
class Shard:
    """One input object and how it is cut.

    Attributes:
        uri, size, etag: the object when it was planned.
        num_rows: rows it holds; `starts` may cover fewer of them when the job had a limit.
        starts: first row of each unit, then the row where the last ends.
        byte_starts: where each unit begins, as `rows.Block` has it; -1 for Parquet.
        numbers: of the line or row there.
        error: why it could not be read, else None.
        format: by which it is read; "" in plans that left that to the name.
        partitions: columns whose value stands in its path.
        id_digits: of its id; fewer in plans written before, whose parts keep their names.
    """

    uri: str
    size: int
    etag: str
    num_rows: int
    starts: tuple[int, ...]
    byte_starts: tuple[int, ...]
    numbers: tuple[int, ...]
    error: str | None = None
    format: str = ""
    partitions: Mapping[str, str | None] = field(default_factory=dict)
    id_digits: int = ID_DIGITS

    @property
    def id(self) -> str:
        """Hex digits that follow from the URI alone."""
        return hashlib.sha256(self.uri.encode()).hexdigest()[: self.id_digits]

    @property
    def planned_rows(self) -> int:
        """Rows that belong to a unit."""
        return self.starts[-1] if self.starts else 0

    def units(self) -> Iterator[Unit]:
        """Yield the shard's units in row order."""
        if self.error is not None:
            yield Unit(f"{self.id}-00000", self.uri, self.size, self.etag, 0, 0, -1)
            return
        for index, (byte_start, number) in enumerate(zip(self.byte_starts, self.numbers, strict=True)):
            start, end = self.starts[index], self.starts[index + 1]
            name = f"{self.id}-{index:05d}"
            place = (self.uri, self.size, self.etag, start, end - start, byte_start, number)
            yield Unit(name, *place, self.format, self.partitions)


@dataclass(frozen=True)
class Plan:
    """All shards of an output, in order, and what their columns are.

    Attributes:
        shards: in the order of planning; a backfill appends.
        json_types: Arrow types of columns, agreed for all units.
    """

    shards: tuple[Shard, ...] = ()
    json_types: dict[str, pa.DataType] = field(default_factory=dict)

    def known_formats(self) -> dict[tuple[str, int, str], str]:
        """Return the format of each shard, by URI, size and version mark."""
        return {(shard.uri, shard.size, shard.etag): shard.format for shard in self.shards}

    def units(self) -> Iterator[Unit]:
        """Yield all units, in order of shards and rows."""
        for shard in self.shards:
            yield from shard.units()

    @property
    def num_rows(self) -> int:
        """Rows that the units cover."""
        return sum(shard.planned_rows for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Stored size of the shards."""
        return sum(shard.size for shard in self.shards)

    def to_bytes(self, fingerprint: dict[str, Any]) -> bytes:
        """Return the plan as a Parquet file that also carries the settings of the fingerprint."""
        table = pa.table(
            {
                "uri": pa.array([shard.uri for shard in self.shards], pa.string()),
                "size": pa.array([shard.size for shard in self.shards], pa.int64()),
                "etag": pa.array([shard.etag for shard in self.shards], pa.string()),
                "num_rows": pa.array([shard.num_rows for shard in self.shards], pa.int64()),
                "starts": pa.array([shard.starts for shard in self.shards], pa.list_(pa.int64())),
                "byte_starts": pa.array([shard.byte_starts for shard in self.shards], pa.list_(pa.int64())),
                "error": pa.array([shard.error for shard in self.shards], pa.string()),
                "numbers": pa.array([shard.numbers for shard in self.shards], pa.list_(pa.int64())),
                "format": pa.array([shard.format for shard in self.shards], pa.string()),
                "partitions": pa.array([json.dumps(dict(shard.partitions)) for shard in self.shards], pa.string()),
                "id_digits": pa.array([shard.id_digits for shard in self.shards], pa.int32()),
            }
        )
        types = pa.schema(list(self.json_types.items())).serialize().to_pybytes().hex()
        metadata = {"json_types": types, "fingerprint": json.dumps(fingerprint, sort_keys=True)}
        return storage.seal_parquet(table.replace_schema_metadata(metadata))

    @classmethod
    def from_bytes(cls, data: bytes, uri: str = "the stored plan") -> tuple["Plan", dict[str, Any]]:
        """Return a stored plan and the settings of its fingerprint.

        Raises:
            PlanDamagedError: the bytes are no plan; `uri` is for the message.
        """
        try:
            table = read_own_table(data)
            metadata = table.schema.metadata
            stored = pa.ipc.read_schema(pa.BufferReader(bytes.fromhex(metadata[b"json_types"].decode())))
            types = settle_schema(stored)  # views were planned once
            rows = table.to_pylist()
            before = {"id_digits": ID_DIGITS_BEFORE}
            shards = tuple(Shard(**before | {name: _thaw(name, value) for name, value in row.items()}) for row in rows)
            return cls(shards, dict(zip(types.names, types.types, strict=True))), json.loads(metadata[b"fingerprint"])
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise PlanDamagedError(
                f"{uri}: is damaged ({type(error).__name__}); the job's own command makes it again from the input and keeps "
                "the parts that fit, and with --overwrite starts afresh",
                uri=uri,
            ) from error


def _refuse_unlike_documents(
    spec: InputSpec, layouts: Mapping[str, ShardLayout], written: Mapping[str, pa.DataType]
) -> None:
    """Refuse documents of several shapes in a shard, and lists of them in some shards and single ones in others.

    A shard's may differ where texts are made of other columns, those of shards where each gets a row of its own.
    """
    column = spec.texts.document_column
    if spec.texts.negative_columns:
        return
    found = {uri: layout for uri, layout in layouts.items() if layout.num_rows}
    for uri, layout in found.items() if spec.texts.document_template is None else ():
        refuse_mixed_shapes(layout.shapes, uri, column)
    if spec.texts.explode and not any(layout.format == "jsonl" for layout in found.values()):
        return
    before = [("the parts already written", find_type(written, column))] if not spec.texts.explode else []
    refuse_unlike([*before, *((uri, find_type(layout.columns, column)) for uri, layout in found.items())], column)


def _thaw(name: str, value: Any) -> Any:
    if name == "partitions":
        return json.loads(value)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class UnitSize:
    """Rows and pairs of a unit at most; a row is never cut."""

    rows: int
    pairs: int


@dataclass(frozen=True)
class PlanChange:
    """What planning found besides the plan itself: shards that vanished, parts that are no longer valid, what is left out."""

    vanished: tuple[str, ...] = ()
    stale_parts: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def make_plan(
    spec: InputSpec,
    earlier: Plan,
    committed: Container[str] = (),
    progress: Callable[[int, int], None] | None = None,
    listing: InputListing | None = None,
) -> tuple[Plan, PlanChange]:
    """Plan the shards on top of an earlier plan: known shards stay as they are, new ones are cut and appended.

    Args:
        spec: names input, columns and unit size.
        earlier: the output's stored plan, empty for a new output.
        committed: names of the parts in the output. A known shard that has none may change or go without a word.
        progress: called with shards scanned and shards to scan.
        listing: of the input, where it was listed already.

    Raises:
        InputError: the input is missing or empty, or lacks a column.
        OutputConflictError: a shard changed since it was scored.
    """
    listing = listing or list_input(spec, earlier.known_formats())
    objects, partition_columns = listing.shards, choose_partition_columns(spec, listing)
    present = {item.uri: item for item in objects}
    known = {
        shard.uri: shard
        for shard in earlier.shards
        if (shard.uri in present and not _differs(present[shard.uri], shard) and not _is_read_otherwise(shard, listing))
        or any(unit.part_name in committed for unit in shard.units())
    }
    _refuse_other_formats(known.values(), listing)
    changed = _list_changed(spec, objects, known)
    to_scan = [
        item for item in objects if item.uri not in known or item.uri in changed or known[item.uri].error is not None
    ]
    scans = scan_shards(spec, to_scan, listing.formats, partition_columns, progress)
    scanned = dict(zip([item.uri for item in to_scan], scans, strict=True))
    readable = {uri: layout for uri, layout in scanned.items() if isinstance(layout, ShardLayout)}
    check_columns(spec, readable, bool(earlier.shards))
    is_written = any(
        unit.part_name in committed for uri, shard in known.items() if uri not in changed for unit in shard.units()
    )
    _refuse_unlike_documents(spec, readable, earlier.json_types if is_written else {})

    unit_size = _choose_unit_size(spec, readable.values())
    planned = {uri: shard for uri, shard in known.items() if uri not in scanned}
    left = spec.limit - sum(shard.planned_rows for shard in planned.values()) if spec.limit is not None else None
    for item in objects:
        scan = scanned.get(item.uri)
        if isinstance(scan, RerankError):
            shard = Shard(item.uri, item.size, item.etag, 0, (), (), (), str(scan), listing.formats[item.uri])
        elif scan is not None:
            shard = _cut(item, scan, unit_size, left)
            if left is not None and shard.planned_rows == 0 and item.uri not in known:
                continue
        else:
            shard = known[item.uri]  # where an old plan left the format to its name and to the job, it is told now
            shard = _extend(replace(shard, format=shard.format or listing.formats[item.uri]), spec, unit_size, left)
        if left is not None:
            before = planned[item.uri].planned_rows if item.uri in planned else 0
            left -= shard.planned_rows - before
        planned[item.uri] = shard
    # Known shards keep their place, so that the plan of a resumed job equals the stored one.
    ordered = [
        planned[uri] for uri in [*known, *(item.uri for item in objects if item.uri not in known)] if uri in planned
    ]
    refuse_same_ids(ordered)
    plan = Plan(tuple(ordered), agree_on_types(spec, readable, earlier.json_types, is_written=is_written))
    _refuse_other_partitions(spec, plan, readable, partition_columns)
    if plan.num_rows == 0:
        broken = [shard.error for shard in plan.shards if shard.error]
        if broken:
            raise InputError(f"no shard can be read; the first of {len(broken)}: {broken[0]}")
        raise InputError(f"{', '.join(spec.uris)}: {len(objects)} shards without a single row; nothing to score")
    stale = tuple(unit.part_name for uri in changed for unit in known[uri].units())
    vanished = tuple(shard.uri for shard in earlier.shards if shard.uri not in present)
    empty = [(EMPTY, shard.uri) for shard in plan.shards if shard.num_rows == 0 and not shard.error]
    ignored = [
        (IGNORED, name) for name in listing.partition_columns if spec.uses(name) and name not in partition_columns
    ]
    as_text = [(AS_TEXT, name) for name in list_texts(spec, readable)]
    left_out = count_left_out([*listing.passed_over, *empty, *ignored, *as_text])
    return plan, PlanChange(vanished, stale, tuple(left_out))


def choose_partition_columns(spec: InputSpec, listing: InputListing) -> tuple[str, ...]:
    """Return the columns that are taken from names of folders: those that there are, or that the parts have."""
    return tuple(listing.partition_columns) if spec.partition_columns is None else spec.partition_columns


def _refuse_other_partitions(
    spec: InputSpec, plan: Plan, layouts: Mapping[str, ShardLayout], partition_columns: Sequence[str]
) -> None:
    """Refuse columns that are in the files of some shards and in the paths of others, or in both and not the same.

    Raises:
        InputError: there is one.
    """
    with_rows = [shard for shard in plan.shards if shard.num_rows]
    for name in filter(spec.uses, partition_columns):
        in_path = next((shard for shard in with_rows if name in shard.partitions), None)
        in_file = [shard for shard in with_rows if name not in shard.partitions and shard.uri in layouts]
        if in_path is not None and in_file:
            raise InputError(
                f"{in_file[0].uri}: has a column `{name}`, which {in_path.uri} has in its path alone; leave it out with "
                f"--drop-columns {name}, or give each an --output of its own",
                uri=in_file[0].uri,
                column=name,
            )
        for shard in in_file:
            refuse_other_values(spec, list(shard.units()), [name])


def refuse_same_ids(planned: Iterable[Shard]) -> None:
    """Refuse shards whose parts would have the same names, so that one would be taken for the other.

    Raises:
        InputError: two have the same id.
    """
    first: dict[str, Shard] = {}
    for shard in planned:
        other = first.setdefault(shard.id, shard)
        if other is not shard:
            raise InputError(
                f"{other.uri} and {shard.uri} have the same id ({shard.id}), so that their parts would have the same names; "
                "give one of them another name, or an --output of its own",
                uri=shard.uri,
            )


def _list_changed(spec: InputSpec, objects: list[storage.StoredObject], known: dict[str, Shard]) -> list[str]:
    """Return known shards that are not what they were when planned, where the job allows that."""
    changed = [
        item.uri
        for item in objects
        if item.uri in known and not known[item.uri].error and _differs(item, known[item.uri])
    ]
    if changed and not spec.rescore_changed:
        names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise OutputConflictError(
            f"{names}: changed since scored; --rescore-changed scores them again, or restore them",
            uris=changed,
        )
    return changed


def _is_read_otherwise(shard: Shard, listing: InputListing) -> bool:
    """Whether a shard was planned as of another format than it now has."""
    return shard.format not in ("", listing.formats.get(shard.uri, shard.format))


def _refuse_other_formats(known: Iterable[Shard], listing: InputListing) -> None:
    for shard in known:
        if _is_read_otherwise(shard, listing):
            now = listing.formats[shard.uri]
            raise OutputConflictError(
                f"{shard.uri}: was scored as {shard.format} and would now be read as {now}; give --format {shard.format}, or "
                "another --output",
                uris=[shard.uri],
            )


def _differs(item: storage.StoredObject, shard: Shard) -> bool:
    return (item.size, item.etag) != (shard.size, shard.etag)


def _choose_unit_size(spec: InputSpec, layouts: Iterable[ShardLayout]) -> UnitSize:
    """Return the most of a unit: of a small input less, so that several actors have work."""
    layouts = list(layouts)
    rows = spec.unit_rows or share_out(sum(layout.num_rows for layout in layouts))
    return UnitSize(rows, share_out(sum(layout.num_pairs for layout in layouts)))


def share_out(total: int) -> int:
    """Return how many of so many rows, or pairs, make a unit where nobody says."""
    return min(MAX_UNIT_ROWS, max(MIN_UNIT_ROWS, total // UNITS_WANTED))


def _cut(item: storage.StoredObject, layout: ShardLayout, unit_size: UnitSize, limit: int | None) -> Shard:
    starts, block_starts = _cut_blocks(layout, unit_size, 0, limit)
    byte_starts, numbers = (tuple(block_start[at] for block_start in block_starts) for at in (0, 1))
    cuts = (layout.num_rows, tuple(starts), byte_starts, numbers)
    return Shard(item.uri, item.size, item.etag, *cuts, None, layout.format, layout.partitions)


def _extend(shard: Shard, spec: InputSpec, unit_size: UnitSize, limit: int | None) -> Shard:
    """Plan the rows of a known shard that a limit had left out; its first units stay as they are."""
    if shard.planned_rows == shard.num_rows or (limit is not None and limit <= 0):
        return shard
    layout = shards.scan_shard(
        storage.StoredObject(shard.uri, shard.size, shard.etag),
        replace(spec, format=shard.format or spec.format),
        break_at=shard.planned_rows,
    )
    starts, block_starts = _cut_blocks(layout, unit_size, shard.planned_rows, limit)
    byte_starts, numbers = ([block_start[at] for block_start in block_starts] for at in (0, 1))
    return replace(
        shard,
        starts=(*shard.starts[:-1], *starts),
        byte_starts=(*shard.byte_starts, *byte_starts),
        numbers=(*shard.numbers, *numbers),
    )


def _cut_blocks(
    layout: ShardLayout, unit_size: UnitSize, first_row: int, limit: int | None
) -> tuple[list[int], list[tuple[int, int]]]:
    """Cut rows from `first_row` on into units: small blocks are joined, over-large ones are cut inside.

    A run of lines is never cut, except where a limit ends in it: its first byte is known, its lines' are not.

    Returns:
        First row of each unit, then the row where the last ends; and place and number of each unit.
    """
    end_row = layout.num_rows if limit is None else min(layout.num_rows, first_row + max(0, limit))
    starts: list[int] = []
    block_starts: list[tuple[int, int]] = []
    row = 0
    room_rows = room_pairs = room_bytes = 0.0
    for block in layout.blocks:
        begin, end = max(row, first_row), min(row + block.num_rows, end_row)
        row += block.num_rows
        if begin >= end:
            continue
        num_rows = end - begin
        bytes_per_row = max(1.0, block.num_bytes / block.num_rows)
        pairs_per_row = block.num_pairs / block.num_rows
        fits = num_rows <= room_rows and num_rows * bytes_per_row <= room_bytes
        if starts and fits and num_rows * pairs_per_row <= room_pairs:
            room_rows -= num_rows
            room_bytes -= num_rows * bytes_per_row
            room_pairs -= num_rows * pairs_per_row
            continue
        most = min(unit_size.rows, int(UNIT_BYTES / bytes_per_row))
        if pairs_per_row:
            most = min(most, int(unit_size.pairs / pairs_per_row))
        pieces = -(-num_rows // max(1, most)) if block.is_divisible else 1
        for piece in range(pieces):
            starts.append(begin + num_rows * piece // pieces)
            block_starts.append((block.byte_start, block.number))
        room_rows = unit_size.rows - (end - starts[-1])
        room_bytes = UNIT_BYTES - (end - starts[-1]) * bytes_per_row
        room_pairs = unit_size.pairs - (end - starts[-1]) * pairs_per_row
    if starts:
        starts.append(end_row)
    return starts, block_starts
