"""The vLLM engine: prefill only, one logit a prompt, from the yes and no rows of the original checkpoint's head.

vLLM turns the causal checkpoint into a classifier whose single row is yes minus no, in float32, so the logit is that
of the model card's recipe and no softmax over 151,669 words is computed. What was found with vLLM 0.32: prompts must
not be split over steps (pooled scores were wrong in some versions), so chunked prefill is off and a batch holds at
least one longest prompt; the engine core runs inside this process, because a core in a child process outlives a
killed actor and keeps its GPU; and one bad prompt loses a whole call, so lengths are checked before it.
"""

import contextlib
import functools
import gc
import logging
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer

from rerank_actor.engines.base import EngineSpec, allow_noise, let_threads_sleep
from rerank_actor.engines.families.description import (
    EmbeddingHead,
    LabelHead,
    ModelDescription,
)
from rerank_actor.engines.model import fetch_weights
from rerank_actor.engines.vectors import finish_vectors, make_outputs
from rerank_actor.errors import EngineError, EngineMemoryError, EngineStartError, ModelError, describe_cause

BATCH_TOKENS = 16_384
LEAST_BATCH_TOKENS = 64
GPU_MEMORY_SHARE = 0.9  # of what is free of a GPU, for the engines that share it
BLOCK_SIZE = (
    64  # costs less than smaller ones, and the 64 tokens that all prompts share are reused; the CPU build takes 128
)


PATHS = ("prefill", "core")  # to the model besides the public call, the shortest first; both lean on internals

logger = logging.getLogger(__name__)


_Compute = Callable[[Sequence[np.ndarray], Sequence[int]], np.ndarray]


def _prepare_environment() -> None:
    """Set what vLLM reads at import; a value that the user set stays."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Standard output is the program's own; what vLLM warns of is of other uses than this ("may produce inaccurate relevance
    # scores" for want of a chat template, while the prompts are those of the model card).
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    let_threads_sleep()


@contextlib.contextmanager
def _pause_collection() -> Iterator[None]:
    """Let Python not look for garbage among what is imported and built to stay; a quarter of a start went into that."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


