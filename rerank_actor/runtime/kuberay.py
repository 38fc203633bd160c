"""What KubeRay reads of a RayJob or RayCluster, so that a misspelt field is found before a cluster is paid for.

Takes the object as YAML gave it, gives its groups of nodes. The fields of `ray.io/v1` are those of KubeRay 1.5 and 1.6
(https://ray-project.github.io/kuberay/reference/api/), the pod's those of Kubernetes that make sense for Ray. Knows
nothing of the job that is to run.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from rerank_actor.errors import JobError
from rerank_actor.job_file import suggest

API_VERSION = "ray.io/v1"
GPU = "nvidia.com/gpu"
NO_LIMIT = 2**31 - 1  # of maxReplicas that is not given

FIELDS = {
    "RayJob": "apiVersion kind metadata spec",
    "RayCluster": "apiVersion kind metadata spec",
    "RayJobSpec": "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec runtimeEnvYAML "
    "shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished",
    "RayClusterSpec": "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy rayVersion suspend upgradeStrategy workerGroupSpecs",
    "AuthOptions": "enableK8sTokenAuth mode secretName",
    "AutoscalerOptions": "env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext upscalingMode "
    "version volumeMounts",
    "HeadGroupSpec": "enableIngress headService labels rayStartParams resources serviceType template",
    "WorkerGroupSpec": "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts rayStartParams replicas "
    "resources scaleStrategy suspend template",
    "PodTemplate": "metadata spec",
    "PodSpec": "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy "
    "enableServiceLinks hostAliases hostIPC hostNetwork hostPID hostname imagePullSecrets initContainers nodeName "
    "nodeSelector os preemptionPolicy priority priorityClassName readinessGates resourceClaims restartPolicy "
    "runtimeClassName schedulerName schedulingGates securityContext serviceAccountName shareProcessNamespace subdomain "
    "terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes",
    "Container": "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe "
    "resources securityContext startupProbe stdin terminationMessagePath terminationMessagePolicy tty volumeDevices "
    "volumeMounts workingDir",
}


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind: how many, and what Ray is told that each has."""

    name: str
    least: int
    most: int
    num_cpus: float
    num_gpus: float


def check_kuberay(path: str, item: dict[str, Any]) -> tuple[NodeGroup, ...]:
    """Return the groups of workers of a RayJob or RayCluster.

    Raises:
        JobError: a field is unknown, missing or at odds with another.
    """
    kind = str(item["kind"])
    where = f"{path}: {kind}"
    if item.get("apiVersion") != API_VERSION:
        raise JobError(f"{where}: apiVersion is {item.get('apiVersion')!r}, expected {API_VERSION}")
    _check_fields(where, kind, item, "metadata", "spec")
    spec, where = item["spec"], f"{where}.spec"
    if kind == "RayJob":
        _check_fields(where, "RayJobSpec", spec, "entrypoint", "rayClusterSpec")
        spec, where = spec["rayClusterSpec"], f"{where}.rayClusterSpec"
    return _check_cluster(where, spec)


def _check_fields(where: str, kind: str, value: Any, *required: str) -> None:
    if not isinstance(value, dict):
        raise JobError(f"{where}: expected fields, found {type(value).__name__}")
    known = FIELDS[kind].split()
    for name in value:
        if name not in known:
            raise JobError(f"{where}: unknown field `{name}`{suggest(str(name), known)}")
    for name in required:
        if not value.get(name):
            raise JobError(f"{where}: `{name}` is missing")


def _check_cluster(where: str, spec: Any) -> tuple[NodeGroup, ...]:
    _check_fields(where, "RayClusterSpec", spec, "headGroupSpec", "rayVersion", "workerGroupSpecs")
    if spec["rayVersion"] != version("ray"):
        raise JobError(f"{where}.rayVersion: {spec['rayVersion']!r}, but this clone is locked to Ray {version('ray')}")
    _check_fields(f"{where}.authOptions", "AuthOptions", spec.get("authOptions", {}))
    _check_fields(f"{where}.autoscalerOptions", "AutoscalerOptions", spec.get("autoscalerOptions", {}))
    _check_fields(f"{where}.headGroupSpec", "HeadGroupSpec", spec["headGroupSpec"], "template")
    images = {_check_pod(f"{where}.headGroupSpec.template", spec["headGroupSpec"]["template"])["image"]}
    groups = []
    for group in spec["workerGroupSpecs"]:
        group_path = f"{where}.workerGroupSpecs[{group.get('groupName', '?')}]"
        _check_fields(group_path, "WorkerGroupSpec", group, "groupName", "template")
        container = _check_pod(f"{group_path}.template", group["template"])
        images.add(container["image"])
        groups.append(_read_group(group_path, group, container))
    if len(images) > 1:
        raise JobError(
            f"{where}: the pods have different images ({', '.join(sorted(images))}), so other versions of Ray"
        )
    return tuple(groups)


def _check_pod(where: str, template: Any) -> dict[str, Any]:
    """Return the container that Ray runs in: the first."""
    _check_fields(where, "PodTemplate", template, "spec")
    pod = template["spec"]
    _check_fields(f"{where}.spec", "PodSpec", pod, "containers")
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        container_path = f"{where}.spec.containers[{container.get('name', '?')}]"
        _check_fields(container_path, "Container", container, "name", "image", "resources")
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                raise JobError(f"{container_path}: mounts `{mount['name']}`, which is none of the pod's volumes")
    return dict(pod["containers"][0])


def _read_group(where: str, group: dict[str, Any], container: dict[str, Any]) -> NodeGroup:
    least, most = int(group.get("minReplicas", 0)), int(group.get("maxReplicas", NO_LIMIT))
    if not least <= int(group.get("replicas", least)) <= most:
        raise JobError(f"{where}: replicas is not between minReplicas ({least}) and maxReplicas ({most})")
    resources = container["resources"]
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    if str(limits.get(GPU, 0)) != str(requests.get(GPU, 0)):
        raise JobError(f"{where}: {GPU} is {requests.get(GPU, 0)} in requests and {limits.get(GPU, 0)} in limits")
    hosts = int(group.get("numOfHosts", 1))
    ray_cpus = (group.get("rayStartParams") or {}).get("num-cpus")
    cpus = _read_quantity(ray_cpus or limits.get("cpu") or requests.get("cpu") or 0)
    return NodeGroup(str(group["groupName"]), least * hosts, most * hosts, cpus, float(limits.get(GPU, 0)))


def _read_quantity(value: Any) -> float:
    text = str(value)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
