"""Find candidates of queries in a corpus: `python -m jobs.retrieve [JOB.yaml] [flags]`. Running it again resumes."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from rerank_actor.commands.command_line import EXIT_FAILED, Parser, add_job_file, add_job_flags, name_program
from rerank_actor.job_file import check_job, read_job_file
from rerank_actor.progress import make_reporter, say
from rerank_actor.retrieval.job import RetrieveJob


def make_parser() -> Parser:
    """Return the parser of the retrieval job."""
    parser = Parser(
        "retrieve",
        "Find the best documents of a corpus for each query, by the cosines of an embedding model's vectors, "
        "exactly, as candidates for jobs.score. The same command again resumes; vectors that are there are not made again.",
        "--queries q.jsonl --corpus c.jsonl --output retrieved",
    )
    add_job_file(parser)
    add_job_flags(parser, RetrieveJob)
    return parser


def retrieve(arguments: Sequence[str] | None = None) -> int:
    """Run the retrieval job and return its exit code."""
    from rerank_actor.retrieval import run

    flags: dict[str, Any] = vars(make_parser().parse(arguments))
    path = flags.pop("job_file")
    job = check_job(RetrieveJob, {**read_job_file(path, RetrieveJob), **flags}, path, flags).normalized()
    with contextlib.redirect_stdout(
        sys.stderr
    ):  # Ray prints what happens to its workers; stdout is the candidates' URI
        result = run.retrieve(job, make_reporter())
    if result is None:
        return 0
    if result.status == "failed":
        say(
            f"{name_program('status')} {job.embeddings_uri}/corpus (or queries) names the failed units; run again to go on"
        )
        return EXIT_FAILED
    for flag, reasons in result.left_out.items():
        if reasons:
            told = "; ".join(f"{count:,} x {reason}" for reason, count in sorted(reasons.items()))
            say(f"{flag}: {reasons.total():,} rows are left out ({told})")
    for flag, count in result.empty.items():
        if count:
            say(f"{flag}: {count:,} texts are blank, and are embedded as they are")
    what, use = ("queries", "documents"), f"{name_program('score')} takes them with the same --queries and --corpus"
    if job.is_bitext:
        what, use = ("sources", "targets"), f"{name_program('bitext')} takes them with --lang-pair"
    say(
        f"complete: {result.num_candidates:,} candidates of {result.queries:,} {what[0]} among {result.documents:,} {what[1]}; "
        f"as --input {use}"
    )
    print(result.candidates)
    return 0
