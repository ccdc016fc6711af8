"""Leases of revisions for requests; and when an adapter in use here gets a new revision, it is loaded before anybody asks for it."""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence

from mint_stream.cache.backoff import Backoff
from mint_stream.cache.device import Lease
from mint_stream.cache.loader import Loader
from mint_stream.catalog.aliases import PRODUCTION
from mint_stream.errors import MintError, Retry
from mint_stream.messages.adapters import Revision
from mint_stream.messages.fleet import TierStatus
from mint_stream.metrics import Metrics
from mint_stream.workers.in_use import InUse

log = logging.getLogger(__name__)

REPORTED = 64
"""Names of resident revisions in a worker's status."""
RECENT = 4096
"""Adapters whose next revision is fetched ahead: the ones last asked for."""
KEPT_SHARE = 0.25
"""Of the host tier: what is kept there for roll-backs, while it waits to be asked for."""
AGAIN = Backoff(first_s=1.0, longest_s=60.0)
"""How far apart what is kept is fetched again while the store fails. It counts no attempts: the last is the one that succeeds."""

Previous = Callable[[str], Revision | None]
"""What an adapter's production was before its last move; None when it is not known or not to be served."""


class Leasing:
    """Takes leases from the loader, remembers who is asked for, and loads their new revisions ahead."""

    def __init__(self, loader: Loader, metrics: Metrics, previous: Previous, again: Backoff = AGAIN) -> None:
        self._loader = loader
        self._previous = previous
        self._again = again
        self._aside: set[asyncio.Task[None]] = set()
        self._closed = False
        self._one_aside = asyncio.Semaphore(1)
        self._metrics = metrics
        self._names: dict[str, str] = {}
        self.parked = 0
        """Requests that wait for their adapter now."""
        self._in_use = InUse(int(KEPT_SHARE * loader.host.budget_bytes), RECENT)
        self._pinned: set[str] = set()

    async def lease(self, revision: Revision) -> Lease:
        """The revision's block in the device tier, held until released. Raises what the loader raises."""
        met_before = revision.adapter_id in self._in_use
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
        self._keep_if_there_is_room(revision.adapter_id, met_before)
        return lease

    async def close(self) -> None:
        """Give up what is being loaded. Nothing is fetched ahead any more."""
        self._closed = True
        for task in self._aside:
            task.cancel()
        await asyncio.gather(*self._aside, return_exceptions=True)
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

    def coming(self, revision: Revision) -> None:
        """As `announced`, in a task that `close` ends."""
        self._spawn(self.announced(revision))

    async def announced(self, revision: Revision) -> None:
        """Load the revision if its adapter is in use or pinned here. A failure waits for the first request, which gets the typed error."""
        if (revision.adapter_id in self._in_use or revision.adapter_id in self._pinned) and revision.state == "announced":
            await self._fetched(revision)

    def keep(self, adapter_id: str, previous: Revision | None) -> None:
        """Have in the host tier what an adapter's production was before its last move, if the adapter is in use here and there is room.

        All that is kept so has a share of the tier; see InUse for who gets it. It is fetched when it is not there, as after a restart:
        one at a time, behind what somebody waits for."""
        if adapter_id not in self._in_use:
            return
        self._loader.keep(adapter_id, None)
        self._in_use.want(adapter_id, None if previous is None else previous.size_bytes or 0)
        if (displaced := self._in_use.enter(adapter_id)) is not None:
            self._kept_instead(displaced, adapter_id, previous)

    def pin(self, adapter_id: str, production: Revision | None) -> None:
        """Have in the host tier from now on what an adapter's bare name means, whether anybody asks for it or not. None: nothing yet.

        Say it again when production moves. The host tier evicts what is pinned, and what production was, after everything else."""
        self._pinned.add(adapter_id)
        self._keep(f"{adapter_id}@{PRODUCTION}", production)

    def _keep_if_there_is_room(self, adapter_id: str, met_before: bool) -> None:
        if adapter_id not in self._in_use:  # many others were met while its revision was loaded
            return
        if not met_before:
            self.keep(adapter_id, self._previous(adapter_id))
        elif (displaced := self._in_use.enter(adapter_id)) is not None:
            self._kept_instead(displaced, adapter_id, self._previous(adapter_id))

    def _kept_instead(self, displaced: Sequence[str], adapter_id: str, previous: Revision | None) -> None:
        for other in displaced:
            self._loader.keep(other, None)
        self._keep(adapter_id, previous)

    def _keep(self, name: str, revision: Revision | None) -> None:
        self._loader.keep(name, revision.digest if revision else None)
        if revision is not None and revision.state == "announced":
            self._spawn(self._fetch_aside(name, revision))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        if self._closed:
            work.close()
            return
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def _fetch_aside(self, name: str, revision: Revision) -> None:
        """Until it is there, or not to be kept any more: nobody asks for it, so nobody else would try again."""
        for failed in itertools.count(1):
            async with self._one_aside:
                if self._loader.host.kept.get(name) != revision.digest or await self._fetched(revision):
                    return
            await asyncio.sleep(self._again.delay_s(failed, random.random()))

    async def _fetched(self, revision: Revision) -> bool:
        """Whether there is nothing to be tried again: it is there, or will never be."""
        try:
            await self._loader.prefetch(revision)
        except MintError as error:
            log.warning("prefetch adapter_id=%s number=%d %s: %s", revision.adapter_id, revision.number, error.code, error)
            return not isinstance(error, Retry)
        return True

    def _remember(self, adapter_id: str) -> None:
        """The adapter is in use here; the one that was in use the longest ago may not be any more, and nothing is kept for it."""
        gone = self._in_use.ask(adapter_id)
        if gone is not None:
            self._loader.keep(gone, None)
