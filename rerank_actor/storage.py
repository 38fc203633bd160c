"""The one door to storage: local folders and S3, under one set of functions that take URIs.

A URI is `s3://bucket/key`, an absolute local path or, for reading alone, `hf://datasets/owner/name/path`. Listing is one
paginated listing, writing is whole or not at all, and what storage answers is turned into the project's own errors. Each
S3 request is limited in time and tried again by itself, in one place, so that a listing of many pages or a long read
never begins anew; `patient` says how long. S3 goes through s3fs; endpoint and credentials come from the standard AWS
variables and profiles. Knows nothing of shards, parts or Parquet.
"""

import asyncio
import contextlib
import errno
import glob as globbing
import io
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import fsspec.asyn
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from rerank_actor import hub
from rerank_actor.errors import (
    AccessDeniedError,
    InputError,
    JobError,
    ObjectChangedError,
    RerankError,
    StorageError,
    StorageFullError,
    describe_cause,
)

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 30  # without a byte
REQUEST_SECONDS = 30  # for a request as a whole, besides its bytes
SLOWEST_BYTES_PER_SECOND = 256 * 1024
BRIEF_ATTEMPTS, BRIEF_SECONDS = 6, 60.0
PATIENT_SECONDS = 90.0
LONGEST_WAIT_SECONDS = 15.0

READ_AHEAD_BYTES = 8 * 2**20
DOWNLOAD_THREADS = 8
DELETED_AT_ONCE = 1000  # the most that S3 takes

FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_CODES = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507"}  # of Ceph and MinIO

CARRIED_VARIABLES = ("HF_TOKEN", "HF_ENDPOINT")  # besides AWS_*

_GLOB_CHARACTERS = "*?["
_patience: ContextVar[bool] = ContextVar("patience", default=False)
_retries_made = 0
_retries_lock = threading.Lock()


@dataclass(frozen=True)
class StoredObject:
    """One object: its URI, size in bytes and a version mark (S3 etag; locally the modification time in ns)."""

    uri: str
    size: int
    etag: str
    modified_seconds: float = 0.0

    @property
    def identity(self) -> list[Any]:
        """What tells the object from others, and from itself once it has changed: JSON values for a fingerprint."""
        return [self.uri, self.size, self.etag]


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


def is_within(inner: str, outer: str) -> bool:
    """Whether a URI is another one or lies below it."""
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def find_cache(kind: str) -> Path:
    """Return this machine's folder for copies of one kind, below `RERANK_ACTOR_CACHE` or the user's cache."""
    base = os.environ.get("RERANK_ACTOR_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rerank-actor"
    )
    return Path(base) / kind


def capture_environment() -> dict[str, str]:
    """Return this process's variables for storage, to be carried to workers that were started elsewhere."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name in CARRIED_VARIABLES}


def adopt_environment(environment: dict[str, str]) -> None:
    """Set variables for storage that this process lacks; what a node sets itself stays."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)


@lru_cache(maxsize=1)
def _s3() -> Any:
    filesystem = fsspec.filesystem(
        "s3",
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "read_timeout": READ_TIMEOUT_SECONDS,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    )
    filesystem.retries = 1  # tries, which would multiply with those of `retrying`
    return filesystem


