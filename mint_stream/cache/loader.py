"""The loader: a cold adapter becomes a leased block on the device, by one load however many wait for it."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.device import DeviceTier, Lease
from mint_stream.cache.host import HostTier
from mint_stream.cache.source import AdapterSource
from mint_stream.errors import AdapterNotLoaded, EngineFailed, Reject, Retry
from mint_stream.messages.adapters import Revision

REMEMBERED_REFUSALS = 4096


@dataclass(frozen=True)
class Backoff:
    """How often a passing failure is tried again: after `first_s`, then twice as long each time. `attempts` in all."""

    attempts: int = 4
    first_s: float = 0.1

    def delay_s(self, failed: int) -> float:
        """The wait after the `failed`-th failure (from 1)."""
        return self.first_s * float(2 ** (failed - 1))


@dataclass
class _Load:
    """A load in progress. Whoever waits is counted, so that the block is held for them until each has a lease of its own."""

    task: asyncio.Task[Lease]
    waiting: int = field(default=0)


class Loader:
    """Leases revisions. To be used from one event loop; nothing here blocks it."""

    def __init__(
        self, source: AdapterSource, host: HostTier, device: DeviceTier, parallelism: int = 4, backoff: Backoff = Backoff()
    ) -> None:
        """At most `parallelism` revisions are fetched, verified and parsed at a time."""
        self._source = source
        self.host = host
        self.device = device
        self._backoff = backoff
        self._reading = asyncio.Semaphore(parallelism)
        self._loads: dict[str, _Load] = {}
        self._reads: dict[str, asyncio.Task[AdapterBlock]] = {}
        self._refused: OrderedDict[str, Reject] = OrderedDict()
        self.hits = 0
        self.loads_total = 0
        """Revisions read from the store, failed ones included."""

    async def lease(self, revision: Revision) -> Lease:
        """The revision's block, held on the device until `Lease.release`. Cancelling one waiter disturbs no other.

        Raises StoreUnavailable or AdapterNotLoaded after the last attempt (a later call tries again), or a Reject, which is remembered
        for this upload: CorruptObject, InvalidAdapter, BaseMismatch, RevisionRetired, AdapterUnloadable. Each names the revision.
        """
        held = self.device.lease(revision.digest)
        if held is not None:
            self.hits += 1
            return held
        load = self._load(revision)
        load.waiting += 1
        try:
            await asyncio.shield(load.task)
            return self.device.hold(revision.digest)
        finally:
            load.waiting -= 1
            _let_go(load)

    async def prefetch(self, revision: Revision) -> None:
        """Bring a revision into the host tier, and onto the device when that evicts nothing. Raises as `lease`."""
        if revision.digest in self.device:
            return
        block = await asyncio.shield(self._read(revision))
        if self.device.has_free_room(block.nbytes):
            (await self.lease(revision)).release()

    def keep(self, adapter_id: str, digest: str | None) -> None:
        """Hold on to this digest in the host tier: what the adapter's production was before its last move."""
        self.host.keep(adapter_id, digest)

    async def close(self) -> None:
        """Give up what is being loaded."""
        tasks = [*self._reads.values(), *(load.task for load in self._loads.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _load(self, revision: Revision) -> _Load:
        key = _key(revision)
        if key not in self._loads:
            load = self._loads[key] = _Load(asyncio.create_task(self._placed(revision)))
            load.task.add_done_callback(lambda _task: _let_go(self._loads.pop(key)))
        return self._loads[key]

    def _read(self, revision: Revision) -> "asyncio.Task[AdapterBlock]":
        key = _key(revision)
        if key not in self._reads:
            self._reads[key] = asyncio.create_task(self._block(revision))
            self._reads[key].add_done_callback(lambda _task: _seen(self._reads.pop(key)))
        return self._reads[key]

    async def _placed(self, revision: Revision) -> Lease:
        block = await asyncio.shield(self._read(revision))
        try:
            return await self.device.place(block)
        except AdapterNotLoaded as error:
            raise AdapterNotLoaded(f"{_name(revision)}: {error}") from error
        except RuntimeError as error:
            raise EngineFailed(f"{_name(revision)} could not be put on the device, so its tier is set too large: {error}") from error

    async def _block(self, revision: Revision) -> AdapterBlock:
        """From the host tier, else from the store, as often as the back-off allows."""
        held = self.host.get(revision.digest)
        if held is not None:
            return held
        if (refused := self._refused.get(_key(revision))) is not None:
            raise type(refused)(str(refused))
        for failed in range(1, self._backoff.attempts):
            try:
                return await self._fetched(revision)
            except Retry:
                await asyncio.sleep(self._backoff.delay_s(failed))
        return await self._fetched(revision)

    async def _fetched(self, revision: Revision) -> AdapterBlock:
        async with self._reading:
            self.loads_total += 1
            try:
                block = await asyncio.to_thread(self._source.block, revision)
            except Reject as error:
                raise self._remembered(revision, error) from None
        self.host.put(block)
        return block

    def _remembered(self, revision: Revision, error: Reject) -> Reject:
        """The same bytes will fail again: not worth reading twice."""
        self._refused[_key(revision)] = error
        if len(self._refused) > REMEMBERED_REFUSALS:
            self._refused.popitem(last=False)
        return error


def _key(revision: Revision) -> str:
    return revision.uri or _name(revision)


def _name(revision: Revision) -> str:
    return f"{revision.adapter_id}@{revision.number}"


def _let_go(load: _Load) -> None:
    """Release the load's own hold when it is done and everybody who waited has a lease."""
    if load.task.done() and not load.waiting and _seen(load.task):
        load.task.result().release()


def _seen(task: "asyncio.Task[Lease] | asyncio.Task[AdapterBlock]") -> bool:
    """Whether it succeeded. A failure that nobody waits for any more is looked at here, so that asyncio does not complain."""
    return not task.cancelled() and task.exception() is None
