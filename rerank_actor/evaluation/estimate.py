"""The dry run of an evaluation: pairs, tokens, time and money of its tasks before anything is copied, embedded or scored.

Tasks in folders, and those that an earlier run has copied, are sampled: some of their queries with some of their documents
become prompts. Of the others a suite's statistics are taken, queries, documents and characters, with so many characters a
token. Nothing is written but in a temporary folder. Knows nothing of Ray.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from rich.table import Table

from rerank_actor import storage
from rerank_actor.engines.model import fetch_model, load_tokenizer_json
from rerank_actor.engines.options import BUILT_IN_TOKENIZER
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.errors import InputError
from rerank_actor.evaluation.given import find_given
from rerank_actor.evaluation.job import EvaluateJob, describe_subset
from rerank_actor.evaluation.run import choose_retriever, make_retrieval_jobs
from rerank_actor.evaluation.task_texts import TaskData, load_prepared, prepare_task
from rerank_actor.evaluation.tasks import DEFAULT, Task, choose_tasks
from rerank_actor.inputs.columns import is_list
from rerank_actor.inputs.text_sources import ID_NAMES, TEXT_NAMES, SourcePiece, TextSource
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.price import format_dollars, require_gpu_type
from rerank_actor.outputs.row_groups import open_part
from rerank_actor.progress import PlainConsole, Reporter, format_seconds
from rerank_actor.retrieval.run import make_embed_jobs
from rerank_actor.scoring.budget import (
    START_SECONDS,
    Budget,
    ModelSize,
    assume_speed,
    count_budget,
    print_budget,
    read_model_size,
)
from rerank_actor.scoring.estimate import Estimate, estimate_job
from rerank_actor.scoring.preflight import fit_max_length, look_at_model, make_encoder_settings
from rerank_actor.storage import hub

SAMPLED = 200  # queries of a task, each with a document
DRAWN_LENGTHS = 2_000  # of prompts, that stand for those of all tasks


@dataclass(frozen=True)
class Sample:
    """What is known of a task's subset, or of all subsets of one that is not here.

    Attributes:
        name: of the task, with the subset.
        task: the task.
        num_queries, num_pairs: the latter at most.
        texts: queries with documents that stand for all; none where there are statistics alone.
        num_embedded, embedded_tokens: texts and tokens to embed for its candidates; 0 where those are there.
        done: rerankers whose scores are there.
    """

    name: str
    task: Task
    num_queries: int
    num_pairs: int
    texts: list[tuple[str, str]] = field(default_factory=list)
    num_embedded: int = 0
    embedded_tokens: int = 0
    done: frozenset[str] = frozenset()

    @property
    def origin(self) -> str:
        """Where the figures are from."""
        return f"{len(self.texts):,} sampled" if self.texts else "MTEB"


@dataclass(frozen=True)
class RerankerEstimate:
    """What a reranker's scores of all tasks come to: mean tokens of a prompt by task, and the budget."""

    name: str
    tokens: list[float]
    budget: Budget
    size: ModelSize | None


@dataclass(frozen=True)
class TasksEstimate:
    """What an evaluation comes to.

    Attributes:
        samples: its tasks.
        unknown: those of which nothing is known before they are copied.
        rerankers: what each takes.
        embedding_hours: of one actor, for the texts to embed; None where nothing is known of the model or the GPU.
    """

    samples: list[Sample]
    unknown: list[str]
    rerankers: list[RerankerEstimate]
    embedding_hours: float | None