def _split(uri: str) -> tuple[str, str]:
    """Return bucket and key."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    return bucket, key


def _limit_seconds(num_bytes: int) -> float:
    return REQUEST_SECONDS + num_bytes / SLOWEST_BYTES_PER_SECOND


def _call(method: str, uri: str, **keywords: Any) -> dict[str, Any]:
    """Make one S3 request that is small both ways."""
    filesystem, limit = _s3(), _limit_seconds(0)
    found = fsspec.asyn.sync(
        filesystem.loop, filesystem._call_s3, method, timeout=limit, Bucket=_split(uri)[0], **keywords
    )
    return cast(dict[str, Any], found)


def _put(uri: str, data: bytes, mode: str) -> None:
    """Put an S3 object, in pieces where it is large."""
    filesystem, limit = _s3(), _limit_seconds(len(data))
    fsspec.asyn.sync(filesystem.loop, filesystem._pipe_file, "/".join(_split(uri)), data, mode=mode, timeout=limit)


@contextlib.contextmanager
def _attach(uri: str, action: str) -> Iterator[None]:
    """Turn what storage raises into one of ours, saying what was attempted and where."""
    try:
        yield
    except FileNotFoundError as error:
        cure = "check the repository, the revision and HF_TOKEN" if hub.is_hub(uri) else "check the bucket and the path"
        raise InputError(f"{uri}: not found while {action}; {cure}", uri=uri) from error
    except PermissionError as error:
        if is_s3(uri) or hub.is_hub(uri):
            cure = "check HF_TOKEN" if hub.is_hub(uri) else "check the AWS credentials and the bucket's policy"
            raise AccessDeniedError(f"{uri}: no permission while {action}; {cure}", uri=uri) from error
        raise JobError(f"{uri}: no permission while {action}; check the folder's owner and mode", uri=uri) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise JobError(f"{uri}: a file and a folder of the same name are in each other's way", uri=uri) from error
    except RerankError:
        raise
    except OSError as error:
        if error.errno in FULL_ERRNOS or _get_code(error) in FULL_CODES:
            raise StorageFullError(
                f"{uri}: storage is full while {action}; make room, then run again", uri=uri
            ) from error
        raise StorageError(f"{uri}: storage failed while {action} ({describe_cause(error)})", uri=uri) from error
    except Exception as error:
        if not is_s3(uri):
            raise
        # botocore and aiohttp have trees of their own that do not derive from OSError.
        name = type(error).__name__
        if name in {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
            raise AccessDeniedError(
                f"{uri}: no AWS credentials were found while {action}; set the AWS variables or a profile",
                uri=uri,
            ) from error
        if name == "ParamValidationError":
            raise JobError(f"{uri}: not a valid bucket or key name", uri=uri) from error
        raise StorageError(f"{uri}: storage failed while {action} ({describe_cause(error)})", uri=uri) from error


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Make this thread's storage calls wait longer, and for access that is denied too.

    For the middle of a run: storage is known to be there, so that it will be back, and credentials to be good, so that
    they are being renewed. What is opened in here stays patient.
    """
    token = _patience.set(True)
    try:
        yield
    finally:
        _patience.reset(token)


def retries_made() -> int:
    """Return how many times this process has tried a storage request again."""
    return _retries_made


def retrying(is_patient: bool | None = None) -> Retrying:
    """Return the policy for one storage request: tries with exponential, jittered waits on errors worth retrying.

    Briefly 6 tries, about 8 s of waits; patiently for 90 s. Where tries themselves take long (a stalled server), at
    least 2 are made. The variable AWS_MAX_ATTEMPTS limits the tries as in other programs.
    """
    is_patient = _patience.get() if is_patient is None else is_patient

    def is_worth_it(error: BaseException) -> bool:
        return isinstance(error, RerankError) and (error.retryable or (is_patient and type(error) is AccessDeniedError))

    def is_over(state: RetryCallState) -> bool:
        most = os.environ.get("AWS_MAX_ATTEMPTS", "")
        attempts = int(most) if most.isdecimal() else BRIEF_ATTEMPTS if not is_patient else sys.maxsize
        seconds = PATIENT_SECONDS if is_patient else BRIEF_SECONDS
        is_late = state.attempt_number >= 2 and (state.seconds_since_start or 0.0) >= seconds
        return is_late or state.attempt_number >= attempts

    return Retrying(
        retry=retry_if_exception(is_worth_it),
        stop=is_over,
        wait=wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_SECONDS),
        before_sleep=_note_retry,
        reraise=True,
    )


def _note_retry(state: RetryCallState) -> None:
    global _retries_made
    with _retries_lock:
        _retries_made += 1
    if state.outcome is not None and isinstance(state.outcome.exception(), AccessDeniedError):
        _s3.cache_clear()  # a session reads the credentials file once; the next one sees what was renewed


