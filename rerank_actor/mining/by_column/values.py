"""Values of a column that mining goes by: as text, as names of folders, and which there are.

Folders are named as Hive's are, `column=value` with both percent-encoded, so that Spark, pyarrow, polars and DuckDB give the
column back. A null and an empty text are one value, whose folder has Hive's name for null. Knows nothing of rules.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import decode_dictionary
from rerank_actor.inputs.listing.partitions import NULL, read_values
from rerank_actor.job_file import suggest
from rerank_actor.outputs.scored_columns import PairRows, find_column

MOST_VALUES = 1_000
MOST_BYTES = 200  # of a folder's name, of which file systems take 255
SHOWN_VALUES = 20


def name_folder(column: str, value: str) -> str:
    """Return the folder of a value."""
    return f"{quote(column, safe='')}={value if value == NULL else quote(value, safe='')}"


def has_column(uri: str, schema: pa.Schema, name: str) -> bool:
    """Whether a scored file has a column, or a folder that it lies in says its value."""
    return find_column(schema, name) is not None or f"/{quote(name, safe='')}=" in uri


def read_by(rows: PairRows, name: str) -> pa.ChunkedArray:
    """Return the value of each pair as text, `NULL` where there is none: large_string [num_pairs].

    Raises:
        InputError: the column holds what is no text, number or truth value.
    """
    if find_column(rows.table.schema, name) is None:
        value = read_values(rows.uri, [name])[name]
        number = len(rows.spread(rows.value))
        return pa.chunked_array([pa.array([value or NULL] * number, pa.large_string())])
    column = decode_dictionary(rows.spread(name))
    try:
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            raise pa.ArrowTypeError("no value to name a folder by")
        texts = column.cast(pa.large_string()).fill_null(NULL)
    except pa.ArrowException:
        raise InputError(
            f"{rows.uri}: column `{name}` ({column.type}) of --by holds what names no folder; name a column of texts, "
            "numbers or truth values",
            uri=rows.uri,
            column=name,
        ) from None
    return pc.if_else(pc.equal(texts, ""), pa.scalar(NULL, pa.large_string()), texts)


def find_values(table: pa.Table, query: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the values of some pairs, and of each query the place of its own among them: int64 [num_queries]."""
    if "by" not in table.column_names:
        return [], np.zeros(0, np.int64)
    encoded = table["by"].combine_chunks().dictionary_encode()
    first = np.unique(query, return_index=True)[1]
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()[first].astype(np.int64)


def check_values(column: str, values: Iterable[str], named: Iterable[str]) -> None:
    """Refuse values that no folder can be named by, too many of them, and rules for a value that is not there.

    Args:
        column: of `--by`.
        values: that there are.
        named: that rules are given for.

    Raises:
        InputError: naming them.
    """
    there = sorted(set(values))
    if len(there) > MOST_VALUES:
        raise InputError(
            f"--by {column}: has {len(there):,} values, more than {MOST_VALUES:,}; name a column with fewer"
        )
    if long := [value for value in there if len(name_folder(column, value)) > MOST_BYTES]:
        raise InputError(f"--by {column}: {len(long):,} values are too long to name folders by; name another column")
    for value in named:
        if value not in there:
            shown = ", ".join(there[:SHOWN_VALUES]) + (", .." if len(there) > SHOWN_VALUES else "")
            raise InputError(
                f"rules_by_value: column `{column}` has no value `{value}`{suggest(str(value), there)}; it has {shown}"
            )


def count_most(positives: np.ndarray, codes: np.ndarray, names: list[str]) -> dict[str, int]:
    """Return the most positives that a query of each value has, of counts and values of queries; none without values."""
    if not names:
        return {}
    most = np.zeros(len(names), np.int64)
    np.maximum.at(most, codes, positives)
    return dict(zip(names, most.tolist(), strict=True))


def merge_most(found: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Return the highest number of each value."""
    merged: dict[str, int] = {}
    for numbers in found:
        for value, number in numbers.items():
            merged[value] = max(merged.get(value, 0), int(number))
    return merged
