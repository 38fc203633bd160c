"""Scored pairs: which Parquet files hold those of each language pair, and in what units they are read.

Takes outputs of the bitext job, whose plan says what should be there, or Parquet files with the same columns. Footers and
plans are read, no rows. Knows nothing of rules or of Ray.
"""

import re
from dataclasses import dataclass, replace

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.bitext.job import name_known
from rerank_actor.bitext.languages import LanguagePair, find_pair_in_name, parse_pair
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.bitext.sources import choose_partitions
from rerank_actor.errors import InputError, suggest
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.scored import open_parquet

PARQUET_SUFFIXES = (".parquet", ".pq")
UNPACKED = 5  # bytes in memory of a stored one, at a guess
_PAIR_FOLDER = re.compile(r"^(.*?(?:^|/)lang_pair=([^/]+))(?:/|$)")


@dataclass(frozen=True)
class RowGroups:
    """A file, or some of its row groups."""

    part: int
    groups: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ScoredPair:
    """The scored pairs of one language pair.

    Attributes:
        pair: the languages.
        parts: the files, in order of inputs and names.
        num_rows: of all of them.
        units: of runs, each bounded in memory.
        beside: known pairs that were scored beside the candidates; None where there are none.
    """

    pair: LanguagePair
    parts: tuple[storage.StoredObject, ...]
    num_rows: int
    units: tuple[tuple[RowGroups, ...], ...]
    beside: "ScoredPair | None" = None


@dataclass(frozen=True)
class Columns:
    """What the columns of the scored rows are called; None for what is not there.

    Attributes:
        forward, backward: log-odds of each direction; where a file has only `logit` or `score` that is `forward`.
        is_score: whether `forward` holds probabilities.
    """

    source: str
    target: str
    forward: str | None
    backward: str | None
    is_score: bool = False
    cosine: str | None = None

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        found = (self.source, self.target, self.forward, self.backward, self.cosine)
        return [name for name in found if name is not None]


def name_columns(job: SelectJob, schema: pa.Schema, uri: str) -> Columns:
    """Return which columns of a file to read.

    Raises:
        InputError: one that is needed is not there.
    """
    names = schema.names
    for flag, name in (("--source-column", job.source_column), ("--target-column", job.target_column)):
        if name not in names:
            raise InputError(
                f"{uri}: no column `{name}`{suggest(name, names)}; choose with {flag}", uri=uri, column=name
            )
    cosine = "candidate_score" if "candidate_score" in names else None
    directed = {name: f"{name}_logit" for name in ("forward", "backward") if f"{name}_logit" in names}
    if job.direction != "both" and directed and job.direction not in directed:
        raise InputError(
            f"{uri}: was scored {next(iter(directed))} alone, so that --direction {job.direction} cannot be selected by; "
            "score that direction, or leave the flag out",
            uri=uri,
        )
    if directed:
        chosen = directed if job.direction == "both" else {job.direction: directed[job.direction]}
        return Columns(
            job.source_column, job.target_column, chosen.get("forward"), chosen.get("backward"), cosine=cosine
        )
    for name in ("logit", "score"):
        if name in names:
            return Columns(job.source_column, job.target_column, name, None, name == "score", cosine)
    raise InputError(
        f"{uri}: has none of the columns `forward_logit`, `backward_logit`, `logit`, `score`; --scored takes what "
        "jobs.bitext or jobs.score wrote",
        uri=uri,
    )


def find_scored(job: SelectJob, folders: list[str]) -> dict[str, ScoredPair]:
    """Find the scored pairs of each language pair that is wanted, in order of names.

    Raises:
        InputError: nothing is there, an output is incomplete, or nothing tells a language pair.
        JobError, StorageError: storage cannot be read.
    """
    found: dict[str, dict[str, int | None]] = {}  # by language pair, the folders, or files outside of one
    objects: dict[str, storage.StoredObject] = {}
    for uri in folders:
        listed = [item for item in storage.list_objects(uri) if item.uri.endswith(PARQUET_SUFFIXES) and item.size]
        if not listed:
            raise InputError(f"--scored {uri}: no scored Parquet file there; it takes outputs of jobs.bitext", uri=uri)
        for item in listed:
            root, name = _find_root(item.uri, job)
            own = found.setdefault(name, {})
            own.setdefault(root, None)
            objects[item.uri] = item
    chosen = choose_partitions(job.partitions, list(found))
    scored = {name: _make_scored(name, list(found[name]), objects, job) for name in chosen}
    if not job.calibration:
        return scored
    return {name: replace(one, beside=_find_beside(name, list(found[name]), job)) for name, one in scored.items()}


