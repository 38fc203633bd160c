"""The export: a scored output as a ranking that evaluation reads, best candidate first.

TREC runs (`query Q0 document rank score tag`), Tevatron's ranklists (`query <tab> document <tab> score`) and the predictions
file of MTEB 2 (`{"mteb_model_meta": ..., subset: {split: {query: {document: score}}}}`, which `convert_to_reranking` and its
evaluators read). Candidates are ordered by logit, which does not saturate, then by id. The pairs of a query may lie in any
parts: what does not fit in memory goes through buckets of queries on disk. Needs no model and no Ray.
"""

import gzip
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.ids import write_whole
from rerank_actor.inputs.pairs import list_fields
from rerank_actor.inputs.rankings.judged import ADDED
from rerank_actor.job_file import suggest
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.predictions import PredictionsWriter
from rerank_actor.outputs.row_groups import open_part, refuse_damaged
from rerank_actor.outputs.scored import open_scored
from rerank_actor.outputs.scored_columns import (
    VALUES,
    PairRows,
    ScoredColumns,
    describe_columns,
    find_column,
    find_field_type,
    find_ids,
    refuse_two_spellings,
    refuse_two_texts,
)
from rerank_actor.outputs.scored_texts import ScoredTexts, read_text_settings, refuse_repeated
from rerank_actor.storage.exchange import Exchange, SlicedObject, assign_buckets, collect_slices, hash_keys, read_slices

FORMATS = ("trec", "tevatron", "mteb-predictions")
PAIRS_AT_ONCE = 2_000_000
SPACES = VALUES
ROLES = ("query", "document")
QUERY_HASH = "query hash"  # of the query's text
UNREADABLE = "cannot be read ({cause}); jobs.verify says what mends it"


@dataclass(frozen=True)
class ExportSpec:
    """What to export, and how.

    Attributes:
        scored: the scored output.
        format: one of `FORMATS`.
        target: file or object of a store to write, packed where its name ends in .gz; None for standard output.
        query_id_column, document_id_column: columns with ids; None for those of the job.
        space: `score` or `logit`, the number that is written; a score that no longer tells candidates apart is refused.
        top_k: candidates of each query at most.
        tag: last field of a TREC run.
        subset, split: of MTEB's predictions.
        partial: export an output that is not complete.
        pairs_at_once: pairs in memory.
        more_columns: further columns that `iterate_candidates` gives, of numbers; nulls where a part has none of that name.
    """

    scored: str
    format: str
    target: str | None = None
    query_id_column: str | None = None
    document_id_column: str | None = None
    space: str = "logit"
    top_k: int | None = None
    tag: str = "rerank-actor"
    subset: str = "default"
    split: str = "test"
    partial: bool = False
    pairs_at_once: int = PAIRS_AT_ONCE
    more_columns: tuple[str, ...] = ()


@dataclass
class Exported:
    """What was exported: queries, candidates written, and what is left out.

    That is pairs without a score, pairs that are there twice, and pairs that `--qrels` of the scoring job added: nothing
    retrieved those, so that a ranking with them would hold each relevant document.
    """

    queries: int = 0
    candidates: int = 0
    unscored: int = 0
    doubled: int = 0
    added: int = 0


def export_scores(spec: ExportSpec) -> Exported:
    """Write a scored output as a ranking.

    Raises:
        InputError: there is no scored output, it is not complete, or it has no ids.
        ShardError: a part is damaged.
        StorageError, JobError: storage failed.
    """
    manifest = Output(spec.scored).load_manifest()
    result = Exported()
    with open_target(spec.target) as file:
        writer = _Writer(file, spec, manifest.get("model", {}))
        for table in iterate_candidates(spec, result):
            _write_queries(table, spec, writer, result)
        writer.finish()
    return result


