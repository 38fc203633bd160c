"""The mining job: what a user asks for, as one frozen record whose fields are the flags and the keys of the job file.

Gives the rules, and the settings of the fingerprint: everything that can change a mined row. Knows nothing of argparse
or of what the scored output holds.
"""

import re
from typing import Any, Self

from pydantic import model_validator

from rerank_actor.errors import JobError
from rerank_actor.job import ClusterSettings
from rerank_actor.job_file import check_job, suggest
from rerank_actor.mining.rules import MiningRules
from rerank_actor.mining.settings import (
    SUSPECT_SUFFIXES,
    MinedSettings,
    PositiveSettings,
    RuleSettings,
    ScoredSettings,
    TaskSettings,
    TeacherSettings,
)
from rerank_actor.mining.teachers import Combination

SETS_AT_ONCE = 20
RULES_OF_ALL = ("space", "random_negatives", "seed")  # that values do not have of their own
RULES = tuple(name for name in MiningRules.__dataclass_fields__ if name != "labelled")


class MineJob(
    ClusterSettings, TaskSettings, MinedSettings, TeacherSettings, RuleSettings, PositiveSettings, ScoredSettings
):
    """One mining job: training data of stored scores."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for name in ("scored", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: give it as a flag or as `{name}:` in the job file")
        if self.label_column is not None and self.qrels is not None:
            raise ValueError("--label-column and --qrels both say what is positive: give one of them")
        if self.positive_labels and self.label_column is None:
            raise ValueError("--positive-labels says what the labels of --label-column mean: give that too")
        if self.teacher == "none" and (self.normalize != "none" or self.temperature is not None):
            raise ValueError(
                "--normalize and --temperature are for teacher values: give --teacher score or --teacher logit"
            )
        if self.teacher == "none" and self.format == "tevatron-distillation":
            raise ValueError(
                "--format tevatron-distillation holds teacher values: give --teacher score or --teacher logit"
            )
        self._check_teachers()
        self._check_suspects()
        self._check_values()
        if self.teacher != "none" and self.random_negatives:
            raise ValueError(
                "--random-negatives are not scored, so that they have no teacher value: leave out --teacher, or score what was "
                "mined without it, and mine that"
            )
        if self.num_negatives_column is not None and self.format == "n-tuple":
            raise ValueError("--format n-tuple has as many negatives in each row: leave out --num-negatives-column")
        self.check_window()
        return self

    def _check_teachers(self) -> None:
        """Refuse flags of several teachers that do not go together."""
        if self.combine == "none":
            for name in ("weights", "max_disagreement"):
                if getattr(self, name) not in ([], None):
                    raise ValueError(f"--{name.replace('_', '-')} is for several teachers: give --combine too")
            return
        if len({uri.rstrip("/") for uri in self.scored}) < max(2, len(self.scored)):
            raise ValueError("--combine takes an output of each teacher: give several with --scored, each once")
        if self.weights and (self.combine in ("min", "max") or len(self.weights) != len(self.scored)):
            raise ValueError(
                f"--weights are for --combine mean, zscore or rank, one for each of the {len(self.scored)} of --scored"
            )
        has_scores = "score" in self.rules().spaces or self.teacher == "score"
        if has_scores and self.combine in ("zscore", "rank"):
            raise ValueError(
                f"--combine {self.combine} gives no probability: give --space logit, thresholds in it and --teacher logit"
            )

    def _check_suspects(self) -> None:
        """Refuse flags of false negatives that do not go together."""
        if self.promote_above is not None and self.false_negatives == "promote":
            raise ValueError(
                "--promote-above says which candidates become positive: leave out --false-negatives promote"
            )
        if self.allow_unknown_verdicts and self.verdicts is None:
            raise ValueError("--allow-unknown-verdicts is of no use without --verdicts")
        if self.suspects is not None and not self.suspects.endswith(SUSPECT_SUFFIXES):
            raise ValueError(
                f"--suspects {self.suspects}: give a file whose name ends in {' or '.join(SUSPECT_SUFFIXES)}"
            )
        rules = self.rules()
        if rules.uncertain_band is not None:
            space = rules.space_of(rules.uncertain_band)
            for name, bound in rules.bounds.items():
                if rules.space_of(bound) != space:
                    raise ValueError(
                        f"--uncertain-band is in {space}s and --{name.replace('_', '-')}, around which it lies, is not: give "
                        f"both in one space, as in X@{space}"
                    )

    def _check_values(self) -> None:
        """Refuse rules of values that do not go together."""
        if self.rules_by_value and self.by is None:
            raise ValueError("rules_by_value is for the values of a column: give --by COLUMN too")
        if self.by is not None and self.what_if:
            raise ValueError("--what-if compares rule sets over all queries: leave out --by")
        for value, changes in self.rules_by_value.items():
            for rule in changes:
                if rule not in RULES or rule in RULES_OF_ALL:
                    known = [name for name in RULES if name not in RULES_OF_ALL]
                    raise ValueError(
                        f"rules_by_value: `{rule}` of `{value}` is no rule that a value has of its "
                        f"own{suggest(rule, known)}; these are {', '.join(known)}"
                    )
            if self.format == "n-tuple" and changes.get("num_negatives", self.num_negatives) != self.num_negatives:
                raise ValueError("--format n-tuple has as many negatives in each row: leave out num_negatives")

    def value_rules(self) -> dict[str, MiningRules]:
        """Return the rules of the values that have their own.

        Raises:
            JobError: a value of a rule does not fit.
        """
        given = self.model_dump(exclude={"what_if", "rules_by_value"})
        return {
            value: check_job(MineJob, {**given, **changes}, f"rules_by_value of `{value}`").rules()
            for value, changes in self.rules_by_value.items()
        }

    @property
    def is_labelled(self) -> bool:
        """Whether positives are known beside those that are found by score."""
        judged = self.verdicts is not None and self.min_positive_score is None
        return self.label_column is not None or self.qrels is not None or judged

    @property
    def says_positives(self) -> bool:
        """Whether a flag says which documents are positive."""
        return self.is_labelled or self.min_positive_score is not None

    def combination(self) -> Combination | None:
        """Return how the scores of several teachers become one, None for one teacher."""
        if self.combine == "none":
            return None
        return Combination(self.combine, tuple(self.weights) or (1.0,) * len(self.scored))

    def rules(self) -> MiningRules:
        """Return the rules."""
        least = {"n-tuple": self.num_negatives, "labeled-pair": 0}.get(self.format, 1)
        if self.min_negatives is not None:
            least = max(self.min_negatives, least)
        given = {name: getattr(self, name) for name in RULES if name != "min_negatives"}
        return MiningRules(**given, labelled=self.is_labelled, min_negatives=least)

    def rule_sets(self) -> dict[str, MiningRules]:
        """Return the rules as given and those of each set of `--what-if`, by name.

        Raises:
            JobError: a set names what is no rule, or a value that does not fit.
        """
        if len(self.what_if) > SETS_AT_ONCE:
            raise JobError(f"--what-if: {len(self.what_if)} rule sets are more than the {SETS_AT_ONCE} of one table")
        sets = {"as given": self.rules()}
        for item in self.what_if:
            changes = item if isinstance(item, dict) else _parse_changes(item)
            name = " ".join(f"{rule.replace('_', '-')}={value}" for rule, value in changes.items())
            for rule in changes:
                if rule not in RULES:
                    wrong, known = rule.replace("_", "-"), [known_rule.replace("_", "-") for known_rule in RULES]
                    raise JobError(
                        f"--what-if: `{wrong}` is not a rule{suggest(wrong, known)}; rules are {', '.join(known)}"
                    )
            sets[name] = check_job(MineJob, {**self.model_dump(exclude={"what_if"}), **changes}, "--what-if").rules()
        return sets

    def mining_settings(self) -> dict[str, Any]:
        """Return the settings that can change a mined row: the job's share of the fingerprint."""
        names = ("query_column", "document_column", "query_id_column", "document_id_column", "title_column")
        labels = ("label_column", "qrels", "min_relevance")
        output = ("teacher", "normalize", "temperature", "format", "prompt")
        values = {name: getattr(self, name) for name in (*names, *labels, *output)}
        later: dict[str, Any] = {"positive_labels": sorted(self.positive_labels)} if self.positive_labels else {}
        if (combination := self.combination()) is not None:
            later["combine"] = {"method": combination.method, "weights": list(combination.weights)}
        for name in ("rank_column", "num_negatives_column"):
            later |= {name: getattr(self, name)} if getattr(self, name) is not None else {}
        if self.rules_by_value:
            later["rules_by_value"] = {value: rules.to_dict() for value, rules in sorted(self.value_rules().items())}
        return {**values, **later, **self.rules().to_dict()}


def _parse_changes(text: str) -> dict[str, str]:
    """Return the rules and values of `perc-pos=0.95 depth=all`."""
    changes = {}
    for piece in re.split(r"[,\s]+", text.strip()):
        name, separator, value = piece.partition("=")
        if not separator or not name or not value:
            raise JobError(f"--what-if: `{piece}` is not RULE=VALUE, as in 'perc-pos=0.95 depth=all'")
        changes[name.removeprefix("--").replace("-", "_")] = value
    return changes
