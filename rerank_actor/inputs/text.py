"""Text formats: JSON lines, CSV (RFC 4180, with a header), TSV (a header, no quotes) and bare lines, also packed.

`iterate_records` finds the records of a file, `read_header` the names of its columns, `parse_records` makes columns of
records: whoever reads text goes through these three. Blank lines are no rows, but of bare lines; a byte order mark is none
of a line's. Where a record cannot be parsed, the row stays and its fault says why. Knows nothing of plans or of columns' use.
"""

import csv
import io
import lzma
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import ShardError
from rerank_actor.inputs.columns import as_text, to_array
from rerank_actor.inputs.formats import MAGIC_BYTES, TextFormat, find_foreign, find_mismatch
from rerank_actor.inputs.rows import (
    LIMITS,
    Rows,
    Unit,
    add_location,
    choose_columns,
    list_lists,
    list_sources,
    refuse_doubled,
    take_texts,
)
from rerank_actor.inputs.syntax.json_values import find_no_lines, parse_object
from rerank_actor.inputs.syntax.quoted import (
    AUTO,
    BYTE_ORDER_MARK,
    DUMPED_NULL,
    LOOKS_QUOTED,
    Dialect,
    Line,
    Syntax,
    find_quotes,
    iterate_quoted,
    looks_quoted,
)

BROKEN_JSON = "line is not a JSON object"
BROKEN_FIELDS = "row has another number of fields than the header"
NOT_UNICODE = "not valid Unicode"
KEPT_NOT_UNICODE = "column `{name}` is not valid Unicode, which no output holds; --drop-columns {name} leaves it out"

READ_ERRORS = (pa.ArrowException, EOFError, OSError, ValueError, csv.Error)  # of a file that is not what it should be

HEAD_BYTES = 256 * 1024  # of a TSV, in which it shows whether fields are in quotes
XZ_BYTES = 64 * 1024  # read at a time of what is packed
DELIMITERS = {"csv": ",", "tsv": "\t"}

Content = bytes | list[str | None] | str


@dataclass(frozen=True)
class TextFile:
    """A text file, and how it is read.

    Attributes:
        uri, size, etag: the file as it was listed; size None and etag "" where that does not matter.
        kind, compression: its format.
        header: names of the columns where the first line does not have them.
        line_bytes: of a line at most; a longer one is refused and never held.
        dialect: of CSV and TSV.
    """

    uri: str
    size: int | None
    etag: str
    kind: TextFormat
    compression: str = ""
    header: tuple[str, ...] = ()
    line_bytes: int = LIMITS.line_bytes
    dialect: Dialect = AUTO

    @property
    def spans_lines(self) -> bool:
        """Whether a record may span lines, so that records are found from the first on alone."""
        return may_span_lines(self.kind, self.dialect)


def may_span_lines(kind: str, dialect: Dialect) -> bool:
    """Whether a record of a format may span lines."""
    has_quotes = dialect.quoting == "csv" or (dialect.quoting == "auto" and kind == "csv")
    return kind in DELIMITERS and (has_quotes or dialect.escape not in ("", "none"))


class Record(NamedTuple):
    """A record that is a row or a header.

    Its content is the line without its end; where records may span lines its fields, or as text why it has none.

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
    if compression == "xz":
        return io.BufferedReader(_XzStream(raw), buffer_size=2**20)
    codec = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}[compression]
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec), buffer_size=2**20)


class _XzStream(io.RawIOBase):
    """What is packed as .xz, for which Arrow has no codec: streams one behind the other, with or without zeros between them.

    `lzma.LZMAFile` takes what follows a stream and is none for the end of the file, without a word.
    """

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._raw, self._packed = raw, b""
        self._unpacker: lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes, 0 at the end."""
        unpacked = b""
        while not unpacked:
            if not self._packed and (self._unpacker is None or self._unpacker.needs_input):
                self._packed = self._raw.read(XZ_BYTES)
                if not self._packed and self._unpacker is not None:
                    raise EOFError("the file is cut short")
                if not self._packed:
                    return 0
            if self._unpacker is None:
                self._packed = self._packed.lstrip(b"\0")
                self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ) if self._packed else None
            else:
                unpacked = self._unpack(self._unpacker, len(buffer))
        buffer[: len(unpacked)] = unpacked
        return len(unpacked)

    def _unpack(self, unpacker: lzma.LZMADecompressor, most_bytes: int) -> bytes:
        try:
            unpacked = unpacker.decompress(self._packed, most_bytes)
        except lzma.LZMAError as error:
            raise OSError(f"what is packed as .xz is damaged ({error})") from error
        self._packed = unpacker.unused_data if unpacker.eof else b""
        if unpacker.eof:
            self._unpacker = None
        return unpacked


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
        lines = _iterate_lines(stream, file, start)
        if file.spans_lines:
            yield from _iterate_spanning(file, lines, line)
            return
        for begin, end, raw in lines:
            content = raw.removeprefix(BYTE_ORDER_MARK)
            content = content.strip() if file.kind == "jsonl" else content.rstrip(b"\r\n")
            if content or file.kind == "lines":
                yield Record(begin, end, line, 1, content)
            line += 1


