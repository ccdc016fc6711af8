"""The evidence against a mean: how often it lies, and what it grows with."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.promotion.evidence import MOST, against_mean, against_rate, needed

UNIT = st.floats(0, 1)
LIMIT = st.floats(0.01, 0.99)


@given(st.lists(UNIT, max_size=40), LIMIT, st.randoms())
def test_the_order_of_the_observations_does_not_matter(values: list[float], limit: float, chance: random.Random) -> None:
    shuffled = chance.sample(values, len(values))
    assert against_mean(values, limit) == against_mean(shuffled, limit)


@given(st.lists(UNIT, min_size=1, max_size=40), LIMIT, UNIT, st.data())
def test_a_larger_observation_is_never_less_evidence(values: list[float], limit: float, larger: float, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(values) - 1))
    raised = [*values[:place], max(values[place], larger), *values[place + 1 :]]
    assert against_mean(raised, limit) >= against_mean(values, limit) * (1 - 1e-12)


@given(st.integers(0, 60), st.integers(0, 60), LIMIT)
def test_a_rate_is_the_mean_of_zeros_and_ones(hits: int, others: int, limit: float) -> None:
    seen = [1.0] * hits + [0.0] * others
    assert against_rate(hits, hits + others, limit) == pytest.approx(against_mean(seen, limit), rel=1e-9)


@given(st.integers(1, 8), st.floats(0.2, 0.99))
def test_it_is_a_fair_bet(trials: int, limit: float) -> None:
    """Exactly: over all outcomes at the limit itself the expected evidence is 1, so Ville's inequality holds."""
    expected = math.fsum(
        math.comb(trials, hits) * limit**hits * (1 - limit) ** (trials - hits) * against_rate(hits, trials, limit)
        for hits in range(trials + 1)
    )
    assert expected == pytest.approx(1.0, rel=1e-6)


def test_nothing_seen_shows_nothing_and_certainty_has_a_bound() -> None:
    assert against_mean([], 0.5) == 1.0
    assert against_mean([1.0] * 100_000, 0.5) == MOST
    assert needed(0.95) == pytest.approx(20)


@pytest.mark.parametrize("limit", [0.02, 0.3, 0.5])
def test_looking_after_every_observation_shows_a_falsehood_in_at_most_one_case_of_twenty(limit: float) -> None:
    """At the limit itself, the worst that is no violation: 400 histories of 400 looks each."""
    chance, fooled = random.Random(1), 0
    for _ in range(400):
        hits = 0
        for trials in range(1, 401):
            hits += chance.random() < limit
            if against_rate(hits, trials, limit) >= needed(0.95):
                fooled += 1
                break
    assert fooled <= 0.05 * 400


def test_what_is_far_above_the_limit_shows_soon() -> None:
    assert against_rate(10, 20, 0.02) >= needed(0.99)
