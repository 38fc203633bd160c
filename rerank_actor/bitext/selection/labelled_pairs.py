"""Known pairs: texts of which someone said whether one translates the other, found again among the scored pairs.

Takes files of source, target and label, with a header or without, gives sorted hashes of normalized texts, so that a pair is
found again whatever its space and punctuation. Without labels all are right, and every other candidate of one of their
sides is wrong, as in a gold standard. Knows nothing of scores.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.bitext.languages import parse_pair
from rerank_actor.bitext.selection.normalize import hash_texts, mix_hashes, normalize_texts
from rerank_actor.bitext.sources import find_pair, split_name
from rerank_actor.errors import InputError
from rerank_actor.inputs.text import decompress

TRUE, FALSE = ("1", "1.0", "true", "yes", "right"), ("0", "0.0", "false", "no", "wrong")
NAMES = ("source", "target", "label")
AT_ONCE = 65_536

Row = tuple[int, str, str, int | None]


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

    def find_labels(self, pairs: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return what is known of some pairs: int8, 1 right, 0 wrong, -1 nothing."""
        place = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        found = np.where(self.pairs[place] == pairs, self.labels[place], np.int8(-1))
        if self.sources is not None and self.targets is not None:
            near = np.isin(sources, self.sources) | np.isin(targets, self.targets)
            found = np.where((found < 0) & near, np.int8(0), found)
        return found.astype(np.int8)


