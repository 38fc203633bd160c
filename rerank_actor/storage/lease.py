"""The lease: the right to write to a folder, held by one run at a time.

Takes the URI of the lease's own object and of the folder that it guards. Knows nothing of what is in that folder.
"""

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rerank_actor import storage
from rerank_actor.errors import OutputConflictError, RerankError

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 45.0


def make_run_id() -> str:
    """Return a name for a run: the time, so that names sort as runs began, and what tells those of one second apart."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


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
        uri: of the lease's object.
        folder: that it guards, for messages.
        run_id: of the run.
        heartbeat_seconds: between two rewrites.
        stale_seconds: silence after which a lease may be taken over; well above the former.
        host: name of this machine.
    """

    def __init__(
        self,
        uri: str,
        folder: str,
        run_id: str,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        host: str | None = None,
    ) -> None:
        self._uri, self._folder, self._run_id = uri, folder, run_id
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

    def acquire(self, report: Callable[[str], None]) -> None:
        """Take the lease, waiting only where the holder may be dead on another machine.

        Raises:
            OutputConflictError: another run is writing to the output.
            JobError, StorageError: the output cannot be written to.
        """
        if not storage.create_bytes(self._uri, self._record()):
            self._take_over(report)
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
                f"{self._folder}: another run took over ({_name_holder(self._taker)}) while this one was silent; this "
                "one ends, and what it committed stays",
                uri=self._folder,
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

    def _take_over(self, report: Callable[[str], None]) -> None:
        lease = storage.read_if_present(self._uri)
        if lease is not None and not _has_ended(_parse(lease), self._here):
            lease = self._wait_for_silence(lease, report)
        if lease is not None:
            self._claim(lease)
        elif not storage.create_bytes(self._uri, self._record()):
            raise self._conflict(_parse(storage.read_if_present(self._uri)))

    def _wait_for_silence(self, lease: bytes, report: Callable[[str], None]) -> bytes | None:
        """Return the lease once it has not been rewritten for a while, None when it was given back."""
        holder = _parse(lease)
        if _is_alive_here(holder, self._here):
            raise self._conflict(holder)
        seconds = self._stale_seconds
        report(f"another run ({_name_holder(holder)}) left a lease; seeing for {seconds:.0f} s if it is alive")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, seconds / 10))
            now = storage.read_if_present(self._uri)
            if now != lease:
                if now is None:
                    return None
                raise self._conflict(_parse(now))
        return lease

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
        return f"{self._uri.removesuffix('.json')}-{hashlib.sha256(stale).hexdigest()[:16]}-{number}.json"

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
            f"{self._folder}: another run is writing there ({_name_holder(holder)}); wait for it, stop it, or choose "
            "another --output",
            uri=self._folder,
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
            lease = storage.read_if_present(self._uri)
            holder = _parse(lease)
            if lease is None:
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


@contextlib.contextmanager
def hold_lease(uri: str, folder: str, run_id: str, report: Callable[[str], None]) -> Iterator[Lease]:
    """Hold a lease for a while; arguments and errors as of `Lease` and `Lease.acquire`."""
    lease = Lease(uri, folder, run_id)
    lease.acquire(report)
    try:
        yield lease
    finally:
        lease.release()


def _parse(data: bytes | None) -> dict[str, Any]:
    """Return a lease or a claim, empty where there is none or it is damaged."""
    try:
        record = json.loads(data or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


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
    """Return the id of the namespace of process numbers, which differs between containers of one machine."""
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


def is_running(uri: str) -> bool:
    """Whether a run seems to be at work, from its lease and the lease's age alone."""
    holder, here = _parse(storage.read_if_present(uri)), _identify_process()
    if not holder or _has_ended(holder, here):
        return False
    return _is_alive_here(holder, here) or time.time() - float(holder.get("heartbeat", 0)) < STALE_SECONDS
