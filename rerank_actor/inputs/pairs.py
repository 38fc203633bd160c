"""Candidates: from a row's columns to its pairs.

A row is a query and a document, or a query and a list of candidates; a document is a text, or a struct whose `title`
and `text` are joined as BEIR does (title, a space, text, stripped), or what a template makes of its fields. Takes rows
as they were read, gives texts in parallel lists. Knows nothing of prompts, and of no format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.inputs.columns import find_type, find_values, is_list, is_text, locate
from rerank_actor.inputs.field_template import FieldTemplate, parse_template
from rerank_actor.inputs.ids import read_id
from rerank_actor.inputs.rows import Rows, make_rows
from rerank_actor.inputs.training import Holds
from rerank_actor.inputs.training.documents import LABEL, align_documents, holds_systems, join_documents
from rerank_actor.storage.utf8 import is_unicode

INDEX_COLUMN = "candidate_index"  # of an exploded row: the place of its document in the list, from 0
EMPTY = "empty_texts"  # of a part's facts: texts to embed that are blank, and are embedded as they are
NOT_KEPT = "texts_not_kept"  # of a part's facts: texts that its columns do not give again
ANY_DATASET = "*"  # in an instruction map: every dataset that is not named

LIST_NULL = "document list is null"
LIST_EMPTY = "document list is empty"
LIST_EXPECTED = "document is not a list"
DATASET_NULL = "dataset is null"
DATASET_UNKNOWN = "dataset is not in the instruction map"
MISALIGNED = "a column to explode has another length than the document list"


@dataclass(frozen=True)
class TextSpec:
    """Where the texts of a row are.

    Attributes:
        query_column, document_column: columns.
        negative_columns: further columns with documents, the negatives of a training row; the document column then has its
            positives, and a row is a list of all.
        holds: what these columns hold by their format; empty where it does not say.
        query_is_id, document_is_id: whether they hold ids of texts that are elsewhere.
        query_template, document_template: how texts are made of several, or None.
        instruction_column: column with the row's instruction, or None.
        dataset_column: column with the name to look up in `instruction_map`.
        instruction_map: instruction by dataset, or None.
        explode: give a row a pair.
        explode_columns: kept lists, or fields of structs that have lists, to take apart along with the documents.
        keep_fields: of documents that are structs, the fields to keep; None for all.
        only_role: where each row is one text alone, the document of its pair, what it is; empty for pairs.
        title_column: column with what is put before that text, as BEIR does; empty for none.
    """

    query_column: str = "query"
    document_column: str = "document"
    negative_columns: tuple[str, ...] = ()
    holds: Holds = ""
    query_is_id: bool = False
    document_is_id: bool = False
    query_template: str | None = None
    document_template: str | None = None
    instruction_column: str | None = None
    dataset_column: str = "dataset"
    instruction_map: Mapping[str, str] | None = None
    explode: bool = False
    explode_columns: tuple[str, ...] = ()
    keep_fields: tuple[str, ...] | None = None
    only_role: Literal["", "query", "document"] = ""
    title_column: str = ""

    @property
    def document_columns(self) -> list[str]:
        """Columns with documents, in the order of the pairs."""
        return [self.document_column, *self.negative_columns]

    @property
    def text_columns(self) -> list[str]:
        """Columns that are looked at, where they exist."""
        if self.only_role:
            return [self.document_column, *([self.title_column] if self.title_column else [])]
        names = [] if self.query_template else [self.query_column]
        for template in (self.query_template, self.document_template):
            names += parse_template(template).names if template else ()
        names += self.document_columns
        names += [self.instruction_column] if self.instruction_column else []
        names += [self.dataset_column] if self.instruction_map is not None else []
        return list(dict.fromkeys(names))

    def list_required(self, columns: Mapping[str, pa.DataType]) -> dict[str, list[str]]:
        """Return the columns that a shard with these columns must have, by the flag that names them."""
        if self.only_role:
            return {f"--{self.only_role}-column": [self.document_column]}
        required: dict[str, list[str]] = {}
        if self.query_template:
            required["--query-template"] = list(parse_template(self.query_template).names)
        else:
            required["--query-id-column" if self.query_is_id else "--query-column"] = [self.query_column]
        if self.document_template:
            document = find_type(columns, self.document_column)
            fields = {self.document_column, "text"} if document is not None else set()
            fields = set(list_fields(document)) or fields
            names = parse_template(self.document_template).names
            required["--document-template"] = [name for name in names if name not in fields]
        else:
            required["--document-id-column" if self.document_is_id else "--document-column"] = [self.document_column]
        if self.negative_columns:
            required["--negative-columns"] = list(self.negative_columns)
        if self.instruction_column:
            required["--instruction-column"] = [self.instruction_column]
        if self.instruction_map is not None:
            required["--dataset-column"] = [self.dataset_column]
        if self.explode_columns:
            required["--explode-columns"] = list(self.explode_columns)
        return required

    def find_wrong_type(self, flag: str, kind: pa.DataType) -> str | None:
        """Return the kind of column that a flag takes, where one of this type is none, else None."""
        if flag.endswith("-template"):
            return None
        if flag == "--explode-columns":
            return None if is_list(kind) or pa.types.is_null(kind) else "a list, or a field of structs that has lists"
        is_document = flag in ("--document-column", "--document-id-column", "--negative-columns")
        if self.negative_columns and is_document and holds_systems(kind):
            kind = kind.field(0).type
        if self.document_is_id and flag == "--negative-columns":
            flag = "--document-id-column"
        if flag in ("--query-id-column", "--document-id-column"):
            has_lists = flag == "--document-id-column"
            element = kind.value_type if has_lists and is_list(kind) else kind
            expected = "ids (text or whole numbers)" + (" or lists of them" if has_lists else "")
            is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
            return None if is_text(element) or any(check(element) for check in is_number) else expected
        if not is_document:
            return None if is_text(kind) else "text"
        kind = kind.value_type if is_list(kind) else kind
        if pa.types.is_struct(kind):
            return None if kind.get_field_index("text") >= 0 else self._name_field(kind)
        return None if is_text(kind) else "text or lists of text"

    def _name_field(self, kind: pa.DataType) -> str:
        """Return what is wanted of structs that have no `text`, with the field that it may be."""
        inner = {field.name: field.type.value_type if is_list(field.type) else field.type for field in kind}
        texts = [name for name in inner if is_text(inner[name])]
        texts.sort(key=lambda name: not is_list(kind.field(name).type))
        field = f", one of its fields (`{self.document_column}.{texts[0]}`)" if texts else ""
        return f"structs with a `text`{field} or a --document-template"


@dataclass(frozen=True)
class Pairs:
    """The texts of some rows.

    Attributes:
        table: the kept columns, a row each of what the part will have.
        queries, documents: one for each pair; anything but text is a fault.
        instructions: as many, or None where the job's holds for all.
        row_errors: faults that concern a whole row of the table.
        list_lengths: int32 [num_rows], pairs of each row, -1 for a row without a list; None when a row is a pair.
    """

    table: pa.Table
    queries: list[Any]
    documents: list[Any]
    instructions: list[Any] | None
    row_errors: list[str | None]
    list_lengths: np.ndarray | None


def list_fields(kind: pa.DataType | None) -> list[str]:
    """Return the fields of documents of a type, none where they are no structs."""
    kind = kind.value_type if kind is not None and is_list(kind) else kind
    return [field.name for field in kind] if kind is not None and pa.types.is_struct(kind) else []


def make_pairs(rows: Rows, spec: TextSpec) -> Pairs:
    """Return the pairs of some rows, in order."""
    for name in spec.document_columns if spec.keep_fields is not None and not spec.document_is_id else ():
        index = rows.table.column_names.index(name) if name in rows.table.column_names else -1
        if index >= 0 and list_fields(rows.table.schema.field(index).type):
            column = _select_fields(_combine(rows.table.column(index)), spec.keep_fields or ())
            rows = replace(rows, table=rows.table.set_column(index, name, column))
    rows = replace(rows, table=_write_ids(rows, spec))
    count = rows.table.num_rows
    nothing: list[Any] = [None] * count
    row_errors = list(rows.faults)
    labels: list[list[int]] | None = None
    if spec.negative_columns:
        rows, labels = join_documents(rows, spec.document_column, spec.negative_columns, spec.holds)
    texts = rows.texts.get(spec.document_column, nothing)
    if spec.only_role:
        titles = rows.texts.get(spec.title_column)
        if titles is not None:
            texts = [put_title(text, title) for text, title in zip(texts, titles, strict=True)]
        texts = [None if fault is not None else text for text, fault in zip(texts, row_errors, strict=True)]
        return Pairs(rows.table, [""] * count, texts, None, row_errors, None)
    queries = rows.texts.get(spec.query_column, nothing)
    if spec.query_template:
        template = parse_template(spec.query_template)
        queries = [template.fill(lambda name, at=row: rows.texts.get(name, nothing)[at]) for row in range(count)]  # type: ignore[misc]
    instructions = _list_instructions(rows, spec, row_errors)
    if spec.document_column not in rows.list_columns:
        documents = [_write_document(spec, rows, row, texts[row]) for row in range(count)]
        table = rows.table
        if spec.explode:
            table = table.append_column(INDEX_COLUMN, pa.array(np.zeros(count, np.int32)))
        return Pairs(table, queries, documents, instructions, row_errors, None)
    for row, documents in enumerate(texts):
        if row_errors[row] is None and not isinstance(documents, list):
            row_errors[row] = LIST_NULL if documents is None else LIST_EXPECTED
    if spec.explode_columns:
        _refuse_misaligned(rows.table, texts, spec, row_errors)
    lengths = np.array([-1 if row_errors[row] is not None else len(texts[row]) for row in range(count)], np.int32)
    if labels is not None:
        known = [of_row if length >= 0 else None for of_row, length in zip(labels, lengths, strict=True)]
        rows = replace(rows, table=rows.table.append_column(LABEL, pa.array(known, pa.list_(pa.int8()))))
    documents = [
        _write_document(spec, rows, row, document, is_element=True)
        for row in range(count)
        if lengths[row] > 0
        for document in texts[row]
    ]
    if spec.explode:
        return _explode(rows.table, spec, queries, documents, instructions, row_errors, lengths)
    owners = np.repeat(np.arange(count), np.maximum(lengths, 0))
    return Pairs(
        rows.table,
        [queries[owner] for owner in owners],
        documents,
        [instructions[owner] for owner in owners] if instructions is not None else None,
        row_errors,
        lengths,
    )


def count_not_kept(rows: Rows, spec: TextSpec) -> int:
    """Return how many texts would be others if they were made of the kept columns; those that cannot be made do not count.

    A column of JSON that has texts beside objects, or whole numbers beside fractions, is kept with values of one type.
    """
    names = rows.table.column_names
    lost = [name for name in rows.texts if locate(names, name)[0] not in names]
    spec = replace(spec, explode=False, explode_columns=(), keep_fields=None)
    if _list_needed(rows, spec, "query").intersection(lost):
        spec = replace(spec, query_column="", query_template=None)
    if _list_needed(rows, spec, "document").intersection(lost):
        spec = replace(spec, document_column="", negative_columns=(), document_template=None)
    rows = align_documents(rows, spec.document_columns, spec.holds) if spec.negative_columns else rows
    as_kept = replace(make_rows(rows.table, names, list(rows.texts)), faults=rows.faults)
    there, kept = make_pairs(rows, spec), make_pairs(as_kept, spec)
    if len(there.documents) != len(kept.documents):
        return len(there.documents)
    texts = [*zip(there.queries, kept.queries, strict=True), *zip(there.documents, kept.documents, strict=True)]
    return sum(isinstance(text, str) and text != other and is_unicode(text) for text, other in texts)


def _list_needed(rows: Rows, spec: TextSpec, side: Literal["query", "document"]) -> set[str]:
    """Return the columns that texts of a side are made of."""
    template = spec.query_template if side == "query" else spec.document_template
    column = spec.query_column if side == "query" else spec.document_column
    if template is None:
        return {column, *(spec.negative_columns if side == "document" else ())}
    named = set(parse_template(template).names)
    is_plain = not any(isinstance(value, list | dict) for value in rows.texts.get(column, ()))
    is_text = "text" in named and "text" not in rows.texts  # which stands for the document
    if spec.negative_columns and side == "document":
        return {*named, *spec.document_columns}
    return named if side == "query" or (is_plain and not is_text) else {*named, column}


def _list_instructions(rows: Rows, spec: TextSpec, row_errors: list[str | None]) -> list[Any] | None:
    """Return an instruction for each row, None for the job's own; what is not in the map is a fault of its row."""
    if spec.instruction_column is not None:
        return rows.texts.get(spec.instruction_column)
    if spec.instruction_map is None:
        return None
    known, fallback = spec.instruction_map, spec.instruction_map.get(ANY_DATASET)
    instructions: list[Any] = []
    names = rows.texts.get(spec.dataset_column, [None] * rows.table.num_rows)
    for row, name in enumerate(names):
        instruction = known.get(name, fallback) if isinstance(name, str) else fallback
        if instruction is None and row_errors[row] is None:
            row_errors[row] = DATASET_NULL if name is None else DATASET_UNKNOWN
        instructions.append(False if instruction is None else instruction)  # what is no text is not scored
    return instructions


