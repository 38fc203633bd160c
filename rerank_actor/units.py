"""A unit on its way: read and prepared, then scored.

The path of a unit is `prepare_unit` (read task, on a CPU) -> `RerankActor` (fills in the logits) -> `part.write_part`
(sink). Between processes a unit travels as one row of an Arrow table, so that Ray can never split or
merge it; the actor sees token ids and never a text. Knows nothing of Ray.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import pyarrow as pa
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from rerank_actor import shards, storage
from rerank_actor.directions import BACKWARD, Directions
from rerank_actor.errors import RerankError, ShardChangedError, ShardError
from rerank_actor.plan import Unit
from rerank_actor.prompts import PairEncoder, Prompts

LIST_NULL = "document list is null"
LIST_EXPECTED = "document is not a list"


@dataclass(frozen=True)
class PrepareSpec:
    """What a read task needs besides the unit: how to read rows and how to make prompts of them.

    Attributes:
        fingerprint: of the job; also names the cached encoder of a worker process.
        encoder: keyword arguments of `PairEncoder` besides the tokenizer.
        keep: columns to keep, None for all.
        environment: AWS variables of the driver.
        directions: where each row is scored as a pair in one or two directions.
    """

    fingerprint: str
    encoder: dict[str, Any]
    format: str
    query_column: str
    document_column: str
    instruction_column: str | None
    keep: list[str] | None
    json_types: dict[str, pa.DataType]
    max_attempts: int
    environment: dict[str, str] = field(repr=False)
    directions: Directions | None = None


@dataclass(frozen=True)
class UnitWork:
    """One unit with its rows and prompts, and its logits once it is scored.

    Attributes:
        unit: the unit.
        rows: the kept columns, as an Arrow stream.
        prompts: one for each pair.
        row_errors: string [num_rows], faults that concern a whole row.
        list_lengths: int32 [num_rows], pairs of each row, -1 for a row without a list; None when a row is a pair.
        logits: float32 [num_pairs], NaN where not scored; None before scoring.
        failure: why the whole unit failed; then the rest is empty.
        facts: what happened on the way (attempts, seconds, engine), for manifest and metadata.
        directions: where each row is a pair in each of these; the pairs then stand direction by direction.
    """

    unit: Unit
    rows: pa.Buffer
    prompts: Prompts
    row_errors: pa.StringArray
    list_lengths: np.ndarray | None = None
    logits: np.ndarray | None = None
    failure: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    directions: tuple[str, ...] = ()

    @classmethod
    def failed(cls, unit: Unit, failure: str, facts: dict[str, Any] | None = None) -> Self:
        """Return the record of a unit that has no rows to show for itself."""
        return cls(
            unit, pa.py_buffer(b""), Prompts.none(), pa.array([], pa.string()), failure=failure, facts=facts or {}
        )

    def with_failure(self, failure: str, facts: dict[str, Any]) -> "UnitWork":
        """Return this unit as failed, without its rows."""
        return UnitWork.failed(self.unit, failure, {**self.facts, **facts})

    def with_logits(self, logits: np.ndarray, facts: dict[str, Any]) -> "UnitWork":
        """Return this unit scored, without the prompts' ids, which nobody needs after it."""
        return replace(self, prompts=self.prompts.without_ids(), logits=logits, facts={**self.facts, **facts})

    def to_table(self) -> pa.Table:
        """Return the unit as a table of one row, the form in which it moves through Ray Data."""
        values: dict[str, Any] = {
            "rows": self.rows,
            "prompts": _batch_to_buffer(self.prompts.to_batch()),
            "row_errors": _batch_to_buffer(pa.record_batch([self.row_errors], names=["row_errors"])),
            "list_lengths": None if self.list_lengths is None else pa.py_buffer(self.list_lengths),
            "logits": None if self.logits is None else pa.py_buffer(self.logits),
        }
        columns = {name: _one_buffer(buffer) for name, buffer in values.items()}
        columns["unit"] = pa.array([json.dumps(asdict(self.unit))])
        columns["facts"] = pa.array([json.dumps(self.facts)])
        columns["directions"] = pa.array([json.dumps(self.directions)])
        columns["failure"] = pa.array([self.failure], pa.string())
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Inverse of `to_table`, without a copy of rows, prompts or numbers."""

        def numbers(name: str, kind: Any) -> np.ndarray | None:
            return np.frombuffer(_read_value(table, name), kind) if table.column(name)[0].is_valid else None

        return cls(
            unit=Unit(**json.loads(table.column("unit")[0].as_py())),
            rows=_read_value(table, "rows"),
            prompts=Prompts.from_batch(_buffer_to_batch(_read_value(table, "prompts"))),
            row_errors=_buffer_to_batch(_read_value(table, "row_errors")).column(0),
            list_lengths=numbers("list_lengths", np.int32),
            logits=numbers("logits", np.float32),
            failure=table.column("failure")[0].as_py(),
            facts=json.loads(table.column("facts")[0].as_py()),
            directions=tuple(json.loads(table.column("directions")[0].as_py())),
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


@lru_cache(maxsize=2)
def _encoder(fingerprint: str, tokenizer_json: str, encoder: str) -> PairEncoder:
    return PairEncoder(tokenizer_json, **json.loads(encoder))


def prepare_unit(unit: Unit, spec: PrepareSpec, tokenizer_json: str) -> UnitWork:
    """Read a unit's rows and make their prompts; what cannot be read becomes a failed unit, not an exception."""
    storage.adopt_environment(spec.environment)
    columns = [spec.query_column, spec.document_column]
    if spec.instruction_column is not None:
        columns.append(spec.instruction_column)
    if spec.directions is not None and spec.directions.reason_column is not None:
        columns.append(spec.directions.reason_column)
    policy = Retrying(  # for bytes that came wrong; storage itself tries again whatever it can
        retry=retry_if_exception_type(ShardError) & retry_if_not_exception_type(ShardChangedError),
        stop=stop_after_attempt(spec.max_attempts),
        wait=wait_random_exponential(multiplier=0.3, max=10),
        reraise=True,
    )
    retries_before = storage.retries_made()
    try:
        with storage.patient():
            rows = policy(
                shards.read_rows,
                unit.uri,
                spec.format,
                row_start=unit.row_start,
                num_rows=unit.num_rows,
                byte_start=unit.byte_start,
                keep=spec.keep,
                text_columns=columns,
                types=spec.json_types,
                size=unit.size,
                etag=unit.etag,
            )
    except RerankError as error:
        facts = {"attempts": policy.statistics.get("attempt_number", 1)}
        return UnitWork.failed(unit, str(error), {**facts, "read_retries": storage.retries_made() - retries_before})
    read_retries = storage.retries_made() - retries_before
    encoder = _encoder(spec.fingerprint, tokenizer_json, json.dumps(spec.encoder))
    if spec.directions is not None:
        work = prepare_directions(unit, rows, columns[0], columns[1], spec.directions, encoder)
    else:
        work = prepare_rows(unit, rows, columns, encoder)
    return replace(work, facts={**work.facts, "read_retries": read_retries}) if read_retries else work


