"""The steps of a selection: what a worker does with a unit of scored rows, or with a bucket of the exchange.

    read -> duplicates -> sources -> targets (-> filter) -> choose | greedy | rounds of both -> fetch -> write

Each takes the rows of its bucket and gives rows for the buckets of the next: by normalized pair, by source, by target, by
the unit where their texts lie, by the part they are delivered in. Knows nothing of Ray, nor of what a step does.
"""

from collections.abc import Callable
from typing import Any

from rerank_actor import storage
from rerank_actor.bitext.selection.delivery import fetch_texts, write_part
from rerank_actor.bitext.selection.filtering import (
    drop_duplicates,
    filter_pairs,
    look_at_sources,
    look_at_targets,
    read_unit,
)
from rerank_actor.bitext.selection.matching import choose_pairs, match_pairs, match_sources, match_targets
from rerank_actor.bitext.selection.step_task import StepResult, StepSpec, StepTask
from rerank_actor.storage.exchange import Exchange

STEPS: dict[str, Callable[[StepTask, StepSpec], StepResult]] = {
    "read": read_unit,
    "duplicates": drop_duplicates,
    "sources": look_at_sources,
    "targets": look_at_targets,
    "filter": filter_pairs,
    "choose": choose_pairs,
    "match": match_pairs,
    "match_sources": match_sources,
    "match_targets": match_targets,
    "fetch": fetch_texts,
    "write": write_part,
}


def do_task(task: StepTask, step: str, spec: StepSpec) -> dict[str, Any]:
    """Do a task of a step, write what it passes on, and return its record.

    Raises:
        RerankError: something cannot be read or written.
    """
    result = STEPS[step.partition("-")[0]](task, spec)
    outputs = {}
    with storage.patient():
        for name, (table, bucket, num_buckets) in result.outputs.items():
            exchange = Exchange(spec.output.step_folder(step), num_buckets, spec.output.scratch)
            written = exchange.write(f"{task.name}.{name}", table, bucket)
            outputs[name] = {**written, "rows": table.num_rows}
    return {"number": task.number, "tally": result.tally.to_dict(), **result.facts, "outputs": outputs}
