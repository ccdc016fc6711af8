"""The registrar: the only writer of `adapter-revisions`. Each partition of `adapter-commands` that the group gives us is taken over,

    paused ─► producer started (fences the last owner) ─► log folded to its end ─► committed offset sought ─► resumed

and after any failure of a transaction its producer and state are thrown away and it is taken over again.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from mint_stream.bus.connection import Connection, failure
from mint_stream.bus.fetching import fetch
from mint_stream.bus.handover import committed_offsets
from mint_stream.bus.liveness import Liveness
from mint_stream.bus.seat import Seat
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.catalog import Catalog
from mint_stream.errors import Reject, Retry
from mint_stream.messages.fleet import PoolBase
from mint_stream.metrics import Metrics
from mint_stream.workers.catalog_writer import CatalogWriter, RegistrarTopics
from mint_stream.workers.crew import Crew
from mint_stream.workers.folding import Folding
from mint_stream.workers.holding import Holding
from mint_stream.workers.pools import PoolBases

log = logging.getLogger(__name__)

_POLL_MS = 100
_BATCH_RECORDS = 500
_REBALANCE_MS = 90_000

RECORDS_FAULT = (Reject, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What carrying a command out raises when it is the command's doing: it would come again in every life of every registrar."""

OpenProducer = Callable[[int], TransactionalProducer]
"""The producer of a partition: its transactional id must be the same in every process that may own the partition."""


@dataclass(frozen=True)
class Member:
    """A place in the registrars' group. In a static seat a restarted process has its partitions back at once."""

    group: str = "registrar"
    seat: Seat = field(default_factory=Seat)
    session_timeout_s: float = 10.0
    """A member silent for so long loses its partitions."""
    stuck_after_s: float = 60.0
    """A partition with commands to fetch and no movement for so long ends the registrar."""
    note_current_s: float = 3600.0
    """How often it is noted that the copy is current; far less than `delete.retention.ms` of the revisions, which is days."""


