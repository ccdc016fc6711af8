"""Which revision draws for which step, and what drawn and graded answers teach."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.messages.training import Hyperparameters, RolloutTerms, TrainingJob
from mint_stream.trainer.losses import group_advantages
from mint_stream.trainer.rollouts import Scored, drawn_at, learned, seed_of, staleness

steps, cadences, bounds = st.integers(0, 10_000), st.integers(1, 50), st.integers(0, 9)


@given(steps, cadences, bounds)
def test_a_revision_that_draws_is_published_already_and_not_staler_than_allowed(step: int, every: int, bound: int) -> None:
    at = drawn_at(step, every, bound)
    published_since = step // every - at // every
    assert at % every == 0 and 0 <= at <= step
    assert published_since == staleness(step, every, bound) <= bound
    assert at == 0 or published_since == bound, "fresher only while there are not so many revisions"


@given(cadences, bounds)
def test_later_steps_are_drawn_by_the_same_or_by_later_revisions(every: int, bound: int) -> None:
    drawn = [drawn_at(step, every, bound) for step in range(5 * every)]
    assert all(before <= after <= before + every for before, after in pairwise(drawn))


def scored(*scores: float) -> list[Scored]:
    return [Scored((1, 2, 3), (7, place + 10), (-0.5, -1.0 - place), score) for place, score in enumerate(scores)]


def test_an_answer_teaches_by_its_tokens_alone_and_by_its_place_in_its_group() -> None:
    found = learned([scored(1.0, 0.0), scored(0.0, 0.5, 1.0)])
    assert [one.tokens for one in found] == [(1, 2, 3, 7, place) for place in (10, 11, 10, 11, 12)]
    assert {one.weights for one in found} == {(0.0, 0.0, 0.0, 1.0, 1.0)}
    assert [one.behaviour[3:] for one in found[:2]] == [(-0.5, -1.0), (-0.5, -2.0)]
    expected = [*group_advantages([1.0, 0.0]), *group_advantages([0.0, 0.5, 1.0])]
    assert [one.advantages for one in found] == [(0.0, 0.0, 0.0, advantage, advantage) for advantage in expected]


def test_groups_of_equal_scores_are_left_out_and_where_all_are_equal_one_answer_stays_without_a_gradient() -> None:
    assert learned([scored(0.1, 0.1, 0.1), scored(0.0, 1.0)]) == learned([scored(0.0, 1.0)])
    (left,) = learned([scored(1.0, 1.0), scored(0.0)])
    assert left.tokens == (1, 2, 3, 7, 10) and not any(left.advantages)
    assert learned([]) == learned([[], []]) == ()


@pytest.mark.parametrize("changed", ["seed", "step", "place", "sample"])
def test_a_seed_is_an_answers_own_and_does_not_depend_on_the_jobs_name(changed: str) -> None:
    fields = {"adapter_id": "a", "method": "grpo", "dataset_uri": "file:///d", "submitted_at_ms": 1, "publish_every_steps": 1}
    terms = {"rollouts": RolloutTerms(grader="exact-match"), "hyperparameters": Hyperparameters(steps=1)}

    def seed(job_id: str = "j", **numbers: int) -> int:
        where = {"seed": 3, "step": 0, "place": 0, "sample": 0} | numbers
        return seed_of(TrainingJob(job_id=job_id, seed=where.pop("seed"), **fields, **terms), **where)

    assert seed() == seed("another") and 0 <= seed() < 2**63
    assert seed(**{changed: 1}) != seed()
