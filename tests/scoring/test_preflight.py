"""The preflight: what is refused before anything is started, because its scores would not be those that were asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scoring_in_process import score_here
from tokenizers import Tokenizer, models, pre_tokenizers

from rerank_actor import Reranker
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.errors import InputError, ModelError, OutputConflictError
from rerank_actor.job import load_job
from rerank_actor.scoring.estimate import estimate_prepared, print_estimate
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


def test_input_without_a_shard_of_what_is_scored_is_refused_unless_it_is_to_be_added(
    prepare: Callable[..., PreparedJob], write_shard: Write
) -> None:
    job = prepare().job
    score_here(job)
    other = write_shard([{"query": "p", "document": "d"}], "other.parquet").as_posix()
    with pytest.raises(OutputConflictError, match=r"scores of another input .* --extend to add to it"):
        prepare(input=other)
    assert prepare(input=other, extend=True).plan.num_rows == 2
    assert prepare(input=[*job.input, other]).plan.num_rows == 2


def test_output_without_parts_has_nothing_to_reuse(prepare: Callable[..., PreparedJob], tmp_path: Path) -> None:
    job = prepare(with_pair_key=True).job
    score_here(job)
    prepare(output=str(tmp_path / "next"), reuse=job.output)
    for part in Path(job.output).glob("part-*"):
        part.unlink()
    with pytest.raises(InputError, match="has no parts"):
        prepare(output=str(tmp_path / "next"), reuse=job.output)


@pytest.mark.parametrize("explode", [False, True])
def test_dry_run_says_why_rows_would_be_errors_and_refuses_where_all_are(
    prepare: Callable[..., PreparedJob], write_shard: Write, capsys: pytest.CaptureFixture[str], explode: bool
) -> None:
    document: Any = ["d", None] if explode else "d"
    some = write_shard([{"query": "q", "document": document}, {"query": None, "document": document}], "some.parquet")
    every = write_shard([{"query": None, "document": document}] * 3, "every.parquet")
    estimate = estimate_prepared(prepare(input=str(some), explode=explode))
    print_estimate(estimate)
    words = "".join(capsys.readouterr().out.split())
    assert f"(asinrow1of{some},from0)" in words and "errorin50.0%" in words
    assert estimate.describe_unscorable() is None
    reason = estimate_prepared(prepare(input=str(every), explode=explode)).describe_unscorable()
    assert reason is not None and "sampled pairs can be scored" in reason
