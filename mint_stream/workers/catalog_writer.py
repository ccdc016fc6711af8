"""One partition of the catalog and its only writer: commands in, and in one transaction revisions, heads, events and the offset.

begin ─► [ revision ─► head ─► events ] for each command ─► dead letters, forwarded strays ─► offset ─► commit ─► local copy
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mint_stream import contracts
from mint_stream.bus.dead_letters import dead_letter
from mint_stream.bus.events import Headers, header
from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.bus.producer import Outgoing, outgoing
from mint_stream.bus.table import LogRecord
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.catalog import Catalog, Entry
from mint_stream.catalog.decide import decide
from mint_stream.catalog.deletion import revision_keys
from mint_stream.catalog.state import AdapterState, Decision
from mint_stream.errors import InvalidRecord, MintError, PoisonRecord
from mint_stream.messages.adapters import (
    AdapterCommand,
    Announce,
    CommandRejectedEvent,
    CommandRepeated,
    Head,
    SpentNumbers,
    decode_command,
    head_key,
    revision_key,
    spent_key,
)
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.record import Record
from mint_stream.messages.shared import CatalogPosition, ErrorBody
from mint_stream.workers.clock import now_ms

FindBase = Callable[[str], Awaitable[PoolBase | None]]


@dataclass(frozen=True)
class RegistrarTopics:
    """The topics a registrar works on; `commands` and `revisions` have `partitions` each."""

    partitions: int
    commands: str = contracts.ADAPTER_COMMANDS.name()
    revisions: str = contracts.ADAPTER_REVISIONS.name()
    events: str = contracts.ADAPTER_EVENTS.name()
    bases: str = contracts.BASE_MODELS.name()


@dataclass(frozen=True, slots=True)
class Command:
    """A decoded command with the record it came in."""

    body: AdapterCommand
    headers: Headers


@dataclass(frozen=True, slots=True)
class _Original(LogRecord):
    topic: str
    partition: int


class CatalogWriter:
    """Writes one partition as long as nobody else has started to. After any error throw it away: the log knows what was decided."""

    def __init__(self, producer: TransactionalProducer, topics: RegistrarTopics, partition: int, catalog: Catalog, base: FindBase) -> None:
        self.partition = partition
        self._producer = producer
        self._topics = topics
        self._catalog = catalog
        self._base = base
        self._states: dict[str, AdapterState] = {}
        self._spent = SpentNumbers(next_numbers={})
        self._sent: list[Outgoing] = []
        self.events: list[str] = []
        """The types of the events that the last `write` made visible."""

    async def take(self) -> None:
        """Fence whoever wrote this partition before; then the log's end stands still until we write. Raises BusUnavailable."""
        await self._producer.start()

    async def stop(self) -> None:
        """Close the producer."""
        await self._producer.stop()

    async def write(self, records: Sequence[LogRecord], group: str) -> None:
        """Carry out commands in their order and commit them with the group's offset.

        Raises OwnershipLost, and nothing of it is visible, or BusUnavailable, and the log tells."""
        await self._begin()
        commands = [command for record in records if (command := await self._open(record)) is not None]
        for together in rounds(commands):
            await self._carry_out(together)
        await self._commit(records[-1].offset + 1, group)

    async def set_aside(self, record: LogRecord, fault: Exception, group: str) -> None:
        """Dead-letter a command that cannot be carried out though nothing outside failed, and tell whoever waits. Raises as `write`."""
        error = fault if isinstance(fault, MintError) else PoisonRecord(f"carrying it out raised {type(fault).__name__}: {fault}")
        await self._begin()
        await self._send_raw(dead_letter(self._original(record), error))
        await self._refuse(record, ErrorBody.of(error).message)
        await self._commit(record.offset + 1, group)

    async def _begin(self) -> None:
        self._states, self._sent, self.events = {}, [], []
        self._spent = self._catalog.spent(self.partition)
        await self._producer.begin()

    async def _refuse(self, record: LogRecord, reason: str) -> None:
        body = decode_command(record.value)
        event = CommandRejectedEvent(
            command_id=body.command_id, adapter_id=body.adapter_id, at_ms=now_ms(), command=body.type, reason=reason
        )
        await self._tell(Command(body, record.headers), Decision((event,)), None)

    async def _commit(self, next_offset: int, group: str) -> None:
        await self._producer.send_offsets({(self._topics.commands, self.partition): next_offset}, group)
        positions = await self._producer.commit()
        self._copy([position.offset for position in positions])

    async def _open(self, record: LogRecord) -> Command | None:
        """The record's command; None when it was set aside as undecodable or sent to the partition it belongs to."""
        try:
            body = decode_command(record.value)
        except InvalidRecord as error:
            await self._send_raw(dead_letter(self._original(record), error))
            return None
        home = murmur2_partition(body.adapter_id.encode(), self._topics.partitions)
        if home == self.partition:
            return Command(body, record.headers)
        await self._send_raw(Outgoing(self._topics.commands, record.key, record.value, record.headers, home))
        return None

    async def _carry_out(self, commands: Sequence[Command]) -> None:
        """Decide commands of different adapters: all their records first, then, as the positions are known, the events."""
        decided = [(command, *await self._decide(command)) for command in commands]
        for command, decision, head in decided:
            state = self._state(command.body.adapter_id)
            position = state.position
            if head is not None:
                position = CatalogPosition(partition=self.partition, offset=(await self._producer.acknowledged(head)).offset)
                self._states[state.adapter_id] = state.after(decision, position)
            await self._tell(command, decision, position)

    async def _decide(self, command: Command) -> tuple[Decision, asyncio.Future[Any] | None]:
        state = self._state(command.body.adapter_id)
        base = await self._base(command.body.pool) if isinstance(command.body, Announce) else None
        decision = decide(state, command.body, base, now_ms())
        for revision in decision.revisions:
            await self._send(revision, revision_key(revision.adapter_id, revision.number), command, self._topics.revisions)
        if decision.deleted is not None:
            return decision, await self._bury(decision.deleted, command)
        if decision.head is None:
            return decision, None
        return decision, await self._send(decision.head, head_key(decision.head.adapter_id), command, self._topics.revisions)

    async def _bury(self, head: Head, command: Command) -> asyncio.Future[Any]:
        """Tombstones for all revisions, the numbers they had, and last a tombstone for the head, which is the switch here too."""
        for key in revision_keys(head):
            await self._send_raw(self._tombstone(key, command))
        self._spent = self._spent.after(head.adapter_id, head.next_number)
        await self._send(self._spent, spent_key(self.partition), command, self._topics.revisions)
        return await self._send_raw(self._tombstone(head_key(head.adapter_id), command))

    def _tombstone(self, key: bytes, command: Command) -> Outgoing:
        return Outgoing(self._topics.revisions, key, None, tuple(_trace(command)), self.partition)

    async def _tell(self, command: Command, decision: Decision, position: CatalogPosition | None) -> None:
        for event in decision.events:
            known = position if decision.changes or isinstance(event, CommandRepeated) else None
            await self._send(event.model_copy(update={"catalog_position": known}), event.adapter_id.encode(), command, self._topics.events)
            self.events.append(event.type)

    def _state(self, adapter_id: str) -> AdapterState:
        known = self._states.get(adapter_id)
        if known is None:
            head, position = self._catalog.head(adapter_id), self._catalog.head_position(adapter_id)
            known = AdapterState(adapter_id, head, position, self._catalog, first_number=self._spent.first_number(adapter_id))
            self._states[adapter_id] = known
        return known

    async def _send(self, record: Record, key: bytes, command: Command, topic: str) -> asyncio.Future[Any]:
        partition = self.partition if topic == self._topics.revisions else None
        return await self._send_raw(outgoing(topic, record, key, self._producer.source, partition=partition, headers=_trace(command)))

    async def _send_raw(self, record: Outgoing) -> asyncio.Future[Any]:
        self._sent.append(record)
        return await self._producer.send_raw(record)

    def _copy(self, offsets: Sequence[int]) -> None:
        pairs = zip(self._sent, offsets, strict=True)
        written = [Entry(sent.key, sent.value, offset) for sent, offset in pairs if sent.topic == self._topics.revisions]
        if written:
            self._catalog.apply(self.partition, written, written[-1].offset + 1)

    def _original(self, record: LogRecord) -> _Original:
        return _Original(
            record.key, record.value, record.headers, record.offset, record.timestamp_ms, self._topics.commands, self.partition
        )


def _trace(command: Command) -> list[tuple[str, bytes | None]]:
    return [("traceparent", parent)] if (parent := header(command.headers, "traceparent")) else []


def rounds(commands: Sequence[Command]) -> Iterator[list[Command]]:
    """Cut into rounds without two commands of one adapter. Law: an adapter's commands keep their order."""
    waiting = list(commands)
    while waiting:
        seen: set[str] = set()
        now: list[Command] = []
        later: list[Command] = []
        for command in waiting:
            (later if command.body.adapter_id in seen else now).append(command)
            seen.add(command.body.adapter_id)
        yield now
        waiting = later
