"""Pairs that are the same are scored once, and the output shows nothing of it but counts."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import read_output

from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.template import QWEN3_RERANKER
from rerank_actor.errors import EngineStartError
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.verify import verify_output
from rerank_actor.scoring.prepare import _encode
from rerank_actor.scoring.run import run_job

TASK_SCHEMA = pa.schema({"query": pa.string(), "document_id": pa.string(), "task": pa.string()})
GUILTY, GUILTY_TOKEN = "\x07", 197  # in the byte tokenizer


def run(tmp_path: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> tuple[pa.Table, dict[str, Any]]:
    """Score rows with the fake engine; return the output and the totals."""
    shard = tmp_path / "pairs.parquet"
    if not shard.exists():
        pq.write_table(pa.Table.from_pylist(rows), shard)
    values = {"input": [str(shard)], "output": str(tmp_path / name), "engine": "fake", **settings}
    run_job(ScoreJob(**values).normalized())
    assert verify_output(str(tmp_path / name)).problems == []
    totals = json.loads((tmp_path / name / "_job/manifest.json").read_text())["totals"]
    return read_output(tmp_path / name), totals


def test_pairs_that_are_the_same_are_scored_once_and_the_output_is_the_same(tmp_path: Path, local_ray: str) -> None:
    pairs = [("q", "d"), ("q", "e"), ("q", "d"), ("r", "d"), ("q", "d" * 900), ("q", "d"), (None, "d"), (None, "d")]
    rows = [{"query": q, "document": d, "task": t} for t in ("judge", None, "other") for q, d in pairs]
    common = {"instruction": "judge", "instruction_column": "task", "max_length": 600}
    once, counts = run(tmp_path, "once", rows, **common)
    each, others = run(tmp_path, "each", rows, dedupe="none", **common)
    assert once.equals(each)
    assert (counts["scored"], counts["forward_passes"], counts["saved_forward_passes"]) == (18, 12, 6)
    assert (others["scored"], others["forward_passes"], others["saved_forward_passes"]) == (18, 18, 0)
    same = {name: value for name, value in counts.items() if not name.endswith("forward_passes")}
    assert {**others, **same, "engine_seconds": 0} == {**others, "engine_seconds": 0}
    assert counts["errors_by_reason"] == {"query is null": 6}


def test_lists_with_the_same_documents_are_scored_once(tmp_path: Path, local_ray: str) -> None:
    rows = [
        {"query": "q", "document": ["a", "b", "a"]},
        {"query": "r", "document": ["a"]},
        {"query": "q", "document": ["b", None, "c"]},
        {"query": "q", "document": None},
    ]
    once, counts = run(tmp_path, "once", rows)
    assert once.equals(run(tmp_path, "each", rows, dedupe="none")[0])
    assert (counts["scored"], counts["saved_forward_passes"]) == (6, 2)
    scores = once["score"].to_pylist()
    assert scores[0][0] == scores[0][2] != scores[1][0]
    assert scores[0][1] == scores[2][0]


def test_pairs_that_several_units_have_are_scored_once_in_all(tmp_path: Path, local_ray: str) -> None:
    rows = [{"query": f"q {i % 4}", "document": [f"d {i % 6}", None, f"own {i}", f"d {i % 6}"]} for i in range(12)]
    common = {"unit_rows": 3, "instruction": "i"}
    shard = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), shard, row_group_size=3)
    each, counts = run(tmp_path, "each", rows, dedupe="none", **common)
    assert counts["forward_passes"] == counts["scored"] == 36
    once, counts = run(tmp_path, "once", rows, dedupe="global", **common)
    assert once.equals(each)
    # 12 different pairs of the six documents, and one of each row's own.
    assert (counts["scored"], counts["forward_passes"], counts["saved_forward_passes"]) == (36, 24, 12)
    manifest = json.loads((tmp_path / "once/_job/manifest.json").read_text())
    assert len({(row["query"], row["document"][0]) for row in rows}) == 12
    assert manifest["plan"]["units"] == 4
    assert not (tmp_path / "once/_job/dedupe").exists()

    # A unit that is scored again finds nothing to share, and the counts still add up.
    part = sorted((tmp_path / "once").glob("part-*.parquet"))[0]
    part.unlink()
    again, counts = run(tmp_path, "once", rows, dedupe="global", **common)
    assert again.equals(each)
    assert counts["forward_passes"] + counts["saved_forward_passes"] == counts["scored"] == 36


def test_pairs_of_ids_and_shared_ones_go_on_after_a_stop(tmp_path: Path, local_ray: str) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(i), "text": f"text {i % 5}"}) + "\n" for i in range(10)))
    rows = [{"query": f"q {i % 2}", "document_id": str(i % 10), "task": None} for i in range(40)]
    common = {"unit_rows": 10, "corpus": [str(corpus)], "instruction_column": "task"}
    pq.write_table(pa.Table.from_pylist(rows).cast(TASK_SCHEMA), tmp_path / "pairs.parquet", row_group_size=10)
    each, _ = run(tmp_path, "each", rows, dedupe="none", **common)
    stopped = {**common, "engine_args": {"faults": {"start": "raise"}}, "dedupe": "global"}
    values = {"input": [str(tmp_path / "pairs.parquet")], "output": str(tmp_path / "once"), "engine": "fake"}
    with pytest.raises(EngineStartError):
        run_job(ScoreJob(**values, **stopped).normalized())
    found = json.loads((tmp_path / "once/_job/dedupe/pairs.json").read_text())
    assert found["num_pairs"] == 10
    spilled = (tmp_path / "once/_job/dedupe/pairs.json").stat().st_mtime_ns
    kept = tmp_path / "kept.json"
    kept.hardlink_to(tmp_path / "once/_job/dedupe/pairs.json")
    once, counts = run(tmp_path, "once", rows, dedupe="global", **common)
    assert kept.stat().st_mtime_ns == spilled
    assert once.equals(each)
    assert (counts["scored"], counts["forward_passes"]) == (40, 10)


def test_shared_pairs_of_templates_and_instruction_maps_are_scored_once(tmp_path: Path, local_ray: str) -> None:
    rows = [
        {
            "who": f"w{i % 2}",
            "dataset": ("a", "b", "none")[i % 3],
            "document": [{"title": "t", "text": f"{i % 3}"}, None],
        }
        for i in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet", row_group_size=6)
    common = {
        "unit_rows": 6,
        "query_template": "about {who}",
        "document_template": "{title}: {text}",
        "instruction_map": {"a": "task a", "b": "task b"},
        "explode": True,
    }
    each, _ = run(tmp_path, "each", rows, dedupe="none", **common)
    once, counts = run(tmp_path, "once", rows, dedupe="global", **common)
    assert once.equals(each)
    assert (counts["scored"], counts["forward_passes"]) == (8, 4)
    assert counts["errors_by_reason"] == {"dataset is not in the instruction map": 4, "document is null": 8}


def test_a_pair_that_brings_engines_down_is_given_up_with_all_that_are_the_same(tmp_path: Path, local_ray: str) -> None:
    rows = [{"query": "q", "document": document} for document in (GUILTY, "a", GUILTY, "b", "a")]
    faults = {"guilty_token": GUILTY_TOKEN, "guilty_kind": "nan"}
    table, counts = run(tmp_path, "out", rows, engine_args={"faults": faults}, max_attempts=1)
    errors = table["error"].to_pylist()
    assert [error is None for error in errors] == [False, True, False, True, True]
    assert errors[0] == errors[2]
    assert (counts["scored"], counts["forward_passes"]) == (3, 2)


@pytest.mark.parametrize("length", [60, 8192])
def test_prompts_of_different_pairs_are_what_they_are_without_the_others(length: int) -> None:
    encoder = PairEncoder(
        load_tokenizer_json(load_reranker_model("bytes")),
        template=QWEN3_RERANKER,
        instruction="i",
        max_length=length + 330,
    )
    queries: list[Any] = ["q", "r", "q", "q", 5, "r", "q" * 200]
    documents: list[Any] = ["d" * 50, "e", "d" * 50, "f", "d", "e", "d"]
    each = encoder.encode(queries, documents)
    once = _encode(queries, documents, None, encoder, dedupes=True)
    assert once.original.tolist() == [0, 1, 0, 3, 4, 1, 6]
    for name in ("num_tokens", "group", "head_tokens", "truncated_tokens"):
        assert getattr(once, name).tolist() == getattr(each, name).tolist(), name
    assert once.errors.equals(each.errors)
    left = set(each.scorable.tolist()) - {2, 5}
    assert set(once.scorable.tolist()) == left
    for position in left:
        assert once.token_ids[position].as_py() == each.token_ids[position].as_py()
