"""Written candidates: whether they still are what a search wrote, by the sizes and digests in its record.

Takes an output of retrieval, gives faults in sentences. Of outputs whose records hold neither nothing is known.
"""

from typing import Any

from rerank_actor import storage
from rerank_actor.outputs.delivered import list_changed, list_lost
from rerank_actor.outputs.folder import JobFolder
from rerank_actor.outputs.verify import Verification

RECORD, CANDIDATES = "retrieval.json", "candidates"


def list_lost_candidates(uri: str, record: dict[str, Any]) -> list[str]:
    """Return in sentences which files of candidates are missing or of another size than was written."""
    present, sizes = _match(uri, record)
    return list_lost(present, sizes)


def is_retrieved(uri: str) -> bool:
    """Whether a search for candidates was begun in a folder."""
    return storage.read_if_present(JobFolder(uri).at(RECORD)) is not None


def check_retrieved(uri: str) -> Verification:
    """Check an output of retrieval, which is right where all candidates are as they were written.

    Raises:
        JobError, StorageError: the folder cannot be read.
    """
    folder = JobFolder(uri)
    record = folder.read_own(RECORD)
    if record.get("status") != "complete" or folder.read_success() is None:
        return Verification(
            problems=[f"{uri}: its candidates are not all found, or its record is damaged; run the same command again"]
        )
    if "digests" not in record:
        return Verification(
            notes=[
                f"{uri}: was searched to the end, its candidates without digests, so that nothing can be said of them"
            ]
        )
    present, sizes = _match(uri, record)
    digests = {storage.join_uri(uri, CANDIDATES, name): digest for name, digest in record["digests"].items()}
    problems = list_lost(present, sizes) + list_changed(present, sizes, digests)
    foreign = [f"{name}: was not written by this search" for name in sorted(present.keys() - sizes.keys())]
    return Verification(problems=problems + foreign)


def _match(uri: str, record: dict[str, Any]) -> tuple[dict[str, storage.StoredObject], dict[str, int]]:
    """Return the files of candidates that are there, and the sizes of those that were written, by URI."""
    folder = storage.join_uri(uri, CANDIDATES)
    sizes = {storage.join_uri(folder, name): size for name, size in record.get("objects", {}).items()}
    return {item.uri: item for item in storage.list_children(folder)}, sizes
