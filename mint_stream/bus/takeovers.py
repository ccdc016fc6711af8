"""Finds the record that kills its workers. Pure.

An owner that ends in order says so in its last commit (`released`). One that vanished did not, and its successor counts a takeover. The
successor is *careful*: it has few records in flight and commits each as open before delivering it, so the next successor knows exactly
which were out. After `k` takeovers those suspects run one at a time, alone in the worker, each named in a commit (`trying`) before it is
delivered; the one that was being tried when its owner vanished is condemned. Once everything that was suspected is closed, the count is 0.
"""

from dataclasses import dataclass, replace

from mint_stream.bus.offsets import OffsetTracker, Progress


def take_over(left: Progress) -> Progress:
    """What the next owner begins with, given what the last one left. Commit it before anything is delivered.

    An owner that vanished in a careful tenure with nothing out is not held against the partition: something else ended it."""
    if left.released:
        return replace(left, tenure=left.tenure + 1, released=False, trying=None, high=left.next_offset)
    idle = left.takeovers > 0 and not any(offset < left.high for offset in left.open)
    return replace(
        left,
        tenure=left.tenure + 1,
        takeovers=left.takeovers + (0 if idle else 1),
        until=max(left.high, left.next_offset + 1),
        trying=None,
        condemned=left.trying if left.trying in left.open else left.condemned,
        high=left.next_offset,
    )


@dataclass
class Suspicion:
    """What one tenure knows about records that may kill it."""

    takeovers: int
    until: int
    careful_until: int
    trying: int | None = None
    condemned: int | None = None

    @staticmethod
    def of(start: Progress, margin: int) -> "Suspicion":
        """Careful until all is closed that was out, and `margin` offsets more: what the last owner delivered after its last commit."""
        careful = start.takeovers > 0 or start.condemned is not None
        return Suspicion(
            takeovers=start.takeovers,
            until=start.until,
            careful_until=max(start.until, start.position) + margin if careful else start.next_offset,
            condemned=start.condemned,
        )

    def observe(self, tracker: OffsetTracker) -> None:
        """Forget what the closed offsets have cleared."""
        reached = tracker.next_offset
        if self.takeovers and reached >= self.until:
            self.takeovers = 0
        if self.condemned is not None and self.condemned < reached:
            self.condemned = None

    def closed(self, offset: int) -> None:
        """`offset` did not kill us, or lies in the dead letters now: then it explains the takeovers."""
        if offset == self.trying:
            self.trying = None
        if offset == self.condemned:
            self.condemned, self.takeovers = None, 0

    def careful(self, tracker: OffsetTracker) -> bool:
        """Whether deliveries are few and committed as open before they go out."""
        return self.trying is not None or tracker.next_offset < self.careful_until

    def suspects(self, offset: int, k: int) -> bool:
        """Whether `offset` has to run alone."""
        return self.takeovers >= k and self.condemned is None and offset < self.until


def progress_of(tracker: OffsetTracker, suspicion: Suspicion, tenure: int, released: bool) -> Progress:
    """What to commit now."""
    suspicion.observe(tracker)
    return Progress(
        next_offset=tracker.next_offset,
        position=tracker.position,
        open=tracker.open,
        high=tracker.high,
        tenure=tenure,
        takeovers=suspicion.takeovers,
        until=max(suspicion.until, tracker.next_offset),
        released=released,
        trying=None if released else suspicion.trying,
        condemned=suspicion.condemned,
    )