class VllmEngine:
    """A reranker run by vLLM in this process.

    vLLM ends the process groups of all engines of a process when one of them is shut down or collected as garbage (0.32), so
    that the last to be closed alone is shut down; of the others the model is dropped.
    """

    name = "vllm"
    _open: ClassVar["weakref.WeakSet[VllmEngine]"] = weakref.WeakSet()

    def __init__(self, spec: EngineSpec) -> None:
        _prepare_environment()
        with _pause_collection():
            import torch
            import vllm
            from vllm.platforms import current_platform

            vllm.LLM  # noqa: B018 - imported when it is first looked at

        self.version = str(vllm.__version__)
        self.dtype = spec.dtype
        self._max_length = spec.max_length
        folder = fetch_weights(spec.model)
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            _set_cpu_cache(folder, spec)
        arguments: dict[str, Any] = {
            "model": str(folder),
            "runner": "pooling",
            "load_format": "safetensors",  # never a pickle
            "trust_remote_code": spec.model.trust_remote_code,
            "dtype": spec.dtype,
            "max_model_len": spec.max_length,
            "max_num_batched_tokens": max(BATCH_TOKENS, spec.max_length),
            "max_num_seqs": 256 if on_cpu else 1024,
            "block_size": BLOCK_SIZE,
            "tensor_parallel_size": spec.tensor_parallel_size,
            "disable_log_stats": True,
        }
        if spec.gpu_share < 1:
            arguments["gpu_memory_utilization"] = round(GPU_MEMORY_SHARE * spec.gpu_share, 3)
        if on_cpu:
            arguments["enforce_eager"] = True  # compiling takes a minute, which a CPU run seldom earns back
        arguments["hf_overrides"] = make_overrides(spec.model.name, spec.model.description, folder)
        if spec.model.description.runtime.loading == "gte":
            from rerank_actor.engines.families.gte import take_class

            arguments["hf_overrides"] = take_class
        if not spec.model.description.is_encoder:
            arguments |= {"enable_chunked_prefill": False, "enable_prefix_caching": True}
        else:
            del arguments["block_size"]
        head = spec.model.description.head
        if isinstance(head, EmbeddingHead):
            from vllm.config import PoolerConfig

            pooling: Any = {"last": "LAST", "mean": "MEAN", "cls": "CLS"}[head.pooling]
            arguments |= {"convert": "embed", "pooler_config": PoolerConfig(seq_pooling_type=pooling)}
            arguments["enable_prefix_caching"] = False  # a mean is of all tokens, and texts share next to nothing
        arguments |= spec.engine_args
        try:
            with _pause_collection():
                self._llm: Any = vllm.LLM(**arguments)
        except TypeError as error:
            raise EngineStartError(f"--engine-args: vLLM {self.version} refuses an argument ({error})") from error
        client = self._llm.llm_engine.engine_core
        if hasattr(client, "engine_core"):  # of this process
            client._finalizer.detach()
        self._open.add(self)
        self._batch_tokens = int(arguments["max_num_batched_tokens"])
        self._call_tokens = sys.maxsize
        self._vocabulary = int(self._llm.llm_engine.vllm_config.model_config.get_vocab_size())
        self._has_segments = spec.model.description.template.has_segments
        self._head = head
        self._outputs = (head.row, head.minus) if isinstance(head, LabelHead) else (0, None)
        self._make_parameters = functools.cache(functools.partial(_make_parameters, vllm.PoolingParams))
        self._to_prompt = vllm.TokensPrompt
        self._torch = torch
        self.cached_tokens = 0
        self._feeds: dict[str, Any] = {}
        self._max_num_seqs = int(arguments["max_num_seqs"])
        self.path, self._compute, self._forget = "classify", self._classify, self._forget_classify
        if isinstance(head, EmbeddingHead):
            self.path, self._compute = "embed", self._embed
            return
        self._choose_path([np.array(ids, np.int32) for ids in spec.check_prompts], spec.check_heads)

    def _choose_path(self, prompts: Sequence[np.ndarray], heads: Sequence[int]) -> None:
        """Take the shortest way to the model that gives some prompts the logits of the public call."""
        try:
            expected = self._classify(prompts, heads)
        except Exception:
            logger.warning("vLLM %s fails on the built-in pairs", self.version, exc_info=True)
            self._recover()
            return
        if not np.isfinite(expected).all():
            return  # the engine's check says more about it
        shared = heads if self._has_segments else [len(prompt) for prompt in prompts]
        for name in PATHS:
            try:
                self.take_path(name)
                logits = self._compute(prompts, shared)
                with self._make_small_steps(name, 2 * max(len(prompt) for prompt in prompts)):
                    again = self._compute(prompts[::-1], shared[::-1])[::-1]  # reads what the first left in the cache
            except Exception as error:
                reason = describe_cause(error)
            else:
                difference = float(np.abs([logits - expected, again - expected]).max())
                if difference <= allow_noise(self.dtype, expected):
                    return
                reason = f"it is off by {difference:.3g}"
            logger.warning("vLLM %s is not fed by way of %s, so that scoring is slower: %s", self.version, name, reason)
            self._recover()
            if self._llm is None:
                return
        self.take_path("classify")

    @contextlib.contextmanager
    def _make_small_steps(self, name: str, tokens: int) -> Iterator[None]:
        """Let few prompts be several steps, so that a trial has some that overlap."""
        if name != "prefill":
            yield
            return
        feed = self._feeds[name]
        before, feed.budget = feed.budget, tokens
        try:
            yield
        finally:
            feed.budget = before

    def take_path(self, name: str) -> None:
        """Give prompts to the model from now on by a way of `PATHS`, or by vLLM's public call, `classify`.

        Raises:
            Exception: any, where this vLLM or the model is of a kind that the way does not know; the old way stays.
        """
        if name == "classify":
            compute, forget = self._classify, self._forget_classify
        else:
            if name not in self._feeds:
                self._feeds[name] = self._make_feed(name)
            feed = self._feeds[name]
            compute, forget = functools.partial(self._feed, feed), feed.forget
        self._recover()
        self.path, self._compute, self._forget = name, compute, forget

    def _make_feed(self, name: str) -> Any:
        if name == "prefill":
            from rerank_actor.engines.vllm_prefill import PrefillFeed

            return PrefillFeed(self._llm, self._max_num_seqs, self._outputs, has_segments=self._has_segments)
        from rerank_actor.engines.vllm_core import CoreFeed

        return CoreFeed(self._llm, self._max_num_seqs, self._outputs, has_segments=self._has_segments)

    def compute_logits(self, prompts: Sequence[np.ndarray], head_tokens: Sequence[int] | None = None) -> np.ndarray:
        """Return float32 [num_prompts], or [num_prompts, size] of an embedding model; order of the input."""
        if self._llm is None:
            raise EngineError("the engine is closed")
        if not prompts:
            return make_outputs(self._head, 0)
        longest = max(len(prompt) for prompt in prompts)
        if longest > self._max_length or min(len(prompt) for prompt in prompts) == 0:
            raise EngineError(f"a prompt of {longest} tokens does not fit the engine's {self._max_length}")
        tokens = np.concatenate(prompts)
        if tokens.min() < 0 or tokens.max() >= self._vocabulary:
            raise EngineError(f"token {tokens.max()} is not in the model's vocabulary of {self._vocabulary}")
        if head_tokens is None and self._has_segments:
            raise EngineError("where the second text begins is not known, and the model has segment ids")
        heads = [0] * len(prompts) if head_tokens is None else head_tokens
        logits = make_outputs(self._head, len(prompts))
        for start, stop in _split(prompts, self._call_tokens):
            logits[start:stop] = self._run(self._compute, prompts[start:stop], heads[start:stop])
        return logits

    def _run(self, compute: _Compute, prompts: Sequence[np.ndarray], head_tokens: Sequence[int]) -> np.ndarray:
        try:
            return compute(prompts, head_tokens)
        except (self._torch.OutOfMemoryError, MemoryError) as error:
            self._recover()
            raise EngineMemoryError(f"memory ran out on a batch ({describe_cause(error)})") from error
        except Exception as error:
            self._recover()
            raise EngineError(f"vLLM failed on a batch ({describe_cause(error)})") from error
        except BaseException:  # stopped on the way, as by Ctrl-C, after which some go on
            self._recover()
            raise

    def _feed(self, feed: Any, prompts: Sequence[np.ndarray], head_tokens: Sequence[int]) -> np.ndarray:
        """Compute through the engine core."""
        logits, cached_tokens = feed.compute(prompts, head_tokens)
        self.cached_tokens += cached_tokens
        return np.asarray(logits, np.float32)

    def _classify(self, prompts: Sequence[np.ndarray], head_tokens: Sequence[int]) -> np.ndarray:
        """Compute through vLLM's public call, which finds out by itself what prompts share."""
        requests = [self._to_prompt(prompt_token_ids=prompt.tolist()) for prompt in prompts]
        parameters: Any = self._make_parameters(None)
        if self._has_segments:
            parameters = [self._make_parameters(int(start)) for start in head_tokens]
        outputs = self._llm.classify(requests, pooling_params=parameters, use_tqdm=False)
        if len(outputs) != len(prompts):
            raise ValueError(f"{len(outputs)} results for {len(prompts)} prompts")
        self.cached_tokens += sum(output.num_cached_tokens or 0 for output in outputs)
        plus, minus = self._outputs
        logits = np.fromiter((output.outputs.probs[plus] for output in outputs), np.float32, len(outputs))
        if minus is not None:
            logits -= np.fromiter((output.outputs.probs[minus] for output in outputs), np.float32, len(outputs))
        return logits

    def _embed(self, prompts: Sequence[np.ndarray], head_tokens: Sequence[int]) -> np.ndarray:
        """Compute vectors through vLLM's public call, not normalised there because they may be cut first."""
        requests = [self._to_prompt(prompt_token_ids=prompt.tolist()) for prompt in prompts]
        outputs = self._llm.embed(requests, pooling_params=self._make_parameters(None), use_tqdm=False)
        if len(outputs) != len(prompts) or not isinstance(self._head, EmbeddingHead):
            raise ValueError(f"{len(outputs)} results for {len(prompts)} prompts")
        return finish_vectors(self._head, np.array([output.outputs.embedding for output in outputs], np.float32))

    def forget(self) -> None:
        """Empty the prefix cache, or close the engine where that cannot be done."""
        self._recover()

    def _recover(self) -> None:
        """Make the engine forget a batch that failed, or close it.

        The batch's requests would be computed with the next call's. Its blocks stand in the prefix cache, where vLLM
        enters them before they are computed, so that later prompts would read keys and values that were never written.
        """
        try:
            if not self._forget():
                self.close()
        except Exception:  # whatever it is, the engine cannot be trusted
            logger.exception("vLLM could not be brought back to order")
            self.close()

    def _forget_classify(self) -> bool:
        engine = self._llm.llm_engine
        with contextlib.suppress(ImportError, AttributeError):  # not in this process, or a vLLM that is built otherwise
            from rerank_actor.engines.vllm_core import drain_steps

            drain_steps(engine.engine_core.engine_core)
        engine.abort_request(list(engine.output_processor.request_states), internal=True)
        return not engine.has_unfinished_requests() and bool(engine.reset_prefix_cache())

    def shrink_batches(self) -> int | None:
        """Halve the tokens that are given to vLLM at once; its own budget is fixed when it starts."""
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()
        self._call_tokens = min(self._call_tokens, self._batch_tokens) // 2
        return self._call_tokens if self._call_tokens >= LEAST_BATCH_TOKENS else None

    def close(self) -> None:
        """Drop the model and the cache."""
        self._open.discard(self)
        with contextlib.suppress(AttributeError):
            client = self._llm.llm_engine.engine_core
            core = getattr(client, "engine_core", client)
            (core.model_executor if core is not client and self._open else core).shutdown()
        self._llm = None
        self._feeds.clear()
        self._compute, self._forget = self._classify, self._forget_classify
        gc.unfreeze()  # what stays out of the collector's sight since the start is garbage now
        gc.collect()
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()