def _write_document(spec: TextSpec, rows: Rows, row: int, document: Any, is_element: bool = False) -> Any:
    """Return the text of one document, or what stands in its place."""
    if spec.document_template is None:
        return join_title(document) if isinstance(document, dict) else document
    if is_element and document is None:
        return None
    return _fill(parse_template(spec.document_template), spec, rows, row, document)


def _fill(template: FieldTemplate, spec: TextSpec, rows: Rows, row: int, document: Any) -> Any:
    def get(name: str) -> Any:
        if isinstance(document, dict):
            if name in document:
                return document[name]
        elif name == spec.document_column or (name == "text" and name not in rows.texts):
            return document
        values = rows.texts.get(name)
        return None if values is None else values[row]

    return template.fill(get)


def join_title(document: Mapping[str, Any]) -> Any:
    """Return title and text of a document as BEIR joins them; the text as it is where there is no title."""
    title, text = document.get("title"), document.get("text")
    if title is None or text is None:
        return text
    if not isinstance(title, str) or not isinstance(text, str):
        return text if isinstance(title, str) else title
    return f"{title} {text}".strip()


def put_title(text: Any, title: Any) -> Any:
    """Return a text with its title before it, as BEIR joins them; what is no text where one of them is none."""
    if text is None or not isinstance(text, str) or not isinstance(title, str | None):
        return text if isinstance(title, str | None) else title
    return f"{title or ''} {text}".strip()


