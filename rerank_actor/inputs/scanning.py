"""Scanning: what each shard of a listing holds, many side by side, with the columns that its path gives.

Takes listed shards, gives a layout or the error of each. A column that is in the path and in the file is taken from the file,
where both say the same. Knows nothing of units or of earlier plans.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, RerankError
from rerank_actor.inputs import shards
from rerank_actor.inputs.listing.partitions import is_same, read_values
from rerank_actor.inputs.pairs import TextSpec
from rerank_actor.inputs.rows import ShardLayout, Unit
from rerank_actor.inputs.spec import InputSpec

SCAN_THREADS = 16


def scan_shards(
    spec: InputSpec,
    objects: Sequence[storage.StoredObject],
    formats: Mapping[str, str],
    partition_columns: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[ShardLayout | RerankError]:
    """Yield the layout of each shard, or why it cannot be read, in their order.

    Args:
        spec: how they are read.
        objects: the shards.
        formats: of each, by URI.
        partition_columns: columns whose values stand in paths.
        progress: called with shards scanned and shards to scan.
    """

    def scan(item: storage.StoredObject) -> ShardLayout | RerankError:
        try:
            layout = shards.scan_shard(item, replace(spec, format=formats[item.uri]))
        except RerankError as error:
            return error
        values = read_values(item.uri, partition_columns)
        added = {name: value for name, value in values.items() if name not in layout.columns}
        columns = {**layout.columns, **dict.fromkeys(added, pa.string())}
        return replace(layout, columns=columns, format=formats[item.uri], partitions=added)

    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        for number, layout in enumerate(pool.map(scan, objects), start=1):
            if progress is not None:
                progress(number, len(objects))
            yield layout


def refuse_other_values(spec: InputSpec, units: Sequence[Unit], columns: Sequence[str]) -> None:
    """Refuse a shard of which a column in its file says something else than its path.

    Args:
        spec: how it is read.
        units: all of the shard.
        columns: that are in both.

    Raises:
        InputError: a row differs.
        RerankError: it cannot be read.
    """
    for column in columns:
        narrow = replace(spec, keep=(column,), drop=(), directions=None, texts=TextSpec(column, column))
        for unit in units:
            text = read_values(unit.uri, [column])[column]
            values = shards.read_rows(unit, narrow).table.column(column).to_pylist()
            row = next((row for row, value in enumerate(values) if not is_same(value, text)), None)
            if row is not None:
                raise InputError(
                    f"{unit.uri}: column `{column}` is not what the path says in row {unit.row_start + row + 1}; leave it out "
                    f"with --drop-columns {column}, or name the folders otherwise",
                    uri=unit.uri,
                    column=column,
                )
