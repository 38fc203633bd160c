"""Local files: listed, opened as the file that was listed, deleted. Knows nothing of S3."""

import contextlib
import errno
import glob as globbing
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rerank_actor.errors import InputError, ObjectChangedError
from rerank_actor.storage.retry import translate_errors
from rerank_actor.storage.uri import Bytes, Listing, StoredObject, find_root, is_glob, is_hidden


def list_local(uri: str) -> Listing:
    """List a file, the files below a folder at any depth, or those that a glob matches."""
    with translate_errors(uri, "listing"):
        if os.path.isdir(uri):
            os.scandir(uri).close()  # raises whatever is wrong, which os.walk would swallow
            return _make_listing(uri, _walk(uri))
        if os.path.lexists(uri):
            return Listing([_stat_local(uri)])
        if not is_glob(uri):
            return Listing()
        matches = globbing.glob(uri, recursive=True, include_hidden=True)
        paths = [path for path in matches if not os.path.isdir(path)]
        deeper = {path for folder in matches if os.path.isdir(folder) for path in _walk(folder)}
        return _make_listing(find_root(uri), paths, sorted(deeper.difference(paths)))


def _walk(root: str) -> list[str]:
    """Return the files below a folder, through links too, but into no folder twice by links that go round."""
    paths: list[str] = []
    entered = {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_refuse_closed):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in links:
            target = os.path.realpath(os.path.join(folder, name))
            if target in entered:
                folders.remove(name)
            entered.add(target)
        paths += [os.path.join(folder, name) for name in names]
    return paths


def _refuse_closed(error: OSError) -> None:
    """Raise what says that a folder may not be read; one that has just gone is none."""
    if isinstance(error, PermissionError):
        raise error


def _make_listing(root: str, paths: list[str], deeper: list[str] | None = None) -> Listing:
    hidden = {path for path in paths if is_hidden(path, root)}
    objects = [_stat_local(path) for path in sorted(paths) if path not in hidden]
    return Listing(objects, sorted(hidden), [path for path in deeper or [] if not is_hidden(path, root)])


def list_local_children(uri: str) -> list[StoredObject]:
    """List the files in a folder itself; one that goes meanwhile is left out, and no folder is an empty list."""
    with translate_errors(uri, "listing"):
        try:
            entries = [entry for entry in os.scandir(uri) if not is_hidden(entry.name, "")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        listed = []
        for entry in sorted(entries, key=lambda entry: entry.name):
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    listed.append(_stat_local(entry.path))
        return listed


def _stat_local(path: str) -> StoredObject:
    """Return what a file is.

    Raises:
        InputError: it is a pipe, a device or a socket, whose reading may never end, or a link to nothing.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if not os.path.islink(path):
            raise
        raise InputError(f"{path}: is a link to nothing ({os.readlink(path)}); mend or delete it", uri=path) from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is a pipe, a device or a socket, not a file; leave it out", uri=path)
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


@contextlib.contextmanager
def write_aside(uri: str, data: Bytes, scratch: str | None) -> Iterator[Path]:
    """Give a temporary file with these bytes, flushed to disk, in `scratch` or beside the target; it is deleted again."""
    target = Path(uri)
    folder = Path(scratch) if scratch else target.parent
    for needed in (folder, target.parent):
        try:
            needed.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:  # which is not to be taken for an object that is there
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(needed)) from error
    temporary = folder / f".{target.name}.{secrets.token_hex(6)}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def delete_local(uri: str) -> None:
    """Delete a file; one that is gone already is no error."""
    with translate_errors(uri, "deleting"):
        Path(uri).unlink(missing_ok=True)


def delete_tree(uri: str) -> None:
    """Delete a folder and what is in it; one that is gone already is no error."""
    with contextlib.suppress(InputError), translate_errors(uri, "deleting"):
        shutil.rmtree(uri)
