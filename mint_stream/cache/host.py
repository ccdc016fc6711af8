"""The host tier: adapters ready to be copied to the device, in host memory."""

from collections.abc import Mapping

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.residents import Residents
from mint_stream.cache.tally import Tally


class HostTier:
    """AdapterBlocks on the CPU by content digest, under a byte budget. To be used from one thread.

    Where there is a GPU they come in page-locked memory (see AdapterSource), from which it copies without a detour.
    """

    def __init__(self, budget_bytes: int, tally: Tally | None = None) -> None:
        self.budget_bytes = budget_bytes
        self._residents: Residents[str] = Residents(budget_bytes)
        self._blocks: dict[str, AdapterBlock] = {}
        self._kept_for: dict[str, str] = {}
        self.tally = tally or Tally("host")
        self.tally.budget_bytes = budget_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks here."""
        return self._residents.used_bytes

    @property
    def kept(self) -> Mapping[str, str]:
        """The digest kept for each adapter that has one."""
        return self._kept_for

    def __contains__(self, digest: str) -> bool:
        return digest in self._blocks

    def get(self, digest: str) -> AdapterBlock | None:
        """The block, which counts as just used; None when it is not here."""
        found = self._residents.touch(digest)
        self.tally.looked(found)
        return self._blocks[digest] if found else None

    def put(self, block: AdapterBlock) -> None:
        """Let a block in. One larger than the whole budget is not held, and evicts nothing."""
        if block.digest in self._blocks or not self._residents.fits(block.nbytes):
            return
        for digest in self._residents.add(block.digest, block.nbytes):
            del self._blocks[digest]
            self.tally.evicted()
        self._blocks[block.digest] = block
        self.tally.used_bytes = self.used_bytes

    def keep(self, adapter_id: str, digest: str | None) -> None:
        """Evict this digest last, for an adapter that may roll back to it; replaces what was kept for the adapter. None keeps nothing.

        `adapter_id` may be any name for what one digest at a time is kept for."""
        if digest is None:
            self._kept_for.pop(adapter_id, None)
        else:
            self._kept_for[adapter_id] = digest
        self._residents.keep(set(self._kept_for.values()))