def load_labelled(uris: list[str], source_column: str = "source", target_column: str = "target") -> LabelledPairs:
    """Read known pairs.

    Raises:
        InputError: a file is missing or empty, a line is not what it should be, or one pair has two labels; says the line.
        StorageError: storage does not answer.
    """
    seen: dict[int, tuple[int | None, str]] = {}
    sources: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for uri in uris:
        for rows in _chunk(_read_rows(uri, (source_column, target_column, "label"))):
            sides = [hash_texts(normalize_texts(pa.array([row[side] for row in rows], pa.string()))) for side in (1, 2)]
            sources.append(sides[0][:, 0])
            targets.append(sides[1][:, 0])
            for row, key in zip(rows, mix_hashes(sides[0][:, 0], sides[1][:, 0], 0).tolist(), strict=True):
                label, where = seen.setdefault(key, (row[3], f"{uri}, line {row[0]:,}"))
                if label != row[3]:
                    raise InputError(
                        f"{uri}, line {row[0]:,}: the pair has the label {_tell(row[3])}, and {_tell(label)} in {where}; "
                        "give each known pair one label",
                        uri=uri,
                        line=row[0],
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
    ends = [np.unique(np.concatenate(one)) for one in (sources, targets)] if closed else [None, None]
    digest = hash_texts(pa.array([pairs.tobytes() + labels.tobytes() + bytes([closed])], pa.binary()))
    return LabelledPairs(pairs, labels, ends[0], ends[1], digest.tobytes().hex())


def read_labelled(
    uris: list[str], source_column: str, target_column: str, lang_pair: str | None, languages: Mapping[str, str]
) -> dict[str | None, pa.Table]:
    """Return known pairs with labels of both kinds, to be scored by themselves.

    Without labels the wrong ones are candidates, so that there is nothing to score.

    Returns:
        By the name of the language pair, None where nothing tells it, a table of string columns `source`, `target` and
        `input_file`, and int64 `input_line`.

    Raises:
        InputError, StorageError: as `load_labelled`; or the language pair is none.
    """
    found: dict[str | None, list[tuple[Row, str]]] = {}
    for uri in uris:
        pair = parse_pair(lang_pair, languages, "--lang-pair") if lang_pair else find_pair(uri, languages)
        rows = ((row, uri) for row in _read_rows(uri, (source_column, target_column, "label")))
        found.setdefault(pair.name if pair is not None else None, []).extend(rows)
    return {
        name: pa.table(
            {
                "source": pa.array([row[1] for row, _ in own], pa.string()),
                "target": pa.array([row[2] for row, _ in own], pa.string()),
                "input_file": pa.array([uri for _, uri in own], pa.string()),
                "input_line": pa.array([row[0] for row, _ in own], pa.int64()),
            }
        )
        for name, own in found.items()
        if {row[3] for row, _ in own} == {0, 1}
    }


def _tell(label: int | None) -> str:
    return "none" if label is None else str(label)


def _chunk(rows: Iterator[Row]) -> Iterator[list[Row]]:
    held: list[Row] = []
    for row in rows:
        held.append(row)
        if len(held) == AT_ONCE:
            yield held
            held = []
    if held:
        yield held


def _read_rows(uri: str, names: tuple[str, str, str]) -> Iterator[Row]:
    """Yield line, source, target and label of each known pair of a file."""
    data = storage.read_if_present(uri)
    if data is None:
        raise InputError(f"--calibration {uri}: no such file", uri=uri)
    name = uri.lower()
    try:
        stem, suffix, compression = split_name(name)
        data, name = decompress(io.BytesIO(data), compression).read(), stem + suffix
        if name.endswith((".parquet", ".pq")):
            records = _name_rows(enumerate(pq.read_table(io.BytesIO(data)).to_pylist(), 1), uri, names)
        elif name.endswith((".jsonl", ".ndjson")):
            lines = enumerate(data.decode("utf-8-sig").split("\n"), 1)
            records = _name_rows(((line, _parse_json(text)) for line, text in lines if text.strip()), uri, names)
        elif name.endswith(".csv"):
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
            records = _name_rows(((reader.line_num, row) for row in reader), uri, names)
        else:
            records = _read_tsv(data.decode("utf-8-sig"), uri, names)
        for line, source, target, label in records:
            if not isinstance(source, str) or not isinstance(target, str) or not source.strip() or not target.strip():
                raise InputError(
                    f"{uri}, line {line:,}: a side is empty or no text; a known pair has two", uri=uri, line=line
                )
            yield line, source, target, _parse_label(label, uri, line)
    except (ValueError, EOFError, OSError, pa.ArrowException, csv.Error) as error:
        raise InputError(f"--calibration {uri}: cannot be read ({type(error).__name__})", uri=uri) from error


def _parse_json(text: str) -> Any:
    """Return what a line holds, None where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _name_rows(rows: Any, uri: str, names: tuple[str, str, str]) -> Iterator[tuple[int, Any, Any, Any]]:
    for line, row in rows:
        lacking = [name for name in names[:2] if not isinstance(row, dict) or name not in row]
        if lacking:
            raise InputError(
                f"{uri}, line {line:,}: has no `{lacking[0]}`; known pairs have source, target, label", uri=uri
            )
        yield line, row[names[0]], row[names[1]], row.get(names[2])


def _read_tsv(text: str, uri: str, names: tuple[str, str, str]) -> Iterator[tuple[int, Any, Any, Any]]:
    lines = text.split("\n")
    header = lines[0].rstrip("\r").split("\t")
    if names[0] in header and names[1] in header:
        rows = (
            (n, dict(zip(header, x.rstrip("\r").split("\t"), strict=False))) for n, x in enumerate(lines[1:], 2) if x
        )
        yield from _name_rows(rows, uri, names)
        return
    for line, content in enumerate(lines, 1):
        fields = content.rstrip("\r").split("\t")
        if fields == [""]:
            continue
        if len(fields) not in (2, 3):
            raise InputError(
                f"{uri}, line {line:,}: has {len(fields)} fields; known pairs are source, target, label or source, target",
                uri=uri,
                line=line,
            )
        yield line, fields[0], fields[1], fields[2] if len(fields) == 3 else None


def _parse_label(label: Any, uri: str, line: int) -> int | None:
    if label is None:
        return None
    word = str(label).strip().lower()
    if word in TRUE or word in FALSE:
        return int(word in TRUE)
    raise InputError(f"{uri}, line {line:,}: label is neither 1 nor 0 (true, false)", uri=uri, line=line)
