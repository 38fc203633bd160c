"""A device that computes nothing: vLLM's own engine core runs on it as on a GPU, with the time that a GPU would need.

Takes a device and the tokens a second that a model reaches on it; answers a step after a fixed time and a time by its tokens,
in the background, one step after the other. Its clock is the CPU time of the thread that feeds it, so that a rehearsal on a
machine with other work says what a free core would do, and waiting costs nothing. What it answers is made from a prompt's
tokens and means nothing. Knows nothing of how steps are made, and leaves out the model runner's own preparation of inputs.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput

from rerank_actor.benchmark.weights import SHAPES

# Operations a second that large bfloat16 products reach: 80 % of the 989 and 121 TFLOP/s (dense) of NVIDIA's data sheets.
DEVICES = {"H200": 790e12, "H100": 790e12, "L4": 97e12}
UTILIZATION = 0.45  # of that, by a whole model in this library's steps; assumed until a GPU is measured
FIXED_SECONDS = 1e-3  # of a step: launching its kernels; assumed too
CACHE_BYTES = 2 << 30


@dataclass(frozen=True)
class Rate:
    """How fast a device answers: seconds of any step, and tokens that it computes a second besides."""

    fixed_seconds: float
    tokens_per_second: float


def reckon_rate(device: str, shape: str, tokens: float, cached: float, utilization: float = UTILIZATION) -> Rate:
    """Return the rate of a model on a device.

    Args:
        device: key of `DEVICES`.
        shape: key of `SHAPES`.
        tokens: of a prompt.
        cached: of them, those that are not computed.
        utilization: share of the device's operations that is reached.
    """
    operations = SHAPES[shape].count_flops(tokens - cached, (tokens**2 - cached**2) / 2)
    return Rate(FIXED_SECONDS, DEVICES[device] * utilization * (tokens - cached) / operations)


class _Answer(Future[ModelRunnerOutput]):
    """The result of a step, for which the device's clock moves on when it is asked for."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()
        self._wait = wait

    def result(self, timeout: float | None = None) -> ModelRunnerOutput:
        self._wait()
        return super().result(timeout)


class _Simulation:
    """What an executor of vLLM does, without a worker.

    Attributes:
        rate: how fast it answers; may be changed between rounds.
        busy_seconds: time in which the device had work since `reset`.
        own_seconds: CPU time of the simulation itself, which no figure holds.
    """

    rate = Rate(FIXED_SECONDS, 1e6)
    model_config: Any
    cache_config: Any
    parallel_config: Any

    def _init_executor(self) -> None:
        self.own_seconds = 0.0
        self.reset()

    def reset(self) -> None:
        """Begin to measure."""
        self.busy_seconds = self._waited = 0.0
        self._began = self._free_at = self._now()

    @property
    def busy_share(self) -> float:
        """Share of the time since `reset`, up to the end of the last step, in which the device had work."""
        return self.busy_seconds / max(self._free_at - self._began, 1e-9)

    def _now(self) -> float:
        return time.thread_time() - self.own_seconds + self._waited

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Begin a step."""
        now, began = self._now(), time.thread_time()
        requests = scheduler_output.scheduled_new_reqs
        names = [request.req_id for request in requests]
        values = [float(sum(request.prompt_token_ids[10:90:7]) % 97) for request in requests]
        output = ModelRunnerOutput(names, {name: index for index, name in enumerate(names)})
        output.pooler_output = list(torch.tensor(values).unsqueeze(1).unbind()) if values else []
        if scheduler_output.total_num_scheduled_tokens:
            seconds = (
                self.rate.fixed_seconds + scheduler_output.total_num_scheduled_tokens / self.rate.tokens_per_second
            )
            self._free_at = max(now, self._free_at) + seconds
            self.busy_seconds += seconds
        ends = self._free_at
        answer = _Answer(lambda: self._wait_until(ends))
        Future.set_result(answer, output)
        answer.done = lambda: self._now() >= ends  # type: ignore[method-assign]
        self.own_seconds += time.thread_time() - began
        return answer if non_block else answer.result()

    def _wait_until(self, at: float) -> None:
        self._waited += max(0.0, at - self._now())

    def collective_rpc(self, method: Any, *arguments: Any, **named: Any) -> Any:
        """Answer what vLLM asks of workers when it starts."""
        answers: dict[Any, Callable[[], Any]] = {
            "get_kv_cache_spec": self._describe_cache,
            "get_supported_kv_cache_layouts": lambda: ["LBNHC"],
            "determine_available_memory": lambda: CACHE_BYTES,
            "get_supported_tasks": lambda: ("classify",),
        }
        return [answers[method]() if method in answers else None]

    def compile_or_warm_up_model(self) -> None:
        """Nothing is to be compiled."""

    def _describe_cache(self) -> dict[str, FullAttentionSpec]:
        config = self.model_config
        return {
            "layer": FullAttentionSpec(
                block_size=self.cache_config.block_size,
                num_kv_heads=config.get_num_kv_heads(self.parallel_config),
                head_size=config.get_head_size(),
                dtype=torch.float16,
            )
        }

    def check_health(self) -> None:
        """It is always well."""


# vLLM takes it as `distributed_executor_backend`.
SimulatedExecutor: Any = type("SimulatedExecutor", (_Simulation, Executor), {})
