"""Small rerankers with random weights, one of each family, as folders; and what their publishers' way makes of pairs."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rerank_actor.benchmark.sample import load_sample_rows, train_sample_tokenizer

ROWS = [row for row in load_sample_rows() if isinstance(row["query"], str) and isinstance(row["document"], str)]
TEXTS = [text for row in ROWS for text in (row["query"], row["document"])]
PAIRS = [(row["query"], row["document"]) for row in ROWS[::9]] + [
    ("q", ""), ("7", " 7 "), ("how?\n", "one.\n\ntwo"), ("Which one?", "word " * 400), ("why " * 90, "because " * 150),
    (" a query ", "It ends here."),
]  # fmt: skip
LENGTH, CHAT_LENGTH = 160, 440
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
DECODER_SIZES: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.1}
SENTINELS = ["yes", "no", "Yes", "1", "0", "!"]


def make_bpe() -> PreTrainedTokenizerFast:
    own = train_sample_tokenizer([*TEXTS, *["Yes\n"] * 500])
    return PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def make_llama_bpe() -> PreTrainedTokenizerFast:
    """A BPE tokenizer that puts a beginning of its own before each text."""
    own = train_sample_tokenizer([*TEXTS, *["Yes\n"] * 500])
    own.add_special_tokens(["<s>", "</s>"])
    begin = own.token_to_id("<s>")
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", begin)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def make_wordpiece() -> PreTrainedTokenizerFast:
    own = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    own.normalizer = normalizers.BertNormalizer(lowercase=True)
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    own.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=900, special_tokens=names, show_progress=False))
    own.decoder = decoders.WordPiece()
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    ends = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **ends,
    )


def make_unigram(*, two_ends: bool = True, ends: tuple[str, str] = ("<s>", "</s>")) -> PreTrainedTokenizerFast:
    begin, end = ends
    names = [begin, "<pad>", end, "<unk>", "<mask>"]
    own = Tokenizer(models.Unigram())
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=names, unk_token="<unk>", show_progress=False)
    own.train_from_iterator([text for text in TEXTS if text.isascii()], trainer)
    middle = f"{end} {end}" if two_ends else end
    pair, single = f"{begin} $A {middle} $B {end}", f"{begin} $A {end}"
    own.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(begin, own.token_to_id(begin)), (end, own.token_to_id(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token=begin, eos_token=end, cls_token=begin, sep_token=end,
        pad_token="<pad>", unk_token="<unk>", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def save(folder: Path, model: Any, tokenizer: Any, length: int = LENGTH) -> Path:
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    model.eval().float().save_pretrained(folder)
    return folder


def build(
    kind: str, tokenizer: Any, folder: Path, *, seed: int = 0, task: str = "SequenceClassification", **own: Any
) -> Path:
    """Write a model of a class of Transformers with random weights."""
    torch.manual_seed(seed)
    sizes = DECODER_SIZES if kind in ("Qwen2", "Qwen3", "Llama", "Gemma", "Mistral") else SIZES
    config_class = getattr(transformers, f"{kind}Config")
    if "id2label" in own:
        own["num_labels"] = len(own["id2label"])
    values = {**sizes, "vocab_size": -(-len(tokenizer) // 64) * 64, "pad_token_id": tokenizer.pad_token_id, **own}
    if task == "SequenceClassification":
        values.setdefault("num_labels", 1)
    config = config_class(**values)
    model = getattr(transformers, f"{kind}For{task}" if task else f"{kind}Model")(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower():
                weight.add_(torch.randn_like(weight) * 0.2)  # as training leaves them, not at nought and one
    return save(folder, model, tokenizer)


CHAT = {
    "qwen3": (
        "{%- set ns = namespace(i='Given a web search query, retrieve relevant passages that answer the query') -%}"
        "{%- for m in messages -%}{%- if m.role == 'system' -%}{%- set ns.i = m.content -%}"
        "{%- elif m.role == 'query' -%}{%- set ns.q = m.content -%}{%- else -%}{%- set ns.d = m.content -%}{%- endif -%}"
        "{%- endfor -%}{{- '<|im_start|>system\\nJudge whether the Document meets the requirements based on the Query and "
        'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\\n<|im_start|>user\\n'
        "<Instruct>: ' + ns.i + '\\n<Query>: ' + ns.q + '\\n<Document>: ' + ns.d + "
        "'<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' -}}"
    ),
    "zerank": (
        "{%- for m in messages -%}{{- '<|im_start|>' + ('system' if m.role == 'query' else 'user') + '\\n' + "
        "m.content.strip() + '<|im_end|>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    "mxbai": (
        "{%- for m in messages -%}{%- if m.role == 'query' -%}{%- set _ = none -%}{{- '<|im_start|>system\\nYou are Qwen, "
        "created by Alibaba Cloud.<|im_end|>\\n<|im_start|>user\\nquery: ' + m.content -}}{%- elif m.role == 'document' -%}"
        "{{- '\\ndocument: ' + m.content + '\\nYou are a search relevance expert.\\nRelevance:<|im_end|>\\n"
        "<|im_start|>assistant\\n' -}}{%- endif -%}{%- endfor -%}"
    ),
    "ctxl": (
        "{%- for m in messages -%}{%- if m.role == 'query' -%}{%- set ns_q = m.content -%}{%- endif -%}{%- endfor -%}"
        "{{- 'Check whether a given document contains information helpful to answer the query.\\n<Document> ' + "
        "(messages | selectattr('role', 'equalto', 'document') | first).content + '\\n<Query> ' + "
        "(messages | selectattr('role', 'equalto', 'query') | first).content + ' ??' -}}"
    ),
}


def declare(
    folder: Path, chat: str, *, head: dict[str, Any] | None, task: str = "text-generation", **chat_settings: Any
) -> Path:
    """Give a folder the files by which sentence-transformers 5.4 and later describe a reranker."""
    (folder / "chat_template.jinja").write_text(CHAT[chat])
    part = "sentence_transformers."
    modules = [{"idx": 0, "name": "0", "path": "", "type": part + "base.modules.transformer.Transformer"}]
    output = "causal_logits"
    if head is not None:
        kind = part + "cross_encoder.modules.logit_score.LogitScore"
        modules.append({"idx": 1, "name": "1", "path": "1_LogitScore", "type": kind})
        (folder / "1_LogitScore").mkdir()
        (folder / "1_LogitScore" / "config.json").write_text(json.dumps(head))
    else:
        output = "scores"
    entry = {"method": "forward", "method_output_name": "logits"}
    settings: dict[str, Any] = {
        "transformer_task": task,
        "modality_config": {"text": entry, "message": {**entry, "format": "flat"}},
        "module_output_name": output,
    }
    if chat_settings:
        settings["processing_kwargs"] = {"chat_template": chat_settings}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    about = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
    return folder


def choose_length(folder: Path) -> int:
    """Return the tokens at which prompts of a folder are cut, so that some are and all have room."""
    return CHAT_LENGTH if (folder / "chat_template.jinja").exists() else LENGTH


def predict(folder: Path, pairs: Sequence[tuple[str, str]], length: int) -> tuple[np.ndarray, list[list[int]]]:
    """Return raw outputs and prompt ids of sentence-transformers' CrossEncoder, one pair at a time."""
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, max_length=length)
    outputs = encoder.predict(list(pairs), activation_fn=torch.nn.Identity(), batch_size=1)
    ids = [encoder.preprocess([pair])["input_ids"][0].tolist() for pair in pairs]
    return np.asarray(outputs, np.float64), ids


