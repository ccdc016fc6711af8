"""The device tier: adapters that the next step can use, each one contiguous block on the device, under a byte budget."""

import asyncio
import time
from collections.abc import Callable

import torch

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.residents import Residents
from mint_stream.cache.slots import AnywhereSlots, ArenaSlots, Slots
from mint_stream.cache.tally import Tally
from mint_stream.errors import AdapterNotLoaded


class Lease:
    """A hold on a block: it stays on the device until `release`, which may be called more than once."""

    def __init__(self, block: AdapterBlock, release: Callable[[], None]) -> None:
        self.block = block
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give the block back."""
        if self._release is not None:
            release, self._release = self._release, None
            release()


class DeviceTier:
    """AdapterBlocks on one device by content digest. To be used from one event loop; copies run in a thread.

    On a GPU all blocks share one arena, asked for once: see ArenaSlots.
    """

    def __init__(
        self, budget_bytes: int, device: torch.device | str = "cpu", tally: Tally | None = None, slots: Slots | None = None
    ) -> None:
        place = torch.device(device)
        self._residents: Residents[str] = Residents(budget_bytes)
        self._blocks: dict[str, AdapterBlock] = {}
        self._slots = slots or (AnywhereSlots(place) if place.type == "cpu" else ArenaSlots(budget_bytes, place))
        self._room = asyncio.Event()
        self._placing = asyncio.Lock()
        self.tally = tally or Tally("device")
        self.tally.budget_bytes = budget_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks here, those being copied among them."""
        return self._residents.used_bytes

    def __contains__(self, digest: str) -> bool:
        return digest in self._blocks

    def digests(self) -> list[str]:
        """What is here, the most recently used first."""
        return [digest for digest in reversed(self._residents.keys()) if digest in self._blocks]

    def has_free_room(self, size_bytes: int) -> bool:
        """Whether a block of this size fits without evicting any."""
        return self._slots.size(size_bytes) <= self._residents.free_bytes() and self._slots.has_room(size_bytes)

    def lease(self, digest: str) -> Lease | None:
        """Hold a block that is here; None when it is not."""
        return self.hold(digest) if digest in self._blocks else None

    def hold(self, digest: str) -> Lease:
        """Hold a block that is here. Raises KeyError when it is not."""
        block = self._blocks[digest]
        self._residents.touch(digest)
        return self._leased(block)

    def share(self, lease: Lease) -> Lease:
        """One more hold on what `lease` holds. It is no use: the load was for all who waited."""
        return self._leased(lease.block)

    async def place(self, block: AdapterBlock) -> Lease:
        """Copy a block here, evicting what is not leased, and hold it. Waits for leases to end when they leave no room.

        Blocks are placed one after the other, so a large one is not overtaken for ever. Raises AdapterNotLoaded when the block alone
        is larger than the budget: other workers may have a larger one.
        """
        if self._slots.size(block.nbytes) > self._residents.budget_bytes:
            raise AdapterNotLoaded(
                f"{block.nbytes} bytes of weights do not fit the device tier's {self._residents.budget_bytes} bytes: "
                "raise MINT_SERVING__DEVICE_TIER_BYTES"
            )
        async with self._placing:
            held = self.lease(block.digest)
            return held if held is not None else await self._placed(block)

    async def _placed(self, block: AdapterBlock) -> Lease:
        while not self._reserved(block):
            self._room.clear()
            await self._room.wait()
        begun = time.perf_counter()
        try:
            placed = await self._filled(block)
        except BaseException:
            self._slots.give_back(block.digest)
            raise
        self.tally.loaded(time.perf_counter() - begun)
        self._residents.add(block.digest, self._slots.size(block.nbytes))
        self._blocks[block.digest] = placed
        self.tally.used_bytes = self.used_bytes
        return self._leased(placed)

    async def _filled(self, block: AdapterBlock) -> AdapterBlock:
        """Who gives up waits for the copy to end first: its place must not be another's before."""
        copying = asyncio.ensure_future(asyncio.to_thread(self._slots.fill, block))
        try:
            return await asyncio.shield(copying)
        except asyncio.CancelledError:
            await asyncio.wait({copying})
            copying.exception()
            raise

    def _reserved(self, block: AdapterBlock) -> bool:
        """Whether there is a place now: first by bytes, then in one piece, for which more than the bytes may have to go."""
        size = self._slots.size(block.nbytes)
        if not self._residents.fits(size):
            return False
        for digest in self._residents.make_room(size):
            self._forget(digest)
        while not (reserved := self._slots.reserve(block.digest, block.nbytes)) and (gone := self._residents.evict_one()) is not None:
            self._forget(gone)
        return reserved

    def _forget(self, digest: str) -> None:
        del self._blocks[digest]
        self._slots.give_back(digest)
        self.tally.evicted()

    def _leased(self, block: AdapterBlock) -> Lease:
        self._residents.lease(block.digest)
        return Lease(block, lambda: self._release(block.digest))

    def _release(self, digest: str) -> None:
        self._residents.release(digest)
        self._room.set()
