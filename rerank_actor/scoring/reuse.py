"""Reuse: an earlier output's scores as a source of known ones.

`ScoreSource` reads logits and pair keys out of the parts of an output, for a store. What turns a prompt into a score must
agree (model, revision, template, dtype, length, special tokens, engine); what may differ is where the three texts came from
(columns, `--corpus`, templates, an instruction map, ...), how rows are laid out (`--explode`, kept columns, ...) and which are
scored (`--where`, `--qrels`), because the key follows from the texts themselves. Knows nothing of Ray or of engines.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError, OutputConflictError
from rerank_actor.fingerprint import hash_fingerprint, list_differing
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.row_groups import batch_by_size, open_part, refuse_damaged
from rerank_actor.outputs.scored import find_dtype, require_scored
from rerank_actor.outputs.scored_columns import PairRows, describe_columns

SCHEMA = pa.schema({"key": pa.string(), "logit": pa.float32()})
PIECE_BYTES = 64 * 2**20
PARTS_AT_ONCE = 256
BATCH_ROWS = 16_384
ROWS_AT_ONCE = 1_000_000
UNUSABLE = "its scores cannot be reused ({cause}); jobs.verify says what mends it"
FREE_SETTINGS = frozenset(  # those alone, so that a setting that nobody thought of has to agree
    {
        *("query_column", "document_column", "columns", "partition_columns", "quoting", "csv_escape"),
        *("queries", "corpus", "top_k", "query_id_column", "document_id_column"),
        *("query_template", "document_template"),
        *("instruction_column", "instruction_map", "dataset_column", "directions", "candidates"),
        *("explode", "explode_columns", "keep_columns", "keep_fields", "drop_columns", "rename_columns"),
        *("with_pair_key", "negative_columns", "where", "qrels"),  # the last two say which rows are scored
    }
)


@dataclass(frozen=True)
class ScoreSource:
    """Scored parts as a source of known scores.

    Attributes:
        uri: the output.
        parts: its parts.
        fingerprint: that of the output.
        dtype: what its engines computed in, None where that is not known.
    """

    uri: str
    parts: tuple[storage.StoredObject, ...]
    fingerprint: str
    dtype: str | None = None

    @property
    def num_bytes(self) -> int:
        """Stored size of the parts."""
        return sum(part.size for part in self.parts)

    @property
    def digest(self) -> str:
        """Twenty-four hex digits that follow from the parts."""
        listing = [part.identity for part in self.parts]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:24]

    def cut(self) -> list[tuple[storage.StoredObject, ...]]:
        """Return the parts in pieces of some tens of MiB."""
        pieces = batch_by_size(self.parts, lambda part: part.size, PIECE_BYTES, PARTS_AT_ONCE)
        return [tuple(piece) for piece in pieces]

    def read(self, parts: tuple[storage.StoredObject, ...]) -> Iterator[Any]:
        """Yield the known scores of some parts as tables of `SCHEMA`, and last of all how many there were.

        Raises:
            InputError: a part is damaged, or of another job.
            StorageError, JobError: it cannot be read.
        """
        rows = num_held = 0
        held: list[pa.Table] = []
        for part in parts:
            for table in self._read_part(part):
                held.append(table)
                num_held += table.num_rows
                if num_held >= ROWS_AT_ONCE:
                    yield pa.concat_tables(held)
                    held, num_held = [], 0
                rows += table.num_rows
        if held:
            yield pa.concat_tables(held)
        yield {"rows": rows}

    def _read_part(self, part: storage.StoredObject) -> Iterator[pa.Table]:
        with open_part(part, UNUSABLE, InputError) as file:
            fingerprint = read_part_metadata(file.schema_arrow).get("fingerprint")
            if fingerprint != self.fingerprint:
                raise InputError(
                    f"{part.uri}: has the fingerprint {fingerprint}, the job of its folder {self.fingerprint}; jobs.verify "
                    "says what mends it",
                    uri=part.uri,
                )
            columns = describe_columns({}, file.schema_arrow)
            if not columns.keyed_logits:
                cause = f"no column {PAIR_KEY}"
                raise InputError(f"{part.uri}: {UNUSABLE.format(cause=cause)}", uri=part.uri)
            for key, logit in columns.keyed_logits:
                with refuse_damaged(part.uri, UNUSABLE, InputError):
                    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[key, logit]):
                        rows = PairRows(pa.Table.from_batches([batch]), logit, part.uri)
                        yield _select_known(rows.spread(key), rows.spread(logit))


def _select_known(keys: pa.ChunkedArray, logits: pa.ChunkedArray) -> pa.Table:
    """Return the pairs that have a key and a score."""
    pairs = pa.table([keys.cast(pa.string()), logits], schema=SCHEMA)
    return pairs.filter(pc.and_(pc.is_valid(pairs["key"]), pc.is_valid(pairs["logit"])))


def load_reused(uri: str, settings: dict[str, Any]) -> ScoreSource:
    """Look at the scores of an earlier output that a job with these settings may reuse.

    Raises:
        InputError: there is no scored output, or it was scored without pair keys.
        OutputConflictError: its scores were computed otherwise.
        JobError, StorageError: it cannot be read.
    """
    scored = require_scored(uri)
    stored = scored.settings
    free = FREE_SETTINGS
    if any(job.get(name) for job in (stored, settings) for name in ("instruction_column", "instruction_map")):
        free |= {"instruction"}  # of rows without one of their own; the key has the one that a pair was scored with
    differing = [name for name in list_differing(stored, settings) if name not in free]
    if differing:
        shown = "; ".join(f"{name}: there {stored.get(name)!r}, now {settings.get(name)!r}" for name in differing)
        raise OutputConflictError(
            f"--reuse {uri}: its scores were computed otherwise and would not be comparable ({shown}); give the same settings, "
            "or leave out --reuse",
            uri=uri,
            differing=differing,
        )
    if not stored.get("with_pair_key"):
        raise InputError(
            f"--reuse {uri}: was scored without --with-pair-key, so that its pairs cannot be told; leave out --reuse, and "
            "score with --with-pair-key from now on",
            uri=uri,
        )
    if not scored.parts:
        raise InputError(
            f"--reuse {uri}: has no parts, so there is no score to reuse; check the folder, or leave out --reuse",
            uri=uri,
        )
    dtype = Output(uri).load_manifest().get("dtype") or find_dtype(scored.parts)
    return ScoreSource(uri, scored.parts, hash_fingerprint(stored), dtype)
