"""Job files and flags: the record that all settings are made of, and how it is made from YAML and a command line.

Takes a kind of job (sections of settings) and values, gives a checked record or a refusal that names the nearest right key,
whatever other tools call it.
Knows nothing of argparse, nor of what the settings mean.
"""

import difflib
import re
from collections.abc import Container, Iterable
from typing import Annotated, Any, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from rerank_actor import storage
from rerank_actor.errors import JobError

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
    "engine-args": "gpu-memory-utilization max-num-seqs max-num-batched-tokens enforce-eager kv-cache-dtype "
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
    "quantization": "q quantize quant quantisation load-in-8bit",
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


class Settings(BaseModel):
    """A section of a job, or a job: a frozen record whose fields are flags (`_` written `-`) and keys of the job file.

    A job inherits from its sections, named from the last to the first: pydantic takes up the fields of the last base
    first, and theirs is the order of the help and of `job.yaml`. A field without `make_flag` is a key and no flag.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true`, which pydantic takes for 1, and YAML's `no` and `off` for a text."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind is not bool and bool not in get_args(kind):
            kinds = [getattr(one, "__origin__", one) for one in (kind, *get_args(kind))]  # of Annotated, its type
            cure = "give a number" if int in kinds or float in kinds else "write a text such as `no` in quotes"
            raise ValueError(f"is the truth value {str(value).lower()}; {cure}")
        return value

    def normalized(self) -> Self:
        """Return the job with every location in its one spelling, so that relative paths survive a change of folder.

        Raises:
            JobError: a location is none, or a file that is named holds something else than it should.
        """
        return self.model_copy(update=self.normal_values())

    def normal_values(self) -> dict[str, Any]:
        """Return the settings that `normalized` changes: locations here, other ones in the sections that have them."""
        names = [name for name, info in type(self).model_fields.items() if _LOCATION in info.metadata]
        return {name: _normalize(value) for name in names if (value := getattr(self, name))}

    def pick(self, *sections: type["Settings"]) -> dict[str, Any]:
        """Return the values that were given of some sections of the job, for another job that has them too."""
        names = [name for section in sections for name in section.model_fields]
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}

    def to_record(self) -> dict[str, Any]:
        """Return the job as it is written down; a section leaves out what is secret."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the job as a job file, as `to_record` has it."""
        return yaml.safe_dump(self.to_record(), sort_keys=False, allow_unicode=True)


Job = TypeVar("Job", bound=Settings)


def make_flag(default: Any, group: str, description: str, metavar: str | None = None, nargs: str | None = None) -> Any:
    """Return a field of a job that is a flag too.

    Args:
        default: value where it is not given.
        group: of the help in which it stands.
        description: what it does.
        metavar: what stands for its value in the help.
        nargs: `+` for a flag that takes several values.
    """
    extra: Any = {"group": group, "metavar": metavar, "nargs": nargs}
    return Field(default=default, description=description, json_schema_extra=extra)


class ReportSettings(Settings):
    """What the report of a job shows."""

    examples: Annotated[int, Field(ge=0)] = make_flag(
        12, "output", "rows with their texts, shortened, in the report; 0 shows ids alone", "N"
    )


# Of signed URLs at Azure, Amazon and Google, and of links with a token.
_SIGNATURE = re.compile(r"[?&](sig|(access_)?token|X-(Amz|Goog)-[\w-]+)=", re.IGNORECASE)


def refuse_credentials(value: Any) -> Any:
    """Return a location or a list of them as they are.

    Raises:
        ValueError: one holds what looks like a credential.
    """
    for uri in value if isinstance(value, list) else [value or ""]:
        scheme, separator, rest = uri.partition("://")
        is_signed = "?" in rest and (not storage.is_remote(uri) or _SIGNATURE.search(rest))  # else it is a wildcard
        is_user = "@" in rest.partition("/")[0] and scheme not in ("abfs", "abfss")  # of an account, in these
        if separator and (is_user or is_signed):
            raise ValueError(
                f"a {scheme}:// address with a user, a key or a query is not taken, because it would be written down; "
                "give s3://bucket/key or the like, and credentials in the store's own variables or a profile"
            )
    return value


def refuse_empty(value: Any) -> Any:
    """Return a location or a list of them as they are.

    Raises:
        ValueError: one is empty, which would be the folder that the command was given in.
    """
    if any(uri is not None and not uri.strip() for uri in (value if isinstance(value, list) else [value])):
        raise ValueError(f"a location is empty; give {storage.LOCATIONS}")
    return value


def accept_one(value: Any) -> Any:
    """Return a text as a list of it, and a list as it is."""
    return [value] if isinstance(value, str) else value


