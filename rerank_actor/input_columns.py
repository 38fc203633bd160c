"""The input's columns, checked against the job before anything starts.

Takes what scans found; refuses columns that are missing, of no use for their flag, or named like what scoring adds, and
names the flag that mends it. Knows nothing of units or of what rows hold.
"""

from collections.abc import Mapping

import pyarrow as pa

from rerank_actor.candidates import INDEX_COLUMN, TextSpec, list_fields
from rerank_actor.errors import InputError, suggest
from rerank_actor.job import ScoreJob
from rerank_actor.layout import ShardLayout
from rerank_actor.pair_key import PAIR_KEY
from rerank_actor.shards import RESERVED_COLUMNS, detect_format

SHOWN_CHARACTERS = 40  # of a column's name, which may be a text where a file has no header


def make_text_spec(job: ScoreJob) -> TextSpec:
    """Return where the job says that texts are."""
    return TextSpec(
        query_column=job.query_source[0],
        document_column=job.document_source[0],
        query_is_id=bool(job.queries),
        document_is_id=bool(job.corpus),
        query_template=job.query_template,
        document_template=job.document_template,
        instruction_column=job.instruction_column,
        dataset_column=job.dataset_column,
        instruction_map=job.instructions,
        explode=job.explode,
        explode_columns=tuple(job.explode_columns),
        keep_fields=tuple(job.keep_fields) if job.keep_fields else None,
    )


def is_kept(job: ScoreJob, name: str) -> bool:
    """Whether the output has this input column."""
    return (job.keep_columns == "all" or name in job.keep_columns) and name not in job.drop_columns


def check_columns(job: ScoreJob, layouts: Mapping[str, ShardLayout], is_backfill: bool) -> None:
    """Refuse columns that do not suit the job.

    Args:
        job: names them.
        layouts: what was found in each shard.
        is_backfill: whether other shards were scored before, so that one without text in it is no reason to stop.

    Raises:
        InputError: a column is missing, taken, or nowhere of the type that its flag asks for.
    """
    layouts = {uri: layout for uri, layout in layouts.items() if layout.num_rows}
    spec = make_text_spec(job)
    kept = [] if job.keep_columns == "all" else list(job.keep_columns)
    kinds: dict[tuple[str, str], list[pa.DataType]] = {}
    for uri, layout in layouts.items():
        for flag, names in {**spec.list_required(layout.columns), "--keep-columns": kept}.items():
            for name in names:
                _require(job, uri, layout, flag, name)
                kinds.setdefault((flag, name), []).append(layout.columns[name])
        _refuse_taken(job, uri, layout)
        fields = list_fields(layout.columns.get(spec.document_column))
        for name in job.keep_fields if fields else []:
            if name not in fields:
                raise InputError(
                    f"{uri}: candidates have no field `{name}`, which --keep-fields names; they have "
                    f"{', '.join(f'`{field}`' for field in fields)}{suggest(name, fields)}",
                    uri=uri,
                    column=spec.document_column,
                )
    if layouts and not is_backfill:
        _refuse_unknown(job, layouts)
        for (flag, name), found in kinds.items():
            expected = [spec.find_wrong_type(flag, kind) for kind in found] if flag != "--keep-columns" else [None]
            if all(expected):
                raise InputError(
                    f"column `{name}` is {found[0]} in every shard, expected {expected[0]}; choose with {flag}",
                    column=name,
                )


def _require(job: ScoreJob, uri: str, layout: ShardLayout, flag: str, name: str) -> None:
    if name not in layout.columns:
        known = ", ".join(f"`{column[:SHOWN_CHARACTERS]}`" for column in layout.columns) or "none"
        is_headed = detect_format(uri, job.format)[0] in ("csv", "tsv") and not job.columns
        raise InputError(
            f"{uri}: no column `{name}`; it has {known}; choose with {flag}{suggest(name, layout.columns)}"
            + (", or name the columns with --columns where the first line is no header" if is_headed else ""),
            uri=uri,
            column=name,
        )


def _refuse_taken(job: ScoreJob, uri: str, layout: ShardLayout) -> None:
    """Refuse output columns of one name, or of the name of a column that scoring adds."""
    reserved = {*RESERVED_COLUMNS, *([INDEX_COLUMN] if job.explode else []), *([PAIR_KEY] if job.adds_pair_key else [])}
    given: dict[str, str] = {}
    for name in layout.columns:
        if not is_kept(job, name):
            continue
        target = job.rename_columns.get(name, name)
        if target in reserved:
            raise InputError(
                f"{uri}: column `{target}` has the name of a column that scoring adds; rename it with --rename-columns "
                f"{name}=NEW, or leave it out with --drop-columns or --keep-columns",
                uri=uri,
                column=name,
            )
        if target in given:
            raise InputError(
                f"{uri}: columns `{given[target]}` and `{name}` would both be `{target}`; change --rename-columns",
                uri=uri,
                column=name,
            )
        given[target] = name


def _refuse_unknown(job: ScoreJob, layouts: Mapping[str, ShardLayout]) -> None:
    """Refuse to drop or rename what no shard has, which is a misspelt name."""
    known = list(dict.fromkeys(name for layout in layouts.values() for name in layout.columns))
    for flag, names in (("--drop-columns", job.drop_columns), ("--rename-columns", job.rename_columns)):
        for name in names:
            if name not in known:
                raise InputError(
                    f"no shard has a column `{name}`, which {flag} names{suggest(name, known)}", column=name
                )
