"""Limits of storage requests: how long one may take, how long it is tried again, how much is read at a time.

One record for the process. `override_limits` is for rehearsals of dead and slow storage that must not take minutes. Knows
nothing of requests themselves.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Seconds of one request and of its tries, and bytes of one read."""

    connect_timeout_seconds: float = 10
    read_timeout_seconds: float = 30  # without a byte
    request_seconds: float = 30  # for a request as a whole, besides its bytes
    brief_attempts: int = 6
    brief_seconds: float = 60.0
    patient_seconds: float = 90.0
    longest_wait_seconds: float = 15.0
    read_ahead_bytes: int = 8 * 2**20


_current = Limits()


def current_limits() -> Limits:
    """Return the limits that hold in this process."""
    return _current


@contextlib.contextmanager
def override_limits(**changes: Any) -> Iterator[None]:
    """Let other limits hold in this process for a while; a client for S3 keeps those of when it was made."""
    global _current
    before = _current
    _current = replace(before, **changes)
    try:
        yield
    finally:
        _current = before
