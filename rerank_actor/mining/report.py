"""The report of a mining: what went in, what each rule removed, what came out, with examples; as HTML and as JSON.

Takes the tally of all units. The JSON holds every number of the HTML under the names of the tally. Knows nothing of
storage.
"""

from collections.abc import Mapping
from typing import Any

from rerank_actor.mining.job import MineJob
from rerank_actor.mining.judging.verdicts import NAMES
from rerank_actor.mining.rules import MiningRules
from rerank_actor.mining.tally import BIN_WIDTHS, MiningTally
from rerank_actor.mining.teachers import list_agreement
from rerank_actor.outputs.report.html import (
    Page,
    format_number,
    make_figures,
    make_funnel,
    make_grid,
    make_histogram,
    make_table,
    make_text,
)

STEPS = {
    "unscored": "no score",
    "duplicate": "same text as a better-scored candidate",
    "equal_to_positive": "same text as a positive, or one judged unsure, of the same question (in any writing, under any id)",
    "unusable": "empty, or the query itself",
    "weak_positives": "weak positives",
    "no_positive": "of queries without a positive",
    "positive": "are positives",
    "rank_window": "outside --rank-window",
    "depth": "below --depth",
    "unsure": "judged unsure",
    "promoted": "promoted to positive",
    "false_negatives": "scored above a positive",
    "absolute_margin": "--absolute-margin",
    "relative_margin": "--relative-margin",
    "margin_pos": "--margin-pos",
    "perc_pos": "--perc-pos",
    "max_score": "--max-score",
    "min_score": "--min-score",
    "max_disagreement": "--max-disagreement",
    "uncertain_band": "--uncertain-band",
    "near_duplicates": "--near-duplicates",
    "skip_top": "--skip-top",
    "num_negatives": "beyond --num-negatives",
    "min_negatives": "--min-negatives",
}
HOW_TO_SCORE = (
    "to score these too, give the judgements, as a text file, to jobs.score: --format qrels --input FILE with the --queries, "
    "--corpus and model of the candidates and another --output, and name both outputs with --scored"
)
RULE_STEPS = ("false_negatives", *(name for name, words in STEPS.items() if words.rpartition(" ")[2].startswith("--")))


def list_funnel(tally: MiningTally) -> list[tuple[str, int, int]]:
    """Return each step that removed pairs, in words, how many it removed and how many were left behind it."""
    left = tally.counts["pairs"] + tally.removed["unscored"]
    funnel = []
    for step, words in STEPS.items():
        if removed := tally.removed[step]:
            left -= removed
            funnel.append((words, removed, left))
    return funnel


def summarize(tally: MiningTally, rules: MiningRules, *, examples: int) -> dict[str, Any]:
    """Return the numbers of a report, as JSON can hold them."""
    counts = {name: count for name, count in sorted(tally.counts.items()) if not name.startswith("agreement ")}
    agreement = list_agreement(tally.counts)
    kept = tally.counts["queries_kept"]
    return {
        "counts": counts,
        "negatives_per_query": tally.counts["negatives"] / kept if kept else None,
        "funnel": [{"step": step, "removed": removed, "left": left} for step, removed, left in list_funnel(tally)],
        "values": {
            "space": tally.space,
            **{name: getattr(tally, name).summarize() for name in ("positives", "negatives", "margins")},
        },
        "bins": {
            "width": BIN_WIDTHS[tally.space],
            **{
                name: {str(number): count for number, count in sorted(getattr(tally, name).bins.items())}
                for name in ("positives", "negatives", "margins")
            },
        },
        **({"agreement": agreement} if agreement else {}),
        "rules": rules.define(),
        "examples": [
            {name: value for name, value in example.items() if name != "ticket"}
            for example in tally.pick_examples(examples)
        ],
    }


def summarize_values(
    tallies: Mapping[str, MiningTally], rules: MiningRules, own: Mapping[str, MiningRules]
) -> dict[str, Any]:
    """Return as `by_value` the numbers of each value of the column that mining went by; empty where it went by none."""
    found = {
        name.removeprefix("by "): summarize(tally, own.get(name.removeprefix("by "), rules), examples=0)
        for name, tally in sorted(tallies.items())
        if name.startswith("by ")
    }
    return {"by_value": found} if found else {}


