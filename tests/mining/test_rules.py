"""The rules of mining: each against a plain loop that follows the definition, and by itself at its border."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_actor.engines.base import compute_score
from rerank_actor.errors import JobError
from rerank_actor.job_file import check_job
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.near_duplicates import mark_near_duplicates
from rerank_actor.mining.rules import MiningRules, Threshold
from rerank_actor.mining.select import Candidates, Selection, select

EVERY = MiningRules(depth="all", false_negatives="report", num_negatives=100)


def make_candidates(rows: list[tuple[Any, ...]]) -> Candidates:
    """Return candidates of rows (query, text, logit, positive), in the order of the input."""
    numbers = {query: number for number, query in enumerate(dict.fromkeys(row[0] for row in rows))}
    texts = {text: number for number, text in enumerate(dict.fromkeys(row[1] for row in rows))}
    logits = np.array([row[2] for row in rows], np.float32)
    return Candidates(
        query=np.array([numbers[row[0]] for row in rows], np.int64),
        text=np.array([texts[row[1]] for row in rows], np.int64),
        values={"score": compute_score(logits), "logit": logits},
        positive=np.array([bool(row[3]) for row in rows]),
        unusable=np.array([row[1] == "" for row in rows]),
        position=np.arange(len(rows)),
        query_hash=np.array([hash(query) % 2**61 for query in numbers], np.uint64),
    )


def name_chosen(rows: list[tuple[Any, ...]], found: np.ndarray) -> list[tuple[Any, Any]]:
    return [(rows[row][0], rows[row][1]) for row in found]


def mine(rows: list[tuple[Any, ...]], rules: MiningRules = EVERY, max_positives: int = 1, **changes: Any) -> Selection:
    rules = replace(
        rules, **{name: Threshold.parse(v) if isinstance(v, str) and "@" in v else v for name, v in changes.items()}
    )
    return select(make_candidates(rows), rules, max_positives)


def negatives_of(rows: list[tuple[Any, ...]], **changes: Any) -> list[str]:
    return [text for _, text in name_chosen(rows, mine(rows, **changes).negatives)]


def logit_rows(positive: float | list[float], *others: float) -> list[tuple[Any, ...]]:
    positives = positive if isinstance(positive, list) else [positive]
    rows: list[tuple[Any, ...]] = [("q", f"p{number}", value, True) for number, value in enumerate(positives)]
    return rows + [("q", f"{value:g}", value, False) for value in others]


LOGIT = replace(EVERY, space="logit")


def logits_left(rows: list[tuple[Any, ...]], **changes: Any) -> list[float]:
    return [float(text) for _, text in name_chosen(rows, mine(rows, LOGIT, **changes).negatives)]


def test_absolute_margin_keeps_what_is_at_least_so_far_below() -> None:
    assert logits_left(logit_rows(4, 5, 3, 2, 1.5), absolute_margin=Threshold(2)) == [2, 1.5]


def test_relative_margin_of_a_positive_value_is_a_share_of_it() -> None:
    assert logits_left(logit_rows(4, 4, 3.5, 3, 2), relative_margin=Threshold(0.25)) == [3, 2]


def test_relative_margin_of_a_negative_value_lies_below_it_too() -> None:
    assert logits_left(logit_rows(-4, -3.5, -4, -4.5, -5, -6), relative_margin=Threshold(0.25)) == [-5, -6]


def test_margin_pos_keeps_what_is_further_below() -> None:
    assert logits_left(logit_rows(4, 3, 2, 1.5), margin_pos=Threshold(2)) == [1.5]


def test_perc_pos_keeps_what_is_below_the_share() -> None:
    assert logits_left(logit_rows(4, 3.5, 3, 2.5), perc_pos=Threshold(0.75)) == [2.5]
    assert logits_left(logit_rows(-4, -4.5, -5, -5.5), perc_pos=Threshold(0.75)) == [-5.5]


def test_bounds_keep_their_own_value() -> None:
    assert logits_left(logit_rows(9, 5, 4, 3, 2, 1), max_score=Threshold(4), min_score=Threshold(2)) == [4, 3, 2]


def test_threshold_in_another_space_than_the_rules() -> None:
    assert negatives_of(logit_rows(9, 5, 2, -1), max_score="2@logit") == ["2", "-1"]
    assert logits_left(logit_rows(9, 5, 2, -1), max_score=Threshold(0.5, "score")) == [-1]
    assert negatives_of(logit_rows(9, 8, 5), absolute_margin="2@logit") == ["5"]


def test_margins_go_by_the_lowest_positive_of_the_query() -> None:
    rows = [*logit_rows([8, 4], 5, 3, 2), ("other", "x", 9, True), ("other", "y", 6, False)]
    found = name_chosen(rows, mine(rows, LOGIT, max_positives=2, absolute_margin=Threshold(1)).negatives)
    assert found == [("q", "3"), ("q", "2"), ("other", "y")]


def test_false_negatives_above_the_lowest_positive_are_dropped_reported_or_promoted() -> None:
    rows = logit_rows([8, 4], 9, 6, 4, 3)
    dropped, reported, promoted = (mine(rows, LOGIT, 2, false_negatives=what) for what in ("drop", "report", "promote"))
    assert name_chosen(rows, dropped.negatives) == [("q", "4"), ("q", "3")]
    assert dropped.removed["false_negatives"] == 2
    assert name_chosen(rows, reported.negatives) == [("q", "9"), ("q", "6"), ("q", "4"), ("q", "3")]
    assert name_chosen(rows, promoted.positives) == [("q", "p0"), ("q", "p1"), ("q", "9")]
    assert name_chosen(rows, promoted.negatives) == [("q", "4"), ("q", "3")]
    turned = mine(rows[::-1], LOGIT, 2, false_negatives="promote")
    assert name_chosen(rows[::-1], turned.positives) == [("q", "p1"), ("q", "p0"), ("q", "9")], (
        "promoted ones come last"
    )
    assert [found.counts["suspected_false_negatives"] for found in (dropped, reported, promoted)] == [2, 2, 2]
    assert (promoted.counts["promoted"], promoted.removed["false_negatives"]) == (1, 1)


@pytest.mark.parametrize("space", ["score", "logit"])
@pytest.mark.parametrize("order", [1, -1])
def test_candidate_above_a_positive_is_told_where_both_scores_are_one(space: Any, order: int) -> None:
    """A score is 1 from a logit of about 17 on."""
    rows = logit_rows([18, 19], 25, 18.5, 17.9, 3)[::order]
    dropped, promoted = (
        mine(rows, replace(EVERY, space=space, false_negatives=what), 2) for what in ("drop", "promote")
    )
    assert [text for _, text in name_chosen(rows, dropped.negatives)] == ["17.9", "3"]
    assert dropped.counts["suspected_false_negatives"] == 2
    assert [text for _, text in name_chosen(rows, promoted.positives)][-1] == "25"
    assert promoted.counts["promoted"] == 1


def test_empty_text_is_neither_negative_nor_the_best_candidate() -> None:
    rows = [("q", "", 9, False), ("q", "a", 3, True), ("q", "b", 1, False), ("r", "", 2, True), ("r", "b", 1, False)]
    found = mine(rows, LOGIT)
    assert name_chosen(rows, found.negatives) == [("q", "b"), ("r", "b")]
    assert name_chosen(rows, found.positives) == [("q", "a"), ("r", "")], "what is labelled stays"
    assert found.removed["unusable"] == 1
    best = mine(rows[:3], LOGIT, labelled=False, min_positive_score=Threshold(1))
    assert name_chosen(rows, best.positives) == [("q", "a")]


def test_weak_positives_are_counted_or_dropped_before_margins_are_taken() -> None:
    rows = logit_rows([8, -5], 3, 2)
    weak = {"min_positive_score": Threshold(0), "absolute_margin": Threshold(1)}
    reported = mine(rows, LOGIT, 2, **weak)
    assert reported.counts["weak_positives"] == 1
    assert len(reported.negatives) == 0
    dropped = mine(rows, LOGIT, 2, weak_positives="drop", **weak)
    assert name_chosen(rows, dropped.positives) == [("q", "p0")]
    assert name_chosen(rows, dropped.negatives) == [("q", "3"), ("q", "2")]
    assert dropped.removed["weak_positives"] == 1


def test_without_labels_the_best_candidate_is_positive_if_it_is_good_enough() -> None:
    rows = [("q", "a", 1, False), ("q", "b", 3, False), ("r", "c", -2, False), ("r", "d", -3, False)]
    found = mine(rows, LOGIT, labelled=False, min_positive_score=Threshold(1))
    assert name_chosen(rows, found.positives) == [("q", "b")]
    assert name_chosen(rows, found.negatives) == [("q", "a")]
    assert found.counts["queries_without_positive"] == 1
    assert found.removed["no_positive"] == 2
    exact = mine(rows, LOGIT, labelled=False, min_positive_score=Threshold(3))
    assert name_chosen(rows, exact.positives) == [("q", "b")]


def test_text_of_a_positive_is_never_a_negative_and_other_texts_count_once() -> None:
    rows = [("q", "p", 7, True), ("q", "p", 5, False), ("q", "n", 2, False), ("q", "n", 3, False), ("r", "n", 1, True)]
    found = mine(rows, LOGIT)
    assert [rows[row][:3] for row in found.positives] == [("q", "p", 7)]
    assert [rows[row][:3] for row in found.negatives] == [("q", "n", 3)]
    assert (found.removed["equal_to_positive"], found.removed["duplicate"]) == (1, 1)


def test_label_of_a_text_holds_for_all_its_pairs_of_a_query() -> None:
    rows = [("q", "p", 5, True), ("q", "p", 7, False), ("q", "n", 2, False)]
    found = mine(rows, LOGIT)
    assert [rows[row][:3] for row in found.positives] == [("q", "p", 7)]
    assert name_chosen(rows, found.negatives) == [("q", "n")]


def test_skip_top_and_depth_count_what_the_other_rules_leave() -> None:
    rows = logit_rows(10, 9, 8, 7, 6, 5, 4, 3)
    assert logits_left(rows, skip_top=2) == [7, 6, 5, 4, 3]
    assert logits_left(rows, skip_top=2, depth=4) == [7, 6]
    assert logits_left(rows, skip_top=1, depth=3, max_score=Threshold(7)) == []
    assert logits_left(rows, skip_top=1, depth=6, max_score=Threshold(7)) == [6, 5, 4]


def test_depth_looks_at_as_many_more_as_a_query_may_have_positives() -> None:
    """As sentence-transformers, which retrieves range_max + most positives of any query."""
    rows = logit_rows(10, 9, 8, 7, 6)
    assert logits_left(rows, depth=2, max_score=Threshold(7), max_positives=1) == []
    assert logits_left(rows, depth=2, max_score=Threshold(7), max_positives=2) == [7]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"false_negatives": "report"}, 1 + 3 + 2),
        ({}, 1 + 30 + 2),
        ({"false_negatives": "report", "min_score": Threshold(1)}, 1 + 30 + 2),
        ({"false_negatives": "report", "perc_pos": Threshold(1)}, 1 + 30 + 2),
        ({"depth": 7}, 7),
        ({"depth": "all"}, None),
    ],
)
def test_depth_auto_is_that_of_sentence_transformers(changes: dict[str, Any], expected: int | None) -> None:
    assert replace(MiningRules(skip_top=1), **changes).resolve_depth(2) == expected


def test_queries_with_too_few_negatives_are_dropped_whole() -> None:
    rows = [*logit_rows(5, 4, 3), ("r", "p", 5, True), ("r", "n", 1, False)]
    found = mine(rows, LOGIT, min_negatives=2)
    assert name_chosen(rows, found.positives) == [("q", "p0")]
    assert found.counts["queries_short"] == 1
    assert found.removed["min_negatives"] == 1
    none = mine(rows, LOGIT, min_negatives=0, max_score=Threshold(-9))
    assert none.counts["queries_kept"] == 2


def test_ties_go_to_the_higher_logit_and_then_to_the_earlier_pair() -> None:
    rows = logit_rows(40, 30, 35, 35)
    rows[2], rows[3] = ("q", "first", 35, False), ("q", "second", 35, False)
    assert compute_score(np.array([30, 35], np.float32)).tolist() == [1, 1]
    assert negatives_of(rows) == ["first", "second", "30"]


def test_random_sampling_follows_the_seed_and_not_the_layout() -> None:
    rows = [("q", f"{value}", value, value == 99) for value in range(100)]
    others = [("r", f"{value}", value, value == 99) for value in range(100)]
    random_rules = replace(LOGIT, sampling="random", num_negatives=5)
    alone = name_chosen(rows, mine(rows, random_rules).negatives)
    mixed = random.Random(3).sample([*others, *rows], 200)
    together = [one for one in name_chosen(mixed, mine(mixed, random_rules).negatives) if one[0] == "q"]
    assert alone == together
    assert len(alone) == 5
    assert [int(text) for _, text in alone] == sorted((int(text) for _, text in alone), reverse=True)
    again = name_chosen(rows, mine(rows, random_rules, seed=1).negatives)
    assert again != alone
    assert sorted(alone) != sorted(name_chosen(rows, mine(rows, LOGIT, num_negatives=5).negatives))


def test_random_sampling_takes_every_place_about_equally_often() -> None:
    rows = [(f"q{number}", f"{value}", value, value == 9) for number in range(2000) for value in range(10)]
    found = mine(rows, replace(LOGIT, sampling="random", num_negatives=3))
    counts = np.bincount([int(rows[row][1]) for row in found.negatives], minlength=9)[:9]
    assert counts.sum() == 6000
    assert (abs(counts - 6000 / 9) < 100).all()


# A plain loop that follows the definition.


def mine_plainly(
    rows: list[tuple[Any, ...]], rules: MiningRules, max_positives: int
) -> dict[str, tuple[list[str], list[str]]]:
    """Return positives and negatives of each kept query, for sampling from the top."""
    scores = compute_score(np.array([row[2] for row in rows], np.float32))
    kept = {}
    for query in dict.fromkeys(row[0] for row in rows):
        own = [
            {"text": row[1], "logit": np.float32(row[2]), "score": score, "positive": row[3], "place": place}
            for place, (row, score) in enumerate(zip(rows, scores, strict=True))
            if row[0] == query
        ]
        own.sort(key=lambda one: (-one[rules.space], -one["logit"], one["place"]))
        labelled = {one["text"] for one in own if one["positive"]}
        ranking: list[dict[str, Any]] = []
        for one in own:
            if one["text"] not in {other["text"] for other in ranking}:
                ranking.append({**one, "positive": one["text"] in labelled})
        if not rules.labelled:
            for place, one in enumerate(ranking):
                one["positive"] = place == 0
        if rules.min_positive_score is not None:
            least = rules.min_positive_score
            weak = [one for one in ranking if one["positive"] and one[rules.space_of(least)] < np.float32(least.value)]
            if not rules.labelled:
                for one in weak:
                    one["positive"] = False
            elif rules.weak_positives == "drop":
                ranking = [one for one in ranking if one not in weak]
        positives = [one for one in ranking if one["positive"]]
        if not positives:
            continue
        depth = rules.resolve_depth(max_positives)
        pool = ranking if depth is None else ranking[: depth + max_positives]
        left = [one for one in pool if not one["positive"]]
        lowest = min(one[rules.space] for one in positives)
        highest = max(one[rules.space] for one in positives)
        promoted = []
        if rules.false_negatives != "report":
            if rules.false_negatives == "promote":
                promoted = [one for one in left if one[rules.space] > highest]
            left = [one for one in left if one[rules.space] <= lowest]

        def is_out(one: dict[str, Any], positives: list[dict[str, Any]] = positives) -> bool:
            for name in ("absolute_margin", "relative_margin", "margin_pos", "perc_pos", "max_score", "min_score"):
                rule = getattr(rules, name)
                if rule is None:
                    continue
                space, x = rules.space_of(rule), np.float32(rule.value)
                s, p = one[space], min(other[space] for other in positives)
                if {
                    "absolute_margin": s + x > p,
                    "relative_margin": s > p - abs(p) * x,
                    "margin_pos": s >= p - x,
                    "perc_pos": s >= p - abs(p) * np.float32(1 - rule.value),
                    "max_score": s > x,
                    "min_score": s < x,
                }[name]:
                    return True
            return False

        left = [one for one in left if not is_out(one)]
        left = left[rules.skip_top : depth][: rules.num_negatives]
        if len(left) >= rules.min_negatives:
            positives.sort(key=lambda one: one["place"])
            promoted.sort(key=lambda one: one["place"])
            kept[query] = ([one["text"] for one in (*positives, *promoted)], [one["text"] for one in left])
    return kept


numbers = st.sampled_from([-3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0])
optional = st.none() | st.builds(
    Threshold, st.sampled_from([0.05, 0.25, 0.5, 1.0]), st.sampled_from([None, "score", "logit"])
)
rule_sets = st.builds(
    MiningRules,
    space=st.sampled_from(["score", "logit"]),
    labelled=st.booleans(),
    min_positive_score=st.builds(Threshold, st.sampled_from([0.0, 0.5]), st.sampled_from([None, "logit"])),
    weak_positives=st.sampled_from(["report", "drop"]),
    skip_top=st.integers(0, 2),
    depth=st.sampled_from(["auto", "all", 3, 5]),
    max_score=optional,
    min_score=optional,
    absolute_margin=optional,
    relative_margin=optional,
    margin_pos=optional,
    perc_pos=optional,
    false_negatives=st.sampled_from(["drop", "promote", "report"]),
    num_negatives=st.integers(1, 4),
    min_negatives=st.integers(0, 2),
)
pairs = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("uvwxyz"), numbers, st.booleans()), min_size=1, max_size=24
)


@settings(max_examples=400, deadline=None)
@given(pairs, rule_sets, st.integers(1, 3))
def test_selection_is_that_of_a_plain_loop(rows: list[tuple[Any, ...]], rules: MiningRules, max_positives: int) -> None:
    expected = mine_plainly(rows, rules, max_positives)
    found = select(make_candidates(rows), rules, max_positives)
    assert name_chosen(rows, found.positives) == [
        (query, text) for query, (positives, _) in expected.items() for text in positives
    ]
    assert name_chosen(rows, found.negatives) == [
        (query, text) for query, (_, negatives) in expected.items() for text in negatives
    ]
    assert found.counts["queries_kept"] == len(expected)
    assert len(rows) - sum(found.removed.values()) == len(found.negatives), "each pair is removed once or a negative"


# Near-duplicates.


def compare_plainly(first: str, second: str) -> float:
    def cut(text: str) -> set[str]:
        plain = " ".join("".join(one if one.isalnum() else " " for one in text.lower()).split()).ljust(5, "\0")
        return {plain[start : start + 5] for start in range(len(plain) - 4)}

    return len(cut(first) & cut(second)) / len(cut(first) | cut(second))


words = st.lists(st.sampled_from(["das", "Haus", "steht", "noch", "天気がいい", "ですね", "x1"]), max_size=8).map(
    " ".join
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(words, min_size=1, max_size=6),
    st.lists(words, min_size=1, max_size=3),
    st.sampled_from([0.2, 0.5, 0.8, 1.0]),
)
def test_near_duplicates_are_those_of_the_sets_of_pieces(
    texts: list[str], positives: list[str], likeness: float
) -> None:
    found = mark_near_duplicates(
        pa.array(texts, pa.large_string()),
        np.zeros(len(texts), np.int64),
        pa.array(positives, pa.large_string()),
        np.zeros(len(positives), np.int64),
        likeness,
    )
    assert found.tolist() == [max(compare_plainly(one, other) for other in positives) >= likeness for one in texts]


def test_near_duplicates_look_at_their_own_query_and_at_small_differences() -> None:
    texts = pa.array(["The cat sat on the mat!", "the cat  sat on the mat", "a dog", "the cat sat on the mat"])
    found = mark_near_duplicates(
        texts, np.array([0, 0, 0, 1]), pa.array(["The cat sat, on the mat.", "a dog"]), np.array([0, 1]), 1.0
    )
    assert found.tolist() == [True, True, False, False]


# The job.


def make_job(**values: Any) -> MineJob:
    return check_job(MineJob, {"scored": ["/in"], "output": "/out", "label_column": "label", **values}, None, values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"qrels": "/qrels"}, "both say what is positive"),
        ({"label_column": None, "min_positive_score": "0.5", "positive_labels": "good"}, "--label-column"),
        ({"normalize": "min-max"}, "--teacher"),
        ({"temperature": 2}, "--teacher"),
        ({"format": "tevatron-distillation"}, "--teacher"),
        ({"format": "tripplet"}, "--format: input should be 'triplet'"),
        ({"max_score": "high"}, "--max-score: expected a number"),
        ({"max_score": "1@prob"}, "--max-score: expected a number"),
        ({"perc_pos": 95}, "--perc-pos: expected a share"),
        ({"absolute_margin": -1}, "--absolute-margin: expected a distance"),
        ({"depth": "deep"}, "--depth: expected a whole number"),
        ({"depth": 4, "skip_top": 2}, "--skip-top 2"),
        ({"min_negatives": 4}, "--min-negatives 4"),
        ({"scored": []}, "--scored is missing"),
        ({"scored": ["s3://key:secret@bucket/x"]}, "credentials"),
    ],
)
def test_job_that_does_not_fit_is_refused_by_the_name_of_the_flag(values: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError) as error:
        make_job(**values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_thresholds_survive_being_written_down() -> None:
    job = make_job(max_score="2@logit", absolute_margin=0.123456789, depth="7")
    again = MineJob(**job.model_dump(mode="json"))
    assert again == job
    assert again.rules().max_score == Threshold(2, "logit")


@pytest.mark.parametrize(("kind", "expected"), [("triplet", 1), ("n-tuple", 5), ("labeled-pair", 0), ("nemo", 1)])
def test_least_number_of_negatives_is_what_the_format_needs(kind: str, expected: int) -> None:
    assert make_job(format=kind, num_negatives=5).rules().min_negatives == expected


def test_rule_sets_are_the_rules_with_some_changed() -> None:
    job = make_job(perc_pos=0.95, what_if=["max-score=0.5 depth=all", {"sampling": "random"}])
    sets = job.rule_sets()
    assert list(sets) == ["as given", "max-score=0.5 depth=all", "sampling=random"]
    assert sets["max-score=0.5 depth=all"] == replace(sets["as given"], max_score=Threshold(0.5), depth="all")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-scor=1", "did you mean max-score"),
        ("max-score", "not RULE=VALUE"),
        ("max-score=x", "--what-if"),
        ("seed=-1", "--what-if"),
    ],
)
def test_rule_set_that_does_not_fit_is_refused(text: str, words: str) -> None:
    with pytest.raises(JobError) as error:
        make_job(what_if=[text]).rule_sets()
    assert words in str(error.value)


def test_definition_names_every_rule_in_force() -> None:
    rules = make_job(
        max_score=0.9,
        min_score=0.1,
        absolute_margin=0.1,
        relative_margin=0.1,
        margin_pos=0.05,
        perc_pos="0.95@logit",
        near_duplicates=0.9,
    ).rules()
    told = rules.define()
    for name in (
        "max_score",
        "min_score",
        "absolute_margin",
        "relative_margin",
        "margin_pos",
        "perc_pos",
        "near duplicates",
    ):
        assert name in told
    assert "0.95@logit" in told["perc_pos"]
