"""Where the rows of a text shard are: how many, and at which bytes and lines a unit may begin.

Where a record is one line and the file is not packed, a shard is scanned in ranges of bytes side by side. JSON is parsed
by Arrow there, and by Python where Arrow does not take a line or finds another type than before; rows are counted by
lines alone. Memory is bounded by the ranges that are scanned at once.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from rerank_actor import storage
from rerank_actor.errors import ShardError
from rerank_actor.inputs import text
from rerank_actor.inputs.columns import add_types, is_list, merge_types
from rerank_actor.inputs.rows import UNIT_BYTES, Block, ShardLayout, refuse_doubled
from rerank_actor.inputs.text import BYTE_ORDER_MARK, TextFormat, decompress, iterate_records, parse_object, skip

RANGE_BYTES = 8 * 2**20
RANGES_AT_ONCE = 8  # in this process, whatever the number of shards; each takes some five times its size
TYPED_ROWS = 1000  # JSON rows whose types are looked at together
BLANKS = np.frombuffer(b" \t\r\n\v\f\xef", np.uint8)  # bytes that a blank line may begin with

_ranges = threading.BoundedSemaphore(RANGES_AT_ONCE)


@dataclass(frozen=True)
class LineScan:
    """What a scan is after.

    Attributes:
        uri, size, etag: the shard as it was listed.
        kind, compression: its format.
        block_rows, block_pairs: of a block at most.
        list_column: column that may hold lists of documents.
        header: names of the columns where the first line does not have them.
    """

    uri: str
    size: int
    etag: str
    kind: TextFormat
    compression: str
    block_rows: int
    block_pairs: int
    list_column: str
    header: tuple[str, ...] = ()


@dataclass
class _Stretch:
    """What some whole lines hold; blocks count lines from the first of these, as number 1."""

    num_lines: int = 0
    blocks: list[Block] = field(default_factory=list)
    types: dict[str, pa.DataType] = field(default_factory=dict)


def scan_lines(scan: LineScan, break_at: int = -1) -> ShardLayout:
    """Find rows, columns and unit borders of a text shard; a block also begins at row `break_at`."""
    header, start, line = _read_header(scan)
    stretch = _scan_csv(scan, start, line) if scan.kind == "csv" else _scan_ranges(scan, start, line)
    columns = stretch.types if scan.kind == "jsonl" else dict.fromkeys(header, pa.string())
    return ShardLayout(
        sum(block.num_rows for block in stretch.blocks), columns, _break_block(scan, stretch.blocks, break_at)
    )


def _read_header(scan: LineScan) -> tuple[list[str], int, int]:
    """Return the names of the columns, and byte and line after them; nothing of JSON, unless it is no JSON lines."""
    start, line = 0, 1
    if scan.header and scan.kind != "jsonl":
        return list(scan.header), start, line
    for length, num_lines, record in iterate_records(scan.uri, scan.size, scan.etag, scan.kind, scan.compression):
        if scan.kind == "jsonl":
            if record and (record == b"[" or cast(bytes, record).startswith(b"[{")):
                raise ShardError(
                    f"{scan.uri}: is one JSON array, not JSON lines; write an object a line (jq -c '.[]')", uri=scan.uri
                )
            if not record:
                continue
            break
        start, line = start + length, line + num_lines
        if record is None or record:
            names = cast(list[str], record or [])
            refuse_doubled(scan.uri, names)
            return names, start, line
    return [], 0, 1


def _scan_csv(scan: LineScan, start: int, line: int) -> _Stretch:
    """Read CSV from its first row on, record by record, because a line end may lie inside quotes."""
    found = _Stretch()
    rows, first, first_line, position = 0, start, line, start
    records = iterate_records(scan.uri, scan.size, scan.etag, scan.kind, scan.compression, start)
    for length, num_lines, record in records:
        if record is None or record:
            if rows and (rows >= scan.block_rows or position + length - first > UNIT_BYTES):
                found.blocks.append(Block(rows, position - first, first, first_line, is_divisible=False))
                rows, first, first_line = 0, position, line
            rows += 1
        position, line = position + length, line + num_lines
    if rows:
        found.blocks.append(Block(rows, position - first, first, first_line, is_divisible=False))
    return found


def _scan_ranges(scan: LineScan, start: int, line: int) -> _Stretch:
    """Scan lines from a byte on, in ranges; those of a file that is not packed side by side."""
    found = _Stretch(line - 1)
    if scan.compression:
        with storage.open_input(scan.uri, size=scan.size, etag=scan.etag) as raw:
            stream = decompress(raw, scan.compression)
            skip(stream, start)
            position = start
            while data := _read_whole_lines(stream, scan.uri, position, RANGE_BYTES):
                _join(found, _scan_data(scan, data, position, found.types))
                position += len(data)
        return found
    _join(found, _scan_range(scan, start, start, {}))
    with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
        starts = range(start + RANGE_BYTES, scan.size, RANGE_BYTES)
        types = dict(found.types)
        for stretch in pool.map(lambda place: _scan_range(scan, place, start, types), starts):
            _join(found, stretch)
    return found


def _scan_range(scan: LineScan, place: int, start: int, types: dict[str, pa.DataType]) -> _Stretch:
    """Scan the lines that begin in the range at `place`, of lines that begin at `start`."""
    with _ranges, storage.open_input(scan.uri, size=scan.size, etag=scan.etag) as file:
        if place > start:  # a line that began before belongs to the range before
            file.seek(place - 1)
            head = b""
            while not head.endswith(b"\n"):
                head = file.readline(RANGE_BYTES)
                if not head or file.tell() > place + RANGE_BYTES:
                    return _Stretch()
        else:
            file.seek(place)
        position = file.tell()
        if position >= place + RANGE_BYTES:
            return _Stretch()
        data = _read_whole_lines(file, scan.uri, position, place + RANGE_BYTES - position)
        return _scan_data(scan, data, position, types)


def _read_whole_lines(stream: Any, uri: str, position: int, num_bytes: int) -> bytes:
    """Return the lines that begin in the next so many bytes."""
    data: bytes = stream.read(num_bytes)
    if not data or data.endswith(b"\n"):
        return data
    rest: bytes = stream.readline(text.LONGEST_LINE)
    if len(rest) >= text.LONGEST_LINE:
        raise ShardError(
            f"{uri}: a line of more than {text.LONGEST_LINE >> 20} MiB after byte {position + len(data)}; is it of "
            "another format (--format)?",
            uri=uri,
        )
    return data + rest


def _join(found: _Stretch, following: _Stretch) -> None:
    """Add what follows in the shard."""
    found.blocks += [block._replace(number=found.num_lines + block.number) for block in following.blocks]
    found.num_lines += following.num_lines
    for name, kind in following.types.items():
        found.types[name] = merge_types(found.types.get(name), kind)


def _scan_data(scan: LineScan, data: bytes, position: int, expected: dict[str, pa.DataType]) -> _Stretch:
    """Scan some whole lines that begin at byte `position`."""
    starts, stops, numbers, num_lines = _find_rows(data, scan.kind)
    found = _Stretch(num_lines)
    pairs = np.ones(len(starts), np.int64)
    if scan.kind == "jsonl":
        pairs = _look_at_objects(scan, data, starts, stops, expected, found.types)
    places, sums = np.append(starts, len(data)), np.concatenate([[0], np.cumsum(pairs)])
    row = 0
    while row < len(starts):
        last = min(
            row + scan.block_rows,
            int(np.searchsorted(sums, sums[row] + scan.block_pairs, "right")) - 1,
            int(np.searchsorted(places, places[row] + UNIT_BYTES, "right")) - 1,
        )
        last = min(max(last, row + 1), len(starts))
        found.blocks.append(
            Block(
                last - row,
                int(places[last] - places[row]),
                position + int(starts[row]),
                int(numbers[row]),
                int(sums[last] - sums[row]) if sums[-1] > len(starts) else 0,
                is_divisible=False,
            )
        )
        row = last
    return found


def _find_rows(data: bytes, kind: TextFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return where lines that are not blank begin and end, their numbers from 1, and how many lines there are."""
    view = np.frombuffer(data, np.uint8)
    stops = np.flatnonzero(view == ord("\n"))
    if len(data) and (not len(stops) or stops[-1] != len(data) - 1):
        stops = np.append(stops, len(data))
    starts = np.concatenate([[0], stops[:-1] + 1]).astype(np.int64) if len(stops) else stops
    keep = np.ones(len(starts), bool)
    for index in np.flatnonzero(np.isin(view[np.minimum(starts, len(data) - 1)], BLANKS)) if len(starts) else ():
        keep[index] = not _is_blank(data[starts[index] : stops[index]], kind)
    numbers = np.flatnonzero(keep) + 1
    return starts[keep], stops[keep], numbers, len(starts)


