"""Presets: instructions of well-known tasks and where they come from, from one data file.

Knows nothing of jobs or prompts.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import yaml


@dataclass(frozen=True)
class Preset:
    """One task: its instruction, the work that published it, and what it is for."""

    instruction: str
    source: str
    use: str


@lru_cache(maxsize=1)
def load_presets() -> dict[str, Preset]:
    """Return the presets by name, in the order of the data file."""
    data = yaml.safe_load(resources.files("rerank_actor").joinpath("data/tasks.yaml").read_text(encoding="utf-8"))
    sources = data["sources"]
    return {
        name: Preset(task["instruction"], sources[task["source"]], task["for"]) for name, task in data["tasks"].items()
    }


DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
