"""Tries: what storage raises, turned into the project's errors, and how long a request is tried again.

Each request is tried by itself, in this one place, so that a listing of many pages or a long read never begins anew;
`patient` says how long. Sources of the codes: errno(3), and what Ceph and MinIO answer when they are full.
"""

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from rerank_actor.errors import (
    AccessDeniedError,
    InputError,
    JobError,
    RerankError,
    StorageError,
    StorageFullError,
    describe_cause,
)
from rerank_actor.storage import hub
from rerank_actor.storage.cloud_client import forget_connections
from rerank_actor.storage.limits import current_limits
from rerank_actor.storage.s3_client import connect_s3, get_error_code
from rerank_actor.storage.uri import is_google, is_remote, is_s3

FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_CODES = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507"}  # of Ceph and MinIO

_patience: ContextVar[bool] = ContextVar("patience", default=False)
_retries_made = 0
_retries_lock = threading.Lock()


@contextlib.contextmanager
def translate_errors(uri: str, action: str) -> Iterator[None]:
    """Turn what storage raises into one of ours, saying what was attempted and where."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if action == "writing" and isinstance(error, NotADirectoryError):
            raise JobError(f"{uri}: a file and a folder of the same name are in each other's way", uri=uri) from error
        cure = "check the repository, the revision and HF_TOKEN" if hub.is_hub(uri) else "check the bucket and the path"
        raise InputError(f"{uri}: not found while {action}; {cure}", uri=uri) from error
    except PermissionError as error:
        if is_remote(uri) or hub.is_hub(uri):
            cure = "check HF_TOKEN" if hub.is_hub(uri) else f"check {_name_rights(uri)}"
            raise AccessDeniedError(f"{uri}: no permission while {action}; {cure}", uri=uri) from error
        raise JobError(f"{uri}: no permission while {action}; check the folder's owner and mode", uri=uri) from error
    except IsADirectoryError as error:
        raise JobError(f"{uri}: a file and a folder of the same name are in each other's way", uri=uri) from error
    except RerankError:
        raise
    except OSError as error:
        if error.errno == errno.EROFS:
            raise JobError(
                f"{uri}: the file system is read-only while {action}; mount it for writing", uri=uri
            ) from error
        if error.errno in FULL_ERRNOS or get_error_code(error) in FULL_CODES:
            raise StorageFullError(
                f"{uri}: storage is full while {action}; make room, then run again", uri=uri
            ) from error
        raise StorageError(f"{uri}: storage failed while {action} ({describe_cause(error)})", uri=uri) from error
    except Exception as error:
        if not is_s3(uri):
            raise
        # botocore and aiohttp have trees of their own that do not derive from OSError.
        name = type(error).__name__
        profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
        if name == "ProfileNotFound" and profile:
            raise AccessDeniedError(
                f"{uri}: there is no AWS profile {profile} in ~/.aws/config or ~/.aws/credentials; check AWS_PROFILE",
                uri=uri,
            ) from error
        if name in {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
            raise AccessDeniedError(
                f"{uri}: no AWS credentials were found while {action}; set the AWS variables or a profile",
                uri=uri,
            ) from error
        if name == "ParamValidationError":
            raise JobError(f"{uri}: not a valid bucket or key name", uri=uri) from error
        raise StorageError(f"{uri}: storage failed while {action} ({describe_cause(error)})", uri=uri) from error


def _name_rights(uri: str) -> str:
    if is_s3(uri):
        return "the AWS credentials and the bucket's policy"
    if is_google(uri):
        return "the Google Cloud credentials and the bucket's roles"
    return "the Azure credentials and the container's roles"


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
        attempts = int(most) if most.isdecimal() else current_limits().brief_attempts if not is_patient else sys.maxsize
        seconds = current_limits().patient_seconds if is_patient else current_limits().brief_seconds
        is_late = state.attempt_number >= 2 and (state.seconds_since_start or 0.0) >= seconds
        return is_late or state.attempt_number >= attempts

    return Retrying(
        retry=retry_if_exception(is_worth_it),
        stop=is_over,
        wait=wait_random_exponential(multiplier=0.5, max=current_limits().longest_wait_seconds),
        before_sleep=_note_retry,
        reraise=True,
    )


def _note_retry(state: RetryCallState) -> None:
    global _retries_made
    with _retries_lock:
        _retries_made += 1
    if state.outcome is not None and isinstance(state.outcome.exception(), AccessDeniedError):
        forget_connections()
        connect_s3.cache_clear()  # a session reads the credentials file once; the next one sees what was renewed
