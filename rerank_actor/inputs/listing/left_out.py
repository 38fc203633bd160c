"""What planning leaves out: counted by reason, said with the first of each, refused where it would be most of the input.

Takes URIs and reasons. Knows nothing of how they were found.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import MAX_DEPTH, MAX_FIELDS
from rerank_actor.inputs.formats import split_name

HIDDEN = "hidden, with names that begin with _ or ."
DEEPER = "in folders that the glob matches, which /** would go into"
UNKNOWN = "of a format that neither name nor first bytes tell"
DOUBLED = "another name of a file that is taken"
STRANGE = "beside what save_to_disk wrote"
EMPTY = "without a row"
IGNORED = "columns in names of folders, which the parts already written have not"
AS_TEXT = f"columns as values; kept as JSON text, being nested over {MAX_DEPTH} deep or of over {MAX_FIELDS} fields"

SHOWN_SUFFIXES = 8
NOTES = {
    ".md",
    ".rst",
    ".html",
    ".pdf",
    ".log",
    ".yaml",
    ".yml",
    ".toml",
    ".py",
    ".ipynb",
    ".sh",
    ".png",
    ".jpg",
    ".crc",
}
NOTE_NAMES = {"readme", "license", "licence", "notice", "citation", "changelog", "makefile", "manifest"}


@dataclass(frozen=True)
class LeftOut:
    """Some of what lies in the input and is not scored.

    Attributes:
        reason: why.
        count: how many objects, or columns.
        first: URI or name of the first.
    """

    reason: str
    count: int
    first: str

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.count:,} {self.reason} (the first: {self.first})"


def count_left_out(found: Iterable[tuple[str, str]]) -> list[LeftOut]:
    """Return how many there are of each reason, of pairs of a reason and a URI."""
    firsts: dict[str, str] = {}
    counts: dict[str, int] = {}
    for reason, uri in found:
        firsts.setdefault(reason, uri)
        counts[reason] = counts.get(reason, 0) + 1
    # A name need not be Unicode, what is written down must be.
    shown = {reason: uri.encode("utf-8", "backslashreplace").decode() for reason, uri in firsts.items()}
    return [LeftOut(reason, count, shown[reason]) for reason, count in counts.items()]


def refuse_most(uri: str, unknown: list[str], num_shards: int) -> None:
    """Refuse an input of which most would be left out; notes for people beside the shards do not count.

    Raises:
        InputError: there is no shard, or there are more files of unknown format than shards.
    """
    files = [name for name in unknown if not is_note(name)]
    if num_shards and len(files) <= num_shards:
        return
    names = files or unknown
    suffixes = list(dict.fromkeys(split_name(name)[1] or "no suffix" for name in names))
    shown = ", ".join(suffixes[:SHOWN_SUFFIXES]) + (", ..." if len(suffixes) > SHOWN_SUFFIXES else "")
    raise InputError(
        f"{uri}: {len(names):,} of {num_shards + len(unknown):,} files would be left out, because neither their names "
        f"({shown}; the first: {names[0]}) nor their first bytes tell a format; name it with --format, or name the files that "
        "are meant",
        uri=uri,
    )


def is_note(uri: str) -> bool:
    """Whether a file is one for people by its name."""
    stem, suffix, _ = split_name(uri)
    name = stem.rpartition("/")[2].lower()
    return suffix.lower() in NOTES or name in NOTE_NAMES or not name  # the last: .gitattributes of a repository
