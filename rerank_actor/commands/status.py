"""Say how far a job is: `python -m jobs.status OUTPUT`. Reads the output alone; works while a run is at work."""

import json
from collections.abc import Sequence

from rerank_actor.bitext.job import list_outputs
from rerank_actor.bitext.selection.output import SelectionStatus, read_selection_status
from rerank_actor.bitext.selection.report import OVERVIEW, list_overview, print_table
from rerank_actor.commands.command_line import Parser
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.status import print_status, print_statuses, read_status
from rerank_actor.storage.uri import normalize_uri


def status(arguments: Sequence[str] | None = None) -> int:
    """Print the status of an output folder and return 0."""
    parser = Parser(
        "status",
        "Say how far a job is, how fast, and which units failed.",
        "scores",
        "scores --json",
    )
    parser.add_argument(
        "output", metavar="OUTPUT", help="the job's --output, or --deliver, local, s3://, gs:// or az://"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse(arguments)
    uri = normalize_uri(options.output)
    outputs = list_outputs(uri)
    if outputs == [uri] and (delivered := read_selection_status(uri)):
        _print_delivered(uri, delivered, as_json=options.json)
    elif outputs == [uri]:
        print_status(read_status(uri), as_json=options.json)
    else:  # of translation pairs: those that are begun
        begun = [output for output in outputs if Output(output).load_plan() is not None]
        print_statuses([read_status(output) for output in begun], as_json=options.json)
    return 0


def _print_delivered(uri: str, delivered: list[SelectionStatus], *, as_json: bool) -> None:
    """Print what was selected into a folder, and what has not come to its end."""
    states = [{"lang_pair": item.name, "state": "complete" if item.numbers else "not complete"} for item in delivered]
    if as_json:
        whole = [{**state, **(item.numbers or {})} for state, item in zip(states, delivered, strict=True)]
        print(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    if numbers := [item.numbers for item in delivered if item.numbers]:
        print_table(f"selected into {uri}", OVERVIEW, list_overview(numbers))
    for state in states:
        if state["state"] != "complete":
            print(f"{state['lang_pair']}: not complete; the same command goes on with it")
