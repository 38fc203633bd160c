"""Ask mteb what it makes of three small tasks with stored scores, and write both: tests/evaluation/mteb_cases.json.

Run it in an environment with mteb (2.26.24 was taken): `python dev/make_mteb_cases.py > tests/evaluation/mteb_cases.json`.
Judgements and scores are drawn here; there are ties, queries with the id of a document, graded and negative judgements, a query
with no relevant document, and for p-MRR queries with an original and a changed instruction.
"""

import json
import random
from collections.abc import Sequence
from typing import Any

import mteb
from datasets import Dataset
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores, evaluate_p_mrr_change
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta

DEPTHS = (1, 3, 5, 10, 20, 100, 1000)


def draw_case(name: str, seed: int, num_queries: int, num_documents: int, depth: int, levels: int) -> dict[str, Any]:
    """Return judgements and scores; of few levels there are many ties."""
    draw = random.Random(seed)
    ids = [f"d{number}" for number in range(num_documents)]
    queries = [f"{number}-{side}" for number in range(num_queries // 2) for side in ("og", "changed")]
    queries = queries if name == "instructions" else [f"q{number}" for number in range(num_queries)]
    if name == "identical":
        queries = [f"d{number}" for number in range(num_queries)]
    qrels, scores, changed = {}, {}, {}
    for query in queries:
        qrels[query] = {one: draw.choice([-1, 0, 1, 1, 2, 3]) for one in draw.sample(ids, 6)}
        # Scores that a float32 holds, as logits do, of few levels for ties.
        scores[query] = {one: draw.randrange(levels) / 8 - 4 for one in draw.sample(ids, depth)}
        if name == "identical":
            scores[query][query] = 9.0
    if name == "graded":
        qrels[queries[0]] = dict.fromkeys(qrels[queries[0]], 0)
    for query in queries if name == "instructions" else ():
        before = query.replace("-changed", "-og")
        if query != before:
            qrels[query] = {one: draw.choice([0, grade]) for one, grade in qrels[before].items()}
            moved = [one for one in qrels[query] if qrels[query][one] != qrels[before][one]]
            changed |= {query.removesuffix("-changed"): moved} if moved else {}
    if changed:  # all of whose documents are not relevant any more
        qrels["0-changed"] = dict.fromkeys(qrels["0-og"], 0)
        changed["0"] = [one for one, grade in qrels["0-og"].items() if grade != 0]
    return {
        "name": name,
        "ignore_identical_ids": name == "identical",
        "qrels": qrels,
        "scores": scores,
        "changed": changed,
    }


class Stored:
    """A model whose scores are there."""

    mteb_model_meta = ModelMeta.create_empty({"name": "test/stored", "revision": "1"})

    def __init__(self, scores: dict[str, dict[str, float]]) -> None:
        self._scores = scores

    def index(self, **arguments: Any) -> None:
        """Do nothing: all is there."""

    def search(self, queries: Any, **arguments: Any) -> dict[str, dict[str, float]]:
        """Return the scores of some queries."""
        return {query: dict(self._scores[query]) for query in queries["id"]}


def make_task(case: dict[str, Any]) -> AbsTaskRetrieval:
    """Return a task of mteb with these judgements."""

    class Task(AbsTaskRetrieval):
        """A task whose data are made here."""

        metadata = TaskMetadata(
            name=f"Case{case['name'].title()}", description="", reference=None, dataset={"path": "none", "revision": "1"},
            type="Retrieval", category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", date=None, domains=None, task_subtypes=None, license=None,
            annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
        )  # fmt: skip
        ignore_identical_ids = case["ignore_identical_ids"]
        k_values: Sequence[int] = DEPTHS

        def load_data(self, **arguments: Any) -> None:
            """Take the data as they are."""
            documents = sorted({one for of in [*case["scores"].values(), *case["qrels"].values()] for one in of})
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": Dataset.from_list([{"id": one, "title": "", "text": one} for one in documents]),
                        "queries": Dataset.from_list([{"id": query, "text": query} for query in case["scores"]]),
                        "relevant_docs": case["qrels"],
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

        def task_specific_scores(self, scores: Any, qrels: Any, results: Any, **arguments: Any) -> dict[str, Any]:
            """Return p-MRR, where instructions change."""
            if not case["changed"]:
                return {}
            return {"p-MRR": evaluate_p_mrr_change(qrels, results, case["changed"], self.k_values)["p-MRR"]}

    return Task()


def main() -> None:
    """Print the cases with what mteb makes of them."""
    cases = [
        draw_case("graded", 1, 12, 60, 40, 200),
        draw_case("identical", 2, 8, 30, 20, 6),
        draw_case("instructions", 3, 12, 40, 25, 30),
    ]
    for case in cases:
        result = mteb.evaluate(Stored(case["scores"]), make_task(case), cache=None).task_results[0]
        kept = {
            query: {one: score for one, score in of.items() if one != query or not case["ignore_identical_ids"]}
            for query, of in case["scores"].items()
        }
        found = calculate_retrieval_scores(kept, case["qrels"], DEPTHS)
        case["by_query"] = {
            query: {name: of[name] for name in ("ndcg_cut_10", "map_cut_100", "recall_5")}
            for query, of in found.all_scores.items()
        }
        own = result.scores["test"][0]
        names = (
            "ndcg_at_10",
            "ndcg_at_1",
            "map_at_100",
            "mrr_at_10",
            "recall_at_5",
            "precision_at_5",
            "hit_rate_at_3",
            "p-MRR",
        )
        case["means"] = {name: own[name] for name in (*names, "main_score") if name in own}
        case["form"] = sorted(result.model_dump())
    print(json.dumps({"mteb": mteb.__version__, "cases": cases}, indent=None, separators=(",", ":")))


if __name__ == "__main__":
    main()
