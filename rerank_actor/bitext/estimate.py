"""The dry run of a bitext job: how many candidates each language pair may have, and what scoring them may cost.

Looks at the beginning of some files of each language pair: candidates from sizes, the share that rules drop, tokens of both
directions. Starts neither Ray nor an engine and writes nothing.
"""

import math
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from rerank_actor import storage
from rerank_actor.bitext.filters import CandidateFilters
from rerank_actor.bitext.ingest import split_candidates
from rerank_actor.bitext.job import REASON_COLUMN, BitextJob
from rerank_actor.bitext.language_pairs import LanguagePair
from rerank_actor.bitext.layouts import Source
from rerank_actor.bitext.readers import read_candidate_batches
from rerank_actor.bitext.sources import choose_partitions, choose_sources, list_sources
from rerank_actor.engines.model import RerankerModel, check_weights, load_tokenizer_json
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import refuse_broken
from rerank_actor.inputs.formats import split_name
from rerank_actor.inputs.plan import share_out
from rerank_actor.inputs.text import decompress, may_span_lines
from rerank_actor.outputs.folder import Output, list_pending
from rerank_actor.progress import PlainConsole, QuietReporter, Reporter
from rerank_actor.scoring.budget import Budget, ModelSize, count_budget, print_budget, read_model_size
from rerank_actor.scoring.estimate import Estimate, count_shared, find_rate, print_estimate
from rerank_actor.scoring.preflight import fit_max_length, look_at_model, make_encoder_settings, refuse_dead_storage

SAMPLED_FILES = 4  # of a language pair
SAMPLED_ROWS = 250  # of each of them
COUNTED_LINES = 16_384
COUNTED_PACKED = 131_072  # lines of a packed file, of which more is read than has been given out
THREADS = 8
WITH_HEADER = ("csv", "tsv")


@dataclass(frozen=True)
class PartitionEstimate:
    """What a dry run found of a language pair.

    Attributes:
        name: of the language pair.
        files, num_bytes: that hold it; a file of several language pairs counts for each, its bytes by shares.
        rows: candidates.
        pending_rows: those not committed yet.
        is_counted: whether rows are counted; else they follow from sizes.
        dropped_share: of the candidates looked at, which rules or faults keep from being scored.
        num_tokens: int32 [num_sampled], prompt tokens of the sampled candidates in each direction.
        cached_share: of them, tokens that prompts before them have in common with them.
    """

    name: str
    files: int
    num_bytes: int
    rows: int
    pending_rows: int
    is_counted: bool
    dropped_share: float
    num_tokens: np.ndarray
    truncated: int
    cached_share: float

    def count_tokens(self, rows: int, num_directions: int) -> float:
        """Return the prompt tokens of so many of its candidates."""
        mean = float(self.num_tokens.mean()) if len(self.num_tokens) else 0.0
        return rows * num_directions * (1 - self.dropped_share) * mean


@dataclass(frozen=True)
class BitextEstimate:
    """What a dry run found of all language pairs, and what it may cost."""

    partitions: list[PartitionEstimate]
    budget: Budget
    size: ModelSize | None


@dataclass
class _Sample:
    """What some files hold of a language pair: candidates looked at, dropped, some that are not; and reckoned from these."""

    pair: LanguagePair
    looked_at: int = 0
    dropped: int = 0
    texts: list[tuple[str, str]] = field(default_factory=list)
    files: int = 0
    num_bytes: int = 0
    rows: int = 0
    is_counted: bool = False


@dataclass(frozen=True)
class _Look:
    """What was seen of one file: its rows, whether they were counted to the end, and its first ones."""

    rows: int
    is_counted: bool
    tables: list[tuple[LanguagePair, pa.Table]]


@refuse_dead_storage()
def estimate_bitext(job: BitextJob, reporter: Reporter | None = None) -> BitextEstimate:
    """Look at a job's candidates and say what scoring them may take; nothing is written.

    Raises:
        JobError: the job, the model or its input is wrong.
    """
    reporter = reporter or QuietReporter()
    model = look_at_model(job, [Output(job.output)], reporter)
    if job.engine != "fake":
        check_weights(model)
    job = fit_max_length(job, model, reporter)
    groups: dict[str | None, list[Source]] = defaultdict(list)
    for source in choose_sources(list_sources(job, reporter), job.partitions):
        groups[source.pair.name if source.pair is not None else None].append(source)
    settings = make_encoder_settings(job, model, "")  # each direction has an instruction of its own
    encoder = PairEncoder(load_tokenizer_json(model), **settings)
    rules = job.rules()
    with ThreadPoolExecutor(THREADS) as pool:
        samples = list(chain.from_iterable(pool.map(lambda group: _look_at(group, job, rules), groups.values())))
    if not samples:
        raise InputError(f"{', '.join(job.input)}: not a single candidate; nothing to score")
    names = choose_partitions(job.partitions, [sample.pair.name for sample in samples])
    partitions = [
        _estimate_partition([sample for sample in samples if sample.pair.name == name], job, encoder) for name in names
    ]
    return BitextEstimate(partitions, *_count_all(partitions, job, model))


