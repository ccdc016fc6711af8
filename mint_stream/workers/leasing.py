"""Leases of revisions for requests; and when an adapter in use here gets a new revision, it is loaded before anybody asks for it."""

import logging
import time
from collections import OrderedDict

from mint_stream.cache.device import Lease
from mint_stream.cache.loader import Loader
from mint_stream.errors import MintError
from mint_stream.messages.adapters import Revision
from mint_stream.metrics import Metrics

log = logging.getLogger(__name__)

REPORTED = 64
"""Names of resident revisions in a worker's status."""
RECENT = 4096
"""Adapters whose next revision is fetched ahead: the ones last asked for."""


class Leasing:
    """Takes leases from the loader, remembers who is asked for, and loads their new revisions ahead."""

    def __init__(self, loader: Loader, metrics: Metrics) -> None:
        self._loader = loader
        self._metrics = metrics
        self._names: dict[str, str] = {}
        self.parked = 0
        """Requests that wait for their adapter now."""
        self._recent: OrderedDict[str, None] = OrderedDict()

    async def lease(self, revision: Revision) -> Lease:
        """The revision's block in the device tier, held until released. Raises what the loader raises."""
        self._recent[revision.adapter_id] = None
        self._recent.move_to_end(revision.adapter_id)
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        self.parked += 1
        self._metrics.parked_requests.set(self.parked)
        loads, begun = self._loader.loads_total, time.perf_counter()
        try:
            lease = await self._loader.lease(revision)
        finally:
            self.parked -= 1
            self._metrics.parked_requests.set(self.parked)
        if self._loader.loads_total > loads:
            self._metrics.adapter_load_seconds.observe(time.perf_counter() - begun)
        self._names[revision.digest] = f"{revision.adapter_id}@{revision.number}"
        return lease

    def resident(self) -> tuple[str, ...]:
        """What is in the device tier, the most recently used first, by the names it was last asked for."""
        digests = self._loader.device.digests()
        self._names = {digest: self._names[digest] for digest in digests if digest in self._names}
        return tuple(self._names.values())[:REPORTED]

    @property
    def resident_bytes(self) -> int:
        """Bytes of the device tier in use."""
        return self._loader.device.used_bytes

    async def announced(self, revision: Revision) -> None:
        """Load the revision if its adapter is in use here. A failure waits for the first request, which gets the typed error."""
        if revision.adapter_id not in self._recent or revision.state != "announced":
            return
        try:
            await self._loader.prefetch(revision)
        except MintError as error:
            log.warning("prefetch adapter_id=%s number=%d %s: %s", revision.adapter_id, revision.number, error.code, error)

    def keep(self, adapter_id: str, previous: Revision | None) -> None:
        """Hold on to what an adapter's production was before its last move, if the adapter is in use here."""
        if adapter_id in self._recent:
            self._loader.keep(adapter_id, previous.digest if previous else None)
