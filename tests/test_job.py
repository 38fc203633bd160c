"""The job: flags and job files, what is refused before anything starts, and what belongs to the fingerprint."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from sample_model import write_sample_model

from rerank_actor.commands import command_line
from rerank_actor.commands.score import make_parser, score
from rerank_actor.engines.base import compute_score
from rerank_actor.errors import JobError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.job import ScoreJob, load_job
from rerank_actor.scoring.preflight import prepare_job

Write = Callable[..., Path]
NEEDED = {"input": "/in", "output": "/out"}


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "job.yaml")

    return write


@pytest.fixture
def run_score(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the main job in this process and gives its exit code and what it said of errors."""

    def run(*arguments: object) -> tuple[int, str]:
        code = command_line.call_command(lambda: score([str(argument) for argument in arguments]))
        return code, capsys.readouterr().err

    return run


def parse(*arguments: str) -> Any:
    flags = vars(make_parser().parse(arguments))
    return load_job(flags.pop("job_file"), flags)


def test_flag_beats_key_and_key_beats_default(job_file: Callable[[str], str]) -> None:
    text = "input: [/a, /b]\noutput: /out\nquery_column: source\nmax_length: 100\nactors: 1:4\noverwrite: true\n"
    path = job_file(text + "engine_args: {max_num_seqs: 8}\nkeep_columns: [a, b]\n")
    job = parse(path, "--query-column", "question", "--no-overwrite", "--engine-args", '{"seed": 1}')
    assert (job.query_column, job.document_column, job.max_length) == ("question", "document", 100)
    assert (job.input, job.keep_columns, job.overwrite) == (["/a", "/b"], ["a", "b"], False)
    assert (job.engine_args, job.actor_range) == ({"seed": 1}, (1, 4))
    assert parse(path).engine_args == {"max_num_seqs": 8}
    assert parse(path, "--keep-columns", "x, y,", "--input", "/c", "/d").keep_columns == ["x", "y"]


def test_relative_places_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_folder: Path) -> None:
    monkeypatch.chdir(model_folder.parent)
    job = parse("--input", "a/../b", "s3a://bucket/x/", "--output", "file:///out/", "--model", model_folder.name)
    assert job.input == [str(model_folder.parent / "b"), "s3://bucket/x"]
    assert (job.output, job.model) == ("/out", str(model_folder))
    with pytest.raises(JobError, match="ftp://bucket/x"):
        parse("--input", "ftp://bucket/x", "--output", "/out")


def test_unknown_key_is_refused_with_the_nearest_one(job_file: Callable[[str], str]) -> None:
    for key, nearest in (
        ("querycolumn", "query_column"),
        ("keep-columns", "keep_columns"),
        ("max_lenght", "max_length"),
    ):
        with pytest.raises(JobError, match=rf"unknown key `{key}` \(did you mean {nearest}\?\)"):
            load_job(job_file(f"{key}: 1\n"), NEEDED)


@pytest.mark.parametrize(("text", "words"), [("a: b\n\tc: d", "line 2 has a tab"), ("a: b\nc: [", "line 2 is no YAML")])
def test_job_file_that_is_no_yaml_is_refused_with_its_line(
    job_file: Callable[[str], str], text: str, words: str
) -> None:
    with pytest.raises(JobError, match=words):
        load_job(job_file(text), NEEDED)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instruction: A\nlimit: 1\ninstruction: B\n", "line 3 .*key `instruction` stands in line 1 too"),
        ("engine_args:\n  a: 1\n  a: 2\n", "line 3 .*key `a` stands in line 2 too"),
        *(
            (f"{key}: {word}\n", f"key `{key}`: is the truth value true; give a number")
            for key, word in (("limit", "true"), ("actors", "yes"))
        ),
        ("tensor_parallel_size: on\n", "is the truth value true; give a number"),
        ("query_column: no\n", "is the truth value false; write a text such as `no` in quotes"),
    ],
)
def test_key_that_is_there_twice_or_truth_that_is_no_value_is_refused(
    job_file: Callable[[str], str], text: str, words: str
) -> None:
    with pytest.raises(JobError, match=words):
        load_job(job_file(text), NEEDED)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "a: [1\n", "\x00"])
