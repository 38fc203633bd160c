"""The output folder: which object is where, which units are committed, and who may write to it.

Parts lie in the folder itself; all that is the job's own lies in `_job/`, which readers of the parts skip. The listing
of the parts says what is committed, and the unit records whether a part is still as it was written. Knows nothing of
Ray or of what is in a part.
"""

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.columns import read_own_table
from rerank_actor.errors import InputError, OutputConflictError, RerankError
from rerank_actor.plan import Plan, Unit
from rerank_actor.sketch import NAMES

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 45.0
RECORD_THREADS = 16
OWN_FILES = ("plan.parquet", "job.yaml", "manifest.json", "report.html", "estimate.json")
SKETCH_COLUMNS = frozenset(f"{name}_bins" for name in NAMES)


def make_run_id() -> str:
    """Return a name for a run: the time, so that names sort as runs began, and what tells those of one second apart."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


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
        return self._load_object("manifest.json")

    def load_estimate(self) -> dict[str, Any]:
        """Return what `jobs.plan` foresaw, empty where it was not asked."""
        return self._load_object("estimate.json")

    def _load_object(self, name: str) -> dict[str, Any]:
        data = storage.read_if_present(self.at(name))
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

    def read_records(self) -> Iterator[dict[str, Any]]:
        """Yield the unit records of earlier runs without their sketches."""
        for table in self.read_record_tables(skip=SKETCH_COLUMNS):
            yield from table.to_pylist()

    def read_record_tables(self, skip: Container[str] = ()) -> Iterator[pa.Table]:
        """Yield the files of unit records; one that cannot be read is passed over."""
        with ThreadPoolExecutor(RECORD_THREADS) as pool:
            yield from pool.map(lambda item: _read_table(item.uri, skip), self._own_objects("runs"))

    def match_records(self, parts: dict[str, storage.StoredObject]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and record of each part that a record vouches for: its size and version mark are those written.

        Records of before there were marks vouch by the size alone, where no record with a mark says otherwise.
        """
        marked: set[str] = set()
        matched: set[str] = set()
        unmarked: dict[str, dict[str, Any]] = {}
        for record in self.read_records():
            name = f"part-{record.get('unit')}.parquet"
            if name not in parts or name in matched:
                continue
            same_size = record.get("part_bytes") == parts[name].size
            if not record.get("part_etag"):
                unmarked |= {name: record} if same_size else {}
                continue
            marked.add(name)
            if same_size and parts[name].etag in ("", record["part_etag"]):
                matched.add(name)
                yield name, record
        for name, record in unmarked.items():
            if name not in marked:
                yield name, record

    def _own_objects(self, folder: str) -> list[storage.StoredObject]:
        return storage.list_objects(self.at(folder))

    def clear(self) -> None:
        """Delete everything that an earlier job left, but the lease."""
        storage.delete_objects([self.success_uri])
        storage.delete_objects([item.uri for item in self.list_parts().values()])
        for folder in ("failed", "runs", "tmp", "stores", "dedupe"):
            storage.delete_folder(self.at(folder))
        storage.delete_objects([self.at(name) for name in OWN_FILES])

    def clear_scratch(self) -> None:
        """Delete what a killed run left half written."""
        if self.scratch is not None:
            storage.delete_folder(self.scratch)

    def delete_parts(self, names: list[str]) -> None:
        """Delete parts that are no longer valid."""
        storage.delete_objects([storage.join_uri(self.uri, name) for name in names])


def list_outputs(uri: str) -> list[str]:
    """Return the output folders at a place: itself, or those of the language pairs that `jobs.bitext` scored below it.

    Raises:
        JobError, StorageError: as `storage.list_objects`.
    """
    if storage.read_if_present(Output(uri).at("plan.parquet")) is not None:
        return [uri]
    candidates = storage.join_uri(uri, "_candidates") + "/"
    found = {item.uri.removeprefix(candidates).partition("/")[0] for item in storage.list_objects(candidates[:-1])}
    return [storage.join_uri(uri, name) for name in sorted(found) if name.startswith("lang_pair=")] or [uri]


def _read_table(uri: str, skip: Container[str]) -> pa.Table:
    """Return a file of unit records, empty where it is damaged or gone."""
    try:
        return read_own_table(storage.read_bytes(uri), skip)
    except (pa.ArrowException, OSError, InputError):
        return pa.table({})


