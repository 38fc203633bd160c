"""What tasks of a selection's steps work on and give: the task, what is the same for all of a step, and the result.

What is the same comes from the job and from the first scored part, and rules that look at columns which are not there are
refused. A result is rows for the buckets of later steps, a tally, and facts for its record. Knows nothing of what a step does.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from rerank_actor import storage
from rerank_actor.bitext.language_pairs import LanguagePair
from rerank_actor.bitext.selection.hashed_pairs import ROW_BITS, HashedPairs, KeptPairs
from rerank_actor.bitext.selection.job import Format, SelectJob
from rerank_actor.bitext.selection.labelled_pairs import LabelledPairs
from rerank_actor.bitext.selection.margins import to_space
from rerank_actor.bitext.selection.output import SelectOutput
from rerank_actor.bitext.selection.rules import SelectionRules
from rerank_actor.bitext.selection.scored import Columns, ScoredPair, name_columns
from rerank_actor.bitext.selection.tally import SelectionTally
from rerank_actor.bitext.selection.writers import ADDED, rename_taken
from rerank_actor.errors import InputError
from rerank_actor.outputs.row_groups import RowGroups
from rerank_actor.outputs.scored import read_schema
from rerank_actor.storage.exchange import Slice, SlicedObject, read_slices
from rerank_actor.storage.lease import LeaseMark

SAMPLES_PER_PART = 4096


@dataclass(frozen=True)
class StepTask:
    """What one task of a step works on: a unit, slices of the exchange, or both."""

    number: int
    slices: list[Slice] = field(default_factory=list)
    runs: tuple[RowGroups, ...] = ()

    @property
    def name(self) -> str:
        """Name of its record and, with a suffix, of its objects."""
        return f"{self.number:06d}"

    def read_pairs(self) -> HashedPairs | None:
        """Return the pairs of its slices, None where there are none."""
        table = read_slices(self.slices, widens=True)
        return HashedPairs.from_table(table) if table is not None else None


@dataclass(frozen=True)
class StepSpec:
    """What is the same for all tasks of a step.

    Attributes:
        output: where all goes.
        parts: the scored files.
        columns: what their columns are called.
        pair: the languages.
        rules: in force, thresholds of the calibration among them.
        known: known pairs.
        num_buckets, num_units, num_parts: of the exchange, of the scored files, of the delivery.
        waits: whether thresholds wait for the calibration.
        sampled: of the kept pairs one in so many says where parts begin.
        starts: rank and tie with which each part but the first begins.
        formats: to write.
        schema: of delivered Parquet, for a part without rows.
        examples: of the last pairs of each part, whose texts its record tells.
        lease: of the output; None where nobody else can write.
    """

    output: SelectOutput
    parts: tuple[storage.StoredObject, ...]
    columns: Columns
    pair: LanguagePair
    rules: SelectionRules
    known: LabelledPairs | None
    num_buckets: int
    num_units: int
    num_parts: int = 1
    waits: bool = False
    sampled: int = 1
    starts: tuple[np.ndarray, np.ndarray] | None = None
    formats: tuple[Format, ...] = ()
    schema: pa.Schema | None = None
    examples: int = 0
    lease: LeaseMark | None = None


def make_step_spec(scored: ScoredPair, job: SelectJob, known: LabelledPairs | None, output: SelectOutput) -> StepSpec:
    """Return the spec that is the same for all tasks of a language pair, with the rules as the job gives them.

    Raises:
        InputError: there is no scored part, or it lacks a column that is needed.
        ShardError, StorageError: it cannot be read.
    """
    if not scored.parts:
        raise InputError(f"{scored.pair.name}: has no scored part")
    part = scored.parts[0]
    schema = read_schema(part)
    delivered = rename_taken(schema.remove_metadata().empty_table()).schema
    return StepSpec(
        output=output,
        parts=scored.parts,
        columns=name_columns(job, schema, part.uri),
        pair=scored.pair,
        rules=job.rules(),
        known=known,
        num_buckets=max(1, -(-scored.num_rows // job.bucket_rows)),
        num_units=len(scored.units),
        waits=job.is_calibrated,
        sampled=max(1, job.part_rows // SAMPLES_PER_PART),
        formats=tuple(job.formats),
        examples=job.examples,
        schema=pa.schema([*delivered, *(pa.field(name, kind) for name, kind in ADDED.items())]),
    )


def check_columns(rules: SelectionRules, columns: Columns, uri: str) -> None:
    """Refuse rules that look at what is not there.

    Raises:
        InputError: says the rule and what to do.
    """
    for name in ("forward", "backward"):
        is_there = getattr(columns, name) == f"{name}_logit"
        if getattr(rules, f"{name}_threshold") is not None and not is_there:
            raise InputError(
                f"{uri}: has no score {name} (`{name}_logit`) that --{name}-threshold could look at; score that direction, "
                "or leave the flag out",
                uri=uri,
            )
    if rules.needs_cosines and columns.cosine is None:
        raise InputError(
            f"{uri}: has no column `candidate_score`, of which --ratio-margin and --rank-by ratio are made; give the "
            "candidate generator's cosines to jobs.bitext (--score-column)",
            uri=uri,
        )


class Rows(NamedTuple):
    """Rows that a task passes on, and the bucket of each."""

    table: pa.Table
    bucket: np.ndarray
    num_buckets: int


@dataclass
class StepResult:
    """The result of a task: rows for buckets of later steps, a tally, and facts for its record."""

    tally: SelectionTally = field(default_factory=SelectionTally)
    facts: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Rows] = field(default_factory=dict)

    def send(self, name: str, pairs: HashedPairs | KeptPairs, bucket: np.ndarray, num_buckets: int) -> None:
        """Pass pairs on."""
        if len(bucket):
            self.outputs[name] = Rows(pairs.to_table(), bucket, num_buckets)

    def deliver(self, pairs: HashedPairs, spec: StepSpec) -> None:
        """Pass on to where their texts are the pairs that the mode keeps."""
        ties, space = pairs.tie, spec.rules.space
        self.tally.add_scores("kept", to_space(pairs.logit, space), space)
        right, wrong = int((pairs.label == 1).sum()), int((pairs.label == 0).sum())
        self.tally.counts.update({"kept_right": right, "kept_wrong": wrong})
        sample = ties % np.uint64(spec.sampled) == 0
        self.facts["sample"] = [pairs.rank[sample].tolist(), ties[sample].tolist()]
        kept = KeptPairs(pairs.position, pairs.rank, pairs.logit, pairs.margin, pairs.ratio, ties)
        self.send("kept", kept, pairs.position >> ROW_BITS, spec.num_units)


class SentRows(SlicedObject):
    """The record of rows that a task has passed on."""

    rows: int


@dataclass(frozen=True)
class StepRecord:
    """The record of a task that is done.

    Attributes:
        tally: of the task.
        outputs: what it passed on, by name.
        facts: what else it tells.
    """

    tally: SelectionTally
    outputs: dict[str, SentRows]
    facts: dict[str, Any]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the record of what was stored, or is to be."""
        outputs = {name: _shrink(sent) for name, sent in values["outputs"].items()}
        facts = {name: value for name, value in values.items() if name not in ("number", "tally", "outputs")}
        return cls(SelectionTally.from_dict(values["tally"]), outputs, facts)


def _shrink(sent: SentRows) -> SentRows:
    """Return a record that holds its many numbers as an array."""
    return SentRows(uri=sent["uri"], size=sent["size"], rows=sent["rows"], places=np.asarray(sent["places"], np.int64))
