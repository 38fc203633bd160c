"""Vectors and candidates against sentence-transformers, and what is refused before anything starts."""

import itertools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from families import TEXTS, build, make_bpe, make_wordpiece
from scoring_in_process import score_here
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.util import semantic_search
from tokenizers import processors

from rerank_actor.commands.evaluate import evaluate
from rerank_actor.engines.families.embedding import EMBEDDING_TEMPLATE
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.vectors import VectorForm
from rerank_actor.errors import JobError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.manifest import check_committed
from rerank_actor.retrieval.candidates import (
    SearchBlock,
    SearchPlace,
    find_twice,
    search_block,
    spill_pairs,
    write_candidates,
    write_pairs,
    write_predictions,
)
from rerank_actor.retrieval.job import RetrieveJob
from rerank_actor.retrieval.run import make_embed_jobs
from rerank_actor.retrieval.search import search
from rerank_actor.retrieval.vectors import Vectors, list_vector_parts, read_part
from rerank_actor.scoring.preflight import prepare_job
from rerank_actor.storage.exchange import Exchange, collect_slices

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
        if not (folder / f"{name}.jsonl").exists():  # so that a second job finds the first one's shards
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
        parts = [read_part(part) for part in list_vector_parts(one)]
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


@pytest.mark.vllm
def test_vectors_of_vllm_are_those_of_sentence_transformers(models: dict[str, Path], tmp_path: Path) -> None:
    model = SentenceTransformer(str(models["qwen3"]), device="cpu")
    texts = [*QUERIES, *DOCUMENTS]
    job = make_job(tmp_path, engine="vllm", model=str(models["qwen3"]), unit_rows=50, **write_texts(tmp_path, texts))
    _, one = make_embed_jobs(job)
    score_here(one)
    found = np.concatenate([read_part(part).values for part in list_vector_parts(one)])
    assert np.abs(found - model.encode_query(texts, normalize_embeddings=True)).max() < 1e-5


def rank_by_hand(queries: np.ndarray, documents: np.ndarray, ids: list[str], top_k: int) -> list[list[str]]:
    cosines = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    return [[ids[at] for at in sorted(range(len(ids)), key=lambda at: (-row[at], ids[at]))[:top_k]] for row in cosines]


def test_blank_texts_are_embedded_and_counted_and_blank_lines_left_out(models: dict[str, Path], tmp_path: Path) -> None:
    job = make_job(tmp_path, model=str(models["bert"]), **write_texts(tmp_path, ["x", ""], ["", "y", " ", "z"]))
    corpus, queries = make_embed_jobs(job)
    assert [len(vectors.ids) for vectors in embed(job)] == [4, 2]
    (documents,), parts = list_vector_parts(corpus), list_vector_parts(queries)
    place = SearchPlace(str(tmp_path / "partial"), str(tmp_path / "candidates"), None)
    record = search_block(SearchBlock("block", tuple(parts), (documents,)), 2, place)
    assert record["empty"] == {"documents": 2, "queries": 1}
    (tmp_path / "deu.txt").write_text("Ja\n\n  \nNein\n")
    lines = RetrieveJob(source=[str(tmp_path / "deu.txt")], target=[str(tmp_path / "deu.txt")], engine="transformers",
                        model=str(models["bert"]), output=str(tmp_path / "lines")).normalized()  # fmt: skip
    score_here(one := make_embed_jobs(lines)[1])
    vectors = read_part(list_vector_parts(one)[0], distinct=True)
    assert (vectors.ids.to_pylist(), vectors.left_out["line is blank"], vectors.num_empty) == (["Ja", "Nein"], 2, 0)


