"""The report of a job: its numbers are those of the output, it names rows by ids, and it needs no network."""

import html
import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import read_output, run_command
from labelled_pairs import make_labelled_rows

from rerank_actor import storage
from rerank_actor.commands.report import report
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.histograms import ScoreHistograms, compute_edge
from rerank_actor.outputs.part import flatten_columns
from rerank_actor.outputs.report.build import build_report
from rerank_actor.outputs.report.facts import Facts, gather_facts
from rerank_actor.outputs.report.rows import sample_rows
from rerank_actor.progress import QuietReporter, RunProgress
from rerank_actor.scoring.run import RunLimits, run_job

NUM_ROWS, UNIT_ROWS = 300, 40
QUERY, DOCUMENT = "secret query", "secret document"


def write_pairs(folder: Path) -> Path:
    (folder / "in").mkdir()
    rows = make_labelled_rows(QUERY, DOCUMENT, NUM_ROWS)
    pq.write_table(pa.Table.from_pylist(rows), folder / "in/pairs.parquet")
    return folder / "in"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, local_ray: str) -> Path:
    """A scored output whose documents are partly cut."""
    folder = tmp_path_factory.mktemp("report")
    run_job(make_job(write_pairs(folder), folder / "out", local_ray))
    return folder / "out"


def make_job(source: Path, target: Path, address: str, **settings: Any) -> ScoreJob:
    settings = {"unit_rows": UNIT_ROWS, "max_length": 900, "gpu_type": "l4", "ray_address": address} | settings
    return ScoreJob(input=[str(source)], output=str(target), engine="fake", **settings).normalized()


