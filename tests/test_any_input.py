"""Whatever the input is and whatever the flags say: a result, or an error of ours in a sentence; never another exception."""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from any_files import NAMES, files, harmed, scored_tables, some_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mining_in_process import mine_in_process
from scoring_in_process import score_here

from rerank_actor.bitext.estimate import estimate_bitext
from rerank_actor.bitext.ingest import ReadSpec, read_candidates
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.sources import list_sources
from rerank_actor.commands.export import export
from rerank_actor.commands.report import report
from rerank_actor.commands.status import status
from rerank_actor.commands.verify import verify
from rerank_actor.errors import RerankError
from rerank_actor.job import load_job
from rerank_actor.job_file import check_job
from rerank_actor.mining.job import MineJob
from rerank_actor.outputs.export import FORMATS, ExportSpec, export_scores
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.verify import verify_output

ANY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

COMMANDS: dict[str, Callable[[str], Any]] = {
    "status": lambda uri: status([uri]),
    "verify": lambda uri: verify([uri]),
    "report": lambda uri: report([uri]),
    "export": lambda uri: export([uri, "--format", "trec", "--partial"]),
}

names = st.sampled_from(NAMES)
templates = st.sampled_from(["{query}", "{title} {text}", "{text}", "{document}", "{", "{x!r}", "", "{label}"])
score_flags = some_of(
    {
        "format": st.sampled_from(["auto", "parquet", "arrow", "jsonl", "csv", "tsv", "trec", "tevatron", "qrels"]),
        "query_column": names,
        "document_column": names,
        "instruction_column": names,
        "columns": st.sampled_from(["query,document", "a", "query,document,x", "query,query"]),
        "query_template": templates,
        "document_template": templates,
        "keep_columns": st.sampled_from(["all", "query", "document,label", ""]),
        "drop_columns": st.sampled_from(["query", "score", "label,title"]),
        "rename_columns": st.sampled_from(["query=q", "score=old", "document=query", "="]),
        "keep_fields": st.sampled_from(["text", "id,x"]),
        "explode": st.booleans(),
        "explode_columns": names,
        "limit": st.sampled_from([1, 2, 0]),
        "unit_rows": st.sampled_from([1, 2]),
        "top_k": st.just(1),
        "split": st.just("train"),
        "with_pair_key": st.booleans(),
        "dedupe": st.sampled_from(["none", "unit"]),
        "max_length": st.sampled_from([120, 8192]),
    },
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small scored output."""
    folder = tmp_path_factory.mktemp("scored")
    rows = [{"query_id": f"q{i // 2}", "document_id": f"d{i}", "query": "q", "document": f"d {i}"} for i in range(6)]
    write_files(folder / "in", [("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())])
    job = load_job(None, {"input": str(folder / "in"), "output": str(folder / "out"), "engine": "fake", "unit_rows": 3})
    score_here(job)
    failed = {"unit": "x", "shard": "y", "row_start": 0, "num_rows": 1, "error": "z", "attempts": 1, "run": "r"}
    for name, record in {"manifest.json": {"job": job.to_record(), "totals": {}}, "failed/x.json": failed}.items():
        Output(job.output).write_own(name, json.dumps(record).encode())
    return folder / "out"


def write_files(folder: Path, given_files: list[tuple[str, bytes]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in given_files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def attempt(function: Callable[[Path], Any], *folders: tuple[str, list[tuple[str, bytes]]]) -> None:
    """Call a function with a folder of such files; an error of ours is right, and any other is raised."""
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(RerankError):
        for folder, given_files in folders:
            write_files(Path(name, folder), given_files)
        function(Path(name))


@ANY
@given(st.lists(files(), min_size=1, max_size=2), score_flags)
def test_any_file_is_scored_or_refused_in_our_words(given_files: Any, flags: Any) -> None:
    def score(folder: Path) -> None:
        job = load_job(None, {"input": str(folder / "in"), "output": str(folder / "out"), "engine": "fake", **flags})
        score_here(job)
        assert verify_output(str(folder / "out")).problems == []
        for kind in FORMATS:
            with contextlib.suppress(RerankError):
                export_scores(ExportSpec(str(folder / "out"), kind, str(folder / "run"), partial=True))

    attempt(score, ("in", given_files))


@ANY
@given(
    files(),
    files(),
    files(),
    st.sampled_from(["auto", "jsonl", "trec", "tevatron", "qrels"]),
    st.sampled_from([None, 1]),
)
def test_any_texts_by_id_are_found_or_refused_in_our_words(
    ranking: Any, queries: Any, corpus: Any, kind: str, top_k: int | None
) -> None:
    def score(folder: Path) -> None:
        by_id = {name: str(folder / name) for name in ("queries", "corpus")}
        values = {**by_id, "format": kind, "top_k": top_k, "engine": "fake", "output": str(folder / "out")}
        score_here(load_job(None, {"input": str(folder / "in"), **values}))

    attempt(score, ("in", [ranking]), ("queries", [queries]), ("corpus", [corpus]))


@ANY
@given(
    st.lists(files(("source", "target")), min_size=1, max_size=2),
    some_of(
        {
            "format": st.sampled_from(["auto", "pairs", "laser", "tsv", "csv", "jsonl", "parquet", "moses"]),
            "lang_pair": st.sampled_from(["en-es", "xx", "en-pt_BR", ""]),
            "source_column": names,
            "target_column": names,
            "score_column": names,
            "source_language_column": names,
        }
    ),
)
def test_any_translation_pairs_are_read_or_refused_in_our_words(given_files: Any, flags: Any) -> None:
    def read(folder: Path) -> None:
        job = check_job(
            BitextJob, {"input": [str(folder / "in")], "output": str(folder / "out"), "engine": "fake", **flags}
        )
        estimate_bitext(job.normalized())
        for source in list_sources(job):
            read_candidates(source, ReadSpec.of_job(job, str(folder / "read")))

    attempt(read, ("in", given_files))


@ANY
@given(
    scored_tables(),
    files(),
    some_of(
        {
            "query_column": names,
            "document_column": names,
            "query_id_column": names,
            "title_column": names,
            "min_relevance": st.sampled_from([0.0, 2.0]),
            "format": st.sampled_from(["triplet", "labeled-list", "flagembedding", "tevatron", "nemo"]),
            "absolute_margin": st.just("0.1@logit"),
            "near_duplicates": st.just(0.9),
        }
    ),
    st.sampled_from(["label_column", "qrels", "min_positive_score"]),
)
def test_any_scores_are_mined_or_refused_in_our_words(scored: bytes, qrels: Any, flags: Any, source: str) -> None:
    def mine(folder: Path) -> None:
        ids = {
            "query_id_column": "query_id",
            "document_id_column": "document_id",
            "qrels": str(folder / "qrels" / qrels[0]),
        }
        positive = {
            "label_column": {"label_column": "label"},
            "qrels": ids,
            "min_positive_score": {"min_positive_score": "0"},
        }
        values = {"scored": [str(folder / "in")], "output": str(folder / "out"), **positive[source], **flags}
        mine_in_process(check_job(MineJob, values).normalized())

    attempt(mine, ("in", [("scored.parquet", scored)]), ("qrels", [qrels]))


@ANY
@given(st.data(), st.sampled_from(sorted(COMMANDS)))
def test_any_harm_to_an_output_is_told_in_our_words(scored: Path, data: Any, command: str) -> None:
    names = sorted(str(path.relative_to(scored)) for path in scored.rglob("*") if path.is_file())
    harms = {name: ("cut", "mark", *(["flip"] if name.endswith(".parquet") else [])) for name in names}
    spoilt = data.draw(st.sets(st.sampled_from(names), max_size=3))
    contents = [(name, data.draw(harmed((scored / name).read_bytes(), harms[name]))) for name in spoilt]

    def look(folder: Path) -> None:
        shutil.copytree(scored, folder / "in", dirs_exist_ok=True)
        write_files(folder / "in", contents)
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            COMMANDS[command](str(folder / "in"))

    attempt(look)
