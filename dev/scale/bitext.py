"""What a backfill of translation pairs costs around its engine: reading candidates and scoring both ways.

With the fake engine, so that memory and rates are those of everything else. Two language pairs, of four files each as LASER
writes them; each sentence has a number of its own.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from rerank_actor.benchmark.meter import measure_peaks
from scale.fake_run import find_steady

PARTITIONS = ("deu-eng", "fra-eng")
FILES = 4  # of a partition
NUM_WORDS, LETTERS = 20_000, (2, 10)
SENTENCE_WORDS = (4, 20)
WRITTEN_AT_ONCE = 10_000


def measure_bitext(folder: Path, model: Path, rows: int) -> dict[str, Any]:
    """Score so many candidates in both directions; return peaks, the seconds until scoring begins, and rates."""
    from rerank_actor.bitext.job import BitextJob
    from rerank_actor.bitext.run import score_bitext
    from rerank_actor.job_file import check_job

    draw = np.random.default_rng(0)
    words = np.array(
        ["".join(map(chr, draw.integers(97, 123, size))) for size in draw.integers(*LETTERS, NUM_WORDS)], object
    )
    size = rows // (len(PARTITIONS) * FILES)
    for number in range(len(PARTITIONS) * FILES):
        path = folder / f"input/{number % FILES}.{PARTITIONS[number // FILES]}.tsv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w") as file:
            for start in range(0, size, WRITTEN_AT_ONCE):
                file.writelines(_write(draw, words, number * size + start, min(WRITTEN_AT_ONCE, size - start)))
    job = check_job(
        BitextJob,
        {
            "input": [str(folder / "input")],
            "output": str(folder / "output"),
            "engine": "fake",
            "model": str(model),
            "max_length": 4096,
            "identifier": "none",
        },
    ).normalized()
    started = time.time()
    peaks, results = measure_peaks(lambda: score_bitext(job))
    seconds = time.time() - started
    if any(result.status != "complete" for result in results.values()):
        raise RuntimeError("the job is not complete")
    steady = find_steady((folder / "output").glob("lang_pair=*/_job/runs/*"))
    candidates = sorted((folder / "output/_candidates/files").glob("*.json"))
    read_at = max(path.stat().st_mtime for path in candidates)
    return {
        **peaks,
        "input_mib": sum(path.stat().st_size for path in (folder / "input").iterdir()) >> 20,
        "reading_seconds": round(read_at - started, 1),
        **({"pairs_per_second": round(steady.pairs / steady.seconds, 1)} if steady is not None else {}),
        "seconds": round(seconds, 1),
    }


def _write(draw: np.random.Generator, words: np.ndarray, start: int, count: int) -> list[str]:
    """Return lines of LASER's format."""
    longest = SENTENCE_WORDS[1]
    ranks = np.minimum(draw.zipf(1.3, (count, 2 * longest)), len(words)) - 1
    lengths = draw.integers(*SENTENCE_WORDS, (count, 2))
    lines = []
    for number, (row, (source, target)) in enumerate(zip(words[ranks], lengths, strict=True), start):
        sides = f"{' '.join(row[:source])} {number}\t{' '.join(row[longest : longest + target])} {number}"
        lines.append(f"1.{number % 1000:03d}\t{sides}\n")
    return lines
