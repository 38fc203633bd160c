"""Join a scored output's parts into few files: `python -m jobs.compact SCORED --output FOLDER`. The same command resumes."""

from collections.abc import Sequence

from rerank_actor.bitext.job import refuse_root
from rerank_actor.commands.command_line import Parser
from rerank_actor.errors import JobError
from rerank_actor.outputs.compact import compact_output
from rerank_actor.progress import say
from rerank_actor.storage.uri import normalize_uri

DEFAULT_FILE_MB = 256


def compact(arguments: Sequence[str] | None = None) -> int:
    """Join the parts of an output and return 0."""
    parser = Parser(
        "compact",
        "Join the parts of a finished output of jobs.score into few files, in input order, as a dataset in a folder of its "
        "own. Every part and every file is compared with the digests of its rows. The same command again resumes.",
        "scores --output scores-joined",
        "scores --output gs://bucket/scores --target-file-mb 512",
    )
    parser.add_argument("scored", metavar="SCORED", help="the --output of jobs.score, local, s3://, gs:// or az://")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder for the files; not in SCORED")
    parser.add_argument(
        "--target-file-mb",
        type=float,
        default=DEFAULT_FILE_MB,
        metavar="MB",
        help=f"how large a file is at most, but for a part that is larger (default {DEFAULT_FILE_MB})",
    )
    options = parser.parse(arguments)
    if not options.target_file_mb > 0:
        raise JobError("--target-file-mb: expected a number above 0")
    scored, target = normalize_uri(options.scored), normalize_uri(options.output)
    refuse_root(scored)
    result = compact_output(scored, target, int(options.target_file_mb * 1e6), say)
    kept = f", {result.kept:,} of them there already" if result.kept else ""
    say(f"complete: {result.rows:,} rows of {result.parts:,} parts in {result.files:,} files{kept}; {target}")
    return 0