def list_objects(uri: str) -> list[StoredObject]:
    """List the objects of a file, a folder (at any depth) or a glob, sorted by URI; one paginated listing.

    Names that begin with `_` or `.` below the folder are skipped, as Spark, Ray and pyarrow do. Nothing there is an
    empty list.

    Raises:
        InputError: the bucket does not exist.
        JobError: no permission or no credentials.
        StorageError: storage kept failing.
    """
    if hub.is_hub(uri):
        return retrying()(_list_hub, uri)
    return _list_s3(uri) if is_s3(uri) else retrying()(_list_local, uri)


def _list_hub(uri: str) -> list[StoredObject]:
    """List all files of the repository, whatever path follows its name."""
    with _attach(uri, "listing"):
        return [StoredObject(*found) for found in hub.list_files(uri)]


def glob_to_pattern(glob: str) -> str:
    """Return a glob as a regular expression: `**/` any folders, `*` and `?` within one name."""
    pattern = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", glob):
        wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece)
        is_set = piece.startswith("[") and piece.endswith("]")
        pattern += wild or (piece.replace("[!", "[^") if is_set else re.escape(piece))
    return pattern


def _list_s3(uri: str) -> list[StoredObject]:
    (bucket, key), pattern = _split(uri.rstrip("/")), None
    if any(character in key for character in _GLOB_CHARACTERS):
        pattern = re.compile(glob_to_pattern(key))
        key = key[: min(key.find(c) for c in _GLOB_CHARACTERS if c in key)].rpartition("/")[0]
    root = f"s3://{bucket}/{key}".rstrip("/")
    found = _list_below(root)
    if not found and key:
        found = retrying()(_look_at, root)
    start = len(f"s3://{bucket}/")
    return sorted(
        (
            item
            for item in found
            if not item.uri.endswith("/")
            and not _is_hidden(item.uri, root)
            and (pattern is None or pattern.fullmatch(item.uri[start:]))
        ),
        key=lambda item: item.uri,
    )


def _list_below(root: str) -> list[StoredObject]:
    """List all objects of an S3 folder, each page a request that is tried again by itself."""
    bucket, key = _split(root)
    found: list[StoredObject] = []
    place: dict[str, str] = {}
    while True:
        page = retrying()(_list_page, root, {"Prefix": f"{key}/" if key else "", **place})
        found += [_to_object(f"s3://{bucket}/{entry['Key']}", entry, entry["Size"]) for entry in page["Contents"]]
        if not page.get("IsTruncated"):
            return found
        place = {"ContinuationToken": page["NextContinuationToken"]}


def _list_page(root: str, place: dict[str, str]) -> dict[str, Any]:
    with _attach(root, "listing"):
        return {"Contents": [], **_call("list_objects_v2", root, **place)}


def _look_at(uri: str) -> list[StoredObject]:
    """Return one S3 object in a list, which is empty where there is none."""
    with contextlib.suppress(InputError), _attach(uri, "listing"):
        found = _call("head_object", uri, Key=_split(uri)[1])
        return [_to_object(uri, found, found["ContentLength"])]
    return []


def _to_object(uri: str, entry: dict[str, Any], size: int) -> StoredObject:
    modified = entry.get("LastModified")
    return StoredObject(uri, size, _get_etag(entry), modified.timestamp() if modified is not None else 0.0)


