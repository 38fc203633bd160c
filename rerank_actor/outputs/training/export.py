"""The export of training rows: as they came, in their own form, with a teacher's values where the trainer reads them.

FlagEmbedding's JSON lines get `pos_scores` and `neg_scores`, Tevatron's passages a `score`, tuples of sentence-transformers a
list `scores` behind their texts (JSON lines or Parquet), and ids of msmarco-hard-negatives become `pid` and `ce-score`, as
files of that name with scores have them. A document without a score is left out of its list, and of the lists beside it that
`parallel` knows; a row is left out where that cannot be done, or without a scored positive. Both are counted. Rows stay in the
order of the input. Memory is bounded by a row group. Needs no model and no Ray.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import RESERVED_COLUMNS
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.inputs.training.documents import LABEL, NEGATIVE_SCORES, POSITIVE_SCORES, SCORE_FIELD, SCORES
from rerank_actor.inputs.where.rows import SELECTED
from rerank_actor.outputs.export import open_target
from rerank_actor.outputs.folder import PARQUET_SUFFIXES
from rerank_actor.outputs.part import read_part_metadata, settle_rows
from rerank_actor.outputs.row_groups import open_part, refuse_damaged
from rerank_actor.outputs.scored import ScoredOutput, read_schema
from rerank_actor.outputs.training.parallel import Kept, cut_along, list_flags, select
from rerank_actor.outputs.training.place import (
    has_documents,
    list_document_columns,
    place_values,
    take_away,
    tell_form,
)

ADDED = (*RESERVED_COLUMNS, PAIR_KEY, LABEL, SELECTED)
UNREADABLE = "cannot be read ({cause}); jobs.verify says what mends it"


@dataclass
class ExportedRows:
    """What was exported: rows and documents written, and those left out for want of a score."""

    rows: int = 0
    documents: int = 0
    left_out_rows: int = 0
    left_out_documents: int = 0


def find_documents(scored: ScoredOutput) -> list[str]:
    """Return the columns of positives and negatives of an output; none where it has no rows of a training file."""
    return list_document_columns(read_part_metadata(read_schema(scored.parts[0]))) if scored.parts else []


def export_training(scored: ScoredOutput, kind: str, space: str, target: str | None) -> ExportedRows:
    """Write the rows of scored training files.

    Args:
        scored: the output.
        kind: the training format, that of the files.
        space: `logit` or `score`, the value that is written.
        target: file to write, packed where its name ends in .gz; of tuples also Parquet; None for standard output.

    Raises:
        InputError: the rows are of another format, or a part did not keep their documents.
        ShardError, StorageError, JobError: a part cannot be read, or the file not be written.
    """
    documents, result = find_documents(scored), ExportedRows()
    _refuse_other_form(scored, documents, kind)
    is_parquet = target is not None and target.endswith(PARQUET_SUFFIXES)
    if is_parquet and kind != "tuples":
        raise InputError(f"--format {kind} is JSON lines; name the --output .jsonl or .jsonl.gz", uri=scored.uri)
    tables = _iterate_rows(scored, documents, space, result)
    if kind == "tuples":
        tables = (_keep_whole(table, result) for table in tables)
    if target is not None and is_parquet:
        _write_parquet(tables, target, result)
        return result
    with open_target(target) as file:
        for row in (row for table in tables for row in table.to_pylist()):
            if kind == "tuples" or _leave_out(kind, row, documents, result):
                file.write(json.dumps(_drop_nulls(row), ensure_ascii=False) + "\n")
                result.rows += 1
            else:
                result.left_out_rows += 1
    return result


def _refuse_other_form(scored: ScoredOutput, documents: Sequence[str], kind: str) -> None:
    problem = None
    if not documents:
        problem = "has no rows of a training file; jobs.mine makes training data of it"
    elif kind in ("flagembedding", "msmarco-hard-negatives") and len(documents) != 2:
        problem = f"has {len(documents) - 1} columns of negatives, and {kind} has one"
    schemas = [read_schema(part) for part in scored.parts] if documents else []
    telling = [schema for schema in schemas if has_documents(schema, documents)] or schemas
    forms = {tell_form(schema, documents) for schema in telling}
    if None in forms:
        problem = "did not keep the documents of its rows; score again with them among --keep-columns"
    elif len(forms) > 1:
        problem = "its parts hold documents of several forms, texts alone and lists of them; score files of one form at a time"
    elif forms and forms != {kind}:
        problem = f"its rows are those of --format {forms.pop()}; export them as that"
    if problem is not None:
        raise InputError(f"{scored.uri}: {problem}", uri=scored.uri)


def _keep_whole(table: pa.Table, result: ExportedRows) -> pa.Table:
    """Return the tuples of which each text has a score."""
    is_whole = [None not in values for values in table[SCORES].to_pylist()]
    whole = table.filter(pa.array(is_whole, pa.bool_()))
    result.left_out_rows += table.num_rows - whole.num_rows
    result.documents += int(pc.sum(pc.list_value_length(whole[SCORES])).as_py() or 0)
    return whole


def _write_parquet(tables: Iterator[pa.Table], target: str, result: ExportedRows) -> None:
    writer: pq.ParquetWriter | None = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True)
            writer.write_table(table)
            result.rows += table.num_rows
        if writer is not None:
            writer.close()
            storage.write_bytes(target, path.read_bytes())


def _iterate_rows(
    scored: ScoredOutput, documents: Sequence[str], space: str, result: ExportedRows
) -> Iterator[pa.Table]:
    """Yield rows with their values in place, without the columns that scoring adds and without rows that have no list."""
    for part in scored.parts:
        with open_part(part, UNREADABLE) as file, refuse_damaged(part.uri, UNREADABLE):
            for group in range(file.metadata.num_row_groups):
                table = settle_rows(file.read_row_group(group)).replace_schema_metadata(None)
                known = table.filter(pc.is_valid(table[space]))
                result.left_out_rows += table.num_rows - known.num_rows
                placed = place_values(take_away(known, documents), documents, known[space])
                yield placed.drop_columns([name for name in ADDED if name in placed.column_names])


def _leave_out(kind: str, row: dict[str, Any], documents: Sequence[str], result: ExportedRows) -> bool:
    """Leave documents without a score out of a row; whether a positive is left, and nothing is beside another document."""
    kept = _LEAVE_OUT[kind](row, documents)
    flat = [one for of_column in kept.values() for one in list_flags(of_column)]
    is_whole = cut_along(row, kept, documents[0]) and bool(row[documents[0]])
    result.left_out_documents += flat.count(False)
    result.documents += flat.count(True) if is_whole else 0
    return is_whole


def _leave_out_of_lists(row: dict[str, Any], documents: Sequence[str]) -> dict[str, Kept]:
    """Leave documents without a score out of lists of texts, and the scores they lack."""
    kept: dict[str, Kept] = {}
    for name, scores in zip(documents, (POSITIVE_SCORES, NEGATIVE_SCORES), strict=True):
        kept[name] = _find_scored(row[name], row[scores])
        row[name], row[scores] = select(row[name] or [], kept[name]), select(row[scores], kept[name])
    return kept


def _find_scored(texts: list[Any] | None, scores: list[Any] | None) -> list[bool]:
    pairs = zip(texts or [], scores or [], strict=True)
    return [text is not None and score is not None for text, score in pairs]


def _leave_out_of_structs(row: dict[str, Any], documents: Sequence[str]) -> dict[str, Kept]:
    """Leave passages without a score out."""
    kept: dict[str, Kept] = {}
    for name in documents:
        passages = row[name] or []
        kept[name] = [passage is not None and passage[SCORE_FIELD] is not None for passage in passages]
        row[name] = select(passages, kept[name])
    return kept


def _leave_out_of_ids(row: dict[str, Any], documents: Sequence[str]) -> dict[str, Kept]:
    """Write ids with their scores as structs, without those that have none."""

    def join(ids: list[Any] | None, scores: list[Any] | None) -> list[dict[str, Any]]:
        pairs = zip(ids or [], scores or [], _find_scored(ids, scores), strict=True)
        return [{"pid": key, "ce-score": score} for key, score, is_kept in pairs if is_kept]

    positives, negatives = documents
    scores, by_system = row.pop(NEGATIVE_SCORES) or {}, row[negatives] or {}
    positive_scores = row.pop(POSITIVE_SCORES)
    kept: dict[str, Kept] = {
        positives: _find_scored(row[positives], positive_scores),
        negatives: {system: _find_scored(ids, scores[system]) for system, ids in by_system.items()},
    }
    row[positives] = join(row[positives], positive_scores)
    row[negatives] = {system: join(ids, scores[system]) for system, ids in by_system.items() if ids is not None}
    return kept


_LEAVE_OUT: dict[str, Callable[[dict[str, Any], Sequence[str]], dict[str, Kept]]] = {
    "flagembedding": _leave_out_of_lists,
    "tevatron": _leave_out_of_structs,
    "msmarco-hard-negatives": _leave_out_of_ids,
}


def _drop_nulls(value: Any) -> Any:
    """Return a row without the keys that have no value, which the file had not or as null."""
    if isinstance(value, dict):
        return {name: _drop_nulls(one) for name, one in value.items() if one is not None}
    return [_drop_nulls(one) for one in value] if isinstance(value, list) else value
