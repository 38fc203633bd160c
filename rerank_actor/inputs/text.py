"""Text formats: JSON lines, CSV (RFC 4180, with a header), TSV (a header, no quoting) and bare lines, also packed.

`iterate_records` finds the records of a file, `read_header` the names of its columns, `parse_records` makes columns of
records: whoever reads text goes through these three. Blank lines are no rows, but of bare lines; a byte order mark is none
of a line's. Where a record cannot be parsed, the row stays and its fault says why. Knows nothing of plans or of columns' use.
"""

import csv
import io
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import ShardError
from rerank_actor.inputs.columns import as_text, is_list, to_array
from rerank_actor.inputs.formats import MAGIC_BYTES, TextFormat, find_mismatch
from rerank_actor.inputs.rows import LIMITS, Rows, Unit, add_location, choose_columns, refuse_doubled

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

BROKEN_JSON = "line is not a JSON object"
BROKEN_CSV = "row is not CSV"
BROKEN_FIELDS = "row has another number of fields than the header"
NOT_UNICODE = "not valid Unicode"

READ_ERRORS = (pa.ArrowException, EOFError, OSError, ValueError, csv.Error)  # of a file that is not what it should be

Content = bytes | list[str] | None


@dataclass(frozen=True)
class TextFile:
    """A text file, and how it is read.

    Attributes:
        uri, size, etag: the file as it was listed; size None and etag "" where that does not matter.
        kind, compression: its format.
        header: names of the columns where the first line does not have them.
        line_bytes: of a line at most; a longer one is refused and never held.
    """

    uri: str
    size: int | None
    etag: str
    kind: TextFormat
    compression: str = ""
    header: tuple[str, ...] = ()
    line_bytes: int = LIMITS.line_bytes


class Record(NamedTuple):
    """A record that is a row or a header: `content` is the line without its end, or the fields of CSV, None for no CSV.

    Bytes are those of the uncompressed text, lines count from the one that reading began at.
    """

    start: int
    end: int
    line: int
    num_lines: int
    content: Content


class Header(NamedTuple):
    """Names of columns, none of JSON lines; and byte and line where rows begin."""

    names: tuple[str, ...]
    start: int = 0
    line: int = 1


@contextmanager
def open_text(file: TextFile, start: int = 0) -> Iterator[Any]:
    """Open the uncompressed text of a file at a byte.

    Raises:
        OSError: the file is packed otherwise than its name says.
        EOFError: there are fewer bytes.
        StorageError, JobError: it cannot be reached, or is no longer the file that was listed.
    """
    with storage.open_input(file.uri, size=file.size, etag=file.etag) as raw:
        if file.compression or start == 0:
            mismatch = find_mismatch(raw.read(MAGIC_BYTES), file.compression)
            if mismatch is not None:
                raise OSError(mismatch)
        raw.seek(0 if file.compression else start)
        stream = decompress(raw, file.compression)
        if file.compression:
            skip(stream, start)
        yield stream


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


def iterate_records(file: TextFile, start: int = 0, line: int = 1) -> Iterator[Record]:
    """Yield the records of a file, header included, from a byte on, which begins line `line`.

    Raises:
        ShardError: a line has more than `file.line_bytes`.
        OSError, EOFError, pa.ArrowException, csv.Error: the file is broken, cut short or not packed as its name says.
        StorageError, JobError: it cannot be reached.
    """
    with open_text(file, start) as stream:
        if file.kind == "csv":
            yield from _iterate_csv(stream, file, start, line)
            return
        for begin, end, raw in _iterate_lines(stream, file, start):
            content = raw.removeprefix(BYTE_ORDER_MARK)
            content = content.strip() if file.kind == "jsonl" else content.rstrip(b"\r\n")
            if content or file.kind == "lines":
                yield Record(begin, end, line, 1, content)
            line += 1