def _refuse_misaligned(table: pa.Table, lists: list[Any], spec: TextSpec, row_errors: list[str | None]) -> None:
    """Give a fault to rows of which a list to take apart is not as long as the list of documents."""
    wanted = np.array([len(documents) if isinstance(documents, list) else -1 for documents in lists])
    for name in spec.explode_columns:
        column = find_values(table, name)
        if column is not None:
            lengths = pc.list_value_length(column).fill_null(0).to_numpy() if is_list(column.type) else -wanted
            for row in np.flatnonzero(lengths != wanted):
                row_errors[row] = row_errors[row] or MISALIGNED


def _explode(
    table: pa.Table,
    spec: TextSpec,
    queries: list[Any],
    documents: list[Any],
    instructions: list[Any] | None,
    row_errors: list[str | None],
    lengths: np.ndarray,
) -> Pairs:
    """Return a row for each candidate; a row without candidates stays, with its reason."""
    sizes = np.maximum(lengths, 1)
    owners = np.repeat(np.arange(len(lengths)), sizes)
    index = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    has_one = np.repeat(lengths > 0, sizes)
    exploded = table.take(pa.array(owners))
    named = set(spec.explode_columns) | ({spec.document_column} & set(table.column_names))
    for name in sorted(named):
        column = find_values(table, name)
        if column is not None and is_list(column.type):
            top, fields = locate(table.column_names, name)
            values = _take_elements(column, owners, index, has_one)
            values = _put_field(_combine(exploded.column(top)), fields, values)
            exploded = exploded.set_column(exploded.column_names.index(top), top, values)
    exploded = exploded.append_column(INDEX_COLUMN, pa.array(index.astype(np.int32), mask=~has_one))
    errors = [row_errors[owner] if lengths[owner] else LIST_EMPTY for owner in owners]
    spread: list[Any] = [None] * len(owners)
    for position, document in zip(np.flatnonzero(has_one), documents, strict=True):
        spread[position] = document
    return Pairs(
        exploded,
        [queries[owner] for owner in owners],
        spread,
        [instructions[owner] for owner in owners] if instructions is not None else None,
        errors,
        None,
    )


