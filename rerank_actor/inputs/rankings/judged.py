"""Judged pairs that the candidates lack: found beside an input, as rows that are scored with it.

Takes a planned input and positive judgements, gives a table of rows for the pairs that no row has, of queries that it has: ids
where texts are looked up by id, else texts as other rows of the same query and of the same document have them; and the plan
with these rows as a shard in the job's folder. Memory is bounded by the judgements. Knows nothing of scores.
"""

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs import shards
from rerank_actor.inputs.columns import is_list, to_array
from rerank_actor.inputs.field_template import parse_template
from rerank_actor.inputs.ids import read_id
from rerank_actor.inputs.listing import InputListing
from rerank_actor.inputs.pairs import TextSpec, list_fields
from rerank_actor.inputs.plan import Plan, PlanChange, choose_partition_columns, make_plan
from rerank_actor.inputs.rows import Unit
from rerank_actor.inputs.spec import InputSpec

ADDED = "added_from_qrels"  # column of the output: whether a row was added for a judgement


@dataclass
class LackingPairs:
    """Judged pairs that no row has.

    Attributes:
        table: rows for them, in the order of the judgements.
        pairs, queries: how many there are, and of how many queries.
        without_text: further ones whose document has no text in the input.
        queries_elsewhere: judged queries that the input has not, of which nothing is added.
    """

    table: pa.Table
    pairs: int = 0
    queries: int = 0
    without_text: int = 0
    queries_elsewhere: int = 0

    def describe(self) -> str:
        """Return what was found, in words."""
        words = f"{self.pairs:,} judged pairs of {self.queries:,} queries that the candidates lack"
        if self.without_text:
            words += f"; {self.without_text:,} more are left out, for no row has their document's text (--corpus would)"
        if self.queries_elsewhere:
            words += f"; {self.queries_elsewhere:,} judged queries are not in the input"
        return words


@dataclass
class _Seen:
    """What rows show of judged queries and documents."""

    pairs: set[tuple[str, str]] = field(default_factory=set)
    queries: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)


def find_lacking(
    spec: InputSpec, units: Iterable[Unit], types: Mapping[str, pa.DataType], judged: pa.Table, ids: tuple[str, str]
) -> LackingPairs:
    """Read the ids of an input and return the judged pairs that it lacks.

    Args:
        spec: how it is read.
        units: of it.
        types: of its columns, as planned.
        judged: string columns `query_id` and `document_id`.
        ids: columns of the ids of queries and of documents.

    Raises:
        InputError: the input has not these columns, or makes the text of a document of more than it.
        RerankError: a unit cannot be read.
    """
    texts = spec.texts
    if texts.negative_columns or (texts.document_template and not texts.document_is_id):
        raise InputError("--qrels adds documents by id or as plain texts: give --corpus, or leave it out")
    copied = _list_query_columns(texts, ids[0])
    fields = [name for name in (*copied, ids[1], texts.document_column) if "." in name and name not in types]
    kind = types.get(texts.document_column)
    if fields or (not texts.document_is_id and kind is not None and list_fields(kind)):
        raise InputError(
            f"--qrels adds rows of plain columns, and `{(fields or [texts.document_column])[0]}` has fields; give ids and "
            "texts as columns of their own, or --corpus"
        )
    wanted = [
        name for name in (*copied, *(() if texts.document_is_id else (texts.document_column,))) if name not in ids
    ]
    narrow = TextSpec(ids[0], ids[1], tuple(wanted))
    narrow_spec = replace(spec, keep=(), drop=(), where=None, directions=None, texts=narrow)
    judgements = list(zip(judged["query_id"].to_pylist(), judged["document_id"].to_pylist(), strict=True))
    queries, documents = {query for query, _ in judgements}, {document for _, document in judgements}
    seen, of_lists = _Seen(), False
    for unit in filter(lambda unit: unit.num_rows, units):  # others are shards that cannot be read
        rows = shards.read_rows(unit, narrow_spec, types)
        for role, name in zip(("query", "document"), ids, strict=True):
            if name not in rows.texts:
                raise InputError(
                    f"{unit.uri}: no column `{name}`, and --qrels names each {role} by id; choose with --{role}-id-column",
                    uri=unit.uri,
                    column=name,
                )
        of_lists = of_lists or ids[1] in rows.list_columns
        _look_at(rows.texts, texts, ids, copied, (queries, documents), seen)
    lacking = [pair for pair in judgements if pair not in seen.pairs and pair[0] in seen.queries]
    known = [pair for pair in lacking if texts.document_is_id or pair[1] in seen.documents]
    rows_added = _make_rows(known, texts, ids, seen, of_lists)
    table = _to_table(rows_added, spec, types)
    elsewhere = len(queries - seen.queries.keys())
    return LackingPairs(table, len(known), len({query for query, _ in known}), len(lacking) - len(known), elsewhere)


