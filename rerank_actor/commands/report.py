"""Make the report of a job: `python -m jobs.report OUTPUT`. Reads the output alone; works while a run is at work."""

import sys
from collections.abc import Sequence

from rerank_actor import storage
from rerank_actor.bitext.job import list_outputs
from rerank_actor.commands.command_line import Parser
from rerank_actor.errors import JobError
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.price import find_price
from rerank_actor.outputs.report.build import build_report


def report(arguments: Sequence[str] | None = None) -> int:
    """Write the report, print where it is, and return 0."""
    parser = Parser(
        "report",
        "Make one HTML file of what ran, what it cost and what came out. It names rows by ids, never by texts.",
        "scores",
    )
    parser.add_argument("output", metavar="OUTPUT", help="the job's --output, local, s3://, gs:// or az://")
    parser.add_argument("--to", metavar="FILE", help="where to write it (default OUTPUT/_job/report.html); - prints it")
    parser.add_argument("--gpu-type", metavar="NAME", help="GPU that the actors ran on, for its price")
    parser.add_argument("--gpu-price", metavar="F", type=float, help="dollars an hour for one GPU")
    options = parser.parse(arguments)
    uri, price = storage.normalize_uri(options.output), find_price(options.gpu_type, options.gpu_price)
    outputs = list_outputs(uri)
    if outputs != [uri]:  # of translation pairs: those that are begun
        outputs = [output for output in outputs if Output(output).load_plan() is not None]
        if options.to:
            shown = ", ".join(output.rpartition("/")[2] for output in outputs[:5])
            raise JobError(f"--to takes one report, and {uri} holds the outputs of language pairs: name one ({shown})")
    for output in outputs:
        page = build_report(output, price)
        if options.to == "-":
            sys.stdout.write(page)
            continue
        target = storage.normalize_uri(options.to) if options.to else Output(output).at("report.html")
        storage.write_bytes(target, page.encode())
        print(target)
    return 0
