"""Verification: every planned row present exactly once, every part readable, one fingerprint.

Reads all parts in full, checksums of the pages included, and compares them with the plan. Says of each fault what mends
it, and deletes damaged parts where asked to. Needs no model and no Ray.
"""

import contextlib
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rerank_actor import storage
from rerank_actor.errors import RerankError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.inputs.rows import Unit
from rerank_actor.outputs.folder import PARQUET_SUFFIXES, Output
from rerank_actor.outputs.part import PartCheck, check_part
from rerank_actor.outputs.scored import ScoredOutput, require_scored
from rerank_actor.storage.lease import hold_lease

THREADS = 8
LOOKED_AT = 100  # files beside the parts
MAGIC = b"PAR1"  # that Parquet begins with


@dataclass
class Verification:
    """What verifying an output found; without problems the output is right.

    Attributes:
        passed: rows that `--where` left as they were.
        deleted: damaged parts that were deleted.
        sound: parts in which nothing wrong was found.
        compared: those of them whose rows were compared with what the worker scored; others were written before that could be.
        notes: what is wrong with what says nothing of rows.
    """

    units: int = 0
    rows: int = 0
    scored: int = 0
    errors: int = 0
    passed: int = 0
    deleted: int = 0
    sound: int = 0
    compared: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_output(
    uri: str, *, delete_damaged: bool = False, report: Callable[[str], None] = lambda message: None
) -> Verification:
    """Check an output against its plan.

    Args:
        uri: the output folder.
        delete_damaged: delete damaged parts, so that the next run scores their units; no run can write meanwhile.
        report: is told when it takes a while to see whether a run is writing.

    Raises:
        InputError: there is no job.
        OutputConflictError: damaged parts are to be deleted and a run is writing.
        JobError, StorageError: the folder cannot be read.
    """
    output = Output(uri)
    if not delete_damaged:
        return _verify(require_scored(uri))[0]
    output.require_plan()  # before a lease is written where there is no job
    with hold_lease(output.lease_uri, output.uri, f"verify-{secrets.token_hex(6)}", report) as lease:
        result, damaged = _verify(require_scored(uri), "deleted, run the job again")
        if damaged:
            lease.check(fresh=True)
            storage.delete_objects([output.success_uri])
            output.delete_parts(damaged)
            result.deleted = len(damaged)
    return result


def _verify(scored: ScoredOutput, cure: str | None = None) -> tuple[Verification, list[str]]:
    """Check an output; return what was found and the names of damaged parts, for which `cure` is said where given."""
    result = Verification(units=scored.num_planned)
    result.problems += [
        f"{unit.part_name}: missing (rows {unit.row_start} to {unit.row_start + unit.num_rows} of {unit.uri}); run the job "
        "again"
        for unit in scored.missing
    ]
    result.problems += [
        f"{name}: in no plan, though whoever reads the folder reads it; move or delete it"
        for name in (*scored.strays, *_list_unnamed(scored))
    ]
    damaged = _check_parts(scored, result)
    output = Output(scored.uri)
    doubted = {
        unit.part_name: part for unit, part in zip(scored.units, scored.parts, strict=True) if unit.part_name in damaged
    }
    trusted = {name for name, _ in output.match_records(doubted)} if damaged and cure is None else set()
    hidden = (
        f"its size and time do not show it, so delete it with --delete-damaged ({output.uri}), then run the job again"
    )
    for name, problem in damaged.items():
        result.problems.append(f"{name}: {problem}; {cure or (hidden if name in trusted else 'run the job again')}")
    result.notes += filter(None, [output.explain_manifest(), _explain_below(scored.uri)])
    mark = output.read_success()
    if mark is not None and scored.missing:
        result.problems.append("_SUCCESS is there though parts are missing; run the job again")
    elif mark is None and not scored.missing:
        result.problems.append("_SUCCESS is missing though every part is there; run the job again")
    elif mark and not damaged and (reason := scored.explain_incomplete()) is not None:
        result.problems.append(f"_SUCCESS: {reason}; run the job again")
    return result, list(damaged)