def test_job_file_that_is_no_mapping_is_refused_by_name(job_file: Callable[[str], str], text: str) -> None:
    with pytest.raises(JobError, match=r"job\.yaml"):
        load_job(job_file(text), NEEDED)
    with pytest.raises(JobError, match="no such job file"):
        load_job("/nowhere/job.yaml", NEEDED)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--qeury-column", "q"], "did you mean --query-column?"),
        (["--keep_columns=a"], "did you mean --keep-columns?"),
        (["--max", "8"], "unknown flag or argument --max"),
        (["--input", "/in", "--output", "/out", "--actors"], "--actors"),
    ],
)
def test_unknown_or_half_flag_is_refused_in_one_line(run_score: Any, arguments: list[str], words: str) -> None:
    code, said = run_score(*arguments)
    assert code == 2
    assert words in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--actors", value) for value in ("0", "3:2", "1:", ":2", "a", "1:2:3", "-1", "1.5")),
        *(("--engine-args", value) for value in ("{", "[1]", "fast", "3")),
        *(
            (flag, "0")
            for flag in ("--limit", "--max-length", "--unit-rows", "--max-attempts", "--tensor-parallel-size")
        ),
        ("--max-failed-units", "-1"),
        ("--gpus-per-actor", "-0.5"),
        ("--dtype", "int8"),
        ("--format", "orc"),
        ("--engine", "sglang"),
        ("--limit", "many"),
    ],
)
def test_bad_value_is_refused_with_flag_or_key(job_file: Callable[[str], str], flag: str, value: str) -> None:
    with pytest.raises(JobError, match=flag):
        parse("--input", "/in", "--output", "/out", f"{flag}={value}")
    key = flag.strip("-").replace("-", "_")
    with pytest.raises(JobError, match=f"job.yaml: key `{key}`"):
        load_job(job_file(f"{key}: '{value}'\n"), NEEDED)


def test_missing_input_or_output_is_said_with_both_ways_to_give_it(run_score: Any) -> None:
    for arguments, name in (([], "input"), (["--output", "/o"], "input"), (["--input", "/i"], "output")):
        code, said = run_score(*arguments)
        assert code == 2
        assert f"--{name} is missing" in said and f"`{name}:`" in said


def test_resolved_job_as_yaml_and_back_is_the_same(job_file: Callable[[str], str]) -> None:
    flags = [
        "--input",
        "/a b",
        "s3://bucket/\u4f60",
        "--output",
        "/out",
        "--instruction",
        "yes: 'no' \u4f60\n#",
        "--actors",
        "2:30",
    ]
    job = parse(
        *flags,
        "--keep-columns",
        "a,b",
        "--engine-args",
        '{"compilation_config": {"mode": 3, "custom_ops": ["a", null]}}',
        "--revision",
        "0123456",
    )
    assert load_job(job_file(job.to_yaml()), {}) == job


FINGERPRINT_CHANGES = {
    "query_column": "source",
    "document_column": "target",
    "instruction": "another task",
    "instruction_column": "task",
    "keep_columns": "a",
    "dtype": "float32",
    "max_length": 100,
    "parse_special_tokens": True,
    "trust_remote_code": True,
    "engine": "fake",
    "engine_args": {"quantization": "fp8"},
}
FINGERPRINT_KEEPS = {
    "input": ["/elsewhere"],
    "output": "/elsewhere",
    "limit": 5,
    "overwrite": True,
    "rescore_changed": True,
    "extend": True,
    "check_scores": True,
    "gpus_per_actor": 0.5,
    "tensor_parallel_size": 2,
    "engine_args": {"gpu_memory_utilization": 0.5, "max_num_seqs": 8, "enforce_eager": True},
    "actors": "1:3",
    "unit_rows": 7,
    "max_attempts": 9,
    "max_failed_units": 9,
    "dry_run": True,
    "pairs_per_second": 10,
    "ray_address": "auto",
}


def test_fingerprint_changes_with_what_can_change_a_score_alone() -> None:
    def fingerprint(flags: dict[str, Any]) -> str:
        return hash_fingerprint(load_job(None, {**NEEDED, **flags}).scoring_settings())

    changed = [fingerprint({name: value}) for name, value in FINGERPRINT_CHANGES.items()]
    assert len({fingerprint({}), *changed}) == len(changed) + 1
    assert {fingerprint({name: value}) for name, value in FINGERPRINT_KEEPS.items()} == {fingerprint({})}
    assert fingerprint({"max_length": 8192, "dtype": "auto", "keep_columns": "all"}) == fingerprint({})


def test_fingerprint_follows_the_model_not_its_place(write_shard: Write, tmp_path: Path, model_folder: Path) -> None:
    shard = write_shard([{"query": "q", "document": "d"}])
    shutil.copytree(model_folder, tmp_path / "copy")
    other = write_sample_model(tmp_path / "other", seed=1)
    places = [model_folder, tmp_path / "copy", other]
    flags = {"input": str(shard), "output": str(tmp_path / "out"), "engine": "transformers"}
    found = [prepare_job(load_job(None, {**flags, "model": str(place)})).fingerprint for place in places]
    assert found[0] == found[1] != found[2]
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert prepare_job(load_job(None, {**flags, "model": str(places[1])})).fingerprint != found[0]


