"""Provenance: what scored an output, in the few values that a reader of what was made of it wants to know.

Takes the place of a scored output, gives plain values of its plan, its manifest or, of bare Parquet, its metadata. No paths are
among them, because they are published. Knows nothing of what the scores are used for.
"""

from typing import Any

from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.report.facts import gather_facts
from rerank_actor.outputs.scored import open_scored, read_schema

NAMES = (
    "model",
    "revision",
    "template",
    "instruction",
    "instruction_column",
    "max_length",
    "dtype",
    "engine",
    "fingerprint",
)


def describe_scoring(uri: str) -> dict[str, Any]:
    """Return what scored an output: values of `NAMES` and, where they are known, `pairs`, `gpu_hours` and `dollars`.

    Raises:
        JobError, StorageError, ShardError: it cannot be read.
    """
    output = open_scored(uri)
    if not output.settings:
        metadata = read_part_metadata(read_schema(output.parts[0])) if output.parts else {}
        return {name: shorten(name, metadata[name]) for name in NAMES if metadata.get(name)}
    facts = gather_facts(uri, running=False)
    model, given = facts.manifest.get("model"), facts.manifest.get("dtype")
    named = model if isinstance(model, dict) else {}
    values = {**output.settings, "fingerprint": hash_fingerprint(output.settings)}
    values |= {"model": named.get("name") or values.get("model"), "dtype": given or values.get("dtype")}
    values["revision"] = named.get("revision") or values.get("revision")
    found = {name: shorten(name, values[name]) for name in NAMES if values.get(name)}
    cost = {"pairs": facts.status.totals.get("pairs"), "gpu_hours": facts.gpu_hours, "dollars": facts.cost}
    return {**found, **{name: value for name, value in cost.items() if value is not None}}


def shorten(name: str, value: Any) -> Any:
    """Return a value as it may be published: of a model in a folder the folder's name alone."""
    if name != "model" or (str(value).count("/") <= 1 and not str(value).startswith(("/", ".", "~"))):
        return value
    return str(value).rstrip("/").rpartition("/")[2]