def _iterate_spanning(file: TextFile, lines: Iterator[tuple[int, int, bytes]], line: int) -> Iterator[Record]:
    """Yield records, which may span lines."""
    numbered = (Line(begin, end, number, raw) for number, (begin, end, raw) in enumerate(lines, start=line))
    is_plain = file.dialect.quoting == "auto" and file.kind == "tsv"
    dialect = replace(file.dialect, quoting="none") if is_plain else file.dialect
    for first, last, fields in iterate_quoted(numbered, Syntax(DELIMITERS[file.kind], dialect, file.line_bytes)):
        yield Record(first.start, last.end, first.number, last.number - first.number + 1, fields)


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
        "than its name says?",
        uri=file.uri,
    )


def read_header(file: TextFile) -> Header:
    """Return the names of the columns: those that were given, else what the first line says that is not blank.

    Raises:
        ShardError: the first line is not of the format.
        InputError: two columns have one name.
        As `iterate_records`.
    """
    if file.header and file.kind != "jsonl":
        return Header(file.header)
    first = next(iterate_records(file), None) if file.kind != "jsonl" else None
    if first is None:
        return Header(())
    fields = split_fields(first.content, DELIMITERS[file.kind])
    if fields is None:
        raise ShardError(
            f"{file.uri}, line {first.line}: {first.content!s}, so that its columns have no names", uri=file.uri
        )
    names = [str(as_text(name)) for name in fields]
    refuse_doubled(file.uri, names)
    return Header(tuple(names), first.end, first.line + first.num_lines)


def refuse_other(file: TextFile) -> None:
    """Refuse a file whose first lines show that it is not what it is taken for, or has two readings.

    Raises:
        ShardError: it is another thing than text of lines, no line is a JSON object, or a TSV has fields in quotes.
        As `iterate_records`.
    """
    head, is_whole = _read_head(file)
    problem = find_foreign(head)
    is_object = file.kind == "jsonl" and is_whole and parse_object(head) is not None
    if problem is None and b"\r" in head.rstrip() and b"\n" not in head and not is_object:
        problem = r"has lines that end with a carriage return alone; change that (tr '\r' '\n')"
    if problem is None and file.kind == "jsonl":
        problem = find_no_lines(head, is_whole)
    if problem is None and _is_unsettled(file) and find_quotes(_list_lines(head, is_whole), is_whole) == "quoted":
        problem = (
            "some of its fields are in quotes, which a CSV writer puts around them; --quoting csv takes them off (pandas' "
            "to_csv, Python's csv), --quoting none reads them as text"
        )
    if problem is None and file.header and file.kind in DELIMITERS and _repeats_header(file, head):
        problem = (
            f"its first line is a header ({', '.join(file.header)}); leave out --columns, or the --format, that names the "
            "columns of files without one"
        )
    if problem is not None:
        raise ShardError(f"{file.uri}: {problem}", uri=file.uri)


def _repeats_header(file: TextFile, head: bytes) -> bool:
    """Whether the first line has the names of columns that were given for a file without a header."""
    line = head.removeprefix(BYTE_ORDER_MARK).lstrip(b"\r\n").partition(b"\n")[0].decode("utf-8", "replace")
    fields = [field.strip().strip('"').casefold() for field in line.split(DELIMITERS[file.kind])]
    names = [name.casefold() for name in file.header if not name.startswith("-")]
    return len(fields) == len(file.header) and bool(names) and set(names) <= set(fields)


def _read_head(file: TextFile) -> tuple[bytes, bool]:
    """Return the first bytes of a text, and whether they are all of it."""
    with open_text(file) as stream:
        return stream.read(HEAD_BYTES), not stream.read(1)


