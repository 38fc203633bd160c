"""Known pairs: texts of which someone said whether one translates the other, found again among the scored pairs.

Takes files of source, target and label, with a header or without, gives sorted hashes of normalized texts, so that a pair is
found again whatever its space and punctuation. Without labels all are right, and every other candidate of one of their
sides is wrong, as in a gold standard. Knows nothing of scores.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from rerank_actor import storage
from rerank_actor.bitext.language_pairs import parse_pair
from rerank_actor.bitext.selection.normalize import hash_texts, mix_hashes, normalize_texts
from rerank_actor.bitext.sources import find_pair
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import Batch, read_batches, refuse_broken
from rerank_actor.inputs.formats import TextFormat, find_format
from rerank_actor.inputs.rows import LIMITS, ReadLimits
from rerank_actor.inputs.syntax.label_words import grade_label
from rerank_actor.inputs.syntax.quoted import AUTO, Dialect
from rerank_actor.inputs.text import BROKEN_FIELDS, NOT_UNICODE, TextFile, iterate_records, split_fields
from rerank_actor.storage.utf8 import is_unicode

NAMES = ("source", "target", "label")
KINDS = ("parquet", "jsonl", "csv", "tsv")
WANTED = "known pairs are source, target, label or source, target"


@dataclass(frozen=True)
class _Rows:
    """Some known pairs of a file: lines, sides, and labels, None where there are none."""

    lines: Sequence[int]
    sources: list[str]
    targets: list[str]
    labels: list[int | None]


@dataclass(frozen=True)
class LabelledPairs:
    """Known pairs as sorted hashes.

    Attributes:
        pairs: uint64 [num_pairs], of each pair.
        labels: int8 [num_pairs], 1 right and 0 wrong.
        sources, targets: uint64, of the sides of right pairs where others are wrong; None where labels say so.
        digest: of all of it.
    """

    pairs: np.ndarray
    labels: np.ndarray
    sources: np.ndarray | None
    targets: np.ndarray | None
    digest: str

    def look_up_labels(self, pairs: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the labels of some pairs: int8, 1 right, 0 wrong, -1 not labelled."""
        index = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        labels = np.where(self.pairs[index] == pairs, self.labels[index], np.int8(-1))
        if self.sources is not None and self.targets is not None:
            near = np.isin(sources, self.sources) | np.isin(targets, self.targets)
            labels = np.where((labels < 0) & near, np.int8(0), labels)
        return labels.astype(np.int8)


def load_labelled(
    uris: list[str],
    source_column: str = "source",
    target_column: str = "target",
    dialect: Dialect = AUTO,
    limits: ReadLimits = LIMITS,
) -> LabelledPairs:
    """Read known pairs.

    Raises:
        InputError: a file is missing or empty, a line is not what it should be, or one pair has two labels; says the line.
        StorageError: storage does not answer.
    """
    seen: dict[int, tuple[int | None, str]] = {}
    sources: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for uri in uris:
        for rows in _read_rows(uri, source_column, target_column, dialect, limits):
            sides = [
                hash_texts(normalize_texts(pa.array(texts, pa.string())))[:, 0]
                for texts in (rows.sources, rows.targets)
            ]
            sources.append(sides[0])
            targets.append(sides[1])
            for line, key, label in zip(
                rows.lines, mix_hashes(sides[0], sides[1], 0).tolist(), rows.labels, strict=True
            ):
                first, where = seen.setdefault(key, (label, f"{uri}, line {line:,}"))
                if first != label:
                    raise InputError(
                        f"{uri}, line {line:,}: the pair has the label {_describe(label)}, and {_describe(first)} in {where}; "
                        "give each known pair one label",
                        uri=uri,
                        line=line,
                    )
    if not seen:
        raise InputError(f"--calibration {', '.join(uris)}: holds no pair")
    given = {label for label, _ in seen.values()}
    if None in given and len(given) > 1:
        raise InputError(f"--calibration {', '.join(uris)}: some pairs have a label and others none; label all or none")
    if given == {0}:
        raise InputError(f"--calibration {', '.join(uris)}: all pairs are labelled wrong; right ones are needed too")
    closed = 0 not in given
    pairs = np.array(sorted(seen), np.uint64)
    labels = np.array([1 if closed else seen[key][0] for key in pairs.tolist()], np.int8)
    ends = [np.unique(np.concatenate(hashes)) for hashes in (sources, targets)] if closed else [None, None]
    digest = hash_texts(pa.array([pairs.tobytes() + labels.tobytes() + bytes([closed])], pa.binary()))
    return LabelledPairs(pairs, labels, ends[0], ends[1], digest.tobytes().hex())


