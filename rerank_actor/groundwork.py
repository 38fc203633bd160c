"""The groundwork of a run: a job checked against its model, its input and its output, before anything is started.

Takes a `ScoreJob`, gives a `Groundwork` with the plan, or refuses. Nothing is written. The specs that read tasks and
actors need follow from it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rerank_actor.engine import EngineSpec
from rerank_actor.engine_check import encode_check_pairs
from rerank_actor.errors import JobError, ModelError, OutputConflictError, StorageError
from rerank_actor.job import ScoreJob, hash_fingerprint
from rerank_actor.model import RerankerModel, load_reranker_model
from rerank_actor.output import Output
from rerank_actor.plan import Plan, PlanChange, make_plan
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.prompts import PairEncoder
from rerank_actor.template import TEMPLATES
from rerank_actor.units import PrepareSpec


@dataclass(frozen=True)
class Groundwork:
    """What is known of a job before anything is written or started."""

    job: ScoreJob
    output: Output
    model: RerankerModel
    settings: dict[str, Any]
    earlier: Plan
    plan: Plan
    change: PlanChange

    @property
    def fingerprint(self) -> str:
        """Hash of everything that can change a score."""
        return hash_fingerprint(self.settings)


@contextlib.contextmanager
def refuse_dead_storage() -> Iterator[None]:
    """Turn storage that does not answer before anything was started into a job that cannot start."""
    try:
        yield
    except StorageError as error:
        raise JobError(f"{error}; nothing was started", **error.where) from error


@refuse_dead_storage()
def prepare_job(job: ScoreJob, reporter: Reporter | None = None) -> Groundwork:
    """Check a job against its model, its input and its output; nothing is written and nothing started.

    Raises:
        JobError: something about the job, the model or the input is wrong.
        OutputConflictError: the output belongs to another job, or a shard changed since it was scored.
    """
    reporter = reporter or QuietReporter()
    output = Output(job.output)
    if job.trust_remote_code:
        reporter.say(f"--trust-remote-code: {job.model_name} may run Python code of its own, here and on workers")
    model = load_reranker_model(job.model_name, job.revision, trust_remote_code=job.trust_remote_code)
    job = _fit_max_length(job, model, reporter)
    settings = {
        **job.scoring_settings(),
        **model.fingerprint_settings(),
        "template_digest": TEMPLATES[model.template_name].digest,
    }
    stored = None if job.overwrite else output.load_plan()
    parts = {} if job.overwrite else output.list_parts()
    if stored is not None and stored[1] != settings:
        if parts:
            _refuse_other_job(output, stored[1], settings)
        stored = None  # the other job left no score, so nothing can be mixed up
    elif stored is None and parts:
        raise OutputConflictError(
            f"{output.uri}: holds parts but no plan, so it is not known what job they are of; choose another --output, or "
            "--overwrite",
            uri=output.uri,
        )
    earlier = stored[0] if stored is not None else Plan()

    def tell(done: int, total: int) -> None:
        if total >= 1000 and done % 1000 == 0:
            reporter.say(f"planning: {done:,} of {total:,} shards")

    plan, change = make_plan(job, earlier, parts, tell)
    return Groundwork(job, output, model, settings, earlier, plan, change)


def _fit_max_length(job: ScoreJob, model: RerankerModel, reporter: Reporter) -> ScoreJob:
    if job.max_length <= model.max_positions:
        return job
    if "max_length" in job.model_fields_set:
        raise ModelError(
            f"--max-length {job.max_length} is more than {model.name} was built for ({model.max_positions} tokens); lower it"
        )
    reporter.say(f"--max-length is {model.max_positions}, the longest that {model.name} was built for")
    return job.model_copy(update={"max_length": model.max_positions})


def _refuse_other_job(output: Output, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    differing = sorted(name for name in {*stored, *settings} if stored.get(name) != settings.get(name))
    shown = "; ".join(f"{name}: there {stored.get(name)!r}, now {settings.get(name)!r}" for name in differing)
    raise OutputConflictError(
        f"{output.uri}: belongs to another job, whose scores would not be comparable ({shown}); choose another --output, "
        "or --overwrite to start afresh",
        uri=output.uri,
        differing=differing,
    )


def make_encoder_settings(ground: Groundwork) -> dict[str, Any]:
    """Return the keyword arguments of the job's `PairEncoder`."""
    return {
        "template_name": ground.model.template_name,
        "instruction": ground.job.instruction,
        "max_length": ground.job.max_length,
        "parse_special_tokens": ground.job.parse_special_tokens,
    }


def make_prepare_spec(ground: Groundwork, environment: dict[str, str]) -> PrepareSpec:
    """Return what read tasks need."""
    job = ground.job
    return PrepareSpec(
        fingerprint=ground.fingerprint,
        encoder=make_encoder_settings(ground),
        format=job.format,
        query_column=job.query_column,
        document_column=job.document_column,
        instruction_column=job.instruction_column,
        keep=None if job.keep_columns == "all" else list(job.keep_columns),
        json_types=ground.plan.json_types,
        max_attempts=job.max_attempts,
        environment=environment,
        directions=job.directions(),
    )


def make_specs(ground: Groundwork, tokenizer_json: str, environment: dict[str, str]) -> tuple[PrepareSpec, EngineSpec]:
    """Return what read tasks and what actors need."""
    job = ground.job
    encoder = PairEncoder(tokenizer_json, **make_encoder_settings(ground))
    engine = EngineSpec(
        kind=job.engine,
        model=ground.model,
        dtype=job.dtype,
        max_length=job.max_length,
        tensor_parallel_size=job.tensor_parallel_size,
        engine_args=job.engine_args,
        check_prompts=encode_check_pairs(encoder),
        gpu_share=job.gpus_per_actor if job.gpus_per_actor and job.gpus_per_actor < 1 else 1.0,
        check_scores=job.check_scores,
    )
    return make_prepare_spec(ground, environment), engine
