"""Tasks: work that is done item by item on Ray Data, outside the path of a unit that is scored.

A `Datasource` whose read tasks do an item's work and give its report as a row of JSON; the driver takes rows as they come.
A task that fails becomes a row that says so, because an exception inside Ray Data would end the whole run. Reports are
small: rows and texts go from storage to storage within a task and never through Ray. Knows nothing of the work.
"""

import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from rerank_actor import storage
from rerank_actor.errors import RerankError

ROW_BYTES_ESTIMATE = 64 * 1024

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
    arrays: dict[str, bytes] = {}
    try:
        report = work(item)
        arrays = {name: value.tobytes() for name, value in report.items() if isinstance(value, np.ndarray)}
        told = {name: value for name, value in report.items() if name not in arrays}
    except RerankError as error:
        told = {"failure": str(error), "kind": type(error).__name__}
    except Exception as error:  # the unit fails with its cause; the run goes on
        logger.exception("task %d failed", number)
        told = {"failure": f"{type(error).__name__} in a worker; its log says more", "kind": type(error).__name__}
    columns = {"number": [number], "told": [json.dumps(told)], "arrays": [list(arrays.items())]}
    kind = pa.map_(pa.string(), pa.binary())
    yield pa.table(
        {**{name: columns[name] for name in ("number", "told")}, "arrays": pa.array(columns["arrays"], kind)}
    )


def run_tasks(work: Work, items: Sequence[Any], environment: dict[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Do some work for each item, on as many cores as there are, and yield its number and report as they come.

    A report holds JSON values and arrays of 64-bit numbers, which come back as bytes. One with `failure` says why an item
    failed.

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
            yield row["number"], {**json.loads(row["told"]), **dict(row["arrays"])}
