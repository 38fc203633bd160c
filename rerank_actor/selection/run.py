"""Selection: from a `SelectJob` to delivered files, one language pair after the other, and on again after whatever ended it.

`select_pairs` is the order of language pairs; `PairRun.execute` in `partition` is that of the steps of one, and what a step
does is known in `steps`.
"""

import contextlib
import json
import time
import uuid
from typing import Any

from rerank_actor import storage
from rerank_actor.connection import Connection, SignalWatch, connect_ray, watch_signals
from rerank_actor.errors import InputError, OutputConflictError
from rerank_actor.output import Lease
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.selection.job import SelectJob
from rerank_actor.selection.known import Known, load_known
from rerank_actor.selection.output import SelectOutput, refuse_other_selection
from rerank_actor.selection.partition import PairRun, Selected
from rerank_actor.selection.report import render_report
from rerank_actor.selection.scored import ScoredPair, describe_input, find_scored

DEFINITION_VERSION = 1  # to be raised when the same settings and scores give other rows


def select_pairs(job: SelectJob, folders: list[str], reporter: Reporter | None = None) -> dict[str, Selected]:
    """Select from everything that is scored and not yet delivered, and write the report over all language pairs.

    Args:
        job: what to select and where to.
        folders: of scored pairs.
        reporter: where to tell how it goes.

    Returns:
        How it ended for each language pair, in order of names.

    Raises:
        JobError: the job or its input is wrong; nothing was written of the language pair at fault.
        OutputConflictError: the folder holds something else, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    reporter = reporter or QuietReporter()
    known = check_selection(job, folders)
    found = find_scored(job, folders)
    results: dict[str, Selected] = {}
    with contextlib.ExitStack() as stack:
        connect = _Connector(job, stack)
        for name, scored in found.items():
            results[name] = _select_pair(name, scored, job, known, connect, reporter)
    if not job.calibrate_only:
        write_report(job.deliver)
        return results
    told = [result.numbers for result in results.values() if result.numbers]
    page = render_report(told, job.deliver, title="Scores of translation pairs on known pairs")
    storage.write_bytes(storage.join_uri(job.deliver, "_select", "calibration.html"), page.encode())
    return results


def check_selection(job: SelectJob, folders: list[str]) -> Known | None:
    """Check what can be checked before anything is scored, and return the known pairs.

    Raises:
        InputError: the delivery would lie among the scores, or known pairs cannot be read.
        StorageError: storage does not answer.
    """
    for uri in folders:
        _refuse_overlap(uri, job.deliver)
    return load_known(job.calibration, job.source_column, job.target_column) if job.calibration else None


def _refuse_overlap(uri: str, deliver: str) -> None:
    for inner, outer in ((uri, deliver), (deliver, uri)):
        if f"{inner}/".startswith(f"{outer}/"):
            raise InputError(
                f"--deliver {deliver}: lies in the scored folder {uri} or around it, so that what is written would be read "
                "again; choose a folder beside it",
                uri=deliver,
            )


class _Connector:
    """Connects to Ray when the first task needs it, and stays connected for the rest."""

    def __init__(self, job: SelectJob, stack: contextlib.ExitStack) -> None:
        self._job, self._stack = job, stack
        self._found: tuple[SignalWatch, Connection] | None = None

    def __call__(self) -> tuple[SignalWatch, Connection]:
        if self._found is None:
            watch = self._stack.enter_context(watch_signals())
            self._found = watch, self._stack.enter_context(connect_ray(self._job, watch))
        return self._found


def _select_pair(
    name: str, scored: ScoredPair, job: SelectJob, known: Known | None, connect: _Connector, reporter: Reporter
) -> Selected:
    output = SelectOutput(job.deliver, name)
    settings = {
        **job.settings(),
        "calibration": known.digest if known is not None else None,
        "definition_version": DEFINITION_VERSION,
        "inputs": describe_input(scored),
    }
    earlier = output.read_json("settings.json")
    if job.calibrate_only:
        return _calibrate_pair(scored, job, known, connect, reporter)
    if earlier != settings and not output.list_data():
        earlier = None  # the other selection delivered nothing that could be mixed up
    elif not job.reselect:
        if earlier is not None:
            refuse_other_selection(output, earlier, settings)
        else:
            raise OutputConflictError(
                f"{output.uri}: holds files of {name} but not what they were selected by; choose another --deliver, or give "
                "--reselect to replace them",
                uri=output.uri,
            )
    elif earlier != settings:
        earlier = None
    done = output.read_json("result.json") if earlier is not None else None
    if done is not None and _is_whole(output, done):
        reporter.say(f"{name}: {done['counts'].get('kept', 0):,} pairs, all delivered already")
        return Selected("complete", done)
    run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    lease = Lease(output, run_id)
    lease.acquire(reporter.say)
    try:
        if earlier is None or done is not None:
            output.clear()
        output.clear_scratch()
        return PairRun(scored, job, known, output, settings, lease, connect, reporter).execute()
    finally:
        lease.release()


def _calibrate_pair(
    scored: ScoredPair, job: SelectJob, known: Known | None, connect: _Connector, reporter: Reporter
) -> Selected:
    """Look at the known pairs of a language pair in a folder that is deleted behind it."""
    output = SelectOutput(storage.join_uri(job.deliver, "_select", "calibrate"), scored.pair.name)
    lease = Lease(output, uuid.uuid4().hex)
    lease.acquire(reporter.say)
    try:
        output.clear()
        found = PairRun(scored, job, known, output, {}, lease, connect, reporter).look()
        output.clear()
        return found
    finally:
        lease.release()


def _is_whole(output: SelectOutput, done: dict[str, Any]) -> bool:
    present = output.list_data()
    return all(uri in present and present[uri].size == size for uri, size in done["objects"].items())


def write_report(deliver: str) -> None:
    """Write the report over all language pairs that were ever delivered to a folder."""
    root = storage.join_uri(deliver, "_select")
    listed = [item.uri for item in storage.list_objects(root) if item.uri.endswith("/result.json")]
    found = [json.loads(data) for data in map(storage.read_if_present, sorted(listed)) if data]
    told = [{name: value for name, value in one.items() if name != "objects"} for one in found]
    data = json.dumps({"lang_pairs": told}, indent=1, ensure_ascii=False).encode()
    storage.write_bytes(storage.join_uri(root, "report.json"), data)
    storage.write_bytes(storage.join_uri(root, "report.html"), render_report(found, deliver).encode())
