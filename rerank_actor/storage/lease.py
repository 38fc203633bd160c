"""The lease: the right to write to a folder, held by one run at a time.

Takes the URI of the lease's own object and of the folder that it guards. Knows nothing of what is in that folder.
"""

import contextlib
import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_actor import storage
from rerank_actor.errors import OutputConflictError, RerankError, StorageError

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 45.0
CLOCK_SECONDS = 3600.0  # that clocks of two hosts may differ by
WRITE_TRIES = 5


def make_run_id() -> str:
    """Return a name for a run: the time, so that names sort as runs began, and what tells those of one second apart."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


class Lease:
    """The right to write to an output, held by one run at a time.

    It is an object made with a put-if-absent and rewritten every few seconds. A run that finds one takes it over when
    its holder was a process of this machine that has ended, or when it has not been rewritten for a while. Of several
    that see the same stale lease one wins: the one that makes the claim, another put-if-absent whose name follows from
    that lease. A claim whose maker fell silent in turn is followed by the next number, never deleted under its maker.

    A holder that was silent too long (a frozen process, dead storage) may find its lease taken: it rewrites only what it
    has read, and from then on `check` raises. Each holder has an epoch above those before it. Who takes over from a holder
    that may thaw leaves its epoch in an object beside the lease, so that the other sees it even when the lease is gone.

    Args:
        uri: of the lease's object.
        folder: that it guards, for messages.
        run_id: of the run.
        heartbeat_seconds: between two rewrites.
        stale_seconds: silence after which a lease may be taken over; well above the former.
        host: name of this machine.
        clock: seconds since 1970 as this machine has them, which may be wrong: nothing is decided by them.
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._uri, self._folder, self._run_id = uri, folder, run_id
        self._heartbeat_seconds, self._stale_seconds = heartbeat_seconds, stale_seconds
        self._here, self._clock = _identify_process(host), clock
        self._epoch_uri = f"{uri.removesuffix('.json')}-epoch.json"
        self._epoch = 0
        self._taker: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether another run has been seen to hold the lease."""
        return self._taker is not None

    @property
    def mark(self) -> "LeaseMark":
        """What a worker needs to know of the lease that is held."""
        return LeaseMark(self._uri, self._folder, self._run_id, self._epoch)

    def acquire(self, report: Callable[[str], None]) -> None:
        """Take the lease, waiting only where the holder may be dead on another machine.

        Raises:
            OutputConflictError: another run is writing to the output.
            JobError, StorageError: the output cannot be written to.
        """
        self._raise_epoch(_parse(storage.read_if_present(self._epoch_uri)))
        if not storage.create_bytes(self._uri, self._record()):
            self._take_over(report)
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
            raise self.mark.make_error(self._taker)

    def release(self) -> None:
        """Give the lease back, if it is still this run's; where storage fails, it goes stale by itself."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        with contextlib.suppress(RerankError):
            if self._is_own(_parse(storage.read_if_present(self._uri))):
                storage.delete_objects([self._uri])

    def _record(self) -> bytes:
        values = {"run": self._run_id, "epoch": self._epoch, **self._here, "heartbeat": self._clock()}
        return storage.seal_json(values)

    def _raise_epoch(self, before: dict[str, Any]) -> None:
        """Take an epoch above that of an earlier holder; it is the time in ms unless clocks differ."""
        self._epoch = max(self._epoch, int(self._clock() * 1000), get_epoch(before) + 1)

    def _take_over(self, report: Callable[[str], None]) -> None:
        lease = storage.read_version(self._uri)
        if lease is not None and not _has_ended(_parse(lease.data), self._here):
            lease = self._wait_for_silence(lease, report)
        if lease is not None:
            self._claim(lease)
            return
        self._raise_epoch(_parse(storage.read_if_present(self._epoch_uri)))  # the holder may have left it by now
        if not storage.create_bytes(self._uri, self._record()):
            raise self._conflict(_parse(storage.read_if_present(self._uri)))

    def _wait_for_silence(self, lease: storage.Version, report: Callable[[str], None]) -> storage.Version | None:
        """Return the lease once it has not been rewritten for a while, None when it was given back."""
        holder = _parse(lease.data)
        if _is_alive_here(holder, self._here):
            raise self._conflict(holder)
        seconds = self._stale_seconds
        report(f"another run ({_name_holder(holder)}) left a lease; seeing for {seconds:.0f} s if it is alive")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, seconds / 10))
            now = storage.read_if_present(self._uri)
            if now != lease.data:
                if now is None:
                    return None
                raise self._conflict(_parse(now))
        return lease

    def _claim(self, stale: storage.Version) -> None:
        """Put this run's lease in the place of a stale one, or find that another run was first."""
        self._raise_epoch(_parse(stale.data))
        claims = [self._claim_uri(stale.data, 0)]
        while not storage.create_bytes(claims[-1], self._record()):
            self._outwait_claim(claims[-1], stale.data)
            claims.append(self._claim_uri(stale.data, len(claims)))
        # Who won before this claim was made has written its lease, which is then another.
        if not storage.replace_bytes(self._uri, self._record(), stale.mark):
            storage.delete_objects(claims[-1:])
            raise self._conflict(_parse(storage.read_if_present(self._uri)))
        self._leave_epoch()
        storage.delete_objects(claims)
        # For storage that takes no heed of conditions.
        time.sleep(min(self._stale_seconds, 1.0 if storage.is_remote(self._uri) else 0.2))
        holder = _parse(storage.read_if_present(self._uri))
        if holder.get("run") != self._run_id:
            raise self._conflict(holder)

    def _leave_epoch(self) -> None:
        """Leave this holder's epoch for the one that it took over from, unless a later holder was here already."""
        while True:
            found = storage.read_version(self._epoch_uri)
            if found is not None and get_epoch(_parse(found.data)) > self._epoch:
                raise self._conflict(_parse(found.data))
            if found is None and storage.create_bytes(self._epoch_uri, self._record()):
                return
            if found is not None and storage.replace_bytes(self._epoch_uri, self._record(), found.mark):
                return

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
            lease = storage.read_version(self._uri)
            if lease is None:
                later = _parse(storage.read_if_present(self._epoch_uri))
                if get_epoch(later) > self._epoch:  # who took over has ended
                    self._taker = later
                elif not storage.create_bytes(self._uri, self._record()):  # deleted by hand, and another run came
                    self._taker = _parse(storage.read_if_present(self._uri))
            elif not self._is_own(_parse(lease.data)):
                self._taker = _parse(lease.data)
            elif not self._stop.is_set() and not storage.replace_bytes(self._uri, self._record(), lease.mark):
                self._taker = _parse(storage.read_if_present(self._uri))

    def _is_own(self, holder: dict[str, Any]) -> bool:
        return (holder.get("run"), get_epoch(holder)) == (self._run_id, self._epoch)


