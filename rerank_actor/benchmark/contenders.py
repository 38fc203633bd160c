"""The contenders: the job, its engine, and what users would run instead, each as its own documentation says.

A contender is made once and then does rounds over the same pairs. All have the same weights, dtype and longest prompt;
what else they are set to is their own default or what their documentation advises. `worker` runs one in a process.
"""

import importlib.util
import itertools
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor.benchmark.contender import (
    STEADY_FROM,
    Contender,
    EngineAlone,
    Round,
    Setting,
    WholeJob,
    make_encoder,
    read_pairs,
    split_calls,
)
from rerank_actor.benchmark.meter import Meter
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.template import QWEN3_RERANKER

RAY_LLM_BATCH = 256
FEWEST_BATCHES = 4  # of Ray Data LLM, whose pairs are stamped by the batch: of one alone there is no rate
CARD_BATCH = 8  # prompts; the model card gives no number, and the padding of more costs more than it gains on a CPU


def _format_prompt(query: str, document: str) -> str:
    template = QWEN3_RERANKER
    return f"{template.prefix}{template.format_head(DEFAULT_INSTRUCTION, query)} {document}{template.suffix}"


def _stamp(row: dict[str, Any]) -> dict[str, Any]:
    probability = float(np.asarray(row["embeddings"]).ravel()[0])
    return {"score": probability, "tokens": row["num_input_tokens"], "at": time.time()}


def _make_prompt_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": _format_prompt(row["query"], row["document"])}


