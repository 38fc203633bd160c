"""Texts by id: the queries and the corpus that pairs of ids are joined with, as sources of a store.

Reads what BEIR calls `queries.jsonl` and `corpus.jsonl`, and the like in Parquet, CSV and TSV: an id, a text, and for
documents a title, which is put before the text with a space between, as BEIR does. A TSV of two columns whose header names
neither an id nor a text is taken for one without a header, as MS MARCO's are. Ids are compared as text. A piece of a source
is read in batches, so that memory is bounded by neither. Knows nothing of pairs, stores or Ray.
"""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import InputError, RerankError, describe_cause
from rerank_actor.inputs import shards
from rerank_actor.inputs.columns import to_texts
from rerank_actor.inputs.spec import SourceSpec
from rerank_actor.inputs.text import TextFormat, iterate_records, parse_object
from rerank_actor.storage.utf8 import is_unicode

ID_NAMES = ("_id", "id", "docid", "doc_id", "pid", "qid", "document_id", "query_id")
TEXT_NAMES = ("text", "contents", "passage", "body", "document", "query", "question")
TITLE_NAME = "title"

PIECE_BYTES = 64 * 2**20  # stored, of a source that can be cut
BATCH_BYTES = 48 * 2**20  # of texts in memory
BATCH_ROWS = 1024
VERSION = 1  # of what a source's rows become; part of its digest

NAMES_WANTED = "give it as .jsonl, .parquet, .csv or .tsv, also with .gz or .zst"
NOT_TEXT = "is not text"
BAD_UNICODE = "is not valid Unicode"
SCHEMA = pa.schema({"key": pa.string(), "text": pa.string(), "fault": pa.string()})


