"""Leases of revisions for requests; and when an adapter in use here gets a new revision, it is loaded before anybody asks for it."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from mint_stream.cache.device import Lease
from mint_stream.cache.loader import Loader
from mint_stream.catalog import Catalog, Change
from mint_stream.catalog.aliases import PREVIOUS, PRODUCTION
from mint_stream.errors import MintError, Reject
from mint_stream.messages.adapters import Revision
from mint_stream.messages.fleet import TierStatus
from mint_stream.metrics import Metrics

log = logging.getLogger(__name__)

REPORTED = 64
"""Names of resident revisions in a worker's status."""
RECENT = 4096
"""Adapters whose next revision is fetched ahead: the ones last asked for."""


Previous = Callable[[str], Revision | None]
"""What an adapter's production was before its last move; None when it is not known or not to be served."""


def previous_in(catalog: Catalog) -> Previous:
    """Looks it up in the catalog."""
    return lambda adapter_id: _pointed_at(catalog, adapter_id, PREVIOUS)


def production_in(catalog: Catalog, adapter_id: str) -> Revision | None:
    """What the adapter's bare name means; None when it is not known or not to be served."""
    return _pointed_at(catalog, adapter_id, PRODUCTION)


def _pointed_at(catalog: Catalog, adapter_id: str, alias: str) -> Revision | None:
    try:
        return catalog.resolve(f"{adapter_id}@{alias}")
    except Reject:
        return None


def revision_to_come(catalog: Catalog, change: Change) -> Revision | None:
    """The revision that requests are about to name because of this change: one announced, or made a canary."""
    if change.kind == "announced":
        return change.revision
    if change.kind == "canary-set" and change.number is not None:
        return catalog.revision(change.adapter_id, change.number)
    return None


class Leasing:
    """Takes leases from the loader, remembers who is asked for, and loads their new revisions ahead."""

    def __init__(self, loader: Loader, metrics: Metrics, previous: Previous) -> None:
        self._loader = loader
        self._previous = previous
        self._aside: set[asyncio.Task[None]] = set()
        self._one_aside = asyncio.Semaphore(1)
        self._metrics = metrics
        self._names: dict[str, str] = {}
        self.parked = 0
        """Requests that wait for their adapter now."""
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._pinned: set[str] = set()

    async def lease(self, revision: Revision) -> Lease:
        """The revision's block in the device tier, held until released. Raises what the loader raises."""
        met_before = revision.adapter_id in self._recent
        self._remember(revision.adapter_id)
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
        if not met_before:
            self.keep(revision.adapter_id, self._previous(revision.adapter_id))
        return lease

    async def close(self) -> None:
        """Give up what is being loaded."""
        for task in self._aside:
            task.cancel()
        await self._loader.close()

    def resident(self) -> tuple[str, ...]:
        """What is in the device tier, the most recently used first, by the names it was last asked for."""
        digests = self._loader.device.digests()
        self._names = {digest: self._names[digest] for digest in digests if digest in self._names}
        return tuple(self._names.values())[:REPORTED]

    def tiers(self) -> tuple[TierStatus, ...]:
        """What each tier holds and was asked for, nearest to the engine first."""
        return tuple(tally.status() for tally in self._loader.tallies)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the device tier in use."""
        return self._loader.device.used_bytes

    async def announced(self, revision: Revision) -> None:
        """Load the revision if its adapter is in use or pinned here. A failure waits for the first request, which gets the typed error."""
        if not (revision.adapter_id in self._recent or revision.adapter_id in self._pinned) or revision.state != "announced":
            return
        try:
            await self._loader.prefetch(revision)
        except MintError as error:
            log.warning("prefetch adapter_id=%s number=%d %s: %s", revision.adapter_id, revision.number, error.code, error)

    def keep(self, adapter_id: str, previous: Revision | None) -> None:
        """Have in the host tier what an adapter's production was before its last move, if the adapter is in use here.

        It is fetched when it is not there, as after a restart: one at a time, behind what somebody waits for."""
        if adapter_id not in self._recent:
            return
        self._keep(adapter_id, previous)

    def pin(self, adapter_id: str, production: Revision | None) -> None:
        """Have in the host tier from now on what an adapter's bare name means, whether anybody asks for it or not. None: nothing yet.

        Say it again when production moves. The host tier evicts what is pinned, and what production was, after everything else."""
        self._pinned.add(adapter_id)
        self._keep(f"{adapter_id}@{PRODUCTION}", production)

    def _keep(self, name: str, revision: Revision | None) -> None:
        self._loader.keep(name, revision.digest if revision else None)
        if revision is not None:
            task = asyncio.create_task(self._fetch_aside(revision))
            self._aside.add(task)
            task.add_done_callback(self._aside.discard)

    async def _fetch_aside(self, revision: Revision) -> None:
        async with self._one_aside:
            await self.announced(revision)

    def _remember(self, adapter_id: str) -> None:
        """The adapter is in use here; the one that was in use the longest ago may not be any more, and nothing is kept for it."""
        self._recent[adapter_id] = None
        self._recent.move_to_end(adapter_id)
        if len(self._recent) > RECENT:
            self._loader.keep(self._recent.popitem(last=False)[0], None)
