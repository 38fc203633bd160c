"""A unit on its way: read and prepared, then scored.

The path of a unit is `prepare_unit` (read task, on a CPU) -> `RerankActor` (fills in the logits) -> `part.write_part`
(sink). Between processes a unit travels as one row of an Arrow table, so that Ray can never split or
merge it; the actor sees token ids and never a text. Knows nothing of Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from rerank_actor import storage
from rerank_actor.engines.prompts import PairEncoder, Prompts
from rerank_actor.errors import RerankError, ShardChangedError, ShardError, describe_cause
from rerank_actor.inputs import shards
from rerank_actor.inputs.directions import Directions
from rerank_actor.inputs.lookups import ScoreLookup, TextLookup, look_up_texts
from rerank_actor.inputs.pair_key import compute_originals, make_pair_keys
from rerank_actor.inputs.pairs import EMPTY, NOT_KEPT, Pairs, count_not_kept, make_pairs
from rerank_actor.inputs.rankings.judged import ADDED
from rerank_actor.inputs.rows import Rows, Unit
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.where.expression import Where
from rerank_actor.inputs.where.rows import NOT_SELECTED, select_rows
from rerank_actor.scoring.unit import UnitWork

NO_TOKEN = "text is empty, and the model puts no token of its own around it"


@dataclass(frozen=True)
class PrepareSpec:
    """What a read task needs besides the unit: how to read rows and how to make prompts of them.

    Attributes:
        encoder: keyword arguments of `PairEncoder` besides the tokenizer.
        input: how rows are read, and where their texts are.
        environment: AWS variables of the driver.
        lookups: where the texts are of columns that hold ids.
        dedupes: whether pairs that are the same are scored once.
        adds_pair_key: whether the part has pair keys.
        known: scores of earlier runs, in the order in which they are looked at.
    """

    encoder: dict[str, Any]
    input: InputSpec
    json_types: dict[str, pa.DataType]
    max_attempts: int
    environment: dict[str, str] = field(repr=False)
    lookups: tuple[TextLookup, ...] = ()
    dedupes: bool = False
    adds_pair_key: bool = False
    known: tuple[ScoreLookup, ...] = ()


@lru_cache(maxsize=2)
def _encoder(tokenizer_json: str, encoder: tuple[tuple[str, Any], ...]) -> PairEncoder:
    return PairEncoder(tokenizer_json, **dict(encoder))


def prepare_unit(unit: Unit, spec: PrepareSpec, tokenizer_json: str) -> UnitWork:
    """Read a unit's rows and make their prompts; what cannot be read becomes a failed unit, not an exception."""
    retries_before = storage.retries_made()
    policy = _make_policy(spec)
    try:
        rows = _read_rows(unit, spec, policy)
    except RerankError as error:
        facts = {"attempts": policy.statistics.get("attempt_number", 1)}
        return UnitWork.failed(unit, str(error), {**facts, "read_retries": storage.retries_made() - retries_before})
    encoder = _encoder(tokenizer_json, tuple(spec.encoder.items()))
    try:
        with storage.patient():
            work = prepare_rows(unit, rows, spec, encoder)
    except RerankError as error:
        return UnitWork.failed(unit, str(error), {"read_retries": storage.retries_made() - retries_before})
    read_retries = storage.retries_made() - retries_before
    return replace(work, facts={**work.facts, "read_retries": read_retries}) if read_retries else work


