"""When a crashed child may start again."""

from mint_stream.app.restarts import RestartPolicy

POLICY = RestartPolicy(first_delay_s=1.0, longest_delay_s=5.0, crashes_allowed=4, healthy_after_s=60.0)


def test_delays_double_up_to_the_longest_and_then_it_is_given_up():
    assert [POLICY.delay_s(crashes) for crashes in range(1, 6)] == [1.0, 2.0, 4.0, 5.0, None]


def test_a_long_life_forgets_earlier_crashes():
    assert POLICY.crashes_after(3, lived_s=60.0) == 1
    assert POLICY.crashes_after(3, lived_s=59.9) == 4
