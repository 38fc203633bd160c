"""The one door to storage: local folders and S3, under one set of functions that take URIs.

A URI is `s3://bucket/key` or an absolute local path. Listing is one paginated listing, writing is whole or not at
all, and what storage answers is turned into the project's own errors. S3 goes through s3fs; endpoint and credentials
come from the standard AWS variables and profiles. Knows nothing of shards, parts or Parquet.
"""

import contextlib
import glob as globbing
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rerank_actor.errors import InputError, JobError, StorageError, describe_cause

CONNECT_TIMEOUT_SECONDS = 15
READ_TIMEOUT_SECONDS = 60
ATTEMPTS = 5

_GLOB_CHARACTERS = "*?["


@dataclass(frozen=True)
class StoredObject:
    """One object: its URI, size in bytes and a version mark (S3 etag; locally the modification time in ns)."""

    uri: str
    size: int
    etag: str
    modified_seconds: float = 0.0


def is_s3(uri: str) -> bool:
    """Whether the URI names an object or prefix in S3."""
    return uri.startswith(("s3://", "s3a://"))


def normalize_uri(text: str) -> str:
    """Return the one spelling of a location that the project uses: `s3://bucket/key` or an absolute path.

    Raises:
        JobError: the scheme is neither a local path nor S3.
    """
    if is_s3(text):
        return "s3://" + text.split("://", 1)[1].rstrip("/")
    if text.startswith("file://"):
        text = text[len("file://") :]
    elif "://" in text:
        raise JobError(f"{text}: storage of this kind is not supported; give a local path or s3://bucket/key", uri=text)
    return os.path.abspath(os.path.expanduser(text))


def join_uri(base: str, *names: str) -> str:
    """Return the URI of something below `base`."""
    return "/".join([base.rstrip("/"), *names])


def capture_environment() -> dict[str, str]:
    """Return the AWS variables of this process, to be carried to workers that were started elsewhere."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def adopt_environment(environment: dict[str, str]) -> None:
    """Set AWS variables that this process lacks; what a node sets itself stays."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)


@lru_cache(maxsize=2)
def _filesystem(kind: str) -> Any:
    if kind == "local":
        return fsspec.filesystem("file")
    return fsspec.filesystem(
        "s3",
        use_listings_cache=False,
        default_fill_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "read_timeout": READ_TIMEOUT_SECONDS,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    )


def _fs(uri: str) -> Any:
    return _filesystem("s3" if is_s3(uri) else "local")


def _path(uri: str) -> str:
    return uri.split("://", 1)[1] if is_s3(uri) else uri