def _look_at(sources: list[Source], job: BitextJob, rules: CandidateFilters) -> list[_Sample]:
    """Return a sample of each language pair in some files."""
    positions = np.unique(np.linspace(0, len(sources) - 1, min(SAMPLED_FILES, len(sources))).astype(int))
    looks = [_look_at_file(sources[position], job, rules) for position in positions]
    samples: dict[str, _Sample] = {}
    for look in looks:
        for pair, table in look.tables:
            sample = samples.setdefault(pair.name, _Sample(pair))
            reasons = table[REASON_COLUMN]
            sample.looked_at += table.num_rows
            sample.dropped += table.num_rows - reasons.null_count
            kept = table.filter(reasons.is_null()).slice(0, SAMPLED_ROWS)
            sample.texts += zip(kept["source"].to_pylist(), kept["target"].to_pylist(), strict=True)
    all_bytes = sum(source.num_bytes for source in sources)
    seen_bytes = sum(sources[position].num_bytes for position in positions)
    rows = sum(look.rows for look in looks) * all_bytes / max(1, seen_bytes)
    is_counted = len(looks) == len(sources) and all(look.is_counted for look in looks)
    looked_at = sum(sample.looked_at for sample in samples.values())
    for sample in samples.values():
        share = sample.looked_at / looked_at
        sample.files, sample.num_bytes, sample.rows = len(sources), round(share * all_bytes), round(share * rows)
        sample.is_counted = is_counted and (len(samples) == 1 or rows == looked_at)
    return list(samples.values())


def _look_at_file(source: Source, job: BitextJob, rules: CandidateFilters) -> _Look:
    with refuse_broken(source.file.uri, source.kind):
        candidates = next((some for some in read_candidate_batches(source, job) if some.table.num_rows), None)
        tables = list(split_candidates(candidates, source, job, rules)) if candidates is not None else []
        rows, is_counted = _count_rows(source, job)
    return _Look(rows if tables else 0, is_counted, tables)


def _count_rows(source: Source, job: BitextJob) -> tuple[int, bool]:
    """Return how many rows a file may have, from its first lines, and whether these were all."""
    file = source.file
    with storage.open_input(file.uri, size=file.size, etag=file.etag) as raw:
        if source.kind == "parquet":
            return pq.ParquetFile(raw).metadata.num_rows, True
        compression = split_name(file.uri)[2]
        stream = decompress(raw, compression)
        most = COUNTED_PACKED if compression else COUNTED_LINES
        lines = lengths = 0
        for line in islice(stream, most):
            lines, lengths = lines + 1, lengths + len(line)
        header = int(source.kind in WITH_HEADER and not source.header)
        if lines < most:
            return max(0, lines - header), not may_span_lines(source.kind, job.dialect)
        read = raw.tell() if compression else lengths
    return max(lines, round(lines * file.size / read)) - header, False


def _estimate_partition(samples: list[_Sample], job: BitextJob, encoder: PairEncoder) -> PartitionEstimate:
    pair = samples[0].pair
    texts = [couple for sample in samples for couple in sample.texts]
    directions = job.to_scoring(pair, job.input[0], storage.join_uri(job.output, pair.folder)).directions()
    prompts = encoder.encode(*directions.turn(*([couple[side] for couple in texts] for side in (0, 1))))
    scorable = prompts.scorable
    num_tokens = prompts.num_tokens[scorable]
    shared = count_shared(prompts.ids_at(scorable), prompts.head_tokens[scorable])
    rows = sum(sample.rows for sample in samples)
    return PartitionEstimate(
        name=pair.name,
        files=sum(sample.files for sample in samples),
        num_bytes=sum(sample.num_bytes for sample in samples),
        rows=rows,
        pending_rows=max(0, rows - _count_committed(job, pair)),
        is_counted=all(sample.is_counted for sample in samples),
        dropped_share=sum(sample.dropped for sample in samples) / sum(sample.looked_at for sample in samples),
        num_tokens=num_tokens,
        truncated=int((prompts.truncated_tokens[scorable] > 0).sum()),
        cached_share=shared / max(1, int(num_tokens.sum())),
    )


