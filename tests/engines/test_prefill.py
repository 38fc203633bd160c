"""The scheduler for prefill alone, on an executor that keeps what stands in each block and looks at what is read."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.vllm

BLOCK = 4
MAX_LENGTH = 32


class CheckedExecutor:
    """Computes steps when they are asked for, in the order in which they began, as a device does."""

    def __init__(self, num_blocks: int, fail_at: int | None = None) -> None:
        self.blocks: dict[int, list[int]] = {}
        self.num_blocks, self.fail_at = num_blocks, fail_at
        self.begun: list[Any] = []
        self.live: set[str] = set()
        self.steps: list[list[str]] = []
        self.most_under_way = 0

    def execute_model(self, output: Any, non_block: bool) -> Any:
        import torch

        executor = self
        self.live -= output.finished_req_ids
        self.live |= output.num_scheduled_tokens.keys()
        self.steps.append(list(output.num_scheduled_tokens))

        class Answer(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                while self in executor.begun:
                    executor.begun.pop(0).compute()
                return super().result()

            def compute(self) -> None:
                number = len(executor.steps) - len(executor.begun) - 1
                if number == executor.fail_at:
                    executor.fail_at = None
                    self.set_exception(RuntimeError("a kernel failed"))
                    return
                values = executor.compute(output.scheduled_new_reqs)
                names = list(output.num_scheduled_tokens)[::-1]  # a runner may order its batch otherwise
                self.set_result(
                    SimpleNamespace(
                        req_ids=names,
                        req_id_to_index={name: index for index, name in enumerate(names)},
                        pooler_output=[torch.tensor([values[name]]) for name in names],
                    )
                )

        answer = Answer()
        self.begun.append(answer)
        self.most_under_way = max(self.most_under_way, len(self.begun))
        return answer

    def compute(self, requests: list[Any]) -> dict[str, float]:
        """Write all blocks of a step, then read them."""
        written: dict[int, str] = {}
        for request in requests:
            (blocks,), tokens = request.block_ids, request.prompt_token_ids
            assert len(blocks) == -(-len(tokens) // BLOCK)
            assert request.num_computed_tokens % BLOCK == 0
            assert request.num_computed_tokens < len(tokens)
            for index in range(request.num_computed_tokens // BLOCK, len(blocks)):
                assert 0 < blocks[index] < self.num_blocks
                assert written.setdefault(blocks[index], request.req_id) == request.req_id
                self.blocks[blocks[index]] = tokens[index * BLOCK : (index + 1) * BLOCK]
        for request in requests:
            found = [token for block in request.block_ids[0] for token in self.blocks[block]]
            assert found == request.prompt_token_ids
        return {request.req_id: compute_logit(request.prompt_token_ids) for request in requests}


def compute_logit(tokens: list[int]) -> float:
    return float(sum(tokens) % 1009)


def make_feed(executor: CheckedExecutor, budget: int, seqs: int, steps: int = 2) -> Any:
    """Return a feed on an executor, with so many steps under way."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from rerank_actor.engines.vllm_prefill import PrefillFeed

    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    cache = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec)], num_blocks=executor.num_blocks)
    scheduler = SimpleNamespace(
        kv_cache_config=cache,
        connector=None,
        max_num_scheduled_tokens=budget,
        max_num_running_reqs=seqs,
        finished_req_ids=set(),
        has_unfinished_requests=lambda: False,
    )
    core = SimpleNamespace(
        scheduler=scheduler, model_executor=executor, batch_queue_size=steps, reset_prefix_cache=lambda: True
    )
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        cache_config=SimpleNamespace(enable_prefix_caching=True),
        model_config=SimpleNamespace(max_model_len=MAX_LENGTH),
    )
    engine = SimpleNamespace(engine_core=SimpleNamespace(engine_core=core), vllm_config=config)
    feed = PrefillFeed(SimpleNamespace(llm_engine=engine), seqs)
    feed._parameters = lambda start: None  # vLLM's want a model
    return feed


