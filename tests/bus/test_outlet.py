"""What goes out when."""

from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.bus.delivery import Delivery
from mint_stream.bus.offsets import Progress, fresh
from mint_stream.bus.outlet import IntakeLimits, Outlet
from mint_stream.bus.takeovers import take_over
from mint_stream.bus.tenure import Tenure


def record(partition: int, offset: int, size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(topic="t", partition=partition, offset=offset, key=None, value=b"x" * size, headers=(), timestamp=0)


class Floor:
    """An outlet with partitions, and what came out of it."""

    def __init__(self, limits: IntakeLimits, starts: list[Progress]) -> None:
        self.out: list[Delivery] = []
        self.buried: list[Delivery] = []
        self.tenures = [Tenure(TopicPartition("t", number), take_over(start), 8) for number, start in enumerate(starts)]
        self.outlet = Outlet(limits, self.make, lambda tenure, delivery: self.out.append(delivery), self.buried.append)
        self.outlet.seat(self.tenures)
        for tenure in self.tenures:
            tenure.held = True

    def make(self, tenure: Tenure, fetched) -> Delivery:
        return Delivery(fetched, tenure.number, lambda: tenure.ended, lambda delivery: self.close(tenure, delivery), None)

    def close(self, tenure: Tenure, delivery: Delivery) -> None:
        if tenure.closed(delivery.offset):
            self.outlet.release(tenure, delivery)
            self.outlet.pump()

    def fetch(self, partition: int, *offsets: int, size: int = 1) -> None:
        self.tenures[partition].accept([record(partition, offset, size) for offset in offsets])

    def taken(self) -> list[tuple[int, int]]:
        out, self.out = self.out, []
        return [(delivery.partition, delivery.offset) for delivery in out]


def test_partitions_take_turns():
    floor = Floor(IntakeLimits(max_records=4), [fresh(0), fresh(0)])
    floor.fetch(0, *range(9))
    floor.fetch(1, 0, 1)
    assert not floor.outlet.pump()
    assert sorted(floor.taken()) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 10), st.integers(1, 60), st.randoms(use_true_random=False))
def test_what_is_out_never_exceeds_the_bounds_but_for_one_record_alone(sizes, records, size_bytes, random):
    floor = Floor(IntakeLimits(max_records=records, max_bytes=size_bytes), [fresh(0)])
    for offset, size in enumerate(sizes):
        floor.fetch(0, offset, size=size)
    floor.outlet.pump()
    open_now, closed = [], 0
    while floor.out or open_now:
        open_now += floor.out
        floor.out = []
        assert len(open_now) == floor.outlet.open_records <= records
        assert len(open_now) == 1 or sum(delivery.size_bytes for delivery in open_now) == floor.outlet.open_bytes <= size_bytes
        floor.close(floor.tenures[0], open_now.pop(random.randrange(len(open_now))))
        closed += 1
    assert closed == len(sizes)
    assert (floor.outlet.open_records, floor.outlet.open_bytes, floor.outlet.held_bytes) == (0, 0, 0)


def test_after_a_takeover_few_are_out_and_each_waits_for_the_commit_that_names_it():
    vanished = Progress(next_offset=0, position=9, open=(0,), high=9, until=9, tenure=1)
    floor = Floor(IntakeLimits(careful_records=2), [vanished, fresh(0)])
    floor.fetch(0, 0, 9, 10)
    floor.fetch(1, 0)
    assert floor.outlet.pump()
    assert floor.taken() == [(1, 0)]
    tenure = floor.tenures[0]
    progress = tenure.progress(released=False)
    assert progress.open == (0, 9)
    assert [delivery.offset for delivery in tenure.confirmed(progress)] == [0, 9]


def test_a_suspect_waits_until_nothing_is_out_and_nothing_goes_out_beside_it():
    suspect = Progress(next_offset=0, position=2, open=(0, 1), high=2, until=2, takeovers=3, tenure=4)
    floor = Floor(IntakeLimits(takeovers_before_suspect=3), [suspect, fresh(0)])
    floor.fetch(1, 0)
    floor.outlet.pump()
    (other,) = floor.out
    floor.fetch(0, 0, 1)
    floor.fetch(1, 1)
    assert not floor.outlet.pump()
    floor.close(floor.tenures[1], other)
    assert floor.tenures[0].suspicion.trying == 0
    assert [delivery.offset for delivery in floor.tenures[0].staged] == [0]
    assert not floor.out[1:]
    assert floor.outlet.open_records == 1


def test_the_condemned_goes_to_be_buried_and_to_nobody_else():
    floor = Floor(IntakeLimits(), [Progress(next_offset=0, position=1, open=(0,), high=1, until=1, takeovers=3, trying=0, tenure=4)])
    floor.fetch(0, 0)
    floor.outlet.pump()
    assert [delivery.offset for delivery in floor.buried] == [0]
    assert floor.taken() == []


def test_a_lost_partition_gives_its_room_back_and_its_deliveries_are_stale():
    floor = Floor(IntakeLimits(max_records=2), [fresh(0)])
    floor.fetch(0, 0, 1)
    floor.outlet.pump()
    floor.tenures[0].ended = True
    floor.outlet.evict(floor.tenures[0])
    assert (floor.outlet.open_records, floor.outlet.open_bytes) == (0, 0)
    assert all(delivery.stale for delivery in floor.out)


@pytest.mark.parametrize("held", [True, False])
def test_nothing_goes_out_during_a_rebalance(held):
    floor = Floor(IntakeLimits(), [fresh(0)])
    floor.fetch(0, 0)
    floor.tenures[0].held = held
    floor.outlet.pump()
    assert len(floor.out) == held
