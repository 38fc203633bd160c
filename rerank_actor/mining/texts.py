"""Where the texts of what is mined are: what the scored output says of them, and what the job says.

Takes a mining job and the settings that an output was scored with, gives a `ScoredTexts` and, for texts that rows name by id,
the queries and the corpus that scoring looked them up in, or refuses: a training text is the text that was scored. Knows
nothing of rows.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.field_template import parse_template
from rerank_actor.inputs.pairs import list_fields
from rerank_actor.inputs.spec import SourceSpec
from rerank_actor.inputs.text_sources import TextSource, list_sources
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import read_job_file
from rerank_actor.mining.job import MineJob
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.scored_columns import find_field_type
from rerank_actor.outputs.scored_texts import ScoredTexts

Side = Literal["query", "document"]
SOURCES: dict[Side, str] = {"query": "queries", "document": "corpus"}


def name_texts(job: MineJob, settings: Mapping[str, Any], schema: pa.Schema) -> ScoredTexts:
    """Return how the texts to mine are made.

    Args:
        job: may name columns of texts, where it is not known how they were scored.
        settings: that the output was scored with, empty where nobody knows them.
        schema: of the output.

    Raises:
        InputError: the job names another column than the scored one, ids for texts, or a title that a text has already.
    """
    texts = ScoredTexts.from_settings(settings).without_lost_instructions(schema.names)
    for side in SOURCES:
        texts = _take_column(job, side, texts, settings)
    if job.title_column is not None and _has_title(job.title_column, texts, schema):
        raise InputError(
            f"--title-column {job.title_column}: the text that was scored has the title already; leave it out",
            column=job.title_column,
        )
    return texts


def _take_column(job: MineJob, side: Side, texts: ScoredTexts, settings: Mapping[str, Any]) -> ScoredTexts:
    """Return the texts with the column that the job names, where it is not known which one was scored."""
    name, flag = getattr(job, f"{side}_column"), f"--{side}-column"
    is_id, template = getattr(texts.spec, f"{side}_is_id"), getattr(texts.spec, f"{side}_template")
    scored = texts.query if side == "query" else texts.document
    if name is None:
        return texts
    if name == getattr(job, f"{side}_id_column") or (is_id and name == scored):
        raise InputError(
            f"{flag} {name}: holds ids, which would be the training texts; "
            + (
                "leave it out, texts are looked up where scoring found them"
                if is_id
                else "name the column with the texts"
            ),
            column=name,
        )
    if is_id or template or (settings.get(f"{side}_column") and name != scored):
        what = (
            f"--{SOURCES[side]}" if is_id else f"--{side}-template {template!r}" if template else f"column `{scored}`"
        )
        raise InputError(
            f"{flag} {name}: the texts that were scored are those of {what}, and others would be trained with their scores; "
            f"leave out {flag}, or score again with it",
            column=name,
        )
    spec = replace(texts.spec, **{f"{side}_column": name})
    return texts if name == scored else replace(texts, spec=spec)


def _has_title(name: str, texts: ScoredTexts, schema: pa.Schema) -> bool:
    """Whether a document's text has the title of a column in it."""
    if texts.spec.document_template:
        return name in map(texts.name, parse_template(texts.spec.document_template).names)
    kind = find_field_type(schema, texts.document)
    return texts.spec.document_is_id or "title" in list_fields(kind)


class Places(Protocol):
    """What says where queries and corpus are now, and what folder they are not to lie in."""

    @property
    def queries(self) -> list[str]: ...  # noqa: D102 - as the class says
    @property
    def corpus(self) -> list[str]: ...  # noqa: D102
    @property
    def output(self) -> str: ...  # noqa: D102


def find_sources(job: Places, uri: str, settings: Mapping[str, Any]) -> tuple[TextSource, ...]:
    """Return the queries and the corpus that an output was scored with.

    Args:
        job: may say where they are now.
        uri: the output.
        settings: that it was scored with.

    Raises:
        InputError: they are not there, or are not those that were scored.
        JobError, StorageError: they cannot be reached.
    """
    for name in SOURCES.values():
        if getattr(job, name) and not settings.get(name):
            raise InputError(
                f"--{name}: {uri} was scored without --{name}, its rows have the texts; leave it out", uri=uri
            )
    return tuple(_find_source(job, side, uri, settings) for side in SOURCES if settings.get(SOURCES[side]))


def _find_source(job: Places, side: Side, uri: str, settings: Mapping[str, Any]) -> TextSource:
    flag, scored = f"--{SOURCES[side]}", str(settings[SOURCES[side]])
    given = getattr(job, SOURCES[side])
    uris = given or _read_places(uri, SOURCES[side])
    if not uris:
        raise InputError(f"--scored {uri}: its texts are in files that it does not name; give {flag}", uri=uri)
    spec = SourceSpec(
        side, tuple(uris), str(settings[f"{side}_id_column"]), str(settings.get(f"{side}_column") or side)
    )
    try:
        (source,) = list_sources([spec], job.output)
    except InputError as error:
        raise error if given else InputError(f"{error}; {flag} says where they are now", **error.where) from error
    found = source.describe()
    if given and _measure(found) != _measure(scored):
        raise InputError(
            f"{flag} {' '.join(given)}: {_measure(found)}, and scoring read {_measure(scored)}; give those texts",
            uri=given[0],
        )
    if not given and found != scored:
        raise InputError(
            f"{flag} {' '.join(uris)}: changed since {uri} was scored with it; score again, or say with {flag} where the texts "
            "are that were scored",
            uri=uris[0],
        )
    return source


def _measure(description: str) -> str:
    """Return what a source's description says whatever its place: how many objects, and how large."""
    return description.rpartition(", ")[0]


def _read_places(uri: str, name: str) -> list[str]:
    """Return where a scoring job found its queries or its corpus."""
    path = Output(uri).at("job.yaml")
    data = storage.read_if_present(path)
    if data is None:
        return []
    if storage.is_broken(data):
        raise InputError(f"{path}: is damaged; say with --queries and --corpus where the texts are", uri=path)
    places: list[str] = read_job_file(path, ScoreJob).get(name) or []
    return places