def without_answers(folder: Path) -> None:
    parsed = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = parsed["model"]["vocab"]
    vocabulary["Yes"] = vocabulary.pop("yes")
    parsed["model"]["merges"] = [pair for pair in parsed["model"]["merges"] if "".join(pair).replace(" ", "") != "yes"]
    (folder / "tokenizer.json").write_text(json.dumps(parsed))


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "no such model folder"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (change_config(architectures=["LlamaForCausalLM"]), "names the class LlamaForCausalLM"),
        (change_config(architectures=["BertModel"]), "names the class BertModel"),
        (change_config(architectures=["Qwen3ForSequenceClassification"]), "2 labels"),
        (
            change_config(architectures=["XLMRobertaForSequenceClassification"], id2label={"0": "a", "1": "b"}),
            "2 labels",
        ),
        (
            change_config(architectures=["BertForSequenceClassification"], id2label={"0": "a"}, type_vocab_size=2),
            "its weight files lack ",
        ),
        (without_answers, "no single token `yes`"),
    ],
)
def test_model_that_is_no_reranker_exits_2_and_writes_nothing(
    run_score: Any, write_shard: Write, tmp_path: Path, model_folder: Path, spoil: Any, words: str
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    spoil(tmp_path / "model")
    shard = write_shard([{"query": "q", "document": "d"}])
    flags = ("--input", shard, "--output", tmp_path / "out", "--engine", "transformers", "--model", tmp_path / "model")
    code, said = run_score(*flags)
    assert code == 2
    assert words in said and said.startswith("error: ") and "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--document-column", "passage"], "no column `passage`"),
        (["--max-length", "9000"], "--max-length 9000"),
        (["--input", "{folder}/nothing"], "nothing there"),
        (["--input", "{folder}/empty.jsonl"], "without a single row"),
        (["--output", "{folder}"], "choose a folder beside it"),
        (["--instruction-column", "task"], "no column `task`"),
    ],
)
def test_input_that_does_not_fit_exits_2_and_writes_nothing(
    run_score: Any, write_shard: Write, tmp_path: Path, model_folder: Path, flags: list[str], words: str
) -> None:
    shard = write_shard([{"query": "q", "document": "d"}])
    (shard.parent / "empty.jsonl").touch()
    before = sorted(path.name for path in shard.parent.iterdir())
    engine = ("--engine", "transformers", "--model", model_folder)
    given = [flag.format(folder=shard.parent) for flag in flags]
    code, said = run_score("--input", shard, "--output", tmp_path / "out", *engine, *given)
    assert code == 2
    assert words in said.splitlines()[-1]
    assert [line for line in said.splitlines()[:-1] if not line.endswith("--model-description settles it")] == []
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in shard.parent.iterdir()) == before


def test_score_as_a_command_without_arguments_exits_2_in_one_line() -> None:
    ended = run_command("score")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --input is missing") and len(ended.stderr.splitlines()) == 1
    assert run_command("score", "--help").returncode == 0


def test_exception_of_a_library_is_one_sentence_and_its_traceback_lies_in_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def raise_as_a_library() -> int:
        return int(compute_score("no logits")[0])

    assert command_line.call_command(raise_as_a_library) == 1
    said = capsys.readouterr().err
    [file] = tmp_path.glob("rerank-error-*.txt")
    assert said.startswith("error: stopped in compute_score (base.py:") and len(said.splitlines()) == 1
    assert str(file) in said
    assert "raise_as_a_library" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0  # a traceback may hold a text
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert command_line.call_command(raise_as_a_library) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "the traceback is in what stands above" in said


def test_how_weights_are_packed_is_an_engine_argument_of_the_fingerprint() -> None:
    values = {"input": ["a"], "output": "b", "engine": "vllm"}
    flagged = ScoreJob(**values, quantization="fp8_per_channel").normalized()
    assert flagged.quantization is None and flagged.engine_args == {"quantization": "fp8_per_channel"}
    typed = ScoreJob(**values, engine_args={"quantization": "fp8_per_channel"}).normalized()
    assert flagged.to_record() == typed.to_record()
    for wrong, words in (
        ({"quantization": "fp8", "engine": "transformers"}, "--quantization is for --engine vllm"),
        ({"quantization": "fp8", "engine_args": {"quantization": "awq"}}, "both say how weights are packed"),
        ({"engine_args": {"quantization": "int8_per_channel_weight_only"}}, "mixtures of experts alone"),
    ):
        with pytest.raises(ValueError, match=words):
            ScoreJob(**{**values, **wrong})
