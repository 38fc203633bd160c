"""The vectors of one role as the embedding job left them: which parts, and ids with vectors, a part at a time.

Takes an output of an `EmbedJob` and the objects of its source, because a folder may hold the parts of others too. Rows without
a vector or an id are left out and counted. Knows nothing of queries and documents.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.engines.vectors import EMBEDDING, read_vectors
from rerank_actor.errors import InputError
from rerank_actor.inputs.ids import read_ids
from rerank_actor.inputs.pairs import EMPTY
from rerank_actor.inputs.rows import strip_location
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.retrieval.job import ID_COLUMN, EmbedJob

BLANK_LINE = "line is blank"
WITHOUT_ID = "id is missing, or neither text nor a whole number"


@dataclass(frozen=True)
class VectorPart:
    """A part of vectors.

    Attributes:
        uri: where it is.
        num_rows: rows in it.
        etag: its version mark.
    """

    uri: str
    num_rows: int
    etag: str


@dataclass(frozen=True)
class Vectors:
    """Some vectors with their ids.

    Attributes:
        ids: string [num_vectors].
        values: float32 [num_vectors, size].
        left_out: rows without, by reason.
        num_empty: of blank texts, where ids stand for others.
    """

    ids: pa.StringArray
    values: np.ndarray
    left_out: Counter[str] = field(default_factory=Counter)
    num_empty: int = 0


def list_vector_parts(job: EmbedJob) -> list[VectorPart]:
    """Return the parts of the objects that a job embeds, in their order.

    Raises:
        InputError: no job has written there.
    """
    output = Output(job.output)
    plan, _ = output.require_plan()
    parts, wanted = output.list_parts(), set(job.input)
    found = [(unit, parts[unit.part_name]) for unit in plan.units() if unit.uri in wanted and unit.part_name in parts]
    return [VectorPart(part.uri, unit.num_rows, str(part.etag)) for unit, part in found]


def read_part(part: VectorPart, *, distinct: bool = False) -> Vectors:
    """Read a part.

    Args:
        part: to read.
        distinct: whether texts stand for themselves, of which blank ones are left out, and of several that are the same all
            but the first.

    Raises:
        InputError: it is damaged.
        StorageError: it cannot be reached.
    """
    table = _read_table(part, [ID_COLUMN, EMBEDDING, "error"])
    ids = read_ids(table.column(ID_COLUMN)).cast(pa.string()).combine_chunks()
    has_vector = pc.is_valid(table.column(EMBEDDING)).combine_chunks()
    has_id = pc.is_valid(ids)
    reasons = table.column("error").drop_null().to_pylist()
    left_out = Counter(strip_location(str(reason)) for reason in reasons)
    kept = pc.and_(has_vector, has_id)
    num_empty = json.loads(read_part_metadata(table.schema).get("facts", "{}")).get(EMPTY, 0)
    if distinct:
        is_blank = pc.equal(pc.utf8_trim_whitespace(ids.fill_null("")), "")
        kept, num_empty = pc.and_(kept, pc.invert(is_blank)), 0
        left_out += Counter({BLANK_LINE: pc.sum(pc.and_(has_vector, is_blank)).as_py() or 0})
        is_first = np.zeros(len(ids), bool)
        is_first[np.unique(ids.dictionary_encode().indices.fill_null(-1).to_numpy(), return_index=True)[1]] = True
        kept = pc.and_(kept, pa.array(is_first))
    else:
        left_out += Counter({WITHOUT_ID: pc.sum(pc.and_(has_vector, pc.invert(has_id))).as_py() or 0})
    vectors = read_vectors(table.column(EMBEDDING).filter(kept))
    return Vectors(ids.filter(kept), vectors, left_out, num_empty)


def read_part_ids(part: VectorPart) -> pa.StringArray:
    """Return the ids of a part, null where there is none. Errors as of `read_part`."""
    return read_ids(_read_table(part, [ID_COLUMN]).column(ID_COLUMN)).cast(pa.string()).combine_chunks()


def _read_table(part: VectorPart, columns: list[str]) -> pa.Table:
    try:
        data = pa.BufferReader(storage.read_bytes(part.uri))
        return pq.read_table(data, columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(
            f"{part.uri}: cannot be read as vectors ({type(error).__name__}); `jobs.verify` on its folder says more",
            uri=part.uri,
        ) from error
