"""The documents of a training row: positives and negatives of several columns as one list, and a label for each.

A column holds a document, a list of them, or lists of ids by the name of the system that found them. Takes rows as they were
read, gives rows whose document column means all of their documents, the positives first and then the negatives, column by
column. Knows nothing of how the text of a document is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.inputs.columns import is_list, is_text, to_array
from rerank_actor.inputs.rows import Rows

LABEL = "label"  # list of 1 for each positive and 0 for each negative, in the order of the scores
SCORES, POSITIVE_SCORES, NEGATIVE_SCORES = "scores", "pos_scores", "neg_scores"
LABELLED = (LABEL, SCORES, POSITIVE_SCORES, NEGATIVE_SCORES)
SCORE_FIELD = "score"  # of a document that is a struct

MIXED = "documents are lists in some rows and texts in others"


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
            yield Leaf(name, None, _measure(column, is_plain=not pa.types.is_nested(kind)))
            continue
        for index in range(kind.num_fields):
            yield Leaf(name, kind.field(index).name, _measure(pc.struct_field(column, index), is_plain=False))


def _measure(column: pa.ChunkedArray, is_plain: bool) -> np.ndarray:
    if is_list(column.type):
        lengths: np.ndarray = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        return lengths
    valid: np.ndarray = np.maximum(column.is_valid().to_numpy().astype(np.int64), int(is_plain))
    return valid


def count_documents(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Return how many documents each row has in some columns, those that are there: int64 [num_rows]."""
    counts = np.zeros(table.num_rows, np.int64)
    for leaf in iterate_leaves(table, [name for name in names if name in table.column_names]):
        counts += leaf.lengths
    return counts


def list_documents(value: Any, is_plain: bool = False) -> list[Any]:
    """Return the documents that a value of a column holds, in order.

    Args:
        value: of the column.
        is_plain: whether each value is one document, so that a null is one that is missing.
    """
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and all(isinstance(one, list | None) for one in value.values()):
        return [document for one in value.values() for document in one or ()]
    return [value] if is_plain or value is not None else []


def join_documents(
    rows: Rows, positives: str, negatives: Sequence[str]
) -> tuple[Rows, list[list[int]], list[str | None]]:
    """Return rows whose document column means all of their documents.

    Args:
        rows: as they were read.
        positives: the document column.
        negatives: the other ones.

    Returns:
        The rows, of which a column of texts beside one of lists is one of lists too; the label of each document of each row;
        and why a row's documents cannot be told.
    """
    rows = lengthen_texts(rows, [positives, *negatives])
    types = dict(zip(rows.table.column_names, rows.table.schema.types, strict=True))
    documents: list[list[Any]] = [[] for _ in range(rows.table.num_rows)]
    labels: list[list[int]] = [[] for _ in documents]
    faults: list[str | None] = [None] * len(documents)
    for name in (positives, *negatives):
        values = rows.texts.get(name, [None] * len(documents))
        kind = types.get(name)
        is_plain = name not in rows.list_columns and (kind is None or is_text(kind) or not pa.types.is_nested(kind))
        is_plain = is_plain and not any(isinstance(value, list | dict) for value in values)
        for row, value in enumerate(values):
            if isinstance(value, list | dict) and kind is not None and is_text(kind):
                faults[row] = MIXED
            if isinstance(value, dict) and kind is not None and holds_systems(kind):
                value = {field.name: value.get(field.name) for field in kind}  # the order in which the part has them
            found = list_documents(value, is_plain)
            documents[row] += found
            labels[row] += [int(name == positives)] * len(found)
    return (
        replace(rows, texts={**rows.texts, positives: documents}, list_columns=rows.list_columns | {positives}),
        labels,
        faults,
    )


def lengthen_texts(rows: Rows, names: Sequence[str]) -> Rows:
    """Return rows in which a text beside lists of texts is a list of one, as readers of such files take it."""
    table, texts = rows.table, dict(rows.texts)
    kinds = {name: table.schema.field(name).type for name in names if name in table.column_names}
    if not any(is_list(kind) and is_text(kind.value_type) for kind in kinds.values()):
        return rows
    widened = [name for name, kind in kinds.items() if is_text(kind) and name in texts]
    for name in widened:
        texts[name] = [value if isinstance(value, list | None) else [value] for value in texts[name]]
        kept = [value and [one if isinstance(one, str | None) else None for one in value] for value in texts[name]]
        table = table.set_column(table.column_names.index(name), name, to_array(kept, pa.list_(pa.string()))[0])
    return replace(rows, table=table, texts=texts, list_columns=rows.list_columns | set(widened))
