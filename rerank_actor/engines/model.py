"""The model on disk: where it is, what kind of reranker it is, and a digest that says when it is another one.

Takes a hub name, a local folder or an S3 folder; gives a local folder and a `RerankerModel` read from `config.json`
and the tokenizer. Knows nothing of engines: no weight is loaded here.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from rerank_actor import storage
from rerank_actor.engines.checkpoint.files import list_model_files, list_module_files, list_module_folders
from rerank_actor.engines.checkpoint.folder import (
    check_checkpoint,
    make_loaded_folder,
    read_quantization,
    read_usual_length,
    refuse_adapter,
    refuse_overrides,
)
from rerank_actor.engines.checkpoint.pinning import is_hub_model
from rerank_actor.engines.checkpoint.weights import REFUSED_SUFFIXES, choose_weights, refuse_pickles, refuse_pointers
from rerank_actor.engines.families.conversion import convert_headers, convert_model
from rerank_actor.engines.families.description import ModelDescription, Runtime, TokenHead
from rerank_actor.engines.families.detect import describe_model, find_assumption, is_early
from rerank_actor.engines.families.embedding import EmbeddingRequest, describe_embedding, read_length
from rerank_actor.engines.families.entries import get_architecture, read_user_entry
from rerank_actor.engines.options import BUILT_IN_TOKENIZER, DEFAULT_MAX_LENGTH, QUANTIZED_AT_LOAD
from rerank_actor.engines.template import QWEN3_RERANKER
from rerank_actor.errors import ModelError, RerankError, describe_cause

HUB_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
CODE_SUFFIX = ".py"
UNLIMITED_POSITIONS = 10**9
LOADED_WHOLE = ("as_is", "sequence_to_sequence")  # ways of loading that take a model's files as they are
# Texts on which builds of a tokenizer have differed: blanks, digits, capitals, accents, marks and other scripts.
TOKENIZER_PROBES = (
    "What's the capital of China? It's Beijing, 21.5 million (2023).",
    "  two  spaces\n\nand lines\t",
    "\u00c9t\u00e9 na\u00efve \u4f60\u597d\uff0c\u4e16\u754c \u0645\u0631\u062d\u0628\u0627 e\u0301 \U0001f600",
    "",
)


# 256 windows of 64 KiB spread over each weight file: any retraining or merge touches them, and 16 GB cost 16 MB.
_DIGEST_WINDOWS = 256
_DIGEST_WINDOW_BYTES = 64 * 1024


@dataclass(frozen=True)
class RerankerModel:
    """What scoring needs to know of a model.

    Attributes:
        name: as the user gave it.
        folder: local folder, or the name of the built-in tokenizer.
        digest: changes when the weights, the configuration or the tokenizer change.
        revision: commit of a hub model, else None.
        description: its prompt, its head and what runs it.
        architecture: the class named in `config.json`.
        max_positions: longest prompt in tokens that the model was built for.
        usual_length: longest prompt by the settings of sentence-transformers or, but for Qwen3-Reranker, of the tokenizer; None
            where they say nothing.
        is_early: whether it is a kind of model that was scored before there were descriptions, so that outputs name none.
        is_users: whether the description is the user's, which beats what the folder says.
        assumption: what is taken for granted of it, for the user to read; empty where its files or the user say it.
        trust_remote_code: whether the user lets the model's own code run.
        quantization: how its weights are packed, as vLLM calls it; None for plain ones.
    """

    name: str
    folder: str
    digest: str
    revision: str | None
    description: ModelDescription
    architecture: str
    max_positions: int
    trust_remote_code: bool = False
    usual_length: int | None = None
    is_early: bool = False
    is_users: bool = False
    assumption: str = ""
    quantization: str | None = None

    @property
    def default_length(self) -> int:
        """Tokens of a prompt at most, where nothing else is asked for."""
        return min(DEFAULT_MAX_LENGTH, self.max_positions, self.usual_length or DEFAULT_MAX_LENGTH)

    def fingerprint_settings(self) -> dict[str, Any]:
        """Return the model's share of the fingerprint; the folder's place is not part of it."""
        described = self.description
        settings = {"model": self.digest, "revision": self.revision, "template": described.name}
        settings["template_digest"] = described.template.digest
        if not self.is_early:
            settings["description"] = described.digest
        return settings

    def refuse_engine(self, kind: str, quantization: str | None = None) -> None:
        """Refuse an engine that cannot run the model.

        Args:
            kind: of the engine.
            quantization: how vLLM is to pack the weights, None for as they are.

        Raises:
            ModelError: vLLM was asked for and has no such model, or Transformers was and the weights are packed, or they
                are to be packed twice.
        """
        if self.quantization is not None and quantization in QUANTIZED_AT_LOAD and quantization != self.quantization:
            raise ModelError(
                f"{self.name}: its weights are quantised already ({self.quantization}); leave out --quantization",
                model=self.name,
            )
        if kind == "transformers" and self.quantization is not None:
            raise ModelError(
                f"{self.name}: its weights are quantised ({self.quantization}), which vLLM alone is given, without a "
                "reference; give --engine vllm, or take a copy in float32, float16 or bfloat16",
                model=self.name,
            )
        runtime = self.description.runtime
        if kind == "vllm" and runtime.without_vllm:
            raise ModelError(f"{self.name}: {runtime.without_vllm}; give --engine transformers", model=self.name)


def fetch_model(name: str, revision: str | None = None, *, weights: bool = True, code: bool = False) -> Path:
    """Return a local folder with the model; from S3 or the hub it is copied once per machine.

    Args:
        name: hub name, local folder or s3://, gs://, az:// folder.
        revision: branch, tag or commit of a hub model.
        weights: copy the weights too; only safetensors are.
        code: copy the model's own Python code too.

    Raises:
        ModelError: there is no such model, or it cannot be fetched.
    """
    if name == BUILT_IN_TOKENIZER:
        return Path(name)
    if storage.is_remote(name):
        return _fetch_from_s3(storage.normalize_uri(name), weights=weights, code=code)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(
            f"{name}: no such model folder; give --model a folder, an s3://, gs:// or az:// folder or a hub name",
            model=name,
        )
    return _fetch_from_hub(name, revision, weights=weights, code=code)


def _fetch_from_s3(uri: str, *, weights: bool, code: bool) -> Path:
    try:
        objects = storage.list_objects(uri)
    except RerankError as error:
        raise ModelError(f"--model {error}", model=uri) from error
    if not objects:
        raise ModelError(f"{uri}: no such model folder; check --model", model=uri)
    has_modules = any(item.uri == f"{uri.rstrip('/')}/modules.json" for item in objects)  # copies of before lack theirs
    marks = [weights, *["code"] * code, *["modules"] * has_modules]
    listing = json.dumps([item.identity for item in objects] + marks)
    target = storage.choose_cache("models") / hashlib.sha256(listing.encode()).hexdigest()[:24]
    if not target.is_dir():
        temporary = target.with_name(f"{target.name}.{os.getpid()}.partial")
        temporary.mkdir(parents=True, exist_ok=True)
        left_out = [*REFUSED_SUFFIXES, *[".safetensors"] * (not weights), *[CODE_SUFFIX] * (not code)]
        storage.download_folder(uri, temporary, skip=tuple(left_out))
        for place in list_module_folders(temporary):
            (temporary / place).mkdir(parents=True, exist_ok=True)
            storage.download_folder(f"{uri.rstrip('/')}/{place}", temporary / place, skip=tuple(left_out))
        try:
            temporary.rename(target)
        except OSError:  # another process on this machine was first
            storage.delete_folder(str(temporary))
    return target


def _fetch_from_hub(name: str, revision: str | None, *, weights: bool, code: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*HUB_PATTERNS, *["*.safetensors"] * weights, *["*" + CODE_SUFFIX] * code]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(
            f"{name}: neither a local folder nor a model that the Hugging Face hub would give "
            f"({describe_cause(error)}); check --model, --revision, the network and HF_TOKEN",
            model=name,
        ) from error


def load_reranker_model(
    name: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    weights: bool = True,
    described_in: str | None = None,
    embedding: EmbeddingRequest | None = None,
) -> RerankerModel:
    """Read what kind of reranker or embedding model a model is, and whether its weight files are those of that model.

    Args:
        name: hub name, local folder or s3://, gs://, az:// folder.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: let the model's own Python code run.
        weights: look at its weight files too, as `check_weights` does; of no use where none will be loaded.
        described_in: YAML file with a description that beats what is found.
        embedding: what is wanted of an embedding model; None where a reranker is wanted.

    Raises:
        ModelError: it is not there, it is not a reranker (no yes and no tokens, no head with one label), it brings code
            that it was not said to trust, or its weight files are not safetensors, not whole or of another model.
    """
    entry = read_user_entry(described_in) if described_in is not None else None
    if name == BUILT_IN_TOKENIZER and embedding is not None:
        return RerankerModel(name, name, name, None, embedding.describe_fake(), "none", UNLIMITED_POSITIONS)
    if name == BUILT_IN_TOKENIZER:
        described = ModelDescription(QWEN3_RERANKER.name, QWEN3_RERANKER, TokenHead(1, 0), Runtime("none"))
        return RerankerModel(name, name, name, None, described, "none", UNLIMITED_POSITIONS, is_early=True)
    folder = fetch_model(name, revision, weights=False, code=trust_remote_code)
    commit = folder.name if is_hub_model(name) and folder.parent.name == "snapshots" else None
    files = list_model_files(name, folder, commit)
    refuse_adapter(name, files)
    refuse_pointers(name, files)
    refuse_pickles(name, files)
    config = _read_config(folder, name)
    refuse_overrides(name, config)
    if embedding is not None:
        description, early = describe_embedding(name, folder, config, embedding), False
    else:
        description = describe_model(name, folder, config, entry)
        early = is_early(name, folder, config, description)
    if description.runtime.loading in LOADED_WHOLE and not trust_remote_code:
        _refuse_code(name, folder, config)
    model = RerankerModel(
        name=name,
        folder=str(folder),
        digest=_identify(name, commit, folder, code=trust_remote_code, modules=not early),
        revision=commit or revision,
        description=description,
        architecture=get_architecture(config),
        max_positions=_max_positions(config),
        trust_remote_code=trust_remote_code,
        usual_length=read_usual_length(folder)
        or (None if description.template.name == QWEN3_RERANKER.name else read_length(name, folder)),
        is_early=early,
        is_users=entry is not None,
        quantization=read_quantization(name, config),
        assumption=""
        if entry is not None or embedding is not None
        else find_assumption(name, folder, config, description),
    )
    if weights:
        check_weights(model)
    return model


@lru_cache(maxsize=1)
def check_weights(model: RerankerModel) -> None:
    """Refuse a model whose weight files are not those of what would be run, by their headers; that imports torch.

    Raises:
        ModelError: they are not safetensors, not whole or of another model.
    """
    if model.folder == BUILT_IN_TOKENIZER:
        return
    folder = Path(model.folder)
    config, loading = _read_config(folder, model.name), model.description.runtime.loading
    commit = model.revision if is_hub_model(model.name) else None
    files = list_model_files(model.name, folder, commit, list_module_folders(folder) if loading == "folded" else ())
    convert = partial(convert_headers, model.name, folder, files, config, loading)
    check_checkpoint(
        model.name, folder, files, config, model.description.auto_class, None if loading in LOADED_WHOLE else convert
    )


def _refuse_code(name: str, folder: Path, config: dict[str, Any]) -> None:
    """Refuse a model that names Python code of its own in its configuration or its tokenizer's."""
    settings_by_file = {"config.json": config}
    if (folder / "tokenizer_config.json").is_file():
        settings_by_file["tokenizer_config.json"] = _read_config(folder, name, "tokenizer_config.json")
    for file, settings in settings_by_file.items():
        if settings.get("auto_map"):
            raise ModelError(
                f"{name}: {file} names Python code that the model brings along (auto_map), which is not run unasked; read "
                "it, then give --trust-remote-code, or take a model without it",
                model=name,
            )


