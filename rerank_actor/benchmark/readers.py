"""What read tasks spend on a pair, and how many of their cores a GPU needs: from Parquet to prompts as an engine gets them.

Takes a folder and a small model's folder, gives plain values and their table. The work is a read task's own, done in this
process; figures are CPU time of all its threads. Devices are those of the simulation, not measured ones.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rerank_actor.benchmark.contender import Setting, make_encoder
from rerank_actor.benchmark.weights import make_tokenizer
from rerank_actor.benchmark.workload import compute_possible_share, make_workload, write_shards
from rerank_actor.engines.model import load_tokenizer_json
from rerank_actor.job import load_job
from rerank_actor.scoring.preflight import make_prepare_spec, prepare_job
from rerank_actor.scoring.prepare import prepare_unit

NUM_PAIRS = {"short": 8192, "grouped": 4096, "long": 512}  # by key of `KINDS`
DEVICE = "H200"


def measure_readers(
    model: Path,
    folder: Path,
    max_length: int,
    report: Callable[[str], None],
    num_pairs_by_kind: Mapping[str, int] = NUM_PAIRS,
) -> dict[str, Any]:
    """Measure read tasks.

    Args:
        model: folder of a model, whose tokenizer alone is used.
        folder: for pairs.
        max_length: of a prompt.
        report: is told what happens.
        num_pairs_by_kind: pairs of each workload.

    Returns:
        By workload: tokens a pair, those of them that a cache can have, and CPU microseconds a pair.
    """
    found: dict[str, Any] = {}
    for kind, num_pairs in num_pairs_by_kind.items():
        workload = make_workload(kind, num_pairs, make_tokenizer())
        shards = folder / f"readers-{kind}-{time.time_ns()}"
        write_shards(workload, shards)
        values = {"input": str(shards), "output": f"{shards}-out", "model": str(model), "max_length": max_length}
        prepared = prepare_job(load_job(None, {**values, "engine": "fake"}))
        spec, tokenizer_json = make_prepare_spec(prepared, {}), load_tokenizer_json(prepared.model)
        units = list(prepared.plan.units())
        prepare_unit(units[0], spec, tokenizer_json)  # makes the encoder, which a task keeps
        began = time.process_time()
        works = [prepare_unit(unit, spec, tokenizer_json) for unit in units]
        num_bytes = sum(work.to_table().nbytes for work in works)
        seconds = time.process_time() - began
        setting = Setting(str(model), str(shards), str(folder), "float32", max_length, num_pairs, num_pairs)
        tokens = sum(int(work.prompts.num_tokens.sum()) for work in works) / num_pairs
        found[kind] = {
            "tokens": tokens,
            "cached": tokens * compute_possible_share(workload, make_encoder(setting)),
            "microseconds": seconds / num_pairs * 1e6,
            "bytes": num_bytes / num_pairs,
        }
        report(f"read tasks, {kind}: {found[kind]['microseconds']:.0f} \u00b5s a pair")
    return found


def make_readers_table(readers: dict[str, Any], models: tuple[str, ...]) -> str:
    """Return the figures as Markdown, with the cores that a GPU of each model needs for its read tasks."""
    from rerank_actor.benchmark.simulated import reckon_rate

    titles = " | ".join(f"cores a {DEVICE}, {model}" for model in models)
    lines = [
        f"| pairs | tokens a pair, cached | read tasks, CPU \u00b5s a pair | {titles} |",
        "|---|---|---|" + "---|" * len(models),
    ]
    for kind, row in readers.items():
        tokens, cached = row["tokens"], row["cached"]
        rates = [reckon_rate(DEVICE, model, tokens, cached).tokens_per_second for model in models]
        cores = [row["microseconds"] / ((tokens - cached) / rate * 1e6) for rate in rates]
        cells = [kind, f"{tokens:,.0f}, {cached:,.0f}", f"{row['microseconds']:,.0f}", *(f"{n:.2f}" for n in cores)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
