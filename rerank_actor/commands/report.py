"""Make the report of a job: `python -m jobs.report OUTPUT`. Reads the output alone; works while a run is at work."""

import sys
from collections.abc import Sequence

from rerank_actor import storage
from rerank_actor.bitext.job import list_outputs
from rerank_actor.commands.command_line import Parser
from rerank_actor.errors import JobError
from rerank_actor.job_file import split_names
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.price import find_price
from rerank_actor.outputs.report.build import build_report
from rerank_actor.outputs.report.quality import Asked


def report(arguments: Sequence[str] | None = None) -> int:
    """Write the report, print where it is, and return 0."""
    parser = Parser(
        "report",
        "Make one HTML file of what ran, what it cost and what came out, with the texts of a few rows unless --examples is 0.",
        "scores",
        "scores --by language --compare scores-before",
    )
    parser.add_argument("output", metavar="OUTPUT", help="the job's --output, local, s3://, gs:// or az://")
    parser.add_argument("--to", metavar="FILE", help="where to write it (default OUTPUT/_job/report.html); - prints it")
    parser.add_argument("--gpu-type", metavar="NAME", help="GPU that the actors ran on, for its price")
    parser.add_argument("--gpu-price", metavar="F", type=float, help="dollars an hour for one GPU")
    parser.add_argument("--examples", metavar="N", type=int, help="rows with their texts (default: as the job says)")
    parser.add_argument(
        "--label-column", metavar="NAME", help="column that says what is relevant (default: label or the like)"
    )
    parser.add_argument(
        "--positive-labels", metavar="NAMES", default="", help="its labels that are relevant, with commas"
    )
    parser.add_argument(
        "--by",
        metavar="NAME",
        nargs="+",
        default=[],
        help="columns to break scores down by (default: dataset or the like)",
    )
    parser.add_argument("--compare", metavar="URI", help="earlier output to compare this one with")
    options = parser.parse(arguments)
    asked = Asked(options.label_column, tuple(options.by), tuple(split_names(options.positive_labels)))
    earlier = storage.normalize_uri(options.compare) if options.compare else None
    uri, price = storage.normalize_uri(options.output), find_price(options.gpu_type, options.gpu_price)
    outputs = list_outputs(uri)
    if outputs != [uri]:  # of translation pairs: those that are begun
        outputs = [output for output in outputs if Output(output).load_plan() is not None]
        if options.to:
            shown = ", ".join(output.rpartition("/")[2] for output in outputs[:5])
            raise JobError(f"--to takes one report, and {uri} holds the outputs of language pairs: name one ({shown})")
    for output in outputs:
        page = build_report(output, price, asked=asked, examples=options.examples, earlier=earlier)
        if options.to == "-":
            sys.stdout.write(page)
            continue
        target = storage.normalize_uri(options.to) if options.to else Output(output).at("report.html")
        storage.write_bytes(target, page.encode())
        print(target)
    return 0
