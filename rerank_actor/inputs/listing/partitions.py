"""Hive partitions: columns whose values stand in names of folders, as in `lang=de/part-0.parquet`.

Values are text, decoded as Hive encodes them; what Hive writes for null is null. The layout is that of Spark, pyarrow, polars
and DuckDB. Knows nothing of files.
"""

import math
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

NULL = "__HIVE_DEFAULT_PARTITION__"


def split_partition(name: str) -> tuple[str, str | None] | None:
    """Return column and value of a folder's name, None where it has none."""
    column, separator, value = name.partition("=")
    if not separator or not column:
        return None
    return unquote(column), None if value == NULL else unquote(value)


def find_columns(uris: Iterable[str], root: str) -> list[str]:
    """Return the columns that folders below a root give, in order of sight."""
    below = [uri[len(root) :].strip("/") for uri in uris if uri.startswith(f"{root}/")]
    folders = dict.fromkeys(path.rpartition("/")[0] for path in below)
    columns: dict[str, None] = {}
    for folder in folders:
        for name in folder.split("/"):
            partition = split_partition(name)
            if partition is not None:
                columns[partition[0]] = None
    return list(columns)


def read_values(uri: str, columns: Iterable[str]) -> dict[str, str | None]:
    """Return the values of some columns in the path of a file, null where it has none; the innermost folder counts."""
    found = dict(pair for name in uri.split("/")[:-1] if (pair := split_partition(name)) is not None)
    return {column: found.get(column) for column in columns}


def is_same(value: Any, text: str | None) -> bool:
    """Whether a value in a file is the one in its path."""
    if value is None or text is None:
        return value is None and text is None
    if isinstance(value, bool):
        return str(value).lower() == text.lower()
    if isinstance(value, int | float):
        try:
            return math.isclose(value, float(text), rel_tol=1e-12)
        except ValueError:
            return False
    return str(value) == text
