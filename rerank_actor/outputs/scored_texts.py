"""The texts of scored rows: made again of what the output holds, by the code that made them for scoring.

Takes the settings that an output was scored with and tables of its rows, and gives the query, the document and the
instruction of each pair: of columns, templates, titles, lists and structs, or looked up by id where scoring looked them up.
What the output no longer holds of them is refused. Knows nothing of what is made of the texts.
"""

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError, RerankError
from rerank_actor.inputs.columns import find_type, is_list, is_text, locate
from rerank_actor.inputs.field_template import parse_template
from rerank_actor.inputs.lookups import TextLookup, look_up_texts
from rerank_actor.inputs.pair_key import make_pair_keys
from rerank_actor.inputs.pairs import INDEX_COLUMN, NOT_KEPT, TextSpec, list_fields, make_pairs
from rerank_actor.inputs.rows import Rows, list_sources, make_rows
from rerank_actor.job_file import suggest
from rerank_actor.outputs.part import TEXT_SETTINGS, read_part_metadata
from rerank_actor.outputs.row_groups import open_part
from rerank_actor.outputs.scored import ScoredOutput, read_schema
from rerank_actor.outputs.scored_columns import PairRows, find_field_type
from rerank_actor.storage.utf8 import is_unicode

ROLES = ("query", "document", "instruction")
SCORE_AGAIN = "score again with it among --keep-columns"


