"""How the job grows: memory with rows, speed with actors, an engine's idle time, and what many units cost.

All with the fake engine, which sleeps where a real one computes; what is measured is everything around it. Each
measurement runs in a process of its own, so that one's memory is not the next one's.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor.benchmark.meter import Meter, measure_peaks
from rerank_actor.benchmark.weights import SHAPES, make_tokenizer, write_weights
from rerank_actor.benchmark.workload import make_workload
from scale.bitext import measure_bitext
from scale.fake_run import run_fake_job
from scale.layouts import measure_dedupe, measure_join
from scale.many_units import measure_resume, measure_schedule

HOST = "127.0.0.2"  # Ray 2.60 puts the machine's outer address in the place of 127.0.0.1
LATENCY_SECONDS, LATENCY_PROMPTS = 0.05, 256  # of an engine on a fast GPU
BUSY_ROWS = 196_608  # some forty seconds, next to which it does not matter when the first and the last part are there
SCALED_SECONDS_PER_PROMPT = 0.002  # slow enough for eight actors beside two cores
FULL = {
    "memory": [{"rows": 10_000}, {"rows": 100_000}, {"rows": 1_000_000}],
    "actors": [{"actors": 1}, {"actors": 2}, {"actors": 4}, {"actors": 8}],
    "busy": [{"unit_rows": 4096}, {"unit_rows": 16_384}],
    "guard": [{"units": 500}],
    "resume": [{"units": 1_000}, {"units": 10_000}, {"units": 100_000}],
    "schedule": [
        {"units": 1_000, "stop_after": 1_000},
        {"units": 10_000, "stop_after": 10_000},
        {"units": 100_000, "stop_after": 10_000},
    ],
    "ray_checkpoint": [{"rows": 1_000_000}, {"rows": 4_000_000}],
    "join": [{"documents": 200_000}, {"documents": 2_000_000}],
    "dedupe": [{"rows": 100_000}, {"rows": 1_000_000}],
    "bitext": [{"rows": 1_000_000}, {"rows": 10_000_000}],
}


def measure_scale(
    folder: Path, report: Callable[[str], None], wanted: dict[str, list[dict[str, int]]]
) -> dict[str, Any]:
    """Measure how the job grows.

    Args:
        folder: for inputs and outputs.
        report: is told what happens.
        wanted: arguments of each measurement by its name, as in `FULL`.

    Returns:
        The same with what was measured added to the arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = write_weights(folder / "model-tiny", SHAPES["tiny"], dtype="float32")
    figures: dict[str, Any] = {}
    for name, settings in wanted.items():
        for setting in settings:
            report(f"{name} {setting}")
            target = folder / f"{name}-{'-'.join(map(str, setting.values()))}"
            target.mkdir()
            command = [sys.executable, "-m", __name__, name, json.dumps(setting), str(target), str(model)]
            with (target / "log").open("wb") as log:
                ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, check=False, env=_environment())
            if ended.returncode:
                raise RuntimeError(f"{name} {setting} ended with {ended.returncode}; its words are in {target / 'log'}")
            figures.setdefault(name, []).append({**setting, **json.loads(ended.stdout)})
            report(str(figures[name][-1]))
    return figures


def make_scale_tables(scale: dict[str, Any]) -> str:
    """Return the figures of `measure_scale` as Markdown."""
    lines = []
    for name, rows in scale.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += [f"### {name.replace('_', ' ')}", "", _join(column.replace("_", " ") for column in columns)]
        lines.append("|" + "---|" * len(columns))
        lines += [_join(f"{row[column]:,}" if column in row else "" for column in columns) for row in rows]
        lines.append("")
    return "\n".join(lines)


