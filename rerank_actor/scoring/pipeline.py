"""The pipeline: the path of all units, as a Ray Data graph. The only module that builds one.

A `Datasource` whose read tasks read and prepare a unit each, on CPUs; a pool of `RerankActor`s, an engine each; a
`Datasink` that writes a part each. Between stages a unit is one row, hence one block and one batch. What fails on the
way becomes a failed unit and goes on as data, because an exception inside Ray Data would end the whole run.
"""

import functools
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasink, Datasource, ReadTask

from rerank_actor import storage
from rerank_actor.engines.base import EngineSpec
from rerank_actor.errors import EngineError, OutputConflictError, RerankError
from rerank_actor.inputs.rows import Unit
from rerank_actor.runtime.pool import ActorPool
from rerank_actor.runtime.watchdog import START_SECONDS, Watchdog
from rerank_actor.scoring.actor import RerankActor
from rerank_actor.scoring.prepare import PrepareSpec, prepare_unit
from rerank_actor.scoring.unit import UnitWork
from rerank_actor.scoring.write import write_part
from rerank_actor.storage.lease import LeaseMark

UNITS_PER_ACTOR = 4  # in an actor's queue, so that its engine never waits for a unit
NEVER_REACHED = -1.0  # by the share of its queue that is filled
UNIT_BYTES_ESTIMATE = 16 * 2**20
DEATHS_ALLOWED = 10  # of workers that read or write one unit; most die of something else
STAGE_SECONDS = 3600.0  # to read or write a unit; storage has limits of its own, but a mounted file system may hang
NO_PROGRESS_SECONDS = 2 * START_SECONDS  # of the whole pipeline, which Ray then ends; each step has a limit of its own

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartSpec:
    """Where parts go and what their metadata say."""

    output: str
    metadata: dict[str, str]
    scratch: str | None
    lease: LeaseMark
    environment: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class UnitPath:
    """An output of the run: how its units are read, and where and as what they are written."""

    prepare: PrepareSpec
    part: PartSpec