def _is_blank(line: bytes, kind: TextFormat) -> bool:
    content = line.removeprefix(BYTE_ORDER_MARK)
    return not (content.strip() if kind == "jsonl" else content.rstrip(b"\r\n"))


def _look_at_objects(
    scan: LineScan,
    data: bytes,
    starts: np.ndarray,
    stops: np.ndarray,
    expected: dict[str, pa.DataType],
    types: dict[str, pa.DataType],
) -> np.ndarray:
    """Widen `types` by the JSON objects of some lines, and return the number of pairs of each."""
    table = _parse_with_arrow(data, expected) if expected else None
    if table is not None and table.num_rows == len(starts):
        types.update(expected)
        if scan.list_column not in expected or not is_list(expected[scan.list_column]):
            return np.ones(len(starts), np.int64)
        lengths = pc.list_value_length(table.column(scan.list_column)).fill_null(1).to_numpy().astype(np.int64)
        return cast(np.ndarray, np.maximum(lengths, 1))
    pairs = np.ones(len(starts), np.int64)
    for first in range(0, len(starts), TYPED_ROWS):
        objects = []
        for index in range(first, min(first + TYPED_ROWS, len(starts))):
            found = parse_object(data[starts[index] : stops[index]].removeprefix(BYTE_ORDER_MARK)) or {}
            objects.append(found)
            documents = found.get(scan.list_column)
            pairs[index] = max(1, len(documents)) if isinstance(documents, list) else 1
        add_types(types, objects)
    return pairs


