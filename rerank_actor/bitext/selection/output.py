"""The output of selection: a folder for each format and language pair, and in `_select/` what it is and how it went.

    DELIVER/<format>/lang_pair=deu-eng/part-00000.<suffix>   and _SUCCESS, written last
    DELIVER/_select/lang_pair=deu-eng/                       settings.json, steps/ while at work, result.json
    DELIVER/_select/report.html, report.json                 over all language pairs

A step's objects are written first and its record last, so that a record says what is done; from these and from the listing
it is known how a selection stands, and whether its files are those written. Knows nothing of rules, or of Ray.
"""

import re
from dataclasses import dataclass
from typing import Any

from rerank_actor import storage
from rerank_actor.bitext.selection.job import FORMATS
from rerank_actor.outputs.delivered import list_changed, list_lost
from rerank_actor.outputs.folder import JobFolder

PART_NAME = re.compile(r"part-\d{5,}\..+")


@dataclass(frozen=True)
class SelectOutput(JobFolder):
    """Names and contents of what belongs to one language pair, in the folder of all.

    Attributes:
        uri: the folder of all.
        pair: name of the language pair.
    """

    pair: str

    def at(self, *names: str) -> str:
        """Return the URI of something that the selection of this pair keeps for itself."""
        return storage.join_uri(self.uri, "_select", f"lang_pair={self.pair}", *names)

    def data_folder(self, kind: str) -> str:
        """Return the folder of a format."""
        return storage.join_uri(self.uri, kind, f"lang_pair={self.pair}")

    def step_folder(self, step: str) -> str:
        """Return the folder of a step's records and of the rows that it passes on."""
        return self.at("steps", step)

    def list_data(self) -> dict[str, storage.StoredObject]:
        """Return the delivered objects of all formats, by URI."""
        return {item.uri: item for kind in FORMATS for item in storage.list_children(self.data_folder(kind))}

    def clear(self) -> None:
        """Delete what an earlier selection of this pair left, but the lease."""
        for kind in FORMATS:
            storage.delete_objects([storage.join_uri(self.data_folder(kind), "_SUCCESS")])
        storage.delete_objects([uri for uri in self.list_data() if PART_NAME.fullmatch(uri.rpartition("/")[2])])
        for folder in ("steps", "tmp"):
            storage.delete_folder(self.at(folder))
        storage.delete_objects([self.at(name) for name in ("result.json", "settings.json")])


@dataclass(frozen=True)
class SelectionStatus:
    """The selection of one language pair.

    Attributes:
        name: of the language pair.
        numbers: what it wrote down at its end; None where it is at work, or was stopped.
    """

    name: str
    numbers: dict[str, Any] | None


def read_selection_status(uri: str) -> list[SelectionStatus]:
    """Return the language pairs that were selected from into a folder, in order of names; none where it is no such folder.

    Raises:
        JobError, StorageError: the folder cannot be read.
    """
    root = storage.join_uri(uri, "_select") + "/"
    begun = {item.uri.removeprefix(root).partition("/")[0] for item in storage.list_objects(root[:-1])}
    names = sorted(name.removeprefix("lang_pair=") for name in begun if name.startswith("lang_pair="))
    return [SelectionStatus(name, SelectOutput(uri, name).read_own("result.json") or None) for name in names]


def check_delivered(uri: str, status: SelectionStatus) -> list[str]:
    """Return the faults of the files of a language pair, in sentences; nothing where all are as they were written.

    Raises:
        JobError, StorageError: the folder cannot be read.
    """
    output = SelectOutput(uri, status.name)
    if status.numbers is None:
        return [f"{status.name}: its selection has not come to its end; run the same command again"]
    present, expected = output.list_data(), dict(status.numbers["objects"])
    problems = list_lost(present, expected) + list_changed(present, expected, status.numbers.get("digests", {}))
    problems += [f"{name}: was not written by this selection" for name in sorted(present) if name not in expected]
    for kind in FORMATS:
        mark = storage.join_uri(output.data_folder(kind), "_SUCCESS")
        if any(storage.is_within(name, output.data_folder(kind)) for name in expected) and (
            storage.read_if_present(mark) is None
        ):
            problems.append(f"{mark}: is missing")
    return problems
