"""How a job stands follows from what was said of it, in the order of attempts, and its end is the end."""

from functools import reduce
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.client.job_fold import after
from mint_stream.messages.training import JobState, TrainingEvent


def event(state: JobState, **fields: Any) -> TrainingEvent:
    return TrainingEvent(
        **{"job_id": "j", "adapter_id": "a", "tenant": "t", "worker_id": "w", "steps": 9, "at_ms": 1, "state": state} | fields
    )


def stands(*events: TrainingEvent) -> TrainingEvent:
    return reduce(after, events[1:], events[0])


@given(st.lists(st.tuples(st.sampled_from(get_args(JobState)), st.integers(0, 3)), min_size=1))
def test_the_end_is_the_end_and_older_attempts_are_not_heard(said: list[tuple[JobState, int]]) -> None:
    events = [event(state, attempt=attempt, step=place) for place, (state, attempt) in enumerate(said)]
    now, highest = stands(*events), 0
    expected = events[0]
    for one in events:
        if expected.terminal and one is not expected:
            break
        if one.attempt >= highest:
            expected, highest = one, one.attempt
    assert (now.state, now.step, now.attempt) == (expected.state, expected.step, expected.attempt)


def test_what_a_heartbeat_does_not_tell_is_known_from_before_and_the_remaining_time_only_while_it_is_trained() -> None:
    told = event("running", loss=0.5, number=2, eta_s=60.0, tokens_per_s=9.0)
    assert stands(told, event("running", heartbeat=True)).eta_s == stands(told, event("publishing", number=3)).eta_s == 60.0
    for state in ("paused", "queued", "succeeded", "failed"):
        now = stands(told, event(state))  # type: ignore[arg-type]
        assert (now.loss, now.number, now.eta_s, now.tokens_per_s) == (0.5, 2, None, None)
    assert stands(told, event("running", loss=0.4, eta_s=50.0)).eta_s == 50.0
