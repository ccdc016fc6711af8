"""Jobs sit down in turn, tenants with few seats first, within the memory."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.errors import InvalidJob
from mint_stream.workers.seats import OVERTAKEN, Applicant, Seats

jobs = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 10)), min_size=1, max_size=12)
"""Tenant and size of each, in the order of their coming."""


def applicants(drawn: list[tuple[str, int]]) -> list[Applicant]:
    return [Applicant(f"j{number}", tenant, size) for number, (tenant, size) in enumerate(drawn)]


def seated(seats: Seats, line: list[Applicant]) -> list[Applicant]:
    """Who sits down when all ask, again and again, until nobody more can."""
    found: list[Applicant] = []
    while more := [job for job in line if job not in found and seats.take(job)]:
        found += more
    return found


def test_only_who_sat_down_has_a_seat() -> None:
    seats = Seats(1, 100)
    first, second = (Applicant(name, "t", 1, 0) for name in ("first", "second"))
    assert seats.take(first) and not seats.take(second)
    assert ("first" in seats, "second" in seats) == (True, False)


@given(drawn=jobs, most=st.integers(1, 4), limit=st.integers(10, 30))
def test_there_are_never_more_jobs_nor_more_bytes_than_allowed_and_everybody_gets_a_seat_in_the_end(
    drawn: list[tuple[str, int]], most: int, limit: int
) -> None:
    seats, line = Seats(most, limit), applicants(drawn)
    working: list[Applicant] = []
    for _ in range(len(line)):
        working += seated(seats, [job for job in line if job not in working])
        assert 0 < len(working) == seats.taken <= most and sum(job.state_bytes for job in working) <= limit
        done = working.pop(0)
        seats.leave(done.job_id)
        line.remove(done)
    assert not line and seats.taken == 0


@given(drawn=jobs, most=st.integers(1, 4))
def test_a_tenant_with_fewer_seats_goes_first_and_within_a_tenant_who_waited_longest(drawn: list[tuple[str, int]], most: int) -> None:
    seats, line = Seats(most, 10**6), applicants(drawn)
    first = line[0]
    assert seats.take(first)
    for job in line[1:]:
        seats.take(job)  # all are in line now, those that found room sit
    counts = {tenant: sum(one.tenant == tenant for one in line[:most]) for tenant, _ in drawn}
    assert seats.taken == min(most, len(line)) and sum(counts.values()) == seats.taken
    seats.leave(first.job_id)
    counts[first.tenant] -= 1
    waiting = line[most:]
    if waiting:
        fewest = min(counts[job.tenant] for job in waiting)
        expected = next(job for job in waiting if counts[job.tenant] == fewest)
        assert [job for job in waiting if seats.take(job)] == [expected]


@given(
    drawn=st.lists(st.tuples(st.sampled_from("ab"), st.integers(-2, 2), st.integers(0, 6)), min_size=1, max_size=80), most=st.integers(1, 3)
)
def test_the_most_urgent_sits_down_first_and_nobody_is_overtaken_for_priority_more_often_than_the_bound(
    drawn: list[tuple[str, int, int]], most: int
) -> None:
    """Jobs come one by one, each waiting until `stay` others have come after it; all in line ask whenever a seat is free."""
    seats, line, sitting = Seats(most, 10**6), list[Applicant](), list[Applicant]()
    overtakings = Counter[str]()

    def settle() -> None:
        while chosen := next((job for job in list(line) if seats.take(job)), None):
            held = Counter(job.tenant for job in sitting)
            place = line.index(chosen)
            rivals = [job for job in line if held[job.tenant] == held[chosen.tenant]]
            assert held[chosen.tenant] == min(held[job.tenant] for job in line), "tenants with few seats first, whatever the priority"
            if not any(overtakings[job.job_id] >= OVERTAKEN for job in rivals):
                assert chosen == max(rivals, key=lambda job: job.priority), "the highest, and of equals the first"
            for earlier in line[:place]:
                overtakings[earlier.job_id] += earlier in rivals and earlier.priority < chosen.priority
            line.remove(chosen)
            sitting.append(chosen)

    for number, (tenant, priority, leaving) in enumerate(drawn):
        line.append(Applicant(f"j{number}", tenant, 1, priority))
        settle()
        if leaving < len(sitting):
            seats.leave(sitting.pop(leaving).job_id)
            settle()
    assert all(count <= OVERTAKEN for count in overtakings.values())


def test_a_job_of_low_priority_has_its_turn_before_a_stream_of_urgent_ones_ends() -> None:
    seats, low = Seats(1, 10), Applicant("low", "a", 1, -10)
    assert seats.take(Applicant("first", "a", 1)) and not seats.take(low)
    urgent = [Applicant(f"u{number}", "a", 1, 10) for number in range(3 * OVERTAKEN)]
    assert not any(seats.take(job) for job in urgent)
    order, sitting = list[str](), "first"
    for _ in range(len(urgent) + 1):
        seats.leave(sitting)
        sitting = next(job.job_id for job in [low, *urgent] if job.job_id not in order and seats.take(job))
        order.append(sitting)
    assert order.index("low") == OVERTAKEN


@given(drawn=jobs, most=st.integers(1, 6), quota=st.integers(1, 3))
def test_no_tenant_has_more_seats_than_it_may_and_who_has_to_wait_for_that_holds_nobody_up(
    drawn: list[tuple[str, int]], most: int, quota: int
) -> None:
    seats, line = Seats(most, 10**6), applicants(drawn)

    def allowed(_tenant: str, held: int) -> bool:
        return held < quota

    sitting = list[Applicant]()
    while line or sitting:
        while more := [job for job in line if seats.take(job, allowed)]:
            sitting += more
            line = [job for job in line if job not in more]
        held = Counter(job.tenant for job in sitting)
        assert sitting and max(held.values()) <= quota
        for job in line:
            full, over = len(sitting) == most, held[job.tenant] == quota
            assert full or over, "a free seat stays free only for those who may not have it"
            assert ("quota" in seats.lacks(job, allowed)) == over and (over or f"all {most} seats" in seats.lacks(job, allowed))
        seats.leave(sitting.pop(0).job_id)


def test_who_is_next_waits_for_memory_and_nobody_goes_before_it() -> None:
    seats = Seats(8, 10)
    first, large, small = Applicant("first", "a", 6), Applicant("large", "b", 8), Applicant("small", "b", 1)
    assert [seats.take(job) for job in (first, large, small, first)] == [True, False, False, True]
    assert [seats.lacks(job).split(" ")[0] for job in (large, small)] == ["its", "others"]
    seats.leave("first")
    assert [seats.take(job) for job in (small, large, small)] == [False, True, True]


def test_who_leaves_neither_a_seat_nor_a_place_in_the_line_has_given_nothing_up() -> None:
    seats = Seats(1, 100)
    first, second = Applicant("a", "t", 10), Applicant("b", "t", 10)
    assert seats.take(first) and not seats.take(second)
    assert [seats.leave(one) for one in ("b", "a", "a", "stranger")] == [True, True, False, False]


def test_a_job_that_leaves_the_line_holds_nobody_up() -> None:
    seats = Seats(1, 10)
    assert [seats.take(Applicant(name, "a", 1)) for name in "xyz"] == [True, False, False]
    seats.leave("y")
    seats.leave("x")
    assert seats.take(Applicant("z", "a", 1))


def test_a_job_that_never_fits_is_told_how_much_there_is() -> None:
    seats, huge = Seats(1, 10), Applicant("huge", "a", 11)
    assert seats.take(huge) and seats.taken == 0
    with pytest.raises(InvalidJob, match=r"job huge: its adapter and optimizer take 11 bytes, .* 10: .*MINT_TRAINING__STATE_BYTES"):
        seats.check(huge)
    seats.check(Applicant("fits", "a", 10))
