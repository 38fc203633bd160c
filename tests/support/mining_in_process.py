"""Mining without Ray, unit after unit, for tests that look at the rules and not at the run."""

import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mining_inputs import read_mined

from rerank_actor.job_file import check_job
from rerank_actor.mining.by_column.values import check_values, merge_most
from rerank_actor.mining.examples import Teacher
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.preflight import look_again, prepare_mining
from rerank_actor.mining.run import MineResult, _Run
from rerank_actor.mining.scored import ScoredInput, load_scored
from rerank_actor.mining.survey import count_unknown, plan_units, refuse_ids_of_two_questions, survey_part
from rerank_actor.mining.tally import MiningTally
from rerank_actor.mining.unit import MiningSpec, count_positives, mine_bucket, mine_unit
from rerank_actor.progress import QuietReporter
from rerank_actor.runtime.store_builder import run_here
from rerank_actor.scoring.lookups import make_lookup
from rerank_actor.storage.exchange import collect_slices
from rerank_actor.storage.lease import hold_lease, make_run_id

RULES = {"label_column": "label", "absolute_margin": 0.05, "num_negatives": 4, "teacher": "logit"}


def make_job(scored: Path, output: Path, /, **values: Any) -> MineJob:
    return check_job(MineJob, {"scored": [str(scored)], "output": str(output), **RULES, **values}).normalized()


def load_with_lookups(job: MineJob) -> ScoredInput:
    """Look at what is to be mined, with the stores of the texts that rows name by id."""
    scored = load_scored(job)
    stores = f"{job.output}.stores"
    return scored.with_lookups(
        tuple(
            make_lookup(source, f"{stores}/{source.role}", run_here, 0, None, lambda: None) for source in scored.sources
        )
    )


class _TasksHere:
    """Does what a `TaskRunner` does, in this process."""

    def run_tasks(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Generator[tuple[int, Any]]:
        yield from ((number, work(item)) for number, item in enumerate(items))


class _RunHere(_Run):
    @contextlib.contextmanager
    def _connect(self) -> Iterator[Any]:
        yield _TasksHere()


def mine_here(job: MineJob) -> MineResult:
    """Mine as a run does, to the report and `_SUCCESS`, in this process and without Ray."""
    prepared = prepare_mining(job)
    with hold_lease(prepared.output.lease_uri, prepared.output.uri, make_run_id(), lambda message: None) as lease:
        return _RunHere(look_again(prepared), lease, QuietReporter()).execute()


def mine_in_process(
    job: MineJob, unit_bytes: int = 64 * 2**20, hashes_at_once: int = 10**9
) -> tuple[list[dict[str, Any]], MiningTally, int]:
    """Mine without Ray, unit after unit; returns the rows, the tally and the number of buckets."""
    prepared = prepare_mining(job)
    job = prepared.job
    scored = load_with_lookups(job)
    surveys = [
        survey
        for number, part in enumerate(scored.parts)
        for survey in survey_part(number, part, scored.columns, prepared.qrels, prepared.verdicts)
    ]
    if job.by is not None:
        check_values(job.by, [value for survey in surveys for value in survey.values], job.rules_by_value)
    count_unknown(surveys, prepared.verdicts, allowed=job.allow_unknown_verdicts)
    refuse_ids_of_two_questions(surveys, scored.parts, scored.columns, prepared.qrels, prepared.verdicts)
    plan = plan_units(surveys, unit_bytes, hashes_at_once=hashes_at_once)
    spec = MiningSpec(
        output=prepared.output,
        parts=scored.parts,
        columns=scored.columns,
        rule_sets=prepared.rule_sets,
        max_positives=max(1, plan.max_positives or 0),
        split=plan.split,
        exchange=prepared.output.make_exchange("shuffle", plan.num_buckets),
        qrels=prepared.qrels,
        teacher=Teacher(job.teacher, job.normalize, job.temperature),
        format=job.format,
        prompt=prepared.settings["prompt"],
        with_examples=True,
        combination=job.combination(),
        verdicts=prepared.verdicts,
        with_suspects=job.suspects is not None,
        value_rules=job.value_rules(),
        max_by_value=plan.max_by_value,
    )
    records = [mine_unit(unit, spec) for unit in plan.units]
    slices = collect_slices([record["shuffled"] for record in records if "shuffled" in record], plan.num_buckets)
    if plan.max_positives is None:
        counts = [count_positives(bucket, scored.columns, prepared.qrels, prepared.verdicts) for bucket in slices]
        spec = replace(spec, max_positives=max(count["most"] for count in counts))
        spec = replace(spec, max_by_value=merge_most(count["by_value"] for count in counts))
    records += [mine_bucket(bucket, spec) for bucket in zip(plan.buckets, slices, strict=True)]
    tally = MiningTally(job.space)
    for record in records:
        tally.merge(MiningTally.from_dict(json.loads(json.dumps(record["tallies"]["as given"]))))
    return read_mined(Path(job.output)), tally, plan.num_buckets
