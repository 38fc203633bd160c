"""Verdicts: what a person or an LLM judge said of pairs, as labels of the mining that follows.

Takes a file with a column `verdict` beside `pair_key`, or beside ids of query and document, as `suspects` writes them; gives
a code for each pair of a table, and which pairs of the file there are. A relevant pair is positive, one that is not relevant
may be negative whatever rule suspects it, an unsure one is neither. Knows nothing of the rules.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import read_batches, refuse_broken
from rerank_actor.inputs.formats import find_format
from rerank_actor.inputs.ids import find_fractions, read_id
from rerank_actor.inputs.pair_key import PAIR_KEY, make_pair_keys
from rerank_actor.inputs.rankings.lines import DOCUMENT_NAMES, QUERY_NAMES
from rerank_actor.inputs.syntax.label_words import grade_label

NOT_JUDGED, RELEVANT, NOT_RELEVANT, UNSURE = range(4)
UNSURE_WORDS = frozenset({"unsure", "uncertain", "unclear", "unknown", "maybe"})
NAMES = {RELEVANT: "relevant", NOT_RELEVANT: "not_relevant", UNSURE: "unsure"}
COLUMN = "verdict"
SHOWN_PAIRS = 3
RULES_OF_VERDICTS = {
    "verdicts": "what a judge said of a pair counts before its label: relevant is positive, not relevant may be negative "
    "whatever rule suspects it, unsure is neither"
}


@dataclass(frozen=True)
class Verdicts:
    """What was said of some pairs.

    Attributes:
        uri: the file.
        by_ids: whether a pair is named by the ids of its query and document, else by its pair key.
        keys: large_string [num_verdicts], each once; two ids have a unit separator between.
        codes: int8 [num_verdicts], `RELEVANT`, `NOT_RELEVANT` or `UNSURE`.
        num_open: rows of the file without a verdict.
    """

    uri: str
    by_ids: bool
    keys: pa.Array = field(repr=False)
    codes: np.ndarray
    num_open: int

    @property
    def roles(self) -> tuple[str, ...]:
        """The columns of a table of pairs by which a pair is known, beside its instruction."""
        return ("query_id", "document_id") if self.by_ids else ("query", "document")

    @property
    def digest(self) -> str:
        """Hash of what was said, wherever it is written."""
        lines = sorted(f"{key}\t{code}\n" for key, code in zip(self.keys.to_pylist(), self.codes, strict=True))
        return hashlib.sha256("".join([f"{self.by_ids}\n", *lines]).encode()).hexdigest()[:32]

    def find(self, pairs: pa.Table, instruction: str | None) -> np.ndarray:
        """Return for each pair the number of its verdict, -1 where there is none: int64 [num_pairs].

        Args:
            pairs: with columns of `roles`, and `instruction` where rows have one of their own.
            instruction: of all other pairs.
        """
        if self.by_ids:
            ids = [pairs[role].cast(pa.large_string()) for role in self.roles]
            keys: Any = pc.binary_join_element_wise(*ids, pa.scalar("\x1f", pa.large_string()))
        else:
            keys = pa.array(list_pair_keys(pairs, instruction), pa.large_string())
        found: np.ndarray = pc.index_in(keys, value_set=self.keys).fill_null(-1).to_numpy(zero_copy_only=False)
        return found.astype(np.int64)

    def mark(self, pairs: pa.Table, instruction: str | None) -> np.ndarray:
        """Return what was said of each pair: int8 [num_pairs], `NOT_JUDGED` where nothing was; arguments as of `find`."""
        return self.codes_of(self.find(pairs, instruction))

    def codes_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the codes of verdicts by number, `NOT_JUDGED` for -1."""
        codes: np.ndarray = np.append(self.codes, np.int8(NOT_JUDGED))[numbers]
        return codes

    @functools.cached_property
    def no_negatives(self) -> pa.Array:
        """Keys of the pairs that are relevant, or not surely none."""
        return self.keys.filter(pa.array(self.codes != NOT_RELEVANT))

    @functools.cached_property
    def judged_ids(self) -> list[tuple[str, pa.Array, pa.Array]]:
        """For query and document their role, the ids that verdicts name, and those written as 7.0 is; empty without ids."""
        if not self.by_ids:
            return []
        parts = pc.split_pattern(self.keys, "\x1f")
        ids = [(role, pc.unique(pc.list_element(parts, place))) for place, role in enumerate(("query", "document"))]
        return [(role, found, find_fractions(found)) for role, found in ids]

    def describe(self, numbers: Sequence[int]) -> str:
        """Return a few of some verdicts' pairs in words."""
        names = [self.keys[int(number)].as_py() for number in numbers[:SHOWN_PAIRS]]
        return ", ".join(_describe(name) for name in names) + (", .." if len(numbers) > SHOWN_PAIRS else "")