def find_pending(plan: Plan, parts: dict[str, storage.StoredObject]) -> list[Unit]:
    """Return the units that are not committed, in the plan's order."""
    return [unit for unit in plan.units() if unit.part_name not in parts]


class Lease:
    """The right to write to an output, held by one run at a time.

    It is an object made with a put-if-absent and rewritten every few seconds. A run that finds one takes it over when
    its holder was a process of this machine that has ended, or when it has not been rewritten for a while. Of several
    that see the same stale lease one wins: the one that makes the claim, another put-if-absent whose name follows from
    that lease. A claim whose maker fell silent in turn is followed by the next number, never deleted under its maker.

    A holder that was silent too long (a frozen process, dead storage) may find its lease taken: it reads before it
    rewrites, and from then on `check` raises. What storage cannot rule out is a process that freezes between that read
    and its write; then the run that took over finds the lease lost, so that still one of the two goes on.

    Args:
        output: the folder.
        run_id: of the run.
        heartbeat_seconds: between two rewrites.
        stale_seconds: silence after which a lease may be taken over; well above the former.
        host: name of this machine.
    """

    def __init__(
        self,
        output: Output,
        run_id: str,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        host: str | None = None,
    ) -> None:
        self._uri = output.at("lease.json")
        self._output, self._run_id = output, run_id
        self._heartbeat_seconds, self._stale_seconds = heartbeat_seconds, stale_seconds
        self._here = _identify_process(host)
        self._taker: dict[str, Any] | None = None
        self._confirmed = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether another run has been seen to hold the lease."""
        return self._taker is not None

    def acquire(self, tell: Callable[[str], None]) -> None:
        """Take the lease, waiting only where the holder may be dead on another machine.

        Raises:
            OutputConflictError: another run is writing to the output.
            JobError, StorageError: the output cannot be written to.
        """
        if not storage.create_bytes(self._uri, self._record()):
            self._take_over(tell)
        self._confirmed = time.monotonic()
        self._thread.start()

    def check(self, *, fresh: bool = False) -> None:
        """Refuse to go on when another run has taken over, as far as the heartbeat has seen.

        Args:
            fresh: look now; for before something is written that a run which lost the lease must not write.

        Raises:
            OutputConflictError: another run took over the output.
            StorageError: a fresh look was asked for and storage does not answer.
        """
        if fresh and not self.lost:
            self._confirm()
        if self._taker is not None:
            raise OutputConflictError(
                f"{self._output.uri}: another run took over ({_name_holder(self._taker)}) while this one was silent; this "
                "one ends, and what it committed stays",
                uri=self._output.uri,
            )

    def release(self) -> None:
        """Give the lease back, if it is still this run's; where storage fails, it goes stale by itself."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        with contextlib.suppress(RerankError):
            if _parse(storage.read_if_present(self._uri)).get("run") == self._run_id:
                storage.delete_objects([self._uri])

    def _record(self) -> bytes:
        return json.dumps({"run": self._run_id, **self._here, "heartbeat": time.time()}).encode()

    def _take_over(self, tell: Callable[[str], None]) -> None:
        found = storage.read_if_present(self._uri)
        if found is not None and not _has_ended(_parse(found), self._here):
            found = self._wait_for_silence(found, tell)
        if found is not None:
            self._claim(found)
        elif not storage.create_bytes(self._uri, self._record()):
            raise self._conflict(_parse(storage.read_if_present(self._uri)))

    def _wait_for_silence(self, found: bytes, tell: Callable[[str], None]) -> bytes | None:
        """Return the lease once it has not been rewritten for a while, None when it was given back."""
        holder = _parse(found)
        if _is_alive_here(holder, self._here):
            raise self._conflict(holder)
        seconds = self._stale_seconds
        tell(f"another run ({_name_holder(holder)}) left a lease; seeing for {seconds:.0f} s if it is alive")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, seconds / 10))
            now = storage.read_if_present(self._uri)
            if now != found:
                if now is None:
                    return None
                raise self._conflict(_parse(now))
        return found

    def _claim(self, stale: bytes) -> None:
        """Put this run's lease in the place of a stale one, or find that another run was first."""
        begun = time.monotonic()
        claims = [self._claim_uri(stale, 0)]
        while not storage.create_bytes(claims[-1], self._record()):
            self._outwait_claim(claims[-1], stale)
            begun = time.monotonic()
            claims.append(self._claim_uri(stale, len(claims)))
        # Who won before this claim was made has written its lease, which is then another.
        now = storage.read_if_present(self._uri)
        if now != stale or time.monotonic() - begun > self._stale_seconds / 2:
            storage.delete_objects(claims[-1:])
            raise self._conflict(_parse(now))
        storage.write_bytes(self._uri, self._record())
        storage.delete_objects(claims)
        time.sleep(1.0 if storage.is_s3(self._uri) else 0.2)  # for storage that takes no heed of put-if-absent
        holder = _parse(storage.read_if_present(self._uri))
        if holder.get("run") != self._run_id:
            raise self._conflict(holder)

    def _claim_uri(self, stale: bytes, number: int) -> str:
        return self._output.at(f"lease-{hashlib.sha256(stale).hexdigest()[:16]}-{number}.json")

    def _outwait_claim(self, claim: str, stale: bytes) -> None:
        """Return when the maker of a claim has ended or done nothing with it for a while."""
        deadline = time.monotonic() + self._stale_seconds
        while time.monotonic() < deadline:
            maker = storage.read_if_present(claim)
            now = storage.read_if_present(self._uri)
            if maker is None or now != stale or _is_alive_here(_parse(maker), self._here):
                raise self._conflict(_parse(now))
            if _has_ended(_parse(maker), self._here):
                return
            time.sleep(min(1.0, self._stale_seconds / 10))

    def _conflict(self, holder: dict[str, Any]) -> OutputConflictError:
        return OutputConflictError(
            f"{self._output.uri}: another run is writing there ({_name_holder(holder)}); wait for it, stop it, or choose "
            "another --output",
            uri=self._output.uri,
        )

    def _keep(self) -> None:
        while not self._stop.wait(self._heartbeat_seconds):
            try:
                self._confirm()
            except RerankError:
                continue
            if self.lost:
                return

    def _confirm(self) -> None:
        """Rewrite the lease if it is still this run's."""
        with self._lock:
            found = storage.read_if_present(self._uri)
            holder = _parse(found)
            if found is None:
                # Nobody takes over before a long silence, so it was deleted by hand; after one, a taker may have ended.
                silent = time.monotonic() - self._confirmed >= self._stale_seconds
                if silent or not storage.create_bytes(self._uri, self._record()):
                    self._taker = _parse(storage.read_if_present(self._uri))
                    return
            elif holder.get("run") != self._run_id:
                self._taker = holder
                return
            elif not self._stop.is_set():
                storage.write_bytes(self._uri, self._record())
            self._confirmed = time.monotonic()


