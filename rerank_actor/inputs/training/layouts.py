"""The layouts of training files: in which columns the trainers' files have a query, its positives and its negatives.

FlagEmbedding's `query`, `pos`, `neg` (lists of texts), Tevatron's `query`, `positive_passages`, `negative_passages` (lists of
structs), tuples of sentence-transformers (`anchor`, `positive`, `negative` or `negative_1` to `negative_n`) and the ids of
sentence-transformers/msmarco-hard-negatives (`qid`, `pos`, `neg` by system). Takes the columns of a file and what flags say,
gives the flags that say the same without a layout, or a refusal. Knows nothing of rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, JobError
from rerank_actor.inputs.batches import read_batches, refuse_broken
from rerank_actor.inputs.columnar import scan_arrow, scan_parquet
from rerank_actor.inputs.columns import find_type, is_list, is_text, to_array
from rerank_actor.inputs.formats import detect_format
from rerank_actor.inputs.listing import InputListing
from rerank_actor.inputs.listing.tell import tell_format
from rerank_actor.inputs.rows import ReadLimits
from rerank_actor.inputs.spec import InputSpec

KINDS = ("jsonl", "parquet", "arrow", "csv", "tsv")  # of files that may be training files
LOOKED_AT = ReadLimits(batch_rows=200)
NEGATIVE = re.compile(r"negative(?:_(\d+))?")

Columns = Mapping[str, pa.DataType]

_NAMES = {  # of query, positives and negatives
    "flagembedding": ("query", "pos", "neg"),
    "tevatron": ("query", "positive_passages", "negative_passages"),
    "msmarco-hard-negatives": ("qid", "pos", "neg"),
}


class Layout(NamedTuple):
    """What a file was taken for.

    Attributes:
        name: one of `TRAINING_FORMATS`.
        uri: of the file.
        settings: flags that say the same.
        columns: of the file's first rows.
    """

    name: str
    uri: str
    settings: dict[str, Any]
    columns: Columns

    @property
    def own_names(self) -> list[str]:
        """Columns that a reader of such files looks for by their names; none of a tuple, which it takes by place."""
        query, positives, negatives = self.settings.values()
        return [name for name in (query, positives, *negatives) if name in _NAMES.get(self.name, ())]

    def describe(self) -> str:
        """Return the layout and its columns, in words."""
        query, positives, negatives = self.settings.values()
        shown = ", ".join(f"`{name}`" for name in negatives)
        return f"{self.name}: query `{query}`, positives `{positives}`, negatives {shown}"


def find_layout(spec: InputSpec, listing: InputListing, wanted: str, given: Mapping[str, Any]) -> Layout | None:
    """Return the layout of an input by its first file; None where it is no training file.

    Args:
        spec: how the input is read.
        listing: what it is.
        wanted: the format that was asked for. With `auto` a file is a training file where it lacks the document column and its
            columns show a layout; `tevatron` is a ranking where the file is neither JSON nor Parquet.
        given: settings that the user gave.

    Raises:
        InputError, JobError: as of `name_columns`; or the file cannot be read.
    """
    item = next((shard for shard in listing.shards if shard.size), None)
    try:
        kind = tell_format(item, replace(spec, format="auto")) if item is not None else None
    except InputError:
        if wanted == "tevatron":
            return None  # a ranking, of which it says what the third column is
        raise
    if item is None or kind not in KINDS or (wanted == "tevatron" and kind in ("csv", "tsv")):
        if wanted in ("auto", "tevatron") or item is None:
            return None
        raise InputError(f"{item.uri}: is {kind}, and --format {wanted} is JSON lines or Parquet", uri=item.uri)
    try:
        with refuse_broken(item.uri, kind):
            columns = look_at_columns(item, kind, spec)
    except InputError:
        if wanted == "auto":
            return None  # scanning says what is wrong
        raise
    if wanted == "auto":
        if find_type(columns, spec.texts.document_column) is not None or spec.texts.document_template:
            return None
        layout = tell_layout(columns)
        if layout is None:
            return None
        wanted = layout
    return Layout(wanted, item.uri, name_columns(wanted, columns, given, item.uri), columns)


def look_at_columns(item: storage.StoredObject, kind: str, spec: InputSpec) -> dict[str, pa.DataType]:
    """Return the columns of a file's first rows, with their types as these rows show them.

    Raises:
        One of `text.READ_ERRORS`, ShardError: it cannot be read, which scanning says better.
    """
    if kind == "arrow":
        return scan_arrow(item.uri, item.size, item.etag).columns
    if kind == "parquet":  # whose footer is enough
        return scan_parquet(item.uri, item.size, ()).columns
    _, compression = detect_format(item.uri, kind)
    settings: dict[str, Any] = {"header": spec.header, "dialect": spec.dialect, "limits": LOOKED_AT}
    batch = next(read_batches(item, cast(Any, kind), compression, **settings), None)
    if batch is None:
        return {}
    return {name: to_array(column)[0].type for name, column in batch.columns.items()}


def tell_layout(columns: Columns) -> str | None:
    """Return the layout that the columns of a file show beyond doubt; None where they show none."""
    for layout, names in _NAMES.items():
        if {*names} <= columns.keys() and all(pa.types.is_nested(columns[name]) for name in names[1:]):
            return layout
    has_anchor = bool({"anchor", "query"} & columns.keys())
    if has_anchor and "positive" in columns and find_negatives(columns) and not is_list(columns["positive"]):
        return "tuples"
    return None


def suggest_layout(columns: Columns) -> str:
    """Return, to put behind an error, the format that the columns of a file may be of; nothing where they are like none."""
    layout = next((layout for layout, names in _NAMES.items() if {*names[1:]} <= columns.keys()), None)
    if layout == "flagembedding" and "query" not in columns and "qid" in columns:
        layout = "msmarco-hard-negatives"
    layout = layout or ("tuples" if find_negatives(columns) else None)
    return f"; if it is a training file, give --format {layout}" if layout is not None else ""


def find_negatives(names: Sequence[str] | Columns) -> list[str]:
    """Return the columns that are called like negatives of a tuple, in their order."""
    found = [(int(match[1] or 0), name) for name in names if (match := NEGATIVE.fullmatch(name))]
    return [name for _, name in sorted(found)]


def name_columns(layout: str, columns: Columns, given: Mapping[str, Any], uri: str) -> dict[str, Any]:
    """Return the settings that say where query, positives and negatives are.

    Args:
        layout: one of `TRAINING_FORMATS`.
        columns: of the file.
        given: settings that the user gave, which hold.
        uri: of the file, for errors.

    Raises:
        InputError: the file has not the columns of the layout.
        JobError: the layout has ids alone, and the texts are not named.
    """
    if layout == "msmarco-hard-negatives":
        if not (given.get("queries") and given.get("corpus")):
            raise JobError(
                f"--format {layout} holds ids alone: name the texts that they stand for with --queries and --corpus"
            )
        names = dict(zip(("query_id_column", "document_id_column", "negative_columns"), _NAMES[layout], strict=True))
    elif layout in _NAMES:
        names = dict(zip(("query_column", "document_column", "negative_columns"), _NAMES[layout], strict=True))
    else:
        names = _name_tuple(columns, given, uri)
    found = {name: given.get(name, value) for name, value in names.items()}
    if isinstance(found["negative_columns"], str):
        found["negative_columns"] = [found["negative_columns"]]
    for name in [*list(found.values())[:2], *found["negative_columns"]]:
        if name not in columns:
            shown = ", ".join(f"`{column}`" for column in columns) or "none"
            raise InputError(
                f"{uri}: no column `{name}`, so that it is no --format {layout}; it has {shown}; name the columns with "
                "--query-column, --document-column (positives) and --negative-columns",
                uri=uri,
                column=name,
            )
    return found


def _name_tuple(columns: Columns, given: Mapping[str, Any], uri: str) -> dict[str, Any]:
    """Return the columns of a tuple: anchor and positive are called so, or are the only texts beside the negatives."""
    negatives = given.get("negative_columns") or find_negatives(columns)
    texts = [name for name, kind in columns.items() if is_text(kind) and name not in negatives]
    anchor = given.get("query_column") or next((name for name in ("anchor", "query") if name in texts), None)
    positive = given.get("document_column") or ("positive" if "positive" in texts else None)
    rest = [name for name in texts if name not in (anchor, positive)]
    if anchor is None and rest and len(rest) == 1 + (positive is None):
        anchor = rest.pop(0)
    if positive is None and len(rest) == 1:
        positive = rest[0]
    if anchor is None or positive is None or not negatives:
        lacking = "anchor" if anchor is None else "positive" if positive is None else "negatives"
        flag = {"anchor": "--query-column", "positive": "--document-column", "negatives": "--negative-columns"}[lacking]
        raise InputError(
            f"{uri}: of its columns {', '.join(f'`{name}`' for name in columns)} it is not told which has the {lacking} of a "
            f"tuple; name it with {flag}",
            uri=uri,
        )
    return {"query_column": anchor, "document_column": positive, "negative_columns": negatives}
