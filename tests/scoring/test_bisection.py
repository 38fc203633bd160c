"""What a unit goes through when engines fail on it, and the limits set to an engine that hangs."""

import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT

from rerank_actor import Reranker
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.prompts import PairEncoder
from rerank_actor.engines.template import QWEN3_RERANKER
from rerank_actor.errors import EngineError, EngineMemoryError
from rerank_actor.runtime import watchdog
from rerank_actor.runtime import watchdog as pace
from rerank_actor.runtime.watchdog import AdaptiveTimeout
from rerank_actor.scoring.bisection import ENDS_ALLOWED, NOT_FINITE, Bisection, Outcome, UnitSlice


def run(bisection: Bisection, guilty: set[int], how: str) -> tuple[Outcome, list[int]]:
    """Try a unit with an engine that fails on guilty prompts; return how it ended and the sizes that were tried."""
    sizes = []
    while isinstance(piece := bisection.begin(), UnitSlice):
        positions = np.arange(bisection.num_prompts) if piece.positions is None else piece.positions
        sizes.append(len(positions))
        struck = np.array([int(position) in guilty for position in positions])
        if how == "nan":
            bisection.finish(np.where(struck, np.nan, positions).astype(np.float32))
        elif struck.any():
            bisection.fail("it broke", ended=how == "die")
        else:
            bisection.finish(positions.astype(np.float32))
    return piece, sizes


@pytest.mark.parametrize("how", ["nan", "raise", "die"])
@pytest.mark.parametrize("guilty", [set(), {0}, {99}, {3, 4}, {0, 50, 99}])
def test_trial_finds_the_guilty_and_keeps_the_rest(how: str, guilty: set[int]) -> None:
    verdict, sizes = run(Bisection(100, 3), guilty, how)
    assert verdict.failure is None
    assert set(verdict.given_up) == guilty
    innocent = [position for position in range(100) if position not in guilty]
    assert verdict.logits[innocent].tolist() == innocent
    assert np.isnan(verdict.logits[sorted(guilty)]).all()
    reason = NOT_FINITE if how == "nan" else "it broke"
    assert all(text == f"{reason} (3 times)" for text in verdict.given_up.values())
    assert sizes[:3] == ([100] if not guilty else [100, *[len(guilty) if how == "nan" else 100] * 2])
    assert verdict.attempts == len(sizes)


def test_trial_of_a_passing_fault_tries_again_and_splits_nothing() -> None:
    bisection = Bisection(10, 3)
    bisection.begin()
    bisection.fail("it broke", ended=True)
    piece = bisection.begin()
    assert isinstance(piece, UnitSlice)
    assert (piece.attempt, piece.positions, piece.is_split) == (2, None, False)
    bisection.finish(np.arange(10, dtype=np.float32))
    verdict = bisection.begin()
    assert isinstance(verdict, Outcome)
    assert verdict.given_up == {}
    assert bisection.splits == 0


def test_trial_that_only_kills_ends_with_a_failure() -> None:
    verdict, sizes = run(Bisection(4096, 3), set(range(4096)), "die")
    assert verdict.failure is not None
    assert len(sizes) == 3 + ENDS_ALLOWED


def test_ticket_of_an_earlier_piece_is_not_current() -> None:
    bisection = Bisection(2, 3)
    first = bisection.begin()
    assert isinstance(first, UnitSlice)
    assert bisection.is_current(first.ticket)
    bisection.fail("it broke", ended=True)
    bisection.begin()
    assert not bisection.is_current(first.ticket)


def test_pace_allows_more_for_more_tokens_and_for_a_slow_engine() -> None:
    found = AdaptiveTimeout(5.0)
    assert found.allow(1000) == 5.0
    found.note(100, 1.0)
    found.note(100, 2.0)
    assert found.allow(1000) == 5.0 + pace.SLACK * 20.0
    for _ in range(pace.REMEMBERED):
        found.note(100, 1.0)
    assert found.allow(1000) == 5.0 + pace.SLACK * 10.0


HANGS = {
    "sleep": "import time; time.sleep(1000)",
    "sleep with the interpreter's lock": "import ctypes; ctypes.PyDLL(None).sleep(1000)",
    "stop": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.mark.parametrize("name", HANGS)
def test_watchdog_ends_a_process_that_hangs(name: str) -> None:
    code = f"from rerank_actor.runtime.watchdog import Watchdog\nwith Watchdog().limit(1.0):\n    {HANGS[name]}"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120)
    assert found.returncode == -9


def test_watchdog_leaves_work_within_its_limit_alone_and_is_replaced_when_it_dies() -> None:
    found = watchdog.Watchdog()
    with found.limit(1000):
        pass
    process = found._process
    assert process is not None
    process.kill()
    process.wait()
    with found.limit(1000):
        assert found._process is not None
        assert found._process.poll() is None
    found.close()


def test_engine_out_of_memory_goes_on_with_smaller_batches() -> None:
    pairs = [("a query", f"document {number}") for number in range(40)]
    with (
        Reranker(engine="fake", engine_args={"faults": {"memory_tokens": 1000}}) as tight,
        Reranker(engine="fake") as calm,
    ):
        assert tight.score(pairs).tolist() == calm.score(pairs).tolist()


def test_prompt_that_fits_no_memory_is_an_error() -> None:
    tight = Reranker(engine="fake", engine_args={"faults": {"memory_tokens": 1000}})
    with tight, pytest.raises(EngineMemoryError):
        tight.score([("a query", "x" * 2000)])


def test_fake_engine_fails_on_guilty_prompts_alone() -> None:
    tokenizer = load_tokenizer_json(load_reranker_model("bytes"))
    encoder = PairEncoder(tokenizer, template=QWEN3_RERANKER, instruction="i", max_length=500)
    prompts = encoder.encode(["q", "q"], ["good", "b\u0007d"]).ids_at(np.arange(2))
    token = next(iter(set(prompts[1].tolist()) - set(prompts[0].tolist()) - {ord("d")}))
    for kind in ("raise", "nan"):
        faults = {"guilty_token": token, "guilty_kind": kind}
        engine = Reranker(engine="fake", engine_args={"faults": faults})._engine
        assert np.isfinite(engine.compute_logits(prompts[:1])).all()
        if kind == "nan":
            assert np.isfinite(engine.compute_logits(prompts)).tolist() == [True, False]
        else:
            with pytest.raises(EngineError):
                engine.compute_logits(prompts)
