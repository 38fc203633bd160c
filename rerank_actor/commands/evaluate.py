"""Say how well scored outputs rank: `rerank evaluate --scored OUTPUT... --qrels FILE`."""

import json
from collections.abc import Sequence

from rerank_actor import storage
from rerank_actor.commands.command_line import Parser
from rerank_actor.evaluation.evaluate import RETRIEVAL_COLUMN, EvaluationSpec, evaluate_outputs
from rerank_actor.evaluation.measures import KNOWN, parse_measure
from rerank_actor.evaluation.table import make_table, to_record
from rerank_actor.inputs.rankings.qrels import load_judgements
from rerank_actor.progress import say
from rerank_actor.storage.uri import normalize_uri

DEFAULT_MEASURES = ("ndcg@10", "map", "mrr@10", "recall@100")


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write it where asked, and return 0."""
    parser = Parser(
        "evaluate",
        "Say how well scored outputs rank their candidates, by judgements: means over queries with 95 % intervals, "
        "beside the candidates' own order and the best possible order of the same candidates. Measures are those of "
        "pytrec_eval, and FollowIR's p-MRR; ties go by the document's id, descending, as in trec_eval and MTEB.",
        "--scored scores --qrels qrels.tsv",
    )
    parser.add_argument(
        "--scored", nargs="+", required=True, metavar="URI", help="outputs of jobs.score, one for each reranker"
    )
    parser.add_argument("--qrels", required=True, metavar="URI", help="judgements, as of jobs.mine")
    parser.add_argument(
        "--measures",
        nargs="+",
        default=DEFAULT_MEASURES,
        metavar="NAME",
        help=f"{KNOWN} (default {' '.join(DEFAULT_MEASURES)})",
    )
    parser.add_argument("--query-id-column", metavar="NAME", help="column with the query's id (default: the job's)")
    parser.add_argument(
        "--document-id-column", metavar="NAME", help="column with the document's id (default: the job's)"
    )
    parser.add_argument(
        "--retrieval-column",
        default=RETRIEVAL_COLUMN,
        metavar="NAME",
        help=f"column with the score that candidates were retrieved by (default {RETRIEVAL_COLUMN})",
    )
    parser.add_argument(
        "--ignore-identical-ids",
        action="store_true",
        help="leave out candidates with the id of their query, as MTEB for ArguAna",
    )
    parser.add_argument("--allow-incomplete", action="store_true", help="evaluate outputs that are not complete")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals (default 0)")
    parser.add_argument(
        "--output", metavar="URI", help="folder for table.md and evaluation.json with a value for each query"
    )
    options = parser.parse(arguments)
    spec = EvaluationSpec(
        scored=tuple(map(normalize_uri, options.scored)),
        measures=tuple(map(parse_measure, options.measures)),
        query_id_column=options.query_id_column,
        document_id_column=options.document_id_column,
        retrieval_column=options.retrieval_column,
        ignore_identical_ids=options.ignore_identical_ids,
        partial=options.allow_incomplete,
        seed=options.seed,
    )
    result = evaluate_outputs(spec, load_judgements(normalize_uri(options.qrels)))
    table = make_table(result)
    print(table, end="")
    if options.output:
        folder = normalize_uri(options.output)
        storage.write_bytes(storage.join_uri(folder, "table.md"), table.encode())
        record = {"qrels": normalize_uri(options.qrels), "scored": list(spec.scored), **to_record(result)}
        storage.write_bytes(storage.join_uri(folder, "evaluation.json"), json.dumps(record, indent=1).encode())
        say(f"written: {folder}")
    return 0
