"""The laws of the canary."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.messages.gates import LATENCY_BUCKETS, ArmTally, CanaryTerms, GateTerms
from mint_stream.promotion.canary import Seen, bucket_of, judge, latency_limit_ms, percentile_ms, slower_than
from mint_stream.promotion.gate import Scores
from mint_stream.promotion.verdict import Judgement

GATE = GateTerms(dataset_uri="memory://items", grader="exact-match", floor=0.5)
BUCKETS = st.dictionaries(st.integers(0, LATENCY_BUCKETS - 1), st.integers(0, 300), max_size=6)


@st.composite
def arms(draw: st.DrawFn) -> ArmTally:
    buckets, errors = draw(BUCKETS), draw(st.integers(0, 40))
    return ArmTally(requests=sum(buckets.values()) + errors, errors=errors, latency_ms=buckets)


def arm(requests: int, errors: int = 0, latency_ms: float = 100.0) -> ArmTally:
    return ArmTally(requests=requests, errors=errors, latency_ms={bucket_of(latency_ms): requests - errors})


def looked(seen: Seen, **terms: object) -> Judgement:
    return judge(GATE, CanaryTerms(**{"min_requests": 50, "max_seconds": 100.0, **terms}), seen)


@given(arms(), arms(), st.floats(0, 200))
def test_nothing_passes_before_its_sample_or_beyond_a_limit(canary: ArmTally, production: ArmTally, seconds: float) -> None:
    judged = looked(Seen(canary, production, seconds))
    if judged.outcome == "passed":
        assert canary.requests >= 50
        assert canary.errors <= 0.02 * canary.requests
    if seconds >= 100:
        assert judged.outcome != "undecided"


@given(arms(), arms(), st.floats(0, 200))
def test_an_error_more_never_turns_a_failure_into_a_pass(canary: ArmTally, production: ArmTally, seconds: float) -> None:
    """Among as many requests: one completion becomes an error."""
    before = looked(Seen(canary, production, seconds))
    bucket = next((bucket for bucket, count in canary.latency_ms.items() if count), None)
    if bucket is None or before.outcome == "passed":
        return
    fewer = {**canary.latency_ms, bucket: canary.latency_ms[bucket] - 1}
    if latency_limit_ms(CanaryTerms(min_requests=50), production) is None or slower_than({bucket: 1}, 2**30):
        worse = ArmTally(requests=canary.requests, errors=canary.errors + 1, latency_ms=fewer)
        assert looked(Seen(worse, production, seconds)).outcome != "passed"


@given(arms(), arms(), st.floats(0, 200), st.data())
def test_a_slower_completion_never_turns_a_failure_into_a_pass(
    canary: ArmTally, production: ArmTally, seconds: float, data: st.DataObject
) -> None:
    counted = [bucket for bucket, count in canary.latency_ms.items() if count]
    if not counted or looked(Seen(canary, production, seconds)).outcome == "passed":
        return
    bucket = data.draw(st.sampled_from(counted))
    slower = data.draw(st.integers(bucket, LATENCY_BUCKETS - 1))
    moved = dict(canary.latency_ms)
    moved[bucket] -= 1
    moved[slower] = moved.get(slower, 0) + 1
    worse = canary.model_copy(update={"latency_ms": moved})
    assert looked(Seen(worse, production, seconds)).outcome != "passed"


def history(error_rate: float, slow_rate: float, seed: int, min_requests: int = 200) -> Judgement:
    """A canary looked at after each of its requests, beside a production whose p95 is 100 ms."""
    chance, errors, slow = random.Random(seed), 0, 0
    production = arm(1000, 0, 100.0)
    terms = CanaryTerms(min_requests=min_requests, max_error_rate=0.05)
    for requests in range(1, 2000):
        if chance.random() < error_rate:
            errors += 1
        elif chance.random() < slow_rate:
            slow += 1
        buckets = {bucket_of(100.0): requests - errors - slow, bucket_of(1000.0): slow}
        judged = judge(GATE, terms, Seen(ArmTally(requests=requests, errors=errors, latency_ms=buckets), production, requests))
        if judged.outcome != "undecided":
            break
    return judged


def test_the_rates_that_are_stated() -> None:
    """A canary at its limits is rolled back in at most 5 % of histories, a good one hardly ever, a bad one nearly always."""
    at_limits = [history(0.05, 0.05, seed).outcome for seed in range(60)]
    assert at_limits.count("failed") <= 0.05 * 60
    assert [history(0.005, 0.01, seed).outcome for seed in range(40)].count("passed") >= 39
    assert [history(0.25, 0.0, seed).outcome for seed in range(40)].count("failed") == 40
    assert [history(0.0, 0.25, seed).outcome for seed in range(40)].count("failed") == 40


def test_a_bad_canary_is_rolled_back_long_before_its_sample_is_whole() -> None:
    judged = history(0.9, 0.0, seed=3)
    assert judged.outcome == "failed"
    assert judged.figures["requests"] < 20
    assert "error rate" in judged.reason


def test_latency_is_judged_beside_production_and_only_once_that_has_answered_enough() -> None:
    slow, few = arm(200, 0, 1000.0), arm(5, 0, 100.0)
    assert looked(Seen(slow, few, 1)).outcome == "passed"
    failed = looked(Seen(slow, arm(200, 0, 100.0), 1))
    assert failed.outcome == "failed" and "slow rate" in failed.reason
    assert looked(Seen(slow, arm(200, 0, 1000.0), 1)).outcome == "passed"
    assert failed.figures["latency_ms"] == pytest.approx(1000, rel=0.2)
    assert failed.figures["production_latency_ms"] == pytest.approx(100, rel=0.2)


def test_a_canary_with_a_dataset_of_its_own_waits_for_its_scores_and_falls_by_them() -> None:
    whole, production = arm(60), arm(60)
    uri = {"dataset_uri": "memory://more"}
    assert looked(Seen(whole, production, 1), **uri).outcome == "undecided"
    good, bad = Scores((1.0,) * 128, (1.0,) * 128), Scores((0.4,) * 128, (1.0,) * 128)
    assert looked(Seen(whole, production, 1, good), **uri).outcome == "passed"
    failed = looked(Seen(arm(3), production, 1, bad), **uri)
    assert failed.outcome == "failed", "a bad score does not wait for the sample"
    assert failed.figures["canary_score"] == pytest.approx(0.4)


def test_time_ends_what_too_few_have_asked() -> None:
    assert looked(Seen(arm(3), arm(3), 99.9)).outcome == "undecided"
    assert looked(Seen(arm(3), arm(3), 100.0)).outcome == "failed"


@given(st.floats(0.01, 1e7))
def test_a_time_lies_in_its_bucket(latency_ms: float) -> None:
    bucket = bucket_of(latency_ms)
    assert 0 <= bucket < LATENCY_BUCKETS
    if 1 <= latency_ms < 2**20:
        assert 2 ** (bucket / 4) <= latency_ms * (1 + 1e-9) and latency_ms <= 2 ** ((bucket + 1) / 4) * (1 + 1e-9)


def test_a_percentile_is_a_time_that_so_many_do_not_exceed() -> None:
    assert percentile_ms({}, 95) is None
    assert percentile_ms({8: 95, 40: 5}, 95) == 2 ** (9 / 4)
    assert percentile_ms({8: 94, 40: 6}, 95) == 2 ** (41 / 4)
