"""A rehearsal of what happens to an output: two jobs at once, neighbours, zombies, storage, a plan or a folder that is gone.

Each seed takes one fault, in turn, and a place, a local folder or S3 on this machine; the job is that of `dev/chaos.py`. When
all is over, the output must hold every row of its job once with the score of a calm run, `jobs.verify` must call it right, and
what lay beside it must be as it was. Zombies are runs on a host of another name (`unshare -u`), full disks small `tmpfs`; where
this machine allows neither, these seeds are told and passed over.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from chaos import make_shards, read_rows, to_bytes
from ray_nodes import CONNECTION, find_below, ray_nodes
from s3_server import S3Server

ROOT = Path(__file__).parent.parent
ROWS_PER_UNIT = 5
WAIT_SECONDS = 600.0
INSTRUCTIONS = ("first", "second")
NEIGHBOURS = {
    "qwen8b/part-0123456789ab-00000.parquet": b"a finished job's",
    "qwen8b/_SUCCESS": b"",
    "old/part-00000-c000.snappy.parquet": b"Spark's",
    "part-a.csv": b"a person's",
}


class Skipped(Exception):
    """This machine does not allow a fault."""


class Place:
    """Where a job writes: a folder, or a prefix of the S3 server.

    Args:
        folder: on this machine; of the input too.
        server: None for a local output.
    """

    def __init__(self, folder: Path, server: S3Server | None) -> None:
        self.folder, self.server = folder, server
        self.output = server.uri("output") if server is not None else str(folder / "output")

    def names(self) -> list[str]:
        """Return what lies in the output, relative to it."""
        if self.server is not None:
            return [key.removeprefix("output/") for key in self.server.list_keys("output/")]
        top = Path(self.output)
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())

    def parts(self) -> list[str]:
        """Return the names of the parts."""
        return [name for name in self.names() if name.startswith("part-") and name.endswith(".parquet")]

    def read(self, name: str) -> bytes:
        """Return an object of the output."""
        return self.server.read(f"output/{name}") if self.server is not None else Path(self.output, name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        """Write an object into the output."""
        if self.server is not None:
            self.server.put(f"output/{name}", data)
            return
        path = Path(self.output, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def delete(self, name: str) -> None:
        """Delete an object of the output."""
        if self.server is not None:
            self.server.client.delete_object(Bucket=self.server.bucket, Key=f"output/{name}")
        else:
            Path(self.output, name).unlink(missing_ok=True)


class Storm:
    """A seed's job at its place.

    Args:
        place: of the output.
        address: of the Ray that runs use, but for zombies.
        rng: says what happens when.
        words: file that takes what the runs print.
        calm: rows of a calm run by instruction.
    """

    def __init__(
        self, place: Place, address: str, rng: random.Random, words: IO[bytes], calm: dict[str, list[Any]]
    ) -> None:
        self.place, self.address, self.rng, self.words, self.calm = place, address, rng, words, calm
        self._runs: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, **CONNECTION}
        if place.server is not None:
            self.environment |= place.server.environment

    def start(
        self, instruction: str, *flags: str, prefix: tuple[str, ...] = (), alone: bool = False
    ) -> "subprocess.Popen[bytes]":
        """Start a run; `alone` on a Ray of its own."""
        command = [*prefix, sys.executable, "-m", "jobs.score", *make_flags(self.place, instruction), *flags]
        command += [] if alone else ["--ray-address", self.address]
        run = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=self.words, stderr=self.words)
        self._runs.append(run)
        return run

    def close(self) -> None:
        """End what still runs."""
        for run in self._runs:
            if run.poll() is None:
                send([run.pid, *find_below(run.pid)], signal.SIGKILL)
                run.wait()

    def finish(self, run: "subprocess.Popen[bytes]") -> int:
        """Return the exit code of a run.

        Raises:
            AssertionError: it does not end.
        """
        try:
            return int(run.wait(WAIT_SECONDS))
        except subprocess.TimeoutExpired:
            run.kill()
            raise AssertionError("a run stands still") from None

    def run(self, instruction: str, *flags: str) -> int:
        """Do a whole run and return its exit code."""
        return self.finish(self.start(instruction, *flags))

    def wait_for_parts(self, run: "subprocess.Popen[bytes]", count: int) -> None:
        """Wait until a run has committed some parts or has ended."""
        deadline = time.monotonic() + WAIT_SECONDS
        while run.poll() is None and len(self.place.parts()) < count:
            assert time.monotonic() < deadline, "a run commits nothing"
            time.sleep(0.05)

    def check(self, instruction: str) -> None:
        """Check that the output is complete and that of a calm run.

        Raises:
            AssertionError: it is not.
        """
        rows = read_rows([self.place.read(name) for name in self.place.parts()])
        assert rows == self.calm[instruction], "rows are lost, doubled or another job's"
        assert "_SUCCESS" in self.place.names(), "there is no _SUCCESS"
        command = [sys.executable, "-m", "jobs.verify", self.place.output]
        found = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert found.returncode == 0, f"jobs.verify: {found.stdout}{found.stderr}"


def make_flags(place: Place, instruction: str) -> list[str]:
    """Return the flags of the job."""
    engine = json.dumps({"seconds_per_prompt": 0.05})
    flags = ["--engine", "fake", "--unit-rows", str(ROWS_PER_UNIT), "--actors", "2", "--engine-args", engine]
    return [*flags, "--input", str(place.folder / "input"), "--output", place.output, "--instruction", instruction]


def rehearse_two_jobs(storm: Storm) -> None:
    """Start runs of two jobs at once: one has the output, the others are refused."""
    jobs = [storm.rng.choice(INSTRUCTIONS) for _ in range(2)] + list(INSTRUCTIONS)
    storm.rng.shuffle(jobs)
    runs = []
    for job in jobs:
        runs.append((job, storm.start(job)))
        time.sleep(storm.rng.choice([0.0, 0.0, 0.3, 2.0]))
    codes = [(job, storm.finish(run)) for job, run in runs]
    winners = {job for job, code in codes if code == 0}
    assert len(winners) == 1, f"runs ended with {codes}"
    assert all(code in (0, 3) for _, code in codes), f"runs ended with {codes}"
    storm.check(winners.pop())


def rehearse_neighbours(storm: Storm) -> None:
    """Overwrite, damage and clean an output with neighbours in its folder."""
    assert storm.run("first") == 0
    for name, data in NEIGHBOURS.items():
        storm.place.put(name, data)
    part = storm.rng.choice(storm.place.parts())
    storm.place.put(part, storm.place.read(part)[:-50])
    command = [sys.executable, "-m", "jobs.verify", storm.place.output, "--delete-damaged"]
    assert subprocess.run(command, cwd=ROOT, env=storm.environment, stdout=storm.words).returncode == 1
    flags = storm.rng.choice([(), ("--overwrite",)])
    assert storm.run("second" if flags else "first", *flags) == 0
    assert {name: storm.place.read(name) for name in NEIGHBOURS} == NEIGHBOURS, "a neighbour is another"
    storm.check("second" if flags else "first")


def rehearse_zombie(storm: Storm) -> None:
    """Freeze a whole run of another host, let a run take its output over, and thaw it."""
    if subprocess.run(["unshare", "-u", "true"], capture_output=True).returncode != 0:
        raise Skipped("unshare -u")
    prefix = ("unshare", "-u", "sh", "-c", 'hostname zombie; exec "$0" "$@"')
    zombie = storm.start("first", prefix=prefix, alone=True)
    storm.wait_for_parts(zombie, storm.rng.randrange(1, 30))
    pids = [zombie.pid, *find_below(zombie.pid)]
    send(pids, signal.SIGSTOP)
    flags = storm.rng.choice([(), ("--overwrite",)])
    taker = storm.start("second" if flags else "first", *flags)
    if storm.rng.random() < 0.5:
        storm.wait_for_parts(taker, 40 if not flags else storm.rng.randrange(1, 30))
    else:
        storm.finish(taker)
    send(pids, signal.SIGCONT)
    codes = storm.finish(taker), storm.finish(zombie)
    assert codes[0] == 0, f"runs ended with {codes}"
    storm.check("second" if flags else "first")


def rehearse_no_storage(storm: Storm) -> None:
    """Let storage refuse parts for good: the run ends soon and keeps nothing half; afterwards the same command goes on."""
    server = storm.place.server
    if server is None:
        storm.rng.choice([rehearse_full_disk, rehearse_read_only_disk])(storm)
        return
    after, status = storm.rng.randrange(0, 20), storm.rng.choice([403, 507])
    storm.environment |= {"AWS_MAX_ATTEMPTS": "2"}
    puts: list[str] = []

    def refuse(method: str, path: str) -> int:
        if method == "PUT" and "/part-" in path:
            puts.append(path)
            return status if len(set(puts)) > after else 0
        return 0

    server.fault = refuse
    code = storm.run("first")
    assert code == 1, f"the run ended with {code}"
    assert "_SUCCESS" not in storm.place.names()
    assert len(set(puts)) < 40, "the run scored on though nothing could be committed"
    server.fault = None
    assert storm.run("first") == 0
    storm.check("first")


def rehearse_full_disk(storm: Storm) -> None:
    """Fill the disk with some parts, and make room."""
    with own_disk(storm.place, "size=256k") as remount:
        code = storm.run("first")
        assert code == 1, f"the run ended with {code}"
        assert "_SUCCESS" not in storm.place.names()
        remount("size=64m")
        assert storm.run("first") == 0
        storm.check("first")


def rehearse_read_only_disk(storm: Storm) -> None:
    """Mount the disk again read-only while a run is at work, as the kernel does with one that has faults, and again."""
    with own_disk(storm.place, "size=64m") as remount:
        run = storm.start("first")
        storm.wait_for_parts(run, storm.rng.randrange(1, 25))
        remount("ro")
        before = storm.place.parts()
        code = storm.finish(run)
        assert code == 1, f"the run ended with {code}"
        assert storm.place.parts() == before
        assert storm.run("first") in (1, 2), "a run on a read-only disk did not say so"
        remount("rw")
        assert storm.run("first") == 0
        storm.check("first")


def rehearse_lost_plan(storm: Storm) -> None:
    """Delete the plan, and other files of the job, while it is at work."""
    run = storm.start("first")
    storm.wait_for_parts(run, storm.rng.randrange(1, 35))
    own = [name for name in storm.place.names() if name.startswith("_job/") and "lease" not in name]
    for name in {"_job/plan.bin", *storm.rng.sample(own, min(2, len(own)))}:
        storm.place.delete(name)
    if storm.finish(run) != 0:
        assert storm.run("first") == 0
    storm.check("first")


def rehearse_lost_folder(storm: Storm) -> None:
    """Move the output away while a run is at work, or delete all of it."""
    run = storm.start("first")
    storm.wait_for_parts(run, storm.rng.randrange(1, 35))
    if storm.place.server is None:
        Path(storm.place.output).rename(storm.place.folder / "moved")
        shutil.rmtree(storm.place.folder / "moved", ignore_errors=storm.rng.random() < 0.5)
    else:
        for name in storm.place.names():
            storm.place.delete(name)
    code = storm.finish(run)
    assert code in (0, 1, 3), f"the run ended with {code}"
    assert code == 0 or "_SUCCESS" not in storm.place.names(), "what is not complete has a _SUCCESS"
    assert code == 0 or storm.run("first") == 0
    storm.check("first")


@contextlib.contextmanager
def own_disk(place: Place, options: str) -> Iterator[Callable[[str], None]]:
    """Let the output be on a disk of its own; gives what mounts it again with other options."""
    top = Path(place.output)
    top.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(top)], capture_output=True).returncode != 0:
        raise Skipped("mount -t tmpfs")

    def remount(options: str) -> None:
        for _ in range(200):  # busy while a file is open for writing
            command = ["mount", "-o", f"remount,{options}", str(top)]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return
            time.sleep(0.02)
        raise AssertionError(f"the disk cannot be mounted with {options}")

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", str(top)], check=False)


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those of some processes that are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


FAULTS: dict[str, Callable[[Storm], None]] = {
    "two jobs": rehearse_two_jobs,
    "neighbours": rehearse_neighbours,
    "no storage": rehearse_no_storage,
    "lost plan": rehearse_lost_plan,
    "lost folder": rehearse_lost_folder,
    "zombie": rehearse_zombie,
}


def run_calm(folder: Path, instruction: str) -> list[dict[str, Any]]:
    """Return the rows of a run without a fault."""
    place = Place(folder, None)
    command = [sys.executable, "-m", "jobs.score", *make_flags(place, instruction), "--engine-args", "{}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = read_rows([place.read(name) for name in place.parts()])
    shutil.rmtree(place.output)
    return rows


def make_input(folder: Path, num_units: int) -> None:
    """Write the job's input."""
    (folder / "input").mkdir(parents=True)
    for name, table in make_shards(num_units).items():
        (folder / "input" / name).write_bytes(to_bytes(table))


