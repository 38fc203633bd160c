"""A scored output as input: which Parquet files there are, whether all are there, and that they are of one fingerprint.

Takes outputs of the scoring job, whose plan says what should be there, or Parquet files and folders with the same columns.
Only footers and plans are read. Knows nothing of what is made of the scores.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import InputError, ShardError, describe_cause
from rerank_actor.outputs.folder import Output

PARQUET_SUFFIXES = (".parquet", ".pq")


def refuse_overlap(uri: str, output: str) -> None:
    """Refuse an output that lies in what is read or around it.

    Raises:
        InputError: it does.
    """
    if storage.is_within(uri, output) or storage.is_within(output, uri):
        raise InputError(
            f"--output {output}: lies in --scored {uri} or around it, so that what is written would be read again; choose a "
            "folder beside it",
            uri=output,
        )


def list_files(uri: str) -> list[storage.StoredObject]:
    """List the Parquet files of a file, a folder or a glob that is no output of ours.

    Raises:
        InputError: there is none.
    """
    found = storage.list_objects(uri)
    parts = [item for item in found if item.uri.endswith(PARQUET_SUFFIXES) and item.size > 0]
    if not parts:
        what = f"{len(found)} objects, no Parquet file among them" if found else "nothing there"
        raise InputError(f"--scored {uri}: {what}; it takes outputs of jobs.score and Parquet files", uri=uri)
    return parts


def list_output(
    uri: str, stored: tuple[Any, dict[str, Any]], allow_incomplete: bool
) -> tuple[list[Any], dict[str, Any]]:
    """List the parts of an output that are there, in the plan's order.

    Returns:
        The parts, and the settings of their fingerprint.

    Raises:
        InputError: some are missing and that is not allowed, or none is there.
    """
    plan, settings = stored
    present = Output(uri).list_parts()
    names = [unit.part_name for unit in plan.units()]
    missing = [name for name in names if name not in present]
    if missing and not allow_incomplete:
        raise InputError(
            f"--scored {uri}: {len(missing):,} of {len(names):,} parts are not scored yet; run jobs.score to the end, or "
            "give --allow-incomplete to mine what is there",
            uri=uri,
        )
    found = [present[name] for name in names if name in present]
    if not found:
        raise InputError(f"--scored {uri}: nothing is scored there yet; run jobs.score first", uri=uri)
    return found, settings


def compare_fingerprints(fingerprints: dict[str | None, str], allow_mixed: bool) -> None:
    """Refuse files that were scored differently.

    Args:
        fingerprints: the name of one file for each fingerprint that files carry; None for files that carry none.
        allow_mixed: whether to take them all the same.

    Raises:
        InputError: there is more than one.
    """
    if len(fingerprints) > 1 and not allow_mixed:
        (one, first), (two, second), *_ = sorted(fingerprints.items(), key=lambda item: str(item[0]))
        raise InputError(
            f"--scored: {first} has the fingerprint {one}, {second} has {two}, so that their scores may not be comparable; "
            "mine them apart, or give --allow-mixed-scores",
            uri=second,
        )


def open_parquet(part: storage.StoredObject) -> pq.ParquetFile:
    """Open a scored file; nothing but its footer is read.

    Raises:
        ShardError: it is no Parquet file.
        StorageError, JobError: it cannot be reached, or is not the file with this size and version mark.
    """
    source = storage.open_input(part.uri, size=part.size, etag=part.etag)
    try:
        return pq.ParquetFile(source, buffer_size=2**20)
    except (pa.ArrowException, OSError, ValueError) as error:
        source.close()
        raise ShardError(f"{part.uri}: cannot be read as Parquet ({describe_cause(error)})", uri=part.uri) from error
