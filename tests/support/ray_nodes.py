"""A Ray of several nodes on this machine: whose nodes and workers can be killed or frozen, or as `ray start` makes it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HOST = "127.0.0.2"  # Ray puts the machine's outer address in the place of 127.0.0.1
BIN = Path(sys.executable).parent
HEALTH = {  # so that a dead node is found in seconds
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 4,
}
CONNECTION = {  # the same for what waits for an answer of a frozen process
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}


def list_processes() -> dict[int, tuple[int, str]]:
    """Return parent and title of each process of this machine that has not ended."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if fields[0] != "Z":
                    found[int(entry.name)] = int(fields[1]), title
    return found


def find_below(root: int) -> dict[int, str]:
    """Return the titles of the processes that a process started, directly or not."""
    processes, found, queue = list_processes(), {}, [root]
    while queue:
        parent = queue.pop()
        for pid, (above, title) in processes.items():
            if above == parent and pid not in found:
                found[pid] = title
                queue.append(pid)
    return found


class RayNodes:
    """A head with one CPU and no GPU, and worker nodes, with a GPU each unless said otherwise.

    Args:
        num_nodes: worker nodes.
        num_cpus: of each of them.
    """

    def __init__(self, num_nodes: int = 2, num_cpus: int = 2) -> None:
        from ray.cluster_utils import Cluster

        self._num_cpus = num_cpus
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "num_gpus": 0, "node_ip_address": HOST, "_system_config": HEALTH},
        )
        self.address = str(self._cluster.address)
        self.workers: list[Any] = []
        self.frozen: list[list[int]] = []
        for _ in range(num_nodes):
            self.add()

    def add(self, num_cpus: int | None = None, num_gpus: int = 1) -> None:
        """Add a worker node; its GPUs are a number that Ray believes in."""
        cpus = self._num_cpus if num_cpus is None else num_cpus
        self.workers.append(self._cluster.add_node(num_cpus=cpus, num_gpus=num_gpus, node_ip_address=HOST))

    def find_workers(self, *titles: str) -> list[int]:
        """Return the worker processes of the nodes that are not frozen whose title holds one of some words."""
        found: dict[int, str] = {}
        for node in [self._cluster.head_node, *self.workers]:
            found |= find_below(_get_raylet(node))
        return sorted(
            pid for pid, title in found.items() if title.startswith("ray::") and any(t in title for t in titles)
        )

    def kill(self, index: int = 0) -> None:
        """Kill a worker node, its raylet first, as when a machine is gone."""
        node = self.workers.pop(index)
        below = find_below(_get_raylet(node))
        for pid in [_get_raylet(node), *below]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def freeze(self, index: int = 0) -> None:
        """Stop all processes of a worker node without ending them."""
        node = self.workers.pop(index)
        raylet = _get_raylet(node)
        pids = [raylet, *find_below(raylet)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        self.frozen.append(pids)

    def close(self) -> None:
        """End everything."""
        for pids in self.frozen:
            for pid in reversed(pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._cluster.shutdown()


def _get_raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@contextlib.contextmanager
def ray_nodes(num_nodes: int = 2, num_cpus: int = 2) -> Iterator[RayNodes]:
    """Start the nodes, and end them whatever happens."""
    before = dict(os.environ)
    os.environ.update(CONNECTION)
    nodes = RayNodes(num_nodes, num_cpus)
    try:
        yield nodes
    finally:
        nodes.close()
        os.environ.clear()
        os.environ.update(before)


def find_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def ray_starts(environment: dict[str, str]) -> Iterator[tuple[Path, Callable[..., Path]]]:
    """Give a folder and a function that runs `ray start` as on a machine of its own and returns its log.

    All that was started is killed at the end.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short, because Ray makes sockets in it
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> Path:
        command = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={HOST}", *arguments]
        command += ["--dashboard-agent-listen-port=0", "--disable-usage-stats"]
        with (folder / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
        return folder / f"{name}.log"

    try:
        yield folder, start
    finally:
        for pid in [pid for process in started for pid in (process.pid, *find_below(process.pid))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in started:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
