"""Say what a job would cost: `python -m jobs.plan [JOB.yaml] [flags]`. The flags are those of the main job.

With `--suite` or `--tasks` it is an evaluation's, whose flags these then are.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rerank_actor.commands.command_line import SILENT_SETTINGS, Parser, add_job_file, add_job_flags, refuse_unscorable
from rerank_actor.job import ScoreJob, load_job
from rerank_actor.progress import make_reporter
from rerank_actor.scoring.budget import make_budget, print_budget, print_gpu_types, store_budget
from rerank_actor.scoring.estimate import print_estimate


def plan(arguments: Sequence[str] | None = None) -> int:
    """Print the plan and its budget, store both in the output, and return 0."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(flag.partition("=")[0] in ("--suite", "--tasks") for flag in given):
        from rerank_actor.commands.evaluate import evaluate

        return evaluate([*given, "--dry-run"])
    parser = Parser(
        "plan",
        "Plan a job and say how many GPU hours, how much time and how many dollars it takes, by number of "
        "actors and by GPU. Stores the figures in the output, so that jobs.status and the report can compare; starts "
        "nothing. With --suite or --tasks and the flags of jobs.evaluate: what an evaluation takes.",
        "job.yaml --actors 16",
        "--suite qwen3-card --model A --output eval",
        "--list-gpus",
    )
    add_job_file(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--list-gpus", action="store_true", help="print the table of GPU types and prices, and end")
    add_job_flags(parser, ScoreJob, hidden=SILENT_SETTINGS)
    flags: dict[str, Any] = vars(parser.parse(given))
    job_file, as_json, lists = (flags.pop(name) for name in ("job_file", "json", "list_gpus"))
    if lists:
        print_gpu_types()
        return 0
    job, reporter = load_job(job_file, flags), make_reporter()
    prepared, budget, size = make_budget(job, reporter)
    if as_json:
        print(json.dumps(budget.to_record(), indent=2))
    else:
        print_estimate(budget.estimate)
        print_budget(budget, size)
    if job.overwrite:
        reporter.info("--overwrite: the plan was not stored, because what is in the output is of another job")
    elif store_budget(prepared, budget, reporter):
        reporter.info(f"stored: {prepared.output.at('estimate.json')}")
    return refuse_unscorable(budget.estimate.describe_unscorable())