def iterate_candidates(spec: ExportSpec, result: Exported) -> Iterator[pa.Table]:
    """Yield the scored pairs of an output as tables that hold each query whole.

    Args:
        spec: what to read; of how to write it nothing is taken.
        result: counts what is left out.

    Yields:
        Columns `query` and `document` (ids, as text), `score` and `logit`, and those of `spec.more_columns`, in any order.

    Raises:
        As `export_scores`.
    """
    output = Output(spec.scored)
    scored = open_scored(spec.scored)
    # In the order of names, in which exports have always had their queries.
    named = {part.uri: part.uri.rpartition("/")[2] for part in scored.parts}
    parts = sorted(
        (part for part in scored.parts if named[part.uri].startswith("part-")), key=lambda part: named[part.uri]
    )
    if not parts:
        raise InputError(f"{spec.scored}: holds no scored parts; name the --output of jobs.score", uri=spec.scored)
    reason = scored.explain_incomplete() if scored.settings or output.read_success() is not None else "no _SUCCESS"
    if not spec.partial and reason is not None:
        raise InputError(
            f"{spec.scored}: is not complete ({reason}), so that queries may lack candidates; run the job again, or export "
            "what is there with --allow-incomplete",
            uri=spec.scored,
        )
    if (problem := output.explain_manifest()) is not None:  # it names columns too
        raise InputError(problem, uri=spec.scored)
    settings = {**scored.settings, **output.load_manifest().get("job", {})}
    settings = {**read_text_settings(scored), **settings}
    with tempfile.TemporaryDirectory() as folder:
        for table in _bring_together(parts, settings, spec, result, Path(folder)):
            for role in ROLES:
                refuse_two_spellings(spec.scored, role, table[role])
            refuse_two_texts(spec.scored, table["query"], table[QUERY_HASH].to_numpy())
            yield table.drop_columns([QUERY_HASH])


