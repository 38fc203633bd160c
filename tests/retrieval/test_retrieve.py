"""Vectors and candidates against sentence-transformers, and what is refused before anything starts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from families import TEXTS, build, make_bpe, make_wordpiece
from scoring_in_process import score_here
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.util import semantic_search
from tokenizers import processors

from rerank_actor.retrieval.job import RetrieveJob
from rerank_actor.retrieval.run import make_embed_jobs
from rerank_actor.retrieval.search import search
from rerank_actor.retrieval.vectors import Vectors, list_vector_parts, read_part

QUERIES = [*TEXTS[:12:2], "word " * 300, "  what?\n"]
DOCUMENTS = [*TEXTS[1:80:2], "because " * 200, ""]
TASK = "Given a question, find its answer"


def declare(folder: Path, pooling: str, width: int, prompts: dict[str, str]) -> Path:
    """Save a folder as an embedding model, as sentence-transformers does."""
    modules = [Transformer(str(folder)), Pooling(width, pooling_mode=pooling), Normalize()]
    SentenceTransformer(modules=modules, prompts=prompts).save(str(folder / "whole"))
    return folder / "whole"


def make_qwen3(folder: Path) -> Path:
    tokenizer = make_bpe()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    build("Qwen3", tokenizer, folder, task="", pad_token_id=None)  # whose embedding would be nought
    return declare(folder, "lasttoken", 64, {"query": "Instruct: Given a web search query\nQuery:", "document": ""})


def make_bert(folder: Path) -> Path:
    build("Bert", make_wordpiece(), folder, task="")
    return declare(folder, "mean", 64, {"query": "query: ", "document": "passage: "})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"qwen3": make_qwen3(folder / "qwen3"), "bert": make_bert(folder / "bert")}


def write_texts(folder: Path, queries: Sequence[Any] = QUERIES, documents: Sequence[Any] = DOCUMENTS) -> dict[str, Any]:
    for name, texts in (("queries", queries), ("corpus", documents)):
        rows = [json.dumps({"_id": f"{name[0]}{number}", "text": text}) for number, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return {"queries": [str(folder / "queries.jsonl")], "corpus": [str(folder / "corpus.jsonl")]}


def make_job(folder: Path, **values: Any) -> RetrieveJob:
    defaults = {"engine": "transformers", "dtype": "float32", "output": str(folder / "out"), "unit_rows": 7}
    return RetrieveJob(**{**write_texts(folder), **defaults, **values}).normalized()


def embed(job: RetrieveJob) -> list[Vectors]:
    """Return the vectors of documents and of queries."""
    found = []
    for one in make_embed_jobs(job):
        score_here(one)
        parts = [read_part(part) for part in list_vector_parts(one)[0]]
        found.append(
            Vectors(pa.concat_arrays([part.ids for part in parts]), np.concatenate([part.values for part in parts]))
        )
    return found


@pytest.mark.parametrize(("name", "values", "prompt"), [
    ("qwen3", {"instruction": TASK}, f"Instruct: {TASK}\nQuery:"),
    ("qwen3", {"dimensions": 32}, None),
    ("bert", {"parse_special_tokens": True}, None),
    ("bert", {"query_prompt": ""}, ""),
])  # fmt: skip
def test_vectors_and_ranking_are_those_of_sentence_transformers(
    name: str, values: dict[str, Any], prompt: str | None, models: dict[str, Path], tmp_path: Path
) -> None:
    model = SentenceTransformer(str(models[name]), device="cpu", truncate_dim=values.get("dimensions"))
    documents, queries = embed(make_job(tmp_path, model=str(models[name]), top_k=5, **values))
    settings: dict[str, Any] = {"convert_to_tensor": True, "normalize_embeddings": True}
    expected = [model.encode_document(DOCUMENTS, **settings), model.encode_query(QUERIES, prompt=prompt, **settings)]
    assert queries.ids.to_pylist() == [f"q{number}" for number in range(len(QUERIES))]
    assert np.abs(documents.values - expected[0].numpy()).max() < 1e-5
    assert np.abs(queries.values - expected[1].numpy()).max() < 1e-5
    best = search(queries.values, [documents], 5)
    wanted = [[f"c{hit['corpus_id']}" for hit in hits] for hits in semantic_search(expected[1], expected[0], top_k=5)]
    assert np.reshape(best.column("document_id").to_pylist(), (-1, 5)).tolist() == wanted
