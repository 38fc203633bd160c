"""Building a report: facts, rows, quality and page in one go, and where it is written."""

from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.price import Price
from rerank_actor.outputs.report.facts import Facts, gather_facts
from rerank_actor.outputs.report.page import render_report
from rerank_actor.outputs.report.quality import Asked, measure_quality
from rerank_actor.outputs.report.rows import sample_rows


def build_report(
    uri: str,
    price: Price | None = None,
    *,
    asked: Asked | None = None,
    examples: int | None = None,
    earlier: str | None = None,
) -> str:
    """Return the report of an output folder as HTML.

    Args:
        uri: the folder.
        price: of a GPU hour; None takes the job's own.
        asked: columns with labels and to break down by, besides those that are found by their names.
        examples: rows with their texts; None takes the job's own number.
        earlier: output folder to compare it with.

    Raises:
        InputError: there is no job, or no such column.
        JobError, StorageError: the folder cannot be read.
    """
    before = gather_facts(earlier, price) if earlier is not None else None
    return _build(gather_facts(uri, price), asked, examples, before)


def _build(facts: Facts, asked: Asked | None = None, examples: int | None = None, earlier: Facts | None = None) -> str:
    if examples is None:
        examples = int((facts.manifest.get("job") or {}).get("examples") or 0)
    return render_report(facts, sample_rows(facts, examples), measure_quality(facts, asked), earlier)


def write_report(output: Output) -> str:
    """Write the report of a run that ends into its output's own folder, and return where it is.

    Raises:
        RerankError: the folder cannot be read or written to.
    """
    output.write_own("report.html", _build(gather_facts(output.uri, running=False)).encode())
    return output.at("report.html")
