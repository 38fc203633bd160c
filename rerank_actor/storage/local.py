"""Local files: listed, opened as the file that was listed, deleted. Knows nothing of S3."""

import contextlib
import glob as globbing
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from rerank_actor.errors import InputError, ObjectChangedError
from rerank_actor.storage.retry import translate_errors
from rerank_actor.storage.uri import GLOB_CHARACTERS, StoredObject, is_hidden


def list_local(uri: str) -> list[StoredObject]:
    """List a file, the files below a folder at any depth, or those that a glob matches."""
    with translate_errors(uri, "listing"):
        if Path(uri).is_file():
            return [_stat_local(uri)]
        if Path(uri).is_dir():
            os.scandir(uri).close()  # raises PermissionError, which os.walk would swallow
            paths = [os.path.join(folder, name) for folder, _, names in os.walk(uri) for name in names]
            root = uri
        elif any(character in uri for character in GLOB_CHARACTERS):
            paths = [path for path in globbing.glob(uri, recursive=True) if os.path.isfile(path)]
            root = uri[: min(uri.find(mark) for mark in GLOB_CHARACTERS if mark in uri)].rpartition("/")[0]
        else:
            return []
        return [_stat_local(path) for path in sorted(paths) if not is_hidden(path, root)]


def _stat_local(path: str) -> StoredObject:
    status = os.stat(path)
    return StoredObject(path, status.st_size, str(status.st_mtime_ns), status.st_mtime)


def open_local(uri: str, size: int | None, etag: str) -> BinaryIO:
    """Open a file that has this size and etag, None and "" for any; the caller closes it."""
    with translate_errors(uri, "opening"):
        file = open(uri, "rb")  # noqa: SIM115 - the caller closes it
        try:
            if size is not None:
                compare_status(uri, os.fstat(file.fileno()), size, etag)
        except BaseException:
            file.close()
            raise
        return file


def compare_status(uri: str, status: os.stat_result, size: int, etag: str) -> None:
    """Refuse a file that has not this size and etag.

    Raises:
        ObjectChangedError: it has another.
    """
    if status.st_size != size:
        raise ObjectChangedError(f"{uri}: has another size than it had ({status.st_size} bytes, not {size})", uri=uri)
    if etag and str(status.st_mtime_ns) != etag:
        raise ObjectChangedError(f"{uri}: was written to (at {status.st_mtime_ns} ns, not {etag})", uri=uri)


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete_local(uri: str) -> None:
    """Delete a file; one that is gone already is no error."""
    with translate_errors(uri, "deleting"):
        Path(uri).unlink(missing_ok=True)


def delete_tree(uri: str) -> None:
    """Delete a folder and what is in it; one that is gone already is no error."""
    with contextlib.suppress(InputError), translate_errors(uri, "deleting"):
        shutil.rmtree(uri)
