"""The reference of a check: the publisher's own way, which shares neither prompts nor head with the engine that is checked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from sample_model import write_sample_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForSequenceClassification

from rerank_actor import Reranker
from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.families.description import TokenHead
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.reference import ask_sentence_transformers
from rerank_actor.engines.start import (
    CHECK_PAIRS,
    compare_with_reference,
    compute_reference,
    encode_check_pairs,
    start_engine,
)
from rerank_actor.errors import EngineStartError

LENGTH = 128


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder of the XLM-R kind, whose prompt is its tokenizer's own pair."""
    folder = tmp_path_factory.mktemp("classic")
    words = sorted({word for pair in CHECK_PAIRS for text in pair for word in text.split()})
    vocabulary = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    ends = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", unk_token="<unk>", **ends)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    positions = {"max_position_embeddings": LENGTH + 2, "type_vocab_size": 1, "initializer_range": 0.3}
    config = XLMRobertaConfig(vocab_size=len(vocabulary), num_labels=1, pad_token_id=1, **sizes, **positions)
    XLMRobertaForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_model(tmp_path_factory.mktemp("generative") / "model", hidden_size=64, num_layers=2)


def make_spec(folder: Path, described_in: str | None = None, **changes: Any) -> EngineSpec:
    model = load_reranker_model(str(folder), described_in=described_in)
    settings = {"max_length": min(512, model.max_positions), "parse_special_tokens": False}
    encoder = PairEncoder(
        load_tokenizer_json(model), template=model.description.template, instruction="Judge", **settings
    )
    check = encode_check_pairs(encoder)
    spec = EngineSpec("transformers", model, "float32", settings["max_length"], 1, {}, **check, check_scores=True)
    return replace(spec, instruction="Judge", **changes)


def test_reference_of_a_pair_model_is_that_of_sentence_transformers(classic: Path) -> None:
    _, check = start_engine(make_spec(classic))
    assert check.reference == f"sentence-transformers {sentence_transformers.__version__}"
    assert check.max_difference is not None and check.max_difference < 1e-5
    encoder = sentence_transformers.CrossEncoder(str(classic), device="cpu")
    expected = encoder.predict(list(CHECK_PAIRS), activation_fn=torch.nn.Identity(), batch_size=1)
    np.testing.assert_allclose(check.reference_logits, expected, atol=1e-5)


def test_reference_of_a_model_that_does_not_describe_itself_is_that_of_transformers(generative: Path) -> None:
    _, check = start_engine(make_spec(generative))
    assert check.reference == f"transformers {transformers.__version__}"
    assert check.max_difference is not None and check.max_difference < 1e-5


def test_reference_of_what_a_user_describes_is_not_the_folder_s_own_description(classic: Path, tmp_path: Path) -> None:
    folder, own = tmp_path / "model", tmp_path / "own.yaml"
    sentence_transformers.CrossEncoder(str(classic), device="cpu").save_pretrained(str(folder))
    own.write_text('prompt: "{query} {document}"\nspecial_tokens: single\nlabel: 0\n')
    _, check = start_engine(make_spec(folder, str(own)))
    assert (check.reference or "").startswith("transformers")
    _, check = start_engine(make_spec(folder))
    assert (check.reference or "").startswith("sentence-transformers")
    own.write_text("prompt: pair\nlabel: 0\n")
    _, check = start_engine(make_spec(classic, str(own)))
    assert (check.reference or "").startswith("sentence-transformers"), "the pair is no assumption of ours"
    own.write_text("prompt: pair\nsegment_ids: true\nlabel: 0\n")
    model = load_reranker_model(str(classic), described_in=str(own))
    assert ask_sentence_transformers(model, CHECK_PAIRS, "", LENGTH) is None


@pytest.mark.parametrize("kind", ["classic", "generative"])
def test_prompts_that_are_not_the_reference_s_are_refused(kind: str, request: pytest.FixtureRequest) -> None:
    spec = make_spec(request.getfixturevalue(kind))
    last = spec.check_prompts[2]
    changed = replace(spec, check_prompts=(*spec.check_prompts[:2], (*last[:-1], last[0]), *spec.check_prompts[3:]))
    with pytest.raises(
        EngineStartError, match=rf"built-in pair 3 is not that of .* different from token {len(last) - 1} on"
    ):
        start_engine(changed)


WRONG: dict[str, dict[str, Any]] = {
    "the other answers": {"head": TokenHead(5, 6)},
    "half an answer": {"halves": True},
    "a token less": {"cut": 1},
}


@pytest.mark.parametrize("what", WRONG)
def test_small_wrongs_are_more_than_float32_allows(generative: Path, what: str) -> None:
    """A floor that does not go with the spread would let pass what is wrong in a model whose logits are close."""
    spec, wrong = make_spec(generative), WRONG[what]
    reference = compute_reference(spec)
    description = spec.model.description
    head = wrong.get("head") or (replace(description.head, false_id=None) if "halves" in wrong else description.head)
    prompts = tuple(prompt[wrong.get("cut", 0) :] for prompt in spec.check_prompts)
    model = replace(spec.model, description=replace(description, head=head))
    engine, check = start_engine(replace(spec, model=model, check_prompts=prompts, check_scores=False))
    centre = reference.logits.mean()
    shares = [1.0, 1e-3 / np.std(reference.logits)]  # as it is, and squeezed to a spread of a thousandth
    for share in shares:
        found = (np.array(check.logits, np.float64) - centre) * share + centre
        squeezed = replace(reference, prompts=None, logits=(reference.logits - centre) * share + centre)
        with pytest.raises(EngineStartError, match="allowed is"):
            compare_with_reference(engine, spec, found, squeezed)
    compare_with_reference(engine, spec, reference.logits * (1 + 5e-7), reference)


def test_reranker_says_its_reference(classic: Path) -> None:
    with Reranker(str(classic), engine="transformers", dtype="float32", check_scores=True) as reranker:
        assert (reranker.check.reference or "").startswith("sentence-transformers")