class UnitSource(Datasource):
    """A Ray Data source with one read task, one block and one row for each unit.

    Args:
        units: each with the index of its output.
        specs: how the units of each output are read.
        tokenizer_json: of the model.
        coordinator: handle of the run's coordinator.
    """

    def __init__(
        self, units: Sequence[tuple[int, Unit]], specs: Sequence[PrepareSpec], tokenizer_json: str, coordinator: Any
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._units = units
        # They are large next to a unit, so that the tasks share one copy of them in the object store.
        self._shared = ray.put((specs, tokenizer_json, coordinator))

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "Units"

    def estimate_inmemory_data_size(self) -> int:
        """A guess at the bytes of all prepared units."""
        return len(self._units) * UNIT_BYTES_ESTIMATE

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return a task for each unit, whatever parallelism Ray would like."""
        metadata = BlockMetadata(num_rows=1, size_bytes=UNIT_BYTES_ESTIMATE, input_files=None, exec_stats=None)
        return [
            ReadTask(functools.partial(_read_unit, unit, output_index, self._shared), metadata)
            for output_index, unit in self._units
        ]


@functools.lru_cache(maxsize=1)
def _get_shared(reference: ray.ObjectRef[Any]) -> tuple[Sequence[PrepareSpec], str, Any]:
    return ray.get(reference)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=1)
def _get_watchdog() -> Watchdog:
    return Watchdog()


def _read_unit(unit: Unit, output_index: int, shared: ray.ObjectRef[Any]) -> Iterable[Block]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray runs as many read tasks as there are cores
    specs, tokenizer_json, coordinator = _get_shared(shared)
    deaths = ray.get(coordinator.begin_stage.remote(unit.name, "read"))
    if deaths is None:
        raise EngineError("the run has ended", unit=unit.name)  # ends the pipeline, which is wanted
    if deaths >= DEATHS_ALLOWED:
        failure = f"{unit.uri}: the process that reads it died {deaths} times"
        yield replace(UnitWork.failed(unit, failure, {"attempts": deaths}), output_index=output_index).to_table()
        return
    try:
        with _get_watchdog().limit(STAGE_SECONDS):
            work = prepare_unit(unit, specs[output_index], tokenizer_json)
    except Exception as error:  # the unit fails with its cause; the run goes on
        logger.exception("unit %s could not be prepared", unit.name)
        work = UnitWork.failed(unit, f"{unit.uri}: could not be prepared ({type(error).__name__})", {"attempts": 1})
    coordinator.end_stage.remote(unit.name, "read")
    yield replace(work, output_index=output_index).to_table()


class PartSink(Datasink[None]):
    """A Ray Data sink that writes a part for each unit into its output and tells the coordinator."""

    def __init__(self, specs: Sequence[PartSpec], coordinator: Any) -> None:
        self._specs, self._coordinator = specs, coordinator

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "Parts"

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        """Write the units of some blocks; one that cannot be written is reported as failed."""
        storage.adopt_environment(self._specs[0].environment)
        for block in blocks:
            table = cast(pa.Table, block)
            for row in range(table.num_rows):
                work = UnitWork.from_table(table.slice(row, 1))
                deaths = ray.get(self._coordinator.begin_stage.remote(work.unit.name, "write"))
                if deaths is None:
                    raise EngineError("the run has ended", unit=work.unit.name)  # ends the pipeline, which is wanted
                ray.get(self._coordinator.report_unit.remote(work.unit.name, self._commit(work, deaths)))

    def _commit(self, work: UnitWork, deaths: int) -> dict[str, Any]:
        if work.failure is not None:
            return {"failure": work.failure, **work.facts}
        if deaths >= DEATHS_ALLOWED:
            return {"failure": f"the process that writes its part died {deaths} times", **work.facts}
        try:
            with _get_watchdog().limit(STAGE_SECONDS):
                spec = self._specs[work.output_index]
                return write_part(work, spec.output, spec.metadata, spec.scratch, spec.lease)
        except OutputConflictError:
            raise  # ends the pipeline: this run has lost the output
        except RerankError as error:
            return {"failure": str(error), "not_committed": True, **work.facts}
        except Exception as error:  # as in _read_unit
            logger.exception("unit %s could not be written", work.unit.name)
            return {"failure": f"its part could not be written ({type(error).__name__})", **work.facts}


def score_units(
    units: Sequence[tuple[int, Unit]],
    outputs: Sequence[UnitPath],
    tokenizer_json: str,
    engine: EngineSpec,
    pool: ActorPool,
    coordinator: Any,
    stall_seconds: float,
    labels: dict[str, str],
) -> None:
    """Score units: the whole path of a unit from its shard to its part, in the output whose index stands beside it.

    Returns when each unit is committed, reported as failed or handed back by an actor without an engine. The caller
    looks at the output for what is committed.

    Raises:
        ray.exceptions.RayError: Ray itself failed.
    """
    _set_context()
    dataset = ray.data.read_datasource(
        UnitSource(units, [output.prepare for output in outputs], tokenizer_json, coordinator),
        override_num_blocks=len(units),
        num_cpus=1,
    )
    dataset = dataset.map_batches(
        RerankActor,
        fn_constructor_args=(engine, coordinator, stall_seconds, outputs[0].part.environment, labels),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=pool.least,
            max_size=pool.most,
            initial_size=pool.initial,
            max_tasks_in_flight_per_actor=UNITS_PER_ACTOR,
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )
    dataset.write_datasink(PartSink([output.part for output in outputs], coordinator), ray_remote_args={"num_cpus": 1})


def restart_stuck_actors() -> int:
    """Restart the engine actors that Ray has been creating for ever; return how many.

    Call it when nothing goes on. A process that is stopped or hangs before its first line of ours has no watchdog yet,
    and Ray 2.60 sends it its creation task again and again, while units wait in its queue.
    """
    from ray._private.state import state
    from ray._private.worker import global_worker

    core: Any = global_worker.core_worker  # type: ignore[attr-defined]
    job = ray.get_runtime_context().get_job_id()
    stuck = [
        actor
        for actor, facts in state.actor_table(None).items()
        if facts["JobID"] == job
        and RerankActor.__name__ in facts["ActorClassName"]
        and facts["State"] in ("PENDING_CREATION", "RESTARTING")
    ]
    for actor in stuck:
        core.kill_actor(ray.ActorID.from_hex(actor), False)  # which Ray then starts anew
    return len(stuck)


def _set_context() -> None:
    """Settings that keep one unit one block, and that let a run outlive the death of workers."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors come back as exceptions, and are told as such
    context = DataContext.get_current()
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.enable_rich_progress_bars = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    # An engine takes minutes to start. Ray would end those that find no unit in their queue for a moment, at the start
    # above all, and start others a moment later. They still go when no unit is left to hand out.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = NEVER_REACHED
