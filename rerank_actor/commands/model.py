"""Say what a model is before it scores: `python -m jobs.model MODEL`; `--check` compares an engine with its reference."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rerank_actor.benchmark.fidelity import (
    COLUMNS,
    Fidelity,
    compare_logits,
    compute_held_out,
    make_rows,
)
from rerank_actor.benchmark.ndcg import load_ranking_queries
from rerank_actor.commands.command_line import EXIT_FAILED, Parser, add_job_flags
from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.inspection import (
    EngineDifference,
    compare_engine,
    format_cut,
    inspect_model,
    list_precisions,
)
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
EVERY = 8  # of the held-out queries, those whose candidates are scored by each precision


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
        "--check",
        action="store_true",
        help="compare --engine with the reference, in float32, --dtype and --quantization, and say what each does to ranking",
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
    checked = []
    for difference, fidelity in _check(job, found, encoder) if checks or job.check_scores else ():
        checked.append((difference, fidelity))
        if not as_json:
            _print_difference(difference)
    if as_json:
        record = {**facts, "checks": [{**asdict(one), "fidelity": other and asdict(other)} for one, other in checked]}
        print(json.dumps(record, indent=2, ensure_ascii=False))
    elif len(checked) > 1:
        _print_fidelity({_name_precision(one): other for one, other in checked if other is not None})
    return EXIT_FAILED if any(one.problem for one, _ in checked) else 0


def _check(
    job: EngineSettings, found: RerankerModel, encoder: PairEncoder
) -> Iterator[tuple[EngineDifference, Fidelity | None]]:
    """Compare the engine with the reference in each precision, and each precision with float32, which comes first."""
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
    precisions, queries = list_precisions(spec), load_ranking_queries()[::EVERY]
    base: np.ndarray | None = None
    for difference, engine in compare_engine(spec, precisions):
        logits = compute_held_out(engine, encoder, queries) if len(precisions) > 1 else None
        base = logits if base is None else base
        yield difference, compare_logits(logits, base, queries) if logits is not None and base is not None else None


def _name_precision(item: EngineDifference) -> str:
    return item.dtype + f" {item.quantization}" * bool(item.quantization)


def _print_fidelity(found: dict[str, Fidelity]) -> None:
    """Print what each precision does to the candidates of the held-out queries."""
    pairs = next(iter(found.values())).pairs
    print(f"{'precision':16} logits of {pairs:,} held-out pairs beside those of float32 by the same engine")
    rows = [list(COLUMNS), *make_rows(found)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_difference(item: EngineDifference) -> None:
    verdict = item.problem or "equal within the noise of the dtype"
    spread = max(item.reference_logits) - min(item.reference_logits)
    figures = f"{item.max_difference:.2g} over a spread of {spread:.3g}, allowed {item.allowed:.2g}"
    compared = f"{item.engine} {item.version} in {_name_precision(item)} against {item.reference} in float32"
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
