"""Scoring of bitext: from a `BitextJob` to a scored output for each language pair, and on again after whatever ended it.

`score_bitext` is the order of things: find the files, bring what is new into one form, score all partitions with the main
job, whose engines are started once for them. A file that is read and a unit that is scored are not read or scored again.
"""

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.bitext.ingest import TOLD, ReadSpec, name_record, read_candidates
from rerank_actor.bitext.job import REASON_COLUMN, BitextJob, DirectedJob, list_outputs, name_known
from rerank_actor.bitext.language_pairs import LanguagePair, parse_pair
from rerank_actor.bitext.layouts import Source
from rerank_actor.bitext.sources import choose_partitions, choose_sources, list_sources
from rerank_actor.errors import InputError, OutputConflictError, StorageError
from rerank_actor.inputs.plan import ID_DIGITS, ID_DIGITS_BEFORE
from rerank_actor.outputs.folder import JobFolder, Output
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.runtime.connection import connect_ray, watch_signals
from rerank_actor.runtime.store_builder import run_all
from rerank_actor.scoring.run import RunLimits, RunResult, run_jobs
from rerank_actor.storage.lease import hold_lease, make_run_id

LOAD_THREADS = 16
READ_ON_RAY_BYTES = 64 * 2**20


def score_bitext(
    job: BitextJob,
    reporter: Reporter | None = None,
    known: Mapping[str | None, pa.Table] | None = None,
    limits: RunLimits | None = None,
) -> dict[str, RunResult]:
    """Score everything that the job names and that is not yet committed.

    Args:
        job: what to score.
        reporter: is told what happens.
        known: known pairs by language pair, None for those of which nothing tells it; string columns `source`, `target`,
            `input_file` and int64 `input_line`. They are scored beside the candidates, not among them.
        limits: bounds of the run that no flag sets.

    Returns:
        How the run of each language pair ended, in order of names.

    Raises:
        JobError: the job or its input is wrong.
        OutputConflictError: a file changed since it was read, or the output belongs to another job or run.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    reporter = reporter or QuietReporter()
    with _hold_candidates(job, reporter):
        names, jobs = _prepare_jobs(job, reporter, known or {})
        JobFolder(job.output).write_card("lang_pair=*/part-*.parquet")
    return dict(zip(names, run_jobs(jobs, reporter, job, limits), strict=False))


@contextlib.contextmanager
def _hold_candidates(job: BitextJob, reporter: Reporter) -> Iterator[None]:
    """Keep other runs from the candidates; with --overwrite, whose files go, from every language pair too.

    Raises:
        OutputConflictError: another run is reading candidates there, or scores those that would go.
    """
    run_id = make_run_id()
    with contextlib.ExitStack() as stack:
        uri = storage.join_uri(job.output, "_candidates-lease.json")
        stack.enter_context(hold_lease(uri, job.output, run_id, reporter.info))
        for output in _list_begun(job.output) if job.overwrite else []:
            stack.enter_context(hold_lease(output.lease_uri, output.uri, run_id, reporter.info))
        yield


def _list_begun(folder: str) -> list[Output]:
    """Return the outputs of language pairs, and those of known pairs that a run has begun to score beside them."""
    names = [uri.rpartition("/")[2] for uri in list_outputs(folder) if uri != folder]
    known = [Output(name_known(folder, name)) for name in names]
    with ThreadPoolExecutor(LOAD_THREADS) as pool:
        begun = [output for output, is_begun in zip(known, pool.map(Output.is_begun, known), strict=True) if is_begun]
    return [Output(storage.join_uri(folder, name)) for name in names] + begun


def _prepare_jobs(
    job: BitextJob, reporter: Reporter, known: Mapping[str | None, pa.Table]
) -> tuple[list[str], list[DirectedJob]]:
    """Read what is new; return the names of the language pairs, and their scoring jobs with those of known pairs behind."""
    folder = storage.join_uri(job.output, "_candidates")
    if job.overwrite:
        storage.delete_folder(folder)
    sources = choose_sources(list_sources(job, reporter), job.partitions)
    rows: Counter[str] = Counter()
    for record in _read_sources(sources, job, folder, reporter):
        rows.update({name: partition["rows"] for name, partition in record["partitions"].items()})
    if not rows:
        raise InputError(f"{', '.join(job.input)}: {len(sources)} files without a single row; nothing to score")
    _report_same_languages(job, sorted(rows), reporter)
    names = choose_partitions(job.partitions, list(rows))
    jobs = [_make_scoring(job, parse_pair(name, job.languages, name), folder, rows[name], reporter) for name in names]
    if job.reuse is not None and not any(scoring.reuse for scoring in jobs):
        raise InputError(
            f"--reuse {job.reuse}: has no scores of any language pair of this job; leave it out", uri=job.reuse
        )
    known_jobs = [scoring for name in names if (scoring := _make_known(job, name, len(names), known, reporter))]
    return names, [*jobs, *known_jobs]


def _make_known(
    job: BitextJob, name: str, num_partitions: int, known: Mapping[str | None, pa.Table], reporter: Reporter
) -> DirectedJob | None:
    """Return the scoring job of a language pair's known pairs, None where there are none; they are one shard."""
    table = known.get(name, known.get(None) if num_partitions == 1 else None)
    if table is None:
        return None
    pair = parse_pair(name, job.languages, name)
    folder = name_known(job.output, "_candidates", pair.folder)
    rows = json.dumps([table[column].to_pylist() for column in ("source", "target")]).encode()
    uri = storage.join_uri(folder, f"{hashlib.sha256(rows).hexdigest()[:16]}.bin")
    present = [] if job.overwrite else [item.uri for item in storage.list_objects(folder)]
    if present not in ([uri], [f"{uri.removesuffix('.bin')}.parquet"]):  # earlier versions gave it that name
        data = storage.to_parquet(table.append_column(REASON_COLUMN, pa.nulls(table.num_rows, pa.string())))
        with _hold_known(job, pair.folder, reporter):
            storage.delete_folder(folder)
            storage.write_bytes(uri, data)
    reporter.info(f"{name}: {table.num_rows:,} known pairs are scored beside its candidates")
    scoring = job.to_scoring(pair, folder, name_known(job.output, pair.folder))
    return scoring.model_copy(update={"extend": True})  # other known pairs take the place of earlier ones


