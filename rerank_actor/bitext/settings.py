"""Settings of translation pairs, in sections that the bitext job and the selection are composed of.

Gives the rules that need no score. Knows nothing of models, of runs or of what the
input holds.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rerank_actor.bitext.filters import CandidateFilters
from rerank_actor.inputs.settings import InputSettings
from rerank_actor.job_file import Names, Settings, accept_one, make_flag

PRESETS = {
    "retrieve": "Given a sentence in {source}, retrieve its translation in {target}",
    "parallel": "Retrieve parallel sentences",
    "faithful": "Given a sentence in {source}, retrieve a sentence in {target} that says the same, nothing added or omitted",
}

Direction = Literal["both", "forward", "backward"]


def _parse_names(value: Any) -> Any:
    """Return the names of language codes that are written CODE=NAME."""
    if not isinstance(value, str | list):
        return value
    names = {}
    for item in accept_one(value):
        code, separator, name = str(item).partition("=")
        if not separator or not code or not name:
            raise ValueError("expected CODE=NAME, as in 'xyz=My Language'")
        names[code] = name
    return names


class CandidateSettings(InputSettings):
    """How files of candidates are read."""

    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "laser", "pairs", "moses"] = make_flag(
        "auto",
        "input",
        "tsv and csv have a header; laser is score, source, target and pairs is source, target, both without; moses is two "
        "files line by line. auto goes by names and first lines (.gz and .zst understood)",
    )
    columns: Names = make_flag(
        [],
        "input",
        "names of the columns of CSV and TSV files without a header, comma-separated, - for one to leave out, as in "
        "--columns=-,-,source,target,score",
        "NAMES",
    )

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        named = [name for name in self.columns if name != "-"]
        if len(set(named)) < len(named):
            raise ValueError("--columns names a column twice")
        if named and self.format not in ("auto", "csv", "tsv"):
            raise ValueError(
                f"--columns is for CSV and TSV, and --format {self.format} is neither; leave one of them out"
            )
        return self


class InstructionSettings(Settings):
    """What the model is asked of a pair, in the user's own words."""

    instruction: str = make_flag(
        "",
        "directions",
        "the task in a sentence of your own; {source} and {target} become the languages' names",
        "TEXT",
    )


class PresetSettings(Settings):
    """What the model is asked of a pair in each direction."""

    preset: Literal["retrieve", "parallel", "faithful"] = make_flag(
        "retrieve", "directions", "instruction to score with: " + "; ".join(f"{n}: {t!r}" for n, t in PRESETS.items())
    )
    backward_instruction: str | None = make_flag(
        None, "directions", "the same for target to source (default: the same with the names exchanged)", "TEXT"
    )


class PairSettings(Settings):
    """Which language pairs there are, and where their texts are; scoring and selection have these in common."""

    lang_pair: str | None = make_flag(
        None,
        "input",
        "language pair of all input, as in deu-eng or en-pt_BR (default: of a folder lang_pair=deu-eng, of the file's "
        "name, or of the language columns)",
        "SRC-TGT",
    )
    partitions: Annotated[list[str], BeforeValidator(accept_one)] = make_flag(
        [], "input", "language pairs to work on: names, globs, or ranges FIRST:LAST (default all)", "PAIR", "+"
    )
    languages: Annotated[dict[str, str], BeforeValidator(_parse_names)] = make_flag(
        {},
        "input",
        "English names of language codes, CODE=NAME, for codes that ISO 639 lacks or names otherwise",
        "CODE=NAME",
        "+",
    )
    source_column: str = make_flag("source", "input", "column with the source text", "NAME")
    target_column: str = make_flag("target", "input", "column with the target text", "NAME")


class DirectionSettings(Settings):
    """In which directions a pair is scored, and selected by."""

    direction: Direction = make_flag(
        "both", "directions", "score both directions, or one; forward has the source as query"
    )


class ColumnSettings(Settings):
    """Where the rest of what a candidate has is."""

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


class FilterSettings(Settings):
    """Which candidates are not worth a score."""

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

    def rules(self) -> CandidateFilters:
        """Return the rules that need no score."""
        return CandidateFilters(**{name: getattr(self, name) for name in FilterSettings.model_fields}).resolve()
