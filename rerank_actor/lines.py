"""Text formats: JSON lines, CSV (RFC 4180, with a header) and TSV (a header, no quoting), also packed.

`scan_lines` finds rows and places where a unit may begin, `read_lines` reads some rows. Where a record is one line and
the file is not packed, both go straight to a byte: a large file is scanned in ranges side by side. JSON is parsed by
Arrow there, and by Python where Arrow does not take a line or finds another type than before. Where a line cannot be
parsed, the row stays and its fault says why, with file and line. Memory is bounded by a range and by a unit.
"""

import csv
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from rerank_actor import storage
from rerank_actor.columns import add_types, as_text, is_list, merge_types, to_array
from rerank_actor.errors import InputError, ShardError
from rerank_actor.layout import UNIT_BYTES, Block, Rows, ShardLayout, add_place

TextFormat = Literal["jsonl", "csv", "tsv"]

RANGE_BYTES = 8 * 2**20
RANGES_AT_ONCE = 8  # in this process, whatever the number of shards; each takes some five times its size
TYPED_ROWS = 1000  # JSON rows whose types are looked at together
LONGEST_LINE = 256 * 2**20  # also of a CSV field, where an unclosed quote would swallow the rest of the shard
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANKS = np.frombuffer(b" \t\r\n\v\f\xef", np.uint8)  # bytes that a blank line may begin with

BROKEN_JSON = "line is not a JSON object"
BROKEN_CSV = "row is not CSV"
BROKEN_FIELDS = "row has another number of fields than the header"

_ranges = threading.BoundedSemaphore(RANGES_AT_ONCE)


@dataclass(frozen=True)
class LineScan:
    """What a scan is after.

    Attributes:
        uri, size, etag: the shard as it was listed.
        kind, compression: its format.
        block_rows, block_pairs: of a block at most.
        list_column: column that may hold lists of documents.
    """

    uri: str
    size: int
    etag: str
    kind: TextFormat
    compression: str
    block_rows: int
    block_pairs: int
    list_column: str


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
    for length, num_lines, record in _iterate_records(scan.uri, scan.size, scan.etag, scan.kind, scan.compression):
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
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise InputError(
                    f"{scan.uri}: has more than one column `{doubled[0]}`; rename one of them",
                    uri=scan.uri,
                    column=doubled[0],
                )
            return names, start, line
    return [], 0, 1


def _scan_csv(scan: LineScan, start: int, line: int) -> _Stretch:
    """Read CSV from its first row on, record by record, because a line end may lie inside quotes."""
    found = _Stretch()
    rows, first, first_line, position = 0, start, line, start
    records = _iterate_records(scan.uri, scan.size, scan.etag, scan.kind, scan.compression, start)
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
            stream = _decompress(raw, scan.compression)
            _skip(stream, start)
            position = start
            while data := _read_whole_lines(stream, scan.uri, position):
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


def _read_whole_lines(stream: Any, uri: str, position: int, num_bytes: int = RANGE_BYTES) -> bytes:
    """Return the lines that begin in the next so many bytes."""
    data: bytes = stream.read(num_bytes)
    if not data or data.endswith(b"\n"):
        return data
    rest: bytes = stream.readline(LONGEST_LINE)
    if len(rest) >= LONGEST_LINE:
        raise ShardError(
            f"{uri}: a line of more than {LONGEST_LINE >> 20} MiB after byte {position + len(data) + len(rest)}; is it of "
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
            found = _parse_object(data[starts[index] : stops[index]].removeprefix(BYTE_ORDER_MARK)) or {}
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
            records = _iterate_records(scan.uri, scan.size, scan.etag, scan.kind, scan.compression, block.byte_start)
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


def _iterate_records(
    uri: str, size: int | None, etag: str, kind: TextFormat, compression: str, start: int = 0
) -> Iterator[tuple[int, int, bytes | list[str] | None]]:
    """Yield bytes, lines and content of each record from a byte of the uncompressed text on.

    The content is the line (JSON) or its fields (CSV, TSV), empty for a blank line and None where it is no CSV. A CSV
    record may span lines.
    """
    with storage.open_input(uri, size=size, etag=etag) as raw:
        stream = _decompress(raw, compression)
        if compression:
            _skip(stream, start)
        else:
            stream.seek(start)
        if kind == "csv":
            yield from _iterate_csv(stream)
            return
        while line := stream.readline(LONGEST_LINE):
            content = line.removeprefix(BYTE_ORDER_MARK)
            if kind == "jsonl":
                yield len(line), 1, content.strip()
            else:
                text = content.decode("utf-8", "surrogateescape").rstrip("\r\n")
                yield len(line), 1, text.split("\t") if text else []


def _iterate_csv(stream: Any) -> Iterator[tuple[int, int, list[str] | None]]:
    consumed = num_lines = 0

    def lines() -> Iterator[str]:
        nonlocal consumed, num_lines
        while line := stream.readline(LONGEST_LINE):
            consumed += len(line)
            num_lines += 1
            yield line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")

    csv.field_size_limit(LONGEST_LINE)
    before = lines_before = 0
    reader = csv.reader(lines())
    while True:
        fields: list[str] | None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if consumed - before >= LONGEST_LINE:
                raise
            fields = None
        yield consumed - before, num_lines - lines_before, fields
        before, lines_before = consumed, num_lines


def _decompress(raw: BinaryIO, compression: str) -> Any:
    """Return the uncompressed stream; Arrow's reader knows concatenated frames and tells when one is cut short."""
    if not compression:
        return raw
    codec = {"gz": "gzip", "zst": "zstd"}[compression]
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec), buffer_size=2**20)


