"""What a job says of its input: which objects, how they are read, where texts are, and which columns are kept.

One frozen record that planning and reading share, so that a worker reads a shard as it was scanned. Knows nothing of
models, engines or of who made it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from rerank_actor.inputs.columns import RESERVED_COLUMNS
from rerank_actor.inputs.directions import Directions
from rerank_actor.inputs.pairs import TextSpec
from rerank_actor.inputs.syntax.quoted import AUTO, Dialect
from rerank_actor.inputs.where.expression import Where


@dataclass(frozen=True)
class SourceSpec:
    """Texts that rows name by id: queries or a corpus.

    Attributes:
        role: what the texts are.
        uris: files, folders and globs.
        id_column, text_column: columns that are looked for first, before the usual names.
        dialect: of CSV and TSV.
    """

    role: Literal["query", "document"]
    uris: tuple[str, ...]
    id_column: str
    text_column: str
    dialect: Dialect = AUTO


@dataclass(frozen=True)
class InputSpec:
    """An input and how it is read.

    Attributes:
        uris: files, folders, globs and hf:// datasets.
        output: the folder that no input may lie in or around.
        format: `auto`, which goes by names, or the format of all shards.
        header: names of the columns of CSV and TSV whose first line does not have them.
        dialect: of CSV and TSV.
        config, split: of hf:// datasets and save_to_disk folders.
        where: for which rows there is anything to score, None for all.
        judged: folder of shards that were added for judgements, "" where none are.
        limit: rows to plan, None for all.
        unit_rows: rows of a unit at most, None to choose by the size of the input.
        top_k: candidates of each query at most, of rankings.
        rescore_changed: whether a shard may have changed since it was planned.
        keep: columns to keep, None for all.
        drop: of these, columns to leave out.
        rename: names in the output, of columns that have another there.
        reserved: names of columns that scoring adds.
        texts: where the texts of a row are.
        sources: where the texts are that rows name by id.
        directions: where each row is a pair in one or two directions.
        partition_columns: columns whose values stand in names of folders; None for those that the listing finds.
    """

    uris: tuple[str, ...] = ()
    output: str = ""
    format: str = "auto"
    header: tuple[str, ...] = ()
    dialect: Dialect = AUTO
    config: str | None = None
    split: str | None = None
    where: Where | None = None
    judged: str = ""
    limit: int | None = None
    unit_rows: int | None = None
    top_k: int | None = None
    rescore_changed: bool = False
    keep: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    reserved: frozenset[str] = frozenset(RESERVED_COLUMNS)
    texts: TextSpec = field(default_factory=TextSpec)
    sources: tuple[SourceSpec, ...] = ()
    directions: Directions | None = None
    partition_columns: tuple[str, ...] | None = None

    def uses(self, name: str) -> bool:
        """Whether the output has this input column, or something is read of it."""
        return self.keeps(name) or name in self.text_columns

    def keeps(self, name: str) -> bool:
        """Whether the output has this input column."""
        return (self.keep is None or name in self.keep) and name not in self.drop

    def with_where(self) -> "InputSpec":
        """Return the spec by which the columns of `where` are read along with those to keep."""
        wanted = self.where.columns if self.where is not None else ()
        roots = {*wanted, *(name.partition(".")[0] for name in wanted)}
        names_fields = any("." in name for name in wanted)  # or columns that have a dot, which the file alone tells
        keep = None if self.keep is None or names_fields else tuple(dict.fromkeys([*self.keep, *wanted]))
        return replace(self, keep=keep, drop=tuple(name for name in self.drop if name not in roots))

    @property
    def text_columns(self) -> list[str]:
        """Columns whose values are wanted as Python texts, where a shard has them."""
        reason = self.directions.reason_column if self.directions is not None else None
        where = self.where.columns if self.where is not None else ()
        return list(dict.fromkeys([*self.texts.text_columns, *([reason] if reason is not None else []), *where]))
