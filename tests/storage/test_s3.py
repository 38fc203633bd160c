"""Storage and the whole job on S3, against a local S3 server."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT, run_command
from s3_server import SECRET, S3Server, put_table

from rerank_actor import Reranker, storage
from rerank_actor.commands.status import status
from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.model import load_reranker_model
from rerank_actor.engines.start import start_engine
from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.job import ScoreJob, load_job
from rerank_actor.outputs.folder import CARD
from rerank_actor.outputs.verify import verify_output
from rerank_actor.progress import LineReporter
from rerank_actor.scoring.run import RunResult, run_job


def make_pairs(count: int, mark: str = "d") -> pa.Table:
    """Return pairs, three to a query."""
    return pa.table(
        {"query": [f"query {i // 3}" for i in range(count)], "document": [f"{mark} {i}" for i in range(count)]}
    )


def make_job(s3: S3Server, **settings: Any) -> ScoreJob:
    """Return a job from the bucket to the bucket."""
    values: dict[str, Any] = {"input": [s3.uri("in")], "output": s3.uri("out"), "engine": "fake", **settings}
    return ScoreJob(**values).normalized()


def read_parts(s3: S3Server, prefix: str = "out/") -> dict[str, bytes]:
    """Return the bytes of the committed parts by name."""
    return {key.rpartition("/")[2]: data for key, data in s3.read_all(f"{prefix}part-").items()}


def read_rows(s3: S3Server) -> pa.Table:
    """Return the rows of all parts, in order of part names."""
    return pa.concat_tables([pq.read_table(pa.BufferReader(data)) for _, data in sorted(read_parts(s3).items())])


# The functions of storage.


def test_listing_of_many_pages_is_one_paginated_listing(s3: S3Server) -> None:
    for i in range(45):
        s3.put(f"many/{i:05d}.parquet", b"x" * (i % 7))
    s3.page_size = 10
    s3.requests.clear()
    found = storage.list_objects(s3.uri("many"))
    assert [item.uri for item in found] == [s3.uri(f"many/{i:05d}.parquet") for i in range(45)]
    assert [item.size for item in found] == [i % 7 for i in range(45)]
    assert len(s3.requests) == 5
    assert all(method == "GET" and "list-type=2" in path for method, path in s3.requests)


@pytest.mark.parametrize("key", ["a?b.jsonl", "a*b.jsonl", "a[1].jsonl"])
def test_key_that_holds_a_wildcard_is_that_object_alone(s3: S3Server, key: str) -> None:
    for name in (key, "a+b.jsonl", "a1.jsonl", "a/b.jsonl", "_a.jsonl"):
        s3.put(f"n/{name}", b"x")
    assert [item.uri for item in storage.list_objects(s3.uri(f"n/{key}"))] == [s3.uri(f"n/{key}")]
    found = storage.list_everything(s3.uri("n/*"))
    assert s3.uri("n/a1.jsonl") in [item.uri for item in found.objects] and len(found.objects) == 3
    assert (found.hidden, found.deeper) == ([s3.uri("n/_a.jsonl")], [s3.uri("n/a/b.jsonl")])


def test_listing_skips_hidden_names_neighbours_and_folder_marks(s3: S3Server) -> None:
    keys = ["in/a.parquet", "in/deeper/b c+%20\u00fc.parquet", "in/_SUCCESS", "in/_job/x", "in/.crc", "in/deeper/_y/z"]
    for key in [*keys, "in2/a.parquet", "in.parquet"]:
        s3.put(key, b"x")
    s3.put("in/", b"")
    found = storage.list_objects(s3.uri("in/"))
    assert [item.uri for item in found] == [s3.uri(key) for key in keys[:2]]
    etags = {item.etag for item in found}
    assert len(etags) == 1
    assert etags == {s3.client.head_object(Bucket=s3.bucket, Key="in/a.parquet")["ETag"].strip('"')}
    assert all(abs(item.modified_seconds - time.time()) < 60 for item in found)


def test_listing_one_object_a_glob_and_nothing(s3: S3Server) -> None:
    for key in ["in/a.parquet", "in/b.csv", "in/_c.parquet", "in/deeper/d.parquet"]:
        s3.put(key, b"x")
    assert [item.uri for item in storage.list_objects(s3.uri("in/a.parquet"))] == [s3.uri("in/a.parquet")]
    assert [item.uri for item in storage.list_objects(s3.uri("in/*.parquet"))] == [s3.uri("in/a.parquet")]
    deep = storage.list_objects(s3.uri("in/**/*.parquet"))
    assert [item.uri for item in deep if item.uri.endswith("d.parquet")] == [s3.uri("in/deeper/d.parquet")]
    assert storage.list_objects(s3.uri("nothing")) == []


def test_reading_a_tail_is_one_request_for_these_bytes(s3: S3Server) -> None:
    s3.put("in/a.bin", bytes(range(200)))
    s3.requests.clear()
    assert storage.read_bytes(s3.uri("in/a.bin"), tail_bytes=5, size=200) == bytes(range(195, 200))
    assert [method for method, _ in s3.requests] == ["GET"]
    assert storage.read_bytes(s3.uri("in/a.bin"), tail_bytes=500, size=200) == bytes(range(200))
    assert storage.read_bytes(s3.uri("in/a.bin")) == bytes(range(200))
    with storage.open_input(s3.uri("in/a.bin")) as file:
        file.seek(100)
        assert file.read(3) == bytes([100, 101, 102])


def test_writing_replaces_and_creating_does_not(s3: S3Server) -> None:
    uri = s3.uri("out/lease.json")
    assert storage.create_bytes(uri, b"first") is True
    assert storage.create_bytes(uri, b"second") is False
    assert s3.read("out/lease.json") == b"first"
    storage.write_bytes(uri, b"third")
    assert s3.read("out/lease.json") == b"third"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.create_bytes(s3.uri("out/race"), b"%d" % i), range(8)))
    assert sum(won) == 1
    assert s3.read("out/race") == b"%d" % won.index(True)


def test_deleting_what_is_there_and_what_is_not(s3: S3Server) -> None:
    for key in ("out/a", "out/b", "out/deep/c", "out2/d"):
        s3.put(key, b"x")
    storage.delete_objects([s3.uri("out/a"), s3.uri("out/a"), s3.uri("out/gone")])
    assert sorted(s3.read_all("")) == ["out/b", "out/deep/c", "out2/d"]
    storage.delete_folder(s3.uri("out"))
    storage.delete_folder(s3.uri("gone"))
    assert sorted(s3.read_all("")) == ["out2/d"]


def test_missing_keys_and_buckets_are_input_errors(s3: S3Server) -> None:
    assert storage.read_if_present(s3.uri("none")) is None
    for attempt in (
        lambda: storage.read_bytes(s3.uri("none")),
        lambda: storage.open_input(s3.uri("none")).read(),
        lambda: storage.list_objects("s3://no-such-bucket/in"),
        lambda: storage.write_bytes("s3://no-such-bucket/a", b"x"),
        lambda: storage.create_bytes("s3://no-such-bucket/a", b"x"),
    ):
        with pytest.raises(InputError, match="not found"):
            attempt()
    with pytest.raises(JobError, match="not a valid bucket"):
        storage.list_objects("s3://No_Bucket!/in")


# The whole job.


@pytest.fixture
def finished(s3: S3Server, local_ray: str) -> tuple[S3Server, RunResult]:
    """A job from S3 to S3 on a Ray that was started without the AWS variables."""
    put_table(s3, "in/a.parquet", make_pairs(9, "a"))
    put_table(s3, "in/b c+%20\u00fc.parquet", make_pairs(5, "b"))
    s3.put("in/c.jsonl", b'{"query": "q", "document": "d"}\n{"query": null, "document": "d"}\n')
    s3.put("in/_hidden.parquet", b"no shard")
    s3.put("in/", b"")
    return s3, run_job(make_job(s3, unit_rows=4))


def test_job_from_s3_to_s3(finished: tuple[S3Server, RunResult], capsys: pytest.CaptureFixture[str]) -> None:
    s3, result = finished
    assert result.status == "complete"
    rows = [row for row in read_rows(s3).to_pylist() if row["error"] is None]
    assert len(rows) == 15
    pairs = [(row["query"], row["document"]) for row in rows]
    assert [row["score"] for row in rows] == Reranker(engine="fake").score(pairs).tolist()
    for prefix, count in (("a", 9), ("b", 5)):
        mine = [row["document"] for row in rows if row["document"].startswith(f"{prefix} ")]
        assert mine == [f"{prefix} {i}" for i in range(count)]
    everything = s3.read_all("out/")
    names = {key.removeprefix("out/").partition("/")[0] for key in everything}
    assert names == {"_SUCCESS", "_job", CARD, *read_parts(s3)}
    assert "out/_job/lease.json" not in everything
    assert not any(SECRET.encode() in data for data in everything.values())
    manifest = json.loads(everything["out/_job/manifest.json"])
    assert (manifest["totals"]["rows"], manifest["totals"]["scored"], manifest["totals"]["errors"]) == (16, 15, 1)

    # What came of it is seen from the output alone.
    assert verify_output(s3.uri("out")).problems == []
    assert status([s3.uri("out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "complete"

    # The second run asks for no row and no part.
    before = {key: data for key, data in everything.items() if "part-" in key}
    s3.requests.clear()
    assert run_job(load_job(s3.uri("out/_job/job.yaml"), {})).status == "complete"
    reads = [path for method, path in s3.requests if method == "GET" and "list-type" not in path]
    assert not [path for path in reads if "/in/" in path or "part-" in path]
    assert len([path for _, path in s3.requests if "list-type" in path and "max-keys" not in path]) <= 9
    assert {key: data for key, data in s3.read_all("out/").items() if "part-" in key} == before

    # A part that was lost is scored again, from S3, to the same bytes but for the run's name.
    lost = min(before)
    rows_lost = pq.read_table(pa.BufferReader(before[lost]))
    s3.client.delete_object(Bucket=s3.bucket, Key=lost)
    assert [problem for problem in verify_output(s3.uri("out")).problems if lost.rpartition("/")[2] in problem]
    assert run_job(make_job(s3, unit_rows=4)).run["units"] == 1
    assert pq.read_table(pa.BufferReader(s3.read(lost))).equals(rows_lost)
    assert verify_output(s3.uri("out")).problems == []


def test_job_on_s3_that_fails_now_and_then_scores_everything(s3: S3Server, local_ray: str) -> None:
    put_table(s3, "in/a.parquet", make_pairs(40))
    count = iter(range(10**6))
    s3.fault = lambda method, path: (500, 503)[next(count) // 7 % 2] if next(count) % 7 == 6 else 0
    result = run_job(make_job(s3, unit_rows=4))
    s3.fault = None
    assert result.status == "complete"
    assert result.failed == {}
    assert read_rows(s3).num_rows == 40
    assert verify_output(s3.uri("out")).problems == []


def test_killed_job_on_s3_resumes_to_the_undisturbed_result(s3: S3Server, tmp_path: Path, local_ray: str) -> None:
    tables = {name: make_pairs(60, name) for name in "ab"}
    for name, table in tables.items():
        put_table(s3, f"in/{name}.parquet", table)
    (tmp_path / "job.yaml").write_text(
        f"input: {s3.uri('in')}\noutput: {s3.uri('out')}\nengine: fake\nunit_rows: 4\n"
        'engine_args: {"seconds_per_prompt": 0.05}\n'
    )
    s3.put("jobs/job.yaml", (tmp_path / "job.yaml").read_bytes())
    flags = [s3.uri("jobs/job.yaml"), "--ray-address", local_ray]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.score", *flags], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while len(read_parts(s3)) < 4 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        assert process.poll() is None, (tmp_path / "log").read_text()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    time.sleep(1)
    committed = read_parts(s3)
    assert 4 <= len(committed) < 30
    assert "_SUCCESS" not in "".join(s3.read_all("out/_S"))

    told = io.StringIO()
    result = run_job(load_job(s3.uri("jobs/job.yaml"), {}), LineReporter(told))
    assert result.status == "complete"
    assert "left a lease" not in told.getvalue(), "the lease of a process that has ended is taken over at once"
    assert SECRET not in (tmp_path / "log").read_text()
    final = read_parts(s3)
    assert len(final) == 30
    assert {name: final[name] for name in committed} == committed
    reranker = Reranker(engine="fake")
    rows = read_rows(s3)
    assert sorted(rows["document"].to_pylist()) == sorted(
        document for table in tables.values() for document in table["document"].to_pylist()
    )
    pairs = list(zip(rows["query"].to_pylist(), rows["document"].to_pylist(), strict=True))
    assert rows["score"].to_pylist() == reranker.score(pairs).tolist()
    assert verify_output(s3.uri("out")).problems == []


# Models.


def test_model_on_s3_tokenizes_as_its_folder_does_and_when_changed_is_another_job(
    s3: S3Server, model_folder: Path, model_cache: Path, local_ray: str
) -> None:
    s3.put("model/", b"")
    s3.put_folder(model_folder, "model")
    put_table(s3, "in/a.parquet", make_pairs(6))
    s3.requests.clear()
    run_job(make_job(s3, model=s3.uri("model")))
    assert not [path for method, path in s3.requests if method == "GET" and path.endswith(".safetensors")]
    rows = read_rows(s3)
    pairs = list(zip(rows["query"].to_pylist(), rows["document"].to_pylist(), strict=True))
    assert rows["score"].to_pylist() == Reranker(str(model_folder), engine="fake").score(pairs).tolist()
    assert json.loads(s3.read("out/_job/manifest.json"))["model"]["name"] == s3.uri("model")
    assert list(model_cache.rglob("tokenizer.json"))

    config = json.loads(s3.read("model/config.json"))
    s3.put("model/config.json", json.dumps({**config, "rms_norm_eps": 1e-4}).encode())
    with pytest.raises(OutputConflictError, match=r"another job.*model"):
        run_job(make_job(s3, model=s3.uri("model")))


def test_model_on_s3_is_scored_with_as_from_its_folder(s3: S3Server, model_folder: Path, local_ray: str) -> None:
    s3.put_folder(model_folder, "model")
    put_table(s3, "in/a.parquet", make_pairs(6))
    result = run_job(make_job(s3, model=s3.uri("model"), engine="transformers", dtype="float32", max_length=512))
    assert result.status == "complete"
    rows = read_rows(s3)
    pairs = list(zip(rows["query"].to_pylist(), rows["document"].to_pylist(), strict=True))
    with Reranker(str(model_folder), engine="transformers", dtype="float32") as reranker:
        np.testing.assert_allclose(rows["score"].to_pylist(), reranker.score(pairs), atol=1e-6, rtol=0)


def test_model_on_s3_is_fetched_by_a_machine_that_has_no_copy(
    s3: S3Server, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver looks at the model on one machine, an engine starts on another."""
    s3.put_folder(model_folder, "model")
    monkeypatch.setenv("RERANK_ACTOR_CACHE", str(tmp_path / "driver"))
    model = load_reranker_model(s3.uri("model"))
    monkeypatch.setenv("RERANK_ACTOR_CACHE", str(tmp_path / "worker"))
    (tmp_path / "driver").rename(tmp_path / "another machine")
    prompts = tuple((11, 12, 13, 20 + i) for i in range(8))
    spec = EngineSpec("transformers", model, "float32", 64, 1, {}, prompts, (3,) * 8)
    engine, _ = start_engine(spec)
    found = engine.compute_logits([np.array(ids, np.int32) for ids in prompts])
    local, _ = start_engine(replace(spec, model=load_reranker_model(str(model_folder))))
    np.testing.assert_array_equal(found, local.compute_logits([np.array(ids, np.int32) for ids in prompts]))


