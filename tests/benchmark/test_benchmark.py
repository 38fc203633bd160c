"""The benchmark's parts, and counts of the job's work that no machine bends: requests, copies, tokens.

None of this judges by time.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from commands import ROOT
from scale.many_units import measure_resume, measure_schedule
from scale.measurements import measure_busy

from rerank_actor.benchmark import rounds
from rerank_actor.benchmark.contender import STEADY_FROM, Setting, WholeJob, make_encoder
from rerank_actor.benchmark.contenders import RayDataLlm
from rerank_actor.benchmark.meter import Meter, read_usage
from rerank_actor.benchmark.ratios import compare_ratios, extract_ratios
from rerank_actor.benchmark.readers import make_readers_table, measure_readers
from rerank_actor.benchmark.suite import SUITES, Gpu, Suite, make_tables, rehearse, run_suite
from rerank_actor.benchmark.weights import SHAPES, make_tokenizer, write_weights
from rerank_actor.benchmark.workload import KINDS, compute_possible_share, make_workload, write_shards
from rerank_actor.commands.benchmark import benchmark
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.template import QWEN3_RERANKER
from rerank_actor.inputs.rows import Unit
from rerank_actor.scoring.unit import UnitWork


@pytest.fixture(scope="module")
def encoder() -> PairEncoder:
    tokenizer = make_tokenizer().to_str()
    return PairEncoder(tokenizer, template=QWEN3_RERANKER, instruction="find it", max_length=4096)


def test_workloads_have_the_lengths_and_orders_they_promise(encoder: PairEncoder) -> None:
    tokenizer = make_tokenizer()
    for name, kind in KINDS.items():
        workload = make_workload(name, 600, tokenizer)
        assert len(workload) == 600
        assert workload == make_workload(name, 600, tokenizer)
        documents = [len(tokenizer.encode(" " + text).ids) for text in workload.documents]
        assert 0.8 < np.mean(documents) / np.mean(kind.document_tokens) < 1.25
    grouped, shuffled = (make_workload(name, 600, tokenizer) for name in ("grouped", "shuffled"))
    assert grouped.queries[:50] == [grouped.queries[0]] * 50
    assert len(set(shuffled.queries[:50])) > 5


def test_possible_share_counts_what_earlier_prompts_had(encoder: PairEncoder) -> None:
    workload = make_workload("grouped", 100, make_tokenizer())
    prompts = encoder.encode(workload.queries, workload.documents)
    seen: list[np.ndarray] = []
    shared = 0
    for ids, head in zip(prompts.ids_at(np.arange(100)), prompts.head_tokens, strict=True):
        heads = [other for other in seen if np.array_equal(other[:head], ids[:head])]
        shared += int(head) if heads else (len(encoder.prefix_ids) if seen else 0)
        seen.append(ids)
    first = len(encoder.prefix_ids)  # the very first prompt has nothing to read, which weighs nothing among many
    assert compute_possible_share(workload, encoder) == pytest.approx((shared + first) / prompts.num_tokens.sum())


def test_meter_counts_processes_that_have_ended_too() -> None:
    code = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
    with Meter() as meter:
        started = time.time()
        subprocess.run([sys.executable, "-c", code], check=True)
        ended = time.time()
        time.sleep(1.1)
    assert meter.count_cpu_seconds(started - 1, ended + 1) >= 0.6
    assert meter.peak_bytes > 2**20
    assert read_usage(psutil.Process()).cpu_seconds > 0


def test_rounds_go_around_all_contenders_and_leave_out_those_that_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = (
        "import json, sys\n"
        "name = sys.argv[1]\n"
        "say = lambda found: print(json.dumps(found), flush=True)\n"
        "if name == 'absent':\n    say({'left_out': 'not here'}); sys.exit()\n"
        "say({'warms_up': name == 'slow'})\n"
        "for number, _ in enumerate(sys.stdin):\n"
        "    rate = 10.0 * (number + 1) if name == 'slow' else 100.0\n"
        "    say({'pairs_per_second': rate, 'tokens_per_second': rate, 'cpu_seconds_per_pair': 1 / rate, 'peak_bytes': 1,\n"
        "         'cached_share': None, 'busy_share': 0.5})\n"
    )
    put_in_place(stub, tmp_path, monkeypatch)
    setting = Setting("m", "s", str(tmp_path), "float32", 10, 5, 5, worker_module="stub")
    said: list[str] = []
    entries = [rounds.Entry("fast", 5), rounds.Entry("slow", 2), rounds.Entry("absent", 1)]
    found = rounds.run_rounds(entries, setting, 3, said.append, at_once=True)
    assert found["left_out"] == {"absent": "not here"}
    assert [entry["pairs_per_second"] for entry in found["rounds"]["slow"]] == [20, 30, 40]
    assert found["medians"]["slow"]["pairs_per_second"] == 30
    assert found["medians"]["fast"]["cached_share"] is None
    assert rounds.compute_ratios(found, "fast", "pairs_per_second") == {"slow": pytest.approx(100 / 30)}
    order = [words.split(", ")[1].split(":")[0] for words in said if words.startswith("round")]
    assert order == ["slow", "fast", "slow", "fast", "slow", "fast", "slow"]


def test_contender_that_takes_too_long_keeps_what_it_did_and_the_next_has_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = STUB.replace(
        "for _ in sys.stdin:\n", "for number, _ in enumerate(sys.stdin):\n    time.sleep(60 * number)\n"
    )
    assert hanging != STUB
    put_in_place(f"import time\n{hanging}", tmp_path, monkeypatch)
    setting = Setting("m", "s", str(tmp_path), "float32", 10, 5, 5, worker_module="stub")
    seen: list[list[str]] = []
    entries = [rounds.Entry("engine", 5), rounds.Entry("job", 5)]
    found = rounds.run_rounds(
        entries, setting, 2, print, at_once=False, limit=3, settled=lambda figures: seen.append([*figures["medians"]])
    )
    assert seen == [["engine"], ["engine", "job"]], "each is told as soon as it is there"
    assert {name: len(done) for name, done in found["rounds"].items()} == {"engine": 1, "job": 1}
    assert "took over 3 s" in found["left_out"]["engine"]


def put_in_place(stub: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stub stand for the contenders."""
    (folder / "stub.py").write_text(stub)
    monkeypatch.setenv("PYTHONPATH", str(folder))


