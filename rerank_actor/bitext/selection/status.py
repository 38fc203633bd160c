"""What was delivered: how the selection of each language pair of a folder stands, and whether its files are those written.

Takes the folder, reads the selections' own records and lists their files. Knows nothing of rules, or of Ray.
"""

from dataclasses import dataclass
from typing import Any

from rerank_actor import storage
from rerank_actor.bitext.selection.job import FORMATS
from rerank_actor.bitext.selection.output import SelectOutput, find_lost


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


def check_delivered(uri: str, found: SelectionStatus) -> list[str]:
    """Return what is wrong with the files of a language pair, in sentences; nothing where all are as they were written.

    Raises:
        JobError, StorageError: the folder cannot be read.
    """
    output = SelectOutput(uri, found.name)
    if found.numbers is None:
        return [f"{found.name}: its selection has not come to its end; run the same command again"]
    present, expected = output.list_data(), dict(found.numbers["objects"])
    problems = find_lost(present, expected)
    problems += [f"{name}: was not written by this selection" for name in sorted(present) if name not in expected]
    for kind in FORMATS:
        mark = storage.join_uri(output.data_folder(kind), "_SUCCESS")
        if any(storage.is_within(name, output.data_folder(kind)) for name in expected) and (
            storage.read_if_present(mark) is None
        ):
            problems.append(f"{mark}: is missing")
    return problems
