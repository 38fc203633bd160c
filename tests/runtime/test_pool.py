"""How many actors a cluster holds, and what each takes: by number, and on a Ray of several nodes with fake GPUs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import ROOT, read_output, run_command, wait_until
from ray_nodes import HOST, RayNodes, find_port, ray_nodes, ray_starts

from rerank_actor import Reranker
from rerank_actor.errors import JobError
from rerank_actor.runtime.pool import ActorPool, Node, plan_pool

WAIT_SECONDS = 300
HEAD, BIG = Node(4, 0), Node(32, 8)


def plan(*nodes: Node, actors: tuple[int, int] | None = None, gpus: float | None = None, tp: int = 1) -> ActorPool:
    return plan_pool(nodes, actors, gpus, tp, num_units=1000)


@pytest.mark.parametrize(
    ("nodes", "gpus", "tp", "fitting"),
    [
        ([HEAD, BIG], None, 1, 8),
        ([HEAD, BIG, Node(8, 1)], None, 1, 9),
        ([HEAD, Node(8, 1), Node(8, 1)], 0.25, 1, 8),
        ([HEAD, BIG], 0.1, 1, 80),
        ([HEAD, Node(16, 2)], 0.4, 1, 4),  # two to a GPU, not five to two GPUs
        ([HEAD, Node(16, 3), Node(16, 3)], None, 2, 2),  # one group to a node
        ([HEAD, BIG, Node(8, 1)], None, 4, 2),
        ([HEAD, BIG], 2, 1, 4),
    ],
)
def test_actors_are_counted_node_by_node(nodes: list[Node], gpus: float | None, tp: int, fitting: int) -> None:
    pool = plan(*nodes, gpus=gpus, tp=tp)
    assert (pool.least, pool.most, pool.initial, pool.fitting) == (fitting,) * 4


def test_actors_without_gpus_are_one_that_leaves_cores_to_the_rest() -> None:
    assert plan(Node(8, 0)) == ActorPool(1, 1, 1, 5.0, 0.0)


def test_range_starts_with_what_fits_and_may_grow() -> None:
    pool = plan(HEAD, Node(8, 2), actors=(1, 64))
    assert (pool.least, pool.initial, pool.most) == (1, 2, 64)
    assert plan(HEAD, BIG, actors=(1, 4)).initial == 4


def test_range_on_a_cluster_that_is_still_without_gpus_waits_for_them() -> None:
    pool = plan(HEAD, actors=(2, 64), gpus=1)
    assert (pool.least, pool.initial, pool.most, pool.num_gpus, pool.fitting) == (2, 2, 64, 1.0, 0)


def test_actors_beyond_the_units_are_not_started() -> None:
    pool = plan_pool([HEAD, BIG], (4, 8), None, 1, num_units=3)
    assert (pool.least, pool.initial, pool.most) == (3, 3, 3)


@pytest.mark.parametrize(
    ("nodes", "settings", "words"),
    [
        ([HEAD, BIG], {"actors": (9, 9)}, "which holds 8"),
        ([HEAD], {"gpus": 1}, "0 GPUs"),
        ([HEAD, Node(8, 1), Node(8, 1)], {"tp": 2}, r"2 GPUs on 2 nodes \(1, 1\)"),
        ([HEAD, BIG], {"gpus": 1.5}, "--gpus-per-actor 1.5"),
    ],
)
def test_pool_that_cannot_be_is_refused_with_what_there_is(
    nodes: list[Node], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(JobError, match=words):
        plan(*nodes, **settings)


@pytest.mark.parametrize("nodes", [[Node(1, 1)], [Node(2, 2)], [Node(4, 4)], [HEAD, Node(2, 4)], [Node(8, 1)]])
def test_actors_leave_cpus_to_reading_and_writing_and_each_finds_its_own(nodes: list[Node]) -> None:
    pool = plan(*nodes)
    cpus = sum(node.num_cpus for node in nodes)
    assert 0 <= pool.num_cpus <= 1
    assert cpus - pool.least * pool.num_cpus >= min(2, cpus) - 1e-9
    assert all(node.count_fitting(1) * pool.num_cpus <= node.num_cpus for node in nodes)
    assert pool.num_cpus == 1 or cpus < pool.least + 2 or any(node.num_cpus < node.num_gpus for node in nodes)


# On a Ray of several nodes


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head with a CPU, a node with a CPU and two GPUs, a node with two CPUs and none, one with two CPUs and a GPU."""
    with ray_nodes(num_nodes=0) as found:
        found.add(num_cpus=1, num_gpus=2)
        found.add(num_cpus=2, num_gpus=0)
        found.add(num_cpus=2, num_gpus=1)
        yield found


