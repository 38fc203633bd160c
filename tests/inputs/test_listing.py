"""The listing of an input: which files are shards, by which format, and that everything else is said or refused."""

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.inputs import shards
from rerank_actor.inputs.listing import list_input
from rerank_actor.inputs.listing.left_out import DOUBLED, EMPTY, HIDDEN, UNKNOWN
from rerank_actor.inputs.listing.partitions import split_partition
from rerank_actor.inputs.plan import Plan, PlanChange, make_plan
from rerank_actor.job import ScoreJob, load_job
from rerank_actor.scoring.preflight import PreparedJob, prepare_job

Write = Callable[..., Path]


def make_rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"query": f"q{row}", "document": f"d{row}", **more} for row in range(count)]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def to_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def to_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    schema = pa.schema({"query": pa.string(), "document": pa.string()}) if not rows else None
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()


def to_arrow(rows: list[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(rows, pa.schema({"query": pa.string(), "document": pa.string()}))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def make_job(folder: Path, **flags: Any) -> ScoreJob:
    given = {"input": str(folder / "input"), "output": str(folder / "out"), "engine": "fake", **flags}
    return load_job(None, given)


def plan(folder: Path, earlier: Plan | None = None, **flags: Any) -> tuple[Plan, PlanChange]:
    return make_plan(make_job(folder, **flags).input_spec(), earlier or Plan())


def prepare(folder: Path, **flags: Any) -> PreparedJob:
    return prepare_job(make_job(folder, **flags))


def read_rows(found: Plan, job: ScoreJob) -> list[dict[str, Any]]:
    parts = [shards.read_rows(unit, job.input_spec(), found.json_types).table for unit in found.units()]
    return [row for part in parts for row in part.to_pylist()]


# Everything that is there is planned or said.

WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": to_lines,
    ".JSON": to_lines,
    ".jsonl.gz": lambda rows: gzip.compress(to_lines(rows)),
    ".csv": lambda rows: "".join(
        f"{a},{b}\n" for a, b in [("query", "document"), *(r.values() for r in rows)]
    ).encode(),
    ".parquet": to_parquet,
    "": to_parquet,
    ".snappy": to_parquet,
    ".feather": to_arrow,
    ".bin": to_arrow,
}
STRANGE = {".jl": to_lines, ".txt": to_lines, ".jsonl.gzip": to_lines, "-00003": to_lines, ".md": to_lines}
FILES = st.tuples(
    st.sampled_from(["", "deep/", "a/b/", "_hidden/", ".git/", "deep/_delta/"]),
    st.sampled_from(["x", "y", "_z", ".w"]),
    st.sampled_from([*WRITERS, *STRANGE]),
)


@settings(deadline=None, max_examples=60)
@given(files=st.dictionaries(FILES, st.integers(0, 3), min_size=1, max_size=9), is_glob=st.booleans())
def test_planned_rows_and_what_is_said_are_all_that_is_there(
    tmp_path_factory: pytest.TempPathFactory, files: dict[tuple[str, str, str], int], is_glob: bool
) -> None:
    folder = tmp_path_factory.mktemp("listing")
    expected: list[str] = []
    counts = dict.fromkeys((HIDDEN, UNKNOWN, EMPTY), 0)
    written = 0
    for (place, stem, suffix), rows in files.items():
        path = folder / "input" / place / (stem + suffix)
        if path.exists() or path.is_dir():
            continue
        values = (
            make_rows(
                rows,
            )
            if rows
            else []
        )
        write(path, {**WRITERS, **STRANGE}[suffix](values))
        written += 1
        if any(name.startswith(("_", ".")) for name in (place + stem).split("/")):
            counts[HIDDEN] += 1
        elif suffix in STRANGE:
            counts[UNKNOWN] += 1
        elif not rows:
            counts[EMPTY] += 1
        expected += [row["query"] for row in values] if suffix in WRITERS and not path_is_hidden(place + stem) else []
    flags = {"input": str(folder / "input/**")} if is_glob else {}
    try:
        found, change = plan(folder, **flags)
    except InputError as error:
        shown = written - counts[HIDDEN]
        assert not expected or 2 * counts[UNKNOWN] > shown, error
        return
    said = {item.reason: item.count for item in change.left_out}
    assert said == {reason: count for reason, count in counts.items() if count}
    assert len(found.shards) + said.get(HIDDEN, 0) + said.get(UNKNOWN, 0) == written
    assert sorted(row["query"] for row in read_rows(found, make_job(folder))) == sorted(expected)


def path_is_hidden(path: str) -> bool:
    return any(name.startswith(("_", ".")) for name in path.split("/"))


def test_folder_of_mostly_unknown_names_is_refused_with_the_flag(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jl", "part-00003"):
        write(tmp_path / "input" / name, to_lines(make_rows(1)))
    for uri in ("input", "input/*"):
        with pytest.raises(InputError, match=r"2 of 3 files would be left out.*\.jl, no suffix.*--format"):
            plan(tmp_path, input=str(tmp_path / uri))
    assert plan(tmp_path, format="jsonl")[0].num_rows == 3
    assert plan(tmp_path, input=[str(tmp_path / "input/a.jsonl")])[1].left_out == ()
    with pytest.raises(InputError, match=r"part-00003: neither its name.*--format"):
        plan(tmp_path, input=[str(tmp_path / "input/a.jsonl"), str(tmp_path / "input/part-00003")])


def test_notes_beside_shards_are_said_and_refuse_nothing(tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE", "make.py", "_SUCCESS", "a.jsonl"):
        write(tmp_path / "input" / name, to_lines(make_rows(1)))
    prepared = prepare(tmp_path)
    assert [item.describe() for item in prepared.change.left_out] == [
        f"1 {HIDDEN} (the first: {tmp_path}/input/_SUCCESS)",
        f"3 {UNKNOWN} (the first: {tmp_path}/input/LICENSE)",
    ]


def test_files_in_folders_that_a_glob_matches_are_said(tmp_path: Path) -> None:
    for name in ("a.jsonl", "sub/b.jsonl"):
        write(tmp_path / "input" / name, to_lines(make_rows(1)))
    found, change = plan(tmp_path, input=str(tmp_path / "input/*"))
    assert found.num_rows == 1
    assert [(item.count, item.first) for item in change.left_out] == [(1, str(tmp_path / "input/sub/b.jsonl"))]
    with pytest.raises(InputError, match=r"nothing there but 1 in folders that the glob matches"):
        plan(tmp_path, input=str(tmp_path / "inp*/su*"))


def test_name_that_is_not_unicode_is_said_or_refused(tmp_path: Path) -> None:
    write(tmp_path / "input/a.jsonl", to_lines(make_rows(1)))
    odd = os.fsdecode(b"_\xff.jsonl")
    write(tmp_path / "input" / odd, "")
    assert json.dumps([item.first for item in plan(tmp_path)[1].left_out]).endswith('_\\\\udcff.jsonl"]')
    write(tmp_path / "input" / odd[1:], to_lines(make_rows(1)))
    with pytest.raises(InputError, match=r"udcff\.jsonl: has a name that is not UTF-8"):
        plan(tmp_path)


# One file is one input, whatever its names.


def test_file_given_twice_by_any_spelling_is_one_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "input/a.jsonl", to_lines(make_rows(2)))
    (tmp_path / "input/0.jsonl").symlink_to(path)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "input")
    monkeypatch.chdir(tmp_path)
    spellings = ["./input/a.jsonl", "input//a.jsonl", f"file://{path}", f"/{path}", "elsewhere/a.jsonl", "input/"]
    found, change = plan(tmp_path, input=[str(path), *spellings])
    assert [shard.uri for shard in found.shards] == [str(path)]
    assert {item.reason: item.count for item in change.left_out} == {DOUBLED: 2}
    by_link = plan(tmp_path, input="input/0.jsonl")[0]
    assert plan(tmp_path, by_link)[0] == by_link, "a name that was planned stays"


def test_hard_link_is_another_name_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "input/b.jsonl", to_lines(make_rows(2)))
    write(tmp_path / "input/c.jsonl", to_lines(make_rows(2)))
    (tmp_path / "input/a.jsonl").hardlink_to(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/d.jsonl").hardlink_to(path)
    (tmp_path / "other/e.jsonl").symlink_to(path)
    found, change = plan(tmp_path, input=[str(tmp_path / "input"), str(tmp_path / "other")])
    assert [Path(shard.uri).name for shard in found.shards] == ["a.jsonl", "c.jsonl"]
    assert {item.reason: item.count for item in change.left_out} == {DOUBLED: 3}
    by_link = plan(tmp_path, input=str(path))[0]
    assert [shard.uri for shard in plan(tmp_path, by_link)[0].shards if shard.uri == str(path)], "a planned name stays"


@pytest.mark.parametrize("is_made", [False, True])
def test_links_do_not_hide_that_input_and_output_lie_in_one_another(tmp_path: Path, is_made: bool) -> None:
    write(tmp_path / "data/in/a.jsonl", to_lines(make_rows(1)))
    (tmp_path / "input").symlink_to(tmp_path / "data/in")
    outputs = ["data/in/out", "data/in"]
    if is_made:
        write(tmp_path / "elsewhere/part-0-0.parquet", to_parquet(make_rows(1)))
        (tmp_path / "data/in/more").symlink_to(tmp_path / "elsewhere")
        outputs = ["elsewhere"]
    for output in outputs:
        with pytest.raises(InputError, match=r"--output .*choose (another folder|a folder beside it)"):
            plan(tmp_path, output=str(tmp_path / output))
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    with pytest.raises(InputError, match=r"--output .*choose another folder"):
        plan(tmp_path, input=str(tmp_path / "linked/*/*.jsonl"), output=str(tmp_path / "data/in"))


@pytest.mark.parametrize("uri", ["", "  ", "s3://", "s3:///x"])
def test_location_that_is_none_is_refused_by_its_flag(tmp_path: Path, uri: str) -> None:
    for flag in ("input", "output"):
        with pytest.raises(JobError, match=r"empty|bucket"):
            make_job(tmp_path, **{flag: uri})


# Tables whose log says which rows count.


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "Delta Lake"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
        ("metadata/00000-aa.gz.metadata.json", "Iceberg"),
    ],
)
@pytest.mark.parametrize(
    "given",
    ["table", "", "table/*.parquet", "table/a.parquet", "table/data", "table/day=1", "table/data/day=2/c.parquet"],
)
def test_files_of_a_table_are_refused_from_wherever(tmp_path: Path, log: str, kind: str, given: str) -> None:
    for name in ("a.parquet", "data/b.parquet", "day=1/b.parquet", "data/day=2/c.parquet"):
        write(tmp_path / "input/table" / name, to_parquet(make_rows(1)))
    uri = str(tmp_path / "input" / given)
    assert plan(tmp_path, input=uri)[0].num_rows
    write(tmp_path / "input/table" / log, "{}")
    with pytest.raises(InputError, match=rf"input/table: is an? {kind} table"):
        plan(tmp_path, input=uri)


