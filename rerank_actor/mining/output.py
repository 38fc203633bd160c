"""The output of mining: training data in the folder, and in `_mine/` what they are, where they came from and how it went.

A unit's objects are written first and its record last, so that a record says what is committed. Definition and plan are
stored before the first unit; another definition in the same folder is refused. Knows nothing of Ray or of formats.
"""

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.mining.by_column.values import name_folder
from rerank_actor.mining.survey import MiningPlan, MiningUnit
from rerank_actor.outputs.delivered import list_changed, list_lost
from rerank_actor.outputs.folder import JobFolder
from rerank_actor.outputs.row_groups import RowGroups
from rerank_actor.runtime.steps import StepRecords
from rerank_actor.storage.exchange import Exchange

OWN_FOLDERS = ("units", "shuffle", "stores", "suspects", "what-if", "tmp")
OWN_OBJECTS = (
    "plan.json",
    "pool.arrow",
    "split.bin",
    "job.yaml",
    "definition.json",
    "report.html",
    "report.json",
    "what-if.json",
    "suspects.json",
)
DATA_FOLDERS = ("", "corpus")
DATA_NAME = re.compile(r"(part|ranklist|corpus/train)-\d{5,}\..+|corpus/merlin_metadata\.json")
SAVED_NAME = r"dataset_info\.json|state\.json"  # beside Arrow files in the folder of a value
OF_NO_UNIT = ("dataset_info.json", "state.json", "merlin_metadata.json")  # written at the end
CARD = "README.md"
CARD_MARK = b"- config_name: mined-"


@dataclass(frozen=True)
class MineOutput(JobFolder):
    """Names and contents of a folder of mined data."""

    own_folder: ClassVar[str] = "_mine"

    def list_data(self) -> list[storage.StoredObject]:
        """Return the objects of training data, by the names that mining gives; what else lies there is another's."""
        start = len(self.uri) + 1
        by = (self.load_stored_plan() or {"settings": {}})["settings"].get("by_column")
        if by is not None:
            folder = re.compile(rf"{re.escape(name_folder(by, ''))}[^/]*/(?:{DATA_NAME.pattern}|{SAVED_NAME})")
            return [item for item in storage.list_objects(self.uri) if folder.fullmatch(item.uri[start:])]
        listed = [item for folder in DATA_FOLDERS for item in storage.list_children(f"{self.uri}/{folder}".rstrip("/"))]
        return [item for item in listed if DATA_NAME.fullmatch(item.uri[start:])]

    def has_data_by(self) -> bool:
        """Whether there are training data in folders of values, whatever the column; what lies deeper is another's."""
        start, in_folder = len(self.uri) + 1, re.compile(rf"[^/=]+=[^/]*/(?:{DATA_NAME.pattern})")
        return any(in_folder.fullmatch(item.uri[start:]) for item in storage.list_objects(self.uri))

    def list_written(self) -> list[storage.StoredObject]:
        """Return the objects that units write: training data, and suspects for a judge."""
        return [*self.list_data(), *storage.list_children(self.at("suspects"))]

    def load_stored_plan(self) -> dict[str, Any] | None:
        """Return the plan and settings that were stored before the first unit, None for a new output or a damaged one."""
        stored = self.read_own("plan.json")
        return stored if "settings" in stored else None

    @property
    def records(self) -> StepRecords:
        """The records of committed units."""
        return StepRecords(self.at("units"), self.scratch)

    def make_exchange(self, folder: str, num_buckets: int) -> Exchange:
        """Return the exchange of pairs of queries that lie in several units; `folder` is one of the job's own."""
        return Exchange(self.at(folder), num_buckets, self.scratch)

    def owns_card(self) -> bool:
        """Whether the dataset card is one that mining wrote, or there is none."""
        card = storage.read_if_present(storage.join_uri(self.uri, CARD))
        return card is None or CARD_MARK in card

    def clear(self) -> None:
        """Delete everything that an earlier mining left, but the lease."""
        storage.delete_objects([self.success_uri])
        storage.delete_objects([item.uri for item in self.list_data()])
        if self.owns_card():
            storage.delete_objects([storage.join_uri(self.uri, CARD)])
        for folder in OWN_FOLDERS:
            storage.delete_folder(self.at(folder))
        storage.delete_objects([self.at(name) for name in OWN_OBJECTS])


