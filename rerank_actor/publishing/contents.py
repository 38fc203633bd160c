"""What is published of an output: the files of it that are data, once it is complete and they are as they were written.

Takes the folder of a scoring or a mining job, gives its files by their names in the repository. The list is that of whoever
reads the output. Knows nothing of the hub.
"""

from dataclasses import dataclass
from typing import Any, Literal

from rerank_actor import storage
from rerank_actor.errors import InputError, show
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.mining.formats import CORPUS
from rerank_actor.mining.output import MineOutput, check_mined, is_mined
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.report.provenance import describe_scoring
from rerank_actor.outputs.scored import require_scored
from rerank_actor.outputs.verify import verify_output

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
    """

    kind: Literal["scored", "mined"]
    files: dict[str, storage.StoredObject]
    fingerprint: str
    teachers: list[dict[str, Any]]
    counts: dict[str, int]
    rules: dict[str, str]
    form: str = ""

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(item.size for item in self.files.values())


def list_contents(uri: str) -> Contents:
    """Return what is to be published of an output.

    Raises:
        InputError: no job has written there, it is not complete, or a file is not as it was written.
        JobError, StorageError: it cannot be read.
    """
    if not Output(uri).has_plan() and is_mined(uri):
        return _list_mined(uri)
    return _list_scored(uri)


def _list_scored(uri: str) -> Contents:
    scored = require_scored(uri)
    scored.refuse_incomplete("", "run the job to the end")
    result = verify_output(uri)
    _refuse_problems(uri, result.problems)
    return Contents(
        kind="scored",
        files={part.uri.rpartition("/")[2]: part for part in scored.parts},
        fingerprint=hash_fingerprint(scored.settings),
        teachers=[describe_scoring(uri)],
        counts={"rows": result.rows, "scores": result.scored, "rows without a score": result.errors},
        rules={},
    )


def _list_mined(uri: str) -> Contents:
    _refuse_problems(uri, check_mined(uri))
    output = MineOutput(uri)
    definition, report = output.read_own("definition.json"), output.read_own("report.json")
    if not definition or report.get("status") != "complete":
        raise InputError(f"{uri}: is not mined to the end; run jobs.mine again", uri=uri)
    saved = [found for name in SAVED if (found := storage.look_at_object(storage.join_uri(uri, name))) is not None]
    items = [*output.list_data(), *saved]
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
    )


def _refuse_problems(uri: str, problems: list[str]) -> None:
    if problems:
        shown = "; ".join(show(problem) for problem in problems[:3])
        raise InputError(f"{uri}: is not right, so that it is not published ({shown}); jobs.verify says all", uri=uri)