def write_pairs(folder: Path, num_rows: int) -> tuple[Path, list[tuple[str, str]]]:
    """Write a shard of pairs."""
    shard, pairs = folder / "pairs.parquet", [(f"q {i // 4}", f"d {i}") for i in range(num_rows)]
    pq.write_table(pa.table({"query": [q for q, _ in pairs], "document": [d for _, d in pairs]}), shard)
    return shard, pairs


def check_scores(output: Path, pairs: list[tuple[str, str]]) -> None:
    """Check that an output holds all pairs in their order, with the scores of one process alone."""
    table = read_output(output)
    assert table["document"].to_pylist() == [document for _, document in pairs]
    assert table["logit"].to_pylist() == Reranker(engine="fake").logits(pairs).tolist()


@pytest.mark.parametrize(
    ("settings", "actors"),
    [
        ([], 3),  # each GPU has its engine though two of them share one CPU
        (["--gpus-per-actor", 0.5], 6),
        (["--tensor-parallel-size", 2], 1),  # the two GPUs of one node, not one of each
    ],
    ids=["a GPU each", "half a GPU each", "two GPUs each"],
)
def test_gpus_of_unequal_nodes_are_all_used_and_reading_goes_on(
    tmp_path: Path, nodes: RayNodes, settings: list[object], actors: int
) -> None:
    shard, pairs = write_pairs(tmp_path, 160)
    output, meeting = tmp_path / "output", tmp_path / "meeting"
    meeting.mkdir()
    engine = {"seconds_per_prompt": 0.02, "meet": [str(meeting), actors]}  # a slow start is no missing actor
    flags = ["--input", shard, "--output", output, "--engine", "fake", "--unit-rows", 4, *settings]
    flags += ["--engine-args", json.dumps(engine), "--ray-address", nodes.address]
    found = run_command("score", *flags)  # in a process of its own: this one may be connected to another Ray
    assert found.returncode == 0, found.stderr
    manifest = json.loads((output / "_job/manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["runs"][-1]["actors"] == actors
    check_scores(output, pairs)


def test_range_of_actors_goes_from_no_gpu_to_those_that_the_autoscaler_brings(tmp_path: Path) -> None:
    """Ray's own autoscaler, whose provider makes nodes of this machine; it keeps one for reading."""
    from ray.autoscaler._private.fake_multi_node import node_provider as fake

    address, output, log = f"{HOST}:{find_port()}", tmp_path / "output", tmp_path / "log"
    empty_lists = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"]
    empty_lists += ["head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"]
    size = {"object_store_memory": 200_000_000}
    config: dict[str, Any] = {
        "cluster_name": "fake",
        "max_workers": 8,
        "upscaling_speed": 4.0,
        "provider": {
            "type": "external",
            "module": f"{fake.__name__}.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": fake.FAKE_HEAD_NODE_ID,
            "gcs_address": address,
        },
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in empty_lists},
        "head_node_type": fake.FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            fake.FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 2, **size}, "node_config": {}, "min_workers": 1, "max_workers": 1},
            "gpu": {"resources": {"CPU": 1, "GPU": 1, **size}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
    }
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    of_the_head = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": fake.FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": fake.FAKE_HEAD_NODE_ID,
    }
    shard, pairs = write_pairs(tmp_path, 300)
    flags = ["--input", shard, "--output", output, "--engine", "fake", "--unit-rows", 4, "--gpus-per-actor", 1]
    flags += ["--actors", "1:2", "--engine-args", json.dumps({"seconds_per_prompt": 0.2}), "--ray-address", address]
    with ray_starts(environment | of_the_head) as (folder, start):
        head = [
            "--head",
            f"--port={address.rpartition(':')[2]}",
            "--num-cpus=0",
            "--num-gpus=0",
            f"--temp-dir={folder}",
        ]
        head += ["--include-dashboard=false", "--object-store-memory=200000000"]
        for name in ("head", "head again"):  # a start of Ray gives up after half a minute on a busy machine
            said = start(name, *head, f"--autoscaling-config={tmp_path / 'cluster.yaml'}")
            wait_until(lambda log=said: re.search("Ray runtime started|Traceback", log.read_text()), WAIT_SECONDS)
            if "Ray runtime started" in said.read_text():
                break
        assert "Ray runtime started" in said.read_text(), said.read_text()
        with log.open("wb") as words:
            command = [sys.executable, "-m", "jobs.score", *map(str, flags)]
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=words, stderr=words, timeout=WAIT_SECONDS
            ).returncode
    assert code == 0, log.read_text()
    assert "GPUs for 0 of 1 actor(s) now; waiting for nodes" in log.read_text()
    assert len(json.loads((output / "_job/manifest.json").read_text())["engines"]) == 2
    check_scores(output, pairs)
