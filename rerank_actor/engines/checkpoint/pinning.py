"""Which commit of a hub model is meant, and what has changed since another: hub branches move while an output is scored.

An output goes on with the commit that it was begun with; a new one takes what the branch stands for, and says what of the
files that can change a score is not as it was when this machine last used it. Knows nothing of outputs.
"""

from pathlib import Path

from rerank_actor import storage
from rerank_actor.engines.checkpoint.files import name_some
from rerank_actor.engines.options import BUILT_IN_TOKENIZER
from rerank_actor.storage import hub

# What can change a score, in the order in which it is named. Weights in other formats are never loaded.
_KINDS = {
    "template": (".jinja",),
    "weights": (".safetensors", ".safetensors.index.json"),
    "tokenizer": (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        ".model",
        ".txt",
    ),
    "description": (".json",),
}
_OTHER_FOLDERS = ("onnx/", "openvino/", ".")
SHOWN_FILES = 6
COMMIT_DIGITS = 10


def is_hub_model(name: str) -> bool:
    """Whether a model is one of the hub, and not a folder or the built-in tokenizer."""
    return name != BUILT_IN_TOKENIZER and not storage.is_remote(name) and not Path(name).expanduser().is_dir()


def read_cached_commit(name: str, revision: str | None) -> str | None:
    """Return the commit that a branch or tag stood for when this machine last asked the hub, None where it never did."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
        return (folder / "refs" / (revision or "main")).read_text().strip() or None
    except (OSError, ValueError):  # the latter of a name that is none of the hub's, as of a folder that is gone
        return None


def find_commit(name: str, revision: str | None) -> str | None:
    """Return the commit that a branch or tag stands for on the hub, None where the hub does not tell."""
    try:
        return hub.find_model_commit(name, revision)
    except OSError:
        return None


def describe_changes(name: str, before: str, now: str) -> str:
    """Return which files that can change a score are not the same in two commits, in words."""
    try:
        old, new = hub.list_model_marks(name, before), hub.list_model_marks(name, now)
    except OSError:
        return "the hub does not tell what changed"
    changed = sorted(file for file in {*old, *new} if old.get(file) != new.get(file))
    kinds: dict[str, list[str]] = {}
    for file in changed:
        kind = next((kind for kind, ends in _KINDS.items() if file.endswith(ends)), None)
        if kind is not None and not file.startswith(_OTHER_FOLDERS):
            kinds.setdefault(kind, []).append(file)
    if not kinds:
        return "no file that can change a score is another"
    return "changed: " + ", ".join(
        f"{kind} ({name_some(kinds[kind], SHOWN_FILES)})" for kind in _KINDS if kind in kinds
    )


def shorten_commit(commit: str) -> str:
    """Return a commit as it is shown."""
    return commit[:COMMIT_DIGITS]
