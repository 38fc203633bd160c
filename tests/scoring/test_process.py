"""The main job as a process: exit codes, signals, kill -9, what is left behind, and what must never be written down."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import ROOT, read_output, run_command, wait_until
from safetensors.torch import load_file, save_file

from rerank_actor import Reranker
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.verify import verify_output
from rerank_actor.scoring.run import run_job

NO_RAY = "127.0.0.1:1"  # a command that wanted a Ray would not find one there
SECRET = "planted-secret-0123456789"
TEXT = "confidential words"


def make_pairs(count: int, mark: str = "d") -> pa.Table:
    """Return pairs, three to a query, with a text that must not turn up elsewhere."""
    return pa.table(
        {
            "query": [f"{TEXT} of query {i // 3}" for i in range(count)],
            "document": [f"{TEXT} {mark} {i}" for i in range(count)],
        }
    )


def write(path: Path, table: pa.Table) -> Path:
    """Write a Parquet shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def list_parts(output: Path) -> dict[str, bytes]:
    """Return the bytes of the committed parts by name."""
    return {path.name: path.read_bytes() for path in sorted(output.glob("part-*.parquet"))}


def read_manifest(output: Path) -> dict[str, Any]:
    """Return the manifest."""
    return json.loads((output / "_job/manifest.json").read_text())


@dataclass(frozen=True)
class Process:
    """A process as it was seen: a later one with the same number is another."""

    pid: int
    started: str
    command: str

    @property
    def is_alive(self) -> bool:
        return read_process(self.pid) == self


def read_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on, empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def read_process(pid: int) -> Process | None:
    """Return a process, or None when there is none or it is a zombie."""
    fields = read_fields(pid)
    if not fields or fields[0] == "Z":
        return None
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    return Process(pid, fields[19], command.partition(" ")[0])


def find_descendants(pid: int) -> list[Process]:
    """Return the processes that a process started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := read_fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            queue.append(child)
            process = read_process(child)
            if process is not None:
                found.append(process)
    return found


class Running:
    """A `jobs.score` at work; what it prints goes to files."""

    def __init__(self, log: Path, *arguments: object, **environment: str) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        self.seen: set[Process] = set()
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.score", *map(str, arguments)],
                cwd=ROOT,
                stdout=out,
                stderr=err,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def look(self) -> None:
        """Take down which processes the run has started so far."""
        self.seen.update(find_descendants(self.process.pid))

    def end(self, number: int, seconds: float = 60) -> int:
        """Send a signal and wait for the end; return the exit code."""
        self.look()
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def wait_for_remains(self, seconds: float = 120) -> list[str]:
        """Return the commands of processes of this run that are still there after a while."""
        wait_until(lambda: not any(process.is_alive for process in self.seen), seconds)
        return [process.command for process in self.seen if process.is_alive]

    def clear(self) -> None:
        """End what a test left running: this process and those it was seen to have started."""
        for process in [read_process(self.process.pid), *self.seen]:
            if process is not None and process.is_alive:
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a run; whatever is left of it is ended after the tests."""
    logs = tmp_path_factory.mktemp("logs")
    started: list[Running] = []

    def begin(*arguments: object, **environment: str) -> Running:
        started.append(Running(logs / f"run-{len(started)}", *arguments, **environment))
        return started[-1]

    yield begin
    for running in started:
        running.clear()


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's session, whose logs can then be read; the path is short because Ray makes sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


# One job, ended in mid-run by SIGKILL, then by SIGTERM, then by SIGINT, then brought to its end with an actor lost.


def find_actors() -> list[Any]:
    """Return the processes below this one that own an engine."""
    return [process for process in find_descendants(os.getpid()) if "RerankActor" in process.command]


@dataclass
class Ended:
    """What a signal left behind."""

    running: Running
    code: int
    at_signal: dict[str, bytes]
    parts: dict[str, bytes]
    manifest: dict[str, Any]
    has_mark: bool
    has_lease: bool

    @property
    def err(self) -> str:
        return self.running.err


