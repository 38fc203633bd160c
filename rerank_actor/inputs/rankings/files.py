"""Retrieval runs: files of retrieval with a line for each candidate of a query, as shards of pairs of ids.

TREC runs (query, Q0, document, rank, score, tag; blanks between), Tevatron's ranklists (query, document, score; tabs), MS
MARCO's (query, document, rank; 1 is the best) and qrels (BEIR's query-id, corpus-id, score with a header, or TREC's query,
iteration, document, relevance); and MTEB's predictions, of which a candidate is a row as elsewhere a line is. With `top_k`
only the best of each query are rows, by score, then by rank and by place; the lines of a query must then stand together.
Memory is bounded by one query. Knows nothing of texts, plans or Ray.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from rerank_actor.errors import InputError
from rerank_actor.inputs.rankings.lines import (
    BEIR_HEADER,
    COLUMNS,
    QrelsLayout,
    describe_fault,
    find_layout,
    parse_line,
    split_line,
)
from rerank_actor.inputs.rankings.predictions import iterate_predictions
from rerank_actor.inputs.rows import LIMITS, Block, add_location
from rerank_actor.inputs.text import NOT_UNICODE, Record, TextFile, iterate_records
from rerank_actor.storage.utf8 import is_unicode

_NOT_CUT = {False: "--top-k", True: "--format mteb-predictions"}


@dataclass(frozen=True)
class RankingFile:
    """A ranking as it was listed, and how it is to be read.

    Attributes:
        uri, size, etag: the object.
        kind, compression: its format.
        top_k: candidates of each query at most.
        line_bytes: of a line at most.
        any_header: whether any first line of qrels that names columns is left out, as of judgements. Rows of a plan are
            counted without BEIR's header alone, and what else stands there is a row with its reason.
    """

    uri: str
    size: int | None
    etag: str
    kind: str
    compression: str = ""
    top_k: int | None = None
    line_bytes: int = LIMITS.line_bytes
    any_header: bool = False

    @property
    def place(self) -> str:
        """The file, for errors, with the flag of judgements."""
        return f"--qrels {self.uri}" if self.any_header else self.uri

    @property
    def text(self) -> TextFile:
        """The file as one of bare lines."""
        return TextFile(self.uri, self.size, self.etag, "lines", self.compression, line_bytes=self.line_bytes)


@dataclass(frozen=True)
class RankingLine:
    """A line that is a row.

    Attributes:
        start, end: its first byte in the uncompressed text, and the byte after it.
        number: from 1, counted from where reading began.
        values: by column; None where it is broken.
        fault: why it is broken.
    """

    start: int
    end: int
    number: int
    values: dict[str, Any] | None
    fault: str | None = None


def scan_ranking(file: RankingFile, block_rows: int, break_at: int) -> list[Block]:
    """Find the rows of a ranking and places where a unit may begin.

    Args:
        file: the ranking.
        block_rows: rows of a block, from which on it ends at the next place where that is possible.
        break_at: row at which a block begins whatever else.

    Returns:
        The blocks, none of which may be cut.

    Raises:
        InputError: with `top_k`, the lines of a query do not stand together, or `break_at` is inside of a query.
        StorageError, JobError: it cannot be reached.
    """
    blocks: list[Block] = []
    rows = start = line = num_rows = end = 0
    for group in _iterate_groups(file, 0, check=True):
        if num_rows < break_at < num_rows + len(group):
            raise InputError(
                f"{file.uri}: --limit ended within the candidates of a query, where {_NOT_CUT[file.top_k is None]} cannot go "
                "on; give the larger --limit an --output of its own",
                uri=file.uri,
            )
        if group and rows and (rows >= block_rows or num_rows == break_at):
            blocks.append(Block(rows, group[0].start - start, start, line, is_divisible=False))
            rows = 0
        if group and not rows:
            start, line = group[0].start, group[0].number
        rows += len(group)
        num_rows += len(group)
        end = group[-1].end if group else end
    if rows:
        blocks.append(Block(rows, end - start, start, line, is_divisible=False))
    return blocks


def read_ranking(
    file: RankingFile, byte_start: int, num_rows: int, first_line: int
) -> tuple[pa.Table, list[str | None]]:
    """Read rows of a ranking from the first byte of a block on, which is that of line `first_line`.

    Returns:
        The rows, in order of the file, and for each why it is broken, or None.

    Raises:
        StorageError, JobError: it cannot be reached.
    """
    lines: list[RankingLine] = []
    for group in _iterate_groups(file, byte_start, check=False):
        lines += group
        if len(lines) >= num_rows:
            break
    lines = lines[:num_rows]
    columns = {
        name: pa.array([None if line.values is None else line.values[name] for line in lines], kind)
        for name, kind in COLUMNS[file.kind].items()
    }
    faults = [line.fault and add_location(line.fault, file.uri, first_line + line.number - 1) for line in lines]
    return pa.table(columns), faults


def _iterate_groups(file: RankingFile, start: int, *, check: bool) -> Iterator[list[RankingLine]]:
    """Yield lines that are rows: each by itself, or with `top_k` and of predictions those of a query together."""
    if file.kind == "mteb-predictions":
        for candidates in _iterate_queries(file, start, check=check):
            yield candidates if file.top_k is None else _choose(candidates, file.top_k)
        return
    if file.top_k is None:
        for line in iterate_ranking(file, start):
            yield [line]
        return
    done: set[int] = set()
    group: list[RankingLine] = []
    query: str | None = None
    for line in iterate_ranking(file, start):
        name: str | None = line.values["query_id"] if line.values is not None else query
        if name != query and query is not None:
            yield _choose(group, file.top_k)
            group = []
            if check:
                done.add(_hash(query))
                if name is not None and _hash(name) in done:
                    raise InputError(
                        f"{file.uri}: line {line.number} is of a query whose other lines stand apart from it, so that --top-k "
                        "cannot tell its best; sort the file by query",
                        uri=file.uri,
                        row=line.number,
                    )
        query = name
        group.append(line)
    if group:
        yield _choose(group, file.top_k)


def _iterate_queries(file: RankingFile, start: int, *, check: bool) -> Iterator[list[RankingLine]]:
    """Yield the candidates of each query of predictions, which count as lines."""
    done: set[int] = set()
    number = 1
    for begin, end, query, candidates in iterate_predictions(file.text, start):
        if check and (mark := _hash(query)) in done:
            raise InputError(f"{file.uri}: query {query!r} is there twice; leave one of them", uri=file.uri)
        elif check:
            done.add(mark)
        yield [
            RankingLine(begin, end, number + at, {"query_id": query, "document_id": name, "retrieval_score": score})
            for at, (name, score) in enumerate(candidates)
        ]
        number += len(candidates)


def _hash(query: str) -> int:
    return int.from_bytes(hashlib.blake2b(query.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _choose(group: list[RankingLine], top_k: int) -> list[RankingLine]:
    """Return the best lines of a query in order of the file; broken ones stay."""

    def get_key(index: int) -> tuple[float, int, int]:
        values = group[index].values or {}
        score = values.get("retrieval_score", values.get("relevance", 0.0))  # of ranks alone there is none
        return -score, values.get("rank", 0), index

    whole = [index for index, line in enumerate(group) if line.values is not None]
    best = set(sorted(whole, key=get_key)[:top_k])
    return [line for index, line in enumerate(group) if index in best or line.values is None]


def iterate_ranking(file: RankingFile, start: int = 0) -> Iterator[RankingLine]:
    """Yield the lines of a ranking from a byte on, without blank ones and the header.

    Raises:
        As `text.iterate_records`.
        InputError: it is of qrels, and the first line is neither a judgement nor names its columns.
    """
    layout, header_at = _find_qrels_layout(file) if file.kind == "qrels" else (None, None)
    for record in iterate_records(file.text, start):
        text = _decode(record)
        is_header = record.start == header_at
        if not text.strip() or (is_header and (file.any_header or split_line("qrels", text) == BEIR_HEADER)):
            continue
        values = parse_line(file.kind, text, layout) if is_unicode(text) and not is_header else None
        fault = (
            None if values is not None else describe_fault(file.kind, text, layout) if is_unicode(text) else NOT_UNICODE
        )
        yield RankingLine(record.start, record.end, record.line, values, fault)


def _find_qrels_layout(file: RankingFile) -> tuple[QrelsLayout | None, int | None]:
    """Return where things stand in a file of qrels, and the first byte of the header."""
    for record in iterate_records(file.text, 0):
        text = _decode(record)
        if text.strip():
            layout = find_layout(text, file.place)
            return layout, record.start if layout.has_header else None
    return None, None


def _decode(record: Record) -> str:
    return cast(bytes, record.content).decode("utf-8", "surrogateescape")