def _list_lines(head: bytes, is_whole: bool) -> list[Line]:
    lines = io.BytesIO(head if is_whole else head[: head.rfind(b"\n") + 1])
    return [Line(0, 0, number, line) for number, line in enumerate(lines, start=1)]


def _is_unsettled(file: TextFile) -> bool:
    """Whether nobody said what quotes are, and the format does not."""
    return file.kind == "tsv" and file.dialect.quoting == "auto"


def split_fields(content: Content, delimiter: str = "\t") -> list[str] | None:
    """Return the fields of a record of CSV or TSV, with lone surrogates for what is not UTF-8; None where it has none."""
    if isinstance(content, bytes):
        return content.decode("utf-8", "surrogateescape").split(delimiter)
    return [field or "" for field in content] if isinstance(content, list) else None


def parse_records(
    file: TextFile, names: Sequence[str], contents: Sequence[Content], read: Container[str] | None = None
) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """Make columns of records.

    Args:
        file: where they are from.
        names: of the columns; of JSON lines none are needed.
        contents: as `Record` has them.
        read: columns in which a null of a dump has two readings that matter; None for all, others keep it as it came.

    Returns:
        By name the values of each column, None where a row has none and with lone surrogates where it is not Unicode; and
        by row why some could not be parsed.
    """
    if file.kind == "jsonl":
        return _parse_objects(cast(Sequence[bytes], contents))
    num_names = len(names)
    may_be_null = file.kind in DELIMITERS and not file.dialect.escape
    places = [place for place, name in enumerate(names) if may_be_null and (read is None or name in read)]
    faults: dict[int, str] = {}
    rows: list[Sequence[str | None]] = []
    for row, content in enumerate(contents if file.spans_lines else _split_lines(file, contents, faults)):
        if isinstance(content, str):
            faults[row] = content
        elif len(content) != num_names:
            faults.setdefault(row, BROKEN_FIELDS)
        elif r"\N" in content and any(content[place] == r"\N" for place in places):
            faults.setdefault(row, DUMPED_NULL)
        fields = () if isinstance(content, str) else cast(Sequence[str | None], content)
        rows.append(fields if len(fields) == num_names else [*fields, *[None] * num_names][:num_names])
    columns = zip(*rows, strict=True) if rows else [()] * num_names
    return {name: list(column) for name, column in zip(names, columns, strict=True)}, faults


def _split_lines(file: TextFile, contents: Sequence[Content], faults: dict[int, str]) -> list[list[str]]:
    """Return the fields of lines that are records, and note those of which some may be in quotes."""
    texts = _decode(cast(Sequence[bytes], contents))
    if file.kind == "lines":
        return [[text] for text in texts]
    if _is_unsettled(file):
        rows = [row for row, text in enumerate(texts) if looks_quoted(text, is_text=False)]
        is_text = bool(rows) and _has_plain_quotes(file)
        faults.update((row, LOOKS_QUOTED) for row in rows if looks_quoted(texts[row], is_text))
    return [text.split(DELIMITERS[file.kind]) for text in texts]


@lru_cache(maxsize=64)
def _has_plain_quotes(file: TextFile) -> bool:
    """Whether the first lines of a TSV show that quotes are text, so that those of other lines are."""
    head, is_whole = _read_head(file)
    return find_quotes(_list_lines(head, is_whole), is_whole) == "text"


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
    names = read_header(file).names
    read = list_sources(names, text_columns)
    columns, faults = parse_records(file, names, [record.content for record in records], read)
    if file.kind == "jsonl":
        names = tuple(dict.fromkeys([*types, *columns]))
    else:
        types = dict.fromkeys(names, pa.string())
    kept = choose_columns(names, keep, drop)
    missing = [None] * len(records)
    arrays = {name: to_array(columns.get(name, missing), types.get(name)) for name in kept}
    table = pa.table({name: array for name, (array, _) in arrays.items()})
    if not kept:
        table = table.select([]) if table.num_rows else pa.table({"": pa.nulls(len(records))}).select([])
    located: list[str | None] = list(missing)
    sources = list_sources(names, text_columns)  # what is wrong with a text is told of its pair
    for name in kept:
        for row in arrays[name][1] if name not in sources else ():
            faults.setdefault(row, KEPT_NOT_UNICODE.format(name=name))
    for row, reason in faults.items():
        located[row] = add_location(reason, file.uri, records[row].line)
    values = {name: columns.get(name, missing) for name in sources}
    return Rows(table, take_texts(values, text_columns), located, list_lists(types, text_columns))
