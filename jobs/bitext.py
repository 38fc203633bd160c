"""Score translation pairs in both directions: `python -m jobs.bitext [JOB.yaml] [flags]`. Running it again resumes."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from jobs.command_line import EXIT_FAILED, Parser, add_job_flags, run_command
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.run import score_bitext
from rerank_actor.job import check_job, read_job_file
from rerank_actor.progress import make_reporter


def make_parser() -> Parser:
    """Return the parser of the bitext job."""
    parser = Parser(
        prog="python -m jobs.bitext",
        description="Score candidate translation pairs in both directions, a folder for each language pair. The same command "
        "again resumes. Exit codes: 0 everything scored, 1 some units failed, 2 bad job or input, 3 the output belongs to "
        "another job or run, 130 or 143 stopped by a signal.",
    )
    parser.add_argument(
        "job_file", nargs="?", metavar="JOB.yaml", help="keys are the flags below with _ for -; flags win"
    )
    add_job_flags(parser, BitextJob)
    return parser


def bitext(arguments: Sequence[str] | None = None) -> int:
    """Run the bitext job and return its exit code."""
    flags: dict[str, Any] = vars(make_parser().parse(arguments))
    path = flags.pop("job_file")
    job = check_job(BitextJob, {**read_job_file(path, BitextJob), **flags}, path, flags).normalized()
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what happens to its workers
        results = score_bitext(job, make_reporter())  # type: ignore[arg-type]
    for name, result in results.items():
        totals = result.totals
        reasons = "; ".join(f"{count:,} x {reason}" for reason, count in sorted(totals.errors.items()))
        figures = f"{totals.rows:,} candidates, {totals.scored:,} scores, {totals.failed_pairs:,} without"
        print(f"{name}: {result.status}: {figures}{f' ({reasons})' if reasons else ''}", file=sys.stderr)
    print(job.output)
    return EXIT_FAILED if any(result.status == "failed" for result in results.values()) else 0


if __name__ == "__main__":
    run_command(bitext)
