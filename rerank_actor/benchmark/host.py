"""What a pair costs the host, by step, and how busy a simulated device is: a rehearsal that needs no GPU.

Takes a folder, gives plain values and their tables. Real is all from prompts to logits but the model: vLLM's engine core and
the ways into it; the model runner's own preparation of inputs is not in it. Figures are CPU time of the thread that feeds the
device. Steps are told apart by the functions of a profile that is taken each millisecond of CPU time.
"""

import dataclasses
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np

from rerank_actor.benchmark.contender import Setting, make_encoder
from rerank_actor.benchmark.readers import make_readers_table, measure_readers
from rerank_actor.benchmark.rounds import describe_machine
from rerank_actor.benchmark.weights import SHAPES, make_tokenizer, write_weights
from rerank_actor.benchmark.workload import make_workload
from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.model import load_reranker_model
from rerank_actor.engines.start import encode_check_pairs, start_engine

NUM_PAIRS = 4096
MAX_LENGTH = 4096
ROUNDS = 3
SAMPLE_SECONDS = 0.001
LIMIT_SECONDS = 150e-6  # of a pair, on a device that computes nothing but matrix products
MODELS = ("0.6B", "4B", "8B")
WAYS = {
    "prefill": ("prefill", 1),
    "prefill, two steps under way": ("prefill", 2),
    "core": ("core", 1),
}  # path and steps
STEPS = {
    "simulated.py": {"": "simulation"},
    "vllm_core.py": {"_make_request": "make requests", "_hash_blocks": "make requests", "_read": "take results"},
    "vllm_prefill.py": {
        "_find_head": "blocks",
        "_hold": "blocks",
        "_make_room": "blocks",
        "_build": "build steps",
        "_begin": "build steps",
        "_read": "take results",
        "_end": "take results",
    },
    "scheduler.py": {"add_request": "admit", "schedule": "build steps", "update_from_output": "take results"},
    "kv_cache_manager.py": {"": "blocks"},
}


class StepProfile:
    """Counts for as long as it is entered in which step the main thread spends its CPU time; the innermost one counts."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)

    def _look(self, number: int, frame: FrameType | None) -> None:
        while frame is not None:
            steps = STEPS.get(os.path.basename(frame.f_code.co_filename), {})
            step = steps.get(frame.f_code.co_name) or steps.get("")
            if step is not None:
                self.counts[step] += 1
                return
            frame = frame.f_back
        self.counts["others"] += 1


def run_host_suite(folder: Path, report: Callable[[str], None], *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure the ways into vLLM on a simulated device, in turn.

    Args:
        folder: for a small model, whose weights are not loaded.
        report: is told what happens.
        rounds: that count.

    Returns:
        The machine, CPU microseconds a pair by way and step, busy shares by device, model and way (`WAYS`), and what read
        tasks spend.
    """
    from rerank_actor.benchmark.simulated import DEVICES, UTILIZATION, SimulatedExecutor, reckon_rate

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    write_weights(folder / "model-tiny", SHAPES["tiny"], dtype="float32")
    setting = Setting(str(folder / "model-tiny"), "", str(folder), "float32", MAX_LENGTH, NUM_PAIRS, NUM_PAIRS)
    encoder = make_encoder(setting)
    workload = make_workload("grouped", NUM_PAIRS, make_tokenizer())
    readers = measure_readers(folder / "model-tiny", folder, MAX_LENGTH, report)
    prompts = encoder.encode(workload.queries, workload.documents)
    ids = prompts.ids_at(prompts.scorable)
    heads = prompts.head_tokens[prompts.scorable].tolist()
    spec = EngineSpec(
        "vllm",
        load_reranker_model(setting.model),
        "float32",
        MAX_LENGTH,
        1,
        {"distributed_executor_backend": SimulatedExecutor, "max_num_seqs": 1024},
        **encode_check_pairs(encoder),
    )
    engine: Any = start_engine(spec)[0]
    device = _find_device(engine)
    costs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, found in costs.items():
            _take_way(engine, way)
            cost = _measure_round(engine, ids, heads)
            report(f"round {number}, {way}: {cost['all']:.1f} \u00b5s a pair")
            found += [cost] if number else []
    tokens = float(prompts.num_tokens.mean())
    cached = _count_cached(engine, ids, heads) / NUM_PAIRS
    rates = {f"{name}, {shape}": reckon_rate(name, shape, tokens, cached) for name in DEVICES for shape in MODELS}
    limit = dataclasses.replace(rates["H200, 0.6B"], tokens_per_second=(tokens - cached) / LIMIT_SECONDS)
    rates[f"{LIMIT_SECONDS * 1e6:.0f} \u00b5s a pair"] = limit
    busy: dict[str, dict[str, Any]] = {}
    for title, rate in rates.items():
        device.rate = rate
        busy[title] = {"microseconds": (tokens - cached) / rate.tokens_per_second * 1e6}
        for way in WAYS:
            _take_way(engine, way)
            engine.forget()
            device.reset()
            engine.compute_logits(ids, heads)
            busy[title][way] = device.busy_share
        report(f"{title}: busy {', '.join(f'{way} {busy[title][way]:.3f}' for way in WAYS)}")
    engine.close()
    return {
        "machine": describe_machine(),
        "tokens_per_pair": tokens,
        "cached_per_pair": cached,
        "utilization": UTILIZATION,
        "readers": readers,
        "costs": {way: _take_medians(found) for way, found in costs.items()},
        "ratios": {
            way: statistics.median(one["all"] / base["all"] for one, base in zip(found, costs["core"], strict=True))
            for way, found in costs.items()
        },
        "busy": busy,
    }