def _parse(data: bytes | None) -> dict[str, Any]:
    """Return a lease or a claim, empty where there is none or it is damaged."""
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _name_holder(holder: dict[str, Any]) -> str:
    return f"host {holder.get('host', 'unknown')}, process {holder.get('pid', 'unknown')}"


def _identify_process(host: str | None = None) -> dict[str, Any]:
    return {
        "host": host or socket.gethostname(),
        "boot": _boot_id(),
        "namespace": _pid_namespace(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _pid_namespace() -> str:
    """Return what tells process numbers of one container from those of another on the same machine."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process of this machine started, in clock ticks since boot; empty when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _is_here(holder: dict[str, Any], here: dict[str, Any]) -> bool:
    names = ("host", "boot", "namespace")
    return bool(here["boot"]) and all(holder.get(name) == here[name] for name in names)


def _is_alive_here(holder: dict[str, Any], here: dict[str, Any]) -> bool:
    return _is_here(holder, here) and _started(int(holder["pid"])) == holder.get("started")


def _has_ended(holder: dict[str, Any], here: dict[str, Any]) -> bool:
    return not holder or (_is_here(holder, here) and _started(int(holder["pid"])) != holder.get("started"))


def is_running(output: Output) -> bool:
    """Whether a run seems to be at work, from the lease and its age alone."""
    holder, here = _parse(storage.read_if_present(output.at("lease.json"))), _identify_process()
    if not holder or _has_ended(holder, here):
        return False
    return _is_alive_here(holder, here) or time.time() - float(holder.get("heartbeat", 0)) < STALE_SECONDS
