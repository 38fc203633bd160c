"""An S3 in memory, reached through fsspec's registry, whose requests wait until a test lets each of them go.

A process of the simulation is a thread; each of its requests waits at the gate, so that the test decides what happens between
any two of them: another process's requests, a request that is done twice, as a client does that sends it again by itself, one
whose answer is lost, or the death of the process. Requests are done in the thread that makes them, without s3fs's loop of its
own, so that a step costs two changes of threads.
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
Fate = Literal["done", "twice", "lost", "late", "refused"]  # of a request; of a lost one the answer alone is
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
        self.is_alive = False  # has a request to make
        self.lost = 0  # answers
        self._fate: Fate = "done"
        self._stands, self._goes = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=(work,), daemon=True).start()
        self._await_standing()

    def step(self, fate: Fate = "done") -> None:
        """Let the request go that it stands before, and wait until it stands before the next or has ended."""
        assert self.is_alive
        self.is_alive = False
        self.lost += fate == "lost"
        self._fate = fate
        self._goes.release()
        self._await_standing()

    def kill(self) -> None:
        """Let nothing that it does from now on reach the store; it has no time to give anything back."""
        self.is_killed = True
        self.step("refused")

    def wait(self, request: str) -> Fate:
        """Stand still before a request; return what is to become of it."""
        if self.is_killed:
            return "refused"
        self.requests += 1
        self.standing = request
        self.is_alive = True
        self._stands.release()
        self._goes.acquire()
        return self._fate

    def _await_standing(self) -> None:
        assert self._stands.acquire(timeout=STEP_SECONDS), "a process neither ended nor made a request"

    def _run(self, work: Callable[[], Any]) -> None:
        _process.set(self)
        try:
            self.outcome = work()
        except Exception as error:
            self.outcome = error
        finally:
            self._stands.release()


class _HereLoop(asyncio.BaseEventLoop):
    """A loop that does at once what another thread would be given to do."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self

    def select(self, timeout: float | None) -> list[Any]:
        return []

    def _process_events(self, events: list[Any]) -> None:
        pass

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        handle = self.call_soon(callback, *args, context=context)
        asyncio._set_running_loop(self)
        try:
            while self._ready:  # type: ignore[attr-defined]
                self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio._set_running_loop(None)
        return handle


_here = threading.local()


class MemoryS3(AsyncFileSystem):  # type: ignore[misc]
    """The part of s3fs that the project uses, over a dictionary."""

    objects: ClassVar[dict[str, bytes]] = {}
    written: ClassVar[list[str]] = [""]  # the key of the last put
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(asynchronous=True)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """This thread's."""
        if not hasattr(_here, "loop"):
            _here.loop = _HereLoop()
        return _here.loop

    async def _call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
        process = _process.get()
        fate = process.wait(f"{method} {arguments.get('Key', '')}") if process is not None else "done"
        if fate in ("twice", "lost"):
            with contextlib.suppress(OSError):
                self._answer(method, arguments)
        if fate in ("lost", "refused"):
            raise ConnectionResetError("on demand")
        answer = self._answer(method, arguments)
        if fate == "late" and method == "list_objects_v2":  # what was written last is not listed yet
            answer["Contents"] = [item for item in answer["Contents"] if item["Key"] != self.written[-1]]
        return answer

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
        self.written[-1] = Key
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
