"""The dry run: what a job would do and how long it might take, from the plan and a sample of its rows.

Reads a few units, tokenizes some of their pairs, counts. Starts neither Ray nor an engine and writes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from rich.table import Table

from rerank_actor import storage
from rerank_actor.engines.model import load_tokenizer_json
from rerank_actor.inputs.rows import strip_location
from rerank_actor.inputs.where.rows import NOT_SELECTED
from rerank_actor.job import RunSettings, ScoreJob
from rerank_actor.outputs.folder import list_pending
from rerank_actor.progress import PlainConsole, Reporter, format_seconds
from rerank_actor.scoring.lookups import sample_lookups
from rerank_actor.scoring.preflight import PreparedJob, make_prepare_spec, prepare_job
from rerank_actor.scoring.prepare import prepare_unit
from rerank_actor.scoring.unit import UnitWork

SAMPLED_UNITS = 8
SAMPLED_ROWS = 250  # of each sampled unit
SHOWN_REASONS = 10
CACHE_BLOCK = 64  # tokens that the prefix cache keeps or drops together
BUCKETS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True)
class Estimate:
    """What a dry run finds.

    Attributes:
        shards, units, rows, num_bytes: of the plan.
        pending_units, pending_rows: those not committed yet.
        unreadable: shards that cannot be read.
        left_out: what else lies in the input, in words.
        num_tokens: int32 [num_sampled], prompt tokens of the sampled pairs that can be scored.
        truncated: of the sampled pairs, how many would lose tokens of the document.
        errors: sampled pairs that would get an error.
        passed: rows that `--where` leaves as they are, of `sampled_rows`.
        reasons: how many of them for which reason, and one of them in words.
        cached_share: of the sampled tokens, those that pairs before them in their unit have in common with them.
        pairs_per_row: 1, or the mean length of the document lists.
        actors: number the estimate is for.
        pairs_per_second: of one actor, with where it comes from; None when nobody knows.
        is_counted: whether rows are counted; else they follow from sizes.
    """

    shards: int
    units: int
    rows: int
    num_bytes: int
    pending_units: int
    pending_rows: int
    unreadable: list[str]
    num_tokens: np.ndarray
    truncated: int
    errors: int
    pairs_per_row: float
    actors: int
    pairs_per_second: float | None
    rate_source: str
    output: str
    cached_share: float = 0.0
    left_out: tuple[str, ...] = ()
    is_counted: bool = True
    reasons: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    passed: int = 0
    passed_pairs: int = 0  # of those, what counts as a pair, which a row without a list does
    sampled_rows: int = 0

    @property
    def scored_share(self) -> float:
        """Share of the sampled pairs that can be scored."""
        sampled = len(self.num_tokens) + self.errors + self.passed_pairs
        return len(self.num_tokens) / sampled if sampled else 1.0

    def describe_unscorable(self) -> str | None:
        """Return why nothing of the sample can be scored, None where something can or nothing was sampled."""
        if len(self.num_tokens):
            return None
        if not self.reasons:
            return f"nothing of the input can be read: {self.unreadable[0]}" if self.unreadable else None
        reason, (count, example) = max(self.reasons.items(), key=lambda item: item[1][0])
        return f"none of {self.errors:,} sampled pairs can be scored, {count:,} of them because: {reason} ({example})"

    @property
    def hours(self) -> float | None:
        """Expected hours for what is pending."""
        if self.pairs_per_second is None:
            return None
        return self.pending_rows * self.pairs_per_row / (self.pairs_per_second * self.actors) / 3600


def estimate_job(job: ScoreJob, reporter: Reporter) -> Estimate:
    """Plan a job and sample it.

    Raises:
        JobError, OutputConflictError: as a real run would.
    """
    return estimate_prepared(prepare_job(job, reporter), reporter)


def estimate_prepared(prepared: PreparedJob, reporter: Reporter | None = None) -> Estimate:
    """Sample a job that is prepared."""
    job = prepared.job
    units = list(prepared.plan.units())
    pending = list_pending(prepared.plan, {} if job.overwrite else prepared.output.list_parts())
    readable = [unit for unit in units if unit.num_rows]
    tokenizer_json = load_tokenizer_json(prepared.model)
    num_tokens: list[np.ndarray] = []
    unreadable = [shard.error for shard in prepared.plan.shards if shard.error]
    reasons: dict[str, tuple[int, str]] = {}
    truncated = sampled_rows = sampled_pairs = cached_tokens = passed = passed_pairs = 0
    with sample_lookups(prepared) as lookups:
        if lookups is None and reporter is not None:
            reporter.info("queries and corpus are too large for a dry run to read; tokens of prompts are not known")
        readable = readable if lookups is not None else []
        spec = replace(make_prepare_spec(prepared, storage.capture_environment(), lookups or ()), dedupes=False)
        for index in np.unique(np.linspace(0, len(readable) - 1, min(SAMPLED_UNITS, len(readable))).astype(int)):
            head = replace(readable[index], num_rows=min(readable[index].num_rows, SAMPLED_ROWS))
            work = prepare_unit(head, spec, tokenizer_json)
            if work.failure is not None:
                unreadable.append(work.failure)
                continue
            faults = _list_faults(work)
            left_as_is = sum(reason == NOT_SELECTED for _, reason in faults)
            passed, passed_pairs = passed + left_as_is, passed_pairs + left_as_is * (work.list_lengths is None)
            for row, reason in faults if not left_as_is else [one for one in faults if one[1] != NOT_SELECTED]:
                count, example = reasons.get(reason, (0, f"as in row {head.row_start + row:,} of {head.uri}, from 0"))
                reasons[reason] = count + 1, example
            scorable = work.prompts.scorable
            num_tokens.append(work.prompts.num_tokens[scorable])
            cached_tokens += count_shared(work.prompts.ids_at(scorable), work.prompts.head_tokens[scorable])
            truncated += int((work.prompts.truncated_tokens[scorable] > 0).sum())
            sampled_pairs += len(work.prompts)
            sampled_rows += work.unit.num_rows
    lengths = np.concatenate(num_tokens) if num_tokens else np.zeros(0, np.int32)
    rate, source = find_rate(job, prepared.output.load_manifest(), lengths)
    actors = job.actor_range[1] if job.actor_range else 1
    return Estimate(
        shards=len(prepared.plan.shards),
        units=len(units),
        rows=prepared.plan.num_rows,
        num_bytes=prepared.plan.num_bytes,
        pending_units=len(pending),
        pending_rows=sum(unit.num_rows for unit in pending),
        unreadable=unreadable,
        left_out=tuple(item.describe() for item in prepared.change.left_out),
        num_tokens=lengths,
        truncated=truncated,
        errors=sum(count for count, _ in reasons.values()),
        passed=passed,
        passed_pairs=passed_pairs,
        sampled_rows=sampled_rows,
        reasons=reasons,
        pairs_per_row=sampled_pairs / sampled_rows if sampled_rows else 1.0,
        actors=actors,
        pairs_per_second=rate,
        rate_source=source,
        output=prepared.output.uri,
        cached_share=cached_tokens / max(1, sum(int(counts.sum()) for counts in num_tokens)),
    )


def _list_faults(work: UnitWork) -> list[tuple[int, str]]:
    """Return row and reason of each pair that would get an error; a row without pairs counts as one."""
    row_faults, pair_faults = work.row_errors.to_pylist(), work.prompts.errors.to_pylist()
    lengths = [1] * len(row_faults) if work.list_lengths is None else np.maximum(work.list_lengths, 0).tolist()
    rows = np.repeat(np.arange(len(row_faults)), lengths).tolist()
    faults = [(row, row_faults[row] or fault) for row, fault in zip(rows, pair_faults, strict=True)]
    faults += [(row, fault) for row, fault in enumerate(row_faults) if not lengths[row]]
    return [(row, strip_location(fault)) for row, fault in faults if fault is not None]


def count_shared(prompts: list[np.ndarray], head_tokens: np.ndarray) -> int:
    """Return how many tokens at the heads of a unit's prompts a prefix cache can have, from the prompts before."""
    seen: set[bytes] = set()
    shared = 0
    for ids, head in zip(prompts, head_tokens.tolist(), strict=True):
        for end in range(CACHE_BLOCK, head + 1, CACHE_BLOCK):
            block = ids[:end].tobytes()
            shared += CACHE_BLOCK if block in seen else 0
            seen.add(block)
    return shared