def make_prompts(seed: int) -> tuple[list[np.ndarray], list[int]]:
    """Return prompts of which many share heads, and heads their own beginnings."""
    rng = np.random.default_rng(seed)
    common = rng.integers(0, 50, 6)
    heads = [np.concatenate([common, rng.integers(0, 50, rng.integers(0, 14))]) for _ in range(12)]
    chosen = rng.integers(0, len(heads), 300) if seed % 2 else np.repeat(np.arange(12), 25)
    tails = [rng.integers(0, 50, rng.integers(0, 12)) for _ in chosen]
    prompts = [np.concatenate([heads[index], tail]).astype(np.int32) for index, tail in zip(chosen, tails, strict=True)]
    return prompts, [len(heads[index]) for index in chosen]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("seed", "num_blocks", "budget", "seqs"),
    [(0, 500, 200, 64), (1, 500, 200, 64), (2, 9, 32, 64), (3, 12, 40, 5), (4, 30, 32, 1), (5, 20, 64, 3)],
)
def test_prefill_reads_only_what_was_written_whatever_order_and_room(
    seed: int, num_blocks: int, budget: int, seqs: int, steps: int
) -> None:
    executor = CheckedExecutor(num_blocks)
    feed = make_feed(executor, budget, seqs, steps)
    prompts, heads = make_prompts(seed)
    expected = [compute_logit(prompt.tolist()) for prompt in prompts]
    for _ in range(2):
        logits, cached = feed.compute(prompts, heads)
        assert logits.tolist() == expected
    assert executor.most_under_way <= steps
    assert sum(len(step) for step in executor.steps) == 2 * len(prompts)
    assert len(executor.live) <= seqs
    if num_blocks == 500:
        assert executor.most_under_way == steps
        assert cached == sum(
            min(head, len(prompt) - 1) // BLOCK * BLOCK for prompt, head in zip(prompts, heads, strict=True)
        )


@pytest.mark.parametrize("steps", [1, 2])
def test_prefill_step_that_failed_leaves_nothing_that_later_ones_read(steps: int) -> None:
    for fail_at in range(6):
        executor = CheckedExecutor(40, fail_at)
        feed = make_feed(executor, 64, 16, steps)
        prompts, heads = make_prompts(1)
        with pytest.raises(RuntimeError, match="a kernel failed"):
            feed.compute(prompts, heads)
        if fail_at % 2:
            assert feed.forget()
        executor.blocks.clear()  # what a failed step has written is anybody's guess
        logits, _ = feed.compute(prompts[::-1], heads[::-1])
        assert logits.tolist() == [compute_logit(prompt.tolist()) for prompt in prompts[::-1]]
        feed.compute(prompts[:1], heads[:1])
        assert len(executor.live) == 1


@pytest.mark.parametrize("steps", [1, 2])
def test_prefill_stopped_before_a_step_began_does_not_take_its_heads_for_computed(steps: int) -> None:
    for stop_at in range(4):
        executor = CheckedExecutor(500)
        feed = make_feed(executor, 64, 16, steps)
        execute = executor.execute_model

        def stop(
            output: Any, non_block: bool, executor: Any = executor, execute: Any = execute, at: int = stop_at
        ) -> Any:
            if len(executor.steps) == at:
                executor.execute_model = execute
                raise KeyboardInterrupt
            return execute(output, non_block)

        executor.execute_model = stop  # type: ignore[method-assign]
        prompts, heads = make_prompts(1)
        with pytest.raises(KeyboardInterrupt):
            feed.compute(prompts, heads)
        executor.blocks.clear()
        logits, _ = feed.compute(prompts, heads)
        assert logits.tolist() == [compute_logit(prompt.tolist()) for prompt in prompts]


def test_prefill_builds_a_step_while_the_one_before_is_computed() -> None:
    executor = CheckedExecutor(500)
    feed = make_feed(executor, 64, 16, 1)
    read, build, order = feed._read, feed._build, []
    feed._build = lambda *given: (order.append("build"), build(*given))[1]
    feed._read = lambda step: (order.append("read"), read(step))[1]
    feed.compute(*make_prompts(0))
    assert order[:5] == ["build", "build", "read", "build", "read"]


def test_prefill_refuses_what_does_not_hold_the_longest_prompt() -> None:
    with pytest.raises(TypeError, match="a step does not hold"):
        make_feed(CheckedExecutor(500), MAX_LENGTH - 1, 4)
    with pytest.raises(TypeError, match="the cache does not hold"):
        make_feed(CheckedExecutor(MAX_LENGTH // BLOCK), 64, 4)
