"""The bitext job: what a user asks for, as one frozen record whose fields are the flags and the keys of the job file.

Model, engine and run are those of the scoring job, whose flags they share; what only concerns queries and documents has no
flag here. Gives the scoring job of a language pair, and says which settings can change a candidate or a
score. Knows nothing of argparse or of what the input holds.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from rerank_actor import storage
from rerank_actor.bitext.filters import REASONS, CandidateFilters
from rerank_actor.bitext.languages import LanguagePair
from rerank_actor.inputs.directions import BACKWARD, FORWARD, Directions
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job, make_flag, make_hidden
from rerank_actor.outputs.folder import Output

PRESETS = {
    "retrieve": "Given a sentence in {source}, retrieve its translation in {target}",
    "parallel": "Retrieve parallel sentences",
    "faithful": "Given a sentence in {source}, retrieve a sentence in {target} that says the same, nothing added or omitted",
}
SHARED = (
    "model", "revision", "dtype", "max_length", "parse_special_tokens", "trust_remote_code", "check_scores", "engine",
    "gpus_per_actor", "tensor_parallel_size", "engine_args", "actors", "unit_rows", "dedupe", "max_attempts",
    "stall_seconds", "retry_failed", "max_failed_units", "max_error_rows", "ray_address", "overwrite", "with_pair_key",
    "gpu_type", "gpu_price",
)  # fmt: skip
REASON_COLUMN = "dropped"


class DirectedJob(ScoreJob):
    """The scoring job of one language pair: source and target as query and document, and the other way round."""

    backward_instruction: str = make_hidden("")
    direction: Literal["both", "forward", "backward"] = make_hidden("both")
    _candidates: dict[str, Any] = PrivateAttr(default_factory=dict)

    def with_candidates(self, settings: dict[str, Any]) -> "DirectedJob":
        """Return the job with the settings that the candidates were read with."""
        job = self.model_copy()
        job._candidates = settings
        return job

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


class BitextJob(ScoreJob):
    """One bitext job. Each field is a flag (`_` written `-`) and a key of the job file."""

    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "laser", "pairs", "moses"] = make_flag(  # type: ignore[assignment]
        "auto",
        "input",
        "tsv and csv have a header; laser is score, source, target and pairs is source, target, both without; moses is two "
        "files line by line. auto goes by names and first lines (.gz and .zst understood)",
    )
    lang_pair: str | None = make_flag(
        None,
        "input",
        "language pair of all input, as in deu-eng (default: of a folder lang_pair=deu-eng, of the file's name, or of the "
        "language columns)",
        "SRC-TGT",
    )
    partitions: list[str] = make_flag(
        [], "input", "language pairs to work on: names, globs, or ranges FIRST:LAST (default all)", "PAIR", "+"
    )
    languages: dict[str, str] = make_flag(
        {}, "input", "English names of language codes, CODE=NAME, for codes that ISO 639 lacks", "CODE=NAME", "+"
    )
    source_column: str = make_flag("source", "input", "column with the source text", "NAME")
    target_column: str = make_flag("target", "input", "column with the target text", "NAME")
    source_id_column: str | None = make_flag(
        None, "input", "column with the source's id, kept as source_id (default: source_id where there is one)", "NAME"
    )
    target_id_column: str | None = make_flag(
        None, "input", "column with the target's id, kept as target_id (default: target_id where there is one)", "NAME"
    )
    source_language_column: str | None = make_flag(
        None, "input", "column with the source's language code (default: source_language where there is one)", "NAME"
    )
    target_language_column: str | None = make_flag(
        None, "input", "column with the target's language code (default: target_language where there is one)", "NAME"
    )
    score_column: str | None = make_flag(
        None,
        "input",
        "column with the candidate generator's own score, kept as candidate_score (default: candidate_score or score)",
        "NAME",
    )

    preset: Literal["retrieve", "parallel", "faithful"] = make_flag(
        "retrieve", "directions", "instruction to score with: " + "; ".join(f"{n}: {t!r}" for n, t in PRESETS.items())
    )
    instruction: str = make_flag(
        "",
        "directions",
        "the task in a sentence of your own; {source} and {target} become the languages' names",
        "TEXT",
    )
    backward_instruction: str | None = make_flag(
        None, "directions", "the same for target to source (default: the same with the names exchanged)", "TEXT"
    )
    direction: Literal["both", "forward", "backward"] = make_flag(
        "both", "directions", "score both directions, or one; forward has the source as query"
    )

    max_length_ratio: Annotated[float, Field(ge=0)] = make_flag(
        9.0,
        "rules before scoring",
        "drop pairs whose UTF-8 lengths differ by more than this factor; 0 for no such rule",
        "X",
    )
    min_letters: Annotated[float, Field(ge=0, le=1)] = make_flag(
        0.5,
        "rules before scoring",
        "drop pairs of which a side has a smaller share of letters (else digits, signs)",
        "X",
    )
    min_script: Annotated[float, Field(ge=0, le=1)] = make_flag(
        0.5,
        "rules before scoring",
        "drop pairs of which a side has a smaller share of letters of its language's scripts",
        "X",
    )
    drop_identical: bool = make_flag(True, "rules before scoring", "drop pairs whose sides are the same text")
    identifier: Literal["auto", "none", "py3langid", "lingua"] = make_flag(
        "auto",
        "rules before scoring",
        "language identifier to use where it is installed; drops pairs of which a side is in the other side's language",
    )

    reuse: str | None = make_flag(
        None,
        "output",
        "earlier output of jobs.bitext with pair keys: pairs that it has are not scored again (turns --with-pair-key on)",
        "URI",
    )

    # What only concerns queries and documents, or an input that is scored as it lies.
    top_k: Annotated[int, Field(ge=1)] | None = make_hidden(None)
    columns: list[str] = make_hidden([])
    config: str | None = make_hidden(None)
    split: str | None = make_hidden(None)
    query_column: str = make_hidden("source")
    document_column: str = make_hidden("target")
    queries: list[str] = make_hidden([])
    corpus: list[str] = make_hidden([])
    query_id_column: str = make_hidden("query_id")
    document_id_column: str = make_hidden("document_id")
    query_template: str | None = make_hidden(None)
    document_template: str | None = make_hidden(None)
    instruction_column: str | None = make_hidden(None)
    instruction_map: str | dict[str, str] | None = make_hidden(None)
    dataset_column: str = make_hidden("dataset")
    task: str | None = make_hidden(None)
    limit: Annotated[int, Field(ge=1)] | None = make_hidden(None)
    keep_fields: list[str] = make_hidden([])
    explode: bool = make_hidden(False)
    explode_columns: list[str] = make_hidden([])
    rescore_changed: bool = make_hidden(False)

    @field_validator("partitions", mode="before")
    @classmethod
    def _accept_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("languages", mode="before")
    @classmethod
    def _parse_names(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return dict(value)
        names = {}
        for item in [value] if isinstance(value, str) else value:
            code, separator, name = str(item).partition("=")
            if not separator or not code or not name:
                raise ValueError("expected CODE=NAME, as in 'xyz=My Language'")
            names[code] = name
        return names

    @model_validator(mode="after")
    def _refuse_hidden(self) -> "BitextJob":
        for name, info in type(self).model_fields.items():
            if info.json_schema_extra == {"group": None} and getattr(self, name) != info.default:
                raise ValueError(f"`{name}` is a setting of jobs.score, not of jobs.bitext")
        return self

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
        values = {name: getattr(self, name) for name in SHARED if name in self.model_fields_set}
        job = check_job(
            DirectedJob,
            {
                **values,
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
        return job.with_candidates(self.candidate_settings())

    def rules(self) -> CandidateFilters:
        """Return the rules that need no score."""
        names = ("max_length_ratio", "min_letters", "min_script", "drop_identical", "identifier")
        return CandidateFilters(**{name: getattr(self, name) for name in names}).resolve()

    def candidate_settings(self) -> dict[str, Any]:
        """Return the settings that can change a candidate as it is read: its columns, or whether it is scored at all."""
        names = ("format", "source_column", "target_column", "source_id_column", "target_id_column", "score_column")
        more = ("source_language_column", "target_language_column", "lang_pair", "keep_columns")
        later = {name: getattr(self, name) for name in ("drop_columns", "rename_columns") if getattr(self, name)}
        return {**{name: getattr(self, name) for name in (*names, *more)}, **later, "rules": self.rules().define()}


def name_known(folder: str, *names: str) -> str:
    """Return the URI of something of the known pairs that are scored beside the candidates of an output's folder."""
    return storage.join_uri(folder, "_known", *names)


def _name(text: str, source: str, target: str) -> str:
    return text.replace("{source}", source).replace("{target}", target)


def list_outputs(uri: str) -> list[str]:
    """Return the output folders at a place: itself, or those of the language pairs that `jobs.bitext` scored below it.

    Raises:
        JobError, StorageError: as `storage.list_objects`.
    """
    if storage.read_if_present(Output(uri).at("plan.parquet")) is not None:
        return [uri]
    candidates = storage.join_uri(uri, "_candidates") + "/"
    found = {item.uri.removeprefix(candidates).partition("/")[0] for item in storage.list_objects(candidates[:-1])}
    return [storage.join_uri(uri, name) for name in sorted(found) if name.startswith("lang_pair=")] or [uri]
