"""What a supervisor reads from an exit code: 2 means that a restart would change nothing."""

import pytest

from mint_stream.cli.group import FAILED, STOPPED, exit_code
from mint_stream.errors import BaseConflict, BrokerFailed, DeviceLost, EngineFailed, MintError, PortTaken, TopicMismatch, UnknownAdapter


@pytest.mark.parametrize("error", [BaseConflict("x"), TopicMismatch("x"), PortTaken("x")])
def test_what_a_person_has_to_change_is_not_tried_again(error: MintError) -> None:
    assert exit_code(error) == STOPPED


@pytest.mark.parametrize("error", [EngineFailed("x"), DeviceLost("x"), BrokerFailed("x"), UnknownAdapter("x")])
def test_what_the_next_life_may_do_better_is(error: MintError) -> None:
    assert exit_code(error) == FAILED
