"""Say what a model is before it scores: `python -m jobs.model MODEL`; `--check` compares an engine with its reference."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tokenizers import Tokenizer

from rerank_actor.commands.command_line import EXIT_FAILED, Parser, add_job_flags
from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.inspection import EngineDifference, compare_engine, format_cut, inspect_model
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.model import RerankerModel, load_reranker_model, load_tokenizer_json
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.settings import EngineSettings
from rerank_actor.engines.start import encode_check_pairs
from rerank_actor.errors import JobError
from rerank_actor.job_file import check_job
from rerank_actor.progress import make_reporter
from rerank_actor.scoring.preflight import fit_max_length

SHOWN_IDS = 12  # at each end of a part of the sample prompt
PAIR_FORMS = ("{query}{document}",)


def model(arguments: Sequence[str] | None = None) -> int:
    """Print what a model is, compare engines with its reference where that is wanted, and return 0, or 1 where one differs."""
    parser = Parser(
        "model",
        "Say what a model is: family, prompt, cut, head, score, weights, and what runs it. A model that jobs.score "
        "would refuse is refused with the same words. Exit codes: 0, 1 an engine differs from the reference, 2 refused.",
        "Qwen/Qwen3-Reranker-0.6B",
        "models/mine --check --engine transformers",
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="MODEL",
        help="name on the hub, local folder or s3://, gs://, az:// folder; as --model",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare --engine with the reference, in float32 and in --dtype"
    )
    parser.add_argument("--instruction", default=None, metavar="TEXT", help="the task, for models that take one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_job_flags(parser, EngineSettings)
    flags: dict[str, Any] = vars(parser.parse(arguments))
    name, checks, instruction, as_json = (flags.pop(key) for key in ("name", "check", "instruction", "json"))
    if name is not None:
        flags["model"] = name
    job = check_job(EngineSettings, flags, flags=flags).normalized()
    if job.engine == "fake":
        raise JobError("--engine fake has no model; give vllm or transformers")
    found = load_reranker_model(
        job.model_name,
        job.revision,
        trust_remote_code=job.trust_remote_code,
        described_in=job.model_description,
    )
    reporter = make_reporter()
    if found.assumption:
        reporter.info(found.assumption)
    job = fit_max_length(job, found, reporter)
    encoder = PairEncoder(
        load_tokenizer_json(found),
        template=found.description.template,
        instruction=instruction or found.description.template.instruction or DEFAULT_INSTRUCTION,
        max_length=job.max_length,
        parse_special_tokens=job.parse_special_tokens,
    )
    facts = inspect_model(found, encoder, job.model_description)
    if not as_json:
        _print_facts(found, facts, load_tokenizer_json(found))
    differences = _check(job, found, encoder, silent=as_json) if checks or job.check_scores else []
    if as_json:
        record = {**facts, "checks": [asdict(item) for item in differences]}
        print(json.dumps(record, indent=2, ensure_ascii=False))
    return EXIT_FAILED if any(item.problem for item in differences) else 0


def _check(job: EngineSettings, found: RerankerModel, encoder: PairEncoder, *, silent: bool) -> list[EngineDifference]:
    """Compare the engine with the reference in float32 and in the job's dtype, and print each difference as it is known."""
    spec = EngineSpec(
        kind=job.engine,
        model=found,
        dtype=job.dtype,
        max_length=job.max_length,
        tensor_parallel_size=job.tensor_parallel_size,
        engine_args=job.engine_args,
        **encode_check_pairs(encoder),
        instruction=encoder.instruction,
    )
    differences = []
    for item in compare_engine(spec, list(dict.fromkeys(["float32", job.dtype]))):
        differences.append(item)
        if not silent:
            _print_difference(item)
    return differences


def _print_difference(item: EngineDifference) -> None:
    verdict = item.problem or "equal within the noise of the dtype"
    spread = max(item.reference_logits) - min(item.reference_logits)
    figures = f"{item.max_difference:.2g} over a spread of {spread:.3g}, allowed {item.allowed:.2g}"
    compared = f"{item.engine} {item.version} in {item.dtype} against {item.reference} in float32"
    print(f"{'check':16} {compared}: largest difference {figures}: {verdict}", flush=True)


def _print_facts(found: RerankerModel, facts: dict[str, Any], tokenizer_json: str) -> None:
    """Print what is known of a model for a person, a line for each thing."""
    sample, weights = facts["sample"], facts["weights"]
    size = f"{weights['weights'] / 1e6:,.1f} M weights, {weights['bytes'] / 2**30:,.2f} GiB as {', '.join(weights['dtypes'])}"
    lines = {
        "model": f"{facts['model']}" + (f" at commit {facts['revision']}" if facts["revision"] else ""),
        "family": f"{facts['family']}, read from {', '.join(facts['read_from'])}",
        "architecture": facts["architecture"],
        "weight files": f"{', '.join(weights['files'])}: {weights['tensors']:,} tensors, {size}",
        "prompt": repr(facts["prompt"])
        if facts["prompt"] != "{query}{document}"
        else "the tokenizer's own form of a pair",
        "sample": f"query {sample['query']!r}, document {sample['document']!r}",
        "sample text": repr(Tokenizer.from_str(tokenizer_json).decode(sample["ids"], skip_special_tokens=False)),
        "sample prompt": _format_ids(sample),
        "cut": format_cut(found.description, sample, facts["max_length"]),
        "built for": f"{facts['positions']:,} tokens",
        "logit": facts["logit"] + "".join(f"; {token} is {text!r}" for token, text in facts["tokens"].items()),
        "score": facts["score"],
        "vllm": facts["vllm"] + f", weights packed as {facts['quantization']}" * bool(facts["quantization"]),
        "transformers": facts["transformers"] or "not run: its weights are quantised",
    }
    for name, value in lines.items():
        print(f"{name:16} {value}")


def _format_ids(sample: dict[str, Any]) -> str:
    """Return the ids of the sample prompt, with a mark where the document begins and where it ends."""
    ids, begin = sample["ids"], sample["before_document"]
    end = begin + sample["document_tokens"]
    parts = [" ".join(map(str, part)) for part in (ids[:begin], ids[begin:end], ids[end:])]
    return f"{len(ids)} ids: {parts[0]} | document: {parts[1]} | {parts[2]}"
