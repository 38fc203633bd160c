"""Say how well rerankers rank: scored outputs as they are, or tasks that are retrieved for and scored first."""

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from rerank_actor import storage
from rerank_actor.commands.command_line import EXIT_FAILED, SILENT_SETTINGS, Parser, add_job_file, add_job_flags
from rerank_actor.evaluation.evaluate import EvaluationSpec, evaluate_outputs
from rerank_actor.evaluation.job import EvaluateJob
from rerank_actor.evaluation.measures import parse_measure
from rerank_actor.evaluation.table import make_table, to_record
from rerank_actor.inputs.rankings.qrels import load_judgements
from rerank_actor.job_file import check_job, read_job_file
from rerank_actor.progress import make_reporter, say


def make_parser() -> Parser:
    """Return the parser of the evaluation."""
    parser = Parser(
        "evaluate",
        "Say how well rerankers rank candidates, by judgements: means over queries with 95 % intervals, beside the "
        "candidates' own order and the best possible order of the same candidates. With --scored, of outputs that are there; "
        "with --tasks or --suite, of rerankers, whose candidates are found and scored first: the same command again "
        "resumes. Measures are those of pytrec_eval, and FollowIR's p-MRR; ties go by the document's id, descending, as "
        "in trec_eval and MTEB.",
        "--scored scores --qrels qrels.tsv",
        "--tasks scifact/ --model A B --output eval",
        "--suite qwen3-card --model A --output eval",
    )
    add_job_file(parser)
    add_job_flags(parser, EvaluateJob, hidden=SILENT_SETTINGS)
    return parser


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write it where asked; return 0, or 1 where a task is missing that should not be."""
    flags: dict[str, Any] = vars(make_parser().parse(arguments))
    path = flags.pop("job_file")
    job = check_job(EvaluateJob, {**read_job_file(path, EvaluateJob), **flags}, path, flags).normalized()
    return _evaluate_tasks(job) if job.has_tasks else _evaluate_outputs(job)


def _evaluate_outputs(job: EvaluateJob) -> int:
    spec = EvaluationSpec(
        scored=tuple(job.scored),
        measures=tuple(map(parse_measure, job.measures)),
        query_id_column=job.query_id_column,
        document_id_column=job.document_id_column,
        retrieval_column=job.retrieval_column,
        ignore_identical_ids=job.ignore_identical_ids,
        partial=job.allow_incomplete,
        seed=job.seed,
    )
    result = evaluate_outputs(spec, load_judgements(str(job.qrels)))
    table = make_table(result)
    print(table, end="")
    if job.output:
        record = {"qrels": job.qrels, "scored": list(spec.scored), **to_record(result)}
        _write(job.output, {"table.md": table.encode(), "evaluation.json": json.dumps(record, indent=1).encode()})
    return 0


def _evaluate_tasks(job: EvaluateJob) -> int:
    from rerank_actor.evaluation import run
    from rerank_actor.evaluation.estimate import estimate_tasks, print_task_estimate
    from rerank_actor.evaluation.task_report import TaskReport

    if job.dry_run:
        print_task_estimate(estimate_tasks(job, make_reporter()))
        return 0
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what happens to its workers; stdout is the table
        result = run.evaluate_tasks(job, make_reporter())
    report = TaskReport.of(result)
    table = report.make_markdown()
    print(table, end="")
    files = {
        "table.md": table.encode(),
        "table.html": report.make_page().encode(),
        "evaluation.json": json.dumps(report.to_record(), indent=1).encode(),
    }
    files |= {f"results/{reranker}/{task}.json": data for (reranker, task), data in report.list_results().items()}
    files |= {f"evaluations/{task}/{subset}.json": data for (task, subset), data in report.list_evaluations().items()}
    _write(job.root, files)
    return 0 if report.is_complete else EXIT_FAILED


def _write(folder: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        storage.write_bytes(storage.join_uri(folder, name), data)
    say(f"written: {folder}")
