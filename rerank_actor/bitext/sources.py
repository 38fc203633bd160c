"""Sources: the files of candidates that a job names, each with its format and its language pair.

Takes the job's input, gives a `Source` a file or a Moses pair. A language pair comes from the flag, from folders
`lang_pair=deu-eng` or `source_language=deu/target_language=eng`, from the file's name, row by row from language columns, or
else from the folder's name. What lies beside candidates is left out and said. Knows nothing of what becomes of the rows.
"""

import fnmatch
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import cast, get_args

from rerank_actor import storage
from rerank_actor.bitext.headers import look_for_header
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.language_pairs import LanguagePair, find_pair_in_name, make_pair, parse_pair, read_name
from rerank_actor.bitext.languages import spell_tag
from rerank_actor.bitext.layouts import Kind, Source, join_moses, lies_beside, names_side
from rerank_actor.errors import InputError, JobError
from rerank_actor.inputs.formats import find_format, split_name
from rerank_actor.inputs.listing.left_out import DEEPER, DOUBLED, HIDDEN, count_left_out
from rerank_actor.inputs.listing.partitions import read_values
from rerank_actor.job_file import suggest
from rerank_actor.progress import QuietReporter, Reporter

NO_CANDIDATES = "none of candidates by their names"
LISTED_FILES = 5
LOOK_THREADS = 16


def list_sources(job: BitextJob, reporter: Reporter | None = None) -> list[Source]:
    """Return the job's files, each once, and report those that are none of candidates.

    Raises:
        InputError: an input matches nothing, a format or language pair cannot be told, or a Moses file has no partner.
        StorageError: storage does not answer.
    """
    files, passed_over = _list_files(job)
    given = parse_pair(job.lang_pair, job.languages, "--lang-pair") if job.lang_pair else None
    pairs = {uri: given or find_pair(uri, job.languages, job.language_columns) for uri in files}
    by_folder = {uri: _find_pair_of_folder(uri, job.languages) for uri in files}
    if job.format == "moses" and (source := _pair_off(job, files, pairs)) is not None:
        return [source]
    of_layout = {uri: pair or by_folder[uri] for uri, pair in pairs.items()}
    moses, left = join_moses(files, of_layout) if job.format in ("auto", "moses") else ([], list(files.values()))

    def describe(file: storage.StoredObject) -> Source | None:
        is_meant = file.uri in job.input or len(files) == 1
        return _describe_file(file, job, pairs[file.uri], by_folder[file.uri], is_meant=is_meant)

    with ThreadPoolExecutor(LOOK_THREADS) as pool:
        described = list(pool.map(describe, left))
    sources = [*moses, *(source for source in described if source is not None)]
    left_out = [file for file, source in zip(left, described, strict=True) if source is None]
    unknown = [file for file in left_out if not lies_beside(file.uri)]
    if unknown and not sources:
        raise _refuse_unknown(unknown[0], job, of_layout[unknown[0].uri])
    _refuse_unknown_names([file.uri for file in unknown], sources, job)
    if everything := count_left_out([*((NO_CANDIDATES, file.uri) for file in left_out), *passed_over]):
        (reporter or QuietReporter()).info(f"left out: {'; '.join(item.describe() for item in everything)}")
    return sources


def _list_files(job: BitextJob) -> tuple[dict[str, storage.StoredObject], list[tuple[str, str]]]:
    """Return the files that the input names, and reason and URI of each in its folders that it does not."""
    files: dict[str, storage.StoredObject] = {}
    passed_over: dict[str, str] = {}
    for uri in job.input:
        storage.refuse_overlap(job.output, uri, "--output", "--input")
        listing = storage.list_everything(uri)
        if not listing.objects:
            raise InputError(
                f"{uri}: nothing there; --input takes local files, folders and globs, s3://, gs://, az://", uri=uri
            )
        files.update((item.uri, item) for item in listing.objects)
        passed_over |= {**dict.fromkeys(listing.hidden, HIDDEN), **dict.fromkeys(listing.deeper, DEEPER)}
    for items in storage.group_by_file(list(files.values())).values():
        for item in items[1:]:  # further names of one file
            passed_over[files.pop(item.uri).uri] = DOUBLED
    return files, [(reason, uri) for uri, reason in passed_over.items() if uri not in files]


def find_pair(
    uri: str, languages: Mapping[str, str], columns: tuple[str, str] = ("source_language", "target_language")
) -> LanguagePair | None:
    """Return the language pair that a file's folders `lang_pair=` or of language columns, or its name, tell, else None.

    Raises:
        InputError: a folder names no language or language pair.
    """
    folders = read_values(uri, ("lang_pair", *columns))
    if (text := folders["lang_pair"]) is not None:
        return parse_pair(text, languages, uri)
    source, target = (folders[column] for column in columns)
    if source is not None and target is not None:
        return make_pair(source, target, languages, uri)
    return find_pair_in_name(uri.rpartition("/")[2], languages)


