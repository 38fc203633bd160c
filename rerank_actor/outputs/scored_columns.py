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

from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import is_list
from rerank_actor.inputs.directions import BACKWARD, FORWARD, name_column
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.outputs.part import read_part_metadata

VALUES = ("score", "logit")


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
    is_exploded = bool(settings.get("explode") or read_part_metadata(schema).get("explode"))
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
        documents=_name_documents(schema.field(document).type) if document in names else "ids",
        is_exploded=is_exploded,
    )


def _name_documents(kind: pa.DataType) -> Literal["texts", "structs"]:
    kind = kind.value_type if is_list(kind) else kind
    return "structs" if pa.types.is_struct(kind) else "texts"


class PairRows:
    """The pairs of some scored rows: the rows themselves, or the elements of their lists.

    Args:
        table: the rows.
        value: the column that says where the pairs are, of `score` and `logit` or a logit of a direction.
        uri: of the part, for errors.

    Attributes:
        lengths: int64 [num_rows], pairs of each row that has a list; None where a row is a pair.
        num_without: rows without a list, which have no pairs.
    """

    def __init__(self, table: pa.Table, value: str, uri: str) -> None:
        self._value, self._uri = value, uri
        self.lengths: np.ndarray | None = None
        self.num_without = 0
        if is_list(table.schema.field(value).type):
            has_list = pc.is_valid(table[value])
            self.num_without = table.num_rows - int(pc.sum(has_list).as_py() or 0)
            table = table.filter(has_list) if self.num_without else table
            self.lengths = pc.list_value_length(table[value]).to_numpy().astype(np.int64)
            self._parents = pa.array(np.repeat(np.arange(table.num_rows), self.lengths))
        self.table = table

    def spread(self, name: str) -> pa.ChunkedArray:
        """Return a column with a value for each pair; what is no list holds for all pairs of its row.

        Raises:
            InputError: its lists have other lengths than there are pairs.
        """
        column = self.table[name]
        if self.lengths is None:
            return column
        if not is_list(column.type):
            return column.take(self._parents)
        if not np.array_equal(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), self.lengths):
            raise InputError(
                f"{self._uri}: column `{name}` has lists of other lengths than `{self._value}`",
                uri=self._uri,
                column=name,
            )
        return pc.list_flatten(column)
