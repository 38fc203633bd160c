"""Write a scored output as a ranking or as the training file that it was: `python -m jobs.export SCORED --format FORMAT`."""

from collections.abc import Sequence
from typing import Any

from rerank_actor.bitext.job import refuse_root
from rerank_actor.commands.command_line import Parser
from rerank_actor.errors import InputError, JobError
from rerank_actor.inputs.training import TRAINING_FORMATS
from rerank_actor.outputs.export import FORMATS, SPACES, ExportSpec, export_scores
from rerank_actor.outputs.scored import open_scored
from rerank_actor.outputs.training.export import export_training, find_documents
from rerank_actor.progress import say
from rerank_actor.storage.uri import normalize_uri


def export(arguments: Sequence[str] | None = None) -> int:
    """Export a scored output and return 0."""
    parser = Parser(
        "export",
        "Write a scored output as a ranking for evaluation, the best candidate of each query first (by logit); or the rows "
        "of a scored training file as they came, with the scores where the trainer reads them.",
        "scores --format trec --output run.trec",
        "scores --format flagembedding --output train.jsonl",
    )
    parser.add_argument(
        "scored", nargs="?", metavar="SCORED", help="the --output of jobs.score, local, s3://, gs:// or az://"
    )
    parser.add_argument("--scored", dest="scored_flag", metavar="URI", help="the same as a flag")
    parser.add_argument(
        "--format",
        required=True,
        choices=tuple(dict.fromkeys((*FORMATS, *TRAINING_FORMATS))),
        metavar="FORMAT",
        help="what to write: trec, tevatron (a ranklist), mteb-predictions; or of a scored training file its rows: "
        "flagembedding, tevatron, tuples, msmarco-hard-negatives",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file to write, local, s3://, gs:// or az://, also .gz (default: standard output)",
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
    target = normalize_uri(target) if target not in (None, "-") else None
    if options["format"] not in FORMATS or find_documents(open_scored(scored)):
        return _export_rows(scored, target, options)
    result = export_scores(
        ExportSpec(
            scored=scored,
            target=target,
            **options,
        )
    )
    left_out = f"; left out {result.unscored:,} without a score" if result.unscored else ""
    left_out += f"; {result.doubled:,} that were there twice" if result.doubled else ""
    left_out += f"; {result.added:,} that --qrels of the scoring job added" if result.added else ""
    say(f"{result.queries:,} queries, {result.candidates:,} candidates{left_out}")
    return 0


def _export_rows(scored: str, target: str | None, options: dict[str, Any]) -> int:
    """Write the rows of a scored training file and return 0."""
    if options["format"] not in TRAINING_FORMATS:
        raise InputError(
            f"{scored}: holds rows of a training file, of which there is no ranking; --format {', '.join(TRAINING_FORMATS)} "
            "writes them back with their scores",
            uri=scored,
        )
    output = open_scored(scored)
    if not options["partial"]:
        output.refuse_incomplete("", "run the job again, or export what is there with --allow-incomplete")
    result = export_training(output, options["format"], options["space"], target)
    left_out = [
        (result.left_out_documents, "documents without a score"),
        (result.left_out_rows, "rows without a scored positive or with a document that cannot be left out"),
    ]
    shown = "".join(f"; left out {count:,} {what}" for count, what in left_out if count)
    say(f"{result.rows:,} rows, {result.documents:,} documents{shown}")
    return 0


def _spell_space(value: str) -> str:
    return "score" if value == "probability" else value  # as the selection calls it
