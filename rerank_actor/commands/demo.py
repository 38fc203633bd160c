"""Run the main job on sample data with the model of the package: `python -m jobs.demo`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

from rerank_actor.benchmark.ndcg import compute_ndcg, compute_random_ndcg, load_ranking_queries
from rerank_actor.benchmark.sample import (
    DEMO_MODEL,
    write_ranking_shard,
    write_sample_groups,
    write_sample_ids,
    write_sample_shards,
)
from rerank_actor.commands.command_line import Parser, name_program
from rerank_actor.commands.score import score
from rerank_actor.progress import say

SHOWN_QUERIES = ("held-en-11", "held-de-16", "held-fr-12", "held-es-07")
SHOWN_CANDIDATES = 3


def demo(arguments: Sequence[str] | None = None) -> int:
    """Write the sample data, score it as a user would, print what came out, and return the job's exit code."""
    parser = Parser(
        "demo",
        "Score sample pairs in several languages with a small model.",
        "--engine vllm",
    )
    parser.add_argument("--folder", default="demo-out", help="where pairs and scores go (default demo-out)")
    parser.add_argument("--engine", default="vllm", help="vllm, transformers or fake (default vllm)")
    options = parser.parse(arguments)
    folder = Path(options.folder)
    pairs, scores = folder / "pairs", folder / "scores"
    write_sample_shards(pairs)
    write_ranking_shard(pairs)
    write_sample_groups(folder / "grouped" / "queries.jsonl")
    write_sample_ids(folder / "beir")
    flags = ["--input", pairs, "--output", scores, "--model", DEMO_MODEL, "--engine", options.engine, "--check-scores"]
    command = [str(flag) for flag in flags]
    say(f"{name_program('score')} {' '.join(command)}")
    code = score(command)
    if code == 0:
        rows = ds.dataset(scores, format="parquet").to_table().to_pylist()
        _print_ranking(rows)
        _print_quality(rows)
        _print_figures(scores)
    return code


def _rank(rows: list[dict[str, Any]], query_id: str) -> list[dict[str, Any]]:
    """Return the scored candidates of a query, best first."""
    candidates = [row for row in rows if row["query_id"] == query_id and row["score"] is not None]
    return sorted(candidates, key=lambda row: -row["score"])


def _print_ranking(rows: list[dict[str, Any]]) -> None:
    """Print of a few queries the best candidates, the best of those that do not answer, and the last."""
    table = Table(title="Four of the queries, each with 20 candidates", title_justify="left")
    for name in ("rank", "score", "document", "answers"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for query_id in SHOWN_QUERIES:
        candidates = _rank(rows, query_id)
        best_wrong = next(rank for rank, row in enumerate(candidates) if not row["relevant"])
        table.add_section()
        table.add_row("", "", f"[bold]{candidates[0]['query']}[/bold]", "")
        for rank in sorted({*range(SHOWN_CANDIDATES), best_wrong, len(candidates) - 1}):
            row = candidates[rank]
            table.add_row(f"{rank + 1:4}", f"{row['score']:.3f}", row["document"], "yes" if row["relevant"] else "no")
    Console(width=110).print(table)


def _print_quality(rows: list[dict[str, Any]]) -> None:
    """Print how well the queries were ranked that the model was not trained on."""
    ranked = [_rank(rows, query.query_id) for query in load_ranking_queries()]
    gains = [[float(row["relevant"]) for row in candidates] for candidates in ranked]
    scores = [[float(row["score"]) for row in candidates] for candidates in ranked]
    ndcgs = list(map(compute_ndcg, scores, gains))
    chance = list(map(compute_random_ndcg, gains))
    print(
        f"nDCG@10 over {len(ranked)} queries written by hand, none of them in the model's training: "
        f"{sum(ndcgs) / len(ndcgs):.3f} (a random order: {sum(chance) / len(chance):.3f})"
    )


def _print_figures(scores: Path) -> None:
    """Print what the manifest says of the run that scored, and where the result is."""
    manifest = json.loads((scores / "_job" / "manifest.json").read_text())
    run = next(run for run in reversed(manifest["runs"]) if run["pairs"] or run is manifest["runs"][0])
    engine = next((item for item in manifest["engines"] if item["max_difference"] is not None), manifest["engines"][0])
    print(
        f"{run['pairs']} pairs at {run['pairs_per_second'] or 0:.1f} pairs/s with {engine['engine']} {engine['version']} in "
        f"{engine['dtype']}, largest difference of the built-in pairs' logits from Transformers in float32: "
        f"{engine['max_difference'] or 0:.2g}"
    )
    print(f"scored Parquet: {scores}/part-*.parquet   what the run did: {scores}/_job/manifest.json")
    print(f"next: .venv/bin/python -m jobs.status {scores}; .venv/bin/python -m jobs.verify {scores}")
