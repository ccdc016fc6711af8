"""Which partitions are ours, since when: follows the group's rebalances."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition

from mint_stream.bus.committer import Committer
from mint_stream.bus.handover import Handover
from mint_stream.bus.takeovers import take_over
from mint_stream.bus.tenure import Tenure

log = logging.getLogger(__name__)


class Tenancy(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no stubs
    """The tenures of this member. A tenure lasts over consecutive generations; one generation missed ends it.

    A gained partition stays paused until what its last owner committed is loaded and the takeover itself is committed."""

    def __init__(
        self,
        consumer: Any,
        handover: Handover,
        committer: Committer,
        margin: int,
        changed: Callable[[Collection[Tenure]], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._consumer = consumer
        self._handover = handover
        self._spawn = spawn
        self._committer = committer
        self._margin = margin
        self._changed = changed
        self._tenures: dict[TopicPartition, Tenure] = {}
        self._generation = -1
        self._taking: asyncio.Task[None] | None = None
        self.ended: list[Tenure] = []
        """Tenures that ended and whose room the outlet has not taken back."""

    def __getitem__(self, partition: TopicPartition) -> Tenure | None:
        return self._tenures.get(partition)

    def all(self) -> list[Tenure]:
        """Every tenure that has not ended."""
        return list(self._tenures.values())

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """A rebalance begins: say what is done. Work goes on, nothing new goes out; nobody else has the partitions before we rejoin."""
        await self._stop_taking()
        for tenure in self._tenures.values():
            tenure.held = False
            tenure.forget_fetched()
        self._changed(self.all())
        if self._current_generation() <= 0:
            self._end(list(self._tenures))
        else:
            await self._committer.commit(self.all(), released=True)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """A rebalance is over: keep the unbroken tenures, end the others, take the rest, also what was not wholly taken before it."""
        await self._stop_taking()
        generation = self._current_generation()
        unbroken = generation == self._generation + 1
        self._generation = generation
        kept = {partition for partition in assigned if unbroken and partition in self._tenures and self._tenures[partition].taken}
        self._end([partition for partition in self._tenures if partition not in kept])
        gained = [partition for partition in assigned if partition not in self._tenures]
        self._consumer.pause(*gained)
        self._hold(self._tenures.values())
        if gained:
            self._taking = self._spawn(self._take(gained), "take")

    async def release(self, failed: bool) -> None:
        """The last commit before leaving. `failed`: this process ends because of its work, and its successor must count that."""
        await self._stop_taking()
        await self._committer.commit(self.all(), released=not failed)
        self._end(list(self._tenures))

    def _current_generation(self) -> int:
        # aiokafka has no public accessor; the generation is what makes a tenure provably unbroken.
        return int(self._consumer._coordinator.generation)

    def _hold(self, tenures: Iterable[Tenure]) -> None:
        for tenure in tenures:
            self._consumer.seek(tenure.partition, tenure.resume_offset)
            tenure.held, tenure.dirty, tenure.paused = True, True, False
        self._committer.soon()
        self._changed(self.all())

    def _end(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            tenure = self._tenures.pop(partition)
            tenure.ended, tenure.held = True, False
            self.ended.append(tenure)
        self._changed(self.all())

    async def _stop_taking(self) -> None:
        task, self._taking = self._taking, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _take(self, gained: Collection[TopicPartition]) -> None:
        left = await self._handover.left_behind(gained)
        tenures = [Tenure(partition, take_over(left[partition]), self._margin) for partition in gained]
        self._tenures |= {tenure.partition: tenure for tenure in tenures}
        await self._committer.insist(tenures)
        for tenure in tenures:
            tenure.taken = True
            if tenure.suspicion.takeovers:
                log.warning("%s: takeover %d without progress", tenure.partition, tenure.suspicion.takeovers)
        self._hold(tenures)
        self._consumer.resume(*gained)
