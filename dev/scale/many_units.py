"""What units cost by their number alone: planning, scheduling and resuming, with the fake engine and units of a row.

Takes a number of units, gives seconds and memory of the driver. CPU seconds stand beside those on the clock, because
they are nearly the same on a machine that does other work too.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor.benchmark.meter import Meter, count_own_mib

ROWS_A_SHARD = 100
STEADY_FROM = 0.25
LOOK_SECONDS = 0.5


def measure_resume(folder: Path, model: Path, units: int) -> dict[str, Any]:
    """Plan a job of so many units, and run it when they are all committed; return what planning and finding out take."""
    from rerank_actor.outputs.manifest import UnitRecords
    from rerank_actor.scoring.preflight import prepare_job
    from rerank_actor.scoring.run import run_job

    job = _make_job(folder, units)
    process = psutil.Process()
    before, started = count_own_mib(process), time.monotonic()
    prepared = prepare_job(job)
    planning = {
        "plan_seconds": round(time.monotonic() - started, 2),
        "plan_added_mib": round(count_own_mib(process) - before),
    }
    plan = prepared.plan.to_bytes(prepared.settings)
    prepared.output.write_own("plan.bin", plan)
    records = UnitRecords(prepared.output, "20260101T000000-000000")
    for unit in prepared.plan.units():
        path = folder / "output" / unit.part_name
        path.write_bytes(b"-")
        mark = str(path.stat().st_mtime_ns)
        records.add(unit.name, {"rows": 1, "pairs": 1, "scored": 1, "part_bytes": 1, "part_etag": mark})
    records.flush()
    before = count_own_mib(process)
    started = time.monotonic()
    result = run_job(job)
    if result.status != "complete" or result.run["units"]:
        raise RuntimeError(f"the resume scored {result.run['units']} units")
    seconds = time.monotonic() - started
    added = round(count_own_mib(process) - before)
    return {"seconds": round(seconds, 2), "added_mib": added, **planning, "plan_kib": len(plan) >> 10}


def measure_schedule(folder: Path, model: Path, units: int, stop_after: int) -> dict[str, Any]:
    """Run a job of so many units until some are committed, and return what each costs, and the driver's memory.

    The first quarter of what is run does not count.
    """
    from rerank_actor.errors import RunInterruptedError
    from rerank_actor.scoring.run import run_job

    job = _make_job(folder, units)
    driver = psutil.Process()
    peak = 0.0

    def look() -> None:
        nonlocal peak
        peak = max(peak, count_own_mib(driver))

    started = time.monotonic()
    with (
        Meter(look) as meter,
        _stop_after(folder / "output", stop_after, stop_after < units) as seen,
        contextlib.suppress(RunInterruptedError),
    ):
        run_job(job)
    steady = [moment for moment in seen if moment[1] >= STEADY_FROM * stop_after]
    if len(steady) < 2 or steady[-1][1] == steady[0][1]:
        raise RuntimeError(f"{folder}: too few units to measure by; take more")
    (begun, parts, cpu), (ended, parts_then, cpu_then) = steady[0], steady[-1]
    done = parts_then - parts
    return {
        "first_part_seconds": round(seen[0][0] - started, 1),
        "ms_a_unit": round((ended - begun) / done * 1000, 1),
        "driver_cpu_ms_a_unit": round((cpu_then - cpu) / done * 1000, 1),
        "driver_mib": round(peak),
        "all_mib": meter.peak_bytes >> 20,
    }


@contextlib.contextmanager
def _stop_after(output: Path, wanted: int, stops: bool) -> Iterator[list[tuple[float, int, float]]]:
    """Follow how many parts there are, and stop this process's run once there are enough.

    Yields:
        A list that fills with (moment, parts, CPU seconds of this process), from the first part on.
    """
    seen: list[tuple[float, int, float]] = []
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(LOOK_SECONDS):
            parts = sum(entry.name.startswith("part-") for entry in os.scandir(output)) if output.exists() else 0
            if parts and (not seen or parts > seen[-1][1]):
                seen.append((time.monotonic(), parts, time.process_time()))
            if stops and parts >= wanted:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _make_job(folder: Path, units: int) -> Any:
    """Write so many rows as shards, and return a job with a unit for each."""
    from rerank_actor.job import ScoreJob

    (folder / "input").mkdir()
    for shard, first in enumerate(range(0, units, ROWS_A_SHARD)):
        rows = min(ROWS_A_SHARD, units - first)
        table = pa.table({"query": ["a query"] * rows, "document": [f"document {number}" for number in range(rows)]})
        pq.write_table(table, folder / "input" / f"shard-{shard:06d}.parquet")
    return ScoreJob(input=[f"{folder}/input"], output=f"{folder}/output", engine="fake", unit_rows=1).normalized()
