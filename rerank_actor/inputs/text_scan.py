"""Where the rows of a text shard are: how many, and at which bytes and lines a unit may begin.

Where a record is one line and the file is not packed, a shard is scanned in ranges of bytes side by side. JSON is parsed
by Arrow there, and by Python where Arrow does not take a line or finds another type than before; rows are counted by
lines alone. Memory is bounded by the ranges that are scanned at once.
"""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from rerank_actor import storage
from rerank_actor.errors import ShardError
from rerank_actor.inputs.columns import (
    EXACT_INTEGER,
    WIDE_INTEGER,
    find_type,
    is_list,
    locate,
    merge_columns,
    settle_type,
    take_fields,
    widen_types,
)
from rerank_actor.inputs.formats import TextFormat
from rerank_actor.inputs.rows import UNIT_BYTES, Block, ShardLayout
from rerank_actor.inputs.syntax.document_shapes import Shapes, join_shapes, tell_shapes, tell_shapes_of
from rerank_actor.inputs.syntax.json_values import parse_float, parse_object
from rerank_actor.inputs.syntax.quoted import BEHIND, BYTE_ORDER_MARK
from rerank_actor.inputs.text import (
    TextFile,
    is_number,
    iterate_records,
    open_text,
    read_header,
    refuse_long_line,
    refuse_other,
)
from rerank_actor.inputs.training.documents import count_documents, list_documents

RANGES_AT_ONCE = 8  # in this process, whatever the number of shards; each takes some five times its size
TYPED_ROWS = 1000  # JSON rows whose types are looked at together
BLANKS = np.frombuffer(b" \t\r\n\v\f\xef", np.uint8)  # bytes that a blank line may begin with

# Numbers with more digits than are sure to be a float's, or with a large exponent; some may stand in a text.
LONG_NUMBER = re.compile(rb"[:\[,\s]-?((?=[\d.]{16})\d+\.[\d.]*(?:[eE][+-]?\d+)?|\d[\d.]*[eE][+-]?\d{3,})(?=[,\]}\s])")

_ranges = threading.BoundedSemaphore(RANGES_AT_ONCE)


@dataclass(frozen=True)
class LineScan:
    """What a scan is after.

    Attributes:
        file: the shard, whose size is known.
        block_rows, block_pairs: of a block at most.
        list_columns: columns that may hold lists of documents.
        range_bytes: of lines that are looked at together.
    """

    file: TextFile
    block_rows: int
    block_pairs: int
    list_columns: tuple[str, ...]
    range_bytes: int

    @property
    def size(self) -> int:
        """Stored bytes of the shard."""
        return self.file.size or 0

    def open(self) -> BinaryIO:
        """Open the shard, which is not packed; the caller closes it."""
        return storage.open_input(self.file.uri, size=self.file.size, etag=self.file.etag)


@dataclass
class _Stretch:
    """What some whole lines hold; blocks count lines from the first of these, as number 1."""

    num_lines: int = 0
    blocks: list[Block] = field(default_factory=list)
    types: dict[str, pa.DataType] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)


def scan_lines(scan: LineScan, break_at: int = -1) -> ShardLayout:
    """Find rows, columns and unit borders of a text shard; a block also begins at row `break_at`."""
    refuse_other(scan.file)
    kind, header = scan.file.kind, read_header(scan.file)
    scan_rows = _scan_spanning if scan.file.spans_lines else _scan_packed if scan.file.compression else _scan_ranges
    stretch = scan_rows(scan, header.start, header.line)
    columns = stretch.types if kind == "jsonl" else dict.fromkeys(header.names, pa.string())
    num_rows = sum(block.num_rows for block in stretch.blocks)
    return ShardLayout(num_rows, columns, _break_block(scan, stretch.blocks, break_at), shapes=stretch.shapes)


def _scan_spanning(scan: LineScan, start: int, line: int) -> _Stretch:
    """Read from the first row on, record by record, because a line end may lie inside quotes."""
    stretch = _Stretch()
    rows, end, first_byte, first_line = 0, start, start, line

    def end_block(byte: int) -> None:
        stretch.blocks.append(Block(rows, byte - first_byte, first_byte, first_line, is_divisible=False))

    for record in iterate_records(scan.file, start, line):
        is_full = rows >= scan.block_rows or record.end - first_byte > UNIT_BYTES
        if rows and is_full and record.content != BEHIND:
            end_block(record.start)
            rows, first_byte, first_line = 0, record.start, record.line
        rows, end = rows + 1, record.end
    if rows:
        end_block(end)
    return stretch


