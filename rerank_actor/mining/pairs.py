"""Pairs: scored rows as one table with a row for each scored pair, whatever shape the scores were stored in.

Reads row groups of a scored Parquet file, flat or with lists of documents, and gives the columns that mining needs under
names of its own. Pairs without a score are counted. Knows nothing of rules or of Ray.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor.errors import InputError, ShardError, describe_cause
from rerank_actor.inputs.columns import is_list, is_text
from rerank_actor.inputs.ids import read_ids, write_whole
from rerank_actor.inputs.rankings.judged import ADDED
from rerank_actor.job_file import suggest
from rerank_actor.mining.by_column.values import has_column, read_by
from rerank_actor.mining.near_duplicates import strip_texts
from rerank_actor.mining.rules import SPACES
from rerank_actor.outputs.labels import mark_positives
from rerank_actor.outputs.scored_columns import PairRows, find_column, find_field_type
from rerank_actor.outputs.scored_texts import ROLES, ScoredTexts
from rerank_actor.storage.exchange import hash_keys

TEXT_ROLES = ("query", "document", "query_id", "document_id", "title", "instruction")
NUMBER_ROLES = ("rank", "num_negatives")
CANDIDATE_ROLES = ("document_id", "title", "label", "rank")  # that each candidate has one of
OWN_ROLES = ("query_id", "document_id", "title", "label", "by", *NUMBER_ROLES)  # beside those that texts were made from


@dataclass(frozen=True)
class Columns:
    """What the columns of the scored rows are called; None for what is not there.

    Attributes:
        texts: how query, document and instruction are made.
        spaces: those of `score` and `logit` that there are.
        by: column whose values are mined apart.
        unused_id: column with ids of queries that are told apart by their texts, to tell what texts have several.
        pair_key: whether there are pair keys, by which texts can be told to be those that were scored.
        teachers: which teacher the pairs of a file are of, by its URI; empty for one teacher.
        min_relevance: label from which a pair is positive.
        positive_labels: labels that are positive whatever their order; none where numbers and words speak for themselves.
        has_added: whether rows that scoring added for judgements are positive, as these say.
        keeps_unscored: whether pairs without a score are read too, for what goes by all candidates of a query.
    """

    texts: ScoredTexts
    query_id: str | None = None
    document_id: str | None = None
    title: str | None = None
    label: str | None = None
    rank: str | None = None
    num_negatives: str | None = None
    spaces: tuple[str, ...] = SPACES
    by: str | None = None
    unused_id: str | None = None
    pair_key: str | None = None
    min_relevance: float = 1.0
    positive_labels: tuple[str, ...] = ()
    teachers: Mapping[str, int] = field(default_factory=dict)
    has_added: bool = False
    keeps_unscored: bool = False

    @property
    def tells_positives(self) -> bool:
        """Whether the scored rows say which pairs are positive."""
        return self.label is not None or self.has_added

    @property
    def key(self) -> tuple[str, ...]:
        """The roles that say which pairs are of one query."""
        query = "query_id" if self.query_id is not None else "query"
        instruction = ("instruction",) if self.texts.has_instructions else ()
        return (query, *instruction, *(("by",) if self.by is not None else ()))

    def list_columns(self, schema: pa.Schema, roles: Container[str]) -> list[str]:
        """Return the columns that some roles are read from."""
        given = [name for role in OWN_ROLES if role in roles and (name := getattr(self, role)) is not None]
        if self.unused_id is not None and "query_id" in roles:
            given.append(self.unused_id)
        if self.has_added and "label" in roles:
            given.append(ADDED)
        own = [column for name in given if (column := find_column(schema, name)) is not None]
        return [*self.texts.list_columns(schema.names, roles), *own]

    def describe(self) -> dict[str, Any]:
        """Return what can change a row, as the fingerprint has it."""
        own = {f"{role}_column": name for role in OWN_ROLES if (name := getattr(self, role)) is not None}
        return {**self.texts.describe(), **own, **({"added_rows": "positive"} if self.has_added else {})}

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
        self.texts.check(uri, schema)
        self._check_names(uri, schema)
        document = self.texts.document
        found = {name: find_field_type(schema, name) for name in (document, *self.spaces)}
        names = [name for name, kind in found.items() if kind is not None]
        lists = {name: is_list(kind) for name, kind in found.items() if kind is not None}
        if (
            self.texts.is_exploded or self.texts.spec.negative_columns
        ):  # of which the whole list may still be below a column
            lists.pop(document, None)
        if len(set(lists.values())) > 1:
            shape = "lists" if lists[names[0]] else "no lists"
            raise InputError(
                f"{uri}: column `{names[0]}` holds {shape} and `{self.spaces[0]}` does not match it; name the scored "
                "documents with --document-column",
                uri=uri,
                column=names[0],
            )
        if self.title is not None:
            _check_title(uri, self.title, schema)
        self._check_lists(uri, schema)

    def _check_lists(self, uri: str, schema: pa.Schema) -> None:
        """Refuse one value for all documents of a list; of a label it is the place of the positive one."""
        if not is_list(schema.field(self.spaces[0]).type):
            return
        for role in set(CANDIDATE_ROLES) - {"label"}:
            name = getattr(self, role)
            if name is not None and not is_list(find_field_type(schema, name) or pa.null()):
                raise InputError(
                    f"{uri}: column `{name}` holds one value for a list of documents; give a list with one for each with "
                    f"--{role.replace('_', '-')}-column",
                    uri=uri,
                    column=name,
                )

    def _check_names(self, uri: str, schema: pa.Schema) -> None:
        for role in OWN_ROLES:
            name = getattr(self, role)
            has_it = has_column if role == "by" else _has_column
            if name is not None and not has_it(uri, schema, name):
                flag = "--by" if role == "by" else f"--{role.replace('_', '-')}-column"
                raise InputError(
                    f"{uri}: has no column `{name}`{suggest(name, schema.names)}; its columns are {', '.join(schema.names)}; "
                    f"name the right one with {flag}, or score again with it among --keep-columns",
                    uri=uri,
                    column=name,
                )


def _has_column(uri: str, schema: pa.Schema, name: str) -> bool:
    return find_column(schema, name) is not None


def _check_title(uri: str, name: str, schema: pa.Schema) -> None:
    kind = find_field_type(schema, name) or pa.null()
    kind = kind.value_type if is_list(kind) else kind
    if not is_text(kind):
        raise InputError(f"{uri}: column `{name}` holds {kind}, not text; name another one", uri=uri, column=name)


@dataclass
class Pairs:
    """Scored pairs.

    Attributes:
        table: a string column for each role there is, float32 `score` and `logit`, `position` (int64, place in the input)
            and, where there are, `positive` (bool), `rank` and `num_negatives` (float64, NaN where null).
        unscored: pairs and rows without a score, which are left out unless the columns say that these are kept.
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
        roles: those of the columns of texts and numbers that are wanted.
        start: position of the first pair.

    Raises:
        InputError: a column holds what cannot be used.
        ShardError: the file is broken.
    """
    wanted = [*columns.list_columns(file.schema_arrow, {*roles, "label"}), *columns.spaces]
    is_checked = columns.pair_key is not None and {"query", "document"} <= set(roles)
    wanted += [columns.pair_key] if is_checked and columns.pair_key is not None else []
    try:
        table = file.read_row_groups(groups, columns=list(dict.fromkeys(wanted)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(f"{uri}: cannot be read ({describe_cause(error)})", uri=uri) from error
    rows = PairRows(table, columns.spaces[0], uri)
    pairs = _spread_pairs(rows, roles, columns)
    is_scored = mark_scored(pairs, columns)
    positive = pairs["positive"].to_numpy() if columns.tells_positives else np.zeros(pairs.num_rows, bool)
    pairs = pairs.append_column("position", pa.array(np.arange(start, start + pairs.num_rows)))
    kept = is_scored
    if columns.teachers:
        pairs = pairs.append_column("teacher", pa.array(np.full(pairs.num_rows, columns.teachers[uri])))
    if columns.keeps_unscored:  # but for those whose texts are not known
        nulls = [pairs[role].is_null().to_numpy() for role in roles if role in pairs.column_names]
        kept = is_scored | ~np.any([*nulls, np.zeros(pairs.num_rows, bool)], axis=0)
    pairs = pairs if kept.all() else pairs.filter(pa.array(kept))
    _refuse_nulls(pairs, uri, columns)
    if is_checked:
        _refuse_others(pairs.filter(pa.array(mark_scored(pairs, columns))), uri, columns)
        pairs = pairs.drop_columns(["pair_key"])
    return Pairs(pairs, rows.num_without + int((~is_scored).sum()), int(positive[~is_scored].sum()))


def mark_scored(pairs: pa.Table, columns: Columns) -> np.ndarray:
    """Return which pairs have a score: bool [num_pairs]."""
    is_scored = np.ones(pairs.num_rows, bool)
    for space in columns.spaces:
        is_scored &= np.isfinite(pairs[space].to_numpy())
    return is_scored


def _spread_pairs(rows: PairRows, roles: Container[str], columns: Columns) -> pa.Table:
    """Return a row for each pair under the roles' names."""
    values: dict[str, Any] = dict(columns.texts.make(rows, roles))
    for role in ("query_id", "document_id"):
        if role in roles and (name := getattr(columns, role)) is not None:
            values[role] = rows.spread_ids(name, f"--{role.replace('_', '-')}-column")
    if columns.unused_id is not None and "query_id" in roles:
        values["unused_id"] = _read_unused(rows, columns.unused_id)
    if columns.title is not None and "title" in roles:
        values["title"] = _to_text(rows.spread(columns.title), rows.uri, columns.title).fill_null("")
    if columns.by is not None and "by" in roles:
        values["by"] = read_by(rows, columns.by)
    for role in NUMBER_ROLES:
        if role in roles and (name := getattr(columns, role)) is not None:
            values[role] = _read_numbers(rows, name, f"--{role.replace('_', '-')}-column")
    values |= {space: rows.spread(space).cast(pa.float32(), safe=False).fill_null(np.nan) for space in columns.spaces}
    if columns.pair_key is not None and columns.pair_key in rows.table.column_names:
        values["pair_key"] = rows.spread(columns.pair_key)
    if columns.tells_positives:
        values["positive"] = pa.array(_mark_positives(rows, columns))
    return pa.table(values)


