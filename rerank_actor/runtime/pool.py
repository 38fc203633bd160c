"""The pool: how many actors a cluster holds, and what each takes of it, so that no stage takes another's resources.

Takes what the job asks for and the nodes there are, gives an `ActorPool`. Counts node by node, because a GPU that is
shared, and a group of GPUs that shares a model, are each on one node. Knows nothing of units or engines. Ray does not
say what its autoscaler could add, so a range of actors is taken at its word.
"""

import contextlib
import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from rerank_actor.errors import JobError

ROUNDING = 1e-6  # 1 / 0.1 and its kind are not exact
OTHER_CPUS = 2.0  # kept from actors with GPUs: one to read, one to write
ACCELERATOR = "accelerator_type:"  # of a node's resources
ENGINE_CPUS_KEPT = 3.0  # kept from engines that compute on CPUs: the same, and one for the driver and Ray


@dataclass(frozen=True)
class Node:
    """What a node of the cluster has in all."""

    num_cpus: float
    num_gpus: float

    def count_fitting(self, gpus_per_actor: float) -> int:
        """Return how many actors the node's GPUs hold."""
        if gpus_per_actor >= 1:
            return int(self.num_gpus / gpus_per_actor + ROUNDING)
        return int(self.num_gpus) * int(1 / gpus_per_actor + ROUNDING)


@dataclass(frozen=True)
class ActorPool:
    """How many actors there are and what each takes of the cluster.

    Attributes:
        least, most: between which Ray Data may go.
        initial: to start with; as many as fit now.
        num_cpus, num_gpus: of each actor.
        fitting: for how many the cluster has GPUs now; None where actors take none.
    """

    least: int
    most: int
    initial: int
    num_cpus: float
    num_gpus: float
    fitting: int | None = None


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker of Ray's is: host, process, kind of GPU (empty without), and the file that Ray writes its words to."""

    host: str
    pid: int
    gpu: str
    log: str

    @property
    def log_words(self) -> str:
        """Where to look, as the end of a sentence; nothing where there is no such file."""
        return f"; its log: {self.log} on {self.host}" if self.log else ""


def find_place() -> WorkerPlace:
    """Return where this worker is."""
    import ray

    context, log, gpu = ray.get_runtime_context(), "", ""
    with contextlib.suppress(OSError):  # of standard error; there are systems without /proc
        log = os.readlink("/proc/self/fd/2")
    if context.get_accelerator_ids().get("GPU"):
        own = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())  # type: ignore[no-untyped-call]
        names = [name for node in own for name in node["Resources"] if name.startswith(ACCELERATOR)]
        gpu = ", ".join(name.removeprefix(ACCELERATOR) for name in names) or "GPU"
    return WorkerPlace(socket.gethostname(), os.getpid(), gpu, log if log.startswith("/") else "")


def join_gpus(num_gpus: float, group_size: int) -> float:
    """Return the GPUs of an actor that was to have so many, and whose engine is spread over a group; 0 stays 0."""
    return float(max(num_gpus, group_size)) if num_gpus and group_size > 1 else num_gpus


def list_nodes() -> list[Node]:
    """Return the nodes of the cluster that Ray is connected to."""
    import ray

    return [
        Node(float(node["Resources"].get("CPU", 0)), float(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def plan_pool(
    nodes: Sequence[Node],
    actor_range: tuple[int, int] | None,
    gpus_per_actor: float | None,
    group_size: int,
    num_units: int,
) -> ActorPool:
    """Return how many actors to run on these nodes, and what each takes.

    Args:
        nodes: those there are now.
        actor_range: least and most actors; None for as many as there are GPUs, one without.
        gpus_per_actor: None for one where there are GPUs.
        group_size: GPUs of one node that an engine is spread over.
        num_units: left to score; an actor without a unit would start its engine for nothing.

    Raises:
        JobError: the nodes do not hold the least number of actors, and the job does not let the cluster grow.
    """
    num_gpus = _choose_gpus_per_actor(nodes, gpus_per_actor, group_size)
    if not num_gpus:
        return _plan_without_gpus(sum(node.num_cpus for node in nodes), actor_range, num_units)
    fitting = sum(node.count_fitting(num_gpus) for node in nodes)
    least, most = actor_range or (max(1, fitting), max(1, fitting))
    may_grow = least < most
    if fitting < least and not may_grow:
        raise JobError(
            f"{least} actors with {num_gpus:g} GPUs each do not fit a cluster with {_describe_gpus(nodes)}, which holds "
            f"{fitting}; lower --actors, --gpus-per-actor or --tensor-parallel-size, add nodes, or give --actors MIN:MAX "
            "where the cluster grows by itself"
        )
    most = max(1, min(most, num_units))
    least = min(least, most)
    initial = min(max(fitting, least), most)
    return ActorPool(least, most, initial, _share_cpus(nodes, num_gpus, most), num_gpus, fitting)


def _choose_gpus_per_actor(nodes: Sequence[Node], wanted: float | None, group_size: int) -> float:
    num_gpus = join_gpus(wanted if wanted is not None else float(any(node.num_gpus for node in nodes)), group_size)
    if num_gpus > 1 and num_gpus != int(num_gpus):
        raise JobError(
            f"--gpus-per-actor {num_gpus:g}: above 1, GPUs are not shared; give a whole number, or one below 1"
        )
    return num_gpus


def _share_cpus(nodes: Sequence[Node], num_gpus: float, most: int) -> float:
    """Return the CPUs of an actor with GPUs: one, less where that would leave none to reading and writing.

    Its own CPU work is small, and an actor that finds no free CPU beside a free GPU would wait for ever.
    """
    holding = [(node, count) for node in nodes if (count := node.count_fitting(num_gpus))]
    on_node = min((node.num_cpus / count for node, count in holding), default=num_gpus)
    spare = max(0.0, sum(node.num_cpus for node in nodes) - OTHER_CPUS)
    in_all = spare / max(1, min(most, sum(count for _, count in holding)))
    return math.floor(min(1.0, on_node, in_all) * 100) / 100


def _plan_without_gpus(cpus: float, actor_range: tuple[int, int] | None, num_units: int) -> ActorPool:
    """Return a pool whose engines compute on CPUs, with a thread for each of an actor's.

    A core is left to the rest: a thread that has to wait for its core holds up all others.
    """
    least, most = actor_range or (1, 1)
    if least > max(1, cpus - 1):
        raise JobError(
            f"{least} actors do not fit a cluster with {cpus:g} CPUs, one of which reads and writes; lower --actors"
        )
    most = max(1, min(most, num_units))
    least = min(least, most)
    return ActorPool(least, most, least, max(1.0, math.floor((cpus - ENGINE_CPUS_KEPT) / most)), 0.0)


def _describe_gpus(nodes: Sequence[Node]) -> str:
    with_gpus = [f"{node.num_gpus:g}" for node in nodes if node.num_gpus]
    if not with_gpus:
        return "0 GPUs"
    return f"{sum(node.num_gpus for node in nodes):g} GPUs on {len(with_gpus)} nodes ({', '.join(with_gpus[:8])})"
