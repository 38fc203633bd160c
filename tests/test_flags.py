"""Flags, keys and fingerprints as they are: what users have typed into scripts, and what earlier outputs go on by.

A new flag has to be argued for, in the message of the commit that adds it here: what a user cannot do without it, and why
no flag that is there will do. One that goes breaks scripts. A fingerprint that changes sets each earlier output aside.
"""

import functools
import importlib
import re
from typing import Any

import pytest

from rerank_actor.bitext.job import BitextJob, DirectedJob
from rerank_actor.bitext.language_pairs import parse_pair
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.export import export
from rerank_actor.commands.mine import mine
from rerank_actor.commands.select import select
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import Settings, check_job
from rerank_actor.mining.job import MineJob

FLAGS = {
    "score": """
        --input --format --top-k --columns --config --split --quoting --csv-escape --query-column --document-column
        --negative-columns --queries --corpus --query-id-column --document-id-column --query-template --document-template
        --instruction --instruction-column --instruction-map --dataset-column --task --limit --where --qrels
        --min-relevance --output --keep-columns
        --drop-columns --rename-columns --keep-fields --explode --explode-columns --examples --with-pair-key --reuse
        --overwrite --rescore-changed --extend --model --revision --dtype --max-length --parse-special-tokens
        --trust-remote-code --model-description --check-scores --engine --gpus-per-actor --tensor-parallel-size --quantization
        --engine-args
        --actors --unit-rows --dedupe --max-attempts --stall-seconds --retry-failed --max-failed-units
        --max-error-rows --dry-run --ray-address --on-finish --on-trouble --webhook
        --tokens-per-second --gpu-type --gpu-price
    """,
    "plan": "--json --list-gpus",
    "bitext": """
        --input --format --columns --quoting --csv-escape --lang-pair --partitions --languages --source-column
        --target-column --source-id-column --target-id-column --source-language-column --target-language-column
        --score-column --instruction
        --preset --backward-instruction --direction --output --keep-columns --drop-columns --rename-columns
        --examples --with-pair-key --reuse --overwrite --model --revision --dtype --max-length --parse-special-tokens
        --trust-remote-code --model-description --check-scores --engine --gpus-per-actor --tensor-parallel-size --quantization
        --engine-args
        --actors --unit-rows --dedupe --max-attempts --stall-seconds --retry-failed --max-failed-units
        --max-error-rows --dry-run --ray-address --on-finish --on-trouble --webhook
        --tokens-per-second --gpu-type --gpu-price --max-length-ratio --min-letters --min-script
        --drop-identical --identifier --deliver
    """,
    "select": """
        --quoting --csv-escape --lang-pair --partitions --languages --source-column --target-column --direction
        --examples --ray-address --scored --combine --space --threshold --forward-threshold
        --backward-threshold --margin --ratio-margin --neighbors --rank-by --mode --deduplicate
        --allow-incomplete --calibration --calibrate-only --deliver --formats --part-rows --reselect
    """,
    "retrieve": """
        --quoting --csv-escape --queries --corpus --source --target --both-directions --query-column --document-column
        --query-id-column --document-id-column --top-k --output --output-format --embeddings --overwrite --rescore-changed
        --embedding-type --model --revision --dtype --max-length --parse-special-tokens --trust-remote-code
        --model-description --check-scores --instruction --query-prompt --document-prompt
        --dimensions --engine --gpus-per-actor --tensor-parallel-size --quantization
        --engine-args --actors --unit-rows --dedupe
        --max-attempts --stall-seconds --retry-failed --max-failed-units --max-error-rows --dry-run --pairs-per-second
        --ray-address
    """,
    "evaluate": """
        --scored --qrels --query-id-column --document-id-column --retrieval-column --allow-incomplete --tasks --suite --split
        --subset --instruction --retriever --candidates --top-k --measures --ignore-identical-ids --seed --output
        --with-pair-key --reuse --overwrite --model --revision --dtype --max-length --parse-special-tokens --trust-remote-code
        --model-description --check-scores --engine --gpus-per-actor --tensor-parallel-size --quantization
        --engine-args --actors --unit-rows
        --dedupe --max-attempts --stall-seconds --retry-failed --max-failed-units --max-error-rows --dry-run
        --ray-address --on-finish --on-trouble --webhook --tokens-per-second --gpu-type --gpu-price
    """,
    "mine": """
        --scored --combine --weights
        --query-column --document-column --queries --corpus --query-id-column --document-id-column --title-column
        --allow-incomplete --allow-mixed-scores --label-column --positive-labels --qrels --min-relevance --min-positive-score
        --weak-positives --false-negatives --promote-above --verdicts --allow-unknown-verdicts --space --skip-top --depth
        --max-score --min-score --absolute-margin
        --relative-margin --margin-pos --perc-pos --max-disagreement --uncertain-band --near-duplicates
        --rank-column --rank-window
        --num-negatives --num-negatives-column --random-negatives --sampling --seed
        --min-negatives --what-if --teacher --normalize --temperature --output --format --by --prompt --suspects --push-to-hub
        --hub-private --hub-license --examples
        --overwrite --unit-mb --ray-address
    """,
    "export": """
        --scored --format --output --query-id-column --document-id-column --space --top-k --tag --subset --split
        --allow-incomplete
    """,
    "publish": "--to --revision --private --license --replace --dry-run",
    "compact": "--output --target-file-mb",
    "status": "--json",
    "verify": """
        --delete-damaged --rescore --seed --model --revision --dtype --max-length --parse-special-tokens --trust-remote-code
        --model-description --check-scores --engine --gpus-per-actor --tensor-parallel-size --quantization
        --engine-args --queries --corpus
    """,
    "report": "--to --gpu-type --gpu-price --examples --label-column --positive-labels --by --compare",
    "tasks": "--json",
    "model": """
        --check --instruction --json --model --revision --dtype --max-length --parse-special-tokens
        --trust-remote-code --model-description --check-scores --engine --gpus-per-actor
        --tensor-parallel-size --quantization
        --engine-args
    """,
    "cluster": "",
    "demo": "--folder --engine",
    "benchmark": """
        --suite --workloads --contenders --shapes --rounds --time-limit --rehearse --engine-args
        --folder --compare
        --store
    """,
}
FLAGS["plan"] += FLAGS["score"]

