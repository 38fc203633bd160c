"""A scored output as input: which parts there are, in the plan's order, which are missing, and what they were scored with.

Takes the folder of a scoring job, whose plan says what should be there, or Parquet files and folders with the same columns.
Everything that reads scores takes its list of parts from here. Only listings, plans and footers are read. Knows nothing of
what is made of the scores; the words of an error that only the caller's user would know are the caller's.
"""

import contextlib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, RerankError
from rerank_actor.fingerprint import hash_fingerprint, list_differing
from rerank_actor.inputs.plan import Plan
from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.folder import PARQUET_SUFFIXES, PART_NAME, Output, digest_parts, list_strays, select_parts
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.row_groups import open_part

PARTS_ASKED = 20  # for their dtype
MADE_OF = "_compact/made_of.json"  # where parts are joined into files
JOINED_NAME = re.compile(r"part-\d{5,}-of-(\d{5,})\.parquet$")


@dataclass(frozen=True)
class ScoredOutput:
    """What is scored at a place.

    Attributes:
        uri: the place.
        parts: in the plan's order; of bare Parquet in that of names.
        units: what each part holds; empty for bare Parquet.
        missing: units that have no part.
        strays: what else lies there: names of Parquet files that are in no plan; beside bare Parquet, objects that are none.
        plan: of the job, empty for bare Parquet.
        settings: those of the job's fingerprint, empty for bare Parquet.
        is_joined: whether these are files that parts were joined into, or are being joined into.
    """

    uri: str
    parts: tuple[storage.StoredObject, ...]
    units: tuple[Unit, ...] = ()
    missing: tuple[Unit, ...] = ()
    strays: tuple[str, ...] = ()
    plan: Plan = field(default_factory=Plan)
    settings: dict[str, Any] = field(default_factory=dict)
    is_joined: bool = False

    @property
    def num_planned(self) -> int:
        """Parts that there should be, 0 for bare Parquet."""
        return len(self.units) + len(self.missing)

    @property
    def rows_by_part(self) -> tuple[int | None, ...]:
        """Input rows of each part as planned, None where only its footer can tell."""
        return tuple(unit.num_rows for unit in self.units) if self.settings else (None,) * len(self.parts)

    def explain_incomplete(self) -> str | None:
        """Return why an output of a scoring job does not count as complete, None where it does or there is no job."""
        if self.is_joined:
            return self._explain_half_joined()
        if not self.settings:
            return self._explain_without_plan()
        if self.missing:
            return f"{len(self.missing):,} of {self.num_planned:,} parts are not scored yet"
        mark = Output(self.uri).read_success()
        if mark is None:
            return "no _SUCCESS, so that a run is at work or was ended"
        if mark and (mark.get("fingerprint"), mark.get("digest")) != (
            hash_fingerprint(self.settings),
            digest_parts(self.parts),
        ):
            return "its parts are not those that _SUCCESS was written for"
        return None

    def _explain_without_plan(self) -> str | None:
        """Return why parts whose plan is not there are not those of a whole output, as far as `_SUCCESS` tells."""
        names = [part.uri.rpartition("/")[2] for part in self.parts]
        if not any(map(PART_NAME.fullmatch, names)) or self.uri.endswith(PARQUET_SUFFIXES):
            return None
        mark = Output(self.uri).read_success()
        if mark and mark.get("digest") != digest_parts(self.parts):
            return "it has no plan, and its parts are not those that _SUCCESS was written for"
        return None

    def _explain_half_joined(self) -> str | None:
        """Return why files that parts are joined into are not all there."""
        mark = Output(self.uri).read_success()
        if mark is None:
            return "no _SUCCESS, so that jobs.compact is at work on it or was ended"
        totals = [int(name[1]) for part in self.parts if (name := JOINED_NAME.search(part.uri)) is not None]
        digest = digest_parts(self.parts)
        if totals != [len(totals)] * len(totals) or mark.get("digest", digest) != digest:
            return "its files are not those that _SUCCESS was written for (jobs.compact writes them again)"
        return None

    def refuse_incomplete(self, flag: str, cure: str) -> None:
        """Refuse an output that is not scored to the end.

        Args:
            flag: what stands before the URI: the flag that named it and a blank, or nothing.
            cure: what to do about it.

        Raises:
            InputError: it is not complete.
        """
        if (reason := self.explain_incomplete()) is not None:
            raise InputError(f"{flag}{self.uri}: {reason}; {cure}", uri=self.uri)


