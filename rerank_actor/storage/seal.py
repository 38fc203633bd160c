"""Seals: a checksum of all bytes of a file of the project's own, written into the file itself.

Takes JSON values, a Parquet table or any bytes with a place for it, and gives bytes of which a flip or a cut is found before
anything is read of them. The checksum is SHA-256 of the file with zeros in its place, so that it fits into the metadata of
Parquet, an entry of JSON or a comment of YAML, and readers of others see one entry more. Files without one were written before.
"""

import hashlib
import io
import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NAME = "sealed_sha256"
PLACE = "0" * 64
_SEAL = re.compile(NAME.encode() + rb"[^0-9a-f]{1,4}([0-9a-f]{64})")


def seal_json(values: dict[str, Any], **options: Any) -> bytes:
    """Return a JSON object with a seal as its last entry; `options` are of `json.dumps`."""
    # Names of files may not be Unicode; json.loads reads them so.
    return seal(json.dumps({**values, NAME: PLACE}, **options).encode(errors="surrogatepass"))


def open_json(data: bytes | None) -> dict[str, Any] | None:
    """Return the values of a JSON object without its seal; None where there is none, or it is damaged or no object."""
    if not data or is_broken(data):
        return None
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    values.pop(NAME, None)
    return values


def seal_parquet(table: pa.Table) -> bytes:
    """Return a table as a Parquet file whose footer holds a seal."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({NAME: PLACE})
    return seal(sink.getvalue())


def seal_text(text: str) -> bytes:
    """Return lines whose comments begin with `#` with a seal in the first one, which a cut does not take away."""
    return seal(f"# {NAME}: {PLACE}\n{text}".encode())


def seal(data: bytes) -> bytes:
    """Return bytes with their checksum in the place that they have for it."""
    found = _find(data)
    if found is None:
        raise ValueError("these bytes have no place for a seal")
    start, end = found
    return data[:start] + _hash(data, start, end) + data[end:]


def is_broken(data: bytes) -> bool:
    """Whether bytes hold a seal that is not theirs; what was written before seals has none."""
    found = _find(data)
    return found is not None and _hash(data, *found) != data[slice(*found)]


def _find(data: bytes) -> tuple[int, int] | None:
    """Return where the digits of the last seal are; the name alone may be in a path too."""
    spans = [found.span(1) for found in _SEAL.finditer(data)]
    return spans[-1] if spans else None


def _hash(data: bytes, start: int, end: int) -> bytes:
    hashed = hashlib.sha256(data[:start])
    hashed.update(PLACE.encode())
    hashed.update(data[end:])
    return hashed.hexdigest().encode()