def _parse_with_arrow(data: bytes, expected: dict[str, pa.DataType]) -> pa.Table | None:
    """Return JSON lines as a table, if all of them are of these types to the letter."""
    options = pyarrow.json.ParseOptions(
        explicit_schema=pa.schema(list(expected.items())), unexpected_field_behavior="error"
    )
    # It is already one of several threads.
    reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    try:
        return pyarrow.json.read_json(pa.BufferReader(data), read_options=reading, parse_options=options)
    except (pa.ArrowException, ValueError):
        return None


def _break_block(scan: LineScan, blocks: list[Block], break_at: int) -> list[Block]:
    """Return blocks of which one begins at row `break_at`."""
    row = 0
    for index, block in enumerate(blocks):
        if row < break_at < row + block.num_rows:
            wanted = break_at - row
            first = rows = 0
            line = block.number
            records = iterate_records(scan.uri, scan.size, scan.etag, scan.kind, scan.compression, block.byte_start)
            for length, num_lines, record in records:
                if record is None or record:
                    if rows == wanted:
                        break
                    rows += 1
                first, line = first + length, line + num_lines
            pairs = block.num_pairs * wanted // block.num_rows
            head = block._replace(num_rows=wanted, num_bytes=first, num_pairs=pairs)
            tail = block._replace(
                num_rows=block.num_rows - wanted,
                num_bytes=block.num_bytes - first,
                byte_start=block.byte_start + first,
                number=line,
                num_pairs=block.num_pairs - pairs,
            )
            return [*blocks[:index], head, tail, *blocks[index + 1 :]]
        row += block.num_rows
    return blocks
