"""The way into vLLM's engine core without its front end: requests in, logits out, for an engine of this process.

For a prompt of 200 tokens `LLM.classify` costs twice what the core alone does, and hashing every block of every document
for the prefix cache up to half of the core's share. Here requests are made directly, and only the blocks of a prompt's
head (prefix, instruction, query), which other prompts share, are hashed, once for each head. Blocks without a hash are
reused first, so that the cache is left to heads and holds many thousands of them. This leans on internals of vLLM 0.32;
`VllmEngine` compares it with the public call when it starts, and does without it where they differ. Knows nothing of
models, dtypes or memory that runs out.
"""

import contextlib
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm import PoolingParams
from vllm.v1.request import Request, RequestStatus

BATCHES_WAITING = 2  # in the scheduler's queue, so that each step finds a full batch


class CoreFeed:
    """Feeds the engine core of an `LLM`.

    Args:
        llm: a `vllm.LLM` whose core runs in this process.
        max_num_seqs: sequences of one step.
        outputs: which of the classifier's is the logit, and which is taken off it or None.
        has_segments: whether the model is told where the second text of a prompt begins.

    Raises:
        AttributeError, TypeError: this vLLM is built otherwise.
    """

    def __init__(
        self, llm: Any, max_num_seqs: int, outputs: tuple[int, int | None] = (0, None), *, has_segments: bool = False
    ) -> None:
        self._core = llm.llm_engine.engine_core.engine_core
        self._scheduler = self._core.scheduler
        config = llm.llm_engine.vllm_config
        self._outputs = outputs
        make = functools.cache(functools.partial(make_parameters, config.model_config))
        self._parameters = make if has_segments else lambda start: make(None)
        self._most_waiting = BATCHES_WAITING * max_num_seqs
        self._block_size = int(config.cache_config.block_size) if config.cache_config.enable_prefix_caching else 0
        self._number = 0
        if self._block_size:
            self._limit_caching(self._scheduler.kv_cache_manager.block_pool)

    def _limit_caching(self, pool: Any) -> None:
        """Let the cache take in those full blocks alone that have a hash."""
        if pool.hash_block_size != self._block_size:
            raise TypeError("blocks are hashed in pieces")
        cache_full_blocks = pool.cache_full_blocks

        def cache_hashed_blocks(
            request: Any, blocks: Any, num_cached_blocks: int, num_full_blocks: int, *arguments: Any, **named: Any
        ) -> None:
            hashed = min(num_full_blocks, len(request.block_hashes))
            if hashed > num_cached_blocks:
                cache_full_blocks(request, blocks, num_cached_blocks, hashed, *arguments, **named)

        pool.cache_full_blocks = cache_hashed_blocks

    def compute(self, prompts: Sequence[np.ndarray], head_tokens: Sequence[int]) -> tuple[np.ndarray, int]:
        """Return the logit of each prompt, and how many of their tokens came from the prefix cache.

        Args:
            prompts: int32 arrays of token ids.
            head_tokens: leading tokens of each prompt that others may share; of them full blocks are cached. Where the model
                has segment ids, the second text begins there.
        """
        logits = np.empty(len(prompts), np.float32)
        first, self._number = self._number, self._number + len(prompts)
        hashes: dict[bytes, list[bytes]] = {}
        given = done = cached = 0
        while done < len(prompts):
            while given < len(prompts) and given - done < self._most_waiting:
                self._scheduler.add_request(
                    self._make_request(first + given, prompts[given], int(head_tokens[given]), hashes)
                )
                given += 1
            outputs, _ = self._core.step_fn()
            for output in outputs[0].outputs if outputs and 0 in outputs else ():
                logits[int(output.request_id) - first] = self._read(output.pooling_output)
                if output.prefill_stats is not None:
                    cached += output.prefill_stats.num_cached_tokens
                done += 1
        return logits, cached

    def _read(self, output: Any) -> float:
        plus, minus = self._outputs
        if output.numel() == 1:
            return float(output.item())
        values = output.float().flatten()
        return float(values[plus] if minus is None else values[plus] - values[minus])

    def _make_request(self, number: int, prompt: np.ndarray, head_tokens: int, hashes: dict[bytes, list[bytes]]) -> Any:
        request = Request(str(number), prompt.tolist(), None, self._parameters(head_tokens))
        if self._block_size:
            shared = prompt[: head_tokens // self._block_size * self._block_size]
            key = shared.tobytes()
            if key not in hashes:
                hashes[key] = _hash_blocks(shared, self._block_size)
            request.block_hashes = hashes[key]
        return request

    def forget(self) -> bool:
        """Drop all requests and the cache; return whether the core can go on as after its start."""
        drain_steps(self._core)
        self._scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        return not self._scheduler.has_unfinished_requests() and bool(self._core.reset_prefix_cache())


def drain_steps(core: Any) -> None:
    """Wait for steps under way, which would write into blocks that are given to others, and drop what they give."""
    while core.batch_queue:
        with contextlib.suppress(Exception):
            core.batch_queue.pop()[0].result()


def make_parameters(model_config: Any, segment_start: int | None) -> PoolingParams:
    """Return what a request asks for: the raw output, of a prompt whose second text begins somewhere."""
    extra = None if segment_start is None else {"compressed_token_type_ids": segment_start}
    parameters = PoolingParams(task="classify", use_activation=False, extra_kwargs=extra)
    parameters.verify(model_config)
    return parameters


def _hash_blocks(tokens: np.ndarray, block_size: int) -> list[bytes]:
    """Return a hash of each block that stands for it and all before it, as vLLM's own do."""
    hashes, before = [], b""
    for start in range(0, len(tokens), block_size):
        before = hashlib.sha256(before + tokens[start : start + block_size].tobytes()).digest()
        hashes.append(before)
    return hashes
