"""Google Cloud Storage and Azure: what S3 does, they do, with the same bounds, tries and conditions."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cloud_server import CloudServer
from mining_in_process import RULES, mine_in_process
from scoring_in_process import score_here

from rerank_actor import storage
from rerank_actor.errors import AccessDeniedError, InputError, JobError, ObjectChangedError, StorageError
from rerank_actor.job import load_job
from rerank_actor.job_file import check_job, refuse_credentials
from rerank_actor.mining.job import MineJob
from rerank_actor.outputs.verify import verify_output
from rerank_actor.storage import cloud_client
from rerank_actor.storage.cloud_client import forget_connections
from rerank_actor.storage.limits import override_limits

BODY = random.Random(0).randbytes(200_000)


@pytest.fixture(params=["gs", "az"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudServer]:
    """A server of one of the two, reached by its own variables, and short waits between tries."""
    server = CloudServer(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    with override_limits(longest_wait_seconds=0.2, request_seconds=2, read_ahead_bytes=64 * 1024):
        yield server
    forget_connections()
    server.close()


def test_objects_are_written_read_listed_and_deleted(cloud: CloudServer) -> None:
    names = [f"in/{number:03}.jsonl" for number in range(250)]  # three pages
    for name in [*names, "in/_job/x", "in/sub/a?b[1] ü.jsonl", "inside.jsonl"]:
        cloud.put(name, b"x")
    cloud.put("in/sub/", b"")  # the mark of a folder
    storage.write_bytes(cloud.uri("in/big"), BODY)
    listed = storage.list_everything(cloud.uri("in"))
    assert [item.uri for item in listed.objects] == [
        cloud.uri(key) for key in [*names, "in/big", "in/sub/a?b[1] ü.jsonl"]
    ]
    assert listed.hidden == [cloud.uri("in/_job/x")]
    assert len(storage.list_children(cloud.uri("in"))) == 251
    assert [item.uri for item in storage.list_objects(cloud.uri("in/*/a[?]b*"))] == [cloud.uri("in/sub/a?b[1] ü.jsonl")]
    big = storage.look_at_object(cloud.uri("in/big"))
    assert big is not None and big in listed.objects  # size, etag and time are one's and the other's
    assert big.etag == storage.find_mark(big.uri, BODY)
    with storage.open_input(big.uri, size=big.size, etag=big.etag) as file:
        assert file.read() == BODY
    assert storage.read_bytes(big.uri, tail_bytes=900, size=len(BODY)) == BODY[-900:]
    storage.delete_objects([big.uri, cloud.uri("in/never")])
    storage.delete_folder(cloud.uri("in"))
    del cloud.objects["data"]["in/sub/"]
    assert set(cloud.objects["data"]) == {"inside.jsonl"}
    assert storage.list_objects(cloud.uri("in")) == []
    assert storage.read_if_present(big.uri) is None


def test_of_two_that_write_on_a_condition_one_wins(cloud: CloudServer) -> None:
    uri = cloud.uri("out/lease.json")
    assert storage.create_bytes(uri, b"one")
    assert not storage.create_bytes(uri, b"two")
    read = storage.read_version(uri)
    assert read is not None and read.data == b"one"
    assert storage.replace_bytes(uri, b"three", read.mark)
    assert not storage.replace_bytes(uri, b"four", read.mark)
    storage.delete_objects([uri])
    assert not storage.replace_bytes(uri, b"five", read.mark)
    assert storage.read_version(uri) is None


def test_put_whose_answer_was_lost_is_known_as_ones_own(cloud: CloudServer) -> None:
    faults = iter([-2])
    cloud.fault = lambda method, path: next(faults, 0) if method == "PUT" else 0
    assert storage.create_bytes(cloud.uri("out/a"), b"mine")


@pytest.mark.parametrize("fault", [500, 503, 429, -1])
def test_fault_that_passes_is_absorbed_by_each_request(cloud: CloudServer, fault: int) -> None:
    cloud.put("in/a", BODY)
    asked: list[Any] = []

    def fail_twice(method: str, path: str) -> int:
        asked.append(method)
        return fault if asked.count(method) <= 2 else 0

    for operation in (
        lambda: [item.size for item in storage.list_objects(cloud.uri("in"))] == [len(BODY)],
        lambda: storage.read_bytes(cloud.uri("in/a")) == BODY,
        lambda: storage.create_bytes(cloud.uri("in/b"), BODY),
        lambda: storage.delete_objects([cloud.uri("in/b")]) is None,
    ):
        asked.clear()
        cloud.fault = fail_twice
        assert operation()
        assert len(asked) > 2
        cloud.fault = None


def test_fault_that_lasts_ends_in_one_sentence_and_denied_access_at_once(cloud: CloudServer) -> None:
    cloud.put("in/a", BODY)
    cloud.fault = lambda method, path: 503
    with pytest.raises(StorageError, match="storage failed while reading") as failed:
        storage.read_bytes(cloud.uri("in/a"))
    assert "\n" not in str(failed.value) and "503" in str(failed.value)
    before = len(cloud.requests)
    cloud.fault = lambda method, path: 403
    with pytest.raises(
        AccessDeniedError, match=f"check the {'Google Cloud' if cloud.kind == 'gs' else 'Azure'} credent"
    ):
        storage.read_bytes(cloud.uri("in/a"))
    assert len(cloud.requests) == before + 1


def test_object_that_changes_is_refused(cloud: CloudServer) -> None:
    cloud.put("in/a", BODY)
    before = storage.look_at_object(cloud.uri("in/a"))
    assert before is not None
    for other in (BODY[::-1], BODY + b"x", BODY[:10]):
        cloud.put("in/a", other)
        with (
            pytest.raises(ObjectChangedError),
            storage.open_input(before.uri, size=before.size, etag=before.etag) as file,
        ):
            file.seek(1000)
            file.read(100)


def test_what_is_not_there_is_told(cloud: CloudServer) -> None:
    with pytest.raises(InputError, match="check the bucket"):
        storage.read_bytes(cloud.uri("in/a"))
    for operation in (storage.list_objects, lambda uri: storage.write_bytes(uri, b"x")):
        with pytest.raises(InputError, match="check the bucket"):
            operation(f"{cloud.kind}://nowhere/a")


def test_parquet_is_a_dataset(cloud: CloudServer) -> None:
    table = pa.table({"number": pa.array(range(1000))})
    uris = [cloud.uri(f"out/{part}.parquet") for part in range(2)]
    for uri in uris:
        storage.write_bytes(uri, storage.to_parquet(table))
    dataset = storage.open_parquet(uris)
    assert dataset.count_rows() == 2000
    assert dataset.to_table(columns=["number"]) == pa.concat_tables([table, table])


def test_locations_of_stores_have_one_spelling_and_hold_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "container@account.dfs.core.windows.net/in"
    spelt = {
        "gcs://bucket/in/": "gs://bucket/in",
        "gs://bucket": "gs://bucket",
        "az://container/in": "az://container/in",
        f"abfs://{place}": f"abfss://{place}",
    }
    assert {text: storage.normalize_uri(text) for text in spelt} == spelt
    assert refuse_credentials(f"abfss://{place}") == f"abfss://{place}"
    for wrong in ("gs://", "abfss://container/in", "ftp://host/in"):
        with pytest.raises(JobError):
            storage.normalize_uri(wrong)
    with pytest.raises(ValueError, match="written down"):
        refuse_credentials("az://container/in?sv=2026&sig=planted")
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(JobError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        storage.list_objects("az://container/in")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("SharedAccessSignature=sv=1&sig=planted", "AZURE_STORAGE_SAS_TOKEN"),
        ("EndpointSuffix=core.chinacloudapi.cn", "AZURE_STORAGE_ENDPOINT"),
        ("UseDevelopmentStorage=true", "BlobEndpoint"),
    ],
)
def test_connection_string_is_read_or_refused(monkeypatch: pytest.MonkeyPatch, entry: str, told: str) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    connection = "AccountName=other;AccountKey=planted;BlobEndpoint=https://other.blob.core.windows.net"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"{connection};EndpointSuffix=core.windows.net")
    mine = "container@account.dfs.core.windows.net"
    assert cloud_client._configure_azure(f"abfss://{mine}", mine) == {"account_name": "account"}, (
        "the key is of another"
    )
    assert cloud_client._configure_azure("az://container", "container")["account_key"] == "planted"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"{connection};{entry}")
    with pytest.raises(JobError, match=f"is not read; .*{told}") as refused:
        cloud_client._configure_azure("az://container", "container")
    assert "planted" not in str(refused.value)


def test_job_is_scored_resumed_verified_and_mined(cloud: CloudServer, tmp_path: Path) -> None:
    rows = [{"query": f"q{i // 4}", "document": f"d{i}", "label": int(i % 4 == 0)} for i in range(40)]
    storage.write_bytes(cloud.uri("in/a.parquet"), storage.to_parquet(pa.Table.from_pylist(rows)))
    values = {"input": [cloud.uri("in")], "output": cloud.uri("out"), "engine": "fake", "unit_rows": 10}
    job = load_job(None, values)
    assert len(score_here(job).scored) == 4
    assert verify_output(job.output).problems == []
    cloud.requests.clear()
    assert score_here(job).scored == []
    assert not [path for method, path in cloud.requests if method == "GET" and "/part-" in path]  # as it was listed
    part = min(key for key in cloud.objects["data"] if "/part-" in key)
    del cloud.objects["data"][part]
    assert [problem for problem in verify_output(job.output).problems if part.rpartition("/")[2] in problem]
    assert len(score_here(job).scored) == 1
    assert verify_output(job.output).problems == []
    mined = check_job(MineJob, {"scored": [job.output], "output": str(tmp_path), **RULES, "absolute_margin": 0.0})
    assert mine_in_process(mined.normalized())[1].counts["queries"] == 10


def test_variables_of_the_clouds_reach_the_workers(cloud: CloudServer) -> None:
    assert storage.capture_environment().items() >= cloud.environment.items()