def _scan_packed(scan: LineScan, start: int, line: int) -> _Stretch:
    """Scan the lines of a packed shard from a byte of its text on, in one stream."""
    stretch = _Stretch(line - 1)
    with open_text(scan.file, start) as stream:
        position = start
        while data := _read_whole_lines(stream, scan.file, position, scan.range_bytes):
            _join(stretch, _scan_data(scan, data, position, stretch.types))
            position += len(data)
    return stretch


def _scan_ranges(scan: LineScan, start: int, line: int) -> _Stretch:
    """Scan lines from a byte on, in ranges side by side."""
    stretch = _Stretch(line - 1)
    _join(stretch, _scan_range(scan, start, start, {}))
    with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
        starts = range(start + scan.range_bytes, scan.size, scan.range_bytes)
        types = dict(stretch.types)
        for following in pool.map(lambda range_start: _scan_range(scan, range_start, start, types), starts):
            _join(stretch, following)
    return stretch


def _scan_range(scan: LineScan, range_start: int, start: int, types: dict[str, pa.DataType]) -> _Stretch:
    """Scan the lines that begin in a range, of lines that begin at `start`."""
    range_end = range_start + scan.range_bytes
    with _ranges, scan.open() as file:
        if range_start > start:  # a line that began before belongs to the range before
            file.seek(range_start - 1)
            head = b""
            while not head.endswith(b"\n"):
                head = file.readline(scan.range_bytes)
                if not head or file.tell() > range_end:
                    return _Stretch()
        else:
            file.seek(range_start)
        position = file.tell()
        if position >= range_end:
            return _Stretch()
        data = _read_whole_lines(file, scan.file, position, range_end - position)
        return _scan_data(scan, data, position, types)


def _read_whole_lines(stream: Any, file: TextFile, position: int, num_bytes: int) -> bytes:
    """Return the lines that begin in the next so many bytes."""
    data: bytes = stream.read(num_bytes)
    if not data or data.endswith(b"\n"):
        return data
    rest: bytes = stream.readline(file.line_bytes)
    if len(rest) >= file.line_bytes:
        raise refuse_long_line(file, position + len(data))
    return data + rest


def _join(stretch: _Stretch, following: _Stretch) -> None:
    """Add what follows in the shard."""
    stretch.blocks += [block._replace(number=stretch.num_lines + block.number) for block in following.blocks]
    join_shapes(stretch.shapes, {shape: stretch.num_lines + line for shape, line in following.shapes.items()})
    stretch.num_lines += following.num_lines
    for name, kind in following.types.items():
        stretch.types[name] = merge_columns(stretch.types.get(name), kind)


def _scan_data(scan: LineScan, data: bytes, position: int, expected: dict[str, pa.DataType]) -> _Stretch:
    """Scan some whole lines that begin at byte `position`."""
    starts, stops, numbers, num_lines = _locate_rows(data, scan.file.kind)
    stretch = _Stretch(num_lines)
    pairs = np.ones(len(starts), np.int64)
    if scan.file.kind == "jsonl":
        pairs, stretch.types, shapes = _look_at_objects(scan, data, starts, stops, expected)
        stretch.shapes = {shape: int(numbers[row]) for shape, row in shapes.items()}
    bounds, sums = np.append(starts, len(data)), np.concatenate([[0], np.cumsum(pairs)])
    row = 0
    while row < len(starts):
        last = min(
            row + scan.block_rows,
            int(np.searchsorted(sums, sums[row] + scan.block_pairs, "right")) - 1,
            int(np.searchsorted(bounds, bounds[row] + UNIT_BYTES, "right")) - 1,
        )
        last = min(max(last, row + 1), len(starts))
        num_pairs = int(sums[last] - sums[row]) if sums[-1] > len(starts) else 0
        num_bytes, begin = int(bounds[last] - bounds[row]), position + int(starts[row])
        stretch.blocks.append(Block(last - row, num_bytes, begin, int(numbers[row]), num_pairs, is_divisible=False))
        row = last
    return stretch