def _list_unnamed(scored: ScoredOutput) -> list[str]:
    """Return the names of Parquet files that lie in the folder under names that do not say so, which Spark and pyarrow read."""
    known = {part.uri.rpartition("/")[2] for part in scored.parts}.union(scored.strays)
    others = [item for item in storage.list_children(scored.uri) if item.uri.rpartition("/")[2] not in known]
    return [item.uri.rpartition("/")[2] for item in others[:LOOKED_AT] if _is_parquet(item)]


def _is_parquet(item: storage.StoredObject) -> bool:
    with contextlib.suppress(RerankError):
        return item.size > len(MAGIC) and storage.read_range(item.uri, 0, len(MAGIC), item.size) == MAGIC
    return False


def _explain_below(uri: str) -> str | None:
    """Say that Parquet files lie in folders below an output; None where there are none, or they cannot be listed."""
    with contextlib.suppress(RerankError):
        names = [item.uri[len(uri.rstrip("/")) + 1 :] for item in storage.list_objects(uri)]
        below = [name for name in names if "/" in name and name.lower().endswith(PARQUET_SUFFIXES)]
        if below:
            return (
                f"{uri}: {len(below):,} Parquet files lie in folders below it (the first: {below[0]}) and are not this job's; "
                "whoever reads the folder with all that is below it, as pyarrow and Polars do, reads them too"
            )
    return None


def _check_parts(scored: ScoredOutput, result: Verification) -> dict[str, str]:
    """Read all parts and add up what they hold; return what is wrong with the damaged ones, by name."""
    damaged: dict[str, str] = {}
    dtypes: dict[str, list[str]] = {}
    digests = read_digests(Output(scored.uri), hash_fingerprint(scored.settings))
    fingerprint = hash_fingerprint(scored.settings)
    with ThreadPoolExecutor(THREADS) as pool:
        checks = pool.map(lambda unit, part: _read_and_check(unit, part, fingerprint), scored.units, scored.parts)
        for unit, check in zip(scored.units, checks, strict=True):
            if isinstance(check, RerankError):
                result.problems.append(f"{unit.part_name}: {check}; verify again")
            elif check.problem is not None:
                damaged[unit.part_name] = check.problem
            elif digests.get(unit.name, {check.facts.get("digest")}).isdisjoint({check.facts.get("digest")}):
                damaged[unit.part_name] = "has other rows than the records of its run say"
            else:
                dtypes.setdefault(str(check.facts.get("dtype", "")), []).append(unit.part_name)
                result.sound += 1
                result.compared += "digest" in check.facts
                result.rows += unit.num_rows
                result.scored += check.facts["scored"]
                result.passed += check.facts.get("passed", 0)
                result.errors += sum(check.facts["errors"].values())
    for dtype, names in sorted(dtypes.items(), key=lambda item: len(item[1]))[:-1]:
        result.problems.append(
            f"{names[0]}: was computed in {dtype or 'no dtype that it tells'}, as {len(names):,} parts were, others in another "
            "dtype; score them apart, or with one --dtype"
        )
    return damaged


def read_digests(output: Output, fingerprint: str) -> dict[str, set[str]]:
    """Return the digests of rows that the records of runs of this job hold, by unit."""
    digests: dict[str, set[str]] = {}
    for record in output.read_records():
        if record["digest"] is not None and record["fingerprint"] == fingerprint:
            digests.setdefault(record["unit"], set()).add(record["digest"])
    return digests


def _read_and_check(unit: Unit, part: storage.StoredObject, fingerprint: str) -> PartCheck | RerankError:
    try:
        return check_part(unit, storage.read_bytes(part.uri), fingerprint)
    except RerankError as error:  # storage failed, which says nothing of the part
        return error
