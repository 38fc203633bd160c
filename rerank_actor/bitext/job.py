"""The bitext job: what a user asks for, as one frozen record whose fields are the flags and the keys of the job file.

Model, engine and run are sections of the scoring job; what only concerns queries and documents is not there. Gives the
scoring job of a language pair, and says which settings can change a candidate or a score. Knows nothing of argparse or of
what the input holds.
"""

from typing import Any

from pydantic import PrivateAttr, model_validator

from rerank_actor import storage
from rerank_actor.bitext.filters import REASONS
from rerank_actor.bitext.language_pairs import LanguagePair
from rerank_actor.bitext.settings import (
    PRESETS,
    CandidateSettings,
    ColumnSettings,
    Direction,
    DirectionSettings,
    FilterSettings,
    InstructionSettings,
    PairSettings,
    PresetSettings,
)
from rerank_actor.engines.settings import EngineSettings
from rerank_actor.errors import InputError
from rerank_actor.inputs.directions import BACKWARD, FORWARD, Directions
from rerank_actor.inputs.settings import DialectSettings
from rerank_actor.job import ClusterSettings, EngineJob, PriceSettings, ReuseSettings, RunSettings, ScoreJob
from rerank_actor.job_file import OptionalLocation, ReportSettings, check_job, make_flag
from rerank_actor.outputs.folder import Output

REASON_COLUMN = "dropped"
SHOWN_PAIRS = 5


class DirectedJob(ScoreJob):
    """The scoring job of one language pair: source and target as query and document, and the other way round."""

    backward_instruction: str = ""
    direction: Direction = "both"
    _candidates: dict[str, Any] = PrivateAttr(default_factory=dict)
    _instruction_flags: list[str] = PrivateAttr(default_factory=list)

    def with_origin(self, candidates: dict[str, Any], instruction_flags: list[str]) -> "DirectedJob":
        """Return the job with the settings that the candidates were read with, and the flags that its instructions are of."""
        job = self.model_copy()
        job._candidates, job._instruction_flags = candidates, instruction_flags
        return job

    def list_instruction_flags(self) -> list[str]:
        """Return the flags that ask the model for something of the user's own."""
        return self._instruction_flags

    def directions(self) -> Directions:
        """Return the instruction of each direction that is asked for."""
        instructions = {FORWARD: self.instruction, BACKWARD: self.backward_instruction}
        if self.direction != "both":
            instructions = {self.direction: instructions[self.direction]}
        return Directions(instructions, REASON_COLUMN, frozenset(REASONS))

    def scoring_settings(self) -> dict[str, Any]:
        """Return the settings that can change a score or a column: the job's share of the fingerprint."""
        settings = super().scoring_settings()
        del settings["instruction"]
        return {**settings, "directions": self.directions().instructions, "candidates": self._candidates}


class BitextJob(
    FilterSettings,
    DirectionSettings,
    PresetSettings,
    ColumnSettings,
    PairSettings,
    EngineJob,
    InstructionSettings,
    DialectSettings,
    CandidateSettings,
):
    """One bitext job: candidates of translation pairs, scored in both directions."""

    reuse: OptionalLocation = make_flag(
        None,
        "output",
        "earlier output of jobs.bitext with pair keys: pairs that it has are not scored again (turns --with-pair-key on)",
        "URI",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_foreign(cls, values: Any) -> Any:
        for name in values:
            if name in ScoreJob.model_fields and name not in cls.model_fields:
                raise ValueError(f"`{name}` is a setting of jobs.score, not of jobs.bitext")
        return values

    def write_instructions(self, pair: LanguagePair) -> tuple[str, str]:
        """Return the instruction of each direction, with the languages' names in it."""
        forward = self.instruction or PRESETS[self.preset]
        backward = self.backward_instruction if self.backward_instruction is not None else forward
        source, target = pair.source.name, pair.target.name
        return _name(forward, source, target), _name(backward, target, source)

    def to_scoring(self, pair: LanguagePair, shards: str, output: str, reuse: str | None = None) -> DirectedJob:
        """Return the scoring job of a language pair.

        Args:
            pair: the languages.
            shards: folder of the candidates.
            output: folder for the parts.
            reuse: earlier output of this language pair; None where there is none.
        """
        forward, backward = self.write_instructions(pair)
        job = check_job(
            DirectedJob,
            {
                **self.pick(EngineSettings, RunSettings, ReuseSettings, ReportSettings, PriceSettings, ClusterSettings),
                # An estimate is made of all language pairs together.
                **{"dry_run": False, "pairs_per_second": None, "tokens_per_second": None},
                "input": [shards],
                "format": "parquet",
                "output": output,
                "query_column": "source",
                "document_column": "target",
                "instruction": forward,
                "backward_instruction": backward,
                "direction": self.direction,
                "with_pair_key": self.adds_pair_key,
                "reuse": reuse,
            },
        )
        own = [name for name in ("instruction", "backward_instruction", "preset") if name in self.model_fields_set]
        return job.with_origin(self.candidate_settings(), [f"--{name.replace('_', '-')}" for name in own])

    @property
    def language_columns(self) -> tuple[str, str]:
        """Names of the columns, or of the folders, that hold the languages of source and target."""
        return self.source_language_column or "source_language", self.target_language_column or "target_language"

    def candidate_settings(self) -> dict[str, Any]:
        """Return the settings that can change a candidate as it is read: its columns, or whether it is scored at all."""
        names = ("format", "source_column", "target_column", "source_id_column", "target_id_column", "score_column")
        more = ("source_language_column", "target_language_column", "lang_pair", "keep_columns")
        later = {
            name: getattr(self, name)
            for name in ("drop_columns", "rename_columns", "columns", "csv_escape")
            if getattr(self, name)
        }
        later |= {"quoting": self.quoting} if self.quoting != "auto" else {}
        return {**{name: getattr(self, name) for name in (*names, *more)}, **later, "rules": self.rules().define()}


def name_known(folder: str, *names: str) -> str:
    """Return the location of something of the known pairs that are scored beside the candidates of an output's folder."""
    return storage.join_uri(folder, "_known", *names)


def _name(text: str, source: str, target: str) -> str:
    return text.replace("{source}", source).replace("{target}", target)


def list_outputs(uri: str) -> list[str]:
    """Return the output folders at a place: itself, or those of the language pairs that `jobs.bitext` scored below it.

    Raises:
        JobError, StorageError: as `storage.list_objects`.
    """
    if Output(uri).has_plan():
        return [uri]
    candidates = storage.join_uri(uri, "_candidates") + "/"
    names = {item.uri.removeprefix(candidates).partition("/")[0] for item in storage.list_objects(candidates[:-1])}
    return [storage.join_uri(uri, name) for name in sorted(names) if name.startswith("lang_pair=")] or [uri]


def refuse_root(uri: str) -> None:
    """Refuse the folder of a whole bitext job where one scored output is wanted.

    Raises:
        InputError: it is one; names the outputs below it.
        JobError, StorageError: as `list_outputs`.
    """
    outputs = list_outputs(uri)
    if outputs != [uri]:
        names = [output.rpartition("/")[2] for output in outputs]
        more = f" and {len(names) - SHOWN_PAIRS:,} more" if len(names) > SHOWN_PAIRS else ""
        raise InputError(
            f"{uri}: is the output of jobs.bitext, with a scored output for each language pair; name one of these folders in "
            f"it: {', '.join(names[:SHOWN_PAIRS])}{more}",
            uri=uri,
        )