def _put_field(column: pa.Array, fields: Sequence[str], values: pa.Array) -> pa.Array:
    """Return structs with other values of a field, or the values where none is named."""
    if not fields:
        return values
    inner = {field.name: pc.struct_field(column, field.name) for field in column.type}
    inner[fields[0]] = _put_field(inner[fields[0]], fields[1:], values)
    return pa.StructArray.from_arrays([*inner.values()], [*inner], mask=column.is_null())


def _combine(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _write_ids(rows: Rows, spec: TextSpec) -> pa.Table:
    """Return kept ids as they are looked up, where a column is of text because others than 7.0 are."""
    table = rows.table
    for name, is_id in ((spec.query_column, spec.query_is_id), (spec.document_column, spec.document_is_id)):
        if not is_id or name not in table.column_names or name not in rows.texts:
            continue
        kind, found = table.schema.field(name).type, rows.texts[name]
        is_number = any(isinstance(one, float) for value in found for one in _list_values(value))
        if is_number and is_text(kind.value_type if is_list(kind) else kind):
            ids = [_write_id(value, kept) for value, kept in zip(found, table[name].to_pylist(), strict=True)]
            table = table.set_column(table.column_names.index(name), name, pa.array(ids, kind))
    return table


def _list_values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _write_id(value: Any, kept: Any) -> Any:
    if isinstance(value, list) and isinstance(kept, list):
        return [_write_id(*one) for one in zip(value, kept, strict=True)]
    return (read_id(value) or kept) if isinstance(value, float) else kept


def _select_fields(column: pa.Array, names: tuple[str, ...]) -> pa.Array:
    """Return structs, or lists of them, with some of their fields."""
    if is_list(column.type):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, _select_fields(pc.list_flatten(column), names), mask=column.is_null())
    kept = [name for name in names if column.type.get_field_index(name) >= 0]
    return pa.StructArray.from_arrays([pc.struct_field(column, name) for name in kept], kept, mask=column.is_null())


def _take_elements(column: pa.ChunkedArray, owners: np.ndarray, index: np.ndarray, has_one: np.ndarray) -> pa.Array:
    """Return an element of a list for each exploded row, null where it has none."""
    column = _combine(column)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    starts = np.cumsum(lengths) - lengths  # among the elements of lists that are not null
    positions = starts[owners] + index
    return pc.list_flatten(column).take(pa.array(positions, pa.int64(), mask=~has_one))
