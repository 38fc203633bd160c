"""Scoring or embedding by the path of a unit, in this process and without Ray."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.engines.model import load_tokenizer_json
from rerank_actor.engines.start import start_engine
from rerank_actor.errors import ShardError
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.folder import list_pending
from rerank_actor.outputs.manifest import Totals, UnitRecords, check_committed
from rerank_actor.outputs.part import TEXT_SETTINGS, check_part
from rerank_actor.outputs.scored import open_scored
from rerank_actor.progress import QuietReporter
from rerank_actor.runtime.store_builder import run_here
from rerank_actor.scoring.lookups import make_known, make_lookups
from rerank_actor.scoring.preflight import make_engine_spec, make_prepare_spec, prepare_job
from rerank_actor.scoring.prepare import prepare_unit
from rerank_actor.scoring.unit import UnitWork
from rerank_actor.scoring.write import write_part


def read_checked(job: ScoreJob) -> list[dict[str, Any]]:
    """Return the rows of an output, each part of which is sound."""
    scored, rows = open_scored(job.output), list[dict[str, Any]]()
    for unit, part in zip(scored.units, scored.parts, strict=True):
        data = storage.read_bytes(part.uri)
        assert check_part(unit, data, prepare_job(job).fingerprint).problem is None
        rows += pq.read_table(pa.BufferReader(data)).to_pylist()
    return rows


@dataclass
class Outcome:
    """What a run without Ray did."""

    totals: Totals
    damaged: dict[str, str]
    scored: list[str]
    notes: list[str]


def score_here(job: ScoreJob, run_id: str = "run", *, records: bool = True) -> Outcome:
    """Score what is pending in this process, as a run does; without records it is a run that was killed."""
    prepared = prepare_job(job)
    output, notes = prepared.output, list[str]()
    storage.write_bytes(output.find_plan_uri(), prepared.plan.to_bytes(prepared.settings))
    output.write_card()
    output.write_own("job.yaml", prepared.job.to_yaml().encode())
    parts = output.list_parts()
    totals, damaged = check_committed(output, parts, prepared.plan.units(), prepared.fingerprint, notes.append)
    pending = list_pending(prepared.plan, {name: part for name, part in parts.items() if name not in damaged})
    output.delete_parts(list(damaged))
    tokenizer_json = load_tokenizer_json(prepared.model)
    reporter = QuietReporter()
    lookups = make_lookups(prepared, run_here, reporter, lambda: None)
    known = make_known(prepared, run_here, reporter, lambda: None)
    prepare = make_prepare_spec(prepared, {}, lookups, known)
    engine, unit_records = start_engine(make_engine_spec(prepared, tokenizer_json))[0], UnitRecords(output, run_id)
    for unit in pending:
        work = prepare_unit(unit, prepare, tokenizer_json)
        if work.failure is not None:
            raise ShardError(work.failure)
        work = UnitWork.from_table(work.to_table())
        computed = engine.compute_logits(work.prompts.ids_at(work.prompts.scorable))
        logits = np.full((len(work.prompts), *computed.shape[1:]), np.nan, np.float32)
        logits[work.prompts.scorable] = computed
        done = work.with_logits(logits, {"attempts": 1, "seconds": 0.0, "engine_version": "1", "dtype": "float32"})
        done = UnitWork.from_table(done.to_table())
        metadata = {"fingerprint": prepared.fingerprint, "run": run_id, **({"explode": "true"} if job.explode else {})}
        metadata |= {"where": job.where} if job.where is not None else {}
        metadata |= prepared.model.description.to_metadata()
        settings = {name: prepared.settings[name] for name in TEXT_SETTINGS if name in prepared.settings}
        metadata |= {name: json.dumps(value) for name, value in settings.items()}
        report = write_part(done, output.uri, metadata, output.scratch)
        totals.add(report)
        unit_records.add(unit.name, {**report, "fingerprint": prepared.fingerprint})
    if records:
        unit_records.flush()
        storage.write_bytes(output.success_uri, b"")
    return Outcome(totals, damaged, [unit.name for unit in pending], notes)
