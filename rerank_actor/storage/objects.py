"""Objects by URI, wherever they lie: listed, read, written, created, deleted, downloaded.

Takes URIs and bytes and chooses between local folders, object stores and the hub. An object is written whole or not at all.
"""

import contextlib
import hashlib
import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from rerank_actor.errors import InputError
from rerank_actor.storage import hub
from rerank_actor.storage.limits import current_limits
from rerank_actor.storage.local import (
    compare_status,
    delete_local,
    delete_tree,
    list_local,
    list_local_children,
    open_local,
    sync_folder,
    write_aside,
)
from rerank_actor.storage.remote import (
    DELETED_AT_ONCE,
    RemoteFile,
    delete_remote,
    get_object,
    get_range,
    list_below,
    list_hub,
    list_remote,
    list_remote_children,
    look_at,
    look_at_hub,
    put_object,
)
from rerank_actor.storage.retry import _patience, retrying, translate_errors
from rerank_actor.storage.uri import Bytes, Listing, StoredObject, is_google, is_remote, is_s3

DOWNLOAD_THREADS = 8


def choose_cache(kind: str) -> Path:
    """Return this machine's folder for copies of one kind, below `RERANK_ACTOR_CACHE` or the user's cache."""
    base = os.environ.get("RERANK_ACTOR_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rerank-actor"
    )
    return Path(base) / kind


def list_objects(uri: str) -> list[StoredObject]:
    """List the objects of a file, a folder (at any depth) or a glob, sorted by URI; one paginated listing.

    Names that begin with `_` or `.` below the folder are skipped, as Spark, Ray and pyarrow do. Nothing there is an
    empty list.

    Raises:
        InputError: the bucket does not exist.
        JobError: no permission or no credentials.
        StorageError: storage kept failing.
    """
    return list_everything(uri).objects


def list_everything(uri: str) -> Listing:
    """List as `list_objects` does, with what it passes over. Errors as there."""
    if hub.is_hub(uri):
        return retrying()(list_hub, uri)
    return list_remote(uri) if is_remote(uri) else retrying()(list_local, uri)


def list_children(uri: str) -> list[StoredObject]:
    """List the objects in a folder itself, sorted by URI: none below it, none whose name begins with `_` or `.`.

    Raises:
        InputError, JobError, StorageError: as `list_objects`.
    """
    return list_remote_children(uri) if is_remote(uri) else retrying()(list_local_children, uri)


def look_at_object(uri: str) -> StoredObject | None:
    """Return what storage says of one local file or S3 object, None where there is none; the URI is no glob.

    Raises:
        JobError: no permission, no credentials, or no valid name.
        StorageError: storage kept failing.
    """
    found = retrying()(look_at, uri) if is_remote(uri) else retrying()(list_local, uri).objects
    return next((item for item in found if item.uri == uri), None)


def open_input(uri: str, *, size: int | None = None, etag: str = "") -> BinaryIO:
    """Open an object for reading; the caller closes it. Reads raise the same errors.

    Args:
        uri: the object.
        size: what a listing said of it, which in S3 saves a request; None when not known.
        etag: likewise; "" when not known.

    Raises:
        ObjectChangedError: it is not, or in mid-read no longer, the object with this size and etag. Locally a change
            in mid-read is for `refuse_changed` to find.
        InputError, JobError, StorageError: as `list_objects`.
    """
    if not is_remote(uri) and not hub.is_hub(uri):
        return retrying()(open_local, uri, size, etag)
    if size is None and hub.is_hub(uri):
        size, etag = retrying()(look_at_hub, uri)
    if size is None:
        objects = retrying()(look_at, uri)
        if not objects:
            raise InputError(f"{uri}: not found while opening; check the bucket and the path", uri=uri)
        size, etag = objects[0].size, objects[0].etag
    return io.BufferedReader(RemoteFile(uri, size, etag), buffer_size=2**20)


def refuse_changed(uri: str, size: int | None, etag: str) -> None:
    """Refuse a local file that is no longer the one with this size and etag; to be called after reading it.

    In S3 and on the hub every answer was compared already.

    Raises:
        ObjectChangedError: it changed.
        InputError: it is gone.
    """
    if size is not None and not is_remote(uri) and not hub.is_hub(uri):
        with translate_errors(uri, "reading"):
            compare_status(uri, os.stat(uri), size, etag)


def read_bytes(uri: str, *, tail_bytes: int | None = None, size: int | None = None) -> bytes:
    """Return an object's bytes, or its last `tail_bytes` when its `size` is known; in S3 one request.

    Raises:
        InputError: it is not there.
        ObjectChangedError: it has not this size.
        JobError, StorageError: as `list_objects`.
    """
    return retrying()(_read_once, uri, tail_bytes, size)


