"""Lines of rankings: the formats, the columns of each, and a line as values.

Takes a line of a TREC run, a Tevatron ranklist, MS MARCO's ranks or qrels, and gives its columns, or None for what is no line
of the format. Scores are finite numbers. The first line of qrels says where things stand in all of them (`QrelsLayout`), and
names of columns are the same wherever qrels are. Knows nothing of files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from rerank_actor.errors import InputError
from rerank_actor.inputs.formats import describe_separator
from rerank_actor.inputs.text import is_number

RankingFormat = Literal["trec", "tevatron", "msmarco", "qrels", "mteb-predictions"]
RANKING_FORMATS: tuple[str, ...] = get_args(RankingFormat)

_IDS = {"query_id": pa.string(), "document_id": pa.string()}
COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "trec": {**_IDS, "rank": pa.int64(), "retrieval_score": pa.float64(), "tag": pa.string()},
    "tevatron": {**_IDS, "retrieval_score": pa.float64()},
    "msmarco": {**_IDS, "rank": pa.int64()},
    "qrels": {**_IDS, "relevance": pa.float64()},
    "mteb-predictions": {**_IDS, "retrieval_score": pa.float64()},
}
THIRD_COLUMNS = {"tevatron": "retrieval_score", "msmarco": "rank", "qrels": "relevance"}
BEIR_HEADER = ["query-id", "corpus-id", "score"]
QUERY_NAMES = ("query-id", "query_id", "qid", "topic_id")
DOCUMENT_NAMES = ("corpus-id", "corpus_id", "document_id", "doc_id", "docid", "docno", "pid", "did")
RELEVANCE_NAMES = ("score", "relevance", "rel", "label", "grade", "relevance_score")
OTHER_NAMES = frozenset({"iteration", "iter", "subtopic"})  # of TREC's second field, which nobody reads
OTHER_WIDTH = "line of qrels has another number of fields than the first"
BROKEN = {
    "trec": "line is not of a TREC run (query, Q0, document, rank, score, tag), ids without quotes and a finite score",
    "tevatron": "line is not of a Tevatron ranklist (query, document, score), ids without quotes and a finite score",
    "msmarco": "line is not of MS MARCO's (query, document, rank), ids without quotes",
    "qrels": "line is not of qrels (query, document, score; or query, iteration, document, relevance), ids without quotes",
}


@dataclass(frozen=True)
class QrelsLayout:
    """Where in a line of qrels things stand.

    Attributes:
        num_fields: of each line.
        query, document: positions of the ids.
        relevance: position of the relevance, None where all are relevant.
        has_header: whether the first line names the columns.
    """

    num_fields: int
    query: int
    document: int
    relevance: int | None
    has_header: bool = False


PLAIN_LAYOUTS = {3: QrelsLayout(3, 0, 1, 2), 4: QrelsLayout(4, 0, 2, 3)}  # BEIR's and TREC's


def find_layout(text: str, place: str) -> QrelsLayout:
    """Tell the layout of qrels by their first line, the names of columns or a judgement.

    Args:
        text: the line.
        place: the file, for errors.

    Raises:
        InputError: it is neither, or does not name one column each of queries, documents and relevance.
    """
    fields = split_line("qrels", text)
    names = [field.lower() for field in fields]
    is_header = not {*names}.isdisjoint(QUERY_NAMES) and not {*names}.isdisjoint(DOCUMENT_NAMES)
    if not is_header and is_number(fields[-1]) and len(fields) in PLAIN_LAYOUTS:
        return PLAIN_LAYOUTS[len(fields)]
    query, document, relevance = choose_qrels_columns(names, place)
    at = None if relevance is None else names.index(relevance)
    return QrelsLayout(len(names), names.index(query), names.index(document), at, has_header=True)


def choose_qrels_columns(names: Sequence[str], place: str) -> tuple[str, str, str | None]:
    """Return the columns of queries, documents and relevance, the last None where nothing but ids is there.

    Raises:
        InputError: one is not there, or there are several.
    """
    wanted = (("queries' ids", QUERY_NAMES), ("documents' ids", DOCUMENT_NAMES), ("relevance", RELEVANCE_NAMES))
    found = [[name for name in names if name in known] for _, known in wanted]
    others = {*names} - {*QUERY_NAMES, *DOCUMENT_NAMES} - OTHER_NAMES
    for (content, known), there in zip(wanted, found, strict=True):
        if len(there) == 1 or (content == "relevance" and not others):
            continue
        problem = f"several columns of {content} ({', '.join(there)})" if there else f"no column of {content}"
        shown = ", ".join(f"`{name}`" for name in names[:20]) or "none"
        raise InputError(
            f"{place}: {problem}; it has {shown}, and exactly one of {', '.join(known)} is wanted; rename them, or leave "
            f"out what is not meant{describe_separator(names)}"
        )
    return found[0][0], found[1][0], found[2][0] if found[2] else None


def parse_line(kind: str, text: str, layout: QrelsLayout | None = None) -> dict[str, Any] | None:
    """Return the columns of a line, None where it is none of this format, or of these qrels."""
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
        if kind == "qrels":
            layout = layout or PLAIN_LAYOUTS.get(len(fields))
            if layout is None or len(fields) != layout.num_fields:
                return None
            relevance = "1" if layout.relevance is None else fields[layout.relevance]
            fields = [fields[layout.query], fields[layout.document], relevance]
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


def describe_fault(kind: str, text: str, layout: QrelsLayout | None) -> str:
    """Return why a line is none of its file."""
    if layout is not None and len(split_line(kind, text)) != layout.num_fields:
        return OTHER_WIDTH
    return BROKEN[kind]


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


def refuse_mixed(formats: Mapping[str, str], top_k: int | None) -> None:
    """Refuse rankings beside anything else, and `--top-k` of what is none.

    Args:
        formats: of each shard, by URI.
        top_k: candidates of each query, None for all.

    Raises:
        InputError: the formats do not go together.
    """
    first = {kind: uri for uri, kind in reversed(list(formats.items()))}
    rankings = [kind for kind in first if kind in RANKING_FORMATS]
    if rankings and len(first) > 1:
        ranking = rankings[0]
        other = next(kind for kind in first if kind != ranking)
        raise InputError(
            f"{first[ranking]} looks like --format {ranking} and {first[other]} like {other}, whose columns differ; score them "
            "apart",
            uri=first[other],
        )
    if top_k is not None and not rankings:
        raise InputError(
            f"--top-k goes with --format {', '.join(RANKING_FORMATS)}, whose lines are candidates of queries"
        )