@contextlib.contextmanager
def _attach(uri: str, action: str) -> Iterator[None]:
    """Turn what storage raises into one of ours, saying what was attempted and where."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{uri}: not found while {action}; check the bucket and the path", uri=uri) from error
    except PermissionError as error:
        cure = (
            "check the AWS credentials and the bucket's policy" if is_s3(uri) else "check the folder's owner and mode"
        )
        raise JobError(f"{uri}: no permission while {action}; {cure}", uri=uri) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise JobError(f"{uri}: a file and a folder of the same name are in each other's way", uri=uri) from error
    except OSError as error:
        raise StorageError(f"{uri}: storage failed while {action} ({describe_cause(error)})", uri=uri) from error
    except Exception as error:
        if not is_s3(uri):
            raise
        # botocore and aiohttp have trees of their own that do not derive from OSError.
        name = type(error).__name__
        if name in {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
            raise JobError(
                f"{uri}: no AWS credentials were found while {action}; set the AWS variables or a profile",
                uri=uri,
            ) from error
        if name == "ParamValidationError":
            raise JobError(f"{uri}: not a valid bucket or key name", uri=uri) from error
        raise StorageError(f"{uri}: storage failed while {action} ({describe_cause(error)})", uri=uri) from error


def retrying() -> Retrying:
    """Return the policy for storage calls: a few tries with exponential, jittered waits on errors worth retrying."""
    return Retrying(
        retry=retry_if_exception_type(StorageError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        reraise=True,
    )


def list_objects(uri: str) -> list[StoredObject]:
    """List the objects of a file, a folder (at any depth) or a glob, sorted by URI; one paginated listing.

    Names that begin with `_` or `.` below the folder are skipped, as Spark, Ray and pyarrow do. Nothing there is an
    empty list.

    Raises:
        InputError: the bucket does not exist.
        JobError: no permission or no credentials.
        StorageError: storage kept failing.
    """
    return retrying()(_list_once, uri)


def _list_once(uri: str) -> list[StoredObject]:
    with _attach(uri, "listing"):
        return _list_s3(uri) if is_s3(uri) else _list_local(uri)


def glob_to_pattern(glob: str) -> str:
    """Return a glob as a regular expression: `**/` any folders, `*` and `?` within one name."""
    pattern = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", glob):
        wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece)
        is_set = piece.startswith("[") and piece.endswith("]")
        pattern += wild or (piece.replace("[!", "[^") if is_set else re.escape(piece))
    return pattern


def _list_s3(uri: str) -> list[StoredObject]:
    fs, path = _fs(uri), _path(uri)
    root, pattern = path, None
    if any(character in path for character in _GLOB_CHARACTERS):
        root = path[: min(path.find(c) for c in _GLOB_CHARACTERS if c in path)].rpartition("/")[0]
        pattern = re.compile(glob_to_pattern(path))
    found = fs.find(root, detail=True)
    objects = []
    for key, info in found.items():
        if info.get("type") != "file" or key.endswith("/") or _is_hidden(key, root):
            continue
        if pattern is not None and not pattern.fullmatch(key):
            continue
        modified = info.get("LastModified")
        objects.append(
            StoredObject(
                uri="s3://" + key,
                size=int(info["size"]),
                etag=str(info.get("ETag", "")).strip('"'),
                modified_seconds=modified.timestamp() if modified is not None else 0.0,
            )
        )
    return sorted(objects, key=lambda found: found.uri)


def _list_local(uri: str) -> list[StoredObject]:
    if Path(uri).is_file():
        return [_stat_local(uri)]
    if Path(uri).is_dir():
        os.scandir(uri).close()  # raises PermissionError, which os.walk would swallow
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(uri) for name in names]
        root = uri
    elif any(character in uri for character in _GLOB_CHARACTERS):
        paths = [path for path in globbing.glob(uri, recursive=True) if os.path.isfile(path)]
        root = uri[: min(uri.find(c) for c in _GLOB_CHARACTERS if c in uri)].rpartition("/")[0]
    else:
        return []
    return [_stat_local(path) for path in sorted(paths) if not _is_hidden(path, root)]


def _stat_local(path: str) -> StoredObject:
    status = os.stat(path)
    return StoredObject(path, status.st_size, str(status.st_mtime_ns), status.st_mtime)


def _is_hidden(path: str, root: str) -> bool:
    relative = path[len(root) :] if path.startswith(root) else path
    return any(name.startswith(("_", ".")) for name in relative.split("/") if name)


class _RemoteFile(io.RawIOBase):
    """An S3 object open for reading, whose failures in mid-read are the project's own errors."""

    def __init__(self, uri: str, file: Any) -> None:
        super().__init__()
        self._uri, self._file = uri, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _attach(self._uri, "reading"):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def open_input(uri: str) -> BinaryIO:
    """Open an object for reading; the caller closes it. Reads raise the same errors.

    Raises:
        InputError, JobError, StorageError: as `list_objects`.
    """
    with _attach(uri, "opening"):
        if not is_s3(uri):
            return open(uri, "rb")
        file = _fs(uri).open(_path(uri), "rb", block_size=8 * 2**20, cache_type="readahead")
        return io.BufferedReader(_RemoteFile(uri, file), buffer_size=2**20)


