"""Money: what a job is said to cost before it runs, where the speed comes from, and what status and report make of it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_command
from sample_model import write_sample_model

from rerank_actor.commands.plan import plan
from rerank_actor.errors import JobError
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.price import find_price, load_gpu_types
from rerank_actor.outputs.report.build import build_report
from rerank_actor.outputs.status import print_status, read_status
from rerank_actor.progress import QuietReporter
from rerank_actor.scoring.budget import (
    ASSUMED_SHARE,
    BYTES_PER_WEIGHT,
    MEMORY_SHARE,
    Budget,
    ModelSize,
    assume_speed,
    count_filled,
    make_budget,
)
from rerank_actor.scoring.run import run_job
from rerank_actor.storage.lease import Lease

QWEN_06B = {
    "num_hidden_layers": 28,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151669,
}
NUM_ROWS = 120


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pairs in groups of ten with a long query, one of which cannot be scored."""
    (tmp_path / "in").mkdir()
    rows = [
        {"query": f"{i // 10} " * 80, "document": None if i == 4 else f"document {i} " + "y" * i}
        for i in range(NUM_ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/pairs.parquet")
    return tmp_path / "in"


def make_job(source: Path, **settings: Any) -> ScoreJob:
    return ScoreJob(
        input=[str(source)], output=str(source.parent / "out"), **{"engine": "fake", "unit_rows": 60} | settings
    ).normalized()


def budget_of(job: ScoreJob) -> Budget:
    return make_budget(job, QuietReporter())[1]


def test_budget_follows_from_tokens_speed_and_price(source: Path) -> None:
    budget = budget_of(make_job(source, tokens_per_second=50.0, gpu_price=2.0, actors="1:4", gpus_per_actor=0.5))
    assert budget.speed is not None
    assert budget.speed.origin == "given"
    hours = (120 + budget.tokens / (50 * 4)) / 3600
    assert budget.count_hours(4) == pytest.approx(hours)
    record = budget.to_record()
    assert record["gpu_hours"] == pytest.approx(hours * 4 * 0.5)
    assert record["cost"] == pytest.approx(hours * 4 * 0.5 * 2)


def test_plan_is_compared_with_what_the_run_found(
    source: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(source, ray_address=local_ray)
    output = Output(job.output)
    flags = ["--input", *job.input, "--output", job.output, "--engine", "fake", "--unit-rows", "60"]
    assert plan([*flags, "--tokens-per-second", "100", "--gpu-type", "L4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == output.load_estimate()
    assert read_status(job.output).planned == told
    assert read_status(job.output).committed_units == 0

    result = run_job(job)
    # All rows were sampled, so that the plan's tokens are those of the run.
    assert told["tokens"] == pytest.approx(result.totals.tokens, abs=1)
    print_status(read_status(job.output))
    assert "planned" in capsys.readouterr().out
    page = build_report(job.output)
    assert "As planned?" in page
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert f"prompt tokens {told['tokens']:,} {result.totals.tokens:,} 1.00 x" in words

    again = budget_of(job)
    assert again.speed is not None
    assert again.speed.origin == f"measured in run {result.run['run']}"
    assert again.pending_tokens == 0
    assert again.count_hours(1) == 0
    assert again.tokens == told["tokens"]


def test_speed_measured_on_one_gpu_is_converted_to_another(source: Path, local_ray: str) -> None:
    run_job(make_job(source, ray_address=local_ray, gpu_type="L4"))
    same, other = (budget_of(make_job(source, gpu_type=name)).speed for name in ("l4", "H100"))
    assert same is not None
    assert other is not None
    assert other.tokens_per_second == pytest.approx(same.tokens_per_second * 989 / 121)
    assert "on L4, times 8.17 for H100" in other.origin


def test_speed_is_assumed_from_the_model_and_the_gpu_where_nobody_measured_it(source: Path, tmp_path: Path) -> None:
    model = write_sample_model(tmp_path / "model")
    budget = budget_of(make_job(source, engine="vllm", model=str(model), gpu_type="L4", tensor_parallel_size=2))
    size = ModelSize.of_config(json.loads((model / "config.json").read_text()))
    assert size is not None
    assert budget.speed is not None
    one = assume_speed(size, load_gpu_types()["L4"], budget.estimate.num_tokens, budget.cached_share)
    assert budget.gpus_per_actor == 2
    assert budget.speed.tokens_per_second == pytest.approx(2 * one)
    assert budget.speed.origin.startswith("assumed: 40 %")
    # Nine of ten pairs have their query's head in common with one before them.
    heads = (budget.estimate.num_tokens.mean() // 64) * 64
    assert 0.5 < budget.cached_share < heads / budget.estimate.num_tokens.mean()
    assert budget_of(make_job(source, engine="vllm", model=str(model))).speed is None


def test_operations_of_a_token_are_those_of_the_published_shapes() -> None:
    size = ModelSize.of_config(QWEN_06B)
    assert size is not None
    assert size.active_weights == pytest.approx(0.44e9, rel=0.01)
    assert size.weights == pytest.approx(0.596e9, rel=0.01)
    lengths = np.full(10, 300)
    operations = 2 * 0.4404e9 + 4 * 28 * 16 * 128 * 150
    assert size.count_operations(lengths) == pytest.approx(operations, rel=0.001)
    speed = assume_speed(size, load_gpu_types()["H100"], lengths, 0.5)
    assert speed == pytest.approx(ASSUMED_SHARE * 989e12 / operations * 2, rel=0.001)
    assert ModelSize.of_config({"hidden_size": 3}) is None


def test_price_table_says_where_each_price_is_from() -> None:
    types = load_gpu_types()
    assert {"L4", "L40S", "A100-80GB", "H100", "H200"} <= types.keys()
    for kind in types.values():
        assert 0 < kind.price < 50
        assert kind.source
        assert kind.instance
        assert kind.date.year >= 2026
    found = find_price("a100-80gb", None)
    assert found is not None
    assert found.origin == "A100-80GB in p4de.24xlarge, AWS list price of 2026-11-09"
    assert find_price("unheard of", 1.5) is not None
    with pytest.raises(JobError, match=r"--gpu-type: no type `h10` \(did you mean H100\?\)"):
        find_price("h10", None)


def test_plan_beside_a_run_at_work_is_told_but_not_stored(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(source)
    lease = Lease(Output(job.output).lease_uri, job.output, "other")
    lease.acquire(print)
    try:
        found = run_command("plan", "--input", *job.input, "--output", job.output, "--engine", "fake")
    finally:
        lease.release()
    assert found.returncode == 0, found.stderr
    assert "unknown: give --gpu-type, or" in found.stdout
    assert "the plan was not stored" in found.stderr
    assert Output(job.output).load_estimate() == {}


def test_plan_refuses_what_a_run_would(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_command("plan", "--input", source, "--output", source.parent / "out", "--gpu-type", "H1000")
    assert found.returncode == 2
    assert "did you mean H100?" in found.stderr
    assert plan(["--list-gpus"]) == 0
    listed = capsys.readouterr().out
    for kind in load_gpu_types().values():
        assert re.search(rf"{kind.name} .* {kind.price:.4g} .*{kind.instance}", listed)


@pytest.mark.parametrize(
    ("size", "dtype", "gpus", "fits"),
    [
        ("4b", "auto", 1, {"L4": True, "A100-40GB": True}),
        ("8b", "auto", 1, {"L4": True, "A100-40GB": True}),
        ("8b", "float32", 1, {"L4": False, "A100-40GB": True}),
        ("8b", "float32", 2, {"L4": True, "A100-40GB": True}),
    ],
)
def test_plan_says_which_gpu_holds_the_weights(size: str, dtype: str, gpus: int, fits: dict[str, bool]) -> None:
    """Configurations of Qwen3-Reranker-4B and -8B."""
    shared: dict[str, Any] = {
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_669,
    }
    shapes = {
        "4b": {"num_hidden_layers": 36, "hidden_size": 2560, "intermediate_size": 9728},
        "8b": {"num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12_288},
    }
    known = ModelSize.of_config({**shared, **shapes[size]})
    assert known is not None
    assert known.weights == pytest.approx({"4b": 4.02e9, "8b": 7.57e9}[size], rel=0.01)
    types = load_gpu_types()
    found = {name: count_filled(known, BYTES_PER_WEIGHT[dtype], types[name], gpus) <= MEMORY_SHARE for name in fits}
    assert found == fits
