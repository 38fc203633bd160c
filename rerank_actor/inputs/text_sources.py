"""Texts by id: the queries and the corpus that pairs of ids are joined with, as sources of a store.

Reads what BEIR calls `queries.jsonl` and `corpus.jsonl`, and the like in Parquet, CSV and TSV: an id, a text, and for
documents a title, which is put before the text with a space between, as BEIR does. A TSV of two columns whose header names
neither an id nor a text is taken for one without a header, as MS MARCO's are. A row of several ids is refused, unless the
settings name their column. Ids are compared as text. A piece of a source is read in batches, so that memory is bounded by
neither. Knows nothing of pairs, stores or Ray.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import Batch, read_batches, refuse_broken
from rerank_actor.inputs.columns import is_text
from rerank_actor.inputs.formats import describe_separator, find_format
from rerank_actor.inputs.ids import read_id
from rerank_actor.inputs.listing.left_out import is_note
from rerank_actor.inputs.pairs import put_title
from rerank_actor.inputs.rows import LIMITS, ReadLimits
from rerank_actor.inputs.spec import SourceSpec
from rerank_actor.inputs.syntax.quoted import AUTO, Dialect
from rerank_actor.inputs.text import TextFile, iterate_records, may_span_lines, split_fields
from rerank_actor.storage.utf8 import is_unicode

ID_NAMES = ("_id", "id", "docid", "doc_id", "pid", "qid", "document_id", "query_id")
OTHER_ROLE = {"query": ("docid", "doc_id", "pid", "document_id"), "document": ("qid", "query_id")}
TEXT_NAMES = ("text", "contents", "passage", "body", "document", "query", "question")
TITLE_NAME = "title"

PIECE_BYTES = 64 * 2**20  # stored, of a source that can be cut
TABLE_BYTES = 48 * 2**20  # of texts that are given out together
LOOK_ROWS = 16  # of the first object, for its columns
VERSION = 1  # of what a source's rows become; part of its digest

NAMES_WANTED = "give it as .jsonl, .parquet, .csv or .tsv, also with .gz or .zst"
NOT_TEXT = "is not text"
BAD_UNICODE = "is not valid Unicode"
KINDS = ("parquet", "jsonl", "csv", "tsv")
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
        id_names: columns that may hold ids; the first is the one that the settings name.
        text_names: columns that may hold texts, of which the first that an object has does.
        dialect: of CSV and TSV.
        num_notes: files for people that lie beside the objects and are left out.
    """

    role: Literal["query", "document"]
    objects: tuple[storage.StoredObject, ...]
    id_names: tuple[str, ...]
    text_names: tuple[str, ...]
    dialect: Dialect = AUTO
    num_notes: int = field(default=0, compare=False)

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
        facts = [VERSION, self.role, self.id_names, self.text_names, listing, *self.dialect.list_given()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def describe(self) -> str:
        """Return the source as the fingerprint has it."""
        return f"{len(self.objects)} objects of {self.num_bytes} bytes, {self.digest}"

    def cut(self) -> list[SourcePiece]:
        """Return the source's pieces. Compressed text and CSV whose records may span lines are read whole."""
        pieces = []
        for item in self.objects:
            kind, compression = _detect(item.uri, self.flag)
            can_cut = not compression and not may_span_lines(kind, self.dialect)
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
        tables: list[pa.Table] = []
        for batch, columns in self.read_batches(piece, LIMITS):
            tables.append(_make_texts(batch, columns, self.read_ids(batch, piece.uri), piece.uri, counts))
            if sum(table.nbytes for table in tables) >= TABLE_BYTES:
                yield pa.concat_tables(tables)
                tables = []
        if sum(table.num_rows for table in tables):
            yield pa.concat_tables(tables)
        yield counts.to_dict()

    def read_batches(self, piece: SourcePiece, limits: ReadLimits) -> Iterator[tuple[Batch, "_Columns"]]:
        """Yield a piece's batches, and which of their columns hold what.

        Raises:
            As `read`.
        """
        kind, compression = _detect(piece.uri, self.flag)
        item = storage.StoredObject(piece.uri, piece.size, piece.etag)
        columns = _Columns()
        with refuse_broken(piece.uri, kind, self.flag):
            batches = read_batches(
                item,
                kind,
                compression,
                header=_read_header(item, kind, compression, self),
                dialect=self.dialect,
                wanted={*self.id_names, *self.text_names, TITLE_NAME},
                part=piece.part,
                parts=piece.parts,
                limits=limits,
            )
            for batch in batches:
                if batch.names and not columns.text:
                    columns = _choose_columns(piece.uri, batch.names, self)
                yield batch, columns

    def name_columns(self) -> "SourceColumns":
        """Return the columns of the first object, for those who read all of them as shards.

        Raises:
            As `read`.
        """
        item = self.objects[0]
        piece = SourcePiece(item.uri, item.size, item.etag)
        kind, compression = _detect(item.uri, self.flag)
        header = _read_header(item, kind, compression, self)
        batch, columns = next(self.read_batches(piece, replace(LIMITS, batch_rows=LOOK_ROWS)), (None, _Columns()))
        if batch is None or not columns.text:
            raise InputError(f"{self.flag} {item.uri}: holds no text", uri=item.uri)
        own = next(name for name in self.id_names if name in batch.names)
        return SourceColumns(own, columns.text, columns.title if columns.has_title else "", header)

    def read_ids(self, batch: Batch, uri: str) -> list[str | None]:
        """Return each row's id as text, None where it has none.

        Raises:
            InputError: a row has several, and the settings do not name the column of one of them.
        """
        named, others = self.id_names[0], OTHER_ROLE[self.role]
        own = [name for name in self.id_names if name not in others]
        ids: list[str | None] = [None] * batch.num_rows
        for group in ([named], own, others):  # rows of JSON lines need not have the same keys
            columns = {name: batch.values(name) for name in group if name in batch.columns}
            for row in [row for row, key in enumerate(ids) if key is None] if columns else []:
                found = {name: key for name, values in columns.items() if (key := read_id(values[row])) is not None}
                if len({*found.values()}) > 1:
                    shown = " and ".join(f"{value!r} in `{name}`" for name, value in found.items())
                    raise InputError(
                        f"{self.flag} {uri}: {batch.describe(row)} has several ids, {shown}; name the column of ids with "
                        f"--{self.role}-id-column, which a run's ids then go by too, or leave the others out",
                        uri=uri,
                    )
                ids[row] = next(iter(found.values()), None)
        return ids


@dataclass
class _Counts:
    rows: int = 0
    broken: int = 0
    without_id: int = 0
    first_left_out: str = field(default="")

    def leave_out(self, where: str, *, is_broken: bool) -> None:
        self.broken += is_broken
        self.without_id += not is_broken
        self.first_left_out = self.first_left_out or where

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def list_sources(specs: Iterable[SourceSpec], output: str) -> list[TextSource]:
    """List queries and corpus, those that are named, and look at the columns of the first object of each.

    Args:
        specs: name them.
        output: the folder that the job writes to.

    Raises:
        InputError: nothing is there, it lies in the output or around it, or there is no column of ids or of texts.
        StorageError, JobError: it cannot be reached.
    """
    return [_make_source(spec, output) for spec in specs]


def _make_source(spec: SourceSpec, output: str) -> TextSource:
    flag = "--queries" if spec.role == "query" else "--corpus"
    objects: dict[str, storage.StoredObject] = {}
    num_notes = 0
    for uri in spec.uris:
        storage.refuse_overlap(output, uri, "--output", flag)
        items = storage.list_objects(uri)
        if not items:
            raise InputError(
                f"{flag} {uri}: nothing there; it takes local files, folders and globs, s3://, gs://, az://", uri=uri
            )
        texts = [item for item in items if item.uri == uri or not is_note(item.uri) or _is_text(item.uri)]
        if not texts:
            raise InputError(f"{flag} {uri}: holds no texts, only notes as {items[0].uri}; {NAMES_WANTED}", uri=uri)
        num_notes += len(items) - len(texts)
        for item in texts:
            _detect(item.uri, flag)
            objects.setdefault(item.uri, item)
    id_names = tuple(dict.fromkeys((spec.id_column, *ID_NAMES)))
    text_names = tuple(dict.fromkeys((spec.text_column, *TEXT_NAMES)))
    source = TextSource(spec.role, tuple(objects.values()), id_names, text_names, spec.dialect, num_notes)
    item = source.objects[0]
    piece = SourcePiece(item.uri, item.size, item.etag)
    first = next(source.read_batches(piece, replace(LIMITS, batch_rows=LOOK_ROWS)), None)
    if first is not None and not any(source.read_ids(first[0], item.uri)):
        _refuse_no_ids(first[0], source, item.uri)
    return source


def _refuse_no_ids(batch: Batch, source: TextSource, uri: str) -> None:
    """Refuse a column of Parquet whose type holds no ids, as those of bytes and UUIDs; of others the rows are counted."""
    name = next((name for name in source.id_names if name in batch.columns), "")
    column = batch.columns.get(name)
    if column is None or isinstance(column, list):
        return
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if batch.num_rows and not is_text(kind) and not any(is_kind(kind) for is_kind in numbers):
        raise InputError(
            f"{source.flag} {uri}: column `{name}` is {column.type}, expected ids (text or whole numbers); write it as text",
            uri=uri,
            column=name,
        )


def _is_text(uri: str) -> bool:
    """Whether a file that is called like a note has texts by its suffix, as manifest.jsonl."""
    return find_format(uri)[0] in KINDS


def _detect(uri: str, flag: str) -> tuple[Any, str]:
    try:
        kind, compression = find_format(uri)
    except InputError as error:
        raise InputError(f"{flag} {error}", uri=uri) from error
    if kind not in KINDS:
        problem = (
            f"is {kind} by its name, which holds no texts by id here" if kind else "the name does not tell its format"
        )
        raise InputError(f"{flag} {uri}: {problem}; {NAMES_WANTED}", uri=uri)
    return kind, compression


def _join(text: Any, title: Any, has_title: bool) -> tuple[str | None, str | None]:
    """Return a text with its title before it, and what is wrong with it."""
    if text is None:
        return None, None
    if not isinstance(text, str) or not isinstance(title, str | None):
        return None, NOT_TEXT
    whole = put_title(text, title) if has_title else text
    return (whole, None) if is_unicode(whole) else (None, BAD_UNICODE)


class SourceColumns(NamedTuple):
    """Columns of a source: of ids, texts and titles, "" where there are none, and all names where the file has no header."""

    key: str
    text: str
    title: str
    header: tuple[str, ...]


class _Columns(NamedTuple):
    """Columns of an object: of texts and of titles."""

    text: str = ""
    title: str = ""
    has_title: bool = False


def _read_header(item: storage.StoredObject, kind: str, compression: str, source: TextSource) -> tuple[str, ...]:
    """Return the names of the columns of a TSV of ids and texts without a header, none for any other object."""
    if kind != "tsv":
        return ()
    file = TextFile(item.uri, item.size, item.etag, "tsv", compression, dialect=source.dialect)
    first = next(iterate_records(file), None)
    fields = split_fields(first.content) if first is not None else None
    is_bare = fields is not None and len(fields) == 2 and not {*fields} & {*source.id_names, *source.text_names}
    return ("id", "text") if is_bare else ()


def _choose_columns(uri: str, names: Sequence[str], source: TextSource) -> _Columns:
    """Return the columns of texts and of titles; there is one of ids too."""
    chosen = []
    for content, known in (("ids", source.id_names), ("texts", source.text_names)):
        name = next((name for name in known if name in names), None)
        if name is None:
            shown = ", ".join(f"`{name}`" for name in names[:20]) or "none"
            raise InputError(
                f"{source.flag} {uri}: no column of {content}; it has {shown}, one of "
                f"{', '.join(f'`{name}`' for name in known)} is wanted; rename it{describe_separator(names)}",
                uri=uri,
            )
        chosen.append(name)
    is_titled = source.role == "document" and TITLE_NAME not in chosen
    return _Columns(chosen[1], TITLE_NAME if is_titled else "", is_titled and TITLE_NAME in names)


def _make_texts(batch: Batch, columns: _Columns, ids: Sequence[str | None], uri: str, counts: _Counts) -> pa.Table:
    """Return a batch's texts by id, and count what is left out of them."""
    texts, titles = batch.values(columns.text), batch.values(columns.title)
    rows: list[tuple[str, str | None, str | None]] = []
    for row, (key, text, title) in enumerate(zip(ids, texts, titles, strict=True)):
        if row in batch.faults or key is None:
            counts.leave_out(f"{uri}, {batch.describe(row)}", is_broken=row in batch.faults)
        else:
            rows.append((key, *_join(text, title, columns.has_title or title is not None)))
    counts.rows += len(rows)
    return pa.table([[row[column] for row in rows] for column in range(3)], schema=SCHEMA)
