"""MTEB's predictions, written query by query: `{"mteb_model_meta": ..., subset: {split: {query: {document: score}}}}`.

Takes the candidates of a query, best first, and writes them as one line of the JSON, which `convert_to_reranking` and the
evaluators of MTEB 2 read. Knows nothing of where they are from.
"""

import json
from collections.abc import Mapping
from typing import IO


class PredictionsWriter:
    """Writes predictions to a text file.

    Args:
        file: to write to.
        model_name, revision: of the model whose scores they are, where they are known.
        subset, split: of the task.
    """

    def __init__(
        self, file: IO[str], model_name: str | None, revision: str | None, subset: str = "default", split: str = "test"
    ) -> None:
        self._file = file
        self._mark = "\n"
        meta = json.dumps({"model_name": model_name, "revision": revision})
        file.write(f'{{"mteb_model_meta": {meta}, {json.dumps(subset)}: {{{json.dumps(split)}: {{')

    def write(self, query: str, candidates: Mapping[str, float]) -> None:
        """Write a query's candidates, whose scores are float32."""
        shown = {document: float(f"{score:.9g}") for document, score in candidates.items()}
        self._file.write(f"{self._mark}{json.dumps(query)}: {json.dumps(shown)}")
        self._mark = ",\n"

    def finish(self) -> None:
        """Write what comes behind the last query."""
        self._file.write("\n}}}\n")
