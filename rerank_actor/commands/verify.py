"""Check an output: `python -m jobs.verify OUTPUT`. Exit code 0 when every planned row is there exactly once, else 1."""

from collections.abc import Sequence

from rerank_actor.bitext.job import list_outputs
from rerank_actor.bitext.selection.output import SelectionStatus, check_delivered, read_selection_status
from rerank_actor.commands.command_line import EXIT_FAILED, Parser, add_job_flags
from rerank_actor.errors import JobError, show
from rerank_actor.evaluation.rescore import Rescored, RescoreSettings, rescore
from rerank_actor.job_file import check_job
from rerank_actor.mining.output import check_mined, is_mined
from rerank_actor.outputs.compact import check_compacted, is_compacted
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.verify import Verification, verify_output
from rerank_actor.progress import say
from rerank_actor.retrieval.written import check_retrieved, is_retrieved
from rerank_actor.storage.uri import normalize_uri


def verify(arguments: Sequence[str] | None = None) -> int:
    """Verify an output folder, print what is wrong, and return 0 or 1."""
    parser = Parser(
        "verify",
        "Check that every planned row is present exactly once, that parts are readable and of one fingerprint.",
        "scores",
        "scores --delete-damaged",
        "scores --rescore 0.01 --engine transformers",
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="the --output of scoring, retrieval, mining or jobs.compact, or --deliver, local, s3://, gs:// or az://",
    )
    parser.add_argument(
        "--delete-damaged",
        action="store_true",
        help="delete damaged parts, so that the next run of the job scores them again; refused while a run is writing",
    )
    parser.add_argument(
        "--rescore",
        type=float,
        metavar="SHARE",
        help="score this share of the rows again here, as 0.01, and compare; with the engine, model and dtype of the output "
        "where no flag says otherwise",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the rows of --rescore (default 0)")
    add_job_flags(parser, RescoreSettings)
    options = parser.parse(arguments)
    flags = {name: value for name, value in vars(options).items() if name in RescoreSettings.model_fields}
    if options.rescore is not None and not 0 < options.rescore <= 1:
        raise JobError("--rescore: expected a share of the rows, above 0 and at most 1")
    if flags and options.rescore is None:
        raise JobError(f"--{next(iter(flags)).replace('_', '-')} is for --rescore: give that too")
    settings = check_job(RescoreSettings, flags, flags=flags).normalized()
    uri = normalize_uri(options.output)
    problems = 0
    outputs = list_outputs(uri)
    delivered = read_selection_status(uri) if outputs == [uri] else []
    has_no_plan = outputs == [uri] and not Output(uri).has_plan()
    is_joined = has_no_plan and is_compacted(uri)
    is_found = has_no_plan and not is_joined and is_retrieved(uri)
    is_made_of_scores = delivered or is_joined or is_found or (has_no_plan and is_mined(uri))
    if is_made_of_scores and (options.delete_damaged or options.rescore is not None):
        flag = "--delete-damaged" if options.delete_damaged else "--rescore"
        raise JobError(
            f"{flag}: is for scored outputs, and {uri} holds what was retrieved, mined, selected or joined; leave it out"
        )
    if delivered:
        return _verify_delivered(uri, delivered)
    if is_made_of_scores:
        if not is_joined and not is_found:
            return _print_delivered({uri: check_mined(uri)})
        result = check_compacted(uri) if is_joined else check_retrieved(uri)
        return _print_delivered({uri: result.problems}, result.notes)
    for output in outputs:
        if output != uri:
            print(f"{output}:")
            if Output(output).load_plan() is None:
                print("not begun")
                continue
        result = verify_output(output, delete_damaged=options.delete_damaged, report=say)
        _print_result(result)
        problems += len(result.problems)
        if options.rescore is not None:
            rescored = rescore(output, options.rescore, options.seed, settings)
            _print_rescored(rescored)
            problems += not rescored.is_right
    return EXIT_FAILED if problems else 0


def _verify_delivered(uri: str, delivered: list[SelectionStatus]) -> int:
    """Check the files that were selected into a folder, print what is wrong, and return 0 or 1."""
    return _print_delivered({status.name: check_delivered(uri, status) for status in delivered})


def _print_delivered(problems_by_name: dict[str, list[str]], notes: Sequence[str] = ()) -> int:
    for name, problems in problems_by_name.items():
        told = [*problems, *notes] or [f"{name}: right, its files are those that were written"]
        print("\n".join(map(show, told)))
    return EXIT_FAILED if any(problems_by_name.values()) else 0


def _print_rescored(result: Rescored) -> None:
    verdict = "equal within the noise" if result.is_right else "not those of this model"
    differing = f", {result.differing:,} pairs beyond that" if result.differing else ""
    differing += (
        f", {result.unlike:,} pairs with a score in one place and an error in the other" if result.unlike else ""
    )
    where = f"; the first: {', '.join(result.places)}" if result.places else ""
    print(
        f"scored again: {result.rows:,} of {result.num_rows:,} rows, {result.pairs:,} pairs, by {result.engine}: {verdict}; "
        f"largest difference of logits {result.largest:.3g}, allowed {result.allowed:.3g}{differing}{where}"
    )


def _print_result(result: Verification) -> None:
    for problem in (*result.problems, *result.notes):
        print(show(problem))
    verdict = "not right" if result.problems else "right"
    passed = f"{result.passed:,} rows passed through, " if result.passed else ""
    deleted = f", {result.deleted:,} damaged parts deleted" if result.deleted else ""
    print(
        f"{verdict}: {result.rows:,} rows in {result.units:,} units, {result.scored:,} scores, {result.errors:,} errors, "
        f"{passed}{len(result.problems):,} problems{deleted}"
    )
    untold = result.sound - result.compared
    if untold:
        print(
            f"{untold:,} parts were written without a digest of their rows, so that a value that was changed may not be found"
        )
