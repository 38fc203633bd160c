"""Metrics of a run at work, read where Prometheus would read them, and the dashboard's queries against their names."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT, run_command
from ray_nodes import HOST

from rerank_actor.scoring.metrics import ACTOR_COUNTERS, RUN_COUNTERS, RUN_GAUGES, RunMeter

DASHBOARD = json.loads((ROOT / "cluster/grafana/dashboard.json").read_text())
GUILTY, GUILTY_TOKEN = "\x07", 197  # of the byte tokenizer
NUM_ROWS, UNIT_ROWS = 6000, 20
PRICE = 500.0
WAIT_SECONDS = 240
SAMPLE = re.compile(r"^(ray_rerank_\w+)\{(.*)\} (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Scrape:
    """What a metrics endpoint answers: samples by name, each with its labels."""

    def __init__(self, text: str) -> None:
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for line in text.splitlines():
            if found := SAMPLE.match(line):
                self.samples[found[1]].append((dict(LABEL.findall(found[2])), float(found[3])))

    def add_up(self, name: str, **labels: str) -> float:
        return sum(value for found, value in self.samples[name] if labels.items() <= found.items())

    def label_values(self, name: str, label: str) -> set[str]:
        return {labels[label] for labels, _ in self.samples[name]}


def name_all() -> set[str]:
    counters = {*ACTOR_COUNTERS, *RUN_COUNTERS, "rerank_errors", "rerank_faults"}
    return {f"ray_{name}" for name in RUN_GAUGES} | {f"ray_{name}_total" for name in counters}


@pytest.fixture(scope="module")
def node() -> Iterator[Any]:
    """A Ray with two GPUs that are only said to be there, which tells its metrics every second."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "num_gpus": 2,
            "node_ip_address": HOST,
            "_system_config": {"metrics_report_interval_ms": 1000},
        },
    )
    yield cluster.head_node
    cluster.shutdown()


@pytest.fixture(scope="module")
def run(node: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Scrape]]:
    """A run that was scraped while at work, then stopped: its output, and the last scrape with every name."""
    folder = tmp_path_factory.mktemp("metrics")
    documents = ["d" if i % 7 else None for i in range(NUM_ROWS)]
    documents[5] = f"d{GUILTY}"
    table = pa.table({"query_id": [f"q{i}" for i in range(NUM_ROWS)], "query": ["q"] * NUM_ROWS, "document": documents})
    pq.write_table(table, folder / "pairs.parquet")
    engine_args = {
        "seconds_per_prompt": 0.02,
        "cached_share": 0.25,
        "faults": {"guilty_token": GUILTY_TOKEN, "guilty_kind": "raise"},
    }
    flags = ["--input", folder / "pairs.parquet", "--output", folder / "out", "--engine", "fake", "--actors", 2]
    flags += ["--unit-rows", UNIT_ROWS, "--max-attempts", 1, "--engine-args", json.dumps(engine_args)]
    flags += ["--gpu-price", PRICE, "--ray-address", node.address]
    log = folder / "log"
    with log.open("wb") as words:
        driver = subprocess.Popen(
            [sys.executable, "-m", "jobs.score", *map(str, flags)], cwd=ROOT, stdout=words, stderr=words
        )
    try:
        url = f"http://{HOST}:{node.metrics_export_port}/metrics"
        deadline, scrape = time.monotonic() + WAIT_SECONDS, Scrape("")
        while not name_all() <= scrape.samples.keys() and time.monotonic() < deadline:
            assert driver.poll() is None, (sorted(name_all() - scrape.samples.keys()), log.read_text())
            time.sleep(1)
            with urllib.request.urlopen(url, timeout=30) as answer:
                scrape = Scrape(answer.read().decode())
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(WAIT_SECONDS) == 143, log.read_text()
    finally:
        driver.kill()
        driver.wait()
    assert name_all() <= scrape.samples.keys(), sorted(name_all() - scrape.samples.keys())
    yield folder / "out", scrape