def _find_pair_of_folder(uri: str, languages: Mapping[str, str]) -> LanguagePair | None:
    """Return the language pair that is the whole name of the folder that a file lies in."""
    folder = uri.rpartition("/")[0].rpartition("/")[2]
    pair = find_pair_in_name(folder, languages)
    return (
        pair if pair is not None and pair.name.lower().replace("_", "-") == folder.lower().replace("_", "-") else None
    )


def _pair_off(
    job: BitextJob, files: dict[str, storage.StoredObject], pairs: Mapping[str, LanguagePair | None]
) -> Source | None:
    """Return the Moses pair of two files of any names, of which the first holds the source."""
    uris = job.input if len(job.input) == 2 and set(job.input) == set(files) else list(files)
    pair = pairs[uris[0]]
    if len(files) != 2 or pair is None or _is_side(uris[0], pair) or _is_side(uris[1], pair):
        return None
    return Source(files[uris[0]], "moses", pair, files[uris[1]])


def _is_side(uri: str, pair: LanguagePair) -> bool:
    name = split_name(uri)[1][1:]
    return name in ("src", "trg", "tgt", "scores") or spell_tag(name) in (pair.source.code, pair.target.code)


def _describe_file(
    file: storage.StoredObject,
    job: BitextJob,
    pair: LanguagePair | None,
    by_folder: LanguagePair | None,
    *,
    is_meant: bool,
) -> Source | None:
    """Return a file of candidates, None of another that the user did not name.

    Raises:
        InputError: the user named it, or its first line is to say what it is, and it cannot be told.
    """
    named = find_format(file.uri)[0]
    if named is None and job.columns and (is_meant or pair is not None):
        named = "tsv"
    kind = named if job.format == "auto" else job.format
    if not is_meant and (lies_beside(file.uri) or kind not in get_args(Kind)):
        return None
    if kind not in get_args(Kind) or kind == "moses":
        raise _refuse_unknown(file, job, pair or by_folder)
    if kind == "csv" or kind == "tsv":
        found, header = look_for_header(file, kind, job, pair or by_folder)
        return Source(file, found, pair, header=header, folder_pair=by_folder)
    return Source(file, cast(Kind, kind), pair, folder_pair=by_folder)


def _refuse_unknown(file: storage.StoredObject, job: BitextJob, pair: LanguagePair | None) -> InputError:
    if job.format == "moses":
        advice = (
            "is not one of two files named by the codes of a language pair (train.deu, train.eng); name the pair with "
            "--lang-pair, or give the source's file and the target's as two --input"
        )
    elif split_name(file.uri)[1].lower() == ".tmx":
        advice = "TMX is not read; write its segments as TSV (source, target) or as two files line by line"
    elif names_side(file.uri) and pair is None:
        advice = "is one side of a Moses pair by its name, and nothing says which languages; give --lang-pair"
    else:
        try:
            look_for_header(file, "tsv", job, pair)
            advice = "the name does not tell its format; name one with --format"
        except InputError as error:
            told = str(error).removeprefix(file.uri).lstrip(",: ")
            advice = f"the name does not tell its format; name one with --format. If it is TSV, {told}"
    return InputError(f"{file.uri}: {advice}", uri=file.uri)


def _refuse_unknown_names(unknown: list[str], sources: list[Source], job: BitextJob) -> None:
    """Refuse an input of which more is left out than what corpora have besides their texts.

    Raises:
        InputError: no candidates are left, more files are unknown than taken, or a name is a Moses file's in two readings.
    """
    for uri in unknown:
        readings = read_name(uri.rpartition("/")[2], job.languages)
        codes = {side.code for pair in readings for side in (pair.source, pair.target)}
        if len(readings) > 1 and spell_tag(split_name(uri)[1][1:]) in codes:
            names = " or ".join(pair.name for pair in readings)
            raise InputError(f"{uri}: its name may mean {names}; rename it so, or give --lang-pair", uri=uri)
    if not sources or len(unknown) > sum(len(source.files) for source in sources):
        told = f": {_list(unknown)}" if unknown else ""
        raise InputError(
            f"{', '.join(job.input)}: {len(unknown) or 'all'} files not named like candidates (.parquet, .jsonl, .csv, .tsv, "
            f"Moses pairs by language code, also .gz and .zst){told}; name the format with --format, the language pair with "
            "--lang-pair, or give only the files that hold candidates"
        )


def _list(uris: list[str]) -> str:
    return ", ".join(uris[:LISTED_FILES]) + (" and more" if len(uris) > LISTED_FILES else "")


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
