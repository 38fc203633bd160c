"""Which settings an engine takes: of vLLM's arguments those that are safe to pass on, and which can change a score.

The names are those of vLLM 0.32. Knows nothing of engines themselves.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from rerank_actor.job_file import suggest

DEFAULT_MODEL = "Qwen/Qwen3-Reranker-0.6B"
DEFAULT_MAX_LENGTH = 8192  # of the Qwen3-Reranker model card

BUILT_IN_TOKENIZER = "bytes"  # the model name that stands for the fake engine's own byte tokenizer


# Settings of vLLM (and three of the fake engine) that change speed or memory but no score beyond the noise of the dtype.
HARMLESS_ENGINE_ARGS = frozenset(
    {
        "async_scheduling",
        "block_size",
        "cached_share",
        "compilation_config",
        "cpu_offload_gb",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_prefix_caching",
        "enforce_eager",
        "faults",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "load_format",
        "max_num_batched_tokens",
        "max_num_seqs",
        "pipeline_parallel_size",
        "seconds_per_prompt",
        "seed",
        "swap_space",
        "tensor_parallel_size",
    }
)


# What else is passed on to vLLM; these may change a score, so they are in the fingerprint. The other hundred and more of
# its arguments are refused: they name code to import (worker_cls, scheduler_cls, logits_processors, log_config_file),
# other models or files, hosts to talk to, credentials, or how a logit is pooled. Those of vLLM 0.32.
SCORING_ENGINE_ARGS = frozenset(
    {
        "attention_backend",
        "attention_config",
        "cudagraph_capture_sizes",
        "disable_cascade_attn",
        "disable_custom_all_reduce",
        "disable_hybrid_kv_cache_manager",
        "kernel_config",
        "kv_cache_dtype",
        "linear_backend",
        "max_cudagraph_capture_size",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "numa_bind",
        "offload_group_size",
        "offload_num_in_group",
        "offload_prefetch_step",
        "optimization_level",
        "performance_mode",
        "quantization",
        "safetensors_load_strategy",
        "use_tqdm_on_load",
    }
)
# Ways in which vLLM packs plain weights of dense models as it loads them. Its others (int8_per_channel_weight_only,
# nvfp4_per_token) are of mixtures of experts, and leave a dense model as it is without a word.
QuantizationAtLoad = Literal["fp8", "fp8_per_tensor", "fp8_per_channel", "fp8_per_block"]
QUANTIZED_AT_LOAD: tuple[str, ...] = get_args(QuantizationAtLoad)
EXPERTS_ALONE = ("int8_per_channel_weight_only", "nvfp4_per_token", "experts_int8")
ENGINE_ARGS_WITH_FLAGS = {
    "dtype": "--dtype",
    "max_model_len": "--max-length",
    "model": "--model",
    "revision": "--revision",
    "tensor_parallel_size": "--tensor-parallel-size",
    "trust_remote_code": "--trust-remote-code",
}
# Values of arguments that would otherwise name a class to import or a format that unpickles.
SAFE_ENGINE_VALUES = {
    "load_format": ("auto", "safetensors", "fastsafetensors", "runai_streamer"),
    "distributed_executor_backend": ("mp", "uni"),  # with ray, vLLM would reserve GPUs beside those of its actor
}
# Keys of vLLM's compilation_config without those that name code (backend, inductor_passes) or a folder of it (cache_dir).
SAFE_COMPILATION_KEYS = frozenset(
    {
        "mode",
        "compile_sizes",
        "cudagraph_capture_sizes",
        "cudagraph_mode",
        "cudagraph_num_of_warmups",
        "custom_ops",
        "max_cudagraph_capture_size",
        "use_inductor_graph_partition",
    }
)


def check_engine_args(engine_args: Mapping[str, Any]) -> None:
    """Refuse arguments for vLLM that could run code, read pickles or change what is scored; values are never repeated.

    Raises:
        ValueError: an argument is none of those that are passed on.
    """
    known = (HARMLESS_ENGINE_ARGS | SCORING_ENGINE_ARGS) - {
        *ENGINE_ARGS_WITH_FLAGS,
        "cached_share",
        "faults",
        "seconds_per_prompt",
    }
    for name, value in engine_args.items():
        if name in ENGINE_ARGS_WITH_FLAGS:
            raise ValueError(f"--engine-args: `{name}` has a flag of its own, {ENGINE_ARGS_WITH_FLAGS[name]}")
        if name not in known:
            raise ValueError(
                f"--engine-args: `{name}` is not passed on to vLLM{suggest(name, known)}; what is: {', '.join(sorted(known))}"
            )
        if name in SAFE_ENGINE_VALUES and value not in SAFE_ENGINE_VALUES[name]:
            raise ValueError(f"--engine-args: `{name}` takes {', '.join(SAFE_ENGINE_VALUES[name])}, nothing else")
        if name == "quantization" and value in EXPERTS_ALONE:
            raise ValueError(
                f"--engine-args: `quantization` {value} packs mixtures of experts alone; --quantization takes "
                f"{', '.join(QUANTIZED_AT_LOAD)}"
            )
        if name == "compilation_config" and isinstance(value, dict):
            refused = sorted(str(key) for key in value.keys() - SAFE_COMPILATION_KEYS)
            if refused:
                raise ValueError(
                    f"--engine-args: `{refused[0]}` of `compilation_config` is not passed on to vLLM; what is: "
                    f"{', '.join(sorted(SAFE_COMPILATION_KEYS))}"
                )
