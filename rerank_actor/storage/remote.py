"""Objects in S3, at Google and in Azure, and files on the hub: listed by page, read by range, put, deleted.

Every answer of a read must be of the same object, by size and etag. Knows nothing of local folders.
"""

import contextlib
import io
import os
import re
from typing import Any

from rerank_actor.errors import InputError, ObjectChangedError, StorageError
from rerank_actor.storage import hub
from rerank_actor.storage.cloud_client import (
    delete_cloud,
    get_cloud,
    list_cloud,
    look_at_cloud,
    put_cloud,
    put_cloud_if,
)
from rerank_actor.storage.limits import current_limits
from rerank_actor.storage.retry import _patience, retrying, translate_errors
from rerank_actor.storage.s3_client import call_s3, get_error_code, get_etag, get_s3, put_s3, put_s3_if
from rerank_actor.storage.uri import (
    Bytes,
    Listing,
    StoredObject,
    find_root,
    glob_to_pattern,
    is_glob,
    is_hidden,
    is_s3,
    split_uri,
)

DELETED_AT_ONCE = 1000  # the most that S3 takes


def list_hub(uri: str) -> Listing:
    """List all files of the repository, whatever path follows its name."""
    with translate_errors(uri, "listing"):
        return Listing([StoredObject(*entry) for entry in hub.list_files(uri)])


def list_remote(uri: str) -> Listing:
    """List an object, the objects below a prefix at any depth, or those that a glob matches and that no key is."""
    root, pattern = uri.rstrip("/"), None
    if is_glob(root):
        if found := retrying()(look_at, root):
            return Listing(found)
        pattern, root = re.compile(glob_to_pattern(root)), find_root(root)
    objects = list_below(root)
    if not objects and split_uri(root)[1]:
        objects = retrying()(look_at, root)
    objects = sorted((item for item in objects if not item.uri.endswith("/")), key=lambda item: item.uri)
    hidden = {item.uri for item in objects if is_hidden(item.uri, root)}
    shown = [item for item in objects if item.uri not in hidden]
    if pattern is None:
        return Listing(shown, sorted(hidden))
    matched = [item for item in shown if pattern.fullmatch(item.uri)]
    folders = re.compile(f"(?:{pattern.pattern})/.*")
    deeper = sorted({item.uri for item in shown if folders.fullmatch(item.uri)} - {item.uri for item in matched})
    return Listing(matched, [name for name in sorted(hidden) if pattern.fullmatch(name)], deeper)


def list_remote_children(uri: str) -> list[StoredObject]:
    """List the objects in a folder itself, in order of names."""
    root = uri.rstrip("/")
    objects = [item for item in list_below(root, is_deep=False) if not item.uri.endswith("/")]
    return sorted((item for item in objects if not is_hidden(item.uri, root)), key=lambda item: item.uri)


def list_below(root: str, *, is_deep: bool = True) -> list[StoredObject]:
    """List all objects of a folder, each page a request that is tried again by itself."""
    if not is_s3(root):
        return retrying()(_list_cloud, root, is_deep)
    bucket, key = split_uri(root)
    options = {} if is_deep else {"Delimiter": "/"}
    objects: list[StoredObject] = []
    token: dict[str, str] = {}
    while True:
        page = retrying()(_list_page, root, {"Prefix": f"{key}/" if key else "", **options, **token})
        objects += [_to_object(f"s3://{bucket}/{entry['Key']}", entry, entry["Size"]) for entry in page["Contents"]]
        if not page.get("IsTruncated"):
            return objects
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _list_cloud(root: str, is_deep: bool) -> list[StoredObject]:
    with translate_errors(root, "listing"):
        return list_cloud(root, is_deep=is_deep)


def _list_page(root: str, token: dict[str, str]) -> dict[str, Any]:
    with translate_errors(root, "listing"):
        return {"Contents": [], **call_s3("list_objects_v2", root, **token)}


def look_at(uri: str) -> list[StoredObject]:
    """Return one object in a list, which is empty where there is none."""
    with contextlib.suppress(InputError), translate_errors(uri, "listing"):
        if not is_s3(uri):
            return [look_at_cloud(uri)]
        answer = call_s3("head_object", uri, Key=split_uri(uri)[1])
        return [_to_object(uri, answer, answer["ContentLength"])]
    return []


def _to_object(uri: str, entry: dict[str, Any], size: int) -> StoredObject:
    modified = entry.get("LastModified")
    return StoredObject(uri, size, get_etag(entry), modified.timestamp() if modified is not None else 0.0)


