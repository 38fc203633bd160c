"""Settings of mining, in sections that its job is composed of.

Checks each value, and what values of a section contradict one another. Knows nothing of what the scored output holds.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator

from rerank_actor.job_file import (
    Location,
    Locations,
    Names,
    OptionalLocation,
    Settings,
    make_flag,
    split_names,
    take_other_value,
)
from rerank_actor.mining.rules import RankWindow, Threshold

Format = Literal[
    "triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "tevatron-distillation", "nemo"
]
Number = Annotated[Threshold, BeforeValidator(Threshold.parse), PlainSerializer(str)]
Window = Annotated[RankWindow, BeforeValidator(RankWindow.parse), PlainSerializer(str)]
SUSPECT_SUFFIXES = (".parquet", ".jsonl")


def _accept_one(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


def _split_weights(value: Any) -> Any:
    return split_names(value) if isinstance(value, str) else value


def _name_values(value: Any) -> Any:
    """Return rules by values as these stand in names of folders, and by names of rules as a job file has them."""
    if not isinstance(value, dict) or not all(isinstance(rules, dict) for rules in value.values()):
        raise ValueError("expected rules for each value, as in {msmarco: {num_negatives: 5}}")
    return {
        str(name).lower() if isinstance(name, bool) else str(name): {
            str(rule).replace("-", "_"): given for rule, given in rules.items()
        }
        for name, rules in value.items()
    }


class ScoredSettings(Settings):
    """Which scores are mined, and where their texts are."""

    scored: Locations = make_flag(
        [],
        "input",
        "outputs of jobs.score, or Parquet files with their columns; local or s3://, gs://, az://",
        "URI",
        "+",
    )
    combine: Literal["none", "mean", "min", "max", "zscore", "rank"] = make_flag(
        "none",
        "input",
        "take each of --scored for a teacher of the same pairs, and make one value of their logits; zscore and rank are "
        "within each query",
    )
    weights: Annotated[list[Annotated[float, Field(gt=0)]], BeforeValidator(_split_weights)] = make_flag(
        [], "input", "weights of the teachers in the order of --scored, for --combine mean, zscore and rank", "X,..."
    )
    query_column: str | None = make_flag(
        None, "input", "column with the query (default: as the scores were made)", "NAME"
    )
    document_column: str | None = make_flag(
        None, "input", "column with the document, or with a list of them (default: as the scores were made)", "NAME"
    )
    queries: Locations = make_flag(
        [],
        "input",
        "where the texts of queries are now, of scores made with --queries (default: where scoring found them)",
        "URI",
        "+",
    )
    corpus: Locations = make_flag(
        [],
        "input",
        "where the texts of documents are now, of scores made with --corpus (default: the same)",
        "URI",
        "+",
    )
    query_id_column: str | None = make_flag(
        None,
        "input",
        "column with the query's id; rows with one id are one query (default: one text is one query)",
        "NAME",
    )
    document_id_column: str | None = make_flag(
        None, "input", "column with the document's id (default: made from the text where a format wants one)", "NAME"
    )
    title_column: str | None = make_flag(None, "input", "column with the document's title, for Tevatron", "NAME")
    allow_incomplete: bool = make_flag(False, "input", "mine an output of jobs.score that is not yet complete")
    allow_mixed_scores: bool = make_flag(
        False,
        "input",
        "mine scores of different fingerprints as if they were comparable; with --combine, of different instructions",
    )


class PositiveSettings(Settings):
    """Which documents are positive."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    label_column: str | None = make_flag(
        None,
        "positives",
        "column that says which documents are positive: numbers, truth values, or words like pos and neg; where documents are "
        "lists also the place of the positive one, from 0",
        "NAME",
    )
    positive_labels: Names = make_flag(
        [], "positives", "labels that are positive, comma-separated, where words do not say it", "NAMES"
    )
    qrels: OptionalLocation = make_flag(
        None,
        "positives",
        "file of judgements (TREC, BEIR's TSV, or Parquet, JSON lines and CSV with columns query-id, corpus-id and score, of "
        "which the last may be missing where all are relevant); needs the two id columns",
        "URI",
    )
    min_relevance: float = make_flag(1.0, "positives", "label or judgement from which a document is positive", "N")
    min_positive_score: Number | None = make_flag(
        None,
        "positives",
        "without labels: the best-scored document of a query is its positive if its score is at least this. With labels: "
        "positives below are weak",
        "X",
    )
    weak_positives: Literal["report", "drop"] = make_flag("report", "positives", "what becomes of weak positives")
    false_negatives: Literal["drop", "promote", "report"] = make_flag(
        "drop", "positives", "what becomes of candidates scored above their query's positive"
    )
    promote_above: Number | None = make_flag(
        None,
        "positives",
        "make candidates positive that are X or more above all positives of their query (3@logit)",
        "X",
    )
    verdicts: OptionalLocation = make_flag(
        None,
        "positives",
        "file of what a judge said of pairs, as --suspects writes it, in column `verdict`: relevant is positive, not relevant "
        "may be negative whatever rule suspects it, unsure is neither",
        "URI",
    )
    allow_unknown_verdicts: bool = make_flag(
        False, "positives", "leave out verdicts of pairs that are not among the scored ones"
    )

    @field_validator("promote_above")
    @classmethod
    def _check_distance(cls, value: Threshold | None) -> Threshold | None:
        if value is not None and value.value <= 0:
            raise ValueError("expected a distance from the highest positive, above 0")
        return value

    def normal_values(self) -> dict[str, Any]:
        """Return the settings that `normalized` changes."""
        absent = {name: None for name in ("qrels", "verdicts") if not getattr(self, name)}
        return {**super().normal_values(), **absent}


