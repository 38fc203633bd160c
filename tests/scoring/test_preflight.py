"""The preflight: what is refused before anything is started, because its scores would not be those that were asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from rerank_actor import Reranker
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.errors import ModelError
from rerank_actor.job import load_job
from rerank_actor.scoring.preflight import PreparedJob, prepare_job

Write = Callable[..., Path]


@pytest.fixture
def prepare(write_shard: Write, tmp_path: Path) -> Callable[..., PreparedJob]:
    """Return a function that prepares a job of one pair for the fake engine."""
    shard = write_shard([{"query": "q", "document": "d", "task": "t"}])

    def prepare(**flags: Any) -> PreparedJob:
        given = {"input": str(shard), "output": str(tmp_path / "out"), "engine": "fake", **flags}
        return prepare_job(load_job(None, given))

    return prepare


@pytest.fixture
def cross_encoder(tmp_path: Path) -> str:
    """A folder of a model that reads a query and a document alone, as far as the preflight looks at it."""
    folder = tmp_path / "cross-encoder"
    folder.mkdir()
    config = {"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta", "num_labels": 1}
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 514, "type_vocab_size": 1}))
    (folder / "model.safetensors").write_bytes(b"")
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return str(folder)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"instruction": "Find documents that contradict the query"}, "--instruction"),
        ({"task": "bitext"}, "--task"),
        ({"instruction_column": "task"}, "--instruction-column"),
        ({"instruction_map": {"*": "x"}, "dataset_column": "task"}, "--instruction-map"),
    ],
)
def test_instruction_for_a_model_that_takes_none_is_refused(
    prepare: Callable[..., PreparedJob], cross_encoder: str, flags: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelError, match=f"takes no instruction.*leave out {named}$"):
        prepare(model=cross_encoder, **flags)
    assert prepare(**flags).plan.num_rows == 1
    assert prepare(model=cross_encoder, instruction=DEFAULT_INSTRUCTION).plan.num_rows == 1


def test_reranker_refuses_an_instruction_that_its_model_does_not_read(cross_encoder: str) -> None:
    with pytest.raises(ModelError, match="takes no instruction"):
        Reranker(cross_encoder, engine="fake", instruction="Find contradictions")
    with Reranker(cross_encoder, engine="fake") as reranker, pytest.raises(ModelError, match="takes no instruction"):
        reranker.logits([("q", "d")], instruction="Find contradictions")


@pytest.mark.parametrize("flags", [{}, {"instruction": "x" * 400}, {"instruction_column": "task"}])
def test_max_length_that_the_template_fills_is_refused_with_its_tokens(
    prepare: Callable[..., PreparedJob], flags: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=r"--max-length 10 leaves no room .* beside the \d+ tokens") as caught:
        prepare(max_length=10, **flags)
    own_tokens = int(str(caught.value).partition("beside the ")[2].partition(" ")[0])
    with pytest.raises(ModelError, match="leaves no room"):
        prepare(max_length=own_tokens, **flags)
    assert prepare(max_length=own_tokens + 1, **flags).plan.num_rows == 1


def test_length_that_comes_with_a_model_is_the_default_and_said(
    prepare: Callable[..., PreparedJob], cross_encoder: str
) -> None:
    assert prepare(model=cross_encoder).job.max_length == 512
    (Path(cross_encoder) / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    assert prepare(model=cross_encoder).job.max_length == 128
    assert prepare(model=cross_encoder, max_length=256).job.max_length == 256
    with pytest.raises(ModelError, match=r"--max-length 600 is more than .* \(512 tokens\)"):
        prepare(model=cross_encoder, max_length=600)
