"""The scored input: which Parquet files there are, what scored them, and what their columns are called.

Takes the job's `--scored`: outputs of the scoring job, whose plan says what should be there and how it was scored, or
Parquet files and folders with the same columns. Only footers and plans are read. Knows nothing of Ray.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.fingerprint import find_differing, hash_fingerprint
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.pairs import Columns
from rerank_actor.mining.rules import SPACES
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.scored import PARQUET_SUFFIXES, list_files, list_output, open_parquet, refuse_overlap


@dataclass(frozen=True)
class Scored:
    """What is to be mined.

    Attributes:
        parts: the files, in order of inputs and names.
        columns: what their columns are called.
        settings: those of the fingerprint of the scores, where an output told them.
        prompt: the instruction that all were scored with, None where it is not known or differs from row to row.
    """

    parts: tuple[storage.StoredObject, ...]
    columns: Columns
    settings: dict[str, Any] | None
    prompt: str | None


def find_scored(job: MineJob) -> Scored:
    """Find the files and columns to mine.

    Raises:
        InputError: nothing is there, an output is incomplete, outputs were scored differently, or a column is missing.
        JobError, StorageError: storage cannot be read.
    """
    parts: dict[str, storage.StoredObject] = {}
    told: dict[str, dict[str, Any]] = {}
    for uri in job.scored:
        refuse_overlap(uri, job.output)
        stored = None if uri.endswith(PARQUET_SUFFIXES) else Output(uri).load_plan()
        if stored is None:
            found = list_files(uri)
        else:
            found, told[uri] = list_output(uri, stored, job.allow_incomplete)
        parts |= {part.uri: part for part in found}
    settings = _agree(told, job)
    first = next(iter(parts.values()))
    with_lists = open_parquet(first)
    try:
        schema = with_lists.schema_arrow
    finally:
        with_lists.close()
    columns = _name_columns(job, settings or {}, schema, first.uri)
    columns.check(first.uri, schema)
    prompt = None
    if columns.instruction is None:
        prompt = settings["instruction"] if settings else read_part_metadata(schema).get("instruction")
    return Scored(tuple(parts.values()), columns, settings, prompt)


def _agree(told: dict[str, dict[str, Any]], job: MineJob) -> dict[str, Any] | None:
    """Return the settings that all outputs were scored with, those of the first where a mix is allowed."""
    if not told:
        return None
    (first, settings), *others = told.items()
    for uri, other in others:
        if hash_fingerprint(other) != hash_fingerprint(settings) and not job.allow_mixed_scores:
            differing = find_differing(settings, other)
            shown = "; ".join(f"{name}: {settings.get(name)!r} and {other.get(name)!r}" for name in differing)
            raise InputError(
                f"--scored {first} and {uri} have different fingerprints, so that their scores may not be comparable "
                f"({shown}); mine them apart, or give --allow-mixed-scores",
                uri=uri,
                differing=differing,
            )
    return settings


def _name_columns(job: MineJob, settings: dict[str, Any], schema: pa.Schema, uri: str) -> Columns:
    instruction = settings.get("instruction_column")
    rules = [rules.spaces for rules in job.rule_sets().values()]
    needed = {space for spaces in rules for space in spaces}
    if job.teacher != "none":
        needed.add("logit" if job.temperature is not None else job.teacher)
    return Columns(
        query=job.query_column or str(settings.get("query_column", "query")),
        document=job.document_column or str(settings.get("document_column", "document")),
        query_id=job.query_id_column,
        document_id=job.document_id_column,
        title=job.title_column,
        instruction=instruction if instruction in schema.names else None,
        label=job.label_column,
        spaces=tuple(space for space in SPACES if space in needed or space in schema.names),
        min_relevance=job.min_relevance,
    )
