"""Shards: input objects of rows, in Parquet, JSON lines, CSV or TSV, and how to read some rows of one.

`scan_shard` finds how many rows an object has and where a unit of rows may begin; `read_rows` reads one unit's rows
as an Arrow table. Memory is bounded by the unit, not by the shard. Knows nothing of prompts, plans or Ray.

Text formats: JSON lines hold one object a line; CSV is RFC 4180 with a header; TSV has a header and no quoting. CSV
and TSV columns are all text. Where a row cannot be parsed, the row stays and its fault says why.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import InputError, ObjectChangedError, ShardChangedError, ShardError, describe_cause
from rerank_actor.ranking import COLUMNS, RANKING_FORMATS, RankingFile, read_ranking, scan_ranking

Format = Literal["parquet", "jsonl", "csv", "tsv", "trec", "tevatron", "qrels"]

SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".trec": "trec",
    ".run": "trec",
}
UNIT_BYTES = 32 * 2**20  # of uncompressed input; a prepared unit stays well under what Ray's object store likes
STREAMED_GROUP_BYTES = 128 * 2**20  # a larger Parquet row group is decoded piecewise, never as a whole
TYPED_ROWS = 1000  # JSON rows whose types are looked at together
FOOTER_BYTES = 64 * 1024

LONGEST_FIELD = 256 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
RESERVED_COLUMNS = ("score", "logit", "num_tokens", "truncated_tokens", "error")

BROKEN_JSON = "line is not a JSON object"
BROKEN_CSV = "row is not CSV"
BROKEN_FIELDS = "row has another number of fields than the header"


@dataclass(frozen=True)
class ShardLayout:
    """What a scan finds: rows, columns and places where a unit may begin.

    Attributes:
        num_rows: rows in the shard.
        columns: name and Arrow type of each column, in order.
        blocks: (rows, bytes, first byte) of each stretch of rows that is cheap to read by itself: Parquet row groups,
            or runs of lines. First byte is -1 for Parquet.
    """

    num_rows: int
    columns: dict[str, pa.DataType]
    blocks: list[tuple[int, int, int]]


@dataclass(frozen=True)
class Rows:
    """Some rows of a shard.

    Attributes:
        table: the kept columns.
        texts: Python values of each named text column, one a row (a list where the column holds lists).
        faults: why a row could not be parsed, None where it could.
        list_columns: those of the text columns that hold lists.
    """

    table: pa.Table
    texts: dict[str, list[Any]]
    faults: list[str | None]
    list_columns: frozenset[str]


def detect_format(uri: str, wanted: str = "auto") -> tuple[Format, str]:
    """Return format and compression (`""`, `gz` or `zst`) of a shard by its name.

    Raises:
        InputError: the name says nothing and no format was given.
    """
    name, compression = uri.lower(), ""
    for suffix in ("gz", "zst"):
        if name.endswith("." + suffix):
            name, compression = name[: -len(suffix) - 1], suffix
    if wanted != "auto":
        return cast(Format, wanted), compression
    for suffix, found in SUFFIXES.items():
        if name.endswith(suffix):
            return found, compression
    raise InputError(f"{uri}: the name does not tell its format; name one with --format", uri=uri)


def scan_shard(
    uri: str, size: int, wanted: str, block_rows: int, break_at: int = -1, top_k: int | None = None
) -> ShardLayout:
    """Find rows, columns and unit borders of a shard: a Parquet footer is read, a text file is streamed once.

    Args:
        uri: the shard.
        size: its stored size in bytes.
        wanted: the job's `--format`.
        block_rows: rows of a block of lines at most.
        break_at: row at which a block of lines begins whatever else.
        top_k: candidates of each query at most, of a ranking.

    Raises:
        ShardError: the shard is not what its format says.
        StorageError, JobError: it cannot be reached.
    """
    kind, compression = detect_format(uri, wanted)
    try:
        if kind == "parquet":
            return _scan_parquet(uri, size)
        if kind in RANKING_FORMATS:
            file = RankingFile(uri, size, "", kind, compression, top_k)
            num_rows, blocks = scan_ranking(file, block_rows, break_at)
            return ShardLayout(num_rows, dict(COLUMNS[kind]), blocks)
        return _scan_lines(uri, size, kind, compression, block_rows, break_at)
    except (pa.ArrowException, EOFError, OSError, ValueError, csv.Error) as error:
        raise _unreadable(uri, kind, error) from error


def _unreadable(uri: str, kind: str, error: Exception) -> ShardError:
    return ShardError(
        f"{uri}: cannot be read as {kind} ({describe_cause(error)}); it may be broken, cut short or of another "
        "format (--format)",
        uri=uri,
    )


def _scan_parquet(uri: str, size: int) -> ShardLayout:
    if size < 12:
        raise pa.ArrowInvalid(f"{size} bytes are too few for a Parquet file")
    tail = storage.read_bytes(uri, tail_bytes=FOOTER_BYTES, size=size)
    footer_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] == b"PAR1" and len(tail) < footer_bytes <= size:
        tail = storage.read_bytes(uri, tail_bytes=footer_bytes, size=size)
    file = pq.ParquetFile(pa.BufferReader(tail))
    metadata = file.metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    schema = file.schema_arrow
    _refuse_duplicates(uri, schema.names)
    return ShardLayout(
        metadata.num_rows,
        dict(zip(schema.names, schema.types, strict=True)),
        [(group.num_rows, group.total_byte_size, -1) for group in groups],
    )


def _scan_lines(uri: str, size: int, kind: Format, compression: str, block_rows: int, break_at: int) -> ShardLayout:
    blocks: list[tuple[int, int, int]] = []
    header: list[str] | None = None
    types: dict[str, pa.DataType] = {}
    objects: list[dict[str, Any]] = []
    rows = start = position = num_rows = 0
    for length, record in iterate_records(uri, size, "", kind, compression):
        end = position + length
        if record is not None and not record:  # a blank line
            pass
        elif kind != "jsonl" and header is None:
            header = cast(list[str], record or [])
            start = end
        else:
            if rows and (rows >= block_rows or end - start > UNIT_BYTES or num_rows == break_at):
                blocks.append((rows, position - start, start))
                rows, start = 0, position
            rows += 1
            num_rows += 1
            if kind == "jsonl":
                objects.append(parse_object(cast(bytes, record)) or {})
                if len(objects) == TYPED_ROWS:
                    _add_types(types, objects)
                    objects.clear()
        position = end
    if rows:
        blocks.append((rows, position - start, start))
    if kind != "jsonl":
        _refuse_duplicates(uri, header or [])
        return ShardLayout(num_rows, {name: pa.string() for name in header or []}, blocks)
    _add_types(types, objects)
    return ShardLayout(num_rows, types, blocks)


def _add_types(types: dict[str, pa.DataType], objects: list[dict[str, Any]]) -> None:
    """Widen the types of JSON columns by those of some more rows."""
    for name in dict.fromkeys(name for found in objects for name in found):
        types[name] = merge_types(types.get(name), _infer([found.get(name) for found in objects]).type)


def merge_types(first: pa.DataType | None, second: pa.DataType) -> pa.DataType:
    """Return a type that holds the values of both; text, as JSON, where there is no other."""
    if first is None or first == second:
        return second
    schemas = [pa.schema([("value", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("value").type
    except pa.ArrowException:
        return pa.string()


def _refuse_duplicates(uri: str, names: list[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(
            f"{uri}: has more than one column `{doubled[0]}`; rename one of them", uri=uri, column=doubled[0]
        )


def iterate_records(
    uri: str, size: int | None, etag: str, kind: Format, compression: str, start: int = 0
) -> Iterator[tuple[int, bytes | list[str] | None]]:
    """Yield the length in bytes and the content of each record from a byte of the uncompressed text on.

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
        for line in stream:
            content = line.removeprefix(BYTE_ORDER_MARK)
            if kind == "jsonl":
                yield len(line), content.strip()
            else:
                text = content.decode("utf-8", "surrogateescape").rstrip("\r\n")
                yield len(line), text.split("\t") if text else []