class Registrar:
    """One member of the registrars' group."""

    def __init__(
        self,
        connection: Connection,
        topics: RegistrarTopics,
        catalog: Catalog,
        producers: OpenProducer,
        metrics: Metrics,
        member: Member,
    ) -> None:
        self._connection = connection
        self._topics = topics
        self._catalog = catalog
        self._producers = producers
        self._metrics = metrics
        self._member = member
        self._holdings: dict[int, Holding] = {}
        self._bases = PoolBases()
        self._bases_reader = LogReader(connection, topics.bases, self._bases.apply)
        self._draining = False
        self._idle = asyncio.Event()
        self._crew = Crew()
        self._taking: set[int] = set()
        self._fenced: list[Holding] = []
        self._folding = Folding(connection, topics.revisions, catalog)

    @property
    def owned(self) -> frozenset[int]:
        """The partitions whose commands are being carried out here."""
        return frozenset(number for number, holding in self._holdings.items() if holding.writer is not None)

    async def start(self) -> None:
        """Read the bases and join the group. Raises BusUnavailable."""
        await self._bases_reader.start()
        await self._bases_reader.caught_up()
        self._consumer = AIOKafkaConsumer(
            group_id=self._member.group,
            group_instance_id=self._member.seat.instance_id,
            partition_assignment_strategy=self._member.seat.assignors(self._generation),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=int(self._member.session_timeout_s * 1000),
            rebalance_timeout_ms=_REBALANCE_MS,
            **self._connection.options(),
        )
        self._consumer.subscribe([self._topics.commands], listener=_Follower(self))
        self._admin = AIOKafkaAdminClient(**self._connection.options())
        try:
            await self._admin.start()
            await self._consumer.start()
        except KafkaError as error:
            raise await failure(self._connection, f"cannot join group {self._member.group}", error) from error

    async def run(self) -> None:
        """Carry out commands until drained. Raises what cannot be cured by starting over."""
        working = asyncio.create_task(self._crew.run(self._work()))
        watching = asyncio.create_task(Liveness(self._consumer, self._member.stuck_after_s, self._moving).run())
        noting = asyncio.create_task(self._folding.stay_current(lambda: self.owned, self._member.note_current_s))
        tasks = {working, watching, noting}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            (working if working.done() else done.pop()).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._idle.set()

    async def _work(self) -> None:
        while not self._draining:
            if self._bases_reader.failed is not None:
                raise self._bases_reader.failed
            self._begin_takeovers()
            await self._carry_out(await fetch(self._consumer, self._positions, _POLL_MS, _BATCH_RECORDS))

    def _positions(self) -> dict[TopicPartition, int]:
        """From where each partition that is being carried out goes on."""
        return {self._commands(number): holding.next_offset for number, holding in self._holdings.items() if holding.writer is not None}

    async def drain(self) -> None:
        """Finish the transactions that are open, leave the group, close."""
        self._draining = True
        await self._idle.wait()
        await self.lose(list(self._holdings))
        await self._consumer.stop()
        await self._admin.close()
        await self._bases_reader.stop()

    def gain(self, partitions: Collection[int]) -> None:
        """The group gave us these: hold their commands back until they are taken over."""
        self._consumer.pause(*(self._commands(number) for number in partitions))
        self._holdings |= {number: Holding(number) for number in partitions}

    async def lose(self, partitions: Collection[int]) -> None:
        """The group takes these away: let an open transaction end, then forget."""
        lost = [holding for number in partitions if (holding := self._holdings.pop(number, None)) is not None]
        await asyncio.gather(*(_let_go(holding) for holding in lost if not holding.taking))

    def _begin_takeovers(self) -> None:
        """Each in a task of its own: commands of the other partitions go on meanwhile, and so does the poll."""
        for holding in self._holdings.values():
            if holding.due and holding.number not in self._taking:  # else the partition left and came back: one after the other
                holding.taking = True
                self._taking.add(holding.number)
                self._crew.spawn(self._take_over(holding))

    async def _take_over(self, holding: Holding) -> None:
        if await self._fence(holding):
            self._fenced.append(holding)
            async with self._folding.turn:
                fenced, self._fenced = self._fenced, []
                await self._fold_and_open(fenced)  # whoever was fenced while another fold ran; none when it ran for this one, too
        holding.taking = False
        self._taking.discard(holding.number)
        if not self._holds(holding):
            await holding.clear()

    async def _fence(self, holding: Holding) -> bool:
        writer = CatalogWriter(self._producers(holding.number), self._topics, holding.number, self._catalog, self._base)
        try:
            await holding.begin(writer)
        except Retry as error:
            log.warning("cannot take over partition %d: %s", holding.number, error)
            await holding.put_off()
            return False
        return True

    async def _fold_and_open(self, fenced: Sequence[Holding]) -> None:
        try:
            if fenced:
                await self._folding.fold([holding.number for holding in fenced])
                await asyncio.gather(*map(self._open, fenced))
        except (Retry, KafkaError) as error:
            log.warning("cannot take over partitions %s: %s", [holding.number for holding in fenced], error)
            await asyncio.gather(*(holding.put_off() for holding in fenced))

    async def _open(self, holding: Holding) -> None:
        partition = self._commands(holding.number)
        committed = (await committed_offsets(self._admin, self._member.group, [partition]))[partition].offset
        earliest = (await self._consumer.beginning_offsets([partition]))[partition]
        if self._holds(holding):
            holding.open(max(committed, earliest))
            self._consumer.seek(partition, holding.next_offset)
            self._consumer.resume(partition)
            log.info("partition %d is ours from offset %d", holding.number, holding.next_offset)

    async def _carry_out(self, fetched: dict[TopicPartition, list[Any]]) -> None:
        batches = [(holding, records) for partition, records in fetched.items() if (holding := self._holdings.get(partition.partition))]
        await asyncio.gather(*(self._write(holding, records) for holding, records in batches))

    async def _write(self, holding: Holding, records: Sequence[Any]) -> None:
        async with holding.busy:
            new = [_log_record(record) for record in records if record.offset >= holding.next_offset]
            for together in holding.cut(new):
                if holding.writer is None:
                    return
                await self._transact(holding, holding.writer, together)

    async def _transact(self, holding: Holding, writer: CatalogWriter, together: Sequence[LogRecord]) -> None:
        try:
            fault = holding.faults.get(together[0].offset)
            if fault is None:
                await writer.write(together, self._member.group)
            else:
                await writer.set_aside(together[0], fault, self._member.group)
        except (Retry, KafkaError) as error:
            await self._start_over(holding, error)
        except RECORDS_FAULT as error:
            log.exception("partition %d: commands from offset %d on", holding.number, together[0].offset)
            holding.blame(together, error)
            await self._start_over(holding, error)
        else:
            holding.advance(together[-1].offset + 1)
            self._count(writer.events)

    async def _start_over(self, holding: Holding, error: Exception) -> None:
        log.warning("partition %d has to be taken over again: %s", holding.number, error)
        if self._holds(holding):
            self._consumer.pause(self._commands(holding.number))
        await holding.put_off()

    def _holds(self, holding: Holding) -> bool:
        return self._holdings.get(holding.number) is holding

    def _count(self, events: Sequence[str]) -> None:
        for event in events:
            self._metrics.commands_total.labels(event).inc()

    async def _base(self, pool: str) -> PoolBase | None:
        if pool not in self._bases.first:
            await self._bases_reader.caught_up()
        return self._bases.first.get(pool)

    def _generation(self) -> int:
        return int(self._consumer._coordinator.generation)  # aiokafka has no public accessor

    def _moving(self) -> list[TopicPartition]:
        return [self._commands(number) for number in self.owned]

    def _commands(self, number: int) -> TopicPartition:
        return TopicPartition(self._topics.commands, number)


class _Follower(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no stubs
    """Tells the registrar what the group gives and takes."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._registrar.lose([partition.partition for partition in revoked])

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._registrar.gain([partition.partition for partition in assigned])


async def _let_go(holding: Holding) -> None:
    async with holding.busy:
        await holding.clear()


def _log_record(record: Any) -> LogRecord:
    return LogRecord(record.key, record.value, tuple(record.headers), record.offset, record.timestamp)
