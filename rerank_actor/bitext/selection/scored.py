"""Scored pairs: which Parquet files hold those of each language pair, and in what units they are read.

Takes outputs of the bitext job, whose plan says what should be there, or Parquet files with the same columns. Footers and
plans are read, no rows. Knows nothing of rules or of Ray.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.bitext.job import list_outputs, name_known
from rerank_actor.bitext.language_pairs import LanguagePair, find_pair_in_name, parse_pair
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.bitext.sources import choose_partitions
from rerank_actor.errors import InputError
from rerank_actor.inputs.directions import BACKWARD, FORWARD, name_column
from rerank_actor.job_file import suggest
from rerank_actor.outputs.folder import PARQUET_SUFFIXES, Output
from rerank_actor.outputs.row_groups import RowGroups, SizedGroup, open_part, share_out_groups
from rerank_actor.outputs.scored import open_scored
from rerank_actor.outputs.scored_columns import describe_columns

TO_THE_END = "score to the end, or give --allow-incomplete to select from what is there"
UNPACKED = 5  # bytes in memory of a stored one, at a guess
_PAIR_FOLDER = re.compile(r"^(.*?(?:^|/)lang_pair=([^/]+))(?:/|$)")


@dataclass(frozen=True)
class ScoredPair:
    """The scored pairs of one language pair.

    Attributes:
        pair: the languages.
        parts: the files, in order of inputs and names.
        num_rows: of all of them.
        units: of runs, each bounded in memory.
        labelled: known pairs that were scored beside the candidates; None where there are none.
    """

    pair: LanguagePair
    parts: tuple[storage.StoredObject, ...]
    num_rows: int
    units: tuple[tuple[RowGroups, ...], ...]
    labelled: "ScoredPair | None" = None


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
        names = (self.source, self.target, self.forward, self.backward, self.cosine)
        return [name for name in names if name is not None]


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
    scored = describe_columns({}, schema)
    if job.space == "probability":
        scored.refuse_scaled(uri, "--space probability", "give --space logit")
    if job.direction != "both" and scored.directions and job.direction not in scored.directions:
        raise InputError(
            f"{uri}: was scored {scored.directions[0]} alone, so that --direction {job.direction} cannot be selected by; "
            "score that direction, or leave the flag out",
            uri=uri,
        )
    if scored.directions:
        forward, backward = (
            name_column(name, "logit") if name in scored.directions and job.direction in ("both", name) else None
            for name in (FORWARD, BACKWARD)
        )
        return Columns(job.source_column, job.target_column, forward, backward, cosine=cosine)
    if scored.values:
        name = scored.values[-1]  # the logit where there is one
        return Columns(job.source_column, job.target_column, name, None, name == "score", cosine)
    raise InputError(
        f"{uri}: has none of the columns `forward_logit`, `backward_logit`, `logit`, `score`; --scored takes what "
        "jobs.bitext or jobs.score wrote",
        uri=uri,
    )


def load_scored(job: SelectJob, folders: list[str]) -> dict[str, ScoredPair]:
    """Look at the scored pairs of each language pair that is wanted, in order of names.

    Raises:
        InputError: nothing is there, an output is incomplete, or nothing tells a language pair.
        JobError, StorageError: storage cannot be read.
    """
    objects: dict[str, dict[str, dict[str, storage.StoredObject]]] = {}  # by language pair, root and URI
    for uri in folders:
        places = [(output, storage.list_children(output)) for output in _list_jobs(uri)] or [
            ("", storage.list_objects(uri))
        ]
        listed = [
            (output, item)
            for output, items in places
            for item in items
            if item.uri.endswith(PARQUET_SUFFIXES) and item.size
        ]
        if not listed:
            raise InputError(f"--scored {uri}: no scored Parquet file there; it takes outputs of jobs.bitext", uri=uri)
        for output, item in listed:
            root, name = _locate_pair(item.uri, job)
            objects.setdefault(name, {}).setdefault(output or root, {})[item.uri] = item
    chosen = choose_partitions(job.partitions, list(objects))
    scored = {name: _make_scored(name, objects[name], job) for name in chosen}
    if not job.calibration:
        return scored
    return {
        name: replace(pair, labelled=_load_labelled(name, list(objects[name]), job)) for name, pair in scored.items()
    }


def _list_jobs(uri: str) -> list[str]:
    """Return the outputs of a scoring job at a place, beside which nothing is read; none for bare Parquet."""
    outputs = list_outputs(uri)
    return outputs if outputs != [uri] or Output(uri).load_plan() is not None else []


def _load_labelled(name: str, roots: list[str], job: SelectJob) -> ScoredPair | None:
    """Return the known pairs of a language pair that were scored beside its candidates."""
    objects: dict[str, dict[str, storage.StoredObject]] = {}
    for root in roots:
        known = name_known(root.rpartition("/")[0], f"lang_pair={name}")
        if listed := storage.list_children(known):
            objects[known] = {item.uri: item for item in listed}
    return _make_scored(name, objects, job) if objects else None


def _locate_pair(uri: str, job: SelectJob) -> tuple[str, str]:
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


def _make_scored(name: str, objects: dict[str, dict[str, storage.StoredObject]], job: SelectJob) -> ScoredPair:
    """Return the scored parts of a language pair in some folders, whose objects are listed already."""
    outputs = [open_scored(root, objects[root].values()) for root in sorted(objects)]
    if not job.allow_incomplete:
        for output in outputs:
            output.refuse_incomplete("", TO_THE_END)
    parts = tuple(part for output in outputs for part in output.parts)
    rows = [num_rows for output in outputs for num_rows in output.rows_by_part]
    unit_bytes = int(job.unit_mb * 2**20)
    groups = [
        group
        for number, (part, num_rows) in enumerate(zip(parts, rows, strict=True))
        for group in _weigh_groups(number, part, num_rows, unit_bytes)
    ]
    units = share_out_groups(groups, unit_bytes)
    return ScoredPair(
        parse_pair(name, job.languages, name), parts, sum(group.num_rows for group in groups), tuple(units)
    )


def _weigh_groups(
    number: int, part: storage.StoredObject, num_rows: int | None, unit_bytes: int
) -> Iterator[SizedGroup]:
    """Yield a part whole, or its row groups where a plan does not tell its rows or it is large."""
    guess = part.size * UNPACKED
    if num_rows is not None and guess <= unit_bytes:
        yield SizedGroup(number, None, num_rows, guess)
        return
    with open_part(part) as file:
        for group in range(file.metadata.num_row_groups):
            metadata = file.metadata.row_group(group)
            yield SizedGroup(number, group, metadata.num_rows, metadata.total_byte_size)