def _iterate_lines(stream: Any, file: TextFile, start: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield first byte, the byte after and content of each line; only a newline ends one."""
    while raw := stream.readline(file.line_bytes):
        if len(raw) >= file.line_bytes and not raw.endswith(b"\n"):
            raise refuse_long_line(file, start)
        yield start, start + len(raw), raw
        start += len(raw)


def refuse_long_line(file: TextFile, byte: int) -> ShardError:
    """Return the error of a line that is too long to be one."""
    return ShardError(
        f"{file.uri}: a line of more than {file.line_bytes >> 20} MiB after byte {byte}; is it of another format "
        "(--format)?",
        uri=file.uri,
    )


def _iterate_csv(stream: Any, file: TextFile, start: int, line: int) -> Iterator[Record]:
    """Yield records, which may span lines."""
    end, num_lines = start, 0

    def lines() -> Iterator[str]:
        nonlocal end, num_lines
        for _, line_end, raw in _iterate_lines(stream, file, start):
            end, num_lines = line_end, num_lines + 1
            yield raw.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")

    csv.field_size_limit(file.line_bytes)
    reader = csv.reader(lines())
    while True:
        begin, first = end, num_lines
        fields: list[str] | None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if end - begin >= file.line_bytes:
                raise
            fields = None
        if fields is None or fields:
            yield Record(begin, end, line + first, num_lines - first, fields)


def read_header(file: TextFile) -> Header:
    """Return the names of the columns: those that were given, else what the first line says that is not blank.

    Raises:
        ShardError: the first line is not of the format.
        InputError: two columns have one name.
        As `iterate_records`.
    """
    if file.header and file.kind != "jsonl":
        return Header(file.header)
    first = next(iterate_records(file), None)
    if first is None:
        return Header(())
    if file.kind == "jsonl":
        _refuse_document(file, cast(bytes, first.content))
        return Header(())
    names = split_fields(first.content)
    if names is None:
        raise ShardError(
            f"{file.uri}, line {first.line}: is not CSV, so that its columns have no names; where its lines end with a "
            "carriage return alone, change that (tr '\\r' '\\n')",
            uri=file.uri,
        )
    names = [str(as_text(name)) for name in names]
    refuse_doubled(file.uri, names)
    return Header(tuple(names), first.end, first.line + first.num_lines)


def _refuse_document(file: TextFile, content: bytes) -> None:
    if content.startswith(b"[") and content[1:].lstrip()[:1] in (b"", b"{"):
        raise ShardError(
            f"{file.uri}: is one JSON array, not JSON lines; write an object a line (jq -c '.[]')", uri=file.uri
        )
    if content == b"{":
        raise ShardError(
            f"{file.uri}: holds JSON objects over several lines; write an object a line (jq -c .)", uri=file.uri
        )


def split_fields(content: Content) -> list[str] | None:
    """Return the fields of a record of CSV or TSV, with lone surrogates for what is not UTF-8; None where it is no CSV."""
    if isinstance(content, bytes):
        return content.decode("utf-8", "surrogateescape").split("\t")
    return content


def parse_records(
    kind: TextFormat, names: Sequence[str], contents: Sequence[Content]
) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """Make columns of records.

    Args:
        kind: their format.
        names: of the columns; of JSON lines none are needed.
        contents: as `Record` has them.

    Returns:
        By name the values of each column, None where a row has none and with lone surrogates where it is not Unicode; and
        by row why some could not be parsed.
    """
    if kind == "jsonl":
        return _parse_objects(cast(Sequence[bytes], contents))
    rows: list[list[str] | None]
    if kind == "csv":
        rows = list(cast(Sequence[list[str] | None], contents))
    else:
        texts = _decode(cast(Sequence[bytes], contents))
        rows = [[text] for text in texts] if kind == "lines" else [text.split("\t") for text in texts]
    faults: dict[int, str] = {}
    for row, fields in enumerate(rows):
        if fields is None or len(fields) != len(names):
            faults[row] = BROKEN_CSV if fields is None else BROKEN_FIELDS
            rows[row] = cast(list[str], [*(fields or ()), *[None] * len(names)][: len(names)])
    columns = zip(*cast(list[list[str]], rows), strict=True) if rows else [()] * len(names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}, faults


def _parse_objects(lines: Sequence[bytes]) -> tuple[dict[str, list[Any]], dict[int, str]]:
    objects = [parse_object(line) for line in lines]
    faults = {row: BROKEN_JSON for row, value in enumerate(objects) if value is None}
    whole = [value or {} for value in objects]
    names = dict.fromkeys(name for value in whole for name in value)
    return {name: [value.get(name) for value in whole] for name in names}, faults


def _decode(contents: Sequence[bytes]) -> list[str]:
    try:
        return b"\n".join(contents).decode().split("\n") if contents else []
    except UnicodeDecodeError:
        return [content.decode("utf-8", "surrogateescape") for content in contents]


def is_number(text: str) -> bool:
    """Whether a field of a line is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, None where it holds none."""
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return {str(as_text(name)): item for name, item in value.items()} if isinstance(value, dict) else None


def read_lines(
    file: TextFile,
    unit: Unit,
    keep: Sequence[str] | None,
    drop: Container[str],
    text_columns: list[str],
    types: Mapping[str, pa.DataType],
) -> Rows:
    """Read the rows of a unit; columns as `shards.read_rows` says."""
    records = list(islice(iterate_records(file, unit.byte_start, unit.number), unit.num_rows))
    names = () if file.kind == "jsonl" else file.header or read_header(file).names
    columns, faults = parse_records(file.kind, names, [record.content for record in records])
    if file.kind == "jsonl":
        names = tuple(dict.fromkeys([*types, *columns]))
    else:
        types = dict.fromkeys(names, pa.string())
    kept = choose_columns(names, keep, drop)
    missing = [None] * len(records)
    table = pa.table({name: to_array(columns.get(name, missing), types.get(name)) for name in kept})
    if not kept:
        table = table.select([]) if table.num_rows else pa.table({"": pa.nulls(len(records))}).select([])
    located: list[str | None] = list(missing)
    for row, reason in faults.items():
        located[row] = add_location(reason, file.uri, records[row].line)
    texts = {name: columns.get(name, missing) for name in text_columns if name in names}
    lists = frozenset(name for name in text_columns if name in types and is_list(types[name]))
    return Rows(table, texts, located, lists)
