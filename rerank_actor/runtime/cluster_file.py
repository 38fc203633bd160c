"""The files of `cluster/` and their like, checked before anything is paid for.

Takes a file for KubeRay (a RayJob or RayCluster, alone or in a List) or for Ray's cluster launcher, gives what it sets
up, or says what is wrong: a value that is still to be set, a field that nobody reads, groups that do not fit the job.
The launcher's files are held against Ray's own schema. Nothing is asked of any cluster.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rerank_actor.errors import JobError
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job, parse_job_file
from rerank_actor.runtime.kuberay import NodeGroup, check_kuberay
from rerank_actor.runtime.pool import Node, join_gpus

PLACEHOLDER = "REPLACE-ME"
JOB_KEY = "job.yaml"  # of a ConfigMap


@dataclass(frozen=True)
class ClusterFile:
    """What a file sets up."""

    kind: str
    groups: tuple[NodeGroup, ...]
    job: ScoreJob | None
    command: str


def check_cluster_file(path: str) -> ClusterFile:
    """Check a file and return the node groups and the job that it sets up.

    Raises:
        JobError: a value is still to be set, or the file does not fit KubeRay, Ray's launcher or the job that it holds.
    """
    try:
        text = Path(path).read_text()
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise JobError(f"{path}: not a YAML file ({str(error).splitlines()[0]})") from None
    _refuse_placeholders(path, text)
    if len(documents) == 1 and isinstance(documents[0], dict) and "provider" in documents[0]:
        return _check_launcher(path, documents[0])
    return _check_kuberay(path, documents)


def _refuse_placeholders(path: str, text: str) -> None:
    lines = [number for number, line in enumerate(text.splitlines(), 1) if PLACEHOLDER in line.partition(" #")[0]]
    if lines:
        where = f"line {lines[0]}" if len(lines) == 1 else f"lines {', '.join(map(str, lines))}"
        raise JobError(f"{path}: {PLACEHOLDER} still stands on {where}; put your own values there")


def _check_launcher(path: str, config: dict[str, Any]) -> ClusterFile:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    try:
        jsonschema.validate(config, schema)
    except jsonschema.ValidationError as error:
        where = ".".join(map(str, error.absolute_path)) or "the top"
        raise JobError(
            f"{path}: Ray's cluster launcher refuses it at {where} ({error.message.splitlines()[0]})"
        ) from None
    types: dict[str, Any] = config.get("available_node_types", {})
    head = config.get("head_node_type")
    if head not in types:
        raise JobError(
            f"{path}: head_node_type is {head!r}, which is none of available_node_types ({', '.join(types)})"
        )
    limit = int(config.get("max_workers", 0))
    groups = tuple(
        NodeGroup(
            name,
            int(node.get("min_workers", 0)),
            min(limit, int(node.get("max_workers", 0))),
            float(node["resources"].get("CPU", 0)),
            float(node["resources"].get("GPU", 0)),
        )
        for name, node in types.items()
        if name != head
    )
    _require_both(path, groups)
    return ClusterFile("cluster launcher", groups, None, f"ray up {path}")


def _check_kuberay(path: str, documents: list[Any]) -> ClusterFile:
    items = [item for document in documents for item in _list_items(document)]
    clusters = [item for item in items if item.get("kind") in ("RayJob", "RayCluster")]
    if len(clusters) != 1:
        raise JobError(
            f"{path}: expected one RayJob or RayCluster, or a file of Ray's cluster launcher; found {len(clusters)}"
        )
    (item,) = clusters
    groups = check_kuberay(path, item)
    _require_both(path, groups)
    job = _find_job(path, items)
    if job is not None:
        _check_room(path, groups, job)
    return ClusterFile(str(item["kind"]), groups, job, f"kubectl apply -f {path}")


def _list_items(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        yield from document.get("items", []) if document.get("kind") == "List" else [document]


def _require_both(path: str, groups: tuple[NodeGroup, ...]) -> None:
    if not any(group.most * group.num_gpus for group in groups):
        raise JobError(f"{path}: no group may have a node with a GPU; engines would compute on CPUs")
    if not any(group.least * group.num_cpus for group in groups):
        raise JobError(f"{path}: no group keeps a node with a CPU, so that nothing would be read; let one have a node")


def _find_job(path: str, items: list[dict[str, Any]]) -> ScoreJob | None:
    """Return the scoring job of the file's ConfigMap, checked as `jobs.score` would."""
    for item in items:
        text = (item.get("data") or {}).get(JOB_KEY) if item.get("kind") == "ConfigMap" else None
        if text is not None:
            where = f"{path}: {JOB_KEY}"
            return check_job(ScoreJob, parse_job_file(text, where, ScoreJob), where)
    return None


def _check_room(path: str, groups: tuple[NodeGroup, ...], job: ScoreJob) -> None:
    if not job.gpus_per_actor:
        raise JobError(
            f"{path}: {JOB_KEY}: say `gpus_per_actor: 1`; where no GPU is up yet, the job cannot know of them"
        )
    least, most = job.actor_range or (0, 0)
    if least == most:
        raise JobError(f"{path}: {JOB_KEY}: say `actors: MIN:MAX`, so that the pool grows as nodes come")
    gpus = join_gpus(job.gpus_per_actor, job.group_size)
    room = sum(group.most * Node(group.num_cpus, group.num_gpus).count_fitting(gpus) for group in groups)
    if most > room:
        raise JobError(
            f"{path}: {JOB_KEY}: actors: {job.actors} wants {most} actors with {gpus:g} GPUs each, but all groups together "
            f"hold {room}; lower it or raise maxReplicas"
        )
