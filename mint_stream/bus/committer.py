"""Commits how far partitions have come: every interval, at once where a delivery waits for it, and before a rebalance."""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any

from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from mint_stream.bus.commit_metadata import encode_metadata
from mint_stream.bus.delivery import Delivery
from mint_stream.bus.tenure import Tenure
from mint_stream.errors import BusUnavailable

log = logging.getLogger(__name__)

_RETRY_S = 0.2


class Committer:
    """One commit at a time, bounded in time. A commit that a rebalance overtook changes nothing and is repeated later."""

    def __init__(self, consumer: Any, timeout_s: float, send: Callable[[Tenure, Delivery], None]) -> None:
        self._consumer = consumer
        self._timeout_s = timeout_s
        self._hand_over = send
        self._lock = asyncio.Lock()
        self._wanted = asyncio.Event()

    def soon(self) -> None:
        """Commit without waiting for the interval."""
        self._wanted.set()

    async def run(self, interval_s: float, tenures: Callable[[], Collection[Tenure]]) -> None:
        """Commit what has changed, for ever. Raises BusUnavailable when Kafka refuses commits for good."""
        while True:
            await self._tick(interval_s)
            await self.commit([tenure for tenure in tenures() if tenure.held and tenure.dirty])

    async def _tick(self, interval_s: float) -> None:
        try:
            async with asyncio.timeout(interval_s):
                await self._wanted.wait()
        except TimeoutError:
            return
        finally:
            self._wanted.clear()

    async def commit(self, tenures: Collection[Tenure], released: bool = False) -> bool:
        """Commit the progress of these partitions; True when Kafka has it. `released`: we may not be the owner after this."""
        async with self._lock:
            chosen = [tenure for tenure in tenures if not tenure.ended]
            return not chosen or await self._commit(chosen, released)

    async def insist(self, tenures: Collection[Tenure]) -> None:
        """Commit, again and again until Kafka has it. Cancelled by the next rebalance."""
        while not await self.commit(tenures):
            await self._tick(_RETRY_S)

    async def _commit(self, tenures: Collection[Tenure], released: bool) -> bool:
        taken = {tenure: tenure.progress(released) for tenure in tenures}
        for tenure in tenures:
            tenure.dirty = False
        offsets = {
            tenure.partition: OffsetAndMetadata(progress.next_offset, encode_metadata(progress)) for tenure, progress in taken.items()
        }
        if not await self._send(offsets):
            for tenure in tenures:
                tenure.dirty = True
            return False
        if not released:
            for tenure, progress in taken.items():
                for delivery in tenure.confirmed(progress):
                    self._hand_over(tenure, delivery)
        return True

    async def _send(self, offsets: dict[Any, OffsetAndMetadata]) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            log.info("a rebalance overtook a commit of %d partitions: %s", len(offsets), error)
            return False
        except TimeoutError:
            log.warning("Kafka did not take a commit of %d partitions in %g s; it will be repeated", len(offsets), self._timeout_s)
            return False
        except KafkaError as error:
            if error.retriable:
                return False
            raise BusUnavailable(f"Kafka refuses to commit offsets: {error!r}") from error
        return True
