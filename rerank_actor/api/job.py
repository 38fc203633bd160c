"""The scoring job as a call: settings in, totals and the scored rows out.

The same job as `rerank score`, on the same Ray, resumed by the same call again.
"""

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import pyarrow.dataset as ds

from rerank_actor import storage
from rerank_actor.errors import JobError
from rerank_actor.job import ScoreJob, load_job
from rerank_actor.job_file import refuse_unknown
from rerank_actor.outputs.scored import require_scored
from rerank_actor.progress import QuietReporter, make_reporter
from rerank_actor.scoring.run import RunResult, run_job


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        output: location of the scored rows.
        run: status, totals of all that is committed, failed units, and figures of this run.
    """

    output: str
    run: RunResult

    @property
    def is_complete(self) -> bool:
        """Whether every unit is committed."""
        return self.run.status == "complete"

    def to_dataset(self) -> ds.Dataset:
        """Return the scored rows as a pyarrow dataset, read when they are asked for, in the input's order.

        Raises:
            JobError, StorageError: the output cannot be listed.
        """
        return storage.open_parquet([part.uri for part in require_scored(self.output).parts])


def score_job(job_file: str | os.PathLike[str] | None = None, *, progress: bool = True, **settings: Any) -> JobResult:
    """Score everything that a job names and that is not yet committed.

    Args:
        job_file: YAML, local, s3://, gs:// or az://; its keys are the settings below.
        progress: show how far it is on standard error.
        settings: the flags of `rerank score` with `_` for `-`: `input`, `output`, `model`, `query_column` and so on. They
            win over the file's. Paths may be objects of `pathlib`.

    Raises:
        JobError: the job cannot start; nothing was started.
        OutputConflictError: the output belongs to another job, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.

    Example:
        >>> result = score_job(input="pairs.parquet", output="scores", model="Qwen/Qwen3-Reranker-0.6B")
        >>> result.run.totals.scored, result.to_dataset().to_table()
    """
    refuse_unknown(settings, "score_job", ScoreJob)
    job = load_job(
        None if job_file is None else os.fspath(job_file), {key: _write_path(settings[key]) for key in settings}
    )
    if job.dry_run:
        raise JobError("dry_run is for the command; rerank_actor.scoring.estimate.estimate_job estimates a job")
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what happens to its workers
        return JobResult(job.output, run_job(job, make_reporter() if progress else QuietReporter()))


def _write_path(value: Any) -> Any:
    """Return a setting with paths as text."""
    if isinstance(value, list | tuple):
        return [_write_path(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
