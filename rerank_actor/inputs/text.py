"""Text formats: JSON lines, CSV (RFC 4180, with a header) and TSV (a header, no quoting), also packed.

`read_lines` reads some rows from a byte on, `iterate_records` all records. Where a line cannot be parsed, the row stays
and its fault says why, with file and line. Memory is bounded by a unit. Where units may begin, `line_scan` finds.
"""

import csv
import io
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.inputs.columns import as_text, is_list, to_array
from rerank_actor.inputs.rows import Rows, add_location, choose_columns

TextFormat = Literal["jsonl", "csv", "tsv"]

LONGEST_LINE = 256 * 2**20  # also of a CSV field, where an unclosed quote would swallow the rest of the shard
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

BROKEN_JSON = "line is not a JSON object"
BROKEN_CSV = "row is not CSV"
BROKEN_FIELDS = "row has another number of fields than the header"


def iterate_records(
    uri: str, size: int | None, etag: str, kind: TextFormat, compression: str, start: int = 0
) -> Iterator[tuple[int, int, bytes | list[str] | None]]:
    """Yield bytes, lines and content of each record from a byte of the uncompressed text on.

    The content is the line (JSON) or its fields (CSV, TSV), empty for a blank line and None where it is no CSV. A CSV
    record may span lines.
    """
    with storage.open_input(uri, size=size, etag=etag) as raw:
        stream = decompress(raw, compression)
        if compression:
            skip(stream, start)
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


def decompress(raw: BinaryIO, compression: str) -> Any:
    """Return the uncompressed stream; Arrow's reader knows concatenated frames and tells when one is cut short."""
    if not compression:
        return raw
    codec = {"gz": "gzip", "zst": "zstd"}[compression]
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec), buffer_size=2**20)


def skip(stream: Any, num_bytes: int) -> None:
    """Read over some bytes.

    Raises:
        EOFError: there are fewer.
    """
    while num_bytes > 0:
        chunk = stream.read(min(num_bytes, 2**20))
        if not chunk:
            raise EOFError("the shard ends before the unit begins")
        num_bytes -= len(chunk)


def parse_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, None where it holds none."""
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
        num_rows: how many rows.
        byte_start: first byte of the first row in the uncompressed text.
        line: number of that row's line, from 1.
        header: names of the columns where the first line does not have them.
    """

    uri: str
    size: int | None
    etag: str
    kind: TextFormat
    compression: str
    num_rows: int
    byte_start: int
    line: int
    header: tuple[str, ...] = ()


def read_lines(
    wanted: LineRange,
    keep: Sequence[str] | None,
    drop: Container[str],
    text_columns: list[str],
    types: Mapping[str, pa.DataType],
) -> Rows:
    """Read some rows; columns as `shards.read_rows` says."""
    header = list(wanted.header)
    source = (wanted.uri, wanted.size, wanted.etag, wanted.kind, wanted.compression)
    if wanted.kind != "jsonl" and not header:
        header = next((cast(list[str], found) for _, _, found in iterate_records(*source) if found), [])
    objects: list[dict[str, Any]] = []
    faults: list[str | None] = []
    line = wanted.line
    for _, num_lines, record in iterate_records(*source, wanted.byte_start):
        if len(objects) == wanted.num_rows:
            break
        if record is None or record:
            found, fault = _parse_record(record, wanted.kind, header)
            if fault is not None:
                fault = add_location(fault, wanted.uri, line)
            objects.append(found)
            faults.append(fault)
        line += num_lines
    if wanted.kind != "jsonl":
        types = dict.fromkeys(header, pa.string())
    names = header
    if wanted.kind == "jsonl":
        names = list(dict.fromkeys([*types, *(name for found in objects for name in found)]))
    kept = choose_columns(names, keep, drop)
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
        found = parse_object(cast(bytes, record))
        return found or {}, BROKEN_JSON if found is None else None
    fields = cast(list[str], record)
    return dict(zip(header, fields, strict=False)), None if len(fields) == len(header) else BROKEN_FIELDS
