"""The pairs that are measured: texts of a wanted length, made from a seed, in five kinds.

Takes a tokenizer, gives queries and documents and how much of their prompts could be shared. Words are those of the
sample pairs, so that lengths in tokens can be aimed at; the texts mean nothing. Knows nothing of engines.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from rerank_actor.benchmark.sample import load_sample_rows
from rerank_actor.engines.prompts import PairEncoder

QUERY_TOKENS = 12
NUM_SHARDS = 4


@dataclass(frozen=True)
class Kind:
    """One kind of workload: how long documents are, how many a query has, and whether pairs come in order."""

    document_tokens: tuple[int, ...]
    candidates: int
    is_shuffled: bool = False


KINDS = {
    "short": Kind((40,), 4),
    "grouped": Kind((120,), 50),
    "shuffled": Kind((120,), 50, is_shuffled=True),
    "long": Kind((2000,), 50),
    "mix": Kind((40, 120, 120, 120, 500, 2000), 50),
}


@dataclass(frozen=True)
class Workload:
    """Pairs of one kind.

    Attributes:
        name: key of `KINDS`.
        queries, documents: the texts, one each a pair.
    """

    name: str
    queries: list[str]
    documents: list[str]

    def __len__(self) -> int:
        return len(self.queries)


def make_workload(name: str, num_pairs: int, tokenizer: Tokenizer, *, seed: int = 0) -> Workload:
    """Return so many pairs of a kind; the same ones for the same arguments."""
    kind, rng = KINDS[name], random.Random(f"{name} {seed}")
    texts = (text for row in load_sample_rows() for text in (row["query"], row["document"]) if text)
    words = sorted({word for text in texts for word in text.split() if word.isascii()})
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch([" " + word for word in words])]

    def write(num_tokens: int) -> str:
        chosen, length = [], 0
        while length < num_tokens:
            index = rng.randrange(len(words))
            chosen.append(words[index])
            length += lengths[index]
        return " ".join(chosen)

    pairs: list[tuple[str, str]] = []
    while len(pairs) < num_pairs:
        query = write(QUERY_TOKENS)
        # Real documents of one kind differ in length; half to one and a half times the aim.
        sizes = [int(rng.choice(kind.document_tokens) * rng.uniform(0.5, 1.5)) for _ in range(kind.candidates)]
        pairs += [(query, write(size)) for size in sizes]
    pairs = pairs[:num_pairs]
    if kind.is_shuffled:
        rng.shuffle(pairs)
    return Workload(name, [query for query, _ in pairs], [document for _, document in pairs])


def write_shards(workload: Workload, folder: Path) -> None:
    """Write a workload as Parquet shards."""
    folder.mkdir(parents=True)
    table = pa.table({"query": workload.queries, "document": workload.documents})
    size = -(-len(workload) // NUM_SHARDS)
    for number in range(NUM_SHARDS):
        pq.write_table(table.slice(number * size, size), folder / f"pairs-{number}.parquet")


def compute_possible_share(workload: Workload, encoder: PairEncoder) -> float:
    """Return the share of prompt tokens that some earlier prompt had at its start too: what a cache could save at most."""
    prompts = encoder.encode(workload.queries, workload.documents)
    _, first = np.unique(prompts.group, return_index=True)
    common = len(encoder.prefix_ids)
    shared = int(prompts.head_tokens.sum()) - int((prompts.head_tokens[first] - common).sum())
    return shared / int(prompts.num_tokens.sum())
