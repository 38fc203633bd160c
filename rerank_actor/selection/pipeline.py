"""The pipeline of selection: the tasks of a step on Ray Data, one read task each. The only module of the package with Ray.

Rows go from storage to storage within a task and never through Ray; what comes back is a record.
"""

import functools
from collections.abc import Generator, Sequence
from typing import Any

from rerank_actor.runtime.tasks import run_tasks
from rerank_actor.selection.steps import Spec, Task, do_task

Done = tuple[int, dict[str, Any]]


def run_step(step: str, tasks: Sequence[Task], spec: Spec) -> Generator[Done]:
    """Do the tasks of a step; yields the number of each with its record, or with its failure, in no order."""
    work = functools.partial(do_task, step=step, spec=spec)
    for place, record in run_tasks(work, tasks, spec.environment):
        yield tasks[place].number, record