@dataclass(frozen=True)
class ScoredTexts:
    """How the texts of scored rows are made.

    Attributes:
        spec: where they are, by the names that the columns had in the input.
        renamed: what columns are called in the output that have another name there.
        instruction: of rows without one of their own, None where it is not known.
        lookups: where the texts are of columns that hold ids.
        is_exploded: whether a row is one candidate of a list, which may still be whole below a column.
        sources: of `queries` and `corpus`, what scoring looked ids up in, as a fingerprint has it.
    """

    spec: TextSpec
    renamed: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    lookups: tuple[TextLookup, ...] = ()
    is_exploded: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "ScoredTexts":
        """Return how a job with these settings made its texts; without settings, of columns with the usual names."""
        has_query_ids, has_document_ids = bool(settings.get("queries")), bool(settings.get("corpus"))
        spec = TextSpec(
            query_column=str(settings.get("query_id_column" if has_query_ids else "query_column") or "query"),
            document_column=str(
                settings.get("document_id_column" if has_document_ids else "document_column") or "document"
            ),
            negative_columns=tuple(settings.get("negative_columns") or ()),
            query_is_id=has_query_ids,
            document_is_id=has_document_ids,
            query_template=settings.get("query_template"),
            document_template=settings.get("document_template"),
            instruction_column=settings.get("instruction_column") or None,
            dataset_column=settings.get("dataset_column") or TextSpec.dataset_column,
            instruction_map=settings.get("instruction_map"),
        )
        instruction = settings.get("instruction") if not settings.get("directions") else None
        renamed = settings.get("rename_columns") or {}
        sources = {name: str(settings[name]) for name in ("queries", "corpus") if settings.get(name)}
        return cls(spec, renamed, instruction, is_exploded=bool(settings.get("explode")), sources=sources)

    @property
    def has_instructions(self) -> bool:
        """Whether rows have instructions of their own."""
        return self.spec.instruction_column is not None or self.spec.instruction_map is not None

    @property
    def query(self) -> str:
        """The output's column with the query, or with its id."""
        return self.name(self.spec.query_column)

    @property
    def document(self) -> str:
        """The same of the document."""
        return self.name(self.spec.document_column)

    @property
    def documents(self) -> list[str]:
        """The output's columns with documents, in the order of the scores."""
        return [self.document, *map(self.name, self.spec.negative_columns)]

    def name(self, column: str) -> str:
        """Return what the output calls an input column, or a field below one."""
        top, fields = locate(self.renamed, column)
        return ".".join([self.renamed.get(top, top), *fields])

    def list_columns(self, names: Sequence[str], roles: Container[str] = ROLES) -> list[str]:
        """Return the output's columns that the texts of some roles are made of, those of `names`."""
        found = [self.name(name) for name in list_sources(self._original(names), self._select(roles).text_columns)]
        return [*found, *([INDEX_COLUMN] if found and self.is_exploded and INDEX_COLUMN in names else [])]

    def _original(self, names: Sequence[str]) -> list[str]:
        """Return what columns of the output were called in the input."""
        original = {new: old for old, new in self.renamed.items()}
        return [original.get(name, name) for name in names]

    def describe(self) -> dict[str, Any]:
        """Return what can change a text, as a fingerprint has it."""
        later = {
            name: getattr(self.spec, name)
            for name in ("query_template", "document_template", "instruction_map")
            if getattr(self.spec, name) is not None
        }
        later |= {"negative_columns": self.documents[1:]} if self.spec.negative_columns else {}
        task = self.spec.instruction_column or (self.spec.instruction_map is not None and self.spec.dataset_column)
        return {
            "query_column": self.query,
            "document_column": self.document,
            **({"instruction_column": self.name(task)} if task else {}),
            **later,
        }

    def without_lost_instructions(self, names: Container[str]) -> "ScoredTexts":
        """Return the same, without instructions where the output did not keep what they were made of."""
        task = self.spec.instruction_column or self.spec.dataset_column
        if not self.has_instructions or self.name(task) in names:
            return self
        return replace(self, spec=replace(self.spec, instruction_column=None, instruction_map=None), instruction=None)

    def check(self, uri: str, schema: pa.Schema) -> None:
        """Refuse a file that lacks a column that texts are made of, or has one of a type that no text is made of.

        Raises:
            InputError: naming the column; or the columns give other texts than those that were scored.
        """
        metadata = read_part_metadata(schema)
        self._refuse_made_otherwise(uri, metadata)
        others = json.loads(metadata.get("facts", "{}")).get(NOT_KEPT)
        if others:
            raise InputError(
                f"{uri}: its columns give {others:,} texts otherwise than they were scored, because JSON had values of several "
                "types in one column; score again with one type in each",
                uri=uri,
            )
        kinds = dict(zip(self._original(schema.names), schema.types, strict=True))
        for flag, names in self.spec.list_required(kinds).items():
            for name in names:
                shown = self.name(name)
                kind = find_type(kinds, name)
                if kind is None:
                    cure = (
                        f"name the right one with {flag}, or "
                        if flag in ("--query-column", "--document-column")
                        else ""
                    )
                    raise InputError(
                        f"{uri}: has no column `{shown}`{suggest(shown, schema.names)}; its columns are "
                        f"{', '.join(schema.names)}; {cure}{SCORE_AGAIN}",
                        uri=uri,
                        column=shown,
                    )
                expected = self.spec.find_wrong_type(flag, kind)
                if expected is not None:
                    raise InputError(
                        f"{uri}: column `{shown}` holds {kind}, not {expected}; name another one",
                        uri=uri,
                        column=shown,
                    )

    def _refuse_made_otherwise(self, uri: str, metadata: Mapping[str, str]) -> None:
        """Refuse a part whose texts are elsewhere or made by another template than those of the parts before."""
        if "query_column" not in metadata:  # which says nothing of its texts
            return
        templates = {f"{side}_template": getattr(self.spec, f"{side}_template") for side in ("query", "document")}
        for name, own in {**dict.fromkeys(("queries", "corpus")), **self.sources, **templates}.items():
            if json.loads(metadata.get(name, "null")) != own:
                raise InputError(
                    f"{uri}: was scored with another --{name.replace('_', '-')} than the parts before it, so that its texts "
                    "are others than theirs; read it apart",
                    uri=uri,
                )

    def make(self, rows: PairRows, roles: Container[str] = ROLES) -> dict[str, pa.ChunkedArray]:
        """Return the texts of some pairs by role, null where a pair that was not scored has none.

        Args:
            rows: with the columns that `list_columns` names.
            roles: the texts that are wanted; instructions are given where rows have their own.

        Raises:
            InputError: lists of documents and of scores do not match.
            ShardError, StorageError, JobError: texts cannot be looked up.
        """
        plain = self._take_plain(rows, roles)
        roles = [role for role in ROLES if role in roles and role not in plain]
        spec = self._select(roles)
        present = self.list_columns(rows.table.column_names, roles)
        if not present:
            return plain
        table = rows.table.select(present)
        table = table.rename_columns(self._original(table.column_names))
        pairs = make_pairs(self._pick_candidates(make_rows(table, table.column_names, spec.text_columns)), spec)
        pairs, _ = look_up_texts(pairs, [lookup for lookup in self.lookups if lookup.role in roles])
        texts = {"query": pairs.queries, "document": pairs.documents}
        if pairs.instructions is not None:
            default = (self.instruction or "") if self.spec.instruction_map is None else None
            texts["instruction"] = [default if text is None else text for text in pairs.instructions]
        made = {role: _to_array(values) for role, values in texts.items() if role in roles}
        if pairs.list_lengths is None:
            return plain | {role: rows.repeat(values) for role, values in made.items()}
        if rows.lengths is None or not np.array_equal(pairs.list_lengths, rows.lengths):
            raise InputError(
                f"{rows.uri}: column `{self.document}` has lists of other lengths than the scores",
                uri=rows.uri,
                column=self.document,
            )
        return plain | made

    def _take_plain(self, rows: PairRows, roles: Container[str]) -> dict[str, pa.ChunkedArray]:
        """Return the texts that are columns of texts, which scoring takes as they are: no Python value is made of them."""
        plain = {}
        for role, name in (("query", self.query), ("document", self.document)):
            kind = find_field_type(rows.table.schema, name)
            if role not in roles or kind is None or getattr(self.spec, f"{role}_template") is not None:
                continue
            if role == "document" and self.spec.negative_columns:
                continue
            is_whole = is_list(kind) and (rows.lengths is None or role == "query")
            if (
                not getattr(self.spec, f"{role}_is_id")
                and not is_whole
                and is_text(kind.value_type if is_list(kind) else kind)
            ):
                plain[role] = rows.spread(name).cast(pa.large_string())
        return plain

    def _pick_candidates(self, rows: Rows) -> Rows:
        """Return exploded rows with their own document alone, where a column below another still has the whole list."""
        name = self.spec.document_column
        if not self.is_exploded or name not in rows.list_columns or INDEX_COLUMN not in rows.table.column_names:
            return rows
        places = rows.table[INDEX_COLUMN].to_pylist()
        own = [
            documents[place] if place is not None and documents is not None else None
            for documents, place in zip(rows.texts[name], places, strict=True)
        ]
        return replace(rows, texts={**rows.texts, name: own}, list_columns=rows.list_columns - {name})

    def count_others(self, texts: Mapping[str, pa.ChunkedArray], keys: pa.ChunkedArray) -> int:
        """Return how many of some pairs have another pair key than their texts have."""
        columns = [texts[role].to_pylist() if role in texts else None for role in ROLES]
        made = make_pair_keys(columns[0] or [], columns[1] or [], columns[2], self.instruction or "")
        return sum(key is not None and key != there for key, there in zip(made, keys.to_pylist(), strict=True))

    def _select(self, roles: Container[str]) -> TextSpec:
        """Return where the texts of some roles are."""
        spec = self.spec
        if "query" not in roles:
            spec = replace(spec, query_column="", query_template=None)
        if "document" not in roles:
            spec = replace(spec, document_column="", negative_columns=(), document_template=None)
        return spec if "instruction" in roles else replace(spec, instruction_column=None, instruction_map=None)


