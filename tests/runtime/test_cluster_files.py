"""The files of `cluster/`: as they are they are refused, with values put in they fit KubeRay, Ray's launcher and the job."""

import json
import re
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from commands import ROOT, run_command
from ray.autoscaler._private.util import prepare_config, validate_config

from rerank_actor.errors import JobError
from rerank_actor.runtime.cluster_file import PLACEHOLDER, ClusterFile, check_cluster_file

FOLDER = ROOT / "cluster"
KUBERAY, LAUNCHER = ("rayjob", "raycluster"), ("aws", "gcp")


def fill(name: str, folder: Path, *changes: tuple[str, str]) -> str:
    """Write a file of `cluster/` with values put in, and with some text changed; return its path."""
    text = (FOLDER / f"{name}.yaml").read_text().replace(PLACEHOLDER, "mine")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def check(name: str, folder: Path, *changes: tuple[str, str]) -> ClusterFile:
    return check_cluster_file(fill(name, folder, *changes))


@pytest.mark.parametrize("name", [*KUBERAY, *LAUNCHER])
def test_file_with_values_still_to_be_set_is_refused_by_line(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    lines = [number for number, line in enumerate(path.read_text().splitlines(), 1) if PLACEHOLDER in line]
    with pytest.raises(JobError, match=f"on lines {', '.join(map(str, lines))}; put your own values there"):
        check_cluster_file(str(path))
    assert max(lines) <= 20, "what must be set stands at the top"


@pytest.mark.parametrize("name", [*KUBERAY, *LAUNCHER])
def test_file_with_values_has_nodes_for_reading_and_spot_gpus_from_none_up(name: str, tmp_path: Path) -> None:
    found = check(name, tmp_path)
    groups = {group.name: group for group in found.groups}
    assert list(groups) == ["cpu", "gpu-spot", "gpu-on-demand"]
    assert groups["cpu"].least == 1
    assert groups["cpu"].num_gpus == 0
    assert (groups["gpu-spot"].least, groups["gpu-spot"].most, groups["gpu-spot"].num_gpus) == (0, 16, 1)
    assert sum(group.most * group.num_gpus for group in found.groups) == 16


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_file_passes_what_ray_up_asks_of_it(name: str, tmp_path: Path) -> None:
    config = yaml.safe_load(Path(fill(name, tmp_path)).read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(config))
    start = " ".join(config["head_start_ray_commands"])
    assert "RAY_AUTH_MODE=token" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_file_has_a_safe_head_a_token_and_its_own_objects(name: str, tmp_path: Path) -> None:
    items = {item["kind"]: item for item in yaml.safe_load(Path(fill(name, tmp_path)).read_text())["items"]}
    spec = items[{"rayjob": "RayJob", "raycluster": "RayCluster"}[name]]["spec"]
    spec = spec.get("rayClusterSpec", spec)
    head = spec["headGroupSpec"]["template"]["spec"]
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"] is True
    assert head["priorityClassName"] == items["PriorityClass"]["metadata"]["name"]
    pods = [head, *(group["template"]["spec"] for group in spec["workerGroupSpecs"])]
    for pod in pods:
        assert pod["serviceAccountName"] == items["ServiceAccount"]["metadata"]["name"]
        claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert claims == [{"claimName": items["PersistentVolumeClaim"]["metadata"]["name"]}]
        (container,) = pod["containers"]
        assert container["image"] == items["ConfigMap"]["data"]["image"]


def test_rayjob_runs_the_job_that_stands_at_its_top(tmp_path: Path) -> None:
    found = check("rayjob", tmp_path)
    assert found.job is not None
    assert (found.job.input, found.job.actors, found.job.gpus_per_actor) == (["s3://mine/pairs/"], "1:16", 1)
    items = {item["kind"]: item for item in yaml.safe_load(Path(fill("rayjob", tmp_path)).read_text())["items"]}
    spec = items["RayJob"]["spec"]
    assert spec["entrypoint"] == "python -m jobs.score /job/job.yaml"
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volume = next(volume for volume in head["volumes"] if "configMap" in volume)
    assert volume["configMap"]["name"] == items["ConfigMap"]["metadata"]["name"]
    assert {"name": volume["name"], "mountPath": "/job"} in head["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("rayjob", ("backoffLimit: 2", "backofLimit: 2"), "unknown field `backofLimit` .did you mean backoffLimit"),
        ("rayjob", ("maxReplicas: 16", "maxReplica: 16"), r"\[gpu-spot\]: unknown field `maxReplica`"),
        (
            "raycluster",
            ("tolerations: &gpu", "toleration: &gpu"),
            "unknown field `toleration` .did you mean tolerations",
        ),
        ("raycluster", ("rayVersion: 2.60.0", "rayVersion: 2.40.0"), "locked to Ray"),
        ("raycluster", ("minReplicas: 1", "minReplicas: 0"), "nothing would be read"),
        ("raycluster", ("maxReplicas: 16", "maxReplicas: 0"), "no group may have a node with a GPU"),
        ("raycluster", ("volumes: [*models, *memory]", "volumes: [*models]"), "mounts `memory`"),
        ("raycluster", ('limits: {memory: 24Gi, nvidia.com/gpu: "1"}', "limits: {memory: 24Gi}"), "in requests and 0"),
        ("raycluster", ("apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1"), "expected ray.io/v1"),
        ("rayjob", ("query_column:", "query_colum:"), "unknown key `query_colum`"),
        ("rayjob", ("actors: 1:16", "actors: 1:17"), "wants 17 actors .* hold 16"),
        ("rayjob", ("actors: 1:16", "actors: 16"), "MIN:MAX"),
        ("rayjob", ("        gpus_per_actor: 1\n", ""), "gpus_per_actor: 1"),
        (
            "rayjob",
            ("gpus_per_actor: 1", "tensor_parallel_size: 2\n        gpus_per_actor: 1"),
            "2 GPUs each, .* hold 0",
        ),
        ("aws", ("max_workers: 24", "max_worker: 24"), "at the top .*max_worker"),
        ("gcp", ("resources: {CPU: 7}", "resources: {CPU: seven}"), "available_node_types.cpu.resources.CPU"),
        ("aws", ("head_node_type: head", "head_node_type: main"), "none of available_node_types"),
    ],
)
def test_mistake_in_a_file_is_named_with_its_place(
    name: str, change: tuple[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=words):
        check(name, tmp_path, change)


def test_fractions_of_gpus_make_room_for_more_actors(tmp_path: Path) -> None:
    job = ("actors: 1:16", "actors: 1:64"), ("gpus_per_actor: 1", "gpus_per_actor: 0.25")
    found = check("rayjob", tmp_path, *job)
    assert found.job is not None
    assert found.job.actors == "1:64"


def test_command_says_what_is_next_or_what_is_wrong(tmp_path: Path) -> None:
    path = fill("rayjob", tmp_path)
    found = run_command("cluster", path)
    assert (found.returncode, found.stdout) == (0, f"kubectl apply -f {path}\n")
    assert "gpu-spot: 0 to 16 nodes with 6 CPUs and 1 GPUs each" in found.stderr
    found = run_command("cluster", FOLDER / "rayjob.yaml")
    assert (found.returncode, found.stdout) == (2, "")
    assert len(found.stderr.splitlines()) == 1


def test_image_is_built_from_the_lock_file_on_the_same_ray() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    (base,) = re.findall(r"^FROM rayproject/ray:(\S+)$", text, re.MULTILINE)
    assert base.partition("-")[0] == version("ray")
    assert f"ray=={version('ray')}" in (ROOT / "requirements/gpu.lock").read_text().replace("[data,default]", "")
    copied = [name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    sources = [name for name in copied if not name.startswith("--")]
    taken = {
        line.strip("!/") for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert set(sources) == taken
    assert all((ROOT / name).exists() for name in sources)
    assert "--require-hashes" in text
