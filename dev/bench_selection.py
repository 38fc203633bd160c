"""Measure selection: `python dev/bench_selection.py --pairs 10000000` writes scored pairs and selects from them.

Ten candidates a source, its own target among them in nine of ten cases; logits as of a model that is right most of the
time. Prints pairs per second and peak memory of the driver, of the largest worker, and of all processes together, where
shared pages count once.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from watched import ROOT, run_watched

PER_SOURCE = 10
PART_ROWS = 16_384


def write_parts(folder: Path, num_pairs: int) -> None:
    """Write scored parts as the bitext job leaves them."""
    draw = np.random.default_rng(0)
    num_sources = num_pairs // PER_SOURCE
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, num_pairs, PART_ROWS)):
        rows = np.arange(start, min(num_pairs, start + PART_ROWS))
        source = rows // PER_SOURCE
        near = source + draw.integers(1, 10_000, len(rows))
        target = np.where((rows % PER_SOURCE == 0) & (source % 10 > 0), source, near) % num_sources
        mean = np.where(source == target, 4.0, -3.0)
        forward, backward = (draw.normal(mean, 2.5).astype(np.float32) for _ in range(2))
        score = [(1 / (1 + np.exp(-logit.astype(float)))).astype(np.float32) for logit in (forward, backward)]
        sources = [
            f"Was im langen Buch der Zahlen von der Nummer {key} gesagt wird, das gilt." for key in source.tolist()
        ]
        targets = [f"What is said of number {key} in the long book of numbers holds true." for key in target.tolist()]
        both = (forward + backward) / 2
        table = pa.table(
            {
                "source": sources,
                "target": targets,
                "candidate_score": draw.uniform(0.3, 0.9, len(rows)),
                "score": (1 / (1 + np.exp(-both.astype(float)))).astype(np.float32),
                "logit": both,
                "error": pa.nulls(len(rows), pa.string()),
                "forward_score": score[0],
                "forward_logit": forward,
                "backward_score": score[1],
                "backward_logit": backward,
            }
        ).replace_schema_metadata({"rerank_actor.fingerprint": "bench"})
        path = folder / f"part-0123456789ab-{number:05d}.parquet"
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def main() -> None:
    """Write, select, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("bench-out"))
    parser.add_argument("flags", nargs="*", help="of jobs.bitext, behind --")
    options = parser.parse_args()
    scored = options.folder / str(options.pairs)
    if not scored.exists():
        write_parts(scored / "lang_pair=deu-eng", options.pairs)
    output = options.folder / "delivered"
    shutil.rmtree(output, ignore_errors=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "jobs.bitext", "--scored", str(scored), "--deliver", str(output), *options.flags]
    result = run_watched(command, options.folder / "log")
    result["pairs_per_second"] = round(options.pairs / result["seconds"])
    report = output / "_select/lang_pair=deu-eng/result.json"
    if report.exists():
        numbers = json.loads(report.read_text())
        result |= {"kept": numbers["counts"]["kept"], "run": numbers["run"]}
    print(json.dumps(result))
    print((options.folder / "log").read_text()[-600:])


if __name__ == "__main__":
    main()
