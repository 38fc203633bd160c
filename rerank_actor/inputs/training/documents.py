"""The documents of a training row: positives and negatives of several columns as one list, and a label for each.

A column holds a document, a list of them, or lists of ids by the name of the system that found them. Takes rows as they were
read, gives rows whose document column means all of their documents, the positives first and then the negatives, column by
column. A document that is neither text nor a struct of the column's own is none, so that what is scored is what is kept.
Knows nothing of how the text of a document is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.inputs.columns import as_text, is_list, is_text, to_array
from rerank_actor.inputs.rows import Rows
from rerank_actor.inputs.training import Holds

LABEL = "label"  # list of 1 for each positive and 0 for each negative, in the order of the scores
SCORES, POSITIVE_SCORES, NEGATIVE_SCORES = "scores", "pos_scores", "neg_scores"
LABELLED = (LABEL, SCORES, POSITIVE_SCORES, NEGATIVE_SCORES)
SCORE_FIELD = "score"  # of a document that is a struct

NO_TEXT = b""  # in the place of an object among texts, which a column of texts keeps as JSON


class Leaf(NamedTuple):
    """A column of documents, or of one system's: its values, and how many each row has; int64 [num_rows]."""

    name: str
    field: str | None
    lengths: np.ndarray


def holds_systems(kind: pa.DataType) -> bool:
    """Whether a column has lists of documents by the name of a system."""
    fields = [field.type for field in kind] if pa.types.is_struct(kind) else []
    return bool(fields) and all(is_list(one) or pa.types.is_null(one) for one in fields)


def iterate_leaves(table: pa.Table, names: Sequence[str]) -> Iterator[Leaf]:
    """Yield columns of documents in the order of the scores."""
    for name in names:
        column = table[name]
        kind = column.type
        if not holds_systems(kind):
            yield Leaf(name, None, _measure(column) if is_list(kind) else np.ones(len(column), np.int64))
            continue
        for index in range(kind.num_fields):
            field = pc.struct_field(column, index)
            lengths = _measure(field) if is_list(field.type) else np.zeros(len(column), np.int64)  # all null
            yield Leaf(name, kind.field(index).name, lengths)


def _measure(column: pa.ChunkedArray) -> np.ndarray:
    lengths: np.ndarray = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    return lengths