def test_metrics_of_a_run_say_what_the_output_says(run: tuple[Path, Scrape]) -> None:
    output, scrape = run
    manifest = json.loads((output / "_job/manifest.json").read_text())
    totals, figures = manifest["totals"], manifest["runs"][-1]
    for name in name_all():
        assert scrape.label_values(name, "output") == {str(output)}
        assert scrape.label_values(name, "run") == {figures["run"]}
    assert scrape.add_up("ray_rerank_rows_planned") == NUM_ROWS
    assert scrape.add_up("ray_rerank_units_planned") == NUM_ROWS / UNIT_ROWS
    # The run went on after the scrape, so that what it left is at least what was told.
    assert 0 < scrape.add_up("ray_rerank_rows_committed") <= totals["rows"]
    for reason in scrape.label_values("ray_rerank_errors_total", "reason"):
        told = scrape.add_up("ray_rerank_errors_total", reason=reason)
        assert 0 < told <= totals["errors_by_reason"][reason]
    for kind in scrape.label_values("ray_rerank_faults_total", "kind"):
        assert 0 < scrape.add_up("ray_rerank_faults_total", kind=kind) <= manifest["faults"][kind]
    assert scrape.add_up("ray_rerank_gpus") in (1, 2)
    seconds = scrape.add_up("ray_rerank_gpu_seconds_total")
    assert 0 < seconds <= figures["gpu_seconds"]
    assert scrape.add_up("ray_rerank_cost_dollars_total") == pytest.approx(seconds / 3600 * PRICE, rel=0.5)


def test_metrics_of_actors_are_told_apart(run: tuple[Path, Scrape]) -> None:
    _, scrape = run
    actors = scrape.label_values("ray_rerank_pairs_total", "actor")
    assert 1 <= len(actors) <= 2
    for actor in actors:
        pairs = scrape.add_up("ray_rerank_pairs_total", actor=actor)
        tokens = scrape.add_up("ray_rerank_tokens_total", actor=actor)
        assert tokens > pairs > 0
        assert scrape.add_up("ray_rerank_cached_tokens_total", actor=actor) == pytest.approx(tokens / 4, rel=0.01)
        assert scrape.add_up("ray_rerank_engine_busy_seconds_total", actor=actor) >= 0.02 * pairs * 0.9
    assert scrape.add_up("ray_rerank_retries_total") >= 1, "a unit with a guilty pair is tried again"


def test_report_of_a_run_with_gpus_tells_its_cost(run: tuple[Path, Scrape]) -> None:
    output, _ = run
    found = run_command("report", output, "--to", "-")
    assert found.returncode == 0, found.stderr
    seconds = json.loads((output / "_job/manifest.json").read_text())["runs"][-1]["gpu_seconds"]
    assert f"<b>${seconds / 3600 * PRICE:,.2f}</b>cost" in found.stdout
    dearer = run_command("report", output, "--to", "-", "--gpu-price", 1000 * PRICE)
    assert f"<b>${seconds / 3600 * PRICE * 1000:,.2f}</b>cost" in dearer.stdout


def list_queries() -> list[str]:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return queries + [one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]


def test_dashboard_asks_for_metrics_and_labels_that_exist(run: tuple[Path, Scrape]) -> None:
    _, scrape = run
    asked: set[str] = set()
    for query in list_queries():
        names = re.findall(r"\bray_\w+", query)
        assert names, query
        asked |= set(names)
        for name in names:
            assert scrape.samples[name], f"{name} of {query}"
            labels = scrape.samples[name][0][0].keys()
            wanted = re.findall(rf"{name}\{{(\w+)", query) + re.findall(r"by \((\w+)\)", query)
            assert set(wanted) <= labels, query
    assert asked == name_all(), "each metric is shown"


def test_dashboard_takes_the_right_function_for_each_kind() -> None:
    for query in list_queries():
        for function, name in re.findall(r"(\w+)\((ray_\w+)\{[^}]*\}\[", query):
            assert (function in ("rate", "increase")) == name.endswith("_total"), query
        assert query.count("(") == query.count(")"), query
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all("$output" in target["expr"] for target in panel["targets"])


def test_reasons_beyond_a_few_share_a_label() -> None:
    told: dict[str, float] = defaultdict(float)

    class Taker:
        def inc(self, value: float, tags: dict[str, str]) -> None:
            told[tags["reason"]] += value

    meter = RunMeter({"run": "r", "output": "o"})
    meter._errors = Taker()
    meter.count_errors({f"reason {number}": 1 for number in range(1000)})
    assert len(told) == 21
    assert told["other"] == 980
    assert sum(told.values()) == 1000
