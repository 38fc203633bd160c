"""The connection to Google Cloud Storage and Azure Blob Storage by obstore: single requests that are limited in time.

Takes URIs and bytes, gives objects. Errors are Python's own, as of local files; what to say of them, and when to try again,
`retry` knows. Credentials and endpoints come from the variables that each cloud's own tools read. Sources: obstore 0.12 and
the crate object_store for names of settings, `STORAGE_EMULATOR_HOST` of Google's clients, `AZURE_STORAGE_*` of Azure's.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import fsspec.asyn

from rerank_actor.errors import JobError
from rerank_actor.storage.limits import current_limits
from rerank_actor.storage.s3_client import limit_seconds
from rerank_actor.storage.uri import Bytes, StoredObject, is_google, join_uri, split_uri

ACCOUNT = re.compile(r"[^@/]+@([^./]+)\.[^/]+")  # as in abfss://container@account.dfs.core.windows.net
EMULATOR_TOKEN = "emulator"
DELETED_TOGETHER = 16
LONGEST_SECONDS = 86_400  # of a client's requests; what one may take depends on its bytes
ERRORS: dict[str, type[OSError]] = {
    "AlreadyExistsError": FileExistsError,
    "PreconditionError": FileExistsError,
    "PermissionDeniedError": PermissionError,
    "UnauthenticatedError": PermissionError,
}

STATUS = re.compile(r"(?<=status code: )(\d{3})( [A-Z][A-Za-z]+)*")
STATUSES: dict[int, type[OSError]] = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
NOT_READ = {  # entries of a connection string, and what says the same
    "SharedAccessSignature": "set AZURE_STORAGE_SAS_TOKEN to it",
    "EndpointSuffix": "set AZURE_STORAGE_ENDPOINT to the account's address",
    "UseDevelopmentStorage": "give AccountName, AccountKey and BlobEndpoint there",
}


class Answer(NamedTuple):
    """Bytes of an object, the size of the whole, its etag, and the mark that a put on a condition takes."""

    data: bytes
    size: int
    etag: str
    mark: str


def forget_connections() -> None:
    """Drop this process's clients: the next ones read variables and files of credentials anew."""
    _connect.cache_clear()


@lru_cache(maxsize=32)
def _connect(store: str, is_listing: bool) -> Any:
    """Return the client of a bucket or container; for listings one that tries each page again by itself."""
    from obstore.store import AzureStore, GCSStore

    limits, name = current_limits(), split_uri(store)[0]
    config: Any = _configure_google() if is_google(store) else _configure_azure(store, name)
    options: Any = {
        "connect_timeout": timedelta(seconds=limits.connect_timeout_seconds),
        "read_timeout": timedelta(seconds=limits.read_timeout_seconds),
        "timeout": timedelta(seconds=limits.request_seconds if is_listing else LONGEST_SECONDS),
        "allow_http": any(value.startswith("http://") for value in config.values()),
    }
    retries: Any = {
        "max_retries": limits.brief_attempts if is_listing else 0,
        "retry_timeout": timedelta(seconds=limits.brief_seconds),
        "backoff": {"max_backoff": timedelta(seconds=limits.longest_wait_seconds)},
    }
    kind = GCSStore if is_google(store) else AzureStore
    return kind(name.partition("@")[0], config=config, client_options=options, retry_config=retries)


def _configure_google() -> dict[str, str]:
    """Return what obstore does not take from the variables by itself."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if not emulator:
        return {}
    return {"base_url": emulator if "://" in emulator else f"http://{emulator}", "bearer_token": EMULATOR_TOKEN}


def _configure_azure(store: str, name: str) -> dict[str, str]:
    """Return account, key and endpoint from the variables of Azure's own tools, of which obstore knows not all.

    Raises:
        JobError: no account is named, or the connection string says what is not read.
    """
    connection = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
    said = dict(pair.split("=", 1) for pair in connection if "=" in pair)
    for entry, cure in NOT_READ.items():
        if said.get(entry, "core.windows.net") != "core.windows.net":  # the suffix that is meant anyway
            raise JobError(f"{store}: {entry} of AZURE_STORAGE_CONNECTION_STRING is not read; {cure}", uri=store)
    named = ACCOUNT.fullmatch(name)
    if named and said.get("AccountName", named[1]) != named[1]:
        said = {}  # of another account

    def look_up(*variables: str, entry: str) -> str:
        return next((os.environ[variable] for variable in variables if os.environ.get(variable)), said.get(entry, ""))

    found = {
        "account_name": named[1]
        if named
        else look_up("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT", entry="AccountName"),
        "account_key": look_up("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", entry="AccountKey"),
        "endpoint": look_up("AZURE_STORAGE_ENDPOINT", entry="BlobEndpoint").rstrip("/"),
    }
    if not found["account_name"]:
        raise JobError(
            f"{store}: which storage account? Set AZURE_STORAGE_ACCOUNT_NAME, or write "
            "abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/path",
            uri=store,
        )
    return {setting: value for setting, value in found.items() if value}


@contextlib.contextmanager
def _translate_errors(uri: str) -> Iterator[None]:
    """Turn errors of obstore into Python's own."""
    try:
        yield
    except ValueError as error:
        raise JobError(f"{uri}: not a valid name of a bucket, container or key", uri=uri) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "obstore":
            raise
        raise _translate(type(error).__name__, str(error)) from None  # its text may hold a signed URL


