"""Objects written on a condition: created where there is none, or put in the place of the one that was read.

Of several processes that write at a time one wins, and one that was frozen between reading and writing finds that it lost.
In object stores these are puts with `If-None-Match` and `If-Match`, at Google with generations. Locally a name is taken by a
hard link; where the file system has none, by a rename that replaces nothing, and where it has not that either, by an empty
file that is replaced while it is still that one. What is replaced is compared under a lock of its folder. Knows nothing of
what objects mean.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rerank_actor.errors import InputError, JobError
from rerank_actor.storage.local import sync_folder, write_aside
from rerank_actor.storage.remote import get_object, put_object, put_object_if
from rerank_actor.storage.retry import retrying, translate_errors
from rerank_actor.storage.s3_client import get_error_code
from rerank_actor.storage.uri import is_remote

AT_FDCWD, RENAME_NOREPLACE = -100, 1  # of Linux's renameat2
_RENAME = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28; None on other systems
LOCK_SECONDS = 5.0  # for a lock whose holder may be frozen; the comparison goes on without it
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
UNMET_CODES = {"PreconditionFailed", "412"}


class Version(NamedTuple):
    """An object as it was read: its bytes, and the mark that tells it from whatever takes its place."""

    data: bytes
    mark: str


def read_version(uri: str) -> Version | None:
    """Return an object with its mark, None where there is none.

    Raises:
        JobError, StorageError: as `list_objects`.
    """
    with contextlib.suppress(InputError):
        return retrying()(_read_once, uri)
    return None


def _read_once(uri: str) -> Version:
    with translate_errors(uri, "reading"):
        if is_remote(uri):
            return Version(*get_object(uri))
        if stat.S_ISFIFO(os.stat(uri).st_mode):
            raise JobError(f"{uri}: is a pipe, whose reading may never end; delete it")
        with open(uri, "rb") as file:
            return Version(file.read(), _mark(os.fstat(file.fileno())))


def _mark(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def create_bytes(uri: str, data: bytes, *, scratch: str | None = None) -> bool:
    """Write an object only where there is none; return whether this call made it, so that `data` must be its own.

    Of a put whose answer was lost another try finds its own bytes there, also at the first, for aiohttp 3.14 sends a put
    again by itself.
    """
    return retrying()(_write_once, uri, data, None, scratch) or _is_there(uri, data)


def replace_bytes(uri: str, data: bytes, mark: str, *, scratch: str | None = None) -> bool:
    """Write an object in the place of the one that was read with this mark; return whether that one still was there."""
    return retrying()(_write_once, uri, data, mark, scratch) or _is_there(uri, data)


def _is_there(uri: str, data: bytes) -> bool:
    found = read_version(uri) if is_remote(uri) else None
    return found is not None and found.data == data


def _write_once(uri: str, data: bytes, mark: str | None, scratch: str | None) -> bool:
    with translate_errors(uri, "writing"):
        try:
            if is_remote(uri):
                put_object_if(uri, data, mark)
                return True
            with write_aside(uri, data, scratch) as temporary:
                target = Path(uri)
                written = _create(temporary, target) if mark is None else _replace(temporary, target, mark)
                sync_folder(target.parent)
            return written
        except FileExistsError:
            return False
        except OSError as error:
            is_unmet = get_error_code(error) in UNMET_CODES  # some servers do not say which, and this is the only one
            if is_unmet or (mark is not None and isinstance(error, FileNotFoundError)):
                return False
            if (
                mark is not None and get_error_code(error) == "NotImplemented"
            ):  # a server that only creates on a condition
                return _replace_unconditionally(uri, data, mark)
            raise


def _replace_unconditionally(uri: str, data: bytes, mark: str) -> bool:
    if _read_once(uri).mark != mark:
        return False
    put_object(uri, data)
    return True


def _create(temporary: Path, target: Path) -> bool:
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _create_without_links(temporary, target)
    return True


def _create_without_links(temporary: Path, target: Path) -> bool:
    """Create by a rename that replaces nothing, or by an empty file that takes the name, which is no object yet."""
    if _RENAME is not None:
        if _RENAME(AT_FDCWD, os.fsencode(temporary), AT_FDCWD, os.fsencode(target), RENAME_NOREPLACE) == 0:
            return True
        number = ctypes.get_errno()
        if number not in NO_LINKS | {errno.EINVAL}:
            raise OSError(number, os.strerror(number), str(target))
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        mark = _mark(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    return _replace(temporary, target, mark)


def _replace(temporary: Path, target: Path, mark: str) -> bool:
    with _lock(target.parent):
        if _mark(os.stat(target)) != mark:
            return False
        os.replace(temporary, target)
    return True


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder among this machine's processes, where its file system has one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)
