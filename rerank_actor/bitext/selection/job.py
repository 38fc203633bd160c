"""The selection job: what a user asks for, as one frozen record whose fields are flags and keys of the job file.

Language pairs, columns and direction are a section of the bitext job, of whose command the selection's flags are a part.
Gives the rules, and the settings of the fingerprint: everything that can change a delivered row. Knows nothing of what
the scored output holds.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rerank_actor.bitext.selection.rules import Combine, Deduplicate, Mode, RankBy, SelectionRules, Space
from rerank_actor.bitext.settings import DirectionSettings, PairSettings
from rerank_actor.inputs.settings import DialectSettings
from rerank_actor.job import ClusterSettings
from rerank_actor.job_file import Location, Locations, ReportSettings, make_flag, take_other_value

Format = Literal["parquet", "tsv", "moses", "tmx"]
FORMATS: tuple[Format, ...] = ("parquet", "tsv", "moses", "tmx")

Threshold = float | Literal["auto"] | None


class SelectJob(ClusterSettings, ReportSettings, DirectionSettings, PairSettings, DialectSettings):
    """One selection job: which scored pairs are delivered, and how."""

    scored: Locations = make_flag(
        [],
        "selection",
        "select from these outputs of an earlier run, or Parquet files with their columns, and score nothing (in place of "
        "--input)",
        "URI",
        "+",
    )
    combine: Combine = make_flag("mean", "selection", "how the two directions become one score")
    space: Annotated[Space, take_other_value("score", "probability")] = make_flag(
        "logit",
        "selection",
        "what scores and their thresholds are: log-odds, or scores, which are probabilities in [0, 1]",
        "logit|score",
    )
    threshold: Threshold = make_flag(
        None, "selection", "drop pairs with a lower score; auto takes --calibration's", "X|auto"
    )
    forward_threshold: float | None = make_flag(
        None, "selection", "drop pairs with a lower score source to target", "X"
    )
    backward_threshold: float | None = make_flag(
        None, "selection", "drop pairs with a lower score target to source", "X"
    )
    margin: Threshold = make_flag(
        None,
        "selection",
        "drop pairs whose log-odds are not this far above the mean of both sides' other candidates; auto takes "
        "--calibration's",
        "X|auto",
    )
    ratio_margin: float | None = make_flag(
        None,
        "selection",
        "drop pairs with a lower ratio margin (Artetxe and Schwenk) of candidate_score, a cosine",
        "X",
    )
    neighbors: Annotated[int, Field(ge=0)] = make_flag(
        4, "selection", "other candidates of each side that a margin looks at, the best; 0 for all", "K"
    )
    rank_by: RankBy = make_flag("score", "selection", "what --mode compares and the output is ordered by")
    mode: Mode = make_flag(
        "greedy",
        "selection",
        "best target of each source, best source of each target, both, one to one by falling value (LASER's max), or all",
    )
    deduplicate: Deduplicate = make_flag(
        "normalized", "selection", "which pairs are one pair, of which the best-scored stays"
    )
    allow_incomplete: bool = make_flag(False, "selection", "select from an output that is not yet scored to the end")

    calibration: Locations = make_flag(
        [],
        "calibration",
        "known pairs: TSV, CSV, JSON lines or Parquet with source, target and label (1 right, 0 wrong); without labels all "
        "are right and other candidates of their sides are wrong",
        "FILE",
        "+",
    )

    calibrate_only: bool = make_flag(
        False, "calibration", "print how scores do on the known pairs, and deliver nothing"
    )

    deliver: Location = make_flag(
        "", "delivery", "folder for what is selected; local path, s3://, gs:// or az://", "URI"
    )
    formats: list[Format] = make_flag(
        ["parquet", "tsv"], "delivery", f"which of {', '.join(FORMATS)} to write", "FORMAT", "+"
    )
    part_rows: Annotated[int, Field(ge=1)] = make_flag(200_000, "delivery", "rows of a delivered file at most", "N")
    reselect: bool = make_flag(
        False, "delivery", "replace what was delivered of a language pair by other rules or from other scores"
    )

    unit_mb: Annotated[float, Field(gt=0)] = 64.0
    bucket_rows: Annotated[int, Field(ge=1)] = 400_000
    local_rows: Annotated[int, Field(ge=0)] = 400_000

    @field_validator("formats", mode="before")
    @classmethod
    def _split_formats(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str) else value
        return list(dict.fromkeys(name for item in items for name in str(item).replace(",", " ").split()))

    @field_validator("threshold", "margin", mode="before")
    @classmethod
    def _check_threshold(cls, value: Any) -> Any:
        if value is None or value == "auto":
            return value
        try:
            threshold = float(value)
        except (TypeError, ValueError):
            raise ValueError("expected a number or auto") from None
        if threshold != threshold:
            raise ValueError("expected a number or auto")
        return threshold

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not self.deliver:
            raise ValueError(
                "--deliver is missing: give the folder for what is selected, or `deliver:` in the job file"
            )
        if not self.formats:
            raise ValueError(f"--formats is empty: give some of {', '.join(FORMATS)}")
        for name in ("threshold", "forward_threshold", "backward_threshold"):
            value = getattr(self, name)
            if self.space == "probability" and isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} {value:g} is no probability; give 0 to 1, or --space logit for log-odds"
                )
        if self.calibrate_only and not self.calibration:
            raise ValueError("--calibrate-only looks at known pairs: give them as --calibration FILE")
        for name in ("threshold", "margin"):
            if getattr(self, name) == "auto" and not self.calibration:
                raise ValueError(f"--{name} auto takes the best of known pairs: give them as --calibration FILE")
        return self

    @property
    def is_calibrated(self) -> bool:
        """Whether a threshold waits for the calibration."""
        return "auto" in (self.threshold, self.margin)

    def to_record(self) -> dict[str, Any]:
        """Return the job as it is written down: its own settings first, without the one that changes no row."""
        record = super().to_record()
        del record["reselect"]
        shared = ("partitions", "lang_pair", "languages", "direction", "source_column", "target_column", "ray_address")
        last = {name: record.pop(name) for name in shared}
        return {**record, **last}

    def rules(self) -> SelectionRules:
        """Return the rules; a threshold that waits for the calibration is not among them yet."""
        given: dict[str, Any] = {name: getattr(self, name) for name in SelectionRules.__dataclass_fields__}
        values: dict[str, Any] = {name: None if value == "auto" else value for name, value in given.items()}
        return SelectionRules(**values)

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change a delivered row: the job's share of the fingerprint."""
        given = {name: getattr(self, name) for name in SelectionRules.__dataclass_fields__}
        return {**given, "formats": sorted(self.formats), "part_rows": self.part_rows}
