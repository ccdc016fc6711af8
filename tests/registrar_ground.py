"""Topics, commands and readers for tests of the registrar on a real broker.

ground = await Ground.create(connection, prefix)      commands, dead letters, revisions (compacted), events, bases with BASE in it
async with ground.registrar() as registrar: ...       a running registrar
await ground.give(announce("a"), ...)                 commands on the partitions they belong to
events = await ground.answers("a", ...)               what the registrar said of these commands, once it has answered all of them
with await ground.catalog() as catalog: ...           the log folded by a reader that saw nothing before
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from mint_stream.bus.connection import Connection
from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.seat import Seat
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.catalog import Catalog
from mint_stream.messages.adapters import AdapterCommand, AdapterEvent, decode_event
from mint_stream.metrics import Metrics
from mint_stream.workers.catalog_writer import CatalogWriter, RegistrarTopics
from mint_stream.workers.registrar import Member, OpenProducer, Registrar
from tests.adapter_commands import BASE
from tests.provisioned import PARTITIONS


@dataclass(frozen=True)
class Ground:
    """One test's own catalog."""

    connection: Connection
    prefix: str
    topics: RegistrarTopics
    group: str = ""
    """The registrars' group; after the prefix when it is not given."""

    @classmethod
    async def create(cls, connection: Connection, prefix: str, partitions: int = 2, revisions: Mapping[str, str] | None = None) -> "Ground":
        ground = cls.named(connection, prefix, partitions)
        topics = ground.topics
        keyed = [topics.commands, f"{topics.commands}-dlq", topics.revisions, topics.events]
        compact = {"cleanup.policy": "compact"}
        wanted = [
            NewTopic(name, partitions, 1, topic_configs=dict(revisions or compact) if name == topics.revisions else {}) for name in keyed
        ]
        admin = AIOKafkaAdminClient(**connection.options())
        await admin.start()
        try:
            await admin.create_topics([*wanted, NewTopic(topics.bases, 1, 1, topic_configs=compact)])
        finally:
            await admin.close()
        await ground.publish(Outgoing(topics.bases, BASE.pool.encode(), BASE.encode()))
        return ground

    @classmethod
    def named(cls, connection: Connection, prefix: str, partitions: int = 2) -> "Ground":
        names = (f"{prefix}-{part}" for part in ("commands", "revisions", "events", "bases"))
        return cls(connection, prefix, RegistrarTopics(partitions, *names))

    @classmethod
    def of_fleet(cls, connection: Connection) -> "Ground":
        """The fleet's own topics, under the names the `register` role uses: whoever writes there is one group with one owner a partition.

        Two groups would be two writers: the slower puts old heads behind the other's new ones, and a rule set to auto is manual again."""
        return cls(connection, "registrar", RegistrarTopics(PARTITIONS), Member().group)

    def open_producer(self, partition: int) -> TransactionalProducer:
        return TransactionalProducer(self.connection, f"{self.prefix}-{partition}", "test", timeout_s=10)

    def build(
        self,
        catalog: Catalog,
        producers: OpenProducer | None = None,
        metrics: Metrics | None = None,
        member: str | None = None,
        **limits: float,
    ) -> Registrar:
        place = Member(self.group or f"{self.prefix}-registrar", Seat(member), **limits)
        return Registrar(self.connection, self.topics, catalog, producers or self.open_producer, metrics or Metrics(), place)

    @asynccontextmanager
    async def registrar(self, path: Path | None = None, producers: OpenProducer | None = None) -> AsyncIterator[Registrar]:
        with Catalog(path, self.topics.partitions) as catalog:
            registrar = self.build(catalog, producers)
            await registrar.start()
            running = asyncio.create_task(registrar.run())
            try:
                yield registrar
            finally:
                await registrar.drain()
                await running

    @asynccontextmanager
    async def writer(self, partition: int) -> AsyncIterator[CatalogWriter]:
        """A writer of one partition outside any group, started and with the log folded."""

        async def base(pool: str) -> object:
            return BASE if pool == BASE.pool else None

        with Catalog(None, self.topics.partitions) as catalog:
            writer = CatalogWriter(self.open_producer(partition), self.topics, partition, catalog, base)
            await writer.take()
            await self.read(self.topics.revisions, catalog.apply)
            try:
                yield writer
            finally:
                await writer.stop()

    async def publish(self, *records: Outgoing) -> None:
        producer = Producer(self.connection, "test")
        await producer.start()
        try:
            await asyncio.gather(*[await producer.send_raw(record) for record in records])
        finally:
            await producer.stop()

    def home(self, adapter_id: str) -> int:
        return murmur2_partition(adapter_id.encode(), self.topics.partitions)

    def record(self, command: AdapterCommand, partition: int | None = None) -> Outgoing:
        key = command.adapter_id.encode()
        return Outgoing(
            self.topics.commands, key, command.encode(), partition=self.home(command.adapter_id) if partition is None else partition
        )

    async def give(self, *commands: AdapterCommand) -> None:
        await self.publish(*(self.record(command) for command in commands))

    async def read(self, topic: str, apply: Callable[[int, Sequence[LogRecord], int], None], committed: bool = True) -> None:
        """Everything that is in a topic now."""
        reader = LogReader(self.connection, topic, apply, read_committed=committed)
        await reader.start()
        try:
            await reader.caught_up()
        finally:
            await reader.stop()

    async def records(self, topic: str, committed: bool = True) -> list[LogRecord]:
        found: list[LogRecord] = []
        await self.read(topic, lambda _partition, records, _next: found.extend(records), committed)
        return found

    async def events(self) -> list[AdapterEvent]:
        return [decode_event(record.value) for record in await self.records(self.topics.events)]

    async def answers(self, *commands: AdapterCommand | str) -> list[list[AdapterEvent]]:
        """Per command its events, when every one of them has any. The test's own timeout ends a wait in vain."""
        wanted = [command if isinstance(command, str) else command.command_id for command in commands]
        found: dict[str, list[AdapterEvent]] = {}
        complete = asyncio.Event()

        def apply(_partition: int, records: Iterable[LogRecord], _next: int) -> None:
            for record in records:
                event = decode_event(record.value)
                found.setdefault(event.command_id, []).append(event)
            if all(command_id in found for command_id in wanted):
                complete.set()

        reader = LogReader(self.connection, self.topics.events, apply)
        await reader.start()
        try:
            failing, waiting = asyncio.create_task(reader.run_until_failed()), asyncio.create_task(complete.wait())
            await asyncio.wait({failing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            await reader.caught_up()
        finally:
            await reader.stop()
            await asyncio.gather(failing, waiting, return_exceptions=True)
        return [found[command_id] for command_id in wanted]

    async def catalog(self) -> Catalog:
        catalog = Catalog(None, self.topics.partitions)
        await self.read(self.topics.revisions, catalog.apply)
        return catalog