def list_remarks(tally: MiningTally, job: MineJob, rules: MiningRules, source: str) -> list[str]:
    """Return in sentences what was left out that the user may not expect.

    Args:
        tally: of all units.
        job: what was mined.
        rules: as given.
        source: the flag that says what is positive, empty where positives are found by score.
    """
    counts, least = tally.counts, f"--min-positive-score {job.min_positive_score}"
    remarks = []
    if counts["queries_without_positive"]:
        remarks.append(
            f"{source or least}: {counts['queries_without_positive']:,} of {counts['queries']:,} queries have no positive; "
            "they are left out"
        )
    if counts["queries_of_several_ids"]:
        remarks.append(
            f"--query-id-column: {counts['queries_of_several_ids']:,} of {counts['queries']:,} texts of queries stand for "
            "several ids each, whose candidates and positives were taken together; name the column of ids to mine them apart"
        )
    if counts["unmatched_judgements"]:
        remarks.append(
            f"{source}: {counts['queries_lacking_positives']:,} of {counts['judged_queries']:,} judged queries have a positive "
            f"that is not among their scored candidates ({counts['unmatched_judgements']:,} judgements); {HOW_TO_SCORE}"
        )
    if counts["judged_queries_without_candidates"]:
        remarks.append(
            f"{source}: {counts['judged_queries_without_candidates']:,} more judged queries have no scored candidate at all"
        )
    if counts["weak_positives"]:
        done = "dropped" if job.weak_positives == "drop" else "kept (--weak-positives drop leaves them out)"
        remarks.append(f"{least}: {counts['weak_positives']:,} positives are below; {done}")
    if job.verdicts is not None:
        said = ", ".join(f"{counts[f'verdicts_{name}']:,} {name.replace('_', ' ')}" for name in NAMES.values())
        others = (
            (counts["verdicts_against_labels"], "take a label's positive away"),
            (counts["verdicts_open"], "rows have no verdict yet"),
            (counts["verdicts_unknown"], "are of pairs that are not among the scored ones and are left out"),
        )
        more = "".join(f"; {number:,} {words}" for number, words in others if number)
        remarks.append(f"--verdicts {job.verdicts}: {said}{more}")
    if counts["queries_short_of_random"]:
        remarks.append(
            f"--random-negatives {rules.random_negatives}: {counts['queries_short_of_random']:,} queries got fewer, because "
            "the corpus has no more documents that are none of their candidates"
        )
    if counts["queries_short"]:
        deeper = "; --depth all looks further down their rankings" if rules.depth != "all" else ""
        remarks.append(
            f"--min-negatives {rules.min_negatives}: {counts['queries_short']:,} of {counts['queries']:,} queries have "
            f"fewer negatives left; they are dropped{deeper}"
        )
    return remarks


def explain_empty(tally: MiningTally) -> str:
    """Return why no negative is left, and what to loosen."""
    heaviest = ", ".join(f"{words} {number:,}" for words, number in list_heaviest(tally)[:4])
    counts = tally.counts
    if counts["queries_without_positive"] == counts["queries"]:
        return f"none of {counts['queries']:,} queries has a positive; lower --min-positive-score"
    if heaviest:
        return f"of {counts['pairs']:,} pairs they removed: {heaviest}; loosen these"
    return "no query has a candidate besides its positives; score more documents for each query"


def render_report(numbers: dict[str, Any], about: dict[str, str]) -> str:
    """Return the page of `summarize`'s numbers; `about` says what was mined, in short words."""
    counts, values = numbers["counts"], numbers["values"]
    page = Page("Mined training data", about=" · ".join(f"{name} {words}" for name, words in about.items()))
    per_query = numbers["negatives_per_query"]
    figures = {
        "queries kept": f"{counts.get('queries_kept', 0):,} of {counts.get('queries', 0):,}",
        "positives": f"{counts.get('positives', 0):,}",
        "negatives": f"{counts.get('negatives', 0):,}",
        "negatives a query": "-" if per_query is None else f"{per_query:.2f}",
        "suspected false negatives": f"{counts.get('suspected_false_negatives', 0):,}",
        "scored pairs": f"{counts.get('pairs', 0):,}",
    }
    page.add("In short", make_figures(figures), make_table(["queries and positives", "number"], _list_counts(counts)))
    total = (numbers["funnel"][0]["removed"] + numbers["funnel"][0]["left"]) if numbers["funnel"] else 0
    steps = [(one["step"], one["removed"], one["left"]) for one in numbers["funnel"]]
    page.add(
        "What each step left",
        make_text(
            "Pairs, in the order of the steps, and how many each removed; what the last leaves are the negatives."
        ),
        make_funnel("all pairs", total, steps),
    )
    named = {"positives": "positives", "negatives": "negatives"}
    bins = {name: _to_bins(numbers["bins"][name]) for name in (*named, "margins")}
    width = numbers["bins"]["width"]
    page.add(f"{values['space'].capitalize()}s", make_histogram({name: bins[name] for name in named}, width))
    page.add("Margin: positive minus negative", make_histogram({"margin": bins["margins"]}, width))
    for value, own in numbers.get("by_value", {}).items():
        _add_value(page, value, own, numbers["rules"])
    rules = [(name.replace("_", "-"), words) for name, words in numbers["rules"].items()]
    measures = ["count", "mean", "std", "min", "25%", "50%", "75%", "max"]
    rows = [
        [measure, *(values[name].get(measure, "-") for name in ("positives", "negatives", "margins"))]
        for measure in measures
    ]
    page.add("Distribution", make_table([values["space"], "positive", "negative", "difference"], rows))
    page.add("Rules", make_table(["rule", "definition (s: a candidate's value)"], rules))
    if agreement := numbers.get("agreement"):
        rows = [
            [
                " and ".join(map(str, one["teachers"])),
                one["pairs"],
                one["correlation"] or "-",
                one["kendall_tau"] or "-",
            ]
            for one in agreement
        ]
        page.add(
            "Agreement of the teachers, by their number in --scored",
            make_table(["teachers", "pairs", "correlation of logits", "Kendall's tau, mean over queries"], rows),
            make_text(
                "Each square: of the candidates in a tenth of their query by one teacher, the share that is in a tenth by the "
                "other, the best tenth first. Teachers that agree have dark squares from the upper left to the lower right."
            ),
            *(
                make_grid(one["classes"], *(f"tenths by teacher {number}" for number in one["teachers"]))
                for one in agreement
            ),
        )
    if numbers["examples"]:
        page.add(
            "Examples, from the smallest margin to the largest",
            make_table(
                ["margin", "query", "positive", "negative"],
                [
                    [
                        one["margin"],
                        one["query"],
                        f"[{format_number(one['positive_value'])}] {one['positive']}",
                        f"[{format_number(one['negative_value'])}] {one['negative']}",
                    ]
                    for one in numbers["examples"]
                ],
            ),
        )
    return page.render()


