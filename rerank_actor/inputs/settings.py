"""Settings of the input and of what the output keeps of it, in sections that jobs are composed of.

What they say is read by planning and reading as an `InputSpec` and a `TextSpec`, which the job makes of them. Knows nothing
of models, of engines or of how a run goes.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rerank_actor import storage
from rerank_actor.errors import JobError
from rerank_actor.inputs.field_template import parse_template
from rerank_actor.inputs.rankings.lines import RankingFormat
from rerank_actor.inputs.spec import SourceSpec
from rerank_actor.inputs.syntax.quoted import AUTO, Dialect
from rerank_actor.inputs.training import TrainingFormat
from rerank_actor.inputs.where.expression import parse_where
from rerank_actor.job_file import (
    Location,
    Locations,
    Names,
    OptionalLocation,
    Settings,
    accept_one,
    make_flag,
    refuse_credentials,
    refuse_empty,
    split_names,
)
from rerank_actor.storage import hub


def _check_template(value: str | None) -> str | None:
    if value is not None:
        parse_template(value)
    return value


def _check_where(value: str | None) -> str | None:
    if value is not None:
        parse_where(value)
    return value


def _check_escape(value: str) -> str:
    if value not in ("", "none") and (len(value) != 1 or value.isalnum() or not value.isprintable() or value in '",'):
        raise ValueError("expected one character that is no letter, digit, quote or comma, or none")
    return value


def _split_unless_all(value: str | list[str]) -> str | list[str]:
    names: str | list[str] = value if value == "all" else split_names(value)
    return names


def _parse_renames(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if not all(old.strip() and new.strip() for old, _, new in pairs):
        raise ValueError("expected OLD=NEW,...")
    return {old.strip(): new.strip() for old, _, new in pairs}


Template = Annotated[str | None, AfterValidator(_check_template)]


class InputSettings(Settings):
    """What is scored."""

    input: Annotated[
        list[str], BeforeValidator(accept_one), AfterValidator(refuse_credentials), AfterValidator(refuse_empty)
    ] = make_flag(
        [], "input", "local files, folders or globs to score, s3://, gs://, az://; hf:// datasets", "URI", nargs="+"
    )

    def normal_values(self) -> dict[str, Any]:
        """Return the settings that `normalized` changes."""
        return {**super().normal_values(), "input": [_normalize_input(uri) for uri in self.input]}


class DialectSettings(Settings):
    """How fields of CSV and TSV are written."""

    quoting: Literal["auto", "csv", "none"] = make_flag(
        "auto",
        "input",
        "whether fields of CSV and TSV may be in quotes: csv, as RFC 4180 has them; none, where quotes are text; auto is csv "
        "for CSV, none for TSV, and refuses a TSV that looks quoted",
    )
    csv_escape: Annotated[str, AfterValidator(_check_escape)] = make_flag(
        "",
        "input",
        "character that takes its meaning from the next in CSV and TSV, as the backslash of Spark and MySQL; none where a "
        "backslash before a quote is text (default: such a row is an error)",
        "CHAR",
    )

    @property
    def dialect(self) -> Dialect:
        """What both say."""
        return Dialect(self.quoting, self.csv_escape)


class ShardSettings(InputSettings):
    """How the shards of the input are read."""

    format: Literal["auto", "parquet", "arrow", "jsonl", "csv", "tsv", RankingFormat, TrainingFormat] = make_flag(
        "auto",
        "input",
        "format of the shards; auto goes by each file's name (.gz and .zst understood), else by its first bytes, with "
        "--queries or --corpus also by its first lines; tevatron is query, document, score, and msmarco ends in the rank; "
        "flagembedding, tevatron (JSON, Parquet), tuples and msmarco-hard-negatives are training files, whose positives and "
        "negatives are scored and get their scores where the trainer reads them",
    )
    top_k: Annotated[int, Field(ge=1)] | None = make_flag(
        None,
        "input",
        "candidates of each query at most, the best of the ranking (trec, tevatron, msmarco, qrels, mteb-predictions)",
        "K",
    )
    columns: Names = make_flag(
        [], "input", "names of the columns of CSV and TSV files without a header, comma-separated", "NAMES"
    )
    config: str | None = make_flag(None, "input", "configuration of an hf:// dataset that has several", "NAME")
    split: str | None = make_flag(
        None, "input", "splits of an hf:// dataset or a save_to_disk folder that has several: NAME,... or all", "NAMES"
    )

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("--columns names a column twice")
        return self


class TextSettings(Settings):
    """Where the texts of a row are: in its columns, or in files that it names them of by id."""

    query_column: str = make_flag("query", "input", "column with the query", "NAME")
    document_column: str = make_flag(
        "document",
        "input",
        "column with the document or a list of documents: texts, or structs with text, title and id; a.b is field b of a",
        "NAME",
    )
    negative_columns: Names = make_flag(
        [],
        "input",
        "further columns with documents, the negatives of a training row, comma-separated; --document-column then has its "
        "positives",
        "NAMES",
    )
    queries: Locations = make_flag(
        [], "input", "texts of queries by id, as BEIR's queries.jsonl; rows then hold ids of queries", "URI", nargs="+"
    )
    corpus: Locations = make_flag(
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
    query_template: Template = make_flag(
        None, "input", "how the query is written from columns, as in '{question} {context}'", "TEXT"
    )
    document_template: Template = make_flag(
        None,
        "input",
        r"how a document is written from columns, or from the fields of a candidate, as in '{title}\n{text}'",
        "TEXT",
    )

    def check_ids(self) -> None:
        """Refuse texts by id that something contradicts.

        Raises:
            ValueError: a template says what they are too, or they are in an hf:// dataset.
        """
        for role, flag in (("query", "queries"), ("document", "corpus")):
            uris = getattr(self, flag)
            if uris and getattr(self, f"{role}_template"):
                raise ValueError(f"--{flag} and --{role}-template both say what the text of a {role} is; give one")
            if any(hub.is_hub(uri) for uri in uris):
                raise ValueError(
                    f"--{flag} takes files, folders and globs, local or s3://, gs://, az://; no hf:// dataset: download it"
                )

    @property
    def query_source(self) -> str:
        """The column that says what the query is, its text or its id."""
        return self.query_id_column if self.queries else self.query_column

    @property
    def document_source(self) -> str:
        """The same of the document."""
        return self.document_id_column if self.corpus else self.document_column

    def source_specs(self, dialect: Dialect = AUTO) -> tuple[SourceSpec, ...]:
        """Return where the texts are that rows name by id, in files of a dialect."""
        queries = SourceSpec("query", tuple(self.queries), self.query_id_column, self.query_column, dialect)
        corpus = SourceSpec("document", tuple(self.corpus), self.document_id_column, self.document_column, dialect)
        return tuple(spec for spec in (queries, corpus) if spec.uris)


class RowSettings(Settings):
    """How many rows of the input are scored."""

    limit: Annotated[int, Field(ge=1)] | None = make_flag(None, "input", "score the first N rows only", "N")
    where: Annotated[str | None, AfterValidator(_check_where)] = make_flag(
        None,
        "input",
        'score only rows for which this holds, of input columns, as in "score > 0.2 and score < 0.8"; the others are passed '
        "through without a score",
        "EXPRESSION",
    )


class JudgedSettings(Settings):
    """Which judged pairs are scored beside the input."""

    qrels: OptionalLocation = make_flag(
        None,
        "input",
        "judgements, TREC's or BEIR's: positive pairs of the input's queries that it lacks are scored too, in rows of their "
        "own, which the column added_from_qrels tells",
        "URI",
    )
    min_relevance: float = make_flag(1.0, "input", "judgement from which a pair of --qrels is positive", "N")


class OutputSettings(Settings):
    """Where the output is, and which columns of the input it has."""

    output: Location = make_flag("", "output", "folder for the scored parts; local path, s3://, gs:// or az://", "URI")
    keep_columns: Annotated[str | list[str], AfterValidator(_split_unless_all)] = make_flag(
        "all", "output", "input columns to keep: all, or a comma-separated list", "NAMES"
    )
    drop_columns: Names = make_flag([], "output", "input columns to leave out, comma-separated", "NAMES")
    rename_columns: Annotated[dict[str, str], BeforeValidator(_parse_renames)] = make_flag(
        {}, "output", "other names for input columns in the output: OLD=NEW, comma-separated", "NAMES"
    )


class ListSettings(OutputSettings):
    """What the output has of documents that are lists or structs."""

    keep_fields: Names = make_flag(
        [], "output", "of candidates that are structs, fields to keep, comma-separated, as in id (default all)", "NAMES"
    )
    explode: bool = make_flag(False, "output", "write a row for each document of a list instead of lists of scores")
    explode_columns: Names = make_flag(
        [], "output", "with --explode: further lists to take apart along with the documents, comma-separated", "NAMES"
    )

    @model_validator(mode="after")
    def _check_explode(self) -> Self:
        if self.explode_columns and not self.explode:
            raise ValueError("--explode-columns needs --explode")
        return self


def _normalize_input(uri: str) -> str:
    if not hub.is_hub(uri):
        return storage.normalize_uri(uri)
    try:
        return hub.normalize_hub_uri(uri)
    except ValueError as error:
        raise JobError(f"--input: {error}", uri=uri) from None
