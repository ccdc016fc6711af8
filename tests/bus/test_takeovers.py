"""The search for the record that kills its workers, played without Kafka: every life of a worker is a loop over one log."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream.bus.commit_metadata import decode_metadata, encode_metadata
from mint_stream.bus.offsets import OffsetTracker, Progress, fresh
from mint_stream.bus.takeovers import Suspicion, progress_of, take_over

K, CAREFUL, BOUND = 3, 4, 24


@dataclass
class Partition:
    """A log of so many records and what was committed of it."""

    records: int
    committed: Progress = field(default_factory=lambda: fresh(0))
    closed: set[int] = field(default_factory=set)
    dead: list[int] = field(default_factory=list)

    def commit(self, progress: Progress) -> None:
        self.committed = decode_metadata(progress.next_offset, encode_metadata(progress))


def live(partition: Partition, poison: set[int], random, quick: bool) -> bool:
    """One life of a worker. False when a record killed it. `quick`: it dies before anything else closes."""
    start = take_over(partition.committed)
    partition.commit(start)
    tracker = OffsetTracker(start.next_offset, start.position, start.open)
    suspicion = Suspicion.of(start, BOUND)
    out: list[int] = []
    coming = [offset for offset in range(start.next_offset, partition.records) if tracker.wanted(offset)]
    while coming or out:
        while coming and may_go(coming[0], tracker, suspicion, len(out)):
            offset = coming.pop(0)
            if suspicion.suspects(offset, K):
                suspicion.trying = offset
            careful = suspicion.careful(tracker)
            tracker.delivered(offset)
            if offset == suspicion.condemned:
                partition.dead.append(offset)
                tracker.done(offset)
                suspicion.closed(offset)
                continue
            out.append(offset)
            if careful:
                partition.commit(progress_of(tracker, suspicion, start.tenure, released=False))
            if quick and offset in poison:
                return False
        ready = out[random.randrange(len(out))] if out else None
        if ready is not None:
            if ready in poison:
                return False
            out.remove(ready)
            tracker.done(ready)
            suspicion.closed(ready)
            partition.closed.add(ready)
            if random.random() < 0.3:
                partition.commit(progress_of(tracker, suspicion, start.tenure, released=False))
    partition.commit(progress_of(tracker, suspicion, start.tenure, released=True))
    return True


def may_go(offset: int, tracker: OffsetTracker, suspicion: Suspicion, out: int) -> bool:
    if suspicion.trying is not None:
        return False
    if suspicion.suspects(offset, K):
        return out == 0
    return out < (CAREFUL if suspicion.careful(tracker) else BOUND)


@settings(deadline=None)
@given(st.integers(1, 60), st.sets(st.integers(0, 59), min_size=1, max_size=2), st.randoms(use_true_random=False), st.booleans())
def test_every_poison_is_dead_lettered_its_neighbours_are_closed_and_the_lives_are_bounded(records, poison, random, quick):
    poison = {offset for offset in poison if offset < records}
    partition = Partition(records)
    lives = 1
    while not live(partition, poison, random, quick):
        lives += 1
        assert lives < 60, partition.committed
    assert set(partition.dead) == poison
    assert partition.closed == set(range(records)) - poison
    assert partition.committed.next_offset == records
    assert partition.committed.takeovers == 0


@settings(deadline=None)
@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_a_poison_that_kills_at_once_costs_k_lives_and_one_alone(records, random):
    partition = Partition(records)
    lives = 1
    while not live(partition, {0}, random, quick=True):
        lives += 1
    assert lives <= K + 2


def test_a_handover_in_order_is_no_takeover():
    left = Progress(next_offset=3, position=9, open=(3, 5), high=9, until=3, released=True, tenure=4)
    assert take_over(left) == Progress(next_offset=3, position=9, open=(3, 5), high=3, until=3, tenure=5)


def test_an_idle_partition_is_not_blamed_again_for_what_others_did():
    first = take_over(Progress(next_offset=9, position=9, high=9, until=9, tenure=1))
    assert first.takeovers == 1
    second = take_over(first)
    assert second.takeovers == 1
    assert second.tenure == 3


def test_the_one_being_tried_is_condemned_only_while_it_is_open():
    left = Progress(next_offset=3, position=9, open=(3, 5), high=4, until=9, takeovers=K, trying=3, tenure=4)
    assert take_over(left).condemned == 3
    assert take_over(Progress(next_offset=5, position=9, open=(5,), high=4, until=9, takeovers=K, trying=3, tenure=4)).condemned is None


def test_a_trial_that_ends_in_order_condemns_nobody():
    left = Progress(next_offset=3, position=9, open=(3,), high=4, until=9, takeovers=K, trying=3, tenure=4, released=True)
    assert take_over(left).condemned is None
    assert take_over(left).takeovers == K
