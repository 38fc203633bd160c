"""Mining without Ray, unit after unit, for tests that look at the rules and not at the run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mining_inputs import read_mined

from rerank_actor.job_file import check_job
from rerank_actor.mining.examples import Teacher
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.preflight import prepare_mining
from rerank_actor.mining.survey import lay_out, survey_part
from rerank_actor.mining.tally import Tally
from rerank_actor.mining.unit import Spec, count_bucket, mine_bucket, mine_unit

RULES = {"label_column": "label", "absolute_margin": 0.05, "num_negatives": 4, "teacher": "logit"}


def make_job(scored: Path, output: Path, /, **values: Any) -> MineJob:
    return check_job(MineJob, {"scored": [str(scored)], "output": str(output), **RULES, **values}).normalized()


def mine_in_process(
    job: MineJob, unit_bytes: int = 64 * 2**20, hashes_at_once: int = 10**9
) -> tuple[list[dict[str, Any]], Tally, int]:
    """Mine without Ray, unit after unit; returns the rows, the tally and the number of buckets."""
    ground = prepare_mining(job)
    scored = ground.scored
    surveys = [
        survey
        for number, part in enumerate(scored.parts)
        for survey in survey_part(number, part, scored.columns, ground.qrels)
    ]
    layout = lay_out(surveys, unit_bytes, hashes_at_once=hashes_at_once)
    spec = Spec(
        output=ground.output,
        parts=scored.parts,
        columns=scored.columns,
        rule_sets=ground.rule_sets,
        max_positives=layout.max_positives or 0,
        split=layout.split,
        num_buckets=layout.num_buckets,
        qrels=ground.qrels,
        teacher=Teacher(job.teacher, job.normalize, job.temperature),
        format=job.format,
        prompt=job.prompt,
        with_examples=True,
    )
    records = [mine_unit(unit, spec) for unit in layout.units]
    moved = [record["shuffled"] for record in records if "shuffled" in record]
    slices = [
        [(one["uri"], one["size"], one["places"][bucket], one["places"][bucket + 1]) for one in moved]
        for bucket in range(layout.num_buckets)
    ]
    if layout.max_positives is None:
        spec = replace(spec, max_positives=max(count_bucket(own, scored.columns, ground.qrels) for own in slices))
    records += [mine_bucket(unit, spec, own) for unit, own in zip(layout.buckets, slices, strict=True)]
    tally = Tally(job.space)
    for record in records:
        tally.merge(Tally.from_dict(json.loads(json.dumps(record["tallies"]["as given"]))))
    return read_mined(Path(job.output)), tally, layout.num_buckets
