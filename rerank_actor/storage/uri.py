"""Locations: how a URI is spelt, joined and compared, and what a listing says of one object.

Knows nothing of how storage is reached.
"""

import contextlib
import mmap
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rerank_actor.errors import InputError, JobError

Bytes = bytes | mmap.mmap  # to be written; the latter are of a file, and not held in memory
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


@dataclass(frozen=True)
class Listing:
    """What is at a place.

    Attributes:
        objects: those that its URI names, sorted by URI.
        hidden: URIs below a folder whose names, or a folder's on the way, begin with `_` or `.`.
        deeper: URIs below folders that a glob matches, whose files it does not.
    """

    objects: list[StoredObject] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    deeper: list[str] = field(default_factory=list)


# Schemes of object stores, and the one spelling of each.
SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "abfss", "abfss": "abfss"}
_REMOTE = tuple(f"{scheme}://" for scheme in SCHEMES)
AZURE_PLACE = re.compile(r"[^@/]+@[\w.-]+\.[\w-]+")  # container@account.dfs.core.windows.net, of abfss://
LOCATIONS = "a local path, s3://bucket/key, gs://bucket/key or az://container/key"


def is_remote(uri: str) -> bool:
    """Whether the URI names an object or prefix in an object store: S3, Google Cloud Storage or Azure."""
    return uri.startswith(_REMOTE)


def is_s3(uri: str) -> bool:
    """Whether the URI names an object or prefix in S3."""
    return uri.startswith(("s3://", "s3a://"))


def is_google(uri: str) -> bool:
    """Whether the URI names an object or prefix in Google Cloud Storage."""
    return uri.startswith(("gs://", "gcs://"))


def normalize_uri(text: str) -> str:
    """Return the one spelling of a location that the project uses: `s3://bucket/key` and the like, or an absolute path.

    Raises:
        JobError: it is empty, names no bucket, or its scheme is none of a store that is known.
    """
    if is_remote(text):
        scheme, rest = text.split("://", 1)
        bucket, _, key = rest.rstrip("/").partition("/")
        if not bucket:
            raise JobError(f"{text}: names no bucket; give {LOCATIONS}", uri=text)
        if scheme in ("abfs", "abfss") and not AZURE_PLACE.fullmatch(bucket):
            raise JobError(
                f"{text}: names no account; give abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/key", uri=text
            )
        return f"{SCHEMES[scheme]}://{bucket}/{key}".rstrip("/")
    path = re.sub(r"^file:(//(localhost)?)?(?=/[^/])", "", text)
    if "://" in path:
        raise JobError(f"{text}: storage of this kind is not supported; give {LOCATIONS}", uri=text)
    if not path.strip():
        raise JobError(f"a location is empty; give {LOCATIONS}", uri=text)
    absolute = os.path.abspath(os.path.expanduser(path))
    return "/" + absolute.lstrip("/")  # POSIX keeps two slashes at the start


def resolve_links(uri: str) -> str:
    """Return a URI with a local path's symbolic links followed; two names of one file give the same."""
    return uri if "://" in uri else os.path.realpath(uri)


def is_glob(uri: str) -> bool:
    """Whether a URI has wildcards, which may yet be part of a name."""
    return any(character in uri for character in GLOB_CHARACTERS)


def find_root(uri: str) -> str:
    """Return the folder below which all lies that a glob matches."""
    return uri[: min(uri.find(mark) for mark in GLOB_CHARACTERS if mark in uri)].rpartition("/")[0]


def join_uri(base: str, *names: str) -> str:
    """Return the URI of something below `base`."""
    return "/".join([base.rstrip("/"), *names])


def is_within(inner: str, outer: str) -> bool:
    """Whether a URI is another one or lies below it, wherever links lead."""
    return f"{resolve_links(inner).rstrip('/')}/".startswith(f"{resolve_links(outer).rstrip('/')}/")


def refuse_overlap(output: str, uri: str, flag: str, given: str) -> None:
    """Refuse to write where it would be read again, or among what is read, whatever links lead there.

    Args:
        output: the folder to write to.
        uri: a file, a folder or a glob that is read.
        flag: that named the output.
        given: that named what is read.

    Raises:
        InputError: one lies in the other.
    """
    if is_within(uri, output):
        where = "around"
    elif is_within(output, uri) or (is_glob(uri) and _matches_below(uri, output)):
        where = "in"
    else:
        return
    raise InputError(
        f"{flag} {output}: lies {where} {given} {uri}, so that what is written would be read again; choose a folder beside it",
        uri=uri,
    )


def _matches_below(glob: str, output: str) -> bool:
    """Whether a glob matches a part of an output, or of one of its language pairs."""
    root = find_root(glob)
    pattern = re.compile(glob_to_pattern(resolve_links(root) + glob[len(root) :]))
    parts = ("part-0-0.parquet", "lang_pair=a-b/part-0-0.parquet")
    return any(pattern.fullmatch(join_uri(resolve_links(output), part)) for part in parts)


def group_by_file(objects: Iterable[StoredObject]) -> dict[str, list[StoredObject]]:
    """Return objects by the path of their file with links followed: several where one file has several names.

    Hard links are names of one file, which is under the first of them.
    """
    folders: dict[str, str] = {}  # each is resolved once
    linked: dict[tuple[int, int], str] = {}  # device and inode, of files with several names
    groups: dict[str, list[StoredObject]] = {}
    for item in objects:
        folder, _, name = item.uri.rpartition("/")
        if folder not in folders:
            folders[folder] = resolve_links(folder)
        path = f"{folders[folder]}/{name}"
        if "://" not in item.uri:
            if os.path.islink(item.uri):
                path = resolve_links(item.uri)
            with contextlib.suppress(OSError):  # it was deleted since it was listed, which its reader says
                status = os.stat(item.uri)
                if status.st_nlink > 1 and status.st_ino:  # without a number nothing tells files apart
                    path = linked.setdefault((status.st_dev, status.st_ino), path)
        groups.setdefault(path, []).append(item)
    return groups


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