def _measure_round(engine: Any, ids: list[np.ndarray], heads: list[int]) -> dict[str, float]:
    """Return CPU microseconds a pair by step of a round with an empty cache, the simulation's own taken off."""
    engine.forget()
    device = _find_device(engine)
    before = time.thread_time() - device.own_seconds
    with StepProfile() as profile:
        engine.compute_logits(ids, heads)
    all_seconds = time.thread_time() - device.own_seconds - before
    profile.counts.pop("simulation", None)
    samples = max(1, profile.counts.total())
    shares = {step: count / samples for step, count in profile.counts.items()}
    return {
        "all": all_seconds / len(ids) * 1e6,
        **{step: share * all_seconds / len(ids) * 1e6 for step, share in shares.items()},
    }


def _take_way(engine: Any, way: str) -> None:
    path, steps = WAYS[way]
    engine.take_path(path)
    if path == "prefill":
        engine._feeds[path].steps_under_way = steps  # vLLM itself has one on CPUs, and for pooling models


def _find_device(engine: Any) -> Any:
    return engine._llm.llm_engine.engine_core.engine_core.model_executor


def _count_cached(engine: Any, ids: list[np.ndarray], heads: list[int]) -> int:
    engine.forget()
    before = engine.cached_tokens
    engine.compute_logits(ids, heads)
    return int(engine.cached_tokens - before)


def _take_medians(found: list[dict[str, float]]) -> dict[str, float]:
    steps = sorted({step for cost in found for step in cost})
    return {step: statistics.median(cost.get(step, 0.0) for cost in found) for step in steps}


def make_host_tables(result: dict[str, Any]) -> str:
    """Return a result as Markdown."""
    ways = list(result["costs"])
    steps = sorted({step for cost in result["costs"].values() for step in cost} - {"all"})
    lines = [
        f"A rehearsal, no GPU was measured: {result['tokens_per_pair']:.0f} tokens a pair, "
        f"{result['cached_per_pair']:.0f} of them from the cache.",
        "",
        f"| CPU \u00b5s a pair | {' | '.join(ways)} |",
        "|---|" + "---|" * len(ways),
    ]
    for step in [*steps, "all"]:
        lines.append(f"| {step} | " + " | ".join(f"{result['costs'][way].get(step, 0):.1f}" for way in ways) + " |")
    lines.append("| by that of core | " + " | ".join(f"{result['ratios'][way]:.2f} x" for way in ways) + " |")
    lines += [
        "",
        "Besides the core of each engine's own process:",
        "",
        make_readers_table(result["readers"], MODELS),
        "",
        f"| simulated device, {result['utilization']:.0%} of its operations | device \u00b5s a pair | "
        + " | ".join(f"busy, {way}" for way in ways)
        + " |",
        "|---|---|" + "---|" * len(ways),
    ]
    for title, row in result["busy"].items():
        lines.append(
            f"| {title} | {row['microseconds']:,.0f} | " + " | ".join(f"{row[way]:.1%}" for way in ways) + " |"
        )
    return "\n".join(lines)
