"""Check an output: `python -m jobs.verify OUTPUT`. Exit code 0 when every planned row is there exactly once, else 1."""

from collections.abc import Sequence

from jobs.command_line import EXIT_FAILED, Parser, run_command
from rerank_actor.storage import normalize_uri
from rerank_actor.verify import verify_output


def verify(arguments: Sequence[str] | None = None) -> int:
    """Verify an output folder, print what is wrong, and return 0 or 1."""
    parser = Parser(
        prog="python -m jobs.verify",
        description="Check that every planned row is present exactly once, that parts are readable and of one fingerprint.",
    )
    parser.add_argument("output", metavar="OUTPUT", help="the job's --output, local or s3://")
    found = parser.parse(arguments)
    result = verify_output(normalize_uri(found.output))
    for problem in result.problems:
        print(problem)
    verdict = "not right" if result.problems else "right"
    print(
        f"{verdict}: {result.rows:,} rows in {result.units:,} units, {result.scored:,} scores, {result.errors:,} errors, "
        f"{len(result.problems):,} problems"
    )
    return EXIT_FAILED if result.problems else 0


if __name__ == "__main__":
    run_command(verify)
