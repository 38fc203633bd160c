"""The output folder: which object is where, which units are committed, and who may write to it.

Parts lie in the folder itself; all that is the job's own lies in `_job/`, which readers of the parts skip. The listing
of the parts says what is committed, and the unit records whether a part is still as it was written. Knows nothing of
Ray or of what is in a part.
"""

import hashlib
import re
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, JobError, StorageError
from rerank_actor.inputs.columnar import read_own_table
from rerank_actor.inputs.plan import Plan
from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.histograms import NAMES

RECORD_THREADS = 16
WRITE_TRIES = 5
PARQUET_SUFFIXES = (".parquet", ".pq")
PART_NAME = re.compile(r"part-[0-9a-f]{12,}-\d{5,}\.parquet")
CARD = ".huggingface.yaml"  # read by datasets as its README.md is, whose name pyarrow, pandas and Spark would take for data
DATA_FILES = "part-*.parquet"
UNKNOWN_FAILURE = {
    "shard": "a shard",
    "row_start": 0,
    "num_rows": 0,
    "error": "the record of it is damaged",
    "attempts": 0,
    "run": "",
}
PLAN, PLAN_BEFORE = (
    "plan.bin",
    "plan.parquet",
)  # both Parquet; by the suffix of before, readers of the folder took it for rows
OWN_FILES = (PLAN, PLAN_BEFORE, "job.yaml", "manifest.json", "report.html", "estimate.json")
LISTED = ("runs", "engines")  # lists of a manifest
MANIFEST_TYPES = {
    **dict.fromkeys(LISTED, list),
    **dict.fromkeys(("totals", "plan", "model", "job", "dedupe", "joins", "faults"), dict),
}
ADDED_COLUMNS = frozenset({"fingerprint", "digest", "passed"})  # which records written before have not
HISTOGRAM_COLUMNS = frozenset(f"{name}_bins" for name in NAMES)
RECORD_SCHEMA = pa.schema(
    {
        "unit": pa.string(),
        "rows": pa.int64(),
        "pairs": pa.int64(),
        "scored": pa.int64(),
        "truncated": pa.int64(),
        "tokens": pa.int64(),
        "cached_tokens": pa.int64(),
        "forward_passes": pa.int64(),
        "reused": pa.int64(),
        "shared": pa.int64(),
        "errors": pa.string(),
        "attempts": pa.int32(),
        "seconds": pa.float64(),
        "part_bytes": pa.int64(),
        "part_etag": pa.string(),
        "finished_at": pa.float64(),
        "fingerprint": pa.string(),
        "digest": pa.string(),
        "passed": pa.int64(),
        **{f"{name}_bins": pa.list_(pa.int32()) for name in NAMES},
    }
)


@dataclass(frozen=True)
class JobFolder:
    """Names in a folder that a job writes, and what it keeps for itself in `own_folder`, which readers of the rest skip.

    Attributes:
        uri: the folder.
    """

    uri: str
    own_folder: ClassVar[str] = "_job"

    def at(self, *names: str) -> str:
        """Return the URI of something in the job's own folder."""
        return storage.join_uri(self.uri, self.own_folder, *names)

    @property
    def success_uri(self) -> str:
        """The mark that everything is committed."""
        return storage.join_uri(self.uri, "_SUCCESS")

    def read_success(self) -> dict[str, Any] | None:
        """Return what the mark says, empty where it was written before marks said anything; None where there is none.

        One that is damaged says that it is, and so is of no parts.
        """
        data = storage.read_if_present(self.success_uri)
        return None if data is None else (storage.open_json(data) or {"damaged": True}) if data else {}

    @property
    def lease_uri(self) -> str:
        """The object that says which run may write."""
        return self.at("lease.json")

    @property
    def scratch(self) -> str | None:
        """Folder for temporary files on the same file system; S3 needs none."""
        return None if storage.is_remote(self.uri) else self.at("tmp")

    def write_own(self, name: str, data: bytes) -> None:
        """Write one of the job's own objects."""
        storage.write_bytes(self.at(name), data)

    def read_own(self, name: str) -> dict[str, Any]:
        """Return one of the job's own JSON objects, empty where there is none or it is damaged."""
        return storage.open_json(storage.read_if_present(self.at(name))) or {}

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write one of the job's own JSON objects, sealed."""
        self.write_own(name, storage.seal_json(values, indent=2, ensure_ascii=False))

    def guard(self, uri: str) -> "GuardedObject":
        """Return one of the folder's objects as this run alone is to write it."""
        return GuardedObject(uri, self.scratch)

    def write_card(self, data_files: str = DATA_FILES) -> None:
        """Tell `datasets` which files are data, unless the folder tells it already; whoever else reads it skips the name."""
        storage.create_bytes(storage.join_uri(self.uri, CARD), make_card(data_files))

    def delete_card(self) -> None:
        """Delete what `write_card` wrote of the parts, and nothing that another wrote."""
        uri = storage.join_uri(self.uri, CARD)
        if storage.read_if_present(uri) == make_card():
            storage.delete_objects([uri])

    def write_guarded(self, uri: str, data: bytes, check: Callable[[], None]) -> None:
        """Write an object once as `GuardedObject` does; arguments and errors as of its `write`."""
        guarded = self.guard(uri)
        guarded.look()
        guarded.write(data, check)

    def clear_scratch(self) -> None:
        """Delete what a killed run left half written."""
        if self.scratch is not None:
            storage.delete_folder(self.scratch)


