"""Several teachers: their scores joined, combined, compared and refused, each as a few lines of plain Python."""

import random
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mining_in_process import make_job, mine_in_process
from mining_inputs import FINGERPRINT, make_pairs, scatter, write_scored

from rerank_actor.engines.base import compute_score
from rerank_actor.errors import InputError, JobError
from rerank_actor.mining.preflight import prepare_mining
from rerank_actor.mining.report import render_report, summarize
from rerank_actor.mining.run import mine_scores
from rerank_actor.mining.teachers import list_agreement

VALUES = {"space": "logit", "absolute_margin": None, "false_negatives": "report", "depth": "all", "num_negatives": 50}


def write_teachers(folder: Path, number: int = 3) -> tuple[list[str], list[list[dict[str, Any]]]]:
    """Write the outputs of teachers that scored the same pairs, each in an order of its own; some pairs are there twice."""
    pairs = make_pairs(6, 9)
    pairs += [{**pair, "document_id": pair["document_id"] + 500} for pair in pairs[3::20]]
    uris, teachers = [], []
    for teacher in range(number):
        draw = random.Random(teacher)
        rows = [{**pair, "logit": np.float32(round(pair["logit"] * 2 + draw.gauss(0, 2)) / 2)} for pair in pairs]
        rows = [{**row, "score": compute_score(np.array([row["logit"]]))[0]} for row in rows]
        teachers.append(rows)
        metadata = {**FINGERPRINT, "rerank_actor.fingerprint": str(teacher) * 32}
        uris.append(
            str(write_scored(folder / f"t{teacher}", scatter(rows, teacher) if teacher else rows, 11, metadata))
        )
    return uris, teachers


def combine_plainly(method: str, weights: list[float], logits: list[list[float]]) -> tuple[list[float], list[float]]:
    """Return combined values and disagreements of the pairs of one query; `logits` has a list for each teacher."""
    if method == "zscore":
        scales = [(statistics.fmean(own), statistics.pstdev(own)) for own in logits]
        logits = [
            [(value - mean) / (std or 1) for value in own] for own, (mean, std) in zip(logits, scales, strict=True)
        ]
    if method == "rank":
        logits = [
            [-sum(other > value for other in own) - (own.count(value) + 1) / 2 for value in own] for own in logits
        ]
    pairs = list(zip(*logits, strict=True))
    spread = [max(pair) - min(pair) for pair in pairs]
    if method in ("min", "max"):
        return [min(pair) if method == "min" else max(pair) for pair in pairs], spread
    total = sum(weights)
    return [sum(weight * value for weight, value in zip(weights, pair, strict=True)) / total for pair in pairs], spread


@pytest.mark.parametrize("unit_bytes", [2000, 10**8])
@pytest.mark.parametrize(
    ("method", "weights", "most"),
    [
        ("mean", [1, 1, 1], 1.5),
        ("mean", [2, 1, 0.5], None),
        ("min", [], 2),
        ("max", [], None),
        ("zscore", [], 1),
        ("rank", [1, 3, 1], 3),
    ],
)
def test_combined_teachers_are_those_of_plain_python(
    tmp_path: Path, method: str, weights: list[float], most: float | None, unit_bytes: int
) -> None:
    uris, teachers = write_teachers(tmp_path)
    ids = {"query_id_column": "query_id", "document_id_column": "document_id", "format": "triplet"}
    job = make_job(
        Path(uris[0]),
        tmp_path / "mined",
        **VALUES,
        **ids,
        scored=uris,
        combine=method,
        weights=weights,
        max_disagreement=most,
    )
    job = job
    mined, tally, _ = mine_in_process(job, unit_bytes)
    expected = set()
    for query in range(6):
        own = [place for place, row in enumerate(teachers[0]) if row["query_id"] == f"q{query}"]
        values, spread = combine_plainly(
            method, weights or [1, 1, 1], [[float(rows[place]["logit"]) for place in own] for rows in teachers]
        )
        best: dict[str, tuple[float, int]] = {}
        for number, place in enumerate(own):
            text = teachers[0][place]["document"]
            if text not in best or values[number] > best[text][0] + 1e-9:
                best[text] = values[number], number
        positive = own[0]
        for text, (value, number) in best.items():
            if number and (most is None or spread[number] <= most + 1e-9):
                place = own[number]
                scores = [[float(rows[positive]["logit"]), float(rows[place]["logit"])] for rows in teachers]
                expected.add((f"query number {query}", text, round(values[0], 4), round(value, 4), str(scores)))
    found = {
        (
            row["anchor"],
            row["negative"],
            *(round(value, 4) for value in row["scores"]),
            str([row["scores_1"], row["scores_2"], row["scores_3"]]),
        )
        for row in mined
    }
    assert found == expected
    assert tally.counts["pairs"] == len(teachers[0])


