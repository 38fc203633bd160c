"""Measure the job beside what users would run instead: `python -m jobs.benchmark [--suite NAME]`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rerank_actor.benchmark.contenders import CONTENDERS
from rerank_actor.benchmark.host import ROUNDS, make_host_tables, run_host_suite
from rerank_actor.benchmark.ratios import extract_ratios, report_moved, store_ratios
from rerank_actor.benchmark.suite import SUITES, choose_suite, make_tables, measure_device, rehearse, run_suite
from rerank_actor.benchmark.weights import SHAPES
from rerank_actor.benchmark.workload import KINDS
from rerank_actor.commands.command_line import EXIT_FAILED, Parser
from rerank_actor.errors import JobError
from rerank_actor.progress import say

HOST = "host"


def benchmark(arguments: Sequence[str] | None = None) -> int:
    """Measure a suite, print its tables and write its figures as JSON."""
    args = _make_parser().parse(arguments)
    folder = Path(args.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)

    def report(words: str) -> None:
        say(words)

    def keep(result: dict[str, Any]) -> None:
        (folder / "result.json").write_text(json.dumps(result, indent=1))

    if args.suite == HOST:
        figures = run_host_suite(folder, report, rounds=args.rounds or ROUNDS)
        keep(figures)
        print(make_host_tables(figures))
        return 0
    shapes = tuple(args.shapes) if args.shapes else None
    suite = choose_suite(
        args.suite, workloads=args.workloads, contenders=args.contenders, shapes=shapes, rounds=args.rounds
    )
    if args.time_limit:
        suite = replace(suite, limit=args.time_limit)
    changes: dict[str, Any] = {}
    if args.rehearse:
        suite = rehearse(suite)
        changes = {"on_gpu": False, "measure_gpu": lambda dtype: measure_device(dtype, "cpu", 512)}
    elif suite.on_gpu:
        _require_gpu(args.suite)
    result = run_suite(suite, folder, report, engine_args=args.engine_args, keep=keep, **changes)
    print(make_tables(result))
    keep(result)
    report(f"all figures: {folder / 'result.json'}")
    ratios = extract_ratios(result)
    if args.compare:
        report_moved(ratios, Path(args.compare))
    if args.store:
        store_ratios(ratios, Path(args.store))
    missing = [entry for entry in result["measured"] if not entry["medians"]]
    return EXIT_FAILED if missing else 0


def _make_parser() -> Parser:
    parser = Parser(
        "benchmark",
        "Score the same pairs with the job, with its engine alone and with other tools, in turn, and compare; "
        "cpu-knobs and gpu-knobs turn the engine's settings, one at a time; gpu-precision says what fp8 and other dtypes "
        "gain and do to ranking; host rehearses on a simulated device what a pair costs its host.",
        "--suite cpu --rounds 3",
    )
    parser.add_argument("--suite", choices=sorted([*SUITES, HOST]), default="cpu", help="what to measure (default cpu)")
    several: tuple[tuple[str, list[str], str, Any], ...] = (
        ("--workloads", sorted(KINDS), "some of the suite's", ()),
        ("--contenders", list(CONTENDERS), "some of the suite's", ()),
        ("--shapes", list(SHAPES), "models, instead of the suite's", None),
    )
    for flag, names, what, default in several:
        parser.add_argument(
            flag, nargs="+", choices=names, default=default, metavar="NAME", help=f"{what}: {', '.join(names)}"
        )
    parser.add_argument("--rounds", type=int, help="rounds that count, instead of the suite's")
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help="of each contender in all, its start included"
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="a GPU's suite on the CPU, with a tiny model and few pairs, to see it work",
    )
    parser.add_argument("--engine-args", type=json.loads, default={}, metavar="JSON", help="for the job's engine")
    parser.add_argument("--folder", default="benchmark-out", help="for models, pairs, logs and result.json")
    parser.add_argument("--compare", metavar="FILE", help="print which ratios moved from those stored there")
    parser.add_argument("--store", metavar="FILE", help="put the ratios into those stored there")
    return parser


def _require_gpu(suite: str) -> None:
    import torch

    if not torch.cuda.is_available():
        other = suite.replace("gpu", "cpu")
        raise JobError(
            f"--suite {suite} needs a GPU that torch can use, and there is none; take --rehearse"
            + f", or --suite {other}" * (other in SUITES)
        )
