"""The selection of one language pair: its steps in their order, from scored parts to delivered files.

Takes what is scored of the pair and a job, gives what came of it as the numbers of `result.json`. A step that an earlier run
has done is not done again; what a step has used is deleted behind it. Knows nothing of other language pairs.
"""

import functools
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from rerank_actor import storage
from rerank_actor.bitext.selection.calibration import Curve, calibrate, estimate_share
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.bitext.selection.labelled_pairs import LabelledPairs
from rerank_actor.bitext.selection.output import SelectOutput
from rerank_actor.bitext.selection.rules import STEPS, SelectionRules
from rerank_actor.bitext.selection.scored import Columns, ScoredPair, name_columns
from rerank_actor.bitext.selection.steps import SAMPLES_PER_PART, Slices, StepSpec, StepTask, do_task
from rerank_actor.bitext.selection.tally import SelectionTally
from rerank_actor.bitext.selection.writers import ADDED, rename_taken
from rerank_actor.errors import InputError, RerankError
from rerank_actor.fingerprint import hash_fingerprint
from rerank_actor.outputs.manifest import find_versions
from rerank_actor.outputs.scored import compare_fingerprints, open_parquet
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.runtime.background import follow
from rerank_actor.runtime.connection import Connection, SignalWatch
from rerank_actor.storage.lease import Lease

LISTED_REASONS = 50
PASSED = {
    "threshold": "combined",
    "forward_threshold": "forward",
    "backward_threshold": "backward",
    "margin": "margin",
    "ratio_margin": "ratio margin",
}  # which values of known pairs a threshold looks at