STUB = (
    "import json, sys\n"
    "setting = json.loads(sys.argv[2])\n"
    "say = lambda found: print(json.dumps(found), flush=True)\n"
    "say({'warms_up': False})\n"
    "rate = 100.0 * setting['engine_args'].get('max_num_seqs', 1) + setting['engine_args'].get('block_size', 0)\n"
    "for _ in sys.stdin:\n"
    "    say({'pairs_per_second': rate, 'tokens_per_second': rate, 'cpu_seconds_per_pair': 1 / rate, 'peak_bytes': 1,\n"
    "         'cached_share': 0.25 if setting['on_gpu'] else None, 'busy_share': setting['gpus_per_actor']})\n"
)


def test_knobs_are_turned_one_at_a_time_beside_the_engine_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(STUB, tmp_path, monkeypatch)
    knobs: dict[str, Any] = {
        "two prompts": ("engine", {"engine_args": {"max_num_seqs": 2}}),
        "half a GPU": ("engine", {"gpus_per_actor": 0.5}),
    }
    suite = Suite(("tiny",), ("short",), {"engine": 64}, 1, "float32", on_gpu=False, knobs=knobs)
    [entry] = run_suite(suite, tmp_path, print, engine_args={"block_size": 32}, worker_module="stub")["measured"]
    rates = {name: found["pairs_per_second"] for name, found in entry["medians"].items()}
    assert rates == {"engine": 132, "two prompts": 232, "half a GPU": 132}
    assert entry["medians"]["half a GPU"]["busy_share"] == 0.5
    assert entry["engine_by_others"]["pairs_per_second"]["two prompts"] == pytest.approx(132 / 232)
    assert "| engine is | its CPU is |" in make_tables({"machine": {}, "measured": [entry]})
    assert not extract_ratios({"measured": [entry]}), "nothing of it is compared later"