def overrule(positive: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return which pairs are positive by their labels and by verdicts, which count where they say something."""
    positive = (positive & (codes == NOT_JUDGED)) | (codes == RELEVANT)
    return positive


def list_pair_keys(pairs: pa.Table, instruction: str | None) -> list[str | None]:
    """Return the pair key of each pair of a table."""
    tasks = pairs["instruction"].to_pylist() if "instruction" in pairs.column_names else None
    return make_pair_keys(pairs["query"].to_pylist(), pairs["document"].to_pylist(), tasks, instruction or "")


def load_verdicts(uri: str, min_relevance: float) -> Verdicts:
    """Read a file of verdicts: Parquet, JSON lines, CSV or TSV, packed or not.

    Args:
        uri: the file.
        min_relevance: from which a verdict that is a number says relevant.

    Raises:
        InputError: it is not there, lacks a column, says what is no verdict, or two things of one pair.
        StorageError, JobError: it cannot be read.
    """
    said: dict[str, int] = {}
    differing: dict[str, None] = {}
    by_ids, num_open = False, 0
    for names_ids, key, code in _iterate_verdicts(uri, min_relevance):
        by_ids = names_ids
        if code == NOT_JUDGED:
            num_open += 1
        elif said.setdefault(key, code) != code:
            differing[key] = None
    if differing:
        shown = ", ".join(map(_describe, list(differing)[:SHOWN_PAIRS]))
        raise InputError(
            f"--verdicts {uri}: {len(differing):,} pairs have two verdicts that differ ({shown}); leave one for each pair",
            uri=uri,
        )
    if not said:
        raise InputError(f"--verdicts {uri}: none of its {num_open:,} rows has a verdict in column `{COLUMN}`", uri=uri)
    return Verdicts(uri, by_ids, pa.array(said, pa.large_string()), np.array([*said.values()], np.int8), num_open)


def _iterate_verdicts(uri: str, min_relevance: float) -> Iterator[tuple[bool, str, int]]:
    """Yield of each row whether it names ids, its key and the code of its verdict."""
    kind, compression = find_format(uri)
    if kind not in ("parquet", "jsonl", "csv", "tsv"):
        raise InputError(f"--verdicts {uri}: give a file named .parquet, .jsonl, .csv or .tsv", uri=uri)
    objects = storage.list_objects(uri)
    if [item.uri for item in objects] != [uri]:
        raise InputError(f"--verdicts {uri}: {'is no single' if objects else 'no such'} file; name one file", uri=uri)
    chosen: tuple[str, ...] = ()
    with refuse_broken(uri, "verdicts", "--verdicts"):
        for batch in read_batches(objects[0], kind, compression):
            chosen = chosen or _choose_columns(batch.names, uri)
            rows = zip(*(batch.values(name) for name in (*chosen, COLUMN)), strict=True)
            for number, (*names, verdict) in enumerate(rows):
                ids = [read_id(name) for name in names]
                code = _read_verdict(verdict, min_relevance)
                if number in batch.faults or None in ids or code is None:
                    fault = batch.faults.get(number) or (
                        f"`{COLUMN}` is none of relevant, not relevant, unsure, a truth value or a number"
                        if code is None
                        else f"no id in {' and '.join(f'`{name}`' for name in chosen)}"
                    )
                    raise InputError(f"--verdicts {uri}: {batch.describe(number)} is no verdict ({fault})", uri=uri)
                yield len(chosen) == 2, "\x1f".join(map(str, ids)), code


def _choose_columns(names: Sequence[str], uri: str) -> tuple[str, ...]:
    """Return the columns that name a pair: its key, else the ids of query and document."""
    has = ", ".join(f"`{name}`" for name in names[:20]) or "none"
    if COLUMN not in names:
        raise InputError(f"--verdicts {uri}: has no column `{COLUMN}`; its columns are {has}", uri=uri)
    if PAIR_KEY in names:
        return (PAIR_KEY,)
    ids = [[name for name in names if name in known] for known in (QUERY_NAMES, DOCUMENT_NAMES)]
    if [len(found) for found in ids] != [1, 1]:
        raise InputError(
            f"--verdicts {uri}: names no pairs; it needs `{PAIR_KEY}`, as --suspects writes it, or one column each with ids of "
            f"queries (query_id) and documents (document_id); its columns are {has}",
            uri=uri,
        )
    return ids[0][0], ids[1][0]


def _read_verdict(value: Any, min_relevance: float) -> int | None:
    """Return the code of what is said, `NOT_JUDGED` where nothing is, None for what is no verdict."""
    if isinstance(value, str):
        if value.strip().casefold() in UNSURE_WORDS:
            return UNSURE
        value = grade_label(value)
        if value is None:
            return None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOT_JUDGED
    if isinstance(value, bool):
        return RELEVANT if value else NOT_RELEVANT
    if not isinstance(value, int | float | Decimal):
        return None
    return RELEVANT if value >= min_relevance else NOT_RELEVANT


def _describe(key: str) -> str:
    query, separator, document = key.partition("\x1f")
    return f"query {query!r} document {document!r}" if separator else f"pair {query}"
