"""Takes work from topics: at least once, completed in any order, bounded in records and bytes. Every role that takes work uses this one.

    poll loop (never waits for work) ─► Tenure.fetched ─► Outlet ─► async iteration ─► worker ─► Delivery.close ─► tracker ─► Committer

A worker's loop is `async for delivery in intake: ...`, with any number of deliveries in work at a time. It closes each one when its effects
are durable, or dead-letters it, and does neither for a stale one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import IllegalStateError, KafkaError

from mint_stream.bus.committer import Committer
from mint_stream.bus.connection import Connection, failure
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.delivery import Delivery
from mint_stream.bus.fetching import fetch
from mint_stream.bus.handover import Handover
from mint_stream.bus.liveness import Liveness
from mint_stream.bus.outlet import IntakeLimits, Outlet
from mint_stream.bus.seat import Seat
from mint_stream.bus.tenancy import Tenancy
from mint_stream.bus.tenure import Tenure
from mint_stream.errors import BusUnavailable, MintError, PoisonRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_MS = 200

__all__ = ["Delivery", "Intake", "IntakeLimits"]


class Intake:
    """A member of a consumer group that yields `Delivery`s.

    `on_condemned` is called with a record that killed the workers that ran it, before it is dead-lettered: to answer whoever waits."""

    def __init__(
        self,
        connection: Connection,
        topics: Sequence[str],
        group: str,
        dead_letters: DeadLetters,
        limits: IntakeLimits | None = None,
        seat: Seat | None = None,
    ) -> None:
        self.group = group
        self.topics = tuple(topics)
        self.limits = limits or IntakeLimits()
        self.on_condemned: Callable[[Delivery, MintError], Awaitable[None]] | None = None
        self._connection = connection
        self._seat = seat or Seat()
        self._dead_letters = dead_letters
        self._outlet = Outlet(self.limits, self._make, self._send, self._bury)
        self._queue: asyncio.Queue[tuple[Tenure, Delivery] | None] = asyncio.Queue()
        self._idle = asyncio.Event()
        self._moved = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._fetching = True
        self._pumping = False
        self._consumer: Any = None

    async def start(self) -> None:
        """Join the group. Raises BusUnavailable when Kafka or a topic cannot be reached."""
        self._admin = AIOKafkaAdminClient(**self._connection.options())
        self._consumer = self._new_consumer()
        self._committer = Committer(self._consumer, self.limits.commit_timeout_s, self._send)
        handover = Handover(self._consumer, self._admin, self.group)
        self._tenancy = Tenancy(self._consumer, handover, self._committer, self.limits.max_records, self._reseat, self._spawn)
        self._consumer.subscribe(list(self.topics), listener=self._tenancy)
        try:
            await self._admin.start()
            await self._consumer.start()
        except KafkaError as error:
            await self._disconnect()
            raise await failure(self._connection, f"cannot take work from {', '.join(self.topics)}", error) from error
        self._spawn(self._poll(), "poll")
        self._spawn(self._committer.run(self.limits.commit_interval_s, self._tenancy.all), "commit")
        self._spawn(Liveness(self._consumer, self.limits.stuck_after_s, self._moving).run(), "liveness")

    async def stop(self, failed: bool = False) -> None:
        """Commit and disconnect; open work becomes stale. `failed`: the work itself ends this worker: a takeover for its successor.

        A member without a static seat leaves the group, and the others have its partitions at once. One with it does not: its
        partitions wait `session_timeout_s` for its next process, so that a restart moves nothing, and stand still for so long otherwise."""
        if self._consumer is None:
            return
        self._outlet.closed_for_good = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._tenancy.release(failed)
        except BusUnavailable as error:
            log.warning("the last commit of %s failed: %s", self.group, error)
        self._queue.put_nowait(None)
        await self._disconnect()

    async def drain(self, timeout_s: float) -> int:
        """Hand out nothing more and wait for what is in work; the iteration ends. Returns how many deliveries were still open."""
        self._outlet.closed_for_good = True
        self._take_back()
        self._queue.put_nowait(None)
        self._check_idle()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%s: %d deliveries still open after %g s", self.group, self._outlet.open_records, timeout_s)
        await self._committer.commit(self._tenancy.all())
        return self._outlet.open_records

    async def commit(self) -> bool:
        """Commit what is closed now, without waiting for the interval; False when a rebalance overtook it."""
        return await self._committer.commit([tenure for tenure in self._tenancy.all() if tenure.held])

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on what is assigned or how far partitions have come; it is looked at after every change."""
        while not condition():
            self._moved.clear()
            await self._moved.wait()

    @property
    def open_records(self) -> int:
        """Deliveries handed out or queued, and not closed."""
        return self._outlet.open_records

    @property
    def held_bytes(self) -> int:
        """Bytes fetched and not closed."""
        return self._outlet.held_bytes

    @property
    def assigned(self) -> frozenset[tuple[str, int]]:
        """(topic, partition) of what this member owns and hands out."""
        return frozenset(tuple(tenure.partition) for tenure in self._tenancy.all() if tenure.held)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop(failed=isinstance(error, Exception))

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self

    async def __anext__(self) -> Delivery:
        """The next record to work on. Raises what ended the intake, if something did."""
        while (entry := await self._queue.get()) is not None:
            if not entry[0].ended:
                return entry[1]
        self._queue.put_nowait(None)
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    def _new_consumer(self) -> Any:
        session_ms = int(self.limits.session_timeout_s * 1000)
        return AIOKafkaConsumer(
            group_id=self.group,
            group_instance_id=self._seat.instance_id,
            partition_assignment_strategy=self._seat.assignors(self._generation),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 5,
            rebalance_timeout_ms=60_000,
            fetch_max_bytes=max(1 << 20, self.limits.max_bytes // 2),
            fetch_max_wait_ms=_POLL_MS,
            **self._connection.options(),
        )

    def _generation(self) -> int:
        return int(self._consumer._coordinator.generation)  # aiokafka has no public accessor

    async def _disconnect(self) -> None:
        await self._consumer.stop()
        await self._admin.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"intake {self.group} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._failure is None:
            log.error("the intake of %s failed: %r", self.group, error)
            self._failure = error
            self._outlet.closed_for_good = True
            self._queue.put_nowait(None)

    async def _poll(self) -> None:
        while True:
            self._regulate()
            room = max(1, self.limits.max_records - self._outlet.held_records)
            try:
                fetched = await fetch(self._consumer, self._fetch_offsets, _POLL_MS, room)
                self._accept(fetched)
                if not fetched:
                    await self._pass_over()
            except IllegalStateError as error:
                log.info("a rebalance took a partition of %s away meanwhile: %s", self.group, error)
                await asyncio.sleep(_POLL_MS / 1000)
            except KafkaError as error:
                if not error.retriable:
                    raise BusUnavailable(f"fetching for {self.group} failed: {error!r}") from error
                log.warning("fetching for %s failed, will go on: %r", self.group, error)

    def _fetch_offsets(self) -> dict[Any, int]:
        return {tenure.partition: tenure.fetch_offset for tenure in self._tenancy.all() if tenure.held and not tenure.paused}

    def _accept(self, fetched: Mapping[Any, list[Any]]) -> None:
        for partition, records in fetched.items():
            tenure = self._tenancy[partition]
            if tenure is not None and tenure.held:
                tenure.accept(records)
        self._pump()

    def _regulate(self) -> None:
        """Pause or resume fetching, with hysteresis: a pause throws away what aiokafka has prefetched."""
        self._fetching = not self._outlet.full(1.0 if self._fetching else self.limits.low_water)
        for tenure in self._tenancy.all():
            wants = self._fetching and self._wants(tenure)
            if tenure.held and wants == tenure.paused:
                tenure.paused = not wants
                (self._consumer.resume if wants else self._consumer.pause)(tenure.partition)

    def _wants(self, tenure: Tenure) -> bool:
        """One partition whose records cannot go out does not fill the whole bound."""
        cap = max(1, self.limits.max_records // 2)
        return len(tenure.fetched) < (cap * self.limits.low_water if tenure.paused else cap)

    def _moving(self) -> Collection[Any]:
        return [tenure.partition for tenure in self._tenancy.all() if tenure.held and not tenure.paused]

    async def _pass_over(self) -> None:
        """Nothing to fetch: count the offsets of transaction markers as done, so that they are not lag."""
        for tenure in self._tenancy.all():
            if tenure.held and not tenure.fetched and not tenure.paused:
                position = await self._consumer.position(tenure.partition)
                if tenure.held and not tenure.fetched and position > tenure.resume_offset:
                    tenure.tracker.pass_over(position)
                    tenure.dirty = True
                    self._moved.set()

    def _reseat(self, tenures: Collection[Tenure]) -> None:
        while self._tenancy.ended:
            self._outlet.evict(self._tenancy.ended.pop())
        self._outlet.seat(tenures)
        self._check_idle()
        self._moved.set()

    def _pump(self) -> None:
        if self._outlet.pump():
            self._committer.soon()

    def _make(self, tenure: Tenure, record: Any) -> Delivery:
        def stale() -> bool:
            return tenure.ended

        def close(delivery: Delivery) -> None:
            self._closed(tenure, delivery)

        return Delivery(record, tenure.number, stale, close, self._dead_letters)

    def _closed(self, tenure: Tenure, delivery: Delivery) -> None:
        if tenure.ended or not tenure.closed(delivery.offset):
            return
        self._outlet.release(tenure, delivery)
        self._moved.set()
        self._check_idle()
        if not self._pumping:  # looks at every partition, so it is done once for all that are closed together
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump_after_closing)

    def _pump_after_closing(self) -> None:
        self._pumping = False
        if self._outlet.closed_for_good:
            return
        self._pump()
        if any(seated.paused for seated in self._tenancy.all()):
            self._regulate()

    def _send(self, tenure: Tenure, delivery: Delivery) -> None:
        self._queue.put_nowait((tenure, delivery))

    def _bury(self, delivery: Delivery) -> None:
        self._spawn(self._bury_now(delivery), f"bury {delivery.offset}")

    async def _bury_now(self, delivery: Delivery) -> None:
        error = PoisonRecord(f"{delivery!r} ended every worker that ran it, the last one while it ran alone; it is in the dead letters")
        log.error("%s", error)
        if self.on_condemned is not None:
            await self.on_condemned(delivery, error)
        await delivery.dead_letter(error)

    def _take_back(self) -> None:
        """Deliveries that no worker has seen: they stay open for the next owner, and are not waited for."""
        unseen = [entry for entry in _emptied(self._queue) if entry is not None]
        for tenure in self._tenancy.all():
            unseen += [(tenure, delivery) for delivery in tenure.staged]
            tenure.staged.clear()
        for tenure, delivery in unseen:
            if not tenure.ended:
                tenure.suspicion.closed(delivery.offset)
                self._outlet.release(tenure, delivery)

    def _check_idle(self) -> None:
        if self._outlet.open_records == 0:
            self._idle.set()
        else:
            self._idle.clear()


def _emptied(queue: asyncio.Queue[T]) -> list[T]:
    return [queue.get_nowait() for _ in range(queue.qsize())]
