"""Selection of scored translation pairs: values by hand, modes beside a plain loop, duplicates, thresholds, refusals."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import S3Server
from selection_inputs import (
    SCHEMA,
    add_margins,
    keep_best,
    make_random,
    make_row,
    make_unscored,
    name_pairs,
    read_delivered,
    select_plainly,
    write_scored,
)

from rerank_actor.bitext.selection.delivery import assign_parts
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.bitext.selection.language_pair import Selected
from rerank_actor.bitext.selection.margins import (
    average_best,
    average_others,
    combine,
    compute_margin,
    compute_ratio,
    match_greedily,
    sort_groups,
    to_space,
)
from rerank_actor.bitext.selection.normalize import normalize_texts
from rerank_actor.bitext.selection.run import select_pairs
from rerank_actor.commands.bitext import bitext
from rerank_actor.commands.status import status
from rerank_actor.commands.verify import verify
from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.job_file import check_job

TATOEBA = ROOT.parent / "shared/data/tatoeba.deu-eng.tsv"


def select(scored: Path, deliver: Path, **values: Any) -> dict[str, Selected]:
    job = SelectJob(deliver=str(deliver), formats=values.pop("formats", ["parquet"]), **values).normalized()
    return select_pairs(job, [str(scored)])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# Values


@pytest.mark.parametrize(
    ("how", "space", "expected"),
    [
        ("mean", "logit", 1.0),
        ("mean", "probability", (sigmoid(3) + sigmoid(-1)) / 2),
        ("min", "logit", -1.0),
        ("min", "probability", sigmoid(-1)),
        ("product", "probability", sigmoid(3) * sigmoid(-1)),
        ("product", "logit", math.log(sigmoid(3) * sigmoid(-1) / (1 - sigmoid(3) * sigmoid(-1)))),
    ],
)
def test_directions_are_combined_as_defined(how: Any, space: Any, expected: float) -> None:
    found = to_space(combine(np.array([3.0, -1.0]), np.array([-1.0, 3.0]), how, space), space)
    assert found.tolist() == pytest.approx([expected, expected], abs=1e-12)


@pytest.mark.parametrize(("how", "best"), [("mean", 40.69), ("product", 39.99)])
def test_combined_log_odds_do_not_saturate_with_their_probabilities(how: Any, best: float) -> None:
    low, high = combine(np.array([-800.0, 40.0]), np.array([-800.0, 45.0]), how, "probability")
    assert np.isfinite(low)
    assert low == pytest.approx(-800 if how == "mean" else -1600)
    assert high == pytest.approx(best, abs=0.01)


def test_margin_by_hand_takes_the_best_other_candidates_of_both_sides() -> None:
    # One source with targets of 5, 3, 1, -9, and the first target with another source of 4.
    source = np.array([0, 0, 0, 0, 1], np.uint64)
    target = np.array([0, 1, 2, 3, 0], np.uint64)
    logit = np.array([5.0, 3.0, 1.0, -9.0, 4.0])
    zeros = np.zeros(5, np.uint64)
    rests = [average_others(logit, sort_groups(side, zeros, -logit), 2) for side in (source, target)]
    assert rests[0].tolist() == pytest.approx([2.0, 3.0, 4.0, 4.0, np.nan], nan_ok=True)
    assert rests[1].tolist() == pytest.approx([4.0, np.nan, np.nan, np.nan, 5.0], nan_ok=True)
    assert compute_margin(logit, *rests).tolist() == [5 - (2 + 4) / 2, 3 - 3, 1 - 4, -9 - 4, 4 - 5]


def test_ratio_margin_by_hand_counts_a_pair_among_its_own_neighbours() -> None:
    cosine = np.array([0.9, 0.6, 0.5, 0.3])
    source, zeros = np.array([0, 0, 0, 1], np.uint64), np.zeros(4, np.uint64)
    near = average_best(cosine, sort_groups(source, zeros, -cosine), 2)
    assert near.tolist() == pytest.approx([0.75, 0.75, 0.75, 0.3])
    assert compute_ratio(cosine, near, np.array([0.9, 0.6, 0.75, 0.3])).tolist() == pytest.approx(
        [0.9 / 0.825, 0.6 / 0.675, 0.5 / 0.75, 1.0]
    )
    assert np.isnan(compute_ratio(np.array([0.1]), np.array([-0.2]), np.array([0.1]))).all()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-8, 8)), min_size=1, max_size=40),
    st.sampled_from([0, 1, 2, 3, 5, 70]),
)
def test_averages_of_groups_are_those_of_a_plain_loop(items: list[tuple[int, int]], count: int) -> None:
    group = np.array([item[0] for item in items], np.uint64)
    value = np.array([item[1] for item in items], float)
    groups = sort_groups(group, np.zeros(len(items), np.uint64), -value)
    for row in range(len(items)):
        own = sorted((value[other] for other in range(len(items)) if group[other] == group[row]), reverse=True)
        others = sorted(own, reverse=True)
        others.remove(value[row])
        others, best = others[: count or None], own[: count or None]
        expected = sum(others) / len(others) if others else np.nan
        assert average_others(value, groups, count)[row] == pytest.approx(expected, nan_ok=True)
        assert average_best(value, groups, count)[row] == pytest.approx(sum(best) / len(best))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3)), max_size=60))
def test_matching_takes_each_side_once_and_leaves_no_pair_that_could_be_added(
    items: list[tuple[int, int, int]],
) -> None:
    source, target, value = (np.array([item[place] for item in items], np.int64) for place in range(3))
    taken = match_greedily(source, target, np.argsort(-value, kind="stable"))
    assert len(set(source[taken])) == len(set(target[taken])) == taken.sum()
    for row in np.flatnonzero(~taken):
        rivals = taken & ((source == source[row]) | (target == target[row]))
        assert value[rivals].max() >= value[row]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), max_size=50), st.integers(1, 6))
def test_parts_follow_one_another_in_falling_order(items: list[tuple[int, int]], number: int) -> None:
    rank, tie = np.array([one[0] for one in items], float), np.array([one[1] for one in items], np.uint64)
    order = np.lexsort((tie, -rank))
    places = np.arange(1, number) * len(order) // number if len(order) else np.zeros(0, int)
    parts = assign_parts(rank, tie, (rank[order[places]], tie[order[places]]))
    assert (np.diff(parts[order]) >= 0).all()
    distinct = {*items}
    if len(distinct) == len(items):
        assert np.bincount(parts, minlength=1).max(initial=0) <= -(-len(items) // number)


# Texts


@pytest.mark.parametrize(
    "same",
    [
        [
            "Hello,  World!",
            "hello world",
            "\uff28\uff25\uff2c\uff2c\uff2f\u3000\uff57\uff4f\uff52\uff4c\uff44。",
            "\u200fHello\tworld\n",
        ],
        ["Straße", "STRASSE", "strasse."],
        ["cafe\u0301", "caf\u00e9", "CAFÉ"],
        ["你好\uff0c世界", "你好世界\uff01"],
        ["❤\ufe0f ja", "❤ ja"],
    ],
)
def test_texts_that_differ_in_form_alone_are_the_same(same: list[str]) -> None:
    assert len(set(normalize_texts(pa.array(same)).to_pylist())) == 1


@pytest.mark.parametrize(
    "other",
    [
        ["3.5 kg", "35 kg", "3,5 kg"],
        ["-5 Grad", "5 Grad"],
        ["!!!", "???", ""],
        ["नमस्ते", "नमस्त"],
        ["wir sind da", "wirsindda"],
        ["gut 😀", "gut 😡"],
        ["مرحبا", "مرحبان"],
    ],
)
def test_texts_that_differ_in_more_are_others(other: list[str]) -> None:
    assert len(set(normalize_texts(pa.array(other)).to_pylist())) == len(other)


# Modes, beside a plain loop, in many buckets and many rounds


@pytest.mark.parametrize("seed", [0, 1])
def test_modes_are_those_of_a_plain_loop_whatever_the_buckets(tmp_path: Path, local_ray: str, seed: int) -> None:
    rows = make_random(seed, 30, 25, 240)
    scored = write_scored(tmp_path / "scored", rows, part_rows=90)
    plain = add_margins(keep_best(rows), 3)
    assert len(plain) < len(rows)
    cases: list[tuple[str, str]] = [("greedy", "logit")]
    cases += (
        [("greedy", "margin")] if seed else [("forward", "margin"), ("backward", "ratio"), ("intersection", "logit")]
    )
    for mode, rank_by in cases:
        deliver = tmp_path / f"{mode}-{rank_by}"
        results = select(
            scored,
            deliver,
            mode=mode,
            rank_by="score" if rank_by == "logit" else rank_by,
            neighbors=3,
            bucket_rows=80,
            local_rows=0,
            unit_mb=0.02,
            deduplicate="exact",
        )
        # Margins may differ in their last bit by the order of sums, and so may ties between them.
        found, expected = read_delivered(deliver), select_plainly(plain, mode, rank_by)
        if rank_by == "logit":
            assert name_pairs(found) == name_pairs(expected)
        else:
            name = "margin" if rank_by == "margin" else "ratio_margin"
            assert sorted(row[name] for row in found) == pytest.approx(
                sorted(row[rank_by] for row in expected), abs=1e-5
            )
        margins = {(row["source"], row["target"]): (row["margin"], row["ratio"]) for row in plain}
        for row in found:
            assert (row["margin"], row["ratio_margin"]) == pytest.approx(
                margins[row["source"], row["target"]], abs=1e-5
            )
        numbers = results["deu-eng"].numbers
        assert numbers["counts"]["kept"] == len(found)
        assert numbers["funnel"][-1]["left"] == len(found)
        assert numbers["counts"]["rows"] - sum(step["removed"] for step in numbers["funnel"]) == len(found)
        assert len(list((deliver / "_select/lang_pair=deu-eng").glob("steps/*"))) == 0


def test_rounds_and_one_task_give_the_same_matching_and_order(tmp_path: Path, local_ray: str) -> None:
    rows = make_random(5, 60, 60, 300, levels=2)
    scored = write_scored(tmp_path / "scored", rows)
    mixed = write_scored(tmp_path / "mixed", rows[::-1], part_rows=40)
    select(scored, tmp_path / "one", formats=["tsv"])
    select(mixed, tmp_path / "rounds", formats=["tsv"], bucket_rows=50, local_rows=20, part_rows=9)
    (whole,) = (tmp_path / "one/tsv/lang_pair=deu-eng").glob("part-*")
    parts = sorted((tmp_path / "rounds/tsv/lang_pair=deu-eng").glob("part-*"))
    assert len(parts) == math.ceil(len(whole.read_text().splitlines()) / 9)
    assert all(0 < len(part.read_text().splitlines()) <= 9 for part in parts)
    assert "".join(part.read_text() for part in parts) == whole.read_text()
    scores = [float(line.split("\t")[0]) for line in whole.read_text().splitlines()]
    assert scores == sorted(scores, reverse=True)
    assert name_pairs(select_plainly(keep_best(rows), "greedy")) == sorted(
        (line.split("\t")[1], line.split("\t")[2]) for line in whole.read_text().splitlines()
    )


def test_modes_by_hand(tmp_path: Path, local_ray: str) -> None:
    # a likes x best and y nearly as well; b likes x too, c likes z, which likes a.
    rows = [("a", "x", 9), ("a", "y", 8), ("b", "x", 7), ("b", "y", 1), ("c", "z", 2), ("a", "z", 5)]
    scored = write_scored(tmp_path / "scored", [make_row(*row) for row in rows])
    expected = {
        "forward": ["ax", "bx", "cz"],
        "backward": ["ax", "ay", "az"],
        "intersection": ["ax"],
        "greedy": ["ax", "by", "cz"],
        "all": ["ax", "ay", "az", "bx", "by", "cz"],
    }
    for mode, pairs in expected.items():
        select(scored, tmp_path / mode, mode=mode)
        assert sorted(row["source"] + row["target"] for row in read_delivered(tmp_path / mode)) == pairs


# Rules


def test_duplicates_leave_the_best_scored_pair(tmp_path: Path, local_ray: str) -> None:
    rows = [
        make_row("Guten Tag!", "Good day.", 1),
        make_row("Guten Tag!", "Good day.", 3),
        make_row("guten  tag", "GOOD DAY", 2),
        make_row("Guten Tag!", "Good day, sir.", 0),
        make_row("Guten Tag", "Good day", -1),
    ]
    scored = write_scored(tmp_path / "scored", rows, part_rows=2)
    found = {
        kind: select(scored, tmp_path / kind, deduplicate=kind, mode="all")["deu-eng"].numbers
        for kind in ("none", "exact", "normalized")
    }
    assert {kind: numbers["counts"]["kept"] for kind, numbers in found.items()} == {
        "none": 5,
        "exact": 4,
        "normalized": 2,
    }
    assert [(step["step"], step["removed"]) for step in found["normalized"]["funnel"]] == [
        ("exact duplicates", 1),
        ("duplicates once normalized", 2),
    ]
    kept = read_delivered(tmp_path / "normalized")
    assert [(row["source"], row["target"], row["logit"]) for row in kept] == [
        ("Guten Tag!", "Good day.", 3.0),
        ("Guten Tag!", "Good day, sir.", 0.0),
    ]
    # A duplicate is no rival: the margin is over the other target alone.
    assert [row["margin"] for row in kept] == [3.0, -3.0]


@pytest.mark.parametrize("mode", ["greedy", "intersection", "forward"])
def test_sides_are_one_text_where_pairs_of_them_are_one_pair(tmp_path: Path, local_ray: str, mode: str) -> None:
    # Forms of two sources and two targets, each pair of texts with a logit of its own.
    sources = ["Hola mundo.", "Hola mundo. ", "HOLA MUNDO", "Adios"]
    targets = ["Hello world.", "hello  world", "See you"]
    values = np.random.default_rng(3).permutation(len(sources) * len(targets)).tolist()
    rows = [make_row(a, b, values.pop(), candidate_score=1.0) for a in sources for b in targets]
    scored = write_scored(tmp_path / "scored", rows, part_rows=5)
    normal = dict(zip((*sources, *targets), normalize_texts(pa.array([*sources, *targets])).to_pylist(), strict=True))

    def compare(row: dict[str, Any], kind: str) -> dict[str, Any]:
        return {**row, **{side: normal[row[side]] for side in ("source", "target")}} if kind == "normalized" else row

    for kind in ("exact", "normalized"):
        plain = [compare(row, kind) for row in rows]
        select(scored, tmp_path / kind, mode=mode, deduplicate=kind, bucket_rows=4, local_rows=0)
        found = [compare(row, kind) for row in read_delivered(tmp_path / kind)]
        assert name_pairs(found) == name_pairs(select_plainly(keep_best(plain), mode))
        # A form of a side is no other candidate of it.
        own = {(row["source"], row["target"]): row["margin"] for row in add_margins(keep_best(plain), 4)}
        for row in found:
            assert row["margin"] == pytest.approx(own[row["source"], row["target"]])


def test_text_that_is_not_unicode_is_told_and_not_delivered(tmp_path: Path, local_ray: str) -> None:
    rows = [make_row("gut", "good", 2), make_row("sch", "nice", 1), make_unscored("x", "y", "wrong script")]
    scored = write_scored(tmp_path / "scored", rows)
    [part] = scored.glob("*/part-*")
    table = pq.read_table(part)
    raw = pa.array([b"gut", b"sch\xf6n", b"x"], pa.binary())
    foreign = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(table.set_column(table.schema.get_field_index("source"), "source", foreign), part)
    numbers = select(scored, tmp_path / "out", formats=["parquet", "tsv"])["deu-eng"].numbers
    assert numbers["unscored_reasons"] == {"not valid Unicode": 1, "wrong script": 1}
    assert name_pairs(read_delivered(tmp_path / "out")) == [("gut", "good")]


def test_thresholds_remove_in_order_and_are_in_their_space(tmp_path: Path, local_ray: str) -> None:
    rows = [
        make_row("a", "x", 4, 2, candidate_score=0.9),
        make_row("a", "y", -2, 0, candidate_score=0.8),
        make_row("b", "y", 1, -3, candidate_score=0.1),
        make_row("c", "z", 0, 0.5, candidate_score=0.3),
        make_unscored("d", None, "target is empty"),
    ]
    scored = write_scored(tmp_path / "scored", rows)
    flags: dict[str, Any] = {"mode": "all", "space": "probability", "combine": "min"}
    numbers = select(scored, tmp_path / "out", threshold=0.1, forward_threshold=0.5, margin=-1, **flags)[
        "deu-eng"
    ].numbers
    # Lower directions: 2, -2, -3, 0 as log-odds; probabilities 0.88, 0.12, 0.05, 0.5.
    assert [(step["step"], step["removed"], step["left"]) for step in numbers["funnel"]] == [
        ("without a score", 1, 4),
        ("--threshold", 1, 3),
        ("--forward-threshold", 1, 2),
    ]
    assert numbers["unscored_reasons"] == {"target is empty": 1}
    assert numbers["counts"]["without_rivals"] == 1
    assert numbers["mean_score"]["kept"] == pytest.approx((sigmoid(2) + 0.5) / 2)
    kept = {row["source"]: row for row in read_delivered(tmp_path / "out")}
    assert kept["a"]["combined_score"] == pytest.approx(sigmoid(2))
    assert (kept["a"]["margin"], kept["c"]["margin"]) == (4.0, None)
    assert "error" not in kept["a"]
    # Ratio margins with all neighbours: 0.9 / ((0.85 + 0.9) / 2), 0.8 / ((0.85 + 0.45) / 2), 0.1 / 0.275, 1.
    select(scored, tmp_path / "ratio", ratio_margin=1.03, mode="all")
    found = {row["source"] + row["target"]: row["ratio_margin"] for row in read_delivered(tmp_path / "ratio")}
    assert found == pytest.approx({"ay": 0.8 / 0.65})
    # Margins: 3 - -1, -1 - (3 + -1) / 2, -1 - -1, and none for want of others, which passes.
    select(scored, tmp_path / "margin", margin=0.5, mode="all")
    assert sorted(row["source"] for row in read_delivered(tmp_path / "margin")) == ["a", "c"]


def test_one_direction_is_selected_by_alone(tmp_path: Path, local_ray: str) -> None:
    rows = [make_row("a", "x", 5, -5), make_row("a", "y", -5, 6)]
    scored = write_scored(tmp_path / "scored", rows)
    for direction, target in (("forward", "x"), ("backward", "y")):
        select(scored, tmp_path / direction, direction=direction)
        assert [row["target"] for row in read_delivered(tmp_path / direction)] == [target]
    bare = pa.schema([field for field in SCHEMA if field.name not in ("forward_logit", "backward_logit")])
    plain = [{name: row[name] for name in bare.names} for row in rows]
    select(write_scored(tmp_path / "bare", plain, schema=bare), tmp_path / "bare-out", mode="all", threshold=0.25)
    assert [row["target"] for row in read_delivered(tmp_path / "bare-out")] == ["y"]
    with pytest.raises(InputError, match=r"no score backward \(`backward_logit`\)"):
        select(tmp_path / "bare", tmp_path / "bare-2", backward_threshold=0)


# Running again, and refusals


def test_the_same_command_resumes_and_other_rules_are_refused(
    tmp_path: Path, local_ray: str, capfd: pytest.CaptureFixture[str]
) -> None:
    scored = write_scored(tmp_path / "scored", make_random(3, 20, 20, 60))
    write_scored(tmp_path / "scored", make_random(4, 20, 20, 60), pair="fra-eng")
    flags = ["--scored", str(scored), "--deliver", str(tmp_path / "out")]
    assert bitext([*flags, "--partitions", "deu-eng"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/lang_pair=deu-eng/part-*")}
    assert len(before) == 2
    assert bitext(flags) == 0  # a new language pair adds to the output
    assert "deu-eng: 15" in capfd.readouterr().err or before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/lang_pair=deu-eng/part-*")} == before
    assert (tmp_path / "out/tsv/lang_pair=fra-eng/_SUCCESS").exists()
    report = json.loads((tmp_path / "out/_select/report.json").read_text())
    assert [one["lang_pair"] for one in report["lang_pairs"]] == ["deu-eng", "fra-eng"]

    next(path for path in before if path.suffix == ".tsv").write_text("cut sho")
    assert bitext(flags) == 0  # a damaged file is found by its size
    assert "cut sho" not in "".join(path.read_text() for path in before if path.suffix == ".tsv")

    with pytest.raises(
        OutputConflictError, match=r"deu-eng selected by other rules.*mode: there 'greedy', now 'forward'"
    ):
        bitext([*flags, "--mode", "forward"])
    write_scored(tmp_path / "scored", make_random(3, 20, 20, 80))
    with pytest.raises(OutputConflictError, match="scored files: 1 there that are gone or changed, 1 new or changed"):
        bitext(flags)
    assert bitext([*flags, "--mode", "forward", "--reselect"]) == 0
    found = read_delivered(tmp_path / "out")
    assert len({row["source"] for row in found}) == len(found)


def test_a_stopped_selection_goes_on_from_its_records(tmp_path: Path, local_ray: str) -> None:
    scored = write_scored(tmp_path / "scored", make_random(8, 30, 30, 200), part_rows=50)
    options: dict[str, Any] = {"bucket_rows": 100, "local_rows": 0, "unit_mb": 0.006}
    select(scored, tmp_path / "whole", **options)
    broken = scored / f"lang_pair=deu-eng/part-{'0' * 12}-00003.parquet"
    sound = broken.read_bytes()
    stat = broken.stat()
    middle = len(sound) // 3
    broken.write_bytes(sound[:8] + bytes(middle) + sound[8 + middle :])
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    failed = select(scored, tmp_path / "out", **options)["deu-eng"]
    assert failed.status == "failed"
    assert "at step read" in failed.failure
    assert "part-" in failed.failure
    assert read_delivered(tmp_path / "out") == []
    records = sorted((tmp_path / "out/_select/lang_pair=deu-eng/steps/read").glob("*.json"))
    assert records
    before = {path: path.stat().st_mtime_ns for path in records}
    broken.write_bytes(sound)
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    done = select(scored, tmp_path / "out", **options)["deu-eng"]
    whole = json.loads((tmp_path / "whole/_select/lang_pair=deu-eng/result.json").read_text())
    assert done.numbers["run"]["tasks"] == whole["run"]["tasks"] - len(before)
    assert read_delivered(tmp_path / "out") == read_delivered(tmp_path / "whole")
    for name in ("counts", "funnel", "bins"):
        assert done.numbers[name] == whole[name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode", "forward"], "--mode is a setting of the selection: give --deliver too"),
        (["--deliver", "OUT"], "--input is missing"),
        (["--input", "IN", "--output", "OUT", "--deliver", "OUT/to"], "lies in the scored "),
        (
            ["--input", "IN", "--output", "OUT", "--deliver", "OUT-to", "--margin", "auto"],
            "give them as --calibration FILE",
        ),
        (["--scored", "IN", "--deliver", "OUT", "--calibrate-only"], "give them as --calibration FILE"),
        (["--scored", "IN", "--deliver", "OUT", "--model", "m"], "--model is for scoring"),
        (["--scored", "IN", "--deliver", "OUT", "--overwrite"], "--reselect replaces what was delivered"),
        (["--scored", "IN", "--deliver", "OUT", "--threshold", "auto"], "give them as --calibration FILE"),
        (["--scored", "IN", "--deliver", "OUT", "--threshold", "high"], "expected a number or auto"),
        (["--scored", "IN", "--deliver", "OUT", "--space", "probability", "--threshold", "2"], "is no probability"),
        (["--scored", "IN", "--deliver", "OUT", "--mode", "best"], "mode"),
        (["--scored", "IN", "--deliver", "OUT", "--formats", "xml"], "formats"),
        (["--scored", "IN", "--deliver", "IN/out"], "lies in the scored "),
        (["--scored", "IN/nothing", "--deliver", "OUT"], "no scored Parquet file there"),
        (["--scored", "IN", "--deliver", "OUT", "--partitions", "xxx-*"], "no such language pair"),
        (
            ["--scored", "IN", "--deliver", "OUT", "--source-column", "sorce"],
            "no column `sorce` (did you mean source?)",
        ),
        (["--scored", "IN", "--deliver", "OUT", "--calibration", "OUT/none.tsv"], "no such file"),
    ],
)
def test_what_cannot_be_selected_is_refused_before_anything_is_written(
    tmp_path: Path, flags: list[str], message: str
) -> None:
    write_scored(tmp_path / "in", [make_row("a", "x", 1)])
    flags = [flag.replace("IN", str(tmp_path / "in")).replace("OUT", str(tmp_path / "out")) for flag in flags]
    with pytest.raises(JobError) as caught:
        bitext(flags)
    assert message in str(caught.value)
    assert not (tmp_path / "out/parquet").exists()


def test_scores_that_cannot_be_compared_or_are_no_cosines_are_refused(tmp_path: Path, local_ray: str) -> None:
    scored = write_scored(tmp_path / "mixed", [make_row("a", "x", 1)])
    other = pa.Table.from_pylist([make_row("b", "y", 1)], SCHEMA).replace_schema_metadata(
        {"rerank_actor.fingerprint": "b" * 32}
    )
    pq.write_table(other, scored / "lang_pair=deu-eng/part-zz.parquet")
    with pytest.raises(InputError, match="scored in different ways"):
        select(scored, tmp_path / "out")
    margins = write_scored(tmp_path / "margins", [make_row("a", "x", 1, candidate_score=1.3)])
    with pytest.raises(InputError, match=r"reaches 1.3, so that it holds no cosines"):
        select(margins, tmp_path / "ratio", rank_by="ratio")
    assert select(margins, tmp_path / "ratio")["deu-eng"].status == "complete"  # nothing stood there that others made
    empty = write_scored(tmp_path / "empty", [make_unscored("a", "", "target is empty")])
    write_scored(empty, [make_row("a", "x", 1, candidate_score=1.3)], pair="fra-eng")
    write_scored(empty, [make_row("a", "x", 1, candidate_score=0.3)], pair="nld-eng")
    found = select(empty, tmp_path / "some", rank_by="ratio")  # one language pair does not stop another
    assert {name: one.status for name, one in found.items()} == {
        "deu-eng": "complete",
        "fra-eng": "failed",
        "nld-eng": "complete",
    }
    assert "holds no cosines" in found["fra-eng"].failure
    assert found["deu-eng"].numbers["unscored_reasons"] == {"target is empty": 1}
    assert [len(read_delivered(tmp_path / "some", pair)) for pair in found] == [0, 0, 1]


@pytest.mark.parametrize("space", ["logit", "probability"])
def test_nothing_kept_still_delivers_sound_files(tmp_path: Path, local_ray: str, space: str) -> None:
    scored = write_scored(tmp_path / "scored", [make_row("a", "x", -3)])
    values: dict[str, Any] = {"space": space, "threshold": 0.99, "formats": ["parquet", "tsv", "moses", "tmx"]}
    numbers = select(scored, tmp_path / "out", **values)["deu-eng"].numbers
    assert numbers["counts"].get("kept", 0) == 0
    assert numbers["estimated_precision"] is None
    table = pq.ParquetFile(tmp_path / "out/parquet/lang_pair=deu-eng/part-00000.parquet").read()
    assert (table.num_rows, "combined_score" in table.column_names) == (0, True)
    assert (tmp_path / "out/moses/lang_pair=deu-eng/part-00000.eng").read_bytes() == b""


@pytest.mark.skipif(not TATOEBA.exists(), reason="needs the Tatoeba sentences")
def test_tatoeba_with_distractors_comes_back_aligned(tmp_path: Path, local_ray: str) -> None:
    pairs = [tuple(line.split("\t")) for line in TATOEBA.read_text().splitlines()]
    draw = np.random.default_rng(0)
    rows = []
    for number, (source, target) in enumerate(pairs):
        rows.append(make_row(source, target, *(float(one) for one in draw.normal(3, 1, 2))))
        for other in draw.integers(0, len(pairs), 4).tolist():
            if other != number:
                rows.append(make_row(source, pairs[other][1], *(float(one) for one in draw.normal(-3, 1, 2))))
    scored = write_scored(tmp_path / "scored", rows, part_rows=1500)
    numbers = select(scored, tmp_path / "out", threshold=0, bucket_rows=2000, local_rows=500)["deu-eng"].numbers
    found = {(row["source"], row["target"]) for row in read_delivered(tmp_path / "out")}
    assert len(found & set(pairs)) / len(found) > 0.99
    assert len(found & set(pairs)) > 0.95 * len(pairs)
    assert numbers["counts"]["kept"] == len(found)


def test_one_command_scores_and_delivers_and_again_starts_nothing(
    tmp_path: Path, local_ray: str, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = [(f"Das ist Satz {number}.", f"This is sentence {number}.") for number in "abcdef"]
    candidates = tmp_path / "in/c.deu-eng.tsv"
    candidates.parent.mkdir()
    candidates.write_text("".join(f"{a}\t{b}\n" for a, _ in texts for _, b in texts) + "Nur hier\t\n")
    flags = ["--input", str(candidates), "--output", str(tmp_path / "out"), "--engine", "fake", "--identifier", "none"]
    flags += ["--deliver", str(tmp_path / "to"), "--formats", "tsv", "--threshold", "-100"]
    assert bitext(flags) == 0
    assert capfd.readouterr().out.rstrip().endswith(str(tmp_path / "to"))
    table = pa.concat_tables(map(pq.read_table, sorted((tmp_path / "out/lang_pair=deu-eng").glob("part-*"))))
    rows = [row for row in table.to_pylist() if row["error"] is None]
    text = (tmp_path / "to/tsv/lang_pair=deu-eng/part-00000.tsv").read_text()
    found = [line.split("\t") for line in text.splitlines()]
    assert [(one[1], one[2]) for one in found] == [
        (row["source"], row["target"]) for row in select_plainly(rows, "greedy")
    ]
    assert [float(one[0]) for one in found] == [
        pytest.approx((row["forward_logit"] + row["backward_logit"]) / 2) for row in select_plainly(rows, "greedy")
    ]
    assert len(found) == len(texts)
    assert bitext(flags) == 0
    again = capfd.readouterr().err
    assert "starting" not in again
    assert "deu-eng: 6 pairs, all delivered already" in again
    with pytest.raises(OutputConflictError, match=r"threshold: there -100\.0, now 1\.0"):
        bitext([*flags, "--threshold", "1"])
    capfd.readouterr()
    assert status([str(tmp_path / "to")]) == 0
    assert re.search(r"deu-eng\W+37\W+36\W+6\W", capfd.readouterr().out)
    assert verify([str(tmp_path / "to")]) == 0
    part = tmp_path / "to/tsv/lang_pair=deu-eng/part-00000.tsv"
    part.write_text(part.read_text() + "1.0\tby\thand\n")
    (part.parent / "_SUCCESS").unlink()
    assert verify([str(tmp_path / "to")]) == 1
    problems = capfd.readouterr().out
    assert f"{part}: holds" in problems
    assert f"{part.parent / '_SUCCESS'}: is missing" in problems
    (tmp_path / "to/_select/lang_pair=deu-eng/result.json").unlink()
    assert status([str(tmp_path / "to")]) == 0
    assert "deu-eng: not complete" in capfd.readouterr().out
    assert verify([str(tmp_path / "to")]) == 1
    job = tmp_path / "job.yaml"
    job.write_text(f"scored: {tmp_path / 'out'}\ndeliver: {tmp_path / 'file'}\nmode: forward\nengine: fake\nmodle: x\n")
    with pytest.raises(JobError, match="unknown key `modle`"):
        bitext([str(job)])
    job.write_text(job.read_text().replace("modle: x\n", ""))
    assert bitext([str(job)]) == 0
    assert len(read_delivered(tmp_path / "file")) == len(texts)


def test_names_of_languages_are_taken_as_scoring_takes_them() -> None:
    for names in ("xyz=My Language", ["xyz=My Language"], {"xyz": "My Language"}):
        assert SelectJob.model_validate({"deliver": "/out", "languages": names}).languages == {"xyz": "My Language"}
    with pytest.raises(JobError, match=r"--languages: expected CODE=NAME"):
        check_job(SelectJob, {"deliver": "/out", "languages": ["xyz"]})


def test_selection_goes_from_s3_to_s3(tmp_path: Path, local_ray: str, s3: S3Server) -> None:
    rows = make_random(11, 12, 12, 60)
    local = write_scored(tmp_path / "scored", rows, part_rows=20)
    for path in local.rglob("*.parquet"):
        s3.client.put_object(Bucket=s3.bucket, Key=f"scored/{path.relative_to(local)}", Body=path.read_bytes())
    job = SelectJob(deliver=f"s3://{s3.bucket}/out", formats=["tsv"], bucket_rows=30, local_rows=0)
    assert select_pairs(job, [f"s3://{s3.bucket}/scored"])["deu-eng"].status == "complete"
    keys = [one["Key"] for one in s3.client.list_objects_v2(Bucket=s3.bucket, Prefix="out/")["Contents"]]
    own = [f"out/_select/{name}" for name in ("report.html", "report.json")]
    names = ("job.yaml", "result.json", "settings.json")
    own += [f"out/_select/lang_pair=deu-eng/{name}" for name in names]
    data = [f"out/tsv/lang_pair=deu-eng/{name}" for name in ("_SUCCESS", "part-00000.tsv")]
    assert sorted(keys) == sorted([*own, *data])
    text = s3.client.get_object(Bucket=s3.bucket, Key=data[1])["Body"].read().decode()
    found = [tuple(line.split("\t")[1:]) for line in text.splitlines()]
    expected = select_plainly(keep_best(rows), "greedy")
    assert found == [(row["source"], row["target"]) for row in expected]