def find_rate(job: RunSettings, manifest: dict[str, object], num_tokens: np.ndarray) -> tuple[float | None, str]:
    """Return pairs a second of one actor, and where the figure comes from; None where nobody knows.

    Args:
        job: may give a speed.
        manifest: of earlier runs.
        num_tokens: of prompts, on whose mean a speed in tokens is shared out.
    """
    tokens_per_second = getattr(job, "tokens_per_second", None)  # not of jobs of texts
    if tokens_per_second is not None and len(num_tokens):
        return tokens_per_second / float(num_tokens.mean()), "given in tokens a second"
    if job.pairs_per_second is not None:
        return job.pairs_per_second, "given"
    runs = manifest.get("runs")
    for run in reversed(runs if isinstance(runs, list) else []):
        if run.get("pairs_per_second") and run.get("actors"):
            return float(run["pairs_per_second"]) / int(run["actors"]), f"measured in run {run['run']}"
    return None, "unknown"


def print_estimate(estimate: Estimate) -> None:
    """Print a dry run's findings for a person."""
    console = PlainConsole()
    table = Table(title="Plan", show_header=False, title_justify="left")
    sampled = len(estimate.num_tokens)
    rows = [
        ("output", estimate.output),
        (
            "shards",
            f"{estimate.shards:,}" + (f" ({len(estimate.unreadable)} cannot be read)" if estimate.unreadable else ""),
        ),
        ("units", f"{estimate.units:,} ({estimate.pending_units:,} to score)"),
        ("rows", f"{'' if estimate.is_counted else 'about '}{estimate.rows:,} ({estimate.pending_rows:,} to score)"),
        ("bytes", f"{estimate.num_bytes:,}"),
    ]
    if sampled:
        mean, high = estimate.num_tokens.mean(), np.percentile(estimate.num_tokens, 99)
        rows.append(
            (
                "prompt tokens",
                f"mean {mean:,.0f}, 99 % up to {high:,.0f}, most {estimate.num_tokens.max():,} (sample of {sampled:,} pairs)",
            )
        )
        rows.append(("truncated", f"{100 * estimate.truncated / sampled:.1f} % of the sampled pairs"))
        if estimate.pairs_per_row != 1:
            rows.append(("pairs", f"{estimate.pairs_per_row:.1f} a row"))
    if estimate.passed:
        share = 1 - estimate.passed / estimate.sampled_rows
        rows.append(("--where", f"holds for {100 * share:.1f} % of {estimate.sampled_rows:,} sampled rows"))
    if sampled or estimate.errors:
        rows.append(("errors", f"{100 * estimate.errors / (sampled + estimate.errors):.1f} % of the sampled pairs"))
    if estimate.hours is None:
        rows.append(("expected time", "unknown: give --tokens-per-second, the speed of one actor"))
    else:
        seconds = estimate.hours * 3600
        rows.append(
            (
                "expected time",
                f"{estimate.hours:,.2f} h ({format_seconds(seconds)}) on {estimate.actors} actor(s) at "
                f"{estimate.pairs_per_second:,.1f} pairs/s each ({estimate.rate_source})",
            )
        )
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    for reason, (count, example) in sorted(estimate.reasons.items(), key=lambda item: -item[1][0])[:SHOWN_REASONS]:
        console.print(f"error in {100 * count / (sampled + estimate.errors):.1f} %: {reason} ({example})")
    for problem in estimate.unreadable:
        console.print(f"unreadable: {problem}")
    for item in estimate.left_out:
        console.print(f"left out: {item}")
    if sampled:
        console.print(_make_histogram(estimate.num_tokens))


def _make_histogram(num_tokens: np.ndarray) -> Table:
    table = Table(title="Prompt tokens, sampled pairs", title_justify="left")
    table.add_column("up to", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    edges = [0, *BUCKETS, 10**9]
    counts, _ = np.histogram(num_tokens, bins=np.array(edges) + 0.5)
    filled = np.flatnonzero(counts)
    for index in range(filled[0], filled[-1] + 1):
        share = counts[index] / len(num_tokens)
        label = f"{edges[index + 1]:,}" if index + 1 < len(edges) - 1 else "more"
        table.add_row(label, f"{100 * share:.1f} %", "#" * round(40 * share))
    return table
