"""What is published of an output: the files of it that are data, once it is complete and they are as they were written.

Takes the folder of a scoring or a mining job, or of parts that were joined, gives its files by their names in the repository.
The list is that of whoever reads the output. Of the hub it knows how many files a folder may hold.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rerank_actor import storage
from rerank_actor.errors import InputError, show
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.mining.by_column.values import name_folder
from rerank_actor.mining.formats import CORPUS
from rerank_actor.mining.output import MineOutput, check_mined, is_mined
from rerank_actor.outputs.compact import check_compacted
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.part import settle_rows
from rerank_actor.outputs.report.provenance import describe_scoring
from rerank_actor.outputs.scored import ScoredOutput, open_scored, read_schema, require_scored
from rerank_actor.outputs.training.export import find_documents
from rerank_actor.outputs.verify import verify_output

MOST_FILES = 10_000  # of a folder on the hub
SAVED = ("dataset_info.json", "state.json", f"{CORPUS}/merlin_metadata.json")  # beside the objects of units


@dataclass(frozen=True)
class Contents:
    """What is published of an output.

    Attributes:
        kind: of the job.
        files: where each is, by its name in the repository.
        fingerprint: of the job.
        teachers: what scored it, as `describe_scoring` says.
        counts: rows and the like, by what they count in words.
        rules: of mining, each in words.
        form: the format that was mined.
        by: the column whose values were mined apart.
    """

    kind: Literal["scored", "mined"]
    files: dict[str, storage.StoredObject]
    fingerprint: str
    teachers: list[dict[str, Any]]
    counts: dict[str, int]
    rules: dict[str, str]
    form: str = ""
    by: str | None = None

    @property
    def folder_start(self) -> str:
        """What the names of the folders of values begin with."""
        return name_folder(self.by or "", "")

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(item.size for item in self.files.values())


def list_contents(uri: str) -> Contents:
    """Return what is to be published of an output.

    Raises:
        InputError: no job has written there, it is not complete, has more files than the hub takes, or a file is not as it was
            written.
        JobError, StorageError: it cannot be read.
    """
    if not Output(uri).has_plan() and is_mined(uri):
        return _list_mined(uri)
    joined = open_scored(uri) if not Output(uri).has_plan() else None
    return _list_joined(joined) if joined is not None and joined.is_joined else _list_scored(uri)


def refuse_many(names: Iterable[str], uri: str, cure: str) -> None:
    """Refuse more files in a folder than the hub takes, before they are read.

    Args:
        names: of the files, in the repository.
        uri: of the output.
        cure: what to do about it.

    Raises:
        InputError: there are more.
    """
    ((folder, number),) = Counter(name.rpartition("/")[0] for name in names).most_common(1) or [("", 0)]
    if number > MOST_FILES:
        raise InputError(
            f"{uri}: has {number:,} files{f' in {folder}' if folder else ''}, and a folder on the hub holds {MOST_FILES:,} at "
            f"most; {cure}",
            uri=uri,
        )


def _list_joined(joined: ScoredOutput) -> Contents:
    """Return parts that were joined, once they are as they were written."""
    joined.refuse_incomplete("", "run jobs.compact to the end")
    result = check_compacted(joined.uri)
    _refuse_problems(joined.uri, result.problems)
    _refuse_misplaced(joined, "join the parts into another folder")
    return Contents(
        kind="scored",
        files={part.uri.rpartition("/")[2]: part for part in joined.parts},
        fingerprint=str((Output(joined.uri).read_success() or {}).get("fingerprint")),
        teachers=[describe_scoring(joined.uri)],
        counts={"rows": result.rows},
        rules={},
    )


def _list_scored(uri: str) -> Contents:
    scored = require_scored(uri)
    scored.refuse_incomplete("", "run the job to the end")
    names = [part.uri[len(uri) + 1 :] for part in scored.parts]
    refuse_many(names, uri, f"join them with jobs.compact {uri} --output FOLDER, and publish that")
    result = verify_output(uri)
    _refuse_problems(uri, result.problems)
    _refuse_misplaced(scored, f"join them with jobs.compact {uri} --output FOLDER, and publish that")
    return Contents(
        kind="scored",
        files={part.uri.rpartition("/")[2]: part for part in scored.parts},
        fingerprint=hash_fingerprint(scored.settings),
        teachers=[describe_scoring(uri)],
        counts={"rows": result.rows, "scores": result.scored, "rows without a score": result.errors},
        rules={},
    )


def _refuse_misplaced(scored: ScoredOutput, cure: str) -> None:
    """Refuse tuples whose texts an earlier version left in another order than their scores, which trainers take by place."""
    if not find_documents(scored):
        return
    for part in scored.parts:
        schema = read_schema(part)
        if settle_rows(schema.empty_table()).column_names != schema.names:
            raise InputError(
                f"{part.uri}: has texts in another order than their scores, and trainers go by place; {cure}",
                uri=part.uri,
            )


def _list_mined(uri: str) -> Contents:
    output = MineOutput(uri)
    names = [item.uri[len(uri) + 1 :] for item in output.list_data()]
    refuse_many(names, uri, "mine with a larger --unit-mb into another --output")
    _refuse_problems(uri, check_mined(uri))
    definition, report = output.read_own("definition.json"), output.read_own("report.json")
    if not definition or report.get("status") != "complete":
        raise InputError(f"{uri}: is not mined to the end; run jobs.mine again", uri=uri)
    saved = [found for name in SAVED if (found := storage.look_at_object(storage.join_uri(uri, name))) is not None]
    items = {item.uri: item for item in (*output.list_data(), *saved)}.values()
    counts = report["counts"]
    named = {"queries": "queries_kept", "positives": "positives", "negatives": "negatives", "scored pairs": "pairs"}
    return Contents(
        kind="mined",
        files={item.uri[len(uri) + 1 :]: item for item in sorted(items, key=lambda item: item.uri)},
        fingerprint=definition["fingerprint"],
        teachers=definition.get("teachers", []),
        counts={words: counts.get(name, 0) for words, name in named.items()},
        rules=definition["definition"],
        form=definition["settings"]["format"],
        by=definition["settings"].get("by_column"),
    )


def _refuse_problems(uri: str, problems: list[str]) -> None:
    if problems:
        shown = "; ".join(show(problem) for problem in problems[:3])
        raise InputError(f"{uri}: is not right, so that it is not published ({shown}); jobs.verify says all", uri=uri)
