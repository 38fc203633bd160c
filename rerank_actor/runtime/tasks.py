"""Tasks: work that is done item by item on Ray Data, outside the path of a unit that is scored.

A `Datasource` whose read tasks do an item's work and give its report as a row; the driver takes rows as they come. A task
that fails becomes a row that says so, because an exception inside Ray Data would end the whole run. Reports are small: rows
and texts go from storage to storage within a task and never through Ray. Knows nothing of the work.
"""

import functools
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from rerank_actor import storage
from rerank_actor.errors import RerankError
from rerank_actor.runtime.task_report import TaskFailure, pack_report, unpack_report

ROW_BYTES_ESTIMATE = 64 * 1024
ROW_SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "is_failure": pa.bool_(),
        "report": pa.large_string(),
        "arrays": pa.list_(pa.large_binary()),
    }
)

logger = logging.getLogger(__name__)

Work = Callable[[Any], dict[str, Any]]


class TaskSource(Datasource):
    """A Ray Data source with one read task and one row for each item of work."""

    def __init__(self, work: Work, items: Sequence[Any], environment: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._items = items
        self._shared = ray.put((work, environment))  # one copy of what all tasks need

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "Tasks"

    def estimate_inmemory_data_size(self) -> int:
        """A guess at the bytes of all rows."""
        return len(self._items) * ROW_BYTES_ESTIMATE

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return a task for each item, whatever parallelism Ray would like."""
        metadata = BlockMetadata(num_rows=1, size_bytes=ROW_BYTES_ESTIMATE, input_files=None, exec_stats=None)
        return [
            ReadTask(functools.partial(_do, number, item, self._shared), metadata)
            for number, item in enumerate(self._items)
        ]


@functools.lru_cache(maxsize=1)
def _get_shared(reference: ray.ObjectRef[Any]) -> tuple[Work, dict[str, str]]:
    return ray.get(reference)  # type: ignore[no-any-return]


def _do(number: int, item: Any, shared: ray.ObjectRef[Any]) -> Iterable[Block]:
    work, environment = _get_shared(shared)
    storage.adopt_environment(environment)
    failure: TaskFailure | None = None
    try:
        text, arrays = pack_report(work(item))
    except RerankError as error:
        failure = TaskFailure(str(error), type(error).__name__)
    except Exception as error:  # the unit fails with its cause; the run goes on
        logger.exception("task %d failed", number)
        failure = TaskFailure(f"{type(error).__name__} in a worker; its log says more", type(error).__name__)
    if failure is not None:
        text, arrays = pack_report(vars(failure))
    row = {"number": number, "is_failure": failure is not None, "report": text, "arrays": arrays}
    yield pa.Table.from_pylist([row], ROW_SCHEMA)


def run_tasks(
    work: Work, items: Sequence[Any], environment: dict[str, str]
) -> Generator[tuple[int, dict[str, Any] | TaskFailure]]:
    """Do some work for each item, on as many cores as there are, and yield its number and report as they come.

    A report holds JSON values and arrays; a failure stands for the report of an item whose work raised.

    Raises:
        ray.exceptions.RayError: Ray itself failed.
    """
    if not items:
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors come back as exceptions
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_rich_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    dataset = ray.data.read_datasource(TaskSource(work, items, environment), override_num_blocks=len(items), num_cpus=1)
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in table.to_pylist():
            report = unpack_report(row["report"], row["arrays"])
            yield row["number"], TaskFailure(**report) if row["is_failure"] else report
