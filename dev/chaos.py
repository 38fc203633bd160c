"""A rehearsal of faults: one job through a seeded storm of kills, hangs, raises and S3 errors, compared with a calm run.

`make chaos` runs twenty storms and prints what was injected and what was survived, by kind.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray_nodes import CONNECTION, RayNodes, ray_nodes
from s3_server import Fault, S3Server

ROOT = Path(__file__).parent.parent
GUILTY = "\x07"
GUILTY_TOKEN = 197  # of the byte tokenizer
ROWS_PER_UNIT = 5
NUM_SHARDS = 4
MOST_RUNS = 12
STANDSTILL_SECONDS = 900.0
STRIKES = {  # from outside, in each storm
    "kill_worker": 8,
    "freeze_worker": 2,
    "kill_node": 1,
    "freeze_node": 1,
    "kill_driver": 1,
    "term_driver": 1,
}
ENGINE_KINDS = ("raise", "nan", "die", "hang", "hang_with_lock")
WORKER_TITLES = ("MapWorker", "Read", "Write", "Coordinator", "IDLE")


class Storm:
    """What happens in one storm.

    Args:
        rng: says what happens and when.
        nodes: the Ray it happens to.
        words: the log of the job, which is told what was done.

    Attributes:
        injected: what was done, by kind.
        left: what is still to be done from outside.
    """

    def __init__(self, rng: random.Random, nodes: RayNodes, words: IO[bytes]) -> None:
        self._rng, self._nodes, self._words = rng, nodes, words
        self._lock = threading.Lock()
        self.injected: Counter[str] = Counter()
        self.left = [kind for kind, count in STRIKES.items() for _ in range(count)]
        rng.shuffle(self.left)

    def strike_request(self, method: str, path: str) -> int | Fault:
        """Fail one request to S3 in thirty, in one of eight ways."""
        with self._lock:
            if self._rng.random() > 1 / 30:
                return 0
            kind = self._rng.choice(["500", "503", "403", "reset", "lost", "truncate", "stall", "slow"])
            if kind == "403" and "part-" not in path:
                return 0  # at a start it means that the job is wrong
            self._note(f"s3_{kind}")
            return int(kind) if kind.isdigit() else Fault(kind, self._rng.uniform(0.2, 2.0))  # type: ignore[arg-type]

    def strike(self, driver: "subprocess.Popen[bytes]") -> None:
        """Do the next thing to a worker, a node or the driver."""
        kind = self.left.pop()
        if kind in ("kill_worker", "freeze_worker"):
            titles = WORKER_TITLES if kind == "kill_worker" else ("MapWorker",)
            workers = self._nodes.find_workers(*titles)
            if not workers:
                self.left.insert(0, kind)
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._rng.choice(workers), signal.SIGKILL if kind == "kill_worker" else signal.SIGSTOP)
        elif kind == "kill_node":
            self._nodes.kill(self._rng.randrange(len(self._nodes.workers)))
            self._nodes.add()
        elif kind == "freeze_node":
            self._nodes.freeze(self._rng.randrange(len(self._nodes.workers)))
            self._nodes.add()
        else:
            driver.send_signal(signal.SIGKILL if kind == "kill_driver" else signal.SIGTERM)
        self._note(kind)

    def _note(self, kind: str) -> None:
        self.injected[kind] += 1
        self._words.write(f"-- {time.strftime('%X')} {kind}\n".encode())
        self._words.flush()


def make_shards(num_units: int) -> dict[str, pa.Table]:
    """Return the input; two of its rows are guilty."""
    per_shard = num_units * ROWS_PER_UNIT // NUM_SHARDS
    shards = {}
    for shard in range(NUM_SHARDS):
        ids = range(shard * per_shard, (shard + 1) * per_shard)
        marks = [GUILTY * (i in (per_shard // 2, 3 * per_shard)) for i in ids]
        shards[f"shard-{shard}.parquet"] = pa.table(
            {
                "id": list(ids),
                "query": [f"query {i // 7}" for i in ids],
                "document": [f"document {i}{mark}" for i, mark in zip(ids, marks, strict=True)],
            }
        )
    return shards


def to_bytes(table: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def read_rows(parts: list[bytes]) -> list[dict[str, Any]]:
    """Return all rows in order of their ids."""
    rows = [row for part in parts for row in pq.read_table(pa.BufferReader(part)).to_pylist()]
    return sorted(rows, key=lambda row: row["id"])


def run_calm(num_units: int, folder: Path) -> list[dict[str, Any]]:
    """Run the job without a fault and return its rows."""
    (folder / "input").mkdir()
    for name, table in make_shards(num_units).items():
        (folder / "input" / name).write_bytes(to_bytes(table))
    command = [sys.executable, "-m", "jobs.score", "--engine", "fake", "--unit-rows", str(ROWS_PER_UNIT)]
    command += ["--input", str(folder / "input"), "--output", str(folder / "output")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return read_rows([path.read_bytes() for path in (folder / "output").glob("part-*")])


def run_storm(
    seed: int, num_units: int, server: S3Server, calm: list[dict[str, Any]], log: Path
) -> tuple[Counter, Counter]:
    """Run the job through a storm; return what was injected and what its manifest says was survived.

    Raises:
        AssertionError: the output is not that of the calm run, or the job stood still.
    """
    rng = random.Random(seed)
    server.begin_test(10_000 + seed)
    for name, table in make_shards(num_units).items():
        server.put(f"input/{name}", to_bytes(table))
    faults = {kind: 0.01 for kind in ENGINE_KINDS}
    faults |= {
        "guilty_token": GUILTY_TOKEN,
        "guilty_kind": ENGINE_KINDS[seed % 3],
        "start": "die",
        "start_probability": 0.1,
    }
    faults |= {"memory_tokens": 1500 if seed % 2 else 10**9, "seed": seed}
    output = server.uri("output")
    command = [sys.executable, "-m", "jobs.score", "--engine", "fake", "--unit-rows", str(ROWS_PER_UNIT)]
    command += ["--input", server.uri("input"), "--output", output, "--actors", "2", "--stall-seconds", "4"]
    command += ["--engine-args", json.dumps({"seconds_per_prompt": 0.02, "faults": faults})]
    environment = {**os.environ, **server.environment, **CONNECTION}
    survived: Counter[str] = Counter()
    with ray_nodes() as nodes, log.open("wb") as words:
        storm = Storm(rng, nodes, words)
        server.fault = storm.strike_request
        deadline = time.monotonic() + STANDSTILL_SECONDS
        codes: list[int] = []
        while not codes or codes[-1] != 0:
            assert len(codes) < MOST_RUNS, f"seed {seed}: not complete after runs that ended with {codes}"
            driver = subprocess.Popen(
                [*command, "--ray-address", nodes.address], cwd=ROOT, env=environment, stdout=words, stderr=words
            )
            try:
                while driver.poll() is None:
                    assert time.monotonic() < deadline, f"seed {seed}: stands still; runs so far ended with {codes}"
                    time.sleep(rng.uniform(1.5, 6.0))
                    if driver.poll() is None and storm.left and is_at_work(server):
                        storm.strike(driver)
            finally:
                driver.kill()
                driver.wait()
            codes.append(driver.returncode)
            assert codes[-1] in (0, 1, 2, -9, 143, -15), f"seed {seed}: a run ended with {codes[-1]}"
        server.fault = None
    check_output(seed, server, calm)
    verified = subprocess.run(
        [sys.executable, "-m", "jobs.verify", output], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert verified.returncode == 0, f"seed {seed}: {verified.stdout}"
    manifest = json.loads(server.read("output/_job/manifest.json"))
    assert manifest["status"] == "complete", f"seed {seed}: {manifest['status']}"
    assert manifest["totals"]["rows"] == len(calm), f"seed {seed}: {manifest['totals']}"
    survived.update(manifest["faults"])
    seconds = time.monotonic() - deadline + STANDSTILL_SECONDS
    print(
        f"seed {seed}: {seconds:.0f} s, runs ended with {codes}; injected {dict(storm.injected)}; survived {dict(survived)}",
        flush=True,
    )
    return storm.injected, survived


def is_at_work(server: S3Server) -> bool:
    """Return whether the job has written a part."""
    return any(method == "PUT" and "/part-" in path for method, path in server.requests)


def check_output(seed: int, server: S3Server, calm: list[dict[str, Any]]) -> None:
    """Check that the output holds every row once, with its calm score; the guilty ones may have a reason instead."""
    rows = read_rows(list(server.read_all("output/part-").values()))
    assert [row["id"] for row in rows] == [row["id"] for row in calm], f"seed {seed}: rows lost or doubled"
    for row, expected in zip(rows, calm, strict=True):
        if GUILTY in row["document"]:
            assert row["error"] is not None and row["score"] is None, f"seed {seed}: {row}"
        else:
            assert row == expected, f"seed {seed}: {row} where the calm run has {expected}"


def main() -> None:
    """Run the storms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="storms to run, one after the other")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--units", type=int, default=200, help="units of the job")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    server = S3Server()
    started, injected, survived = time.monotonic(), Counter(), Counter()
    try:
        calm = run_calm(arguments.units, folder)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            now = run_storm(seed, arguments.units, server, calm, folder / f"storm-{seed}.log")
            injected.update(now[0])
            survived.update(now[1])
    except AssertionError as error:
        sys.exit(f"FAILED: {error}; logs in {folder}")
    finally:
        server.close()
    print(f"{arguments.seeds} storms of {arguments.units} units passed in {time.monotonic() - started:.0f} s")
    print(f"injected: {dict(sorted(injected.items()))}")
    print(f"survived, by the manifests: {dict(sorted(survived.items()))}")


if __name__ == "__main__":
    main()
