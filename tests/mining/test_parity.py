"""Mining beside sentence-transformers' own miner, on the same scores: the same rows in the same order."""

import io
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

from rerank_actor.engines.base import compute_score
from rerank_actor.inputs.pairs import TextSpec
from rerank_actor.job_file import check_job
from rerank_actor.mining.examples import Teacher
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.output import MineOutput
from rerank_actor.mining.pairs import Columns
from rerank_actor.mining.tally import MiningTally
from rerank_actor.mining.unit import MiningSpec, mine_table
from rerank_actor.outputs.scored_texts import ScoredTexts


@dataclass
class Scores:
    """A score for every pair of a query and a document, and which are positive."""

    queries: list[str]
    documents: list[str]
    logits: np.ndarray
    positive: list[tuple[int, int]]

    def to_table(self, space: str) -> pa.Table:
        """Return all pairs as mining reads them; both columns hold the values of one space, as the other miner has one."""
        query, document = np.indices(self.logits.shape).reshape(2, -1)
        positive = np.zeros(self.logits.shape, bool)
        positive[tuple(np.array(self.positive).T)] = True
        values = self.values(space).ravel()
        return pa.table(
            {
                "query": pa.array([self.queries[number] for number in query], pa.large_string()),
                "document": pa.array([self.documents[number] for number in document], pa.large_string()),
                "score": values,
                "logit": values,
                "positive": positive.ravel(),
                "position": np.arange(len(query)),
            }
        )

    def values(self, space: str) -> np.ndarray:
        return compute_score(self.logits) if space == "score" else self.logits


class TableModel:
    """Stands for an embedding model or a cross-encoder whose scores are those of a table."""

    device = torch.device("cpu")

    def __init__(self, scores: Scores, space: str) -> None:
        self._values = torch.from_numpy(scores.values(space).copy())
        self._query = {text: number for number, text in enumerate(scores.queries)}
        self._document = {text: number for number, text in enumerate(scores.documents)}

    def encode_query(self, texts: list[str], **options: Any) -> np.ndarray:
        return np.eye(len(self._query), dtype=np.float32)[[self._query[text] for text in texts]]

    def encode_document(self, texts: list[str], **options: Any) -> np.ndarray:
        return self._values.numpy().T[[self._document[text] for text in texts]]

    def similarity(self, queries: Any, documents: Any) -> torch.Tensor:
        return torch.as_tensor(queries) @ torch.as_tensor(documents).T

    def similarity_pairwise(self, queries: Any, documents: Any) -> torch.Tensor:
        return (torch.as_tensor(queries) * torch.as_tensor(documents)).sum(dim=1)

    def predict(self, pairs: list[tuple[str, str]], **options: Any) -> torch.Tensor:
        return self._values[[self._query[q] for q, _ in pairs], [self._document[d] for _, d in pairs]]


def make_scores(seed: int, num_queries: int = 12, num_documents: int = 60, most_positives: int = 3) -> Scores:
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 3, (num_queries, num_documents)).astype(np.float32)
    positive = []
    for query in range(num_queries):
        number = 1 if query % 3 else int(draw.integers(1, most_positives + 1))
        for document in sorted(draw.choice(num_documents, number, replace=False).tolist()):
            positive.append((query, document))
            logits[query, document] += draw.choice([0, 4, 6])
    return Scores(
        [f"query {number}" for number in range(num_queries)],
        [f"document {number}" for number in range(num_documents)],
        logits,
        positive,
    )


def mine_there(scores: Scores, space: str, **options: Any) -> list[dict[str, Any]]:
    """Return the rows of sentence-transformers' miner."""
    model = TableModel(scores, space)
    pairs = Dataset.from_dict(
        {
            "anchor": [scores.queries[query] for query, _ in scores.positive],
            "positive": [scores.documents[document] for _, document in scores.positive],
        }
    )
    if options.pop("with_cross_encoder", False):
        options["cross_encoder"] = model
    return list(mine_hard_negatives(pairs, model, corpus=scores.documents, verbose=False, **options))


def mine_here(scores: Scores, space: str, **settings: Any) -> tuple[list[dict[str, Any]], MiningTally]:
    """Return the rows of this project, and the tally."""
    values = {"scored": ["/scored"], "output": "/mined", "label_column": "label", "space": space, **settings}
    job = check_job(MineJob, values)
    counts = np.bincount([query for query, _ in scores.positive])
    spec = MiningSpec(
        output=MineOutput("/mined"),
        parts=(),
        columns=Columns(ScoredTexts(TextSpec()), label="label"),
        rule_sets={"as given": job.rules()},
        max_positives=int(counts.max()),
        split=None,
        exchange=MineOutput("/mined").make_exchange("shuffle", 0),
        qrels=None,
        teacher=Teacher(job.teacher),
        format=job.format,
        prompt=None,
        with_examples=False,
    )
    objects, tallies = mine_table("0", scores.to_table(space), spec)
    return pq.read_table(io.BytesIO(objects["part-0.parquet"])).to_pylist() if objects else [], tallies["as given"]


