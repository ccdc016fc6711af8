"""What the cache's slots hold, so that a prompt that begins like another one need not be computed again. Pure.

Whose weights made the keys and values is part of what a slot holds, by content digest: what a revision computed is never read by the next
one of the same name, nor by the bare base.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reuse:
    """The first `tokens` places of `slot` are what a prompt begins with."""

    slot: int
    tokens: int


@dataclass
class _Held:
    maker: Hashable
    tokens: Sequence[int]
    computed: int
    """Of `tokens`, how many have keys and values in the slot."""


class SlotContents:
    """Laws: what is offered was computed by the same maker from the same tokens; a free slot is forgotten last that was used last."""

    def __init__(self, slots: int) -> None:
        self._held: dict[int, _Held] = {}
        self._free = list(range(slots))
        """Next to be taken first: never used ones in order, then the longest released."""

    @property
    def free(self) -> int:
        """How many sequences more would fit."""
        return len(self._free)

    def longest(self, maker: Hashable, prompt: Sequence[int]) -> Reuse | None:
        """The slot with the most of `prompt` from its beginning, its last token left out: that one is computed in any case."""
        found = [
            Reuse(slot, _common(prompt, held.tokens, min(held.computed, len(prompt) - 1)))
            for slot, held in self._held.items()
            if held.maker == maker
        ]
        best = max(found, key=lambda reuse: reuse.tokens, default=None)
        return best if best is not None and best.tokens else None

    def take(self, preferred: int | None = None) -> int:
        """A free slot: the preferred one if it is free. What it held is forgotten."""
        at = self._free.index(preferred) if preferred in self._free else 0
        slot = self._free.pop(at)
        self._held.pop(slot, None)
        return slot

    def hold(self, slot: int, maker: Hashable, tokens: Sequence[int], computed: int) -> None:
        """`slot` has keys and values of the first `computed` of `tokens`. The sequence may go on appending to `tokens`."""
        self._held[slot] = _Held(maker, tokens, computed)

    def advance(self, slot: int, computed: int) -> None:
        """Now of so many."""
        if slot in self._held:
            self._held[slot].computed = computed

    def computed(self, slot: int) -> int:
        """Of how many tokens `slot` has keys and values."""
        return self._held[slot].computed if slot in self._held else 0

    def release(self, slot: int, keep: bool) -> None:
        """Free it. Its contents are offered until it is taken, unless they are not to be kept."""
        if not keep:
            self._held.pop(slot, None)
            self._free.insert(0, slot)
        else:
            self._free.append(slot)


def _common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many of the first `most` tokens agree."""
    low, high = 0, max(0, min(most, len(one), len(other)))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