def count_documents(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Return how many documents each row has in some columns, those that are there: int64 [num_rows]."""
    counts = np.zeros(table.num_rows, np.int64)
    for leaf in iterate_leaves(table, [name for name in names if name in table.column_names]):
        counts += leaf.lengths
    return counts


def list_documents(value: Any) -> list[Any]:
    """Return the documents that a value of a column holds, in order."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and all(isinstance(one, list | None) for one in value.values()):
        return [document for one in value.values() for document in one or ()]
    return [value] if value is not None else []


def join_documents(
    rows: Rows, positives: str, negatives: Sequence[str], holds: Holds = ""
) -> tuple[Rows, list[list[int]]]:
    """Return rows whose document column means all of their documents.

    Args:
        rows: as they were read.
        positives: the document column.
        negatives: the other ones.
        holds: what the columns hold by their format, whatever these rows show.

    Returns:
        The rows, of which the columns are as `align_documents` makes them; and the label of each document of each row.
    """
    rows = align_documents(rows, [positives, *negatives], holds)
    kinds = _find_kinds(rows, [positives, *negatives])
    documents: list[list[Any]] = [[] for _ in range(rows.table.num_rows)]
    labels: list[list[int]] = [[] for _ in documents]
    for name, kind in kinds.items():
        has_systems = holds_systems(kind)
        is_plain = not (is_list(kind) or has_systems)
        has_objects = pa.types.is_struct(kind.value_type if is_list(kind) else kind) and not has_systems
        has_objects = has_objects and holds in ("", "structs")
        for row, value in enumerate(rows.texts[name]):
            if has_systems and isinstance(value, dict):
                value = {field.name: value.get(field.name) for field in kind}  # the order in which the part has them
            found = [value] if is_plain else list_documents(value)
            documents[row] += [NO_TEXT if isinstance(one, dict) and not has_objects else one for one in found]
            labels[row] += [int(name == positives)] * len(found)
    texts = {**rows.texts, positives: documents}
    return replace(rows, texts=texts, list_columns=rows.list_columns | {positives}), labels


def align_documents(rows: Rows, names: Sequence[str], holds: Holds = "") -> Rows:
    """Return rows whose columns of documents are of one form.

    Beside lists, what is alone in its row becomes a list of one, as readers of such files take it; beside texts, objects
    are kept as JSON text; in lists of structs what is none is kept as a `text`, and is no document. Arguments are those of
    `join_documents`.
    """
    kinds = _find_kinds(rows, names)
    if holds in ("texts", "structs") or any(is_list(kind) or holds_systems(kind) for kind in kinds.values()):
        for name, kind in kinds.items():
            if not (is_list(kind) or holds_systems(kind)):
                rows = _wrap(rows, name, kind)
    inner = {name: kind.value_type for name, kind in _find_kinds(rows, names).items() if is_list(kind)}
    if holds in ("", "structs") and all(pa.types.is_struct(kind) or pa.types.is_null(kind) for kind in inner.values()):
        return rows
    if holds != "structs":
        for name in [name for name, kind in inner.items() if pa.types.is_struct(kind)]:
            rows = _keep_as_texts(rows, name)
        return rows
    for name, kind in inner.items():
        if not pa.types.is_struct(kind):
            rows = _keep_as_structs(rows, name)
    return rows


def _find_kinds(rows: Rows, names: Sequence[str]) -> dict[str, pa.DataType]:
    """Return the types of columns, of those that are not kept as their values show them."""
    schema = rows.table.schema
    return {
        name: schema.field(name).type if name in schema.names else to_array(rows.texts[name])[0].type
        for name in names
        if name in rows.texts
    }


def _wrap(rows: Rows, name: str, kind: pa.DataType) -> Rows:
    """Return rows in which each value of a column that is no list is a list of one."""
    values = [value if isinstance(value, list | None) else [value] for value in rows.texts[name]]
    rows = replace(rows, texts={**rows.texts, name: values}, list_columns=rows.list_columns | {name})
    if is_text(kind):
        return _keep_as_texts(rows, name)
    if name not in rows.table.column_names:
        return rows
    column = rows.table[name]
    offsets = np.concatenate([[0], np.cumsum(column.is_valid().to_numpy())])
    there = column.drop_null().combine_chunks()
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), there, mask=column.is_null().combine_chunks())
    return replace(rows, table=rows.table.set_column(rows.table.column_names.index(name), name, lists))


def _keep_as_texts(rows: Rows, name: str) -> Rows:
    """Return rows in which a column of lists is kept as lists of texts, JSON where a document is none."""
    if name not in rows.table.column_names:
        return rows
    kept = [value and [as_text(one) for one in value] for value in rows.texts[name]]
    column = pa.array(kept, pa.list_(pa.string()))
    return replace(rows, table=rows.table.set_column(rows.table.column_names.index(name), name, column))


def _keep_as_structs(rows: Rows, name: str) -> Rows:
    """Return rows in which a column of lists is kept as lists of structs, and what is none is no text."""

    def is_struct(one: Any) -> bool:
        return one is None or (isinstance(one, dict) and bool(one))

    values = rows.texts[name]
    kept = [value and [one if is_struct(one) else {"text": as_text(one)} for one in value] for value in values]
    column, _ = to_array(kept)
    if not (is_list(column.type) and pa.types.is_struct(column.type.value_type)):
        return rows  # without any, or with too many fields
    found = [value and [one if is_struct(one) else NO_TEXT for one in value] for value in values]
    table = rows.table
    if name in table.column_names:
        table = table.set_column(table.column_names.index(name), name, column)
    return replace(rows, table=table, texts={**rows.texts, name: found})
