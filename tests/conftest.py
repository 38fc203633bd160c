"""What tests share: a small random model, shards, and an engine started once."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server
from sample_model import write_sample_model

BUCKET_NUMBERS = itertools.count()
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|There are infinite retries remaining")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reranker of the Qwen3 architecture, written once a test run."""
    return write_sample_model(tmp_path_factory.mktemp("models") / "sample")


@pytest.fixture
def write_shard(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows (a list of dicts or a table) as a Parquet shard below `tmp_path/input`."""

    def write(rows: Any, name: str = "pairs.parquet", **options: Any) -> Path:
        path = tmp_path / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path, **options)
        return path

    return write


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep models this small on one thread: more of them wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that models from S3 are copied to, here and in processes started from here."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RERANK_ACTOR_CACHE", str(folder))
        yield folder


def drop_aws_variables(patch: pytest.MonkeyPatch) -> None:
    """Take the AWS variables out of this process for as long as the patch lasts."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for all tests, because a process keeps its connection; the AWS variables stay set."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        drop_aws_variables(patch)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """The S3 server with an empty bucket, no requests and no faults."""
    s3_server.begin_test(next(BUCKET_NUMBERS))
    yield s3_server
    s3_server.fault = None


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """A Ray on this machine that tests share, so that each need not start one; gives its address.

    It is started without AWS variables, so that its workers have them from the run alone.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        drop_aws_variables(patch)
        context = ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield str(context.address_info["address"])
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with vLLM's tests first, before an S3 server has loaded Flask, which vLLM cannot start beside."""
    with_vllm = {item.path for item in items if item.get_closest_marker("vllm")}
    if mixed := [item for item in items if item.path in with_vllm and "s3_server" in getattr(item, "fixturenames", ())]:
        raise pytest.UsageError(f"{mixed[0].nodeid} needs an S3 server: not in a file with tests of vLLM")
    items.sort(key=lambda item: (item.path not in with_vllm, item.get_closest_marker("vllm") is None))
