"""One partition through many owners: whatever closes, crashes, is handed over or compacted away, nothing is lost."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mint_stream.bus.commit_metadata import decode_metadata, encode_metadata
from mint_stream.bus.offsets import OffsetTracker, fresh
from mint_stream.bus.takeovers import Suspicion, progress_of, take_over

MARGIN = 8


class AnyTenures(RuleBasedStateMachine):
    """`log` are the offsets that hold a record now. A commit goes through the string that brokers store."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []
        self.end = 0
        self.stored = (0, encode_metadata(fresh(0)))
        self.closed: set[int] = set()
        self.closed_when_committed: set[int] = set()
        self.gone: set[int] = set()
        self.times_closed: dict[int, int] = {}
        self.crashes = 0
        self.tenure = 0
        self.begin()

    def begin(self) -> None:
        """A new owner: it commits that it has taken over before it delivers anything."""
        start = take_over(decode_metadata(*self.stored))
        assert start.tenure == self.tenure + 1
        self.tenure = start.tenure
        self.tracker = OffsetTracker(start.next_offset, start.position, start.open)
        self.suspicion = Suspicion.of(start, MARGIN)
        self.out: list[int] = []
        self.cursor = start.next_offset
        self.store(released=False)

    def store(self, released: bool) -> None:
        progress = progress_of(self.tracker, self.suspicion, self.tenure, released)
        self.stored = (progress.next_offset, encode_metadata(progress))
        assert decode_metadata(*self.stored) == progress
        self.closed_when_committed = set(self.closed)

    @rule(records=st.integers(1, 6), hole=st.booleans())
    def produce(self, records: int, hole: bool) -> None:
        """Records arrive; a transaction's marker is an offset without one."""
        self.log += range(self.end, self.end + records)
        self.end += records + hole

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        for offset in [offset for offset in self.log if offset >= self.cursor][:count]:
            if self.tracker.wanted(offset):
                self.tracker.delivered(offset)
                self.out.append(offset)
            self.cursor = offset + 1

    @rule()
    def read_to_the_end(self) -> None:
        """Everything below the log's end that is left has been looked at: what is not there any more will not come."""
        if not [offset for offset in self.log if offset >= self.cursor]:
            self.tracker.pass_over(self.end)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.out))
        self.out.remove(offset)
        assert self.tracker.done(offset)
        assert not self.tracker.done(offset)
        self.suspicion.closed(offset)
        self.closed.add(offset)
        self.times_closed[offset] = self.times_closed.get(offset, 0) + 1

    @rule()
    def a_worker_of_an_earlier_tenure_closes_nothing_that_waits(self) -> None:
        waiting = set(self.tracker.open) - set(self.out)
        assert not any(self.tracker.done(offset) for offset in waiting)

    @rule()
    def commit(self) -> None:
        self.store(released=False)

    @rule()
    def crash(self) -> None:
        """What was closed since the last commit is forgotten: those, and what was open, come again."""
        self.closed &= self.closed_when_committed
        self.crashes += 1
        self.begin()

    @rule()
    def hand_over(self) -> None:
        self.store(released=True)
        before = set(self.closed)
        self.begin()
        assert not any(self.tracker.wanted(offset) for offset in before)

    @rule()
    def rewind(self) -> None:
        """A rebalance that gives the partition back to the same owner reads again from what it committed."""
        self.cursor = self.tracker.next_offset

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        """A record that is not in flight leaves the log."""
        offset = data.draw(st.sampled_from(self.log))
        if offset not in self.out:
            self.log.remove(offset)
            self.gone.add(offset)

    @invariant()
    def nothing_that_is_open_lies_below_the_commit(self) -> None:
        unclosed = [offset for offset in self.log if offset not in self.closed]
        assert all(offset >= self.stored[0] for offset in unclosed if offset < self.tracker.position or offset in self.out)
        assert not [offset for offset in unclosed if offset < self.stored[0]]

    @invariant()
    def a_record_is_wanted_delivered_or_closed_and_never_two_of_them(self) -> None:
        for offset in self.log:
            states = (self.tracker.wanted(offset), offset in self.out, offset in self.closed)
            assert sum(states) == 1, (offset, states)

    @invariant()
    def what_is_out_is_what_the_tracker_counts(self) -> None:
        assert self.tracker.in_flight == len(self.out)
        assert set(self.out) <= set(self.tracker.open)

    @invariant()
    def only_crashes_make_anything_be_done_twice(self) -> None:
        assert all(times <= 1 + self.crashes for times in self.times_closed.values())

    def teardown(self) -> None:
        """An owner that lives long enough finishes everything."""
        self.cursor = self.tracker.next_offset
        for offset in self.log:
            if self.tracker.wanted(offset):
                self.tracker.delivered(offset)
                self.out.append(offset)
        self.tracker.pass_over(self.end)
        for offset in self.out:
            self.tracker.done(offset)
            self.closed.add(offset)
        self.out = []
        self.store(released=True)
        assert self.closed | self.gone >= set(self.log)
        assert (self.stored[0], self.tracker.open) == (max(self.end, self.tracker.position), ())


TestAnyTenures = AnyTenures.TestCase
TestAnyTenures.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