# Hive partitions.


def write_partitions(folder: Path, **more: Any) -> None:
    for value in ("de", "en%2FUS", "__HIVE_DEFAULT_PARTITION__"):
        write(folder / "input" / f"lang={value}" / "part-0.parquet", to_parquet(make_rows(2, **more)))
        write(folder / "input" / f"lang={value}" / "more.jsonl", to_lines(make_rows(1, **more)))


@pytest.mark.parametrize("flags", [{}, {"keep_columns": "lang,query"}, {"rename_columns": "lang=language"}])
def test_names_of_folders_give_a_column_behind_those_of_the_file(tmp_path: Path, flags: dict[str, Any]) -> None:
    write_partitions(tmp_path, n=1)
    prepared = prepare(tmp_path, **flags)
    rows = read_rows(prepared.plan, prepared.job)
    assert [row["lang"] for row in rows] == [None] * 3 + ["de"] * 3 + ["en/US"] * 3
    assert list(rows[0]) == (["lang", "query"] if "keep_columns" in flags else ["query", "document", "n", "lang"])
    assert prepared.settings["partition_columns"] == ["lang"]
    assert "partition_columns" not in prepare(tmp_path, drop_columns="lang").settings


def test_partition_column_is_taken_wherever_a_column_is(tmp_path: Path) -> None:
    write_partitions(tmp_path)
    job = make_job(
        tmp_path, instruction_map={"de": "Frage", "*": "Question"}, dataset_column="lang", keep_columns="query"
    )
    found = prepare_job(job).plan
    texts = [shards.read_rows(unit, job.input_spec(), found.json_types).texts["lang"] for unit in found.units()]
    assert [text for some in texts for text in some] == [None] * 3 + ["de"] * 3 + ["en/US"] * 3
    assert prepare(tmp_path, query_template="{lang}: {query}").plan.num_rows == 9
    with pytest.raises(InputError, match=r"no column `langs`.*did you mean lang\?"):
        prepare(tmp_path, instruction_column="langs")