def _mark_positives(rows: PairRows, columns: Columns) -> np.ndarray:
    """Return which pairs are positive by their label, or because scoring added them for a judgement: bool [num_pairs]."""
    positive = np.zeros(len(rows.spread(rows.value)), bool)
    if columns.label is not None:
        positive |= mark_positives(rows, columns.label, columns.min_relevance, columns.positive_labels)
    if columns.has_added and ADDED in rows.table.column_names:
        positive |= rows.spread(ADDED).fill_null(False).to_numpy()
    return positive


def _read_unused(rows: PairRows, name: str) -> pa.ChunkedArray:
    """Return ids that nothing goes by, null for what is none."""
    kind = find_field_type(rows.table.schema, name)
    if kind is None or pa.types.is_nested(kind):
        return pa.chunked_array([pa.nulls(len(rows.spread(rows.value)), pa.large_string())])
    return read_ids(rows.spread(name))


def _read_numbers(rows: PairRows, name: str, flag: str) -> pa.ChunkedArray:
    """Return a column of whole numbers from 0, however they are written: float64 [num_pairs], NaN for null."""
    column = rows.spread(name)
    try:
        numbers = column.cast(pa.float64()).fill_null(np.nan)
    except pa.ArrowException:
        numbers = None
    known = pc.drop_null(numbers.filter(pc.invert(pc.is_nan(numbers)))).to_numpy() if numbers is not None else [-1]
    if not np.all((np.asarray(known) >= 0) & (np.floor(known) == known)):
        raise InputError(
            f"{rows.uri}: column `{name}` ({column.type}) of {flag} holds what is no whole number from 0; name another one",
            uri=rows.uri,
            column=name,
        )
    return numbers