@dataclass(frozen=True)
class LeaseMark:
    """A lease as its holder's workers know it: where it is, what it guards, and whose it is.

    Attributes:
        uri: of the lease's object.
        folder: that it guards, for messages.
        run_id: of the holder.
        epoch: of the holder, above those of all before it.
    """

    uri: str
    folder: str
    run_id: str
    epoch: int

    def check(self) -> None:
        """Refuse to go on when another run holds the lease, or has held it since; one request.

        Raises:
            OutputConflictError: another run took over.
            JobError, StorageError: storage does not answer.
        """
        lease = storage.read_if_present(self.uri)
        if lease is None:  # deleted by hand, which the holder mends, or by a later holder at its end
            later = _parse(storage.read_if_present(f"{self.uri.removesuffix('.json')}-epoch.json"))
            if get_epoch(later) > self.epoch:
                raise self.make_error(later)
        elif ((holder := _parse(lease)).get("run"), get_epoch(holder)) != (self.run_id, self.epoch):
            raise self.make_error(holder)

    def write(self, uri: str, data: bytes, scratch: str | None = None) -> None:
        """Write an object where there is none, or in the place of the one that was looked at, while this holder has the lease.

        Raises:
            OutputConflictError: another run took over.
            JobError, StorageError: it could not be written.
        """
        for _ in range(WRITE_TRIES):
            self.check()
            if storage.create_bytes(uri, data, scratch=scratch):
                return
            found = storage.read_version(uri)
            if found is None:
                continue
            self.check()  # behind the look: it may be the object of a run that has taken over since
            if found.data == data or storage.replace_bytes(uri, data, found.mark, scratch=scratch):
                return
        raise StorageError(f"{uri}: changes again and again while it is written; see what else writes there", uri=uri)

    def make_error(self, taker: dict[str, Any]) -> OutputConflictError:
        """Return the error that says who took over."""
        return OutputConflictError(
            f"{self.folder}: another run took over ({_name_holder(taker)}) while this one was silent; this one ends, and what "
            "it committed stays",
            uri=self.folder,
        )


def write_held(lease: LeaseMark | None, uri: str, data: bytes, scratch: str | None = None) -> None:
    """Write an object while a lease is held, as `LeaseMark.write`; plainly without one, where nobody else can write."""
    if lease is None:
        storage.write_bytes(uri, data, scratch=scratch)
    else:
        lease.write(uri, data, scratch)


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
    return storage.open_json(data) or {}


def get_epoch(record: dict[str, Any]) -> int:
    """Return the epoch of a lease's record, 0 where it has none."""
    epoch = record.get("epoch")
    return epoch if isinstance(epoch, int) else 0


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
    is_same = bool(here["boot"]) and all(holder.get(name) == here[name] for name in names)
    return is_same and isinstance(holder.get("pid"), int)


def _is_alive_here(holder: dict[str, Any], here: dict[str, Any]) -> bool:
    return _is_here(holder, here) and _started(holder["pid"]) == holder.get("started")


def _has_ended(holder: dict[str, Any], here: dict[str, Any]) -> bool:
    return _is_here(holder, here) and _started(holder["pid"]) != holder.get("started")


def is_running(uri: str) -> bool:
    """Whether a run seems to be at work, from its lease and the lease's age alone."""
    holder, here = _parse(storage.read_if_present(uri)), _identify_process()
    if not holder or _has_ended(holder, here):
        return False
    heartbeat = holder.get("heartbeat")
    # Of a host whose clock is ahead; by how much more says that the heartbeat is nobody's.
    is_fresh = isinstance(heartbeat, int | float) and -CLOCK_SECONDS < time.time() - heartbeat < STALE_SECONDS
    return is_fresh or _is_alive_here(holder, here)