def test_part_of_the_partitions_has_the_same_columns_in_an_output_that_is_there(tmp_path: Path) -> None:
    write_partitions(tmp_path)
    prepared = prepare(tmp_path)
    store(prepared)
    narrow = prepare(tmp_path, input=str(tmp_path / "input/lang=de"))
    assert narrow.settings == prepared.settings
    write(tmp_path / "input/lang=de/day=1/new.parquet", to_parquet(make_rows(1)))
    again = prepare(tmp_path)
    assert again.settings == prepared.settings
    assert [item.first for item in again.change.left_out] == ["day"]
    assert read_rows(again.plan, again.job)[-1] == {"query": "q0", "document": "d0", "lang": "de"}


def test_output_from_before_partition_columns_goes_on_without_them(tmp_path: Path) -> None:
    write_partitions(tmp_path)
    prepared = prepare(tmp_path, drop_columns="lang")
    settings = {name: value for name, value in prepare(tmp_path).settings.items() if name != "partition_columns"}
    store(prepared, settings)
    again = prepare(tmp_path)
    assert (again.settings, again.plan) == (settings, prepared.plan)
    assert [item.first for item in again.change.left_out] == ["lang"]


def store(prepared: PreparedJob, settings: dict[str, Any] | None = None) -> None:
    """Leave an output behind as a run does that scored the first unit."""
    prepared.output.write_own("plan.bin", prepared.plan.to_bytes(settings or prepared.settings))
    part = next(prepared.plan.units()).part_name
    write(Path(prepared.output.uri) / part, to_parquet(make_rows(1)))