def read_new_pairs(unit: Unit, spec: PrepareSpec) -> pa.Table:
    """Return the pairs of a unit that are text and whose score is not known, each different one once.

    Returns:
        String columns `key`, `instruction`, `query` and `document`.

    Raises:
        ShardError, StorageError, JobError: rows, texts or scores cannot be read.
    """
    rows = _read_rows(unit, spec, _make_policy(spec))
    instruction = str(spec.encoder["instruction"])
    with storage.patient():
        pairs, _ = _look_up_pairs(unit, rows, spec)
        keys = make_pair_keys(pairs.queries, pairs.documents, pairs.instructions, instruction)
        for scores in spec.known:
            logits = scores.load_logits(keys)
            keys = [None if np.isfinite(logit) else key for key, logit in zip(keys, logits, strict=True)]
    firsts = {key: position for position, key in reversed(list(enumerate(keys))) if key is not None}
    tasks = pairs.instructions
    columns = {
        "key": list(firsts),
        "instruction": [instruction if tasks is None or tasks[at] is None else tasks[at] for at in firsts.values()],
        "query": [pairs.queries[at] for at in firsts.values()],
        "document": [pairs.documents[at] for at in firsts.values()],
    }
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _make_policy(spec: PrepareSpec) -> Retrying:
    return Retrying(  # for bytes that came wrong; storage itself tries again whatever it can
        retry=retry_if_exception_type(ShardError) & retry_if_not_exception_type(ShardChangedError),
        stop=stop_after_attempt(spec.max_attempts),
        wait=wait_random_exponential(multiplier=0.3, max=10),
        reraise=True,
    )


def _read_rows(unit: Unit, spec: PrepareSpec, policy: Retrying) -> Rows:
    storage.adopt_environment(spec.environment)
    with storage.patient():
        rows: Rows = policy(shards.read_rows, unit, spec.input.with_where(), spec.json_types)
    where = spec.input.where
    return rows if where is None else _select_rows(rows, spec, None if _is_judged(unit, spec) else where)


def _look_up_pairs(unit: Unit, rows: Rows, spec: PrepareSpec) -> tuple[Pairs, dict[int, str]]:
    """Return the pairs of some rows, ids as their texts, and why an id has none, by position of the pair."""
    pairs = _leave_out(make_pairs(rows, spec.input.texts), spec)
    pairs, missing = look_up_texts(pairs, spec.lookups)
    if spec.input.directions is not None:
        pairs = _turn_pairs(pairs, rows, spec.input.directions)
    return pairs, missing


def _is_judged(unit: Unit, spec: PrepareSpec) -> bool:
    """Whether a unit's rows were added for judgements."""
    return bool(spec.input.judged) and storage.is_within(unit.uri, spec.input.judged)


def _select_rows(rows: Rows, spec: PrepareSpec, where: Where | None) -> Rows:
    """Return rows with the columns to keep, of which those that are not to be scored have that for a fault.

    Args:
        rows: with the columns of the expression too.
        spec: names those to keep.
        where: the expression; None where all are scored, as rows are that were added for judgements.

    Raises:
        ShardError: the expression cannot be computed of a value.
    """
    names = rows.table.column_names if spec.input.keep is None else spec.input.keep
    kept = rows.table.select([name for name in names if spec.input.keeps(name)])
    if where is None:
        return replace(rows, table=kept)
    try:
        selected = select_rows(rows.table, where)
    except pa.ArrowException as error:
        raise ShardError(f"--where {where.text!r} cannot be computed ({describe_cause(error)})") from error
    faults = [fault or (None if one else NOT_SELECTED) for fault, one in zip(rows.faults, selected, strict=True)]
    return replace(rows, table=kept, faults=faults)


def _leave_out(pairs: Pairs, spec: PrepareSpec) -> Pairs:
    """Return pairs without the texts of rows that are not scored, which are not looked up and not tokenized."""
    if spec.input.where is None or pairs.list_lengths is not None:
        return pairs
    is_out = [fault == NOT_SELECTED for fault in pairs.row_errors]
    sides = [
        [None if out else text for text, out in zip(texts, is_out, strict=True)]
        for texts in (pairs.queries, pairs.documents)
    ]
    return replace(pairs, queries=sides[0], documents=sides[1])


