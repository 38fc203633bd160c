"""The output of selection: a folder for each format and language pair, and in `_select/` what it is and how it went.

    DELIVER/<format>/lang_pair=deu-eng/part-00000.<suffix>   and _SUCCESS, written last
    DELIVER/_select/lang_pair=deu-eng/                       settings.json, steps/ while at work, result.json
    DELIVER/_select/report.html, report.json                 over all language pairs

A step's objects are written first and its record last, so that a record says what is done. Knows nothing of Ray.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rerank_actor import storage
from rerank_actor.bitext.selection.job import FORMATS
from rerank_actor.outputs.folder import JobFolder

READ_THREADS = 16


@dataclass(frozen=True)
class SelectOutput(JobFolder):
    """Names and contents of what belongs to one language pair, in the folder of all.

    Attributes:
        uri: the folder of all.
        pair: name of the language pair.
    """

    pair: str

    def at(self, *names: str) -> str:
        """Return the URI of something that the selection of this pair keeps for itself."""
        return storage.join_uri(self.uri, "_select", f"lang_pair={self.pair}", *names)

    def data_folder(self, kind: str) -> str:
        """Return the folder of a format."""
        return storage.join_uri(self.uri, kind, f"lang_pair={self.pair}")

    def write_json(self, name: str, values: Any) -> None:
        """Write one of the selection's own objects."""
        data = json.dumps(values, indent=None if name.startswith("steps/") else 1, ensure_ascii=False).encode()
        self.write_own(name, data)

    def read_steps(self, step: str) -> dict[int, dict[str, Any]]:
        """Return the records of a step's tasks that are done, by number."""
        listed = [item.uri for item in storage.list_objects(self.at("steps", step)) if item.uri.endswith(".json")]
        with ThreadPoolExecutor(READ_THREADS) as pool:
            found = [record for record in map(_parse, pool.map(storage.read_if_present, listed)) if record is not None]
        return {record["number"]: record for record in found}

    def list_data(self) -> dict[str, storage.StoredObject]:
        """Return the delivered objects of all formats, by URI."""
        return {item.uri: item for kind in FORMATS for item in storage.list_objects(self.data_folder(kind))}

    def clear(self) -> None:
        """Delete what an earlier selection of this pair left, but the lease."""
        for kind in FORMATS:
            storage.delete_folder(self.data_folder(kind))
        for folder in ("steps", "tmp"):
            storage.delete_folder(self.at(folder))
        storage.delete_objects([self.at(name) for name in ("result.json", "settings.json")])


def find_lost(present: Mapping[str, storage.StoredObject], written: Mapping[str, int]) -> list[str]:
    """Return in sentences which of the objects that were written, with their sizes, are missing or of another size."""
    lost = [f"{uri}: is missing" for uri in written if uri not in present]
    return lost + [
        f"{uri}: holds {present[uri].size:,} bytes where {size:,} were written"
        for uri, size in written.items()
        if uri in present and present[uri].size != size
    ]


def _parse(data: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(data) if data else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