def _get_etag(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _list_local(uri: str) -> list[StoredObject]:
    with _attach(uri, "listing"):
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
    """An S3 object open for reading, in blocks that are requests tried again by themselves.

    Every answer must be of the same object: the one with this size and etag or, where they are not known, the first.
    """

    def __init__(self, uri: str, size: int, etag: str) -> None:
        super().__init__()
        self._uri, self._size, self._etag = uri, size, etag
        self._is_patient = _patience.get()
        self._position = self._start = 0
        self._block = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        offset = self._position - self._start
        if not 0 <= offset < len(self._block):
            end = min(self._size, self._position + READ_AHEAD_BYTES)
            policy = retrying(self._is_patient)
            self._block, self._etag = policy(_get_range, self._uri, self._position, end, self._size, self._etag)
            self._start, offset = self._position, 0
        data = self._block[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position


def _get_range(uri: str, start: int, end: int, size: int, etag: str) -> tuple[bytes, str]:
    """Return some bytes of an S3 object of this size and etag ("" for any), and its etag."""
    if start >= end:
        return b"", etag
    if hub.is_hub(uri):
        return _get_hub_range(uri, start, end, size, etag)
    with _attach(uri, "reading"):
        try:
            data, answer = _get(uri, Range=f"bytes={start}-{end - 1}")
        except OSError as error:
            if _get_code(error) == "InvalidRange":
                raise ObjectChangedError(f"{uri}: is shorter than it was ({size} bytes)", uri=uri) from error
            raise
    found = _get_etag(answer)
    if etag and found and found != etag:
        raise ObjectChangedError(f"{uri}: is another object than it was (etag {found}, not {etag})", uri=uri)
    total = answer.get("ContentRange", "").rpartition("/")[2]
    if total.isdecimal() and int(total) != size:
        raise ObjectChangedError(f"{uri}: has another size than it had ({total} bytes, not {size})", uri=uri)
    if len(data) != end - start:
        raise StorageError(f"{uri}: storage gave {len(data)} bytes where {end - start} were asked for", uri=uri)
    return data, found


def _get_hub_range(uri: str, start: int, end: int, size: int, etag: str) -> tuple[bytes, str]:
    with _attach(uri, "reading"):
        found_size, found = hub.look_at(uri)
        if found_size != size or (etag and found != etag):
            raise ObjectChangedError(f"{uri}: is another file than it was ({found_size} bytes, hash {found})", uri=uri)
        data = hub.read_range(uri, start, end)
    if len(data) != end - start:
        raise StorageError(f"{uri}: the hub gave {len(data)} bytes where {end - start} were asked for", uri=uri)
    return data, found


def _get(uri: str, **keywords: Any) -> tuple[bytes, dict[str, Any]]:
    """Return an S3 object's bytes, and what else the answer says."""

    async def get(filesystem: Any) -> tuple[bytes, dict[str, Any]]:
        bucket, key = _split(uri)
        async with asyncio.timeout(REQUEST_SECONDS):
            answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, **keywords)
        body = answer.pop("Body")
        try:
            async with asyncio.timeout(_limit_seconds(answer["ContentLength"])):
                return await body.read(), answer
        finally:
            body.close()

    return cast(tuple[bytes, dict[str, Any]], fsspec.asyn.sync(_s3().loop, get, _s3()))


def _get_code(error: BaseException) -> str:
    """Return the code of S3's own error that s3fs translated, which it keeps as the cause."""
    response = getattr(error.__cause__, "response", None)
    return str(response["Error"].get("Code", "")) if response else ""


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
    if not is_s3(uri) and not hub.is_hub(uri):
        return retrying()(_open_local, uri, size, etag)
    if size is None and hub.is_hub(uri):
        size, etag = retrying()(_look_at_hub, uri)
    if size is None:
        found = retrying()(_look_at, uri)
        if not found:
            raise InputError(f"{uri}: not found while opening; check the bucket and the path", uri=uri)
        size, etag = found[0].size, found[0].etag
    return io.BufferedReader(_RemoteFile(uri, size, etag), buffer_size=2**20)


def _look_at_hub(uri: str) -> tuple[int, str]:
    with _attach(uri, "opening"):
        return hub.look_at(uri)


def _open_local(uri: str, size: int | None, etag: str) -> BinaryIO:
    with _attach(uri, "opening"):
        file = open(uri, "rb")  # noqa: SIM115 - the caller closes it
        try:
            if size is not None:
                _compare(uri, os.fstat(file.fileno()), size, etag)
        except BaseException:
            file.close()
            raise
        return file


def refuse_changed(uri: str, size: int | None, etag: str) -> None:
    """Refuse a local file that is no longer the one with this size and etag; to be called after reading it.

    In S3 and on the hub every answer was compared already.

    Raises:
        ObjectChangedError: it changed.
        InputError: it is gone.
    """
    if size is not None and not is_s3(uri) and not hub.is_hub(uri):
        with _attach(uri, "reading"):
            _compare(uri, os.stat(uri), size, etag)


def _compare(uri: str, status: os.stat_result, size: int, etag: str) -> None:
    if status.st_size != size:
        raise ObjectChangedError(f"{uri}: has another size than it had ({status.st_size} bytes, not {size})", uri=uri)
    if etag and str(status.st_mtime_ns) != etag:
        raise ObjectChangedError(f"{uri}: was written to (at {status.st_mtime_ns} ns, not {etag})", uri=uri)


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
        size = _look_at_hub(uri)[0] if size is None else size
        return _get_range(uri, start or 0, size, size, "")[0]
    if is_s3(uri) and start is not None and size is not None:
        return _get_range(uri, start, size, size, "")[0]
    with _attach(uri, "reading"):
        if is_s3(uri):
            return _get(uri)[0]
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
    if is_s3(uri):
        return retrying()(_get_range, uri, start, end, size, "")[0]
    with open_input(uri, size=size) as file:
        file.seek(start)
        return file.read(end - start)


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
            _put(uri, data, "overwrite")
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
    """Write an object only where there is none; return whether this call made it, so that `data` must be its own.

    In S3 this is a put with `If-None-Match: *`; locally a hard link, which fails where the name is taken. Of a put whose
    answer was lost another try finds its own bytes there, also at the first, for aiohttp 3.14 sends a put again by
    itself.
    """
    return retrying()(_create_once, uri, data) or (is_s3(uri) and read_if_present(uri) == data)


def _create_once(uri: str, data: bytes) -> bool:
    with _attach(uri, "creating"):
        try:
            if is_s3(uri):
                _put(uri, data, "create")
                return True
            target = Path(uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}"
            try:
                temporary.write_bytes(data)
                os.link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if _get_code(error) == "PreconditionFailed":  # some servers do not say which, and this is the only one
                return False
            raise


def delete_objects(uris: list[str]) -> None:
    """Delete objects; one that is gone already is no error."""
    remote = [uri for uri in uris if is_s3(uri)]
    for start in range(0, len(remote), DELETED_AT_ONCE):
        retrying()(_delete_remote, remote[start : start + DELETED_AT_ONCE])
    for uri in uris:
        if not is_s3(uri):
            retrying()(_delete_local, uri)


def _delete_remote(uris: list[str]) -> None:
    """Delete S3 objects of one bucket."""
    objects = [{"Key": _split(uri)[1]} for uri in uris]
    with contextlib.suppress(InputError), _attach(uris[0], "deleting"):
        answer = _call("delete_objects", uris[0], Delete={"Objects": objects, "Quiet": True})
        if failed := answer.get("Errors"):
            code = failed[0].get("Code", "no code")
            raise StorageError(f"{uris[0]}: {len(failed)} of {len(uris)} objects could not be deleted ({code})")


def _delete_local(uri: str) -> None:
    with _attach(uri, "deleting"):
        Path(uri).unlink(missing_ok=True)


def delete_folder(uri: str) -> None:
    """Delete everything below a folder."""
    if is_s3(uri):
        with contextlib.suppress(InputError):
            delete_objects([found.uri for found in _list_below(uri.rstrip("/"))])
    else:
        retrying()(_delete_tree, uri)


def _delete_tree(uri: str) -> None:
    with contextlib.suppress(InputError), _attach(uri, "deleting"):
        shutil.rmtree(uri)


def download_folder(uri: str, target: Path, *, skip: tuple[str, ...] = ()) -> None:
    """Copy the objects directly below a folder to a local one, leaving out names that end in one of `skip`."""
    for found in list_objects(uri):
        name = found.uri[len(uri) :].lstrip("/")
        if not name.endswith(skip) and "/" not in name:
            _download(found, target / name)


def _download(found: StoredObject, target: Path) -> None:
    """Copy an object to a file, several blocks at a time."""
    if not is_s3(found.uri):
        with _attach(found.uri, "downloading"):
            shutil.copyfile(found.uri, target)
        return
    policy_is_patient = _patience.get()
    with target.open("wb") as file, ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:

        def copy(start: int) -> None:
            end = min(found.size, start + READ_AHEAD_BYTES)
            data, _ = retrying(policy_is_patient)(_get_range, found.uri, start, end, found.size, found.etag)
            os.pwrite(file.fileno(), data, start)

        copies = [pool.submit(copy, start) for start in range(0, found.size, READ_AHEAD_BYTES)]
        try:
            for done in copies:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
