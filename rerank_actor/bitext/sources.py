"""Sources: the files of candidates that a job names, each with its format and its language pair.

Takes the job's input, gives a `Source` a file; of Moses pairs a `Source` is two files. A language pair comes from the flag,
from a folder `lang_pair=deu-eng`, from the file's name, or row by row from language columns. First lines are looked at where
a name does not tell the format. Knows nothing of what becomes of the rows.
"""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from rerank_actor import storage
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.language_pairs import LanguagePair, find_pair_in_name, parse_pair
from rerank_actor.bitext.languages import spell_tag
from rerank_actor.errors import InputError, JobError, suggest
from rerank_actor.inputs.batches import refuse_broken
from rerank_actor.inputs.formats import find_format, split_name
from rerank_actor.inputs.text import TextFile, is_number, iterate_records, split_fields

Kind = Literal["parquet", "jsonl", "csv", "tsv", "laser", "pairs", "moses"]


@dataclass(frozen=True)
class Source:
    """A file of candidates, or the two files of a Moses pair.

    Attributes:
        file: the file; of a Moses pair that of the source language.
        kind: its format.
        pair: language pair of all rows; None where language columns say it.
        twin: the other file of a Moses pair.
    """

    file: storage.StoredObject
    kind: Kind
    pair: LanguagePair | None
    twin: storage.StoredObject | None = None

    @property
    def num_bytes(self) -> int:
        """Stored size."""
        return self.file.size + (self.twin.size if self.twin is not None else 0)

    @property
    def identity(self) -> list[list[Any]]:
        """What tells its files from others, and from themselves once they have changed, as JSON values."""
        return [file.identity for file in self.files]

    @property
    def files(self) -> list[storage.StoredObject]:
        """Its files, one or two."""
        return [file for file in (self.file, self.twin) if file is not None]


def list_sources(job: BitextJob) -> list[Source]:
    """Return the job's files, each once, those of left-out partitions not among them.

    Raises:
        InputError: an input matches nothing, a format or language pair cannot be told, or a Moses file has no partner.
        StorageError: storage does not answer.
    """
    given = parse_pair(job.lang_pair, job.languages, "--lang-pair") if job.lang_pair else None
    files: dict[str, storage.StoredObject] = {}
    for uri in job.input:
        if storage.is_within(uri, job.output) or storage.is_within(job.output, uri):
            raise InputError(
                f"--output {job.output} and --input {uri} lie in one another; choose another folder", uri=uri
            )
        objects = storage.list_objects(uri)
        if not objects:
            raise InputError(f"{uri}: nothing there; --input takes files, folders and globs, local or s3://", uri=uri)
        files.update((item.uri, item) for item in objects)
    pairs = {uri: given or find_pair(uri, job.languages) for uri in files}
    sources, left = _join_moses(job, files, pairs)
    for file in left:
        kind = _find_kind(file, job)
        if kind is None:
            if file.uri in job.input or len(files) == 1:
                raise InputError(f"{file.uri}: the name does not tell its format; name one with --format", uri=file.uri)
            continue
        sources.append(Source(file, kind, pairs[file.uri]))
    if not sources:
        raise InputError(
            f"{', '.join(job.input)}: {len(files)} files, none named like candidates (.parquet, .jsonl, .csv, .tsv, Moses "
            "pairs by language code, also .gz and .zst); name the format with --format"
        )
    return sources


def find_pair(uri: str, languages: Mapping[str, str]) -> LanguagePair | None:
    """Return the language pair that a file's folder or name tells, None where they tell none.

    Raises:
        InputError: the folder names no language pair.
    """
    folder = re.search(r"(?:^|/)lang_pair=([^/]+)/", uri)
    if folder is not None:
        return parse_pair(folder[1], languages, uri)
    return find_pair_in_name(uri.rpartition("/")[2], languages)