def rename(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row under the other miner's names, which calls every document a positive."""
    return {{"document": "positive", "documents": "positive"}.get(name, name): value for name, value in row.items()}


KEEP_ALL = {"false_negatives": "report"}  # without a margin sentence-transformers keeps what lies above the positive
RULES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, KEEP_ALL),
    ({"num_negatives": 5, "range_min": 3}, {"num_negatives": 5, "skip_top": 3, **KEEP_ALL}),
    ({"range_min": 2, "range_max": 9}, {"skip_top": 2, "depth": 9, **KEEP_ALL}),
    ({"absolute_margin": 0.0}, {"absolute_margin": 0.0}),
    ({"absolute_margin": 0.15}, {"absolute_margin": 0.15}),
    ({"relative_margin": 0.05}, {"relative_margin": 0.05}),
    ({"relative_margin": 0.3, "num_negatives": 8}, {"relative_margin": 0.3, "num_negatives": 8}),
    ({"max_score": 0.6}, {"max_score": 0.6, **KEEP_ALL}),
    ({"max_score": 0.6, "range_max": 30}, {"max_score": 0.6, "depth": 30, **KEEP_ALL}),
    (
        {"max_score": 0.9, "min_score": 0.4, "with_cross_encoder": True},
        {"max_score": 0.9, "min_score": 0.4, **KEEP_ALL},
    ),
    ({"min_score": 0.7, "with_cross_encoder": True}, {"min_score": 0.7, **KEEP_ALL}),
    (
        {
            "absolute_margin": 0.1,
            "relative_margin": 0.1,
            "max_score": 0.9,
            "min_score": 0.1,
            "range_min": 1,
            "range_max": 12,
        },
        {
            "absolute_margin": 0.1,
            "relative_margin": 0.1,
            "max_score": 0.9,
            "min_score": 0.1,
            "skip_top": 1,
            "depth": 12,
        },
    ),
]


@pytest.mark.parametrize("space", ["score", "logit"])
@pytest.mark.parametrize(("there", "here"), RULES)
def test_rules_give_the_same_triplets(there: dict[str, Any], here: dict[str, Any], space: str) -> None:
    for seed in range(2):
        scores = make_scores(seed)
        expected = mine_there(scores, space, output_scores=True, **there)
        rows, _ = mine_here(scores, space, teacher="score", **here)
        assert rows == expected
        assert rows or "min_score" in here


@pytest.mark.parametrize("with_scores", [False, True])
@pytest.mark.parametrize("kind", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
def test_formats_give_the_same_rows(kind: str, with_scores: bool) -> None:
    for seed in range(2):
        scores = make_scores(seed)
        rules = {"relative_margin": 0.1, "num_negatives": 4}
        expected = mine_there(scores, "score", output_format=kind, output_scores=with_scores, **rules)
        rows, _ = mine_here(scores, "score", format=kind, teacher="score" if with_scores else "none", **rules)
        assert [list(row) for row in map(rename, rows)] == [list(row) for row in expected]
        assert list(map(rename, rows)) == expected


def test_random_sampling_draws_as_many_from_the_same_candidates() -> None:
    scores = make_scores(5)
    rules = {"relative_margin": 0.1, "num_negatives": 2}
    every = {
        (row["anchor"], row["negative"])
        for row in mine_there(scores, "score", relative_margin=0.1, num_negatives=20, range_max=23)
    }
    random.seed(1)
    expected = mine_there(scores, "score", sampling_strategy="random", range_max=23, **rules)
    rows, _ = mine_here(scores, "score", sampling="random", depth=23, **rules)
    assert [(row["anchor"], row["positive"]) for row in rows] == [(row["anchor"], row["positive"]) for row in expected]
    assert {(row["anchor"], row["negative"]) for row in rows} <= every
    assert rows != expected, "drawn by other means, or this test compares nothing"


def test_report_has_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    scores = make_scores(6, num_queries=40)
    model = TableModel(scores, "score")
    pairs = Dataset.from_dict(
        {
            "anchor": [scores.queries[query] for query, _ in scores.positive],
            "positive": [scores.documents[document] for _, document in scores.positive],
        }
    )
    rules = {"absolute_margin": 0.05, "max_score": 0.8}
    mine_hard_negatives(pairs, model, corpus=scores.documents, output_format="triplet", **rules)
    lines = {line.split()[0].lower(): line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    _, tally = mine_here(scores, "score", false_negatives="report", **rules)
    assert int(lines["count"][0]) >= tally.positives.count  # it also counts positives of queries without negatives
    found = tally.margins.summarize()
    for measure in ("mean", "std", "min", "max"):
        assert found[measure] == pytest.approx(float(lines[measure][2]), abs=1e-4)
    for measure in ("25%", "50%", "75%"):  # from bins here; between two values there is a gap of more than a bin
        assert found[measure] == pytest.approx(float(lines[measure][2]), abs=5e-3)
