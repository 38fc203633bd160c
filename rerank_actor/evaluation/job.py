"""The evaluation: what a user asks for, and the retrieval and scoring jobs that it takes.

Scored outputs are judged as they are; tasks are retrieved for and scored first, by jobs whose model, engine and run are
sections of this one. Knows nothing of argparse or of how a job runs.
"""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rerank_actor import storage
from rerank_actor.engines.settings import EngineUseSettings, ModelUseSettings, normalize_model
from rerank_actor.evaluation.evaluate import RETRIEVAL_COLUMN
from rerank_actor.evaluation.measures import KNOWN, parse_measure
from rerank_actor.evaluation.task_texts import TaskData
from rerank_actor.evaluation.tasks import DEFAULT, Task
from rerank_actor.job import ClusterSettings, NoticeSettings, PriceSettings, ReuseSettings, RunSettings, ScoreJob
from rerank_actor.job_file import (
    Locations,
    OptionalLocation,
    Settings,
    accept_one,
    check_job,
    make_flag,
    refuse_credentials,
)
from rerank_actor.retrieval.job import DEFAULT_EMBEDDING, RetrieveJob

DEFAULT_MEASURES = ["ndcg@10", "map", "mrr@10", "recall@100"]

Models = Annotated[list[str], BeforeValidator(accept_one), AfterValidator(refuse_credentials)]
Words = Annotated[list[str], BeforeValidator(accept_one)]


class JudgedSettings(Settings):
    """Scored outputs that are judged as they are."""

    scored: Locations = make_flag([], "outputs", "outputs of jobs.score to judge, one for each reranker", "URI", "+")
    qrels: OptionalLocation = make_flag(None, "outputs", "their judgements, as of jobs.mine", "URI")
    query_id_column: str | None = make_flag(None, "outputs", "column with the query's id (default: the job's)", "NAME")
    document_id_column: str | None = make_flag(
        None, "outputs", "column with the document's id (default: the job's)", "NAME"
    )
    retrieval_column: str = make_flag(
        RETRIEVAL_COLUMN, "outputs", "column with the score that candidates were retrieved by", "NAME"
    )
    allow_incomplete: bool = make_flag(False, "outputs", "judge outputs that are not complete")


class TaskSettings(Settings):
    """Tasks that are retrieved for, scored and judged."""

    tasks: Words = make_flag(
        [],
        "tasks",
        "folders as BEIR has them, local or s3://; datasets on the hub as MTEB has them (OWNER/NAME); tasks of a suite",
        "NAME",
        "+",
    )
    suite: str | None = make_flag(
        None,
        "tasks",
        "qwen3-card: the tasks of the card's table; nano: NanoBEIR; with --tasks, those of its tasks",
        "NAME",
    )
    split: str | None = make_flag(
        None,
        "tasks",
        "split of the judgements (default: that of the task in its suite, else test, or the only one)",
        "NAME",
    )
    subset: Words = make_flag([], "tasks", "subsets of a task that has several (default: all)", "NAME", "+")
    instruction: str | None = make_flag(
        None, "tasks", "what rerankers are asked in all tasks (default: each task's own of the suite)", "TEXT"
    )


class CandidateSettings(Settings):
    """Where the candidates of tasks are from."""

    retriever: Annotated[str | None, AfterValidator(refuse_credentials)] = make_flag(
        None,
        "candidates",
        f"embedding model that finds the candidates, once for all rerankers (default {DEFAULT_EMBEDDING})",
        "MODEL",
    )
    candidates: OptionalLocation = make_flag(
        None,
        "candidates",
        "candidates that are there: a run or MTEB's predictions of one task, or a folder with TASK.trec, TASK_SUBSET.trec, "
        "TASK_predictions.json or TASK_SUBSET_predictions.json for each",
        "URI",
    )
    top_k: Annotated[int, Field(ge=1)] = make_flag(100, "candidates", "candidates of each query at most", "K")


class RerankerSettings(Settings):
    """Which models score."""

    model: Models = make_flag([], "model", "rerankers, by name on the hub, local or s3:// folder", "MODEL", "+")

    def normal_values(self) -> dict[str, Any]:
        """Return the settings that `normalized` changes."""
        return {**super().normal_values(), "model": [normalize_model(name) for name in self.model]}


class MeasureSettings(Settings):
    """How rankings are measured, and where the tables go."""

    measures: Words = make_flag(DEFAULT_MEASURES, "measures", KNOWN, "NAME", "+")
    ignore_identical_ids: bool = make_flag(
        False, "measures", "leave out candidates with the id of their query, as MTEB for ArguAna"
    )
    seed: int = make_flag(0, "measures", "of the intervals", "N")
    output: OptionalLocation = make_flag(
        None, "output", "folder for tables and results, and with tasks for all that they take", "URI"
    )

    @model_validator(mode="after")
    def _check_measures(self) -> Self:
        for name in self.measures:
            parse_measure(name)
        return self


