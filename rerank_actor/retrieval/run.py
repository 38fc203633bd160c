"""Retrieval: from a `RetrieveJob` to candidates, and on again after whatever ended it.

`retrieve` is the order of things: look at the texts, embed documents and queries with the same engines, search, write. Vectors
that are there are not made again, whatever `--top-k` is. How each step works is known elsewhere.
"""

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerank_actor import storage
from rerank_actor.engines.families.embedding import Role, read_prompt
from rerank_actor.engines.model import fetch_model
from rerank_actor.engines.options import BUILT_IN_TOKENIZER
from rerank_actor.errors import EngineError, InputError, OutputConflictError
from rerank_actor.inputs.formats import find_format
from rerank_actor.inputs.text_sources import SourceColumns, list_sources
from rerank_actor.outputs.folder import JobFolder
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.retrieval.candidates import (
    SearchBlock,
    SearchPlace,
    find_twice,
    search_block,
    spill_pairs,
    write_candidates,
    write_pairs,
    write_predictions,
)
from rerank_actor.retrieval.job import EmbedJob, RetrieveJob
from rerank_actor.retrieval.vectors import VectorPart, list_vector_parts
from rerank_actor.retrieval.written import CANDIDATES, RECORD, list_lost_candidates
from rerank_actor.runtime.connection import connect_ray, watch_signals
from rerank_actor.runtime.steps import StepOutcome, StepRecords, TaskRunner, run_step
from rerank_actor.scoring.estimate import estimate_job, print_estimate
from rerank_actor.scoring.preflight import prepare_job
from rerank_actor.scoring.run import run_jobs
from rerank_actor.storage.exchange import Exchange, collect_slices
from rerank_actor.storage.lease import Lease, hold_lease, make_run_id

QUERY_GROUP_ROWS = 16_384  # queries of a task, whose best documents it holds
DOCUMENT_GROUP_ROWS = 2**18  # documents of a task
IDS_OF_A_TASK = 2**21  # that one task holds, to find those that stand twice
PAIRS_OF_A_TASK = 2**20  # of texts, that one task brings together
LINES = SourceColumns("text", "text", "", ("text",))  # a sentence stands for itself


@dataclass
class RetrieveResult:
    """How a retrieval ended.

    Attributes:
        status: `complete`, or `failed` when texts could not be embedded.
        candidates: folder of them.
        queries, documents: embedded.
        num_candidates: of all queries.
        left_out: rows of queries and of documents without a vector, by reason.
        empty: blank texts that were embedded, by flag.
    """

    status: str
    candidates: str
    queries: int = 0
    documents: int = 0
    num_candidates: int = 0
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)


