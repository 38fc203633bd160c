"""Parts, written: a scored unit as a Parquet object with its scores, its reasons and its metadata.

Takes a `UnitWork` with logits, gives a committed object and what a manifest counts of it. How a part is checked is in
`outputs.part`. Knows nothing of engines or Ray.
"""

import json
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.engines.base import compute_score
from rerank_actor.engines.families.description import ScoreScale
from rerank_actor.engines.score_columns import list_errors, make_score_columns
from rerank_actor.engines.vectors import VectorForm
from rerank_actor.inputs.directions import DIRECTED_VALUES, name_column
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.inputs.rows import strip_location
from rerank_actor.inputs.where.rows import NOT_SELECTED, SELECTED
from rerank_actor.outputs.commit import commit_part
from rerank_actor.outputs.histograms import ScoreHistograms
from rerank_actor.outputs.part import METADATA_PREFIX, flatten_columns
from rerank_actor.outputs.row_digest import digest_rows
from rerank_actor.outputs.training.place import list_document_columns, order_texts, place_values
from rerank_actor.scoring.unit import UnitWork
from rerank_actor.storage.lease import LeaseMark


def build_part(
    work: UnitWork, scale: ScoreScale | None = None, *, has_others: bool = False
) -> tuple[pa.Table, dict[str, Any]]:
    """Return a scored unit's part and its totals.

    Args:
        work: the unit.
        scale: how the score follows from the logit; None for its sigmoid.
        has_others: whether rows may be passed through without a score, which a column then says.

    Returns:
        The kept columns in input order with `score`, `logit`, `num_tokens`, `truncated_tokens` and `error` behind
        them, lists of these where documents are lists; and the totals: rows, pairs, scored, truncated, tokens,
        forward passes (scored pairs that went through the engine) and errors by reason.
    """
    if work.logits is None:
        raise ValueError(f"unit {work.unit.name} has not been scored")
    prompts = work.prompts
    pair_errors = list_errors(prompts, work.logits)
    if work.list_lengths is None:
        row_errors = np.tile(work.row_errors.to_numpy(zero_copy_only=False), max(1, len(work.directions)))
        pair_errors = np.where(row_errors != None, row_errors, pair_errors)  # noqa: E711 - elementwise
    scored = pair_errors == None  # noqa: E711 - elementwise
    columns = make_score_columns(prompts, work.logits, pair_errors, scale)
    if work.pair_keys is not None:
        columns[PAIR_KEY] = work.pair_keys
    if work.directions:
        columns = _join_directions(work.directions, columns, work.row_errors, scale)
        pair_errors = columns["error"].to_numpy(zero_copy_only=False)
    errors = Counter(strip_location(str(reason)) for reason in pair_errors if reason is not None)
    row_reasons = work.row_errors.to_pylist()
    passed = [reason == NOT_SELECTED for reason in row_reasons]
    if work.list_lengths is not None:
        lacking = work.list_lengths < 0
        offsets = np.concatenate([[0], np.cumsum(np.maximum(work.list_lengths, 0))]).astype(np.int32)
        lists = {name: _to_lists(offsets, values, lacking) for name, values in columns.items() if name != "error"}
        columns = {**columns, **lists, "error": _list_errors(row_reasons, offsets, pair_errors)}
        errors.update(strip_location(str(reason)) for reason in row_reasons if reason is not None)
    table = pa.ipc.open_stream(work.rows).read_all()
    if has_others:
        columns["error"] = pc.if_else(pa.array(passed), pa.scalar(None, columns["error"].type), columns["error"])
        columns[SELECTED] = pa.array([not one for one in passed])
        del errors[NOT_SELECTED]
    for name, values in columns.items():
        table = table.append_column(name, values)
    totals = {
        "rows": work.unit.num_rows,
        **({"passed": sum(passed)} if has_others else {}),
        "pairs": len(scored),
        "scored": int(scored.sum()),
        "truncated": int((np.where(scored, prompts.truncated_tokens, 0) > 0).sum()),
        "tokens": int(prompts.num_tokens[scored].sum()),
        "forward_passes": int(scored[prompts.scorable].sum()),
        "errors": dict(sorted(errors.items())),
    }
    return table, totals


