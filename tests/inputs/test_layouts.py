"""The job's settings of layouts: what they read as, what is refused, and what belongs to the fingerprint."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_actor.commands.tasks import tasks
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION, load_presets
from rerank_actor.errors import InputError, JobError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.inputs.plan import Plan, make_plan
from rerank_actor.job import load_job

LAYOUT = {"input": "/in", "output": "/out", "engine": "fake"}


def test_layout_flags_read_from_a_command_line_and_from_a_file_alike(tmp_path: Path) -> None:
    flags = {
        "drop_columns": "a, b",
        "rename_columns": "c=d, e = f",
        "keep_fields": "id,title",
        "explode": True,
        "explode_columns": "labels",
    }
    job = load_job(None, {**LAYOUT, **flags})
    assert (job.drop_columns, job.keep_fields, job.explode_columns) == (["a", "b"], ["id", "title"], ["labels"])
    assert job.rename_columns == {"c": "d", "e": "f"}
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    assert load_job(str(tmp_path / "job.yaml"), {}) == job


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"rename_columns": "a"}, "OLD=NEW"),
        ({"rename_columns": "=b"}, "OLD=NEW"),
        ({"document_template": "title"}, "--document-template.*braces"),
        ({"query_template": "{a!r}"}, "--query-template.*braces"),
        ({"task": "web-serch"}, "did you mean web-search"),
        ({"task": "bitext", "instruction": "another"}, "--task and --instruction"),
        ({"instruction_map": {"a": "b"}, "instruction_column": "c"}, "--instruction-map and --instruction-column"),
        ({"explode_columns": "labels"}, "--explode"),
        ({"columns": "a,a"}, "--columns names a column twice"),
        ({"instruction_map": "/nowhere.yaml"}, "no such instruction map"),
    ],
)
def test_layout_flags_that_do_not_fit_are_refused_with_the_cure(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError, match=words):
        load_job(None, {**LAYOUT, **flags})


@pytest.mark.parametrize("text", ["- a\n", "a: 1\n", "a:\n", "a: ''\n", "a: [b]\n", "{", "a: b\na: c\n"])
def test_instruction_map_that_holds_no_texts_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text(text)
    with pytest.raises(JobError, match=str(path)):
        load_job(None, {**LAYOUT, "instruction_map": str(path)})


def test_instruction_map_is_kept_in_the_job_and_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text('{"quora": "Find duplicates", "7": "x", no: "Norwegian", ~: y, 1_0: z}')
    job = load_job(None, {**LAYOUT, "instruction_map": str(tmp_path / "tasks.json")})
    assert job.instructions == {"quora": "Find duplicates", "7": "x", "no": "Norwegian", "~": "y", "1_0": "z"}
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    (tmp_path / "tasks.json").unlink()
    assert load_job(str(tmp_path / "job.yaml"), {}) == job


def test_task_is_its_instruction_and_nothing_else() -> None:
    for name, preset in load_presets().items():
        job = load_job(None, {**LAYOUT, "task": name})
        assert (
            job.scoring_settings() == load_job(None, {**LAYOUT, "instruction": preset.instruction}).scoring_settings()
        )
        assert preset.source and preset.use
        assert load_job(None, job.model_dump()) == job
    assert load_presets()["web-search"].instruction == DEFAULT_INSTRUCTION


def test_each_layout_setting_changes_the_fingerprint_only_where_it_is_given() -> None:
    plain = load_job(None, LAYOUT).scoring_settings()
    changes: list[dict[str, Any]] = [
        {"columns": "a,b"},
        {"drop_columns": "a"},
        {"rename_columns": "a=b"},
        {"keep_fields": "id"},
        {"explode": True},
        {"explode": True, "explode_columns": "a"},
        {"document_template": "{a}"},
        {"query_template": "{a}"},
        {"instruction_map": {"a": "b"}},
        {"instruction_map": {"a": "c"}},
        {"instruction_map": {"a": "b"}, "dataset_column": "c"},
    ]
    found = [hash_fingerprint(load_job(None, {**LAYOUT, **change}).scoring_settings()) for change in changes]
    assert len({*found, hash_fingerprint(plain)}) == len(changes) + 1
    for harmless in ({"dataset_column": "other"}, {"split": "train"}, {"config": "plain"}):
        assert load_job(None, {**LAYOUT, **harmless}).scoring_settings() == plain


def test_tasks_command_lists_each_task_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert tasks([]) == 0
    shown = capsys.readouterr().out
    for name, preset in load_presets().items():
        assert f"{name}\n    {preset.instruction}\n" in shown and preset.source in shown
    assert tasks(["--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == list(load_presets())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"drop_columns": "nothing"}, "no shard has a column `nothing`, which --drop-columns"),
        ({"rename_columns": "titel=x"}, "did you mean title"),
        ({"rename_columns": "title=score"}, "--rename-columns title=NEW.*--drop-columns"),
        ({"rename_columns": "title=query"}, "both be `query`"),
        ({"document_template": "{titel}"}, "no column `titel`.*--document-template"),
        ({"query_template": "{question}"}, "no column `question`.*--query-template"),
        ({"instruction_map": {"a": "b"}}, "no column `dataset`.*--dataset-column"),
        ({"explode": True, "explode_columns": "title"}, "expected a list, .*; choose with --explode-columns"),
        ({"explode": True, "rename_columns": "title=candidate_index"}, "`candidate_index` has the name"),
        ({"document_column": "parts"}, "expected structs with a `text`"),
        ({"document_column": "parts", "document_template": "{bodi}"}, "no column `bodi`"),
        ({"document_column": "parts", "document_template": "{body}", "keep_fields": "di"}, "--keep-fields"),
    ],
)
def test_column_that_does_not_suit_its_flag_is_refused_by_name(
    tmp_path: Path, flags: dict[str, Any], words: str
) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"query": "q", "document": "d", "title": "t", "parts": [{"id": "1", "body": "b"}]}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=words):
        make_plan(load_job(None, {**LAYOUT, "input": str(path), **flags}).input_spec(), Plan())


@pytest.mark.parametrize("column", [pa.array([b"d"]), pa.array([[b"d"]], pa.list_(pa.large_binary()))])
def test_text_in_a_column_of_bytes_is_refused_with_the_cure(tmp_path: Path, column: pa.Array) -> None:
    """Hive and Impala write texts so."""
    pq.write_table(pa.table({"query": ["q"], "document": column}), tmp_path / "rows.parquet")
    job = load_job(None, {**LAYOUT, "input": str(tmp_path / "rows.parquet")})
    with pytest.raises(InputError, match=r"`document` is .*binary.*; write it as text, or choose another with"):
        make_plan(job.input_spec(), Plan())


def test_reserved_name_is_scored_once_it_is_renamed_or_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "q", "document": "d", "score": 1}\n')
    for flags in ({"rename_columns": "score=bm25"}, {"drop_columns": "score"}, {"keep_columns": "query"}):
        assert make_plan(load_job(None, {**LAYOUT, "input": str(path), **flags}).input_spec(), Plan())[0].num_rows == 1
