"""One unbroken time of owning a partition: what was fetched, what is out, what to commit."""

from collections import deque
from typing import Any

from aiokafka import TopicPartition

from mint_stream.bus.delivery import Delivery, record_bytes
from mint_stream.bus.offsets import OffsetTracker, Progress
from mint_stream.bus.takeovers import Suspicion, progress_of


class Tenure:
    """The state of one partition between gaining and losing it, over consecutive generations of the group."""

    def __init__(self, partition: TopicPartition, start: Progress, margin: int) -> None:
        self.partition = partition
        self.number = start.tenure
        self.tracker = OffsetTracker(start.next_offset, start.position, start.open)
        self.suspicion = Suspicion.of(start, margin)
        self.fetched: deque[Any] = deque()
        self.fetched_bytes = 0
        self.out_records = 0
        self.out_bytes = 0
        self.staged: deque[Delivery] = deque()
        """Delivered on paper; they go out when a commit that names them as open has succeeded."""
        self.taken = False
        """The takeover is committed: only then is the partition ours over a rebalance too."""
        self.held = False
        """False while the takeover is being committed, and during a rebalance: nothing new goes out."""
        self.ended = False
        """The partition was lost: everything out is stale."""
        self.paused = False
        """Fetching is paused for want of room."""
        self.dirty = False
        """Something changed since the last commit."""

    def accept(self, records: list[Any]) -> None:
        """Keep what was fetched."""
        self.fetched.extend(records)
        self.fetched_bytes += sum(map(record_bytes, records))

    def forget_fetched(self) -> None:
        """Drop what was fetched and not delivered: it will be fetched again from `resume_offset`."""
        self.fetched.clear()
        self.fetched_bytes = 0

    @property
    def resume_offset(self) -> int:
        """Where fetching goes on: all below was delivered in this tenure or is closed."""
        return self.tracker.high

    @property
    def fetch_offset(self) -> int:
        """The next offset to fetch."""
        return int(self.fetched[-1].offset) + 1 if self.fetched else self.resume_offset

    def head(self) -> Any | None:
        """The next fetched record that is still wanted. Drops what a rebalance brought again."""
        while self.fetched and not self.tracker.wanted(self.fetched[0].offset):
            self.pop()
        return self.fetched[0] if self.fetched else None

    def pop(self) -> Any:
        """Take the first fetched record."""
        record = self.fetched.popleft()
        self.fetched_bytes -= record_bytes(record)
        return record

    @property
    def careful(self) -> bool:
        """See `takeovers`."""
        return self.suspicion.careful(self.tracker)

    def admits(self, offset: int, careful_records: int) -> bool:
        """Whether the window, and carefulness, let another delivery out."""
        return self.tracker.admits(offset) and not (self.careful and self.tracker.in_flight >= careful_records)

    def closed(self, offset: int) -> bool:
        """A delivery of this tenure was closed; False when it was before."""
        first = self.tracker.done(offset)
        if first:
            self.dirty = True
            self.suspicion.closed(offset)
        return first

    def progress(self, released: bool) -> Progress:
        """What to commit now."""
        return progress_of(self.tracker, self.suspicion, self.number, released)

    def confirmed(self, progress: Progress) -> list[Delivery]:
        """The commit of `progress` succeeded: what it names as open may go out."""
        ready = []
        while self.staged and self.staged[0].offset < progress.high:
            ready.append(self.staged.popleft())
        return ready