def _count_committed(job: BitextJob, pair: LanguagePair) -> int:
    output = Output(storage.join_uri(job.output, pair.folder))
    stored = None if job.overwrite else output.load_plan()
    if stored is None:
        return 0
    return stored[0].num_rows - sum(unit.num_rows for unit in list_pending(stored[0], output.list_parts()))


def _count_all(
    partitions: list[PartitionEstimate], job: BitextJob, model: RerankerModel
) -> tuple[Budget, ModelSize | None]:
    """Return the budget of all language pairs together, and the size of the model."""
    num_directions = 2 if job.direction == "both" else 1
    tokens, pending_tokens = (
        sum(partition.count_tokens(getattr(partition, rows), num_directions) for partition in partitions)
        for rows in ("rows", "pending_rows")
    )
    manifests = [
        Output(storage.join_uri(job.output, f"lang_pair={partition.name}")).load_manifest() for partition in partitions
    ]
    newest = _join_newest(manifests)
    weights = np.array([partition.count_tokens(partition.rows, num_directions) for partition in partitions])
    cached = float(weights @ np.array([partition.cached_share for partition in partitions]) / max(1.0, weights.sum()))
    num_tokens = np.concatenate([partition.num_tokens for partition in partitions])
    rate, rate_source = find_rate(job, newest, num_tokens)
    rows = sum(partition.rows for partition in partitions)
    dropped = sum(partition.dropped_share * partition.rows for partition in partitions) / max(1, rows)

    def count_units(rows: str) -> int:
        return sum(math.ceil(getattr(item, rows) / (job.unit_rows or share_out(item.rows))) for item in partitions)

    estimate = Estimate(
        shards=sum(partition.files for partition in partitions),
        units=count_units("rows"),
        rows=rows,
        num_bytes=sum(partition.num_bytes for partition in partitions),
        pending_units=count_units("pending_rows"),
        pending_rows=sum(partition.pending_rows for partition in partitions),
        unreadable=[],
        num_tokens=num_tokens,
        truncated=sum(partition.truncated for partition in partitions),
        errors=round(len(num_tokens) * dropped / (1 - dropped)) if dropped < 1 else 0,
        pairs_per_row=num_directions * (1 - dropped),
        actors=job.actor_range[1] if job.actor_range else 1,
        pairs_per_second=rate,
        rate_source=rate_source,
        output=job.output,
        cached_share=cached,
        is_counted=all(partition.is_counted for partition in partitions),
    )
    size = read_model_size(model)
    return count_budget(job, estimate, newest, size, round(tokens), round(pending_tokens)), size


def _join_newest(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the newest run of some language pairs as that of one engine, which they shared; empty where none scored."""
    runs = [
        (manifest, run)
        for manifest in manifests
        for run in manifest.get("runs", [])
        if run.get("tokens") and run["engine_seconds"]
    ]
    if not runs:
        return {}
    newest = max(str(run["run"]) for _, run in runs)
    newest_runs = [run for _, run in runs if run["run"] == newest]
    seconds = sum(float(run["engine_seconds"]) for run in newest_runs)
    joined = {
        "run": newest,
        "tokens": sum(run["tokens"] for run in newest_runs),
        "scoring_seconds": seconds,
        "pairs_per_second": sum(run["pairs"] for run in newest_runs) / seconds,
        "actors": 1,
    }
    return {**next(manifest for manifest, run in runs if run["run"] == newest), "runs": [joined]}


def print_bitext_estimate(estimate: BitextEstimate) -> None:
    """Print a dry run's findings for a person."""
    console = PlainConsole()
    table = Table(title="Language pairs", title_justify="left")
    for name in ("language pair", "files", "candidates", "to score", "dropped", "tokens a prompt"):
        table.add_column(name, justify="left" if name == "language pair" else "right")
    for partition in estimate.partitions:
        table.add_row(
            partition.name,
            f"{partition.files:,}",
            f"{'' if partition.is_counted else '~'}{partition.rows:,}",
            f"{'' if partition.is_counted else '~'}{partition.pending_rows:,}",
            f"{100 * partition.dropped_share:.1f} %",
            f"{partition.num_tokens.mean():,.0f}" if len(partition.num_tokens) else "-",
        )
    console.print(table)
    if any(not partition.is_counted for partition in estimate.partitions):
        console.print("~ from the sizes of files and their first lines")
    print_estimate(estimate.budget.estimate)
    print_budget(estimate.budget, estimate.size)
