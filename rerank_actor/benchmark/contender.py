"""A contender of the benchmark: what each is given and gives, and the two that are ours, the whole job and its engine.

A contender is made once and then does rounds over the same pairs. Knows nothing of what users would run instead.
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from rerank_actor.benchmark.fidelity import compute_held_out
from rerank_actor.benchmark.meter import Meter
from rerank_actor.benchmark.ndcg import load_ranking_queries
from rerank_actor.engines.base import EngineKind
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION

STEADY_FROM = 0.25  # share of a job's pairs that pass before it is measured: engines start, queues fill
ROWS_PER_CALL = 4096


@dataclass(frozen=True)
class Setting:
    """What every contender is given.

    Attributes:
        model: folder of the weights.
        shards: folder of the pairs as Parquet.
        folder: where outputs may go.
        dtype, max_length: as for the job.
        num_pairs: pairs of a round; the first of the shards.
        unit_rows: rows of the job's units.
        engine_args: further arguments of the job's engine.
        on_gpu: whether there is one.
        gpus_per_actor: of the job; below one, as many actors as one GPU holds then. None for its own default.
        job_engine: of the job; the fake one rehearses a round.
        held_out: where the engine alone puts its logits of the held-out pairs (.npy); None where they are not wanted.
        worker_module: what runs a contender in a process of its own.
    """

    model: str
    shards: str
    folder: str
    dtype: str
    max_length: int
    num_pairs: int
    unit_rows: int
    engine_args: dict[str, Any] = field(default_factory=dict)
    on_gpu: bool = False
    gpus_per_actor: float | None = None
    job_engine: EngineKind = "vllm"
    held_out: str | None = None
    worker_module: str = "rerank_actor.benchmark.contenders"


@dataclass(frozen=True)
class Round:
    """What one round took.

    Attributes:
        pairs, tokens: scored in the time that is counted; tokens are of whole prompts.
        seconds: the time that is counted, without starting an engine.
        cpu_seconds: of all processes in that time.
        peak_bytes: memory of all processes, at most.
        cached_share: of the prompt tokens, those that a prefix cache had; None where the contender does not tell.
        busy_share: of the time, that in which the engine was at work; None where the contender does not tell.
    """

    pairs: int
    tokens: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    cached_share: float | None = None
    busy_share: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the round as JSON values, with its rates."""
        return {
            **asdict(self),
            "pairs_per_second": self.pairs / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "cpu_seconds_per_pair": self.cpu_seconds / self.pairs,
        }


class Contender(Protocol):
    """One way to score pairs.

    Attributes:
        warms_up: whether its first round is slower than the others, and is not to count.
    """

    warms_up: bool

    def run_round(self) -> Round:
        """Score the pairs once."""


def read_pairs(setting: Setting) -> tuple[list[str], list[str]]:
    """Return the first queries and documents of the shards."""
    table = pq.read_table(sorted(Path(setting.shards).glob("*.parquet"))).slice(0, setting.num_pairs)
    return table["query"].to_pylist(), table["document"].to_pylist()


def make_encoder(setting: Setting) -> Any:
    """Return the encoder of the job's prompts."""
    from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
    from rerank_actor.engines.prompts import PairEncoder

    model = load_reranker_model(setting.model)
    return PairEncoder(
        load_tokenizer_json(model),
        template=model.description.template,
        instruction=DEFAULT_INSTRUCTION,
        max_length=setting.max_length,
    )


