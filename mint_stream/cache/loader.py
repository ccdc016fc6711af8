"""The loader: a cold adapter becomes a leased block on the device, by one load however many wait for it.

device tier ◄─ host tier ◄─ disk tier ◄─ store          the last two: AdapterSource, in threads
"""

import asyncio
import contextlib
import os
import random
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from mint_stream.adapter import AdapterBlock
from mint_stream.cache.backoff import Backoff
from mint_stream.cache.device import DeviceTier, Lease
from mint_stream.cache.host import HostTier
from mint_stream.cache.shared import SharedWork
from mint_stream.cache.source import AdapterSource
from mint_stream.cache.tally import Tally
from mint_stream.errors import AdapterNotLoaded, EngineFailed, Reject, Retry
from mint_stream.messages.adapters import Revision

REMEMBERED_REFUSALS = 4096
LEAST_URGENT = 19
"""As the system's scheduler counts: loaders take the processor time that the running batch leaves."""


class Loader:
    """Leases revisions. To be used from one event loop; nothing here blocks it."""

    def __init__(
        self, source: AdapterSource, host: HostTier, device: DeviceTier, parallelism: int = 4, backoff: Backoff | None = None
    ) -> None:
        """At most `parallelism` revisions are fetched, verified and parsed at a time."""
        self._source = source
        self.host = host
        self.device = device
        self._backoff = backoff or Backoff()
        self._reading = asyncio.Semaphore(parallelism)
        self._readers = ThreadPoolExecutor(parallelism, "mint-loader", _yield_to_the_batch)
        self._loads: SharedWork[Lease] = SharedWork(Lease.release)
        self._reads: SharedWork[AdapterBlock] = SharedWork()
        self._threads: set[asyncio.Task[None]] = set()
        self._refused: OrderedDict[str, Reject] = OrderedDict()
        self._unplaced_bytes = 0
        self._fewer_unplaced = asyncio.Event()
        self.hits = 0
        self.loads_total = 0
        """Revisions read from disk or store, failed ones included."""

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """Of each tier there is, nearest to the engine first."""
        below = () if self._source.disk is None else (self._source.disk.tally,)
        return (self.device.tally, self.host.tally, *below, self._source.tally)

    async def lease(self, revision: Revision) -> Lease:
        """The revision's block, held on the device until `Lease.release`. Cancelling one waiter disturbs no other; the last ends it.

        Raises StoreUnavailable or AdapterNotLoaded after the last attempt (a later call tries again), or a Reject, which is remembered
        for this upload: CorruptObject, InvalidAdapter, BaseMismatch, RevisionRetired, AdapterUnloadable. Each names the revision.
        """
        held = self.device.lease(revision.digest)
        self.device.tally.looked(found=held is not None)
        if held is not None:
            self.hits += 1
            return held
        return await self._loads.wait(_key(revision), lambda: self._loaded(revision), self.device.share)

    async def prefetch(self, revision: Revision) -> None:
        """Bring a revision into the host tier, and onto the device when that evicts nothing. Raises as `lease`."""
        block = await self._read(revision)  # though it be on the device: what is only there is gone when the device evicts it
        if revision.digest not in self.device and self.device.has_free_room(block.nbytes):
            (await self._loads.wait(_key(revision), lambda: self._place(revision, block), self.device.share)).release()

    def keep(self, adapter_id: str, digest: str | None) -> None:
        """Hold on to this digest in the host tier: what the adapter's production was before its last move."""
        self.host.keep(adapter_id, digest)

    async def close(self) -> None:
        """Give up what is being loaded; a thread that reads is waited for."""
        await self._loads.close()
        await self._reads.close()
        if self._threads:
            await asyncio.wait(self._threads)
        self._readers.shutdown(wait=False)
        self._source.close()

    async def _read(self, revision: Revision) -> AdapterBlock:
        return await self._reads.wait(_key(revision), lambda: self._block(revision))

    async def _loaded(self, revision: Revision) -> Lease:
        return await self._place(revision, await self._read(revision))

    async def _place(self, revision: Revision, block: AdapterBlock) -> Lease:
        self._unplaced_bytes += block.nbytes
        try:
            return await self.device.place(block)
        except AdapterNotLoaded as error:
            raise AdapterNotLoaded(f"{_name(revision)}: {error}") from error
        except RuntimeError as error:
            raise EngineFailed(f"{_name(revision)} could not be put on the device, so its tier is set too large: {error}") from error
        finally:
            self._unplaced_bytes -= block.nbytes
            self._fewer_unplaced.set()

    async def _block(self, revision: Revision) -> AdapterBlock:
        """From the host tier, else from below, as often as the back-off allows."""
        held = self.host.get(revision.digest)
        if held is not None:
            return held
        if (refused := self._refused.get(_key(revision))) is not None:
            raise type(refused)(str(refused))
        for failed in range(1, self._backoff.attempts):
            try:
                return await self._fetched(revision)
            except Retry:
                self._source.tally.metrics.load_retries_total.inc()
                await asyncio.sleep(self._backoff.delay_s(failed, random.random()))
        return await self._fetched(revision)

    async def _fetched(self, revision: Revision) -> AdapterBlock:
        """Not more than the host tier's worth is read ahead of the device: what waits for room there is held by nobody's budget."""
        await self._reading.acquire()
        try:
            while self._unplaced_bytes >= self.host.budget_bytes:
                self._fewer_unplaced.clear()
                await self._fewer_unplaced.wait()
        except asyncio.CancelledError:
            self._reading.release()
            raise
        fetched: asyncio.Future[AdapterBlock] = asyncio.get_running_loop().create_future()
        thread = asyncio.create_task(self._through_thread(revision, fetched))
        self._threads.add(thread)
        thread.add_done_callback(self._threads.discard)
        return await fetched

    async def _through_thread(self, revision: Revision, fetched: "asyncio.Future[AdapterBlock]") -> None:
        """One place among the readers, from the first byte until the disk tier has it. Threads cannot be cancelled: what comes is kept."""
        self.loads_total += 1
        try:
            loop = asyncio.get_running_loop()
            block = await loop.run_in_executor(self._readers, self._source.block, revision)
            self.host.put(block)
            if not fetched.done():
                fetched.set_result(block)
            await loop.run_in_executor(self._readers, self._source.keep_on_disk, block)
        except Exception as error:
            failure = self._remembered(revision, error) if isinstance(error, Reject) else error
            if not fetched.done():
                fetched.set_exception(failure)
        finally:
            self._reading.release()

    def _remembered(self, revision: Revision, error: Reject) -> Reject:
        """The same bytes will fail again: not worth reading twice."""
        self._refused[_key(revision)] = error
        if len(self._refused) > REMEMBERED_REFUSALS:
            self._refused.popitem(last=False)
        return error


def _yield_to_the_batch() -> None:
    """For this thread only, where the system has priorities of threads."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_URGENT)


def _key(revision: Revision) -> str:
    return revision.uri or _name(revision)


def _name(revision: Revision) -> str:
    return f"{revision.adapter_id}@{revision.number}"