def fetch_weights(model: RerankerModel) -> Path:
    """Return a local folder with the model and its weights, on the machine that is to load it.

    Raises:
        ModelError: it cannot be had here.
    """
    if storage.is_remote(model.name) or model.digest.startswith(f"{model.name}@"):
        folder = fetch_model(model.name, model.revision, code=model.trust_remote_code)
    else:
        folder = Path(model.folder)
    if not folder.is_dir():
        raise ModelError(
            f"{model.folder}: this machine has no such model folder; use a shared path, s3://, gs://, az:// or a hub name",
            model=model.name,
        )
    files = list_model_files(str(folder), folder, None)
    refuse_pointers(model.name, files)
    config = _read_config(folder, model.name)
    loading = model.description.runtime.loading
    if loading not in LOADED_WHOLE:
        folder = convert_model(model.name, folder, choose_weights(model.name, files, config), loading)
        files, config = list_model_files(str(folder), folder, None), _read_config(folder, model.name)
    check_checkpoint(model.name, folder, files, config, model.description.auto_class)
    return make_loaded_folder(folder, choose_weights(model.name, files, config))


def _identify(name: str, commit: str | None, folder: Path, *, code: bool, modules: bool) -> str:
    """Return an identity that changes when the model does, without fetching weights that only the actors need."""
    if commit:
        return f"{name}@{commit}"
    if storage.is_remote(name):
        listing = [[item.uri.rpartition("/")[2], item.size, item.etag] for item in storage.list_objects(name)]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:32]
    return compute_digest(folder, code=code, modules=modules)


