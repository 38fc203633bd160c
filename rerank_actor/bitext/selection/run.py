"""Selection: from a `SelectJob` to delivered files, one language pair after the other, and on again after whatever ended it.

`select_pairs` is the order of language pairs; `LanguagePairSelection.execute` in `language_pair` is that of the steps of
one, and which step does what is known in `steps`.
"""

import contextlib
import json
from typing import Any

from rerank_actor import storage
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.bitext.selection.labelled_pairs import LabelledPairs, load_labelled
from rerank_actor.bitext.selection.language_pair import LanguagePairSelection, Selected
from rerank_actor.bitext.selection.output import SelectOutput, read_selection_status
from rerank_actor.bitext.selection.report import render_report
from rerank_actor.bitext.selection.scored import ScoredPair, load_scored
from rerank_actor.errors import InputError, OutputConflictError
from rerank_actor.fingerprint import refuse_other_rules
from rerank_actor.outputs.delivered import list_lost
from rerank_actor.outputs.folder import JobFolder
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.runtime.connection import Connection, connect_ray, watch_signals
from rerank_actor.runtime.steps import TaskRunner
from rerank_actor.storage.lease import Lease, make_run_id

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
        JobError: the job is wrong, or the input of every language pair; one alone is told of as failed.
        OutputConflictError: the folder holds something else, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    reporter = reporter or QuietReporter()
    known = check_selection(job, folders)
    pairs = load_scored(job, folders)
    results: dict[str, Selected] = {}
    errors: list[InputError] = []
    settings = {name: _collect_settings(scored, job, known) for name, scored in pairs.items()}
    earlier = {name: _load_earlier(SelectOutput(job.deliver, name), values, job) for name, values in settings.items()}
    if "parquet" in job.formats and not job.calibrate_only:
        JobFolder(job.deliver).write_card("parquet/lang_pair=*/part-*.parquet")
    with contextlib.ExitStack() as stack:
        connect = _Connector(job, stack)
        for name, scored in pairs.items():
            output = SelectOutput(_name_folder(job), name)
            lease = Lease(output.lease_uri, output.uri, make_run_id())
            runner = TaskRunner(connect, lease, storage.capture_environment())
            selection = LanguagePairSelection(scored, job, known, output, settings[name], runner, reporter)
            try:
                results[name] = _select_pair(selection, earlier[name])
            except InputError as error:  # other language pairs need not wait for this one
                errors.append(error)
                results[name] = Selected("failed", failure=str(error))
    if len(errors) == len(pairs):
        raise errors[0]
    if not job.calibrate_only:
        write_report(job.deliver, job.examples)
        return results
    numbers = [result.numbers for result in results.values() if result.numbers]
    page = render_report(numbers, job.deliver, title="Scores of translation pairs on known pairs")
    storage.write_bytes(storage.join_uri(job.deliver, "_select", "calibration.html"), page.encode())
    return results


def _name_folder(job: SelectJob) -> str:
    """Return the folder of what is written; known pairs alone are looked at in one that is deleted."""
    return storage.join_uri(job.deliver, "_select", "calibrate") if job.calibrate_only else job.deliver


def check_selection(job: SelectJob, folders: list[str]) -> LabelledPairs | None:
    """Check what can be checked before anything is scored, and return the known pairs.

    Raises:
        InputError: the delivery would lie among the scores, or known pairs cannot be read.
        StorageError: storage does not answer.
    """
    for uri in folders:
        storage.refuse_overlap(job.deliver, uri, "--deliver", "the scored")
    return (
        load_labelled(job.calibration, job.source_column, job.target_column, job.dialect) if job.calibration else None
    )


class _Connector:
    """Connects to Ray when the first task needs it, and stays connected for the rest."""

    def __init__(self, job: SelectJob, stack: contextlib.ExitStack) -> None:
        self._job, self._stack = job, stack
        self._connection: Connection | None = None

    def __call__(self) -> Connection:
        if self._connection is None:
            watch = self._stack.enter_context(watch_signals())
            self._connection = self._stack.enter_context(connect_ray(self._job, watch))
        return self._connection


