"""Building a report: facts, rows and page in one go, and where it is written."""

from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.price import Price
from rerank_actor.outputs.report.facts import gather_facts
from rerank_actor.outputs.report.page import render_report
from rerank_actor.outputs.report.rows import sample_rows


def build_report(uri: str, price: Price | None = None) -> str:
    """Return the report of an output folder as HTML.

    Args:
        uri: the folder.
        price: of a GPU hour; None takes the job's own.

    Raises:
        InputError: there is no job.
        JobError, StorageError: the folder cannot be read.
    """
    facts = gather_facts(uri, price)
    return render_report(facts, sample_rows(facts))


def write_report(output: Output) -> str:
    """Write the report of a run that ends into its output's own folder, and return where it is.

    Raises:
        RerankError: the folder cannot be read or written to.
    """
    facts = gather_facts(output.uri, running=False)
    output.write_own("report.html", render_report(facts, sample_rows(facts)).encode())
    return output.at("report.html")
