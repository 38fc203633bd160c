"""Every error that the project raises on purpose, in one tree.

An error takes one positional message (what happened, where, what to do) and keyword attributes that say where in a
form a program can read. All of them survive pickling, because they cross process borders inside Ray. `retryable`
says whether trying the same thing again can help; nothing in the project decides that by looking at a message.
"""

import re
from typing import Any


class RerankError(Exception):
    """Base of the tree. `where` holds the keyword attributes (uri, unit, row, column and the like)."""

    retryable = False

    def __init__(self, message: str, **where: Any) -> None:
        super().__init__(show(message, *(value for value in where.values() if isinstance(value, str))))
        self.where = where

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.where)


def _rebuild(kind: type[RerankError], message: str, where: dict[str, Any]) -> RerankError:
    return kind(message, **where)


def describe_cause(error: BaseException, limit: int = 240) -> str:
    """Return the type and the words of somebody else's error on one line, cut to `limit` characters."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:limit] or 'no message'}"


class JobError(RerankError):
    """The job cannot start as it is written: a flag, a key, a file or a folder is wrong."""


class AccessDeniedError(JobError):
    """Storage refused access. At the start the job is wrong; later on credentials may be being renewed."""


class InputError(JobError):
    """The input is missing, empty, or has not the columns that the job names."""


class PlanDamagedError(JobError):
    """The stored plan of an output is not what was written."""


class ModelError(JobError):
    """The model is not there, is not a reranker, or cannot be used with these settings."""


class EngineStartError(ModelError):
    """An engine could not start, or failed its own check with the built-in pairs."""


class ClusterError(RerankError):
    """Ray did not come up on this machine; trying again may help."""

    retryable = True


class OutputConflictError(RerankError):
    """The output belongs to another job, or another run is writing to it."""


class StorageError(RerankError):
    """Storage did not answer, or not as expected; trying again may help."""

    retryable = True


class StorageFullError(StorageError):
    """The disk or the bucket holds no more."""

    retryable = False


class ObjectChangedError(StorageError):
    """A stored object is not, or no longer, the one that was meant."""

    retryable = False


class ShardError(RerankError):
    """A shard cannot be read: broken, cut short or not of the format it claims."""


class ShardChangedError(ShardError):
    """A shard was overwritten after it was planned."""


class EngineError(RerankError):
    """An engine failed on a batch."""

    retryable = True


class EngineMemoryError(EngineError):
    """A batch did not fit into the device's memory; a smaller one may."""


class RunInterruptedError(RerankError):
    """The run was stopped by a signal; `signum` is its number."""


# Control characters save line ends, and those that turn the direction of writing around: names and texts of others may hold
# them, and a terminal would obey.
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def show(words: str, *names: str) -> str:
    """Return words as they may be printed: control characters as escapes.

    Args:
        words: a message.
        names: of others (a file's, a column's) that it may hold, whose line ends are escaped too.
    """
    for name in names:
        if "\n" in name:
            words = words.replace(name, name.replace("\n", "\\n"))
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), words)
