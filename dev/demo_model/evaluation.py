"""The figures of a model: held-out queries, the sample pairs, wrong templates, and known pairs from a folder.

Scores come from the library's own engine in float32, as a user would get them; only the wrong templates, which the
library refuses to write, go through the forward pass of the training. Everything is nDCG@10 over lists of candidates,
beside what word overlap, BM25 and a random order reach on the same lists.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from demo_model.baselines import make_bm25, score_overlap
from demo_model.network import compute_logits, pack_tree
from demo_model.vocabulary import PromptMaker
from rerank_actor import Reranker
from rerank_actor.benchmark.ndcg import compute_ndcg, compute_random_ndcg, load_ranking_queries
from rerank_actor.benchmark.sample import load_sample_rows
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.template import QWEN3_RERANKER, Template

NUM_CANDIDATES = 20
WRONG_TEMPLATES = {
    "suffix without think tags": replace(QWEN3_RERANKER, suffix="<|im_end|>\n<|im_start|>assistant\n\n\n\n\n"),
    "suffix without think block": replace(QWEN3_RERANKER, suffix="<|im_end|>\n<|im_start|>assistant\n"),
    "no suffix": replace(QWEN3_RERANKER, suffix=""),
    "no prefix": replace(QWEN3_RERANKER, prefix=""),
    "blank lines between fields": replace(QWEN3_RERANKER, head=QWEN3_RERANKER.head.replace("\n", "\n\n")),
}


@dataclass(frozen=True)
class Ranking:
    """One query with candidates to be ranked."""

    group: str
    query: str
    documents: list[str]
    gains: list[float]


def load_held_out() -> list[Ranking]:
    """Return the queries written by hand, in groups by language."""
    return [
        Ranking(query.language, query.query, query.documents, [float(right) for right in query.relevant])
        for query in load_ranking_queries()
    ]


def load_sample() -> list[Ranking]:
    """Return the sample pairs' queries, in groups by language, without the bad rows."""
    rows = [row for row in load_sample_rows() if isinstance(row["query"], str) and isinstance(row["document"], str)]
    rankings = []
    for query_id in dict.fromkeys(row["query_id"] for row in rows):
        mine = [row for row in rows if row["query_id"] == query_id]
        documents = [row["document"] for row in mine]
        rankings.append(
            Ranking(mine[0]["language"], mine[0]["query"], documents, [float(row["relevant"]) for row in mine])
        )
    return rankings


def load_known_pairs(folder: Path, *, limit: int = 200) -> dict[str, list[Ranking]]:
    """Return rankings made from the known pairs of a folder: each first text among the second texts of other pairs.

    Takes `*.tsv` with two columns (a text and its translation) and `*.jsonl` with `query`, `documents` and `label` (a
    question and its right answer). Of a TSV file also duplicates: each first text among those that share most words.
    """
    rankings = {}
    for path in sorted([*folder.glob("*.tsv"), *folder.glob("*.jsonl")]):
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.suffix == ".tsv":
            pairs = [(line.split("\t")[0], line.split("\t")[1]) for line in lines]
            firsts = [first for first, _ in pairs]
            rankings[f"{path.stem}, duplicates"] = _rank_among(
                path.stem, [(same, same) for same in firsts], firsts, limit, near=True
            )
        else:
            rows = [json.loads(line) for line in lines]
            pairs = [(row["query"], row["documents"][row["label"]]) for row in rows]
        rankings[path.stem] = _rank_among(path.stem, pairs, [second for _, second in pairs], limit)
    return rankings


def _rank_among(
    name: str, pairs: list[tuple[str, str]], others: list[str], limit: int, *, near: bool = False
) -> list[Ranking]:
    """Return rankings of second texts among random others, or among those nearest to the first in words."""
    rng = random.Random(0)
    rankings = []
    for first, second in rng.sample(pairs, min(limit, len(pairs))):
        wrong = [text for text in dict.fromkeys(others) if text not in (first, second)]
        if near:
            shared = dict(zip(wrong, score_overlap(first, wrong), strict=True))
            wrong = sorted(shared, key=shared.__getitem__, reverse=True)[: NUM_CANDIDATES - 1]
        else:
            wrong = rng.sample(wrong, NUM_CANDIDATES - 1)
        rankings.append(Ranking(name, first, [second, *wrong], [1.0] + [0.0] * len(wrong)))
    return rankings


def measure(scores: Sequence[Sequence[float]], rankings: list[Ranking]) -> dict[str, Any]:
    """Return nDCG@10 of scores, in all and by group, and of the baselines."""
    values = [compute_ndcg(mine, item.gains) for mine, item in zip(scores, rankings, strict=True)]
    score_bm25 = make_bm25(list(dict.fromkeys(text for item in rankings for text in item.documents)))
    groups = dict.fromkeys(item.group for item in rankings)
    figures: dict[str, Any] = {
        "queries": len(rankings),
        "ndcg": _average(values),
        "word_overlap": _average(
            [compute_ndcg(score_overlap(item.query, item.documents), item.gains) for item in rankings]
        ),
        "bm25": _average([compute_ndcg(score_bm25(item.query, item.documents), item.gains) for item in rankings]),
        "random": _average([compute_random_ndcg(item.gains) for item in rankings]),
    }
    if len(groups) > 1:
        pairs = list(zip(values, rankings, strict=True))
        figures["by_language"] = {
            group: _average([value for value, item in pairs if item.group == group]) for group in groups
        }
    return figures


def _average(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def score_rankings(reranker: Reranker, rankings: list[Ranking]) -> list[list[float]]:
    """Return the scores of each ranking's candidates."""
    flat = reranker.logits([(ranking.query, document) for ranking in rankings for document in ranking.documents])
    scores, start = [], 0
    for ranking in rankings:
        scores.append(flat[start : start + len(ranking.documents)].tolist())
        start += len(ranking.documents)
    return scores


def score_with_template(folder: Path, rankings: list[Ranking], template: Template) -> list[list[float]]:
    """Return the log-odds of each ranking's candidates with any template, in float32."""
    from tokenizers import Tokenizer
    from transformers import Qwen3ForCausalLM

    maker = PromptMaker(Tokenizer.from_file(str(folder / "tokenizer.json")))
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    with torch.inference_mode():
        for ranking in rankings:
            prompts = maker.make([ranking.query], [ranking.documents], DEFAULT_INSTRUCTION, template)
            tree = pack_tree(prompts.before, prompts.heads, prompts.documents, prompts.suffix)
            scores.append(compute_logits(model, tree, maker.yes, maker.no)[0].tolist())
    return scores


def compute_figures(folder: Path) -> dict[str, Any]:
    """Return the figures that the model card states and a test compares."""
    held_out, sample = load_held_out(), load_sample()
    with Reranker(str(folder), engine="transformers", dtype="float32") as reranker:
        figures = {
            "held_out": measure(score_rankings(reranker, held_out), held_out),
            "sample_pairs": measure(score_rankings(reranker, sample), sample),
        }
    figures["wrong_templates"] = {
        name: measure(score_with_template(folder, held_out, template), held_out)["ndcg"]
        for name, template in WRONG_TEMPLATES.items()
    }
    return figures


def compute_known_pair_figures(folder: Path, pairs: Path) -> dict[str, Any]:
    """Return the figures of known pairs, by file."""
    with Reranker(str(folder), engine="transformers", dtype="float32") as reranker:
        return {
            name: measure(score_rankings(reranker, rankings), rankings)
            for name, rankings in load_known_pairs(pairs).items()
        }
