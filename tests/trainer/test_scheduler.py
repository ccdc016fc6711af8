"""What a job does when follows from its settings, its step and its cursor alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.messages.training import Hyperparameters
from mint_stream.trainer.examples import Example
from mint_stream.trainer.scheduler import DataOrder, learning_rate, micro_batches


def example(length: int) -> Example:
    return Example((1,) * length, (0.0,) + (1.0,) * (length - 1))


@given(seed=st.integers(0, 2**63 - 1), count=st.integers(1, 40), cursor=st.integers(0, 99), cut=st.integers(0, 30), size=st.integers(0, 30))
def test_reading_in_two_parts_is_reading_at_once(seed: int, count: int, cursor: int, cut: int, size: int) -> None:
    order = DataOrder(seed, count)
    resumed = DataOrder(seed, count)
    assert order.batch(cursor, cut + size) == resumed.batch(cursor, cut) + resumed.batch(cursor + cut, size)


@given(seed=st.integers(0, 2**63 - 1), count=st.integers(1, 40), epoch=st.integers(0, 3))
def test_every_epoch_shows_every_example_once(seed: int, count: int, epoch: int) -> None:
    assert sorted(DataOrder(seed, count).batch(epoch * count, count)) == list(range(count))


def test_epochs_and_seeds_are_permuted_differently_and_always_the_same_way() -> None:
    order = DataOrder(7, 8)
    assert order.batch(0, 8) != order.batch(8, 8) != DataOrder(8, 8).batch(8, 8)
    assert order.batch(0, 8) == (5, 1, 2, 6, 0, 3, 4, 7)


@given(lengths=st.lists(st.integers(2, 50), min_size=1, max_size=20), limit=st.integers(2, 64))
def test_micro_batches_keep_the_order_and_the_limit_unless_one_line_alone_exceeds_it(lengths: list[int], limit: int) -> None:
    batch = [example(length) for length in lengths]
    pieces = micro_batches(batch, limit)
    assert [one for piece in pieces for one in piece] == batch
    assert all(len(piece) == 1 or sum(len(one.tokens) for one in piece) <= limit for piece in pieces)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_warms_up_to_its_peak_and_ends_where_its_schedule_says(schedule: str) -> None:
    settings = Hyperparameters(steps=10, warmup_steps=4, learning_rate=1.0, schedule=schedule)
    rates = [learning_rate(settings, step) for step in range(11)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[10] == pytest.approx(1.0 if schedule == "constant" else 0.0)
