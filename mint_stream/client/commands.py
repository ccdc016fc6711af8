"""Commands to the registrar, each waiting for the event that answers it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from mint_stream import contracts
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.client.partitions import Partitions
from mint_stream.errors import CommandRejected, InvalidRecord, ReplyTimeout
from mint_stream.messages.adapters import AdapterCommand, AdapterEvent, decode_event

ANSWERED_BY = {
    "claim": "claim-granted",
    "announce": "revision-announced",
    "promote": "alias-moved",
    "roll-back": "alias-moved",
    "quarantine": "revision-quarantined",
    "retire": "revision-retired",
    "set-rule": "rule-set",
    "set-canary": "canary-set",
    "set-spread": "spread-set",
    "delete": "adapter-deleted",
    "judge": "candidate-judged",
}
"""Command type to the type of the event that says it was carried out. One command may cause further events."""

ALWAYS = frozenset({"command-repeated", "command-rejected"})


class Waiting:
    """One send that waits for its command's event."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        self.answer: asyncio.Future[AdapterEvent] = asyncio.get_running_loop().create_future()

    def saw(self, event: AdapterEvent) -> None:
        """An event of the command: the first that says what became of it is the answer."""
        if not self.answer.done() and (event.type == self._wanted or event.type in ALWAYS):
            self.answer.set_result(event)


class Commands:
    """Sends commands and matches events to them by command_id.

    The adapter's partition of `adapter-events` is read from the end it had before the first command went out, so no answer is missed."""

    def __init__(self, producer: Producer, partitions: Partitions) -> None:
        self._producer = producer
        self._partitions = partitions
        self._readers: dict[int, LogReader] = {}
        self._opening = asyncio.Lock()
        self._waiting: dict[str, list[Waiting]] = {}
        """By command_id: a command may be sent again while its answer is on the way."""

    async def send(self, command: AdapterCommand, timeout_s: float) -> AdapterEvent:
        """Produce the command and wait for its event. Raises CommandRejected with the registrar's reason, or ReplyTimeout."""
        reader = await self._reader(command.adapter_id)
        waiting = Waiting(ANSWERED_BY[command.type])
        self._waiting.setdefault(command.command_id, []).append(waiting)
        try:
            await self._producer.publish(contracts.ADAPTER_COMMANDS, command, command.adapter_id)
            return accepted(await _first(waiting.answer, reader, timeout_s))
        except TimeoutError as error:
            raise ReplyTimeout(
                f"no answer to {command.type} of adapter {command.adapter_id} in {timeout_s:g} s: is a registrar running "
                f"(`mint-stream register`)? Command {command.command_id} may still be carried out"
            ) from error
        finally:
            self._forget(command.command_id, waiting)

    async def stop(self) -> None:
        """End reading events."""
        for reader in self._readers.values():
            await reader.stop()

    async def _reader(self, adapter_id: str) -> LogReader:
        topic = contracts.ADAPTER_EVENTS.name()
        partition = await self._partitions.of(topic, adapter_id)
        async with self._opening:
            reader = self._readers.get(partition)
            if reader is not None and reader.failed is not None:
                await reader.stop()
                reader = None
            if reader is None:
                reader = LogReader(self._partitions.connection, topic, self._apply, "latest", [partition])
                await reader.start()
                self._readers[partition] = reader
            return reader

    def _apply(self, _: int, records: Sequence[LogRecord], __: int) -> None:
        for record in records:
            self._saw(record)

    def _saw(self, record: LogRecord) -> None:
        try:
            event = decode_event(record.value)
        except InvalidRecord:
            return
        for waiting in self._waiting.get(event.command_id, ()):
            waiting.saw(event)

    def _forget(self, command_id: str, waiting: "Waiting") -> None:
        left = [other for other in self._waiting[command_id] if other is not waiting]
        if left:
            self._waiting[command_id] = left
        else:
            del self._waiting[command_id]


def accepted(event: AdapterEvent) -> AdapterEvent:
    """The event itself, unless it says that the command was refused."""
    if event.type == "command-rejected":
        raise CommandRejected(f"{event.command} of adapter {event.adapter_id}: {event.reason}")
    return event


async def _first(answer: "asyncio.Future[AdapterEvent]", reader: LogReader, timeout_s: float) -> AdapterEvent:
    failing = asyncio.create_task(reader.run_until_failed())
    either: set[asyncio.Future[Any]] = {answer, failing}
    try:
        done, _ = await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        failing.cancel()
    if answer in done:
        return answer.result()
    if failing in done:
        failing.result()
    raise TimeoutError