def _collect_settings(scored: ScoredPair, job: SelectJob, known: LabelledPairs | None) -> dict[str, Any]:
    """Return all that can change a delivered row of a language pair."""
    return {
        **job.settings(),
        "calibration": known.digest if known is not None else None,
        "definition_version": DEFINITION_VERSION,
        "inputs": [part.identity for part in scored.parts],
        **({"known_inputs": [part.identity for part in scored.labelled.parts]} if scored.labelled is not None else {}),
    }


def _load_earlier(output: SelectOutput, settings: dict[str, Any], job: SelectJob) -> dict[str, Any] | None:
    """Return the settings of an earlier selection that can be gone on with, None where there is none or it is replaced.

    Raises:
        OutputConflictError: files lie there that were selected in another way.
    """
    earlier = output.read_own("settings.json")
    if earlier == settings:
        return earlier
    if job.calibrate_only or job.reselect or not output.list_data():
        return None  # what delivered nothing cannot be mixed up with anything
    if earlier:
        cure = "choose another --deliver, or give --reselect to replace it"
        refuse_other_rules(output.uri, f"{output.pair} selected by", cure, earlier, settings)
    raise OutputConflictError(
        f"{output.uri}: holds files of {output.pair} but not what they were selected by; choose another --deliver, or give "
        "--reselect to replace them",
        uri=output.uri,
    )


def _select_pair(selection: LanguagePairSelection, earlier: dict[str, Any] | None) -> Selected:
    """Select from a language pair, unless an earlier run did, by whose settings this one can go on."""
    output, lease, say = selection.output, selection.runner.lease, selection.reporter.info
    calibrates = selection.job.calibrate_only
    if (delivered := _find_delivered(selection, earlier, may_write=False)) is not None:
        return delivered
    lease.acquire(say)
    try:
        earlier = _load_earlier(output, selection.settings, selection.job)  # another run may have been here until now
        if (delivered := _find_delivered(selection, earlier, may_write=True)) is not None:
            return delivered
        if earlier is None or calibrates or output.read_own("result.json"):
            output.clear()
        output.clear_scratch()
        if not calibrates:
            return selection.execute()
        looked_at = selection.look()
        output.clear()
        return looked_at
    finally:
        lease.release()


def _find_delivered(
    selection: LanguagePairSelection, earlier: dict[str, Any] | None, *, may_write: bool
) -> Selected | None:
    """Return how a selection ended whose files are all there, None where something is left to do.

    More texts than `--examples` asks for are left out of it, under the lease.
    """
    output = selection.output
    done = output.read_own("result.json") if earlier is not None and not selection.job.calibrate_only else {}
    if not done or list_lost(output.list_data(), done["objects"]):
        return None
    if len(done.get("lowest", ())) > selection.job.examples:
        if not may_write:
            return None
        done["lowest"] = done["lowest"][: selection.job.examples]
        output.write_json("result.json", done)
    selection.reporter.info(f"{output.pair}: {done['counts'].get('kept', 0):,} pairs, all delivered already")
    return Selected("complete", done)


def write_report(deliver: str, examples: int) -> None:
    """Write the report over all language pairs that were ever delivered to a folder, with so many pairs' texts of each."""
    root = storage.join_uri(deliver, "_select")
    complete = [status.numbers for status in read_selection_status(deliver) if status.numbers is not None]
    shown = [
        {name: value for name, value in numbers.items() if name not in ("objects", "digests", "lowest")}
        for numbers in complete
    ]
    data = json.dumps({"lang_pairs": shown}, indent=1, ensure_ascii=False).encode()
    storage.write_bytes(storage.join_uri(root, "report.json"), data)
    complete = [numbers | {"lowest": numbers.get("lowest", [])[:examples]} for numbers in complete]
    storage.write_bytes(storage.join_uri(root, "report.html"), render_report(complete, deliver).encode())