def _locate_rows(data: bytes, kind: TextFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
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
    if kind == "lines":  # each is a text
        return False
    content = line.removeprefix(BYTE_ORDER_MARK)
    return not (content.strip() if kind == "jsonl" else content.rstrip(b"\r\n"))


def _look_at_objects(
    scan: LineScan, data: bytes, starts: np.ndarray, stops: np.ndarray, expected: dict[str, pa.DataType]
) -> tuple[np.ndarray, dict[str, pa.DataType], Shapes]:
    """Return the number of pairs of the JSON object in each of some lines, the types of columns, and shapes with a row each."""
    settled = {name: settle_type(kind) for name, kind in expected.items()}
    table = _parse_with_arrow(data, settled) if expected else None
    if table is not None and table.num_rows == len(starts) and _holds_exactly(table, data):
        found = {
            name: WIDE_INTEGER if kind == pa.int64() and _is_beyond(table.column(name)) else kind
            for name, kind in expected.items()
        }
        kinds = [find_type(settled, name) for name in scan.list_columns]
        shapes = dict.fromkeys(tell_shapes_of(kinds[0]), 0) if len(starts) else {}
        if len(kinds) == 1 and (kinds[0] is None or not is_list(kinds[0])):
            return np.ones(len(starts), np.int64), found, shapes
        if all(name in expected for name in scan.list_columns):
            return np.maximum(count_documents(table, scan.list_columns), 1), found, shapes
    shapes = {}
    types: dict[str, pa.DataType] = {}
    pairs = np.ones(len(starts), np.int64)
    for first in range(0, len(starts), TYPED_ROWS):
        objects = []
        for index in range(first, min(first + TYPED_ROWS, len(starts))):
            value = parse_object(data[starts[index] : stops[index]].removeprefix(BYTE_ORDER_MARK)) or {}
            objects.append(value)
            documents = [_take_documents(value, name) for name in scan.list_columns]
            pairs[index] = max(1, sum(len(list_documents(one)) for one in documents))
            for shape in tell_shapes(documents[0]):
                shapes.setdefault(shape, index)
        types = widen_types(types, objects)
    return pairs, types, shapes


def _take_documents(value: dict[str, Any], name: str) -> Any:
    column, fields = locate(value, name)
    return take_fields(value.get(column), fields)


def _holds_exactly(table: pa.Table, data: bytes) -> bool:
    """Whether the numbers that Arrow made of JSON lines are those that are written there, as far as the types tell them."""
    leaves = [leaf for column in table.columns for leaf in _flatten(column, is_inner=False)]
    if any(_is_beyond(leaf) for leaf in leaves):
        return False
    if not any(pa.types.is_floating(leaf.type) for leaf in leaves):
        return True
    numbers = (number.decode() for number in LONG_NUMBER.findall(data))
    return not any(is_number(number) and isinstance(parse_float(number), Decimal) for number in numbers)


def _flatten(column: pa.ChunkedArray, is_inner: bool) -> Iterator[pa.ChunkedArray]:
    """Yield the values in lists and structs, and a column's own where they are floats."""
    if is_list(column.type):
        yield from _flatten(pc.list_flatten(column), is_inner=True)
    elif pa.types.is_struct(column.type):
        for index in range(column.type.num_fields):
            yield from _flatten(pc.struct_field(column, index), is_inner=True)
    elif pa.types.is_floating(column.type) or (is_inner and pa.types.is_integer(column.type)):
        yield column


def _is_beyond(numbers: pa.ChunkedArray) -> bool:
    """Whether there are integers that a float64 does not hold, or floats that may have been such."""
    most = EXACT_INTEGER + pa.types.is_integer(numbers.type)
    return any(value is not None and abs(value) >= most for value in pc.min_max(numbers).as_py().values())


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
            return [*blocks[:index], *_break_at(scan, block, break_at - row), *blocks[index + 1 :]]
        row += block.num_rows
    return blocks


def _break_at(scan: LineScan, block: Block, num_rows: int) -> tuple[Block, Block]:
    """Return a block's first rows as a block, and its others."""
    records = iterate_records(scan.file, block.byte_start, block.number)
    border = next(islice(records, num_rows, None), None)
    if border is None:
        raise ShardError(
            f"{scan.file.uri}: has fewer lines than a moment ago; it changed while it was read", uri=scan.file.uri
        )
    if border.content == BEHIND:
        raise ShardError(
            f"{scan.file.uri}, line {border.line}: --limit ended where a quote was not closed; give the larger --limit an "
            "--output of its own",
            uri=scan.file.uri,
        )
    num_bytes = border.start - block.byte_start
    num_pairs = block.num_pairs * num_rows // block.num_rows
    tail = block._replace(
        num_rows=block.num_rows - num_rows,
        num_bytes=block.num_bytes - num_bytes,
        byte_start=border.start,
        number=border.line,
        num_pairs=block.num_pairs - num_pairs,
    )
    return block._replace(num_rows=num_rows, num_bytes=num_bytes, num_pairs=num_pairs), tail