def _turn_pairs(pairs: Pairs, rows: Rows, directions: Directions) -> Pairs:
    """Return each pair in each direction, direction by direction; rows with a reason against it have no texts."""
    row_errors = pairs.row_errors
    if directions.reason_column is not None:
        reasons = rows.texts[directions.reason_column]
        row_errors = [fault or reason for fault, reason in zip(row_errors, reasons, strict=True)]
    # What is not to be scored is not tokenized either.
    sides = [
        [None if error is not None else text for text, error in zip(texts, row_errors, strict=True)]
        for texts in (pairs.queries, pairs.documents)
    ]
    queries, documents, instructions = directions.turn(*sides)
    return Pairs(pairs.table, queries, documents, instructions, row_errors, None)


def prepare_rows(unit: Unit, rows: Rows, spec: PrepareSpec, encoder: PairEncoder) -> UnitWork:
    """Make the prompts of some rows: one a row, or one for each element of the document lists.

    Raises:
        ShardError, StorageError, JobError: texts or scores cannot be looked up.
    """
    pairs, missing = _look_up_pairs(unit, rows, spec)
    prompts = _encode(pairs.queries, pairs.documents, pairs.instructions, encoder, dedupes=spec.dedupes)
    missing |= {at: NO_TOKEN for at in prompts.scorable[prompts.num_tokens[prompts.scorable] == 0].tolist()}
    prompts = prompts.with_errors(missing) if missing else prompts
    keys: list[str | None] | None = None
    facts: dict[str, Any] = {}
    if spec.adds_pair_key or spec.known:
        keys = make_pair_keys(pairs.queries, pairs.documents, pairs.instructions, encoder.instruction)
        prompts, facts = _fill_in_known(prompts, keys, spec.known)
    if spec.json_types and (others := count_not_kept(rows, spec.input.texts)):
        facts = {**facts, NOT_KEPT: others}
    if spec.input.texts.only_role:
        facts = {**facts, EMPTY: sum(not pairs.documents[at].strip() for at in prompts.scorable.tolist())}
    sink = pa.BufferOutputStream()
    if spec.input.judged:
        is_added = pa.array(np.full(pairs.table.num_rows, _is_judged(unit, spec)))
        pairs = replace(pairs, table=pairs.table.append_column(ADDED, is_added))
    table = pairs.table.rename_columns([spec.input.rename.get(name, name) for name in pairs.table.column_names])
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return UnitWork(
        unit=unit,
        rows=sink.getvalue(),
        prompts=prompts,
        row_errors=pa.array(pairs.row_errors, pa.string()),
        list_lengths=pairs.list_lengths,
        facts=facts,
        pair_keys=pa.array(keys, pa.string()) if keys is not None and spec.adds_pair_key else None,
        directions=tuple(spec.input.directions.instructions) if spec.input.directions is not None else (),
    )


def _fill_in_known(
    prompts: Prompts, keys: list[str | None], known: Sequence[ScoreLookup]
) -> tuple[Prompts, dict[str, int]]:
    """Return prompts with the logits that are known, and how many were found where."""
    counts: dict[str, int] = {}
    can_be = prompts.errors.is_null().to_numpy(zero_copy_only=False)
    logits = np.full(len(prompts), np.nan, np.float32)
    for scores in known:
        is_left = can_be & np.isnan(logits)
        earlier = scores.load_logits([key if wanted else None for key, wanted in zip(keys, is_left, strict=True)])
        counts[scores.kind] = int(np.isfinite(earlier).sum())
        logits = np.where(np.isnan(logits), earlier, logits)
    return replace(prompts, known_logits=logits) if known else prompts, counts


def _encode(
    queries: list[Any], documents: list[Any], instructions: list[Any] | None, encoder: PairEncoder, *, dedupes: bool
) -> Prompts:
    """Encode pairs, those that are the same once."""
    if not dedupes:
        return encoder.encode(queries, documents, instructions)
    original = compute_originals(queries, documents, instructions)
    different = np.flatnonzero(original == np.arange(len(original))).tolist()
    if len(different) == len(original):
        return encoder.encode(queries, documents, instructions)
    few = [None if texts is None else [texts[at] for at in different] for texts in (queries, documents, instructions)]
    return encoder.encode(few[0] or [], few[1] or [], few[2]).spread(original)
