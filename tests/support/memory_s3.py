"""An S3 in memory, reached through fsspec's registry, whose requests wait until a test lets each of them go.

A process of the simulation is a thread; each of its requests waits at the gate, so that the test decides what happens between
any two of them: another process's requests, a request that is done twice, as a client does that sends it again by itself, one
whose answer is lost, or the death of the process.
"""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

import fsspec
import s3fs
from botocore.exceptions import ClientError
from fsspec.asyn import AsyncFileSystem
from s3fs.errors import translate_boto_error

from rerank_actor.storage.limits import override_limits
from rerank_actor.storage.s3_client import connect_s3

STEP_SECONDS = 60.0
Fate = Literal["done", "twice", "lost", "refused"]  # of a request; of a lost one the answer alone is
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)  # when everything was written; nothing depends on it
_process: ContextVar["Process | None"] = ContextVar("process", default=None)


class Process:
    """A thread that stands still before each request until `step` is called.

    Args:
        work: what it does; what that returns or raises is its `outcome`.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self.outcome: Any = None
        self.requests = 0
        self.standing = ""  # before this request
        self.is_killed = False
        self.lost = 0  # answers
        self._gate: asyncio.Future[Fate] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stands = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()
        assert self._stands.wait(STEP_SECONDS)

    @property
    def is_alive(self) -> bool:
        """Whether it has a request to make."""
        return self._gate is not None

    def step(self, fate: Fate = "done") -> None:
        """Let the request go that it stands before, and wait until it stands before the next or has ended."""
        gate, loop = self._gate, self._loop
        assert gate is not None and loop is not None
        self._gate = None
        self.lost += fate == "lost"
        self._stands.clear()
        loop.call_soon_threadsafe(gate.set_result, fate)
        assert self._stands.wait(STEP_SECONDS), "a process neither ended nor made a request"

    def kill(self) -> None:
        """Let nothing that it does from now on reach the store; it has no time to give anything back."""
        self.is_killed = True
        self.step("refused")

    async def wait(self, request: str) -> Fate:
        """Stand still before a request; return what is to become of it."""
        if self.is_killed:
            return "refused"
        self.requests += 1
        self.standing = request
        self._loop = asyncio.get_running_loop()
        gate = self._gate = self._loop.create_future()
        self._stands.set()
        return await gate

    def _run(self, work: Callable[[], Any]) -> None:
        _process.set(self)
        try:
            self.outcome = work()
        except Exception as error:
            self.outcome = error
        finally:
            self._gate = None
            self._stands.set()


class MemoryS3(AsyncFileSystem):  # type: ignore[misc]
    """The part of s3fs that the project uses, over a dictionary."""

    objects: ClassVar[dict[str, bytes]] = {}
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**{name: value for name, value in options.items() if name in ("loop", "asynchronous")})

    async def _call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
        process = _process.get()
        fate = await process.wait(f"{method} {arguments.get('Key', '')}") if process is not None else "done"
        if fate in ("twice", "lost"):
            with contextlib.suppress(OSError):
                self._answer(method, arguments)
        if fate in ("lost", "refused"):
            raise ConnectionResetError("on demand")
        return self._answer(method, arguments)

    async def _pipe_file(self, path: str, data: bytes, **options: Any) -> None:
        bucket, _, key = path.partition("/")
        await self._call_s3("put_object", Bucket=bucket, Key=key, Body=data)

    def _answer(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(getattr(self, f"_{method}")(**arguments))
        except ClientError as error:
            raise translate_boto_error(error) from error

    def _put_object(
        self, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str | None = None, IfMatch: str | None = None
    ) -> dict[str, Any]:
        there = self.objects.get(Key)
        if IfNoneMatch and there is not None:
            _refuse("PreconditionFailed", 412)
        if IfMatch and there is None:
            _refuse("NoSuchKey", 404)
        if IfMatch and there is not None and _mark(there) != IfMatch:
            _refuse("PreconditionFailed", 412)
        self.objects[Key] = bytes(Body)
        return {"ETag": f'"{_mark(Body)}"'}

    def _get_object(self, Bucket: str, Key: str, Range: str = "") -> dict[str, Any]:
        data = self._find(Key)
        if Range:
            start, end = (int(number) for number in Range.removeprefix("bytes=").split("-"))
            total, data = len(data), data[start : end + 1]
            extent = {"ContentRange": f"bytes {start}-{end}/{total}"}
        else:
            extent = {}
        return {"Body": _Body(data), "ContentLength": len(data), "ETag": f'"{_mark(self._find(Key))}"', **extent}

    def _head_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        data = self._find(Key)
        return {"ContentLength": len(data), "ETag": f'"{_mark(data)}"', "LastModified": EPOCH}

    def _list_objects_v2(self, Bucket: str, Prefix: str, Delimiter: str = "", **options: Any) -> dict[str, Any]:
        found = sorted(key for key in self.objects if key.startswith(Prefix))
        if Delimiter:
            found = [key for key in found if Delimiter not in key[len(Prefix) :]]
        return {
            "Contents": [{"Key": key, "Size": len(self.objects[key]), **self._head_object("", key)} for key in found]
        }

    def _delete_objects(self, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:
        for item in Delete["Objects"]:
            self.objects.pop(item["Key"], None)
        return {}

    def _find(self, key: str) -> bytes:
        if key not in self.objects:
            _refuse("NoSuchKey", 404)
        return self.objects[key]


class _Body:
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        return self._data

    def close(self) -> None:
        pass


def _mark(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _refuse(code: str, status: int) -> None:
    raise ClientError(
        {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "call"
    )


@contextlib.contextmanager
def memory_s3() -> Iterator[dict[str, bytes]]:
    """Let s3:// be this process's memory for a while; gives the objects by key, whatever their bucket."""
    fsspec.register_implementation("s3", MemoryS3, clobber=True)
    connect_s3.cache_clear()
    MemoryS3.objects.clear()
    try:
        with override_limits(longest_wait_seconds=0.0, brief_seconds=0.0, patient_seconds=0.0):  # two tries, at once
            yield MemoryS3.objects
    finally:
        fsspec.register_implementation("s3", s3fs.S3FileSystem, clobber=True)
        connect_s3.cache_clear()