class EvaluateJob(
    ClusterSettings,
    PriceSettings,
    NoticeSettings,
    RunSettings,
    EngineUseSettings,
    ModelUseSettings,
    RerankerSettings,
    ReuseSettings,
    MeasureSettings,
    CandidateSettings,
    TaskSettings,
    JudgedSettings,
):
    """One evaluation: of scored outputs, or of rerankers on tasks."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.has_tasks == bool(self.scored):
            raise ValueError("--scored judges outputs that are there, --tasks and --suite make them; give one of both")
        if self.scored:
            if not self.qrels:
                raise ValueError("--qrels is missing: the judgements of --scored")
            return self
        if not self.output:
            raise ValueError("--output is missing: the folder for candidates, scores and tables of the tasks")
        if self.qrels or self.allow_incomplete:
            raise ValueError("--qrels and --allow-incomplete are for --scored; tasks bring their judgements")
        if not self.model and self.engine != "fake":
            raise ValueError("--model is missing: one or several rerankers")
        if len(self.list_rerankers()) < len(self.models):
            raise ValueError("--model: two rerankers are called the same by their folders; rename one")
        if len(self.models) > 1 and self.revision is not None:
            raise ValueError("--revision is of one model, and --model names several; evaluate them one by one")
        if self.suite and self.split:
            raise ValueError(
                "--split: a suite says the split of each task; name the tasks with --tasks and without --suite"
            )
        if self.candidates and self.retriever:
            raise ValueError("--candidates are there, and --retriever makes them; give one")
        return self

    @property
    def has_tasks(self) -> bool:
        """Whether tasks are to be retrieved for and scored."""
        return bool(self.tasks or self.suite)

    @property
    def models(self) -> list[str | None]:
        """The rerankers; None for that of the fake engine."""
        return [*self.model] or [None]

    @property
    def root(self) -> str:
        """The folder of all that the tasks take."""
        return str(self.output)

    def list_rerankers(self) -> dict[str, str | None]:
        """Return the rerankers by the names of their folders."""
        described = re.sub(r"\W+", "-", self.model_description.rpartition("/")[2]) if self.model_description else ""
        ending = f"+{described}" if described else ""
        return {f"{_shorten(model or 'fake')}{ending}": model for model in self.models}

    def find_task_instruction(self, task: Task) -> str | None:
        """Return what rerankers are asked in a task; None where nobody says it, so that each model's own default holds."""
        return self.instruction or task.instruction or None

    def to_retrieval(self, data: TaskData, retriever: str | None, instruction: str | None) -> RetrieveJob:
        """Return the job that finds the candidates of a task.

        Args:
            data: the task.
            retriever: the embedding model.
            instruction: for its query prompt, None where that has no place for one.
        """
        given = self.pick(EngineUseSettings, RunSettings, ClusterSettings)
        of_pairs = ("retry_failed", "dedupe", "pairs_per_second")
        return check_job(
            RetrieveJob,
            {
                **{name: value for name, value in given.items() if name not in of_pairs},
                **{name: getattr(self, name) for name in ("dtype", "max_length") if name in self.model_fields_set},
                "dry_run": False,
                "model": retriever,
                "instruction": instruction,
                "queries": [data.queries],
                "corpus": data.corpus,
                "top_k": self.top_k,
                "output": storage.join_uri(self.root, "candidates", data.task, data.subset),
                "output_format": "parquet",
                "overwrite": self.overwrite,
            },
        )

    def to_scoring(
        self, data: TaskData, reranker: str, candidates: str, instruction: str | None, reuse: str | None
    ) -> ScoreJob:
        """Return the job that scores the candidates of a task.

        Args:
            data: the task.
            reranker: one of `list_rerankers`.
            candidates: file or folder of them.
            instruction: None for a model that reads none.
            reuse: earlier output.
        """
        given = self.pick(
            EngineUseSettings, ModelUseSettings, RunSettings, ClusterSettings, PriceSettings, NoticeSettings
        )
        return check_job(
            ScoreJob,
            {
                **given,
                "model": self.list_rerankers()[reranker],
                "dry_run": False,
                "input": [candidates],
                "queries": [data.queries],
                "corpus": data.corpus,
                **({"top_k": self.top_k} if self.is_ranking(data, candidates) else {}),
                **({"instruction": instruction} if instruction is not None else {}),
                "with_pair_key": self.with_pair_key,
                "reuse": reuse,
                "output": self.place_scores(reranker, data),
                "overwrite": self.overwrite,
            },
        )

    def is_ranking(self, data: TaskData, candidates: str) -> bool:
        """Whether the best of some candidates are scored, else all: a task's own lists count whole, and what was retrieved."""
        is_given = self.candidates is not None and candidates != data.candidates
        # Of Parquet the scoring job says that it has no ranks.
        return is_given and (not candidates.endswith(".parquet") or "top_k" in self.model_fields_set)

    def place_scores(self, reranker: str, data: TaskData, root: str | None = None) -> str:
        """Return the folder of a task's scores."""
        return storage.join_uri(root or self.root, "scores", reranker, data.task, data.subset)


def describe_subset(task: str, subset: str) -> str:
    """Return a task's subset in words."""
    return task if subset == DEFAULT else f"{task} ({subset})"


def _shorten(model: str) -> str:
    """Return a model's name, or the last two folders of its path, as the name of a folder."""
    return re.sub(r"[^\w.-]+", "--", "/".join(model.strip("/").split("/")[-2:]))