def digest_qrels(judged: pa.Table) -> str:
    """Return a hash of judged pairs, whatever their order."""
    pairs = sorted(zip(judged["query_id"].to_pylist(), judged["document_id"].to_pylist(), strict=True))
    return hashlib.sha256("".join(f"{query}\t{document}\n" for query, document in pairs).encode()).hexdigest()[:32]


def keep_judged(listing: InputListing, earlier: Plan, folder: str) -> None:
    """Add to a listing the rows that were added to an earlier plan, so that they are not taken for an input that vanished."""
    for shard in earlier.shards:
        if storage.is_within(shard.uri, folder):
            _list_shard(listing, shard.uri)


def _list_shard(listing: InputListing, uri: str) -> None:
    item = storage.look_at_object(uri)
    if item is not None:
        listing.shards.append(item)
        listing.formats[item.uri] = "parquet"


def plan_judged(
    planned: tuple[Plan, Plan, PlanChange],
    spec: InputSpec,
    listing: InputListing,
    committed: Container[str],
    judged: pa.Table,
    ids: tuple[str, str],
    *,
    writes: bool,
) -> tuple[Plan, LackingPairs]:
    """Return a plan with rows for the judged pairs that it lacks, as a shard of its own in the job's folder.

    The shard is named by what it holds, so that other texts of the same pairs are another one.

    Args:
        planned: the output's stored plan, whose judged pairs were looked for then; that of the input; and what changed.
        spec: how it is read.
        listing: of the input, which gets the shard.
        committed: names of the parts in the output.
        judged: string columns `query_id` and `document_id`.
        ids: columns of the ids of queries and of documents.
        writes: whether the shard is written; without it the plan stays as it is.

    Raises:
        As `find_lacking` and `make_plan`.
    """
    in_folders = [name for name in choose_partition_columns(spec, listing) if spec.uses(name)]
    if in_folders:
        raise InputError(
            f"--qrels adds rows that lie in no folder, and column `{in_folders[0]}` stands in names of folders; leave it out "
            f"with --drop-columns {in_folders[0]}",
            column=in_folders[0],
        )
    earlier, plan, change = planned
    if change.stale_parts and any(storage.is_within(shard.uri, spec.judged) for shard in earlier.shards):
        raise InputError(
            "--rescore-changed does not make the rows anew that were added for --qrels, whose texts may be of the shards that "
            "changed; score all again with --overwrite, or into another --output"
        )
    present, before = {item.uri for item in listing.shards}, {shard.uri for shard in earlier.shards}
    gone = [shard.uri for shard in plan.shards if shard.uri not in present and shard.planned_rows]
    new = [shard.uri for shard in plan.shards if shard.uri not in before]
    if gone and new:
        raise InputError(
            f"{gone[0]}: is no longer there, and --qrels adds the pairs that no row has, of it and of {new[0]}; give the new "
            "shards an --output of their own",
            uri=gone[0],
        )
    if gone:
        return plan, LackingPairs(pa.table({}))
    lacking = find_lacking(spec, plan.units(), plan.json_types, judged, ids)
    if not lacking.pairs or not writes:
        return plan, lacking
    data = storage.to_parquet(lacking.table)  # by a name that readers of the folder do not take for rows
    uri = storage.join_uri(spec.judged, f"{hashlib.sha256(data).hexdigest()[:32]}.bin")
    storage.create_bytes(uri, data)  # or it is there, with these bytes
    _list_shard(listing, uri)
    return make_plan(spec, plan, committed, None, listing)[0], lacking


