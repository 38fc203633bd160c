"""The preflight of mining: a job checked against its input and its output, before anything is written or started.

Takes a `MineJob`, gives a `PreparedMining`, or refuses. The settings it collects are the fingerprint of every mined row: the
rules, the columns and the scored files, each with size and version mark.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from rerank_actor import storage
from rerank_actor.errors import InputError, OutputConflictError
from rerank_actor.fingerprint import hash_fingerprint, list_differing, refuse_other_rules
from rerank_actor.inputs.rankings.qrels import load_qrels
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.judging.suspects_file import refuse_taken
from rerank_actor.mining.judging.verdicts import Verdicts, load_verdicts
from rerank_actor.mining.output import MineOutput
from rerank_actor.mining.rules import VERSION, MiningRules
from rerank_actor.mining.scored import ScoredInput, fit_labels, load_scored
from rerank_actor.outputs.folder import Output

AFRESH = "choose another --output, or --overwrite to start afresh"


@dataclass(frozen=True)
class PreparedMining:
    """What is known of a mining job before anything is written.

    Attributes:
        rule_sets: the rules as given and those to compare them with, by name.
        settings: everything that can change a mined row.
        stored: what an earlier run of the same job wrote down, None where there is nothing to go on with.
        replaces: whether something lies in the output that is to be deleted first.
    """

    job: MineJob
    output: MineOutput
    scored: ScoredInput
    qrels: pa.Table | None
    rule_sets: dict[str, MiningRules]
    settings: dict[str, Any]
    stored: dict[str, Any] | None
    replaces: bool
    verdicts: Verdicts | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of the settings."""
        return hash_fingerprint(self.settings)

    @property
    def source(self) -> str:
        """The flag that says what is positive, empty where positives are found by score."""
        if self.job.qrels is not None:
            return f"--qrels {self.job.qrels}"
        if self.job.label_column is not None:
            return f"--label-column `{self.job.label_column}`"
        return f"--verdicts {self.job.verdicts}" if self.job.is_labelled else ""


def prepare_mining(job: MineJob) -> PreparedMining:
    """Check a job against its input and its output; nothing is written and nothing started.

    Raises:
        JobError: something about the job or the input is wrong.
        OutputConflictError: the output holds something else.
        StorageError: storage does not answer.
    """
    job = fit_labels(job)
    rule_sets = job.rule_sets()
    scored = load_scored(job)
    qrels = load_qrels(job.qrels, job.min_relevance) if job.qrels else None
    verdicts = load_verdicts(job.verdicts, job.min_relevance) if job.verdicts else None
    if verdicts is not None and verdicts.by_ids and None in (scored.columns.query_id, scored.columns.document_id):
        raise InputError(
            f"--verdicts {verdicts.uri}: names queries and documents by id: give --query-id-column and --document-id-column"
        )
    _refuse_inside(job)
    settings = _collect_settings(job, scored, qrels)
    settings |= {"verdicts_digest": verdicts.digest} if verdicts is not None else {}
    settings |= {"suspects": True} if job.suspects else {}
    output = MineOutput(job.output)
    if Output(job.output).load_plan() is not None:
        raise OutputConflictError(
            f"{job.output}: is the output of a scoring job; choose another --output for what is mined from it",
            uri=job.output,
        )
    prepared = look_again(
        PreparedMining(job, output, scored, qrels, rule_sets, settings, None, job.overwrite, verdicts)
    )
    if job.suspects is not None and not job.what_if:
        refuse_taken(output, job.suspects, afresh=prepared.replaces)
    return prepared


def _refuse_inside(job: MineJob) -> None:
    """Refuse to write suspects over verdicts, or where readers of scores or training data would take them for these."""
    if job.suspects is not None and job.verdicts is not None and storage.is_within(job.suspects, job.verdicts):
        raise InputError(
            f"--suspects {job.suspects}: holds the verdicts of --verdicts; name another file, and keep that one",
            uri=job.suspects,
        )
    for uri in (*job.scored, job.output):
        if job.suspects is not None and storage.is_within(job.suspects, uri):
            raise InputError(
                f"--suspects {job.suspects}: lies in {uri}, whose readers would read it too; choose a file beside it",
                uri=job.suspects,
            )


def look_again(prepared: PreparedMining) -> PreparedMining:
    """Return a job with what its output holds now, which another run may have changed until the lease was held.

    Raises:
        OutputConflictError: the output holds something else.
    """
    if prepared.job.overwrite or prepared.job.what_if:
        return prepared
    stored, replaces = _load_earlier(prepared.output, prepared.settings)
    settings = prepared.settings if stored is None else stored["settings"]
    return replace(prepared, settings=settings, stored=stored, replaces=replaces)


def _load_earlier(output: MineOutput, settings: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """Return the stored plan of an earlier run that can be continued, and whether what is left of it is to be deleted."""
    stored = output.load_stored_plan()
    has_data = bool(output.list_data()) or any(
        item.uri.rpartition("/")[2].startswith("part-") for item in storage.list_children(output.uri)
    )
    if stored is None:
        if has_data or output.has_data_by():
            raise OutputConflictError(
                f"{output.uri}: holds parts but no plan of a mining job, so it is not known what they are; choose another "
                "--output, or --overwrite",
                uri=output.uri,
            )
        return None, False
    if stored["settings"] == settings:
        return stored, False
    if list_differing(stored["settings"], settings) == ["definition_version"] and output.read_success() is not None:
        return stored, False  # what was mined whole stays what it is
    if has_data:
        refuse_other_rules(output.uri, "data mined with", AFRESH, stored["settings"], settings)
    return None, True  # the other job mined no row, so that nothing can be mixed up


def refuse_older(output: MineOutput, stored: dict[str, Any]) -> None:
    """Refuse to go on with what rules of another version left half done.

    Raises:
        OutputConflictError: they did.
    """
    settings = stored["settings"]
    refuse_other_rules(output.uri, "data mined with", AFRESH, settings, {**settings, "definition_version": VERSION})


def _collect_settings(job: MineJob, scored: ScoredInput, qrels: pa.Table | None) -> dict[str, Any]:
    prompt = job.prompt if job.prompt is not None else scored.prompt
    settings = {
        **job.mining_settings(),
        **scored.columns.describe(),
        **{source.flag.removeprefix("--"): source.describe() for source in scored.sources},
        "prompt": prompt if job.format == "flagembedding" else None,
        "definition_version": VERSION,
        "inputs": [part.identity for part in scored.parts],
    }
    if scored.columns.teachers:
        settings["teachers"] = [scored.columns.teachers[part.uri] for part in scored.parts]
    if qrels is not None:
        ordered = qrels.sort_by([("query_id", "ascending"), ("document_id", "ascending")])
        text = "\n".join(f"{query}\t{document}" for query, document in zip(*ordered.to_pydict().values(), strict=True))
        del settings["qrels"]  # what is judged counts, not where that is written
        settings["qrels_digest"] = hashlib.sha256(text.encode()).hexdigest()[:32]
    return settings
