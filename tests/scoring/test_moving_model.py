"""A model whose branch moves on the hub: an output goes on with the commit that it was begun with, and what changed is said."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer

ROOT = Path(__file__).parents[2]
# A process of its own, because the hub's library reads its address and its cache when it is imported.
PREPARE = """
import json, sys
from rerank_actor.job import load_job
from rerank_actor.scoring.preflight import prepare_job
class Reporter:
    def info(self, message): print(message)
job = load_job(None, json.loads(sys.argv[1]))
prepared = prepare_job(job, Reporter())
print("commit", prepared.model.revision)
if len(sys.argv) > 2:
    prepared.output.write_own("plan.bin", prepared.plan.to_bytes(prepared.settings))
    prepared.output.write_own("job.yaml", prepared.job.to_yaml().encode())
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def prepare(hub: HubServer, write_shard: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Return a function that prepares a job with a hub model, begins its output where wanted, and returns what is said."""
    shard = write_shard([{"query": "q", "document": "d"}])

    def prepare(output: str, begin: bool = False, **flags: Any) -> str:
        given = {
            "input": str(shard),
            "output": str(tmp_path / output),
            "engine": "fake",
            "model": "org/qwen3-reranker",
            **flags,
        }
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": "1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", PREPARE, json.dumps(given), *["begin"] * begin]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return prepare


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}


def test_output_goes_on_with_its_commit_and_a_new_one_says_what_changed(
    hub: HubServer, prepare: Callable[..., str], model_folder: Path
) -> None:
    files = {**read_files(model_folder), "model.safetensors": b"1"}
    first = hub.commit("org/qwen3-reranker", files)
    assert prepare("out", begin=True) == f"commit {first}\n"
    changed = {**files, "model.safetensors": b"2", "chat_template.jinja": b"x", "README.md": b"y"}
    second = hub.commit("org/qwen3-reranker", changed)
    said = (
        f"org/qwen3-reranker has moved on the hub from {first[:10]} to {second[:10]}: changed: template (chat_template.jinja), "
        "weights (model.safetensors)"
    )
    resumed = prepare("out")
    assert f"{said}; this output goes on with {first[:10]}, --overwrite takes the new one\n" in resumed
    assert f"commit {first}\n" in resumed
    assert prepare("other") == f"{said}\ncommit {second}\n"
    assert prepare("other") == f"commit {second}\n", "said once"
    hub.commit("org/qwen3-reranker", {**changed, "README.md": b"z"})
    assert "no file that can change a score is another" in prepare("other")
    assert f"commit {first}\n" in prepare("out")


def test_another_revision_or_a_fresh_start_is_not_held_to_the_commit(
    hub: HubServer, prepare: Callable[..., str], model_folder: Path
) -> None:
    files = {**read_files(model_folder), "model.safetensors": b"1"}
    first = hub.commit("org/qwen3-reranker", files)
    prepare("out", begin=True)
    second = hub.commit("org/qwen3-reranker", {**files, "model.safetensors": b"2"})
    hub.branches["org/qwen3-reranker", "next"] = second
    assert f"commit {second}\n" in prepare("out", revision="next")
    assert f"commit {second}\n" in prepare("out", overwrite=True)
    assert f"commit {first}\n" in prepare("out")
