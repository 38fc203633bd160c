"""The preflight of a run: a job checked against its model, its input and its output, before anything is started.

Takes a `ScoreJob`, gives a `PreparedJob` with the plan, or refuses. Nothing is written. The specs that read tasks and
actors need follow from it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import yaml

from rerank_actor import storage
from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.checkpoint.pinning import (
    describe_changes,
    find_commit,
    is_hub_model,
    read_cached_commit,
    shorten_commit,
)
from rerank_actor.engines.model import RerankerModel, check_weights, load_reranker_model, load_tokenizer_json
from rerank_actor.engines.options import DEFAULT_MODEL
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.settings import EngineSettings
from rerank_actor.engines.start import encode_check_pairs
from rerank_actor.errors import JobError, ModelError, OutputConflictError, PlanDamagedError, StorageError
from rerank_actor.fingerprint import hash_fingerprint, list_differing
from rerank_actor.inputs.formats import find_format
from rerank_actor.inputs.listing import InputListing, list_input
from rerank_actor.inputs.lookups import ScoreLookup, TextLookup
from rerank_actor.inputs.plan import Plan, PlanChange, choose_partition_columns, make_plan
from rerank_actor.inputs.rankings.judged import digest_qrels, keep_judged, plan_judged
from rerank_actor.inputs.rankings.lines import refuse_mixed
from rerank_actor.inputs.rankings.qrels import load_qrels
from rerank_actor.inputs.text_sources import TextSource, list_sources
from rerank_actor.inputs.training import TRAINING_FORMATS
from rerank_actor.inputs.training.layouts import find_layout
from rerank_actor.job import EngineJob, ScoreJob
from rerank_actor.outputs.adoption import adopt_parts
from rerank_actor.outputs.folder import PART_NAME, Output, list_strays, select_parts
from rerank_actor.outputs.price import find_price
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.scoring.prepare import PrepareSpec
from rerank_actor.scoring.reuse import ScoreSource, load_reused

CONTROL_TOKENS = 16  # that a tokenizer adds around the texts at most
SHOWN_CHARACTERS = 300  # of a setting that differs

Job = TypeVar("Job", bound=EngineSettings)


@dataclass(frozen=True)
class PreparedJob:
    """What is known of a job before anything is written or started."""

    job: ScoreJob
    output: Output
    model: RerankerModel
    settings: dict[str, Any]
    earlier: Plan
    plan: Plan
    change: PlanChange
    parts: frozenset[str] = frozenset()  # names of those that were there
    sources: list[TextSource] = field(default_factory=list)
    reused: ScoreSource | None = None

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
def prepare_job(job: ScoreJob, reporter: Reporter | None = None, model: RerankerModel | None = None) -> PreparedJob:
    """Check a job against its model, its input and its output; nothing is written and nothing started.

    Args:
        job: to check.
        reporter: is told what a user should know.
        model: the job's, where it was looked at already; that reads all of the weights where they lie in a folder.

    Raises:
        JobError: something about the job, the model or the input is wrong.
        OutputConflictError: the output belongs to another job, or a shard changed since it was scored.
    """
    reporter = reporter or QuietReporter()
    output = Output(job.output)
    find_price(job.gpu_type, job.gpu_price)
    model = model or look_at_model(job, [output], reporter)
    model.refuse_engine(job.engine, job.engine_args.get("quantization"))
    refuse_instruction(job, model)
    job = fit_instruction(fit_max_length(job, model, reporter), model, reporter)
    _refuse_short_prompts(job, model)
    stored = None if job.overwrite else _load_plan(output, reporter)
    spec = job.input_spec()
    known_formats = stored[0].known_formats() if stored is not None else None
    listing = list_input(spec, known_formats)
    is_plain = stored is not None and job.format == "auto" and not stored[1].get("negative_columns")
    fitted = fit_layout(job, listing, model, reporter) if not is_plain else job  # a resume reads no input
    if fitted is not job:
        job = fitted
        spec = job.input_spec()
        listing = list_input(spec, known_formats)
    sources = list_sources(job.source_specs(job.dialect), job.output)
    refuse_mixed(listing.formats, job.top_k)
    _tell_formats(job, listing, reporter)
    listed = storage.list_children(output.uri)
    if stored is None:
        _refuse_foreign(output, listed)
    parts = {} if job.overwrite else select_parts(listed)
    if stored is not None and parts:  # what the parts have cannot change
        spec = replace(spec, partition_columns=tuple(stored[1].get("partition_columns", ())))
    partition_columns = [name for name in choose_partition_columns(spec, listing) if spec.uses(name)]
    judged = load_qrels(job.qrels, job.min_relevance) if job.qrels is not None else None
    settings = {
        **job.scoring_settings(),
        **{source.flag.removeprefix("--"): source.describe() for source in sources},
        **model.fingerprint_settings(),
        **({"partition_columns": partition_columns} if partition_columns else {}),
        **({"qrels": digest_qrels(judged)} if judged is not None else {}),
    }
    if job.reuse is not None and job.reuse.rstrip("/") == job.output.rstrip("/"):
        raise JobError(
            f"--reuse {job.reuse}: is the --output itself, which a resume goes on with anyway; leave out --reuse"
        )
    reused = load_reused(job.reuse, settings) if job.reuse is not None else None
    if stored is not None and stored[1] != settings:
        if parts:
            _refuse_other_job(output, stored[1], settings)
        stored = None  # the other job left no score, so nothing can be mixed up
    earlier = stored[0] if stored is not None else Plan()

    if parts and not job.extend:
        _refuse_other_input(output, earlier, listing)

    def report(done: int, total: int) -> None:
        if total >= 1000 and done % 1000 == 0:
            reporter.info(f"planning: {done:,} of {total:,} shards")

    if judged is not None:
        keep_judged(listing, earlier, spec.judged)
    plan, change = make_plan(spec, earlier, parts, report, listing)
    if judged is not None and plan != earlier:
        planned, ids = (earlier, plan, change), (job.query_id_column, job.document_id_column)
        plan, lacking = plan_judged(planned, spec, listing, parts, judged, ids, writes=not job.dry_run)
        reporter.info(f"--qrels: {'would add' if job.dry_run else 'adds'} {lacking.describe()}")
    if stored is None and parts:
        adopt_parts(output.uri, plan, parts, hash_fingerprint(settings))
        reporter.info(f"{output.uri}: its plan was lost and is made again; {len(parts):,} parts there fit it and stay")
    for item in change.left_out:
        reporter.info(f"left out: {item.describe()}")
    if job.engine != "fake" and (change.stale_parts or any(unit.part_name not in parts for unit in plan.units())):
        check_weights(model)  # last, because it costs seconds, which what has nothing to score does without
    return PreparedJob(job, output, model, settings, earlier, plan, change, frozenset(parts), sources, reused)


def _load_plan(output: Output, reporter: Reporter | None = None) -> tuple[Plan, dict[str, Any]] | None:
    """Return the stored plan and settings, None where there is none; one that is damaged is as good as none."""
    try:
        return output.load_plan()
    except PlanDamagedError:
        if reporter is not None:
            reporter.warn(f"{output.find_plan_uri()}: is damaged")
        return None


def _refuse_foreign(output: Output, listed: list[storage.StoredObject]) -> None:
    """Refuse a folder without a plan that holds Parquet files of others, which would be read with the scores."""
    foreign = [name for name in list_strays(listed, ()) if not PART_NAME.fullmatch(name)]
    if foreign and not output.has_plan():
        raise OutputConflictError(
            f"{output.uri}: holds {len(foreign):,} Parquet files that no scoring job wrote ({foreign[0]}), and whoever reads "
            "the scores there would read them too; choose another --output",
            uri=output.uri,
        )


def _refuse_other_input(output: Output, earlier: Plan, listing: InputListing) -> None:
    """Refuse an input that shares no shard with what is scored in the output: most often a command that was copied."""
    if earlier.shards and not any(shard.uri in listing.formats for shard in earlier.shards):
        raise OutputConflictError(
            f"{output.uri}: holds the scores of another input ({len(earlier.shards):,} shards, the first is "
            f"{earlier.shards[0].uri}), of which this one has no shard; choose another --output, or --extend to add to it",
            uri=output.uri,
        )


@refuse_dead_storage()
def look_at_model(job: EngineJob, outputs: Sequence[Output], reporter: Reporter) -> RerankerModel:
    """Return what a job's model is; one of the hub at the commit that the job's output was begun with.

    Args:
        job: names the model.
        outputs: where the job writes.
        reporter: is told where a branch of the hub has moved.

    Raises:
        ModelError: it is no reranker; its weights are for `check_weights`.
    """
    name, pinned, before = job.model_name, None, None
    if job.trust_remote_code:
        reporter.info(f"--trust-remote-code: {name} may run Python code of its own, here and on workers")
    if is_hub_model(name):
        found = (_find_pinned_commit(output, job) for output in outputs if not job.overwrite)
        pinned = next(filter(None, found), None)
        before = pinned or read_cached_commit(name, job.revision)
    model = load_reranker_model(
        name,
        pinned or job.revision,
        trust_remote_code=job.trust_remote_code,
        weights=False,
        described_in=job.model_description,
        embedding=job.embedding(),
    )
    if model.assumption:
        reporter.info(model.assumption)
    now = find_commit(name, job.revision) if pinned else model.revision
    if before and now and now != before:
        goes_on = (
            f"; this output goes on with {shorten_commit(before)}, --overwrite takes the new one" if pinned else ""
        )
        reporter.info(
            f"{name} has moved on the hub from {shorten_commit(before)} to {shorten_commit(now)}: "
            f"{describe_changes(name, before, now)}{goes_on}"
        )
    return model


def _find_pinned_commit(output: Output, job: EngineJob) -> str | None:
    """Return the commit of the model that an output was begun with; None where it is new, or another revision is asked for."""
    data = storage.read_if_present(output.at("job.yaml"))
    begun = yaml.safe_load(data) if data is not None and not storage.is_broken(data) else None
    stored = _load_plan(output)
    if stored is None or not isinstance(begun, dict):
        return None
    if (begun.get("model") or DEFAULT_MODEL, begun.get("revision")) != (job.model_name, job.revision):
        return None
    digest, revision = str(stored[1].get("model")), stored[1].get("revision")
    return str(revision) if digest == f"{job.model_name}@{revision}" else None


def is_up_to_date(prepared: PreparedJob) -> bool:
    """Return whether plan and parts still are those that a job was prepared with; one request and a listing."""
    if prepared.job.overwrite:
        return True
    stored = _load_plan(prepared.output)
    if stored is not None and stored != (prepared.earlier, prepared.settings):
        return False
    return (stored is not None or prepared.earlier == Plan()) and prepared.output.list_parts().keys() == prepared.parts


@refuse_dead_storage()
def refresh_job(prepared: PreparedJob) -> PreparedJob:
    """Return a job whose lease is held as it was prepared, or prepared anew where another run was at its output since.

    Raises:
        JobError, OutputConflictError: as `prepare_job`.
    """
    return prepared if is_up_to_date(prepared) else prepare_job(prepared.job, model=prepared.model)


def _tell_formats(job: ScoreJob, listing: InputListing, reporter: Reporter) -> None:
    """Tell what names do not."""
    first = {kind: uri for uri, kind in reversed(listing.formats.items())}
    for kind, uri in first.items() if job.format in ("auto", *TRAINING_FORMATS) else ():
        if find_format(uri)[0] != kind:
            reporter.info(f"{uri}: looks like --format {kind}")


def fit_layout(job: ScoreJob, listing: InputListing, model: RerankerModel, reporter: Reporter) -> ScoreJob:
    """Return the job with the columns of a training file, where its input is one.

    Raises:
        JobError: it is none, or a ranking whose texts are not named; or as of `ScoreJob.take_layout`.
    """
    if job.format not in ("auto", *TRAINING_FORMATS) or (job.format == "auto" and job.is_labelled):
        return job
    layout = find_layout(job.input_spec(), listing, job.format, job.list_given())
    if layout is None and job.lacking_texts:
        raise JobError(job.lacking_texts)
    fitted = job.take_layout(layout, model.description.template.takes_instruction) if layout is not None else job
    if fitted == job or layout is None:
        return job
    reporter.info(f"{layout.uri}: is read as --format {layout.describe()}")
    return fitted


def fit_max_length(job: Job, model: RerankerModel, reporter: Reporter) -> Job:
    """Return the job with prompts as long as the model takes.

    Raises:
        ModelError: longer ones were asked for.
    """
    if "max_length" in job.model_fields_set:
        if job.max_length > model.max_positions:
            raise ModelError(
                f"--max-length {job.max_length} is more than {model.name} was built for ({model.max_positions} tokens); "
                "lower it"
            )
        if model.usual_length is not None and job.max_length > model.usual_length:
            reporter.info(
                f"--max-length {job.max_length} is more than the {model.usual_length} in the files of {model.name}"
            )
        return job
    length = model.default_length
    if length == job.max_length:
        return job
    reason = "the longest that {} was built for" if length == model.max_positions else "the length in the files of {}"
    reporter.info(f"--max-length is {length}, {reason.format(model.name)}")
    return job.model_copy(update={"max_length": length})


def fit_instruction(job: ScoreJob, model: RerankerModel, reporter: Reporter) -> ScoreJob:
    """Return the job with the model's own default instruction, where it has one and the user gives none."""
    own = model.description.template.instruction
    if own is None or own == job.instruction or {"--instruction", "--task"} & {*job.list_instruction_flags()}:
        return job
    reporter.info(f"--instruction is {own!r}, the default prompt in the files of {model.name}")
    return job.model_copy(update={"instruction": own})


