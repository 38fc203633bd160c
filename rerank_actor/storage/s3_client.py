"""The connection to S3: one s3fs file system a process, and single requests that are limited in time.

Endpoint and credentials come from the standard AWS variables and profiles, which are carried to workers. Knows nothing of
tries: a request here is made once.
"""

import asyncio
import os
from functools import lru_cache
from typing import Any, cast

import fsspec.asyn

from rerank_actor.storage.limits import current_limits
from rerank_actor.storage.uri import Bytes, split_uri

SLOWEST_BYTES_PER_SECOND = 256 * 1024


CARRIED_VARIABLES = ("HF_TOKEN", "HF_ENDPOINT", "STORAGE_EMULATOR_HOST")
CARRIED_PREFIXES = ("AWS_", "GOOGLE_", "AZURE_")


def capture_environment() -> dict[str, str]:
    """Return this process's variables for storage, to be carried to workers that were started elsewhere."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(CARRIED_PREFIXES) or name in CARRIED_VARIABLES
    }


def adopt_environment(environment: dict[str, str]) -> None:
    """Set variables for storage that this process lacks; what a node sets itself stays."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)


@lru_cache(maxsize=1)
def connect_s3() -> Any:
    """Return this process's file system, made at the first call."""
    filesystem = fsspec.filesystem(
        "s3",
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": current_limits().connect_timeout_seconds,
            "read_timeout": current_limits().read_timeout_seconds,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    )
    filesystem.retries = 1  # tries, which would multiply with those of `retrying`
    return filesystem


def limit_seconds(num_bytes: int) -> float:
    """Return how long a request that moves so many bytes may take."""
    return current_limits().request_seconds + num_bytes / SLOWEST_BYTES_PER_SECOND


def call_s3(method: str, uri: str, **keywords: Any) -> dict[str, Any]:
    """Make one S3 request that is small both ways."""
    filesystem, limit = connect_s3(), limit_seconds(0)
    found = fsspec.asyn.sync(
        filesystem.loop, filesystem._call_s3, method, timeout=limit, Bucket=split_uri(uri)[0], **keywords
    )
    return cast(dict[str, Any], found)


def put_s3(uri: str, data: Bytes) -> None:
    """Put an S3 object, in pieces where it is large."""
    filesystem, limit = connect_s3(), limit_seconds(len(data))
    fsspec.asyn.sync(filesystem.loop, filesystem._pipe_file, "/".join(split_uri(uri)), data, timeout=limit)


def put_s3_if(uri: str, data: bytes, mark: str | None) -> None:
    """Put an S3 object in one piece, where the one with this version mark is, or none if it is None."""
    bucket, key = split_uri(uri)
    condition = {"IfNoneMatch": "*"} if mark is None else {"IfMatch": mark}
    filesystem, limit = connect_s3(), limit_seconds(len(data))
    fsspec.asyn.sync(
        filesystem.loop,
        filesystem._call_s3,
        "put_object",
        Bucket=bucket,
        Key=key,
        Body=data,
        **condition,
        timeout=limit,
    )


def get_etag(answer: dict[str, Any]) -> str:
    """Return the version mark that an answer or an entry of a listing holds."""
    return str(answer.get("ETag", "")).strip('"')


def get_s3(uri: str, **keywords: Any) -> tuple[bytes, dict[str, Any]]:
    """Return an S3 object's bytes, and what else the answer says."""

    async def get(filesystem: Any) -> tuple[bytes, dict[str, Any]]:
        bucket, key = split_uri(uri)
        async with asyncio.timeout(current_limits().request_seconds):
            answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, **keywords)
        body = answer.pop("Body")
        try:
            async with asyncio.timeout(limit_seconds(answer["ContentLength"])):
                return await body.read(), answer
        finally:
            body.close()

    return cast(tuple[bytes, dict[str, Any]], fsspec.asyn.sync(connect_s3().loop, get, connect_s3()))


def get_error_code(error: BaseException) -> str:
    """Return the code of S3's own error that s3fs translated, which it keeps as the cause."""
    response = getattr(error.__cause__, "response", None)
    return str(response["Error"].get("Code", "")) if isinstance(response, dict) else ""  # another library's is no dict
