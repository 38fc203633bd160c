"""The part: what a scored unit becomes in the output, and what its metadata say.

Takes a `UnitWork` with logits, gives one Parquet object, whole or not at all. Knows nothing of Ray or engines.
"""

import io
import json
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.units import UnitWork

NOT_FINITE = "engine returned a logit that is not finite"
METADATA_PREFIX = "rerank_actor."


def compute_score(logits: np.ndarray) -> np.ndarray:
    """Return the score of each logit, its sigmoid: float32 [num_pairs] in [0, 1], computed in float64."""
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        return (1.0 / (1.0 + np.exp(-wide))).astype(np.float32)


def build_part(work: UnitWork) -> tuple[pa.Table, dict[str, Any]]:
    """Return a scored unit's part and its totals.

    Returns:
        The kept columns in input order with `score`, `logit`, `num_tokens`, `truncated_tokens` and `error` behind
        them, lists of these where documents are lists; and the totals: rows, pairs, scored, truncated, tokens and
        errors by reason.
    """
    if work.logits is None:
        raise ValueError(f"unit {work.unit.name} has not been scored")
    prompts = work.prompts
    finite = np.isfinite(work.logits)
    pair_errors = prompts.errors.to_numpy(zero_copy_only=False)
    pair_errors = np.where((pair_errors == None) & ~finite, NOT_FINITE, pair_errors)  # noqa: E711 - elementwise
    if work.list_lengths is None:
        row_errors = work.row_errors.to_numpy(zero_copy_only=False)
        pair_errors = np.where(row_errors != None, row_errors, pair_errors)  # noqa: E711 - elementwise
    scored = pair_errors == None  # noqa: E711 - elementwise
    columns: dict[str, pa.Array] = {
        "score": pa.array(compute_score(work.logits), pa.float32(), mask=~scored),
        "logit": pa.array(work.logits, pa.float32(), mask=~scored),
        "num_tokens": pa.array(np.where(scored, prompts.num_tokens, 0), pa.int32()),
        "truncated_tokens": pa.array(np.where(scored, prompts.truncated_tokens, 0), pa.int32()),
        "error": pa.array(pair_errors, pa.string()),
    }
    errors = Counter(str(reason) for reason in pair_errors if reason is not None)
    if work.list_lengths is not None:
        lacking = work.list_lengths < 0
        offsets = np.concatenate([[0], np.cumsum(np.maximum(work.list_lengths, 0))]).astype(np.int32)
        columns = {name: _to_lists(offsets, values, lacking) for name, values in columns.items() if name != "error"}
        columns["error"] = _list_errors(work.row_errors.to_pylist(), offsets, pair_errors)
        errors.update(str(reason) for reason in work.row_errors.to_pylist() if reason is not None)
    table = pa.ipc.open_stream(work.rows).read_all()
    for name, values in columns.items():
        table = table.append_column(name, values)
    totals = {
        "rows": work.unit.num_rows,
        "pairs": len(scored),
        "scored": int(scored.sum()),
        "truncated": int((np.where(scored, prompts.truncated_tokens, 0) > 0).sum()),
        "tokens": int(prompts.num_tokens[scored].sum()),
        "errors": dict(sorted(errors.items())),
    }
    return table, totals


def _to_lists(offsets: np.ndarray, values: pa.Array, lacking: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(lacking))


def _list_errors(row_errors: list[str | None], offsets: np.ndarray, pair_errors: np.ndarray) -> pa.Array:
    lists = [
        [row_error] if row_error is not None else list(pair_errors[offsets[row] : offsets[row + 1]])
        for row, row_error in enumerate(row_errors)
    ]
    return pa.array(lists, pa.list_(pa.string()))


def write_part(work: UnitWork, output: str, metadata: dict[str, str], scratch: str | None) -> dict[str, Any]:
    """Write a scored unit's part, whole or not at all, and return its totals with the part's size.

    Doing it twice is harmless: the name follows from the unit and the content from the job.

    Raises:
        StorageError, JobError: the part could not be written.
    """
    table, totals = build_part(work)
    own = {
        **metadata,
        "unit": work.unit.name,
        "shard": work.unit.uri,
        "shard_etag": work.unit.etag,
        "row_start": str(work.unit.row_start),
        "num_rows": str(work.unit.num_rows),
        "engine_version": str(work.facts.get("engine_version", "")),
        "dtype": str(work.facts.get("dtype", "")),
        "facts": json.dumps({**totals, **work.facts}),
    }
    sink = io.BytesIO()
    table = table.replace_schema_metadata({METADATA_PREFIX + name: value for name, value in own.items()})
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    storage.write_bytes(storage.join_uri(output, work.unit.part_name), data, scratch=scratch)
    return {**totals, **work.facts, "part_bytes": len(data), "finished_at": time.time()}


def read_part_metadata(schema: pa.Schema) -> dict[str, str]:
    """Return what the project wrote into a part's Parquet metadata, empty where it wrote nothing."""
    return {
        name.decode()[len(METADATA_PREFIX) :]: value.decode()
        for name, value in (schema.metadata or {}).items()
        if name.decode(errors="replace").startswith(METADATA_PREFIX)
    }
