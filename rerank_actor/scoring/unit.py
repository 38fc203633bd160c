"""A unit at work: its rows and prompts, its logits once it is scored, or why it failed.

Travels between processes as an Arrow table of one row, without copies of its buffers. Knows nothing of how rows are read
or how logits are computed.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa

from rerank_actor.engines.prompts import Prompts
from rerank_actor.inputs.rows import Unit


@dataclass(frozen=True)
class UnitWork:
    """One unit with its rows and prompts, and its logits once it is scored.

    Attributes:
        unit: the unit.
        rows: the kept columns, as an Arrow stream.
        prompts: one for each pair.
        row_errors: string [num_rows], faults that concern a whole row.
        list_lengths: int32 [num_rows], pairs of each row, -1 for a row without a list; None when a row is a pair.
        logits: float32 [num_pairs], NaN where not scored; vectors of an embedding model [num_pairs, size]; None before.
        failure: why the whole unit failed; then the rest is empty.
        facts: what happened on the way (attempts, seconds, engine), for manifest and metadata.
        pair_keys: string [num_pairs], for the part; None where it has none.
        directions: where each row is a pair in each of these; the pairs then stand direction by direction.
        output_index: which of the run's outputs it belongs to.
    """

    unit: Unit
    rows: pa.Buffer
    prompts: Prompts
    row_errors: pa.StringArray
    list_lengths: np.ndarray | None = None
    logits: np.ndarray | None = None
    failure: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    pair_keys: pa.StringArray | None = None
    directions: tuple[str, ...] = ()
    output_index: int = 0

    @classmethod
    def failed(cls, unit: Unit, failure: str, facts: dict[str, Any] | None = None) -> Self:
        """Return the record of a unit that has no rows to show for itself."""
        return cls(
            unit, pa.py_buffer(b""), Prompts.none(), pa.array([], pa.string()), failure=failure, facts=facts or {}
        )

    def with_failure(self, failure: str, facts: dict[str, Any]) -> "UnitWork":
        """Return this unit as failed, without its rows."""
        return replace(UnitWork.failed(self.unit, failure, {**self.facts, **facts}), output_index=self.output_index)

    def with_logits(self, logits: np.ndarray, facts: dict[str, Any]) -> "UnitWork":
        """Return this unit scored, without the prompts' ids, which nobody needs after it."""
        prompts = self.prompts.without_ids()
        return replace(self, prompts=prompts, logits=prompts.fill_in(logits), facts={**self.facts, **facts})

    def to_table(self) -> pa.Table:
        """Return the unit as a table of one row, the form in which it moves through Ray Data."""
        values: dict[str, Any] = {
            "rows": self.rows,
            "prompts": _batch_to_buffer(self.prompts.to_batch()),
            "row_errors": _batch_to_buffer(pa.record_batch([self.row_errors], names=["row_errors"])),
            "list_lengths": None if self.list_lengths is None else pa.py_buffer(self.list_lengths),
            "logits": None if self.logits is None else pa.py_buffer(self.logits),
            "pair_keys": None
            if self.pair_keys is None
            else _batch_to_buffer(pa.record_batch([self.pair_keys], names=["pair_keys"])),
        }
        columns = {name: _one_buffer(buffer) for name, buffer in values.items()}
        columns["unit"] = pa.array([json.dumps(asdict(self.unit))])
        columns["facts"] = pa.array([json.dumps(self.facts)])
        columns["directions"] = pa.array([json.dumps(self.directions)])
        columns["output_index"] = pa.array([self.output_index], pa.int32())
        columns["failure"] = pa.array([self.failure], pa.string())
        size = self.logits.shape[1] if self.logits is not None and self.logits.ndim == 2 else None
        columns["vector_size"] = pa.array([size], pa.int32())
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Inverse of `to_table`, without a copy of rows, prompts or numbers."""

        def numbers(name: str, kind: Any) -> np.ndarray | None:
            return np.frombuffer(_read_value(table, name), kind) if table.column(name)[0].is_valid else None

        logits, size = numbers("logits", np.float32), table.column("vector_size")[0].as_py()
        return cls(
            unit=Unit(**json.loads(table.column("unit")[0].as_py())),
            rows=_read_value(table, "rows"),
            prompts=Prompts.from_batch(_buffer_to_batch(_read_value(table, "prompts"))),
            row_errors=_buffer_to_batch(_read_value(table, "row_errors")).column(0),
            list_lengths=numbers("list_lengths", np.int32),
            logits=logits.reshape(-1, size) if logits is not None and size is not None else logits,
            failure=table.column("failure")[0].as_py(),
            facts=json.loads(table.column("facts")[0].as_py()),
            pair_keys=_buffer_to_batch(_read_value(table, "pair_keys")).column(0)
            if table.column("pair_keys")[0].is_valid
            else None,
            directions=tuple(json.loads(table.column("directions")[0].as_py())),
            output_index=table.column("output_index")[0].as_py(),
        )


def _one_buffer(buffer: pa.Buffer | None) -> pa.Array:
    """Return a column of one binary value without copying it."""
    if buffer is None:
        return pa.nulls(1, pa.large_binary())
    offsets = pa.py_buffer(np.array([0, buffer.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])


def _read_value(table: pa.Table, name: str) -> pa.Buffer:
    """Return the binary value of a column of one row where it lies; a scalar would be a copy."""
    chunk = next(chunk for chunk in table.column(name).chunks if len(chunk))
    _, offsets, values = chunk.buffers()
    start, end = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + 2]
    return values.slice(start, end - start) if values is not None else pa.py_buffer(b"")


def _batch_to_buffer(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _buffer_to_batch(buffer: pa.Buffer) -> pa.RecordBatch:
    return pa.ipc.open_stream(buffer).read_next_batch()