def split_names(value: Any) -> Any:
    """Return the names of a comma-separated text, and a list as it is."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _normalize(value: Any) -> Any:
    return [storage.normalize_uri(uri) for uri in value] if isinstance(value, list) else storage.normalize_uri(value)


def take_other_value(other: str, own: str) -> BeforeValidator:
    """Return what takes a value under the name that another command has for it."""
    return BeforeValidator(lambda value: own if value == other else value)


# Types of settings. Locations are refused with what looks like a credential, and get one spelling as a job is normalized.
_LOCATION = "location"
Location = Annotated[str, AfterValidator(refuse_credentials), AfterValidator(refuse_empty), _LOCATION]
OptionalLocation = Annotated[str | None, AfterValidator(refuse_credentials), AfterValidator(refuse_empty), _LOCATION]
Locations = Annotated[
    list[str], BeforeValidator(accept_one), AfterValidator(refuse_credentials), AfterValidator(refuse_empty), _LOCATION
]
Names = Annotated[list[str], BeforeValidator(split_names)]


def read_job_file(path: str | None, *kinds: type[Settings]) -> dict[str, Any]:
    """Return the keys and values of a job file, none for no file.

    Raises:
        JobError: the file is missing or no YAML mapping, or a key is not a field of one of these kinds of job.
    """
    if path is None:
        return {}
    return parse_job_file(_read_file(path, "job file"), path, *kinds)


def parse_job_file(data: bytes | str, path: str, *kinds: type[Settings]) -> dict[str, Any]:
    """Return the keys and values of a job file's text; `path` is for messages.

    Raises:
        JobError: it is no YAML mapping, or a key is not a field of one of these kinds of job.
    """
    values = _parse_yaml(data, path)
    refuse_unknown(values, path, *kinds)
    return values


def refuse_unknown(keys: Iterable[str], where: str, *kinds: type[Settings]) -> None:
    """Refuse keys that are no field of these kinds of job, with the nearest right one; `where` is for messages.

    Raises:
        JobError: there is one.
    """
    known = [name for kind in kinds for name in kind.model_fields]
    for key in keys:
        if key not in known:
            raise JobError(f"{where}: unknown key `{key}`{suggest(str(key), known)}", key=key)


def check_job(kind: type[Job], values: dict[str, Any], path: str | None = None, flags: Container[str] = ()) -> Job:
    """Return a job with these values; `path` and `flags` say where each came from.

    Raises:
        JobError: a value does not fit.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise JobError("; ".join(_describe(problem, path, flags) for problem in error.errors())) from None


class _JobFileLoader(yaml.SafeLoader):
    """YAML whose keys are texts as written, each once; without whole numbers in base 60, where `actors: 1:4` would be 64."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            key.tag = "tag:yaml.org,2002:str"  # `no` is a language
            if key.value in lines:
                problem = f"key `{key.value}` stands in line {lines[key.value]} too"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_JobFileLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_JobFileLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789")
)


def _read_file(path: str, what: str) -> bytes:
    uri = storage.normalize_uri(path)
    data = storage.read_if_present(uri)
    if data is None:
        raise JobError(f"{path}: no such {what}", uri=uri)
    return data


def _parse_yaml(
    data: bytes | str, path: str, expected: str = "`key: value` lines, one for each flag"
) -> dict[str, Any]:
    try:
        values = yaml.load(data, _JobFileLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: {_describe_yaml(error)}", file=path) from None
    if not isinstance(values, dict):
        raise JobError(f"{path}: expected {expected}", file=path)
    return values


def _describe_yaml(error: Exception) -> str:
    """Return what is no YAML and in which line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f"not a YAML file ({str(error).splitlines()[0]})"
    if "'\\t'" in str(problem):
        return f"line {mark.line + 1} has a tab, which YAML does not take for a blank; write blanks instead"
    return f"line {mark.line + 1} is no YAML ({problem})"


def read_instruction_map(path: str) -> dict[str, str]:
    """Return the instruction of each dataset that a YAML or JSON file names.

    Raises:
        JobError: the file is missing, or does not give a text for each dataset.
    """
    values = _parse_yaml(_read_file(path, "instruction map"), path, "`dataset: instruction` lines")
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip():
            raise JobError(f"{path}: the instruction of `{name}` is not text; write `dataset: instruction` lines")
    return values


def _describe(problem: Any, path: str | None, flags: Container[str]) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(message)
    key = str(problem["loc"][0])
    where = f"{path}: key `{key}`" if path is not None and key not in flags else f"--{key.replace('_', '-')}"
    choices = re.findall("'([^']*)'", message) if problem["type"] == "literal_error" else []
    return f"{where}: {message[0].lower()}{message[1:]}{suggest(str(problem['input']), choices) if choices else ''}"


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