# What a user reads when S3 is not as they thought.

NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "", "HOME": "/nonexistent"}
TROUBLES: dict[str, tuple[str, str, dict[str, str]]] = {
    "no bucket": ("s3://no-such-bucket/in", "s3://no-such-bucket/in: not found", {}),
    "no key": ("in/none.parquet", "in/none.parquet: nothing there", {}),
    "no credentials": ("in", "no AWS credentials", NO_KEYS),
    "nobody there": ("in", "storage failed", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "2"}),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_with_s3_before_the_start_exits_2_in_one_line(s3: S3Server, tmp_path: Path, name: str) -> None:
    source, message, environment = TROUBLES[name]
    put_table(s3, "in/a.parquet", make_pairs(3))
    source = source if source.startswith("s3://") else s3.uri(source)
    flags = ["--engine", "fake", "--input", source, "--output", tmp_path / "out"]
    found = run_command("score", *flags, RAY_ADDRESS="127.0.0.1:1", **environment)
    assert found.returncode == 2, found.stderr
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert message in found.stderr
    assert SECRET not in found.stderr
    assert not (tmp_path / "out").exists()


def test_output_in_a_bucket_that_is_not_there_exits_2(s3: S3Server) -> None:
    put_table(s3, "in/a.parquet", make_pairs(3))
    flags = ["--engine", "fake", "--input", s3.uri("in"), "--output", "s3://no-such-bucket/out"]
    found = run_command("score", *flags, RAY_ADDRESS="127.0.0.1:1")
    assert found.returncode == 2, found.stderr
    assert "s3://no-such-bucket/out" in found.stderr
    assert "not found" in found.stderr
    assert found.stderr.count("\n") == 1


def test_requests_to_s3_are_a_few_for_each_unit(s3: S3Server, local_ray: str) -> None:
    """A read of the footer and of the row group, a part and its check; listings and plan for the job as a whole."""

    def count(num_units: int) -> Counter[str]:
        sink = pa.BufferOutputStream()
        pq.write_table(make_pairs(20 * num_units), sink, row_group_size=20)
        s3.put(f"in-{num_units}/pairs.parquet", sink.getvalue().to_pybytes())
        s3.requests.clear()
        folders = {"input": [s3.uri(f"in-{num_units}")], "output": s3.uri(f"out-{num_units}")}
        run_job(make_job(s3, unit_rows=20, **folders))
        kinds: list[Any] = [(method, "list-type" in path) for method, path in s3.requests]
        return Counter(f"{'LIST' if is_list else method}" for method, is_list in kinds)

    few, many = count(4), count(16)
    each = {kind: (many[kind] - few[kind]) / 12 for kind in many}
    assert each["PUT"] == pytest.approx(1, abs=0.3)  # the lease and the records of a minute besides
    assert each["GET"] <= 4
    assert each["LIST"] <= 1.5
    assert each.get("HEAD", 0) <= 2
