"""Verification: every planned row present exactly once, every part readable, one fingerprint.

Reads all parts in full, checksums of the pages included, and compares them with the plan. Says of each fault what mends
it, and deletes damaged parts where asked to. Needs no model and no Ray.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rerank_actor import storage
from rerank_actor.errors import RerankError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.inputs.plan import Plan
from rerank_actor.inputs.unit import Unit
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.part import PartCheck, check_part
from rerank_actor.storage.lease import Lease

THREADS = 8


@dataclass
class Verification:
    """What verifying an output found; without problems the output is right.

    Attributes:
        deleted: damaged parts that were deleted.
    """

    units: int = 0
    rows: int = 0
    scored: int = 0
    errors: int = 0
    deleted: int = 0
    problems: list[str] = field(default_factory=list)


def verify_output(
    uri: str, *, delete_damaged: bool = False, tell: Callable[[str], None] = lambda message: None
) -> Verification:
    """Check an output against its plan.

    Args:
        uri: the output folder.
        delete_damaged: delete damaged parts, so that the next run scores their units; no run can write meanwhile.
        tell: is told when it takes a while to see whether a run is writing.

    Raises:
        InputError: there is no job.
        OutputConflictError: damaged parts are to be deleted and a run is writing.
        JobError, StorageError: the folder cannot be read.
    """
    output = Output(uri)
    plan, settings = output.require_plan()
    fingerprint = hash_fingerprint(settings)
    if not delete_damaged:
        return _verify(output, plan, fingerprint)[0]
    with _hold(output, tell) as lease:
        result, damaged = _verify(output, plan, fingerprint, "deleted, run the job again")
        if damaged:
            lease.check(fresh=True)
            storage.delete_objects([output.success_uri])
            output.delete_parts(damaged)
            result.deleted = len(damaged)
    return result


@contextlib.contextmanager
def _hold(output: Output, tell: Callable[[str], None]) -> Iterator[Lease]:
    lease = Lease(output.lease_uri, output.uri, f"verify-{secrets.token_hex(6)}")
    lease.acquire(tell)
    try:
        yield lease
    finally:
        lease.release()


def _verify(output: Output, plan: Plan, fingerprint: str, cure: str | None = None) -> tuple[Verification, list[str]]:
    """Check an output; return what was found and the names of damaged parts, for which `cure` is said where given."""
    parts = output.list_parts()
    result, damaged = Verification(), dict[str, str]()
    present: dict[Unit, storage.StoredObject] = {}
    for unit in plan.units():
        result.units += 1
        if unit.part_name in parts:
            present[unit] = parts.pop(unit.part_name)
        else:
            result.problems.append(f"{unit.part_name}: missing (rows {_range(unit)} of {unit.uri}); run the job again")
    result.problems += [f"{name}: in no plan; delete it" for name in sorted(parts)]
    with ThreadPoolExecutor(THREADS) as pool:
        checks = pool.map(lambda unit: _read_and_check(unit, present[unit], fingerprint), present)
        for unit, found in zip(present, checks, strict=True):
            if isinstance(found, RerankError):
                result.problems.append(f"{unit.part_name}: {found}; verify again")
            elif found.problem is not None:
                damaged[unit.part_name] = found.problem
            else:
                result.rows += unit.num_rows
                result.scored += found.facts["scored"]
                result.errors += sum(found.facts["errors"].values())
    doubted = {unit.part_name: part for unit, part in present.items() if unit.part_name in damaged}
    trusted = {name for name, _ in output.match_records(doubted)} if damaged and cure is None else set()
    for name, what in damaged.items():
        hidden = f"its size and time do not show it, so delete it with --delete-damaged ({output.uri}), then run the job again"
        result.problems.append(f"{name}: {what}; {cure or (hidden if name in trusted else 'run the job again')}")
    marked = storage.read_if_present(output.success_uri) is not None
    complete = len(present) == result.units
    if marked and not complete:
        result.problems.append("_SUCCESS is there though parts are missing; run the job again")
    if complete and not marked:
        result.problems.append("_SUCCESS is missing though every part is there; run the job again")
    return result, list(damaged)


def _range(unit: Unit) -> str:
    return f"{unit.row_start} to {unit.row_start + unit.num_rows}"


def _read_and_check(unit: Unit, part: storage.StoredObject, fingerprint: str) -> PartCheck | RerankError:
    try:
        return check_part(unit, storage.read_bytes(part.uri), fingerprint)
    except RerankError as error:  # storage failed, which says nothing of the part
        return error
