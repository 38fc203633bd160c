"""Parts without a plan: whether they are what a plan that was made again says, so that they may stay.

Takes a fresh plan and the parts of a folder whose plan was lost or damaged. Of each part the footer is read; whether its rows
are what they should be is looked at later, as of any part. Knows nothing of how a plan is made.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import OutputConflictError, RerankError
from rerank_actor.inputs.columns import settle_views
from rerank_actor.inputs.plan import Plan
from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.row_groups import open_part

THREADS = 16


def adopt_parts(uri: str, plan: Plan, parts: Mapping[str, storage.StoredObject], fingerprint: str) -> None:
    """Refuse parts that are not of a plan: of another job, of other rows, or of columns of other types.

    Raises:
        OutputConflictError: there is one, so that the plan that was lost was another.
        StorageError, JobError: storage failed.
    """
    units = {unit.part_name: unit for unit in plan.units()}

    def explain(name: str) -> str | None:
        return _explain(parts[name], units[name], plan, fingerprint) if name in units else "is in no plan of this job"

    with ThreadPoolExecutor(THREADS) as pool:
        for name, reason in zip(parts, pool.map(explain, parts), strict=True):
            if reason is not None:
                raise OutputConflictError(
                    f"{uri}: holds parts but no plan, and {name} {reason}, so it is not known what job they are of; choose "
                    "another --output, or --overwrite",
                    uri=uri,
                )


def _explain(part: storage.StoredObject, unit: Unit, plan: Plan, fingerprint: str) -> str | None:
    """Return what a part differs in from its unit, None where it is the unit's or cannot be read, and so is scored again."""
    try:
        with open_part(part) as file:
            schema: pa.Schema = file.schema_arrow
    except (RerankError, pa.ArrowException, OSError):
        return None
    metadata = read_part_metadata(schema)
    if metadata.get("fingerprint") != fingerprint:
        return "has another fingerprint"
    if [metadata.get(name) for name in ("unit", "shard", "shard_etag", "row_start")] != [
        *(unit.name, unit.uri, unit.etag),
        str(unit.row_start),
    ]:
        return "holds other rows"
    for name, kind in plan.json_types.items():
        if name in schema.names and settle_views(schema.field(name).type) != kind:
            return f"has a column {name} of another type"
    return None
