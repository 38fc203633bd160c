"""Write a scored output as a ranking: `python -m jobs.export SCORED --format trec|tevatron|mteb-predictions`."""

from collections.abc import Sequence

from rerank_actor.bitext.job import refuse_root
from rerank_actor.commands.command_line import Parser
from rerank_actor.errors import JobError
from rerank_actor.outputs.export import FORMATS, SPACES, ExportSpec, export_scores
from rerank_actor.progress import say
from rerank_actor.storage.uri import normalize_uri


def export(arguments: Sequence[str] | None = None) -> int:
    """Export a scored output and return 0."""
    parser = Parser(
        "export",
        "Write a scored output as a ranking for evaluation, the best candidate of each query first (by logit).",
        "scores --format trec --output run.trec",
    )
    parser.add_argument("scored", nargs="?", metavar="SCORED", help="the --output of jobs.score, local or s3://")
    parser.add_argument("--scored", dest="scored_flag", metavar="URI", help="the same as a flag")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument(
        "--output", metavar="FILE", help="file to write, local or s3://, also .gz (default: standard output)"
    )
    parser.add_argument("--query-id-column", metavar="NAME", help="column with the query's id (default: the job's)")
    parser.add_argument(
        "--document-id-column", metavar="NAME", help="column with the document's id (default: the job's)"
    )
    parser.add_argument(
        "--space", type=_spell_space, choices=SPACES, default="logit", help="the number to write (default logit)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="candidates of each query at most")
    parser.add_argument("--tag", default="rerank-actor", help="last field of a TREC run (default rerank-actor)")
    parser.add_argument("--subset", default="default", help="subset of MTEB's predictions (default default)")
    parser.add_argument("--split", default="test", help="split of MTEB's predictions (default test)")
    parser.add_argument("--allow-incomplete", action="store_true", help="export an output that is not complete")
    options = vars(parser.parse(arguments))
    options["partial"] = options.pop("allow_incomplete")
    flag, position = options.pop("scored_flag"), options.pop("scored")
    if (flag is None) == (position is None):
        raise JobError("name one scored output, as SCORED or with --scored")
    if options["format"] == "trec" and options["tag"].split() != [options["tag"]]:
        raise JobError("--tag: a field of a TREC run has no blanks and is not empty")
    if options["top_k"] is not None and options["top_k"] < 1:
        raise JobError("--top-k: expected a whole number from 1 on")
    target, scored = options.pop("output"), normalize_uri(flag or position)
    refuse_root(scored)
    result = export_scores(
        ExportSpec(
            scored=scored,
            target=normalize_uri(target) if target not in (None, "-") else None,
            **options,
        )
    )
    left_out = f"; left out {result.unscored:,} without a score" if result.unscored else ""
    left_out += f"; {result.doubled:,} that were there twice" if result.doubled else ""
    say(f"{result.queries:,} queries, {result.candidates:,} candidates{left_out}")
    return 0


def _spell_space(value: str) -> str:
    return "score" if value == "probability" else value  # as the selection calls it
