"""Whether a job may be paused or resumed follows from what was told of it and asked of it last."""

from typing import get_args

import pytest

from mint_stream.client.controls import JobNow, check_control
from mint_stream.errors import ControlRefused, UnknownJob
from mint_stream.messages.training import TERMINAL, Action, JobState


@pytest.mark.parametrize("state", get_args(JobState))
@pytest.mark.parametrize("asked", [None, *get_args(Action)])
def test_of_pause_and_resume_a_job_that_goes_on_takes_exactly_one(state: JobState, asked: Action | None) -> None:
    taken = [action for action in ("pause", "resume") if not refused(action, JobNow(state, asked))]
    over = state in TERMINAL or asked == "cancel"
    paused = asked == "pause" or (state == "paused" and asked is None)
    assert taken == ([] if over else ["resume"] if paused else ["pause"])


def refused(action: Action, job: JobNow) -> bool:
    try:
        check_control("j", action, job)
    except ControlRefused:
        return True
    return False


def test_a_refusal_says_what_the_job_is() -> None:
    with pytest.raises(ControlRefused, match="job j cannot be paused: it is already paused"):
        check_control("j", "pause", JobNow("running", "pause"))
    with pytest.raises(ControlRefused, match="job j cannot be resumed: it is not paused, it is running"):
        check_control("j", "resume", JobNow("running"))


def test_a_job_that_nobody_submitted_is_unknown() -> None:
    with pytest.raises(UnknownJob, match="no job j"):
        check_control("j", "pause", None)
