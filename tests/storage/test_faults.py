"""Storage that fails in every way a network has: what is absorbed, what ends in an error, and how soon.

The faults are real ones of a local S3 server. Waits and limits are those of `storage`, shortened where no Ray worker
is at work.
"""

import gzip
import io
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT, run_command
from s3_server import Fault, S3Server, put_table

from rerank_actor import storage
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.template import QWEN3_RERANKER
from rerank_actor.errors import AccessDeniedError, ObjectChangedError, ShardChangedError, StorageError, StorageFullError
from rerank_actor.inputs import shards
from rerank_actor.inputs.plan import Shard
from rerank_actor.inputs.rows import Unit
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.verify import verify_output
from rerank_actor.scoring.prepare import PrepareSpec, prepare_unit
from rerank_actor.storage.limits import current_limits, override_limits
from rerank_actor.storage.s3_client import connect_s3

Operation = Callable[[S3Server], object]

BODY = random.Random(0).randbytes(2000)
BLOCK_BYTES = 64 * 1024


@pytest.fixture
def short_waits() -> Iterator[None]:
    """Waits between tries of fractions of seconds."""
    with override_limits(longest_wait_seconds=0.2):
        yield


@pytest.fixture
def small_reads() -> Iterator[None]:
    """Reads of a small block at a time."""
    with override_limits(read_ahead_bytes=BLOCK_BYTES):
        yield


@pytest.fixture
def short_patience() -> Iterator[None]:
    """A run that waits for storage for a second."""
    with override_limits(patient_seconds=1):
        yield


@pytest.fixture
def fresh_client() -> Iterator[None]:
    """An S3 client of the test's own settings."""
    connect_s3.cache_clear()
    yield
    connect_s3.cache_clear()


@pytest.fixture
def short_limits(short_waits: None, fresh_client: None) -> Iterator[None]:
    """Limits of a request of a second where they are half minutes."""
    with override_limits(connect_timeout_seconds=1, read_timeout_seconds=1, request_seconds=1):
        yield


def read_stream(s3: S3Server) -> bytes:
    """Read an object as a shard is read."""
    with storage.open_input(s3.uri("in/a"), size=len(BODY)) as file:
        return file.read()


OPERATIONS: dict[str, tuple[Operation, object]] = {
    "list": (lambda s3: [found.size for found in storage.list_objects(s3.uri("in"))], [len(BODY)]),
    "look": (lambda s3: [found.size for found in storage.list_objects(s3.uri("in/a"))], [len(BODY)]),
    "read": (lambda s3: storage.read_bytes(s3.uri("in/a")), BODY),
    "read a tail": (lambda s3: storage.read_bytes(s3.uri("in/a"), tail_bytes=900, size=len(BODY)), BODY[-900:]),
    "stream": (read_stream, BODY),
    "write": (lambda s3: storage.write_bytes(s3.uri("in/b"), BODY), None),
    "create": (lambda s3: storage.create_bytes(s3.uri("in/b"), BODY), True),
    "delete": (lambda s3: storage.delete_objects([s3.uri("in/a")]), None),
}
FAULTS: dict[str, int | Fault] = {
    "500": 500,
    "503": 503,
    "reset": Fault("reset"),
    "lost": Fault("lost"),
    "truncate": Fault("truncate"),
    "stall": Fault("stall", 4),
    "slow": Fault("slow", 8),  # a piece each 0.4 s, which no timeout of the socket minds
}
PASSING = [(operation, "503") for operation in OPERATIONS]
PASSING += [(operation, fault) for operation in ("list", "stream", "write") for fault in FAULTS if fault != "503"]
PASSING += [("create", "lost")]
LASTING = [(operation, "503") for operation in ("list", "create")] + [("stream", fault) for fault in FAULTS]