def test_agreement_is_that_of_plain_python(tmp_path: Path) -> None:
    uris, teachers = write_teachers(tmp_path, 2)
    ids = {"query_id_column": "query_id", "document_id_column": "document_id"}
    job = make_job(Path(uris[0]), tmp_path / "mined", **VALUES, **ids, scored=uris, combine="mean")
    _, tally, _ = mine_in_process(job, 2000)
    (found,) = list_agreement(tally.counts)
    one, other = ([float(row["logit"]) for row in rows] for rows in teachers)
    taus = []
    for query in range(6):
        own = [place for place, row in enumerate(teachers[0]) if row["query_id"] == f"q{query}"]
        pairs = [(one[a] - one[b], other[a] - other[b]) for a in own for b in own if a < b]
        agree = sum((x * y > 0) - (x * y < 0) for x, y in pairs)
        taus.append(agree / (sum(x != 0 for x, _ in pairs) * sum(y != 0 for _, y in pairs)) ** 0.5)
    assert found["teachers"] == [1, 2]
    assert found["pairs"] == len(one)
    assert found["correlation"] == pytest.approx(statistics.correlation(one, other), abs=1e-6)
    assert found["kendall_tau"] == pytest.approx(statistics.fmean(taus), abs=1e-6)
    cells: Counter[tuple[int, ...]] = Counter()
    for query in range(6):
        own = [place for place, row in enumerate(teachers[0]) if row["query_id"] == f"q{query}"]
        for place in own:
            above = [
                sum(values[a] > values[place] for a in own) + (sum(values[a] == values[place] for a in own) - 1) / 2
                for values in (one, other)
            ]
            cells[tuple(int(10 * number // len(own)) for number in above)] += 1
    assert found["classes"] == [[cells[row, place] for place in range(10)] for row in range(10)]
    numbers = summarize(tally, job.rules(), examples=3)
    assert numbers["agreement"] == [found]
    assert "tenths by teacher 2 1: " in render_report(numbers, {})
    assert not [name for name in numbers["counts"] if name.startswith("agreement")]


@pytest.mark.parametrize("unit_bytes", [1, 10**8])
def test_pairs_that_a_teacher_lacks_are_counted_where_a_unit_has_no_others(tmp_path: Path, unit_bytes: int) -> None:
    rows = make_pairs(4, 5)
    uris = [
        str(write_scored(tmp_path / name, own, 5, {**FINGERPRINT, "rerank_actor.fingerprint": name * 32}))
        for name, own in (("a", rows), ("b", rows[:10]))
    ]
    ids = {"query_id_column": "query_id", "document_id_column": "document_id"}
    job = make_job(Path(uris[0]), tmp_path / "mined", **VALUES, **ids, scored=uris, combine="mean")
    _, tally, _ = mine_in_process(job, unit_bytes)
    assert tally.counts["pairs_unmatched"] == 10


def test_pair_that_a_teacher_could_not_score_is_left_out_and_counted(tmp_path: Path) -> None:
    uris, teachers = write_teachers(tmp_path, 2)
    rows = [
        {**row, "logit": None, "score": None, "error": "too long"} if place == 4 else row
        for place, row in enumerate(teachers[1])
    ]
    write_scored(tmp_path / "t1", rows, 11, {**FINGERPRINT, "rerank_actor.fingerprint": "1" * 32})
    job = make_job(Path(uris[0]), tmp_path / "mined", **VALUES, scored=uris, combine="mean")
    mined, tally, _ = mine_in_process(job)
    assert tally.counts["pairs_without_a_score"] == 1
    assert not tally.counts["pairs_unmatched"]
    assert ("query number 0", rows[4]["document"]) not in {(row["anchor"], row["negative"]) for row in mined}


def test_pairs_that_one_teacher_lacks_are_refused(tmp_path: Path) -> None:
    uris, teachers = write_teachers(tmp_path, 2)
    write_scored(tmp_path / "t1", teachers[1][:-3], 1000, {**FINGERPRINT, "rerank_actor.fingerprint": "1" * 32})
    for path in sorted((tmp_path / "t1").glob("*.parquet"))[1:]:
        path.unlink()
    job = make_job(Path(uris[0]), tmp_path / "mined", **VALUES, scored=uris, combine="mean")
    with pytest.raises(InputError, match="--combine: 3 pairs are not in the outputs of all teachers"):
        mine_scores(job)
    assert not list((tmp_path / "mined").glob("part-*"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scored": ["/a"]}, "give several with --scored"),
        ({"scored": ["/a", "/a/"]}, "give several with --scored"),
        ({"weights": "1"}, "one for each of the 2 of --scored"),
        ({"combine": "max", "weights": "1,2"}, "--weights are for --combine mean, zscore or rank"),
        ({"weights": "1,0"}, "greater than 0"),
        ({"combine": "rank", "space": "score"}, "give --space logit"),
        ({"combine": "zscore", "max_score": "0.9@score"}, "give --space logit"),
        ({"combine": "none", "max_disagreement": 1}, "--max-disagreement is for several teachers"),
        ({"combine": "none", "weights": "1,2"}, "--weights is for several teachers"),
    ],
)
def test_flags_of_teachers_that_do_not_fit_are_refused(values: dict[str, Any], words: str) -> None:
    given = {**VALUES, "teacher": "none", "combine": "mean", "scored": ["/a", "/b"], **values}
    with pytest.raises(JobError) as error:
        make_job(Path("/a"), Path("/out"), **given)
    assert words in str(error.value)


def test_teachers_of_other_instructions_are_told_and_allowed_by_a_flag(tmp_path: Path) -> None:
    uris, teachers = write_teachers(tmp_path, 2)
    metadata = {"rerank_actor.fingerprint": "1" * 32, "rerank_actor.instruction": "Another task"}
    write_scored(tmp_path / "t1", teachers[1], 11, metadata)
    job = make_job(Path(uris[0]), tmp_path / "mined", **VALUES, scored=uris, combine="mean")
    with pytest.raises(InputError, match=r"'Find the answer' and 'Another task'.*--allow-mixed-scores"):
        prepare_mining(job)
    assert mine_in_process(job.model_copy(update={"allow_mixed_scores": True}))[0]
