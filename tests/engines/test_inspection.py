"""The command that says what a model is: what it prints, what it refuses, and that a difference from the reference is found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from sample_model import write_sample_model

from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.model import model
from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.inspection import list_precisions
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.prompts import PairEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inspected") / "model"
    return write_sample_model(place, hidden_size=64, num_layers=2, max_positions=512)


def ask(*arguments: object) -> int:
    return call_command(lambda: model([str(argument) for argument in arguments]))


def test_model_is_shown_with_the_prompt_that_jobs_make(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(folder, "--json", "--instruction", "Judge", "--max-length", 300) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    known = load_reranker_model(str(folder))
    encoder = PairEncoder(
        load_tokenizer_json(known), template=known.description.template, instruction="Judge", max_length=300
    )
    sample = found["sample"]
    ids = encoder.encode([sample["query"]], [sample["document"]]).token_ids[0].as_py()
    assert sample["ids"] == ids
    assert sum(sample[part] for part in ("before_document", "document_tokens", "after_document")) == len(ids)
    room = sample["room_for_document"]
    prompts = encoder.encode([sample["query"]], ["Beijing " * 200])
    assert prompts.num_tokens[0] == 300 == sample["before_document"] + room + sample["after_document"]
    assert found["family"] == "qwen3-reranker" and sorted(found["tokens"].values()) == ["no", "yes"]
    assert found["weights"]["files"] == ["model.safetensors"] and found["weights"]["dtypes"] == ["F32"]


def test_model_in_words_names_its_parts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(folder) == 0
    names = {line.split("  ")[0] for line in capsys.readouterr().out.splitlines()}
    assert names >= {"model", "family", "weight files", "prompt", "sample prompt", "cut", "logit", "score", "vllm"}


def test_model_that_jobs_would_refuse_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(folder, tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert ask(broken) == 2
    assert "lack model.norm.weight" in capsys.readouterr().err
    assert ask(folder, "--max-length", 513) == 2
    assert "--max-length 513 is more than" in capsys.readouterr().err


def test_check_gives_the_differences_in_float32_and_in_the_dtype(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(folder, "--check", "--engine", "transformers", "--dtype", "bfloat16", "--json") == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["dtype"] for check in checks] == ["float32", "bfloat16"]
    spread = max(checks[0]["reference_logits"]) - min(checks[0]["reference_logits"])
    assert checks[0]["max_difference"] < 1e-5 * spread < checks[1]["max_difference"] <= checks[1]["allowed"]
    assert all(len(check["logits"]) == len(check["reference_logits"]) == 8 and not check["problem"] for check in checks)
    plain, rounded = (check["fidelity"] for check in checks)
    assert plain["pairs"] == rounded["pairs"] == 160
    assert plain["largest"] == plain["ndcg_change"] == 0 and plain["tau"] == 1
    assert 0 < rounded["median"] <= rounded["largest"] <= checks[1]["allowed"] and 0.5 < rounded["tau"] <= 1


def test_check_leaves_away_the_packing_of_weights_alone(folder: Path) -> None:
    arguments = {"quantization": "fp8", "kv_cache_dtype": "fp8"}
    spec = EngineSpec("vllm", load_reranker_model(str(folder)), "bfloat16", 300, 1, arguments, (), ())
    plain = replace(spec, engine_args={"kv_cache_dtype": "fp8"})
    assert list_precisions(spec) == [replace(plain, dtype="float32"), plain, spec]
    assert list_precisions(plain) == [replace(plain, dtype="float32"), plain]