def open_scored(uri: str, listed: Iterable[storage.StoredObject] | None = None) -> ScoredOutput:
    """Look at what is scored at a place: an output of the scoring job, or Parquet files, a folder or a glob of them.

    Args:
        uri: the place.
        listed: the objects there where the caller has listed them; an output of the scoring job is listed here.

    Raises:
        JobError, StorageError: it cannot be read.
    """
    objects = sorted(storage.list_objects(uri) if listed is None else listed, key=lambda item: item.uri)
    is_file = uri.endswith(PARQUET_SUFFIXES) or [item.uri for item in objects] == [uri]
    stored = None if is_file else Output(uri).load_plan()
    if stored is not None:
        return _match_plan(uri, *stored)
    is_joined = not is_file and storage.read_if_present(storage.join_uri(uri, MADE_OF)) is not None
    parts: list[storage.StoredObject] = []
    strays: list[str] = []
    for item in objects:
        if item.uri.endswith(PARQUET_SUFFIXES) and item.size > 0:
            parts.append(item)
        else:
            strays.append(item.uri)
    return ScoredOutput(uri, tuple(parts), strays=tuple(strays), is_joined=is_joined)


def require_scored(uri: str) -> ScoredOutput:
    """Look at an output of the scoring job.

    Raises:
        InputError: no job has written there.
        JobError, StorageError: it cannot be read.
    """
    stored = Output(uri).require_plan()
    return _match_plan(uri, *stored)


def _match_plan(uri: str, plan: Plan, settings: dict[str, Any]) -> ScoredOutput:
    """Return what of a plan is committed: what lies in the folder itself, for what lies deeper is another's."""
    objects = storage.list_children(uri)
    present = select_parts(objects)
    units: list[Unit] = []
    parts: list[storage.StoredObject] = []
    missing: list[Unit] = []
    for unit in plan.units():
        if unit.part_name in present:
            units.append(unit)
            parts.append(present[unit.part_name])
        else:
            missing.append(unit)
    strays = list_strays(objects, {unit.part_name for unit in plan.units()})
    return ScoredOutput(uri, tuple(parts), tuple(units), tuple(missing), tuple(strays), plan, settings)


def read_schema(part: storage.StoredObject) -> pa.Schema:
    """Return the columns of a scored file.

    Raises:
        ShardError: it is no Parquet file.
        StorageError, JobError: it cannot be reached.
    """
    with open_part(part) as file:
        return file.schema_arrow


def find_dtype(parts: Iterable[storage.StoredObject]) -> str | None:
    """Return the dtype that the first parts were computed in; None where none of them tells, as those without scores do not."""
    for part in itertools.islice(parts, PARTS_ASKED):
        with contextlib.suppress(RerankError):  # whoever reads its rows says what is wrong with it
            if dtype := read_part_metadata(read_schema(part)).get("dtype"):
                return dtype
    return None


def compare_settings(settings: Mapping[str, dict[str, Any]], flag: str, cure: str) -> None:
    """Refuse outputs that were scored differently.

    Args:
        settings: of each output's fingerprint, by its URI.
        flag: that named them.
        cure: what to do about it.

    Raises:
        InputError: they differ; says in what.
    """
    if not settings:
        return
    (first, expected), *others = settings.items()
    for uri, other in others:
        if hash_fingerprint(other) != hash_fingerprint(expected):
            differing = list_differing(expected, other)
            shown = "; ".join(f"{name}: {expected.get(name)!r} and {other.get(name)!r}" for name in differing)
            raise InputError(
                f"{flag} {first} and {uri} have different fingerprints, so that their scores may not be comparable "
                f"({shown}); {cure}",
                uri=uri,
                differing=differing,
            )


def compare_fingerprints(fingerprints: Mapping[str | None, str], flag: str, cure: str) -> None:
    """Refuse files that were scored differently.

    Args:
        fingerprints: the name of one file for each fingerprint that files carry; None for files that carry none.
        flag: that named them.
        cure: what to do about it.

    Raises:
        InputError: there is more than one.
    """
    if len(fingerprints) > 1:
        (one, first), (two, second), *_ = sorted(fingerprints.items(), key=lambda item: str(item[0]))
        raise InputError(
            f"{flag}: {first} has the fingerprint {one}, {second} has {two}, so that their scores may not be comparable; "
            f"{cure}",
            uri=second,
        )