@dataclass
class Story:
    """What was seen of a job that was ended three times."""

    output: Path
    pairs: dict[str, pa.Table]
    second: subprocess.CompletedProcess[str]
    status: dict[str, Any]
    killed: Ended
    terminated: Ended
    interrupted: Ended
    stopped_status: dict[str, Any]
    final_code: int
    lost_actor: bool
    final_out: str
    final_err: str
    printed: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Running], local_ray: str, ray_folder: Path
) -> Story:
    root = tmp_path_factory.mktemp("story")
    output = root / "output"
    pairs = {str(write(root / f"input/{name}.parquet", make_pairs(160, name))): make_pairs(160, name) for name in "ab"}
    flags = ["--input", root / "input", "--output", output, "--engine", "fake", "--unit-rows", 4, "--examples", 0]
    environment = {
        "AWS_ACCESS_KEY_ID": "planted-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "RAY_TMPDIR": str(ray_folder),
    }

    def begin(seconds_per_prompt: float, *more: object) -> Running:
        before = len(list_parts(output))
        slow = ["--engine-args", json.dumps({"seconds_per_prompt": seconds_per_prompt})]
        running = start(*flags, *slow, *more, **environment)
        assert wait_until(lambda: len(list_parts(output)) >= before + 3 or running.process.poll() is not None)
        assert running.process.poll() is None, running.err
        return running

    def end(running: Running, number: int) -> Ended:
        at_signal = list_parts(output)
        time.sleep(0.2)  # a part is there a moment before its report is
        code = running.end(number)
        manifest = read_manifest(output) if (output / "_job/manifest.json").exists() else {}
        has_lease = (output / "_job/lease.json").exists()
        return Ended(
            running,
            code,
            at_signal,
            list_parts(output),
            manifest,
            (output / "_SUCCESS").exists(),
            has_lease,
        )

    running = begin(0.1)
    second = run_command("score", *flags, **environment)
    status = json.loads(run_command("status", output, "--json", **environment).stdout)
    killed = end(running, signal.SIGKILL)
    terminated = end(begin(0.05), signal.SIGTERM)
    stopped_status = json.loads(run_command("status", output, "--json", **environment).stdout)
    interrupted = end(begin(0.05, "--ray-address", local_ray), signal.SIGINT)
    earlier = {process.pid for process in find_actors()}  # of the run before, which Ray may still be ending
    running = begin(0.02, "--ray-address", local_ray)
    actors = [process for process in find_actors() if process.pid not in earlier]
    for actor in actors:
        os.kill(actor.pid, signal.SIGKILL)
    code = running.process.wait(300)
    printed = [second.stdout, second.stderr, *(ended.err for ended in (killed, terminated, interrupted))]
    return Story(
        output,
        pairs,
        second,
        status,
        killed,
        terminated,
        interrupted,
        stopped_status,
        code,
        len(actors) == 1,
        running.out,
        running.err,
        [*printed, running.out, running.err],
    )


def test_second_run_while_the_first_is_at_work_is_refused_at_once(story: Story) -> None:
    assert story.second.returncode == 3, story.second.stderr
    assert "another run is writing" in story.second.stderr


def test_status_while_a_run_is_at_work_says_how_far_and_how_fast(story: Story) -> None:
    assert story.status["state"] == "running"
    assert 3 <= story.status["committed_units"] < story.status["units"] == 80
    assert story.status["rows"] == 320
    assert story.status["rows_per_second"] > 0
    assert story.status["eta_seconds"] > 0


def test_killed_run_leaves_lease_and_no_mark(story: Story) -> None:
    assert story.killed.code == -signal.SIGKILL
    assert not story.killed.has_mark
    assert story.killed.has_lease, "the test is to show that a dead run's lease is taken over"


def test_lease_of_a_killed_run_is_taken_over_at_once(story: Story) -> None:
    assert "left a lease" not in story.terminated.err
    assert len(story.terminated.parts) > len(story.killed.parts)


@pytest.mark.parametrize(("name", "code"), [("terminated", 143), ("interrupted", 130)])
def test_signal_ends_the_run_with_its_code_and_a_truthful_manifest(story: Story, name: str, code: int) -> None:
    ended: Ended = getattr(story, name)
    assert ended.code == code
    assert ended.running.wait_for_remains() == []
    assert not ended.has_mark
    assert not ended.has_lease
    assert "Traceback" not in ended.err
    assert "stopped by SIG" in ended.err
    manifest = ended.manifest
    assert manifest["status"] == "stopped"
    assert manifest["runs"][-1]["status"] == "stopped"
    # A part or two may be there whose reports are still on their way when the manifest is written.
    assert len(ended.at_signal) - 2 <= manifest["totals"]["units"] <= len(ended.parts)
    assert manifest["totals"]["rows"] == 4 * manifest["totals"]["units"]
    assert manifest["failed_units"] == 0


def test_status_of_a_stopped_job_says_so(story: Story) -> None:
    assert story.stopped_status["state"] == "stopped"
    assert story.stopped_status["committed_units"] == len(story.terminated.parts)
    assert story.stopped_status["eta_seconds"] is None


def test_resumed_job_ends_as_if_undisturbed(story: Story) -> None:
    assert story.lost_actor, "the test is to show that a lost actor costs nothing but time"
    assert story.final_code == 0, story.final_err
    assert (story.output / "_SUCCESS").exists()
    reranker = Reranker(engine="fake")
    names = sorted(list_parts(story.output))
    assert len(names) == 80
    for uri, table in story.pairs.items():
        parts = [story.output / name for name in names]
        mine = [part for part in parts if pq.read_schema(part).metadata[b"rerank_actor.shard"].decode() == uri]
        found = pa.concat_tables([pq.read_table(part) for part in mine])
        assert found.select(["query", "document"]).equals(table)
        pairs = list(zip(table["query"].to_pylist(), table["document"].to_pylist(), strict=True))
        assert found["score"].to_pylist() == reranker.score(pairs).tolist()
        assert found["error"].null_count == 160
    assert verify_output(str(story.output)).problems == []


def test_committed_parts_are_never_touched_again(story: Story) -> None:
    final = list_parts(story.output)
    for ended in (story.killed, story.terminated, story.interrupted):
        assert {name: final[name] for name in ended.parts} == ended.parts
    assert len(story.killed.parts) < len(story.terminated.parts) < len(story.interrupted.parts) < len(final)


def test_totals_of_a_job_with_a_killed_run_are_whole(story: Story) -> None:
    manifest = read_manifest(story.output)
    rows = read_output(story.output)
    totals = manifest["totals"]
    assert manifest["status"] == "complete"
    assert (totals["units"], totals["rows"], totals["pairs"], totals["scored"]) == (80, 320, 320, 320)
    assert totals["tokens"] == sum(rows["num_tokens"].to_pylist())
    *killed, first, second, third = [run["status"] for run in manifest["runs"]]
    assert (first, second, third) == ("stopped", "stopped", "complete")
    assert killed in ([], ["running"]), "on a slow machine the killed run wrote a manifest before its end"


def test_finished_run_leaves_nothing_half_written(story: Story) -> None:
    left = [path for path in story.output.rglob("*") if path.is_file() and path.name.startswith(".")]
    assert [path.name for path in left] == [".huggingface.yaml"]
    assert not (story.output / "_job/lease.json").exists()


def test_stdout_is_the_output_alone_even_when_a_worker_dies(story: Story) -> None:
    assert story.final_out == f"{story.output}\n"


def test_no_credential_and_no_text_is_written_or_printed(story: Story, ray_folder: Path) -> None:
    own = [path for path in story.output.rglob("*") if path.is_file()]
    assert {path.name for path in own} >= {"manifest.json", "job.yaml", "plan.bin"}
    for path in own:
        assert SECRET.encode() not in path.read_bytes(), path
        if path.parent != story.output:
            assert TEXT.encode() not in path.read_bytes(), path
        elif path.suffix == ".parquet":
            metadata = pq.read_schema(path).metadata
            assert not any(TEXT.encode() in value or SECRET.encode() in value for value in metadata.values())
    for printed in story.printed:
        assert SECRET not in printed
        assert TEXT not in printed
    logs = [path for path in ray_folder.rglob("*") if path.is_file()]
    assert len(logs) > 10
    for path in logs:
        data = path.read_bytes()
        assert SECRET.encode() not in data, path
        assert TEXT.encode() not in data, path


def test_killed_run_leaves_no_process(story: Story) -> None:
    """Ray's own agents notice only after a minute that their node is gone."""
    assert story.killed.running.seen
    assert story.killed.running.wait_for_remains(100) == []


# Shorter lives.


def test_sigterm_while_ray_starts_ends_the_run_with_143(tmp_path: Path, start: Callable[..., Running]) -> None:
    write(tmp_path / "input/a.parquet", make_pairs(8))
    running = start("--input", tmp_path / "input", "--output", tmp_path / "output", "--engine", "fake")
    assert wait_until(lambda: "rows of" in running.err)
    assert wait_until(lambda: find_descendants(running.process.pid))
    assert running.end(signal.SIGTERM, 30) == 143
    assert running.wait_for_remains() == []
    assert "Traceback" not in running.err
    assert not (tmp_path / "output/_job/lease.json").exists()


def test_interrupt_twice_ends_the_run_at_once_and_the_same_command_goes_on(
    tmp_path: Path, start: Callable[..., Running], local_ray: str
) -> None:
    shard, output = write(tmp_path / "a.parquet", make_pairs(90)), tmp_path / "output"
    flags = ["--input", shard, "--output", output, "--engine", "fake", "--unit-rows", 3, "--ray-address", local_ray]
    running = start(*flags, "--engine-args", '{"seconds_per_prompt": 0.2}')
    assert wait_until(lambda: list_parts(output))
    running.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert running.end(signal.SIGINT) in (130, -signal.SIGINT)
    assert not (output / "_SUCCESS").exists()
    before = list_parts(output)
    assert run_command("score", *flags).returncode == 0
    assert before.items() <= list_parts(output).items()
    assert read_output(output)["document"].to_pylist() == make_pairs(90)["document"].to_pylist()


def test_engine_that_cannot_start_exits_2_in_one_line(tmp_path: Path, model_folder: Path, local_ray: str) -> None:
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    for weights in model.glob("*.safetensors"):
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    write(tmp_path / "input/a.parquet", make_pairs(8))
    flags = ["--input", tmp_path / "input", "--output", tmp_path / "output", "--model", model]
    found = run_command("score", *flags, "--engine", "transformers", "--ray-address", local_ray)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert found.stderr.rstrip().endswith(lines[0])
    assert "the built-in pairs all have the same logit 0" in lines[0]
    assert list_parts(tmp_path / "output") == {}


@dataclass(frozen=True)
class Finished:
    """A small job that is done."""

    folder: Path
    output: Path

    @property
    def flags(self) -> list[object]:
        return ["--engine", "fake", "--input", self.folder, "--output", self.output]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, local_ray: str) -> Finished:
    root = tmp_path_factory.mktemp("finished")
    write(root / "input/a.parquet", make_pairs(8))
    job = ScoreJob(input=[str(root / "input")], output=str(root / "output"), engine="fake")
    assert run_job(job.normalized()).status == "complete"
    return Finished(root / "input", root / "output")


def with_score_column(finished: Finished, folder: Path) -> list[object]:
    shard = write(folder / "in/a.parquet", make_pairs(2).append_column("score", pa.array([1.0, 2.0])))
    return ["--engine", "fake", "--input", shard, "--output", folder / "out"]


def with_unknown_key(finished: Finished, folder: Path) -> list[object]:
    (folder / "job.yaml").write_text("inputs: x\noutput: y\n")
    return [folder / "job.yaml"]


def with_broken_shard(finished: Finished, folder: Path) -> list[object]:
    shutil.copytree(finished.output, folder / "out")
    (folder / "broken.parquet").write_bytes(b"no Parquet")
    return ["--engine", "fake", "--output", folder / "out", "--input", finished.folder, folder / "broken.parquet"]


def with_output_below_a_file(finished: Finished, folder: Path) -> list[object]:
    (folder / "file").write_text("")
    return ["--engine", "fake", "--input", finished.folder, "--output", folder / "file/out"]


Case = tuple[int, str, Callable[[Finished, Path], list[object]]]
CASES: dict[str, Case] = {
    "everything scored": (0, "committed already", lambda finished, folder: finished.flags),
    "unreadable shard": (1, "1 units failed", with_broken_shard),
    "unknown flag": (2, r"--unit-row .*did you mean --unit-rows", lambda f, _: [*f.flags, "--unit-row", 3]),
    "unknown key": (2, r"`inputs`.*did you mean input", with_unknown_key),
    "no input": (2, "--input is missing", lambda f, folder: ["--output", folder / "out"]),
    "input not there": (
        2,
        "nothing there",
        lambda f, d: ["--engine", "fake", "--input", d / "no", "--output", d / "o"],
    ),
    "no such column": (
        2,
        "no column `text`.*`document`.*--document-column",
        lambda f, d: ["--engine", "fake", "--document-column", "text", "--input", f.folder, "--output", d / "out"],
    ),
    "reserved column": (2, "`score`.*--keep-columns", with_score_column),
    "output in the input": (2, "lies in --input", lambda f, d: [*f.flags[:4], "--output", f.folder / "out"]),
    "output below a file": (2, "file/out", with_output_below_a_file),
    "value out of range": (2, "--actors: ", lambda f, _: [*f.flags, "--actors", "4:2"]),
    "no model": (2, "no such model folder", lambda f, d: [*f.flags[2:4], "--output", d / "o", "--model", d / "none"]),
    "nothing listens": (2, "no Ray cluster at", lambda f, d: [*f.flags[:4], "--output", d / "out"]),
    "other job": (3, "refused: .*instruction", lambda f, _: [*f.flags, "--instruction", "Another task"]),
}


@pytest.mark.parametrize("name", CASES)
def test_exit_code_tells_how_it_went_without_a_ray(finished: Finished, tmp_path: Path, name: str) -> None:
    code, message, make_flags = CASES[name]
    before = list_parts(finished.output)
    flags = make_flags(finished, tmp_path)
    found = run_command("score", *flags, RAY_ADDRESS=NO_RAY)
    assert found.returncode == code, found.stderr
    assert re.search(message, found.stderr), found.stderr
    assert "Traceback" not in found.stderr
    if code in (2, 3):
        assert found.stdout == ""
        assert sum(line.startswith(("error: ", "refused: ")) for line in found.stderr.splitlines()) == 1
    assert list_parts(finished.output) == before
    assert list_parts(finished.folder) == {}


ABORTED_BY_A_LIBRARY = """
import ctypes, sys
from rerank_actor.commands.command_line import run_command
from rerank_actor.errors import OutputConflictError

def command():
    libc = ctypes.CDLL(None)
    libc.on_exit(ctypes.cast(libc.abort, ctypes.c_void_p), None)
    print("said")
    {ending}

run_command(command)
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("return 0", 0),
        ("raise OutputConflictError('another job')", 3),
        ("sys.exit(2)", 2),
        ("sys.exit()", 0),
        ("1 / 0", 1),
    ],
)
def test_exit_code_outlives_a_library_that_aborts_at_exit(ending: str, code: int) -> None:
    script = ABORTED_BY_A_LIBRARY.format(ending=ending)
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (code, "said\n"), found.stderr


def test_process_that_calls_a_command_keeps_its_own_exit_code() -> None:
    script = (
        "import sys; from rerank_actor.commands.command_line import call_command as call; sys.exit(7 + call(sys.exit))"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 7, found.stderr


@pytest.mark.parametrize("module", ["status", "verify"])
def test_status_and_verify_of_a_folder_without_a_job_exit_2(module: str, tmp_path: Path) -> None:
    found = run_command(module, tmp_path / "nothing")
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "no job has written here" in found.stderr


def test_verify_exits_0_for_a_right_output_and_1_for_a_damaged_one(finished: Finished, tmp_path: Path) -> None:
    assert run_command("verify", finished.output).returncode == 0
    output = Path(shutil.copytree(finished.output, tmp_path / "output"))
    part = next(output.glob("part-*.parquet"))
    part.unlink()
    found = run_command("verify", output)
    assert found.returncode == 1
    assert part.name in found.stdout


def test_dry_run_of_a_job_file_with_a_flag_on_top_prints_the_estimate(tmp_path: Path) -> None:
    table = make_pairs(40)
    long = pa.table({"query": ["q"] * 10, "document": ["x" * 9000] * 10})
    sizes = [
        write(tmp_path / f"input/{i}.parquet", part).stat().st_size
        for i, part in enumerate([table, long, long.slice(9)])
    ]
    job_file = tmp_path / "job.yaml"
    lines = [f"input: {tmp_path}/input", f"output: {tmp_path}/output", "engine: fake", "unit_rows: 1", "actors: 2"]
    job_file.write_text("\n".join([*lines, "pairs_per_second: 0.001"]))
    flags = ["--dry-run", "--unit-rows", 10, "--pairs-per-second", 0.01]
    found = run_command("score", job_file, *flags, RAY_ADDRESS=NO_RAY)
    assert found.returncode == 0, found.stderr
    shown = " ".join(re.sub(r"[^\w.,%/()-]+", " ", found.stdout).split())
    assert "shards 3 " in shown
    assert "units 6 " in shown
    assert "rows 51 " in shown
    assert f"bytes {sum(sizes):,} " in shown
    assert re.search(r"tokens .*8,192", shown)
    assert f"{100 * 11 / 51:.1f} %" in shown
    assert f"{51 / 0.01 / 2 / 3600:,.2f} h" in shown
    assert TEXT not in found.stdout + found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "job.yaml"]
