"""Measure the job beside what users would run instead: `python -m jobs.benchmark [--suite cpu|gpu]`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.command_line import Parser, run_command
from rerank_actor.benchmark.contenders import CONTENDERS
from rerank_actor.benchmark.suite import SUITES, choose_suite, make_tables, run_suite
from rerank_actor.benchmark.weights import SHAPES
from rerank_actor.benchmark.workload import KINDS
from rerank_actor.errors import JobError


def benchmark(arguments: Sequence[str] | None = None) -> int:
    """Measure a suite, print its tables and write its figures as JSON."""
    parser = Parser(
        prog="python -m jobs.benchmark",
        description="Score the same pairs with the job, with its engine alone and with other tools, in turn, and compare.",
    )
    parser.add_argument("--suite", choices=sorted(SUITES), default="cpu", help="what to measure (default cpu)")
    parser.add_argument("--workloads", nargs="+", choices=sorted(KINDS), default=(), help="some of the suite's")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=(), help="some of the suite's")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="models, instead of the suite's")
    parser.add_argument("--rounds", type=int, help="rounds that count, instead of the suite's")
    parser.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON", help="for the job's engine")
    parser.add_argument("--folder", default="benchmark-out", help="for models, pairs, logs and result.json")
    found = parser.parse(arguments)
    if found.suite == "gpu":
        _require_gpu()
    shapes = tuple(found.shapes) if found.shapes else None
    suite = choose_suite(
        found.suite, workloads=found.workloads, contenders=found.contenders, shapes=shapes, rounds=found.rounds
    )
    folder = Path(found.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    result = run_suite(suite, folder, lambda words: print(words, file=sys.stderr), engine_args=found.engine_args)
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    print(make_tables(result))
    print(f"all figures: {folder / 'result.json'}", file=sys.stderr)
    return 0


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise JobError("--suite gpu needs a GPU that torch can use, and there is none; take --suite cpu")


if __name__ == "__main__":
    run_command(benchmark)