@pytest.mark.parametrize(("num_documents", "top_k"), [(300, 7), (300, 300), (5, 7), (1, 1)])
def test_search_gives_the_best_documents_with_ties_by_id_however_they_are_cut(num_documents: int, top_k: int) -> None:
    random = np.random.default_rng(num_documents + top_k)
    few = random.normal(size=(max(1, num_documents // 4), 16))  # so that most documents have twins
    documents = few[random.integers(0, len(few), num_documents)]
    queries = random.normal(size=(1030, 16))  # more than a block of products has
    documents, queries = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (documents, queries)
    )
    ids = [f"d{number}" for number in random.permutation(num_documents)]
    wanted = rank_by_hand(queries, documents, ids, top_k)
    for cuts in ([], [1, 100], [num_documents // 2]):
        edges = [0, *(cut for cut in cuts if cut < num_documents), num_documents]
        spans = [slice(*span) for span in itertools.pairwise(edges)]
        best = search(queries, [Vectors(pa.array(ids[span], pa.string()), documents[span]) for span in spans], top_k)
        found = np.reshape(best.column("document_id").to_pylist(), (len(queries), -1))
        assert found.tolist() == wanted


def find_candidates(job: RetrieveJob, folder: Path) -> pa.Table:
    """Return the candidates of a job by the tasks of its search, without Ray."""
    jobs = make_embed_jobs(job)
    for one in jobs:
        score_here(one)
    documents, queries = (list_vector_parts(one) for one in jobs)
    place = SearchPlace(str(folder / "partial"), str(folder / "candidates"), None)
    for flag, parts in (("--corpus", documents), ("--queries", queries)):
        for number in range(3):
            find_twice((flag, parts, number, 3))
    names = []
    for number, part in enumerate(documents):
        names.append(f"f{number}")
        search_block(SearchBlock(names[-1], tuple(queries), (part,)), job.top_k, place)
    if job.output_format == "mteb-predictions":
        write_predictions(("predictions", [names]), job.top_k, (job.model_name, job.revision), place)
    else:
        write_candidates(("part-00000", names), job.top_k, job.output_format, place)
    return pq.read_table(folder / "candidates/part-00000.parquet") if job.output_format == "parquet" else pa.table({})


def test_candidates_are_read_by_the_scoring_job_as_they_are(tmp_path: Path) -> None:
    table = find_candidates(make_job(tmp_path, engine="fake", top_k=3, output_format="parquet"), tmp_path)
    assert table.num_rows == 3 * len(QUERIES)
    assert table.column("rank").to_pylist() == [1, 2, 3] * len(QUERIES)
    find_candidates(make_job(tmp_path, engine="fake", top_k=3), tmp_path)
    lines = [line.split() for line in (tmp_path / "candidates/part-00000.trec").read_text().splitlines()]
    assert [(line[0], line[2]) for line in lines] == list(
        zip(table.column("query_id").to_pylist(), table.column("document_id").to_pylist(), strict=True)
    )
    blocks = sorted(path.stem for path in (tmp_path / "partial").iterdir())
    place = SearchPlace(str(tmp_path / "partial"), str(tmp_path / "candidates"), None)
    write_predictions(("part-00000", [blocks]), 3, ("an/embedder", None), place)
    predictions = json.loads((tmp_path / "candidates/part-00000.json").read_text())["default"]["test"]
    assert [(query, name) for query, found in predictions.items() for name in found] == [(x[0], x[2]) for x in lines]
    for name in ("trec", "parquet", "json"):
        job = ScoreJob(input=[str(tmp_path / f"candidates/part-00000.{name}")], output=str(tmp_path / name), engine="fake",
                       **write_texts(tmp_path)).normalized()  # fmt: skip
        assert score_here(job).totals.scored == table.num_rows


@pytest.mark.parametrize("output_format", ["trec", "parquet", "mteb-predictions"])
def test_beir_folder_leads_to_measures_by_way_of_any_candidates(
    tmp_path: Path, output_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"what {number} is" for number in range(12)]
    given = write_texts(tmp_path, texts[:4], texts)  # of each query one document has its very words
    (tmp_path / "qrels").mkdir()
    lines = [f"q{number}\tc{number}\t1" for number in range(4)]
    (tmp_path / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    find_candidates(make_job(tmp_path, engine="fake", top_k=5, output_format=output_format), tmp_path)
    scored = tmp_path / "scored"
    score_here(ScoreJob(input=[str(tmp_path / "candidates")], output=str(scored), engine="fake", **given).normalized())
    flags = ["--qrels", str(tmp_path / "qrels/test.tsv"), "--measures", "ndcg@10", "recall@5"]
    assert evaluate(["--scored", str(scored), *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("4 queries\n")
    assert "| candidates' own order | 100.00 (100.0 to 100.0) | 100.00 (100.0 to 100.0) |" in printed
    assert "Not counted" not in printed


def test_another_top_k_and_other_queries_leave_the_vectors_of_the_corpus_as_they_are(tmp_path: Path) -> None:
    first = make_embed_jobs(make_job(tmp_path, engine="fake"))
    assert [len(score_here(one).scored) > 0 for one in first] == [True, True]
    again = make_embed_jobs(make_job(tmp_path, engine="fake", top_k=3))
    assert [score_here(one).scored for one in again] == [[], []]
    (tmp_path / "other.jsonl").write_text('{"_id": "new", "text": "another query"}\n')
    other = make_embed_jobs(make_job(tmp_path, engine="fake", queries=[str(tmp_path / "other.jsonl")]))
    assert [len(score_here(one).scored) for one in other] == [0, 1]
    assert [read_part(part).ids.to_pylist() for part in list_vector_parts(other[1])] == [["new"]]


def test_titles_are_put_before_texts_as_scoring_does_and_rows_without_text_have_a_reason(tmp_path: Path) -> None:
    job = make_job(tmp_path, engine="fake", embedding_type="float16")
    rows = [
        {"_id": 1, "title": "One", "text": "two"},
        {"_id": 2, "title": "", "text": " three "},
        {"_id": 3, "text": None},
    ]
    Path(job.corpus[0]).write_text("\n".join(map(json.dumps, [*rows, {"_id": 4, "title": "x", "text": 5}])))
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"_id": "a", "text": "One two"}\n{"_id": "b", "text": "three"}\n')
    found = []
    for uris in (job.corpus, [str(plain)]):
        one = make_embed_jobs(
            job.model_copy(update={"corpus": uris, "output": str(tmp_path / plain.stem / uris[0][-9:-6])})
        )[0]
        score_here(one)
        found.append([read_part(part) for part in list_vector_parts(one)])
    assert found[0][0].ids.to_pylist() == ["1", "2"]
    assert np.array_equal(found[0][0].values, found[1][0].values)
    assert found[0][0].left_out.total() == 2


def test_damaged_vectors_are_found(tmp_path: Path) -> None:
    one = make_embed_jobs(make_job(tmp_path, engine="fake"))[0]
    score_here(one)
    output = Output(one.output)
    plan, settings = output.require_plan()
    name, part = next(iter(output.list_parts().items()))
    table = pq.read_table(part.uri)
    longer = pc.multiply(table.column("embedding").combine_chunks().flatten(), pa.scalar(2, pa.float32()))
    column = pa.FixedSizeListArray.from_arrays(longer, 64)
    pq.write_table(table.set_column(1, "embedding", column), part.uri, write_page_checksum=True)
    _, damaged = check_committed(output, output.list_parts(), plan.units(), hash_fingerprint(settings))
    assert damaged == {name: "has vectors whose length is not 1"}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dimensions": 65}, "--dimensions 65 is more than the 64 numbers of a vector"),
    ({"top_k": 0}, "--top-k: input should be greater than or equal to 1"),
    ({"queries": []}, "--queries is missing"),
    ({"instruction": "x", "query_prompt": "y"}, "--instruction and --query-prompt both say"),
    ({"check_scores": True}, "--check-scores is for rerankers"),
    ({"source": ["x"]}, "give one of both"),
    ({"both_directions": True}, "--both-directions is for --source and --target"),
]


@pytest.mark.parametrize(("values", "reason"), REFUSED)
def test_bad_job_is_refused_in_a_sentence(
    values: dict[str, Any], reason: str, models: dict[str, Path], tmp_path: Path
) -> None:
    given = {**write_texts(tmp_path), "output": str(tmp_path / "out"), "model": str(models["bert"]), **values}
    with pytest.raises(JobError, match=re.escape(reason)):
        for one in make_embed_jobs(check_job(RetrieveJob, given).normalized()):
            prepare_job(one)


def test_reranker_and_embedding_model_are_not_taken_for_one_another(models: dict[str, Path], tmp_path: Path) -> None:
    reranker = build("Bert", make_wordpiece(), tmp_path / "reranker")
    with pytest.raises(JobError, match=r"is a reranker .*give a reranker to jobs.score"):
        prepare_job(make_embed_jobs(make_job(tmp_path, model=str(reranker), query_prompt="", document_prompt=""))[0])
    with pytest.raises(JobError, match="an embedding model"):
        load_reranker_model(str(models["qwen3"]))


@pytest.mark.parametrize(("file", "settings", "reason"), [
    ("1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": "max"}, "pools by max"),
    ("1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": ["cls", "mean"]}, "pools by cls, mean"),
    ("1_Pooling/config.json", {"embedding_dimension": 64, "include_prompt": False}, "include_prompt"),
    ("1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": "cls"}, "are not of one model"),
    ("config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}, "compared by euclidean"),
    ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "a prompt that is no text"),
    ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
])  # fmt: skip
def test_model_that_says_what_is_not_understood_is_refused(
    file: str, settings: dict[str, Any], reason: str, models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(models["bert"], tmp_path / "changed")
    (tmp_path / "changed" / file).write_text(json.dumps(settings))
    with pytest.raises(JobError, match=reason):
        for one in make_embed_jobs(make_job(tmp_path, model=str(tmp_path / "changed"))):
            prepare_job(one)


def test_ids_that_stand_twice_and_ids_with_blanks_are_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, engine="fake", top_k=2)
    Path(job.queries[0]).write_text('{"_id": "a b", "text": "x"}\n')
    with pytest.raises(JobError, match=r"'a b' has a blank in it, .*--output-format parquet"):
        find_candidates(job, tmp_path)
    Path(job.corpus[0]).write_text('{"_id": "a", "text": "x"}\n{"_id": "b", "text": "y"}\n{"_id": "a", "text": "z"}\n')
    with pytest.raises(JobError, match="--corpus: 1 ids stand more than once, 'a' among them"):
        find_candidates(job.model_copy(update={"output": str(tmp_path / "other")}), tmp_path)


def test_vectors_that_are_not_finite_are_errors_of_their_rows() -> None:
    form = VectorForm(2, "float32")
    encoder = PairEncoder(load_tokenizer_json(load_reranker_model("bytes")), template=EMBEDDING_TEMPLATE, instruction="",
                          max_length=9)  # fmt: skip
    prompts = encoder.encode(["", ""], ["a", "b"])
    columns = form.make_columns(prompts, np.array([[1, 0], [np.nan, 0]], np.float32), pa.nulls(2, pa.string()))
    assert columns["embedding"].to_pylist() == [[1, 0], None]
    assert columns["error"].to_pylist() == [None, "engine returned a vector that is not finite"]
    assert form.find_problem(pa.table(columns)) is None


def test_sentences_of_both_languages_become_candidates_that_bitext_reads(tmp_path: Path) -> None:
    (tmp_path / "deu.txt").write_text("Guten Tag\n\nGuten Tag\n\n\nJa\nDas ist gut\n")
    (tmp_path / "eng.txt").write_text("Good day\nYes\nThis is good\nYes\n\n")
    job = RetrieveJob(source=[str(tmp_path / "deu.txt")], target=[str(tmp_path / "eng.txt")], both_directions=True,
                      output=str(tmp_path / "out"), engine="fake", unit_rows=2, top_k=2).normalized()  # fmt: skip
    targets, sources = make_embed_jobs(job)
    for one in (targets, sources):
        score_here(one)
    place = SearchPlace(str(tmp_path / "partial"), str(tmp_path / "candidates"), None)
    exchange, spilled = Exchange(str(tmp_path / "pairs"), 2), []
    for prefix, one, other in (("f", sources, targets), ("b", targets, sources)):
        blocks = []
        for number, part in enumerate(list_vector_parts(other)):
            blocks.append(f"{prefix}{number}")
            block = SearchBlock(blocks[-1], tuple(list_vector_parts(one)), (part,), distinct=True)
            search_block(block, job.top_k, place)
        spilled.append(spill_pairs((blocks[0], blocks, prefix == "b"), job.top_k, exchange, place)["spilled"])
    for number, slices in enumerate(collect_slices(spilled, 2)):
        write_pairs((f"part-{number}", slices), place)
    rows = pq.read_table(tmp_path / "candidates").to_pylist()
    pairs = [(row["source"], row["target"]) for row in rows]
    assert len(set(pairs)) == len(pairs)
    for side, texts in (
        ("source", {"Guten Tag", "Ja", "Das ist gut"}),
        ("target", {"Good day", "Yes", "This is good"}),
    ):
        assert {row[side] for row in rows} == texts
        assert all(sum(row[side] == text for row in rows) >= 2 for text in texts)
    assert all(-1 <= row["candidate_score"] <= 1 for row in rows)
