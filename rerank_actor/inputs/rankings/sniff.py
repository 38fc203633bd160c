"""Telling a ranking's format by its first lines.

Takes a text without a name that says what it is; gives the format that its head shows, None where it shows none, and refuses
what may be two. Knows nothing of other formats than rankings.
"""

from rerank_actor.errors import InputError
from rerank_actor.inputs.rankings.lines import BEIR_HEADER, parse_line, split_line
from rerank_actor.inputs.syntax.quoted import BYTE_ORDER_MARK
from rerank_actor.inputs.text import TextFile, open_text

HEAD_BYTES = 64 * 1024


def sniff_format(uri: str, size: int, compression: str) -> str | None:
    """Return the format that the first lines of a text show; None where they show none.

    Raises:
        InputError: they may be a ranklist with scores as well as ranks or ids.
    """
    with open_text(TextFile(uri, size, "", "lines", compression)) as stream:
        head = stream.read(HEAD_BYTES).removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")
    lines = [line for line in head.splitlines() if line.strip()]
    if not lines:
        return None
    fields = lines[0].split()
    if len(fields) == 6 and parse_line("trec", lines[0]):
        return "trec"
    if len(fields) == 4 and fields[1] in ("0", "Q0") and parse_line("qrels", lines[0]):
        return "qrels"
    if (
        split_line("qrels", lines[0]) == BEIR_HEADER
        and len(lines) > 1
        and len(lines[1].split("\t")) == 3
        and parse_line("qrels", lines[1])
    ):
        return "qrels"
    if len(lines[0].split("\t")) != 3 or not parse_line("tevatron", lines[0]):
        return None
    if all(line.rpartition("\t")[2].strip().isdecimal() for line in lines[: None if len(lines) == 1 else -1]):
        raise InputError(
            f"{uri}: its third column holds whole numbers alone, which may be scores, ranks or ids; --format msmarco reads "
            "them as ranks, where 1 is the best (MS MARCO's qid, pid, rank), --format tevatron as scores, where the highest is",
            uri=uri,
        )
    return "tevatron"
