"""The job on a Ray of several nodes: one is killed and one freezes in the middle, and a storm of everything."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chaos import run_calm, run_storm
from commands import ROOT, read_output
from ray_nodes import CONNECTION, RayNodes, ray_nodes
from s3_server import S3Server

from rerank_actor import Reranker

NUM_ROWS = 400
WAIT_SECONDS = 300


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    """A head and two worker nodes."""
    with ray_nodes() as found:
        yield found


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_units_of_a_lost_node_are_scored_elsewhere(tmp_path: Path, nodes: RayNodes, fault: str) -> None:
    shard, output = tmp_path / "pairs.parquet", tmp_path / "output"
    pairs = [(f"q {i // 4}", f"d {i}") for i in range(NUM_ROWS)]
    pq.write_table(pa.table({"query": [query for query, _ in pairs], "document": [text for _, text in pairs]}), shard)
    flags = ["--input", shard, "--output", output, "--engine", "fake", "--unit-rows", 10, "--actors", 2]
    flags += ["--engine-args", json.dumps({"seconds_per_prompt": 0.1}), "--ray-address", nodes.address]
    log = tmp_path / "log"
    with log.open("wb") as words:
        driver = subprocess.Popen(
            [sys.executable, "-m", "jobs.score", *map(str, flags)],
            cwd=ROOT,
            env={**os.environ, **CONNECTION},
            stdout=words,
            stderr=words,
        )
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while driver.poll() is None and len(list(output.glob("part-*"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert driver.poll() is None, log.read_text()
        getattr(nodes, fault)(0)
        assert driver.wait(WAIT_SECONDS) == 0, log.read_text()
    finally:
        driver.kill()
        driver.wait()
    table = read_output(output)
    assert table["document"].to_pylist() == [text for _, text in pairs]
    assert table["logit"].to_pylist() == Reranker(engine="fake").logits(pairs).tolist()
    assert json.loads((output / "_job/manifest.json").read_text())["totals"]["rows"] == NUM_ROWS


def test_storm_leaves_the_scores_of_a_calm_run(tmp_path: Path, s3_server: S3Server) -> None:
    """As `make chaos`, of a shorter job."""
    calm = run_calm(40, tmp_path)
    injected, survived = run_storm(0, 40, s3_server, calm, tmp_path / "storm.log")
    assert injected["kill_worker"] >= 1
    assert survived.total() >= 1