def read_labelled(
    uris: list[str],
    source_column: str,
    target_column: str,
    lang_pair: str | None,
    languages: Mapping[str, str],
    dialect: Dialect = AUTO,
) -> dict[str | None, pa.Table]:
    """Return known pairs with labels of both kinds, to be scored by themselves.

    Without labels the wrong ones are candidates, so that there is nothing to score.

    Returns:
        By the name of the language pair, None where nothing tells it, a table of string columns `source`, `target` and
        `input_file`, and int64 `input_line`.

    Raises:
        InputError, StorageError: as `load_labelled`; or the language pair is none.
    """
    tables: dict[str | None, list[pa.Table]] = defaultdict(list)
    labels: dict[str | None, set[int | None]] = defaultdict(set)
    for uri in uris:
        pair = parse_pair(lang_pair, languages, "--lang-pair") if lang_pair else find_pair(uri, languages)
        name = pair.name if pair is not None else None
        for rows in _read_rows(uri, source_column, target_column, dialect, LIMITS):
            tables[name].append(_make_table(rows, uri))
            labels[name].update(rows.labels)
    return {name: pa.concat_tables(tables[name]) for name, given in labels.items() if given == {0, 1}}


def _make_table(rows: _Rows, uri: str) -> pa.Table:
    return pa.table(
        {
            "source": pa.array(rows.sources, pa.string()),
            "target": pa.array(rows.targets, pa.string()),
            "input_file": pa.array([uri] * len(rows.lines), pa.string()),
            "input_line": pa.array(rows.lines, pa.int64()),
        }
    )


def _describe(label: int | None) -> str:
    return "none" if label is None else str(label)


def _read_rows(
    uri: str, source_column: str, target_column: str, dialect: Dialect, limits: ReadLimits
) -> Iterator[_Rows]:
    """Yield the known pairs of a file; what is no known pair is refused with its line."""
    file = _look_up_file(uri)
    kind, compression = find_format(uri)
    if kind not in KINDS:
        kind = "tsv"
    names = (source_column, target_column, "label")
    with refuse_broken(uri, kind, "--calibration"):
        is_bare = kind == "tsv" and _is_bare(file, compression, dialect, names)
        names = NAMES if is_bare else names
        header = NAMES if is_bare else ()
        text_kind = cast(TextFormat, kind)
        for batch in read_batches(
            file, text_kind, compression, header=header, dialect=dialect, wanted=names, limits=limits
        ):
            if batch.num_rows:
                yield _take_pairs(batch, uri, names, is_bare=is_bare)


def _look_up_file(uri: str) -> storage.StoredObject:
    file = storage.look_at_object(uri)
    if file is None:
        raise InputError(f"--calibration {uri}: no such file", uri=uri)
    return file


def _is_bare(file: storage.StoredObject, compression: str, dialect: Dialect, names: tuple[str, str, str]) -> bool:
    """Whether a TSV has no header; its first line has then two or three fields.

    Raises:
        InputError: it has others.
    """
    text = TextFile(file.uri, file.size, file.etag, "tsv", compression, dialect=dialect)
    first = next(iterate_records(text), None)
    if first is None:
        return False
    fields = split_fields(first.content) or []
    if names[0] in fields and names[1] in fields:
        return False
    if len(fields) not in (2, 3):
        raise _refuse(file.uri, first.line, f"has {len(fields)} fields; {WANTED}")
    return True


def _take_pairs(batch: Batch, uri: str, names: tuple[str, str, str], *, is_bare: bool) -> _Rows:
    lacking = [name for name in names[:2] if name not in batch.names]
    if lacking and not batch.faults:
        raise _refuse(uri, batch.numbers[0], f"has no `{lacking[0]}`; known pairs have source, target, label")
    sources, targets, labels = (batch.values(name) for name in names)
    for row, fault in sorted(batch.faults.items()):
        if not (is_bare and fault == BROKEN_FIELDS and labels[row] is None and targets[row] is not None):
            told = "row has too many or too few fields" if is_bare and fault == BROKEN_FIELDS else fault
            raise _refuse(uri, batch.numbers[row], f"{told}; {WANTED}")
    for row, sides in enumerate(zip(sources, targets, strict=True)):
        if not all(isinstance(side, str) and side.strip() for side in sides):
            raise _refuse(uri, batch.numbers[row], "a side is empty or no text; a known pair has two")
        if not all(is_unicode(side) for side in sides):
            raise _refuse(uri, batch.numbers[row], NOT_UNICODE)
    given = [_parse_label(label, uri, line) for label, line in zip(labels, batch.numbers, strict=True)]
    return _Rows(batch.numbers, sources, targets, given)


def _refuse(uri: str, line: int, reason: str) -> InputError:
    return InputError(f"{uri}, line {line:,}: {reason}", uri=uri, line=line)


def _parse_label(label: Any, uri: str, line: int) -> int | None:
    if label is None:
        return None
    grade = grade_label(label)
    if grade not in (1, 0, math.inf, -math.inf):
        raise _refuse(uri, line, "label is neither 1 nor 0 (true, false)")
    return int(grade > 0)