def test_suite_of_a_gpu_tells_the_share_of_its_best_that_forward_passes_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(STUB, tmp_path, monkeypatch)
    suite = Suite(("tiny",), ("short",), {"job": 64, "engine": 64}, 1, "float32", on_gpu=True)
    result = run_suite(suite, tmp_path, print, measure_gpu=lambda dtype: Gpu("a GPU", 1e9), worker_module="stub")
    assert result["machine"]["gpu"] == "a GPU"
    [entry] = result["measured"]
    workload = make_workload("short", 64, make_tokenizer())
    setting = Setting(str(tmp_path / "model-tiny"), "", "", "float32", 4096, 64, 64)
    operations = 0.0
    for length in make_encoder(setting).encode(workload.queries, workload.documents).num_tokens.astype(float):
        # A quarter is cached: attention of the rest sees it, but its own is not computed again.
        weights = 64 * 32 * (2 * 2 + 2 * 1) + 3 * 64 * 192
        operations += 2 * weights * 0.75 * length + 4 * 2 * 32 * (1 - 0.25**2) * length**2 / 2
    assert entry["medians"]["job"]["utilization"] == pytest.approx(operations / 64 * 100 / 1e9)
    assert f"{operations / 64 * 100 / 1e9:.1%}" in make_tables(result)


def test_ray_data_llm_is_left_out_of_rounds_that_tell_no_rate(tmp_path: Path) -> None:
    """All pairs of a batch end at once: of one batch the rate was made up."""
    setting = Setting("m", "s", str(tmp_path), "float32", 10, 512, 512)
    with pytest.raises(NotImplementedError, match="512 pairs are under 1024"):
        RayDataLlm(setting)
    assert rehearse(SUITES["gpu"]).pairs["ray-data-llm"] >= 1024


def test_contender_that_dies_is_named_with_its_log(tmp_path: Path) -> None:
    setting = Setting(str(tmp_path / "no model"), "s", str(tmp_path), "float32", 1, 1, 1)
    with (
        rounds.Worker(rounds.Entry("job", 1), setting, tmp_path / "log") as worker,
        pytest.raises(rounds.WorkerError, match=r"job ended with code 1; its words are in .*log"),
    ):
        worker.start()
        worker.run_round()


def test_whole_job_counts_steady_units_alone(tmp_path: Path, local_ray: str) -> None:
    workload = make_workload("short", 400, make_tokenizer())
    write_shards(workload, tmp_path / "shards")
    model = write_weights(tmp_path / "model", SHAPES["tiny"], dtype="float32")
    setting = Setting(str(model), str(tmp_path / "shards"), str(tmp_path), "float32", 512, 400, 25, job_engine="fake")
    found = WholeJob(setting).run_round()
    assert found.pairs == 400 - int(STEADY_FROM * 400)
    assert found.tokens > 40 * found.pairs
    assert found.seconds > 0
    assert not list(tmp_path.glob("output-*"))


@pytest.mark.vllm
def test_quick_suite_finds_heads_of_shuffled_pairs_in_the_cache(tmp_path: Path) -> None:
    """Counts of tokens: what the cache had is within five points of what is possible, shuffled or not."""
    suite = Suite(("tiny",), ("grouped", "shuffled"), {"engine": 1500}, 1, "float32", on_gpu=False)
    result = run_suite(suite, tmp_path, lambda words: None)
    grouped, shuffled = result["measured"]
    for entry in (grouped, shuffled):
        (only,) = entry["rounds"]["engine"]
        assert only["pairs"] == 1500
        assert entry["possible_cached_share"] - 0.05 < only["cached_share"] <= entry["possible_cached_share"]
    medians = [entry["medians"]["engine"]["cached_share"] for entry in (grouped, shuffled)]
    assert abs(medians[0] - medians[1]) < 0.02
    assert "| engine |" in make_tables(result)
    ratios = extract_ratios(result)
    assert ratios["tiny/grouped/cached_share/engine"] == pytest.approx(medians[0], abs=1e-4)


