"""Lines of rankings: the formats, the columns of each, and a line as values.

Takes a line of a TREC run, a Tevatron ranklist, MS MARCO's ranks or qrels, and gives its columns, or None for what is no line
of the format. Scores are finite numbers. Knows nothing of files.
"""

import math
from typing import Any, Literal, get_args

import pyarrow as pa

RankingFormat = Literal["trec", "tevatron", "msmarco", "qrels"]
RANKING_FORMATS: tuple[str, ...] = get_args(RankingFormat)

_IDS = {"query_id": pa.string(), "document_id": pa.string()}
COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "trec": {**_IDS, "rank": pa.int64(), "retrieval_score": pa.float64(), "tag": pa.string()},
    "tevatron": {**_IDS, "retrieval_score": pa.float64()},
    "msmarco": {**_IDS, "rank": pa.int64()},
    "qrels": {**_IDS, "relevance": pa.float64()},
}
THIRD_COLUMNS = {"tevatron": "retrieval_score", "msmarco": "rank", "qrels": "relevance"}
BEIR_HEADER = ["query-id", "corpus-id", "score"]
BROKEN = {
    "trec": "line is not of a TREC run (query, Q0, document, rank, score, tag), ids without quotes and a finite score",
    "tevatron": "line is not of a Tevatron ranklist (query, document, score), ids without quotes and a finite score",
    "msmarco": "line is not of MS MARCO's (query, document, rank), ids without quotes",
    "qrels": "line is not of qrels (query, document, score; or query, iteration, document, relevance), ids without quotes",
}


def parse_line(kind: str, text: str) -> dict[str, Any] | None:
    """Return the columns of a line, None where it is none of this format."""
    fields = split_line(kind, text)
    try:
        if kind == "trec":
            query, _, document, rank, score, tag = fields
            if _is_quoted(query) or _is_quoted(document):
                return None
            return {
                "query_id": query,
                "document_id": document,
                "rank": int(rank),
                "retrieval_score": _read_number(score),
                "tag": tag,
            }
        if kind == "qrels" and len(fields) == 4:
            fields = [fields[0], *fields[2:]]
        query, document, last = fields
        number = int(last) if kind == "msmarco" else _read_number(last)
    except ValueError:
        return None
    if not query or not document or _is_quoted(query) or _is_quoted(document):
        return None
    return {
        "query_id": query,
        "document_id": document,
        THIRD_COLUMNS[kind]: number,
    }


def _read_number(text: str) -> float:
    """Return a finite number; by NaN or infinity no candidates can be put in order."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _is_quoted(name: str) -> bool:
    """Whether an id is in quotes, as a CSV writer puts them, so that no other file has it so."""
    return len(name) > 1 and name[0] == name[-1] == '"'


def split_line(kind: str, text: str) -> list[str]:
    """Return the fields of a line, between tabs where it has any and its format may have them, else between blanks."""
    fields = text.split("\t") if kind != "trec" and "\t" in text else text.split()
    return [field.strip() for field in fields]
