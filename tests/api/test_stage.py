"""`RerankStage`: columns added to batches of every kind, the same scores in all."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from rerank_actor import Reranker, RerankStage
from rerank_actor.errors import InputError

ADDED = ["score", "logit", "num_tokens", "truncated_tokens", "error"]
COLUMNS = {"q": ["one", "two", None], "d": ["a", "b", "c"], "number": [1, 2, 3]}


@pytest.fixture(scope="module")
def stage() -> RerankStage:
    return RerankStage(engine="fake", query_column="q", document_column="d")


@pytest.fixture(scope="module")
def reranker() -> Iterator[Reranker]:
    with Reranker(engine="fake") as found:
        yield found


@pytest.mark.parametrize(
    "batch",
    [
        pa.table(COLUMNS),
        pa.RecordBatch.from_pydict(COLUMNS),
        pd.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS).astype({"q": pd.StringDtype(), "d": object}),
        datasets.Dataset.from_dict(COLUMNS),
        {name: np.array(values, object) for name, values in COLUMNS.items()},
    ],
    ids=["arrow", "record batch", "pandas", "pandas-string", "datasets", "numpy"],
)
def test_batch_comes_back_in_its_own_kind_with_columns_added(
    batch: Any, stage: RerankStage, reranker: Reranker
) -> None:
    found = stage(batch)
    assert type(found) is type(batch)
    columns = {
        name: list(found[name].to_pylist() if isinstance(batch, pa.Table | pa.RecordBatch) else found[name])
        for name in ADDED
    }
    assert columns["score"][:2] == reranker.score([("one", "a"), ("two", "b")]).tolist()
    assert [bool(pd.isna(score)) for score in columns["score"]] == [False, False, True]
    assert [None if pd.isna(error) else error for error in columns["error"]] == [None, None, "query is null"]
    assert list(found["number"].to_pylist() if isinstance(batch, pa.Table | pa.RecordBatch) else found["number"]) == [
        1,
        2,
        3,
    ]


def test_stage_of_a_pipeline(local_ray: str, reranker: Reranker) -> None:
    import ray

    rows = ray.data.from_items([{"query": f"q{number}", "document": "d"} for number in range(20)])
    arguments = {"engine": "fake"}
    scored = rows.map_batches(RerankStage, fn_constructor_kwargs=arguments, batch_size=8, concurrency=1).take_all()
    expected = dict(zip([f"q{n}" for n in range(20)], reranker.score([(f"q{n}", "d") for n in range(20)]), strict=True))
    assert {row["query"]: row["score"] for row in scored} == expected


def test_stage_refuses_columns_that_do_not_fit(stage: RerankStage) -> None:
    with pytest.raises(InputError, match="no column `q`; it has query, d"):
        stage(pa.table({"query": ["a"], "d": ["b"]}))
    with pytest.raises(InputError, match="column `score` is there already"):
        stage(pa.table({"q": ["a"], "d": ["b"], "score": [1.0]}))
    with pytest.raises(InputError, match="other lengths than one another"):
        stage({"q": ["a"], "d": ["b", "c"]})
    with pytest.raises(TypeError, match="a batch is a list"):
        stage([("a", "b")])


def test_instruction_of_each_row(reranker: Reranker) -> None:
    with_column = RerankStage(engine="fake", instruction_column="task")
    found = with_column(pa.table({"query": ["q", "q"], "document": ["d", "d"], "task": ["find", "deny"]}))
    assert found["score"].to_pylist() == [reranker.score([("q", "d")], task)[0] for task in ("find", "deny")]


def test_rank_orders_documents_of_a_query(reranker: Reranker) -> None:
    documents = [f"document {number}" for number in range(9)]
    scores = reranker.score([("q", document) for document in documents])
    found = reranker.rank("q", documents, top_k=4, return_documents=True)
    assert [entry["corpus_id"] for entry in found] == np.argsort(-scores, kind="stable")[:4].tolist()
    assert all(entry["score"] == scores[entry["corpus_id"]] for entry in found)
    assert all(entry["text"] == documents[entry["corpus_id"]] for entry in found)
    assert set(reranker.rank("q", documents)[0]) == {"corpus_id", "score"}
    assert reranker.rank("q", []) == []
    with pytest.raises(TypeError, match="one text"):
        reranker.rank("q", "a document")
