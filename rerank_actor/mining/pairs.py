"""Pairs: scored rows as one table with a row for each scored pair, whatever shape the scores were stored in.

Reads row groups of a scored Parquet file, flat or with lists of documents, and gives the columns that mining needs under
names of its own. A pair without a score is left out and counted. Knows nothing of rules or of Ray.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor.errors import InputError, ShardError, describe_cause, suggest
from rerank_actor.inputs.columns import is_list
from rerank_actor.mining.rules import SPACES
from rerank_actor.outputs.scored_columns import PairRows

TEXT_ROLES = ("query", "document", "query_id", "document_id", "title", "instruction")


@dataclass(frozen=True)
class Columns:
    """What the columns of the scored rows are called; None for what is not there.

    Attributes:
        spaces: those of `score` and `logit` that there are.
        min_relevance: label from which a pair is positive.
    """

    query: str
    document: str
    query_id: str | None = None
    document_id: str | None = None
    title: str | None = None
    instruction: str | None = None
    label: str | None = None
    spaces: tuple[str, ...] = SPACES
    min_relevance: float = 1.0

    @property
    def key(self) -> tuple[str, ...]:
        """The roles that say which pairs are of one query."""
        query = "query_id" if self.query_id is not None else "query"
        return (query,) if self.instruction is None else (query, "instruction")

    def check(self, uri: str, schema: pa.Schema) -> None:
        """Refuse a file that lacks a column, or has one of a type that cannot be what it is taken for.

        Raises:
            InputError: naming the column.
        """
        for space in self.spaces:
            if space not in schema.names:
                raise InputError(
                    f"{uri}: has no column `{space}`, so that it is no scored output (run jobs.score first) or the rules need "
                    f"another --space; its columns are {', '.join(schema.names)}",
                    uri=uri,
                    column=space,
                )
            kind = schema.field(space).type
            kind = kind.value_type if is_list(kind) else kind
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
                raise InputError(f"{uri}: column `{space}` holds {kind}, not scores", uri=uri, column=space)
        self._check_names(uri, schema.names)
        lists = {name: is_list(schema.field(name).type) for name in (self.document, *self.spaces)}
        if len(set(lists.values())) > 1:
            shape = "lists" if lists[self.document] else "no lists"
            raise InputError(
                f"{uri}: column `{self.document}` holds {shape} and `{self.spaces[0]}` does not match it; name the scored "
                "documents with --document-column",
                uri=uri,
                column=self.document,
            )
        for role in TEXT_ROLES:
            name = getattr(self, role)
            if name is not None:
                _check_type(uri, name, schema.field(name).type, ids=role.endswith("_id"))

    def _check_names(self, uri: str, names: list[str]) -> None:
        for role in (*TEXT_ROLES, "label"):
            name = getattr(self, role)
            if name is not None and name not in names:
                flag = "--scored" if role == "instruction" else f"--{role.replace('_', '-')}-column"
                raise InputError(
                    f"{uri}: has no column `{name}`{suggest(name, names)}; its columns are {', '.join(names)}; name the right "
                    f"one with {flag}, or score again with it among --keep-columns",
                    uri=uri,
                    column=name,
                )


def _check_type(uri: str, name: str, kind: pa.DataType, *, ids: bool) -> None:
    if is_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text and not (ids and pa.types.is_integer(kind)) and not pa.types.is_null(kind):
        raise InputError(f"{uri}: column `{name}` holds {kind}, not text; name another one", uri=uri, column=name)


@dataclass
class Pairs:
    """Scored pairs.

    Attributes:
        table: a string column for each role there is, float32 `score` and `logit`, `position` (int64, place in the input)
            and, where there are labels, `positive` (bool).
        unscored: pairs and rows without a score, which are left out.
        unscored_positives: those of them with a positive label.
    """

    table: pa.Table
    unscored: int = 0
    unscored_positives: int = 0


def read_pairs(
    file: pq.ParquetFile, uri: str, groups: list[int], columns: Columns, roles: tuple[str, ...], start: int
) -> Pairs:
    """Read the pairs of some row groups.

    Args:
        file: the scored file.
        uri: its name, for errors.
        groups: row groups to read.
        columns: what its columns are called.
        roles: those of the text columns that are wanted.
        start: position of the first pair.

    Raises:
        InputError: a column holds what cannot be used.
        ShardError: the file is broken.
    """
    names = {role: getattr(columns, role) for role in roles if getattr(columns, role) is not None}
    wanted = [*names.values(), *columns.spaces, *([columns.label] if columns.label else [])]
    try:
        table = file.read_row_groups(groups, columns=list(dict.fromkeys(wanted)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(f"{uri}: cannot be read ({describe_cause(error)})", uri=uri) from error
    rows = PairRows(table, columns.spaces[0], uri)
    pairs = _spread_pairs(rows, uri, names, columns)
    is_scored = np.ones(pairs.num_rows, bool)
    for space in columns.spaces:
        is_scored &= np.isfinite(pairs[space].to_numpy())
    positive = pairs["positive"].to_numpy() if columns.label else np.zeros(pairs.num_rows, bool)
    pairs = pairs.append_column("position", pa.array(np.arange(start, start + pairs.num_rows)))
    pairs = pairs if is_scored.all() else pairs.filter(pa.array(is_scored))
    return Pairs(
        _fill_nulls(pairs, uri, names), rows.num_without + int((~is_scored).sum()), int(positive[~is_scored].sum())
    )


def _spread_pairs(rows: PairRows, uri: str, names: dict[str, str], columns: Columns) -> pa.Table:
    """Return a row for each pair under the roles' names."""
    values: dict[str, Any] = {role: _to_text(rows.spread(name), uri, name) for role, name in names.items()}
    values |= {space: rows.spread(space).cast(pa.float32(), safe=False).fill_null(np.nan) for space in columns.spaces}
    if columns.label is not None:
        label = rows.table[columns.label]
        if rows.lengths is not None and not is_list(label.type):
            values["positive"] = pa.array(_mark_listed(label, rows.lengths, uri, columns.label))
        else:
            number = _to_number(rows.spread(columns.label), uri, columns.label)
            values["positive"] = pa.array(np.nan_to_num(number, nan=-np.inf) >= columns.min_relevance)
    return pa.table(values)


