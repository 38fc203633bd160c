"""The evaluation of rerankers on tasks: from an `EvaluateJob` to a table, and on again after whatever ended it.

`evaluate_tasks` is the order of things: look at the models, bring the tasks here, find candidates, score them, judge. Each is
done by the job that is there for it, and what is done is not done again. A task of a suite that cannot be had is missing from
the table; one that was named is refused. How each step works is known elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rerank_actor.engines.families.embedding import takes_instruction
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.model import fetch_model
from rerank_actor.engines.options import BUILT_IN_TOKENIZER
from rerank_actor.errors import AccessDeniedError, InputError, StorageError
from rerank_actor.evaluation.evaluate import Evaluation, EvaluationSpec, evaluate_outputs
from rerank_actor.evaluation.given import Sections, find_given
from rerank_actor.evaluation.job import EvaluateJob, describe_subset
from rerank_actor.evaluation.measures import Measure, parse_measure
from rerank_actor.evaluation.task_texts import TaskData, prepare_task
from rerank_actor.evaluation.tasks import DEFAULT, Suite, Task, choose_tasks
from rerank_actor.inputs.rankings.qrels import load_judgements
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.folder import Output
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.retrieval.job import DEFAULT_EMBEDDING, RetrieveJob
from rerank_actor.retrieval.run import retrieve_all
from rerank_actor.scoring.preflight import look_at_model
from rerank_actor.scoring.run import run_jobs


@dataclass
class Judged:
    """A task's subset and what came of it.

    Attributes:
        task, data: what was judged.
        rerankers: those whose scores are there, in the order of the evaluation's outputs.
        evaluation: None where none is there.
    """

    task: Task
    data: TaskData
    rerankers: list[str]
    evaluation: Evaluation | None


@dataclass
class Evaluated:
    """What came of an evaluation.

    Attributes:
        job: what was asked for.
        suite: the table that the tasks stand in.
        subsets: of all tasks, in the order of the tasks.
        missing: why tasks, or subsets of some reranker, are missing.
        retriever: whose candidates were scored; None where they were given.
    """

    job: EvaluateJob
    suite: Suite
    tasks: list[Task]
    subsets: list[Judged] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    retriever: str | None = None


def evaluate_tasks(job: EvaluateJob, reporter: Reporter | None = None) -> Evaluated:
    """Evaluate rerankers on tasks, as far as that is not done.

    Raises:
        JobError: the job, a task that was named, or a model is wrong.
        OutputConflictError: the output holds another evaluation, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    reporter = reporter or QuietReporter()
    tasks, suite = choose_tasks(job.tasks, job.suite)
    result = Evaluated(job, suite, tasks)
    takes = {name: reads_instruction(job, name, reporter) for name in job.list_rerankers()}
    prepared = prepare_tasks(job, tasks, result.missing, reporter)
    candidates = _find_candidates(job, prepared, result, reporter)
    jobs = {
        name: make_scoring_jobs(job, name, candidates, takes_instruction=takes[name]) for name in job.list_rerankers()
    }
    refuse_useless_reuse(job, [one for scoring in jobs.values() for _, one in scoring])
    for reranker, scoring in jobs.items():
        for (data, _), ended in zip(scoring, run_jobs([one for _, one in scoring], reporter), strict=True):
            if ended.status == "failed":
                name = describe_subset(data.task, data.subset)
                result.missing[f"{name} of {reranker}"] = f"{len(ended.failed):,} units failed; run again to go on"
    result.subsets = judge_subsets(job, prepared, [data for _, data, _ in candidates])
    return result


def prepare_tasks(
    job: EvaluateJob, tasks: Sequence[Task], missing: dict[str, str], reporter: Reporter
) -> list[tuple[Task, TaskData]]:
    """Return the subsets of tasks, after bringing them here; of a suite's tasks that cannot be had, note why.

    Raises:
        InputError, StorageError: a task that was named, or each of a suite's, cannot be had.
    """
    found: list[tuple[Task, TaskData]] = []
    error: Exception | None = None
    for task in tasks:
        try:
            subsets = prepare_task(task, job.root, job.split, job.subset)
        except (InputError, AccessDeniedError, StorageError) as problem:
            if job.suite is None or task.name in job.tasks:
                raise
            error = problem
            missing[task.name] = str(problem)
            reporter.warn(f"{task.name} is missing: {problem}")
            continue
        found += [(task, data) for data in subsets]
        lost = sum(data.without_text for data in subsets)
        if lost:
            reporter.warn(f"{task.name}: {lost:,} judged queries have no text and do not count")
    if not found and error is not None:
        raise error
    return found