def _list_query_columns(texts: TextSpec, query_id: str) -> list[str]:
    """Return the columns that all rows of a query have in common, as far as scoring reads them."""
    names = list(parse_template(texts.query_template).names) if texts.query_template else [texts.query_column]
    names += [texts.instruction_column] if texts.instruction_column else []
    names += [texts.dataset_column] if texts.instruction_map is not None else []
    return list(dict.fromkeys([query_id, *names]))


def _look_at(
    columns: Mapping[str, Sequence[Any]],
    texts: TextSpec,
    ids: tuple[str, str],
    copied: Sequence[str],
    judged: tuple[set[str], set[str]],
    seen: _Seen,
) -> None:
    """Take down what some rows have of judged queries and documents."""
    values = columns.get(texts.document_column)
    for row, (key, found) in enumerate(zip(columns.get(ids[0], ()), columns.get(ids[1], ()), strict=True)):
        query = read_id(key)
        if query in judged[0] and None in seen.queries.get(query, {ids[0]: None}).values():
            own_values = {name: columns[name][row] for name in copied if name in columns}
            if query not in seen.queries or None not in own_values.values():
                seen.queries[query] = own_values
        here = found if isinstance(found, list) else [found]
        own = values[row] if values is not None else None
        documents = own if isinstance(found, list) and isinstance(own, list) else [own] * len(here)
        for document, text in zip(map(read_id, here), documents, strict=False):
            if document in judged[1]:
                if query in judged[0]:
                    seen.pairs.add((query, document))
                if isinstance(text, str):
                    seen.documents.setdefault(document, text)


def _make_rows(
    pairs: Sequence[tuple[str, str]], texts: TextSpec, ids: tuple[str, str], seen: _Seen, of_lists: bool
) -> list[dict[str, Any]]:
    """Return a row for each pair, or for each query where documents are lists."""
    by_query: dict[str, list[str]] = {}
    for query, document in pairs:
        by_query.setdefault(query, []).append(document)
    rows = []
    for query, documents in by_query.items():
        for some in [documents] if of_lists else [[document] for document in documents]:
            row = {**seen.queries[query], ids[1]: some if of_lists else some[0]}
            if not texts.document_is_id:
                found = [seen.documents[document] for document in some]
                row[texts.document_column] = found if of_lists else found[0]
            rows.append(row)
    return rows


def _to_table(rows: list[dict[str, Any]], spec: InputSpec, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Return rows with the columns of the input, ids of documents in the type that they have there."""
    where = spec.where.columns if spec.where is not None else ()
    names = list(dict.fromkeys([*(name for row in rows[:1] for name in row), *types, *where]))
    arrays = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kind = types.get(name)
        if kind is not None and (name in rows[0] if rows else False):
            values = [_convert(value, kind) for value in values]
        arrays[name] = _make_array(values, kind)
    return pa.table(arrays)


def _make_array(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """Return values in the type that the input's column has, whatever that is."""
    if kind is None:
        return to_array(values, None)[0]
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, NotImplementedError, TypeError):
        return to_array(values, kind)[0]


def _convert(value: Any, kind: pa.DataType) -> Any:
    """Return an id that is written as text as a whole number, where the column has those."""
    if isinstance(value, list) and is_list(kind):
        return [_convert(one, kind.value_type) for one in value]
    if pa.types.is_decimal(kind) and isinstance(value, str):
        return Decimal(value)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return int(value) if is_number and isinstance(value, str) and value.removeprefix("-").isdigit() else value
