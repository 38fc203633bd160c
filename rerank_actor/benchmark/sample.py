"""Sample data, and a tokenizer with the parts of a Qwen3 reranker's, for the first run and the tests.

The demo's model comes with the package and ranks (data/demo_model, its card says what it is good for). The tokenizer is
a byte-level BPE of a few hundred tokens trained on the sample texts, with the family's control tokens. The pairs were
written for the project: several languages, grouped by query, a few bad rows among them.
"""

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor.benchmark.ndcg import load_ranking_queries
from rerank_actor.engines.tokenization import QWEN_PATTERN

DEMO_MODEL = Path(__file__).parent.parent / "data" / "demo_model"
CHAT_TEMPLATE = DEMO_MODEL / "chat_template.jinja"  # says of a folder that it is a Qwen3-Reranker
PAIRS_SCHEMA = pa.schema(
    {
        "query_id": pa.string(),
        "language": pa.string(),
        "query": pa.string(),
        "document": pa.string(),
        "relevant": pa.bool_(),
    }
)
VOCABULARY_SIZE = 1200
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK_TOKENS = ("<think>", "</think>")


def load_sample_rows() -> list[dict[str, Any]]:
    """Return the sample pairs: dicts with query_id, language, query, document and relevant."""
    text = resources.files("rerank_actor").joinpath("data/sample_pairs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_sample_shards(folder: Path, *, num_shards: int = 3) -> list[Path]:
    """Write the sample pairs as Parquet shards, candidates of one query together; existing shards stay."""
    rows = load_sample_rows()
    queries = list(dict.fromkeys(row["query_id"] for row in rows))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(num_shards):
        mine = set(queries[number::num_shards])
        table = pa.Table.from_pylist([row for row in rows if row["query_id"] in mine], schema=PAIRS_SCHEMA)
        path = folder / f"pairs-{number:03d}.parquet"
        if not path.exists():
            pq.write_table(table, path)
        paths.append(path)
    return paths


def write_ranking_shard(folder: Path) -> Path:
    """Write the held-out queries as one Parquet shard, a row for each candidate; an existing shard stays."""
    path = folder / "ranking-queries.parquet"
    if not path.exists():
        rows = [
            {
                "query_id": query.query_id,
                "language": query.language,
                "query": query.query,
                "document": document,
                "relevant": relevant,
            }
            for query in load_ranking_queries()
            for document, relevant in zip(query.documents, query.relevant, strict=True)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA), path)
    return path


def write_sample_groups(path: Path) -> Path:
    """Write the sample pairs as JSON lines, one a query with its candidates and their labels; an existing file stays."""
    groups: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(load_sample_rows()):
        if row["query"] is None:
            continue
        group = groups.setdefault(
            row["query_id"], {"query_id": row["query_id"], "query": row["query"], "documents": [], "relevant": []}
        )
        group["documents"].append({"id": f"d{number:03d}", "text": row["document"]})
        group["relevant"].append(row["relevant"])
    return path if path.exists() else _write_lines(path, map(_to_json, groups.values()))


def write_sample_ids(folder: Path) -> Path:
    """Write the held-out queries as a BEIR folder and a run of ids; an existing folder stays.

    They are `queries.jsonl`, `corpus.jsonl`, `qrels/test.tsv` and `candidates.trec`.

    Returns:
        The run. Its scores say no more than the order in which the candidates are written down.
    """
    run = folder / "candidates.trec"
    if run.exists():
        return run
    queries = load_ranking_queries()
    ids: dict[str, str] = {}
    for query in queries:
        for document in query.documents:
            ids.setdefault(document, f"d{len(ids):04d}")
    judged = [
        (query.query_id, ids[document], int(relevant))
        for query in queries
        for document, relevant in zip(query.documents, query.relevant, strict=True)
    ]
    candidates = [
        f"{query.query_id} Q0 {ids[document]} {rank} {1 / rank:.4f} sample"
        for query in queries
        for rank, document in enumerate(dict.fromkeys(query.documents), 1)
    ]
    _write_lines(folder / "queries.jsonl", (_to_json({"_id": item.query_id, "text": item.query}) for item in queries))
    _write_lines(
        folder / "corpus.jsonl", (_to_json({"_id": key, "title": "", "text": text}) for text, key in ids.items())
    )
    header = "query-id\tcorpus-id\tscore"
    _write_lines(folder / "qrels" / "test.tsv", [header, *("\t".join(map(str, row)) for row in judged)])
    return _write_lines(run, candidates)


def _to_json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def train_sample_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> Any:
    """Return a `tokenizers.Tokenizer` of the Qwen kind (NFC, its pattern, byte-level BPE), `yes` and `no` in it."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *["yes\n", "no\n"] * 500], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS])
    return tokenizer