def refuse_instruction(job: ScoreJob, model: RerankerModel) -> None:
    """Refuse an instruction for a model that reads none; its scores would be those without it.

    Raises:
        ModelError: one was given.
    """
    flags = job.list_instruction_flags()
    if flags and not model.description.template.takes_instruction:
        raise ModelError(
            f"{model.name} takes no instruction, its prompt is the query and the document alone: leave out {', '.join(flags)}",
            model=model.name,
        )


def _refuse_short_prompts(job: ScoreJob, model: RerankerModel) -> None:
    """Refuse a `--max-length` that the template alone fills; the tokenizer is loaded only where that may be."""
    template = model.description.template
    has_own = job.instruction_column or job.instructions or job.directions()
    instruction = "" if has_own else job.instruction
    text = template.prefix + template.format_head(instruction, "") + template.suffix
    if job.max_length > len(text.encode()) + CONTROL_TOKENS:  # no token is less than a byte
        return
    encoder = PairEncoder(load_tokenizer_json(model), **make_encoder_settings(job, model, instruction))
    own_tokens = int(encoder.with_max_length(10**9).encode([""], [""]).num_tokens[0])
    if job.max_length <= own_tokens:
        raise ModelError(
            f"--max-length {job.max_length} leaves no room for a query and a document beside the {own_tokens} tokens of the "
            "template; raise it"
        )