def fail(fault: int | Fault, should: Callable[[int], bool]) -> Callable[[str, str], int | Fault]:
    """Return a fault for those requests whose number, from 0 on, should fail."""
    lock, count = threading.Lock(), iter(range(10**9))

    def choose(method: str, path: str) -> int | Fault:
        with lock:
            return fault if should(next(count)) else 0

    return choose


@pytest.mark.parametrize(("operation", "fault"), PASSING)
def test_fault_that_passes_is_absorbed(s3: S3Server, short_limits: None, operation: str, fault: str) -> None:
    s3.put("in/a", BODY)
    run, wanted = OPERATIONS[operation]
    s3.requests.clear()
    # Two resets, for aiohttp sends a request again by itself after one.
    times = 2 if fault in ("reset", "lost", "truncate") else 1
    s3.fault = fail(FAULTS[fault], lambda number: number < times)
    before = storage.retries_made()
    found = run(s3)
    s3.fault = None
    assert found == wanted
    assert storage.retries_made() > before
    if operation in ("write", "create"):
        assert s3.read("in/b") == BODY


@pytest.mark.parametrize(("operation", "fault"), LASTING)
def test_fault_that_lasts_ends_in_a_storage_error(
    s3: S3Server, short_limits: None, monkeypatch: pytest.MonkeyPatch, operation: str, fault: str
) -> None:
    tries = current_limits().brief_attempts
    if fault in ("stall", "slow"):  # which take long
        tries = 2
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", str(tries))
    s3.put("in/a", BODY)
    run, _ = OPERATIONS[operation]
    s3.requests.clear()
    s3.fault = lambda method, path: FAULTS[fault]
    before = storage.retries_made()
    with pytest.raises(StorageError) as found:
        run(s3)
    assert found.value.retryable
    assert s3.uri("in") in str(found.value)
    assert storage.retries_made() - before == tries - 1
    assert len(s3.requests) <= 2 * tries  # aiohttp sends a request again by itself after a reset


def test_lost_answer_to_a_create_that_another_won_is_no_success(s3: S3Server, short_waits: None) -> None:
    s3.put("in/b", b"another's")
    s3.fault = fail(Fault("lost"), lambda number: number < 1)
    assert storage.create_bytes(s3.uri("in/b"), b"mine") is False


def test_long_read_and_listing_go_on_where_they_failed(s3: S3Server, short_waits: None, small_reads: None) -> None:
    data = random.Random(1).randbytes(6 * BLOCK_BYTES - 7)
    s3.put("in/a", data)
    for i in range(17):
        s3.put(f"many/{i:02d}", b"x")
    s3.page_size = 3
    s3.fault = fail(Fault("truncate"), lambda number: number % 2 == 0)
    s3.requests.clear()
    with storage.open_input(s3.uri("in/a"), size=len(data)) as file:
        assert file.read() == data
    assert len(s3.requests) == 12
    s3.fault = fail(503, lambda number: number % 2 == 0)
    s3.requests.clear()
    assert len(storage.list_objects(s3.uri("many"))) == 17
    assert len(s3.requests) == 12


def test_download_goes_on_through_faults_and_is_whole(
    s3: S3Server, short_waits: None, small_reads: None, tmp_path: Path
) -> None:
    data = random.Random(1).randbytes(10 * BLOCK_BYTES - 7)
    s3.put("model/weights", data)
    s3.put("model/empty", b"")
    s3.fault = fail(Fault("truncate"), lambda number: number % 3 == 2)
    storage.download_folder(s3.uri("model"), tmp_path)
    assert (tmp_path / "weights").read_bytes() == data
    assert (tmp_path / "empty").read_bytes() == b""
    s3.fault = fail(500, lambda number: number > 4)
    with pytest.raises(StorageError):
        storage.download_folder(s3.uri("model"), tmp_path)


