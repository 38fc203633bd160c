"""Formats of candidates: what columns a file has, and what its rows are as candidates.

Takes a `Source`, which `inputs.batches` reads like any other file; LASER's and bare pairs are TSV whose columns have these
names, of Moses files each line is a text. Gives tables with the line of each row, and why some cannot be scored. A bad row
stays, with its reason. Knows nothing of what becomes of the rows.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import cast

from rerank_actor import storage
from rerank_actor.bitext.candidate_columns import Candidates, name_candidates, name_columns
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.sources import Source
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import Batch, read_batches, refuse_broken
from rerank_actor.inputs.formats import TextFormat, split_name
from rerank_actor.inputs.rows import LIMITS, ReadLimits

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
    header = HEADERS.get(source.kind, ())
    kind = cast(TextFormat, "tsv" if header else source.kind)
    compression = split_name(source.file.uri)[2]
    for batch in read_batches(source.file, kind, compression, header=header, dialect=job.dialect, limits=limits):
        yield name_candidates(batch) if header else name_columns(batch, source, job)


def _read_moses(source: Source, limits: ReadLimits) -> Iterator[Candidates]:
    files = source.files
    sides = [_read_side(file, name, limits) for file, name in zip(files, ("source", "target"), strict=True)]
    for first, second in zip_longest(*sides):
        num_rows = [batch.num_rows if batch is not None else 0 for batch in (first, second)]
        if num_rows[0] != num_rows[1]:
            longer = first if num_rows[0] > num_rows[1] else second
            raise _refuse_unequal(files, longer.numbers[min(num_rows)], first_is_short=longer is second)
        yield name_candidates(Batch((*first.names, *second.names), {**first.columns, **second.columns}, first.numbers))


def _read_side(file: storage.StoredObject, name: str, limits: ReadLimits) -> Iterator[Batch]:
    with refuse_broken(file.uri, "moses"):
        yield from read_batches(file, "lines", split_name(file.uri)[2], header=(name,), limits=limits)


def _refuse_unequal(files: list[storage.StoredObject], line: int, *, first_is_short: bool) -> InputError:
    short, long = files if first_is_short else files[::-1]
    return InputError(
        f"{long.uri}, line {line:,}: has no partner, because {short.uri} ends after {line - 1:,} lines; the two sides of a "
        "Moses pair have the same number of lines",
        uri=long.uri,
        line=line,
    )
