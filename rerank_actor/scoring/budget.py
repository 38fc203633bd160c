"""The budget: GPU hours, wall time and dollars of a job before it runs, from a sample of its prompts and a speed.

Takes an estimate and a price, gives a `Budget` that prints and is stored beside the plan, so that status and report can
compare. The speed is the one given, one that an earlier run measured, or one assumed, and says which: from the GPU's
float16 figure, the share of it that prefill is assumed to reach, and operations a token (twice the weights that a token
meets, and attention to the tokens before it). An assumption is off by a factor of two easily; a measured speed always wins.
"""

import json
import secrets
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.table import Table

from rerank_actor import storage
from rerank_actor.engines.model import RerankerModel
from rerank_actor.engines.options import BUILT_IN_TOKENIZER
from rerank_actor.errors import OutputConflictError
from rerank_actor.job import EngineJob, ScoreJob
from rerank_actor.outputs.price import (
    GpuType,
    Price,
    find_price,
    format_dollars,
    load_gpu_types,
    look_up_gpu_type,
    require_gpu_type,
)
from rerank_actor.outputs.status import count_actors
from rerank_actor.progress import PlainConsole, Reporter, format_seconds
from rerank_actor.runtime.pool import join_gpus
from rerank_actor.scoring.estimate import Estimate, estimate_prepared
from rerank_actor.scoring.preflight import PreparedJob, is_up_to_date, prepare_job
from rerank_actor.storage.lease import Lease

START_SECONDS = 120.0  # of an engine on a GPU, where none has been started yet
SHOWN_ACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SHORTEST_SECONDS = 600.0  # more actors than this takes are not shown
BYTES_PER_WEIGHT = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 2}
MEMORY_SHARE = 0.8  # of a GPU's memory that weights may fill at most; the rest is for activations and the cache
ASSUMED_SHARE = 0.4  # of the GPU's float16 operations; small models reach less, large ones more