def build_vector_part(work: UnitWork, form: VectorForm) -> tuple[pa.Table, dict[str, Any]]:
    """Return the part of a unit of texts and its totals: the kept columns, then those of `VectorForm.make_columns`.

    A row that could not be read has no text, and its reason is that of the row.
    """
    if work.logits is None:
        raise ValueError(f"unit {work.unit.name} has not been embedded")
    columns = form.make_columns(work.prompts, work.logits, work.row_errors)
    table = pa.ipc.open_stream(work.rows).read_all()
    for name, values in columns.items():
        table = table.append_column(name, values)
    reasons = [strip_location(reason) for reason in columns["error"].drop_null().to_pylist()]
    has_vector = columns["error"].is_null().to_numpy(zero_copy_only=False)
    totals = {
        "rows": work.unit.num_rows,
        "pairs": work.unit.num_rows,
        "scored": int(has_vector.sum()),
        "truncated": int((columns["truncated_tokens"].to_numpy() > 0).sum()),
        "tokens": int(columns["num_tokens"].to_numpy().sum()),
        "forward_passes": int(has_vector[work.prompts.scorable].sum()),
        "errors": dict(sorted(Counter(reasons).items())),
    }
    return table, totals


def _join_directions(
    directions: tuple[str, ...], columns: dict[str, pa.Array], row_errors: pa.StringArray, scale: ScoreScale | None
) -> dict[str, pa.Array]:
    """Return the columns of each direction, and those of the row: the mean of its log-odds, tokens added up."""
    num_rows = len(columns["score"]) // len(directions)
    by_direction = {
        direction: {name: values.slice(index * num_rows, num_rows) for name, values in columns.items()}
        for index, direction in enumerate(directions)
    }
    logits = [directed["logit"].to_numpy(zero_copy_only=False).astype(np.float64) for directed in by_direction.values()]
    mean = np.mean(logits, axis=0).astype(np.float32)
    errors: list[str | None] = row_errors.to_pylist()
    for direction, directed in by_direction.items():
        for row, error in enumerate(directed["error"].to_pylist()):
            if error is not None and errors[row] is None:
                errors[row] = f"{direction}: {error}"
    lacking = np.array([error is not None for error in errors], bool)
    joined = {
        "score": pa.array(compute_score(mean, scale), pa.float32(), mask=lacking),
        "logit": pa.array(mean, pa.float32(), mask=lacking),
        **{
            name: pa.array(
                np.sum([directed[name].to_numpy() for directed in by_direction.values()], axis=0), pa.int32()
            )
            for name in ("num_tokens", "truncated_tokens")
        },
        "error": pa.array(errors, pa.string()),
    }
    names = [*DIRECTED_VALUES, *([PAIR_KEY] if PAIR_KEY in columns else [])]
    named = {
        name_column(direction, name): directed[name] for direction, directed in by_direction.items() for name in names
    }
    return {**named, **joined}


def _to_lists(offsets: np.ndarray, values: pa.Array, lacking: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(lacking))


def _list_errors(row_errors: list[str | None], offsets: np.ndarray, pair_errors: np.ndarray) -> pa.Array:
    lists = [
        [row_error] if row_error is not None else list(pair_errors[offsets[row] : offsets[row + 1]])
        for row, row_error in enumerate(row_errors)
    ]
    return pa.array(lists, pa.list_(pa.string()))


def write_part(
    work: UnitWork, output: str, metadata: dict[str, str], scratch: str | None, lease: LeaseMark | None = None
) -> dict[str, Any]:
    """Commit a scored unit's part, whole or not at all, and return its totals with the part's size and version mark.

    Its totals and the histograms of its scores are in its metadata too, so that they outlive a run that is killed.

    Doing it twice is harmless: the name follows from the unit and the content from the job.

    Raises:
        OutputConflictError: another run took over.
        StorageError, JobError: the part could not be written.
    """
    form = VectorForm.from_metadata(metadata)
    if form is not None:
        (table, totals), histograms = build_vector_part(work, form), {}
    else:
        table, totals = build_part(work, ScoreScale.from_metadata(metadata), has_others="where" in metadata)
        if documents := list_document_columns(metadata):
            table = place_values(order_texts(table, metadata), documents, table["logit"])
        histograms = ScoreHistograms.of_columns(flatten_columns(table)).to_record()
    facts = {**totals, **histograms, **work.facts, "digest": digest_rows(table)}
    unit_metadata = {
        **metadata,
        "unit": work.unit.name,
        "shard": work.unit.uri,
        "shard_etag": work.unit.etag,
        "row_start": str(work.unit.row_start),
        "num_rows": str(work.unit.num_rows),
        "engine_version": str(work.facts.get("engine_version", "")),
        "dtype": str(work.facts.get("dtype", "")),
        **({"epoch": str(lease.epoch)} if lease is not None else {}),
        "facts": json.dumps(facts),
    }
    table = table.replace_schema_metadata({METADATA_PREFIX + name: value for name, value in unit_metadata.items()})
    data = storage.to_parquet(table)
    uri = storage.join_uri(output, work.unit.part_name)
    with storage.patient():
        data, there = commit_part(uri, data, work.unit, unit_metadata, lease, scratch)
    written = {"part_bytes": len(data), "part_etag": storage.find_mark(uri, data), "finished_at": time.time()}
    return {**(there or facts), **written}
