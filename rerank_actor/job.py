"""The scoring job: what a user asks for, as one frozen record that is composed of sections of settings.

Those of the input are in `inputs.settings`, of model and engine in `engines.settings`, of a run here. Says which settings
belong to the fingerprint. Knows nothing of argparse, models or storage contents.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rerank_actor import storage
from rerank_actor.engines.families.embedding import EmbeddingRequest
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.options import HARMLESS_ENGINE_ARGS
from rerank_actor.engines.settings import EngineSettings, InstructionSettings
from rerank_actor.errors import InputError, JobError
from rerank_actor.inputs.columns import RESERVED_COLUMNS
from rerank_actor.inputs.directions import Directions
from rerank_actor.inputs.pair_key import PAIR_KEY
from rerank_actor.inputs.pairs import INDEX_COLUMN, TextSpec
from rerank_actor.inputs.rankings.judged import ADDED
from rerank_actor.inputs.rankings.lines import RANKING_FORMATS
from rerank_actor.inputs.settings import (
    DialectSettings,
    InputSettings,
    JudgedSettings,
    ListSettings,
    OutputSettings,
    RowSettings,
    ShardSettings,
    TextSettings,
)
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.inputs.training import HOLDS, TRAINING_FORMATS
from rerank_actor.inputs.training.documents import LABELLED
from rerank_actor.inputs.training.layouts import Layout
from rerank_actor.inputs.where.expression import parse_where
from rerank_actor.inputs.where.rows import SELECTED
from rerank_actor.job_file import OptionalLocation, ReportSettings, Settings, check_job, make_flag, read_job_file


class ReuseSettings(Settings):
    """What becomes of scores that are there already, and how a later job finds those of this one."""

    with_pair_key: bool = make_flag(
        False,
        "output",
        "add a column pair_key, which tells a pair by its texts, so that a later job can --reuse its score",
    )
    reuse: OptionalLocation = make_flag(
        None,
        "output",
        "earlier output of the same model and settings with pair keys: pairs that it has, whatever its columns are called, are "
        "not scored again (turns --with-pair-key on)",
        "URI",
    )
    overwrite: bool = make_flag(
        False, "output", "delete what the output folder holds of an earlier job and start afresh"
    )

    @property
    def adds_pair_key(self) -> bool:
        """Whether the output has pair keys."""
        return self.with_pair_key or self.reuse is not None


class RescoreSettings(ReuseSettings):
    """What becomes of scores whose shards are others by now."""

    rescore_changed: bool = make_flag(False, "output", "score shards again that changed since they were scored")
    extend: bool = make_flag(
        False, "output", "add an input to an output whose shards all are other ones, which is refused without it"
    )


class RunSettings(Settings):
    """How a run goes: its actors and units, when it gives up, and whether it is estimated alone."""

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

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """Least and most actors, or None when the cluster decides."""
        if self.actors is None:
            return None
        low, _, high = str(self.actors).partition(":")
        return int(low), int(high or low)


class NoticeSettings(Settings):
    """Who is told how a run goes. Commands and addresses may hold secrets and are never written down."""

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

    @field_validator("webhook")
    @classmethod
    def _check_webhook(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]+", value):
            raise ValueError("expected an address that begins with https:// or http://")
        return value

    def to_record(self) -> dict[str, Any]:
        """Return the job as it is written down, without notices."""
        return {name: value for name, value in super().to_record().items() if name not in NoticeSettings.model_fields}


class PriceSettings(Settings):
    """What a run costs."""

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


class ClusterSettings(Settings):
    """Where a run takes place."""

    ray_address: str | None = make_flag(
        None, "run", "Ray cluster to use (default: RAY_ADDRESS, or a Ray started on this machine)", "ADDRESS"
    )


class EngineJob(
    ClusterSettings,
    PriceSettings,
    NoticeSettings,
    RunSettings,
    EngineSettings,
    ReuseSettings,
    ReportSettings,
    OutputSettings,
    InputSettings,
):
    """What all jobs have that start engines."""

    @model_validator(mode="after")
    def _require_input_and_output(self) -> Self:
        for name in ("input", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: give it as a flag or as `{name}:` in the job file")
        return self

    def embedding(self) -> EmbeddingRequest | None:
        """Return what is wanted of an embedding model; None where pairs are scored."""
        return None


class ScoreJob(
    EngineJob,
    RescoreSettings,
    ListSettings,
    JudgedSettings,
    RowSettings,
    InstructionSettings,
    TextSettings,
    DialectSettings,
    ShardSettings,
):
    """One scoring job: pairs of queries and documents."""

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        if self.format not in TRAINING_FORMATS and self.lacking_texts:
            raise ValueError(self.lacking_texts)
        self.check_ids()
        if self.qrels is not None and self.limit is not None:
            raise ValueError("--limit leaves rows out whose pairs --qrels would add again: give one of both")
        if self.where is not None and self.explode:
            raise ValueError(
                "--explode gives each document a row, and rows that --where passes through have none to score: leave one of "
                "them out"
            )
        if problem := self._find_clash():
            raise ValueError(problem)
        return self

    def _find_clash(self) -> str | None:
        """Return what does not go with columns of positives and negatives; None where all does, or rows have none."""
        documents = [self.document_source, *self.negative_columns]
        if not self.negative_columns:
            return None
        if self.explode:
            return "--explode takes one list of documents apart, and rows have several: leave it out"
        if len(set(documents)) < len(documents):
            return "--negative-columns names a column twice, or that of the positives"
        taken = next((new for old, new in self.rename_columns.items() if new in documents and old != new), None)
        if taken is not None:
            return f"--rename-columns gives another column the name of the documents in `{taken}`: choose another name"
        return None

    @property
    def lacking_texts(self) -> str | None:
        """What to say of a ranking whose texts are not named, None where they are or it is no ranking."""
        if self.format not in RANKING_FORMATS or (self.queries and self.corpus):
            return None
        return f"--format {self.format} holds ids alone: name the texts that they stand for with --queries and --corpus"

    def list_given(self) -> dict[str, Any]:
        """Return the settings that the user gave."""
        return {name: value for name in self.model_fields_set if (value := getattr(self, name))}

    def take_layout(self, layout: Layout, takes_instruction: bool) -> Self:
        """Return the job with the columns of a training file.

        Args:
            layout: of the file.
            takes_instruction: whether the model does.

        Raises:
            InputError: rows have prompts of which nobody says whether they are instructions.
            JobError: flags do not go with it.
        """
        prompt = next((name for name in ("prompt", "instruction") if name in layout.columns), None)
        is_told = bool(self.list_instruction_flags()) or "instruction" in self.model_fields_set
        if prompt is not None and takes_instruction and not is_told:
            raise InputError(
                f"{layout.uri}: its rows have a `{prompt}`, which may be the instruction to score with or one for the model "
                f"that is trained; --instruction-column {prompt} takes it, --instruction TEXT or --task has one for all",
                uri=layout.uri,
                column=prompt,
            )
        fitted = self.model_copy(update={**layout.settings, "format": layout.name})
        renamed = next((name for name in layout.own_names if self.rename_columns.get(name, name) != name), None)
        problem = fitted._find_clash() or (
            f"--rename-columns renames `{renamed}`, where a reader of --format {layout.name} looks: leave it out"
            if renamed is not None
            else None
        )
        if problem is not None:
            raise JobError(f"{layout.uri}: is read as --format {layout.name}, and {problem}")
        return fitted

    @property
    def _is_told_by_name(self) -> bool:
        """Whether files are of the formats that their names say; `tevatron` is a ranking until its columns are known."""
        return self.format in TRAINING_FORMATS and (self.is_labelled or self.format not in RANKING_FORMATS)

    @property
    def is_labelled(self) -> bool:
        """Whether rows have positives and negatives in columns apart."""
        return bool(self.negative_columns)

    def directions(self) -> Directions | None:
        """Return in which directions each row is scored; None where the query is a query and the document a document."""
        return None

    def list_instruction_flags(self) -> list[str]:
        """Return the flags that ask the model for something of the user's own."""
        given = {
            "--task": self.task,
            "--instruction-column": self.instruction_column,
            "--instruction-map": self.instruction_map,
            "--instruction": self.task is None and self.instruction != DEFAULT_INSTRUCTION,
        }
        return [flag for flag, value in given.items() if value]

    def text_spec(self) -> TextSpec:
        """Return where the job says that texts are."""
        return TextSpec(
            query_column=self.query_source,
            document_column=self.document_source,
            negative_columns=tuple(self.negative_columns),
            holds=HOLDS.get(self.format, "") if self.negative_columns else "",
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

    def input_spec(self) -> InputSpec:
        """Return the input as planning and reading take it."""
        added = {*([INDEX_COLUMN] if self.explode else []), *([PAIR_KEY] if self.adds_pair_key else [])}
        added |= set(LABELLED) if self.is_labelled else set()
        added |= {ADDED} if self.qrels is not None else set()
        added |= {SELECTED} if self.where is not None else set()
        return InputSpec(
            uris=tuple(self.input),
            output=self.output,
            format="auto" if self._is_told_by_name else self.format,
            header=tuple(self.columns),
            dialect=self.dialect,
            config=self.config,
            split=self.split,
            where=parse_where(self.where) if self.where is not None else None,
            judged=storage.join_uri(self.output, "_job/judged") if self.qrels is not None else "",
            limit=self.limit,
            unit_rows=self.unit_rows,
            top_k=self.top_k,
            rescore_changed=self.rescore_changed,
            keep=None if self.keep_columns == "all" else tuple(self.keep_columns),
            drop=tuple(self.drop_columns),
            rename=self.rename_columns,
            reserved=frozenset(RESERVED_COLUMNS) | added,
            texts=self.text_spec(),
            sources=self.source_specs(self.dialect),
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
            # Only where given, so that a new flag does not change the fingerprints of outputs that do not use it.
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
            "quoting": self.quoting if self.quoting != "auto" else None,
            "csv_escape": self.csv_escape,
            "keep_fields": self.keep_fields,
            "negative_columns": self.negative_columns,
            "where": self.where,
            "explode": self.explode,
            "explode_columns": sorted(self.explode_columns),
            "with_pair_key": self.adds_pair_key,
            "top_k": self.top_k,
            "query_id_column": self.query_id_column if self.queries else None,
            "document_id_column": self.document_id_column if self.corpus else None,
        }


def load_job(path: str | None, flags: dict[str, Any]) -> ScoreJob:
    """Return the scoring job of a YAML file (local, s3://, gs:// or az://, may be None) with flags on top.

    Raises:
        JobError: the file is missing or no YAML mapping, a key is unknown, or a value does not fit.
    """
    return check_job(ScoreJob, {**read_job_file(path, ScoreJob), **flags}, path, flags).normalized()
