"""The console script: `rerank COMMAND ...`, which is `python -m jobs.COMMAND ...` from any folder.

Takes the first argument as the command's name, gives the rest to it. Loads only the command that is called.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from rerank_actor import __version__
from rerank_actor.commands.command_line import CONSOLE_SCRIPT, EXIT_BAD_JOB, run_command
from rerank_actor.job_file import suggest
from rerank_actor.progress import say

COMMANDS = {
    "retrieve": "find candidates of queries in a corpus by an embedding model",
    "score": "score query-document pairs; the same command again resumes",
    "plan": "say what a job would take in GPU hours and dollars",
    "status": "say how far a job is, from its output alone",
    "verify": "check that every planned row is there exactly once",
    "report": "write an output's report anew",
    "compact": "join an output's parts into few files",
    "export": "write scores as a TREC run or in another tool's format",
    "evaluate": "say how well scores rank, by judgements",
    "mine": "make training data from scores",
    "publish": "put scores or training data on the Hugging Face hub",
    "bitext": "score translation pairs in both directions",
    "select": "make a parallel corpus from scored translation pairs",
    "model": "say what a model is and how it would be run, before it scores",
    "tasks": "list the instructions of well-known tasks",
    "cluster": "check a file that sets up a cluster",
    "demo": "score sample pairs with a small model",
    "benchmark": "compare the job with other tools",
}


def main() -> NoReturn:
    """Run the command that the command line names, and end this process with its exit code."""
    run_command(lambda: call_console(sys.argv[1:]))


def call_console(arguments: Sequence[str]) -> int:
    """Call a command by its name and return its exit code; without a name list the commands."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        _print_commands()
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        hint = suggest(name, COMMANDS)
        say(f"error: unknown command {name}{hint}; see {CONSOLE_SCRIPT} --help")
        return EXIT_BAD_JOB
    module = importlib.import_module(f"rerank_actor.commands.{name}")
    return int(getattr(module, name)(rest))


def _print_commands() -> None:
    print(f"usage: {CONSOLE_SCRIPT} COMMAND [flags]; {CONSOLE_SCRIPT} COMMAND --help lists a command's flags\n")
    for name, use in COMMANDS.items():
        print(f"  {name:10} {use}")
    print(f"\n  {CONSOLE_SCRIPT} --version prints {__version__}")