def _find_beside(name: str, roots: list[str], job: SelectJob) -> ScoredPair | None:
    """Return the known pairs of a language pair that were scored beside its candidates."""
    beside = [name_known(root.rpartition("/")[0], f"lang_pair={name}") for root in roots]
    objects = {item.uri: item for root in beside for item in storage.list_objects(root)}
    own = [root for root in beside if any(storage.is_within(uri, root) for uri in objects)]
    return _make_scored(name, own, objects, job) if own else None


def _find_root(uri: str, job: SelectJob) -> tuple[str, str]:
    """Return the folder of a file's language pair, or the file where it lies in none, and the pair's name."""
    folder = _PAIR_FOLDER.match(uri)
    if job.lang_pair is not None:
        return (folder[1] if folder is not None else uri), parse_pair(job.lang_pair, job.languages, "--lang-pair").name
    if folder is not None:
        return folder[1], parse_pair(folder[2], job.languages, uri).name
    pair = find_pair_in_name(uri.rpartition("/")[2], job.languages)
    if pair is None:
        raise InputError(
            f"{uri}: nothing says its language pair; give --lang-pair deu-eng, or put it into a folder lang_pair=deu-eng",
            uri=uri,
        )
    return uri, pair.name


def _make_scored(name: str, roots: list[str], objects: dict[str, storage.StoredObject], job: SelectJob) -> ScoredPair:
    parts: list[storage.StoredObject] = []
    rows: list[int | None] = []
    for root in sorted(roots):
        stored = None if root in objects else Output(root).load_plan()
        if stored is None:
            own = (
                [objects[root]]
                if root in objects
                else [one for uri, one in objects.items() if uri.startswith(root + "/")]
            )
            parts += sorted(own, key=lambda one: one.uri)
            rows += [None] * len(own)
        else:
            planned = list(stored[0].units())
            present = {uri.rpartition("/")[2]: item for uri, item in objects.items() if uri.startswith(root + "/")}
            missing = sum(unit.part_name not in present for unit in planned)
            if missing and not job.allow_incomplete:
                raise InputError(
                    f"{root}: {missing:,} of {len(planned):,} parts are not scored yet; score to the end, or give "
                    "--allow-incomplete to select from what is there",
                    uri=root,
                )
            kept = [unit for unit in planned if unit.part_name in present]
            parts += [present[unit.part_name] for unit in kept]
            rows += [unit.num_rows for unit in kept]
    units, num_rows = _cut(parts, rows, int(job.unit_mb * 2**20))
    return ScoredPair(parse_pair(name, job.languages, name), tuple(parts), num_rows, units)


def _cut(
    parts: list[storage.StoredObject], rows: list[int | None], unit_bytes: int
) -> tuple[tuple[tuple[RowGroups, ...], ...], int]:
    """Return units of runs, and the number of rows; footers are read only where a plan does not tell or a file is large."""
    units: list[list[RowGroups]] = []
    size, total = unit_bytes, 0
    for number, part in enumerate(parts):
        known, guess = rows[number], part.size * UNPACKED
        pieces: list[tuple[RowGroups, int]] = [(RowGroups(number), guess)]
        if known is None or guess > unit_bytes:
            file = open_parquet(part)
            try:
                groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
                known = file.metadata.num_rows
            finally:
                file.close()
            pieces = [(RowGroups(number, (place,)), group.total_byte_size) for place, group in enumerate(groups)]
        total += known
        for run, num_bytes in pieces:
            if size + num_bytes > unit_bytes:
                units.append([])
                size = 0
            last = units[-1][-1] if units[-1] else None
            if last is not None and last.part == run.part and last.groups is not None and run.groups is not None:
                units[-1][-1] = RowGroups(run.part, (*last.groups, *run.groups))
            else:
                units[-1].append(run)
            size += num_bytes
    return tuple(tuple(unit) for unit in units), total
