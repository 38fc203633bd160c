"""The compaction: a finished output's parts joined into few files, in input order, as a dataset of its own.

Takes an output of the scoring job and a folder. Each part is read in full and compared with the plan and with the digest of
its rows before it is joined, and its rows in the file once more. Columns, types and the metadata that parts share stay. The
metadata say which parts a file holds and the digest of its rows, so that the same call goes on where another ended. Needs no
model and no Ray.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import OutputConflictError, ShardError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.folder import JobFolder, Output, digest_parts, select_parts
from rerank_actor.outputs.part import METADATA_PREFIX, OF_ONE_PART, check_part, read_part_metadata, settle_rows
from rerank_actor.outputs.row_digest import DIGITS, digest_rows
from rerank_actor.outputs.row_groups import batch_by_size, open_part, refuse_damaged
from rerank_actor.outputs.scored import MADE_OF, ScoredOutput, open_scored, read_schema, require_scored
from rerank_actor.outputs.verify import Verification, read_digests

JOINED = "joined_parts"  # the entry of a file's metadata: digest of names and sizes of its parts
JOINED_ROWS = "joined_digest"  # of its rows, by row groups
GROUP_ROWS = 2**20

Part = tuple[Unit, storage.StoredObject]


@dataclass
class Compacted:
    """What is in the folder: files, those of them that were there already, parts and rows."""

    files: int = 0
    kept: int = 0
    parts: int = 0
    rows: int = 0


class CompactFolder(JobFolder):
    """The folder of the files, with what the compaction keeps for itself."""

    own_folder = "_compact"


def compact_output(
    uri: str, target: str, target_bytes: int, report: Callable[[str], None] = lambda message: None
) -> Compacted:
    """Join the parts of a finished output into files of about `target_bytes` in another folder.

    Args:
        uri: the output.
        target: the folder: new, or one in which the same was begun.
        target_bytes: of the parts of one file; a larger part is a file by itself.
        report: is told of each file.

    Raises:
        InputError: there is no output, it is not complete, or one folder lies in the other.
        ShardError: a part is not what was written.
        OutputConflictError: the folder holds something else.
        JobError, StorageError: storage failed.
    """
    storage.refuse_overlap(target, uri, "--output", "SCORED")
    scored = require_scored(uri)
    scored.refuse_incomplete("", "run the job again, then join its parts")
    parts = list(zip(scored.units, scored.parts, strict=True))
    groups = batch_by_size(parts, lambda item: item[1].size, target_bytes)
    folder = CompactFolder(target)
    _claim(folder, scored, target_bytes)
    there = {item.uri: item for item in storage.list_children(target)}
    joiner = _Joiner(scored)
    result = Compacted(files=len(groups), parts=len(parts), rows=sum(unit.num_rows for unit in scored.units))
    for number, group in enumerate(groups):
        file = storage.join_uri(target, f"part-{number:05d}-of-{len(groups):05d}.parquet")
        if file in there and _holds(there[file], group):
            result.kept += 1
        else:
            storage.write_bytes(file, joiner.join(group), scratch=folder.scratch)
        report(f"{number + 1:,} of {len(groups):,} files")
    folder.clear_scratch()
    folder.write_card()
    mark = {
        "fingerprint": hash_fingerprint(scored.settings),
        "parts": digest_parts(scored.parts),
        "rows": result.rows,
        "digest": digest_parts(select_parts(storage.list_children(target)).values()),
    }
    storage.write_bytes(folder.success_uri, storage.seal_json(mark))
    return result


def _claim(folder: CompactFolder, scored: ScoredOutput, target_bytes: int) -> None:
    """Note in a folder what it is made of, or find that it is of the same."""
    made_of = {"scored": scored.uri, "parts": digest_parts(scored.parts), "target_bytes": target_bytes}
    uri = folder.at("made_of.json")
    found = storage.read_if_present(uri)
    if found is None and storage.list_children(folder.uri):
        raise OutputConflictError(f"{folder.uri}: holds other files; name a new folder with --output", uri=folder.uri)
    if storage.create_bytes(uri, storage.seal_json(made_of), scratch=folder.scratch):
        return
    if folder.read_own("made_of.json") != made_of:
        raise OutputConflictError(
            f"{folder.uri}: holds the files of another output, of other parts or of another --target-file-mb; name a new "
            "folder with --output, or delete this one",
            uri=folder.uri,
        )


def _holds(file: storage.StoredObject, group: list[Part]) -> bool:
    """Whether a file is of these parts, and holds the rows that were joined into it."""
    with contextlib.suppress(ShardError):
        if read_part_metadata(read_schema(file)).get(JOINED) == digest_parts(part for _, part in group):
            return _read_joined(file)[1] is True
    return False


def is_compacted(uri: str) -> bool:
    """Whether parts are joined into files in a folder."""
    return storage.read_if_present(storage.join_uri(uri, MADE_OF)) is not None


def check_compacted(uri: str) -> Verification:
    """Read files that parts were joined into; they are right where all are there and hold the rows of their parts.

    Raises:
        JobError, StorageError: the folder cannot be read.
    """
    scored = open_scored(uri)
    result = Verification(units=len(scored.parts))
    for part in scored.parts:
        try:
            rows, is_same = _read_joined(part)
        except ShardError as error:
            result.problems.append(f"{error}; join the parts again")
            continue
        if is_same is False:
            result.problems.append(f"{part.uri}: holds other rows than were joined; join the parts again")
        result.rows += rows
        result.compared += is_same is True
    if (reason := scored.explain_incomplete()) is not None:
        result.problems.append(f"{uri}: {reason}")
    planned = (Output(uri).read_success() or {}).get("rows", result.rows)
    if not result.problems and planned != result.rows:
        result.problems.append(f"{uri}: holds {result.rows:,} rows, and {planned:,} were joined; join the parts again")
    if not result.problems and result.compared < result.units:
        result.notes.append(
            f"{uri}: right as far as checksums, numbers of rows and _SUCCESS tell; {result.units - result.compared:,} files "
            "were joined without a digest of their rows, so that a value that was changed may not be found"
        )
    return result


def _read_joined(file: storage.StoredObject) -> tuple[int, bool | None]:
    """Read a file in full; return its rows and whether they are those that were joined, None where it has no digest.

    Raises:
        ShardError: it cannot be read.
    """
    with open_part(file) as opened, refuse_damaged(file.uri):
        digest = read_part_metadata(opened.schema_arrow).get(JOINED_ROWS)
        tables = (opened.read_row_group(group) for group in range(opened.num_row_groups))
        if digest is None:
            return sum(table.num_rows for table in tables), None
        return opened.metadata.num_rows, _digest_groups(tables) == digest


def _digest_groups(tables: Iterable[pa.Table]) -> str:
    """Return the digest of row groups; texts of a whole file may be more than Arrow has in one array."""
    return hashlib.sha256("".join(map(digest_rows, tables)).encode()).hexdigest()[:DIGITS]


class _Joiner:
    """Reads parts of an output, and writes those of a file one behind the other."""

    def __init__(self, scored: ScoredOutput) -> None:
        self._fingerprint = hash_fingerprint(scored.settings)
        self._digests = read_digests(Output(scored.uri), self._fingerprint)
        self._schema: pa.Schema | None = None

    def join(self, group: list[Part]) -> bytes:
        """Return the file of some parts, each in row groups of its own."""
        sink = io.BytesIO()
        tables = [self._read(unit, part) for unit, part in group]
        groups = [table.slice(start, GROUP_ROWS) for table in tables for start in range(0, table.num_rows, GROUP_ROWS)]
        digest = _digest_groups(groups)
        schema = tables[0].schema.with_metadata(_share_metadata(group, digest))
        with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
            for rows in groups:
                writer.write_table(rows)
        data = sink.getvalue()
        written = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        if _digest_groups(map(written.read_row_group, range(written.num_row_groups))) != digest:
            first, last = group[0][1].uri, group[-1][1].uri
            raise ShardError(
                f"{first}: its rows, or those of a part up to {last}, are others in the joined file", uri=first
            )
        return data

    def _read(self, unit: Unit, part: storage.StoredObject) -> pa.Table:
        """Return the rows of a part that is as the plan, its metadata and the records of its run say."""
        data = storage.read_bytes(part.uri)
        check = check_part(unit, data, self._fingerprint)
        problem, digest = check.problem, check.facts.get("digest")
        if problem is None and digest not in self._digests.get(unit.name, {digest}):
            problem = "has other rows than the records of its run say"
        if problem is not None:
            raise ShardError(f"{part.uri}: {problem}; jobs.verify says what mends it", uri=part.uri)
        table = settle_rows(pq.read_table(pa.BufferReader(data)))
        self._schema = self._schema or table.schema
        if sorted(table.column_names) == sorted(self._schema.names):
            table = table.select(self._schema.names)
        if not table.schema.equals(self._schema):
            raise ShardError(f"{part.uri}: has columns of other names or types than the parts before it", uri=part.uri)
        return table


def _share_metadata(group: list[Part], digest: str) -> dict[bytes, bytes]:
    """Return the metadata that some parts share, which parts they are, and the digest of their rows."""
    found = [read_schema(part).metadata or {} for _, part in group]
    shared = {name: value for name, value in found[0].items() if all(other.get(name) == value for other in found)}
    own = {f"{METADATA_PREFIX}{name}".encode() for name in OF_ONE_PART}
    joined = {JOINED: digest_parts(part for _, part in group), JOINED_ROWS: digest}
    return {name: value for name, value in shared.items() if name not in own} | {
        f"{METADATA_PREFIX}{name}".encode(): value.encode() for name, value in joined.items()
    }
