"""The dataset card: what a published dataset is, what made it and under which license, as the hub reads and shows it.

Takes the contents of an output, gives README.md: YAML for the hub, with the same configuration that the folder has, so that
`load_dataset` gives the same rows, then words for people. Knows nothing of the hub's functions.
"""

from typing import Any

import yaml

from rerank_actor.mining.formats import list_configurations
from rerank_actor.outputs.folder import DATA_FILES
from rerank_actor.outputs.manifest import read_versions
from rerank_actor.outputs.price import format_dollars
from rerank_actor.publishing.contents import Contents

WORDS = {
    "model": "model",
    "revision": "revision",
    "template": "template",
    "instruction": "instruction",
    "instruction_column": "instruction of each row, in column",
    "max_length": "cut, in tokens",
    "dtype": "precision",
    "engine": "engine",
    "fingerprint": "fingerprint of the scores",
    "pairs": "pairs scored",
    "gpu_hours": "GPU hours",
    "dollars": "cost",
}
SAYS_OTHERWISE = "not known: it was mined by an earlier version"


def mark_fingerprint(fingerprint: str) -> str:
    """Return the line of a card by which a repository is known to hold the data of a job."""
    return f"Fingerprint of the data: `{fingerprint}`"


def make_card(contents: Contents, name: str, license_name: str) -> str:
    """Return the card.

    Args:
        contents: what is published.
        name: of the repository.
        license_name: by the hub's list.
    """
    configurations: list[dict[str, Any]] = [{"config_name": "default", "data_files": DATA_FILES, "default": True}]
    if contents.kind == "mined":
        folders = {name.partition("/")[0] for name in contents.files if name.startswith(contents.folder_start)}
        configurations = list_configurations(contents.form, contents.fingerprint, folders if contents.by else ())
    top = {
        "license": license_name,
        "pretty_name": name.rpartition("/")[2],
        "tags": ["rerank-actor", "reranking", "distillation" if contents.kind == "mined" else "scores"],
        "configs": configurations,
    }
    what = f"Training data in the format {contents.form}, mined from scores" if contents.form else "Scored pairs"
    sections = [
        f"# {name}",
        f"{what}, by rerank-actor {read_versions().get('rerank-actor', '')}. {mark_fingerprint(contents.fingerprint)}.",
    ]
    sections += ["## Counts", _list(contents.counts)]
    for number, teacher in enumerate(contents.teachers, 1):
        sections += [f"## Teacher {number}" if len(contents.teachers) > 1 else "## Teacher", _list(_describe(teacher))]
    if not contents.teachers:
        sections += ["## Teacher", SAYS_OTHERWISE]
    if contents.rules:
        sections += ["## Rules", _list({rule.replace("_", " "): words for rule, words in contents.rules.items()})]
    front = yaml.safe_dump(top, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _describe(teacher: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a teacher, in words."""
    values = {words: teacher[name] for name, words in WORDS.items() if name in teacher}
    if "instruction_column" in teacher:
        values.pop(WORDS["instruction"], None)
    if "dollars" in teacher:
        values[WORDS["dollars"]] = format_dollars(teacher["dollars"])
    if "gpu_hours" in teacher:
        values[WORDS["gpu_hours"]] = f"{teacher['gpu_hours']:.2f}"
    return values


def _list(values: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {_write(value)}" for name, value in values.items())


def _write(value: Any) -> str:
    """Return a value on one line."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else " ".join(str(value).split())
