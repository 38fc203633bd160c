"""The retrieval job: what a user asks for, and the scoring jobs that embed its queries and its corpus.

Model, engine and run are sections of the scoring job. An `EmbedJob` is one whose rows are single texts and whose model gives
vectors; what can change a vector is in its fingerprint, `--top-k` is not. Knows nothing of argparse or of how vectors are
searched.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rerank_actor.engines.families.embedding import EmbeddingRequest, Role
from rerank_actor.engines.options import BUILT_IN_TOKENIZER
from rerank_actor.engines.settings import EngineSettings
from rerank_actor.engines.vectors import VECTOR_COLUMNS
from rerank_actor.inputs.pairs import TextSpec
from rerank_actor.inputs.settings import DialectSettings
from rerank_actor.inputs.spec import InputSpec, SourceSpec
from rerank_actor.inputs.text_sources import SourceColumns
from rerank_actor.job import ClusterSettings, RunSettings, ScoreJob
from rerank_actor.job_file import (
    Location,
    Locations,
    OptionalLocation,
    Settings,
    check_job,
    make_flag,
    refuse_credentials,
)

DEFAULT_EMBEDDING = "Qwen/Qwen3-Embedding-0.6B"
ID_COLUMN = "id"

OutputFormat = Literal["trec", "parquet", "mteb-predictions"]


class EmbedJob(ScoreJob):
    """The scoring job that embeds the texts of one role, whose prompt is its instruction."""

    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "lines"] = "auto"  # type: ignore[assignment]
    role: Literal["query", "document"] = "document"
    title_column: str = ""
    dimensions: int | None = None
    embedding_type: Literal["float32", "float16"] = "float32"

    def embedding(self) -> EmbeddingRequest:
        """Return what is wanted of the model."""
        return EmbeddingRequest(self.dimensions, self.embedding_type)

    def list_instruction_flags(self) -> list[str]:
        """Return no flags: the instruction is the prompt of the model's own files, or has a place in it."""
        return []

    def text_spec(self) -> TextSpec:
        """Return where the texts are."""
        return TextSpec(document_column=self.document_column, only_role=self.role, title_column=self.title_column)

    def input_spec(self) -> InputSpec:
        """Return the input as planning and reading take it."""
        return replace(super().input_spec(), reserved=frozenset(VECTOR_COLUMNS))

    def scoring_settings(self) -> dict[str, Any]:
        """Return the settings that can change a vector or a column: the job's share of the fingerprint."""
        return {**super().scoring_settings(), "role": self.role, "title_column": self.title_column}


class TextSourceSettings(DialectSettings):
    """Where the texts are, and which of their columns hold ids and texts."""

    queries: Locations = make_flag([], "input", "queries, as BEIR's queries.jsonl: an id and a text", "URI", nargs="+")
    corpus: Locations = make_flag(
        [], "input", "documents, as BEIR's corpus.jsonl: an id, a text and perhaps a title", "URI", nargs="+"
    )
    source: Locations = make_flag(
        [], "input", "for translation pairs, in place of queries: files of a sentence a line", "URI", nargs="+"
    )
    target: Locations = make_flag([], "input", "the same in the other language, in place of a corpus", "URI", nargs="+")
    both_directions: bool = make_flag(
        False, "input", "with --source and --target: the best of each source and the best of each target"
    )
    query_column: str = make_flag("query", "input", "column with the query, looked for first", "NAME")
    document_column: str = make_flag("document", "input", "column with the document, looked for first", "NAME")
    query_id_column: str = make_flag("query_id", "input", "column with the query's id, looked for first", "NAME")
    document_id_column: str = make_flag(
        "document_id", "input", "column with the document's id, looked for first", "NAME"
    )

    def source_specs(self) -> tuple[SourceSpec, SourceSpec]:
        """Return where documents and queries are."""
        return (
            SourceSpec("document", tuple(self.corpus), self.document_id_column, self.document_column, self.dialect),
            SourceSpec("query", tuple(self.queries), self.query_id_column, self.query_column, self.dialect),
        )


class EmbeddingSettings(EngineSettings):
    """Which model makes vectors, and of what."""

    model: Annotated[str | None, AfterValidator(refuse_credentials)] = make_flag(
        None,
        "model",
        "embedding model: name on the Hugging Face hub, local folder or s3://, gs://, az:// folder, with the files of "
        f"sentence-transformers (default {DEFAULT_EMBEDDING})",
        "MODEL",
    )
    instruction: str | None = make_flag(
        None, "model", "the task, for a model whose query prompt has one (default: that of its files)", "TEXT"
    )
    query_prompt: str | None = make_flag(
        None, "model", "what is put before each query (default: as its files say)", "TEXT"
    )
    document_prompt: str | None = make_flag(
        None, "model", "what is put before each document (default: as its files say)", "TEXT"
    )
    dimensions: Annotated[int, Field(ge=1)] | None = make_flag(
        None, "model", "numbers of a vector to keep, the first ones, of a model that was trained for it", "N"
    )
    embedding_type: Literal["float32", "float16"] = make_flag("float32", "output", "type that vectors are stored in")

    @property
    def model_name(self) -> str:
        """The model to load."""
        return self.model or (BUILT_IN_TOKENIZER if self.engine == "fake" else DEFAULT_EMBEDDING)


