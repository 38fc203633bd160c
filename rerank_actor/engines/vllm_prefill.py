"""A scheduler for prefill alone: steps of whole prompts, made here while the one before is computed by vLLM's executor.

A prompt lives for one step, has no output tokens and is never preempted, so that a request, its state and most of vLLM's
scheduler fall away. The full blocks of a prompt's head are held under the tokens that they stand for, least recently used
ones give way; all others go straight back. It stands beside vLLM's scheduler (`scheduler_cls` would put it in its place) so
that `VllmEngine` can compare both when it starts. While it is used, the cache's blocks are its own. Leans on internals of
vLLM 0.32; takes one group of full attention, or none. Knows nothing of models, dtypes or memory that runs out.
"""

import contextlib
import functools
import itertools
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec

from rerank_actor.engines.vllm_core import make_parameters

SPREADS = ("pipeline", "decode_context", "prefill_context")  # of a step's prompts, or of a block's tokens, over workers


@dataclass
class _Held:
    """A block that the cache holds, and the number of the last step that reads or writes it."""

    block: int
    step: int


@dataclass
class _Step:
    """Prompts that are computed at once.

    Attributes:
        number: of the step, in the order in which they are built.
        first: position of its first prompt.
        requests: what vLLM is given, by name.
        tokens: of each, those to compute.
        blocks: that go back when it ends.
        cached: tokens that need not be computed.
        finished: names of ended requests that the model runner is told of.
        result: of the executor, once it has begun.
    """

    number: int
    first: int
    requests: list[Any] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    blocks: list[int] = field(default_factory=list)
    cached: int = 0
    finished: set[str] = field(default_factory=set)
    result: Any = None


