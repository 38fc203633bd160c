"""Folders whose files say two things of one model: refused in a sentence, each kind of it; what only looks like one is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import CHAT, build, declare, make_bpe, make_unigram, make_wordpiece

from rerank_actor.engines.families.description import LabelHead
from rerank_actor.engines.model import load_reranker_model
from rerank_actor.errors import ModelError

MODULES = "sentence_transformers.models."
SIGMOID = "torch.nn.modules.activation.Sigmoid"
NO_YES = {"num_labels": 2, "id2label": {"0": "no", "1": "yes"}}
ROLES = "{# of a 'query' and a 'document' #}"
BASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "qwen": (
        make_bpe,
        {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "_name_or_path": "Qwen/Qwen3-Reranker-0.6B"},
    ),
    "bert": (
        make_wordpiece,
        {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "num_labels": 1,
            "type_vocab_size": 2,
        },
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a tokenizer and a configuration."""
    root = tmp_path_factory.mktemp("bases")
    for name, (make, config) in BASES.items():
        tokenizer = make()
        tokenizer.save_pretrained(root / name)
        (root / name / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokenizer) + 30}))
    return root


def describe(folder: Path) -> Any:
    return load_reranker_model(str(folder), weights=False).description


def put(name: str, content: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def configure(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: put("config.json", {**json.loads((folder / "config.json").read_text()), **changes})(folder)


def list_modules(*kinds: str) -> Callable[[Path], object]:
    return put("modules.json", [{"type": MODULES + kind, "path": f"{at}_{kind}"} for at, kind in enumerate(kinds)])


def answer(true: int | str, false: int | str | None, **task: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        ids = [vocabulary[one] if isinstance(one, str) else one for one in (true, false)]
        declare(folder, "qwen3", head={"true_token_id": ids[0], "false_token_id": ids[1]}, **task)

    return write


def take_tokenizer(make: Callable[[], Any], **changes: Any) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        tokenizer = make()
        tokenizer.save_pretrained(folder)
        configure(**{"vocab_size": len(tokenizer), **changes})(folder)

    return write


def do(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [change(folder) for change in changes]


CONTRADICTIONS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "saved as an embedding model": (
        "qwen",
        put("config_sentence_transformers.json", {"model_type": "SentenceTransformer"}),
        "of a SentenceTransformer, an embedding model",
    ),
    "compared by a similarity": (
        "qwen",
        put("config_sentence_transformers.json", {"prompts": {"query": "x"}, "similarity_fn_name": "cosine"}),
        "an embedding model",
    ),
    "a sparse model": ("bert", put("config_sentence_transformers.json", {"model_type": "SparseEncoder"}), "SparseEncoder"),
    "labels apart": ("bert", configure(**NO_YES, problem_type="multi_label_classification"), "problem_type multi_label"),
    "two measures": ("bert", configure(**NO_YES, problem_type="regression"), "problem_type regression"),
    "a sigmoid for each label": (
        "bert",
        do(configure(**NO_YES), put("config_sentence_transformers.json", {"activation_fn": SIGMOID})),
        f"the activation {SIGMOID}",
    ),
    "a prompt without an answer": (
        "qwen",
        put("chat_template.jinja", CHAT["zerank"] + ROLES),
        "nothing says which token after it is the answer",
    ),
    "a tokenizer that is larger": ("bert", configure(vocab_size=200), r"tokens up to \d+, and its model rows for 200"),
    "answers turned round": ("qwen", answer("no", "yes"), "counts them the other way round"),
    "answers of another tokenizer": ("qwen", answer(9693, 2152), "reads token 9693, which its vocabulary"),
    "answers below nought": ("qwen", answer(-1, 5), "reads token -1"),
    "a classifier's modules": ("qwen", list_modules("Transformer"), "task sequence-classification.*Qwen3ForCausalLM"),
    "answers of a classifier": (
        "qwen",
        do(answer("yes", "no"), configure(architectures=["Qwen3ForSequenceClassification"], num_labels=1)),
        "task text-generation, and there is Qwen3ForSequenceClassification",
    ),
    "another task": ("qwen", answer("yes", "no", task="feature-extraction"), "transformer_task feature-extraction"),
    "lower case": (
        "bert",
        do(list_modules("Transformer"), put("sentence_bert_config.json", {}), lambda folder: (folder / "0_Transformer").mkdir(),
           put("0_Transformer/sentence_bert_config.json", {"do_lower_case": True})),
        "do_lower_case",
    ),
    "two classes": (
        "bert",
        configure(architectures=["BertForSequenceClassification", "BertForMaskedLM"]),
        "several classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_folder_that_says_two_things_is_refused(bases: Path, tmp_path: Path, what: str) -> None:
    base, change, words = CONTRADICTIONS[what]
    folder = Path(shutil.copytree(bases / base, tmp_path / "model"))
    describe(folder)
    change(folder)
    with pytest.raises(ModelError, match=f"(?s){words}"):
        describe(folder)


def test_name_and_chat_template_of_two_models_are_refused(bases: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases / "qwen", tmp_path / "zerank-2"))
    put("chat_template.jinja", "{%- set add_generation_prompt = true -%}" + CHAT["zerank"] + ROLES)(folder)
    assert describe(folder).name == "zerank"
    put("chat_template.jinja", CHAT["mxbai"])(folder)
    with pytest.raises(ModelError, match="is called zerank, and its chat template makes another prompt"):
        describe(folder)


def test_what_settles_or_says_nothing_is_taken(bases: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases / "bert", tmp_path / "model"))
    configure(**NO_YES, problem_type="single_label_classification")(folder)
    assert describe(folder).head == LabelHead(1, 0)
    configure(problem_type="multi_label_classification")(folder)
    put("own.yaml", "prompt: pair\nlabel: 1\n")(folder)
    found = load_reranker_model(str(folder), weights=False, described_in=str(folder / "own.yaml"))
    assert found.description.head == LabelHead(1)


def test_tokenizer_that_is_far_smaller_than_its_model_is_said(bases: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases / "bert", tmp_path / "model"))
    assert load_reranker_model(str(folder), weights=False).assumption == ""
    configure(vocab_size=30522)(folder)
    assert "tokens and the model rows for 30,522" in load_reranker_model(str(folder), weights=False).assumption


def test_segments_that_the_tokenizer_does_not_mark_are_none(bases: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases / "bert", tmp_path / "model"))
    assert describe(folder).template.has_segments
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    put("tokenizer_config.json", {**settings, "model_input_names": ["input_ids", "attention_mask"]})(folder)
    assert not describe(folder).template.has_segments
    take_tokenizer(make_unigram)(folder)
    assert not describe(folder).template.has_segments


def test_class_and_model_type_of_two_models_are_refused(tmp_path: Path) -> None:
    build("XLMRoberta", make_unigram(), tmp_path / "model", type_vocab_size=1, pad_token_id=1)
    load_reranker_model(str(tmp_path / "model"))
    configure(model_type="roberta")(tmp_path / "model")
    load_reranker_model(str(tmp_path / "model"))
    configure(architectures=["BertForSequenceClassification"], model_type="xlm-roberta")(tmp_path / "model")
    with pytest.raises(ModelError, match=r"BertForSequenceClassification and the model_type xlm-roberta"):
        load_reranker_model(str(tmp_path / "model"))
