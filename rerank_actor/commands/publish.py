"""Publish an output on the Hugging Face hub: `python -m jobs.publish OUTPUT --to OWNER/NAME`."""

from collections.abc import Sequence

from rerank_actor.bitext.job import refuse_root
from rerank_actor.commands.command_line import Parser
from rerank_actor.progress import LineReporter, say
from rerank_actor.publishing.publish import PublishSpec, prepare
from rerank_actor.publishing.publish import publish as publish_output
from rerank_actor.storage.uri import normalize_uri


def make_parser() -> Parser:
    """Return the parser of publishing."""
    parser = Parser(
        "publish",
        "Publish a scored output, one joined by jobs.compact, or a mined one as a dataset on the Hugging Face hub, with a card "
        "that says what made it. It has to be complete, and its files as they were written. Exit codes: 0 published, 1 the hub "
        "did not answer, 2 no token or not complete, 3 the repository holds other data.",
        "mined --to owner/name",
        "mined --to owner/name --dry-run",
    )
    parser.add_argument("output", metavar="OUTPUT", help="the --output of scoring or mining, local or s3://")
    parser.add_argument(
        "--to", required=True, metavar="OWNER/NAME", help="dataset repository, created where there is none"
    )
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="branch to publish on (default: main)")
    parser.add_argument("--private", action="store_true", help="create the repository private")
    parser.add_argument("--license", default="unknown", metavar="NAME", help="license, by the hub's list (cc-by-4.0)")
    parser.add_argument("--replace", action="store_true", help="delete what the repository holds of other data")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the card and the list of files, and touch nothing"
    )
    return parser


def publish(arguments: Sequence[str] | None = None) -> int:
    """Publish an output, or print what would be published, and return the exit code."""
    options = make_parser().parse(arguments)
    spec = PublishSpec(
        output=normalize_uri(options.output),
        repository=options.to,
        branch=options.revision,
        private=options.private,
        license_name=options.license,
        replace=options.replace,
    )
    refuse_root(spec.output)
    if options.dry_run:
        contents, card = prepare(spec)
        print(card)
        for name, item in contents.files.items():
            print(f"{item.size:>15,}  {name}")
        say(f"dry run: {len(contents.files):,} files, {contents.num_bytes:,} bytes; nothing was sent")
        return 0
    print(publish_output(spec, LineReporter()))
    return 0