def prepare_rows(unit: Unit, rows: shards.Rows, columns: list[str], encoder: PairEncoder) -> UnitWork:
    """Make the prompts of some rows: one a row, or one for each element of the document lists."""
    queries = rows.texts[columns[0]]
    documents = rows.texts[columns[1]]
    instructions = rows.texts[columns[2]] if len(columns) > 2 else None
    row_errors: list[str | None] = list(rows.faults)
    lengths: np.ndarray | None = None
    if columns[1] in rows.list_columns:
        for index, found in enumerate(documents):
            if row_errors[index] is None and not isinstance(found, list):
                row_errors[index] = LIST_NULL if found is None else LIST_EXPECTED
        lengths = np.array(
            [-1 if row_errors[i] is not None else len(found) for i, found in enumerate(documents)], np.int32
        )
        owners = np.repeat(np.arange(len(documents)), np.maximum(lengths, 0))
        queries = [queries[owner] for owner in owners]
        instructions = [instructions[owner] for owner in owners] if instructions is not None else None
        documents = [text for i, found in enumerate(documents) if lengths[i] > 0 for text in found]
    return UnitWork(
        unit=unit,
        rows=_table_to_buffer(rows.table),
        prompts=encoder.encode(queries, documents, instructions),
        row_errors=pa.array(row_errors, pa.string()),
        list_lengths=lengths,
    )


def prepare_directions(
    unit: Unit, rows: shards.Rows, source: str, target: str, directions: Directions, encoder: PairEncoder
) -> UnitWork:
    """Make a prompt of each row in each direction, direction by direction; rows with a reason against it get none."""
    row_errors: list[str | None] = list(rows.faults)
    if directions.reason_column is not None:
        reasons = rows.texts[directions.reason_column]
        row_errors = [fault or reason for fault, reason in zip(row_errors, reasons, strict=True)]
    # What is not to be scored is not tokenized either.
    sides = [
        [None if error is not None else text for text, error in zip(rows.texts[name], row_errors, strict=True)]
        for name in (source, target)
    ]
    queries: list[Any] = []
    documents: list[Any] = []
    instructions: list[str] = []
    for direction, instruction in directions.instructions.items():
        query, document = reversed(sides) if direction == BACKWARD else sides
        queries += query
        documents += document
        instructions += [instruction] * len(query)
    return UnitWork(
        unit=unit,
        rows=_table_to_buffer(rows.table),
        prompts=encoder.encode(queries, documents, instructions),
        row_errors=pa.array(row_errors, pa.string()),
        directions=tuple(directions.instructions),
    )


def _table_to_buffer(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()