class RayDataLlm:
    """Ray Data LLM with a classifying vLLM engine, from shards to Parquet. Counted as the job is, by the rows' ends."""

    warms_up = False

    def __init__(self, setting: Setting) -> None:
        fewest = FEWEST_BATCHES * RAY_LLM_BATCH
        if setting.num_pairs < fewest:
            raise NotImplementedError(f"its rate is told by batches, and {setting.num_pairs} pairs are under {fewest}")
        self._setting = setting
        self._numbers = itertools.count()
        self._shards = Path(setting.folder) / "ray-data-llm-pairs"
        self._shards.mkdir()
        queries, documents = read_pairs(setting)
        pq.write_table(pa.table({"query": queries, "document": documents}), self._shards / "pairs.parquet")

    def run_round(self) -> Round:
        """Run a dataset through a processor into a new folder."""
        import logging

        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        setting = self._setting
        output = Path(setting.folder) / f"ray-data-llm-{next(self._numbers)}"
        engine: dict[str, Any] = {
            "hf_overrides": {
                "architectures": ["Qwen3ForSequenceClassification"],
                "classifier_from_token": ["no", "yes"],
                "is_original_qwen3_reranker": True,
            },
            "dtype": setting.dtype,
            "max_model_len": setting.max_length,
            "max_num_batched_tokens": max(16_384, setting.max_length),
            "enforce_eager": not setting.on_gpu,
        }
        placement: dict[str, Any] = {} if setting.on_gpu else {"placement_group_config": {"bundles": [{"CPU": 1}]}}
        with Meter() as meter:
            ray.init(
                address="local",
                num_cpus=(os.cpu_count() or 1) + 2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            try:
                ray.data.DataContext.get_current().enable_progress_bars = False
                config = vLLMEngineProcessorConfig(
                    model_source=setting.model,
                    task_type="classify",
                    engine_kwargs=engine,
                    batch_size=RAY_LLM_BATCH,
                    concurrency=1,
                    chat_template_stage=False,
                    detokenize_stage=False,
                    log_engine_metrics=False,
                    **placement,
                )
                processor = build_processor(config, preprocess=_make_prompt_row, postprocess=_stamp)
                pairs = ray.data.read_parquet(str(self._shards))
                # Else all of a small input is one block, which no stage passes on before it is through with it.
                pairs = pairs.repartition(target_num_rows_per_block=RAY_LLM_BATCH)
                processor(pairs).write_parquet(str(output))
            finally:
                ray.shutdown()
        table = pq.read_table(output).sort_by("at")
        shutil.rmtree(output)
        if table.num_rows != setting.num_pairs:
            raise RuntimeError(f"Ray Data LLM scored {table.num_rows} of {setting.num_pairs} pairs")
        at, tokens = table["at"].to_numpy(), table["tokens"].to_numpy()
        first = int(len(at) * STEADY_FROM)
        return Round(
            pairs=len(at) - first - 1,
            tokens=int(tokens[first + 1 :].sum()),
            seconds=float(at[-1] - at[first]),
            cpu_seconds=meter.count_cpu_seconds(float(at[first]), float(at[-1])),
            peak_bytes=meter.peak_bytes,
        )


class CardVllm:
    """The model card's vLLM recipe: generate one token with twenty log-probabilities, take those of yes and no."""

    warms_up = True

    def __init__(self, setting: Setting) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from transformers import AutoTokenizer
        from vllm import LLM, SamplingParams

        self._setting = setting
        self._queries, self._documents = read_pairs(setting)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(setting.model)
        self._suffix = self._tokenizer.encode(QWEN3_RERANKER.suffix, add_special_tokens=False)
        answers = [self._tokenizer.convert_tokens_to_ids(answer) for answer in ("yes", "no")]
        self._yes, self._no = answers
        machine: dict[str, Any] = {"gpu_memory_utilization": 0.8} if setting.on_gpu else {"enforce_eager": True}
        self._llm: Any = LLM(
            model=setting.model,
            dtype=setting.dtype,
            max_model_len=setting.max_length,
            enable_prefix_caching=True,
            **machine,
        )
        self._parameters = SamplingParams(temperature=0, max_tokens=1, logprobs=20, allowed_token_ids=answers)

    def run_round(self) -> Round:
        """Tokenize and score the pairs, some thousands in a call."""
        from vllm.inputs import TokensPrompt

        room = self._setting.max_length - len(self._suffix)
        tokens = cached = 0
        self._llm.reset_prefix_cache()
        with Meter() as meter:
            started = time.time()
            for start, stop in split_calls(len(self._queries)):
                texts = [
                    QWEN3_RERANKER.prefix + QWEN3_RERANKER.format_head(DEFAULT_INSTRUCTION, query) + " " + document
                    for query, document in zip(self._queries[start:stop], self._documents[start:stop], strict=True)
                ]
                ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
                prompts = [TokensPrompt(prompt_token_ids=token_ids[:room] + self._suffix) for token_ids in ids]
                for output in self._llm.generate(prompts, self._parameters, use_tqdm=False):
                    logprobs = output.outputs[0].logprobs[-1]
                    yes, no = (
                        logprobs[answer].logprob if answer in logprobs else -10.0 for answer in (self._yes, self._no)
                    )
                    _ = np.exp(yes) / (np.exp(yes) + np.exp(no))
                    tokens += len(output.prompt_token_ids)
                    cached += output.num_cached_tokens or 0
            ended = time.time()
        cpu_seconds = meter.count_cpu_seconds(started, ended)
        return Round(len(self._queries), tokens, ended - started, cpu_seconds, meter.peak_bytes, cached / tokens)


class CardTransformers:
    """The model card's Transformers recipe: padded batches, logits of the last position, softmax over no and yes."""

    warms_up = True

    def __init__(self, setting: Setting) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._setting, self._torch = setting, torch
        self._queries, self._documents = read_pairs(setting)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(setting.model, padding_side="left")
        self._device = "cuda" if setting.on_gpu else "cpu"
        self._model: Any = AutoModelForCausalLM.from_pretrained(setting.model, dtype=getattr(torch, setting.dtype))
        self._model.to(self._device).eval()
        self._prefix = self._tokenizer.encode(QWEN3_RERANKER.prefix, add_special_tokens=False)
        self._suffix = self._tokenizer.encode(QWEN3_RERANKER.suffix, add_special_tokens=False)
        self._yes, self._no = (self._tokenizer.convert_tokens_to_ids(answer) for answer in ("yes", "no"))

    def run_round(self) -> Round:
        """Score the pairs, a batch at a time."""
        tokens = 0
        with Meter() as meter, self._torch.no_grad():
            started = time.time()
            for start in range(0, len(self._queries), CARD_BATCH):
                tokens += self._score(slice(start, start + CARD_BATCH))
            ended = time.time()
        cpu_seconds = meter.count_cpu_seconds(started, ended)
        return Round(len(self._queries), tokens, ended - started, cpu_seconds, meter.peak_bytes, 0.0)

    def _score(self, part: slice) -> int:
        texts = [
            QWEN3_RERANKER.format_head(DEFAULT_INSTRUCTION, query) + " " + document
            for query, document in zip(self._queries[part], self._documents[part], strict=True)
        ]
        room = self._setting.max_length - len(self._prefix) - len(self._suffix)
        ids = self._tokenizer(
            texts, padding=False, truncation="longest_first", return_attention_mask=False, max_length=room
        )["input_ids"]
        whole = [self._prefix + token_ids + self._suffix for token_ids in ids]
        inputs = self._tokenizer.pad({"input_ids": whole}, padding=True, return_tensors="pt").to(self._device)
        logits = self._model(**inputs).logits[:, -1, :]
        both = self._torch.stack([logits[:, self._no], logits[:, self._yes]], dim=1)
        self._torch.nn.functional.log_softmax(both.float(), dim=1)[:, 1].exp().tolist()
        return sum(len(token_ids) for token_ids in whole)


class SentenceTransformers:
    """The CrossEncoder of sentence-transformers, where it is installed and takes the prompts of a yes/no reranker.

    It joins the two texts of a pair, or puts them into the chat template that a model brings; a folder without one needs the
    template written into the texts.
    """

    warms_up = True

    def __init__(self, setting: Setting) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise NotImplementedError("sentence-transformers is not installed")
        import torch
        from sentence_transformers import CrossEncoder

        queries, documents = read_pairs(setting)
        heads = [QWEN3_RERANKER.prefix + QWEN3_RERANKER.format_head(DEFAULT_INSTRUCTION, query) for query in queries]
        self._pairs = [
            (head, f" {document}{QWEN3_RERANKER.suffix}") for head, document in zip(heads, documents, strict=True)
        ]
        self._model: Any = CrossEncoder(
            setting.model,
            max_length=setting.max_length,
            device="cuda" if setting.on_gpu else "cpu",
            model_kwargs={"dtype": getattr(torch, setting.dtype)},
        )
        prompts = make_encoder(setting).encode(queries, documents)
        expected = prompts.ids_at(np.arange(1))[0].tolist()
        if self._model.preprocess(self._pairs[:1])["input_ids"][0].tolist() != expected:
            raise NotImplementedError("its CrossEncoder makes other prompts of the pairs")
        self._tokens = int(prompts.num_tokens.sum())

    def run_round(self) -> Round:
        """Score the pairs in one call."""
        with Meter() as meter:
            started = time.time()
            self._model.predict(self._pairs, batch_size=32, show_progress_bar=False)
            ended = time.time()
        cpu_seconds = meter.count_cpu_seconds(started, ended)
        return Round(len(self._pairs), self._tokens, ended - started, cpu_seconds, meter.peak_bytes, 0.0)


CONTENDERS: dict[str, type[Any]] = {
    "job": WholeJob,
    "engine": EngineAlone,
    "ray-data-llm": RayDataLlm,
    "card-vllm": CardVllm,
    "card-transformers": CardTransformers,
    "sentence-transformers": SentenceTransformers,
}


def main(arguments: Sequence[str]) -> None:
    """Run one contender: its name and a setting as JSON are the arguments, each line of input asks for a round."""
    import json

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not belong to the answers
    name, text = arguments
    setting = Setting(**json.loads(text))
    if not setting.on_gpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by default it is most of the machine's memory
    try:
        contender: Contender = CONTENDERS[name](setting)
    except NotImplementedError as error:
        answers.write(json.dumps({"left_out": str(error)}) + "\n")
        return
    answers.write(json.dumps({"warms_up": contender.warms_up}) + "\n")
    for _ in sys.stdin:
        answers.write(json.dumps(contender.run_round().to_dict()) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
