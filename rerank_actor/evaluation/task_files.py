"""The files of a task: which hold its corpus, its queries and its judgements, by subset and split.

A folder is read as BEIR has it (`corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`, also Parquet and packed) or as a copy of one
of MTEB's repositories (`corpus/`, `queries/`, `qrels/`, `top_ranked/`, with `SUBSET-` before each); on the hub configurations
have these names, and files are copied to where the evaluation writes. Knows nothing of what is in them.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.evaluation.tasks import DEFAULT, Task
from rerank_actor.inputs.formats import find_format, split_name
from rerank_actor.inputs.listing.datasets import list_configuration, list_configurations
from rerank_actor.storage import hub

COPY_THREADS = 4
CORPUS, QUERIES, QRELS, INSTRUCTION, TOP_RANKED, CHANGED = (
    "corpus", "queries", "qrels", "instruction", "top_ranked", "qrel_diff"
)  # fmt: skip
NAME = re.compile(rf"(?:(?P<subset>.+)-)?(?P<role>{CORPUS}|{QUERIES}|{QRELS}|{INSTRUCTION}|{TOP_RANKED}|{CHANGED})")
# Where a task has several of one role, the first counts, as in MTEB; `data` is where `push_to_hub` puts `default`.
OTHER_NAMES = {
    "default": QRELS,
    "query": QUERIES,
    QRELS: QRELS,
    QUERIES: QUERIES,
    "data": QRELS,
    "instructions": INSTRUCTION,
}
UNNAMED = ""  # the split of files whose names tell none
SHARD = re.compile(r"-\d{5}-of-\d{5}$|^part-?\d.*$|^\d+$")  # of a file's name, what tells no split

Splits = Mapping[str, list[storage.StoredObject]]


@dataclass(frozen=True)
class TaskFiles:
    """The files of a task.

    Attributes:
        place: of the task.
        by_role: files by split, by role and subset.
    """

    place: str
    by_role: Mapping[tuple[str, str], Splits] = field(default_factory=dict)

    def list_subsets(self) -> list[str]:
        """Return the subsets that have judgements."""
        return [subset for role, subset in self.by_role if role == QRELS]

    def choose_split(self, subset: str, split: str | None) -> str:
        """Return the split of a subset's judgements: the one that is named, else `test`, or the only one.

        Raises:
            InputError: there is no such split, or it has to be named.
        """
        known = list(self.by_role.get((QRELS, subset), ()))
        if not known:
            raise InputError(
                f"{self.place}: has no judgements{self._describe(subset)}; it takes qrels/SPLIT.tsv, or MTEB's",
                uri=self.place,
            )
        if known == [UNNAMED]:
            return split or "test"
        wanted = split or ("test" if "test" in known else known[0] if len(known) == 1 else None)
        if wanted not in known:
            fault = f"no split `{split}`" if split else "several splits"
            raise InputError(
                f"{self.place}: has {fault} of judgements{self._describe(subset)}, but {', '.join(known)}; choose one with "
                "--split",
                uri=self.place,
            )
        return wanted

    def pick(self, role: str, subset: str, split: str) -> list[storage.StoredObject]:
        """Return the files of a role: those of the split, or of the only one; none where the task has none.

        Raises:
            InputError: it has several splits and not this one.
        """
        splits = self.by_role.get((role, subset)) or self.by_role.get((role, DEFAULT), {})
        if split in splits or len(splits) < 2:
            return splits.get(split) or next(iter(splits.values()), [])
        raise InputError(
            f"{self.place}: its {role}{self._describe(subset)} have the splits {', '.join(splits)} and not `{split}`",
            uri=self.place,
        )

    def require(self, role: str, subset: str, split: str) -> list[storage.StoredObject]:
        """Return the files of a role as `pick` does.

        Raises:
            InputError: there are none.
        """
        found = self.pick(role, subset, split)
        if not found:
            raise InputError(
                f"{self.place}: has no {role}{self._describe(subset)}; a task has corpus, queries and qrels, as BEIR and MTEB "
                "lay them out",
                uri=self.place,
            )
        return found

    def _describe(self, subset: str) -> str:
        return f" of subset `{subset}`" if subset != DEFAULT else ""


def pin_place(place: str) -> str:
    """Return where a task is with the commit that its repository is at now; a folder as it is.

    Raises:
        InputError: there is no such repository.
        StorageError, JobError: the hub is not reached.
    """
    if not hub.is_hub(place) or is_pinned(place):
        return place
    storage.list_objects(place)  # says what is wrong with the repository
    repository, revision, _ = hub.split_hub_uri(place)
    return f"{hub.SCHEME}{hub.DATASETS}{repository}@{hub.pin_revision(repository, revision)}"


def is_pinned(place: str) -> bool:
    """Whether a place on the hub names a commit, so that it cannot change."""
    return hub.is_hub(place) and re.fullmatch(r"[0-9a-f]{40}", hub.split_hub_uri(place)[1]) is not None


def find_files(task: Task) -> TaskFiles:
    """List the files of a task.

    Raises:
        InputError: there is no such folder or repository.
        StorageError, JobError: it cannot be reached.
    """
    names = list_configurations(task.place) if hub.is_hub(task.place) else []
    by_role = {key: list_configuration(task.place, name) for key, name in _choose_names(names).items()}
    return TaskFiles(task.place, by_role) if by_role else find_by_names(task.place)


def find_by_names(place: str) -> TaskFiles:
    """List the files of a folder, whose names say what they hold. Errors as of `find_files`."""
    objects = storage.list_objects(place)
    if not objects:
        raise InputError(
            f"{place}: nothing there; --tasks takes folders with corpus, queries and qrels, and datasets on the hub",
            uri=place,
        )
    by_name: dict[str, dict[str, list[storage.StoredObject]]] = {}
    for item in objects:
        *folders, name = item.uri[len(place.rstrip("/")) + 1 :].split("/")
        stem = split_name(name)[0]
        if find_format(item.uri)[0] in ("parquet", "jsonl", "csv", "tsv"):
            split = "/".join(filter(None, [*folders[1:], SHARD.sub("", stem)])) if folders else UNNAMED
            by_name.setdefault(folders[0] if folders else stem, {}).setdefault(split, []).append(item)
    return TaskFiles(place, {key: by_name[name] for key, name in _choose_names(list(by_name)).items()})


def _choose_names(names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the name of what holds each role of each subset, leaving out what is something else."""
    chosen: dict[tuple[str, str], str] = {}
    for name in sorted(names, key=lambda name: [*OTHER_NAMES, name].index(name)):
        if found := NAME.fullmatch(OTHER_NAMES.get(name, name)):
            chosen.setdefault((found["role"], found["subset"] or DEFAULT), name)
    return chosen


def copy_from_hub(objects: list[storage.StoredObject], folder: str) -> list[storage.StoredObject]:
    """Copy files of the hub into a folder, those that are not there yet; files that lie elsewhere stay where they are.

    Raises:
        StorageError, JobError: one cannot be read or written.
    """
    there = {item.uri: item for item in storage.list_objects(folder)}

    def copy(item: storage.StoredObject) -> None:
        if item.uri in targets and (there.get(targets[item.uri]) is None or there[targets[item.uri]].size != item.size):
            storage.write_bytes(targets[item.uri], storage.read_bytes(item.uri, size=item.size))

    targets = {
        item.uri: storage.join_uri(folder, hub.split_hub_uri(item.uri)[2].replace("/", "--"))
        for item in objects
        if hub.is_hub(item.uri)
    }
    with ThreadPoolExecutor(COPY_THREADS) as pool:
        list(pool.map(copy, objects))
    listed = {item.uri: item for item in storage.list_objects(folder)} if targets else {}
    return [listed[targets[item.uri]] if item.uri in targets else item for item in objects]