Record = dict[str, Any]
Connect = Callable[[], tuple[SignalWatch, Connection]]


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
    """The selection of one language pair, which holds the lease."""

    def __init__(
        self,
        scored: ScoredPair,
        job: SelectJob,
        known: LabelledPairs | None,
        output: SelectOutput,
        settings: dict[str, Any],
        lease: Lease,
        connect: Connect,
        reporter: Reporter,
    ) -> None:
        self.scored, self.job, self.known, self.output, self.settings = scored, job, known, output, settings
        self.lease, self.connect, self.reporter = lease, connect, reporter
        self.name = scored.pair.name
        self.started = time.time()
        self.tally = SelectionTally()
        self.rules = job.rules()
        self.curves: dict[str, Curve] = {}
        self.beside: dict[str, np.ndarray] | None = None  # scores and labels of known pairs that are no candidates
        self.kept: list[Record] = []
        self.samples: list[list[list[float]]] = []
        self.computed = 0  # tasks of this run

    def execute(self) -> Selected:
        """Take the steps that are not done, and write down what came of it."""
        spec = self._make_spec()
        self._check_columns(spec.columns)
        self.output.write_json("settings.json", self.settings)
        self.reporter.say(f"{self.name}: selecting from {self.scored.num_rows:,} scored pairs")
        try:
            objects = self._deliver(self._align(self._score(spec)))
        except StepError as error:
            self.reporter.say(f"{self.name}: {error}")
            return Selected("failed", failure=str(error))
        return self._finish(objects)

    def look(self) -> Selected:
        """Take the steps that known pairs need, and no more."""
        self.reporter.say(f"{self.name}: looking for known pairs among {self.scored.num_rows:,} scored ones")
        spec = replace(self._make_spec(), waits=True)
        self._check_columns(spec.columns)
        try:
            self._score(spec, apply=False)
        except StepError as error:
            return Selected("failed", failure=str(error))
        return Selected("calibrated", self._tell())

    def _make_spec(self) -> StepSpec:
        schema, columns = self._look_at_first()
        return StepSpec(
            output=self.output,
            parts=self.scored.parts,
            columns=columns,
            pair=self.scored.pair,
            rules=self.rules,
            known=self.known,
            num_buckets=max(1, -(-self.scored.num_rows // self.job.bucket_rows)),
            num_units=len(self.scored.units),
            waits=self.job.is_calibrated,
            sampled=max(1, self.job.part_rows // SAMPLES_PER_PART),
            formats=tuple(self.job.formats),
            schema=schema,
            environment=storage.capture_environment(),
        )

    def _look_at_first(self) -> tuple[pa.Schema, Columns]:
        """Return the schema of delivered rows and the columns to read."""
        if not self.scored.parts:
            raise InputError(f"{self.name}: has no scored part")
        part = self.scored.parts[0]
        file = open_parquet(part)
        try:
            schema = file.schema_arrow
        finally:
            file.close()
        columns = name_columns(self.job, schema, part.uri)
        delivered = rename_taken(schema.remove_metadata().empty_table()).schema
        return pa.schema([*delivered, *(pa.field(name, kind) for name, kind in ADDED.items())]), columns

    def _check_columns(self, columns: Columns) -> None:
        """Refuse rules that look at what is not there."""
        uri = self.scored.parts[0].uri
        for name in ("forward", "backward"):
            is_there = getattr(columns, name) == f"{name}_logit"
            if getattr(self.rules, f"{name}_threshold") is not None and not is_there:
                raise InputError(
                    f"{uri}: has no score {name} (`{name}_logit`) that --{name}-threshold could look at; score that direction, "
                    "or leave the flag out",
                    uri=uri,
                )
        if self.rules.needs_cosines and columns.cosine is None:
            raise InputError(
                f"{uri}: has no column `candidate_score`, of which --ratio-margin and --rank-by ratio are made; give the "
                "candidate generator's cosines to jobs.bitext (--score-column)",
                uri=uri,
            )

    def _score(self, spec: StepSpec, *, apply: bool = True) -> tuple[StepSpec, list[Record]]:
        """Read, drop duplicates, compute margins, calibrate, and apply the thresholds if that is wanted."""
        targets = self._look_at_sides(spec)
        if self.known is not None:
            self._calibrate(_gather_known(targets))
        if not spec.waits or not apply:
            return spec, targets
        spec = replace(spec, rules=self.rules, waits=False)
        return spec, self._step("filter", self._gather(targets, "pairs", spec.num_buckets), spec, targets)

    def _look_at_sides(self, spec: StepSpec) -> list[Record]:
        """Read, drop duplicates and compute margins."""
        units = [StepTask(number, runs=unit) for number, unit in enumerate(self.scored.units)]
        read = self._step("read", units, spec)
        fingerprints = {key or None: uri for record in read for key, uri in record["fingerprints"].items()}
        try:
            compare_fingerprints(fingerprints, allow_mixed=False)
        except InputError:
            raise InputError(
                f"{self.name}: its parts were scored in different ways (fingerprints {', '.join(map(str, fingerprints))}), so "
                "that their scores may not be comparable; select from each by itself"
            ) from None
        self.fingerprints = set(fingerprints)
        self.reasons = _add_up(record["reasons"] for record in read)
        if self.tally.counts["rows"] == self.tally.removed["unscored"]:
            self.reporter.say(
                f"{self.name}: none of {self.tally.counts['rows']:,} rows has a score (column `error` says why), so that "
                "nothing can be selected"
            )
        found = self._step("duplicates", self._gather(read, "pairs", spec.num_buckets), spec, read)
        found = self._step("sources", self._gather(found, "pairs", spec.num_buckets), spec, found)
        return self._step("targets", self._gather(found, "pairs", spec.num_buckets), spec, found)

    def _calibrate(self, values: dict[str, np.ndarray]) -> None:
        """Trace the curves of known pairs, and take thresholds from them where they are asked for."""
        labels = values.pop("labels", np.zeros(0))
        right, wrong = int((labels == 1).sum()), int((labels == 0).sum())
        self.reporter.say(
            f"{self.name}: {right:,} known right and {wrong:,} known wrong pairs are among its candidates"
        )
        if not (right and wrong) and self.scored.beside is not None:
            values = self._look_beside(self.scored.beside)
            labels = values.pop("labels", np.zeros(0))
            right, wrong = int((labels == 1).sum()), int((labels == 0).sum())
            self.reporter.say(
                f"{self.name}: {right:,} known right and {wrong:,} known wrong pairs were scored beside them"
            )
            self.beside = {**values, "labels": labels}
        self.tally.counts.update({"known_right": right, "known_wrong": wrong})
        self.curves = calibrate(values, labels)
        for flag, kind in (("threshold", "combined"), ("margin", "margin")):
            if getattr(self.job, flag) != "auto" or self.job.calibrate_only:
                continue
            if kind not in self.curves:
                raise StepError(
                    f"--{flag} auto: {right:,} known right and {wrong:,} known wrong pairs are among the scored ones, and both "
                    "are needed; give more known pairs of this language pair with their labels, also to the command that "
                    "scores (--input), which scores those that are no candidates; or give a number"
                )
            best = float(self.curves[kind].thresholds[self.curves[kind].best])
            self.rules = (
                replace(self.rules, threshold=best) if flag == "threshold" else replace(self.rules, margin=best)
            )
            self.reporter.say(f"{self.name}: --{flag} {best:.6g} has the best F1 on known pairs")

    def _look_beside(self, scored: ScoredPair) -> dict[str, np.ndarray]:
        """Return the scores of known pairs that are no candidates; their rivals are the known pairs of the same sides."""
        output = SelectOutput(storage.join_uri(self.output.uri, "_select", "known"), self.output.pair)
        run = LanguagePairSelection(scored, self.job, self.known, output, {}, self.lease, self.connect, QuietReporter())
        output.clear()
        try:
            values = _gather_known(run._look_at_sides(replace(run._make_spec(), waits=True)))
        finally:
            output.clear()
        if run.fingerprints != self.fingerprints:
            raise InputError(
                f"{self.name}: its known pairs were scored in another way than its candidates (fingerprints "
                f"{', '.join(map(str, run.fingerprints | self.fingerprints))}); score both with one command",
                uri=scored.parts[0].uri,
            )
        return values

    def _tell_beside(self) -> dict[str, Any]:
        """Return what the thresholds make of known pairs that are no candidates, in place of those that are."""
        if self.beside is None:
            return {}
        right = self.beside["labels"] == 1
        passes = np.ones(len(right), bool)
        for name, kind in PASSED.items():
            least = getattr(self.rules, name)
            if least is not None and kind in self.beside:
                passes &= self.beside[kind] >= least
        kept = int((passes & right).sum())
        return {
            "estimated_precision": estimate_share(kept, int(passes.sum())),
            "estimated_recall": estimate_share(kept, int(right.sum())),
        }

    def _align(self, found: tuple[StepSpec, list[Record]]) -> StepSpec:
        """Take the steps of the mode; `kept` is then known."""
        spec, records = found
        mode, num = spec.rules.mode, spec.num_buckets
        self._take_kept(records)
        if mode in ("forward", "intersection"):
            self._take_kept(self._step("choose", self._gather(records, "alive", num), spec, records))
        elif mode == "greedy":
            turn = 0
            while (alive := _count_rows(records, "alive")) > self.job.local_rows and num > 1:
                turn += 1
                sources = self._step(f"match_sources-{turn:04d}", self._gather(records, "alive", num), spec, records)
                self._take_kept(sources)
                gathered = self._gather(sources, "alive", num)
                records = self._step(f"match_targets-{turn:04d}", gathered, spec, sources)
                self._take_kept(records)
            if alive:
                slices = [one for task in self._gather(records, "alive", num) for one in task.slices]
                self._take_kept(self._step("match", [StepTask(0, slices)], spec, records))
        return spec

    def _deliver(self, spec: StepSpec) -> dict[str, int]:
        """Fetch the texts of what is kept, and write the files; returns their sizes by URI."""
        number = -(-self.tally.counts["kept"] // self.job.part_rows)
        spec = replace(spec, rules=self.rules, num_parts=max(1, number), starts=self._find_starts(number))
        units = self._gather(self.kept, "kept", spec.num_units)
        tasks = [replace(task, runs=self.scored.units[task.number]) for task in units if task.slices]
        fetched = self._step("fetch", tasks, spec, self.kept)
        written = self._step("write", self._gather(fetched, "rows", spec.num_parts), spec)
        return {uri: size for record in written for uri, size in record["objects"].items()}

    def _find_starts(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return rank and tie with which each part but the first begins, from a sample of what is kept."""
        if number < 2:
            return None
        rank = np.array([value for sample in self.samples for value in sample[0]])
        tie = np.array([value for sample in self.samples for value in sample[1]], np.uint64)
        order = np.lexsort((tie, -rank))
        places = np.arange(1, number) * len(order) // number
        return rank[order[places]], tie[order[places]]

    def _take_kept(self, records: list[Record]) -> None:
        self.kept += [record for record in records if "kept" in record["outputs"]]
        self.samples += [record["sample"] for record in records if "sample" in record]

    def _gather(self, records: list[Record], name: str, num_buckets: int) -> list[StepTask]:
        """Return the tasks of the next step, one a bucket, with the slices that earlier tasks left for it."""
        slices: list[Slices] = [[] for _ in range(num_buckets)]
        for record in records:
            if name in record["outputs"]:
                one = record["outputs"][name]
                for bucket, (start, end) in enumerate(itertools.pairwise(one["places"].tolist())):
                    if end > start:
                        slices[bucket].append((one["uri"], one["size"], start, end))
        return [StepTask(bucket, own) for bucket, own in enumerate(slices)]

    def _step(self, step: str, tasks: list[StepTask], spec: StepSpec, used: list[Record] | None = None) -> list[Record]:
        """Do the tasks of a step that are not done, add up what all of them came to, and delete what they have used."""
        records = {number: _shrink(record) for number, record in self.output.read_steps(step).items()}
        left = [task for task in tasks if task.number not in records]
        failures: list[Record] = []
        if left:
            self.computed += len(left)

            def take(done: tuple[int, Record]) -> None:
                number, record = done
                if "failure" in record:
                    failures.append(record)
                else:
                    records[number] = _shrink(record)

            follow(run_step(step, left, spec), take, *self.connect(), self.lease)
        if failures:
            if failures[0]["kind"] == InputError.__name__:
                raise InputError(failures[0]["failure"])
            raise StepError(f"{len(failures):,} tasks failed at step {step}: {failures[0]['failure']}")
        found = [records[task.number] for task in tasks]
        for record in found:
            self.tally.merge(SelectionTally.from_dict(record["tally"]))
        kept = {one["outputs"]["kept"]["uri"] for one in self.kept} if step != "fetch" else set()
        spent = [one["uri"] for record in used or [] for one in record["outputs"].values() if one["uri"] not in kept]
        storage.delete_objects(spent)
        return found

    def _finish(self, objects: dict[str, int]) -> Selected:
        """Write the marks and the numbers, and `result.json` last."""
        self.lease.check(fresh=True)
        seconds = time.time() - self.started
        numbers = {
            **self._tell(),
            "fingerprint": hash_fingerprint(self.settings),
            "settings": {name: value for name, value in self.settings.items() if name != "inputs"},
            "versions": find_versions(),
            "run": {
                "seconds": round(seconds, 3),
                "pairs_per_second": round(self.scored.num_rows / seconds, 1),
                "tasks": self.computed,
            },
            "objects": objects,
        }
        for kind in self.job.formats:
            storage.write_bytes(storage.join_uri(self.output.data_folder(kind), "_SUCCESS"), b"")
        job = self.job.model_dump(mode="json", exclude={"reselect"})
        text = yaml.safe_dump(job, sort_keys=False, allow_unicode=True)
        storage.write_bytes(self.output.at("job.yaml"), text.encode(), scratch=self.output.scratch)
        self.output.write_json("result.json", numbers)
        storage.delete_folder(self.output.at("steps"))
        self.output.clear_scratch()
        return Selected("complete", numbers)

    def _tell(self) -> dict[str, Any]:
        """Return what is known of the pairs by now, as JSON values."""
        return {
            "lang_pair": self.name,
            **summarize(self.tally, self.rules),
            **self._tell_beside(),
            "unscored_reasons": self.reasons,
            "calibration": {name: curve.summarize() for name, curve in self.curves.items()},
            "rules": self.rules.define(),
        }


def _gather_known(records: list[Record]) -> dict[str, np.ndarray]:
    """Return the scores of known pairs by kind, and their `labels`; a margin without rivals is above every threshold."""
    told = [record["known"] for record in records if "known" in record]
    values = {name: np.array([value for one in told for value in one[name]], float) for name in told[0]} if told else {}
    labels = values.pop("labels", np.zeros(0))
    return {
        "labels": labels,
        **{
            name: np.where(np.isnan(own), np.inf if name == "margin" else -np.inf, own)
            for name, own in values.items()
            if name == "margin" or not np.isnan(own).all()
        },
    }


def _shrink(record: Record) -> Record:
    """Return a record that holds its many places as an array."""
    for one in record["outputs"].values():
        one["places"] = np.array(one["places"], np.int64)
    return record


def _count_rows(records: list[Record], name: str) -> int:
    return sum(record["outputs"][name]["rows"] for record in records if name in record["outputs"])


def _add_up(counts: Iterator[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in counts:
        for name, number in one.items():
            found[name] = found.get(name, 0) + number
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:LISTED_REASONS])


def summarize(tally: SelectionTally, rules: SelectionRules) -> dict[str, Any]:
    """Return what a selection came to, as JSON values."""
    left, funnel = tally.counts["rows"], []
    for step, words in STEPS.items():
        if removed := tally.removed[step]:
            left -= removed
            told = f"{words} {rules.mode}" if step == "mode" else words
            funnel.append({"step": told, "removed": removed, "left": left})
    right, wrong = tally.counts["kept_right"], tally.counts["kept_wrong"]
    return {
        "counts": dict(sorted(tally.counts.items())),
        "funnel": funnel,
        "mean_score": {name: tally.find_mean(name) for name in ("candidates", "kept")},
        "space": rules.space,
        "bins": {
            name: {str(number): count for number, count in sorted(own.items())} for name, own in tally.bins.items()
        },
        "estimated_precision": estimate_share(right, right + wrong),
        "estimated_recall": estimate_share(right, tally.counts["known_right"]),
    }


Done = tuple[int, dict[str, Any]]


def run_step(step: str, tasks: Sequence[StepTask], spec: StepSpec) -> Generator[Done]:
    """Do the tasks of a step; yields the number of each with its record, or with its failure, in no order."""
    work = functools.partial(do_task, step=step, spec=spec)
    from rerank_actor.runtime.tasks import run_tasks

    for place, record in run_tasks(work, tasks, spec.environment):
        yield tasks[place].number, record