def _refuse_nulls(pairs: pa.Table, uri: str, columns: Columns) -> None:
    """Refuse scored pairs without a text or an id."""
    for role in set(pairs.column_names) & {"query", "document", "query_id", "document_id"}:
        lacking = pairs[role].null_count
        if not lacking:
            continue
        name = getattr(columns if role.endswith("_id") else columns.texts, role)
        flags = {"query": "--queries", "document": "--corpus"}
        if columns.texts.lookups and role in {lookup.role for lookup in columns.texts.lookups}:
            problem = f"{lacking:,} scored pairs have a {role} id that is not in {flags[role]}; give the texts that were scored"
        else:
            problem = f"column `{name}` is null in {lacking:,} scored rows; fill it, or name another one"
        raise InputError(f"{uri}: {problem}", uri=uri, column=name)


def _refuse_others(pairs: pa.Table, uri: str, columns: Columns) -> None:
    """Refuse texts that are not those that were scored, by the pair keys."""
    texts = {role: pairs[role] for role in ROLES if role in pairs.column_names}
    others = columns.texts.count_others(texts, pairs["pair_key"])
    if others:
        raise InputError(
            f"{uri}: the texts of {others:,} scored pairs are not those that were scored (their pair keys are others); leave "
            "out --query-column and --document-column, or give the --queries and --corpus that were scored",
            uri=uri,
        )


