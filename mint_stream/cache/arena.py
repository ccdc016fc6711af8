"""Slots in one piece of device memory: as long as their adapter needs and no longer, whatever ranks share it."""

from bisect import bisect_left, insort
from operator import itemgetter

ALIGNMENT_BYTES = 256
"""Where slots begin: a GPU reads whole lines of memory, and copies best from and to such places."""


def slot_bytes(size_bytes: int) -> int:
    """What a block of `size_bytes` takes."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class FreeList:
    """Which stretches of `size_bytes` are free. Best fit, the lowest of equals. Pure: offsets and lengths in bytes.

    Laws: slots never overlap, and all bytes are in a slot or a hole. Neighbouring holes are one, so there is at most one more hole than
    there are slots; a slot is refused only when each hole is smaller than it. So whoever is refused `s` bytes beside `n` slots meets less
    than (n + 1) · s free bytes: small adapters find room while any larger one's worth is free, and an empty arena is one hole.
    """

    def __init__(self, size_bytes: int) -> None:
        self.free_bytes = size_bytes
        self._holes: list[tuple[int, int]] = [(0, size_bytes)] if size_bytes else []
        self._slots: dict[int, int] = {}

    @property
    def holes(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of each free stretch, in order."""
        return tuple(self._holes)

    @property
    def largest_hole(self) -> int:
        """The longest slot that could be had now."""
        return max(map(itemgetter(1), self._holes), default=0)

    def take(self, size_bytes: int) -> int | None:
        """The offset of a slot; None when no hole is large enough."""
        fitting = [(length, offset) for offset, length in self._holes if length >= size_bytes]
        if not fitting:
            return None
        length, offset = min(fitting)
        at = bisect_left(self._holes, (offset, length))
        self._holes[at : at + 1] = [(offset + size_bytes, length - size_bytes)] if length > size_bytes else []
        self._slots[offset] = size_bytes
        self.free_bytes -= size_bytes
        return offset

    def give_back(self, offset: int) -> None:
        """The slot at `offset` is free. Raises KeyError when there is none."""
        length = self._slots.pop(offset)
        self.free_bytes += length
        insort(self._holes, (offset, length))
        at = bisect_left(self._holes, (offset, length))
        self._join(at)
        self._join(at - 1)

    def _join(self, at: int) -> None:
        """Make one of the hole at this place and the next one when they touch."""
        if 0 <= at < len(self._holes) - 1:
            (offset, length), (follows, more) = self._holes[at : at + 2]
            if offset + length == follows:
                self._holes[at : at + 2] = [(offset, length + more)]
