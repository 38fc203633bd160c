"""The mining job: what a user asks for, as one frozen record whose fields are the flags and the keys of the job file.

Gives the rules, and the settings of the fingerprint: everything that can change a mined row. Knows nothing of argparse
or of what the scored output holds.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from rerank_actor import storage
from rerank_actor.errors import JobError, suggest
from rerank_actor.job_file import check_job, make_flag, refuse_credentials
from rerank_actor.mining.rules import MiningRules, Threshold

Format = Literal[
    "triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "tevatron-distillation", "nemo"
]
SETS_AT_ONCE = 20
RULES = tuple(name for name in MiningRules.__dataclass_fields__ if name != "labelled")

Number = Annotated[Threshold, BeforeValidator(Threshold.parse), PlainSerializer(str)]


class MineJob(BaseModel):
    """One mining job. Each field is a flag (`_` written `-`) and a key of the job file."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    scored: list[str] = make_flag(
        [], "input", "outputs of jobs.score, or Parquet files with their columns; local paths or s3://", "URI", "+"
    )
    query_column: str | None = make_flag(
        None, "input", "column with the query (default: as the scores were made)", "NAME"
    )
    document_column: str | None = make_flag(
        None, "input", "column with the document, or with a list of them (default: as the scores were made)", "NAME"
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
        False, "input", "mine scores of different fingerprints as if they were comparable"
    )

    label_column: str | None = make_flag(
        None,
        "positives",
        "column that says which documents are positive: a number for each; where documents are lists also the place of the "
        "positive one, from 0",
        "NAME",
    )
    qrels: str | None = make_flag(
        None, "positives", "file of judgements (TREC, or BEIR's TSV); needs the two id columns", "URI"
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

    space: Literal["score", "logit"] = make_flag(
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
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = make_flag(
        None, "rules", "drop candidates whose text is this like a positive's, 0 to 1 (0.9)", "X"
    )
    num_negatives: Annotated[int, Field(ge=1)] = make_flag(3, "rules", "negatives for each query at most", "N")
    sampling: Literal["top", "random"] = make_flag("top", "rules", "which of the candidates that are left")
    seed: Annotated[int, Field(ge=0)] = make_flag(0, "rules", "for --sampling random", "N")
    min_negatives: Annotated[int, Field(ge=0)] | None = make_flag(
        None, "rules", "drop queries with fewer (default 1; all for n-tuple; 0 for labeled-pair)", "N"
    )
    what_if: list[str | dict[str, Any]] = make_flag(
        [], "rules", "compare rule sets and mine nothing; each like 'perc-pos=0.95 depth=all'", "RULES", "+"
    )

    teacher: Literal["none", "score", "logit"] = make_flag(
        "none", "distillation", "value to write beside every passage"
    )
    normalize: Literal["none", "min-max", "softmax"] = make_flag(
        "none", "distillation", "normalize these for each query"
    )
    temperature: Annotated[float, Field(gt=0)] | None = make_flag(
        None, "distillation", "divide the logit by T first; a score is then the sigmoid of that", "T"
    )

    output: str = make_flag("", "output", "folder for the training data; local path or s3://", "URI")
    format: Format = make_flag("triplet", "output", "the first four are those of sentence-transformers")
    prompt: str | None = make_flag(
        None,
        "output",
        "instruction to write beside a query, for flagembedding (default: the one it was scored with)",
        "TEXT",
    )
    examples: Annotated[int, Field(ge=0)] = make_flag(20, "output", "examples with their texts in the report", "N")
    overwrite: bool = make_flag(
        False, "output", "delete what the output folder holds of an earlier mining and start afresh"
    )

    unit_mb: Annotated[float, Field(gt=0)] = make_flag(64, "run", "MB of scored rows that one task holds at once", "N")
    json_table: bool = make_flag(False, "run", "print the table of --what-if as JSON")
    ray_address: str | None = make_flag(
        None, "run", "Ray cluster to use (default: RAY_ADDRESS, or a Ray started on this machine)", "ADDRESS"
    )

    @field_validator("scored", "what_if", mode="before")
    @classmethod
    def _accept_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("scored", "output", "qrels")
    @classmethod
    def _refuse_credentials(cls, value: Any) -> Any:
        return refuse_credentials(value)

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

    @field_validator("absolute_margin", "relative_margin", "margin_pos")
    @classmethod
    def _check_margin(cls, value: Threshold | None) -> Threshold | None:
        if value is not None and value.value < 0:
            raise ValueError("expected a distance from the positive, 0 or more")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> "MineJob":
        for name in ("scored", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: give it as a flag or as `{name}:` in the job file")
        if self.label_column is not None and self.qrels is not None:
            raise ValueError("--label-column and --qrels both say what is positive: give one of them")
        if self.label_column is None and self.qrels is None and self.min_positive_score is None:
            raise ValueError(
                "nothing says which documents are positive: give --label-column NAME, --qrels URI, or, to take the best-scored "
                "document of each query, --min-positive-score X"
            )
        if self.qrels is not None and (self.query_id_column is None or self.document_id_column is None):
            raise ValueError(
                "--qrels names queries and documents by id: give --query-id-column and --document-id-column"
            )
        if self.teacher == "none" and (self.normalize != "none" or self.temperature is not None):
            raise ValueError(
                "--normalize and --temperature are for teacher values: give --teacher score or --teacher logit"
            )
        if self.teacher == "none" and self.format == "tevatron-distillation":
            raise ValueError(
                "--format tevatron-distillation holds teacher values: give --teacher score or --teacher logit"
            )
        self._check_window()
        return self

    def _check_window(self) -> None:
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

    def normalized(self) -> "MineJob":
        """Return the job with every location in its one spelling, so that relative paths survive a change of folder."""
        changes: dict[str, Any] = {
            "scored": [storage.normalize_uri(uri) for uri in self.scored],
            "output": storage.normalize_uri(self.output),
            "qrels": storage.normalize_uri(self.qrels) if self.qrels else None,
        }
        return self.model_copy(update=changes)

    def rules(self) -> MiningRules:
        """Return the rules."""
        least = {"n-tuple": self.num_negatives, "labeled-pair": 0}.get(self.format, 1)
        if self.min_negatives is not None:
            least = max(self.min_negatives, least)
        given = {name: getattr(self, name) for name in RULES if name != "min_negatives"}
        labelled = self.label_column is not None or self.qrels is not None
        return MiningRules(**given, labelled=labelled, min_negatives=least)

    def rule_sets(self) -> dict[str, MiningRules]:
        """Return the rules as given and those of each set of `--what-if`, by name.

        Raises:
            JobError: a set names what is no rule, or a value that does not fit.
        """
        if len(self.what_if) > SETS_AT_ONCE:
            raise JobError(f"--what-if: {len(self.what_if)} rule sets are more than the {SETS_AT_ONCE} of one table")
        found = {"as given": self.rules()}
        for item in self.what_if:
            changes = item if isinstance(item, dict) else _parse_changes(item)
            name = " ".join(f"{rule.replace('_', '-')}={value}" for rule, value in changes.items())
            for rule in changes:
                if rule not in RULES:
                    wrong, known = rule.replace("_", "-"), [own.replace("_", "-") for own in RULES]
                    raise JobError(
                        f"--what-if: `{wrong}` is not a rule{suggest(wrong, known)}; rules are {', '.join(known)}"
                    )
            found[name] = check_job(MineJob, {**self.model_dump(exclude={"what_if"}), **changes}, "--what-if").rules()
        return found

    def mining_settings(self) -> dict[str, Any]:
        """Return the settings that can change a mined row: the job's share of the fingerprint."""
        names = ("query_column", "document_column", "query_id_column", "document_id_column", "title_column")
        labels = ("label_column", "qrels", "min_relevance")
        output = ("teacher", "normalize", "temperature", "format", "prompt")
        values = {name: getattr(self, name) for name in (*names, *labels, *output)}
        return {**values, **self.rules().to_dict()}


def _parse_changes(text: str) -> dict[str, str]:
    """Return the rules and values of `perc-pos=0.95 depth=all`."""
    changes = {}
    for piece in re.split(r"[,\s]+", text.strip()):
        name, separator, value = piece.partition("=")
        if not separator or not name or not value:
            raise JobError(f"--what-if: `{piece}` is not RULE=VALUE, as in 'perc-pos=0.95 depth=all'")
        changes[name.removeprefix("--").replace("-", "_")] = value
    return changes
