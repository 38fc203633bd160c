"""Formats of candidates: what columns a file has, and what its rows are as candidates.

Takes a `Source`, which `inputs.batches` reads like any other file; LASER's and bare pairs are TSV whose columns have these
names, of Moses files each line is a text. Gives tables with the line of each row, and why some cannot be scored. A bad row
stays, with its reason. Knows nothing of what becomes of the rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from typing import Any, cast

from rerank_actor import storage
from rerank_actor.bitext.candidate_columns import Candidates, name_candidates, name_columns
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.layouts import Source
from rerank_actor.bitext.translations import TranslationReader
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import Batch, read_batches, refuse_broken
from rerank_actor.inputs.formats import TextFormat, split_name
from rerank_actor.inputs.rows import LIMITS, ReadLimits
from rerank_actor.inputs.text import BROKEN_FIELDS

OTHER_FIELDS = "row has another number of fields than the file has columns"
HEADERS = {"laser": ("candidate_score", "source", "target"), "pairs": ("source", "target")}


def read_candidate_batches(source: Source, job: BitextJob, limits: ReadLimits = LIMITS) -> Iterator[Candidates]:
    """Yield the rows of a file, in order.

    Raises:
        InputError: the file cannot be what it is taken for; says the file and the line.
        ShardError, StorageError, JobError: as `inputs.batches.read_batches`.
        One of `READ_ERRORS`: it is broken.
    """
    if source.kind == "moses":
        yield from _read_moses(source, limits)
        return
    own = HEADERS.get(source.kind, ())
    header = own or tuple(f"-{place}" if name == "-" else name for place, name in enumerate(source.header))
    kind = cast(TextFormat, "tsv" if own else source.kind)
    spread = TranslationReader(source, job)
    compression = split_name(source.file.uri)[2]
    settings: dict[str, Any] = {"header": header, "dialect": job.dialect, "limits": limits}
    wanted = {"source", "target", job.source_column, job.target_column} if source.kind != "parquet" else None
    for batch in read_batches(source.file, kind, compression, wanted=wanted, **settings):
        if own:
            yield name_candidates(_adapt(batch, header))
        else:
            yield name_columns(spread.read(_adapt(batch, header)), source, job)


def _adapt(batch: Batch, header: tuple[str, ...]) -> Batch:
    """Return the rows of a file without a header, without the columns that are to be left out."""
    if not header:
        return batch
    ignored = {name for name in header if name.startswith("-")}
    return replace(
        batch,
        names=tuple(name for name in batch.names if name not in ignored),
        columns={name: column for name, column in batch.columns.items() if name not in ignored},
        faults={row: OTHER_FIELDS if fault == BROKEN_FIELDS else fault for row, fault in batch.faults.items()},
    )


def _read_moses(source: Source, limits: ReadLimits) -> Iterator[Candidates]:
    names = ("source", "target", "candidate_score")
    sides = [_read_side(file, name, limits) for file, name in zip(source.files, names, strict=False)]
    for batches in zip_longest(*sides):
        num_rows = [batch.num_rows if batch is not None else 0 for batch in batches]
        if len(set(num_rows)) > 1:
            short, long = (num_rows.index(bound(num_rows)) for bound in (min, max))
            raise _refuse_unequal(source.files[short], source.files[long], batches[long].numbers[min(num_rows)])
        columns = {name: column for batch in batches for name, column in batch.columns.items()}
        yield name_candidates(Batch(tuple(columns), columns, batches[0].numbers))


def _read_side(file: storage.StoredObject, name: str, limits: ReadLimits) -> Iterator[Batch]:
    with refuse_broken(file.uri, "moses"):
        yield from read_batches(file, "lines", split_name(file.uri)[2], header=(name,), limits=limits)


def _refuse_unequal(short: storage.StoredObject, long: storage.StoredObject, line: int) -> InputError:
    return InputError(
        f"{long.uri}, line {line:,}: has no partner, because {short.uri} ends after {line - 1:,} lines; the files of a Moses "
        "pair have the same number of lines",
        uri=long.uri,
        line=line,
    )
