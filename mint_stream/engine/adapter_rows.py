"""The adapters of a running batch side by side in memory, so that one batched product serves all of them. For CPUs.

A GPU kernel reads each adapter where it is; torch's batched products want them at equal distances. So a running adapter's block is copied
once, when it joins, into a row of an arena that it shares with blocks of the same layout. Nothing here grows with the adapters known,
and a set of adapters that stays costs nothing.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Protocol
from weakref import ref

from torch import Tensor

from mint_stream.adapter import AdapterBlock, Place
from mint_stream.engine.memory import zeros_when_touched
from mint_stream.kernels import LoraWeights, SiteWeights, Stack
from mint_stream.model.passes import NO_ADAPTERS, AdapterSet

REMEMBERED_ARENAS = 8
REMEMBERED_SETS = 16
SPARE_ROWS = 2
"""Rows without work that a step reads along, before the running blocks are moved together."""

Slots = Mapping[int, int]
"""id of a block -> its slot in a set."""


class Placing(Protocol):
    """How the blocks of a step become the adapters of a pass."""

    def place(self, blocks: Sequence[AdapterBlock]) -> tuple[AdapterSet, Slots]: ...


class WhereTheyAre:
    """Placing for kernels that follow pointers: the blocks stay where they are."""

    def __init__(self) -> None:
        self._sets: OrderedDict[tuple[int, ...], tuple[tuple[AdapterBlock, ...], AdapterSet]] = OrderedDict()

    def place(self, blocks: Sequence[AdapterBlock]) -> tuple[AdapterSet, Slots]:
        """The set of these blocks, remembered with them, so that an id is not another block's while it is a key."""
        ordered = tuple(sorted(blocks, key=id))
        key = tuple(map(id, ordered))
        if key not in self._sets:
            layers = [{path: LoraWeights(layer.A, layer.Bt) for path, layer in block.layers.items()} for block in ordered]
            self._sets[key] = (ordered, AdapterSet(layers))
        self._sets.move_to_end(key)
        while len(self._sets) > REMEMBERED_SETS:
            self._sets.popitem(last=False)
        return self._sets[key][1], {block: slot for slot, block in enumerate(key)}


class _Arena:
    """Rows for blocks of one layout. `held[row]` is the block whose numbers are there, for as long as it lives.

    Each matrix has its rows by itself, one behind the other, As that stand together in the block as one: a batched product then reads one
    piece of memory from end to end.
    """

    def __init__(self, block: AdapterBlock, rows: int) -> None:
        self.places, self.held = block.places, dict[int, "ref[AdapterBlock]"]()
        self._rows = rows
        self._chunks = _chunks(block.places)
        self._numbers = [zeros_when_touched((rows, end - begin), block.flat.dtype) for begin, end in self._chunks]

    def place(self, blocks: Sequence[AdapterBlock]) -> dict[int, int]:
        """Copy in what is not here yet: id of block -> row. Rows of blocks that are not in this step are free."""
        rows = self._known(blocks)
        if max(rows.values(), default=0) >= len(blocks) + SPARE_ROWS:
            rows = {}
        taken = set(rows.values())
        free = (row for row in range(self._rows) if row not in taken)
        for block in blocks:
            if id(block) not in rows:
                rows[id(block)] = row = next(free)
                self._copy(block, row)
        return rows

    def _known(self, blocks: Iterable[AdapterBlock]) -> dict[int, int]:
        wanted = {id(block) for block in blocks}
        living = ((row, block) for row, held in self.held.items() if (block := held()) is not None)
        return {id(block): row for row, block in living if id(block) in wanted}

    def _copy(self, block: AdapterBlock, row: int) -> None:
        known = self.held.get(row)
        if known is None or known() is not block:
            for (begin, end), numbers in zip(self._chunks, self._numbers, strict=True):
                numbers[row].copy_(block.flat[begin:end])
            self.held[row] = ref(block)

    def stack(self, path: str, first: int, rows: slice) -> Stack:
        """The weights of one layer in these rows, as views."""
        a, bt = (self._view(at, rows) for at in self.places[path])
        return Stack(first, a, bt)

    def _view(self, at: Place, rows: slice) -> Tensor:
        chunk = bisect_right(self._chunks, at.offset, key=itemgetter(0)) - 1
        start = at.offset - self._chunks[chunk][0]
        return self._numbers[chunk][rows, start : start + at.rank * at.width].view(-1, at.rank, at.width)