def test_read_tasks_are_measured_for_each_length_of_pairs(tmp_path: Path) -> None:
    model = write_weights(tmp_path / "model", SHAPES["tiny"], dtype="float32")
    found = measure_readers(model, tmp_path, 4096, print, {"short": 64, "long": 64})
    assert found["short"]["tokens"] < 200 < found["long"]["tokens"]
    for row in found.values():
        assert 0 < row["cached"] < row["tokens"]
        assert row["microseconds"] > 0
        assert row["bytes"] > 4 * row["tokens"], "ids of tokens travel as they are"
    lines = make_readers_table(found, ("0.6B", "8B")).splitlines()
    cores = [[float(cell) for cell in line.split("|")[4:6]] for line in lines[2:]]
    assert all(small > 5 * large for small, large in cores), "the 8B model takes a GPU longer, reading it does not"


def test_ratios_that_moved_are_told() -> None:
    stored = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert compare_ratios({"a": 1.05, "b": 1.0, "d": 4.0}, stored) == [
        "moved: b is 1, was 2 (-50%)",
        "not measured: c was 3",
        "new: d is 4",
    ]
    assert compare_ratios(stored, stored) == []


def test_ratios_hold_no_absolute_times() -> None:
    stored = json.loads((ROOT / "docs/benchmarks.json").read_text())
    assert stored
    assert all(0 <= value < 1000 for value in stored.values())
    assert any("job by ray-data-llm" in name for name in stored)


def test_gpu_suite_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "jobs.benchmark", "--suite", "gpu", "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert found.returncode == 2
    assert "needs a GPU" in found.stderr


def test_resume_of_committed_units_starts_no_engine(tmp_path: Path) -> None:
    (tmp_path / "resume").mkdir()
    found = measure_resume(tmp_path / "resume", tmp_path, units=500)
    assert set(found) == {"seconds", "added_mib", "plan_seconds", "plan_added_mib", "plan_kib"}
    assert found["plan_kib"] > 0


def test_schedule_is_measured_of_a_run_that_is_stopped(tmp_path: Path, local_ray: str) -> None:
    (tmp_path / "schedule").mkdir()
    found = measure_schedule(tmp_path / "schedule", tmp_path, units=300, stop_after=100)
    output = tmp_path / "schedule/output"
    assert 100 <= len(list(output.glob("part-*"))) < 300
    assert json.loads((output / "_job/manifest.json").read_text())["status"] == "stopped"
    assert found["ms_a_unit"] > 0
    assert found["driver_cpu_ms_a_unit"] > 0
    assert found["driver_mib"] > 0


def test_busy_share_is_of_the_steady_part(tmp_path: Path, local_ray: str) -> None:
    model = write_weights(tmp_path / "model", SHAPES["tiny"], dtype="float32")
    (tmp_path / "busy").mkdir()
    found = measure_busy(tmp_path / "busy", model, unit_rows=200, rows=2400)
    assert 0 < found["busy_share"] <= 1.2  # commits, by which it is counted, lag behind a little


def test_unit_crosses_processes_without_a_copy(encoder: PairEncoder) -> None:
    workload = make_workload("short", 200, make_tokenizer())
    rows = pa.table({"query": workload.queries})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    prompts = encoder.encode(workload.queries, workload.documents)
    work = UnitWork(Unit("s-0", "u", 1, "e", 0, 200, -1), sink.getvalue(), prompts, pa.nulls(200, pa.string()))
    table = work.to_table()
    found = UnitWork.from_table(table)
    whole = table.column("prompts").chunk(0).buffers()[2]
    values = found.prompts.token_ids.values.to_numpy()
    assert np.shares_memory(values, np.frombuffer(whole, np.uint8))
    assert all(np.shares_memory(ids, values) for ids in found.prompts.ids_at(found.prompts.scorable))
    assert found.rows.address == table.column("rows").chunk(0).buffers()[2].address
    scored = found.with_logits(np.zeros(200, np.float32), {}).to_table()
    assert scored.nbytes < table.nbytes - values.nbytes * 0.9  # ids do not travel back


def test_benchmark_names_what_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark(["--workloads", "tall"])
    assert ended.value.code == 2
    assert "grouped" in capsys.readouterr().err
