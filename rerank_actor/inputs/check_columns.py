"""The input's columns, checked against what the flags say of them before anything starts.

Takes what scans found; refuses columns that are missing, of no use for their flag, or named like what scoring adds, and
names the flag that mends it. Knows nothing of units or of what rows hold.
"""

from collections.abc import Mapping

import pyarrow as pa

from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import find_type, is_list, is_text, locate
from rerank_actor.inputs.formats import describe_separator
from rerank_actor.inputs.pairs import list_fields
from rerank_actor.inputs.rows import ShardLayout
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.training.documents import SCORE_FIELD, holds_systems
from rerank_actor.inputs.training.layouts import suggest_layout
from rerank_actor.inputs.where.rows import check_types
from rerank_actor.job_file import suggest

SHOWN_CHARACTERS = 40  # of a column's name, which may be a text where a file has no header


def check_columns(spec: InputSpec, layouts: Mapping[str, ShardLayout], is_backfill: bool) -> None:
    """Refuse columns that do not suit their flags.

    Args:
        spec: names them.
        layouts: what was found in each shard.
        is_backfill: whether other shards were scored before, so that one without text in it is no reason to stop.

    Raises:
        InputError: a column is missing, taken, or nowhere of the type that its flag asks for.
    """
    layouts = {uri: layout for uri, layout in layouts.items() if layout.num_rows}
    texts = spec.texts
    kept = list(spec.keep or ())
    kinds: dict[tuple[str, str], list[pa.DataType]] = {}
    for uri, layout in layouts.items():
        where = list(spec.where.columns) if spec.where is not None else []
        for flag, names in {**texts.list_required(layout.columns), "--keep-columns": kept, "--where": where}.items():
            for name in names:
                try:
                    _require(spec, uri, layout, flag, name)
                except InputError as error:
                    hint = suggest_layout(layout.columns) if flag == "--document-column" else ""
                    raise InputError(f"{error}{hint}", **error.where) from None
                kinds.setdefault((flag, name), []).append(find_type(layout.columns, name))
        if spec.where is not None:
            check_types(uri, layout.columns, spec.where)
        _refuse_taken(spec, uri, layout)
        fields = list_fields(find_type(layout.columns, texts.document_column))
        if texts.negative_columns:
            _refuse_taken_field(spec, uri, layout)
            _refuse_two_forms(spec, uri, layout)
        for name in (texts.keep_fields or ()) if fields else []:
            if name not in fields:
                raise InputError(
                    f"{uri}: candidates have no field `{name}`, which --keep-fields names; they have "
                    f"{', '.join(f'`{field}`' for field in fields)}{suggest(name, fields)}",
                    uri=uri,
                    column=texts.document_column,
                )
    if layouts and not is_backfill:
        _refuse_unknown(spec, layouts)
        for (flag, name), types in kinds.items():
            of_texts = flag not in ("--keep-columns", "--where")
            expected = [texts.find_wrong_type(flag, kind) for kind in types] if of_texts else [None]
            if all(expected):
                is_bytes = any(map(_holds_bytes, types))
                cure = f"write it as text, or choose another with {flag}" if is_bytes else f"choose with {flag}"
                raise InputError(
                    f"column `{name}` is {types[0]} in every shard, expected {expected[0]}; {cure}",
                    column=name,
                )


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, or UUIDs, that may well be what is wanted: Hive's and Impala's texts are."""
    inner = kind.value_type if is_list(kind) else kind
    inner = inner.storage_type if isinstance(inner, pa.BaseExtensionType) else inner
    return bool(pa.types.is_binary(inner) or pa.types.is_large_binary(inner) or pa.types.is_fixed_size_binary(inner))


def _require(spec: InputSpec, uri: str, layout: ShardLayout, flag: str, name: str) -> None:
    top = layout.columns.get(locate(layout.columns, name)[0])
    is_list_apart = flag == "--explode-columns" and top is not None and is_list(top)
    is_whole = flag == "--keep-columns" or is_list_apart  # no field below a column
    if find_type(layout.columns, name) is None or (is_whole and name not in layout.columns):
        known = ", ".join(f"`{column[:SHOWN_CHARACTERS]}`" for column in layout.columns) or "none"
        raise InputError(
            f"{uri}: no column `{name}`; it has {known}{_advise(spec, layout, flag, name)}",
            uri=uri,
            column=name,
        )


def _advise(spec: InputSpec, layout: ShardLayout, flag: str, name: str) -> str:
    """Return what to do about a column that is not there."""
    is_headed = layout.format in ("csv", "tsv") and not spec.header
    if is_headed and (separator := describe_separator([*layout.columns])):
        return separator
    if layout.format == "jsonl" and layout.num_rows == 1 and all(map(pa.types.is_struct, layout.columns.values())):
        return "; if it is one object of scores by query and document, --format mteb-predictions reads it"
    header = ", or name the columns with --columns where the first line is no header" if is_headed else ""
    return f"; choose with {flag}{suggest(name, layout.columns)}{header}"


def _refuse_taken(spec: InputSpec, uri: str, layout: ShardLayout) -> None:
    """Refuse output columns of one name, or of the name of a column that scoring adds."""
    given: dict[str, str] = {}
    for name in layout.columns:
        if not spec.keeps(name):
            continue
        target = spec.rename.get(name, name)
        if target in spec.reserved:
            raise InputError(
                f"{uri}: column `{target}` has the name of a column that scoring adds; rename it with --rename-columns "
                f"{name}=NEW, or leave it out with --drop-columns or --keep-columns",
                uri=uri,
                column=name,
            )
        if target in given:
            raise InputError(
                f"{uri}: columns `{given[target]}` and `{name}` would both be `{target}`; change --rename-columns",
                uri=uri,
                column=name,
            )
        given[target] = name


def _refuse_taken_field(spec: InputSpec, uri: str, layout: ShardLayout) -> None:
    """Refuse documents with a field of the name of the one that gets their score."""
    for name in filter(spec.keeps, spec.texts.document_columns):
        fields = list_fields(find_type(layout.columns, name))
        kept = [field for field in fields if spec.texts.keep_fields is None or field in spec.texts.keep_fields]
        if SCORE_FIELD in kept and not spec.texts.document_is_id:
            others = ",".join(field for field in fields if field != SCORE_FIELD)
            raise InputError(
                f"{uri}: documents of `{name}` have a field `{SCORE_FIELD}`, which scoring adds; leave it out with "
                f"--keep-fields {others}",
                uri=uri,
                column=name,
            )


def _refuse_two_forms(spec: InputSpec, uri: str, layout: ShardLayout) -> None:
    """Refuse documents that are structs where their format has texts, or beside texts: there is no one place for scores."""
    holds, names = spec.texts.holds, [name for name in spec.texts.document_columns if name in layout.columns]
    if holds == "structs":
        return  # what is none has an error
    kinds = {name: layout.columns[name] for name in names}
    inner = {name: kind.value_type if is_list(kind) else kind for name, kind in kinds.items()}
    structs = [name for name, kind in inner.items() if pa.types.is_struct(kind) and not holds_systems(kind)]
    texts = [name for name, kind in inner.items() if is_text(kind) and not pa.types.is_null(kind)]
    if structs and (holds or texts):
        beside = "where the format has texts" if holds else f"and those of `{texts[0]}` texts"
        raise InputError(
            f"{uri}: documents of `{structs[0]}` are structs, {beside}; write the texts alone, or lists of structs in all "
            "columns, for --format tevatron with --document-column and --negative-columns",
            uri=uri,
            column=structs[0],
        )


def _refuse_unknown(spec: InputSpec, layouts: Mapping[str, ShardLayout]) -> None:
    """Refuse to drop or rename what no shard has, which is a misspelt name."""
    known = list(dict.fromkeys(name for layout in layouts.values() for name in layout.columns))
    for flag, names in (("--drop-columns", spec.drop), ("--rename-columns", spec.rename)):
        for name in names:
            if name not in known:
                raise InputError(
                    f"no shard has a column `{name}`, which {flag} names{suggest(name, known)}", column=name
                )