@contextlib.contextmanager
def _hold_known(job: BitextJob, pair_folder: str, reporter: Reporter) -> Iterator[None]:
    """Keep other runs from the known pairs of a language pair while they are replaced."""
    output = Output(name_known(job.output, pair_folder))
    if job.overwrite or not output.is_begun():  # then all is held, or nobody can be at work on them
        yield
        return
    with hold_lease(output.lease_uri, output.uri, make_run_id(), reporter.info):
        yield


def _report_same_languages(job: BitextJob, names: list[str], reporter: Reporter) -> None:
    """Report partitions of the same two languages; both are scored, for either may be asked for alone."""
    first: dict[frozenset[tuple[str, tuple[str, ...]]], str] = {}
    for name in names:
        pair = parse_pair(name, job.languages, name)
        other = first.setdefault(frozenset((side.name, side.scripts) for side in (pair.source, pair.target)), name)
        if other != name:
            reporter.info(f"{other} and {name} are the same two languages; each is a partition of its own")


def _make_scoring(job: BitextJob, pair: LanguagePair, folder: str, num_rows: int, reporter: Reporter) -> DirectedJob:
    """Return the scoring job of a language pair."""
    reporter.info(f"{pair.name}: {num_rows:,} candidates, {pair.source.name} to {pair.target.name}")
    reuse = storage.join_uri(job.reuse, pair.folder) if job.reuse is not None else None
    if reuse is not None and Output(reuse).load_plan() is None:
        reuse = None  # a language pair that is new
    return job.to_scoring(pair, storage.join_uri(folder, pair.folder), storage.join_uri(job.output, pair.folder), reuse)