def _add_value(page: Page, value: str, numbers: dict[str, Any], rules: dict[str, str]) -> None:
    """Add the section of a value: its counts, what each step removed, and where its rules are others."""
    counts, margins = numbers["counts"], numbers["values"]["margins"]
    names = ("queries_kept", "queries", "positives", "negatives", "suspected_false_negatives", "pairs")
    rows = [(name.replace("_", " "), counts.get(name, 0)) for name in names]
    rows += [("mean margin", margins.get("mean", "-"))]
    steps = [(f"removed: {one['step']}", one["removed"]) for one in numbers["funnel"]]
    others = [(name.replace("_", "-"), words) for name, words in numbers["rules"].items() if rules.get(name) != words]
    page.add(
        f"Value {value}",
        make_table(["number", value], [*rows, *steps]),
        make_table(["rule of its own", "definition"], others),
    )


def _list_counts(counts: dict[str, int]) -> list[tuple[str, int]]:
    labels = {
        "queries": "queries with a scored pair",
        "queries_without_positive": "queries without a positive, left out",
        "queries_of_several_ids": "queries that several ids stand for, taken together by their text",
        "queries_short": "queries with fewer negatives than --min-negatives, dropped",
        "unscored_positives": "positives without a score, left out",
        "unmatched_judgements": "judgements of these queries that no scored pair meets",
        "queries_lacking_positives": "queries that these judgements are of",
        "judged_queries_without_candidates": "further judged queries without a scored pair",
        "weak_positives": "positives below --min-positive-score",
        "promoted": "candidates promoted to positive",
        "verdicts_relevant": "candidates judged relevant, now positive",
        "verdicts_not_relevant": "candidates judged not relevant, which no rule suspects any more",
        "verdicts_unsure": "candidates judged unsure, neither positive nor negative",
        "random_negatives": "random negatives, beside the others",
    }
    return [(words, counts.get(name, 0)) for name, words in labels.items()]


def _to_bins(bins: dict[str, int]) -> dict[int, int]:
    return {int(number): count for number, count in bins.items()}


def list_heaviest(tally: MiningTally) -> list[tuple[str, int]]:
    """Return the rules that removed candidates, in words, those that removed most first."""
    removed = [(STEPS[name], tally.removed[name]) for name in RULE_STEPS if tally.removed[name]]
    return sorted(removed, key=lambda step: -step[1])


def tabulate_sets(tallies: dict[str, MiningTally]) -> list[dict[str, Any]]:
    """Return a row for each rule set: its name, and what it would keep."""
    rows = []
    for name, tally in tallies.items():
        counts, kept = tally.counts, tally.counts["queries_kept"]
        margins = tally.margins.summarize()
        rows.append(
            {
                "rules": name,
                "queries_kept": kept,
                "queries": counts["queries"],
                "negatives": counts["negatives"],
                "negatives_per_query": counts["negatives"] / kept if kept else None,
                "mean_margin": margins.get("mean"),
                "margin_space": tally.space,
                "suspected_false_negatives": counts["suspected_false_negatives"],
            }
        )
    return rows