def _causal(kind: str, chat: str, true: str, false: str | None, **settings: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tokenizer = make_bpe()
        build(kind, tokenizer, folder, task="CausalLM", tie_word_embeddings=True)
        ids = [None if name is None else tokenizer.convert_tokens_to_ids(name) for name in (true, false)]
        return declare(folder, chat, head={"true_token_id": ids[0], "false_token_id": ids[1]}, **settings)

    return write


def _labels(kind: str, chat: str, **own: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        build(kind, make_bpe(), folder, **own)
        return declare(folder, chat, head=None, task="sequence-classification")

    return write


def write_chain(folder: Path) -> Path:
    """Write a ModernBERT with pooling, a dense layer, a norm and a dense layer after it, as the Ettin rerankers are."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    bare = folder.parent / f"{folder.name}-bare"
    build("ModernBert", make_unigram(two_ends=False), bare, task="", norm_bias=False)
    torch.manual_seed(5)
    norm = LayerNorm(64)
    torch.nn.init.normal_(norm.norm.bias, std=0.5)
    names = {"module_input_name": "sentence_embedding"}
    modules = [
        Transformer(str(bare)), Pooling(64, "cls"), Dense(64, 64, bias=False, activation_function=torch.nn.GELU()), norm,
        Dense(64, 1, activation_function=torch.nn.Identity(), module_output_name="scores", **names),
    ]  # fmt: skip
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(folder))
    return folder


WITH_SENTENCE_TRANSFORMERS: dict[str, Callable[[Path], Path]] = {
    "minilm": lambda folder: build("Bert", make_wordpiece(), folder, type_vocab_size=2),
    "xlm-roberta": lambda folder: build(
        "XLMRoberta", make_unigram(), folder, type_vocab_size=1, max_position_embeddings=514, pad_token_id=1
    ),
    "modernbert-cls": lambda folder: build(
        "ModernBert", make_unigram(two_ends=False), folder, classifier_pooling="cls"
    ),
    "modernbert-mean": lambda folder: build(
        "ModernBert", make_unigram(two_ends=False), folder, classifier_pooling="mean"
    ),
    "electra": lambda folder: build("Electra", make_wordpiece(), folder, type_vocab_size=2, embedding_size=64),
    "mxbai-v2": _causal("Qwen2", "mxbai", "1", "0"),
    "mxbai-v2 two labels": _labels("Qwen2", "mxbai", id2label={0: "0", 1: "1"}, label2id={"0": 0, "1": 1}),
    "zerank": _causal("Qwen3", "zerank", "Yes", None, add_generation_prompt=True),
    "ctxl-v2": _causal("Qwen3", "ctxl", "!", None),
    "qwen3": _causal("Qwen3", "qwen3", "yes", "no"),
    "qwen3 other tokens": _causal("Qwen3", "qwen3", "1", "0"),
    "qwen3 one label": _labels("Qwen3", "qwen3"),
    "qwen3 two labels": _labels("Qwen3", "qwen3", id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}),
    "ettin": write_chain,
    "deberta-v2": lambda folder: build("DebertaV2", make_unigram(two_ends=False), folder, type_vocab_size=0),
    "distilbert": lambda folder: build(
        "DistilBert", make_unigram(two_ends=False), folder, dim=64, hidden_dim=96, n_layers=2, n_heads=2
    ),
}


def write_jina(folder: Path) -> Path:
    """Write an XLM-R as jina-reranker-v2 stores it: fused projections, other names, a configuration with code of its own."""
    from safetensors.torch import load_file, save_file

    plain = folder.parent / f"{folder.name}-plain"
    build("XLMRoberta", make_unigram(), plain, type_vocab_size=1, max_position_embeddings=514, pad_token_id=1)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((plain / name).read_text())
    config = json.loads((plain / "config.json").read_text())
    del config["model_type"]
    config |= {"auto_map": {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"}, "use_flash_attn": True}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(plain / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        name = name.replace("roberta.embeddings.LayerNorm", "roberta.emb_ln").replace(
            "encoder.layer.", "encoder.layers."
        )
        if ".attention.self." in name:
            if ".query." in name:
                base = name.replace("attention.self.query", "mixer.Wqkv")
                source = base.replace("encoder.layers.", "encoder.layer.").replace("mixer.Wqkv", "attention.self.{}")
                stored[base] = torch.cat([weights[source.format(one)] for one in ("query", "key", "value")])
            continue
        for ours, theirs in (
            ("attention.output.dense", "mixer.out_proj"), ("attention.output.LayerNorm", "norm1"),
            ("output.LayerNorm", "norm2"), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
        ):  # fmt: skip
            if ours in name:
                name = name.replace(ours, theirs)
                break
        stored[name] = value.contiguous()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return plain


GTE_THETA, GTE_FACTOR = 20_000.0, 8.0


def write_gte(folder: Path) -> Path:
    """Write a classifier as gte-multilingual-reranker stores it, with code of its own and scaled angles."""
    from safetensors.torch import load_file, save_file

    build("Gte", make_unigram(), folder, type_vocab_size=1, pad_token_id=1, initializer_range=0.1)
    stored = load_file(folder / "model.safetensors")
    renamed = {name.replace("gte.", "new.", 1) if name.startswith("gte.") else name: stored[name] for name in stored}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {
        "architectures": ["NewForSequenceClassification"],
        "model_type": "new",
        "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig"},
        "rope_theta": GTE_THETA,
        "rope_scaling": {"type": "ntk", "factor": GTE_FACTOR},
        "position_embedding_type": "rope",
        "layer_norm_type": "layer_norm",
        "pack_qkv": True,
        "logn_attention_scale": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def compute_gte(folder: Path, ids: list[int]) -> float:
    """Return the output of such a classifier, written from its architecture."""
    import torch.nn.functional as functional
    from safetensors.torch import load_file

    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    width = config["hidden_size"] // config["num_attention_heads"]
    steps = (GTE_THETA * GTE_FACTOR) ** (-torch.arange(0, width, 2).float() / width) / GTE_FACTOR ** (2 / width)
    angles = torch.outer(torch.arange(len(ids)).float(), steps).repeat(1, 2)[:, None]

    def turn(states: Any) -> Any:
        halves = torch.cat([-states[..., width // 2 :], states[..., : width // 2]], -1)
        return states * angles.cos() + halves * angles.sin()

    def norm(states: Any, name: str) -> Any:
        sizes = (config["hidden_size"],)
        return functional.layer_norm(
            states, sizes, weights[f"{name}.weight"], weights[f"{name}.bias"], config["layer_norm_eps"]
        )

    def dense(states: Any, name: str) -> Any:
        return functional.linear(states, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    embedded = weights["new.embeddings.word_embeddings.weight"][ids]
    states = norm(embedded + weights["new.embeddings.token_type_embeddings.weight"][0], "new.embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        at = f"new.encoder.layer.{layer}"
        query, key, value = (
            part.view(len(ids), -1, width) for part in dense(states, f"{at}.attention.qkv_proj").chunk(3, -1)
        )
        shares = (torch.einsum("qhd,khd->hqk", turn(query), turn(key)) / width**0.5).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", shares, value).reshape(len(ids), -1)
        states = norm(states + dense(mixed, f"{at}.attention.o_proj"), f"{at}.attn_ln")
        up, gate = dense(states, f"{at}.mlp.up_gate_proj").chunk(2, -1)
        states = norm(states + dense(functional.gelu(gate) * up, f"{at}.mlp.down_proj"), f"{at}.mlp_ln")
    pooled = torch.tanh(dense(states[0], "new.pooler.dense"))
    return float(dense(pooled, "classifier").item())


def write_nemotron(folder: Path) -> Path:
    """Write a Llama classifier as nemotron-rerank stores it, with code of its own; return it as plain Llama."""
    plain = build("Llama", make_llama_bpe(), folder.parent / f"{folder.name}-plain", max_position_embeddings=1024)
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    own_code = {"AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig"}
    config |= {"architectures": ["LlamaBidirectionalForSequenceClassification"], "model_type": "llama_bidirec"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own_code, "pooling": "avg"}))
    return plain


def write_t5(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = make_unigram(ends=("<s>", "</s>"))
    parsed = json.loads(tokenizer.backend_tokenizer.to_str())
    parsed["model"]["vocab"] += [["\u2581true", -3.0], ["\u2581false", -3.0]]
    own = Tokenizer.from_str(json.dumps(parsed))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_input_names=["input_ids"]
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", own.token_to_id("</s>"))]
    )
    sizes = {"d_model": 64, "d_kv": 32, "d_ff": 96, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 1}
    config = transformers.T5Config(vocab_size=-(-len(tokenizer) // 64) * 64, pad_token_id=1, eos_token_id=2, **sizes)
    return save(folder, transformers.T5ForConditionalGeneration(config), tokenizer, 512)
