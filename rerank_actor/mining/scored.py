"""The scored input: which Parquet files there are, what scored them, and what their columns are called.

Takes the job's `--scored`: outputs of the scoring job, whose plan says what should be there and how it was scored, or
Parquet files and folders with the same columns. Only footers and plans are read. Knows nothing of Ray.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.pairs import Columns
from rerank_actor.mining.rules import SPACES
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.scored import ScoredOutput, compare_settings, open_scored, read_schema
from rerank_actor.outputs.scored_columns import describe_columns

TO_THE_END = "run jobs.score to the end, or give --allow-incomplete to mine what is there"
APART = "mine them apart, or give --allow-mixed-scores"


@dataclass(frozen=True)
class ScoredInput:
    """What is to be mined.

    Attributes:
        parts: the files, in order of inputs and names.
        columns: what their columns are called.
        prompt: the instruction that all were scored with, None where it is not known or differs from row to row.
    """

    parts: tuple[storage.StoredObject, ...]
    columns: Columns
    prompt: str | None


def load_scored(job: MineJob) -> ScoredInput:
    """Look at the files and columns to mine.

    Raises:
        InputError: nothing is there, an output is incomplete, outputs were scored differently, or a column is missing.
        JobError, StorageError: storage cannot be read.
    """
    outputs = [_open_output(uri, job) for uri in job.scored]
    all_settings = {output.uri: output.settings for output in outputs if output.settings}
    if not job.allow_mixed_scores:
        compare_settings(all_settings, "--scored", APART)
    settings = next(iter(all_settings.values()), {})
    parts = {part.uri: part for output in outputs for part in output.parts}
    first = next(iter(parts.values()))
    schema = read_schema(first)
    columns = _name_columns(job, settings, schema)
    columns.check(first.uri, schema)
    prompt = None
    if columns.instruction is None:
        prompt = settings.get("instruction") if settings else read_part_metadata(schema).get("instruction")
    return ScoredInput(tuple(parts.values()), columns, prompt)


def _open_output(uri: str, job: MineJob) -> ScoredOutput:
    """Look at one of the inputs, and refuse it where it cannot be mined."""
    _refuse_overlap(uri, job.output)
    output = open_scored(uri)
    if not output.settings and not output.parts:
        problem = f"{len(output.strays)} objects, no Parquet file among them" if output.strays else "nothing there"
        raise InputError(f"--scored {uri}: {problem}; it takes outputs of jobs.score and Parquet files", uri=uri)
    if not job.allow_incomplete:
        output.refuse_missing("--scored ", TO_THE_END)
    if not output.parts:
        raise InputError(f"--scored {uri}: nothing is scored there yet; run jobs.score first", uri=uri)
    return output


def _refuse_overlap(uri: str, output: str) -> None:
    if storage.is_within(uri, output) or storage.is_within(output, uri):
        raise InputError(
            f"--output {output}: lies in --scored {uri} or around it, so that what is written would be read again; choose a "
            "folder beside it",
            uri=output,
        )


def _name_columns(job: MineJob, settings: dict[str, Any], schema: pa.Schema) -> Columns:
    scored = describe_columns(settings, schema)
    needed = {space for rules in job.rule_sets().values() for space in rules.spaces}
    if job.teacher != "none":
        needed.add("logit" if job.temperature is not None else job.teacher)
    return Columns(
        query=job.query_column or scored.query,
        document=job.document_column or scored.document,
        query_id=job.query_id_column,
        document_id=job.document_id_column,
        title=job.title_column,
        instruction=scored.instruction,
        label=job.label_column,
        spaces=tuple(space for space in SPACES if space in needed or space in scored.values),
        min_relevance=job.min_relevance,
    )
