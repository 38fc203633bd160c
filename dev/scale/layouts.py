"""What layouts cost that need more than the row: ids joined with a corpus, and pairs scored once for all units.

With the fake engine, so that memory is that of joining and shuffling. Each document has a text of its own.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor.benchmark.meter import measure_peaks
from scale.fake_run import run_fake_job

JOINED_PAIRS = 100_000
NUM_QUERIES = 1_000
SHARE_REPEATED = 0.5  # of pairs, that other shards have too
SHARD_ROWS = 50_000
WRITTEN_AT_ONCE = 100_000
WORDS = np.array(["river", "market", "engine", "winter", "signal", "garden", "theory", "vessel", "copper", "answer"])
TEXT_WORDS = 80  # some 540 bytes


def measure_join(folder: Path, model: Path, documents: int) -> dict[str, Any]:
    """Score so many pairs of ids, joined with a corpus of so many documents; return peaks and sizes."""
    draw = np.random.default_rng(0)
    (folder / "input").mkdir()
    with (folder / "queries.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"_id": f"q{at}", "text": text}) + "\n" for at, text in enumerate(_write(draw, NUM_QUERIES))
        )
    with (folder / "corpus.jsonl").open("w") as file:
        for start in range(0, documents, WRITTEN_AT_ONCE):
            texts = _write(draw, min(WRITTEN_AT_ONCE, documents - start))
            records = (
                {"_id": f"d{start + at}", "title": f"number {start + at}", "text": text}
                for at, text in enumerate(texts)
            )
            file.writelines(json.dumps(record) + "\n" for record in records)
    query = np.sort(draw.integers(0, NUM_QUERIES, JOINED_PAIRS))
    ids = {
        "query_id": [f"q{number}" for number in query],
        "document_id": [f"d{number}" for number in draw.integers(0, documents, JOINED_PAIRS)],
    }
    pq.write_table(pa.table(ids), folder / "input/pairs.parquet", row_group_size=16_384)
    sources = {"queries": [str(folder / "queries.jsonl")], "corpus": [str(folder / "corpus.jsonl")]}
    peaks, _, seconds = _run(folder, model, unit_rows=4096, **sources)
    return {"corpus_mib": (folder / "corpus.jsonl").stat().st_size >> 20, **peaks, "seconds": seconds}


def measure_dedupe(folder: Path, model: Path, rows: int) -> dict[str, Any]:
    """Score so many pairs with `--dedupe global`, half of which stand in several shards; return peaks and passes saved."""
    draw = np.random.default_rng(0)
    (folder / "input").mkdir()
    shared = _write(draw, max(1, int(rows * SHARE_REPEATED / 5)))
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, rows - start)
        texts = np.array(_write(draw, count), object)
        repeated = draw.random(count) < SHARE_REPEATED
        texts[repeated] = np.array(shared, object)[draw.integers(0, len(shared), int(repeated.sum()))]
        pairs = {"query": ["what is said of it"] * count, "document": texts.tolist()}
        pq.write_table(pa.table(pairs), folder / f"input/pairs-{number:05d}.parquet", row_group_size=16_384)
    peaks, manifest, seconds = _run(folder, model, unit_rows=4096, dedupe="global")
    return {**peaks, "seconds": seconds, "saved_forward_passes": manifest["totals"]["saved_forward_passes"]}


def _run(folder: Path, model: Path, **settings: Any) -> tuple[dict[str, int], dict[str, Any], float]:
    started = time.monotonic()
    peaks, _ = measure_peaks(lambda: run_fake_job(folder, model, {}, **settings))
    manifest = json.loads((folder / "output/_job/manifest.json").read_text())
    return peaks, manifest, round(time.monotonic() - started, 1)


def _write(draw: np.random.Generator, count: int) -> list[str]:
    """Return so many different texts."""
    words = WORDS[draw.integers(0, len(WORDS), (count, TEXT_WORDS))]
    return [f"{draw.integers(0, 2**40)} {' '.join(row)}" for row in words]
