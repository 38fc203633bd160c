"""Vectors of texts: how an engine ends them, and the columns that they are told in.

Takes pooled hidden states or finished vectors, gives float32 rows of length 1 and Arrow arrays: `embedding`, a list of one
size, and `num_tokens`, `truncated_tokens` and `error` as of scores. Knows nothing of how states are computed or pooled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.engines.families.description import EmbeddingHead
from rerank_actor.engines.prompts import Prompts

EMBEDDING = "embedding"
VECTOR_COLUMNS = (EMBEDDING, "num_tokens", "truncated_tokens", "error")
NOT_FINITE = "engine returned a vector that is not finite"
LENGTH_NOISE = {"float32": 1e-4, "float16": 5e-3}  # of a vector that was rounded, about 1


def make_outputs(head: Any, num_prompts: int) -> np.ndarray:
    """Return an array for what a model with this head gives: float32 [num_prompts], or [num_prompts, size] of vectors."""
    shape = (num_prompts, head.size) if isinstance(head, EmbeddingHead) else (num_prompts,)
    return np.empty(shape, np.float32)


def finish_vectors(head: EmbeddingHead, states: np.ndarray) -> np.ndarray:
    """Return pooled states cut to the size that is kept, with length 1.

    Args:
        head: of the model.
        states: float [num_texts, width].

    Returns:
        float32 [num_texts, size]; NaN where a state is zero or not finite.
    """
    vectors = states[:, : head.size].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@dataclass(frozen=True)
class VectorForm:
    """The column of vectors of a part: numbers of each, and their type."""

    size: int
    stored: str

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self | None:
        """Return the form that a part's metadata tell, None where it has scores."""
        size = metadata.get("embedding_size")
        return None if size is None else cls(int(size), metadata["embedding_type"])

    @property
    def type(self) -> pa.DataType:
        """Arrow type of the column."""
        return pa.list_(pa.float16() if self.stored == "float16" else pa.float32(), self.size)

    def make_columns(self, prompts: Prompts, vectors: np.ndarray, row_errors: pa.StringArray) -> dict[str, pa.Array]:
        """Return the columns of some texts.

        Args:
            prompts: of the texts.
            vectors: float32 [num_texts, size], NaN where a text has none; or NaN alone, [num_texts], where none has.
            row_errors: string [num_texts], why a row has no text, null where it has.
        """
        if vectors.ndim == 1:
            vectors = np.full((len(prompts), self.size), np.nan, np.float32)
        errors = pc.coalesce(row_errors, prompts.errors).to_numpy(zero_copy_only=False)
        errors = np.where((errors == None) & ~np.isfinite(vectors).all(axis=1), NOT_FINITE, errors)  # noqa: E711
        has_vector = errors == None  # noqa: E711 - elementwise
        numbers = np.where(has_vector[:, None], vectors, 0).astype(self.stored).ravel()
        return {
            EMBEDDING: pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=self.type, mask=pa.array(~has_vector)),
            "num_tokens": pa.array(np.where(has_vector, prompts.num_tokens, 0), pa.int32()),
            "truncated_tokens": pa.array(np.where(has_vector, prompts.truncated_tokens, 0), pa.int32()),
            "error": pa.array(errors, pa.string()),
        }

    def find_problem(self, table: pa.Table) -> str | None:
        """Return what is wrong with the columns of a part, None where each text has a vector of length 1 or a reason."""
        lacking = [name for name in VECTOR_COLUMNS if name not in table.column_names]
        if lacking:
            return f"has no column {', '.join(lacking)}"
        column = table.column(EMBEDDING)
        if column.type != self.type:
            return f"has a column {EMBEDDING} of another type"
        if pc.any(pc.equal(pc.is_valid(column), pc.is_valid(table.column("error")))).as_py():
            return "has rows with neither or both of embedding and error"
        lengths = np.linalg.norm(read_vectors(column), axis=1)
        if not (np.abs(lengths - 1) <= LENGTH_NOISE[self.stored]).all():
            return "has vectors whose length is not 1"
        return None


def read_vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Return the vectors of a column that are there: float32 [num_vectors, size]."""
    kept = column.drop_null().combine_chunks()
    size = column.type.list_size
    return np.asarray(kept.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, size)