def _to_text(column: pa.ChunkedArray, uri: str, name: str) -> pa.ChunkedArray:
    try:
        return column if column.type == pa.large_string() else column.cast(pa.large_string())
    except pa.ArrowException as error:
        raise InputError(f"{uri}: column `{name}` holds what is not text ({error})", uri=uri, column=name) from None


def name_queries(table: pa.Table) -> pa.ChunkedArray:
    """Return the ids of queries as their values know them, where these are mined apart."""
    if "by" not in table.column_names:
        return table["query_id"]
    return pc.binary_join_element_wise(table["query_id"], table["by"], pa.scalar(" of ", table["by"].type))


def encode_keys(table: pa.Table, columns: Columns) -> tuple[np.ndarray, pa.Array]:
    """Return the number of each pair's query, in order of first sight, and the queries' keys: int64, large_string."""
    keys = [table[role] for role in columns.key]
    key = keys[0] if len(keys) == 1 else pc.binary_join_element_wise(*keys, pa.scalar("\x1f", keys[0].type))
    return encode_texts(key)


def hash_queries(keys: pa.Array) -> np.ndarray:
    """Return a hash of each query's key, one for ids that may be one: uint64 [num_keys]."""
    return hash_keys(write_whole(keys))


def spell_questions(table: pa.Table, query: np.ndarray) -> pa.Array:
    """Return what each query asks, under its instruction: one text for those that differ in writing or in their id alone.

    Args:
        table: pairs with the text of their query.
        query: int64 [num_pairs], number of each pair's query, as `encode_keys` gives it.
    """
    first = pa.array(np.unique(query, return_index=True)[1])
    asked = strip_texts(table["query"].take(first).combine_chunks())
    if "instruction" not in table.column_names:
        return asked
    instruction = table["instruction"].take(first).combine_chunks().cast(asked.type)
    return pc.binary_join_element_wise(asked, instruction, pa.scalar("\x1f", asked.type))


def encode_texts(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Return a number for each text, equal for equal texts, in order of first sight; and the distinct texts."""
    if not len(column):
        return np.zeros(0, np.int64), pa.array([], pa.large_string())
    encoded = pa.chunked_array(column.chunks, column.type).combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary
