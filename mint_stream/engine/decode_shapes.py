"""Which decode steps have a graph: a few shapes that every step is filled up to. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mint_stream.kernels.worklist import bucket

MOST_ROWS = 128
"""Of a step with a graph. With more rows the device is busy for longer than the host takes to ask for it."""
RANKS = (32, 128)
FEW_PLANES = 4
"""Of 512 keys each: up to 2,048 tokens a sequence."""


@dataclass(frozen=True, order=True)
class Shape:
    """A step of `rows` rows, whose adapters of up to `rank` have up to `items` work items (both 0: no adapters).

    Each sequence's keys are read by up to `planes` CTAs a head.
    """

    rows: int
    items: int
    rank: int
    planes: int


class Shapes:
    """Law: whatever fits in the largest has a shape that holds it, with less than a quarter of its rows and half of its items for nothing.

    `planes` that a step does not need end at once: there are two sizes of that.
    """

    def __init__(self, most_rows: int, most_planes: int) -> None:
        self.most_rows = min(most_rows, MOST_ROWS)
        self.most_planes = most_planes
        self._rows = _ladder(bucket(rows) for rows in range(1, self.most_rows + 1))
        self._planes = _ladder((min(FEW_PLANES, most_planes), most_planes))

    def __iter__(self) -> Iterator[Shape]:
        """The largest first, so that the smaller ones find its memory."""
        for rows in reversed(self._rows):
            for planes in reversed(self._planes):
                yield from (Shape(rows, items, rank, planes) for items in reversed(_items(rows)) for rank in reversed(RANKS))
                yield Shape(rows, 0, 0, planes)

    def holding(self, rows: int, items: int, rank: int, planes: int) -> Shape | None:
        """The smallest that holds a step; None when none does."""
        if not 0 < rows <= self.most_rows or planes > self.most_planes or rank > RANKS[-1]:
            return None
        wide = next(one for one in self._rows if one >= rows)
        long = next(one for one in self._planes if one >= planes)
        if not items:
            return Shape(wide, 0, 0, long)
        return Shape(wide, next(one for one in _items(wide) if one >= items), next(one for one in RANKS if one >= rank), long)


def _items(rows: int) -> list[int]:
    """Powers of two, and as many as there are rows."""
    return _ladder((*(1 << power for power in range(rows.bit_length()) if 1 << power < rows), rows))


def _ladder(sizes: Iterable[int]) -> list[int]:
    return sorted(set(sizes))
