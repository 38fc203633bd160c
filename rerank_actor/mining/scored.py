"""The scored input: which Parquet files there are, what scored them, and what their columns are called.

Takes the job's `--scored`: outputs of the scoring job, whose plan says what should be there and how it was scored, or
Parquet files and folders with the same columns. Only footers and plans are read. Knows nothing of Ray.
"""

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, JobError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.inputs.lookups import TextLookup
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.inputs.rankings.judged import ADDED
from rerank_actor.inputs.text_sources import TextSource
from rerank_actor.inputs.training.documents import LABEL
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.pairs import CANDIDATE_ROLES, Columns
from rerank_actor.mining.rules import SPACES
from rerank_actor.mining.texts import find_sources, name_texts
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.scored import ScoredOutput, compare_settings, open_scored, read_schema
from rerank_actor.outputs.scored_columns import describe_columns, find_ids
from rerank_actor.outputs.scored_texts import ScoredTexts, read_text_settings, refuse_lost_fields, refuse_repeated

TO_THE_END = "run jobs.score to the end, or give --allow-incomplete to mine what is there"
APART = "mine them apart, or give --allow-mixed-scores"


@dataclass(frozen=True)
class ScoredInput:
    """What is to be mined.

    Attributes:
        parts: the files, in order of inputs and names.
        columns: what their columns are called.
        prompt: the instruction that all were scored with, None where it is not known or differs from row to row.
        sources: queries and corpus that rows name by id.
    """

    parts: tuple[storage.StoredObject, ...]
    columns: Columns
    prompt: str | None
    sources: tuple[TextSource, ...] = ()

    def with_lookups(self, lookups: tuple[TextLookup, ...]) -> "ScoredInput":
        """Return the same, with the finished stores of its sources."""
        texts = replace(self.columns.texts, lookups=lookups)
        return replace(self, columns=replace(self.columns, texts=texts))


def fit_labels(job: MineJob) -> MineJob:
    """Return the job with the labels of the training files that were scored, where no flag names labels or judgements.

    Raises:
        JobError: nothing says what is positive.
        StorageError: storage cannot be read.
    """
    if job.label_column is not None or job.qrels is not None:
        return job
    for output in map(open_scored, job.scored):
        if output.parts and not read_text_settings(output).get("negative_columns"):
            if job.says_positives:
                return job
            raise JobError(
                "nothing says which documents are positive: give --label-column NAME, --qrels URI, --verdicts URI, or, to take "
                "the best-scored document of each query, --min-positive-score X"
            )
    return job.model_copy(update={"label_column": LABEL})


def load_scored(job: MineJob) -> ScoredInput:
    """Look at the files and columns to mine.

    Raises:
        InputError: nothing is there, an output is incomplete, outputs were scored differently, or a column is missing.
        JobError, StorageError: storage cannot be read.
    """
    outputs = [_open_output(uri, job) for uri in job.scored]
    all_settings = {output.uri: output.settings for output in outputs if output.settings}
    made = {output.uri: read_text_settings(output) for output in outputs}
    first_output = next((output for output in outputs if output.settings), outputs[0])
    settings = made[first_output.uri]
    parts = {part.uri: part for output in outputs for part in output.parts}
    schema = read_schema(first_output.parts[0])
    texts = name_texts(job, settings, schema)
    _refuse_one_teacher(job, outputs)
    _refuse_unknown_candidates(job, outputs)
    if job.combine != "none" and not job.allow_mixed_scores:
        _refuse_other_tasks(made)
    for output in outputs:
        refuse_lost_fields(output, made[output.uri], schema)
        _refuse_lost_instructions(output.uri, made[output.uri], texts)
        tells = texts.sources or output.settings or "query_column" in made[output.uri]
        other = name_texts(job, made[output.uri], schema) if tells else texts
        if other.instruction != texts.instruction:  # of scores that may be mixed
            texts = replace(texts, instruction=None)
        if replace(other, instruction=texts.instruction) != texts:
            if texts.sources == other.sources and not job.allow_mixed_scores and job.combine == "none":
                compare_settings(all_settings, "--scored", APART)  # which says what differs
            raise InputError(
                f"--scored {first_output.uri} and {output.uri}: {_tell_apart(texts, other)}; mine them apart",
                uri=output.uri,
            )
    if not job.allow_mixed_scores and job.combine == "none":
        compare_settings(all_settings, "--scored", APART)
    columns = _name_columns(job, settings, texts, schema)
    if job.combine != "none":
        teachers = {part.uri: number for number, output in enumerate(outputs) for part in output.parts}
        spaces = tuple({"logit": None, **dict.fromkeys(columns.spaces)})
        columns = replace(columns, teachers=teachers, spaces=spaces, keeps_unscored=True)
    columns.check(first_output.parts[0].uri, schema)
    for output in outputs:
        roles = (getattr(columns, role) for role in CANDIDATE_ROLES)
        names = [name for name in roles if name is not None]
        refuse_repeated(f"--scored {output.uri}", output.parts, made[output.uri], names)
    prompt = None if texts.has_instructions else texts.instruction
    return ScoredInput(tuple(parts.values()), columns, prompt, find_sources(job, first_output.uri, settings))


