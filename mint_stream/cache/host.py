"""The host tier: adapters ready to be copied to the device, in host memory."""

from collections.abc import Mapping

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.lru import ByteLru


class HostTier:
    """AdapterBlocks on the CPU by content digest, under a byte budget. To be used from one thread."""

    def __init__(self, budget_bytes: int) -> None:
        self._lru: ByteLru[str] = ByteLru(budget_bytes)
        self._blocks: dict[str, AdapterBlock] = {}
        self._kept_for: dict[str, str] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks here."""
        return self._lru.used_bytes

    @property
    def kept(self) -> Mapping[str, str]:
        """The digest kept for each adapter that has one."""
        return self._kept_for

    def __contains__(self, digest: str) -> bool:
        return digest in self._blocks

    def get(self, digest: str) -> AdapterBlock | None:
        """The block, which counts as just used; None when it is not here."""
        return self._blocks[digest] if self._lru.touch(digest) else None

    def put(self, block: AdapterBlock) -> None:
        """Let a block in. One larger than the whole budget is not held, and evicts nothing."""
        if block.digest in self._blocks or not self._lru.fits(block.nbytes):
            return
        for digest in self._lru.add(block.digest, block.nbytes):
            del self._blocks[digest]
        self._blocks[block.digest] = block

    def keep(self, adapter_id: str, digest: str | None) -> None:
        """Evict this digest last, for an adapter that may roll back to it; replaces what was kept for the adapter. None keeps nothing."""
        if digest is None:
            self._kept_for.pop(adapter_id, None)
        else:
            self._kept_for[adapter_id] = digest
        self._lru.keep(set(self._kept_for.values()))
