"""Telling a ranking's format by its first lines.

Takes a text without a name that says what it is; gives the format that its head shows, None where it shows none, and refuses
what may be two. Knows nothing of other formats than rankings.
"""

import re

from rerank_actor.errors import InputError
from rerank_actor.inputs.rankings.lines import BEIR_HEADER, parse_line, split_line
from rerank_actor.inputs.rankings.predictions import META
from rerank_actor.inputs.syntax.quoted import BYTE_ORDER_MARK
from rerank_actor.inputs.text import TextFile, open_text

HEAD_BYTES = 64 * 1024


def sniff_format(uri: str, size: int, compression: str) -> str | None:
    """Return the format that the first lines of a text show; None where they show none.

    Raises:
        InputError: they may be a ranklist with scores as well as ranks or ids, or one of four columns as well as qrels.
    """
    with open_text(TextFile(uri, size, "", "lines", compression)) as stream:
        head = stream.read(HEAD_BYTES)
    if re.match(rb"\s*\{\s*" + META + rb"\s*:", head):
        return "mteb-predictions"
    text = head.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if len(head) == HEAD_BYTES and len(lines) > 1:
        lines.pop()  # which may be cut
    if not lines:
        return None
    fields = lines[0].split()
    if len(fields) == 6 and parse_line("trec", lines[0]):
        return "trec"
    if len(split_line("qrels", lines[0])) == 4 and parse_line("qrels", lines[0]):
        return _tell_four_fields(uri, lines)
    if (
        split_line("qrels", lines[0]) == BEIR_HEADER
        and len(lines) > 1
        and len(lines[1].split("\t")) == 3
        and parse_line("qrels", lines[1])
    ):
        return "qrels"
    if len(lines[0].split("\t")) != 3 or not parse_line("tevatron", lines[0]):
        return None
    if all(line.rpartition("\t")[2].strip().isdecimal() for line in lines):
        raise InputError(
            f"{uri}: its third column holds whole numbers alone, which may be scores, ranks or ids; --format msmarco reads "
            "them as ranks, where 1 is the best (MS MARCO's qid, pid, rank), --format tevatron as scores, where the highest is",
            uri=uri,
        )
    return "tevatron"


def _tell_four_fields(uri: str, lines: list[str]) -> str | None:
    """Tell TREC's qrels from a ranking of four columns; lines of neither kind are left to reading."""
    rows = [split_line("qrels", line) for line in lines if parse_line("qrels", line)]
    rows = [row for row in rows if len(row) == 4]
    constants = {row[1] for row in rows}
    if constants in ({"0"}, {"Q0"}) and all(row[3].removeprefix("-").isdecimal() for row in rows):
        return "qrels"
    has_ranks = "\t" in lines[0] and all(row[2].isdecimal() for row in rows)
    if constants.isdisjoint(("0", "Q0")) and not has_ranks:
        return None
    raise InputError(
        f"{uri}: its lines have four fields that may be TREC's qrels (query, iteration, document, relevance) or a ranking, as "
        "ColBERT's (query, document, rank, score); --format qrels reads them as qrels; of a ranking write query, document and "
        "score alone and give --format tevatron, or with --format tsv name its columns as in --columns "
        "query_id,document_id,rank,retrieval_score",
        uri=uri,
    )
