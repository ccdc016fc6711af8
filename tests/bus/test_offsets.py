"""Laws of the open-offset tracker."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.bus.offsets import WINDOW, OffsetTracker, fresh

gaps = st.lists(st.integers(1, 50), min_size=1, max_size=60)


def offsets_of(steps: list[int]) -> list[int]:
    offset, found = 0, []
    for step in steps:
        offset += step
        found.append(offset)
    return found


@settings(deadline=None)
@given(gaps, st.randoms(use_true_random=False))
def test_the_committed_offset_never_passes_an_open_one_and_ends_at_the_position(steps, random):
    tracker = OffsetTracker(0)
    waiting, still_open = offsets_of(steps), []
    while waiting or still_open:
        if waiting and (not still_open or random.random() < 0.5):
            tracker.delivered(waiting[0])
            still_open.append(waiting.pop(0))
        else:
            tracker.done(still_open.pop(random.randrange(len(still_open))))
        assert all(tracker.next_offset <= offset for offset in still_open)
        assert tracker.open == tuple(sorted(still_open))
    assert tracker.next_offset == tracker.position == sum(steps) + 1


@settings(deadline=None)
@given(gaps, st.sets(st.integers(0, 59)), st.integers(0, 60))
def test_a_successor_delivers_exactly_what_was_not_closed(steps, closed, delivered):
    log = offsets_of(steps)
    first = OffsetTracker(0)
    for offset in log[:delivered]:
        first.delivered(offset)
    done = {log[index] for index in closed if index < min(delivered, len(log))}
    for offset in done:
        assert first.done(offset)
    second = OffsetTracker(first.next_offset, first.position, first.open)
    again = [offset for offset in log if offset >= first.next_offset and second.wanted(offset)]
    assert again == [offset for offset in log if offset not in done]


@settings(deadline=None)
@given(gaps, st.integers(0, 59))
def test_offsets_that_left_the_log_do_not_hold_the_commit_back(steps, kept_from):
    log = offsets_of(steps)
    tracker = OffsetTracker(log[0], log[-1] + 1, log)
    remaining = log[kept_from:]
    for offset in remaining:
        tracker.delivered(offset)
        tracker.done(offset)
    tracker.pass_over(log[-1] + 1)
    assert tracker.open == ()
    assert tracker.next_offset == log[-1] + 1


@settings(deadline=None)
@given(gaps, st.randoms(use_true_random=False))
def test_what_a_rebalance_brings_again_is_wanted_neither_in_flight_nor_done(steps, random):
    tracker = OffsetTracker(0)
    for offset in offsets_of(steps):
        tracker.delivered(offset)
        if random.random() < 0.5:
            tracker.done(offset)
    assert not any(tracker.wanted(offset) for offset in offsets_of(steps))
    assert tracker.wanted(tracker.position)


def test_the_window_bounds_the_span_and_moves_with_the_lowest_open_offset():
    tracker = OffsetTracker(5)
    tracker.delivered(5)
    assert tracker.admits(5 + WINDOW - 1)
    assert not tracker.admits(5 + WINDOW)
    tracker.done(5)
    assert tracker.admits(5 + WINDOW)


def test_delivering_twice_is_refused_and_closing_twice_says_so():
    tracker = OffsetTracker(0)
    tracker.delivered(0)
    with pytest.raises(ValueError, match="offset 0"):
        tracker.delivered(0)
    assert tracker.done(0)
    assert not tracker.done(0)


def test_an_offset_that_waits_to_be_delivered_again_cannot_be_closed_by_a_stale_worker():
    tracker = OffsetTracker(3, 6, (3, 5))
    assert not tracker.done(5)
    assert tracker.open == (3, 5)


def test_markers_at_the_end_of_a_log_are_passed_over():
    tracker = OffsetTracker(0)
    tracker.delivered(0)
    tracker.pass_over(2)
    assert tracker.next_offset == 0
    tracker.done(0)
    assert tracker.next_offset == 2


def test_a_fresh_partition_begins_at_its_first_record():
    assert (fresh(7).next_offset, fresh(7).position, fresh(7).open, fresh(7).tenure) == (7, 7, (), 0)