def retrieve(job: RetrieveJob, reporter: Reporter | None = None) -> RetrieveResult | None:
    """Find the best documents of each query, as far as that is not done; a dry run only says what is to be embedded.

    Raises:
        JobError: the job, its texts or its model are wrong.
        OutputConflictError: the output holds candidates of another job, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    if job.dry_run:
        for embed in make_embed_jobs(job):
            print_estimate(estimate_job(embed, reporter or QuietReporter()))
        return None
    return retrieve_all([job], reporter)[0]


def retrieve_all(jobs: Sequence[RetrieveJob], reporter: Reporter | None = None) -> list[RetrieveResult]:
    """Find the candidates of several jobs, that differ in their texts, prompts and outputs alone, with the same engines.

    Raises:
        As of `retrieve`.
    """
    reporter = reporter or QuietReporter()
    embeds = [make_embed_jobs(job) for job in jobs]
    done = iter(run_jobs([embed for both in embeds for embed in both], reporter))
    failed = [any([next(done).status == "failed" for _ in both]) for both in embeds]
    results = []
    with watch_signals() as watch, contextlib.ExitStack() as stack:
        connect = functools.cache(lambda: stack.enter_context(connect_ray(jobs[0], watch)))
        for job, both, is_failed in zip(jobs, embeds, failed, strict=True):
            if is_failed:
                results.append(RetrieveResult("failed", storage.join_uri(job.output, "candidates")))
                continue
            folder = JobFolder(job.output)
            with hold_lease(folder.lease_uri, folder.uri, make_run_id(), reporter.info) as lease:
                runner = TaskRunner(connect, lease, storage.capture_environment())
                results.append(_Search(job, both, lease, reporter).execute(runner))
    return results


def make_embed_jobs(job: RetrieveJob) -> list[EmbedJob]:
    """Return the jobs that embed the corpus and the queries, checked against what is there.

    Raises:
        JobError, OutputConflictError: as of `retrieve`.
    """
    if job.is_bitext:
        prompt = _choose_prompt(job, "document")
        return [
            _make_embed_job(job, "document", _check_lines(job.target, "--target"), LINES, prompt),
            _make_embed_job(job, "query", _check_lines(job.source, "--source"), LINES, prompt),
        ]
    sources = list_sources(job.source_specs(), job.output)
    return [
        _make_embed_job(
            job, one.role, [item.uri for item in one.objects], one.name_columns(), _choose_prompt(job, one.role)
        )
        for one in sources
    ]


def _check_lines(uris: list[str], flag: str) -> list[str]:
    """Return files of sentences, a line each.

    Raises:
        InputError: nothing is there, or a name says that it is something else.
    """
    listed = [item.uri for uri in uris for item in storage.list_objects(uri)]
    if not listed:
        raise InputError(
            f"{flag} {uris[0]}: nothing there; it takes local files, folders and globs, s3://, gs://, az://",
            uri=uris[0],
        )
    for uri in listed:
        kind, _ = find_format(uri)
        if kind is not None:
            raise InputError(
                f"{flag} {uri}: is {kind} by its name, and a file of a sentence a line is wanted; name it .txt if it is one",
                uri=uri,
            )
    return listed


def _make_embed_job(job: RetrieveJob, role: Role, uris: list[str], columns: SourceColumns, prompt: str) -> EmbedJob:
    embed = job.to_embedding(role, uris, columns, prompt, overwrite=False)
    if not job.overwrite:
        return embed
    try:
        prepare_job(embed)
    except OutputConflictError:
        return job.to_embedding(role, uris, columns, prompt, overwrite=True)
    return embed


def _choose_prompt(job: RetrieveJob, role: Role) -> str:
    """Return what is put before the texts of a role."""
    given = job.query_prompt if role == "query" else job.document_prompt
    if given is not None:
        return given
    instruction = job.instruction if role == "query" else None
    if job.model_name == BUILT_IN_TOKENIZER:
        return f"Instruct: {instruction}\nQuery:" if instruction is not None else ""
    folder = fetch_model(job.model_name, job.revision, weights=False)
    return read_prompt(job.model_name, folder, role, instruction)


class _Search:
    """The search of a run that holds the lease of the output; documents come first everywhere, then queries."""

    def __init__(self, job: RetrieveJob, jobs: list[EmbedJob], lease: Lease, reporter: Reporter) -> None:
        self._job, self._lease, self._reporter = job, lease, reporter
        self._folder = JobFolder(job.output)
        self._documents, self._queries = map(list_vector_parts, jobs)
        self._settings = {
            "top_k": job.top_k,
            "output_format": "bitext" if job.is_bitext else job.output_format,
            **({"both_directions": True} if job.both_directions else {}),
            "corpus": _digest(self._documents),
            "queries": _digest(self._queries),
        }
        digest = hashlib.sha256(json.dumps(self._settings).encode()).hexdigest()[:16]
        work = self._folder.at("search", digest)
        self._records = functools.partial(storage.join_uri, work)
        candidates = storage.join_uri(job.output, CANDIDATES)
        self._place = SearchPlace(storage.join_uri(work, "partial"), candidates, self._folder.scratch, lease.mark)

    def execute(self, runner: TaskRunner) -> RetrieveResult:
        """Search what is not searched, and write the candidates."""
        stored = self._folder.read_own(RECORD)
        others = stored.get("settings", {})
        if others != self._settings and (others or storage.list_children(self._place.candidates)):
            self._replace(others)
        elif stored.get("status") == "complete" and storage.read_if_present(self._folder.success_uri) is not None:
            if not (lost := list_lost_candidates(self._job.output, stored)):
                self._reporter.info(f"all candidates are there already; output {self._job.output}")
                return self._make_result(stored)
            self._reporter.warn(
                f"{lost[0]}; {len(lost):,} files of candidates are not as they were written, and written again"
            )
            self._lease.check(fresh=True)
            storage.delete_objects([self._folder.success_uri])
        if self._settings["output_format"] != "trec":
            self._folder.write_card("candidates/part-*.parquet")
        self._folder.write_json(RECORD, {"settings": self._settings})
        if self._job.is_bitext:
            record = self._search_pairs(runner)
        else:
            self._refuse_twice(runner)
            record = self._search(runner)
        self._lease.check(fresh=True)
        record |= {"settings": self._settings, "status": "complete"}
        self._folder.write_json(RECORD, record)
        self._folder.write_guarded(self._folder.success_uri, b"", functools.partial(self._lease.check, fresh=True))
        storage.delete_folder(self._folder.at("search"))
        return self._make_result(record)

    def _replace(self, stored: dict[str, Any]) -> None:
        """Delete the candidates of another job where that is wanted.

        Raises:
            OutputConflictError: it is not.
        """
        differing = [name for name, value in self._settings.items() if stored.get(name) != value]
        if not self._job.overwrite:
            raise OutputConflictError(
                f"{self._job.output}: holds candidates of another job (other {', '.join(differing)}); choose another --output, "
                "with --embeddings to share the vectors, or --overwrite to replace the candidates",
                uri=self._job.output,
            )
        self._lease.check(fresh=True)
        storage.delete_objects([self._folder.success_uri])
        storage.delete_folder(self._place.candidates)
        storage.delete_folder(self._folder.at("search"))

    def _refuse_twice(self, runner: TaskRunner) -> None:
        items: dict[str, tuple[str, list[VectorPart], int, int]] = {}
        for flag, parts in (("--corpus", self._documents), ("--queries", self._queries)):
            numbers = 1 + sum(part.num_rows for part in parts) // IDS_OF_A_TASK
            items |= {f"{flag[2:]}-{number:04d}": (flag, parts, number, numbers) for number in range(numbers)}
        records = StepRecords(self._records("ids"), self._folder.scratch)
        _require(run_step(find_twice, items, records, runner, keep=dict))

    def _search(self, runner: TaskRunner) -> dict[str, Any]:
        """Find the best of each block, then of each query; return the figures."""
        rows, found = self._search_blocks(runner, self._queries, self._documents, "f")
        if self._job.output_format == "mteb-predictions":
            write_all = functools.partial(
                write_predictions,
                top_k=self._job.top_k,
                model=(self._job.model_name, self._job.revision),
                place=self._place,
            )
            return {
                **_sum_up(rows, found),
                **self._write(write_all, {"all": ("predictions", rows)}, runner),
            }
        files = {f"part-{number:05d}": (f"part-{number:05d}", blocks) for number, blocks in enumerate(rows)}
        write = functools.partial(
            write_candidates, top_k=self._job.top_k, output_format=self._job.output_format, place=self._place
        )
        return {**_sum_up(rows, found), **self._write(write, files, runner)}

    def _search_pairs(self, runner: TaskRunner) -> dict[str, Any]:
        """Find the best targets of each source, and perhaps the best sources of each target; write each pair once."""
        rows, found = self._search_blocks(runner, self._queries, self._documents, "f", distinct=True)
        spilling = {blocks[0]: (blocks[0], blocks, False) for blocks in rows}
        num_pairs = self._job.top_k * sum(part.num_rows for part in self._queries)
        if self._job.both_directions:
            others, _ = self._search_blocks(runner, self._documents, self._queries, "b", distinct=True)
            spilling |= {blocks[0]: (blocks[0], blocks, True) for blocks in others}
            num_pairs += self._job.top_k * sum(part.num_rows for part in self._documents)
        exchange = Exchange(self._records("pairs"), 1 + num_pairs // PAIRS_OF_A_TASK, self._folder.scratch)
        spill = functools.partial(spill_pairs, top_k=self._job.top_k, exchange=exchange, place=self._place)
        records = StepRecords(self._records("spilled"), self._folder.scratch)
        spilled = [record["spilled"] for record in _require(run_step(spill, spilling, records, runner, keep=dict))]
        slices = collect_slices(spilled, exchange.num_buckets)
        buckets = {f"part-{number:05d}": (f"part-{number:05d}", some) for number, some in enumerate(slices)}
        write = functools.partial(write_pairs, place=self._place)
        return {**_sum_up(rows, found), **self._write(write, buckets, runner)}

    def _write(self, work: Any, files: dict[str, Any], runner: TaskRunner) -> dict[str, Any]:
        """Write the files of candidates; return how many candidates there are, and sizes and digests of the files."""
        records = StepRecords(self._records("files"), self._folder.scratch)
        written = _require(run_step(work, files, records, runner, keep=dict))
        told = [kind for kind in ("objects", "digests") if all(kind in record for record in written)]
        merged = {kind: {name: value for record in written for name, value in record[kind].items()} for kind in told}
        return {"candidates": sum(record["candidates"] for record in written), **merged}

    def _search_blocks(
        self,
        runner: TaskRunner,
        queries: list[VectorPart],
        documents: list[VectorPart],
        prefix: str,
        *,
        distinct: bool = False,
    ) -> tuple[list[list[str]], list[dict[str, Any]]]:
        """Return the names of the blocks of each group of queries, and the records of all."""
        groups = _group(documents, DOCUMENT_GROUP_ROWS)
        rows, blocks = list[list[str]](), dict[str, SearchBlock]()
        for row, some in enumerate(_group(queries, QUERY_GROUP_ROWS)):
            names = [f"{prefix}{row:05d}-{column:05d}" for column in range(len(groups))]
            rows.append(names)
            blocks |= {
                name: SearchBlock(name, some, others, distinct) for name, others in zip(names, groups, strict=True)
            }
        num_texts = sum(part.num_rows for part in documents)
        self._reporter.info(f"searching {num_texts:,} texts in {len(blocks):,} blocks")
        records = StepRecords(self._records("blocks"), self._folder.scratch)
        work = functools.partial(search_block, top_k=self._job.top_k, place=self._place)
        return rows, _require(run_step(work, blocks, records, runner, keep=dict))

    def _make_result(self, record: dict[str, Any]) -> RetrieveResult:
        flags = ("--target", "--source") if self._job.is_bitext else ("--corpus", "--queries")
        left_out = {flags[0]: Counter(record["left_documents"]), flags[1]: Counter(record["left_queries"])}
        documents = sum(part.num_rows for part in self._documents) - left_out[flags[0]].total()
        empty = {flags[0]: record.get("empty_documents", 0), flags[1]: record.get("empty_queries", 0)}
        return RetrieveResult(
            "complete", self._place.candidates, record["queries"], documents, record["candidates"], left_out, empty
        )


def _require(outcome: StepOutcome[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of a step, all of whose tasks have to be done.

    Raises:
        InputError, EngineError: one failed.
    """
    for failure in outcome.failures.values():
        raise InputError(failure.reason) if failure.kind == "InputError" else EngineError(failure.reason)
    return outcome.records


def _digest(parts: list[VectorPart]) -> str:
    listing = [[part.uri.rpartition("/")[2], part.num_rows, part.etag] for part in parts]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def _group(parts: list[VectorPart], rows: int) -> list[tuple[VectorPart, ...]]:
    """Return parts in groups of about so many rows."""
    groups: list[list[VectorPart]] = []
    size = rows
    for part in parts:
        if size + part.num_rows > rows:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.num_rows
    return [tuple(group) for group in groups]


def _sum_up(rows: list[list[str]], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of blocks that stand row by row, each row with all documents, each column with all queries."""
    width = max(1, len(found) // max(1, len(rows)))
    return {
        "queries": sum(record["queries"] for record in found[::width]),
        "left_documents": _add(record["left_out"] for record in found[:width]),
        "left_queries": _add(record["left_queries"] for record in found[::width]),
        "empty_documents": sum(record["empty"].get("documents", 0) for record in found[:width]),
        "empty_queries": sum(record["empty"].get("queries", 0) for record in found[::width]),
    }


def _add(counts: Iterator[dict[str, int]] | Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