class CandidateSettings(Settings):
    """What is found, and where it is put."""

    top_k: Annotated[int, Field(ge=1)] = make_flag(100, "output", "documents of each query, the best ones", "K")
    output: Location = make_flag(
        "", "output", "folder for candidates and vectors; local path, s3://, gs:// or az://", "URI"
    )
    output_format: OutputFormat = make_flag(
        "trec", "output", "candidates as a TREC run, as Parquet of ids, or as MTEB's JSON; jobs.score --input reads all"
    )
    embeddings: OptionalLocation = make_flag(
        None, "output", "folder of the vectors, for several outputs to share (default OUTPUT/embeddings)", "URI"
    )
    overwrite: bool = make_flag(
        False, "output", "replace the candidates of an earlier job, and vectors of another model or prompt"
    )
    rescore_changed: bool = make_flag(False, "output", "embed shards again that changed since they were embedded")


class RetrieveJob(ClusterSettings, RunSettings, EmbeddingSettings, CandidateSettings, TextSourceSettings):
    """One retrieval job: the best documents of a corpus for each query."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.is_bitext and (self.queries or self.corpus):
            raise ValueError(
                "--source and --target are sentences, --queries and --corpus texts with ids; give one of both"
            )
        for name in (*(("source", "target") if self.is_bitext else ("queries", "corpus")), "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: give it as a flag or as `{name}:` in the job file")
        if self.both_directions and not self.is_bitext:
            raise ValueError("--both-directions is for --source and --target; give those, or leave it out")
        if self.is_bitext and (self.instruction is not None or self.query_prompt is not None):
            raise ValueError(
                "--instruction and --query-prompt are for queries, and sentences have one vector for both directions; give "
                "--document-prompt, which is put before sources and targets"
            )
        if self.is_bitext and "output_format" in self.model_fields_set and self.output_format != "parquet":
            raise ValueError(
                "--source and --target give Parquet of texts, as jobs.bitext reads it; leave out --output-format"
            )
        if self.instruction is not None and self.query_prompt is not None:
            raise ValueError("--instruction and --query-prompt both say what is put before a query; give one")
        for name in ("check_scores", "model_description", "retry_failed"):
            if getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} is for rerankers; leave it out")
        if self.dedupe == "global":
            raise ValueError("--dedupe global is for pairs; texts that are the same are embedded once within a unit")
        return self

    @property
    def is_bitext(self) -> bool:
        """Whether candidates of translation pairs are wanted."""
        return bool(self.source or self.target)

    @property
    def embeddings_uri(self) -> str:
        """The folder of the vectors."""
        return self.embeddings or f"{self.output.rstrip('/')}/embeddings"

    def to_embedding(
        self, role: Role, uris: list[str], columns: SourceColumns, prompt: str, *, overwrite: bool
    ) -> EmbedJob:
        """Return the job that embeds the texts of a role.

        Args:
            role: of the texts.
            uris: where they are.
            columns: of them; where that of ids is that of texts, texts stand for themselves.
            prompt: what is put before each text.
            overwrite: whether vectors of another job may be deleted.
        """
        folder = "queries" if role == "query" else "corpus"
        given = self.pick(EngineSettings, RunSettings, ClusterSettings)
        return check_job(
            EmbedJob,
            {
                **given,
                "model": self.model_name if self.model or self.engine != "fake" else None,
                "dry_run": False,
                "input": uris,
                "format": "lines" if self.is_bitext else "auto",
                "output": f"{self.embeddings_uri.rstrip('/')}/{folder}",
                "overwrite": overwrite,
                "extend": True,  # vectors of other texts may stand beside these
                "rescore_changed": self.rescore_changed,
                "columns": list(columns.header),
                "quoting": self.quoting,
                "csv_escape": self.csv_escape,
                "document_column": columns.text,
                "title_column": columns.title,
                "keep_columns": [columns.key],
                "rename_columns": {columns.key: ID_COLUMN} if columns.key != ID_COLUMN else {},
                "instruction": prompt,
                "role": role,
                "dimensions": self.dimensions,
                "embedding_type": self.embedding_type,
            },
        )