@dataclass(frozen=True)
class SourcePiece:
    """A part of a source that one task reads: of `parts` about equal ones of an object, number `part`."""

    uri: str
    size: int
    etag: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class TextSource:
    """Queries or a corpus.

    Attributes:
        role: what the texts are.
        objects: in order of the flag and of names.
        id_names, text_names: columns that may hold ids and texts; of each, the first that an object has.
    """

    role: Literal["query", "document"]
    objects: tuple[storage.StoredObject, ...]
    id_names: tuple[str, ...]
    text_names: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The flag that names the source."""
        return "--queries" if self.role == "query" else "--corpus"

    @property
    def num_bytes(self) -> int:
        """Stored size of the objects."""
        return sum(item.size for item in self.objects)

    @property
    def digest(self) -> str:
        """Twenty-four hex digits that follow from the objects and from how they are read."""
        listing = [item.identity for item in self.objects]
        facts = [VERSION, self.role, self.id_names, self.text_names, listing]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def describe(self) -> str:
        """Return what the fingerprint says of the source."""
        return f"{len(self.objects)} objects of {self.num_bytes} bytes, {self.digest}"

    def cut(self) -> list[SourcePiece]:
        """Return the source's pieces. Compressed text and CSV, whose records may span lines, are read whole."""
        pieces = []
        for item in self.objects:
            kind, compression = _detect(item.uri, self.flag)
            can_cut = not compression and kind != "csv"
            parts = max(1, -(-item.size // PIECE_BYTES)) if can_cut else 1
            pieces += [SourcePiece(item.uri, item.size, item.etag, part, parts) for part in range(parts)]
        return pieces

    def read(self, piece: SourcePiece) -> Iterator[Any]:
        """Yield a piece's texts as tables of `SCHEMA`, and last of all the counts of what was found.

        Raises:
            InputError: the object is broken, or has no column of ids or of texts.
            StorageError, JobError: it cannot be reached.
        """
        counts = _Counts()
        keys: list[str] = []
        texts: list[str | None] = []
        faults: list[str | None] = []
        num_bytes = 0
        try:
            for place, record in _iterate(piece, self):
                key = read_id(record[0]) if record is not None else None
                if key is None:
                    counts.leave_out(f"{piece.uri}, {place}", is_broken=record is None)
                    continue
                text, fault = _join(*record[1:]) if record is not None else (None, None)
                counts.rows += 1
                keys.append(key)
                texts.append(text)
                faults.append(fault)
                num_bytes += len(key) + len(text or "") + 16
                if num_bytes >= BATCH_BYTES:
                    yield pa.table([keys, texts, faults], schema=SCHEMA)
                    keys, texts, faults, num_bytes = [], [], [], 0
        except (pa.ArrowException, EOFError, OSError, ValueError, csv.Error) as error:
            raise InputError(
                f"{self.flag} {piece.uri}: cannot be read ({describe_cause(error)}); it may be broken, cut short or not "
                "what its name says",
                uri=piece.uri,
            ) from error
        if keys:
            yield pa.table([keys, texts, faults], schema=SCHEMA)
        yield counts.to_dict()


@dataclass
class _Counts:
    rows: int = 0
    broken: int = 0
    without_id: int = 0
    first_left_out: str = field(default="")

    def leave_out(self, place: str, *, is_broken: bool) -> None:
        self.broken += is_broken
        self.without_id += not is_broken
        self.first_left_out = self.first_left_out or place

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def find_sources(specs: Iterable[SourceSpec]) -> list[TextSource]:
    """List queries and corpus, those that are named, and look at the columns of the first object of each.

    Raises:
        InputError: nothing is there, or there is no column of ids or of texts.
        StorageError, JobError: it cannot be reached.
    """
    return [_find_source(spec) for spec in specs]


def _find_source(spec: SourceSpec) -> TextSource:
    flag = "--queries" if spec.role == "query" else "--corpus"
    found: dict[str, storage.StoredObject] = {}
    for uri in spec.uris:
        objects = storage.list_objects(uri)
        if not objects:
            raise InputError(f"{flag} {uri}: nothing there; it takes files, folders and globs, local or s3://", uri=uri)
        for item in objects:
            _detect(item.uri, flag)
            found.setdefault(item.uri, item)
    id_names = tuple(dict.fromkeys((spec.id_column, *ID_NAMES)))
    text_names = tuple(dict.fromkeys((spec.text_column, *TEXT_NAMES)))
    source = TextSource(spec.role, tuple(found.values()), id_names, text_names)
    item = source.objects[0]
    try:
        next(_iterate(SourcePiece(item.uri, item.size, item.etag), source), None)
    except RerankError:
        raise
    except (pa.ArrowException, EOFError, OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{flag} {item.uri}: cannot be read ({describe_cause(error)}); it may be broken or not what its name says",
            uri=item.uri,
        ) from error
    return source


def _detect(uri: str, flag: str) -> tuple[shards.Format, str]:
    try:
        found = shards.detect_format(uri)
    except InputError as error:
        raise InputError(f"{flag} {uri}: the name does not tell its format; {NAMES_WANTED}", uri=uri) from error
    if found[0] not in ("parquet", *get_args(TextFormat)):
        raise InputError(
            f"{flag} {uri}: is {found[0]} by its name, which holds no texts by id here; {NAMES_WANTED}", uri=uri
        )
    return found


def read_id(value: Any) -> str | None:
    """Return an id as text, by which ids are compared; None for what is no id."""
    if isinstance(value, str):
        return value if value and is_unicode(value) else None
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))  # of a column with nulls that passed through pandas
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _join(text: Any, title: Any, has_title: bool) -> tuple[str | None, str | None]:
    """Return a text with its title before it, and what is wrong with it."""
    if text is None:
        return None, None
    if not isinstance(text, str) or not isinstance(title, str | None):
        return None, NOT_TEXT
    whole = f"{title or ''} {text}".strip() if has_title else text
    return (whole, None) if is_unicode(whole) else (None, BAD_UNICODE)


# What a record is read into: its id, text and title, and whether there is a column of titles.
Record = tuple[Any, Any, Any, bool]


def _iterate(piece: SourcePiece, source: TextSource) -> Iterator[tuple[str, Record | None]]:
    """Yield where a record is, in words, and the record; None where it is broken."""
    kind, compression = _detect(piece.uri, source.flag)
    if kind == "parquet":
        yield from _iterate_parquet(piece, source)
    elif kind == "jsonl":
        yield from _iterate_json(piece, source, compression)
    else:
        yield from _iterate_fields(piece, source, cast(TextFormat, kind), compression)