# Keys that are no flags: those of the selection bound its memory, those of a language pair are made from others.
KEYS_ALONE = {
    SelectJob: "unit_mb bucket_rows local_rows",
    DirectedJob: "backward_instruction direction",
    MineJob: "rules_by_value",
}
SILENT = {"pairs_per_second"}  # taken as before, in no help: --tokens-per-second says the same


def make_keys(flags: str) -> list[str]:
    return [flag.removeprefix("--").replace("-", "_") for flag in flags.split()]


def sort_keys(flags: str) -> list[str]:
    """Return keys in the order of `job.yaml`, where the cluster comes last."""
    return sorted(make_keys(flags), key=lambda key: key == "ray_address")


@pytest.mark.parametrize("command", FLAGS)
def test_flags_of_a_command_are_those_that_were_argued_for(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        getattr(importlib.import_module(f"jobs.{command}"), command)(["--help"])
    lines = re.findall(r"^  (-[^\s,]+)", capsys.readouterr().out, re.MULTILINE)
    assert lines == ["-h", *FLAGS[command].split()]


@pytest.mark.parametrize("command", FLAGS)
def test_help_fits_a_terminal_and_ends_in_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        getattr(importlib.import_module(f"jobs.{command}"), command)(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines.index("") <= 3
    examples = lines[lines.index("examples:") + 1 :]
    assert examples and all(line.startswith(f"  python -m jobs.{command} ") for line in examples)


@pytest.mark.parametrize(
    ("command", "typed", "right"),
    [
        ("score", "--batch-size", "--unit-rows"),
        ("score", "--num-gpus", "--actors"),
        ("score", "-tp", "--tensor-parallel-size"),
        ("score", "--max-model-len", "--max-length"),
        ("score", "--concurrency", "--actors"),
        ("score", "--address", "--ray-address"),
        ("score", "--half", "--dtype"),
        ("score", "--dtype=fp16", "float16"),
        ("score", "--dtype=half", "float16"),
        ("bitext", "--model-name-or-path", "--model"),
    ],
)
def test_name_of_another_tool_says_the_right_flag(
    command: str, typed: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = getattr(importlib.import_module(f"jobs.{command}"), command)
    given = ["--input", "in", "--output", "out", *([typed] if "=" in typed else [typed, "8"])]
    code = call_command(lambda: run(given))
    said = capsys.readouterr().err
    assert code == 2 and f"(did you mean {right}?)" in said and said.count("\n") == 1


def test_one_thing_has_one_name_and_the_other_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    calls = [
        (export, ["/nowhere", "--format", "trec", "--partial", "--space", "probability"]),
        (select, ["--scored", "/nowhere", "--deliver", "/out", "--overwrite", "--space", "score"]),
        (
            mine,
            ["--scored", "/nowhere", "--output", "/o", "--partial", "--space", "probability", "--label-column", "x"],
        ),
    ]
    codes = [call_command(functools.partial(run, given)) for run, given in calls]
    said = capsys.readouterr().err
    assert codes == [2, 2, 2] and said.count("/nowhere: ") == 3


@pytest.mark.parametrize(("command", "kind"), [("score", ScoreJob), ("mine", MineJob)])
def test_keys_of_a_job_file_are_its_flags_in_their_order(command: str, kind: type[Settings]) -> None:
    alone = {*KEYS_ALONE.get(kind, "").split(), *SILENT}
    assert [name for name in kind.model_fields if name not in alone] == sort_keys(FLAGS[command])


def test_keys_of_a_bitext_job_file_are_those_of_scoring_and_of_selection() -> None:
    assert sorted({*BitextJob.model_fields, "deliver"} - SILENT) == sorted(make_keys(FLAGS["bitext"]))
    assert sorted(SelectJob.model_fields) == sorted([*make_keys(FLAGS["select"]), *KEYS_ALONE[SelectJob].split()])
    directed = [key for key in DirectedJob.model_fields if key not in SILENT]
    assert directed == [*sort_keys(FLAGS["score"]), *KEYS_ALONE[DirectedJob].split()]


SCORE: dict[str, Any] = {"input": "/in", "output": "/out"}
BITEXT: dict[str, Any] = {**SCORE, "identifier": "none"}
SELECT: dict[str, Any] = {"deliver": "/out"}
MINE: dict[str, Any] = {"scored": "/scored", "output": "/out", "label_column": "label"}
FINGERPRINTS: dict[str, tuple[type[Settings], dict[str, Any]]] = {
    "8d5d201f4debc8b4072670cc53c251c5": (ScoreJob, SCORE),
    "cf01f8fbb27651567da8e459fa4a1eaf": (
        ScoreJob,
        {**SCORE, "engine_args": {"quantization": "fp8", "seed": 1}, "max_length": 100, "dtype": "float32"},
    ),
    "010d8dd669bbc8273b286eabb12314bd": (
        ScoreJob,
        {**SCORE, "queries": "/q", "corpus": "/c", "query_id_column": "q", "format": "trec", "top_k": 5},
    ),
    "46318295958b8c444d16321e0805bd0e": (
        ScoreJob,
        {**SCORE, "instruction_map": {"a": "b"}, "explode": True, "explode_columns": "x,a", "reuse": "/r"},
    ),
    "bfe04e52f7991eeddd819342562bdef7": (
        ScoreJob,
        {**SCORE, "task": "bitext", "keep_columns": "a,b", "drop_columns": "b", "rename_columns": "a=c"},
    ),
    "c5ac86da8f9458b16548e0c30f2a37cc": (BitextJob, BITEXT),
    "3ac46eb55e7445a285154f77d5555a3c": (
        BitextJob,
        {**BITEXT, "direction": "backward", "preset": "parallel", "format": "laser", "min_script": 0},
    ),
    "8d309c6021cb2e005f89236c757015b7": (
        BitextJob,
        {**BITEXT, "instruction": "as {source}", "backward_instruction": "as {target}", "reuse": "/r"},
    ),
    "7ced1cf445ec18daf0f57cb27dae8f3f": (SelectJob, SELECT),
    "cd15def7dee04a15bdd17d16e7fbd9a8": (
        SelectJob,
        {**SELECT, "mode": "all", "threshold": 1.5, "formats": "tmx tsv", "neighbors": 2, "part_rows": 9},
    ),
    "3295cc61d510ded1634847777b25b21c": (MineJob, MINE),
    "18bdb18236075881dee55f7c26938bc6": (
        MineJob,
        {**MINE, "perc_pos": "0.95", "depth": "all", "teacher": "logit", "temperature": 2, "format": "nemo"},
    ),
}


def hash_settings(kind: type[Settings], values: dict[str, Any]) -> str:
    job = check_job(kind, values).normalized()
    if isinstance(job, BitextJob):
        job = job.to_scoring(parse_pair("deu-eng", {}, ""), "/shards", "/out", job.reuse)
    if isinstance(job, ScoreJob):
        return hash_fingerprint(job.scoring_settings())
    return hash_fingerprint(job.mining_settings() if isinstance(job, MineJob) else job.settings())


@pytest.mark.parametrize("digest", FINGERPRINTS)
def test_fingerprint_of_a_job_is_that_of_earlier_outputs(digest: str) -> None:
    assert hash_settings(*FINGERPRINTS[digest]) == digest
