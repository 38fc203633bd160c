"""A reranker as a stage of a Ray Data pipeline, or of any loop over batches: columns of texts in, scores added.

Takes batches as Arrow tables, pandas frames, `datasets.Dataset` or mappings of columns (what Ray gives by default), and gives
the same kind back. Knows nothing of shards, parts and resuming; for data that must not be lost there is the job.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import RESERVED_COLUMNS
from rerank_actor.job_file import suggest
from rerank_actor.reranker import Reranker


class RerankStage:
    """Adds `score`, `logit`, `num_tokens`, `truncated_tokens` and `error` to batches of rows.

    Args:
        model: hub name, local folder or s3://, gs://, az:// folder.
        query_column, document_column: the columns with the texts.
        instruction_column: the column with each row's instruction; None where one holds for all.
        settings: of `Reranker`: `engine`, `dtype`, `max_length`, `instruction` and so on.

    Raises:
        ModelError, EngineStartError: as `Reranker`.

    Example:
        >>> ds.map_batches(RerankStage, fn_constructor_kwargs={"model": "Qwen/Qwen3-Reranker-0.6B"}, concurrency=4, num_gpus=1)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        query_column: str = "query",
        document_column: str = "document",
        instruction_column: str | None = None,
        **settings: Any,
    ) -> None:
        self._columns = [query_column, document_column, *([instruction_column] if instruction_column else [])]
        self._reranker = Reranker(model, **settings)

    def __call__(self, batch: Any) -> Any:
        """Return a batch with the columns added, a row for each row; what cannot be scored has a reason in `error`.

        Raises:
            InputError: a column of texts is not there, or one of those that are added is.
            EngineError: the engine failed.
        """
        names = _list_columns(batch)
        for name in self._columns:
            if name not in names:
                raise InputError(f"no column `{name}`; it has {', '.join(names)}{suggest(name, names)}", column=name)
        taken = sorted(set(RESERVED_COLUMNS) & set(names))
        if taken:
            raise InputError(f"column `{taken[0]}` is there already; rename or drop it before", column=taken[0])
        columns = [_read_column(batch, name) for name in self._columns]
        if len({len(column) for column in columns}) > 1:
            sizes = ", ".join(f"{len(column)} in `{name}`" for name, column in zip(self._columns, columns, strict=True))
            raise InputError(f"columns of a batch have other lengths than one another ({sizes})")
        return _add_columns(batch, self._reranker.make_columns(*columns))


def _list_columns(batch: Any) -> list[str]:
    if isinstance(batch, Mapping):
        return list(batch)
    if isinstance(batch, pa.RecordBatch):
        return list(batch.schema.names)
    names = batch.column_names if hasattr(batch, "column_names") else getattr(batch, "columns", None)
    if names is None:
        raise TypeError(
            f"a batch is a {type(batch).__name__}; expected an Arrow table, a pandas frame, a datasets.Dataset or a mapping of "
            "columns"
        )
    return [str(name) for name in names]


def _read_column(batch: Any, name: str) -> list[Any]:
    column = batch[name]
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return list(column.to_pylist())
    if hasattr(column, "isna"):  # pandas, which has NaN or NA for a text that is not there
        column = column.astype(object).where(column.notna(), None)
    return [*(column.tolist() if hasattr(column, "tolist") else column)]


def _add_columns(batch: Any, added: dict[str, pa.Array]) -> Any:
    if isinstance(batch, pa.Table | pa.RecordBatch):
        for name, values in added.items():
            batch = batch.append_column(name, values)
        return batch
    if isinstance(batch, Mapping):
        return {**batch, **{name: _to_numpy(values) for name, values in added.items()}}
    if hasattr(batch, "assign"):
        return batch.assign(**{name: _to_numpy(values) for name, values in added.items()})
    for name, values in added.items():
        batch = batch.add_column(name, values.to_pylist())
    return batch


def _to_numpy(values: pa.Array) -> np.ndarray:
    """Return a column as Ray and pandas have them: NaN where there is no score."""
    return np.asarray(values.to_numpy(zero_copy_only=False))
