"""Names that other tools have for what a flag, a key or a value is here, and the nearest name where none of them is meant.

Takes a name as it was typed and those that are known, gives a hint in brackets or nothing. Knows nothing of what they mean.
"""

import difflib
from collections.abc import Iterable

# The right name, and what vLLM, Ray, sentence-transformers, Transformers, datasets and other rerankers call it.
_OTHER_NAMES = {
    "actors": "concurrency num-gpus gpus n-gpus ngpus num-actors num-workers workers replicas num-replicas parallelism "
    "data-parallel-size dp num-processes num-proc n-jobs",
    "allow-incomplete": "allow-partial partial incomplete",
    "check-scores": "check",
    "dedupe": "deduplicate dedup unique",
    "dry-run": "dry plan-only estimate simulate n",
    "dtype": "half fp16 float16 bf16 bfloat16 fp32 float32 torch-dtype precision",
    "document-column": "documents-column doc-column passage-column text-column document-field passage-field context-column",
    "engine": "backend framework runner",
    "engine-args": "gpu-memory-utilization max-num-seqs max-num-batched-tokens enforce-eager quantization kv-cache-dtype "
    "block-size enable-prefix-caching model-kwargs vllm-args",
    "format": "file-format input-format",
    "gpus-per-actor": "num-gpus-per-actor gpus-per-worker gpu-fraction device",
    "input": "i data dataset in input-path input-file input-dir source path file files",
    "instruction": "prompt instruct task-instruction query-instruction",
    "keep-columns": "keep select-columns",
    "limit": "max-rows num-rows head max-samples sample nrows",
    "max-attempts": "retries max-retries num-retries",
    "max-length": "max-model-len max-seq-length max-seq-len max-tokens max-input-length truncate",
    "model": "m model-name model-name-or-path model-path model-id checkpoint",
    "output": "o out output-path output-dir output-file save-path dest destination",
    "overwrite": "f force clean restart",
    "query-column": "queries-column question-column query-field question-field",
    "ray-address": "address ray cluster head",
    "tensor-parallel-size": "tp tp-size tensor-parallel",
    "top-k": "k topk top-n",
    "trust-remote-code": "remote-code",
    "unit-rows": "b bs bsz batch-size batch-rows chunk-size rows-per-batch per-device-eval-batch-size",
    # Values.
    "bfloat16": "bf16",
    "float16": "half fp16 f16",
    "float32": "float fp32 f32 full single",
    "jsonl": "json ndjson",
    "probability": "score probabilities",
    "score": "probability probabilities",
    "transformers": "hf huggingface torch pytorch sentence-transformers st",
}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the known name that a name stands for elsewhere, else for the nearest, or nothing."""
    known = list(known)
    plain = {_strip(one): one for one in reversed(known)}
    meant = (
        plain[right] for right, others in _OTHER_NAMES.items() if right in plain and _strip(name) in others.split()
    )
    nearest = next(meant, None) or next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)
    return f" (did you mean {nearest}?)" if nearest else ""


def _strip(name: str) -> str:
    return name.lstrip("-").replace("_", "-").lower()