def _join_moses(
    job: BitextJob, files: dict[str, storage.StoredObject], pairs: dict[str, LanguagePair | None]
) -> tuple[list[Source], list[storage.StoredObject]]:
    """Return the Moses pairs, and the files that are none."""
    if job.format not in ("auto", "moses"):
        return [], list(files.values())
    by_name: dict[tuple[str, str], storage.StoredObject] = {}
    others = []
    for uri, file in files.items():
        stem, suffix, _ = split_name(uri)
        pair = pairs[uri]
        code = spell_tag(suffix[1:])
        if pair is not None and code in (pair.source.code, pair.target.code):
            by_name[stem, code] = file
        else:
            others.append(file)
    if job.format == "moses" and others:
        if len(files) == 2 and not by_name and (pair := pairs[others[0].uri]) is not None:
            return [Source(files[job.input[0]], "moses", pair, files[job.input[-1]])] if len(job.input) == 2 else [
                Source(others[0], "moses", pair, others[1])
            ], []
        raise InputError(
            f"{others[0].uri}: is not one of two files named by the codes of a language pair (train.deu, train.eng); name the "
            "pair with --lang-pair, or give the source's file and the target's as two --input",
            uri=others[0].uri,
        )
    sources = []
    for (stem, code), file in by_name.items():
        pair = cast(LanguagePair, pairs[file.uri])
        other = pair.target.code if code == pair.source.code else pair.source.code
        twin = by_name.get((stem, other))
        if twin is None:
            raise InputError(
                f"{file.uri}: its other side, {stem}.{other}, is not among the input; give both files", uri=file.uri
            )
        if code == pair.source.code:
            sources.append(Source(file, "moses", pair, twin))
    return sources, others


def _find_kind(file: storage.StoredObject, job: BitextJob) -> Kind | None:
    """Return a file's format by its name or, where that is TSV, by its first line; None where nothing tells it."""
    kind, compression = find_format(file.uri)
    if job.format != "auto":
        return job.format
    if kind != "tsv":
        return cast(Kind, kind) if kind in get_args(Kind) else None
    with refuse_broken(file.uri, "tsv"):
        text = TextFile(file.uri, file.size, file.etag, "tsv", compression, dialect=job.dialect)
        first = next(iterate_records(text), None)
    fields = (split_fields(first.content) if first is not None else None) or []
    if job.source_column in fields and job.target_column in fields:
        return "tsv"
    if len(fields) == 3 and is_number(fields[0]):
        return "laser"
    if len(fields) == 2 or first is None:
        return "pairs"
    raise InputError(
        f"{file.uri}, line {first.line}: is no header with `{job.source_column}` and `{job.target_column}`"
        f"{suggest(job.source_column, fields)}, and neither score, source, target nor source, target ({len(fields)} fields); "
        "name the columns with --source-column and --target-column, or the format with --format",
        uri=file.uri,
        line=first.line,
    )


def choose_sources(sources: list[Source], partitions: list[str]) -> list[Source]:
    """Return the files that can hold some partitions; all where only their rows tell the language pair."""
    pairs = [source.pair.name for source in sources if source.pair is not None]
    if not partitions or len(pairs) < len(sources):
        return sources
    chosen = choose_partitions(partitions, pairs)
    return [source for source in sources if source.pair is not None and source.pair.name in chosen]


def choose_partitions(wanted: list[str], present: list[str]) -> list[str]:
    """Return the partitions that names, globs and ranges choose, in order of names; all where nothing is wanted.

    Raises:
        JobError: one of them chooses nothing.
    """
    present = sorted(present)
    if not wanted:
        return present
    chosen: set[str] = set()
    for item in wanted:
        first, separator, last = item.partition(":")
        first, last = _spell_partition(first), _spell_partition(last)
        if separator:
            names = [name for name in present if (not first or name >= first) and (not last or name <= last)]
        else:
            names = [name for name in present if name == first or fnmatch.fnmatch(name.lower(), first.lower())]
        if not names:
            raise JobError(
                f"--partitions {item}: no such language pair in the input{suggest(item, present)}; there are "
                f"{', '.join(present[:20])}{' and more' if len(present) > 20 else ''}"
            )
        chosen.update(names)
    return sorted(chosen)


def _spell_partition(name: str) -> str:
    """Return a language pair as folders have it, also of another spelling; a glob or a beginning as it is."""
    codes = [spell_tag(code) for code in name.split("-")]
    if len(codes) == 2 and all(codes):
        return "-".join(map(str, codes))
    if len(codes) < 3 or set(name) & set("*?["):
        return name
    return parse_pair(name, {}, "--partitions").name
