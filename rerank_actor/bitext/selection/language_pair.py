"""The selection of one language pair: its steps in their order, from scored parts to delivered files.

Takes what is scored of the pair and a job, gives what came of it as the numbers of `result.json`. A step that an earlier run
has done is not done again; what a step has used is deleted behind it. Knows nothing of other language pairs.
"""

import functools
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rerank_actor import storage
from rerank_actor.bitext.selection.calibration import Curve, LabelledScores, calibrate
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.bitext.selection.labelled_pairs import LabelledPairs
from rerank_actor.bitext.selection.output import SelectOutput
from rerank_actor.bitext.selection.scored import ScoredPair
from rerank_actor.bitext.selection.step_task import StepRecord, StepSpec, StepTask, check_columns, make_step_spec
from rerank_actor.bitext.selection.steps import do_task
from rerank_actor.bitext.selection.tally import SelectionTally
from rerank_actor.errors import InputError, RerankError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.outputs.manifest import read_versions
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.runtime.steps import StepRecords, TaskRunner, run_step
from rerank_actor.storage.exchange import collect_slices

LISTED_REASONS = 50
LOOKS_AT = {
    "threshold": "combined",
    "forward_threshold": "forward",
    "backward_threshold": "backward",
    "margin": "margin",
    "ratio_margin": "ratio margin",
}  # the kind of score that each rule looks at
F1_APART = 0.005  # of two rules, before one is said to be better


@dataclass
class Selected:
    """How the selection of a language pair ended.

    Attributes:
        status: `complete`, or `failed`.
        numbers: what `result.json` holds; empty where it failed.
        failure: why it failed.
    """

    status: str
    numbers: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


class StepError(RerankError):
    """A task of a step failed."""


