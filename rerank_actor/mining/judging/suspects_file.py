"""The file of suspects: written once, and never over what a judge or anybody else wrote.

Takes the folder of a mining and the file that `--suspects` names. The folder keeps what the file's bytes were, so that one
that was filled in, or that another wrote, is known and stays as it is. Knows nothing of what suspects are.
"""

from collections.abc import Sequence

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import OutputConflictError
from rerank_actor.mining.judging.suspects import hash_file, write_suspects
from rerank_actor.outputs.folder import JobFolder

NOTE = "suspects.json"  # hash of each file that this mining wrote, by its URI


def refuse_taken(folder: JobFolder, target: str, *, afresh: bool) -> None:
    """Refuse a file that is there and that this mining may not replace.

    Args:
        folder: of the mining.
        target: the file.
        afresh: whether what the folder holds is to be deleted, and so its suspects with it.

    Raises:
        OutputConflictError: it has verdicts, or another wrote it.
        StorageError, JobError: it cannot be read.
    """
    if storage.look_at_object(target) is None or _is_untouched(folder, target):
        return
    if afresh or (target not in folder.read_own(NOTE) and folder.read_success() is None):
        raise OutputConflictError(
            f"--suspects {target}: is there already and not as this mining wrote it, so that it may hold verdicts; name "
            "another file, or delete it",
            uri=target,
        )


def delete_untouched(folder: JobFolder, target: str) -> None:
    """Delete a file that is as a mining wrote it which is to be deleted too."""
    if _is_untouched(folder, target):
        storage.delete_objects([target])


def deliver_suspects(folder: JobFolder, pieces: Sequence[str], schema: pa.Schema, target: str) -> str:
    """Write the file if it is not there, and return what became of it in words.

    Raises:
        StorageError, JobError: it cannot be written.
    """
    if storage.look_at_object(target) is not None:
        if _is_untouched(folder, target):
            return "is written already"
        return "is not as this mining wrote it, as one with verdicts is, and stays as it is; name another file for suspects"

    def note(digest: str) -> None:
        folder.write_json(NOTE, {**folder.read_own(NOTE), target: digest})

    return f"{write_suspects(pieces, schema, target, note):,} candidates to judge, in column `verdict`"


def _is_untouched(folder: JobFolder, target: str) -> bool:
    digest = folder.read_own(NOTE).get(target)
    if digest is None or storage.look_at_object(target) is None:
        return False
    with storage.open_input(target) as source:
        return bool(hash_file(source) == digest)
