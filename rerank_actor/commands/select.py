"""Select translation pairs from a scored output: `python -m jobs.select [JOB.yaml] [flags]`. It needs no model.

A job file of the bitext job serves here too: what only scoring needs is left aside.
"""

from collections.abc import Sequence
from typing import Any

from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.commands.bitext import select_scored
from rerank_actor.commands.command_line import Parser, add_job_file, add_job_flags
from rerank_actor.errors import JobError
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import read_job_file


def select(arguments: Sequence[str] | None = None) -> int:
    """Run the selection and return its exit code."""
    parser = Parser(
        "select",
        "Select from the scored outputs of jobs.bitext and deliver training data. The same command again resumes. Exit "
        "codes: 0 everything done, 1 a language pair failed, 2 bad job or input, 3 the delivery belongs to another job or "
        "run, 130 or 143 stopped by a signal.",
        "--scored bitext --deliver parallel --threshold 0",
        "job.yaml --calibration known.tsv --threshold auto",
    )
    add_job_file(parser)
    add_job_flags(parser, SelectJob)
    flags: dict[str, Any] = vars(parser.parse(arguments))
    path = flags.pop("job_file")
    values = {**read_job_file(path, BitextJob, SelectJob, ScoreJob), **flags}
    if not values.get("scored"):
        raise JobError("--scored is missing: give the output of jobs.bitext, or `scored:` in the job file")
    return select_scored(values, path, flags)
