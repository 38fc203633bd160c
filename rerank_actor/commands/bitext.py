"""Score translation pairs in both directions and select from them: `python -m jobs.bitext [JOB.yaml] [flags]`.

Running it again resumes. With --deliver what is scored is selected and delivered; with --scored nothing is scored.
"""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from rerank_actor import storage
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.run import score_bitext
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.bitext.selection.labelled_pairs import read_labelled
from rerank_actor.bitext.selection.language_pair import Selected
from rerank_actor.bitext.selection.report import CALIBRATION, OVERVIEW, list_calibration, list_overview, print_table
from rerank_actor.bitext.selection.run import check_selection, select_pairs
from rerank_actor.commands.command_line import EXIT_FAILED, SILENT_SETTINGS, Parser, add_job_file, add_job_flags
from rerank_actor.errors import JobError
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job, read_job_file
from rerank_actor.outputs.unscored import describe_unscored
from rerank_actor.progress import LineReporter, make_reporter, say

OWN_OF_SELECTION = frozenset(SelectJob.model_fields) - frozenset(BitextJob.model_fields)


def make_parser() -> Parser:
    """Return the parser of the bitext job."""
    parser = Parser(
        "bitext",
        "Score candidate translation pairs in both directions, a folder for each language pair, and, with "
        "--deliver, select from them: then the flags of jobs.select (`rerank select`), which selects from an earlier output, "
        "are taken too. The same command again resumes. Exit codes: 0 everything done, 1 some units failed or no row "
        "has a score, 2 bad job or input, 3 the output belongs to another job or run, 130 or 143 stopped by a signal.",
        "--input candidates/ --output bitext",
        "--input candidates/ --output bitext --deliver parallel",
    )
    add_job_file(parser)
    add_job_flags(parser, BitextJob, SelectJob, hidden=OWN_OF_SELECTION - {"deliver"} | SILENT_SETTINGS)
    return parser


def bitext(arguments: Sequence[str] | None = None) -> int:
    """Run the bitext job and return its exit code."""
    flags: dict[str, Any] = vars(make_parser().parse(arguments))
    path = flags.pop("job_file")
    values = {**read_job_file(path, BitextJob, SelectJob, ScoreJob), **flags}  # ScoreJob's are refused with a reason
    if not values.get("deliver") and (given := sorted(OWN_OF_SELECTION & set(values) - {"deliver"})):
        name = given[0].replace("_", "-")
        raise JobError(f"--{name} is a setting of the selection: give --deliver too, the folder for what is selected")
    if values.get("scored"):
        return select_scored(values, path, flags)
    scoring = {name: value for name, value in values.items() if name not in OWN_OF_SELECTION}
    job = check_job(BitextJob, scoring, path, flags).normalized()
    known = None
    if values.get("deliver"):
        selection = _check_selection(values, path, flags)
        check_selection(selection, [job.output])  # before hours of scoring, not after them
        columns = selection.source_column, selection.target_column
        known = read_labelled(
            selection.calibration, *columns, selection.lang_pair, selection.languages, selection.dialect
        )
    if job.dry_run:
        from rerank_actor.bitext.estimate import estimate_bitext, print_bitext_estimate

        print_bitext_estimate(estimate_bitext(job, make_reporter()))
        return 0
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what happens to its workers
        results = score_bitext(job, make_reporter(), known)
    for name, result in results.items():
        totals = result.totals
        reasons = "; ".join(f"{count:,} x {reason}" for reason, count in sorted(totals.errors.items()))
        figures = f"{totals.rows:,} candidates, {totals.scored:,} scores, {totals.failed_pairs:,} without"
        say(f"{name}: {result.status}: {figures}{f' ({reasons})' if reasons else ''}")
    print(job.output)
    failed = sorted(name for name, result in results.items() if result.status == "failed")
    folders = {name: storage.join_uri(job.output, f"lang_pair={name}") for name in results}
    unscored = describe_unscored({folders[name]: result.totals for name, result in results.items()})
    if unscored:
        say(f"error: {unscored}")
    code = EXIT_FAILED if failed or unscored else 0
    whole = [name for name in results if name not in failed]
    if values.get("deliver"):
        for name in failed:
            say(f"{name}: not selected from, because some units failed; run the same command again")
        if whole:
            values = {**values, "partitions": whole, "source_column": "source", "target_column": "target"}
            code = max(
                code, select_scored({**values, "lang_pair": None}, path, flags, [folders[name] for name in whole])
            )
    return code


def _check_selection(values: dict[str, Any], path: str | None, flags: dict[str, Any]) -> SelectJob:
    """Return the selection that a command line asks for; what only scoring needs is left aside."""
    selected = {name: value for name, value in values.items() if name in SelectJob.model_fields}
    return check_job(SelectJob, selected, path, flags).normalized()


def select_scored(
    values: dict[str, Any], path: str | None, flags: dict[str, Any], folders: list[str] | None = None
) -> int:
    """Select from scored folders, print what came of it, and return the exit code."""
    if folders is None:
        for name in sorted(set(flags) - set(SelectJob.model_fields)):
            flag = name.replace("_", "-")
            hint = "; --reselect replaces what was delivered" if name == "overwrite" else ""
            raise JobError(f"--{flag} is for scoring, and with --scored nothing is scored; leave one of them out{hint}")
    job = _check_selection(values, path, flags)
    with contextlib.redirect_stdout(sys.stderr):
        results = select_pairs(job, folders or job.scored, LineReporter())
    _print_results(results)
    page = "calibration.html" if job.calibrate_only else "report.html"
    say(f"what each rule removed, and how scores do on known pairs: {job.deliver}/_select/{page}")
    print(job.deliver)
    return EXIT_FAILED if any(result.status == "failed" for result in results.values()) else 0


def _print_results(results: dict[str, Selected]) -> None:
    """Print what was selected of each language pair, and how scores do on known pairs."""
    done = [result.numbers for result in results.values() if result.status != "failed"]
    whole = [result.numbers for result in results.values() if result.status == "complete"]
    for numbers in done:
        if numbers["calibration"]:
            print_table(f"{numbers['lang_pair']}: known pairs", CALIBRATION, list_calibration(numbers))
    if whole:
        print_table("selected", OVERVIEW, list_overview(whole))
    for name, result in results.items():
        if result.status == "failed":
            say(f"{name}: failed: {result.failure}")
