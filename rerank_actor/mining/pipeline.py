"""The pipeline of mining: tasks on Ray Data, one read task and one row each. The only module of the package with Ray.

A `Datasource` whose read tasks do a unit's work and give its record as a row of JSON; the driver takes rows as they come.
A task that fails becomes a row that says so, because an exception inside Ray Data would end the whole run. Records are
small: pairs and texts go from storage to storage within a task and never through Ray.
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
from rerank_actor.mining.pairs import Columns
from rerank_actor.mining.survey import Survey, Unit, survey_part
from rerank_actor.mining.unit import Spec, count_bucket, mine_bucket, mine_unit

PARTS_PER_TASK = 32
TASK_BYTES = 256 * 2**20  # stored, that one task surveys at most
ROW_BYTES_ESTIMATE = 64 * 1024

logger = logging.getLogger(__name__)

Slices = list[tuple[str, int, int, int]]
Work = Callable[[Any], dict[str, Any]]


class TaskSource(Datasource):
    """A Ray Data source with one read task and one row for each item of work."""

    def __init__(self, work: Work, items: Sequence[Any], environment: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._items = items
        self._shared = ray.put((work, environment))  # one copy of what all tasks need

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "Mining"

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


def survey_parts(
    parts: Sequence[storage.StoredObject], columns: Columns, qrels: pa.Table | None, environment: dict[str, str]
) -> Iterator[list[Survey] | str]:
    """Survey files; yields the surveys of some of them, in no order, or why one could not be read."""
    work = functools.partial(_survey_some, columns=columns, qrels=qrels)
    for _, report in run_tasks(work, _bundle(parts), environment):
        if "failure" in report:
            yield report["failure"]
            continue
        hashes = np.frombuffer(report.pop("hashes"), np.uint64)
        positives = np.frombuffer(report.pop("positives"), np.int64)
        found, start = [], 0
        for values in report["surveys"]:
            end = start + values.pop("num_queries")
            found.append(Survey(**values, hashes=hashes[start:end], positives=positives[start:end]))
            start = end
        yield found


def _bundle(parts: Sequence[storage.StoredObject]) -> list[list[tuple[int, storage.StoredObject]]]:
    bundles: list[list[tuple[int, storage.StoredObject]]] = []
    size = 0
    for number, part in enumerate(parts):
        if not bundles or len(bundles[-1]) == PARTS_PER_TASK or size + part.size > TASK_BYTES:
            bundles.append([])
            size = 0
        bundles[-1].append((number, part))
        size += part.size
    return bundles


def _survey_some(
    bundle: list[tuple[int, storage.StoredObject]], columns: Columns, qrels: pa.Table | None
) -> dict[str, Any]:
    surveys = [survey for number, part in bundle for survey in survey_part(number, part, columns, qrels)]
    arrays = ("hashes", "positives")
    told = [
        {
            **{name: value for name, value in vars(survey).items() if name not in arrays},
            "num_queries": len(survey.hashes),
        }
        for survey in surveys
    ]
    return {
        "surveys": told,
        "hashes": np.concatenate([np.zeros(0, np.uint64), *(survey.hashes for survey in surveys)]),
        "positives": np.concatenate([np.zeros(0, np.int64), *(survey.positives for survey in surveys)]),
    }


def mine_units(units: Sequence[Unit], spec: Spec) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Mine units of row groups; yields each with its record or its failure, in no order."""
    work = functools.partial(mine_unit, spec=spec)
    for number, report in run_tasks(work, units, spec.environment):
        yield units[number], report


def mine_buckets(buckets: Sequence[tuple[Unit, Slices]], spec: Spec) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Mine buckets of the shuffle; yields each with its record or its failure, in no order."""
    work = functools.partial(_mine_bucket, spec=spec)
    for number, report in run_tasks(work, buckets, spec.environment):
        yield buckets[number][0], report


def _mine_bucket(bucket: tuple[Unit, Slices], spec: Spec) -> dict[str, Any]:
    unit, slices = bucket
    return mine_bucket(unit, spec, slices)


def count_positives(buckets: Sequence[Slices], spec: Spec) -> Iterator[int | str]:
    """Yield the most positives that a query of each bucket has, or why a bucket could not be read."""
    work = functools.partial(_count_bucket, columns=spec.columns, qrels=spec.qrels)
    for _, report in run_tasks(work, buckets, spec.environment):
        yield report.get("failure", report.get("most", 0))


def _count_bucket(slices: Slices, columns: Columns, qrels: pa.Table | None) -> dict[str, Any]:
    return {"most": count_bucket(slices, columns, qrels)}