def store_plan(output: MineOutput, settings: dict[str, Any], plan: MiningPlan) -> None:
    """Write down what a run and its resumes go by, the plan last."""
    split = plan.split.astype("<u8").tobytes() if plan.split is not None else None
    if split is not None:
        storage.write_bytes(output.at("split.bin"), split, scratch=output.scratch)
    values = {
        "units": [asdict(unit) for unit in plan.units],
        "all_shuffled": split is None,
        "split_digest": hashlib.sha256(split).hexdigest() if split is not None else None,
        "num_buckets": plan.num_buckets,
        "max_positives": plan.max_positives,
        **({"max_by_value": plan.max_by_value} if plan.max_by_value else {}),
        "totals": plan.totals,
    }
    data = storage.seal_json({"settings": settings, "layout": values})
    storage.write_bytes(output.at("plan.json"), data, scratch=output.scratch)


def restore_plan(output: MineOutput, stored: dict[str, Any]) -> MiningPlan:
    """Return the plan that an earlier run wrote down.

    Raises:
        InputError: a part of it is gone or damaged.
        JobError, StorageError: it cannot be read.
    """
    try:
        return _parse_plan(output, stored["layout"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{output.at('plan.json')}: is damaged; mine again with --overwrite", uri=output.uri
        ) from error


def _parse_plan(output: MineOutput, values: dict[str, Any]) -> MiningPlan:
    units = [
        MiningUnit(
            unit["name"], tuple(RowGroups(run["part"], tuple(run["groups"]), run["start"]) for run in unit["runs"])
        )
        for unit in values["units"]
    ]
    split = None if values["all_shuffled"] else _read_split(output.at("split.bin"), values.get("split_digest"))
    return MiningPlan(
        units, split, values["num_buckets"], values["max_positives"], values["totals"], values.get("max_by_value", {})
    )


def _read_split(uri: str, digest: str | None) -> np.ndarray:
    """Return the hashes of queries that lie in several units."""
    data = storage.read_bytes(uri)
    if digest not in (None, hashlib.sha256(data).hexdigest()) or len(data) % 8:
        raise InputError(f"{uri}: is damaged; --overwrite starts afresh", uri=uri)
    return np.frombuffer(data, "<u8")


def is_mined(uri: str) -> bool:
    """Whether a mining job has planned in a folder."""
    return storage.read_if_present(MineOutput(uri).at("plan.json")) is not None


def check_mined(uri: str) -> list[str]:
    """Return the faults of mined data; nothing where all objects are as they were written.

    Raises:
        InputError: the plan is damaged.
        JobError, StorageError: the folder cannot be read.
    """
    output = MineOutput(uri)
    stored = output.load_stored_plan()
    if stored is None:
        raise InputError(f"{output.at('plan.json')}: is damaged; mine again with --overwrite", uri=uri)
    plan = restore_plan(output, stored)
    names = {unit.name for unit in (*plan.units, *plan.buckets)}
    records = [record for _, record in output.records.load(names) if isinstance(record.get("objects"), dict)]
    problems = []
    if len(records) < len(names):
        missing = len(names) - len(records)
        problems.append(f"{uri}: {missing:,} of {len(names):,} units are not mined; run the same command again")
    present = {item.uri: item for item in output.list_written()}
    sizes, digests = (
        {storage.join_uri(uri, name): value for record in records for name, value in record.get(kind, {}).items()}
        for kind in ("objects", "digests")
    )
    problems += list_lost(present, sizes) + list_changed(present, sizes, digests)
    if len(records) == len(names):
        others = [name for name in sorted(present.keys() - sizes.keys()) if name.rpartition("/")[2] not in OF_NO_UNIT]
        problems += [f"{name}: was not written by this mining" for name in others]
    if not problems and output.read_success() is None:
        problems.append(f"{output.success_uri}: is missing; run the same command again")
    return problems