def estimate_tasks(job: EvaluateJob, reporter: Reporter) -> TasksEstimate:
    """Say what an evaluation comes to.

    Raises:
        JobError: as a real run would.
    """
    tasks, suite = choose_tasks(job.tasks, job.suite)
    samples, unknown = list[Sample](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        here = [_find_here(job, task, folder) for task in tasks]
        num_subsets = sum(
            len(found) or len(job.subset or task.subsets) or 1 for task, found in zip(tasks, here, strict=True)
        )
        for task, subsets in zip(tasks, here, strict=True):
            retriever = choose_retriever(job, suite)
            found = [
                _sample_subset(job, task, data, find_given(job, data, num_subsets), folder, retriever, reporter)
                for data in subsets
            ] or _take_statistics(job, task)
            samples += found
            unknown += [] if found else [task.name]
    rerankers = [_estimate_reranker(job, name, samples, reporter) for name in job.list_rerankers() if samples]
    return TasksEstimate(
        samples, unknown, rerankers, _count_embedding_hours(job, samples, choose_retriever(job, suite))
    )


def _find_here(job: EvaluateJob, task: Task, folder: str) -> list[TaskData]:
    """Return the subsets of a task in a folder, or of one that an earlier run has copied whole; none of others."""
    if hub.is_hub(task.place):
        return load_prepared(task, job.root, job.split, job.subset)
    return prepare_task(task, folder, job.split, job.subset)


def _take_statistics(job: EvaluateJob, task: Task) -> list[Sample]:
    """Return what a suite says of a task that is not here; nothing where it says nothing."""
    if task.queries is None or task.documents is None or job.split not in (None, task.split):
        return []
    share = len(job.subset) / len(task.subsets) if job.subset and task.subsets else 1.0
    counts = [round(share * count) for count, _ in (task.queries, task.documents)]
    characters = sum(count * length for count, (_, length) in zip(counts, (task.queries, task.documents), strict=True))
    finds = job.candidates is None and task.listed is None
    return [
        Sample(
            task.name,
            task,
            counts[0],
            counts[0] * (job.top_k if task.listed is None or job.candidates is not None else task.listed),
            num_embedded=sum(counts) if finds else 0,
            embedded_tokens=round(characters / task.characters_per_token) if finds else 0,
        )
    ]


def _sample_subset(
    job: EvaluateJob,
    task: Task,
    data: TaskData,
    given: str | None,
    folder: str,
    retriever: str | None,
    reporter: Reporter,
) -> Sample:
    queries, documents = _read_head("query", [data.queries]), _read_head("document", data.corpus)
    name = describe_subset(data.task, data.subset)
    done = {name for name in job.list_rerankers() if Output(job.place_scores(name, data)).read_success() is not None}
    embeds = []
    if given is not None:
        num_pairs = data.num_queries * job.top_k if job.is_ranking(data, given) else _count_pairs(given)
    else:
        elsewhere = job.model_copy(update={"output": storage.join_uri(folder, "found")})
        [retrieval] = make_retrieval_jobs(elsewhere, [(task, data)], retriever)
        embeds = [estimate_job(embed, reporter) for embed in make_embed_jobs(retrieval)]
        num_pairs = data.num_queries * min(job.top_k, embeds[0].rows)
    return Sample(
        name,
        task,
        data.num_queries,
        num_pairs,
        [(query, documents[place % len(documents)]) for place, query in enumerate(queries)] if documents else [],
        sum(embed.rows for embed in embeds),
        sum(round(embed.rows * float(embed.num_tokens.mean())) for embed in embeds if len(embed.num_tokens)),
        frozenset(done),
    )


def _count_pairs(uri: str) -> int:
    """Return the pairs of a Parquet file of candidates, one a row or in lists."""
    [item] = storage.list_objects(uri)
    with open_part(item, "cannot be read as candidates ({cause})", InputError) as file:
        lists = [
            name for name, kind in zip(file.schema_arrow.names, file.schema_arrow.types, strict=True) if is_list(kind)
        ]
        if not lists:
            return int(file.metadata.num_rows)
        table = file.read(columns=lists)
    return max(int(pc.sum(pc.list_value_length(column)).as_py() or 0) for column in table.columns)


def _read_head(role: Literal["query", "document"], uris: Sequence[str]) -> list[str]:
    """Return the first texts of a source."""
    objects = [item for uri in uris for item in storage.list_objects(uri)]
    source = TextSource(role, tuple(objects), (f"{role}_id", *ID_NAMES), (role, *TEXT_NAMES))
    for item in objects:
        for table in source.read(SourcePiece(item.uri, item.size, item.etag)):
            if not isinstance(table, dict):
                return [text for text in table["text"].slice(0, SAMPLED).to_pylist() if text is not None]
    return []


def _estimate_reranker(job: EvaluateJob, name: str, samples: list[Sample], reporter: Reporter) -> RerankerEstimate:
    """Return what a reranker's scores come to; a speed that one of its outputs has measured counts."""
    nothing = job.to_scoring(TaskData(".", "", DEFAULT, "", 0, 0, "-", "-", ["-"]), name, "-", None, None)
    model = look_at_model(nothing, [], reporter)
    one = fit_max_length(nothing, model, reporter)
    encoder = PairEncoder(load_tokenizer_json(model), **make_encoder_settings(one, model, ""))
    lengths = [_count_tokens(job, sample, encoder, one.max_length) for sample in samples]
    tokens = [float(counts.mean()) for counts in lengths]
    pairs = np.array([sample.num_pairs for sample in samples])
    pending = np.array([0 if name in sample.done else sample.num_pairs for sample in samples])
    shares = np.maximum(1, DRAWN_LENGTHS * pairs // max(1, pairs.sum()))
    drawn = np.concatenate([np.resize(counts, share) for counts, share in zip(lengths, shares, strict=True)])
    estimate = Estimate(
        shards=0,
        units=len(samples),
        rows=int(pairs.sum()),
        num_bytes=0,
        pending_units=int((pending > 0).sum()),
        pending_rows=int(pending.sum()),
        unreadable=[],
        num_tokens=drawn,
        truncated=0,
        errors=0,
        pairs_per_row=1.0,
        actors=1,
        pairs_per_second=None,
        rate_source="",
        output=job.root,
    )
    manifests = (Output(uri).load_manifest() for uri in _list_outputs(job, name))
    measured = next((found for found in manifests if found.get("runs")), {})
    size = read_model_size(model)
    budget = count_budget(one, estimate, measured, size, round(float(pairs @ tokens)), round(float(pending @ tokens)))
    return RerankerEstimate(name, tokens, budget, size)


def _count_embedding_hours(job: EvaluateJob, samples: list[Sample], retriever: str | None) -> float | None:
    """Return the hours that texts take to embed, at the speed that is assumed of such a model on such a GPU."""
    texts, tokens = (sum(getattr(one, name) for one in samples) for name in ("num_embedded", "embedded_tokens"))
    if not tokens:
        return 0.0
    if job.gpu_type is None or retriever in (None, BUILT_IN_TOKENIZER):
        return None
    config = json.loads((Path(fetch_model(str(retriever), None, weights=False)) / "config.json").read_text())
    size = ModelSize.of_config(config)
    if size is None:
        return None
    speed = assume_speed(size, require_gpu_type(job.gpu_type), np.array([tokens / texts]), cached_share=0.0)
    return float(START_SECONDS + tokens / speed) / 3600


def _list_outputs(job: EvaluateJob, name: str) -> list[str]:
    """Return the folders of a reranker's scores that are whole."""
    root = storage.join_uri(job.root, "scores", name)
    found = [uri for item in storage.list_objects(root) if (uri := item.uri).endswith(".parquet")]
    return list(dict.fromkeys(uri.rpartition("/")[0] for uri in found))


def _count_tokens(job: EvaluateJob, sample: Sample, encoder: PairEncoder, max_length: int) -> np.ndarray:
    """Return the lengths of prompts: of sampled ones, else the mean by statistics: int [num_prompts]."""
    task = sample.task
    queries, documents = zip(*sample.texts or [("", "")], strict=True)
    instruction = job.find_task_instruction(task) if encoder.template.takes_instruction else None
    instructions = [instruction] * len(queries) if instruction is not None else None
    counted = np.asarray(encoder.encode(queries, documents, instructions).num_tokens)
    if sample.texts:
        return counted
    characters = sum(count[1] for count in (task.queries, task.documents) if count is not None)
    return np.array([min(max_length, int(counted[0]) + round(characters / task.characters_per_token))])


def print_task_estimate(found: TasksEstimate) -> None:
    """Print for a person what an evaluation comes to."""
    console = PlainConsole()
    table = Table(title="Tasks", title_justify="left", box=None, pad_edge=False)
    for column in ("task", "queries", "pairs", "tokens a pair", "to embed", "by"):
        table.add_column(column, justify="left" if column in ("task", "by") else "right", overflow="fold")
    for place, sample in enumerate(found.samples):
        figures = [f"{sample.num_queries:,}", f"{sample.num_pairs:,}", f"{found.rerankers[0].tokens[place]:,.0f}"]
        table.add_row(sample.name, *figures, f"{sample.num_embedded:,}", sample.origin)
    console.print(table)
    texts = sum(sample.num_embedded for sample in found.samples)
    embedded = sum(sample.embedded_tokens for sample in found.samples)
    hours, price = found.embedding_hours, found.rerankers[0].budget.price if found.rerankers else None
    cost = f", {format_seconds(3600 * hours)} of one GPU" if hours else ""
    cost += f", {format_dollars(hours * price.dollars)}" if hours and price is not None else ""
    console.print(f"to embed: {texts:,} texts of about {embedded:,} tokens{cost}")
    for name in found.unknown:
        console.print(f"not known before it is copied: {name}")
    for one in found.rerankers:
        console.print(f"\n{one.name}: {one.budget.estimate.rows:,} pairs")
        print_budget(one.budget, one.size)
