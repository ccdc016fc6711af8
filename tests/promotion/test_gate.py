"""The laws of the gate."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.messages.gates import GateTerms
from mint_stream.promotion.gate import Scores, items_needed, judge

UNIT = st.floats(0, 1)
PAIRS = st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=200)


def terms(**changes: object) -> GateTerms:
    return GateTerms(**{"dataset_uri": "memory://items", "grader": "exact-match", "floor": 0.5, **changes})


def split(pairs: list[tuple[float, float]]) -> Scores:
    return Scores(tuple(ours for ours, _ in pairs), tuple(theirs for _, theirs in pairs))


@given(PAIRS, UNIT, st.booleans())
def test_a_candidate_below_the_floor_never_passes(pairs: list[tuple[float, float]], floor: float, compared: bool) -> None:
    scores = split(pairs) if compared else Scores(split(pairs).candidate)
    judged = judge(terms(floor=floor), scores)
    assert judged.outcome == "failed" or judged.figures["score"] >= floor


@given(PAIRS, UNIT, UNIT, st.data())
def test_a_better_candidate_or_a_worse_production_never_turns_a_pass_into_a_failure(
    pairs: list[tuple[float, float]], up: float, down: float, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(pairs) - 1))
    ours, theirs = pairs[place]
    better = [*pairs[:place], (max(ours, up), min(theirs, down)), *pairs[place + 1 :]]
    if judge(terms(floor=0.3), split(pairs)).outcome == "passed":
        assert judge(terms(floor=0.3), split(better)).outcome == "passed"


@given(PAIRS, st.randoms())
def test_the_order_of_the_items_does_not_matter(pairs: list[tuple[float, float]], chance: random.Random) -> None:
    shuffled = chance.sample(pairs, len(pairs))
    assert judge(terms(), split(pairs)) == judge(terms(), split(shuffled))


def test_a_tie_passes_from_the_number_of_items_on_that_is_said_to_be_needed() -> None:
    least = items_needed(0.05, 0.95)
    assert least is not None and 60 < least < 128, "a dataset of 128 items is enough for the defaults"
    for count, outcome in ((least, "passed"), (least - 1, "failed")):
        assert judge(terms(), Scores((0.7,) * count, (0.7,) * count)).outcome == outcome


def test_a_gate_that_nothing_could_pass_is_known_as_such() -> None:
    assert items_needed(1e-6, 0.95) is None
    assert items_needed(1.0, 0.95) == 1, "any score is no worse by all there is"


def outcomes(ours: float, theirs: float, items: int, trials: int = 300) -> float:
    """How often a candidate passes whose answers are right with probability `ours`, independently of production's."""
    chance, passed = random.Random(5), 0
    for _ in range(trials):
        pairs = [(float(chance.random() < ours), float(chance.random() < theirs)) for _ in range(items)]
        passed += judge(terms(floor=0.0, max_regression=0.1), split(pairs)).outcome == "passed"
    return passed / trials


def test_the_rates_that_are_stated() -> None:
    """Worse by exactly what is allowed: promoted in at most 5 % of trials. Equal, and better: see the numbers."""
    assert outcomes(0.6, 0.7, 200) <= 0.05
    assert outcomes(0.5, 0.7, 200) == 0.0
    assert outcomes(0.7, 0.7, 1000) >= 0.8, "equal, answers independent: the hardest tie"
    assert outcomes(0.9, 0.7, 200) >= 0.99


def test_without_production_only_the_floor_counts() -> None:
    assert judge(terms(), Scores((1.0, 0.0))).outcome == "passed"
    assert judge(terms(), Scores((1.0, 0.0, 0.0))).outcome == "failed"
    assert judge(terms(floor=0.0), Scores(())).outcome == "failed"


def test_a_judgement_says_its_numbers() -> None:
    judged = judge(terms(), Scores((1.0,) * 128, (0.5,) * 128))
    assert (judged.figures["score"], judged.figures["production_score"], judged.figures["difference"]) == (1.0, 0.5, 0.5)
    assert judged.figures["evidence"] >= judged.figures["evidence_needed"] == pytest.approx(20)
    assert "128 items" in judged.reason
