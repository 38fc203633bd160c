"""The lookups of a job: stores of the texts that its rows name by id, made before anything is scored.

A store lies in the job's own folder, so that every node reaches it and a resumed run finds it; it is deleted when the job is
complete. Its name follows from the source, so that a store of another corpus is never taken for this one's.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rerank_actor import storage
from rerank_actor.inputs.formats import detect_format
from rerank_actor.inputs.lookups import ScoreLookup, TextLookup
from rerank_actor.inputs.text_sources import TextSource
from rerank_actor.progress import Reporter
from rerank_actor.runtime.store_builder import RunTasks, build_store, choose_copies, run_here
from rerank_actor.scoring.preflight import PreparedJob
from rerank_actor.scoring.reuse import ScoreSource
from rerank_actor.storage.keyed_store import BLOCK_BYTES, BucketLayout

SAMPLED_BYTES = 256 * 2**20  # of sources, that a dry run reads
UNPACKED = 4  # bytes of text for a stored one, where it is compressed


def make_lookups(
    prepared: PreparedJob, run_tasks: RunTasks, reporter: Reporter, check: Callable[[], None]
) -> tuple[TextLookup, ...]:
    """Make the stores that the job's rows are joined with, those that are not there yet, and say how to read them.

    Args:
        prepared: the job.
        run_tasks: does work on the cluster.
        reporter: is told what is done.
        check: called between tasks; may raise.

    Raises:
        InputError: a source cannot be read.
        StorageError, JobError: a store cannot be written.
    """
    lookups = []
    for source in prepared.sources:
        notes = f", without {source.num_notes:,} notes for people (README, ...)" if source.num_notes else ""
        reporter.info(
            f"{source.flag}: indexing {source.num_bytes:,} bytes of {len(source.objects):,} objects by id{notes}"
        )
        uri = prepared.output.at("stores", f"{source.role}-{source.digest}")
        lookup = make_lookup(source, uri, run_tasks, prepared.plan.num_rows, prepared.output.scratch, check)
        facts = lookup.store.facts
        reporter.info(f"{source.flag}: {facts.get('rows', 0):,} texts" + _describe_left_out(facts))
        lookups.append(lookup)
    return tuple(lookups)


def make_known(
    prepared: PreparedJob, run_tasks: RunTasks, reporter: Reporter, check: Callable[[], None]
) -> tuple[ScoreLookup, ...]:
    """Make the store of the scores that the job reuses. Arguments and errors as of `make_lookups`."""
    source = prepared.reused
    if source is None:
        return ()
    reporter.info(f"--reuse: indexing the scores of {len(source.parts):,} parts of {source.uri}")
    known = index_scores("reused", source, prepared, run_tasks, check)
    reporter.info(f"--reuse: {known.store.facts.get('rows', 0):,} scores")
    return (known,)


def index_scores(
    kind: Literal["reused", "shared"],
    source: ScoreSource,
    prepared: PreparedJob,
    run_tasks: RunTasks,
    check: Callable[[], None],
) -> ScoreLookup:
    """Make the store of some scored parts, for the units of a job. Arguments and errors as of `make_lookups`."""
    store = build_store(
        prepared.output.at("stores", f"scores-{source.digest}"),
        source.digest,
        BucketLayout.for_bytes(UNPACKED * source.num_bytes),
        source.cut(),
        source.read,
        run_tasks,
        scratch=prepared.output.scratch,
        check=check,
    )
    return ScoreLookup(kind, choose_copies(store, prepared.plan.num_rows, BLOCK_BYTES))


@contextmanager
def sample_lookups(prepared: PreparedJob) -> Iterator[tuple[TextLookup, ...] | None]:
    """Give lookups that last as long as a dry run, without Ray; None where the sources are too large for one."""
    if sum(source.num_bytes for source in prepared.sources) > SAMPLED_BYTES:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield tuple(
            make_lookup(source, storage.join_uri(folder, source.role), run_here, 0, None, lambda: None)
            for source in prepared.sources
        )


def make_lookup(
    source: TextSource,
    uri: str,
    run_tasks: RunTasks,
    num_lookups: int,
    scratch: str | None,
    check: Callable[[], None],
) -> TextLookup:
    """Make the store of some texts by id, where it is not there yet.

    Args:
        source: of the texts.
        uri: folder of the store.
        run_tasks: does work on the cluster.
        num_lookups: rows that will be looked up, about.
        scratch: folder for temporary files on the file system of `uri`.
        check: called between tasks; may raise.

    Raises:
        InputError, StorageError, JobError: as of `make_lookups`.
    """
    unpacked = sum(item.size * (UNPACKED if _is_packed(item.uri) else 1) for item in source.objects)
    layout = BucketLayout.for_bytes(unpacked)
    store = build_store(uri, source.digest, layout, source.cut(), source.read, run_tasks, scratch=scratch, check=check)
    return TextLookup(source.role, choose_copies(store, num_lookups, BLOCK_BYTES))


def _is_packed(uri: str) -> bool:
    kind, compression = detect_format(uri)
    return bool(compression) or kind == "parquet"


def _describe_left_out(facts: dict[str, Any]) -> str:
    broken, without_id = facts.get("broken", 0), facts.get("without_id", 0)
    if not broken and not without_id:
        return ""
    return f"; left out {broken:,} that are broken and {without_id:,} without an id, the first at {facts['first_left_out']}"
