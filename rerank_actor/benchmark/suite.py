"""The suites: which workloads, models and contenders are measured together, on a CPU and on a GPU, and the table of it.

Takes a folder and gives the whole result as plain values. A suite for a CPU takes small models, with which the work of
Python decides, as it does on a fast GPU; one for a GPU takes the family's shapes.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rerank_actor.benchmark.contender import Setting, make_encoder
from rerank_actor.benchmark.contenders import FEWEST_BATCHES, RAY_LLM_BATCH
from rerank_actor.benchmark.fidelity import COLUMNS as PRECISION_COLUMNS
from rerank_actor.benchmark.fidelity import Fidelity, compare_logits, make_rows
from rerank_actor.benchmark.ndcg import load_ranking_queries
from rerank_actor.benchmark.rounds import Entry, compute_ratios, describe_machine, run_rounds
from rerank_actor.benchmark.weights import SHAPES, Shape, make_tokenizer, write_weights
from rerank_actor.benchmark.workload import compute_possible_share, make_workload, write_shards

MAX_LENGTH = 4096
NUM_UNITS = 16  # of the job; each must last some seconds, as in a job of many millions of pairs
COLUMNS = ("contender", "pairs/s", "tokens/s", "CPU \u00b5s/pair", "cached", "engine busy", "memory", "MFU")
RATIOS = ("pairs_per_second", "cpu_seconds_per_pair")
HELD_OUT = "held-out-"  # begins the names of files with logits of the held-out pairs
FEWER_PAIRS = {"long": 8, "mix": 4, "4B": 8, "8B": 16}  # that many times fewer of these workloads and shapes
GPU_LIMIT = 240.0  # seconds of a contender: what hangs costs no more of a machine that is paid for by the hour


@dataclass(frozen=True)
class Suite:
    """What is measured.

    Attributes:
        shapes: keys of `SHAPES`.
        workloads: keys of `KINDS`.
        pairs: of a round, by contender; those that are not here do not take part.
        rounds: that count.
        dtype: for all.
        on_gpu: whether it is for a GPU.
        knobs: more contenders, set otherwise: by what they go by, a key of `pairs` and the changes of its setting.
        limit: seconds of a contender in all; None for as long as it takes.
        base: the knob whose logits those of the others are compared with; None where logits are not looked at.
    """

    shapes: tuple[str, ...]
    workloads: tuple[str, ...]
    pairs: dict[str, int]
    rounds: int
    dtype: str
    on_gpu: bool
    knobs: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    limit: float | None = None
    base: str | None = None


def _turn(**engine_args: Any) -> tuple[str, dict[str, Any]]:
    """Return a knob of the engine alone."""
    return "engine", {"engine_args": engine_args}


def _pack(quantization: str) -> tuple[str, dict[str, Any]]:
    """Return a knob of the engine alone, with weights that vLLM packs as it loads them."""
    return "engine", {"dtype": "bfloat16", "engine_args": {"quantization": quantization}}


SUITES = {
    "cpu": Suite(
        shapes=("tiny",),
        workloads=("short", "grouped", "shuffled", "long", "mix"),
        pairs={
            "job": 65_536,
            "engine": 32_768,
            "ray-data-llm": 8_192,
            "card-vllm": 2_048,
            "card-transformers": 256,
            "sentence-transformers": 2_048,
        },
        rounds=5,
        dtype="float32",
        on_gpu=False,
    ),
    "gpu": Suite(
        shapes=("0.6B", "4B", "8B"),
        workloads=("grouped",),
        pairs={  # in this order: the first three take some four minutes on one H200
            "card-transformers": 1_024,
            "engine": 32_768,
            "job": 65_536,
            "card-vllm": 8_192,
            "ray-data-llm": 16_384,
        },
        rounds=1,
        dtype="float16",
        on_gpu=True,
        limit=GPU_LIMIT,
    ),
    "cpu-knobs": Suite(
        shapes=("tiny",),
        workloads=("grouped",),
        pairs={"engine": 16_384},
        rounds=5,
        dtype="float32",
        on_gpu=False,
        knobs={
            "4,096 tokens a step": _turn(max_num_batched_tokens=4096),
            "32,768 tokens and 1,024 prompts": _turn(max_num_batched_tokens=32_768, max_num_seqs=1024),
            "64 prompts a step": _turn(max_num_seqs=64),
            "blocks of 32": _turn(block_size=32),
            "statistics on": _turn(disable_log_stats=False),
        },
    ),
    "gpu-knobs": Suite(
        shapes=("0.6B",),
        workloads=("short", "grouped"),
        pairs={"engine": 32_768, "job": 131_072},
        rounds=2,
        dtype="float16",
        on_gpu=True,
        knobs={
            "scheduling ahead": _turn(async_scheduling=True),
            "32,768 tokens a step": _turn(max_num_batched_tokens=32_768),
            "blocks of 16": _turn(block_size=16),
            "not compiled": _turn(enforce_eager=True),
            "job, two engines a GPU": ("job", {"gpus_per_actor": 0.5}),
        },
        limit=GPU_LIMIT,
    ),
    "gpu-precision": Suite(
        shapes=("0.6B",),
        workloads=("grouped",),
        pairs={"engine": 32_768},
        rounds=1,
        dtype="float16",
        on_gpu=True,
        knobs={
            "float32": ("engine", {"dtype": "float32"}),
            "bfloat16": ("engine", {"dtype": "bfloat16"}),
            **{f"bfloat16 {name}": _pack(name) for name in ("fp8_per_tensor", "fp8_per_channel", "fp8_per_block")},
        },
        limit=GPU_LIMIT,
        base="float32",
    ),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU by its name and the operations a second that it reaches."""

    name: str
    peak: float