@dataclass(frozen=True)
class ModelSize:
    """What a model costs to run.

    Attributes:
        active_weights: weights that each token meets, embeddings left out.
        weights: all of them.
        attention: operations of a token for each token before it.
    """

    active_weights: float
    weights: float
    attention: float

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Self | None:
        """Return the size that a configuration tells; None where it tells too little."""
        try:
            layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
            heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
            vocabulary = int(config.get("vocab_size") or 0)
        except (KeyError, TypeError, ValueError):
            return None
        width = int(config.get("head_dim") or hidden // heads)
        shared_heads = int(config.get("num_key_value_heads") or heads)
        matrices = 3 if "num_key_value_heads" in config else 2  # of the feed-forward layer: with a gate, or without
        layer = hidden * (2 * heads + 2 * shared_heads) * width + matrices * hidden * inner
        return cls(layers * layer, layers * layer + vocabulary * hidden, 4.0 * layers * heads * width)

    def count_operations(self, num_tokens: np.ndarray) -> float:
        """Return the operations for a token of prompts of these lengths, on average."""
        lengths = num_tokens.astype(np.float64)
        before = float((lengths**2).sum() / lengths.sum()) / 2 if len(lengths) and lengths.sum() else 0.0
        return 2 * self.active_weights + self.attention * before


def read_model_size(model: RerankerModel) -> ModelSize | None:
    """Return the size of a model, None for one without weights or with an unknown configuration."""
    if model.folder == BUILT_IN_TOKENIZER:
        return None
    try:
        config = json.loads((Path(model.folder) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return ModelSize.of_config(config) if isinstance(config, dict) else None


def assume_speed(size: ModelSize, gpu: GpuType, num_tokens: np.ndarray, cached_share: float) -> float:
    """Return prompt tokens a second on one GPU.

    Args:
        size: of the model.
        gpu: the GPU.
        num_tokens: lengths of the prompts.
        cached_share: of their tokens, which the prefix cache has and nobody computes.
    """
    operations = size.count_operations(num_tokens) * (1 - cached_share)
    return ASSUMED_SHARE * gpu.tflops * 1e12 / operations


def count_filled(size: ModelSize, bytes_per_weight: int, gpu: GpuType, gpus: float) -> float:
    """Return the share of a GPU's memory that a model's weights fill, spread over so many of them."""
    return size.weights * bytes_per_weight / (gpu.memory_gib * 2**30 * max(1.0, gpus))


@dataclass(frozen=True)
class Speed:
    """Prompt tokens a second of one actor, and where the figure comes from."""

    tokens_per_second: float
    origin: str


@dataclass(frozen=True)
class Budget:
    """What a job may cost.

    Attributes:
        estimate: the sample and what is planned.
        tokens, pending_tokens: prompt tokens of all planned rows, and of those not committed yet.
        cached_share: of the tokens of the sample, what the prefix cache can have.
        speed: of one actor; None where nobody knows.
        gpus_per_actor: GPUs that an actor takes; 0 on CPUs.
        price: of a GPU hour; None where it is not known.
        start_seconds: of an engine.
        actors: how many are asked for.
        bytes_per_weight: in the dtype that is asked for.
        tokens_of_all: prompt tokens if `--where` held for all rows; None without it.
        made: when, in seconds since 1970.
    """

    estimate: Estimate
    tokens: int
    pending_tokens: int
    cached_share: float
    speed: Speed | None
    gpus_per_actor: float
    price: Price | None
    start_seconds: float
    actors: int
    bytes_per_weight: int = 2
    tokens_of_all: int | None = None
    made: float = field(default_factory=time.time)

    def count_hours(self, actors: int, tokens: int | None = None, speed: float | None = None) -> float | None:
        """Return the wall hours of some actors, the start of their engines included."""
        tokens = self.pending_tokens if tokens is None else tokens
        if speed is None:
            if self.speed is None:
                return None
            speed = self.speed.tokens_per_second
        return (self.start_seconds + tokens / (speed * actors)) / 3600 if tokens else 0.0

    def to_record(self) -> dict[str, Any]:
        """Return the record that is stored: the figures for all planned rows, whatever is committed already."""
        hours = self.count_hours(self.actors, self.tokens)
        gpu_hours = hours * self.actors * self.gpus_per_actor if hours is not None else None
        return {
            "made": self.made,
            "rows": self.estimate.rows,
            "sampled_pairs": len(self.estimate.num_tokens),
            "tokens": self.tokens,
            **({"tokens_of_all": self.tokens_of_all} if self.tokens_of_all is not None else {}),
            "cached_share": round(self.cached_share, 4),
            "tokens_per_second": self.speed.tokens_per_second if self.speed else None,
            "speed_origin": self.speed.origin if self.speed else None,
            "actors": self.actors,
            "gpus_per_actor": self.gpus_per_actor,
            "wall_hours": hours,
            "gpu_hours": gpu_hours,
            "price": self.price.dollars if self.price else None,
            "price_origin": self.price.origin if self.price else None,
            "cost": gpu_hours * self.price.dollars if gpu_hours is not None and self.price else None,
        }


def make_budget(job: ScoreJob, reporter: Reporter) -> tuple[PreparedJob, Budget, ModelSize | None]:
    """Plan a job, sample it and count what it may cost; nothing is written.

    Raises:
        JobError, OutputConflictError: as a real run would.
    """
    prepared = prepare_job(job, reporter)
    estimate = estimate_prepared(prepared, reporter)
    size = read_model_size(prepared.model)
    tokens = [_count_tokens(estimate, rows) for rows in (estimate.rows, estimate.pending_rows)]
    budget = count_budget(job, estimate, prepared.output.load_manifest(), size, tokens[0], tokens[1])
    if prepared.job.where is not None:
        whole = replace(prepared, job=prepared.job.model_copy(update={"where": None}))
        budget = replace(budget, tokens_of_all=_count_tokens(estimate_prepared(whole), estimate.rows))
    return prepared, budget, size


def _count_tokens(estimate: Estimate, rows: int) -> int:
    mean = float(estimate.num_tokens.mean()) * estimate.scored_share if len(estimate.num_tokens) else 0.0
    return round(rows * estimate.pairs_per_row * mean)


def count_budget(
    job: EngineJob,
    estimate: Estimate,
    manifest: dict[str, Any],
    size: ModelSize | None,
    tokens: int,
    pending_tokens: int,
) -> Budget:
    """Return the budget of a job whose prompts hold so many tokens.

    Args:
        job: names GPUs, actors and speeds.
        estimate: the sample.
        manifest: of an earlier run, whose measured speed counts; empty where there was none.
        size: of the model, None where it is not known.
        tokens: of all prompts.
        pending_tokens: of prompts not scored yet.
    """
    gpus = join_gpus(float(job.gpus_per_actor if job.gpus_per_actor is not None else 1), job.group_size)
    engines = manifest.get("engines", [])
    starts = [float(engine["start_seconds"]) for engine in engines if engine.get("start_seconds")]
    return Budget(
        estimate=estimate,
        tokens=tokens,
        pending_tokens=pending_tokens,
        cached_share=estimate.cached_share,
        speed=_find_speed(job, manifest, size, estimate, gpus),
        gpus_per_actor=gpus,
        price=find_price(job.gpu_type, job.gpu_price),
        start_seconds=float(np.median(starts)) if starts else START_SECONDS,
        actors=job.actor_range[1] if job.actor_range else 1,
        bytes_per_weight=BYTES_PER_WEIGHT[job.dtype],
    )


def _find_speed(
    job: EngineJob, manifest: dict[str, Any], size: ModelSize | None, estimate: Estimate, gpus: float
) -> Speed | None:
    if job.tokens_per_second is not None:
        return Speed(job.tokens_per_second, "given")
    lengths = estimate.num_tokens
    if job.pairs_per_second is not None and len(lengths):
        return Speed(job.pairs_per_second * float(lengths.mean()), "given in pairs a second")
    gpu = require_gpu_type(job.gpu_type) if job.gpu_type else None
    for run in reversed(manifest.get("runs", [])):
        actors = count_actors(run)
        if run.get("tokens") and run.get("scoring_seconds") and actors:
            speed = float(run["tokens"]) / float(run["scoring_seconds"]) / actors
            return _convert(Speed(speed, f"measured in run {run['run']}"), manifest.get("job") or {}, gpu)
    if gpu is None or size is None or not len(lengths):
        return None
    speed = assume_speed(size, gpu, lengths, estimate.cached_share) * (gpus or 1)
    return Speed(speed, f"assumed: {100 * ASSUMED_SHARE:.0f} % of the {gpu.tflops:,.0f} TFLOPS of {gpu.name}")


def _convert(speed: Speed, measured_in: dict[str, Any], gpu: GpuType | None) -> Speed:
    """Return a measured speed as it may be on another GPU, by the two GPUs' figures."""
    before = look_up_gpu_type(str(measured_in.get("gpu_type") or ""))
    if gpu is None or before is None or before == gpu:
        return speed
    ratio = gpu.tflops / before.tflops
    origin = f"{speed.origin} on {before.name}, times {ratio:.2f} for {gpu.name}"
    return Speed(speed.tokens_per_second * ratio, origin)


def store_budget(prepared: PreparedJob, budget: Budget, reporter: Reporter) -> bool:
    """Write plan and budget into the output, unless a run is at work there; return whether they were written.

    Raises:
        JobError, StorageError: the output cannot be written to.
    """
    lease = Lease(prepared.output.lease_uri, prepared.output.uri, f"plan-{secrets.token_hex(3)}")
    try:
        lease.acquire(reporter.info)
    except OutputConflictError as error:
        reporter.info(f"the plan was not stored: {error}")
        return False
    try:
        if not is_up_to_date(prepared):
            reporter.info("the plan was not stored: another run was at the output since it was made; plan again")
            return False
        if prepared.plan != prepared.earlier:
            storage.write_bytes(prepared.output.find_plan_uri(), prepared.plan.to_bytes(prepared.settings))
        prepared.output.write_json("estimate.json", budget.to_record())
    finally:
        lease.release()
    return True


def print_budget(budget: Budget, size: ModelSize | None) -> None:
    """Print a budget for a person: by number of actors, and by GPU."""
    console = PlainConsole()
    table = Table(title="Budget", show_header=False, title_justify="left")
    table.add_row("prompt tokens", f"{budget.pending_tokens:,} to score, {budget.tokens:,} in all")
    if budget.tokens_of_all is not None:
        table.add_row("without --where", _describe_all(budget))
    table.add_row("prefix cache", f"can have {100 * budget.cached_share:.1f} % of them, by the sample")
    if budget.speed is None:
        table.add_row("speed", "unknown: give --gpu-type, or --tokens-per-second of one actor")
    else:
        speed = budget.speed
        table.add_row("speed", f"{speed.tokens_per_second:,.0f} tokens/s of an actor ({speed.origin})")
    price = f"{format_dollars(budget.price.dollars)} ({budget.price.origin})" if budget.price else None
    table.add_row("GPU hour", price or "price unknown: give --gpu-type or --gpu-price")
    table.add_row("engine start", format_seconds(budget.start_seconds))
    console.print(table)
    if budget.speed is not None:
        console.print(_tabulate_actors(budget))
    _print_gpus(console, budget, size)


def _describe_all(budget: Budget) -> str:
    """Return what scoring all rows would take, beside those for which `--where` holds."""
    tokens = budget.tokens_of_all or 0
    words = f"{tokens:,} prompt tokens"
    words += f", {tokens / budget.tokens:,.1f} times as many" if budget.tokens else ""
    hours, some = budget.count_hours(budget.actors, tokens), budget.count_hours(budget.actors, budget.tokens)
    if hours is None or some is None:
        return words
    words += f"; {format_seconds(hours * 3600)} instead of {format_seconds(some * 3600)} on {budget.actors:,} actor(s)"
    if budget.price is not None:
        dollars = [one * budget.actors * budget.gpus_per_actor * budget.price.dollars for one in (hours, some)]
        words += f", {format_dollars(dollars[0])} instead of {format_dollars(dollars[1])}"
    return words


def _tabulate_actors(budget: Budget) -> Table:
    table = Table(title="By number of actors", title_justify="left")
    for name in ("actors", "wall time", "GPU hours", "cost"):
        table.add_column(name, justify="right")
    wanted = sorted({*SHOWN_ACTORS, budget.actors})
    for actors in wanted:
        hours = budget.count_hours(actors) or 0.0
        if actors > budget.actors and hours * 3600 < SHORTEST_SECONDS:
            break
        if actors > max(budget.actors, budget.estimate.pending_units):
            break  # a unit is scored by one actor
        gpu_hours = hours * actors * budget.gpus_per_actor
        cost = format_dollars(gpu_hours * budget.price.dollars) if budget.price else "-"
        mark = " *" if actors == budget.actors else ""
        table.add_row(f"{actors:,}{mark}", format_seconds(hours * 3600), f"{gpu_hours:,.2f}", cost)
    return table


def _print_gpus(console: PlainConsole, budget: Budget, size: ModelSize | None) -> None:
    """Print what other GPUs would cost, by the table's figures, where the model's size is known."""
    lengths = budget.estimate.num_tokens
    if size is None or not len(lengths):
        return
    table = Table(
        title=f"By GPU, at {100 * ASSUMED_SHARE:.0f} % of its TFLOPS (assumed) and {budget.actors:,} actor(s)",
        title_justify="left",
    )
    for name in ("GPU", "weights", "tokens/s", "wall time", "GPU hours", "$/h", "cost"):
        table.add_column(name, justify="left" if name == "GPU" else "right")
    gpus = budget.gpus_per_actor or 1
    for kind in load_gpu_types().values():
        filled = count_filled(size, budget.bytes_per_weight, kind, gpus)
        memory = f"{100 * filled:.0f} % of {kind.memory_gib:g} GiB"
        if filled > MEMORY_SHARE:
            table.add_row(kind.name, memory, "do not fit", "", "", f"{kind.price:.2f}", "")
            continue
        speed = assume_speed(size, kind, lengths, budget.cached_share) * gpus
        hours = budget.count_hours(budget.actors, speed=speed) or 0.0
        gpu_hours = hours * budget.actors * gpus
        table.add_row(
            kind.name,
            memory,
            f"{speed:,.0f}",
            format_seconds(hours * 3600),
            f"{gpu_hours:,.2f}",
            f"{kind.price:.2f}",
            format_dollars(gpu_hours * kind.price),
        )
    console.print(table)


def print_gpu_types() -> None:
    """Print the table of GPU types."""
    table = Table(title="GPU types", title_justify="left", box=None, pad_edge=False)
    for name in ("GPU", "GiB", "TFLOPS", "$/h", "instance", "source of the price"):
        table.add_column(name, no_wrap=True)
    for kind in load_gpu_types().values():
        numbers = f"{kind.memory_gib:g}", f"{kind.tflops:g}", f"{kind.price:.4g}"
        table.add_row(kind.name, *numbers, kind.instance, f"{kind.source}, {kind.date:%Y-%m-%d}")
    PlainConsole().print(table)
