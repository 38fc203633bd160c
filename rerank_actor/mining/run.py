"""Mining: from a `MineJob` to training data, and on again after whatever ended it.

`mine_scores` is the order of things: preflight, lease, survey, units, buckets, report. It knows the order and the words
for the user; how each step works is known elsewhere.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import yaml

from rerank_actor import storage
from rerank_actor.errors import InputError, RerankError
from rerank_actor.mining.examples import Teacher
from rerank_actor.mining.formats import CORPUS, describe_corpus, describe_dataset
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.output import CARD, restore_layout, store_layout
from rerank_actor.mining.pairs import Columns
from rerank_actor.mining.preflight import PreparedMining, prepare_mining
from rerank_actor.mining.report import find_heaviest, render_report, summarize, tabulate_sets
from rerank_actor.mining.survey import MiningPlan, MiningUnit, Survey, plan_units, require_pairs, survey_parts
from rerank_actor.mining.tally import MiningTally
from rerank_actor.mining.unit import MiningSpec, count_bucket, mine_bucket, mine_unit
from rerank_actor.outputs.manifest import find_versions
from rerank_actor.outputs.scored import compare_fingerprints
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.runtime.background import follow
from rerank_actor.runtime.connection import Connection, SignalWatch, connect_ray, watch_signals
from rerank_actor.storage.lease import Lease, make_run_id

LINE_SECONDS = 10.0
LISTED_FAILURES = 20
MB = 2**20

Item = TypeVar("Item")


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
    run_id = make_run_id()
    lease = Lease(prepared.output.lease_uri, prepared.output.uri, run_id)
    lease.acquire(reporter.say)
    try:
        run = _Run(prepared, lease, reporter)
        return run.compare() if job.what_if else run.execute()
    finally:
        lease.release()


class _Run:
    """One run that holds the lease."""

    def __init__(self, prepared: PreparedMining, lease: Lease, reporter: Reporter) -> None:
        self.prepared, self.job, self.output = prepared, prepared.job, prepared.output
        self.lease, self.reporter = lease, reporter
        self.failed: dict[str, str] = {}
        self.records: dict[str, dict[str, Any]] = {}  # of committed units, without their tallies
        self.tallies = {name: MiningTally(rules.space) for name, rules in prepared.rule_sets.items()}
        self.started = time.time()
        self.environment = storage.capture_environment()

    def execute(self) -> MineResult:
        """Mine what is not committed, and write down how it went."""
        if self.prepared.replaces:
            self.output.clear()
        self.output.clear_scratch()
        stored = self.prepared.stored
        plan = restore_layout(self.output, stored) if stored is not None else None
        if plan is not None:
            self._find_committed(plan)
            left = len(plan.units) + plan.num_buckets - len(self.records)
            if not left:
                self.reporter.say(f"{len(self.records):,} units, all committed already; output {self.output.uri}")
                return self._finish(plan, mined_pairs=0)
        before = self.tallies["as given"].counts["pairs"]
        storage.delete_objects([self.output.success_uri])
        with watch_signals() as watch, connect_ray(self.job, watch) as connection:
            if plan is None:
                plan = self._survey(connection, watch)
                store_layout(self.output, self.prepared.settings, plan)
            self._write_definition()
            spec = self._make_spec(plan)
            self._mine(plan, spec, connection, watch)
        return self._finish(plan, mined_pairs=self.tallies["as given"].counts["pairs"] - before)

    def compare(self) -> MineResult:
        """Fill the table of `--what-if` from one pass over the scores; no training data are written."""
        storage.delete_folder(self.output.at("what-if"))
        try:
            with watch_signals() as watch, connect_ray(self.job, watch) as connection:
                plan = self._survey(connection, watch)
                spec = self._make_spec(plan)
                self._mine(plan, spec, connection, watch)
        finally:
            with contextlib.suppress(RerankError):
                storage.delete_folder(self.output.at("what-if"))
        table = tabulate_sets(self.tallies)
        self.output.write_json("what-if.json", {"sets": table, "fingerprint": self.prepared.fingerprint})
        status = "failed" if self.failed else "complete"
        return MineResult(status, self.tallies["as given"], self.failed, table, self._time(plan.totals["pairs"]))

    def _survey(self, connection: Connection, watch: SignalWatch) -> MiningPlan:
        """Look at all files once, and lay out units and shuffle."""
        scored = self.prepared.scored
        self.reporter.say(f"surveying {len(scored.parts):,} scored files")
        surveys: list[Survey] = []

        def take(found: list[Survey] | str) -> None:
            if isinstance(found, str):
                raise InputError(f"{found}; nothing was mined")
            surveys.extend(found)

        parts = survey_parts(scored.parts, scored.columns, self.prepared.qrels, self.environment)
        self._follow(parts, take, connection, watch)
        surveys.sort(key=lambda survey: (survey.part, survey.group))
        fingerprints = {survey.fingerprint: scored.parts[survey.part].uri for survey in surveys}
        compare_fingerprints(fingerprints, self.job.allow_mixed_scores)
        plan = plan_units(surveys, int(self.job.unit_mb * MB))
        require_pairs(plan, scored.columns, self.prepared.source)
        if not self.prepared.source:
            plan.max_positives = 1
        totals = plan.totals
        if totals["unscored"]:
            self.reporter.say(
                f"column `{scored.columns.spaces[0]}`: {totals['unscored']:,} rows have no score (column `error` says why), "
                f"{totals['unscored_positives']:,} of them positive; they are left out"
            )
        moved = f", {plan.num_buckets:,} more for queries that lie in several" if plan.num_buckets else ""
        self.reporter.say(
            f"{totals['pairs']:,} scored pairs in {len(plan.units):,} units{moved}; output {self.output.uri}"
        )
        return plan

    def _make_spec(self, plan: MiningPlan) -> MiningSpec:
        job, prepared = self.job, self.prepared
        compares = bool(job.what_if)
        return MiningSpec(
            output=self.output,
            parts=prepared.scored.parts,
            columns=prepared.scored.columns,
            rule_sets=prepared.rule_sets,
            max_positives=plan.max_positives or 0,
            split=plan.split,
            num_buckets=plan.num_buckets,
            qrels=prepared.qrels,
            teacher=Teacher(job.teacher, job.normalize, job.temperature),
            format=job.format,
            prompt=prepared.settings["prompt"],
            with_examples=job.examples > 0,
            only_tally=compares,
            folder="what-if/units" if compares else "units",
            shuffle_folder="what-if/shuffle" if compares else "shuffle",
            environment=self.environment,
        )

    def _mine(self, plan: MiningPlan, spec: MiningSpec, connection: Connection, watch: SignalWatch) -> None:
        """Mine the units that are left, then the buckets, whose pairs are complete only when no unit failed."""

        def take(done: tuple[MiningUnit, dict[str, Any]]) -> None:
            unit, report = done
            if "failure" in report:
                self.failed[unit.name] = report["failure"]
                self.reporter.say(f"unit {unit.name} failed: {report['failure']}")
            else:
                self._take_record(report)

        units = [unit for unit in plan.units if unit.name not in self.records]
        total = len(plan.units) + plan.num_buckets
        self._follow(mine_units(units, spec), take, connection, watch, total)
        buckets = [bucket for bucket in plan.buckets if bucket.name not in self.records]
        if self.failed:
            self.failed |= {bucket.name: "waits for the units that failed" for bucket in buckets}
            return
        slices = [self._find_slices(plan, bucket) for bucket in buckets]
        if plan.max_positives is None and buckets:
            most: list[int | str] = []
            self._follow(count_positives(slices, spec), most.append, connection, watch)
            if problems := [found for found in most if isinstance(found, str)]:
                self.failed |= {bucket.name: problems[0] for bucket in buckets}
                return
            plan.max_positives = max(found for found in most if isinstance(found, int))
            spec = self._make_spec(plan)
        self._follow(mine_buckets(list(zip(buckets, slices, strict=True)), spec), take, connection, watch, total)

    def _find_slices(self, plan: MiningPlan, bucket: MiningUnit) -> list[tuple[str, int, int, int]]:
        number = bucket.bucket or 0
        moved = [self.records[unit.name]["shuffled"] for unit in plan.units if "shuffled" in self.records[unit.name]]
        return [(one["uri"], one["size"], one["places"][number], one["places"][number + 1]) for one in moved]

    def _take_record(self, record: dict[str, Any]) -> None:
        """Add up what a committed unit came to; of its record the rest is kept."""
        for name, tally in record.pop("tallies").items():
            self.tallies[name].merge(MiningTally.from_dict(tally))
        self.records[record["unit"]] = record

    def _find_committed(self, plan: MiningPlan) -> None:
        """Take up the records of an earlier run whose objects are as they were written."""
        listed = [*self.output.list_data(), *storage.list_objects(self.output.at("shuffle"))]
        sizes = {item.uri: item.size for item in listed}

        def take_sound(units: list[MiningUnit], *, with_shuffle: bool) -> None:
            for record in self.output.read_unit_records({unit.name for unit in units}):
                objects = {storage.join_uri(self.output.uri, name): size for name, size in record["objects"].items()}
                if with_shuffle and "shuffled" in record:
                    objects[record["shuffled"]["uri"]] = record["shuffled"]["size"]
                if all(sizes.get(uri) == size for uri, size in objects.items()):
                    self._take_record(record)

        take_sound(plan.buckets, with_shuffle=False)
        take_sound(plan.units, with_shuffle=len(self.records) < plan.num_buckets)

    def _follow(
        self,
        source: Generator[Item],
        take: Callable[[Item], None],
        connection: Connection,
        watch: SignalWatch,
        total: int = 0,
    ) -> None:
        """Take what a pipeline yields, and say now and then how far it is."""
        told = time.monotonic()

        def take_and_tell(item: Item) -> None:
            nonlocal told
            take(item)
            if total and time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                self.reporter.say(f"{len(self.records):,} of {total:,} units")

        follow(source, take_and_tell, watch, connection, self.lease)

    def _time(self, pairs: int) -> dict[str, Any]:
        seconds = time.time() - self.started
        return {"seconds": round(seconds, 3), "pairs": pairs, "pairs_per_second": round(pairs / seconds, 1)}

    def _write_definition(self) -> None:
        rules = self.prepared.rule_sets["as given"]
        settings = {name: value for name, value in self.prepared.settings.items() if name != "inputs"}
        definition = {"fingerprint": self.prepared.fingerprint, "definition": rules.define(), "settings": settings}
        self.output.write_json("definition.json", {**definition, "versions": find_versions()})
        job = self.job.model_copy(update={"overwrite": False})
        text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        self.output.write_own("job.yaml", text.encode())

    def _finish(self, plan: MiningPlan, mined_pairs: int) -> MineResult:
        """Add up, say what is remarkable, write the report, and `_SUCCESS` last."""
        self.lease.check(fresh=True)
        tally = self.tallies["as given"]
        tally.removed["unscored"] = plan.totals["unscored"]
        tally.counts["unscored_positives"] = plan.totals["unscored_positives"]
        status = "failed" if self.failed else "complete"
        result = MineResult(status, tally, self.failed, run=self._time(mined_pairs))
        self._say_what_is_left_out(tally)
        if status == "complete" and not tally.counts["negatives"]:
            self._refuse_empty(tally)
        numbers = summarize(tally, self.prepared.rule_sets["as given"], examples=self.job.examples)
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
            uri = self.output.uri
            if self.job.format == "nemo":
                storage.write_bytes(storage.join_uri(uri, CORPUS, "merlin_metadata.json"), describe_corpus())
            if self.output.owns_card():
                card = describe_dataset(self.job.format, self.prepared.fingerprint)
                storage.write_bytes(storage.join_uri(uri, CARD), card.encode())
            storage.delete_folder(self.output.at("shuffle"))
            self.output.clear_scratch()
            storage.write_bytes(self.output.success_uri, b"")
        return result

    def _say_what_is_left_out(self, tally: MiningTally) -> None:
        counts, source = tally.counts, self.prepared.source
        without = counts["queries_without_positive"]
        if without:
            why = source or f"--min-positive-score {self.job.min_positive_score}"
            self.reporter.say(
                f"{why}: {without:,} of {counts['queries']:,} queries have no positive; they are left out"
            )
        if counts["unmatched_judgements"]:
            self.reporter.say(
                f"{source}: {counts['unmatched_judgements']:,} positive judgements of these queries have no scored pair"
            )
        if counts["weak_positives"]:
            done = "dropped" if self.job.weak_positives == "drop" else "kept (--weak-positives drop leaves them out)"
            self.reporter.say(
                f"--min-positive-score {self.job.min_positive_score}: {counts['weak_positives']:,} positives are below; {done}"
            )

        if counts["queries_short"]:
            rules = self.prepared.rule_sets["as given"]
            deeper = "; --depth all looks further down their rankings" if rules.depth != "all" else ""
            self.reporter.say(
                f"--min-negatives {rules.min_negatives}: {counts['queries_short']:,} of {counts['queries']:,} queries have "
                f"fewer negatives left; they are dropped{deeper}"
            )

    def _refuse_empty(self, tally: MiningTally) -> None:
        """Refuse rules that leave nothing, and leave the output free for others."""
        heaviest = ", ".join(f"{words} {number:,}" for words, number in find_heaviest(tally)[:4])
        counts = tally.counts
        if counts["queries_without_positive"] == counts["queries"]:
            cause = f"none of {counts['queries']:,} queries has a positive; lower --min-positive-score"
        elif heaviest:
            cause = f"of {counts['pairs']:,} pairs they removed: {heaviest}; loosen these"
        else:
            cause = "no query has a candidate besides its positives; score more documents for each query"
        self.output.clear()
        raise InputError(f"the rules leave no negative: {cause}")


Slices = list[tuple[str, int, int, int]]


def mine_units(units: Sequence[MiningUnit], spec: MiningSpec) -> Generator[tuple[MiningUnit, dict[str, Any]]]:
    """Mine units of row groups; yields each with its record or its failure, in no order."""
    from rerank_actor.runtime.tasks import run_tasks

    work = functools.partial(mine_unit, spec=spec)
    for number, report in run_tasks(work, units, spec.environment):
        yield units[number], report


def mine_buckets(
    buckets: Sequence[tuple[MiningUnit, Slices]], spec: MiningSpec
) -> Generator[tuple[MiningUnit, dict[str, Any]]]:
    """Mine buckets of the shuffle; yields each with its record or its failure, in no order."""
    from rerank_actor.runtime.tasks import run_tasks

    work = functools.partial(_mine_bucket, spec=spec)
    for number, report in run_tasks(work, buckets, spec.environment):
        yield buckets[number][0], report


def _mine_bucket(bucket: tuple[MiningUnit, Slices], spec: MiningSpec) -> dict[str, Any]:
    unit, slices = bucket
    return mine_bucket(unit, spec, slices)


def count_positives(buckets: Sequence[Slices], spec: MiningSpec) -> Generator[int | str]:
    """Yield the most positives that a query of each bucket has, or why a bucket could not be read."""
    from rerank_actor.runtime.tasks import run_tasks

    work = functools.partial(_count_bucket, columns=spec.columns, qrels=spec.qrels)
    for _, report in run_tasks(work, buckets, spec.environment):
        yield report.get("failure", report.get("most", 0))


def _count_bucket(slices: Slices, columns: Columns, qrels: pa.Table | None) -> dict[str, Any]:
    return {"most": count_bucket(slices, columns, qrels)}