def _to_array(texts: list[Any]) -> pa.ChunkedArray:
    """Return texts as Arrow has them, null for what is none."""
    try:
        return pa.chunked_array([pa.array(texts, pa.large_string())])
    except (pa.ArrowException, UnicodeError, TypeError):
        kept = [text if isinstance(text, str) and is_unicode(text) else None for text in texts]
        return pa.chunked_array([pa.array(kept, pa.large_string())])


def read_text_settings(scored: ScoredOutput) -> dict[str, Any]:
    """Return the settings that say how the texts of an output were made; of bare Parquet what its metadata have.

    Raises:
        ShardError, StorageError, JobError: a part cannot be read.
    """
    if scored.settings or not scored.parts:
        return dict(scored.settings)
    metadata = read_part_metadata(read_schema(scored.parts[0]))
    plain = {name: metadata[name] for name in ("instruction", "instruction_column", "explode") if metadata.get(name)}
    return plain | {name: json.loads(metadata[name]) for name in TEXT_SETTINGS if name in metadata}


def refuse_lost_fields(scored: ScoredOutput, settings: Mapping[str, Any], schema: pa.Schema) -> None:
    """Refuse an output that kept some fields of its documents, where others were in their text.

    Raises:
        InputError: naming the field.
    """
    texts, kept = ScoredTexts.from_settings(settings), settings.get("keep_fields")
    name = texts.document
    if not kept or not list_fields(find_field_type(schema, name)):
        return
    template = texts.spec.document_template
    wanted = parse_template(template).names if template else ("text", "title")
    there = _read_fields(scored, texts.spec.document_column)
    lost = [part for part in wanted if part not in kept and (not there or part in there)]
    if lost:
        raise InputError(
            f"{scored.uri}: the text of its documents was made with their field `{lost[0]}`, and --keep-fields left that "
            f"out; score again with it among --keep-fields, or without them",
            uri=scored.uri,
            column=name,
        )