class WholeJob:
    """The job, from shards to committed parts. Counted is the time between commits, from the first quarter to the last."""

    warms_up = False

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._numbers = itertools.count()

    def run_round(self) -> Round:
        """Run the job into a new output."""
        from rerank_actor.job import ScoreJob
        from rerank_actor.scoring.run import run_job

        setting = self._setting
        output = Path(setting.folder) / f"output-{next(self._numbers)}"
        job = ScoreJob(
            input=[setting.shards],
            output=str(output),
            model=setting.model,
            dtype=setting.dtype,  # type: ignore[arg-type]
            max_length=setting.max_length,
            limit=setting.num_pairs,
            unit_rows=setting.unit_rows,
            engine=setting.job_engine,
            engine_args=setting.engine_args,
            gpus_per_actor=setting.gpus_per_actor,
        ).normalized()
        with Meter() as meter:
            result = run_job(job)
        if result.status != "complete" or result.totals.scored != setting.num_pairs:
            raise RuntimeError(f"the job scored {result.totals.scored} of {setting.num_pairs} pairs")
        table = pq.read_table(sorted((output / "_job/runs").glob("*"))).sort_by("finished_at")
        shutil.rmtree(output)
        pairs, finished = table["pairs"].to_numpy(), table["finished_at"].to_numpy()
        first = int(np.searchsorted(np.cumsum(pairs), STEADY_FROM * pairs.sum()))
        counted = slice(first + 1, None)
        tokens = int(table["tokens"].to_numpy()[counted].sum())
        seconds = float(finished[-1] - finished[first])
        return Round(
            pairs=int(pairs[counted].sum()),
            tokens=tokens,
            seconds=seconds,
            cpu_seconds=meter.count_cpu_seconds(float(finished[first]), float(finished[-1])),
            peak_bytes=meter.peak_bytes,
            cached_share=int(table["cached_tokens"].to_numpy()[counted].sum()) / tokens,
            busy_share=float(table["seconds"].to_numpy()[counted].sum()) / seconds / max(1, result.run["actors"]),
        )


class EngineAlone:
    """The job's engine on prompts that are ready, units of them one after the other."""

    warms_up = True

    def __init__(self, setting: Setting) -> None:
        from rerank_actor.engines.base import EngineSpec, let_threads_sleep
        from rerank_actor.engines.model import load_reranker_model
        from rerank_actor.engines.start import encode_check_pairs, start_engine

        let_threads_sleep()  # as in an actor, where nothing imports torch before the engine
        if not setting.on_gpu:
            os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) - 1))  # as the job gives its actor
        self._setting = setting
        encoder = make_encoder(setting)
        model = load_reranker_model(setting.model)
        length, arguments = setting.max_length, setting.engine_args
        spec = EngineSpec("vllm", model, setting.dtype, length, 1, arguments, **encode_check_pairs(encoder))
        self._engine: Any = start_engine(spec)[0]
        if setting.held_out is not None:
            np.save(setting.held_out, compute_held_out(self._engine, encoder, load_ranking_queries()))
        queries, documents = read_pairs(setting)
        units = range(0, len(queries), setting.unit_rows)
        self._units = [
            encoder.encode(queries[start : start + setting.unit_rows], documents[start : start + setting.unit_rows])
            for start in units
        ]

    def run_round(self) -> Round:
        """Score all units, the first of them with an empty cache."""
        self._engine.forget()
        cached_before = self._engine.cached_tokens
        tokens = 0
        with Meter() as meter:
            started = time.time()
            for prompts in self._units:
                positions = prompts.scorable
                ids = prompts.ids_at(positions)
                self._engine.compute_logits(ids, prompts.head_tokens[positions].tolist())
                tokens += int(prompts.num_tokens.sum())
            ended = time.time()
        return Round(
            pairs=self._setting.num_pairs,
            tokens=tokens,
            seconds=ended - started,
            cpu_seconds=meter.count_cpu_seconds(started, ended),
            peak_bytes=meter.peak_bytes,
            cached_share=(self._engine.cached_tokens - cached_before) / tokens,
            busy_share=1.0,
        )


def split_calls(num_pairs: int) -> Iterator[tuple[int, int]]:
    """Yield first and last position of the pairs that go to an engine at a time."""
    for start in range(0, num_pairs, ROWS_PER_CALL):
        yield start, min(num_pairs, start + ROWS_PER_CALL)
