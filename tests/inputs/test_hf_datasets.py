"""Datasets of Hugging Face and Arrow files as input: which files hold the rows, and that their rows come out."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import read_output, run_command
from datasets import Dataset, DatasetDict
from hub_server import HubServer, serve_hub
from scoring_in_process import score_here

from rerank_actor import storage
from rerank_actor.errors import AccessDeniedError, InputError, JobError, ObjectChangedError, RerankError, StorageError
from rerank_actor.inputs import columnar, shards
from rerank_actor.inputs.plan import Plan, make_plan
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.job import load_job
from rerank_actor.outputs.verify import verify_output
from rerank_actor.storage import hub
from rerank_actor.storage.limits import override_limits

CARD = b"""---
configs:
- config_name: plain
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
- config_name: other
  data_files: other/*.csv
---
"""


def make_table(count: int, mark: str = "d") -> pa.Table:
    return pa.table({"query": [f"q{i // 3}" for i in range(count)], "document": [f"{mark}{i}" for i in range(count)]})


def to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=50)
    return sink.getvalue()


def make_repository(change: bytes | None = None) -> dict[str, bytes]:
    return {
        "README.md": CARD,
        "data/train-00000-of-00002.parquet": to_parquet(make_table(120)),
        "data/train-00001-of-00002.parquet": change or to_parquet(make_table(70, "e")),
        "data/test-00000-of-00001.parquet": to_parquet(make_table(5)),
        "lines/test.jsonl": b'{"query": "q", "document": "d"}\n' * 5,
        "other/rows.csv": b"query,document\nq,d\n",
    }


def plan(folder: Path, **flags: Any) -> Plan:
    job = load_job(None, {"output": str(folder / "out"), "engine": "fake", **flags})
    return make_plan(job.input_spec(), Plan())[0]


def read_all(found: Plan) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for unit in found.units():
        part = shards.read_rows(unit, InputSpec())
        rows += part.table.to_pylist()
        assert part.texts["query"] == part.table.column("query").to_pylist()
    return rows


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    yield from serve_hub(monkeypatch)


WRITERS: dict[str, Callable[[Any, pa.Schema], Any]] = {"file": pa.ipc.new_file, "stream": pa.ipc.new_stream}


@pytest.mark.parametrize("unit_rows", [7, 45, 1000])
@pytest.mark.parametrize("kind", ["plain", "dictionary", "empty batches"])
@pytest.mark.parametrize("form", WRITERS)
def test_arrow_shard_in_units_reads_back_as_written(tmp_path: Path, form: str, kind: str, unit_rows: int) -> None:
    table = make_table(100)
    if kind == "dictionary":
        table = table.set_column(0, "query", table.column("query").combine_chunks().dictionary_encode())
    path = tmp_path / "in" / "rows.arrow"
    path.parent.mkdir()
    with path.open("wb") as file, WRITERS[form](file, table.schema) as writer:
        for start in range(0, 100, 30):
            writer.write_table(table.slice(start, 30))
            if kind == "empty batches":
                writer.write_batch(pa.record_batch(table.slice(0, 0).to_pydict(), schema=table.schema))
    found = plan(tmp_path, input=str(path), unit_rows=unit_rows)
    assert read_all(found) == table.to_pylist()
    assert max(unit.num_rows for unit in found.units()) <= unit_rows


def test_categories_of_polars_are_texts_in_the_output(tmp_path: Path) -> None:
    """Polars writes them as dictionaries of views, of which Arrow takes no values."""
    numbers = pa.array([0, None, 1], pa.uint32())
    views = pa.array(["x", "\u00fc" * 20], pa.string_view())
    column = pa.DictionaryArray.from_arrays(numbers, views)
    table = pa.table({"query": ["a", "b", "c"], "document": column, "kept": column})
    path = tmp_path / "rows.arrow"
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    job = load_job(None, {"input": str(path), "output": str(tmp_path / "out"), "engine": "fake"})
    score_here(job)
    found = read_output(tmp_path / "out")
    assert found["kept"].to_pylist() == found["document"].to_pylist() == ["x", None, "\u00fc" * 20]
    assert found["error"].to_pylist()[1]
    assert found["score"].null_count == 1
    verified = verify_output(str(tmp_path / "out"))
    assert (verified.compared, verified.problems) == (1, [])


def test_categories_of_polars_in_lists_and_structs_are_texts_too(tmp_path: Path) -> None:
    views = pa.array(["x", "\u00fc" * 20], pa.string_view())
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1], pa.uint32()), views)
    numbers = pa.array([1, None, 3, 4], pa.timestamp("ns"))
    structs = pa.StructArray.from_arrays([texts, numbers], ["text", "at"])
    columns = {
        "documents": pa.LargeListArray.from_arrays(pa.array([0, 2, None, 4]), texts),
        "structs": pa.ListArray.from_arrays([0, 1, 4, 4], structs),
        "pairs": pa.FixedSizeListArray.from_arrays(texts[1:3], 1).take(pa.array([0, 1, None])),
        "plain": structs[1:],
    }
    table = pa.table({"query": ["a", "b", "c"], **columns})
    wanted = table.slice(1)
    path = tmp_path / "rows.arrow"
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    for number, name in enumerate(["documents", "structs", "pairs", "plain"]):
        out = tmp_path / f"out{number}"
        given = {"input": str(path), "output": str(out), "engine": "fake", "document_column": name, "unit_rows": 1}
        score_here(load_job(None, given))
        found = read_output(out)
        assert found.select(columns).slice(1).to_pylist() == wanted.select(columns).to_pylist()
        assert found["score"].to_pylist()[0] is not None
        assert verify_output(str(out)).problems == []


@pytest.mark.parametrize("explode", [False, True], ids=["rows", "explode"])
@pytest.mark.parametrize("form", ["parquet", *WRITERS])
def test_views_of_texts_and_bytes_are_kept_and_scored_wherever_they_stand(
    tmp_path: Path, form: str, explode: bool
) -> None:
    view = pa.string_view()
    columns = {
        "query": pa.array(["a", None, "c"], view),
        "document": pa.array([["b", None], None, ["d"]], pa.list_(view))
        if explode
        else pa.array(["b", "c", None], view),
        "title": pa.array([None, "t" * 20, ""], view),
        "bytes": pa.array([None, b"\xff", b""], pa.binary_view()),
        "inner": pa.array([[("x", "y")], None, []], pa.map_(view, view)),
    }
    storage = pa.array([None, "{}", "[]"], view)
    table = pa.table(columns | {"json": pa.ExtensionArray.from_storage(pa.json_(view), storage)})
    path = tmp_path / ("rows.parquet" if form == "parquet" else "rows.arrow")
    if form == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with path.open("wb") as file, WRITERS[form](file, table.schema) as writer:
            writer.write_table(table)
    given = {"input": str(path), "output": str(tmp_path / "out"), "engine": "fake", "explode": explode}
    score_here(load_job(None, given))
    rows = [0, 0, 1, 2] if explode else [0, 1, 2]
    found = read_output(tmp_path / "out")
    kept = ["query", "title", "bytes", "inner", "json"]
    assert found.select(kept).to_pylist() == [table.select(kept).to_pylist()[row] for row in rows]
    assert [found["score"][row].is_valid for row in range(len(rows))] == [
        row == 0 or (explode and row == 3) for row in range(len(rows))
    ]
    assert verify_output(str(tmp_path / "out")).problems == []


RUNS = pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["x"]))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.array([[1]], pa.list_view(pa.int64())),
        pa.array([{"inner": [[1]]}], pa.struct([("inner", pa.list_(pa.list_view(pa.int64())))])),
        pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
        RUNS,
        pa.array([{}], pa.struct([])),
        pa.DictionaryArray.from_arrays(pa.array([0]), pa.array([{"a": 1}])),
    ],
    ids=lambda column: str(column.type).split("<")[0],
)
def test_kept_column_that_parquet_cannot_hold_is_refused_before_anything_is_scored(
    tmp_path: Path, column: pa.Array
) -> None:
    path = tmp_path / "rows.arrow"
    table = pa.table({"query": ["a"], "document": ["b"], "odd": column})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match=r"column `odd` holds .*--drop-columns odd"):
        plan(tmp_path, input=str(path))
    assert plan(tmp_path, input=str(path), drop_columns=["odd"]).num_rows == 1


def test_arrow_file_that_is_cut_short_or_something_else_says_so(tmp_path: Path) -> None:
    whole = io.BytesIO()
    with pa.ipc.new_file(whole, make_table(9).schema) as writer:
        writer.write_table(make_table(9))
    for name, data in (("cut", whole.getvalue()[:-20]), ("empty", b""), ("text", b"query,document\n" * 9)):
        path = tmp_path / f"{name}.arrow"
        path.write_bytes(data)
        with pytest.raises(RerankError, match=f"{path}: cannot be read as arrow"):
            shards.scan_shard(storage.StoredObject(str(path), len(data), ""), InputSpec())


def test_arrow_file_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    table = pa.table([pa.array(["q"]), pa.array(["d"]), pa.array(["e"])], names=["query", "document", "document"])
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="more than one column `document`"):
        shards.scan_shard(storage.StoredObject(str(path), path.stat().st_size, ""), InputSpec())


def test_arrow_file_is_scanned_by_its_narrowest_column() -> None:
    schema = pa.schema({"text": pa.string(), "number": pa.int64(), "flag": pa.bool_()})
    assert columnar._choose_narrowest(schema) == 2


@pytest.mark.parametrize("place", ["local", "s3"])
def test_saved_dataset_gives_its_rows_and_none_of_its_notes(tmp_path: Path, s3: Any, place: str) -> None:
    rows = make_table(90).to_pylist()
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved", num_shards=2)
    uri = str(tmp_path / "saved")
    if place == "s3":
        uri = s3.uri("saved")
        for file in (tmp_path / "saved").iterdir():
            storage.write_bytes(f"{uri}/{file.name}", file.read_bytes())
    found = plan(tmp_path, input=uri, unit_rows=20)
    assert [shard.uri.rpartition("/")[2] for shard in found.shards] == [
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
    ]
    assert read_all(found) == rows


def test_saved_splits_are_chosen_by_name(tmp_path: Path) -> None:
    splits = {
        "train": Dataset.from_list(make_table(9).to_pylist()),
        "test": Dataset.from_list(make_table(4).to_pylist()),
    }
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    uri = str(tmp_path / "saved")
    assert plan(tmp_path, input=uri, split="test").num_rows == 4
    assert (
        plan(tmp_path, input=uri, split="train,test").num_rows == plan(tmp_path, input=uri, split="all").num_rows == 13
    )
    for flags, said in (({}, "several splits"), ({"split": "dev"}, "no split `dev`")):
        with pytest.raises(InputError, match=rf"{said}.*--split"):
            plan(tmp_path, input=uri, **flags)
    (tmp_path / "saved/test/data-00000-of-00001.arrow").unlink()
    with pytest.raises(InputError, match="copy the whole folder"):
        plan(tmp_path, input=uri, split="test")


def test_split_of_what_has_none_is_refused(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    path = write_shard(make_table(3))
    for flag in ("split", "config"):
        with pytest.raises(InputError, match="--split and --config"):
            plan(tmp_path, input=str(path), **{flag: "train"})


def test_hub_path_and_glob_name_files_of_a_repository(tmp_path: Path, hub_server: HubServer) -> None:
    hub_server.commit("org/pairs", make_repository())
    for path, rows in (("data/train-*", 190), ("lines/test.jsonl", 5), ("data", 195)):
        found = plan(tmp_path, input=f"hf://datasets/org/pairs/{path}", unit_rows=40)
        assert len(read_all(found)) == rows
    ranges = [wanted for _, path, wanted in hub_server.requests if path.endswith(".parquet")]
    assert ranges and all(ranges), "a shard is read in ranges, never fetched whole"
    with pytest.raises(InputError, match="nothing there"):
        plan(tmp_path, input="hf://datasets/org/pairs/none*")


def test_hub_file_is_known_by_its_hash_and_not_by_the_commit(tmp_path: Path, hub_server: HubServer) -> None:
    first = hub_server.commit("org/pairs", make_repository())
    uri = "hf://datasets/org/pairs/data/train-00001-of-00002.parquet"
    before = plan(tmp_path, input=uri)
    hub_server.commit("org/pairs", {**make_repository(), "README.md": b"other"})
    hub.pin_revision.cache_clear()
    hub.look_at.cache_clear()
    assert plan(tmp_path, input=uri) == before
    hub_server.commit("org/pairs", make_repository(to_parquet(make_table(70, "f"))))
    hub.pin_revision.cache_clear()
    hub.look_at.cache_clear()
    assert plan(tmp_path, input=uri) != before
    with pytest.raises(ObjectChangedError, match="another file"):
        storage.open_input(uri, size=before.shards[0].size, etag=before.shards[0].etag).read(1)
    pinned = plan(tmp_path, input=uri.replace("pairs/", f"pairs@{first}/"))
    assert read_all(pinned)[0]["document"] == "e0"


@pytest.mark.parametrize("revision", ["v1.0", "refs/convert/parquet", "refs%2Fconvert%2Fparquet", "~parquet"])
def test_hub_revision_of_any_form_names_its_files(tmp_path: Path, hub_server: HubServer, revision: str) -> None:
    first = hub_server.commit("org/pairs", make_repository())
    hub_server.commit("org/pairs", {"README.md": b"nothing else"})
    for name in ("v1.0", "refs/convert/parquet"):
        hub_server.branches["org/pairs", name] = first
    found = plan(tmp_path, input=f"hf://datasets/org/pairs@{revision}/data/train-*")
    assert len(read_all(found)) == 190


def test_hub_that_refuses_or_does_not_answer_says_what_to_check(
    tmp_path: Path, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.commit("org/pairs", make_repository())
    hub_server.token = "right"
    with pytest.raises(JobError, match="HF_TOKEN"):
        plan(tmp_path, input="hf://datasets/org/pairs/data")
    monkeypatch.setenv("HF_TOKEN", "right")
    hub.pin_revision.cache_clear()
    assert plan(tmp_path, input="hf://datasets/org/pairs/data").num_rows == 195
    assert storage.capture_environment()["HF_TOKEN"] == "right"
    for wrong in ("hf://pairs", "hf://models/org/name", "hf://datasets/org"):
        with pytest.raises(JobError, match="hf://OWNER/NAME"):
            plan(tmp_path, input=wrong)
    with pytest.raises(JobError, match="not supported"):
        plan(tmp_path, input="hf://org/pairs", output="hf://org/scores")
    assert issubclass(AccessDeniedError, JobError)


def test_hub_that_is_not_reached_is_one_sentence(
    tmp_path: Path, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with pytest.raises(StorageError, match=r"hf://datasets/org/pairs: storage failed while listing.*was not reached"):
        plan(tmp_path, input="hf://org/pairs")


@pytest.mark.parametrize("fault", [-1, 503, 429])
@pytest.mark.parametrize("first", [1, 4, 7])
def test_hub_that_fails_for_a_while_is_asked_again(
    tmp_path: Path, hub_server: HubServer, first: int, fault: int
) -> None:
    """Whichever request it is: of the revision, the listing, a footer, or rows."""
    hub_server.commit("org/pairs", make_repository())
    hub_server.fault = lambda number: fault if first <= number < first + 3 else 0
    with override_limits(longest_wait_seconds=0.05):
        assert len(read_all(plan(tmp_path, input="hf://datasets/org/pairs/data/train-*", unit_rows=40))) == 190


@pytest.mark.parametrize("fault", [-1, 503])
def test_hub_that_fails_for_long_is_one_sentence(tmp_path: Path, hub_server: HubServer, fault: int) -> None:
    hub_server.commit("org/pairs", make_repository())
    hub_server.fault = lambda number: fault
    with override_limits(longest_wait_seconds=0.05):
        for location in ("hf://org/pairs", "hf://datasets/org/pairs/data/train-*"):
            with pytest.raises(
                StorageError, match=f"{location.partition('://')[0]}.*while listing .*the hub"
            ) as failed:
                plan(tmp_path, input=location)
            assert "\n" not in str(failed.value)


def test_hub_dataset_is_scored_by_split_and_resumes(tmp_path: Path, local_ray: str, hub_server: HubServer) -> None:
    hub_server.commit("org/pairs", make_repository())
    environment = {"HF_ENDPOINT": hub_server.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}

    def run(*flags: str) -> Any:
        given = ["--input", "hf://org/pairs", "--output", tmp_path / "out", "--engine", "fake", *flags]
        return run_command("score", *given, "--ray-address", local_ray, **environment)

    for flags, said in (
        ((), "plain"),
        (("--config", "plain"), "has several splits; it has train, test"),
    ):
        refused = run(*flags)
        assert refused.returncode == 2 and said in refused.stderr and "Traceback" not in refused.stderr
    done = run("--config", "plain", "--split", "train", "--unit-rows", "50")
    assert done.returncode == 0, done.stderr
    table = read_output(tmp_path / "out")
    assert sorted(table.column("document").to_pylist()) == sorted(
        [*make_table(120).column(1).to_pylist(), *make_table(70, "e").column(1).to_pylist()]
    )
    assert table.column("score").null_count == 0
    hub_server.commit("org/pairs", {**make_repository(), "notes.md": b"a commit that changes no data"})
    again = run("--config", "plain", "--split", "train", "--unit-rows", "50", "--dry-run")
    assert "(0 to score)" in again.stdout, again.stdout + again.stderr
    hub_server.commit("org/pairs", make_repository(to_parquet(make_table(70, "f"))))
    changed = run("--config", "plain", "--split", "train")
    assert changed.returncode == 3 and "train-00001-of-00002.parquet" in changed.stderr
    assert json.loads((tmp_path / "out/_job/manifest.json").read_text())["totals"]["rows"] == 190
