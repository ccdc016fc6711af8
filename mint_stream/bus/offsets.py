"""Which offsets of one partition are still open: at-least-once delivery with completion in any order. Pure."""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

WINDOW = 16_384
"""Offsets between the lowest open one and the next to deliver, at most: so that the map of them always fits in a commit's metadata."""


@dataclass(frozen=True)
class Progress:
    """What a commit says of a partition: the offset it commits, and what its metadata adds.

    Every offset below `position` is closed, or is in `open`, or was never a record (a hole left by a transaction or by compaction)."""

    next_offset: int
    position: int
    open: tuple[int, ...] = ()
    """Ascending; the first is `next_offset`. Empty when `next_offset == position`."""
    high: int = 0
    """One past the highest offset delivered in the tenure that wrote this."""
    tenure: int = 0
    """How many times the partition changed hands, ever; the delivery attempt of what is open."""
    takeovers: int = 0
    """How many owners in a row vanished without a word while the same offsets were open."""
    until: int = 0
    """The takeovers are forgotten once everything below this offset is closed."""
    released: bool = False
    """The owner gave the partition back in order."""
    trying: int | None = None
    """The one offset its owner runs alone, to see whether it survives."""
    condemned: int | None = None
    """The offset that killed an owner that ran it alone."""


def fresh(offset: int) -> Progress:
    """The progress of a partition nobody committed to: everything from `offset` on is to be done."""
    return Progress(next_offset=offset, position=offset, high=offset, until=offset, released=True)


class OffsetTracker:
    """The open offsets of one partition during one tenure.

    Law: `next_offset` never passes an open offset, and equals `position` when nothing is open. Offsets are delivered in ascending order,
    beginning at `next_offset`; after a crash exactly those are delivered again that were not closed when `Progress` was taken."""

    def __init__(self, next_offset: int, position: int | None = None, opened: Iterable[int] = ()) -> None:
        self._open: OrderedDict[int, None] = OrderedDict.fromkeys(sorted(opened))
        self._waiting = deque(self._open)
        self.position = next_offset if position is None else position
        self.high = next_offset

    @property
    def next_offset(self) -> int:
        """The offset to commit: all before it are closed."""
        return next(iter(self._open), self.position)

    @property
    def open(self) -> tuple[int, ...]:
        """Offsets that are not closed, ascending, delivered in this tenure or waiting to be delivered again."""
        return tuple(self._open)

    @property
    def in_flight(self) -> int:
        """How many offsets were delivered in this tenure and not closed."""
        return len(self._open) - len(self._waiting)

    def admits(self, offset: int) -> bool:
        """Whether delivering `offset` now keeps the open span within the window."""
        return offset < self.next_offset + WINDOW

    def wanted(self, offset: int) -> bool:
        """Whether `offset` still has to be delivered: it is neither closed nor in flight."""
        return offset >= self.position or (offset >= self.high and offset in self._open)

    def delivered(self, offset: int) -> None:
        """`offset` goes out. What waited below it is gone from the log, so it counts as closed."""
        if not self.wanted(offset):
            raise ValueError(f"offset {offset} is closed or in flight")
        self.pass_over(offset)
        if self._waiting and self._waiting[0] == offset:
            self._waiting.popleft()
        else:
            self._open[offset] = None
        self.high = offset + 1
        self.position = max(self.position, offset + 1)

    def pass_over(self, position: int) -> None:
        """The log was read up to `position` and held nothing more to deliver below it."""
        while self._waiting and self._waiting[0] < position:
            del self._open[self._waiting.popleft()]
        self.high = max(self.high, position)
        self.position = max(self.position, position)

    def done(self, offset: int) -> bool:
        """`offset` is closed. False when it was closed before."""
        if offset not in self._open or offset >= self.high:
            return False
        del self._open[offset]
        return True
