"""Mine training data from stored scores: `python -m jobs.mine [JOB.yaml] [flags]`. Running it again resumes."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from rerank_actor.bitext.job import refuse_root
from rerank_actor.commands.command_line import EXIT_FAILED, Parser, add_job_file, add_job_flags
from rerank_actor.job_file import check_job, read_job_file
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.output import MineOutput
from rerank_actor.mining.preflight import prepare_mining
from rerank_actor.mining.run import MineResult, mine_scores
from rerank_actor.progress import LineReporter, PlainConsole, say
from rerank_actor.publishing.publish import PublishSpec, publish, refuse_other_data
from rerank_actor.storage.hub_upload import HubRepository


def make_parser() -> Parser:
    """Return the parser of the mining job."""
    parser = Parser(
        "mine",
        "Mine training data from stored scores: positives, hard negatives, distillation labels. Needs no model. "
        "The same command again resumes. Exit codes: 0 all mined, 1 some units failed, 2 bad job or input, or rules that "
        "leave nothing, 3 the output belongs to another job or run, 130 or 143 stopped by a signal.",
        "--scored scores --output mined --qrels qrels.tsv",
    )
    add_job_file(parser)
    add_job_flags(parser, MineJob)
    return parser


def mine(arguments: Sequence[str] | None = None) -> int:
    """Run the mining job and return its exit code."""
    flags: dict[str, Any] = vars(make_parser().parse(arguments))
    path = flags.pop("job_file")
    job = check_job(MineJob, {**read_job_file(path, MineJob), **flags}, path, flags).normalized()
    for uri in job.scored:
        refuse_root(uri)
    published = None
    if job.push_to_hub is not None and not job.what_if:
        published = PublishSpec(job.output, job.push_to_hub, private=job.hub_private, license_name=job.hub_license)
        HubRepository(job.push_to_hub, "main")  # so that a name that is none, or no token, is told first
        if job.overwrite or MineOutput(job.output).read_success() is None:
            refuse_other_data(published, prepare_mining(job).fingerprint)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what happens to its workers
        result = mine_scores(job, LineReporter())
    if job.what_if:
        _print_table(result)
    else:
        _print_result(result, job)
        if published is not None and result.status == "complete":
            say(f"published as {publish(published, LineReporter())}")
        print(job.output)
    return EXIT_FAILED if result.status == "failed" else 0


def _print_result(result: MineResult, job: MineJob) -> None:
    """Print a line about all that is committed, and where to look."""
    counts, run = result.tally.counts, result.run
    figures = [
        f"{counts['queries_kept']:,} of {counts['queries']:,} queries",
        f"{counts['positives']:,} positives",
        f"{counts['negatives']:,} negatives",
        f"{counts['suspected_false_negatives']:,} suspected false negatives",
    ]
    figures += [f"{run['pairs_per_second']:,.0f} pairs/s"] if run["pairs"] else []
    figures += [f"{len(result.failed):,} units failed"] if result.failed else []
    say(f"{result.status}: {', '.join(figures)}")
    say(f"what each rule removed, with examples: {job.output}/_mine/report.html")


def _print_table(result: MineResult) -> None:
    """Print a row for each rule set."""
    space = result.table[0]["margin_space"]
    table = Table(title=f"{result.table[0]['queries']:,} queries; margins in {space} space", title_justify="left")
    table.add_column("rules", overflow="fold")
    for name in ("queries kept", "negatives", "a query", "mean margin", "suspected false negatives"):
        table.add_column(name, justify="right")
    for row in result.table:
        table.add_row(
            str(row["rules"]),
            f"{row['queries_kept']:,}",
            f"{row['negatives']:,}",
            "-" if row["negatives_per_query"] is None else f"{row['negatives_per_query']:.2f}",
            "-"
            if row["mean_margin"] is None
            else f"{row['mean_margin']:.4f}" + (f" ({row['margin_space']})" if row["margin_space"] != space else ""),
            f"{row['suspected_false_negatives']:,}",
        )
    PlainConsole(width=None if sys.stdout.isatty() else 120).print(table)
