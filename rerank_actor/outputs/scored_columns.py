"""What the columns of scored rows are called and how they hold pairs, told once from the job's settings and a schema.

A row is a pair, or a query with lists of documents and scores; documents are texts or structs, or are not there where rows
name them by id; a row may be scored in two directions. `PairRows` gives a value for each pair whatever the shape. Knows
nothing of plans and parts, or of what is made of the pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.engines.families.description import ScoreScale
from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import find_type, is_list, locate
from rerank_actor.inputs.directions import BACKWARD, FORWARD, name_column
from rerank_actor.inputs.ids import Ids, find_fractions, find_other_spelling, read_ids
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.inputs.pairs import list_fields
from rerank_actor.inputs.text_sources import ID_NAMES
from rerank_actor.outputs.part import read_part_metadata

VALUES = ("score", "logit")
PLAIN = ScoreScale()


@dataclass(frozen=True)
class ScoredColumns:
    """The columns of scored rows.

    Attributes:
        query, document: the texts' columns by the job's settings; rows that name texts by id have none of that name.
        query_id, document_id: the ids' columns by the job's settings, whether or not they are there.
        instruction: column with the instruction of each row, None where one holds for all or it was not kept.
        values: those of `score` and `logit` that are there.
        directions: those that rows were scored in, each with a logit of its own; none where a row is scored one way.
        keyed_logits: columns of pair keys and of the logits of the same pairs.
        is_grouped: whether a row holds lists of documents and scores.
        documents: what the document column holds; `ids` where there is none.
        is_exploded: whether the rows are the candidates of lists, each in a row of its own.
        scale: how the scores follow from the logits.
    """

    query: str
    document: str
    query_id: str
    document_id: str
    instruction: str | None
    values: tuple[str, ...]
    directions: tuple[str, ...]
    keyed_logits: tuple[tuple[str, str], ...]
    is_grouped: bool
    documents: Literal["texts", "structs", "ids"]
    is_exploded: bool
    scale: ScoreScale = PLAIN

    def refuse_scaled(self, uri: str, flag: str, instead: str) -> None:
        """Refuse what takes the score for the sigmoid of the logit where it is another function of it.

        Raises:
            InputError: it is.
        """
        if self.scale != PLAIN:
            raise InputError(
                f"{uri}: its score is the sigmoid of (logit - {self.scale.shift:g}) / {self.scale.scale:g}, and {flag} "
                f"takes the sigmoid of the logit; {instead}",
                uri=uri,
            )


def describe_columns(settings: Mapping[str, Any], schema: pa.Schema) -> ScoredColumns:
    """Tell the columns of scored rows.

    Args:
        settings: of the job's fingerprint or of its manifest, empty where nobody knows them.
        schema: of a part.
    """
    names = set(schema.names)
    renamed = settings.get("rename_columns") or {}

    def name_by_settings(key: str, default: str) -> str:
        name = str(settings.get(key) or default)
        return str(renamed.get(name, name))

    document = name_by_settings("document_column", "document")
    instruction = name_by_settings("instruction_column", "")
    values = tuple(name for name in VALUES if name in names)
    directions = tuple(name for name in (FORWARD, BACKWARD) if name_column(name, "logit") in names)
    keyed = [(name_column(name, PAIR_KEY), name_column(name, "logit")) for name in directions]
    metadata = read_part_metadata(schema)
    is_exploded = bool(settings.get("explode") or metadata.get("explode"))
    return ScoredColumns(
        query=name_by_settings("query_column", "query"),
        document=document,
        query_id=name_by_settings("query_id_column", "query_id"),
        document_id=name_by_settings("document_id_column", "document_id"),
        instruction=instruction if instruction in names else None,
        values=values,
        directions=directions,
        keyed_logits=tuple(pair for pair in [*keyed, (PAIR_KEY, "logit")] if names.issuperset(pair)),
        is_grouped=bool(values) and is_list(schema.field(values[0]).type),
        documents=_name_documents(find_field_type(schema, document)),
        is_exploded=is_exploded,
        scale=ScoreScale.from_metadata(metadata),
    )


def _name_documents(kind: pa.DataType | None) -> Literal["texts", "structs", "ids"]:
    if kind is None:
        return "ids"
    kind = kind.value_type if is_list(kind) else kind
    return "structs" if pa.types.is_struct(kind) else "texts"


def find_field_type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column, or of a field below it; None where nothing is."""
    return find_type(dict(zip(schema.names, schema.types, strict=True)), name)


def find_column(schema: pa.Schema, name: str) -> str | None:
    """Return the column that values of a name are in, itself or a field below it; None where nothing is."""
    return locate(schema.names, name)[0] if find_field_type(schema, name) is not None else None


def find_ids(schema: pa.Schema, name: str) -> str | None:
    """Return the name of ids by that of a column: itself, or of structs the field that is called like an id.

    Returns:
        None where there is none, or where no field of structs is called so.
    """
    kind = find_field_type(schema, name)
    fields = list_fields(kind)
    if kind is None or not fields:
        return name if kind is not None else None
    return next((f"{name}.{field}" for field in ID_NAMES if field in fields), None)


def refuse_two_spellings(uri: str, role: str, ids: pa.ChunkedArray) -> None:
    """Refuse ids of which some are written 7 and others 7.0, as where one shard's column has nulls and another's has none.

    Raises:
        InputError: naming one.
    """
    found = find_other_spelling(find_fractions(ids), ids)
    if found is not None:
        raise InputError(
            f"{uri}: has the {role} id {found!r} beside {found.partition('.')[0]!r}, which may be one; write whole numbers "
            "alike (tables with nulls make fractions of them) and score again",
            uri=uri,
        )


