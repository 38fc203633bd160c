"""Headers: what the columns of CSV and TSV files of candidates are, by what the user names and by the first line.

Takes a file, gives its kind and, where its first line has none, the names of its columns. What a first line does not tell is
refused with the flag that would where a few more rows tell that; of fields it is shown what they are, never a text. Knows
nothing of the rest.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from rerank_actor import storage
from rerank_actor.bitext.column_kinds import (
    ID,
    NUMBER,
    SEVERAL,
    TEXT,
    URL,
    WHOLE,
    is_fraction,
    name_kinds,
    tell_kinds,
)
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.language_pairs import LanguagePair
from rerank_actor.bitext.layouts import Kind
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import refuse_broken
from rerank_actor.inputs.formats import TextFormat, find_format
from rerank_actor.inputs.text import (
    DELIMITERS,
    Record,
    TextFile,
    is_number,
    iterate_records,
    refuse_other,
    split_fields,
)
from rerank_actor.job_file import suggest

_SIDE = r"((%s)[ _]?(text|sentence|sent|segment|seg|plain|lang)?|(text|sentence|sent|segment|seg|lang)[ _]?%s)"
_SOURCE = re.compile(_SIDE % ("src|source|sl|l1", "[1a]"), re.IGNORECASE)
_TARGET = re.compile(_SIDE % ("trg|tgt|target|tl|l2", "[2b]"), re.IGNORECASE)
_SCORE = re.compile(r".*(score|bicleaner|laser|cosine|similarity).*", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
LASER, BARE = ("score", "source", "target"), ("source", "target")
SEEN_ROWS = 20


def look_for_header(
    file: storage.StoredObject, kind: TextFormat, job: BitextJob, pair: LanguagePair | None
) -> tuple[Kind, tuple[str, ...]]:
    """Return what a CSV or TSV file is, and the names of its columns where its first line does not have them.

    Raises:
        InputError: the first line does not tell it, or contradicts what the user names.
    """
    text = TextFile(file.uri, file.size, file.etag, kind, find_format(file.uri, kind)[1], dialect=job.dialect)
    with refuse_broken(file.uri, kind):
        refuse_other(text)
        records = iterate_records(text)
        first = next(records, None)
    if first is None:
        return ("tsv" if kind == "tsv" else "csv"), tuple(job.columns)
    fields = split_fields(first.content, DELIMITERS[kind])
    if fields is None:
        problem: str | None = str(first.content)
    else:
        rows = _Rows(fields, records, file.uri, kind)
        problem = _find_contradiction(rows, job, pair) if job.columns else _find_strangeness(rows, job, pair)
    if problem is not None:
        raise InputError(f"{file.uri}, line {first.line}: {problem}", uri=file.uri, line=first.line)
    if kind == "csv" or job.columns or {job.source_column, job.target_column} <= set(fields or ()):
        return ("tsv" if kind == "tsv" else "csv"), tuple(job.columns)
    return ("laser" if len(fields or ()) == len(LASER) else "pairs"), ()


@dataclass
class _Rows:
    """The first row of a file, and further ones where these are wanted."""

    fields: list[str]
    records: Iterator[Record]
    uri: str
    kind: TextFormat

    def read(self) -> list[list[str]]:
        """Return the first rows, those that have as many fields as the first."""
        with refuse_broken(self.uri, self.kind):
            others = [
                split_fields(record.content, DELIMITERS[self.kind]) for record in islice(self.records, SEEN_ROWS - 1)
            ]
        return [self.fields, *(row for row in others if row is not None and len(row) == len(self.fields))]


def _find_contradiction(rows: _Rows, job: BitextJob, pair: LanguagePair | None) -> str | None:
    """Return why a first line is no row of the columns that the user names."""
    fields = rows.fields
    if job.source_column in fields and job.target_column in fields:
        return f"has the columns' names, `{job.source_column}` and `{job.target_column}`; leave --columns out"
    if len(fields) != len(job.columns):
        return f"has {len(fields)} fields, and --columns names {len(job.columns)}; {_suggest_columns(rows.read(), job)}"
    if _names_columns(fields, pair):
        return f"is a header; leave --columns out: {_suggest_names(fields, pair)}"
    return None


def _find_strangeness(rows: _Rows, job: BitextJob, pair: LanguagePair | None) -> str | None:
    """Return why a first line is neither the header nor a row that is wanted."""
    fields, wanted = rows.fields, f"`{job.source_column}` and `{job.target_column}`"
    if job.source_column in fields and job.target_column in fields:
        return None
    if _names_columns(fields, pair):
        nearest = suggest(job.source_column, fields)
        return f"is a header without {wanted}{nearest}; {_suggest_names(fields, pair)}"
    is_plain = rows.kind == "tsv" and job.format == "auto"
    seen = rows.read()
    if is_plain and len(fields) == len(BARE):
        return _find_ids(tell_kinds(seen, job.languages), len(seen))
    is_scored = is_number(fields[0]) and any(is_fraction(row[0]) for row in seen)
    if is_plain and len(fields) == len(LASER) and is_scored:
        return None
    return (
        f"is no header with {wanted}, and neither {', '.join(LASER)} nor {', '.join(BARE)} in TSV; "
        f"{_suggest_columns(seen, job)}"
    )


def _find_ids(kinds: list[str], num_rows: int) -> str | None:
    """Return why two fields are no pair: texts with an id each, as queries and collections have."""
    if num_rows < SEVERAL or TEXT not in kinds or not {WHOLE, ID, NUMBER, URL}.intersection(kinds):
        return None
    return (
        f"it has 2 fields ({', '.join(kinds)}), of which one is no text; give files of source and target, or say that these "
        "are with --columns=source,target"
    )


def _names_columns(fields: list[str], pair: LanguagePair | None) -> bool:
    """Whether fields are names of columns: words apart, of which two are what texts of a pair are called."""
    are_sides = [_is_side(field, side, pair) for field in fields for side in ("source", "target")]
    return _are_names(fields) and sum(are_sides) >= 2


def _are_names(fields: list[str]) -> bool:
    return len(set(fields)) == len(fields) and all(_NAME.fullmatch(field) for field in fields)


def _is_side(field: str, side: Literal["source", "target"], pair: LanguagePair | None) -> bool:
    """Whether a name is what texts of a side are called, as `src_text`, or by its language."""
    language = getattr(pair, side, None)
    codes = [language.code, language.tag, language.name] if language is not None else []
    pattern = _SOURCE if side == "source" else _TARGET
    return pattern.fullmatch(field) is not None or field.lower() in [code.lower() for code in codes]


def _suggest_names(fields: list[str], pair: LanguagePair | None) -> str:
    """Return which flags name the columns of a header."""
    found = {
        "source": [field for field in fields if _is_side(field, "source", pair)],
        "target": [field for field in fields if _is_side(field, "target", pair)],
        "score": [field for field in fields if _SCORE.fullmatch(field)],
    }
    flags = [f"--{role}-column {names[0]}" for role, names in found.items() if len(names) == 1]
    return (
        f"it has {', '.join(f'`{field}`' for field in fields)}; name them: {' '.join(flags) or '--source-column NAME'}"
    )


def _suggest_columns(rows: list[list[str]], job: BitextJob) -> str:
    """Return what the columns of the first rows are, and the flag that says it where they can be nothing else."""
    kinds = tell_kinds(rows, job.languages)
    shown = f"it has {len(kinds)} fields ({', '.join(kinds)})"
    if kinds[0] in (WHOLE, ID) and kinds[1:] == [TEXT, TEXT]:
        return f"{shown}, of which the first is a score (--columns=score,source,target) or none (--columns=-,source,target)"
    if _are_names(rows[0]):
        return (
            f"{shown}; name the columns with --source-column and --target-column, or with --columns if it is no header"
        )
    names = name_kinds(kinds, len(rows))
    if names is None:
        return (
            f"{shown}; look what each is, and name all in their order with --columns: source, target, score, any other "
            "name for one to keep, `-` for one to leave out"
        )
    return f"{shown}; if that is so, name them: --columns={','.join(names)}"
