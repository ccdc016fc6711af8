"""The device tier: adapters that the next step can use, each one contiguous block on the device, under a byte budget."""

import asyncio
from collections.abc import Callable

import torch

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.lru import ByteLru
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
    """AdapterBlocks on one device by content digest. To be used from one event loop; copies run in a thread."""

    def __init__(self, budget_bytes: int, device: torch.device | str = "cpu") -> None:
        self._lru: ByteLru[str] = ByteLru(budget_bytes)
        self._blocks: dict[str, AdapterBlock] = {}
        self._device = torch.device(device)
        self._room = asyncio.Event()
        self._placing = asyncio.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks here, those being copied among them."""
        return self._lru.used_bytes

    def __contains__(self, digest: str) -> bool:
        return digest in self._blocks

    def digests(self) -> list[str]:
        """What is here, the most recently used first."""
        return [digest for digest in reversed(self._lru.keys()) if digest in self._blocks]

    def has_free_room(self, size_bytes: int) -> bool:
        """Whether a block of this size fits without evicting any."""
        return size_bytes <= self._lru.free_bytes()

    def lease(self, digest: str) -> Lease | None:
        """Hold a block that is here; None when it is not."""
        return self.hold(digest) if digest in self._blocks else None

    def hold(self, digest: str) -> Lease:
        """Hold a block that is here. Raises KeyError when it is not."""
        block = self._blocks[digest]
        self._lru.lease(digest)
        return Lease(block, lambda: self._release(digest))

    async def place(self, block: AdapterBlock) -> Lease:
        """Copy a block here, evicting what is not leased, and hold it. Waits for leases to end when they leave no room.

        Blocks are placed one after the other, so a large one is not overtaken for ever. Raises AdapterNotLoaded when the block alone
        is larger than the budget: other workers may have a larger one.
        """
        if block.nbytes > self._lru.budget_bytes:
            raise AdapterNotLoaded(
                f"{block.nbytes} bytes of weights do not fit the device tier's {self._lru.budget_bytes} bytes: "
                "raise MINT_SERVING__DEVICE_TIER_BYTES"
            )
        async with self._placing:
            held = self.lease(block.digest)
            return held if held is not None else await self._placed(block)

    async def _placed(self, block: AdapterBlock) -> Lease:
        while not self._lru.fits(block.nbytes):
            self._room.clear()
            await self._room.wait()
        for digest in self._lru.make_room(block.nbytes):
            del self._blocks[digest]
        placed = await asyncio.to_thread(block.to, self._device)
        self._lru.add(block.digest, block.nbytes)
        self._blocks[block.digest] = placed
        return self.hold(block.digest)

    def _release(self, digest: str) -> None:
        self._lru.release(digest)
        self._room.set()