def read_bytes(uri: str, *, tail_bytes: int | None = None, size: int | None = None) -> bytes:
    """Return an object's bytes, or its last `tail_bytes` when its `size` is known (one request, not two).

    Raises:
        InputError: it is not there.
        JobError, StorageError: as `list_objects`.
    """
    return retrying()(_read_once, uri, tail_bytes, size)


def _read_once(uri: str, tail_bytes: int | None, size: int | None) -> bytes:
    start = max(0, size - tail_bytes) if tail_bytes is not None and size is not None else None
    with _attach(uri, "reading"):
        return cast(bytes, _fs(uri).cat_file(_path(uri), start=start, end=size if start is not None else None))


def read_if_present(uri: str) -> bytes | None:
    """Return an object's bytes, or None where there is none."""
    try:
        return read_bytes(uri)
    except InputError:
        return None


def write_bytes(uri: str, data: bytes, *, scratch: str | None = None) -> None:
    """Write an object whole or not at all, replacing what is there.

    Locally the bytes go to a temporary file (in `scratch`, which must be on the same file system, or beside the
    target), are flushed to disk and renamed. In S3 an object shows up only when complete.

    Raises:
        JobError: no permission, no such bucket.
        StorageError: storage kept failing.
    """
    retrying()(_write_once, uri, data, scratch)


def _write_once(uri: str, data: bytes, scratch: str | None) -> None:
    with _attach(uri, "writing"):
        if is_s3(uri):
            _fs(uri).pipe_file(_path(uri), data)
            return
        target = Path(uri)
        folder = Path(scratch) if scratch else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{target.name}.{secrets.token_hex(6)}"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write an object only where there is none; return whether this call made it.

    In S3 this is a put with `If-None-Match: *`; locally a hard link, which fails where the name is taken. Of a put whose
    answer was lost the retry finds its own bytes there.
    """
    attempts = 0

    def create() -> bool:
        nonlocal attempts
        attempts += 1
        return _create_once(uri, data) or (attempts > 1 and read_bytes(uri) == data)

    return retrying()(create)


def _create_once(uri: str, data: bytes) -> bool:
    with _attach(uri, "creating"):
        try:
            if is_s3(uri):
                _fs(uri).pipe_file(_path(uri), data, mode="create")
                return True
            target = Path(uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}"
            temporary.write_bytes(data)
            try:
                os.link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            return True
        except FileExistsError:
            return False


def delete_objects(uris: list[str]) -> None:
    """Delete objects; one that is gone already is no error."""
    retrying()(_delete_once, uris)


def _delete_once(uris: list[str]) -> None:
    keys = [_path(uri) for uri in uris if is_s3(uri)]
    if keys:
        with contextlib.suppress(InputError), _attach(uris[0], "deleting"):
            _fs(uris[0]).rm(keys)
    for uri in uris:
        if not is_s3(uri):
            with _attach(uri, "deleting"):
                Path(uri).unlink(missing_ok=True)


def delete_folder(uri: str) -> None:
    """Delete everything below a folder."""
    retrying()(_delete_folder_once, uri)


def _delete_folder_once(uri: str) -> None:
    with contextlib.suppress(InputError), _attach(uri, "deleting"):
        if is_s3(uri):
            keys = list(_fs(uri).find(_path(uri)))
            if keys:
                _fs(uri).rm(keys)
        else:
            shutil.rmtree(uri)


def download_folder(uri: str, target: Path, *, skip: tuple[str, ...] = ()) -> None:
    """Copy the objects directly below a folder to a local one, leaving out names that end in one of `skip`."""
    for found in list_objects(uri):
        name = found.uri[len(uri) :].lstrip("/")
        if name.endswith(skip) or "/" in name:
            continue
        for attempt in retrying():
            with attempt, _attach(found.uri, "downloading"):
                _fs(uri).get_file(_path(found.uri), str(target / name))