def _read_config(folder: Path, name: str, file: str = "config.json") -> dict[str, Any]:
    try:
        config = json.loads((folder / file).read_text())
    except FileNotFoundError:
        raise ModelError(f"{name}: no {file} there, so this is not a model folder; check --model", model=name) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {file} cannot be read ({type(error).__name__}); check --model", model=name) from None
    if not isinstance(config, dict):
        raise ModelError(f"{name}: {file} is not a JSON object; check --model", model=name)
    return config


def _max_positions(config: dict[str, Any]) -> int:
    positions = int(config.get("max_position_embeddings") or UNLIMITED_POSITIONS)
    is_roberta = get_architecture(config).startswith(("Roberta", "XLMRoberta", "Camembert"))
    if is_roberta or config.get("model_type") in {"roberta", "xlm-roberta", "camembert"}:
        return positions - int(config.get("pad_token_id", 1)) - 1  # their positions start after the padding id
    return positions


@lru_cache(maxsize=1)
def load_tokenizer_json(model: RerankerModel) -> str:
    """Return the model's tokenizer as `tokenizer.json` text, as Transformers builds it from the model folder.

    Loading it through Transformers costs seconds and the import of torch, so the driver does it once and workers get
    the text.

    Raises:
        ModelError: there is none, or it is not of the fast kind.
    """
    if model.folder == BUILT_IN_TOKENIZER:
        return _byte_tokenizer().to_str()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.folder, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"{model.name}: its tokenizer cannot be loaded ({describe_cause(error)})",
            model=model.name,
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{model.name}: its tokenizer has no tokenizer.json; a fast tokenizer is needed", model=model.name
        )
    if model.description.template.longest_first and tokenizer.truncation_side == "left":
        raise ModelError(
            f"{model.name}: its tokenizer cuts the beginning of what is too long (truncation_side left), and this job cuts the "
            "end; correct tokenizer_config.json, or take another model",
            model=model.name,
        )
    text = str(tokenizer.backend_tokenizer.to_str())
    _refuse_other_ids(model, Tokenizer.from_str(text))
    return text