def _refuse_other_job(output: Output, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    differing = list_differing(stored, settings)
    shown = "; ".join(
        f"{name}: there {_shorten(stored.get(name))}, now {_shorten(settings.get(name))}" for name in differing
    )
    raise OutputConflictError(
        f"{output.uri}: belongs to another job, whose scores would not be comparable ({shown}); choose another --output, "
        "or --overwrite to start afresh",
        uri=output.uri,
        differing=differing,
    )


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}..."


def make_encoder_settings(job: EngineSettings, model: RerankerModel, instruction: str) -> dict[str, Any]:
    """Return the keyword arguments of a job's `PairEncoder`."""
    return {
        "template": model.description.template,
        "instruction": instruction,
        "max_length": job.max_length,
        "parse_special_tokens": job.parse_special_tokens,
    }


def make_prepare_spec(
    prepared: PreparedJob,
    environment: dict[str, str],
    lookups: tuple[TextLookup, ...] = (),
    known: tuple[ScoreLookup, ...] = (),
) -> PrepareSpec:
    """Return the spec that a read task pickles: how to read a unit's rows and how to turn them into prompts.

    Args:
        prepared: the job.
        environment: AWS variables of the driver.
        lookups: where the texts are of columns that hold ids.
        known: scores of earlier runs, in the order in which they are looked at.
    """
    job = prepared.job
    return PrepareSpec(
        # In directions each pair has an instruction of its own; then the encoder is one for all language pairs.
        encoder=make_encoder_settings(job, prepared.model, "" if job.directions() else job.instruction),
        input=job.input_spec(),
        json_types=prepared.plan.json_types,
        max_attempts=job.max_attempts,
        environment=environment,
        lookups=lookups,
        dedupes=job.dedupe != "none",
        adds_pair_key=job.adds_pair_key,
        known=known,
    )


def _compute_gpu_share(job: ScoreJob) -> float:
    """Return the part of a GPU that is one engine's; GPUs that share a model are shared with no other."""
    wanted = job.gpus_per_actor or 1.0
    return wanted if wanted < 1 and job.group_size == 1 else 1.0


def make_engine_spec(prepared: PreparedJob, tokenizer_json: str) -> EngineSpec:
    """Return the spec with which an actor starts its engine and checks it with the built-in pairs."""
    job = prepared.job
    encoder = PairEncoder(tokenizer_json, **make_encoder_settings(job, prepared.model, job.instruction))
    return EngineSpec(
        kind=job.engine,
        model=prepared.model,
        dtype=job.dtype,
        max_length=job.max_length,
        tensor_parallel_size=job.tensor_parallel_size,
        engine_args=job.engine_args,
        **encode_check_pairs(encoder),
        gpu_share=_compute_gpu_share(job),
        check_scores=job.check_scores,
        instruction=job.instruction,
    )
