"""Verification of mined data: whether every unit of the plan is there and its objects are what was written.

Takes the folder of a mining job, gives faults in sentences. Knows nothing of what is in an object.
"""

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.mining.output import MineOutput, restore_plan
from rerank_actor.outputs.delivered import list_changed, list_lost


def is_mined(uri: str) -> bool:
    """Whether a mining job has planned in a folder."""
    return storage.read_if_present(MineOutput(uri).at("plan.json")) is not None


def check_mined(uri: str) -> list[str]:
    """Return the faults of mined data; nothing where all objects are as they were written.

    Raises:
        InputError: the plan is damaged.
        JobError, StorageError: the folder cannot be read.
    """
    output = MineOutput(uri)
    stored = output.load_stored_plan()
    if stored is None:
        raise InputError(f"{output.at('plan.json')}: is damaged; mine again with --overwrite", uri=uri)
    plan = restore_plan(output, stored)
    names = {unit.name for unit in (*plan.units, *plan.buckets)}
    records = [record for _, record in output.records.load(names) if "objects" in record]
    problems = []
    if len(records) < len(names):
        missing = len(names) - len(records)
        problems.append(f"{uri}: {missing:,} of {len(names):,} units are not mined; run the same command again")
    present = {item.uri: item for item in output.list_written()}
    sizes, digests = (
        {storage.join_uri(uri, name): value for record in records for name, value in record.get(kind, {}).items()}
        for kind in ("objects", "digests")
    )
    problems += list_lost(present, sizes) + list_changed(present, sizes, digests)
    if len(records) == len(names):
        problems += [f"{name}: was not written by this mining" for name in sorted(present.keys() - sizes.keys())]
    if not problems and output.read_success() is None:
        problems.append(f"{output.success_uri}: is missing; run the same command again")
    return problems