def test_object_that_cannot_be_deleted_is_told(
    s3: S3Server, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 answers a request to delete many with 200 and a list of those that it did not delete."""
    answer = "<DeleteResult><Error><Key>in/a</Key><Code>InternalError</Code><Message>m</Message></Error></DeleteResult>"
    s3.put("in/a", BODY)
    s3.answer_instead = lambda method, path: answer if method == "POST" else ""
    with pytest.raises(StorageError, match=r"1 of 1 .*InternalError"):
        storage.delete_objects([s3.uri("in/a")])


# Storage that is full.

WRITE_TOO_MUCH = """
import resource, sys
from rerank_actor import storage
from rerank_actor.errors import StorageFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
for write in (storage.write_bytes, storage.create_bytes):
    try:
        write(sys.argv[1], bytes(6000))
    except StorageFullError as error:
        print(error.retryable, error)
"""


def test_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "part"
    target.write_bytes(b"old")
    command = [sys.executable, "-c", WRITE_TOO_MUCH, str(target)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [f"False {target}: storage is full while {action}; make room" for action in ("writing", "writing")]
    assert [line[: len(start)] for line, start in zip(found.stdout.splitlines(), lines, strict=True)] == lines
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_full_bucket_is_told_without_another_try(s3: S3Server) -> None:
    s3.fault = lambda method, path: 507
    with storage.patient(), pytest.raises(StorageFullError, match="storage is full"):
        storage.write_bytes(s3.uri("a"), b"x")
    assert len(s3.requests) == 1


# Access that is denied for a while.


@pytest.mark.parametrize("operation", OPERATIONS)
def test_denied_access_is_final_at_once_but_waited_for_in_the_middle_of_a_run(
    s3: S3Server, short_waits: None, operation: str
) -> None:
    s3.put("in/a", BODY)
    run, wanted = OPERATIONS[operation]
    s3.fault = lambda method, path: 403
    s3.requests.clear()
    with pytest.raises(AccessDeniedError):
        run(s3)
    assert len(s3.requests) == 1
    s3.fault = fail(403, lambda number: number < 3)
    with storage.patient():
        assert run(s3) == wanted


def test_access_that_stays_denied_is_not_waited_for_for_ever(
    s3: S3Server, short_waits: None, short_patience: None
) -> None:
    s3.fault = lambda method, path: 403
    before = storage.retries_made()
    with storage.patient(), pytest.raises(AccessDeniedError):
        storage.list_objects(s3.uri("in"))
    assert storage.retries_made() > before


def test_renewed_credentials_of_a_file_are_used(
    s3: S3Server, short_waits: None, fresh_client: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_credentials(key: str) -> None:
        (tmp_path / "credentials").write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=secret\n")

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    write_credentials("OLD")
    s3.put("in/a", BODY)
    assert storage.read_bytes(s3.uri("in/a")) == BODY

    def deny_old(method: str, path: str) -> int:
        if s3.key_ids[-1] != "OLD":
            return 0
        if s3.key_ids.count("OLD") == 4:
            write_credentials("NEW")
        return 403

    s3.fault = deny_old
    with storage.patient():
        assert storage.read_bytes(s3.uri("in/a")) == BODY
    assert s3.key_ids[-1] == "NEW"


# A shard that is overwritten.


def make_text(mark: str, rows: int = 4000) -> bytes:
    """Return rows of a length that depends on their number alone, and that do not compress well."""
    draw = random.Random(mark)
    lines = [{"query": f"{i:05d}", "document": f"{mark} {draw.randbytes(30).hex()}"} for i in range(rows)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def make_shard(suffix: str, mark: str) -> bytes:
    text = make_text(mark)
    if suffix == "jsonl":
        return text
    if suffix == "jsonl.gz":
        return gzip.compress(text, 1, mtime=0)
    sink = io.BytesIO()
    rows = [json.loads(line) for line in text.splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="none", use_dictionary=False)
    return sink.getvalue()


class Place:
    """Somewhere a shard can be: a local folder or the bucket."""

    def __init__(self, s3: S3Server | None, folder: Path) -> None:
        self.s3, self.folder = s3, folder

    def put(self, name: str, data: bytes) -> storage.StoredObject:
        """Write an object and return what a listing says of it."""
        if self.s3 is not None:
            self.s3.put(f"in/{name}", data)
            return storage.list_objects(self.s3.uri(f"in/{name}"))[0]
        time.sleep(0.02)  # file systems' clocks tick in steps
        (self.folder / name).write_bytes(data)
        return storage.list_objects(str(self.folder / name))[0]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder, then the bucket."""
    return Place(request.getfixturevalue("s3") if request.param == "s3" else None, tmp_path)


def read_planned(planned: storage.StoredObject, etag: str | None = None) -> shards.Rows:
    etag = planned.etag if etag is None else etag
    return shards.read_rows(Unit("", planned.uri, planned.size, etag, 0, 4000, 0), InputSpec())


SUFFIXES = ["parquet", "jsonl", "jsonl.gz"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shard_overwritten_before_it_is_read_is_refused_by_name(place: Place, suffix: str) -> None:
    planned = place.put(f"a.{suffix}", make_shard(suffix, "a"))
    assert read_planned(planned).table.num_rows == 4000
    assert read_planned(planned, etag="").table.num_rows == 4000
    other = make_shard(suffix, "b")
    for data in (other, other + b"\n"):  # the first has mostly the same size
        place.put(f"a.{suffix}", data)
        with pytest.raises(ShardChangedError, match="--rescore-changed") as found:
            read_planned(planned)
        assert str(found.value).startswith(f"{planned.uri}: changed since it was planned")
        assert not found.value.retryable
    with pytest.raises(ShardChangedError):  # the size tells, where there is no etag
        read_planned(planned, etag="")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("known", [True, False])
def test_shard_in_s3_overwritten_in_mid_read_is_refused(
    s3: S3Server, small_reads: None, suffix: str, known: bool
) -> None:
    planned = Place(s3, Path()).put(f"a.{suffix}", make_shard(suffix, "a"))
    reads = []

    def overwrite(method: str, path: str) -> None:
        if method == "GET" and path.endswith(f"a.{suffix}"):
            reads.append(path)
            if len(reads) == 3:
                s3.put(f"in/a.{suffix}", make_shard(suffix, "b"))

    s3.before_answer = overwrite
    with pytest.raises(ShardChangedError):
        read_planned(planned, None if known else "")
    assert len(reads) == 3


def test_local_file_overwritten_in_mid_read_is_refused(tmp_path: Path) -> None:
    planned = Place(None, tmp_path).put("a.jsonl", make_shard("jsonl", "a"))
    with storage.open_input(planned.uri, size=planned.size, etag=planned.etag) as file:
        file.read(100)
        storage.refuse_changed(planned.uri, planned.size, planned.etag)
        Place(None, tmp_path).put("a.jsonl", make_shard("jsonl", "b"))
        file.read()
        with pytest.raises(ObjectChangedError, match=planned.uri):
            storage.refuse_changed(planned.uri, planned.size, planned.etag)


def prepare(planned: storage.StoredObject, **unit: Any) -> Any:
    """Prepare the shard's rows as one unit."""
    tokenizer_json = load_tokenizer_json(load_reranker_model("bytes"))
    encoder = {"template": QWEN3_RERANKER, "instruction": "i", "max_length": 512}
    values = {"size": planned.size, "etag": planned.etag, "row_start": 0, "num_rows": 4000, "byte_start": 0, **unit}
    spec = PrepareSpec(encoder, InputSpec(), {}, 3, {})
    return prepare_unit(Unit("0-0", planned.uri, **values), spec, tokenizer_json)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unit_of_an_overwritten_shard_fails_at_the_first_try(place: Place, suffix: str) -> None:
    planned = place.put(f"a.{suffix}", make_shard(suffix, "a"))
    place.put(f"a.{suffix}", make_shard(suffix, "b"))
    failed = prepare(planned)
    assert planned.uri in failed.failure
    assert "changed since it was planned" in failed.failure
    assert failed.facts["attempts"] == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unit_costs_no_more_requests_than_blocks_and_a_footer(s3: S3Server, suffix: str) -> None:
    planned = Place(s3, Path()).put(f"a.{suffix}", make_shard(suffix, "a"))
    s3.requests.clear()
    work = prepare(planned)
    assert work.failure is None
    assert "read_retries" not in work.facts
    assert [method for method, _ in s3.requests] == ["GET"] * (2 if suffix == "parquet" else 1)


def test_unit_is_read_through_faults_and_tells_the_tries(
    s3: S3Server, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = Place(s3, Path()).put("a.parquet", make_shard("parquet", "a"))
    faults = [403, 503, Fault("truncate"), Fault("reset"), Fault("reset"), 400]
    s3.fault = lambda method, path: faults.pop() if faults else 0
    work = prepare(planned)
    assert work.failure is None
    assert work.facts["read_retries"] == 5
    s3.fault = lambda method, path: Fault("truncate")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "8")
    failed = prepare(planned)
    assert planned.uri in failed.failure
    assert failed.facts["attempts"] == 1
    assert failed.facts["read_retries"] == 7


# The whole job.


def find_shard_id(s3: S3Server, name: str) -> str:
    return Shard(s3.uri(f"in/{name}.parquet"), 0, "", 0, (), (), ()).id


def test_run_on_failing_storage_fails_the_units_it_must_and_goes_on(s3: S3Server, local_ray: str) -> None:
    names = ["sound", "unread", "unwritten", "full", "overwritten", "denied", "reset"]
    for name in names:
        table = pa.table({"query": ["q"] * 6, "document": [f"{name} {i}" for i in range(6)]})
        put_table(s3, f"in/{name}.parquet", table)
    ids = {name: find_shard_id(s3, name) for name in names}
    left = {"denied": [403, 403], "reset": [Fault("reset"), Fault("reset")]}
    planned = threading.Event()

    def choose(method: str, path: str) -> int | Fault:
        if not planned.is_set():
            if method == "PUT" and path.endswith("/plan.bin"):
                put_table(s3, "in/overwritten.parquet", pa.table({"query": ["q"] * 7, "document": ["other"] * 7}))
                planned.set()
        elif method == "GET":
            if path.endswith("in/unread.parquet"):
                return 503
            for name, faults in left.items():
                if path.endswith(f"in/{name}.parquet") and faults:
                    return faults.pop()
        elif method == "PUT":
            for name, fault in (("unwritten", 500), ("full", 507)):
                if f"out/part-{ids[name]}" in path:
                    return fault
        return 0

    s3.fault = choose
    flags = ["--engine", "fake", "--input", s3.uri("in"), "--output", s3.uri("out"), "--unit-rows", 6]
    found = run_command("score", *flags, "--ray-address", local_ray, AWS_MAX_ATTEMPTS="4")
    s3.fault = None
    assert found.returncode == 1, found.stderr
    failed = {record["unit"].partition("-")[0]: record["error"] for record in Output(s3.uri("out")).list_failed()}
    reasons = {
        "unread": "storage failed while reading",
        "unwritten": "storage failed while writing",
        "full": "storage is full while writing",
        "overwritten": "changed since it was planned",
    }
    assert failed.keys() == {ids[name] for name in reasons}
    for name, reason in reasons.items():
        assert reason in failed[ids[name]]
    assert s3.uri("in/overwritten.parquet") in failed[ids["overwritten"]]
    assert sorted(s3.read_all("out/part-")) == sorted(
        f"out/part-{ids[name]}-00000.parquet" for name in names if name not in reasons
    )
    assert len(verify_output(s3.uri("out")).problems) == len(reasons)

    # When storage is well again the same command scores the rest, the changed shard when it is told to.
    found = run_command("score", *flags, "--ray-address", local_ray, "--rescore-changed")
    assert found.returncode == 0, found.stderr
    assert verify_output(s3.uri("out")).problems == []