def _fill_nulls(pairs: pa.Table, uri: str, names: dict[str, str]) -> pa.Table:
    """Return scored pairs without nulls: no title is an empty one, any other text that is null is refused."""
    for role in set(names) & {"title", "instruction"}:
        pairs = pairs.set_column(pairs.schema.get_field_index(role), role, pairs[role].fill_null(""))
    for role, name in names.items():
        if lacking := pairs[role].null_count:
            raise InputError(
                f"{uri}: column `{name}` is null in {lacking:,} scored rows; fill it, or name another one",
                uri=uri,
                column=name,
            )
    return pairs


def _to_text(column: pa.ChunkedArray, uri: str, name: str) -> pa.ChunkedArray:
    try:
        return column if column.type == pa.large_string() else column.cast(pa.large_string())
    except pa.ArrowException as error:
        raise InputError(f"{uri}: column `{name}` holds what is not text ({error})", uri=uri, column=name) from None


def _to_number(column: pa.ChunkedArray, uri: str, name: str) -> np.ndarray:
    """Return labels as numbers, NaN for null; text from CSV is read as numbers too."""
    try:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        numbers: np.ndarray = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
        return numbers
    except pa.ArrowException:
        raise InputError(
            f"{uri}: column `{name}` ({column.type}) holds labels that are no numbers; give a column of 0 and 1 or of grades "
            "with --label-column",
            uri=uri,
            column=name,
        ) from None


def _mark_listed(label: pa.ChunkedArray, lengths: np.ndarray, uri: str, name: str) -> np.ndarray:
    """Return which pairs are positive where a label says at what place of its row's list the positive one stands."""
    position = _to_number(label, uri, name)
    known = np.isfinite(position)
    inside = (position[known] == np.floor(position[known])) & (position[known] >= 0)
    inside &= position[known] < lengths[known]
    if not inside.all():
        raise InputError(
            f"{uri}: column `{name}` holds one number for a list of documents, so it is the place of the positive one, from "
            f"0; {int((~inside).sum()):,} rows have no document there",
            uri=uri,
            column=name,
        )
    positive = np.zeros(int(lengths.sum()), bool)
    positive[((np.cumsum(lengths) - lengths)[known] + position[known]).astype(np.int64)] = True
    return positive


def encode_keys(table: pa.Table, columns: Columns) -> tuple[np.ndarray, pa.Array]:
    """Return the number of each pair's query, in order of first sight, and the queries' keys: int64, large_string."""
    keys = [table[role] for role in columns.key]
    key = keys[0] if len(keys) == 1 else pc.binary_join_element_wise(*keys, pa.scalar("\x1f", keys[0].type))
    return encode_texts(key)


def encode_texts(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Return a number for each text, equal for equal texts, in order of first sight; and the distinct texts."""
    if not len(column):
        return np.zeros(0, np.int64), pa.array([], pa.large_string())
    encoded = pa.chunked_array(column.chunks, column.type).combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary
