"""`ray job submit` of this folder to a head and two workers, started as on machines of a cluster, behind a token."""

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT, read_output, run_command
from ray_nodes import BIN, HOST, find_port, ray_starts

WAIT_SECONDS = 300
NUM_ROWS = 240
LARGEST_UPLOAD_KIB = 4096


@dataclass
class Cluster:
    """A Ray whose dashboard takes jobs; `environment` holds its token."""

    dashboard: str
    environment: dict[str, str]

    def ray(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `ray ARGUMENTS` as on a user's machine."""
        return subprocess.run(
            [str(BIN / "ray"), *map(str, arguments)],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )

    def command(self, name: str, *entrypoint: object) -> list[str]:
        """Return the command that submits a job of this folder."""
        submit = ["job", "submit", "--address", self.dashboard, "--submission-id", name, "--working-dir", ".", "--"]
        return [str(BIN / "ray"), *submit, *map(str, entrypoint)]

    def submit(self, name: str, *entrypoint: object) -> subprocess.CompletedProcess[str]:
        """Submit a job of this folder and follow it to its end."""
        return subprocess.run(
            self.command(name, *entrypoint),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without GPUs, and two workers with one each, in processes of their own; ended with all they started."""
    gcs, dashboard = find_port(), find_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))},
        "PATH": f"{BIN}:{os.environ['PATH']}",  # as on an image: `python` is the one with the dependencies
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    found = Cluster(f"http://{HOST}:{dashboard}", environment)
    with ray_starts(environment) as (folder, start):
        head = [f"--port={gcs}", "--num-cpus=2", "--num-gpus=0", f"--temp-dir={folder}", "--include-dashboard=true"]
        head += [f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={find_port()}"]
        log = start("head", "--head", *head)
        wait(lambda: found.ray("job", "list", "--address", found.dashboard).returncode == 0, log)
        for name in ("w0", "w1"):
            # With a folder of its own, as on a machine of its own: each node unpacks the working directory for itself.
            start(name, f"--address={HOST}:{gcs}", "--num-cpus=2", "--num-gpus=1", f"--temp-dir={folder / name}")
        yield found


def wait(condition: object, log: Path) -> None:
    """Wait until something holds; fail with what a log says where it does not come to that."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def test_stopped_and_resubmitted_job_scores_what_a_local_run_does(tmp_path: Path, cluster: Cluster) -> None:
    shard, output, log = tmp_path / "pairs.parquet", tmp_path / "output", tmp_path / "log"
    documents = [f"document {i}" for i in range(NUM_ROWS)]
    pq.write_table(pa.table({"query": [f"query {i // 4}" for i in range(NUM_ROWS)], "document": documents}), shard)
    job = ["--input", shard, "--engine", "fake", "--unit-rows", 6, "--keep-columns", "document"]
    score = ["python", "-m", "jobs.score", *job, "--output", output, "--actors", "1:2"]
    slow, quick = (["--engine-args", json.dumps({"seconds_per_prompt": seconds})] for seconds in (0.2, 0))

    refused = cluster.ray("job", "list", "--address", cluster.dashboard, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert refused.returncode != 0, "a job can be sent without the cluster's token"
    said = refused.stdout + refused.stderr
    assert "authentication" in said.lower(), said

    with log.open("w") as words:
        first = subprocess.Popen(
            cluster.command("first", *score, *slow), cwd=ROOT, env=cluster.environment, stdout=words, stderr=words
        )
    try:
        wait(lambda: len(list(output.glob("part-*"))) >= 4 or first.poll() is not None, log)
        assert first.poll() is None, log.read_text()
        stopped = cluster.ray("job", "stop", "--address", cluster.dashboard, "first")
        assert stopped.returncode == 0, stopped.stderr
        first.wait(WAIT_SECONDS)
    finally:
        first.kill()
        first.wait()
    assert f"{NUM_ROWS:,} rows of 1 shards in 40 units" in log.read_text(), "the job's log is followed"
    assert "stopped by SIGTERM" in log.read_text()
    assert json.loads((output / "_job/manifest.json").read_text())["status"] == "stopped"
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 4 <= len(before) < 40
    assert not (output / "_SUCCESS").exists()

    second = cluster.submit("second", *score, *quick)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"{len(before)} committed already" in second.stdout
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert before.items() <= after.items(), "committed parts stay as they are"

    local = run_command("score", *job, "--output", tmp_path / "local")
    assert local.returncode == 0, local.stderr
    assert read_output(output).equals(read_output(tmp_path / "local"))
    assert read_output(output)["document"].to_pylist() == documents


def test_upload_holds_the_code_and_the_lock_file_alone(cluster: Cluster) -> None:
    done = cluster.submit("look", "find", ".", "-type", "f", "-ls")
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = {
        name: int(size) for size, name in re.findall(r" (\d+) \w+ +\d+ +[\d:]+ \./(\S+)$", done.stdout, re.MULTILINE)
    }
    assert {"jobs/score.py", "rerank_actor/scoring/run.py", "rerank_actor/data/sample_pairs.jsonl"} <= sizes.keys()
    assert {name.partition("/")[0] for name in sizes if "/" in name} == {"jobs", "requirements", "rerank_actor"}
    assert [name for name in sizes if name.startswith("requirements/")] == ["requirements/gpu.lock"]
    assert sum(sizes.values()) < LARGEST_UPLOAD_KIB * 1024