def refuse_repeated(
    uri: str, parts: Sequence[storage.StoredObject], settings: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Refuse what a list's row says once where its candidates are rows: a place would mark all of them, or none.

    Args:
        uri: of the output, for the error.
        parts: of it.
        settings: that it was scored with.
        names: columns, or fields below them, of which each candidate is to have a value of its own.

    Raises:
        InputError: one was repeated for each candidate of a row.
        ShardError, StorageError, JobError: a part cannot be read.
    """
    if not settings.get("explode"):
        return
    texts = ScoredTexts.from_settings(settings)
    taken_apart = {texts.document, *(texts.name(name) for name in settings.get("explode_columns") or ())}
    for name in names:
        is_repeated = not any(name == one or name.startswith(f"{one}.") for one in taken_apart)
        if is_repeated and any(map(_has_lists, parts)):
            raise InputError(
                f"{uri}: was scored with --explode, which repeated column `{name}` for each candidate of a row instead of "
                "taking it apart; score again with it among --explode-columns, or without --explode",
                uri=uri,
                column=name,
            )


def _has_lists(part: storage.StoredObject) -> bool:
    """Whether rows of a part are several candidates of one list; a flat input has no second place."""
    with open_part(part) as file:
        if INDEX_COLUMN not in file.schema_arrow.names or not file.metadata.num_rows:
            return False
        return bool(pc.max(file.read(columns=[INDEX_COLUMN])[INDEX_COLUMN]).as_py())


def _read_fields(scored: ScoredOutput, column: str) -> list[str]:
    """Return the fields of the input's documents, none where that cannot be seen."""
    if scored.plan.json_types:
        return list_fields(find_type(scored.plan.json_types, column))
    for shard in scored.plan.shards[:1]:
        try:
            schema = read_schema(storage.StoredObject(shard.uri, shard.size, shard.etag))
        except RerankError:
            continue
        return list_fields(find_field_type(schema, column))
    return []
