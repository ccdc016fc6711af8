"""Turns on one base: the share that training has, and who goes first."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.model.turns import Account, Turns

SECONDS = st.floats(0.001, 1.0)


@given(st.sampled_from([0.1, 0.25, 0.5, 1.0]), st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=200))
def test_while_serving_is_busy_training_has_its_share_and_one_pass_at_most(share: float, lengths: list[tuple[float, float]]) -> None:
    """Whoever's turn it is takes as long as it likes."""
    account, trained, served = Account(share), 0.0, 0.0
    for step_s, pass_s in lengths:
        if account.owed_s <= 0:
            assert trained <= share * (trained + served) + 1e-6, "those before this one had no more than their share"
            account, trained = account.trained(pass_s), trained + pass_s
        account, served = account.served(step_s), served + step_s


@given(st.sampled_from([0.1, 0.5]), SECONDS, st.lists(SECONDS, min_size=1, max_size=50))
def test_a_trainer_waits_no_longer_than_its_last_pass_gives_serving_a_right_to(share: float, pass_s: float, steps: list[float]) -> None:
    account, waited = Account(share).trained(pass_s), 0.0
    for step_s in steps:
        if account.owed_s <= 0:
            break
        account, waited = account.served(step_s), waited + step_s
    assert waited <= pass_s * (1 - share) / share + max(steps) + 1e-6


class Clock:
    """Goes on by a second at each look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def in_turn(pool: ThreadPoolExecutor, turn: Callable[[], AbstractContextManager[None]], said: list[str], name: str) -> "Held":
    held = Held()

    def work() -> None:
        with turn():
            said.append(name)
            held.begun.set()
            held.may_end.wait()

    held.future = pool.submit(work)
    return held


class Held:
    """A turn that lasts until it is let go."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def end(self) -> None:
        self.may_end.set()
        self.future.result()


def test_one_at_a_time_and_a_trainer_that_waits_has_its_share_of_a_busy_base() -> None:
    """A share of a half: as long as a pass took, a step has to take before the next one."""
    turns, said = Turns(share=0.5, clock=Clock()), list[str]()
    turns.busy(True)
    with ThreadPoolExecutor() as pool:
        first = in_turn(pool, turns.pass_, said, "pass 1")
        assert first.begun.wait(10), "nothing is owed yet"
        step, second = (in_turn(pool, turn, said, name) for turn, name in ((turns.step, "step 1"), (turns.pass_, "pass 2")))
        assert not step.begun.is_set() and not second.begun.is_set()
        first.end()
        assert step.begun.wait(10), "serving is owed a second"
        step.end()
        assert second.begun.wait(10), "and had it"
        second.end()
    assert said == ["pass 1", "step 1", "pass 2"]


def test_training_has_all_the_time_that_serving_does_not_want() -> None:
    turns, passes = Turns(share=0.01), 0
    for _ in range(100):
        with turns.pass_():
            passes += 1
    assert passes == 100


def test_a_pass_that_fails_gives_the_base_back_and_counts() -> None:
    turns = Turns(share=0.5, clock=Clock())
    with pytest.raises(ValueError, match="bad"), turns.pass_():
        raise ValueError("bad")
    with turns.step():
        assert turns._account.owed_s > 0