class PrefillFeed:
    """Feeds the executor of an `LLM` whose engine core runs in this process; arguments are those of `CoreFeed`.

    Attributes:
        budget: tokens of a step.
        steps_under_way: at most; two where this vLLM schedules ahead (`async_scheduling`), as its model runner then leaves
            alone what a step still reads, else one.

    Raises:
        AttributeError, TypeError: this vLLM is built otherwise, or the model's cache is of a kind that is not known here.
    """

    def __init__(
        self, llm: Any, max_num_seqs: int, outputs: tuple[int, int | None] = (0, None), *, has_segments: bool = False
    ) -> None:
        self._core = llm.llm_engine.engine_core.engine_core
        self._scheduler, self._executor = self._core.scheduler, self._core.model_executor
        config = llm.llm_engine.vllm_config
        cache = self._scheduler.kv_cache_config
        specs = [group.kv_cache_spec for group in cache.kv_cache_groups]
        if len(specs) > 1 or any(type(spec) is not FullAttentionSpec for spec in specs):
            raise TypeError("the model's cache is not of one group of full attention")
        if (
            any(getattr(config.parallel_config, f"{kind}_parallel_size", 1) > 1 for kind in SPREADS)
            or getattr(cache, "needs_kv_cache_zeroing", False)
            or self._scheduler.connector is not None
        ):
            raise TypeError("steps are more than their prompts")
        longest = int(config.model_config.max_model_len)
        if int(self._scheduler.max_num_scheduled_tokens) < longest:
            raise TypeError("a step does not hold a prompt of the greatest length")
        if specs and (int(cache.num_blocks) - 1) * int(specs[0].block_size) < longest:
            raise TypeError("the cache does not hold a prompt of the greatest length")
        self._num_groups = len(specs)
        self._block_size = int(specs[0].block_size) if specs else 0
        self._num_blocks = int(cache.num_blocks) if specs else 0
        self._shares = bool(specs) and bool(config.cache_config.enable_prefix_caching)
        self.budget = int(self._scheduler.max_num_scheduled_tokens)
        self.steps_under_way = int(self._core.batch_queue_size)
        self._most_under_way = min(max_num_seqs, int(self._scheduler.max_num_running_reqs))
        self._outputs = outputs
        self._is_second_runner = bool(getattr(config, "use_v2_model_runner", False))
        make = functools.cache(functools.partial(make_parameters, config.model_config))
        self._parameters = make if has_segments else lambda start: make(None)
        self._finished: set[str] = set()
        self._number = self._ended = self._requests = 0
        self._under_way: deque[_Step] = deque()
        self._is_at_rest = True
        self._clear()

    def _clear(self) -> None:
        self._free = list(range(self._num_blocks - 1, 0, -1))  # block 0 is vLLM's own, for nothing
        self._held: OrderedDict[bytes, _Held] = OrderedDict()  # a head's blocks stand from its last to its first

    def compute(self, prompts: Sequence[np.ndarray], head_tokens: Sequence[int]) -> tuple[np.ndarray, int]:
        """Return the logit of each prompt, and how many of their tokens came from the cache; as `CoreFeed.compute` does."""
        if not self._is_at_rest and not self.forget():
            raise RuntimeError("steps of an earlier call cannot be ended")
        self._is_at_rest = False
        self._take_over()
        logits = np.empty(len(prompts), np.float32)
        given = cached = 0
        ahead = _Step(0, 0)
        while True:
            if not ahead.requests:
                ahead = self._build(prompts, head_tokens, given)
            if ahead.requests and len(self._under_way) < self.steps_under_way:
                step, ahead = ahead, _Step(0, 0)
                self._begin(step)
                given += len(step.requests)
                if not step.result.done():
                    continue
            if not self._under_way:
                break
            step = self._under_way[0]
            logits[step.first : step.first + len(step.requests)] = self._read(step)
            cached += step.cached
            self._end(step)
        if given < len(prompts):
            raise RuntimeError(f"no room for a prompt of {len(prompts[given])} tokens")
        self._is_at_rest = True
        return logits, cached

    def _take_over(self) -> None:
        """Take from vLLM's own scheduler the ended requests that it has not told of; if it has any, it wrote into blocks."""
        if self._scheduler.has_unfinished_requests():
            raise RuntimeError("vLLM's scheduler has requests of its own")
        if not self._scheduler.finished_req_ids:
            return
        if not self._core.reset_prefix_cache():
            raise RuntimeError("vLLM's scheduler holds blocks")
        self._clear()
        self._finished |= self._scheduler.finished_req_ids
        self._scheduler.finished_req_ids = set()

    def _build(self, prompts: Sequence[np.ndarray], head_tokens: Sequence[int], first: int) -> _Step:
        """Return a step of the prompts from a position on, as many as there is room for."""
        self._number += 1
        step = _Step(self._number, first)
        room = self.budget
        beside = itertools.islice(reversed(self._under_way), self.steps_under_way - 1)  # when it begins
        places = self._most_under_way - sum(len(other.requests) for other in beside)
        head: bytes = b""
        chain: list[int] = []
        for position in range(first, min(first + places, len(prompts))):
            prompt, start = prompts[position], int(head_tokens[position])
            shared = self._count_shared(len(prompt), start)
            key = prompt[: shared * self._block_size].astype(np.int32, copy=False).tobytes()
            new = 0
            if key != head:
                chain, new = self._find_head(key, shared, step.number)
            computed = (len(chain) - new) * self._block_size
            own = -(-len(prompt) // self._block_size) - len(chain) + new if self._num_groups else 0
            if len(prompt) - computed > room or not self._make_room(own):
                break
            blocks = self._free[len(self._free) - own :]
            del self._free[len(self._free) - own :]
            chain = self._hold(key, chain, blocks[:new], step.number) if new else chain
            head = key
            step.blocks += blocks[new:]
            self._requests += 1
            name = f"prefill-{self._requests}"
            tokens = prompt.tolist()
            step.requests.append(
                NewRequestData(
                    req_id=name,
                    prompt_token_ids=tokens,
                    mm_features=[],
                    sampling_params=None,
                    pooling_params=self._parameters(start),
                    block_ids=(chain + blocks[new:],) if self._num_groups else (),
                    num_computed_tokens=computed,
                    lora_request=None,
                    prefill_token_ids=tokens if self._is_second_runner else None,
                )
            )
            step.tokens[name] = len(prompt) - computed
            step.cached += computed
            room -= len(prompt) - computed
        return step

    def _count_shared(self, num_tokens: int, head_tokens: int) -> int:
        """Return how many leading blocks of a prompt others may read; one token at least is computed."""
        return min(head_tokens, num_tokens - 1) // self._block_size if self._shares else 0

    def _find_head(self, key: bytes, shared: int, number: int) -> tuple[list[int], int]:
        """Return the blocks of a head, zeros for those that are not held, and how many these are."""
        size = self._block_size * np.dtype(np.int32).itemsize
        found = []
        for end in range(size, shared * size + 1, size):
            held = self._held.get(key[:end])
            if held is None:
                break
            held.step = number
            found.append(held.block)
        for end in range(len(found) * size, 0, -size):
            self._held.move_to_end(key[:end])
        return found + [0] * (shared - len(found)), shared - len(found)

    def _hold(self, key: bytes, chain: list[int], new: list[int], number: int) -> list[int]:
        """Hold a head's new blocks and return all of them."""
        chain = chain[: len(chain) - len(new)] + new
        size = len(key) // len(chain)
        for index in range(len(chain) - 1, -1, -1):
            part = key[: (index + 1) * size]
            self._held[part] = _Held(chain[index], number)
            self._held.move_to_end(part)
        return chain

    def _make_room(self, count: int) -> bool:
        """Return whether so many blocks are free, once heads that no step under way needs have given way."""
        while len(self._free) < count:
            key = next(iter(self._held), None)
            if key is None or self._held[key].step > self._ended:
                return False
            self._free.append(self._held.pop(key).block)
        return True

    def _begin(self, step: _Step) -> None:
        step.finished, self._finished = self._finished, set()
        self._under_way.append(step)
        output = SchedulerOutput.make_empty()
        output.scheduled_new_reqs = step.requests
        output.num_scheduled_tokens = step.tokens
        output.total_num_scheduled_tokens = sum(step.tokens.values())
        output.finished_req_ids = step.finished
        output.num_common_prefix_blocks = [0] * self._num_groups
        step.result = self._executor.execute_model(output, non_block=True)

    def _read(self, step: _Step) -> np.ndarray:
        """Wait for a step and return its logits, in the order of its prompts."""
        output = step.result.result()
        names = list(step.tokens)
        results = output.pooler_output
        if output.req_ids != names:
            results = [results[output.req_id_to_index[name]] for name in names]
        values = torch.stack(results).float().reshape(len(names), -1).numpy()
        plus, minus = self._outputs if values.shape[1] > 1 else (0, None)
        return np.asarray(values[:, plus] if minus is None else values[:, plus] - values[:, minus], np.float32)

    def _end(self, step: _Step) -> None:
        self._under_way.popleft()
        self._free += step.blocks
        self._finished.update(step.tokens)
        self._ended = step.number

    def forget(self) -> bool:
        """Drop all steps and heads; return whether vLLM's scheduler can go on as after its start."""
        for step in self._under_way:
            if step.result is not None:
                with contextlib.suppress(Exception):
                    step.result.result()  # a step under way would write into blocks that are given to others
            self._finished |= step.finished | step.tokens.keys()
        self._under_way.clear()
        self._ended = self._number
        self._clear()
        self._scheduler.finished_req_ids |= self._finished
        self._finished = set()
        self._is_at_rest = not self._scheduler.has_unfinished_requests() and bool(self._core.reset_prefix_cache())
        return self._is_at_rest
