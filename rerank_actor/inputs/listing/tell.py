"""Telling a shard's format: by its name, and where that does not tell it, by its first bytes and lines.

Takes a stored object and the input's spec, gives a format, or None for a file that is no shard. What may be two things is
refused. Knows nothing of other files: one format is not forced on them.
"""

import contextlib

from rerank_actor import storage
from rerank_actor.errors import ShardError
from rerank_actor.inputs.formats import BINARIES, find_format, is_shard, split_name
from rerank_actor.inputs.rankings.sniff import sniff_format
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.text import READ_ERRORS

HEAD_BYTES = max(map(len, BINARIES))


def tell_format(item: storage.StoredObject, spec: InputSpec, before: str | None = None) -> str | None:
    """Return the format of a file, None where neither its name nor its content tells one.

    Args:
        item: the file.
        spec: of the input.
        before: what an earlier plan told of its content.

    Raises:
        InputError: it is packed as nothing here reads, or may be a ranking of scores as well as of ranks or ids.
        StorageError, JobError: it cannot be reached.
    """
    kind = find_format(item.uri, spec.format)[0] if is_shard(item.uri, spec.format) else None
    _, suffix, _ = split_name(item.uri)
    if spec.format != "auto" or (kind not in (None, "tsv") and suffix.lower() != ".json"):
        return kind
    if before:
        return before
    if kind is None:
        head = storage.read_range(item.uri, 0, min(item.size, HEAD_BYTES), item.size) if item.size else b""
        told = next((told for magic, told in BINARIES.items() if head.startswith(magic)), None)
        if told is not None:
            return told
    if spec.sources and not spec.header:
        with contextlib.suppress(*READ_ERRORS, ShardError):  # scanning says what is wrong
            return sniff_format(item.uri, item.size, split_name(item.uri)[2]) or kind
    return kind
