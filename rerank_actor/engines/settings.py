"""Settings of the model, its instruction and its engine, in sections that jobs are composed of.

Says which model a job means, and how many GPUs its engine is spread over. Knows nothing of the input, of the output or of
how a run goes.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rerank_actor import storage
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION, load_presets
from rerank_actor.engines.options import (
    BUILT_IN_TOKENIZER,
    DEFAULT_MAX_LENGTH,
    DEFAULT_MODEL,
    QuantizationAtLoad,
    check_engine_args,
)
from rerank_actor.job_file import Settings, make_flag, read_instruction_map, refuse_credentials, suggest


def _check_task(value: str | None) -> str | None:
    known = load_presets()
    if value is not None and value not in known:
        raise ValueError(f"no task `{value}`{suggest(value, known)}; there are {', '.join(known)}")
    return value


def _parse_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"not a JSON object ({error})") from error


class InstructionSettings(Settings):
    """What the model is asked of a pair: one sentence, one for each row, or one for each dataset."""

    instruction: str = make_flag(DEFAULT_INSTRUCTION, "input", "the task, in one sentence", "TEXT")
    instruction_column: str | None = make_flag(
        None, "input", "column with an instruction for each row; a null takes --instruction", "NAME"
    )
    instruction_map: str | dict[str, str] | None = make_flag(
        None, "input", "YAML or JSON file with an instruction for each dataset, `*` for all others", "FILE"
    )
    dataset_column: str = make_flag("dataset", "input", "column with the name to look up in --instruction-map", "NAME")
    task: Annotated[str | None, AfterValidator(_check_task)] = make_flag(
        None, "input", "instruction of a well-known task; `python -m jobs.tasks` lists them", "NAME"
    )

    @model_validator(mode="after")
    def _check_instructions(self) -> Self:
        if self.instruction_map is not None and self.instruction_column is not None:
            raise ValueError(
                "--instruction-map and --instruction-column both say what a row's instruction is; give one"
            )
        given = self.instruction if "instruction" in self.model_fields_set else None
        if self.task is not None and given not in (None, load_presets()[self.task].instruction):
            raise ValueError("--task and --instruction both say what the instruction is; give one")
        return self

    def normal_values(self) -> dict[str, Any]:
        """Return the settings that `normalized` changes: a task becomes its instruction, the name of a map what it holds."""
        changes = super().normal_values()
        if self.task is not None:
            changes["instruction"] = load_presets()[self.task].instruction
        if isinstance(self.instruction_map, str):
            changes["instruction_map"] = read_instruction_map(self.instruction_map)
        return changes

    @property
    def instructions(self) -> dict[str, str] | None:
        """The instruction of each dataset, once the job is normalized."""
        return self.instruction_map if isinstance(self.instruction_map, dict) else None


class NamedModelSettings(Settings):
    """Which model scores."""

    model: Annotated[str | None, AfterValidator(refuse_credentials)] = make_flag(
        None,
        "model",
        f"name on the Hugging Face hub, local folder or s3://, gs://, az:// folder (default {DEFAULT_MODEL})",
        "MODEL",
    )

    def normal_values(self) -> dict[str, Any]:
        """Return the settings that `normalized` changes."""
        changes = super().normal_values()
        if self.model:
            changes["model"] = normalize_model(self.model)
        return changes


class ModelUseSettings(Settings):
    """How a model is read, and what it does with a prompt."""

    revision: str | None = make_flag(None, "model", "branch, tag or commit of a hub model", "REV")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = make_flag(
        "auto", "model", "auto takes float16, and bfloat16 where float16 is not finite"
    )
    max_length: Annotated[int, Field(ge=1)] = make_flag(
        DEFAULT_MAX_LENGTH,
        "model",
        "tokens of a prompt at most, prefix and suffix included; documents are cut to fit",
        "N",
    )
    parse_special_tokens: bool = make_flag(
        False, "model", "let special tokens written in the texts act as such, as the publisher's example does"
    )
    trust_remote_code: bool = make_flag(
        False, "model", "run the Python code that the model brings along, on the driver and on workers"
    )
    model_description: Annotated[str | None, AfterValidator(refuse_credentials)] = make_flag(
        None,
        "model",
        "YAML file that says what the model's prompt and score are, where its own files do not; qwen3-reranker and "
        "qwen3-evaluation name the publisher's two prompts",
        "FILE|NAME",
    )
    check_scores: bool = make_flag(
        False, "model", "compare the engine with Transformers in float32 on the built-in pairs before scoring"
    )


def normalize_model(model: str) -> str:
    """Return a model's name, the path of a local folder in its one spelling."""
    is_folder = not storage.is_remote(model) and Path(model).expanduser().is_dir()
    return storage.normalize_uri(model) if is_folder else model


class EngineUseSettings(Settings):
    """What a model runs on."""

    engine: Literal["vllm", "transformers", "fake"] = make_flag(
        "vllm", "engine", "vllm; transformers (the reference, slow); fake (no model, for rehearsals)"
    )
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = make_flag(
        None, "engine", "GPUs for each actor (default 1 where the cluster has GPUs, else 0)", "F"
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] = make_flag(
        1, "engine", "GPUs that one model is spread over", "N"
    )
    quantization: QuantizationAtLoad | None = make_flag(
        None, "engine", "pack plain weights as vLLM loads them; jobs.model --check shows what that does to scores"
    )
    engine_args: Annotated[dict[str, Any], BeforeValidator(_parse_json)] = make_flag(
        {}, "engine", "further arguments for vLLM, as a JSON object", "JSON"
    )

    @model_validator(mode="after")
    def _check_engine_args(self) -> Self:
        if self.engine != "fake":
            check_engine_args(self.engine_args)
        if self.quantization is None:
            return self
        if self.engine != "vllm":
            raise ValueError(f"--quantization is for --engine vllm, and the engine is {self.engine}")
        if self.engine_args.get("quantization", self.quantization) != self.quantization:
            raise ValueError("--quantization and --engine-args both say how weights are packed; leave one out")
        return self

    def normal_values(self) -> dict[str, Any]:
        """Return the settings that `normalized` changes: how weights are packed goes to the engine's arguments."""
        changes = super().normal_values()
        if self.quantization is not None:
            changes |= {"engine_args": {**self.engine_args, "quantization": self.quantization}, "quantization": None}
        return changes

    @property
    def group_size(self) -> int:
        """GPUs that one engine is spread over."""
        return self.tensor_parallel_size * int(self.engine_args.get("pipeline_parallel_size") or 1)


class EngineSettings(EngineUseSettings, ModelUseSettings, NamedModelSettings):
    """A model and what it runs on."""

    @property
    def model_name(self) -> str:
        """The model to load; the fake engine needs none and then has a byte tokenizer of its own."""
        if self.model is not None:
            return self.model
        return BUILT_IN_TOKENIZER if self.engine == "fake" else DEFAULT_MODEL
