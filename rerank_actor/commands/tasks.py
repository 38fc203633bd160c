"""List the tasks that have an instruction of their own: `python -m jobs.tasks`. `jobs.score --task NAME` uses one."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rerank_actor.commands.command_line import Parser
from rerank_actor.engines.instructions import load_presets


def tasks(arguments: Sequence[str] | None = None) -> int:
    """Print name, instruction, use and source of each task, and return 0."""
    parser = Parser(
        "tasks",
        "List the instructions of well-known tasks, with their sources.",
        "--json",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse(arguments)
    presets = load_presets()
    if options.json:
        print(json.dumps({name: asdict(preset) for name, preset in presets.items()}, indent=2, ensure_ascii=False))
        return 0
    for name, preset in presets.items():
        print(f"{name}\n    {preset.instruction}\n    for: {preset.use}\n    source: {preset.source}")
    return 0