def _refuse_other_ids(model: RerankerModel, built: Tokenizer) -> None:
    """Refuse a tokenizer that Transformers builds otherwise than its own file says: one of the two was trained with."""
    file = Path(model.folder, "tokenizer.json")
    if not file.is_file():
        return
    stored = Tokenizer.from_file(str(file))
    for one in (built, stored):
        one.no_truncation()
        one.no_padding()
    for text in TOKENIZER_PROBES:
        ids = [[one.encode(text, add_special_tokens=False).ids, one.encode(text, text).ids] for one in (built, stored)]
        if ids[0] != ids[1]:
            raise ModelError(
                f"{model.name}: Transformers makes other token ids of {text!r} than tokenizer.json; correct "
                "tokenizer_config.json (tokenizer_class), or take a copy of the model whose two files agree",
                model=model.name,
            )


def _byte_tokenizer() -> Tokenizer:
    """Return the fake engine's tokenizer: a token a byte, and the two answers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"no": 0, "yes": 1, **{letter: index + 2 for index, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def compute_digest(folder: Path, *, code: bool = False, modules: bool = True) -> str:
    """Return a hash over names, sizes and contents of a model's files; of weights, over windows spread evenly.

    Args:
        folder: with the model.
        code: the model's own Python code is among the files, as it is to run.
        modules: the files of its modules in subfolders are; earlier outputs' models are without.
    """
    digest = hashlib.sha256()
    for path in (*sorted(folder.iterdir()), *(list_module_files(folder) if modules else ())):
        is_weight = path.suffix == ".safetensors"
        if (
            not path.is_file()
            or path.name.startswith(".")
            or not (is_weight or path.suffix in (".json", ".txt", *[CODE_SUFFIX] * code))
        ):
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if not is_weight or size <= _DIGEST_WINDOWS * _DIGEST_WINDOW_BYTES:
                digest.update(file.read())
                continue
            for index in range(_DIGEST_WINDOWS):
                file.seek((size - _DIGEST_WINDOW_BYTES) * index // (_DIGEST_WINDOWS - 1))
                digest.update(file.read(_DIGEST_WINDOW_BYTES))
    return digest.hexdigest()[:32]