def make_card(data_files: str = DATA_FILES) -> bytes:
    """Return what tells `datasets` which files of a folder are data."""
    return f"configs:\n- config_name: default\n  data_files: {data_files}\n".encode()


class GuardedObject:
    """An object that one run writes, each time on the condition that it still is what this run saw or wrote last.

    Args:
        uri: of the object.
        scratch: folder for temporary files on the same file system.
    """

    def __init__(self, uri: str, scratch: str | None) -> None:
        self.uri, self._scratch = uri, scratch
        self._seen: storage.Version | None = None

    def look(self) -> bytes | None:
        """Return what is there now, None for nothing; it is what the next `write` replaces."""
        self._seen = storage.read_version(self.uri)
        return self._seen.data if self._seen is not None else None

    def write(self, data: bytes, check: Callable[[], None]) -> None:
        """Write the object in the place of what this run saw, if it still was the one that may write when it had seen that.

        Args:
            data: its new bytes.
            check: raises where another run has taken over.

        Raises:
            OutputConflictError: another run has taken over.
            StorageError, JobError: it could not be written.
        """
        for _ in range(WRITE_TRIES):
            check()  # behind the look: what was seen before another run took over is no longer there
            if self._put(data):
                self.look()
                return
            self.look()
        raise StorageError(f"{self.uri}: changes again and again while it is written", uri=self.uri)

    def _put(self, data: bytes) -> bool:
        if self._seen is None:
            return storage.create_bytes(self.uri, data, scratch=self._scratch)
        return storage.replace_bytes(self.uri, data, self._seen.mark, scratch=self._scratch)


