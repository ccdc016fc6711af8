"""Jobs sit down in turn, tenants with few seats first, within the memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.errors import InvalidJob
from mint_stream.workers.seats import Applicant, Seats

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


def test_who_is_next_waits_for_memory_and_nobody_goes_before_it() -> None:
    seats = Seats(8, 10)
    first, large, small = Applicant("first", "a", 6), Applicant("large", "b", 8), Applicant("small", "b", 1)
    assert [seats.take(job) for job in (first, large, small, first)] == [True, False, False, True]
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