@pytest.mark.parametrize(("value", "folder"), [("de", "de"), (7, "7"), (7, "07"), (1.5, "1.5"), (True, "true")])
@pytest.mark.parametrize("to_bytes", [to_parquet, to_lines])
def test_column_in_file_and_path_must_agree(tmp_path: Path, value: Any, folder: str, to_bytes: Any) -> None:
    name = "a.parquet" if to_bytes is to_parquet else "a.jsonl"
    path = write(tmp_path / f"input/lang={folder}" / name, to_bytes(make_rows(3, lang=value)))
    found, _ = plan(tmp_path)
    assert [row["lang"] for row in read_rows(found, make_job(tmp_path))] == [value] * 3
    rows = make_rows(3, lang=value)
    path.write_bytes(to_bytes([*rows[:2], {**rows[2], "lang": None}]))
    with pytest.raises(InputError, match=r"column `lang` is not what the path says in row 3.*--drop-columns lang"):
        plan(tmp_path)
    assert plan(tmp_path, drop_columns="lang")[0].num_rows == 3
    path.write_bytes(to_bytes(rows))
    write(tmp_path / "input/lang=other/b.parquet", to_parquet(make_rows(1)))
    with pytest.raises(InputError, match=r"has a column `lang`, which .* has in its path alone"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("name", "partition"),
    [
        ("a=b", ("a", "b")),
        ("a=", ("a", "")),
        ("a=b=c", ("a", "b=c")),
        ("=a", None),
        ("a", None),
        ("a%3D=%C3%A9", ("a=", "é")),
    ],
)
def test_folder_name_is_split_as_hive_writes_it(name: str, partition: Any) -> None:
    assert split_partition(name) == partition


# Formats of each file.


def test_format_of_each_file_is_its_own_and_stays_as_planned(tmp_path: Path) -> None:
    write(tmp_path / "input/a", to_parquet(make_rows(1)))
    write(tmp_path / "input/b.jsonl", to_lines(make_rows(2)))
    write(tmp_path / "input/c.old", to_arrow(make_rows(3)))
    prepared = prepare(tmp_path)
    assert [shard.format for shard in prepared.plan.shards] == ["parquet", "jsonl", "arrow"]
    assert len(read_rows(prepared.plan, prepared.job)) == 6
    assert Plan.from_bytes(prepared.plan.to_bytes({}))[0] == prepared.plan
    store(prepared)
    assert prepare(tmp_path).plan == prepared.plan
    with pytest.raises(OutputConflictError, match=r"input/a: was scored as parquet and would now be read as csv"):
        prepare(tmp_path, format="csv")


def test_plan_of_a_format_that_scored_nothing_is_made_anew_under_another(tmp_path: Path) -> None:
    write(tmp_path / "input/a.csv", "query\tdocument\n" + "q\td\n" * 3)
    first = plan(tmp_path, format="tsv")[0]
    with pytest.raises(InputError, match="no column `query`"):
        plan(tmp_path, first)
    assert plan(tmp_path, first, format="tsv")[0] == first


def test_pipe_in_the_input_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "input/a.jsonl", to_lines(make_rows(1)))
    os.mkfifo(tmp_path / "input/b.jsonl")
    with pytest.raises(InputError, match=r"b\.jsonl: is a pipe"):
        list_input(make_job(tmp_path).input_spec())