@dataclass(frozen=True)
class Output(JobFolder):
    """Names and contents of an output folder."""

    def list_parts(self) -> dict[str, storage.StoredObject]:
        """Return the parts in the folder itself by file name; what lies deeper is not this job's."""
        return select_parts(storage.list_children(self.uri))

    def has_plan(self) -> bool:
        """Whether a scoring job has planned here, though its plan may be damaged."""
        return self._read_plan()[1] is not None

    def find_plan_uri(self) -> str:
        """Return where the plan lies, or is to be written: outputs written before keep the name that theirs has."""
        return self._read_plan()[0]

    def _read_plan(self) -> tuple[str, bytes | None]:
        for uri in (self.at(PLAN), self.at(PLAN_BEFORE)):
            if (data := storage.read_if_present(uri)) is not None:
                return uri, data
        return self.at(PLAN), None

    def is_begun(self) -> bool:
        """Whether a run has planned here, or is about to."""
        return self.has_plan() or storage.read_if_present(self.lease_uri) is not None

    def load_plan(self) -> tuple[Plan, dict[str, Any]] | None:
        """Return the stored plan and the settings of its fingerprint, None for a new output."""
        uri, data = self._read_plan()
        return Plan.from_bytes(data, uri) if data is not None else None

    def require_plan(self) -> tuple[Plan, dict[str, Any]]:
        """Return the stored plan and the settings of its fingerprint.

        Raises:
            InputError: no job has written here.
        """
        stored = self.load_plan()
        if stored is None:
            raise InputError(f"{self.uri}: no job has written here (no _job/{PLAN}); check the folder", uri=self.uri)
        return stored

    def load_manifest(self) -> dict[str, Any]:
        """Return the manifest, empty where there is none or it is damaged."""
        return open_manifest(storage.read_if_present(self.at("manifest.json"))) or {}

    def explain_manifest(self, data: bytes | None = None) -> str | None:
        """Say in a sentence that the manifest is damaged; None where it is sound or there is none.

        Args:
            data: its bytes; None reads them.
        """
        uri = self.at("manifest.json")
        data = storage.read_if_present(uri) if data is None else data
        if data is None or open_manifest(data) is not None:
            return None
        return (
            f"{uri}: is damaged; rows, scores and errors are counted again from records and parts, but the GPU hours, faults "
            "and speed of earlier runs are lost; the job's own command writes it anew"
        )

    def load_estimate(self) -> dict[str, Any]:
        """Return the estimate that `jobs.plan` stored, empty where there is none."""
        return self.read_own("estimate.json")

    def list_failed(self) -> list[dict[str, Any]]:
        """Return the records of failed units; of one that is damaged its unit alone is known."""
        names = [item.uri.rpartition("/")[2].removesuffix(".json") for item in self._own_objects("failed")]
        return [{**UNKNOWN_FAILURE, "unit": name, **self.read_own(f"failed/{name}.json")} for name in names]

    def replace_failed(self, failed: dict[str, dict[str, Any]]) -> None:
        """Make the folder of failed units hold exactly these."""
        for item in self._own_objects("failed"):
            if item.uri.rpartition("/")[2].removesuffix(".json") not in failed:
                storage.delete_objects([item.uri])
        for name, record in failed.items():
            self.write_json(f"failed/{name}.json", record)

    def read_records(self) -> Iterator[dict[str, Any]]:
        """Yield the unit records of earlier runs without their histograms."""
        for table in self.read_record_tables(skip=HISTOGRAM_COLUMNS):
            yield from table.to_pylist()

    def read_record_tables(self, skip: Container[str] = ()) -> Iterator[pa.Table]:
        """Yield the files of unit records, in the columns of `RECORD_SCHEMA`; one that is damaged has no rows."""
        with ThreadPoolExecutor(RECORD_THREADS) as pool:
            yield from pool.map(lambda item: _read_table(item.uri, skip), self._own_objects("runs"))

    def match_records(self, parts: dict[str, storage.StoredObject]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and record of each part that a record vouches for: its size and version mark are those written."""
        matched: set[str] = set()
        for record in self.read_records():
            name = f"part-{record['unit']}.parquet"
            if name in parts and name not in matched and is_as_recorded(parts[name], record):
                matched.add(name)
                yield name, record

    def _own_objects(self, folder: str) -> list[storage.StoredObject]:
        return storage.list_children(self.at(folder))

    def clear(self, check: Callable[[], None] = lambda: None) -> None:
        """Delete everything that an earlier job left, but the lease: the parts that its plan names, and no neighbour.

        Args:
            check: called just before what counts is deleted; raises where another run has taken over.
        """
        check()
        storage.delete_objects([self.success_uri])
        parts = [item.uri for item in self._list_own_parts()]
        check()
        storage.delete_objects(parts)
        for folder in ("failed", "runs", "tmp", "stores", "dedupe"):
            storage.delete_folder(self.at(folder))
        check()
        storage.delete_objects([self.at(name) for name in OWN_FILES])
        self.delete_card()

    def _list_own_parts(self) -> list[storage.StoredObject]:
        """Return the parts that the stored plan names; without one, those whose names only a plan of ours gives."""
        parts = self.list_parts()
        try:
            stored = self.load_plan()
        except JobError:
            stored = None
        if stored is None:
            return [item for name, item in parts.items() if PART_NAME.fullmatch(name)]
        return [parts[unit.part_name] for unit in stored[0].units() if unit.part_name in parts]

    def delete_parts(self, names: list[str]) -> None:
        """Delete parts that are no longer valid."""
        storage.delete_objects([storage.join_uri(self.uri, name) for name in names])


def open_manifest(data: bytes | None) -> dict[str, Any] | None:
    """Return the entries of a manifest; None where there is none, or it is damaged or not of the shape of ours."""
    values = storage.open_json(data)
    if values is None or not all(isinstance(values.get(name, kind()), kind) for name, kind in MANIFEST_TYPES.items()):
        return None
    return values if all(isinstance(one, dict) for name in LISTED for one in values.get(name, [])) else None


def is_as_recorded(part: storage.StoredObject, record: dict[str, Any]) -> bool:
    """Whether a part has the size and version mark of a unit's record; some stores list no marks."""
    return part.size == record["part_bytes"] and part.etag in ("", record["part_etag"])


def _read_table(uri: str, skip: Container[str]) -> pa.Table:
    """Return a file of unit records, empty where it is damaged, gone or no such file."""
    schema = pa.schema([column for column in RECORD_SCHEMA if column.name not in skip])
    try:
        table = read_own_table(storage.read_bytes(uri), skip)
    except (pa.ArrowException, OSError, InputError):
        return schema.empty_table()
    for column in schema:
        if column.name in ADDED_COLUMNS.difference(table.column_names):
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    table = table.select([name for name in schema.names if name in table.column_names])
    return table if table.schema.equals(schema) else schema.empty_table()


def select_parts(objects: Iterable[storage.StoredObject]) -> dict[str, storage.StoredObject]:
    """Return those of some objects that are parts, by file name; an empty object is none."""
    named = {item.uri.rpartition("/")[2]: item for item in objects if item.size > 0}
    return {name: item for name, item in named.items() if name.startswith("part-") and name.endswith(".parquet")}


def digest_parts(parts: Iterable[storage.StoredObject]) -> str:
    """Return a hash over names and sizes of an output's parts: which they are, wherever the output lies."""
    lines = sorted(f"{item.uri.rpartition('/')[2]} {item.size}\n" for item in parts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def list_strays(objects: Iterable[storage.StoredObject], own: Container[str]) -> list[str]:
    """Return the names of Parquet files that are not the job's own, though whoever reads the folder reads them with it."""
    names = (item.uri.rpartition("/")[2] for item in objects if item.uri.lower().endswith(PARQUET_SUFFIXES))
    return sorted(name for name in names if name not in own)


def list_pending(plan: Plan, parts: Container[str]) -> list[Unit]:
    """Return the units that are not committed, in the plan's order."""
    return [unit for unit in plan.units() if unit.part_name not in parts]