def _read_sources(sources: list[Source], job: BitextJob, folder: str, reporter: Reporter) -> list[dict[str, Any]]:
    """Return the record of each file; those that were not read yet are read, on Ray where that is worth its start."""
    spec = ReadSpec.of_job(job, folder)
    with ThreadPoolExecutor(LOAD_THREADS) as pool:
        records = dict(enumerate(pool.map(lambda source: _load_record(source, spec), sources)))
    from rerank_actor.runtime.tasks import run_tasks

    left = [index for index, record in records.items() if record is None]
    if left:
        _delete_half_read(folder, {name for index in left for name in _list_names(sources[index])})
    work = functools.partial(read_candidates, spec=spec)
    sizes = [sources[index].num_bytes for index in left]
    if len(left) > 1 and sum(sizes) >= READ_ON_RAY_BYTES:
        reporter.info(f"reading {len(left):,} files of {sum(sizes):,} bytes")
        with watch_signals() as watch, connect_ray(job, watch):
            environment, items = storage.capture_environment(), [sources[index] for index in left]
            read = run_all(work, items, environment, run_tasks, watch.check, StorageError)
            records.update({index: read[number] for number, index in enumerate(left)})
    else:
        records.update({index: work(sources[index]) for index in left})
    for index in left:
        _report_reasons(sources[index].file.uri, records[index] or {}, reporter)
    return [record for record in records.values() if record is not None]


def _delete_half_read(folder: str, names: set[str]) -> None:
    """Delete the shards of files whose reading was ended; the files may be others by now."""
    uris = [item.uri for item in storage.list_objects(folder)]
    storage.delete_objects([uri for uri in uris if uri.rpartition("/")[2].partition("-")[0] in names])


def _list_names(source: Source) -> list[str]:
    """Return the name of a file's record, and the one that earlier versions gave it."""
    return [name_record(source, digits) for digits in (ID_DIGITS, ID_DIGITS_BEFORE)]


def _load_record(source: Source, spec: ReadSpec) -> dict[str, Any] | None:
    """Return the record of a file, None where it was not read yet."""
    uri = source.file.uri
    uris = (storage.join_uri(spec.folder, "files", f"{name}.json") for name in _list_names(source))
    record = next((found for uri in uris if (found := storage.open_json(storage.read_if_present(uri)))), None)
    if record is None:
        return None
    # Scores beside a Moses pair were not read by earlier versions, whose candidates stay as they are.
    if record["files"] != source.identity[: max(len(record["files"]), 2)]:
        raise OutputConflictError(
            f"{uri}: changed since its candidates were read; restore it, give it another name, or --overwrite to start afresh",
            uri=uri,
        )
    if record["settings"] != spec.settings:
        raise OutputConflictError(
            f"{spec.job.output}: its candidates were read with other columns or rules; choose another --output, or "
            "--overwrite to start afresh",
            uri=spec.job.output,
        )
    for name in record["partitions"]:
        spelled = source.pair.name if source.pair is not None else parse_pair(name, spec.job.languages, uri).name
        if name != spelled:  # by an earlier version
            raise OutputConflictError(
                f"{uri}: its language pair is {spelled}, and its candidates were read as {name}; choose another --output, or "
                "--overwrite to start afresh",
                uri=uri,
            )
    return record


def _report_reasons(uri: str, record: dict[str, Any], reporter: Reporter) -> None:
    for reason, (count, line) in record["reasons"].items():
        if reason in TOLD:
            more = f", as in {count - 1:,} more of its lines" if count > 1 else ""
            reporter.info(f"{uri}, line {line:,}: {reason}{more}; such a row is kept without a score")
