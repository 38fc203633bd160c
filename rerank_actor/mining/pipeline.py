"""The pipeline of mining: its tasks on Ray Data. The only module of the package with Ray.

Each function does some work for many items, in as many tasks as fit, and yields what came of each in no order. Pairs and
texts go from storage to storage within a task and never through Ray.
"""

import functools
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rerank_actor import storage
from rerank_actor.mining.pairs import Columns
from rerank_actor.mining.survey import Survey, Unit, survey_part
from rerank_actor.mining.unit import Spec, count_bucket, mine_bucket, mine_unit
from rerank_actor.runtime.tasks import run_tasks

PARTS_PER_TASK = 32
TASK_BYTES = 256 * 2**20  # stored, that one task surveys at most

Slices = list[tuple[str, int, int, int]]


def survey_parts(
    parts: Sequence[storage.StoredObject], columns: Columns, qrels: pa.Table | None, environment: dict[str, str]
) -> Generator[list[Survey] | str]:
    """Survey files; yields the surveys of some of them, in no order, or why one could not be read."""
    work = functools.partial(_survey_some, columns=columns, qrels=qrels)
    for _, report in run_tasks(work, _bundle(parts), environment):
        if "failure" in report:
            yield report["failure"]
            continue
        hashes = np.frombuffer(report.pop("hashes"), np.uint64)
        positives = np.frombuffer(report.pop("positives"), np.int64)
        found, start = [], 0
        for values in report["surveys"]:
            end = start + values.pop("num_queries")
            found.append(Survey(**values, hashes=hashes[start:end], positives=positives[start:end]))
            start = end
        yield found


def _bundle(parts: Sequence[storage.StoredObject]) -> list[list[tuple[int, storage.StoredObject]]]:
    bundles: list[list[tuple[int, storage.StoredObject]]] = []
    size = 0
    for number, part in enumerate(parts):
        if not bundles or len(bundles[-1]) == PARTS_PER_TASK or size + part.size > TASK_BYTES:
            bundles.append([])
            size = 0
        bundles[-1].append((number, part))
        size += part.size
    return bundles


def _survey_some(
    bundle: list[tuple[int, storage.StoredObject]], columns: Columns, qrels: pa.Table | None
) -> dict[str, Any]:
    surveys = [survey for number, part in bundle for survey in survey_part(number, part, columns, qrels)]
    arrays = ("hashes", "positives")
    told = [
        {
            **{name: value for name, value in vars(survey).items() if name not in arrays},
            "num_queries": len(survey.hashes),
        }
        for survey in surveys
    ]
    return {
        "surveys": told,
        "hashes": np.concatenate([np.zeros(0, np.uint64), *(survey.hashes for survey in surveys)]),
        "positives": np.concatenate([np.zeros(0, np.int64), *(survey.positives for survey in surveys)]),
    }


def mine_units(units: Sequence[Unit], spec: Spec) -> Generator[tuple[Unit, dict[str, Any]]]:
    """Mine units of row groups; yields each with its record or its failure, in no order."""
    work = functools.partial(mine_unit, spec=spec)
    for number, report in run_tasks(work, units, spec.environment):
        yield units[number], report


def mine_buckets(buckets: Sequence[tuple[Unit, Slices]], spec: Spec) -> Generator[tuple[Unit, dict[str, Any]]]:
    """Mine buckets of the shuffle; yields each with its record or its failure, in no order."""
    work = functools.partial(_mine_bucket, spec=spec)
    for number, report in run_tasks(work, buckets, spec.environment):
        yield buckets[number][0], report


def _mine_bucket(bucket: tuple[Unit, Slices], spec: Spec) -> dict[str, Any]:
    unit, slices = bucket
    return mine_bucket(unit, spec, slices)


def count_positives(buckets: Sequence[Slices], spec: Spec) -> Generator[int | str]:
    """Yield the most positives that a query of each bucket has, or why a bucket could not be read."""
    work = functools.partial(_count_bucket, columns=spec.columns, qrels=spec.qrels)
    for _, report in run_tasks(work, buckets, spec.environment):
        yield report.get("failure", report.get("most", 0))


def _count_bucket(slices: Slices, columns: Columns, qrels: pa.Table | None) -> dict[str, Any]:
    return {"most": count_bucket(slices, columns, qrels)}