def _find_candidates(
    job: EvaluateJob, prepared: list[tuple[Task, TaskData]], result: Evaluated, reporter: Reporter
) -> list[tuple[Task, TaskData, str]]:
    """Return the subsets with their candidates, after finding those that are not given."""
    found_there = [find_given(job, data, len(prepared)) for _, data in prepared]
    sections = Sections(job.root)
    given = {
        at: sections.pick(uri, data) for at, (uri, (_, data)) in enumerate(zip(found_there, prepared, strict=True))
    }
    wanted = {at: pair for at, pair in enumerate(prepared) if given[at] is None}
    if wanted:
        result.retriever = choose_retriever(job, result.suite)
        jobs = make_retrieval_jobs(job, list(wanted.values()), result.retriever)
        for at, found in zip(wanted, retrieve_all(jobs, reporter), strict=True):
            data = prepared[at][1]
            if found.status == "failed":
                result.missing[describe_subset(data.task, data.subset)] = (
                    "texts could not be embedded; run again to go on"
                )
                continue
            given[at] = found.candidates
    return [(*pair, place) for at, pair in enumerate(prepared) if (place := given[at]) is not None]


def choose_retriever(job: EvaluateJob, suite: Suite) -> str | None:
    """Return the embedding model; None for that of the fake engine."""
    return job.retriever or (None if job.engine == "fake" else suite.retriever or DEFAULT_EMBEDDING)


def make_retrieval_jobs(
    job: EvaluateJob, prepared: Sequence[tuple[Task, TaskData]], retriever: str | None
) -> list[RetrieveJob]:
    """Return the jobs that find candidates."""
    takes = retriever in (None, BUILT_IN_TOKENIZER) or takes_instruction(
        str(retriever), fetch_model(str(retriever), None, weights=False)
    )
    return [
        job.to_retrieval(data, retriever, (job.find_task_instruction(task) or DEFAULT_INSTRUCTION) if takes else None)
        for task, data in prepared
    ]


def reads_instruction(job: EvaluateJob, reranker: str, reporter: Reporter) -> bool:
    """Whether a reranker's prompt has an instruction.

    Raises:
        ModelError: it is no reranker.
    """
    nothing = TaskData(".", "", DEFAULT, "", 0, 0, "-", "-", ["-"])
    one = job.to_scoring(nothing, reranker, "-", None, None)
    return look_at_model(one, [], reporter).description.template.takes_instruction


def make_scoring_jobs(
    job: EvaluateJob, reranker: str, candidates: Sequence[tuple[Task, TaskData, str]], *, takes_instruction: bool
) -> list[tuple[TaskData, ScoreJob]]:
    """Return the jobs that score the candidates of all tasks by a reranker."""
    made = []
    for task, data, place in candidates:
        instruction = job.find_task_instruction(task) if takes_instruction else None
        earlier = job.place_scores(reranker, data, job.reuse) if job.reuse is not None else None
        reuse = earlier if earlier is not None and Output(earlier).list_parts() else None
        made.append((data, job.to_scoring(data, reranker, place, instruction, reuse)))
    return made


def refuse_useless_reuse(job: EvaluateJob, scoring: Sequence[ScoreJob]) -> None:
    """Refuse an earlier evaluation that has no scores of any task by any reranker."""
    if job.reuse is not None and scoring and not any(one.reuse for one in scoring):
        raise InputError(
            f"--reuse {job.reuse}: has no scores of these tasks by {', '.join(job.list_rerankers())}; name the --output of an "
            "evaluation that has, or leave it out",
            uri=job.reuse,
        )


def judge_subsets(
    job: EvaluateJob, prepared: Sequence[tuple[Task, TaskData]], with_candidates: Sequence[TaskData]
) -> list[Judged]:
    """Judge all subsets; one without candidates has no evaluation, so that its task has no mean of the others."""
    return [
        judge_subset(job, task, data) if data in with_candidates else Judged(task, data, [], None)
        for task, data in prepared
    ]


def judge_subset(job: EvaluateJob, task: Task, data: TaskData) -> Judged:
    """Judge the scores of a task's subset by all rerankers whose scores are whole."""
    places = {name: job.place_scores(name, data) for name in job.list_rerankers()}
    there = {name: uri for name, uri in places.items() if Output(uri).read_success() is not None}
    if not there:
        return Judged(task, data, [], None)
    spec = EvaluationSpec(
        scored=tuple(there.values()),
        measures=tuple(list_measures(job, task)),
        ignore_identical_ids=job.ignore_identical_ids or task.ignore_identical_ids,
        seed=job.seed,
        changed=data.changed,
        names=tuple(there),
    )
    return Judged(task, data, list(there), evaluate_outputs(spec, load_judgements(data.qrels)))


def list_measures(job: EvaluateJob, task: Task) -> list[Measure]:
    """Return the measures of a task; the first is the one that stands in the table."""
    return [parse_measure(name) for name in dict.fromkeys([task.measure or job.measures[0], *job.measures])]