class RemoteFile(io.RawIOBase):
    """An object open for reading, in blocks that are requests tried again by themselves.

    Every answer must be of the same object: the one with this size and etag or, where they are not known, the first.
    """

    def __init__(self, uri: str, size: int, etag: str) -> None:
        super().__init__()
        self._uri, self._size, self._etag = uri, size, etag
        self._is_patient = _patience.get()
        self._position = self._start = 0
        self._block = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is left of the current block, fetching the next one where nothing is."""
        offset = self._position - self._start
        if not 0 <= offset < len(self._block):
            end = min(self._size, self._position + current_limits().read_ahead_bytes)
            policy = retrying(self._is_patient)
            self._block, self._etag = policy(get_range, self._uri, self._position, end, self._size, self._etag)
            self._start, offset = self._position, 0
        data = self._block[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset, which may lie behind the end."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._position


def get_range(uri: str, start: int, end: int, size: int, etag: str) -> tuple[bytes, str]:
    """Return some bytes of an object of this size and etag ("" for any), and its etag."""
    if start >= end:
        return b"", etag
    if hub.is_hub(uri):
        return _get_hub_range(uri, start, end, size, etag)
    with translate_errors(uri, "reading"):
        data, found_size, found_etag = _request_range(uri, start, end, size)
    if etag and found_etag and found_etag != etag:
        raise ObjectChangedError(f"{uri}: is another object than it was (etag {found_etag}, not {etag})", uri=uri)
    if found_size != size:
        raise ObjectChangedError(f"{uri}: has another size than it had ({found_size} bytes, not {size})", uri=uri)
    if len(data) != end - start:
        raise StorageError(f"{uri}: storage gave {len(data)} bytes where {end - start} were asked for", uri=uri)
    return data, found_etag


def _request_range(uri: str, start: int, end: int, size: int) -> tuple[bytes, int, str]:
    """Return some bytes of an object, the size that it has, as far as that is told, and its etag."""
    if not is_s3(uri):
        try:
            return get_cloud(uri, start, end)[:3]
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:  # obstore does not say that there are no such bytes
            with contextlib.suppress(OSError):
                if look_at_cloud(uri).size <= start:
                    raise ObjectChangedError(f"{uri}: is shorter than it was ({size} bytes)", uri=uri) from error
            raise
    try:
        data, answer = get_s3(uri, Range=f"bytes={start}-{end - 1}")
    except OSError as error:
        if get_error_code(error) == "InvalidRange":
            raise ObjectChangedError(f"{uri}: is shorter than it was ({size} bytes)", uri=uri) from error
        raise
    total = answer.get("ContentRange", "").rpartition("/")[2]
    return data, int(total) if total.isdecimal() else size, get_etag(answer)


def _get_hub_range(uri: str, start: int, end: int, size: int, etag: str) -> tuple[bytes, str]:
    with translate_errors(uri, "reading"):
        found_size, mark = hub.look_at(uri)
        if found_size != size or (etag and mark != etag):
            raise ObjectChangedError(f"{uri}: is another file than it was ({found_size} bytes, hash {mark})", uri=uri)
        data = hub.read_range(uri, start, end)
    if len(data) != end - start:
        raise StorageError(f"{uri}: the hub gave {len(data)} bytes where {end - start} were asked for", uri=uri)
    return data, mark


def look_at_hub(uri: str) -> tuple[int, str]:
    """Return size and hash of a file on the hub."""
    with translate_errors(uri, "opening"):
        return hub.look_at(uri)


def delete_remote(uris: list[str]) -> None:
    """Delete objects of one bucket."""
    objects = [{"Key": split_uri(uri)[1]} for uri in uris]
    with contextlib.suppress(InputError), translate_errors(uris[0], "deleting"):
        if not is_s3(uris[0]):
            delete_cloud(uris)
            return
        answer = call_s3("delete_objects", uris[0], Delete={"Objects": objects, "Quiet": True})
        if failed := answer.get("Errors"):
            code = failed[0].get("Code", "no code")
            raise StorageError(f"{uris[0]}: {len(failed)} of {len(uris)} objects could not be deleted ({code})")


def get_object(uri: str) -> tuple[bytes, str]:
    """Return an object's bytes, and the mark that a put on a condition takes. Errors are Python's own and the client's."""
    if is_s3(uri):
        data, answer = get_s3(uri)
        return data, get_etag(answer)
    found = get_cloud(uri)
    return found.data, found.mark


def put_object(uri: str, data: Bytes) -> None:
    """Put an object, replacing what is there. Errors as of `get_object`."""
    (put_s3 if is_s3(uri) else put_cloud)(uri, data)


def put_object_if(uri: str, data: bytes, mark: str | None) -> None:
    """Put an object where the one with this mark is, or none if it is None. Errors as of `get_object`."""
    (put_s3_if if is_s3(uri) else put_cloud_if)(uri, data, mark)
