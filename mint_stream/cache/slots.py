"""Where on a device a block's numbers go: wherever torch puts them, or into a slot of an arena that was asked for once."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.arena import FreeList, slot_bytes


class Slots(Protocol):
    """Memory of a device tier. Reserving and giving back happen on the event loop, filling in a thread."""

    def size(self, size_bytes: int) -> int:
        """What a block of `size_bytes` takes."""

    def has_room(self, size_bytes: int) -> bool:
        """Whether a block of this size would get a slot now."""

    def reserve(self, digest: str, size_bytes: int) -> bool:
        """Take a slot for a block; False when there is none."""

    def fill(self, block: AdapterBlock) -> AdapterBlock:
        """The block in its slot. Blocks until it is there."""

    def give_back(self, digest: str) -> None:
        """The block is not used any more, nor will be."""


class AnywhereSlots:
    """Each block where torch puts it. On a CPU that is where it is already, so nothing is copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def size(self, size_bytes: int) -> int:
        """No more than it needs."""
        return size_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Always: the tier's budget is the limit."""
        return True

    def reserve(self, digest: str, size_bytes: int) -> bool:
        """Always."""
        return True

    def fill(self, block: AdapterBlock) -> AdapterBlock:
        """By one copy, if it is elsewhere."""
        return block.to(self._device)

    def give_back(self, digest: str) -> None:
        """torch sees when nobody has it any more."""


class ArenaSlots:
    """One stretch of device memory for all blocks, so that loading never asks the device for memory and never pads to a rank.

    A block is copied on a stream of its own, beside the steps that run: what it overwrites nobody reads: who did has had its last step.
    """

    def __init__(self, budget_bytes: int, device: torch.device) -> None:
        self._memory = torch.empty(budget_bytes, dtype=torch.uint8, device=device)
        self._free = FreeList(budget_bytes)
        self._offsets: dict[str, int] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def size(self, size_bytes: int) -> int:
        """As long as it is, to the next place where a slot may begin."""
        return slot_bytes(size_bytes)

    def has_room(self, size_bytes: int) -> bool:
        """Whether some hole is large enough."""
        return slot_bytes(size_bytes) <= self._free.largest_hole

    def reserve(self, digest: str, size_bytes: int) -> bool:
        """The smallest hole that is large enough."""
        offset = self._free.take(slot_bytes(size_bytes))
        if offset is not None:
            self._offsets[digest] = offset
        return offset is not None

    def fill(self, block: AdapterBlock) -> AdapterBlock:
        """By one copy of one piece of memory to another."""
        start = self._offsets[block.digest]
        with self._aside():
            return block.into(self._memory[start : start + block.nbytes].view(block.flat.dtype))

    def give_back(self, digest: str) -> None:
        """Its bytes are the next one's."""
        self._free.give_back(self._offsets.pop(digest))

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream of copies, until they are done."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()
