"""What a folder says of itself against what is known: followed, settled by a user's file, or refused in a sentence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import CHAT, declare, make_bpe
from transformers import BertConfig

from rerank_actor.engines.families.chat_template import ChatTemplate
from rerank_actor.engines.families.description import LabelHead, ScoreScale, TokenHead
from rerank_actor.engines.families.detect import read_labels
from rerank_actor.engines.families.entries import SEGMENTS_BY_DEFAULT, knows_segments, load_entries, load_named_entries
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.template import QWEN3_RERANKER
from rerank_actor.errors import JobError, ModelError, RerankError

MODULES = "sentence_transformers.models."
CONTROLS = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a configuration of Qwen3ForCausalLM, and nothing that says more."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    make_bpe().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}))
    return folder


@pytest.fixture
def folder(bare: Path, tmp_path: Path) -> Path:
    """A copy whose name alone says what it is."""
    return Path(shutil.copytree(bare, tmp_path / "Qwen3-Reranker-tiny"))


def describe(folder: Path, **options: Any) -> Any:
    return load_reranker_model(str(folder), weights=False, **options).description


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def token(folder: Path, name: str) -> int:
    found = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"][name]
    return int(found)


def test_bare_qwen3_is_qwen3_reranker_with_its_fingerprint(folder: Path) -> None:
    model = load_reranker_model(str(folder), weights=False)
    assert model.description.template == QWEN3_RERANKER
    assert model.description.head == TokenHead(token(folder, "yes"), token(folder, "no"))
    assert model.fingerprint_settings().keys() == {"model", "revision", "template", "template_digest"}
    assert QWEN3_RERANKER.digest == "2361f7d60fa385b3"


def test_prompts_of_the_publisher_have_names(folder: Path) -> None:
    card, evaluation = (load_reranker_model(str(folder), weights=False, described_in=name)
                        for name in ("qwen3-reranker", "qwen3-evaluation"))  # fmt: skip
    assert card.description.template == QWEN3_RERANKER
    tokenizer = make_bpe()
    texts = ("Find it", "who?", "nobody")
    for model, gap, end in ((card, "\n", ""), (evaluation, "\n\n", "<|im_end|>\n")):
        template = model.description.template
        user = f"<Instruct>: {texts[0]}{gap}<Query>: {texts[1]}{gap}<Document>: {texts[2]}"
        prompt = f"{QWEN3_RERANKER.prefix}{user}<|im_end|>\n{end}<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert (
            template.prefix
            + template.format_head(*texts[:2])
            + template.document_separator
            + texts[2]
            + template.suffix
            == prompt
        )
        encoder = PairEncoder(load_tokenizer_json(model), template=template, max_length=999, instruction=texts[0])
        assert encoder.encode([texts[1]], [texts[2]]).ids_at([0])[0].tolist() == tokenizer(prompt)["input_ids"]
        assert model.description.head == TokenHead(token(folder, "yes"), token(folder, "no"))
    assert evaluation.description.template.instruction == "Given the user query, retrieval the relevant passages"
    with pytest.raises(JobError, match="it takes a file, or qwen3-evaluation or qwen3-reranker"):
        describe(folder, described_in="qwen3")


FACTS = {"vocab_size": 151669, "max_position_embeddings": 40960, "eos_token_id": 151645}
SMALLEST = {"hidden_size": 1024, "num_hidden_layers": 28}
LARGE = {**FACTS, "hidden_size": 2560, "num_hidden_layers": 36}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
ONE_LABEL = {"architectures": ["Qwen3ForSequenceClassification"], "model_type": "qwen3", "num_labels": 1}


@pytest.mark.parametrize("config", [QWEN3, ONE_LABEL])
@pytest.mark.parametrize(
    ("place", "facts", "is_told"),
    [
        ("model", {}, None),
        ("model", {"hidden_size": 1024, "num_hidden_layers": 2, "vocab_size": 151936}, None),
        ("qwen3-reranker-runs/reward-model", {}, None),
        ("model", SMALLEST, False),
        ("Qwen3-4B", {**LARGE, "vocab_size": 151936}, False),
        ("Qwen3-Embedding-0.6B", {**LARGE, "max_position_embeddings": 32768, "eos_token_id": 151643}, False),
        ("Bonsai-8B", {**LARGE, "max_position_embeddings": 65536}, False),
        (
            "qwen3-reranker-runs/reward-model",
            {**SMALLEST, "_name_or_path": "Skywork/Skywork-Reward-V2-Qwen3-4B"},
            False,
        ),
        ("model", LARGE, True),
        ("checkpoint-100", {"_name_or_path": "Qwen/Qwen3-Reranker-0.6B"}, True),
        ("legal-Qwen3-Reranker-4B", {}, True),
        ("Qwen/Qwen3-Reranker-0___6B", {}, True),
        ("models--tomaarsen--Qwen3-Reranker-0.6B-seq-cls/snapshots/0123abc", {}, True),
        ("snapshots/legal-Qwen3-Reranker-4B", {}, True),
        ("qwen3-reranker-trials/snapshots/reward-model", SMALLEST, False),
    ],
)
def test_qwen3_is_qwen3_reranker_where_its_settings_or_its_name_say_so(
    bare: Path, tmp_path: Path, place: str, facts: dict[str, Any], is_told: bool | None, config: dict[str, Any]
) -> None:
    found = Path(shutil.copytree(bare, tmp_path / place))
    write(found, "config.json", {**config, **facts})
    settled = load_reranker_model(str(found), weights=False, described_in="qwen3-reranker")
    if is_told is not False:
        before = load_reranker_model(str(found), weights=False)
        assert ("taken for Qwen3-Reranker; --model-description" in before.assumption) == (is_told is None)
        assert (before.description.template, before.is_early) == (QWEN3_RERANKER, True)
        assert before.fingerprint_settings() == settled.fingerprint_settings()
    else:
        with pytest.raises(ModelError, match=r"give --model-description qwen3-reranker if it is|embedding model"):
            describe(found)
    own = TokenHead(token(found, "yes"), token(found, "no"))
    assert settled.description.head == (own if config is QWEN3 else LabelHead())
    assert settled.description.runtime.vllm == "Qwen3ForSequenceClassification" and settled.is_early


@pytest.mark.parametrize("place", ["my-qwen3-reranker", "model"])
def test_qwen3_that_sentence_transformers_gives_bare_pairs_is_no_qwen3_reranker(
    bare: Path, tmp_path: Path, place: str
) -> None:
    found = Path(shutil.copytree(bare, tmp_path / place))
    write(found, "config.json", ONE_LABEL)
    write(found, "modules.json", [{"type": MODULES + "Transformer", "path": ""}])
    with pytest.raises(ModelError, match="without a chat template says that the tokenizer is given the pair"):
        describe(found)
    write(tmp_path, "own.yaml", "prompt: pair\nlabel: 0\n")
    assert describe(found, described_in=str(tmp_path / "own.yaml")).template.control == "pair"


def test_folder_that_says_what_qwen3_reranker_is_keeps_its_fingerprint(folder: Path) -> None:
    before = load_reranker_model(str(folder), weights=False).fingerprint_settings()
    declare(folder, "qwen3", head={"true_token_id": token(folder, "yes"), "false_token_id": token(folder, "no")})
    after = load_reranker_model(str(folder), weights=False).fingerprint_settings()
    assert {**after, "model": ""} == {**before, "model": ""}
    write(
        folder,
        "1_LogitScore/config.json",
        {"true_token_id": token(folder, "0"), "false_token_id": token(folder, "1")},
    )
    assert load_reranker_model(str(folder), weights=False).fingerprint_settings()["description"]


EARLY = "family: cross-encoder\nprompt: pair\nlabel: 0\n"


@pytest.mark.parametrize(
    "more", ["scale: 5", "shift: 1", "vllm: ModernBertForSequenceClassification", "query_share: 0.5", "loading: native"]
)
def test_description_of_a_user_under_an_early_name_counts_in_the_fingerprint(
    folder: Path, tmp_path: Path, more: str
) -> None:
    write(folder, "config.json", {"architectures": ["XLMRobertaForSequenceClassification"], "num_labels": 1})

    def fingerprint(text: str | None) -> dict[str, Any]:
        write(tmp_path, "own.yaml", text or "")
        own = None if text is None else str(tmp_path / "own.yaml")
        return load_reranker_model(str(folder), weights=False, described_in=own).fingerprint_settings()

    assert fingerprint(EARLY) == fingerprint(None)
    assert "description" not in fingerprint(None)
    assert fingerprint(EARLY + more)["description"] != fingerprint(EARLY + "scale: 7")["description"]


@pytest.mark.parametrize(
    "more",
    [
        {"instruction": "Rank legal cases"},
        {"strip": ["query", "document"]},
        {"special_tokens": "single"},
        {"special_tokens": "pair"},
        {"longest_first": True},
        {"query_share": 0.5},
        {"segment_ids": True},
    ],
)
def test_copy_of_the_template_of_qwen3_reranker_says_what_it_says(more: dict[str, Any]) -> None:
    entry = load_named_entries()[QWEN3_RERANKER.name]
    assert entry.to_template(CONTROLS, {}) == QWEN3_RERANKER
    mine, other = (
        entry.model_copy(update=more | {"family": family, "strip": tuple(more.get("strip", ()))}).to_template(
            CONTROLS, {}
        )
        for family in (QWEN3_RERANKER.name, "mine")
    )
    assert mine != QWEN3_RERANKER and mine.text == other.text
    fields = ("instruction", "strips", "control", "longest_first", "query_share", "has_segments")
    assert [getattr(mine, field) for field in fields] == [getattr(other, field) for field in fields]


def test_other_tokens_under_an_early_name_count_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    def fingerprint(true: str, false: str) -> dict[str, Any]:
        prompt = QWEN3_RERANKER.prefix + QWEN3_RERANKER.head + " {document}" + QWEN3_RERANKER.suffix
        lines = [
            "family: qwen3-reranker",
            f"prompt: {json.dumps(prompt)}",
            f'true_token: "{true}"\nfalse_token: "{false}"',
        ]
        write(tmp_path, "own.yaml", "\n".join(lines))
        found = load_reranker_model(str(folder), weights=False, described_in=str(tmp_path / "own.yaml"))
        return found.fingerprint_settings()

    assert fingerprint("1", "0")["description"] != fingerprint("Yes", "no")["description"]


@pytest.mark.parametrize("file", ["2_Dense/model.safetensors", "1_Pooling/config.json"])
def test_file_of_a_module_that_changes_is_another_model(folder: Path, file: str) -> None:
    def fingerprint() -> dict[str, Any]:
        return load_reranker_model(str(folder), weights=False).fingerprint_settings()

    write(folder, "config.json", {"architectures": ["ModernBertModel"]})
    kinds = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dense")
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    write(
        folder,
        "modules.json",
        [{"type": MODULES + kind, "path": path} for kind, path in zip(kinds, paths, strict=True)],
    )
    write(folder, file, "one")
    before = fingerprint()
    write(folder, "onnx/config.json", "of no module")
    assert fingerprint() == before
    write(folder, file, "two")
    assert fingerprint() != before


def test_files_of_modules_leave_the_fingerprint_of_an_early_model_alone(folder: Path) -> None:
    head = {"true_token_id": token(folder, "yes"), "false_token_id": token(folder, "no")}
    declare(folder, "qwen3", head=head)
    before = load_reranker_model(str(folder), weights=False).fingerprint_settings()
    write(folder, "1_LogitScore/config.json", {**head, "note": "the same head"})
    assert load_reranker_model(str(folder), weights=False).fingerprint_settings() == before


def test_modules_on_s3_are_read_and_count_in_the_fingerprint(folder: Path, s3: Any) -> None:
    def load(true: str) -> Any:
        write(folder, "1_LogitScore/config.json", {"true_token_id": token(folder, true), "false_token_id": None})
        s3.put_folder(folder, "model")
        return load_reranker_model(s3.uri("model"), weights=False)

    declare(folder, "ctxl", head={})
    found, other = load("yes"), load("Yes")
    assert found.description.head == TokenHead(token(folder, "yes"))
    assert other.description.head == TokenHead(token(folder, "Yes"))
    assert found.digest != other.digest


def test_default_prompt_is_the_instruction(folder: Path) -> None:
    declare(folder, "qwen3", head={"true_token_id": 1, "false_token_id": 2})
    about = {"prompts": {"task": "Find duplicates"}, "default_prompt_name": "task"}
    write(folder, "config_sentence_transformers.json", about)
    assert describe(folder).template == replace(QWEN3_RERANKER, instruction="Find duplicates")
    write(folder, "config_sentence_transformers.json", {**about, "default_prompt_name": "other"})
    with pytest.raises(ModelError, match="default prompt 'other'"):
        describe(folder)


@pytest.mark.parametrize(
    ("name", "head", "scale"),
    [("zerank-2", "Yes", 5.0), ("ctxl-rerank-v2-instruct-multilingual-1b", "!", 1.0)],
)
def test_name_tells_what_bare_files_do_not(folder: Path, name: str, head: str, scale: float) -> None:
    found = describe(folder.rename(folder.with_name(name)))
    assert found.head == TokenHead(token(folder.with_name(name), head))
    assert found.score == ScoreScale(scale)
    other = Path(shutil.copytree(folder.with_name(name), folder.with_name(f"my-{name}")))
    assert "taken for Qwen3-Reranker" in load_reranker_model(str(other), weights=False).assumption


@pytest.mark.parametrize("given", ["models/zerank-1", "./models/zerank-1", "models/zerank-1/", "."])
def test_relative_folder_is_called_as_its_last_part(folder: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, folder.parent / "models" / "zerank-1")
    monkeypatch.chdir(folder.parent / "models" / "zerank-1" if given == "." else folder.parent)
    assert load_reranker_model(given, weights=False).description.name == "zerank"


def test_name_against_files_is_refused_and_settled_by_a_file(folder: Path, tmp_path: Path) -> None:
    declare(
        folder,
        "zerank",
        head={"true_token_id": token(folder, "no"), "false_token_id": None},
        add_generation_prompt=True,
    )
    named = folder.rename(tmp_path / "zerank-1")
    with pytest.raises(ModelError, match=r"is called zerank.*--model-description FILE"):
        describe(named)
    write(tmp_path, "own.yaml", 'prompt: "{query} {document}"\ntrue_token: "no"\nscale: 2\n')
    found = describe(named, described_in=str(tmp_path / "own.yaml"))
    assert (found.head, found.score) == (TokenHead(token(named, "no")), ScoreScale(2.0))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "an embedding model": (
        lambda folder: write(
            folder, "modules.json", [{"type": MODULES + name} for name in ("Transformer", "Pooling", "Normalize")]
        ),
        "embedding model",
    ),
    "an unknown module": (
        lambda folder: write(
            folder, "modules.json", [{"type": MODULES + "Transformer"}, {"type": MODULES + "WordWeights"}]
        ),
        r"WordWeights.*--model-description FILE.*true_token",
    ),
    "a module of its own": (
        lambda folder: write(folder, "modules.json", [{"type": "modeling_own.Head"}]),
        r"modeling_own.Head.*does not run",
    ),
    "an answer that is no number": (
        lambda folder: declare(folder, "qwen3", head={"true_token_id": "yes"}) and None,
        "true_token_id 'yes'",
    ),
    "an activation that is not known": (
        lambda folder: write(folder, "config_sentence_transformers.json", {"activation_fn": "torch.nn.Tanh"}),
        "torch.nn.Tanh",
    ),
    "a listwise model": (
        lambda folder: write(folder, "config.json", {"architectures": ["JinaForRanking"]}),
        "listwise",
    ),
    "a model of several layers": (
        lambda folder: write(folder, "config.json", {"architectures": ["LayerWiseMiniCPMForCausalLM"]}),
        "behind one of several layers.*bge-reranker-v2-m3",
    ),
    "a model of images": (
        lambda folder: write(folder, "config.json", {"architectures": ["Qwen3VLForConditionalGeneration"]}),
        "a model of images and texts",
    ),
    "a BERT of its own": (
        lambda folder: write(folder, "config.json", {"architectures": ["JinaBertForSequenceClassification"]}),
        "attention of its own",
    ),
    "a causal model that nothing describes": (
        lambda folder: write(folder, "config.json", {"architectures": ["MistralForCausalLM"]}),
        r"not a reranker that this job knows.*true_token",
    ),
    "a classifier of three": (
        lambda folder: write(
            folder, "config.json", {"architectures": ["BertForSequenceClassification"], "num_labels": 3}
        ),
        r"3 labels.*minus_label",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_folder_is_refused_in_a_sentence(folder: Path, what: str) -> None:
    change, words = REFUSED[what]
    change(folder)
    with pytest.raises(ModelError, match=f"(?s){words}"):
        describe(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt: pair\nlabel: 0\ntemplate: x\n", "template.*its keys are match"),
        ('prompt: "{query}"\nlabel: 0\n', "{document} 0 times"),
        ("prompt: pair\n", "either true_token"),
        ("prompt: pair\nlabel: 1\nminus_label: 1\n", "another label"),
        ('prompt: "{query}{document}"\ntrue_token: "no such token"\n', "no single token `no such token`"),
        ("- a\n", "no YAML mapping"),
        ("prompt: [\n", "not YAML"),
    ],
)
def test_description_of_a_user_with_a_fault_is_refused(folder: Path, tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path, "own.yaml", text)
    with pytest.raises(RerankError, match=f"(?s){words}"):
        describe(folder, described_in=str(tmp_path / "own.yaml"))
    with pytest.raises(JobError, match="cannot be read"):
        describe(folder, described_in=str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "types", "has_segments"),
    [
        ("prompt: pair", 2, True),
        ('prompt: "{query}{document}"\nspecial_tokens: pair', 2, True),
        ("prompt: pair", 1, False),
        ("prompt: pair\nsegment_ids: false", 2, False),
        ('prompt: "{query} {document}"\nspecial_tokens: single', 2, False),
        ("prompt: pair", None, False),
    ],
)
def test_described_pair_has_segment_ids_where_its_model_knows_them(
    folder: Path, tmp_path: Path, text: str, types: int | None, has_segments: bool
) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "num_labels": 2, "type_vocab_size": types}
    write(folder, "config.json", config)
    write(tmp_path, "own.yaml", f"{text}\nlabel: 1\nminus_label: 0\n")
    assert describe(folder, described_in=str(tmp_path / "own.yaml")).template.has_segments is has_segments


def test_two_labels_are_a_difference_where_they_are_called_no_and_yes(folder: Path) -> None:
    config = {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    write(folder, "config.json", config)
    assert describe(folder).head == LabelHead(1, 0)
    write(folder, "config.json", {**config, "num_labels": 2})
    assert describe(folder).head == LabelHead(1, 0)
    write(folder, "config.json", {**config, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}})
    with pytest.raises(ModelError, match="nothing says which is relevance"):
        describe(folder)


def test_two_labels_without_names_are_read_as_the_built_in_description_says(folder: Path) -> None:
    named = folder.rename(folder.with_name("mxbai-rerank-base-v2-seq"))
    config = {"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 2}
    for labels in ({}, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {"id2label": {"0": "0", "1": "1"}}):
        write(named, "config.json", {**config, **labels})
        found = describe(named)
        assert (found.name, found.head) == ("mxbai-rerank-v2", LabelHead(1, 0))
    write(named, "config.json", {**config, "id2label": {"0": "1", "1": "0"}})
    with pytest.raises(ModelError, match="nothing says which is relevance"):
        describe(named)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_labels": 1},
        {"num_labels": 2},
        {"num_labels": 2, "id2label": {"1": "yes", "0": "no"}},
        {"num_labels": 1, "id2label": {"0": "no", "1": "yes"}},
        {"num_labels": 2, "id2label": {"0": "relevance"}},
        {"id2label": {"0": "relevance"}},
    ],
)
def test_labels_are_those_that_transformers_reads(config: dict[str, Any]) -> None:
    assert read_labels(config) == BertConfig.from_dict(config).id2label


@pytest.mark.parametrize("name", CHAT)
def test_chat_template_as_segments_is_what_it_renders(name: str) -> None:
    chat = ChatTemplate("m", CHAT[name], {"add_generation_prompt": True})
    found = chat.to_template("f", CONTROLS, None)
    assert found.strips == (("query", "document") if name == "zerank" else ())
    before = found.prefix + found.format_head(
        "Given a web search query, retrieve relevant passages that answer the query", "q"
    )
    assert chat.render(None, "q", "d") == before + found.document_separator + "d" + found.suffix.replace("{query}", "q")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ messages[0].content | upper }} {{ messages[1].content }}", "query stands in it 0 times"),
        (
            "{{ messages[0].content }} {{ messages[1].content }} {{ messages[1].content }}",
            "document stands in it 2 times",
        ),
        ("{{ messages[0].content }} {{ messages[1].content[:100] }}", "more with the texts"),
        (
            "{{ messages[0].content }}{% if messages[1].content %} d: {{ messages[1].content }}{% endif %}",
            "more with the texts",
        ),
        ("{{ messages[0].content | e }} {{ messages[1].content }}", "more with the texts"),
        ("{{ raise_exception('no such role') }}", "cannot be rendered"),
        (
            "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }} {{ messages[1].content }}",
            "the day's date stands in it",
        ),
        (
            "{% if messages[0].role == 'system' %}{{ strftime_now('%d %b %Y') }} {{ messages[0].content }} {% endif %}"
            "{{ messages[-2].content }} {{ messages[-1].content }}",
            "the day's date stands in it",
        ),
        ("{query} {{ messages[0].content }} {{ messages[1].content }}", "name of a field"),
    ],
)
def test_chat_template_that_does_more_is_refused(source: str, words: str) -> None:
    instruction = "Judge it" if "system" in source else None
    with pytest.raises(ModelError, match=words):
        ChatTemplate("m", source, {}).to_template("f", CONTROLS, instruction)


def test_built_in_entries_are_read_and_each_says_what_it_is_for() -> None:
    entries = load_entries()
    assert len(entries) >= 10
    assert all(entry.match is not None and (entry.refused or entry.family != "described") for entry in entries)


def test_tokenizer_that_transformers_builds_otherwise_is_refused(folder: Path) -> None:
    assert load_tokenizer_json(load_reranker_model(str(folder), weights=False))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder, "tokenizer_config.json", {**settings, "tokenizer_class": "Qwen2Tokenizer"})
    parsed = json.loads((folder / "tokenizer.json").read_text())
    parsed["normalizer"] = {"type": "Lowercase"}
    write(folder, "tokenizer.json", parsed)
    with pytest.raises(ModelError, match=r"other token ids of .* than tokenizer\.json"):
        load_tokenizer_json(load_reranker_model(str(folder), weights=False))


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_segments_that_a_config_leaves_out_are_those_of_transformers(kind: str) -> None:
    from transformers import AutoConfig

    assert AutoConfig.for_model(kind).type_vocab_size == SEGMENTS_BY_DEFAULT[kind]
    assert knows_segments({"model_type": kind})
    assert not knows_segments({"model_type": kind, "type_vocab_size": 1})
    assert not knows_segments({"model_type": "qwen3"})
