"""The job: what a user asks for, as one frozen record whose fields are the flags and the keys of the job file.

Takes values from a YAML file and a command line, gives a checked `ScoreJob`. Says which settings belong to the
fingerprint. Knows nothing of argparse, models or storage contents.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rerank_actor import storage
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION, load_presets
from rerank_actor.engines.options import BUILT_IN_TOKENIZER, DEFAULT_MODEL, HARMLESS_ENGINE_ARGS, check_engine_args
from rerank_actor.errors import JobError, suggest
from rerank_actor.inputs.columns import RESERVED_COLUMNS
from rerank_actor.inputs.directions import Directions
from rerank_actor.inputs.field_template import parse_template
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.inputs.pairs import INDEX_COLUMN, TextSpec
from rerank_actor.inputs.spec import InputSpec, SourceSpec
from rerank_actor.job_file import (
    SECRET_FIELDS,
    check_job,
    make_flag,
    read_instruction_map,
    read_job_file,
    refuse_credentials,
)
from rerank_actor.storage import hub


class ScoreJob(BaseModel):
    """One scoring job. Each field is a flag (`_` written `-`) and a key of the job file."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    input: list[str] = make_flag([], "input", "files, folders or globs to score, local or s3://; hf:// datasets", "URI")
    format: Literal["auto", "parquet", "arrow", "jsonl", "csv", "tsv", "trec", "tevatron", "qrels"] = make_flag(
        "auto",
        "input",
        "format of the shards; auto goes by the name (.gz and .zst understood), with --queries or --corpus also by the "
        "first lines",
    )
    top_k: Annotated[int, Field(ge=1)] | None = make_flag(
        None, "input", "candidates of each query at most, the best of the ranking (trec, tevatron, qrels)", "K"
    )
    columns: list[str] = make_flag(
        [], "input", "names of the columns of CSV and TSV files without a header, comma-separated", "NAMES"
    )
    config: str | None = make_flag(None, "input", "configuration of an hf:// dataset that has several", "NAME")
    split: str | None = make_flag(
        None, "input", "splits of an hf:// dataset or a save_to_disk folder that has several: NAME,... or all", "NAMES"
    )
    query_column: str = make_flag("query", "input", "column with the query", "NAME")
    document_column: str = make_flag(
        "document",
        "input",
        "column with the document or a list of documents: texts, or structs with text, title and id",
        "NAME",
    )
    queries: list[str] = make_flag(
        [], "input", "texts of queries by id, as BEIR's queries.jsonl; rows then hold ids of queries", "URI", nargs="+"
    )
    corpus: list[str] = make_flag(
        [],
        "input",
        "texts of documents by id, as BEIR's corpus.jsonl; rows then hold ids of documents",
        "URI",
        nargs="+",
    )
    query_id_column: str = make_flag("query_id", "input", "column with the query's id, with --queries", "NAME")
    document_id_column: str = make_flag(
        "document_id", "input", "column with the document's id, or with a list of ids, with --corpus", "NAME"
    )
    query_template: str | None = make_flag(
        None, "input", "how the query is written from columns, as in '{question} {context}'", "TEXT"
    )
    document_template: str | None = make_flag(
        None,
        "input",
        r"how a document is written from columns, or from the fields of a candidate, as in '{title}\n{text}'",
        "TEXT",
    )
    instruction: str = make_flag(DEFAULT_INSTRUCTION, "input", "the task, in one sentence", "TEXT")
    instruction_column: str | None = make_flag(
        None, "input", "column with an instruction for each row; a null takes --instruction", "NAME"
    )
    instruction_map: str | dict[str, str] | None = make_flag(
        None, "input", "YAML or JSON file with an instruction for each dataset, `*` for all others", "FILE"
    )
    dataset_column: str = make_flag("dataset", "input", "column with the name to look up in --instruction-map", "NAME")
    task: str | None = make_flag(
        None, "input", "instruction of a well-known task; `python -m jobs.tasks` lists them", "NAME"
    )
    limit: Annotated[int, Field(ge=1)] | None = make_flag(None, "input", "score the first N rows only", "N")

    output: str = make_flag("", "output", "folder for the scored parts; local path or s3://", "URI")
    keep_columns: str | list[str] = make_flag(
        "all", "output", "input columns to keep: all, or a comma-separated list", "NAMES"
    )
    drop_columns: list[str] = make_flag([], "output", "input columns to leave out, comma-separated", "NAMES")
    rename_columns: dict[str, str] = make_flag(
        {}, "output", "other names for input columns in the output: OLD=NEW, comma-separated", "NAMES"
    )
    keep_fields: list[str] = make_flag(
        [], "output", "of candidates that are structs, fields to keep, comma-separated, as in id (default all)", "NAMES"
    )
    explode: bool = make_flag(False, "output", "write a row for each document of a list instead of lists of scores")
    explode_columns: list[str] = make_flag(
        [], "output", "with --explode: further lists to take apart along with the documents, comma-separated", "NAMES"
    )
    with_pair_key: bool = make_flag(
        False,
        "output",
        "add a column pair_key, which tells a pair by its texts, so that a later job can --reuse its score",
    )
    reuse: str | None = make_flag(
        None,
        "output",
        "earlier output with the same fingerprint and pair keys: pairs that it has are not scored again (turns "
        "--with-pair-key on)",
        "URI",
    )
    overwrite: bool = make_flag(
        False, "output", "delete what the output folder holds of an earlier job and start afresh"
    )
    rescore_changed: bool = make_flag(False, "output", "score shards again that changed since they were scored")

    model: str | None = make_flag(
        None,
        "model",
        f"name on the Hugging Face hub, local folder or s3:// folder (default {DEFAULT_MODEL})",
        "MODEL",
    )
    revision: str | None = make_flag(None, "model", "branch, tag or commit of a hub model", "REV")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = make_flag(
        "auto", "model", "auto takes float16, and bfloat16 where float16 is not finite"
    )
    max_length: Annotated[int, Field(ge=1)] = make_flag(
        8192, "model", "tokens of a prompt at most, prefix and suffix included; documents are cut to fit", "N"
    )
    parse_special_tokens: bool = make_flag(
        False, "model", "let special tokens written in the texts act as such, as the publisher's example does"
    )
    trust_remote_code: bool = make_flag(
        False, "model", "run the Python code that the model brings along, on the driver and on workers"
    )
    check_scores: bool = make_flag(
        False, "model", "compare the engine with Transformers in float32 on the built-in pairs before scoring"
    )

    engine: Literal["vllm", "transformers", "fake"] = make_flag(
        "vllm", "engine", "vllm; transformers (the reference, slow); fake (no model, for rehearsals)"
    )
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = make_flag(
        None, "engine", "GPUs for each actor (default 1 where the cluster has GPUs, else 0)", "F"
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] = make_flag(
        1, "engine", "GPUs that one model is spread over", "N"
    )
    engine_args: dict[str, Any] = make_flag({}, "engine", "further arguments for vLLM, as a JSON object", "JSON")

    actors: str | int | None = make_flag(
        None, "run", "engines to run: N, or MIN:MAX (default one for each GPU, one on a CPU)", "N|MIN:MAX"
    )
    unit_rows: Annotated[int, Field(ge=1)] | None = make_flag(
        None, "run", "rows of a unit at most (default by the size of the input, 512 to 16384)", "N"
    )
    dedupe: Literal["none", "unit", "global"] = make_flag(
        "unit",
        "run",
        "score pairs that are the same once: within a unit, across the whole input (global), or not at all",
    )
    max_attempts: Annotated[int, Field(ge=1)] = make_flag(3, "run", "tries for a unit before it counts as failed", "N")
    stall_seconds: Annotated[float, Field(gt=0)] = make_flag(
        120.0,
        "run",
        "seconds that an engine may be silent beyond ten times what such work took before; then it is taken for hung",
        "S",
    )
    retry_failed: bool = make_flag(False, "run", "score only the units that failed in an earlier run")
    max_failed_units: Annotated[int, Field(ge=0)] = make_flag(
        0, "run", "stop the run once more units than this have failed; 0 never stops it", "N"
    )
    max_error_rows: Annotated[int, Field(ge=0)] = make_flag(
        0, "run", "stop the run once more rows than this have an error; 0 never stops it", "N"
    )
    dry_run: bool = make_flag(False, "run", "print the plan and an estimate; start nothing")
    pairs_per_second: Annotated[float, Field(gt=0)] | None = make_flag(
        None,
        "run",
        "speed of one actor, for the estimate of --dry-run (default: measured by an earlier run)",
        "F",
    )
    on_finish: str | None = make_flag(
        None, "notice", "shell command for when the run has ended, however; it gets JSON on standard input", "COMMAND"
    )
    on_trouble: str | None = make_flag(
        None,
        "notice",
        "shell command for when units fail or the run stands still; at most every ten minutes",
        "COMMAND",
    )
    webhook: str | None = make_flag(
        None, "notice", "address that gets both as a JSON post, for chat and pagers (its `text` is one line)", "URL"
    )
    tokens_per_second: Annotated[float, Field(gt=0)] | None = make_flag(
        None,
        "money",
        "prompt tokens a second of one actor, for what it may cost (default: measured before, else assumed)",
        "F",
    )
    gpu_type: str | None = make_flag(
        None, "money", "GPU that the actors run on, for its price; jobs.plan --list-gpus shows the table", "NAME"
    )
    gpu_price: Annotated[float, Field(ge=0)] | None = make_flag(
        None, "money", "dollars an hour for one GPU; overrides the table's", "F"
    )
    ray_address: str | None = make_flag(
        None, "run", "Ray cluster to use (default: RAY_ADDRESS, or a Ray started on this machine)", "ADDRESS"
    )

    @field_validator("input", "queries", "corpus", mode="before")
    @classmethod
    def _accept_one_input(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("input", "output", "model", "queries", "corpus", "reuse")
    @classmethod
    def _refuse_credentials(cls, value: Any) -> Any:
        return refuse_credentials(value)

    @field_validator("webhook")
    @classmethod
    def _check_webhook(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]+", value):
            raise ValueError("expected an address that begins with https:// or http://")
        return value

    @field_validator("keep_columns")
    @classmethod
    def _split_names(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) or value == "all":
            return value
        return [name.strip() for name in value.split(",") if name.strip()]

    @field_validator("columns", "drop_columns", "keep_fields", "explode_columns", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("rename_columns", mode="before")
    @classmethod
    def _split_renames(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(old.strip() and new.strip() for old, _, new in pairs):
            raise ValueError("expected OLD=NEW,...")
        return {old.strip(): new.strip() for old, _, new in pairs}

    @field_validator("query_template", "document_template")
    @classmethod
    def _check_template(cls, value: str | None) -> str | None:
        if value is not None:
            parse_template(value)
        return value

    @field_validator("task")
    @classmethod
    def _check_task(cls, value: str | None) -> str | None:
        known = load_presets()
        if value is not None and value not in known:
            raise ValueError(f"no task `{value}`{suggest(value, known)}; there are {', '.join(known)}")
        return value

    @model_validator(mode="after")
    def _check_instructions(self) -> "ScoreJob":
        if self.instruction_map is not None and self.instruction_column is not None:
            raise ValueError(
                "--instruction-map and --instruction-column both say what a row's instruction is; give one"
            )
        given = self.instruction if "instruction" in self.model_fields_set else None
        if self.task is not None and given not in (None, load_presets()[self.task].instruction):
            raise ValueError("--task and --instruction both say what the instruction is; give one")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("--columns names a column twice")
        if self.explode_columns and not self.explode:
            raise ValueError("--explode-columns needs --explode")
        return self

    @field_validator("engine_args", mode="before")
    @classmethod
    def _parse_json(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"not a JSON object ({error})") from error

    @model_validator(mode="after")
    def _check_engine_args(self) -> "ScoreJob":
        if self.engine != "fake":
            check_engine_args(self.engine_args)
        return self

    @field_validator("actors")
    @classmethod
    def _check_actors(cls, value: str | int | None) -> str | None:
        if value is None:
            return None
        low, separator, high = str(value).partition(":")
        numbers = [low, high] if separator else [low]
        if not all(number.isdigit() and int(number) >= 1 for number in numbers) or (separator and int(low) > int(high)):
            raise ValueError("expected N or MIN:MAX, whole numbers from 1, MIN not above MAX")
        return str(value)

    @model_validator(mode="after")
    def _require_input_and_output(self) -> "ScoreJob":
        for name in ("input", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: give it as a flag or as `{name}:` in the job file")
        return self

    @model_validator(mode="after")
    def _require_texts_of_rankings(self) -> "ScoreJob":
        if self.format in ("trec", "tevatron", "qrels") and not (self.queries and self.corpus):
            raise ValueError(
                f"--format {self.format} holds ids alone: name the texts that they stand for with --queries and --corpus"
            )
        return self

    @model_validator(mode="after")
    def _check_ids(self) -> "ScoreJob":
        for role, flag in (("query", "queries"), ("document", "corpus")):
            uris = getattr(self, flag)
            if uris and getattr(self, f"{role}_template"):
                raise ValueError(f"--{flag} and --{role}-template both say what the text of a {role} is; give one")
            if any(hub.is_hub(uri) for uri in uris):
                raise ValueError(
                    f"--{flag} takes files, folders and globs, local or s3://, and no hf:// dataset; download it first"
                )
        return self

    @property
    def model_name(self) -> str:
        """The model to load; the fake engine needs none and then has a byte tokenizer of its own."""
        if self.model is not None:
            return self.model
        return BUILT_IN_TOKENIZER if self.engine == "fake" else DEFAULT_MODEL

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """Least and most actors, or None when the cluster decides."""
        if self.actors is None:
            return None
        low, _, high = str(self.actors).partition(":")
        return int(low), int(high or low)

    @property
    def group_size(self) -> int:
        """GPUs that one engine is spread over."""
        return self.tensor_parallel_size * int(self.engine_args.get("pipeline_parallel_size") or 1)

    @property
    def instructions(self) -> dict[str, str] | None:
        """The instruction of each dataset, once the job is normalized."""
        return self.instruction_map if isinstance(self.instruction_map, dict) else None

    @property
    def adds_pair_key(self) -> bool:
        """Whether the output has pair keys."""
        return self.with_pair_key or self.reuse is not None

    @property
    def query_source(self) -> tuple[str, str]:
        """The column that says what the query is, its text or its id, and the flag that names it."""
        if self.queries:
            return self.query_id_column, "--query-id-column"
        return self.query_column, "--query-column"

    @property
    def document_source(self) -> tuple[str, str]:
        """The same of the document."""
        if self.corpus:
            return self.document_id_column, "--document-id-column"
        return self.document_column, "--document-column"

    def normalized(self) -> Self:
        """Return the job with every location in its one spelling, so that relative paths survive a change of folder.

        A task becomes its instruction, and the name of an instruction map what it holds.

        Raises:
            JobError: the map is missing, or does not give a text for each dataset.
        """
        changes: dict[str, Any] = {
            "input": [_normalize_input(uri) for uri in self.input],
            **{name: [storage.normalize_uri(uri) for uri in getattr(self, name)] for name in ("queries", "corpus")},
            "output": storage.normalize_uri(self.output),
        }
        if self.reuse:
            changes["reuse"] = storage.normalize_uri(self.reuse)
        if self.model and not storage.is_s3(self.model) and Path(self.model).expanduser().is_dir():
            changes["model"] = storage.normalize_uri(self.model)
        if self.task is not None:
            changes["instruction"] = load_presets()[self.task].instruction
        if isinstance(self.instruction_map, str):
            changes["instruction_map"] = read_instruction_map(self.instruction_map)
        return self.model_copy(update=changes)

    def to_record(self) -> dict[str, Any]:
        """Return the job as it is written down: without commands and addresses of notices, which may hold secrets."""
        return self.model_dump(mode="json", exclude=set(SECRET_FIELDS))

    def to_yaml(self) -> str:
        """Return the job as a job file, without what `to_record` leaves out."""
        return yaml.safe_dump(self.to_record(), sort_keys=False, allow_unicode=True)

    def directions(self) -> Directions | None:
        """Return in which directions each row is scored; None where the query is a query and the document a document."""
        return None

    def text_spec(self) -> TextSpec:
        """Return where the job says that texts are."""
        return TextSpec(
            query_column=self.query_source[0],
            document_column=self.document_source[0],
            query_is_id=bool(self.queries),
            document_is_id=bool(self.corpus),
            query_template=self.query_template,
            document_template=self.document_template,
            instruction_column=self.instruction_column,
            dataset_column=self.dataset_column,
            instruction_map=self.instructions,
            explode=self.explode,
            explode_columns=tuple(self.explode_columns),
            keep_fields=tuple(self.keep_fields) if self.keep_fields else None,
        )

    def source_specs(self) -> tuple[SourceSpec, ...]:
        """Return where the texts are that rows name by id."""
        queries = SourceSpec("query", tuple(self.queries), self.query_id_column, self.query_column)
        corpus = SourceSpec("document", tuple(self.corpus), self.document_id_column, self.document_column)
        return tuple(spec for spec in (queries, corpus) if spec.uris)

    def input_spec(self) -> InputSpec:
        """Return what the job says of its input."""
        added = {*([INDEX_COLUMN] if self.explode else []), *([PAIR_KEY] if self.adds_pair_key else [])}
        return InputSpec(
            uris=tuple(self.input),
            output=self.output,
            format=self.format,
            header=tuple(self.columns),
            config=self.config,
            split=self.split,
            limit=self.limit,
            unit_rows=self.unit_rows,
            top_k=self.top_k,
            rescore_changed=self.rescore_changed,
            keep=None if self.keep_columns == "all" else tuple(self.keep_columns),
            drop=tuple(self.drop_columns),
            rename=self.rename_columns,
            reserved=frozenset(RESERVED_COLUMNS) | added,
            texts=self.text_spec(),
            sources=self.source_specs(),
            directions=self.directions(),
        )

    def scoring_settings(self) -> dict[str, Any]:
        """Return the settings that can change a score or a column: the job's share of the fingerprint."""
        return {
            "query_column": self.query_column,
            "document_column": self.document_column,
            "instruction": self.instruction,
            "instruction_column": self.instruction_column,
            "keep_columns": self.keep_columns,
            "dtype": self.dtype,
            "max_length": self.max_length,
            "parse_special_tokens": self.parse_special_tokens,
            "engine": self.engine,
            "engine_args": {
                name: value for name, value in sorted(self.engine_args.items()) if name not in HARMLESS_ENGINE_ARGS
            },
            # Only where it is given, so that outputs of before there were these flags go on.
            **{name: value for name, value in self._later_settings().items() if value},
        }

    def _later_settings(self) -> dict[str, Any]:
        return {
            "trust_remote_code": self.trust_remote_code,
            "query_template": self.query_template,
            "document_template": self.document_template,
            "instruction_map": self.instructions,
            "dataset_column": self.dataset_column if self.instructions is not None else None,
            "drop_columns": sorted(self.drop_columns),
            "rename_columns": self.rename_columns,
            "columns": self.columns,
            "keep_fields": self.keep_fields,
            "explode": self.explode,
            "explode_columns": sorted(self.explode_columns),
            "with_pair_key": self.adds_pair_key,
            "top_k": self.top_k,
            "query_id_column": self.query_id_column if self.queries else None,
            "document_id_column": self.document_id_column if self.corpus else None,
        }


def _normalize_input(uri: str) -> str:
    if not hub.is_hub(uri):
        return storage.normalize_uri(uri)
    try:
        return hub.normalize_hub_uri(uri)
    except ValueError as error:
        raise JobError(f"--input: {error}", uri=uri) from None


def load_job(path: str | None, flags: dict[str, Any]) -> ScoreJob:
    """Return the scoring job of a YAML file (local or s3://, may be None) with flags on top.

    Raises:
        JobError: the file is missing or no YAML mapping, a key is unknown, or a value does not fit.
    """
    return check_job(ScoreJob, {**read_job_file(path, ScoreJob), **flags}, path, flags).normalized()