def show(page: str) -> str:
    """Return the words of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.partition("</style>")[2])).split())


def test_facts_are_those_of_the_output(output: Path) -> None:
    table = read_output(output)
    facts = gather_facts(str(output))
    assert (facts.totals.rows, facts.totals.units, facts.unrecorded) == (NUM_ROWS, 8, 0)
    assert facts.totals.scored == NUM_ROWS - table["score"].null_count == 295
    assert facts.totals.tokens == sum(table["num_tokens"].to_pylist())
    assert facts.totals.units == facts.status.committed_units == 8
    (run,) = facts.runs
    assert facts.status.engines_busy == pytest.approx(min(1.0, run["engine_seconds"] / run["actor_seconds"]))
    expected = ScoreHistograms.of_columns({name: table[name].combine_chunks() for name in table.column_names})
    for name, counts in facts.histograms.bins.items():
        assert counts.tolist() == expected.bins[name].tolist(), name
        assert counts.sum() > 0
    seconds = [record["seconds"] for record in facts.slowest]
    assert seconds == sorted(seconds, reverse=True)
    assert len(seconds) == 8
    timeline = facts.timeline
    assert sum(timeline.pairs_per_second) * timeline.step_seconds == pytest.approx(NUM_ROWS)
    assert [mark.kind for mark in timeline.marks][:2] == ["start", "ready"]
    assert sum(shard.scored for shard in facts.shards.values()) == 295


def test_page_shows_the_numbers_and_names_rows_by_ids_where_texts_are_not_wanted(output: Path) -> None:
    page = build_report(str(output), examples=0)
    words = show(page)
    assert words.startswith("Scores: complete")
    assert "300 of 300 (100.0 %) rows scored" in words
    assert "document is null 4 1.33 %" in words
    assert "query is null 1 0.333 % pairs.parquet row 77 (query_id q7, doc_id 77)" in words
    scored = sample_rows(gather_facts(str(output))).scored
    logits = [row["logit"] for row in scored]
    assert logits == sorted(logits, reverse=True)
    for row in scored:
        shown = (
            f"{row['score']:.4f} {row['logit']:.3f} {row['num_tokens']} pairs.parquet {row['row']} {row['query_id']}"
        )
        assert shown in words
    assert QUERY not in page
    assert DOCUMENT not in page
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script", page)


def test_report_names_hosts_and_logs_of_engines(output: Path) -> None:
    words = show((output / "_job/report.html").read_text())
    assert f"engine start log {socket.gethostname()} none 1 fake" in words
    assert re.search(r"/logs/worker-\S+\.err", words)
    assert QUERY in words, "texts are shown unless the job says otherwise"


def test_every_error_example_is_a_row_with_that_error(output: Path) -> None:
    facts = gather_facts(str(output))
    table = read_output(output)
    rows = sample_rows(facts)
    assert rows.errors.keys() == {"document is null", "query is null"}
    for reason, found in rows.errors.items():
        for row in found:
            assert table["error"][row["row"]].as_py() == reason
            assert str(table["doc_id"][row["row"]].as_py()) == row["doc_id"]
    for row in rows.scored:
        assert table["logit"][row["row"]].as_py() == row["logit"]
        assert str(table["doc_id"][row["row"]].as_py()) == row["doc_id"]


def copy_output(output: Path, folder: Path) -> Path:
    """Return a copy of an output in which the parts are as they were written."""
    return Path(shutil.copytree(output, folder / "copy"))


def test_report_without_records_manifest_or_sound_parts_still_comes(output: Path, tmp_path: Path) -> None:
    bare = copy_output(output, tmp_path)
    (bare / "_job/manifest.json").unlink()
    for path in (bare / "_job/runs").iterdir():
        path.write_bytes(b"damaged")
    parts = sorted(bare.glob("part-*"))
    parts[0].write_bytes(b"PAR1 damaged PAR1")
    facts = gather_facts(str(bare))
    assert (facts.totals.units, facts.unrecorded) == (0, 8)
    rows = sample_rows(facts)
    assert rows.histograms is not None
    sound = pa.concat_tables([pq.read_table(path, columns=["score"]) for path in parts[1:]])
    assert rows.histograms.count("score") == sound.num_rows - sound["score"].null_count, "of the seven that can be read"
    words = show(build_report(str(bare)))
    assert "300 of 300 (100.0 %) rows scored" in words
    assert "units without a record 8" in words
    assert "From a sample of 7 parts" in words
    assert "No run has left figures yet" in words


def test_records_of_parts_that_were_replaced_do_not_count_twice(output: Path) -> None:
    facts = gather_facts(str(output))
    record_file = next((output / "_job/runs").iterdir())
    twin = record_file.with_name("again-00000.parquet")
    twin.write_bytes(record_file.read_bytes())
    try:
        again: Facts = gather_facts(str(output))
    finally:
        twin.unlink()
    assert again.totals == facts.totals
    assert again.histograms.count("score") == facts.histograms.count("score")


def test_report_command_says_where_it_is_and_takes_a_price(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "somewhere.html"
    assert report([str(output), "--to", str(target), "--gpu-price", "2.5"]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert "price of a GPU hour $2.50 (as given)" in show(target.read_text())
    assert "L4 in g6.xlarge" in show((output / "_job/report.html").read_text())
    refused = run_command("report", tmp_path / "nothing")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "no job has written here" in refused.stderr


def test_lists_of_documents_are_told_by_row_and_place(tmp_path: Path, local_ray: str) -> None:
    (tmp_path / "in").mkdir()
    rows = [
        {
            "query_id": f"q{i}",
            "query": "q",
            "document": None if i == 3 else [f"a {i}", None, f"b {i}"],
            "doc_id": [1, 2, 3],
        }
        for i in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/pairs.parquet")
    run_job(make_job(tmp_path / "in", tmp_path / "out", local_ray))
    facts = gather_facts(str(tmp_path / "out"))
    found = sample_rows(facts).errors
    assert [(row["row"], row["place"], row["doc_id"]) for row in found["document is null"]] == [
        (0, 1, "2"),
        (1, 1, "2"),
        (2, 1, "2"),
    ]
    assert [(row["row"], row["query_id"]) for row in found["document list is null"]] == [(3, "q3")]
    assert facts.histograms.count("score") == facts.totals.scored == 10


def test_broken_lines_are_told_under_the_reason_that_they_are_counted_by(tmp_path: Path, local_ray: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/pairs.jsonl").write_text('{"query": "q", "document": "d", "query_id": "q0"}\n{"query": "q\n')
    run_job(make_job(tmp_path / "in", tmp_path / "out", local_ray))
    found = sample_rows(gather_facts(str(tmp_path / "out"))).errors
    assert {reason: [row["row"] for row in rows] for reason, rows in found.items()} == {
        "line is not a JSON object": [1]
    }


def test_report_of_an_output_in_s3(tmp_path: Path, s3: Any, local_ray: str) -> None:
    target = f"s3://{s3.bucket}/out"
    job = ScoreJob(
        input=[str(write_pairs(tmp_path))],
        output=target,
        engine="fake",
        unit_rows=100,
        ray_address=local_ray,
    ).normalized()
    run_job(job)
    page = storage.read_bytes(Output(target).at("report.html")).decode()
    assert "300 of 300" in show(page)


def test_sketches_add_up_and_their_quantiles_are_near() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(1, 4, 5000).astype(np.float32)
    tokens = random.lognormal(5, 1, 5000).astype(np.int32) + 1
    scores = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)

    def histograms(part: slice) -> ScoreHistograms:
        columns = {
            "score": pa.array(scores[part]),
            "logit": pa.array(logits[part]),
            "num_tokens": pa.array(tokens[part]),
            "truncated_tokens": pa.array(np.zeros(len(tokens[part]), np.int32)),
        }
        return ScoreHistograms.of_columns(
            flatten_columns(pa.table({**columns, "error": pa.nulls(len(tokens[part]), pa.string())}))
        )

    whole, added = histograms(slice(None)), ScoreHistograms()
    records = pa.Table.from_pylist([histograms(slice(start, start + 500)).to_record() for start in range(0, 5000, 500)])
    for name in whole.bins:
        column = records[f"{name}_bins"].combine_chunks()
        added.add_lists(name, pa.concat_arrays([pa.nulls(3, column.type), column]).slice(1))
        assert added.bins[name].tolist() == whole.bins[name].tolist()
    shares = [0, 0.01, 0.1, 0.5, 0.9, 0.99, 1]
    for name, values, near in (("score", scores, 0.02), ("logit", logits, 0.25)):
        found = whole.compute_quantiles(name, shares)
        assert found == pytest.approx(np.quantile(values, shares).tolist(), abs=near)
    assert whole.compute_quantiles("token", shares) == pytest.approx(
        np.quantile(tokens, shares).tolist(), rel=0.1, abs=1
    )
    assert whole.compute_quantiles("truncation", shares) is None
    assert compute_edge("token", 80) == 1024


def test_sketch_of_extremes_loses_no_value() -> None:
    values = pa.array(np.array([-1e30, -33, 0, 33, 1e30], np.float32))
    columns = {
        "score": pa.array(np.array([0, 0, 0.5, 1, 1], np.float32)),
        "logit": values,
        "num_tokens": pa.array([1, 2, 3, 2**30, 0], pa.int32()),
        "truncated_tokens": pa.array([0, 1, 2**30, 5, 0], pa.int32()),
    }
    found = ScoreHistograms.of_columns(columns)
    assert {name: found.count(name) for name in found.bins} == {"score": 5, "logit": 5, "token": 4, "truncation": 3}
    assert json.loads(json.dumps(found.to_record()))["score_bins"][-1] == 2
    assert [found.bins["logit"][place] for place in (0, 128, -1)] == [2, 1, 2]


def test_run_at_work_leaves_figures_and_counts_once(tmp_path: Path, local_ray: str) -> None:
    target = tmp_path / "out"
    seen: list[tuple[str, int, str]] = []

    class Watcher(QuietReporter):
        """Looks at the output while the run is at work, as another process would."""

        def update(self, progress: RunProgress) -> None:
            manifest = Output(str(target)).load_manifest()
            if manifest and manifest["runs"][-1]["pairs"]:
                title = show(build_report(str(target)))[:30]
                seen.append((manifest["status"], len(manifest["runs"]), title))

    job = make_job(
        write_pairs(tmp_path), target, local_ray, engine_args={"seconds_per_prompt": 0.02}, unit_rows=20, limit=200
    )
    run_job(job, Watcher(), RunLimits(manifest_seconds=0.0))
    assert {(status, runs) for status, runs, _ in seen} == {("running", 1)}
    assert all(title.startswith("Scores: a run is at work") for _, _, title in seen)
    manifest = Output(str(target)).load_manifest()
    assert [run["status"] for run in manifest["runs"]] == ["complete"]
    assert manifest["runs"][0]["actor_seconds"] > 0
    run_job(job)
    assert [run["status"] for run in Output(str(target)).load_manifest()["runs"]] == ["complete", "complete"]


def test_run_that_never_said_how_it_ended_is_shown_as_killed(output: Path, tmp_path: Path) -> None:
    killed = copy_output(output, tmp_path)
    path = killed / "_job/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["runs"][0]["status"] = manifest["status"] = "running"
    path.write_bytes(storage.seal_json(manifest))
    assert " killed " in show(build_report(str(killed))).partition("Runs began")[2][:200]
