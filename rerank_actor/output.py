"""The output folder: which object is where, which units are committed, and who may write to it.

Parts lie in the folder itself; all that is the job's own lies in `_job/`, which readers of the parts skip. The listing
of the parts is the one truth about what is committed. Knows nothing of Ray or of what is in a part.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_actor import storage
from rerank_actor.errors import InputError, OutputConflictError, RerankError
from rerank_actor.plan import Plan, Unit

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 45.0


@dataclass(frozen=True)
class Output:
    """Names and contents of an output folder."""

    uri: str

    def at(self, *names: str) -> str:
        """Return the URI of something in the job's own folder."""
        return storage.join_uri(self.uri, "_job", *names)

    @property
    def success_uri(self) -> str:
        """The mark that every unit is committed."""
        return storage.join_uri(self.uri, "_SUCCESS")

    @property
    def scratch(self) -> str | None:
        """Folder for temporary files on the same file system; S3 needs none."""
        return None if storage.is_s3(self.uri) else self.at("tmp")

    def list_parts(self) -> dict[str, storage.StoredObject]:
        """Return the committed parts by file name; an empty object is none."""
        found = storage.list_objects(self.uri)
        parts = {item.uri.rpartition("/")[2]: item for item in found if item.size > 0}
        return {name: item for name, item in parts.items() if name.startswith("part-") and name.endswith(".parquet")}

    def load_plan(self) -> tuple[Plan, dict[str, Any]] | None:
        """Return the stored plan and the settings of its fingerprint, None for a new output."""
        data = storage.read_if_present(self.at("plan.parquet"))
        return Plan.from_bytes(data) if data is not None else None

    def require_plan(self) -> tuple[Plan, dict[str, Any]]:
        """Return the stored plan and the settings of its fingerprint.

        Raises:
            InputError: no job has written here.
        """
        stored = self.load_plan()
        if stored is None:
            raise InputError(
                f"{self.uri}: no job has written here (no _job/plan.parquet); check the folder", uri=self.uri
            )
        return stored

    def load_manifest(self) -> dict[str, Any]:
        """Return the manifest, empty where there is none or it is damaged."""
        data = storage.read_if_present(self.at("manifest.json"))
        try:
            found = json.loads(data) if data else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def write_own(self, name: str, data: bytes) -> None:
        """Write one of the job's own objects."""
        storage.write_bytes(self.at(name), data)

    def list_failed(self) -> list[dict[str, Any]]:
        """Return the records of failed units."""
        found = [storage.read_if_present(item.uri) for item in self._own_objects("failed")]
        return [json.loads(data) for data in found if data]

    def replace_failed(self, failed: dict[str, dict[str, Any]]) -> None:
        """Make the folder of failed units hold exactly these."""
        for item in self._own_objects("failed"):
            if item.uri.rpartition("/")[2].removesuffix(".json") not in failed:
                storage.delete_objects([item.uri])
        for name, record in failed.items():
            self.write_own(f"failed/{name}.json", json.dumps(record, indent=2).encode())

    def list_run_files(self) -> list[str]:
        """Return the URIs of the unit records of earlier runs."""
        return [item.uri for item in self._own_objects("runs")]

    def _own_objects(self, folder: str) -> list[storage.StoredObject]:
        return storage.list_objects(self.at(folder))

    def clear(self) -> None:
        """Delete everything that an earlier job left, but the lease."""
        storage.delete_objects([self.success_uri])
        storage.delete_objects([item.uri for item in self.list_parts().values()])
        for folder in ("failed", "runs", "tmp"):
            storage.delete_folder(self.at(folder))
        storage.delete_objects([self.at(name) for name in ("plan.parquet", "job.yaml", "manifest.json", "report.html")])

    def clear_scratch(self) -> None:
        """Delete what a killed run left half written."""
        if self.scratch is not None:
            storage.delete_folder(self.scratch)

    def delete_parts(self, names: list[str]) -> None:
        """Delete parts that are no longer valid."""
        storage.delete_objects([storage.join_uri(self.uri, name) for name in names])


def find_pending(plan: Plan, parts: dict[str, storage.StoredObject]) -> list[Unit]:
    """Return the units that are not committed, in the plan's order."""
    return [unit for unit in plan.units() if unit.part_name not in parts]


class Lease:
    """The right to write to an output, held by one run at a time.

    It is an object made with a put-if-absent and rewritten every few seconds. A run that finds one takes it over when
    its holder was a process of this machine that has ended, or when it has not been rewritten for a while.
    """

    def __init__(self, output: Output, run_id: str) -> None:
        self._uri = output.at("lease.json")
        self._output, self._run_id = output, run_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self, tell: Callable[[str], None]) -> None:
        """Take the lease, waiting only where the holder may be dead on another machine.

        Raises:
            OutputConflictError: another run is writing to the output.
            JobError, StorageError: the output cannot be written to.
        """
        if not storage.create_bytes(self._uri, self._record()):
            self._take_over(tell)
        self._thread.start()

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        storage.delete_objects([self._uri])

    def _record(self) -> bytes:
        return json.dumps({"run": self._run_id, **_identify_process(), "heartbeat": time.time()}).encode()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(storage.read_if_present(self._uri) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _take_over(self, tell: Callable[[str], None]) -> None:
        holder = self._read()
        if not _has_ended(holder):
            self._wait_for_silence(holder, tell)
        storage.write_bytes(self._uri, self._record())
        time.sleep(0.2 if not storage.is_s3(self._uri) else 1.0)
        if self._read().get("run") != self._run_id:
            raise self._conflict(self._read())

    def _wait_for_silence(self, holder: dict[str, Any], tell: Callable[[str], None]) -> None:
        if _is_alive_here(holder):
            raise self._conflict(holder)
        tell(
            f"another run ({holder.get('host', 'unknown host')}) left a lease; seeing for {STALE_SECONDS:.0f} s if it is alive"
        )
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1.0)
            now = self._read()
            if not now:
                return
            if now.get("heartbeat") != holder.get("heartbeat"):
                raise self._conflict(now)

    def _conflict(self, holder: dict[str, Any]) -> OutputConflictError:
        return OutputConflictError(
            f"{self._output.uri}: another run is writing there (host {holder.get('host')}, process {holder.get('pid')}); "
            "wait for it, stop it, or choose another --output",
            uri=self._output.uri,
        )

    def _keep(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                storage.write_bytes(self._uri, self._record())
            except RerankError:
                continue


def _identify_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _started(pid: int) -> str:
    """Return when a process of this machine started, in clock ticks since boot; empty when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _is_here(holder: dict[str, Any]) -> bool:
    return bool(holder.get("boot")) and holder["boot"] == _boot_id() and holder.get("host") == socket.gethostname()


def _is_alive_here(holder: dict[str, Any]) -> bool:
    return _is_here(holder) and _started(int(holder["pid"])) == holder.get("started")


def _has_ended(holder: dict[str, Any]) -> bool:
    return not holder or (_is_here(holder) and _started(int(holder["pid"])) != holder.get("started"))


def is_running(output: Output) -> bool:
    """Whether a run seems to be at work, from the lease and its age alone."""
    try:
        holder = json.loads(storage.read_if_present(output.at("lease.json")) or b"{}")
    except ValueError:
        return False
    if not holder or _has_ended(holder):
        return False
    return _is_alive_here(holder) or time.time() - float(holder.get("heartbeat", 0)) < STALE_SECONDS