def _bring_together(
    parts: list[storage.StoredObject], settings: dict[str, Any], spec: ExportSpec, result: Exported, folder: Path
) -> Iterator[pa.Table]:
    """Yield all scored pairs as tables that hold a query whole."""
    held: list[pa.Table] = []
    num_held = 0
    exchange: Exchange | None = None
    spilled: list[SlicedObject] = []
    for part in parts:
        table = _read_part(part, settings, spec, result)
        held.append(table)
        num_held += table.num_rows
        if num_held > spec.pairs_at_once:
            num_buckets = max(2, 2 * len(parts) * table.num_rows // spec.pairs_at_once)
            exchange = exchange or Exchange(str(folder), num_buckets)
            spilled.append(_spill(held, exchange, f"{len(spilled):06d}.bin"))
            held, num_held = [], 0
    if exchange is None:
        yield pa.concat_tables(held)
        return
    if held:
        spilled.append(_spill(held, exchange, f"{len(spilled):06d}.bin"))
    for slices in collect_slices(spilled, exchange.num_buckets):
        table = read_slices(slices)
        if table is not None:
            yield table


def _spill(tables: list[pa.Table], exchange: Exchange, name: str) -> SlicedObject:
    table = pa.concat_tables(tables).combine_chunks()
    hashes = hash_keys(write_whole(table.column("query").combine_chunks()))
    return exchange.write(name, table, assign_buckets(hashes, exchange.num_buckets))


def _read_part(part: storage.StoredObject, settings: dict[str, Any], spec: ExportSpec, result: Exported) -> pa.Table:
    """Return the scored pairs of a part: columns query, document, score and logit."""
    with open_part(part, UNREADABLE) as file:
        columns = describe_columns(settings, file.schema_arrow)
        if columns.directions:
            raise InputError(
                f"{part.uri}: holds translation pairs and no candidates to rank; jobs.bitext --scored selects from them",
                uri=part.uri,
            )
        found = _find_id_columns(part.uri, file.schema_arrow, spec, columns)
        names = list(found)
        refuse_repeated(part.uri, [part], settings, names[1:])
        texts = ScoredTexts.from_settings(settings)
        texts_in = [] if texts.spec.query_is_id else texts.list_columns(file.schema_arrow.names, ("query",))
        with refuse_damaged(part.uri, UNREADABLE):
            more = [
                column for name in spec.more_columns if (column := find_column(file.schema_arrow, name)) is not None
            ]
            added = [ADDED] if pa.types.is_boolean(find_field_type(file.schema_arrow, ADDED) or pa.null()) else []
            table = file.read(columns=list(dict.fromkeys([*found.values(), *SPACES, *more, *texts_in, *added])))
    if added:
        retrieved = table.filter(pc.invert(pc.fill_null(table[ADDED], False)))
        result.added += table.num_rows - retrieved.num_rows
        table = retrieved.drop_columns([ADDED])
    rows = PairRows(table, "score", part.uri)
    ids = {role: rows.spread_ids(name, f"--{role}-id-column") for role, name in zip(ROLES, names, strict=True)}
    pairs = pa.table(ids | {name: rows.spread(name) for name in SPACES} | _read_more(rows, spec.more_columns))
    pairs = pairs.append_column(QUERY_HASH, _hash_queries(rows, texts if texts_in else None))
    scored = pairs.filter(pc.is_valid(pairs["score"]))
    result.unscored += rows.num_without + pairs.num_rows - scored.num_rows
    for role, name in zip(ROLES, names, strict=True):
        if scored[role].null_count:
            raise InputError(
                f"{part.uri}: a scored pair has no id in column `{name}`; name another column", uri=part.uri
            )
    return scored


def _read_more(rows: PairRows, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Return further columns, nulls for those that are not there."""
    lacking = pa.chunked_array([pa.nulls(len(rows.spread("score")), pa.float64())])
    is_there = {name: find_column(rows.table.schema, name) is not None for name in names}
    return {name: rows.spread(name) if there else lacking for name, there in is_there.items()}


def _hash_queries(rows: PairRows, texts: ScoredTexts | None) -> pa.Array:
    """Return a hash of each pair's query as text, one for all where only ids are there."""
    query = texts.make(rows, ("query",)).get("query") if texts is not None else None
    if query is None:
        return pa.array(np.zeros(len(rows.spread("score")), np.uint64))
    encoded = query.fill_null("").combine_chunks().dictionary_encode()
    return pa.array(hash_keys(encoded.dictionary)[encoded.indices.to_numpy()])


def _find_id_columns(uri: str, schema: pa.Schema, spec: ExportSpec, columns: ScoredColumns) -> dict[str, str]:
    """Return the columns that the ids of queries and of documents are in, by the name of the ids."""
    lacking = [space for space in SPACES if space not in schema.names]
    if lacking:
        raise InputError(f"{uri}: no column `{lacking[0]}`, so that it is no scored output", uri=uri)
    found: dict[str, str] = {}
    for role in ROLES:
        given, known = getattr(spec, f"{role}_id_column"), getattr(columns, f"{role}_id")
        ids = find_ids(schema, given or known)
        if given is None and ids is None and columns.documents == "structs" and role == "document":
            ids = find_ids(schema, columns.document)
        column = find_column(schema, ids) if ids is not None else None
        if ids is None or column is None:
            raise InputError(_describe_lacking(uri, schema, given or known, f"--{role}-id-column"), uri=uri)
        found[ids] = column
    if len(found) < len(ROLES):
        raise InputError(
            f"{uri}: column `{next(iter(found))}` cannot hold the ids of queries and of documents; choose with "
            "--query-id-column and --document-id-column",
            uri=uri,
        )
    return found


def _describe_lacking(uri: str, schema: pa.Schema, name: str, flag: str) -> str:
    """Return what to say of a column of ids that there is not, or that holds structs without one."""
    fields = list_fields(find_field_type(schema, name))
    if fields:
        shown = ", ".join(f"`{name}.{field}`" for field in fields)
        return (
            f"{uri}: column `{name}` holds structs without a field called like an id; choose one of {shown} with {flag}"
        )
    columns = ", ".join(f"`{column}`" for column in schema.names)
    return f"{uri}: no column `{name}`; it has {columns}; choose with {flag}{suggest(name, schema.names)}"


def _write_queries(table: pa.Table, spec: ExportSpec, writer: "_Writer", result: Exported) -> None:
    """Order the candidates of some queries and write them."""
    table = table.combine_chunks()
    encoded = table["query"].combine_chunks().dictionary_encode()
    order = pc.sort_indices(
        pa.table({"query": encoded.indices, "logit": table["logit"], "document": table["document"]}),
        sort_keys=[("query", "ascending"), ("logit", "descending"), ("document", "ascending")],
    )
    query = encoded.indices.to_numpy()[order.to_numpy()]
    table = table.take(order)
    ends = np.flatnonzero(np.diff(query, append=-1)) + 1
    start = 0
    for end in ends.tolist():
        rows = table.slice(start, end - start)
        best: dict[str, float] = {}
        last = None
        for document, score, logit in zip(*(rows[name].to_pylist() for name in ("document", *SPACES)), strict=True):
            if document in best:
                result.doubled += 1
            elif spec.top_k is None or len(best) < spec.top_k:
                if spec.space == "score" and last is not None and last[0] == score and last[1] != logit:
                    raise InputError(
                        f"{spec.scored}: candidates of query {rows['query'][0].as_py()!r} have one score where their logits "
                        "differ (a score is 1 from a logit of about 17 on), so that sorting by it loses their order; "
                        "--space logit",
                        uri=spec.scored,
                    )
                best[document] = score if spec.space == "score" else logit
                last = (score, logit)
        writer.write(rows["query"][0].as_py(), best)
        result.queries += 1
        result.candidates += len(best)
        start = end


class _Writer:
    """Writes queries in one of the formats."""

    def __init__(self, file: IO[str], spec: ExportSpec, model: dict[str, Any]) -> None:
        self._file, self._spec = file, spec
        self._predictions = None
        if spec.format == "mteb-predictions":
            self._predictions = PredictionsWriter(
                file, model.get("name"), model.get("revision"), spec.subset, spec.split
            )

    def write(self, query: str, candidates: dict[str, float]) -> None:
        """Write a query's candidates, best first."""
        if self._predictions is not None:
            self._predictions.write(query, candidates)
            return
        for rank, (document, score) in enumerate(candidates.items(), 1):
            self._refuse_blanks(query, document)
            if self._spec.format == "trec":
                self._file.write(f"{query} Q0 {document} {rank} {score:.9g} {self._spec.tag}\n")
            else:
                self._file.write(f"{query}\t{document}\t{score:.9g}\n")

    def _refuse_blanks(self, query: str, document: str) -> None:
        for role, name in (("query", query), ("document", document)):
            is_bad = not name or (name.split() != [name] if self._spec.format == "trec" else set(name) & set("\t\r\n"))
            if is_bad:
                raise InputError(
                    f"{self._spec.scored}: the {role} id {name!r} is empty or has blanks, which {self._spec.format} cannot "
                    "hold; export with --format mteb-predictions, or give ids without blanks"
                )

    def finish(self) -> None:
        """Write what comes behind the last query."""
        if self._predictions is not None:
            self._predictions.finish()


@contextmanager
def open_target(target: str | None) -> Iterator[IO[str]]:
    """Give a text file that is put in its place when everything is written, packed where its name ends in .gz."""
    if target is None:
        with nullcontext(sys.stdout) as file:
            yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranking"
        with (
            gzip.open(path, "wt", encoding="utf-8")
            if target.endswith(".gz")
            else path.open("w", encoding="utf-8") as file
        ):
            yield file
        storage.write_bytes(target, path.read_bytes())