def _join(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _environment() -> dict[str, str]:
    """Return this process's environment with the folder of this package on the path."""
    paths = [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def measure_memory(folder: Path, model: Path, rows: int) -> dict[str, Any]:
    """Run a job of so many rows and return the peak memory of its driver, of one worker and of all together."""
    _write_rows(folder, rows)
    peaks, figures = measure_peaks(lambda: run_fake_job(folder, model, {}, unit_rows=4096))
    return {**peaks, **figures}


def measure_actors(folder: Path, model: Path, actors: int) -> dict[str, Any]:
    """Run a job on a Ray of two nodes with so many fake GPUs and return its rate."""
    _write_rows(folder, 8_000 * actors)
    with _start_nodes(actors) as address:
        arguments = {"seconds_per_prompt": SCALED_SECONDS_PER_PROMPT}
        return run_fake_job(folder, model, arguments, unit_rows=500, ray_address=address)


def measure_busy(folder: Path, model: Path, unit_rows: int, rows: int = BUSY_ROWS) -> dict[str, Any]:
    """Run a job whose engine takes as long as one on a fast GPU, and return the share of time it is at work."""
    _write_rows(folder, rows)
    arguments = {"seconds_per_prompt": LATENCY_SECONDS / LATENCY_PROMPTS}
    return run_fake_job(folder, model, arguments, unit_rows=unit_rows)


def measure_guard(folder: Path, model: Path, units: int) -> dict[str, Any]:
    """Return the time that retries and watchdog add to a unit without faults, and its share of one of 16,384 pairs."""
    import ray

    from rerank_actor.runtime.watchdog import Watchdog
    from rerank_actor.scoring.bisection import UnitSlice
    from rerank_actor.scoring.coordinator import start_coordinator

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    coordinator, watchdog = start_coordinator(None, 3), Watchdog()
    ray.get(coordinator.begin_start.remote("an actor"))
    started = time.monotonic()
    for number in range(units):
        name = f"unit-{number}"
        unit_slice = ray.get(coordinator.begin_slice.remote("an actor", name, 16_384))
        if not isinstance(unit_slice, UnitSlice):
            raise RuntimeError("the coordinator handed out nothing")
        coordinator.limit_slice.remote(name, unit_slice.ticket, 60.0)
        with watchdog.limit(60.0):
            pass
        coordinator.end_bisection.remote(name, unit_slice.ticket)
    ray.get(coordinator.drain.remote())
    seconds = (time.monotonic() - started) / units
    watchdog.close()
    ray.shutdown()
    unit_seconds = 16_384 / LATENCY_PROMPTS * LATENCY_SECONDS
    return {"ms_a_unit": round(seconds * 1000, 3), "share_of_a_unit": round(seconds / unit_seconds, 5)}


def measure_ray_checkpoint(folder: Path, model: Path, rows: int) -> dict[str, Any]:
    """Run a Ray Data pipeline with its own checkpoint of row ids twice, and return what the second run takes."""
    import ray
    from ray.data.checkpoint import CheckpointConfig

    (folder / "input").mkdir()
    size = 100_000
    for start in range(0, rows, size):
        ids = np.arange(start, min(rows, start + size))
        pq.write_table(pa.table({"id": ids, "value": ids}), folder / "input" / f"{start:012d}.parquet")

    def run(number: int) -> dict[str, Any]:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.checkpoint_config = CheckpointConfig(
                id_column="id", checkpoint_path=str(folder / "checkpoint"), delete_checkpoint_on_success=False
            )
            with Meter() as meter:
                started = time.monotonic()
                data = ray.data.read_parquet(str(folder / "input")).map_batches(lambda batch: batch)
                data.write_parquet(str(folder / f"output-{number}"))
                seconds = time.monotonic() - started
            return {"seconds": round(seconds, 2), "all_mib": meter.peak_bytes >> 20}
        finally:
            ray.shutdown()

    first, second = run(0), run(1)
    return {**second, "first_seconds": first["seconds"], "first_all_mib": first["all_mib"]}


def _write_rows(folder: Path, rows: int) -> None:
    """Write so many pairs as shards, the same some thousands again and again."""
    workload = make_workload("short", min(rows, 20_000), make_tokenizer())
    (folder / "input").mkdir()
    size = min(rows, 50_000)
    for number in range(-(-rows // size)):
        wanted = np.arange(number * size, min(rows, (number + 1) * size)) % len(workload)
        table = pa.table({"query": workload.queries, "document": workload.documents}).take(wanted)
        pq.write_table(table, folder / "input" / f"pairs-{number:05d}.parquet", row_group_size=16_384)


@contextlib.contextmanager
def _start_nodes(num_gpus: int) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "num_gpus": 0, "node_ip_address": HOST}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    try:
        for share in (num_gpus - num_gpus // 2, num_gpus // 2):
            if share:
                cluster.add_node(num_cpus=share + 1, num_gpus=share, node_ip_address=HOST)
        yield str(cluster.address)
    finally:
        cluster.shutdown()


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "memory": measure_memory,
    "actors": measure_actors,
    "busy": measure_busy,
    "guard": measure_guard,
    "resume": measure_resume,
    "schedule": measure_schedule,
    "ray_checkpoint": measure_ray_checkpoint,
    "join": measure_join,
    "dedupe": measure_dedupe,
    "bitext": measure_bitext,
}


def _main(name: str, setting: str, folder: str, model: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not belong to the answer
    measure = MEASUREMENTS[name]
    answers.write(json.dumps(measure(Path(folder), Path(model), **json.loads(setting))))
    answers.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