def refuse_two_texts(uri: str, ids: pa.ChunkedArray, texts: np.ndarray) -> None:
    """Refuse an id of queries that stands for two texts, as where the ids of each language begin anew.

    Args:
        uri: for the error.
        ids: of each pair's query.
        texts: a number or hash for each pair, equal for equal texts of queries.

    Raises:
        InputError: naming the id.
    """
    query = pc.dictionary_encode(ids).combine_chunks()
    number = (query.chunk(0) if isinstance(query, pa.ChunkedArray) else query).indices.to_numpy()
    first = np.zeros(number.max(initial=-1) + 1, texts.dtype)
    first[number] = texts
    others = np.flatnonzero(first[number] != texts)
    if len(others):
        raise InputError(
            f"{uri}: query id {ids[int(others[0])].as_py()!r} stands for queries of two texts, whose candidates would be "
            "taken for those of one; give each query an id of its own, such as one with its language before it, or score "
            "each set of queries to an output of its own",
            uri=uri,
        )


class PairRows:
    """The pairs of some scored rows: the rows themselves, or the elements of their lists.

    Args:
        table: the rows.
        value: the column that says where the pairs are, of `score` and `logit` or a logit of a direction.
        uri: of the part, for errors.

    Attributes:
        table: the rows that have pairs.
        value, uri: as given.
        lengths: int64 [num_rows], pairs of each row that has a list; None where a row is a pair.
        num_without: rows without a list, which have no pairs.
    """

    def __init__(self, table: pa.Table, value: str, uri: str) -> None:
        self.value, self.uri = value, uri
        self.lengths: np.ndarray | None = None
        self.num_without = 0
        if is_list(table.schema.field(value).type):
            has_list = pc.is_valid(table[value])
            self.num_without = table.num_rows - int(pc.sum(has_list).as_py() or 0)
            table = table.filter(has_list) if self.num_without else table
            self.lengths = pc.list_value_length(table[value]).to_numpy().astype(np.int64)
            self._parents = pa.array(np.repeat(np.arange(table.num_rows), self.lengths))
        self.table = table

    def repeat(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the values of rows as often as these have pairs."""
        return column if self.lengths is None else column.take(self._parents)

    def spread(self, name: str) -> pa.ChunkedArray:
        """Return a column, or a field of its structs, with a value for each pair; what is no list holds for all of its row.

        Raises:
            InputError: its lists have other lengths than there are pairs, or there is none of this name.
        """
        column = self.take(name)
        if self.lengths is None or not is_list(column.type):
            return self.repeat(column)
        if not np.array_equal(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), self.lengths):
            raise InputError(
                f"{self.uri}: column `{name}` has lists of other lengths than `{self.value}`",
                uri=self.uri,
                column=name,
            )
        return pc.list_flatten(column)

    def take(self, name: str) -> pa.ChunkedArray:
        """Return a column, or a field of its structs, with a value for each row.

        Raises:
            InputError: there is none of this name.
        """
        if find_column(self.table.schema, name) is None:
            raise InputError(f"{self.uri}: has no column `{name}`", uri=self.uri, column=name)
        column, fields = locate(self.table.column_names, name)
        values = self.table[column]
        for field in fields:
            kind = find_type({"": values.type}, f".{field}")
            values = pa.chunked_array([_take_field(chunk, field) for chunk in values.chunks], kind)
        return values

    def spread_ids(self, name: str, flag: str) -> pa.ChunkedArray:
        """Return the ids of a column as text, by which ids are compared: large_string [num_pairs].

        Args:
            name: of the column, or of a field of its structs.
            flag: that chooses another.

        Raises:
            InputError: as of `spread`, or it holds what is no id.
        """
        column = self.spread(name)
        try:
            ids = read_ids(column)
        except pa.ArrowException:  # of lists and structs
            ids = None
        if ids is None or ids.null_count > column.null_count:
            raise InputError(
                f"{self.uri}: column `{name}` ({column.type}) holds what is no id (neither text nor a whole number, one for "
                f"each scored pair); choose another with {flag}",
                uri=self.uri,
                column=name,
            )
        return ids


def refuse_judged_otherwise(
    uri: str, role: str, ours: Ids, judged: Ids, fractions: pa.Array, flag: str = "--qrels"
) -> None:
    """Refuse ids of which judgements write as 7 what pairs write as 7.0, or the other way round: they would miss each other.

    Args:
        uri: of the pairs, for the error.
        role: of what the ids name.
        ours: ids of the pairs.
        judged: ids of the judgements.
        fractions: those of them that are written as 7.0 is, which are found once for all pairs.
        flag: that named these.

    Raises:
        InputError: naming one.
    """
    for ids, others in ((find_fractions(ours), judged), (fractions, ours)):
        found = find_other_spelling(ids, others)
        if found is not None:
            both = found, found.partition(".")[0]
            here, there = both if others is judged else both[::-1]
            raise InputError(
                f"{uri}: has the {role} id {here!r} where {flag} has {there!r}; write the ids of both alike", uri=uri
            )


def _take_field(values: pa.Array, field: str) -> pa.Array:
    """Return a field of structs, or what lists of them have there."""
    if not is_list(values.type):
        return pc.struct_field(values, field)
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, _take_field(pc.list_flatten(values), field), mask=values.is_null())