def _iterate_csv(stream: Any) -> Iterator[tuple[int, list[str] | None]]:
    consumed = 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for line in stream:
            consumed += len(line)
            yield line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")

    csv.field_size_limit(LONGEST_FIELD)  # an unclosed quote would swallow the rest of the shard
    before = 0
    reader = csv.reader(lines())
    while True:
        fields: list[str] | None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if consumed - before >= LONGEST_FIELD:
                raise
            fields = None
        yield consumed - before, fields
        before = consumed


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


def parse_object(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line of JSON, None where it is none."""
    try:
        found = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return {str(_as_text(name)): value for name, value in found.items()} if isinstance(found, dict) else None


def _infer(values: list[Any], wanted: pa.DataType | None = None) -> pa.Array:
    """Return values as an Arrow array: of the wanted type, or of what they show; as JSON text where neither goes."""
    if wanted is None or not pa.types.is_string(wanted):
        try:
            found = pa.array(values)
            if wanted is not None and found.type != wanted:
                # Arrow cuts 1.5 to a wanted int64 and drops fields that a wanted struct lacks, without a word.
                if pa.types.is_floating(wanted):
                    values = [float(value) if isinstance(value, int) else value for value in values]
                found = pa.array(values, wanted) if merge_types(wanted, found.type) == wanted else None
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
            found = None
        if found is not None and not _has_empty_struct(found.type):  # Parquet cannot hold one
            return found
    return pa.array([_as_text(value) for value in values], pa.string())


def _has_empty_struct(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return is_list(kind) and _has_empty_struct(kind.value_type)


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_rows(
    uri: str,
    wanted: str,
    *,
    row_start: int,
    num_rows: int,
    byte_start: int,
    keep: list[str] | None,
    text_columns: list[str],
    types: dict[str, pa.DataType] | None = None,
    size: int | None = None,
    etag: str = "",
    top_k: int | None = None,
) -> Rows:
    """Read a range of a shard's rows.

    Args:
        uri: the shard.
        wanted: the job's `--format`.
        row_start: first row, counted in the shard.
        num_rows: rows to read.
        byte_start: first byte of the first row in the uncompressed text; unused for Parquet.
        keep: columns of the table, None for all.
        text_columns: columns whose values are wanted as Python texts.
        types: types that JSON columns had when the plan was made.
        size: stored size of the shard as planned; None when that does not matter.
        etag: its version mark as planned; "" where storage has none.
        top_k: candidates of each query at most, of a ranking.

    Raises:
        ShardChangedError: it is no longer the shard that was planned.
        ShardError: the shard is broken, or has fewer rows than planned.
        StorageError, JobError: it cannot be reached.
    """
    kind, compression = detect_format(uri, wanted)
    try:
        try:
            if kind == "parquet":
                rows = _read_parquet(uri, size, etag, row_start, num_rows, keep, text_columns)
            elif kind in RANKING_FORMATS:
                file = RankingFile(uri, size, etag, kind, compression, top_k)
                table, faults = read_ranking(file, byte_start, num_rows)
                texts = {name: table.column(name).to_pylist() for name in text_columns if name in table.column_names}
                rows = Rows(table if keep is None else table.select(keep), texts, faults, frozenset())
            else:
                rows = _read_lines(
                    uri, size, etag, kind, compression, num_rows, byte_start, keep, text_columns, types or {}
                )
        except (pa.ArrowException, EOFError, OSError, ValueError, csv.Error) as error:
            storage.refuse_changed(uri, size, etag)  # what looks broken may be two shards' halves
            raise _unreadable(uri, kind, error) from error
        storage.refuse_changed(uri, size, etag)
    except ObjectChangedError as error:
        detail = str(error).removeprefix(f"{uri}: ")
        raise ShardChangedError(
            f"{uri}: changed since it was planned ({detail}); run again, with --rescore-changed if some of it was "
            "scored already",
            uri=uri,
        ) from error
    if rows.table.num_rows != num_rows:
        raise ShardError(
            f"{uri}: {rows.table.num_rows} rows from row {row_start} on where the plan has {num_rows}; it changed since "
            "it was planned",
            uri=uri,
        )
    return rows


def _read_parquet(
    uri: str,
    size: int | None,
    etag: str,
    row_start: int,
    num_rows: int,
    keep: list[str] | None,
    text_columns: list[str],
) -> Rows:
    with storage.open_input(uri, size=size, etag=etag) as source:
        file = pq.ParquetFile(source, buffer_size=2**20)
        names = file.schema_arrow.names
        kept = names if keep is None else keep
        columns = list(dict.fromkeys([*kept, *(name for name in text_columns if name in names)]))
        groups: list[int] = []
        skip = first = 0
        largest = 0
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            if first + group.num_rows > row_start and first < row_start + num_rows:
                if not groups:
                    skip = row_start - first
                groups.append(index)
                largest = max(largest, group.total_byte_size)
            first += group.num_rows
        if largest > STREAMED_GROUP_BYTES:
            table = _read_streamed(file, groups, columns, skip, num_rows)
        else:
            table = file.read_row_groups(groups, columns=columns).slice(skip, num_rows)
    texts = {name: to_texts(table.column(name)) for name in text_columns if name in columns}
    lists = frozenset(name for name in texts if is_list(table.schema.field(name).type))
    return Rows(table.select(kept), texts, [None] * table.num_rows, lists)


def _read_streamed(file: pq.ParquetFile, groups: list[int], columns: list[str], skip: int, num_rows: int) -> pa.Table:
    """Decode over-large row groups in small batches and keep only the wanted rows."""
    batches = []
    for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=columns):
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        batch = batch.slice(skip, num_rows)
        skip = 0
        num_rows -= batch.num_rows
        batches.append(batch)
        if num_rows == 0:
            break
    return pa.Table.from_batches(batches, schema=pa.schema([file.schema_arrow.field(name) for name in columns]))


def to_texts(column: pa.ChunkedArray) -> list[Any]:
    """Return a column as Python values; bytes that are not UTF-8 become text with lone surrogates, a later fault."""
    if _has_extension(column.type):
        column = column.cast(_strip_extensions(column.type))
    try:
        return cast(list[Any], column.to_pylist())
    except UnicodeDecodeError:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
            return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw.to_pylist()]
        return [_value_or_fault(value) for value in column]


def read_own_table(data: bytes) -> pa.Table:
    """Read a Parquet file of the project's own, none of which has extension types.

    Raises:
        pyarrow.ArrowException: it is damaged or not the project's.
    """
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    if any(_has_extension(kind) for kind in table.schema.types):
        raise pa.ArrowTypeError("a column is of an extension type")
    return table


def _has_extension(kind: pa.DataType) -> bool:
    """Whether values are of an extension type, which may run code to become Python's: Ray registers one of pickles."""
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return _has_extension(kind.value_type)
    return any(_has_extension(kind.field(index).type) for index in range(kind.num_fields))


def _strip_extensions(kind: pa.DataType) -> pa.DataType:
    """Return what texts, or lists of them, are stored as."""
    if isinstance(kind, pa.BaseExtensionType):
        return _strip_extensions(kind.storage_type)
    if is_list(kind):
        return pa.list_(_strip_extensions(kind.value_type))
    if _has_extension(kind):
        raise pa.ArrowTypeError(f"a column of texts is of type {kind}")
    return kind


def _value_or_fault(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return "\udc80"


def _read_lines(
    uri: str,
    size: int | None,
    etag: str,
    kind: Format,
    compression: str,
    num_rows: int,
    byte_start: int,
    keep: list[str] | None,
    text_columns: list[str],
    types: dict[str, pa.DataType],
) -> Rows:
    header: list[str] = []
    if kind != "jsonl":
        records = iterate_records(uri, size, etag, kind, compression)
        header = next((cast(list[str], found) for _, found in records if found), [])
    objects: list[dict[str, Any]] = []
    faults: list[str | None] = []
    for _, record in iterate_records(uri, size, etag, kind, compression, byte_start):
        if len(objects) == num_rows:
            break
        if record is not None and not record:
            continue
        if record is None:
            objects.append({})
            faults.append(BROKEN_CSV)
        elif kind == "jsonl":
            found = parse_object(cast(bytes, record))
            objects.append(found or {})
            faults.append(BROKEN_JSON if found is None else None)
        else:
            objects.append(dict(zip(header, record, strict=False)))
            faults.append(None if len(record) == len(header) else BROKEN_FIELDS)
    if kind != "jsonl":
        types = dict.fromkeys(header, pa.string())
    names = list(dict.fromkeys([*types, *(name for found in objects for name in found)])) if kind == "jsonl" else header
    kept = names if keep is None else keep
    table = pa.table({name: _infer([found.get(name) for found in objects], types.get(name)) for name in kept})
    if not kept:
        table = table.select([]) if table.num_rows else pa.table({"": pa.nulls(len(objects))}).select([])
    texts = {name: [found.get(name) for found in objects] for name in text_columns}
    lists = frozenset(name for name in text_columns if name in types and is_list(types[name]))
    return Rows(table, texts, faults, lists)


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of the list types."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
