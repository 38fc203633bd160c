"""Suspects: candidates that a rule dropped as probable false negatives, as a file for a person or an LLM judge.

Takes pairs and a selection, gives a row for each suspect: its pair key and ids, texts, values, those of the query's lowest
positive, by how much it stays below that, the rule that dropped it, and an empty `verdict` to fill in. Each unit writes a
piece; the pieces become one file of Parquet or JSON lines. Knows nothing of Ray.
"""

import hashlib
import json
import mmap
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.mining.judging.verdicts import COLUMN, list_pair_keys
from rerank_actor.mining.pairs import Columns
from rerank_actor.mining.rules import Space
from rerank_actor.mining.select import REASONS, Selection

FOLDER = "suspects"
MAPPED_BYTES = 2**27  # of a file from which on it is not held in memory; stores take it in pieces


def build_suspects(
    table: pa.Table, query: np.ndarray, selection: Selection, space: Space, columns: Columns
) -> pa.Table:
    """Return the suspects of some queries, by query and from the highest value down.

    Args:
        table: the pairs.
        query: int64 [num_pairs], number of each pair's query.
        selection: of these pairs.
        space: of the margin, the value of the query's lowest positive less that of the suspect.
        columns: of the scored rows.
    """
    rows = selection.suspects
    pairs = table.take(pa.array(rows))
    lowest = {name: values[query[rows]] for name, values in selection.lowest.items()}
    made = {
        PAIR_KEY: pa.array(list_pair_keys(pairs, columns.texts.instruction), pa.string()),
        **{f"positive_{name}": pa.array(values) for name, values in lowest.items()},
        "margin": pa.array(lowest[space] - pairs[space].to_numpy()),
        "reason": pa.array([REASONS[code] for code in selection.reasons.tolist()], pa.string()),
        COLUMN: pa.nulls(len(rows), pa.string()),
    }
    schema = make_schema(columns)
    return pa.table({name: made[name] if name in made else pairs[name] for name in schema.names}).cast(schema)


def make_schema(columns: Columns) -> pa.Schema:
    """Return the columns of suspects; ids and instructions are there where the scored rows have them."""
    texts = ["query_id"] if columns.query_id is not None else []
    texts += ["document_id"] if columns.document_id is not None else []
    texts += ["instruction"] if columns.texts.has_instructions else []
    values = [*columns.spaces, *(f"positive_{name}" for name in columns.spaces), "margin"]
    return pa.schema(
        [
            *((name, pa.string()) for name in (PAIR_KEY, *texts, "query", "document")),
            *((name, pa.float32()) for name in values),
            *((name, pa.string()) for name in ("reason", COLUMN)),
        ]
    )


def name_piece(unit: str) -> str:
    """Return the name of a unit's suspects in the job's own folder."""
    return f"{FOLDER}/part-{unit}.bin"  # no .parquet, which readers of the bare folder take for rows


def write_suspects(
    pieces: Sequence[str], schema: pa.Schema, target: str, note: Callable[[str], None] = lambda digest: None
) -> int:
    """Write the pieces as one file, of the format that its name says, and return its rows.

    Args:
        pieces: their URIs, in order.
        schema: of them.
        target: the file, put in its place when everything is written.
        note: is told the hash of its bytes before that.

    Raises:
        StorageError, JobError: it cannot be written.
    """
    number = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FOLDER
        if target.endswith(".parquet"):
            with pq.ParquetWriter(path, schema) as writer:
                for piece in pieces:
                    table = pq.read_table(pa.BufferReader(storage.read_bytes(piece)))
                    writer.write_table(table.cast(schema))
                    number += table.num_rows
        else:
            with path.open("w", encoding="utf-8") as file:
                for piece in pieces:
                    rows = pq.read_table(pa.BufferReader(storage.read_bytes(piece))).to_pylist()
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                    number += len(rows)
        with path.open("rb") as source:
            note(hash_file(source))
            if path.stat().st_size < MAPPED_BYTES:
                storage.write_bytes(target, path.read_bytes())
            else:
                with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    storage.write_bytes(target, data)
    return number


def hash_file(source: BinaryIO) -> str:
    """Return the hash by which a file of suspects is known to be as it was written; the file is read from its start."""
    digest = hashlib.sha256()
    while piece := source.read(2**20):
        digest.update(piece)
    return digest.hexdigest()
