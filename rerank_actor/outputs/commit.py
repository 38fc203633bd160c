"""The commit of a part: its object is created where there is none, by a run that holds the output's lease.

A part that is there already was put by another worker of this run, or by a run that was frozen, lost its lease and thawed.
One of the same job is as good and stays; any other gives way, on the condition that it still is the one that was looked at.
So whoever lost the lease replaces nothing, whenever it thaws. Knows nothing of Ray, or of how a part came about.
"""

from typing import Any

from rerank_actor import storage
from rerank_actor.errors import StorageError
from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.part import PartCheck, check_part
from rerank_actor.storage.lease import LeaseMark

TRIES = 5


def commit_part(
    uri: str, data: bytes, unit: Unit, metadata: dict[str, str], lease: LeaseMark | None, scratch: str | None
) -> tuple[bytes, dict[str, Any] | None]:
    """Put a part in its place.

    Args:
        uri: the place.
        data: the part.
        unit: what it holds.
        metadata: its own entries, of which fingerprint and dtype tell whether another is as good.
        lease: of the output; None where nobody else can write.
        scratch: folder for temporary files on the same file system.

    Returns:
        The bytes that lie there, and the facts of a part that another worker had put there; None where it is this one.

    Raises:
        OutputConflictError: another run took over.
        StorageError, JobError: the part could not be written.
    """
    for _ in range(TRIES):
        if lease is not None:
            lease.check()
        if storage.create_bytes(uri, data, scratch=scratch):
            return data, None
        found = storage.read_version(uri)
        if found is None:
            continue
        if found.data == data:
            return data, None
        check = check_part(unit, found.data, metadata.get("fingerprint", ""))
        if check.problem is None and _is_as_good(check, metadata):
            return found.data, check.facts
        if lease is not None:
            lease.check()  # it may be the part of a run that has taken over since
        if storage.replace_bytes(uri, data, found.mark, scratch=scratch):
            return data, None
    raise StorageError(f"{uri}: changes again and again while it is written; see what else writes there", uri=uri)


def _is_as_good(check: PartCheck, metadata: dict[str, str]) -> bool:
    return str(check.facts.get("dtype", "")) == metadata.get("dtype", "")
