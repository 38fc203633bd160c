"""Run the main job on sample data: `python -m jobs.demo`. Writes a small random model and a few shards beside it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

from jobs.command_line import Parser, run_command
from jobs.score import score
from rerank_actor.sample import write_sample_groups, write_sample_model, write_sample_shards

SHOWN_QUERIES = ("en-01", "de-01", "zh-01")
SHOWN_CANDIDATES = 3


def demo(arguments: Sequence[str] | None = None) -> int:
    """Write the sample data, score it as a user would, print what came out, and return the job's exit code."""
    parser = Parser(
        prog="python -m jobs.demo", description="Score sample pairs in several languages with a small model."
    )
    parser.add_argument("--folder", default="demo-out", help="where model, pairs and scores go (default demo-out)")
    parser.add_argument("--engine", default="vllm", help="vllm, transformers or fake (default vllm)")
    found = parser.parse(arguments)
    folder = Path(found.folder)
    model, pairs, scores = folder / "model", folder / "pairs", folder / "scores"
    write_sample_model(model)
    write_sample_shards(pairs)
    write_sample_groups(folder / "grouped" / "queries.jsonl")
    flags = ["--input", pairs, "--output", scores, "--model", model, "--engine", found.engine, "--check-scores"]
    command = [str(flag) for flag in flags]
    print("python -m jobs.score " + " ".join(command), file=sys.stderr)
    code = score(command)
    if code == 0:
        _print_ranking(scores)
        _print_figures(scores)
    return code


def _print_ranking(scores: Path) -> None:
    """Print the best candidates of a few queries."""
    rows = ds.dataset(scores, format="parquet").to_table().to_pylist()
    table = Table(
        title="Best candidates of three queries (random weights: the order means nothing)", title_justify="left"
    )
    for name in ("query", "score", "document"):
        table.add_column(name, overflow="ellipsis", no_wrap=name != "document")
    for query_id in SHOWN_QUERIES:
        candidates = [row for row in rows if row["query_id"] == query_id and row["score"] is not None]
        for row in sorted(candidates, key=lambda row: -row["score"])[:SHOWN_CANDIDATES]:
            table.add_row(row["query"][:32], f"{row['score']:.4f}", row["document"][:60])
    Console(width=110).print(table)


def _print_figures(scores: Path) -> None:
    """Print what the manifest says of the run that scored, and where the result is."""
    manifest = json.loads((scores / "_job" / "manifest.json").read_text())
    run = next(run for run in reversed(manifest["runs"]) if run["pairs"] or run is manifest["runs"][0])
    engine = next((e for e in manifest["engines"] if e["max_difference"] is not None), manifest["engines"][0])
    print(
        f"{run['pairs']} pairs at {run['pairs_per_second'] or 0:.1f} pairs/s with {engine['engine']} {engine['version']} in "
        f"{engine['dtype']}, largest difference of the built-in pairs' logits from Transformers in float32: "
        f"{engine['max_difference'] or 0:.2g}"
    )
    print(f"scored Parquet: {scores}/part-*.parquet   what the run did: {scores}/_job/manifest.json")
    print(f"next: .venv/bin/python -m jobs.status {scores}; .venv/bin/python -m jobs.verify {scores}")


if __name__ == "__main__":
    run_command(demo)