def main() -> None:
    """Run the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=24, help="seeds to run, one after the other")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--units", type=int, default=40, help="units of the job")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    arguments = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="chaos-outputs-"))
    make_input(top / "calm", arguments.units)
    calm = {instruction: run_calm(top / "calm", instruction) for instruction in INSTRUCTIONS}
    names = [name for name in FAULTS if arguments.only in name]
    passed: Counter[str] = Counter()
    failed: list[str] = []
    with ray_nodes() as nodes, contextlib.closing(S3Server()) as server:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            name, is_local = names[seed % len(names)], seed // len(names) % 2 == 0
            what = f"seed {seed}: {name}, {'local' if is_local else 'S3'}"
            folder = top / str(seed)
            make_input(folder, arguments.units)
            server.begin_test(20_000 + seed)
            started = time.monotonic()
            with (folder / "log").open("wb") as words:
                place = Place(folder, None if is_local else server)
                storm = Storm(place, nodes.address, random.Random(seed), words, calm)
                try:
                    FAULTS[name](storm)
                except Skipped as reason:
                    print(f"{what}: passed over, because this machine allows no {reason}", flush=True)
                    continue
                except Exception as error:
                    failed.append(what)
                    print(f"{what}: FAILED: {type(error).__name__}: {error}; log in {folder}", flush=True)
                    continue
                finally:
                    storm.close()
            passed[name] += 1
            print(f"{what}: right after {time.monotonic() - started:.0f} s", flush=True)
    print(f"passed: {dict(passed)}; failed: {failed}; logs in {top}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
