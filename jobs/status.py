"""Say how far a job is: `python -m jobs.status OUTPUT`. Reads the output alone; works while a run is at work."""

from collections.abc import Sequence

from jobs.command_line import Parser, run_command
from rerank_actor.output import Output, list_outputs
from rerank_actor.status import print_status, print_statuses, read_status
from rerank_actor.storage import normalize_uri


def status(arguments: Sequence[str] | None = None) -> int:
    """Print the status of an output folder and return 0."""
    parser = Parser(prog="python -m jobs.status", description="Say how far a job is, how fast, and which units failed.")
    parser.add_argument("output", metavar="OUTPUT", help="the job's --output, local or s3://")
    parser.add_argument("--json", action="store_true", help="print JSON")
    found = parser.parse(arguments)
    uri = normalize_uri(found.output)
    outputs = list_outputs(uri)
    if outputs == [uri]:
        print_status(read_status(uri), as_json=found.json)
    else:  # of translation pairs: those that are begun
        begun = [output for output in outputs if Output(output).load_plan() is not None]
        print_statuses([read_status(output) for output in begun], as_json=found.json)
    return 0


if __name__ == "__main__":
    run_command(status)
