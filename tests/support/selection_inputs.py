"""What the tests of selection share: scored pairs as the bitext job leaves them, and a plain selection to compare with."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor.bitext.selection.normalize import hash_texts, mix_hashes

SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "target": pa.string(),
        "candidate_score": pa.float64(),
        "forward_logit": pa.float32(),
        "backward_logit": pa.float32(),
        "logit": pa.float32(),
        "error": pa.string(),
    }
)
FINGERPRINT = {"rerank_actor.fingerprint": "a" * 32}

Row = dict[str, Any]


def make_row(source: str, target: str, forward: float, backward: float | None = None, **more: Any) -> Row:
    """Return a scored pair; with one score both directions have it."""
    backward = forward if backward is None else backward
    row = {"source": source, "target": target, "candidate_score": None, "forward_logit": forward, "error": None}
    return {**row, "backward_logit": backward, "logit": (forward + backward) / 2, **more}


def make_unscored(source: str | None, target: str | None, reason: str) -> Row:
    """Return a pair that a rule dropped before scoring."""
    nothing = dict.fromkeys(("candidate_score", "forward_logit", "backward_logit", "logit"))
    return {"source": source, "target": target, **nothing, "error": reason}


def write_scored(folder: Path, rows: list[Row], part_rows: int = 1000, pair: str = "deu-eng", **options: Any) -> Path:
    """Write rows as scored parts of so many rows into the folder of a language pair; returns the folder of all."""
    own = folder / f"lang_pair={pair}"
    own.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), part_rows)):
        table = pa.Table.from_pylist(rows[start : start + part_rows], options.get("schema", SCHEMA))
        table = table.replace_schema_metadata(options.get("metadata", FINGERPRINT))
        pq.write_table(table, own / f"part-{'0' * 12}-{number:05d}.parquet", row_group_size=7)
    return folder


def make_random(seed: int, num_sources: int, num_targets: int, num_pairs: int, levels: int = 9) -> list[Row]:
    """Return pairs of few texts with scores of few levels, so that many are equal; some pairs come twice."""
    draw = np.random.default_rng(seed)
    rows = []
    for source, target in zip(
        draw.integers(0, num_sources, num_pairs), draw.integers(0, num_targets, num_pairs), strict=True
    ):
        forward, backward = (float(value) for value in draw.integers(-levels, levels + 1, 2) / 4)
        cosine = float(draw.integers(1, 20)) / 20
        rows.append(make_row(f"Satz {source} hier", f"line {target} here", forward, backward, candidate_score=cosine))
    return rows


def find_tie(row: Row) -> int:
    """Return what ties between pairs go by."""
    source, target = (hash_texts(pa.array([row[side]]))[:, 0] for side in ("source", "target"))
    return int(mix_hashes(source, target)[0])


def keep_best(rows: list[Row]) -> list[Row]:
    """Return one row for each pair of texts: the best-scored, the first of equals."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        found = best.get((row["source"], row["target"]))
        if found is None or row["logit"] > found["logit"]:
            best[row["source"], row["target"]] = row
    return list(best.values())


def add_margins(rows: list[Row], neighbors: int) -> list[Row]:
    """Return the rows with `margin` and `ratio`, as the definitions say, candidate list by candidate list."""
    lists: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for side in ("source", "target"):
            lists[side, row[side]].append(row)
    found = []
    for row in rows:
        rests, nears = [], []
        for side in ("source", "target"):
            own = lists[side, row[side]]
            others = sorted((one["logit"] for one in own if one is not row), reverse=True)[: neighbors or None]
            cosines = sorted((one["candidate_score"] for one in own), reverse=True)[: neighbors or None]
            rests += [sum(others) / len(others)] if others else []
            nears.append(sum(cosines) / len(cosines))
        margin = row["logit"] - sum(rests) / len(rests) if rests else math.inf
        found.append({**row, "margin": margin, "ratio": row["candidate_score"] / (sum(nears) / 2)})
    return found


def select_plainly(rows: list[Row], mode: str, rank_by: str = "logit") -> list[Row]:
    """Return what a mode keeps, by one loop over the pairs in falling order."""
    ordered = sorted(rows, key=lambda row: (-row[rank_by], find_tie(row)))
    if mode == "all":
        return ordered
    best: dict[str, dict[str, Row]] = {"source": {}, "target": {}}
    for row in ordered:
        for side in ("source", "target"):
            best[side].setdefault(row[side], row)
    if mode == "forward":
        return list(best["source"].values())
    if mode == "backward":
        return list(best["target"].values())
    if mode == "intersection":
        return [row for row in best["source"].values() if best["target"][row["target"]] is row]
    seen: dict[str, set[str]] = {"source": set(), "target": set()}
    kept = []
    for row in ordered:
        if row["source"] not in seen["source"] and row["target"] not in seen["target"]:
            seen["source"].add(row["source"])
            seen["target"].add(row["target"])
            kept.append(row)
    return kept


def name_pairs(rows: list[Row]) -> list[tuple[str, str]]:
    """Return the texts of rows, sorted."""
    return sorted((row["source"], row["target"]) for row in rows)


def read_delivered(folder: Path, pair: str = "deu-eng") -> list[Row]:
    """Return the rows of delivered Parquet, in order of parts."""
    files = sorted((folder / f"parquet/lang_pair={pair}").glob("part-*.parquet"))
    return [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]