def _skip(stream: Any, num_bytes: int) -> None:
    while num_bytes > 0:
        chunk = stream.read(min(num_bytes, 2**20))
        if not chunk:
            raise EOFError("the shard ends before the unit begins")
        num_bytes -= len(chunk)


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return {str(as_text(name)): value for name, value in found.items()} if isinstance(found, dict) else None


@dataclass(frozen=True)
class LineRange:
    """Rows of a text shard.

    Attributes:
        uri, size, etag: the shard as it was planned; size None and etag "" where that does not matter.
        kind, compression: its format.
        row_start, num_rows: which rows.
        byte_start: first byte of the first row in the uncompressed text.
        line: its number; 0 where it is not known.
    """

    uri: str
    size: int | None
    etag: str
    kind: TextFormat
    compression: str
    row_start: int
    num_rows: int
    byte_start: int
    line: int


def read_lines(
    wanted: LineRange,
    keep: list[str] | None,
    drop: frozenset[str],
    text_columns: list[str],
    types: dict[str, pa.DataType],
) -> Rows:
    """Read some rows; columns as `shards.read_rows` says."""
    header: list[str] = []
    source = (wanted.uri, wanted.size, wanted.etag, wanted.kind, wanted.compression)
    if wanted.kind != "jsonl":
        header = next((cast(list[str], found) for _, _, found in _iterate_records(*source) if found), [])
    objects: list[dict[str, Any]] = []
    faults: list[str | None] = []
    line = wanted.line
    for _, num_lines, record in _iterate_records(*source, wanted.byte_start):
        if len(objects) == wanted.num_rows:
            break
        if record is None or record:
            found, fault = _parse_record(record, wanted.kind, header)
            if fault is not None:
                fault = add_place(fault, wanted.uri, line, wanted.row_start + len(objects))
            objects.append(found)
            faults.append(fault)
        line += num_lines if wanted.line else 0
    if wanted.kind != "jsonl":
        types = dict.fromkeys(header, pa.string())
    names = header
    if wanted.kind == "jsonl":
        names = list(dict.fromkeys([*types, *(name for found in objects for name in found)]))
    kept = [name for name in (names if keep is None else keep) if name not in drop]
    table = pa.table({name: to_array([found.get(name) for found in objects], types.get(name)) for name in kept})
    if not kept:
        table = table.select([]) if table.num_rows else pa.table({"": pa.nulls(len(objects))}).select([])
    texts = {name: [found.get(name) for found in objects] for name in text_columns if name in names}
    lists = frozenset(name for name in text_columns if name in types and is_list(types[name]))
    return Rows(table, texts, faults, lists)


def _parse_record(
    record: bytes | list[str] | None, kind: TextFormat, header: list[str]
) -> tuple[dict[str, Any], str | None]:
    """Return a row's values by column, and why it could not be parsed."""
    if record is None:
        return {}, BROKEN_CSV
    if kind == "jsonl":
        found = _parse_object(cast(bytes, record))
        return found or {}, BROKEN_JSON if found is None else None
    fields = cast(list[str], record)
    return dict(zip(header, fields, strict=False)), None if len(fields) == len(header) else BROKEN_FIELDS
