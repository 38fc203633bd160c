"""Mining: from a `MineJob` to training data, and on again after whatever ended it.

`mine_scores` is the order of things: preflight, lease, survey, units, buckets, report. It knows the order and the words
for the user; how each step works is known elsewhere.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.errors import InputError, RerankError
from rerank_actor.inputs.listing.partitions import NULL
from rerank_actor.mining.by_column.values import check_values, merge_most, name_folder
from rerank_actor.mining.examples import Teacher
from rerank_actor.mining.formats import CORPUS, describe_corpus, describe_dataset, describe_saved
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.judging.suspects import FOLDER as SUSPECTS
from rerank_actor.mining.judging.suspects import make_schema
from rerank_actor.mining.judging.suspects_file import delete_untouched, deliver_suspects
from rerank_actor.mining.judging.verdicts import RULES_OF_VERDICTS
from rerank_actor.mining.output import CARD, restore_plan, store_plan
from rerank_actor.mining.preflight import PreparedMining, look_again, prepare_mining, refuse_older
from rerank_actor.mining.random_negatives import draw_pool, join_judged, pack_pool
from rerank_actor.mining.report import (
    explain_empty,
    list_remarks,
    render_report,
    summarize,
    summarize_values,
    tabulate_sets,
)
from rerank_actor.mining.rules import define_values
from rerank_actor.mining.scored import APART
from rerank_actor.mining.survey import (
    MiningPlan,
    MiningUnit,
    count_unknown,
    plan_units,
    refuse_ids_of_two_questions,
    require_pairs,
    survey_parts,
)
from rerank_actor.mining.tally import MiningTally
from rerank_actor.mining.unit import MiningSpec, count_positives, mine_bucket, mine_unit
from rerank_actor.outputs.manifest import read_versions
from rerank_actor.outputs.report.provenance import describe_scoring
from rerank_actor.outputs.scored import compare_fingerprints
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.runtime.connection import connect_ray, watch_signals
from rerank_actor.runtime.steps import StepRecords, TaskRunner, run_step
from rerank_actor.runtime.task_report import TaskFailure
from rerank_actor.scoring.lookups import make_lookup
from rerank_actor.storage.exchange import collect_slices
from rerank_actor.storage.lease import Lease, hold_lease, make_run_id

LINE_SECONDS = 10.0
LEAST_PAIR_BYTES = 32  # stored, of a scored pair without texts
MB = 2**20


@dataclass
class MineResult:
    """How a mining ended.

    Attributes:
        status: `complete`, or `failed` when units are missing.
        tally: of all committed units.
        failed: why each missing unit failed, by name.
        table: a row for each rule set of `--what-if`; empty where nothing was compared.
        run: figures of this run alone.
    """

    status: str
    tally: MiningTally
    failed: dict[str, str]
    table: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)


def mine_scores(job: MineJob, reporter: Reporter | None = None) -> MineResult:
    """Mine everything that the job names and that is not yet committed.

    Returns:
        What was mined. `status` is `failed` when some units failed; the rest is committed.

    Raises:
        JobError: the job, its input or its rules are wrong; no row was written.
        OutputConflictError: the output holds something else, or another run is writing to it.
        RunInterruptedError: a signal stopped the run; everything committed stays.
    """
    reporter = reporter or QuietReporter()
    prepared = prepare_mining(job)
    with hold_lease(prepared.output.lease_uri, prepared.output.uri, make_run_id(), reporter.info) as lease:
        run = _Run(look_again(prepared), lease, reporter)
        return run.compare() if job.what_if else run.execute()


class _Run:
    """One run that holds the lease."""

    def __init__(self, prepared: PreparedMining, lease: Lease, reporter: Reporter) -> None:
        self.prepared, self.job, self.output = prepared, prepared.job, prepared.output
        self.lease, self.reporter = lease, reporter
        self.failed: dict[str, str] = {}
        self.records: dict[str, dict[str, Any]] = {}  # of committed units, without their tallies
        self.tallies = {name: MiningTally(rules.space) for name, rules in prepared.rule_sets.items()}
        self.started, self.said = time.time(), time.monotonic()
        self.total = 0  # units and buckets

    def execute(self) -> MineResult:
        """Mine what is not committed, and write down how it went."""
        if self.prepared.replaces:
            if self.job.suspects is not None:
                delete_untouched(self.output, self.job.suspects)
            self.output.clear()
        self.output.clear_scratch()
        stored = self.prepared.stored
        plan = restore_plan(self.output, stored) if stored is not None else None
        if plan is not None and stored is not None:
            self._load_committed(plan)
            if len(self.records) == len(plan.units) + plan.num_buckets:
                self.reporter.info(f"{len(self.records):,} units, all committed already; output {self.output.uri}")
                return self._finish(plan, mined_pairs=0)
            refuse_older(self.output, stored)
        before = self.tallies["as given"].counts["pairs"]
        storage.delete_objects([self.output.success_uri])
        with self._connect() as runner:
            self._index_texts(runner, "stores")
            if plan is None:
                plan = self._survey(runner)
                self.lease.check(fresh=True)
                store_plan(self.output, self.prepared.settings, plan)
            self._write_definition()
            spec = replace(self._make_spec(plan, "shuffle"), pool=self._draw_pool(runner))
            self._mine(plan, spec, replace(self.output.records, lease=self.lease.mark), runner)
        return self._finish(plan, mined_pairs=self.tallies["as given"].counts["pairs"] - before)

    def compare(self) -> MineResult:
        """Fill the table of `--what-if` from one pass over the scores; no training data are written."""
        storage.delete_folder(self.output.at("what-if"))
        try:
            with self._connect() as runner:
                self._index_texts(runner, "what-if/stores")
                plan = self._survey(runner)
                spec = replace(self._make_spec(plan, "what-if/shuffle"), only_tally=True)
                self._mine(plan, spec, None, runner)
            if contradiction := self._find_contradiction(plan):
                raise InputError(contradiction)
        finally:
            with contextlib.suppress(RerankError):
                storage.delete_folder(self.output.at("what-if"))
        table = tabulate_sets(self.tallies)
        self.output.write_json("what-if.json", {"sets": table, "fingerprint": self.prepared.fingerprint})
        status = "failed" if self.failed else "complete"
        return MineResult(status, self.tallies["as given"], self.failed, table, self._time(plan.totals["pairs"]))

    @contextlib.contextmanager
    def _connect(self) -> Iterator[TaskRunner]:
        with watch_signals() as watch, connect_ray(self.job, watch) as connection:
            yield TaskRunner(lambda: connection, self.lease, storage.capture_environment())

    def _index_texts(self, runner: TaskRunner, folder: str) -> None:
        """Make the stores of the texts that rows name by id, those that are not there yet."""
        scored = self.prepared.scored
        lookups = []
        for source in scored.sources:
            self.reporter.info(
                f"{source.flag}: indexing {source.num_bytes:,} bytes of {len(source.objects):,} objects by id"
            )
            lookups.append(
                make_lookup(
                    source,
                    self.output.at(folder, f"{source.role}-{source.digest}"),
                    lambda work, items, _: runner.run_tasks(work, items),
                    sum(part.size for part in scored.parts) // LEAST_PAIR_BYTES,
                    self.output.scratch,
                    self.lease.check,
                )
            )
        self.prepared = replace(self.prepared, scored=scored.with_lookups(tuple(lookups)))

    def _draw_pool(self, runner: TaskRunner) -> str | None:
        """Draw what random negatives are taken from; None where none are wanted."""
        scored, rules = self.prepared.scored, self.prepared.rule_sets["as given"]
        if not rules.random_negatives:
            return None
        uri = self.output.at("pool.arrow")
        judged = join_judged(self.prepared.qrels, self.prepared.verdicts)
        pool = draw_pool(scored.parts, scored.columns, scored.sources, rules.seed, runner, judged)
        self.reporter.info(f"--random-negatives: drawn from {pool.num_rows:,} documents")
        storage.write_bytes(uri, pack_pool(pool), scratch=self.output.scratch)
        return uri

    def _survey(self, runner: TaskRunner) -> MiningPlan:
        """Look at all files once, and plan units and exchange."""
        scored, source = self.prepared.scored, self.prepared.source
        self.reporter.info(f"surveying {len(scored.parts):,} scored files")
        verdicts = self.prepared.verdicts
        surveys = survey_parts(scored.parts, scored.columns, self.prepared.qrels, runner, verdicts)
        fingerprints = {survey.fingerprint: scored.parts[survey.part].uri for survey in surveys}
        if not self.job.allow_mixed_scores and self.job.combine == "none":
            compare_fingerprints(fingerprints, "--scored", APART)
        refuse_ids_of_two_questions(surveys, scored.parts, scored.columns, self.prepared.qrels, verdicts)
        plan = plan_units(surveys, int(self.job.unit_mb * MB))
        totals = plan.totals
        totals["unknown_verdicts"] = count_unknown(surveys, verdicts, allowed=self.job.allow_unknown_verdicts)
        require_pairs(plan, scored.columns, source)
        if source:
            threshold = (
                "" if self.job.positive_labels else f" (from {scored.columns.min_relevance:g} on, --min-relevance)"
            )
            self.reporter.info(
                f"{source}: {totals['positives']:,} of {totals['pairs']:,} pairs are positive{threshold}"
            )
        if scored.columns.by is not None:
            values = [value for survey in surveys for value in survey.values]
            check_values(scored.columns.by, values, self.job.rules_by_value)
        if totals["unscored"]:
            self.reporter.info(
                f"column `{scored.columns.spaces[0]}`: {totals['unscored']:,} rows have no score (column `error` says why), "
                f"{totals['unscored_positives']:,} of them positive; they are left out"
            )
        moved = f", {plan.num_buckets:,} more for queries that lie in several" if plan.num_buckets else ""
        self.reporter.info(
            f"{totals['pairs']:,} scored pairs in {len(plan.units):,} units{moved}; output {self.output.uri}"
        )
        return plan if source or verdicts is not None else replace(plan, max_positives=1)

    def _make_spec(self, plan: MiningPlan, shuffle_folder: str) -> MiningSpec:
        job, prepared = self.job, self.prepared
        return MiningSpec(
            output=self.output,
            parts=prepared.scored.parts,
            columns=prepared.scored.columns,
            rule_sets=prepared.rule_sets,
            max_positives=max(1, plan.max_positives or 0),
            split=plan.split,
            exchange=self.output.make_exchange(shuffle_folder, plan.num_buckets),
            qrels=prepared.qrels,
            teacher=Teacher(job.teacher, job.normalize, job.temperature),
            format=job.format,
            prompt=prepared.settings["prompt"],
            with_examples=job.examples > 0,
            combination=job.combination(),
            lease=self.lease.mark,
            verdicts=prepared.verdicts,
            with_suspects=job.suspects is not None,
            value_rules=job.value_rules(),
            max_by_value=plan.max_by_value,
        )

    def _mine(self, plan: MiningPlan, spec: MiningSpec, records: StepRecords | None, runner: TaskRunner) -> None:
        """Mine the units that are left, then the buckets, whose pairs are complete only when no unit failed."""
        self.total = len(plan.units) + plan.num_buckets
        run = functools.partial(
            run_step, records=records, runner=runner, keep=self._keep, done=self.records, on_failure=self._note_failure
        )
        units = run(functools.partial(mine_unit, spec=spec), {unit.name: unit for unit in plan.units})
        left = [bucket for bucket in plan.buckets if bucket.name not in self.records]
        if self.failed:
            self.failed |= {bucket.name: "waits for the units that failed" for bucket in left}
        if self.failed or not left:
            return
        shuffled = [record["shuffled"] for record in units.records if "shuffled" in record]
        slices = collect_slices(shuffled, plan.num_buckets)
        if plan.max_positives is None:
            count = functools.partial(count_positives, columns=spec.columns, qrels=spec.qrels, verdicts=spec.verdicts)
            names = [bucket.name for bucket in plan.buckets]  # committed ones too, so that a resume finds the same
            items = dict(zip(names, slices, strict=True))
            counted = run_step(count, items, None, runner, keep=dict)
            if counted.failures:
                reason = next(iter(counted.failures.values())).reason
                self.failed |= {bucket.name: reason for bucket in left}
                return
            spec = replace(spec, max_positives=max([1, *(one["most"] for one in counted.records)]))
            spec = replace(spec, max_by_value=merge_most(one["by_value"] for one in counted.records))
        buckets = {bucket.name: (bucket, slices[bucket.bucket or 0]) for bucket in left}
        run(functools.partial(mine_bucket, spec=spec), buckets)

    def _keep(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add a committed unit to the sums; the rest of its record is kept."""
        for name, tally in record["tallies"].items():
            added = MiningTally.from_dict(tally)
            self.tallies.setdefault(name, MiningTally(added.space)).merge(added)
        kept = {name: value for name, value in record.items() if name != "tallies"}
        self.records[record["unit"]] = kept
        self._report_progress()
        return kept

    def _note_failure(self, unit: str, failure: TaskFailure) -> None:
        self.failed[unit] = failure.reason
        self.reporter.info(f"unit {unit} failed: {failure.reason}")
        self._report_progress()

    def _report_progress(self) -> None:
        """Say now and then how many units are committed."""
        if self.total and time.monotonic() - self.said >= LINE_SECONDS:
            self.said = time.monotonic()
            self.reporter.info(f"{len(self.records):,} of {self.total:,} units")

    def _load_committed(self, plan: MiningPlan) -> None:
        """Take up the records of an earlier run whose objects are as they were written."""
        listed = [*self.output.list_written(), *storage.list_objects(self.output.at("shuffle"))]
        sizes = {item.uri: item.size for item in listed}

        def load_sound(units: list[MiningUnit], *, with_shuffled: bool) -> None:
            for _, record in self.output.records.load({unit.name for unit in units}):
                if "objects" not in record:
                    continue
                objects = {storage.join_uri(self.output.uri, name): size for name, size in record["objects"].items()}
                if with_shuffled and "shuffled" in record:
                    objects[record["shuffled"]["uri"]] = record["shuffled"]["size"]
                if all(sizes.get(uri) == size for uri, size in objects.items()):
                    self._keep(record)

        load_sound(plan.buckets, with_shuffled=False)
        load_sound(plan.units, with_shuffled=len(self.records) < plan.num_buckets)

    def _time(self, pairs: int) -> dict[str, Any]:
        seconds = time.time() - self.started
        return {"seconds": round(seconds, 3), "pairs": pairs, "pairs_per_second": round(pairs / seconds, 1)}

    def _write_definition(self) -> None:
        rules = self.prepared.rule_sets["as given"]
        settings = {name: value for name, value in self.prepared.settings.items() if name != "inputs"}
        definition = {
            "fingerprint": self.prepared.fingerprint,
            "definition": rules.define()
            | (RULES_OF_VERDICTS if self.prepared.verdicts is not None else {})
            | define_values(rules, self.job.value_rules(), self.job.by),
            "settings": settings,
            "teachers": [describe_scoring(uri) for uri in self.job.scored],
        }
        self.output.write_json("definition.json", {**definition, "versions": read_versions()})
        self.output.write_own("job.yaml", storage.seal_text(self.job.model_copy(update={"overwrite": False}).to_yaml()))

    def _finish(self, plan: MiningPlan, mined_pairs: int) -> MineResult:
        """Add up, say what is remarkable, write the report, and `_SUCCESS` last."""
        self.lease.check(fresh=True)
        tally, rules = self.tallies["as given"], self.prepared.rule_sets["as given"]
        joined = tally.counts["pairs_without_a_score"] if self.job.combine != "none" else None
        tally.removed["unscored"] = plan.totals["unscored"] if joined is None else joined
        tally.counts["unscored_positives"] = plan.totals["unscored_positives"]
        if self.prepared.verdicts is not None:
            tally.counts["verdicts_unknown"] = plan.totals.get("unknown_verdicts", 0)
            tally.counts["verdicts_open"] = self.prepared.verdicts.num_open
        if (qrels := self.prepared.qrels) is not None:
            others = pc.count_distinct(qrels["query_id"]).as_py() - tally.counts["judged_queries"]
            tally.counts["judged_queries_without_candidates"] = max(0, others)
        status = "failed" if self.failed else "complete"
        result = MineResult(status, tally, self.failed, run=self._time(mined_pairs))
        for remark in list_remarks(tally, self.job, rules, self.prepared.source):
            self.reporter.info(remark)
        if nulls := self.tallies.get(f"by {NULL}"):
            self.reporter.info(
                f"--by {self.job.by}: {nulls.counts['pairs']:,} pairs of {nulls.counts['queries']:,} queries have no value; "
                f"they are in {name_folder(self.job.by or '', NULL)}"
            )
        if contradiction := self._find_contradiction(plan):
            self.output.clear()
            raise InputError(contradiction)
        if status == "complete" and not tally.counts["negatives"]:
            self.output.clear()  # so that it is free for others
            raise InputError(f"the rules leave no negative: {explain_empty(tally)}")
        numbers = summarize(tally, rules, examples=self.job.examples)
        numbers |= summarize_values(self.tallies, rules, self.job.value_rules())
        numbers |= {
            "status": status,
            "fingerprint": self.prepared.fingerprint,
            "run": result.run,
            "failed": self.failed,
        }
        about = {"from": ", ".join(self.job.scored), "as": self.job.format, "fingerprint": self.prepared.fingerprint}
        self.output.write_json("report.json", numbers)
        self.output.write_own("report.html", render_report(numbers, about).encode())
        if status == "complete":
            self._write_suspects()
            self._complete(plan)
        return result

    def _write_suspects(self) -> None:
        """Put the suspects of all units into the file that they were asked for in."""
        if self.job.suspects is None:
            return
        folder = f"{self.output.own_folder}/{SUSPECTS}/"
        names = sorted(
            name for record in self.records.values() for name in record["objects"] if name.startswith(folder)
        )
        pieces = [storage.join_uri(self.output.uri, name) for name in names]
        done = deliver_suspects(self.output, pieces, make_schema(self.prepared.scored.columns), self.job.suspects)
        self.reporter.info(f"--suspects {self.job.suspects}: {done}")

    def _describe_saved(self, written: list[str], folders: set[str]) -> None:
        """Make each folder of Arrow files one that `load_from_disk` reads."""
        for folder in sorted(folders):
            names = [name[len(folder) :] for name in written if name.startswith(folder)]
            names = [name for name in names if name.endswith(".arrow") and "/" not in name]  # once it was JSON lines
            for name, data in describe_saved(names, self.prepared.fingerprint).items() if names else ():
                storage.write_bytes(storage.join_uri(self.output.uri, folder + name), data)

    def _find_contradiction(self, plan: MiningPlan) -> str | None:
        """Return what is wrong where files that do not say what scored them give one pair two scores, as of two teachers."""
        counts = self.tallies["as given"].counts
        if unmatched := counts["pairs_unmatched"]:
            return (
                f"--combine: {unmatched:,} pairs are not in the outputs of all teachers; score the same pairs with each "
                "(pairs are the same by query, document and ids)"
            )
        if doubly := counts["texts_with_two_verdicts"]:
            return (
                f"--verdicts: {doubly:,} queries' documents of one text have two verdicts that differ, under several ids; "
                "leave one for each text"
            )
        number = counts["pairs_with_two_scores"]
        if not number or not plan.totals.get("unmarked") or self.job.allow_mixed_scores:
            return None
        return (
            f"--scored: {number:,} pairs have two scores, and the files do not say that one model gave both (they carry no "
            f"fingerprint); {APART}, which takes the better one"
        )

    def _complete(self, plan: MiningPlan) -> None:
        """Describe the data for those who load them, delete what is spent, and write `_SUCCESS` last."""
        uri = self.output.uri
        written = sorted(name for record in self.records.values() for name in record["objects"])
        folders = {name.partition("part-")[0] for name in written if not name.startswith(self.output.own_folder)}
        if self.job.format == "nemo":
            for folder in sorted(name for name in folders if CORPUS not in name):
                storage.write_bytes(storage.join_uri(uri, f"{folder}{CORPUS}/merlin_metadata.json"), describe_corpus())
        if self.job.format == "tevatron-distillation":
            self._describe_saved(written, folders)
        elif self.output.owns_card():
            values = [folder.rstrip("/") for folder in folders if folder] if self.job.by is not None else []
            card = describe_dataset(self.job.format, self.prepared.fingerprint, values)
            storage.write_bytes(storage.join_uri(uri, CARD), card.encode())
        self.output.make_exchange("shuffle", plan.num_buckets).delete()
        storage.delete_folder(self.output.at("stores"))
        storage.delete_objects([self.output.at("pool.arrow")])
        self.output.clear_scratch()
        self.output.write_guarded(self.output.success_uri, b"", functools.partial(self.lease.check, fresh=True))
