"""Scores in the places where the readers of training files look for them.

Lists of texts get `pos_scores` and `neg_scores` beside them (FlagEmbedding), structs a field `score` (Tevatron's passages),
texts in columns of their own a list `scores`, the positive's first (tuples of sentence-transformers), ids by system
`pos_scores` and a struct `neg_scores` of lists by system. Takes rows and a list of values for each, gives rows. Knows nothing
of what the values are.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.inputs.columns import is_list
from rerank_actor.inputs.training.documents import (
    LABEL,
    NEGATIVE_SCORES,
    POSITIVE_SCORES,
    SCORE_FIELD,
    SCORES,
    Leaf,
    holds_systems,
    iterate_leaves,
)


def list_document_columns(metadata: Mapping[str, str]) -> list[str]:
    """Return the output's columns of positives and negatives by the metadata of its parts, none where rows have none apart."""
    settings = {
        name: json.loads(metadata[name])
        for name in ("negative_columns", "corpus", "document_id_column", "document_column", "rename_columns")
        if name in metadata
    }
    if not settings.get("negative_columns"):
        return []
    positives = settings["document_id_column" if settings.get("corpus") else "document_column"]
    renamed = settings.get("rename_columns") or {}
    return [renamed.get(name, name) for name in (positives, *settings["negative_columns"])]


def order_texts(table: pa.Table, metadata: Mapping[str, str]) -> pa.Table:
    """Return tuples with anchor, positive and negatives in the order of the scores; trainers go by place, not by name."""
    documents = list_document_columns(metadata)
    if tell_form(table.schema, documents) != "tuples" or "query_column" not in metadata:
        return table
    query = json.loads(metadata["query_column"])
    query = json.loads(metadata.get("rename_columns", "{}")).get(query, query)
    texts = [name for name in (query, *documents) if name in table.column_names]
    places = iter(texts)
    return table.select([next(places) if name in texts else name for name in table.column_names])


def take_away(table: pa.Table, documents: Sequence[str]) -> pa.Table:
    """Return rows without the values that were placed."""
    table = table.drop_columns(
        [name for name in (SCORES, POSITIVE_SCORES, NEGATIVE_SCORES) if name in table.column_names]
    )
    if tell_form(table.schema, documents) != "tevatron":
        return table
    for name in documents:
        column = table[name].combine_chunks()
        values = pc.list_flatten(column)
        if pa.types.is_struct(values.type):
            kept = [field.name for field in values.type if field.name != SCORE_FIELD]
            fields = [pc.struct_field(values, field) for field in kept]
            structs = pa.StructArray.from_arrays(fields, kept, mask=values.is_null())
            table = table.set_column(table.column_names.index(name), name, _with_values(column, structs))
    return table


def find_misplaced(table: pa.Table, documents: Sequence[str]) -> bool:
    """Whether placed values are others than the logits of their documents."""
    placed = place_values(take_away(table, documents), documents, table["logit"])
    return not placed.select(table.column_names).equals(table)


def _with_values(column: pa.Array, values: pa.Array) -> pa.Array:
    """Return lists with other values."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return _to_lists(values, lengths, column.is_valid().to_numpy(zero_copy_only=False))


def tell_form(schema: pa.Schema, documents: Sequence[str]) -> str | None:
    """Return the training format that columns of documents are of by their types; None where one of them was not kept."""
    if not set(documents) <= set(schema.names):
        return None
    kinds = [schema.field(name).type for name in documents]
    if any(is_list(kind) and pa.types.is_struct(kind.value_type) for kind in kinds):
        return "tevatron"
    if any(holds_systems(kind) for kind in kinds):
        return "msmarco-hard-negatives"
    return "flagembedding" if any(is_list(kind) for kind in kinds) else "tuples"


def has_documents(schema: pa.Schema, documents: Sequence[str]) -> bool:
    """Whether each column of documents holds some by its type, so that these tell the form."""
    kinds = [schema.field(name).type for name in documents if name in schema.names]
    return not any(pa.types.is_null(kind.value_type if is_list(kind) else kind) for kind in kinds)


def place_values(table: pa.Table, documents: Sequence[str], values: pa.ChunkedArray) -> pa.Table:
    """Return rows with their values in place.

    Args:
        table: rows with their labels.
        documents: columns of positives and of negatives.
        values: float lists, one for each row, of as many values as it has documents; null for a row without any.
    """
    form = tell_form(table.schema, documents)
    if form == "tuples":
        return table.append_column(SCORES, values)
    leaves = list(iterate_leaves(table, documents)) if form is not None else []
    if form == "tevatron":
        return _place_in_structs(table, leaves, values)
    is_positive = pc.equal(pc.list_flatten(table[LABEL]), 1).to_numpy()
    known = pc.is_valid(values).to_numpy()
    table = table.append_column(POSITIVE_SCORES, _select(values, known, is_positive))
    if form == "msmarco-hard-negatives":
        by_leaf = zip(leaves, _split(leaves, values, known), strict=True)
        by_system = {leaf.field: lists for leaf, lists in by_leaf if leaf.field is not None}
        return table.append_column(
            NEGATIVE_SCORES, pa.StructArray.from_arrays(list(by_system.values()), list(by_system))
        )
    return table.append_column(NEGATIVE_SCORES, _select(values, known, ~is_positive))


def _select(values: pa.ChunkedArray, known: np.ndarray, wanted: np.ndarray) -> pa.Array:
    """Return the lists with some of their values."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    owners = np.repeat(np.arange(len(lengths)), lengths)
    counts = np.bincount(owners[wanted], minlength=len(lengths))
    return _to_lists(pc.list_flatten(values).filter(pa.array(wanted)), counts, known)


def _split(leaves: Sequence[Leaf], values: pa.ChunkedArray, known: np.ndarray) -> list[pa.Array]:
    """Return the lists of each column of documents."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
    starts, flat = np.cumsum(lengths) - lengths, pc.list_flatten(values)
    lists = []
    for leaf in leaves:
        counts = np.where(known, leaf.lengths, 0)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        lists.append(_to_lists(flat.take(pa.array(np.repeat(starts, counts) + within)), counts, known))
        starts = starts + counts
    return lists


def _to_lists(flat: pa.ChunkedArray, counts: np.ndarray, known: np.ndarray) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    flat = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
    return pa.ListArray.from_arrays(offsets, flat, mask=pa.array(~known))


def _place_in_structs(table: pa.Table, leaves: Sequence[Leaf], values: pa.ChunkedArray) -> pa.Table:
    """Return rows whose documents have a field with their value."""
    known = pc.is_valid(values).to_numpy()
    for leaf, lists in zip(leaves, _split(leaves, values, known), strict=True):
        index = table.column_names.index(leaf.name)
        column = table[leaf.name].combine_chunks()
        documents = pc.list_flatten(column)
        filled = np.repeat(known, leaf.lengths)
        flat, places = pc.list_flatten(lists), np.cumsum(filled) - 1
        scores = flat.take(pa.array(places, pa.int64(), mask=~filled)) if len(filled) else flat
        if pa.types.is_struct(documents.type):
            names = [field.name for field in documents.type]
            fields = [pc.struct_field(documents, name) for name in names]
            documents = pa.StructArray.from_arrays([*fields, scores], [*names, SCORE_FIELD], mask=documents.is_null())
            table = table.set_column(index, leaf.name, _with_values(column, documents))
    return table