def _translate(name: str, words: str) -> OSError:
    """Return Python's error for one of obstore, which says the status of most answers to listings in words alone."""
    status = STATUS.search(words)
    if status is None:
        return ERRORS.get(name, OSError)(re.sub(r"\?\S+", "", words.partition("\n")[0]))
    return (ERRORS.get(name) or STATUSES.get(int(status[1]), OSError))(f"it answered {status[0]}")


def _ask(uri: str, make: Callable[[Any, str], Coroutine[Any, Any, Any]], *, is_listing: bool = False) -> Any:
    """Make requests with the client of a URI's store and its key there; they see to their own time."""
    scheme, (place, key) = uri.partition("://")[0], split_uri(uri)
    with _translate_errors(uri):
        return fsspec.asyn.sync(fsspec.asyn.get_loop(), make, _connect(f"{scheme}://{place}", is_listing), key)


def get_cloud(uri: str, start: int = 0, end: int | None = None) -> Answer:
    """Return an object's bytes, or those from `start` to `end`, which are fewer where it is shorter.

    Raises:
        FileNotFoundError, PermissionError, OSError: it is not there, is closed, or was not got.
    """
    import obstore

    async def get(store: Any, key: str) -> Answer:
        async with asyncio.timeout(current_limits().request_seconds):
            found = await obstore.get_async(store, key, options=None if end is None else {"range": (start, end)})
        size = found.meta["size"]
        async with asyncio.timeout(limit_seconds(size if end is None else end - start)):
            data = bytes(await found.bytes_async())
        etag = _get_etag(found.meta)
        return Answer(data, size, etag, str(found.meta["version"]) if is_google(uri) else etag)

    answer: Answer = _ask(uri, get)
    return answer


def put_cloud(uri: str, data: Bytes) -> None:
    """Put an object, replacing what is there. Errors as of `put_cloud_if`."""
    _put(uri, data, "overwrite")


def put_cloud_if(uri: str, data: bytes, mark: str | None) -> None:
    """Put an object where the one with this version mark is, or none if it is None.

    Raises:
        FileExistsError: that is not so.
        FileNotFoundError, PermissionError, OSError: it was not put.
    """
    if mark is None:
        _put(uri, data, "create")
    else:
        _put(uri, data, {"version": mark} if is_google(uri) else {"e_tag": f'"{mark}"'})  # Google's is the generation


def _put(uri: str, data: Bytes, mode: Any) -> None:
    import obstore

    async def put(store: Any, key: str) -> None:
        async with asyncio.timeout(limit_seconds(len(data))):
            await obstore.put_async(store, key, data, mode=mode, use_multipart=False)

    _ask(uri, put)


def look_at_cloud(uri: str) -> StoredObject:
    """Return what the store says of an object. Errors as of `get_cloud`."""
    import obstore

    async def look_at(store: Any, key: str) -> StoredObject:
        async with asyncio.timeout(current_limits().request_seconds):
            return _to_object(uri, await obstore.head_async(store, key))

    found: StoredObject = _ask(uri, look_at)
    return found


def list_cloud(folder: str, *, is_deep: bool) -> list[StoredObject]:
    """Return the objects below a folder, at any depth or in the folder itself, without marks of folders."""
    import obstore

    async def list_all(store: Any, key: str) -> list[Any]:
        if not is_deep:
            return list((await obstore.list_with_delimiter_async(store, key or None))["objects"])
        return [entry async for page in obstore.list(store, key or None, chunk_size=1000) for entry in page]

    root = folder[: len(folder) - len(split_uri(folder)[1])].rstrip("/")
    objects = [_to_object(join_uri(root, entry["path"]), entry) for entry in _ask(folder, list_all, is_listing=True)]
    folders = {item.uri.rpartition("/")[0] for item in objects}  # obstore cuts the slash that a mark's key ends in
    return [item for item in objects if item.size or item.uri not in folders]


def delete_cloud(uris: list[str]) -> None:
    """Delete objects of one bucket or container; one that is gone already is no error."""
    import obstore

    async def delete(store: Any, _: str) -> None:
        async def delete_one(uri: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(store, split_uri(uri)[1])

        for start in range(0, len(uris), DELETED_TOGETHER):
            async with asyncio.timeout(current_limits().request_seconds):
                await asyncio.gather(*[delete_one(uri) for uri in uris[start : start + DELETED_TOGETHER]])

    _ask(uris[0], delete)


def _to_object(uri: str, entry: Any) -> StoredObject:
    return StoredObject(uri, entry["size"], _get_etag(entry), entry["last_modified"].timestamp())


def _get_etag(entry: Any) -> str:
    return str(entry["e_tag"] or "").strip('"')