def _read_once(uri: str, tail_bytes: int | None, size: int | None) -> bytes:
    start = max(0, size - tail_bytes) if tail_bytes is not None and size is not None else None
    if hub.is_hub(uri):
        size = look_at_hub(uri)[0] if size is None else size
        return get_range(uri, start or 0, size, size, "")[0]
    if is_remote(uri) and start is not None and size is not None:
        return get_range(uri, start, size, size, "")[0]
    with translate_errors(uri, "reading"):
        if is_remote(uri):
            return get_object(uri)[0]
        with open(uri, "rb") as file:
            file.seek(start or 0)
            return file.read()


def read_range(uri: str, start: int, end: int, size: int) -> bytes:
    """Return some bytes of an object of this size; in S3 one request.

    Raises:
        InputError: it is not there.
        ObjectChangedError: it has not this size.
        JobError, StorageError: as `list_objects`.
    """
    if is_remote(uri):
        return retrying()(get_range, uri, start, end, size, "")[0]
    with open_input(uri, size=size) as file:
        file.seek(start)
        return file.read(end - start)


def read_if_present(uri: str) -> bytes | None:
    """Return an object's bytes, or None where there is none."""
    try:
        return read_bytes(uri)
    except InputError:
        return None


def write_bytes(uri: str, data: Bytes, *, scratch: str | None = None) -> None:
    """Write an object whole or not at all, replacing what is there.

    Locally the bytes go to a temporary file (in `scratch`, which must be on the same file system, or beside the
    target), are flushed to disk and renamed. In S3 an object shows up only when complete.

    Raises:
        JobError: no permission, no such bucket.
        StorageError: storage kept failing.
    """
    retrying()(_write_once, uri, data, scratch)


def _write_once(uri: str, data: Bytes, scratch: str | None) -> None:
    with translate_errors(uri, "writing"):
        if is_remote(uri):
            put_object(uri, data)
            return
        with write_aside(uri, data, scratch) as temporary:
            os.replace(temporary, uri)
            sync_folder(Path(uri).parent)


def find_mark(uri: str, data: bytes) -> str:
    """Return the version mark that a listing will show of an object just written with these bytes.

    In S3 and at Google that is the MD5 of the bytes, save for uploads in pieces and buckets encrypted with keys of their
    own; there the mark is another, and who compares it reads the object once to be sure of it.

    Raises:
        StorageError, JobError: the store, which has to be asked, does not say.
    """
    if is_s3(uri) or is_google(uri):
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    if is_remote(uri):
        found = look_at_object(uri)
        return found.etag if found is not None else ""
    return str(os.stat(uri).st_mtime_ns)


def delete_objects(uris: list[str]) -> None:
    """Delete objects; one that is gone already is no error."""
    remote = [uri for uri in uris if is_remote(uri)]
    for start in range(0, len(remote), DELETED_AT_ONCE):
        retrying()(delete_remote, remote[start : start + DELETED_AT_ONCE])
    for uri in uris:
        if not is_remote(uri):
            retrying()(delete_local, uri)


def delete_folder(uri: str) -> None:
    """Delete everything below a folder."""
    if is_remote(uri):
        with contextlib.suppress(InputError):
            delete_objects([item.uri for item in list_below(uri.rstrip("/"))])
    else:
        retrying()(delete_tree, uri)


def download_folder(uri: str, target: Path, *, skip: tuple[str, ...] = ()) -> None:
    """Copy the objects directly below a folder to a local one, leaving out names that end in one of `skip`."""
    for item in list_objects(uri):
        name = item.uri[len(uri) :].lstrip("/")
        if not name.endswith(skip) and "/" not in name:
            _download(item, target / name)


def _download(item: StoredObject, target: Path) -> None:
    """Copy an object to a file, several blocks at a time."""
    if not is_remote(item.uri):
        with translate_errors(item.uri, "downloading"):
            shutil.copyfile(item.uri, target)
        return
    policy_is_patient, block = _patience.get(), current_limits().read_ahead_bytes
    with target.open("wb") as file, ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:

        def copy(start: int) -> None:
            end = min(item.size, start + block)
            data, _ = retrying(policy_is_patient)(get_range, item.uri, start, end, item.size, item.etag)
            os.pwrite(file.fileno(), data, start)

        copies = [pool.submit(copy, start) for start in range(0, item.size, block)]
        try:
            for done in copies:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
