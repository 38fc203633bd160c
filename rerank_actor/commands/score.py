"""Score query-document pairs: `python -m jobs.score [JOB.yaml] [flags]`. Running it again resumes."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from rerank_actor.commands.command_line import (
    EXIT_FAILED,
    SILENT_SETTINGS,
    Parser,
    add_job_file,
    add_job_flags,
    name_program,
    refuse_unscorable,
)
from rerank_actor.job import ScoreJob, load_job
from rerank_actor.outputs.unscored import describe_unscored
from rerank_actor.progress import make_reporter, say
from rerank_actor.scoring.run import RunResult, run_job


def make_parser() -> Parser:
    """Return the parser of the main job."""
    parser = Parser(
        "score",
        "Score query-document pairs with a reranker and write them back as Parquet. The same command again "
        "resumes. Exit codes: 0 everything scored, 1 some units failed or no row has a score, 2 bad job, 3 the output belongs "
        "to another job or run, 130 or 143 stopped by a signal.",
        "job.yaml",
        "--input pairs/ --output scores --dry-run",
    )
    add_job_file(parser)
    add_job_flags(parser, ScoreJob, hidden=SILENT_SETTINGS)
    return parser


def score(arguments: Sequence[str] | None = None) -> int:
    """Run the main job and return its exit code."""
    flags: dict[str, Any] = vars(make_parser().parse(arguments))
    job_file = flags.pop("job_file")
    job = load_job(job_file, flags)
    reporter = make_reporter()
    if job.dry_run:
        from rerank_actor.scoring.estimate import estimate_job, print_estimate

        estimate = estimate_job(job, reporter)
        print_estimate(estimate)
        return refuse_unscorable(estimate.describe_unscorable())
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what happens to its workers; stdout is the output's URI
        result = run_job(job, reporter)
    _print_result(result)
    if job.reuse is not None and not result.totals.reused:
        say(f"--reuse {job.reuse}: has none of these pairs (the same three texts)")
    if result.failed:
        say(f"{name_program('status')} {job.output} names the failed units; the same command tries them again")
    if job.where is not None and result.totals.passed and result.totals.passed == result.totals.rows:
        say(f"--where {job.where!r} holds for no row: nothing was scored")
    if unscored := describe_unscored({job.output: result.totals}):
        say(f"error: {unscored}")
    print(job.output)
    return EXIT_FAILED if unscored or result.status == "failed" else 0


def _print_result(result: RunResult) -> None:
    """Print a line about all that is committed."""
    totals, rate = result.totals, result.run.get("pairs_per_second")
    saved = totals.saved_forward_passes
    reasons = "; ".join(f"{count:,} x {reason}" for reason, count in sorted(totals.errors.items()))
    figures = [
        f"{totals.rows:,} rows",
        f"{totals.scored:,} scored",
        f"{totals.failed_pairs:,} with an error" + (f" ({reasons})" if reasons else ""),
        *([f"{totals.passed:,} passed through (--where)"] if totals.passed else []),
        f"{totals.truncated:,} truncated",
        f"{len(result.failed):,} units failed",
        *([f"{saved:,} copied from pairs that are the same"] if saved else []),
        *([f"{totals.reused:,} reused"] if totals.reused else []),
    ]
    figures += [f"{result.untried:,} not tried"] if result.untried else []
    figures += [f"{result.lost:,} lost from the folder"] if result.lost else []
    figures += [f"{rate:,.1f} pairs/s"] if rate else []
    say(f"{result.status}: {', '.join(figures)}")