class RuleSettings(Settings):
    """Which candidates become negatives."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    space: Annotated[Literal["score", "logit"], take_other_value("probability", "score")] = make_flag(
        "score", "rules", "what thresholds are in; X@score or X@logit overrides it for one"
    )
    skip_top: Annotated[int, Field(ge=0)] = make_flag(
        0, "rules", "leave out the N best of what the other rules leave", "N"
    )
    depth: int | Literal["auto", "all"] = make_flag(
        "auto", "rules", "how far down a query's ranking negatives are taken from: N, all, or auto", "N"
    )
    max_score: Number | None = make_flag(None, "rules", "drop candidates above", "X")
    min_score: Number | None = make_flag(None, "rules", "drop candidates below", "X")
    absolute_margin: Number | None = make_flag(None, "rules", "drop candidates less than this below the positive", "X")
    relative_margin: Number | None = make_flag(
        None, "rules", "the same, as a share of the positive's magnitude; right for negative values too", "X"
    )
    margin_pos: Number | None = make_flag(None, "rules", "NV-Retriever's TopK-MarginPos, keep s < p - X (0.05)", "X")
    perc_pos: Number | None = make_flag(None, "rules", "NV-Retriever's TopK-PercPos, keep s < X of p (0.95)", "X")
    max_disagreement: Annotated[float, Field(ge=0)] | None = make_flag(
        None, "rules", "drop candidates on which the teachers of --combine differ by more, in what is combined", "X"
    )
    uncertain_band: Number | None = make_flag(
        None, "rules", "drop candidates this near to where the margins end, for --suspects (1@logit)", "X"
    )
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = make_flag(
        None, "rules", "drop candidates whose text is this like a positive's, 0 to 1 (0.9)", "X"
    )
    rank_column: str | None = make_flag(
        None, "rules", "column with the rank that a retriever gave, for --rank-window", "NAME"
    )
    rank_window: Window | None = make_flag(
        None,
        "rules",
        "take negatives from these ranks of --rank-column alone: 30:200 is from 30 to before 200, as the column counts",
        "FIRST:END",
    )
    num_negatives: Annotated[int, Field(ge=1)] = make_flag(3, "rules", "negatives for each query at most", "N")
    num_negatives_column: str | None = make_flag(
        None, "rules", "column with the number of a query's negatives; --num-negatives where it is null", "NAME"
    )
    random_negatives: Annotated[int, Field(ge=0)] = make_flag(
        0,
        "rules",
        "add N documents of the corpus to each query's negatives, drawn at random, never a candidate or a positive of it; the "
        "corpus is that of the scores, or all scored documents",
        "N",
    )
    sampling: Literal["top", "random", "stratified"] = make_flag(
        "top", "rules", "which of the candidates that are left; stratified: one of each quantile of the query's logits"
    )
    seed: Annotated[int, Field(ge=0)] = make_flag(
        0, "rules", "for --sampling random and stratified, and --random-negatives", "N"
    )
    min_negatives: Annotated[int, Field(ge=0)] | None = make_flag(
        None, "rules", "drop queries with fewer (default 1; all for n-tuple; 0 for labeled-pair)", "N"
    )
    what_if: Annotated[list[str | dict[str, Any]], BeforeValidator(_accept_one)] = make_flag(
        [], "rules", "compare rule sets and mine nothing; each like 'perc-pos=0.95 depth=all'", "RULES", "+"
    )

    @field_validator("depth", mode="before")
    @classmethod
    def _check_depth(cls, value: Any) -> Any:
        if value in ("auto", "all"):
            return value
        if not str(value).isdigit() or int(value) < 1:
            raise ValueError("expected a whole number from 1, `all` or `auto`")
        return int(value)

    @field_validator("perc_pos")
    @classmethod
    def _check_share(cls, value: Threshold | None) -> Threshold | None:
        if value is not None and not 0 < value.value <= 1:
            raise ValueError("expected a share of the positive's score, above 0 and at most 1 (0.95)")
        return value

    @field_validator("absolute_margin", "relative_margin", "margin_pos", "uncertain_band")
    @classmethod
    def _check_margin(cls, value: Threshold | None) -> Threshold | None:
        if value is not None and value.value < 0:
            raise ValueError("expected a distance from the positive, 0 or more")
        return value

    def check_window(self) -> None:
        """Refuse numbers that leave no query enough negatives.

        Raises:
            ValueError: the rank window is too narrow, or more negatives are demanded than taken.
        """
        if (self.rank_window is None) != (self.rank_column is None):
            given, other = ("rank-window", "rank-column") if self.rank_window else ("rank-column", "rank-window")
            raise ValueError(f"--{given} is of no use without --{other}: give both")
        if isinstance(self.depth, int) and self.num_negatives > self.depth - self.skip_top:
            raise ValueError(
                f"--depth {self.depth} leaves {max(0, self.depth - self.skip_top)} candidates behind --skip-top "
                f"{self.skip_top}, fewer than --num-negatives {self.num_negatives}; raise --depth or lower the other two"
            )
        if self.min_negatives is not None and self.min_negatives > self.num_negatives:
            raise ValueError(
                f"--min-negatives {self.min_negatives} is more than --num-negatives {self.num_negatives}, so that no query "
                "would be left; lower it"
            )


class TeacherSettings(Settings):
    """Which values of a teacher are written."""

    teacher: Literal["none", "score", "logit"] = make_flag(
        "none", "distillation", "value to write beside every passage"
    )
    normalize: Literal["none", "min-max", "softmax"] = make_flag(
        "none", "distillation", "normalize these for each query"
    )
    temperature: Annotated[float, Field(gt=0)] | None = make_flag(
        None, "distillation", "divide the logit by T first; a score is then the sigmoid of that", "T"
    )


class MinedSettings(Settings):
    """Where training data goes, and in which form."""

    output: Location = make_flag("", "output", "folder for the training data; local path, s3://, gs:// or az://", "URI")
    format: Format = make_flag("triplet", "output", "the first four are those of sentence-transformers")
    by: str | None = make_flag(
        None,
        "output",
        "mine the queries of each value of this column apart, each into a folder COLUMN=VALUE; the key `rules_by_value` of a "
        "job file gives values rules of their own",
        "COLUMN",
    )
    rules_by_value: Annotated[dict[str, dict[str, Any]], BeforeValidator(_name_values)] = Field(default_factory=dict)
    prompt: str | None = make_flag(
        None,
        "output",
        "instruction to write beside a query, for flagembedding (default: the one it was scored with)",
        "TEXT",
    )
    suspects: OptionalLocation = make_flag(
        None,
        "output",
        "also write candidates that a rule takes for false negatives to this file, .parquet or .jsonl, with texts and values, "
        "for a judge to fill in column `verdict`",
        "URI",
    )
    push_to_hub: str | None = make_flag(
        None, "output", "then publish it as this dataset on the Hugging Face hub, as jobs.publish does", "OWNER/NAME"
    )
    hub_private: bool = make_flag(False, "output", "create that repository private")
    hub_license: str = make_flag("unknown", "output", "license for its card, by the hub's list (cc-by-4.0)", "NAME")
    examples: Annotated[int, Field(ge=0)] = make_flag(20, "output", "examples with their texts in the report", "N")
    overwrite: bool = make_flag(
        False, "output", "delete what the output folder holds of an earlier mining and start afresh"
    )


class TaskSettings(Settings):
    """How much a task holds, and how a table is printed."""

    unit_mb: Annotated[float, Field(gt=0)] = make_flag(64, "run", "MB of scored rows that one task holds at once", "N")