def run_suite(
    suite: Suite,
    folder: Path,
    report: Callable[[str], None],
    *,
    engine_args: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
    measure_gpu: Callable[[str], Gpu] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Measure a suite.

    Args:
        suite: what.
        folder: for models, pairs, outputs and logs.
        report: is told what happens.
        engine_args: further arguments of the job's engine.
        keep: is given the result as far as it is, after each contender, so that a measurement that is ended is not lost.
        measure_gpu: gives the GPU for a dtype, where a suite wants one; None measures this machine's.
        changes: of every contender's setting.

    Returns:
        The machine, and for each shape and workload the rounds, medians and ratios.
    """
    result: dict[str, Any] = {"machine": describe_machine(), "engine_args": engine_args or {}, "measured": []}
    tokenizer = make_tokenizer()
    started = time.monotonic()
    gpu = (measure_gpu or measure_device)(suite.dtype) if suite.on_gpu else None
    if gpu is not None:
        result["machine"] |= {"gpu": gpu.name, "matrix_product_tflops": round(gpu.peak / 1e12, 1)}
    for shape, name in itertools.product(suite.shapes, suite.workloads):
        model = write_weights(folder / f"model-{shape}", SHAPES[shape], dtype=suite.dtype)
        fewer = FEWER_PAIRS.get(name, 1) * FEWER_PAIRS.get(shape, 1)
        pairs = {contender: max(64, count // fewer) for contender, count in suite.pairs.items()}
        workload = make_workload(name, max(pairs.values()), tokenizer)
        run_folder = folder / f"{shape}-{name}-{time.time_ns()}"
        run_folder.mkdir(parents=True)
        write_shards(workload, run_folder / "shards")
        values = {
            "model": str(model),
            "shards": str(run_folder / "shards"),
            "folder": str(run_folder),
            "dtype": suite.dtype,
            "max_length": MAX_LENGTH,
            "num_pairs": len(workload),
            "unit_rows": max(1, max(pairs.values()) // NUM_UNITS),
            "engine_args": engine_args or {},
            "on_gpu": suite.on_gpu,
        }
        setting = Setting(**{**values, **changes})
        encoder = make_encoder(setting)
        prompts = encoder.encode(workload.queries[:2000], workload.documents[:2000])
        entry = {
            "shape": shape,
            "workload": name,
            "dtype": suite.dtype,
            "tokens_per_pair": float(prompts.num_tokens.mean()),
            "possible_cached_share": compute_possible_share(workload, encoder),
        }
        result["measured"].append(entry)

        def settle(
            figures: dict[str, Any],
            entry: dict[str, Any] = entry,
            lengths: Any = prompts.num_tokens,
            logits: Path = run_folder,
        ) -> None:
            told = set(entry.get("medians", ()))
            entry |= figures
            if gpu is not None:
                _add_utilization(entry, SHAPES[entry["shape"]], lengths, gpu.peak)
            base = "engine" if suite.knobs else "job"
            if base in figures["rounds"]:
                entry[f"{base}_by_others"] = {figure: compute_ratios(figures, base, figure) for figure in RATIOS}
            if suite.base is not None:
                entry["fidelity"] = _compare_precisions(logits, suite.base)
            result["seconds"] = round(time.monotonic() - started, 1)
            keep(result)
            for contender in figures["medians"].keys() - told:
                report(f"{entry['shape']}, {entry['workload']} {_make_row(entry, contender)}")

        entries = list(_list_entries(suite, pairs, engine_args or {}))
        if suite.base is not None:
            entries = [_hold_out(entry, run_folder, suite.dtype) for entry in entries]
        at_once = not suite.on_gpu
        run_rounds(entries, setting, suite.rounds, report, at_once=at_once, limit=suite.limit, settled=settle)
    return result


def _list_entries(suite: Suite, pairs: dict[str, int], engine_args: dict[str, Any]) -> Iterator[Entry]:
    """Yield the contenders of a suite, then those that are set otherwise."""
    for contender, count in pairs.items():
        yield Entry(contender, count)
    for label, (contender, turned) in suite.knobs.items():
        merged = {**engine_args, **turned.get("engine_args", {})}
        yield Entry(contender, pairs[contender], {**turned, "engine_args": merged}, label)


def _hold_out(entry: Entry, folder: Path, dtype: str) -> Entry:
    """Return a contender that also keeps its logits of the held-out pairs, under its label or its dtype."""
    file = folder / f"{HELD_OUT}{entry.label or dtype}.npy"
    return replace(entry, changes={**entry.changes, "held_out": str(file)})


def _compare_precisions(folder: Path, base: str) -> dict[str, Any]:
    """Return how far the logits of each contender that is done are from those of one, as values by name."""
    found = {path.stem.removeprefix(HELD_OUT): np.load(path) for path in sorted(folder.glob(f"{HELD_OUT}*.npy"))}
    if base not in found:
        return {}
    queries = load_ranking_queries()
    return {name: asdict(compare_logits(logits, found[base], queries)) for name, logits in found.items()}


def measure_device(dtype: str, device: str = "cuda", size: int = 8192) -> Gpu:
    """Return this machine's GPU, or its CPU for a rehearsal; its peak is a large matrix product's, the best of ten."""
    import torch

    left, right = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    accelerator = torch.get_device_module(device)
    best = 0.0
    for _ in range(10):
        accelerator.synchronize()
        started = time.perf_counter()
        left @ right
        accelerator.synchronize()
        best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    if device == "cpu":
        return Gpu("none, rehearsed on the CPU", best)
    del left, right
    accelerator.empty_cache()
    return Gpu(str(accelerator.get_device_name()), best)


def _add_utilization(entry: dict[str, Any], shape: Shape, num_tokens: np.ndarray, peak: float) -> None:
    """Add to each contender's medians which share of the GPU's best its forward passes are (MFU), cached tokens left out."""
    lengths = num_tokens.astype(np.float64)
    for medians in entry["medians"].values():
        cached = lengths * (medians["cached_share"] or 0.0)
        flops = shape.count_flops(float((lengths - cached).sum()), float((lengths**2 - cached**2).sum() / 2))
        medians["utilization"] = flops / len(lengths) * medians["pairs_per_second"] / peak


def rehearse(suite: Suite) -> Suite:
    """Return a GPU's suite as a CPU can do it in minutes: the tiny model, few pairs, one round."""
    fewest = {"ray-data-llm": FEWEST_BATCHES * RAY_LLM_BATCH}
    few = {contender: max(fewest.get(contender, 64), count // 64) for contender, count in suite.pairs.items()}
    return replace(suite, shapes=("tiny",), pairs=few, rounds=1, dtype="float32")


def choose_suite(name: str, *, workloads: Sequence[str] = (), contenders: Sequence[str] = (), **changes: Any) -> Suite:
    """Return a suite with some of its workloads and contenders, or with other values of its fields."""
    suite = SUITES[name]
    pairs = {key: count for key, count in suite.pairs.items() if not contenders or key in contenders}
    knobs = {label: knob for label, knob in suite.knobs.items() if knob[0] in pairs}
    kept = {key: value for key, value in changes.items() if value is not None}
    return replace(suite, workloads=tuple(workloads) or suite.workloads, pairs=pairs, knobs=knobs, **kept)


def make_tables(result: dict[str, Any]) -> str:
    """Return a result as Markdown: a table for each shape and workload."""
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines = [f"Measured: {machine}.", ""]
    for entry in result["measured"]:
        base = _find_base(entry)
        lines += [
            f"### {entry['shape']}, {entry['workload']}: {entry['tokens_per_pair']:.0f} tokens a pair, {entry['dtype']}, "
            f"a cache could have {entry['possible_cached_share']:.1%}",
            "",
            _join([*COLUMNS, f"{base} is", "its CPU is"]),
            "|" + "---|" * (len(COLUMNS) + 2),
        ]
        lines += [_make_row(entry, name) for name in entry["medians"]]
        if "fidelity" in entry:
            lines += ["", *_make_fidelity_table(entry["fidelity"])]
        lines += [f"Left out: {name} ({reason})." for name, reason in entry["left_out"].items()]
        lines.append("")
    return "\n".join(lines)


def _make_fidelity_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of a table: what each precision does to the logits of the held-out pairs."""
    rows = make_rows({name: Fidelity(**values) for name, values in found.items()})
    return [_join(PRECISION_COLUMNS), "|" + "---|" * len(PRECISION_COLUMNS), *map(_join, rows), ""]


def _find_base(entry: dict[str, Any]) -> str:
    """Return the contender that others are compared with."""
    return "engine" if "engine_by_others" in entry else "job"


def _make_row(entry: dict[str, Any], name: str) -> str:
    """Return a contender's row of the table."""
    medians, ratios = entry["medians"][name], entry.get(f"{_find_base(entry)}_by_others", {})
    cells = [
        name,
        f"{medians['pairs_per_second']:,.0f}",
        f"{medians['tokens_per_second']:,.0f}",
        f"{medians['cpu_seconds_per_pair'] * 1e6:,.0f}",
        _show(medians["cached_share"], "{:.1%}"),
        _show(medians["busy_share"], "{:.1%}"),
        f"{medians['peak_bytes'] / 2**30:.1f} GiB",
        _show(medians.get("utilization"), "{:.1%}"),
        _show(ratios.get("pairs_per_second", {}).get(name), "{:.2f} x"),
        _show(ratios.get("cpu_seconds_per_pair", {}).get(name), "{:.2f} x"),
    ]
    return _join(cells)


def _join(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _show(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