class LanguagePairSelection:
    """The selection of one language pair, which holds the lease.

    Args:
        scored: what is scored of it.
        job: what to select.
        known: known pairs.
        output: where all goes.
        settings: all that can change a delivered row.
        runner: does tasks on the cluster.
        reporter: where to tell how it goes.
    """

    def __init__(
        self,
        scored: ScoredPair,
        job: SelectJob,
        known: LabelledPairs | None,
        output: SelectOutput,
        settings: dict[str, Any],
        runner: TaskRunner,
        reporter: Reporter,
    ) -> None:
        self.scored, self.job, self.known, self.output, self.settings = scored, job, known, output, settings
        self.runner, self.reporter = runner, reporter
        self.name = scored.pair.name
        self.started = time.time()
        self.tally = SelectionTally()
        self.rules = job.rules()
        self.curves: dict[str, Curve] = {}
        self.labelled: LabelledScores | None = None  # of known pairs that are no candidates
        self.kept: list[StepRecord] = []
        self.computed = 0  # tasks of this run

    def execute(self) -> Selected:
        """Take the steps that are not done, and write down what came of it."""
        spec = self._prepare()
        self.output.write_json("settings.json", self.settings)
        self.reporter.info(f"{self.name}: selecting from {self.scored.num_rows:,} scored pairs")
        try:
            objects = self._deliver(self._align(*self._score(spec)))
        except StepError as error:
            self.reporter.info(f"{self.name}: {error}")
            return Selected("failed", failure=str(error))
        return self._finish(objects)

    def look(self) -> Selected:
        """Take the steps that known pairs need, and no more."""
        self.reporter.info(f"{self.name}: looking for known pairs among {self.scored.num_rows:,} scored ones")
        spec = replace(self._prepare(), waits=True)
        try:
            self._score(spec, apply=False)
        except StepError as error:
            return Selected("failed", failure=str(error))
        return Selected("calibrated", self._summarize())

    def _prepare(self) -> StepSpec:
        spec = make_step_spec(self.scored, self.job, self.known, self.output)
        check_columns(spec.rules, spec.columns, self.scored.parts[0].uri)
        return replace(spec, lease=self.runner.lease.mark)

    def _score(self, spec: StepSpec, *, apply: bool = True) -> tuple[StepSpec, list[StepRecord]]:
        """Read, drop duplicates, compute margins, calibrate, and apply the thresholds if that is wanted."""
        targets = self._look_at_sides(spec)
        if self.known is not None:
            self._calibrate(_join_known(targets))
        if not spec.waits or not apply:
            return spec, targets
        spec = replace(spec, rules=self.rules, waits=False)
        return spec, self._step("filter", _make_tasks(targets, "pairs", spec.num_buckets), spec, targets)

    def _look_at_sides(self, spec: StepSpec) -> list[StepRecord]:
        """Read, drop duplicates and compute margins."""
        units = [StepTask(number, runs=unit) for number, unit in enumerate(self.scored.units)]
        records = self._step("read", units, spec)
        fingerprints = {key or None: uri for record in records for key, uri in record.facts["fingerprints"].items()}
        if len(fingerprints) > 1:
            raise InputError(
                f"{self.name}: its parts were scored in different ways (fingerprints {', '.join(map(str, fingerprints))}), so "
                "that their scores may not be comparable; select from each by itself"
            )
        self.fingerprints = set(fingerprints)
        self.reasons = _add_up(record.facts["reasons"] for record in records)
        if self.tally.counts["rows"] == self.tally.removed["unscored"]:
            self.reporter.info(
                f"{self.name}: none of {self.tally.counts['rows']:,} rows has a score (column `error` says why), so that "
                "nothing can be selected"
            )
        for step in ("duplicates", "sources", "targets"):
            records = self._step(step, _make_tasks(records, "pairs", spec.num_buckets), spec, records)
        return records

    def _calibrate(self, scores: LabelledScores) -> None:
        """Trace the curves of known pairs, and take thresholds from them where they are asked for."""
        self._report_labelled(scores, "are among its candidates")
        if not (scores.num_right and scores.num_wrong) and self.scored.labelled is not None:
            self.labelled = scores = self._score_labelled(self.scored.labelled)
            self._report_labelled(scores, "were scored beside them")
        self.tally.counts.update({"known_right": scores.num_right, "known_wrong": scores.num_wrong})
        self.curves = calibrate(scores)
        for flag in ("threshold", "margin"):
            if getattr(self.job, flag) != "auto" or self.job.calibrate_only:
                continue
            curve = self.curves.get(LOOKS_AT[flag])
            if curve is None:
                raise StepError(
                    f"--{flag} auto: {scores.num_right:,} known right and {scores.num_wrong:,} known wrong pairs are among the "
                    "scored ones, and both are needed; give more known pairs of this language pair with their labels, also to "
                    "the command that scores (--input), which scores those that are no candidates; or give a number"
                )
            best = float(curve.thresholds[curve.best])
            self.rules = (
                replace(self.rules, threshold=best) if flag == "threshold" else replace(self.rules, margin=best)
            )
            self.reporter.info(f"{self.name}: --{flag} {best:.6g} has the best F1 on known pairs, {curve.best_f1:.4f}")
            self._say_better(flag, curve)

    def _say_better(self, flag: str, curve: Curve) -> None:
        """Say which other rule would have a better F1 than the one whose threshold is taken."""
        others = {other: self.curves[kind] for other, kind in LOOKS_AT.items() if kind in self.curves}
        better = max(others, key=lambda other: others[other].best_f1)
        found = others[better]
        if found.best_f1 - curve.best_f1 > F1_APART:
            name, least = better.replace("_", "-"), float(found.thresholds[found.best])
            self.reporter.info(f"{self.name}: --{name} {least:.6g} would have a better one, {found.best_f1:.4f}")

    def _report_labelled(self, scores: LabelledScores, where: str) -> None:
        self.reporter.info(
            f"{self.name}: {scores.num_right:,} known right and {scores.num_wrong:,} known wrong pairs {where}"
        )

    def _score_labelled(self, scored: ScoredPair) -> LabelledScores:
        """Return the scores of known pairs that are no candidates; their rivals are the known pairs of the same sides."""
        output = SelectOutput(storage.join_uri(self.output.uri, "_select", "known"), self.output.pair)
        selection = LanguagePairSelection(scored, self.job, self.known, output, {}, self.runner, QuietReporter())
        output.clear()
        try:
            spec = replace(make_step_spec(scored, self.job, self.known, output), waits=True)
            scores = _join_known(selection._look_at_sides(spec))
        finally:
            output.clear()
        if selection.fingerprints != self.fingerprints:
            raise InputError(
                f"{self.name}: its known pairs were scored in another way than its candidates (fingerprints "
                f"{', '.join(map(str, selection.fingerprints | self.fingerprints))}); score both with one command",
                uri=scored.parts[0].uri,
            )
        return scores

    def _align(self, spec: StepSpec, records: list[StepRecord]) -> StepSpec:
        """Take the steps of the mode; `kept` is then known."""
        mode, num_buckets = spec.rules.mode, spec.num_buckets
        self._take_kept(records)
        if mode in ("forward", "intersection"):
            self._take_kept(self._step("choose", _make_tasks(records, "alive", num_buckets), spec, records))
        elif mode == "greedy":
            turn = 0
            while (alive := _count_rows(records, "alive")) > self.job.local_rows and num_buckets > 1:
                turn += 1
                for step in ("match_sources", "match_targets"):
                    tasks = _make_tasks(records, "alive", num_buckets)
                    records = self._step(f"{step}-{turn:04d}", tasks, spec, records)
                    self._take_kept(records)
            if alive:
                slices = [piece for task in _make_tasks(records, "alive", num_buckets) for piece in task.slices]
                self._take_kept(self._step("match", [StepTask(0, slices)], spec, records))
        return spec

    def _deliver(self, spec: StepSpec) -> dict[str, Any]:
        """Fetch the texts of what is kept, and write the files; returns the lowest pairs, and sizes and digests by URI."""
        num_parts = -(-self.tally.counts["kept"] // self.job.part_rows)
        spec = replace(spec, rules=self.rules, num_parts=max(1, num_parts), starts=self._compute_starts(num_parts))
        units = _make_tasks(self.kept, "kept", spec.num_units)
        tasks = [replace(task, runs=self.scored.units[task.number]) for task in units if task.slices]
        fetched = self._step("fetch", tasks, spec, self.kept)
        written = self._step("write", _make_tasks(fetched, "rows", spec.num_parts), spec)
        lowest = sorted(
            (pair for record in written for pair in record.facts.get("lowest", ())), key=lambda pair: pair[0]
        )
        return {
            "lowest": lowest[: self.job.examples],
            **{
                kind: {uri: value for record in written for uri, value in record.facts.get(kind, {}).items()}
                for kind in ("objects", "digests")
            },
        }

    def _compute_starts(self, num_parts: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return rank and tie with which each part but the first begins, from a sample of what is kept."""
        if num_parts < 2:
            return None
        samples = [record.facts["sample"] for record in self.kept]
        rank = np.array([value for ranks, _ in samples for value in ranks])
        tie = np.array([value for _, ties in samples for value in ties], np.uint64)
        order = np.lexsort((tie, -rank))
        starts = order[np.arange(1, num_parts) * len(order) // num_parts]
        return rank[starts], tie[starts]

    def _take_kept(self, records: list[StepRecord]) -> None:
        self.kept += [record for record in records if "kept" in record.outputs]

    def _step(
        self, step: str, tasks: list[StepTask], spec: StepSpec, used: list[StepRecord] | None = None
    ) -> list[StepRecord]:
        """Do the tasks of a step that are not done, add up their results, and delete what they have used."""
        outcome = run_step(
            functools.partial(do_task, step=step, spec=spec),
            {task.name: task for task in tasks},
            StepRecords(self.output.step_folder(step), self.output.scratch, self.runner.lease.mark),
            self.runner,
            keep=StepRecord.from_dict,
        )
        self.computed += outcome.num_run
        if outcome.failures:
            failure = next(iter(outcome.failures.values()))
            if failure.kind == InputError.__name__:
                raise InputError(failure.reason)
            raise StepError(f"{len(outcome.failures):,} tasks failed at step {step}: {failure.reason}")
        for record in outcome.records:
            self.tally.merge(record.tally)
        kept = {record.outputs["kept"]["uri"] for record in self.kept} if step != "fetch" else set()
        sent = [rows["uri"] for record in used or [] for rows in record.outputs.values()]
        storage.delete_objects([uri for uri in sent if uri not in kept])
        return outcome.records

    def _finish(self, objects: dict[str, Any]) -> Selected:
        """Write the marks and the numbers, and `result.json` last."""
        self.runner.lease.check(fresh=True)
        seconds = time.time() - self.started
        numbers = {
            **self._summarize(),
            "fingerprint": hash_fingerprint(self.settings),
            "settings": {name: value for name, value in self.settings.items() if name != "inputs"},
            "versions": read_versions(),
            "run": {
                "seconds": round(seconds, 3),
                "pairs_per_second": round(self.scored.num_rows / seconds, 1),
                "tasks": self.computed,
            },
            **objects,
        }
        for kind in self.job.formats:
            success = storage.join_uri(self.output.data_folder(kind), "_SUCCESS")
            self.output.write_guarded(success, b"", functools.partial(self.runner.lease.check, fresh=True))
        self.output.write_own("job.yaml", storage.seal_text(self.job.to_yaml()))
        self.output.write_json("result.json", numbers)
        storage.delete_folder(self.output.at("steps"))
        self.output.clear_scratch()
        return Selected("complete", numbers)

    def _summarize(self) -> dict[str, Any]:
        """Return the numbers of the selection so far, as JSON values; labelled pairs estimate its precision and recall."""
        least = {kind: getattr(self.rules, name) for name, kind in LOOKS_AT.items()}
        return {
            "lang_pair": self.name,
            **self.tally.summarize(self.rules),
            **(self.labelled.estimate(least) if self.labelled is not None else {}),
            "unscored_reasons": self.reasons,
            "calibration": {name: curve.summarize() for name, curve in self.curves.items()},
            "rules": self.rules.define(),
        }


def _make_tasks(records: list[StepRecord], name: str, num_buckets: int) -> list[StepTask]:
    """Return the tasks of the next step, one a bucket, with the slices that earlier tasks left for it."""
    sent = (record.outputs[name] for record in records if name in record.outputs)
    return [StepTask(bucket, slices) for bucket, slices in enumerate(collect_slices(sent, num_buckets))]


def _join_known(records: list[StepRecord]) -> LabelledScores:
    return LabelledScores.join([record.facts["known"] for record in records if "known" in record.facts])


def _count_rows(records: list[StepRecord], name: str) -> int:
    return sum(record.outputs[name]["rows"] for record in records if name in record.outputs)


def _add_up(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Return the most frequent of what was counted."""
    total: Counter[str] = Counter()
    for numbers in counts:
        total.update(numbers)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))[:LISTED_REASONS])