def _iterate_parquet(piece: SourcePiece, source: TextSource) -> Iterator[tuple[str, Record | None]]:
    with storage.open_input(piece.uri, size=piece.size, etag=piece.etag) as file:
        parquet = pq.ParquetFile(file, buffer_size=2**20)
        names = _choose_columns(piece.uri, parquet.schema_arrow.names, source)
        columns = [name for name in names if name is not None]
        for group in range(piece.part, parquet.metadata.num_row_groups, piece.parts):
            row = sum(parquet.metadata.row_group(earlier).num_rows for earlier in range(group))
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=columns):
                values = [to_texts(pa.chunked_array([batch.column(name)])) for name in columns]
                for offset, record in enumerate(zip(*values, strict=True)):
                    yield f"row {row + offset}", (*record, *[None] * (3 - len(record)), names[2] is not None)
                row += batch.num_rows


def _iterate_json(piece: SourcePiece, source: TextSource, compression: str) -> Iterator[tuple[str, Record | None]]:
    start, end = (piece.size * piece.part // piece.parts, piece.size * (piece.part + 1) // piece.parts)
    names: tuple[str, str, str | None] | None = None
    for where, line in _iterate_span(piece, "jsonl", compression, start, end):
        record = parse_object(line)
        if record is None:
            yield where, None
            continue
        names = names or _choose_columns(piece.uri, list(record), source)
        found = record.get(names[0])
        if found is None:  # objects of one file need not have the same keys
            found = next((record[name] for name in source.id_names if record.get(name) is not None), None)
        text = record.get(names[1])
        yield where, (found, text, record.get(TITLE_NAME), source.role == "document" and TITLE_NAME in record)


def _iterate_span(
    piece: SourcePiece, kind: TextFormat, compression: str, start: int, end: int
) -> Iterator[tuple[str, Any]]:
    """Yield where each record is, in words, and the record, of those that begin in a span of bytes of a text."""
    place = max(
        0, start - 1
    )  # up to the next line's end; a line that begins at `start` is so not taken for half of one
    number = -1 if start > 0 else 0
    for length, _, record in iterate_records(piece.uri, piece.size, piece.etag, kind, compression, place):
        if number >= 0:
            if place >= end and not compression:
                return
            if record or record is None:
                yield f"byte {place}" if piece.part else f"line {number + 1}", record
        number += 1
        place += length


def _iterate_fields(
    piece: SourcePiece, source: TextSource, kind: TextFormat, compression: str
) -> Iterator[tuple[str, Record | None]]:
    records = iterate_records(piece.uri, piece.size, piece.etag, kind, compression)
    header: list[str] = next((list(found) for _, _, found in records if isinstance(found, list) and found), [])
    if not header:
        return
    first_row: list[list[str]] = []
    if kind == "tsv" and len(header) == 2 and not {*header} & {*source.id_names, *source.text_names}:
        first_row = [header] if piece.part == 0 else []
        names: tuple[str, str, str | None] = ("id", "text", None)
        header = ["id", "text"]
    else:
        names = _choose_columns(piece.uri, header, source)
    places = [header.index(name) for name in names if name is not None]
    start, end = (piece.size * piece.part // piece.parts, piece.size * (piece.part + 1) // piece.parts)
    has_header = not first_row
    for row in first_row:
        yield "line 1", (row[0], row[1], None, False)
    is_top = piece.part == 0
    for where, row in _iterate_span(piece, kind, compression, start, end):
        if is_top:  # the header, or the row that stood in its place
            is_top = False
            continue
        if row is None or len(row) != len(header):
            yield where, None
            continue
        found = [row[place] for place in places]
        yield where, (*found, *[None] * (3 - len(found)), has_header and names[2] is not None)


def _choose_columns(uri: str, names: list[str], source: TextSource) -> tuple[str, str, str | None]:
    """Return the columns of ids, of texts and of titles."""
    found = []
    for what, known in (("ids", source.id_names), ("texts", source.text_names)):
        name = next((name for name in known if name in names), None)
        if name is None:
            shown = ", ".join(f"`{name}`" for name in names[:20]) or "none"
            raise InputError(
                f"{source.flag} {uri}: no column of {what}; it has {shown}, one of "
                f"{', '.join(f'`{name}`' for name in known)} is wanted; rename it",
                uri=uri,
            )
        found.append(name)
    title = TITLE_NAME if source.role == "document" and TITLE_NAME in names and TITLE_NAME not in found else None
    return found[0], found[1], title