def _chunks(places: Mapping[str, tuple[Place, Place]]) -> list[tuple[int, int]]:
    """(begin, end) of what is copied together: neighbouring As of one width, and every Bt by itself."""
    found: list[tuple[int, int]] = []
    open_width = 0
    for at, is_a in sorted((at, at is pair[0]) for pair in places.values() for at in pair):
        end = at.offset + at.rank * at.width
        if is_a and at.width == open_width and found[-1][1] == at.offset:
            found[-1] = (found[-1][0], end)
        else:
            found.append((at.offset, end))
        open_width = at.width if is_a else 0
    return found


class StackedSet(AdapterSet):
    """Rows of arenas as the adapters of a pass: the slots of each arena follow those of the one before."""

    def __init__(self, parts: Sequence[tuple[_Arena, int, slice]]) -> None:
        super().__init__(())
        self._parts = tuple(parts)
        self._slots = max(first + rows.stop - rows.start for _, first, rows in parts)

    def _made(self, path: str) -> SiteWeights | None:
        stacks = [arena.stack(path, first, rows) for arena, first, rows in self._parts if path in arena.places]
        return SiteWeights([None] * self._slots, stacks) if stacks else None


class SideBySide:
    """Placing for batched products. A block may be let go of as soon as its step is over."""

    def __init__(self, most: int) -> None:
        """`most` distinct adapters in a step, at most."""
        self._rows = most + SPARE_ROWS
        self._arenas: OrderedDict[str, _Arena] = OrderedDict()
        self._sets: OrderedDict[tuple[tuple[str, int, int], ...], AdapterSet] = OrderedDict()

    def place(self, blocks: Sequence[AdapterBlock]) -> tuple[AdapterSet, Slots]:
        """The set for a step with these blocks."""
        if not blocks:
            return NO_ADAPTERS, {}
        groups: dict[str, list[AdapterBlock]] = {}
        for block in blocks:
            groups.setdefault(block.layout, []).append(block)
        rows = {layout: self._arena(layout, group[0]).place(group) for layout, group in groups.items()}
        spans = [(layout, min(at.values()), max(at.values()) + 1) for layout, at in rows.items()]
        firsts = list(accumulate((end - begin for _, begin, end in spans), initial=0))
        slots = {
            block: first + row - begin
            for first, (layout, begin, _) in zip(firsts, spans, strict=False)
            for block, row in rows[layout].items()
        }
        return self._set(tuple(spans), firsts), slots

    def _arena(self, layout: str, block: AdapterBlock) -> _Arena:
        if layout not in self._arenas:
            self._arenas[layout] = _Arena(block, self._rows)
        self._arenas.move_to_end(layout)
        return self._arenas[layout]

    def _set(self, spans: tuple[tuple[str, int, int], ...], firsts: Sequence[int]) -> AdapterSet:
        if spans not in self._sets:
            parts = [(self._arenas[layout], first, slice(begin, end)) for first, (layout, begin, end) in zip(firsts, spans, strict=False)]
            self._sets[spans] = StackedSet(parts)
        self._sets.move_to_end(spans)
        self._forget({layout for layout, _, _ in spans})
        return self._sets[spans]

    def _forget(self, used: set[str]) -> None:
        """The least recently used sets and arenas; a set goes with its arena."""
        while len(self._sets) > REMEMBERED_SETS:
            self._sets.popitem(last=False)
        while len(self._arenas) > max(REMEMBERED_ARENAS, len(used)):
            gone, _ = self._arenas.popitem(last=False)
            self._sets = OrderedDict((spans, one) for spans, one in self._sets.items() if all(layout != gone for layout, _, _ in spans))