def make_overrides(name: str, description: ModelDescription, folder: Path) -> dict[str, Any]:
    """Return what vLLM is told of a model besides its `config.json`.

    Raises:
        ModelError: a token of its head has no name that stands for it alone.
    """
    overrides: dict[str, Any] = {"architectures": [description.runtime.vllm]}
    if description.runtime.loading == "bidirectional":
        overrides["pooling"] = "avg"
    head = description.head
    if isinstance(head, LabelHead | EmbeddingHead):
        return overrides
    answers = [_name_token(name, folder, token) for token in (head.false_id, head.true_id) if token is not None]
    if description.runtime.vllm == "Qwen3ForSequenceClassification" and len(answers) == 2:
        return overrides | {"classifier_from_token": answers, "is_original_qwen3_reranker": True}
    method = "from_2_way_softmax" if len(answers) == 2 else "no_post_processing"
    return overrides | {"classifier_from_token": answers, "method": method}


def _name_token(name: str, folder: Path, token_id: int) -> str:
    """Return the name by which vLLM finds a token."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token = tokenizer.id_to_token(token_id)
    if token is None or tokenizer.token_to_id(token) != token_id:
        raise ModelError(
            f"{name}: its score is that of token {token_id}, which its vocabulary does not have", model=name
        )
    return str(token)


def _make_parameters(pooling_params: Any, segment_start: int | None) -> Any:
    """Return what a request asks for: the raw output, of a prompt whose second text begins somewhere."""
    extra = None if segment_start is None else {"compressed_token_type_ids": segment_start}
    return pooling_params(use_activation=False, extra_kwargs=extra)


def _split(prompts: Sequence[np.ndarray], budget: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of prompts within a budget of tokens, a prompt that is over it alone."""
    start = tokens = 0
    for position, prompt in enumerate(prompts):
        if position > start and tokens + len(prompt) > budget:
            yield start, position
            start, tokens = position, 0
        tokens += len(prompt)
    yield start, len(prompts)


def _set_cpu_cache(folder: Any, spec: EngineSpec) -> None:
    """Give the CPU build a cache that holds a few of the longest prompts, at least one GiB."""
    import json

    config = json.loads((folder / "config.json").read_text())
    heads = int(config.get("num_key_value_heads") or config.get("num_attention_heads") or 1)
    width = int(
        config.get("head_dim") or int(config.get("hidden_size", 1024)) // int(config.get("num_attention_heads", 1))
    )
    token_bytes = 2 * int(config.get("num_hidden_layers", 1)) * heads * width * (4 if spec.dtype == "float32" else 2)
    gibibytes = math.ceil(max(BATCH_TOKENS, spec.max_length) * 1.25 * token_bytes / 2**30)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, gibibytes)))
