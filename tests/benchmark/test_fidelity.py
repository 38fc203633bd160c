"""Fidelity of a precision, against its definitions in plain Python."""

import itertools
import math

import numpy as np
import pytest

from rerank_actor.benchmark.fidelity import COLUMNS, compare_logits, make_rows
from rerank_actor.benchmark.ndcg import load_ranking_queries


def count_agreement(mine: list[float], theirs: list[float]) -> float:
    """Return Kendall's tau-b by its definition."""
    pairs = list(itertools.combinations(range(len(mine)), 2))
    signs = [(np.sign(mine[one] - mine[other]), np.sign(theirs[one] - theirs[other])) for one, other in pairs]
    first, second = (sum(sign[at] != 0 for sign in signs) for at in (0, 1))
    return float(sum(one * other for one, other in signs)) / math.sqrt(first * second)


def test_figures_are_those_of_their_definitions() -> None:
    queries = load_ranking_queries()[::8]
    numbers = np.random.default_rng(3)
    sizes = [len(query.documents) for query in queries]
    base = numbers.normal(size=sum(sizes)).astype(np.float32)
    logits = (base + numbers.normal(scale=0.3, size=len(base))).astype(np.float32).round(1)
    logits[5] = base[29] = np.nan
    found = compare_logits(logits, base, queries)
    both = [at for at in range(len(base)) if at not in (5, 29)]
    differences = sorted(abs(float(logits[at]) - float(base[at])) for at in both)
    assert found.pairs == len(both)
    assert found.largest == pytest.approx(differences[-1])
    assert found.median == pytest.approx((differences[len(both) // 2 - 1] + differences[len(both) // 2]) / 2)
    taus, first = [], 0
    for size in sizes:
        here = [at for at in range(first, first + size) if at in both]
        taus.append(count_agreement([float(logits[at]) for at in here], [float(base[at]) for at in here]))
        first += size
    assert found.tau == pytest.approx(sum(taus) / len(taus))


def test_an_order_that_turns_round_is_told() -> None:
    queries = load_ranking_queries()[::16]
    relevant = np.array([float(gain) for query in queries for gain in query.relevant], np.float32)
    best = relevant + np.linspace(0, 0.1, len(relevant), dtype=np.float32)
    assert compare_logits(best, best, queries).ndcg == 1
    worst = compare_logits(-best, best, queries)
    assert worst.tau == pytest.approx(-1) and worst.ndcg_change < -0.5
    (row,) = make_rows({"worst": worst})
    assert len(row) == len(COLUMNS) and row[0] == "worst" and row[4] == "-1.0000"


def test_nothing_to_compare_is_refused() -> None:
    queries = load_ranking_queries()[::32]
    nothing = np.full(sum(len(query.documents) for query in queries), np.nan, np.float32)
    with pytest.raises(ValueError, match="no pair"):
        compare_logits(nothing, nothing, queries)
