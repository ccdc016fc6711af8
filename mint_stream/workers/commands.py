"""Commands to the registrar and their answers: an `adapter-commands` record out, the `adapter-events` record of the same command_id in."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.errors import BusUnavailable, InvalidRecord
from mint_stream.messages.adapters import (
    AdapterCommand,
    AdapterEvent,
    ClaimGranted,
    CommandRejectedEvent,
    CommandRepeated,
    RevisionAnnounced,
    decode_event,
)
from mint_stream.messages.gates import CandidateJudged

log = logging.getLogger(__name__)

ANSWERS = (ClaimGranted, RevisionAnnounced, CandidateJudged, CommandRepeated, CommandRejectedEvent)
"""Event types that say what became of a claim, an announce or a verdict; others tell what else it moved."""

Answer = ClaimGranted | RevisionAnnounced | CandidateJudged | CommandRepeated | CommandRejectedEvent


class SentCommand:
    """A command that lies in the log; `answer` waits for what the registrar made of it."""

    def __init__(self, desk: "Commands", command: AdapterCommand) -> None:
        self._desk = desk
        self._command = command

    async def answer(self) -> Answer:
        """The registrar's answer. Raises BusUnavailable when this worker stops first; the command may still be carried out."""
        return await self._desk.wait(self._command)


class Commands:
    """Sends commands and hears their answers. A command sent again is answered again, so resending is always safe."""

    def __init__(self, connection: Connection, producer: Producer, resend_s: float = 10.0) -> None:
        self._producer = producer
        self._resend_s = resend_s
        self._abandoned = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._events = LogReader(connection, contracts.ADAPTER_EVENTS.name(), self._apply, start="latest")

    async def start(self) -> None:
        """Begin to listen."""
        await self._events.start()

    async def stop(self) -> None:
        """End listening."""
        await self._events.stop()

    async def run_until_failed(self) -> None:
        """Return after `stop`, raise what made listening fail."""
        await self._events.run_until_failed()

    async def send(self, command: AdapterCommand) -> SentCommand:
        """Put the command into the log; returns once Kafka has it."""
        self._waiting.setdefault(command.command_id, asyncio.get_running_loop().create_future())
        await self._producer.publish(contracts.ADAPTER_COMMANDS, command, command.adapter_id)
        return SentCommand(self, command)

    def abandon(self) -> None:
        """This worker is about to stop: whoever waits for an answer, or would, gets BusUnavailable."""
        self._abandoned.set()

    async def wait(self, command: AdapterCommand) -> Answer:
        """The answer to a command that was sent. A registrar that is away is waited for, however long that takes."""
        name = f"{command.type} {command.command_id} of {command.adapter_id}"
        leaving = asyncio.create_task(self._abandoned.wait())
        waiting: set[asyncio.Future[Any]] = {self._waiting[command.command_id], leaving}
        try:
            while not (await asyncio.wait(waiting, timeout=self._resend_s, return_when=asyncio.FIRST_COMPLETED))[0]:
                log.warning("no answer to %s yet: is a registrar running?", name)
                await self._producer.publish(contracts.ADAPTER_COMMANDS, command, command.adapter_id)
        finally:
            leaving.cancel()
            answer = self._waiting.pop(command.command_id)
        if not answer.done():
            raise BusUnavailable(f"no registrar answered {name} before this worker stopped")
        return answer.result()

    def _apply(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        for record in records:
            event = _decoded(record.value)
            waiting = self._waiting.get(event.command_id) if event is not None else None
            if isinstance(event, ANSWERS) and waiting is not None and not waiting.done():
                waiting.set_result(event)


def _decoded(value: bytes | None) -> AdapterEvent | None:
    try:
        return decode_event(value)
    except InvalidRecord:
        return None