def _refuse_other_tasks(made: dict[str, dict[str, Any]]) -> None:
    """Refuse teachers that scored with different instructions, by what is known of each output's settings."""
    (first, expected), *others = ((uri, settings.get("instruction")) for uri, settings in made.items())
    for uri, instruction in others:
        if instruction != expected:
            raise InputError(
                f"--scored {first} and {uri}: were scored with different instructions ({expected!r} and {instruction!r}); "
                "give --allow-mixed-scores to combine them all the same",
                uri=uri,
            )


def _refuse_one_teacher(job: MineJob, outputs: list[ScoredOutput]) -> None:
    """Refuse outputs that are to be of several teachers, and are of one, or whose logits are no log-odds to take means of."""
    if job.combine == "none":
        return
    seen: dict[str, str] = {}
    for output in outputs:
        mark = hash_fingerprint(output.settings) if output.settings else output.uri
        if (other := seen.setdefault(mark, output.uri)) != output.uri:
            raise InputError(
                f"--combine: {other} and {output.uri} have one fingerprint, so that they are of one teacher; give one of them",
                uri=output.uri,
            )
        if job.combine in ("mean", "min", "max"):
            scored = describe_columns(output.settings, read_schema(output.parts[0]))
            scored.refuse_scaled(f"--scored {output.uri}", f"--combine {job.combine}", "give --combine zscore or rank")


def _refuse_unknown_candidates(job: MineJob, outputs: list[ScoredOutput]) -> None:
    """Refuse to draw at random beside candidates that have no score, for they may be the best of their query."""
    if not any(rules.random_negatives for rules in job.rule_sets().values()):
        return
    for output in outputs:
        if "where" in read_part_metadata(read_schema(output.parts[0])):
            raise InputError(
                f"--scored {output.uri}: has candidates that --where passed through, which --random-negatives would draw as if "
                "they were none; leave out --random-negatives, or score them all",
                uri=output.uri,
            )


def _tell_apart(texts: ScoredTexts, other: ScoredTexts) -> str:
    """Return in what the texts of two outputs differ."""
    if texts.sources == other.sources:
        return "their texts were made in different ways"
    return "were scored with other --queries or --corpus each, in which one id may name two texts"


def _refuse_lost_instructions(uri: str, settings: dict[str, Any], texts: ScoredTexts) -> None:
    """Refuse rows whose instructions nobody knows: what a query got under two of them would be ranked as one."""
    scored = ScoredTexts.from_settings(settings)
    if scored.has_instructions and not texts.has_instructions:
        task = scored.name(scored.spec.instruction_column or scored.spec.dataset_column)
        raise InputError(
            f"--scored {uri}: was scored with an instruction for each row and did not keep column `{task}`, so that the "
            "candidates of a query under one instruction cannot be told from those under another; score again with it among "
            "--keep-columns",
            uri=uri,
            column=task,
        )


def _open_output(uri: str, job: MineJob) -> ScoredOutput:
    """Look at one of the inputs, and refuse it where it cannot be mined."""
    storage.refuse_overlap(job.output, uri, "--output", "--scored")
    output = open_scored(uri)
    if not output.settings and not output.parts:
        problem = f"{len(output.strays)} objects, no Parquet file among them" if output.strays else "nothing there"
        raise InputError(f"--scored {uri}: {problem}; it takes outputs of jobs.score and Parquet files", uri=uri)
    if not job.allow_incomplete:
        output.refuse_incomplete("--scored ", TO_THE_END)
    if not output.parts:
        raise InputError(f"--scored {uri}: nothing is scored there yet; run jobs.score first", uri=uri)
    return output


def _name_columns(job: MineJob, settings: dict[str, Any], texts: ScoredTexts, schema: pa.Schema) -> Columns:
    scored = describe_columns(settings, schema)
    if job.teacher == "score" and job.temperature is not None:
        scored.refuse_scaled(f"--scored {job.scored[0]}", "--teacher score with --temperature", "give --teacher logit")
    needed = {space for rules in (*job.rule_sets().values(), *job.value_rules().values()) for space in rules.spaces}
    if job.teacher != "none":
        needed.add("logit" if job.temperature is not None else job.teacher)
    query_id = job.query_id_column or (scored.query_id if texts.spec.query_is_id else None)
    document_id = job.document_id_column or (
        scored.document_id if texts.spec.document_is_id and not texts.spec.negative_columns else None
    )
    if job.qrels is not None and (query_id is None or document_id is None):
        raise InputError("--qrels names queries and documents by id: give --query-id-column and --document-id-column")
    return Columns(
        texts=texts,
        query_id=query_id and (find_ids(schema, query_id) or query_id),
        document_id=document_id and (find_ids(schema, document_id) or document_id),
        title=job.title_column,
        label=job.label_column,
        by=job.by,
        rank=job.rank_column,
        num_negatives=job.num_negatives_column,
        unused_id=find_ids(schema, scored.query_id) if query_id is None else None,
        spaces=tuple(space for space in SPACES if space in needed or space in scored.values),
        pair_key=PAIR_KEY if PAIR_KEY in schema.names and texts.instruction is not None else None,
        min_relevance=job.min_relevance,
        positive_labels=tuple(job.positive_labels),
        keeps_unscored=any(rules.random_negatives for rules in job.rule_sets().values()),
        has_added=job.qrels is None and ADDED in schema.names and pa.types.is_boolean(schema.field(ADDED).type),
    )
