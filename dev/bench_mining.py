"""Measure mining: `python dev/bench_mining.py --pairs 10000000` writes scored parts and mines them, in a process each.

With --scattered the pairs of a query are strewn over all parts, so that everything is shuffled. With
--sentence-transformers its own miner gets the same scores. Prints pairs per second and peak memory of all processes.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from watched import ROOT, run_watched

PER_QUERY = 100
NUM_DOCUMENTS = 20_000
PART_ROWS = 16_384
WORDS = [
    "river",
    "market",
    "engine",
    "winter",
    "signal",
    "garden",
    "theory",
    "vessel",
    "copper",
    "answer",
    "planet",
    "court",
]


def make_scores(num_pairs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return documents, logits and labels: [num_queries, PER_QUERY] each; one positive a query."""
    draw = np.random.default_rng(0)
    num_queries = num_pairs // PER_QUERY
    start = draw.integers(0, NUM_DOCUMENTS, (num_queries, 1))
    step = 2 * draw.integers(1, 80, (num_queries, 1)) + 1
    documents = (start + step * np.arange(PER_QUERY)) % NUM_DOCUMENTS
    logits = draw.normal(-2, 3, documents.shape).astype(np.float32)
    labels = np.zeros(documents.shape, np.int8)
    labels[:, 0] = 1
    logits[:, 0] += 6
    return documents, logits, labels


def make_texts() -> list[str]:
    """Return the documents, of about 300 characters."""
    draw = np.random.default_rng(1)
    words = draw.choice(WORDS, (NUM_DOCUMENTS, 42))
    return [f"{number} {' '.join(row)}" for number, row in enumerate(words)]


def write_parts(folder: Path, num_pairs: int, *, scattered: bool) -> None:
    """Write scored parts as the scoring job leaves them."""
    documents, logits, labels = (values.ravel() for values in make_scores(num_pairs))
    texts = pa.array(make_texts())
    order = np.random.default_rng(2).permutation(num_pairs) if scattered else np.arange(num_pairs)
    folder.mkdir(parents=True)
    metadata = {"rerank_actor.fingerprint": "bench"}
    for number, start in enumerate(range(0, num_pairs, PART_ROWS)):
        rows = order[start : start + PART_ROWS]
        score = (1 / (1 + np.exp(-logits[rows].astype(np.float64)))).astype(np.float32)
        queries = pa.array([f"what is said of number {row // PER_QUERY} in the long list of numbers" for row in rows])
        table = pa.table(
            {
                "query": queries,
                "document": texts.take(pa.array(documents[rows])),
                "label": labels[rows],
                "score": score,
                "logit": logits[rows],
                "num_tokens": np.full(len(rows), 120, np.int32),
                "truncated_tokens": np.zeros(len(rows), np.int32),
                "error": pa.nulls(len(rows), pa.string()),
            }
        )
        path = folder / f"part-0123456789ab-{number:05d}.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd", write_page_checksum=True)


def mine_with_sentence_transformers(num_pairs: int) -> int:
    """Give the same scores to the other miner, as a model whose similarities are theirs; returns its rows."""
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    documents, logits, _ = make_scores(num_pairs)
    texts = make_texts()
    queries = [f"what is said of number {number} in the long list of numbers" for number in range(len(documents))]
    position = {text: number for number, text in enumerate(texts)}

    class Model:
        device = torch.device("cpu")

        def encode_query(self, texts: list[str], **options: Any) -> np.ndarray:
            return np.arange(len(texts), dtype=np.float32)[:, None]

        def encode_document(self, texts: list[str], **options: Any) -> np.ndarray:
            return np.array([[position[text]] for text in texts], np.float32)

        def similarity(self, queries: Any, corpus: Any) -> torch.Tensor:
            rows = np.asarray(queries)[:, 0].astype(int)
            scores = np.full((len(rows), len(texts)), -np.inf, np.float32)
            np.put_along_axis(scores, documents[rows], logits[rows], axis=1)
            return torch.from_numpy(scores)

        def similarity_pairwise(self, queries: Any, corpus: Any) -> torch.Tensor:
            return torch.from_numpy(logits[np.asarray(queries)[:, 0].astype(int), 0])

    pairs = Dataset.from_dict({"anchor": queries, "positive": [texts[number] for number in documents[:, 0]]})
    rules = {"absolute_margin": 1.0, "num_negatives": 5, "output_scores": True, "faiss_batch_size": 1024}
    return len(mine_hard_negatives(pairs, Model(), corpus=texts, verbose=False, **rules))


def main() -> None:
    """Write, mine, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("bench-out"))
    parser.add_argument("--scattered", action="store_true")
    parser.add_argument("--sentence-transformers", action="store_true")
    parser.add_argument("--other-miner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.other_miner:
        print(mine_with_sentence_transformers(options.pairs))
        return
    scored = options.folder / ("scattered" if options.scattered else "grouped") / str(options.pairs)
    if not scored.exists():
        write_parts(scored, options.pairs, scattered=options.scattered)
    if options.sentence_transformers:
        command = [sys.executable, __file__, "--other-miner", "--pairs", str(options.pairs)]
    else:
        output = options.folder / "mined"
        shutil.rmtree(output, ignore_errors=True)
        flags = [
            "--scored",
            scored,
            "--output",
            output,
            "--label-column",
            "label",
            "--space",
            "logit",
            "--teacher",
            "logit",
        ]
        rules = ["--absolute-margin", "1", "--num-negatives", "5"]
        command = [sys.executable, "-m", "jobs.mine", *map(str, flags), *rules]
    os.environ["PYTHONPATH"] = str(ROOT)
    result = run_watched(command, options.folder / "log")
    result["pairs_per_second"] = round(options.pairs / result["seconds"])
    print(json.dumps(result))
    print((options.folder / "log").read_text()[-600:])


if __name__ == "__main__":
    main()
