"""Locations: how a URI is spelt, joined and compared, and what a listing says of one object.

Knows nothing of how storage is reached.
"""

import os
import re
from dataclasses import dataclass
from typing import Any

from rerank_actor.errors import JobError

GLOB_CHARACTERS = "*?["


@dataclass(frozen=True)
class StoredObject:
    """One object: its URI, size in bytes and a version mark (S3 etag; locally the modification time in ns)."""

    uri: str
    size: int
    etag: str
    modified_seconds: float = 0.0

    @property
    def identity(self) -> list[Any]:
        """What tells the object from others, and from itself once it has changed: JSON values for a fingerprint."""
        return [self.uri, self.size, self.etag]


def is_s3(uri: str) -> bool:
    """Whether the URI names an object or prefix in S3."""
    return uri.startswith(("s3://", "s3a://"))


def normalize_uri(text: str) -> str:
    """Return the one spelling of a location that the project uses: `s3://bucket/key` or an absolute path.

    Raises:
        JobError: the scheme is neither a local path nor S3.
    """
    if is_s3(text):
        return "s3://" + text.split("://", 1)[1].rstrip("/")
    if text.startswith("file://"):
        text = text[len("file://") :]
    elif "://" in text:
        raise JobError(f"{text}: storage of this kind is not supported; give a local path or s3://bucket/key", uri=text)
    return os.path.abspath(os.path.expanduser(text))


def join_uri(base: str, *names: str) -> str:
    """Return the URI of something below `base`."""
    return "/".join([base.rstrip("/"), *names])


def is_within(inner: str, outer: str) -> bool:
    """Whether a URI is another one or lies below it."""
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    return bucket, key


def glob_to_pattern(glob: str) -> str:
    """Return a glob as a regular expression: `**/` any folders, `*` and `?` within one name."""
    pattern = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", glob):
        wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece)
        is_set = piece.startswith("[") and piece.endswith("]")
        pattern += wild or (piece.replace("[!", "[^") if is_set else re.escape(piece))
    return pattern


def is_hidden(path: str, root: str) -> bool:
    """Whether a name below the root, on the way to the path, begins with `_` or `.`."""
    relative = path[len(root) :] if path.startswith(root) else path
    return any(name.startswith(("_", ".")) for name in relative.split("/") if name)
