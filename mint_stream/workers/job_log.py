"""What is known of every training job: the fold of `training-events` and of `training-controls`, both replayed before any job starts."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.errors import InvalidRecord
from mint_stream.messages.training import TERMINAL, JobState, TrainingControl, TrainingEvent
from mint_stream.workers.moves import Moves

log = logging.getLogger(__name__)

REMEMBERED = 100_000
"""Terminal jobs and cancellations kept, the oldest forgotten first. A terminal job's record is closed, so it seldom comes again."""

Standing = Literal["free", "held", "over"]
"""free: nobody works on the job; held: a trainer does; over: the job is terminal."""


@dataclass(frozen=True)
class LastSeen:
    """The last sign of life of a job."""

    state: JobState
    attempt: int
    worker_id: str
    at_ms: int


def standing(last: LastSeen | None, worker_id: str, now_ms: int, silence_ms: float) -> Standing:
    """Who has a job that is not being worked on here. A trainer silent for `silence_ms` is gone, as is an earlier life of this worker."""
    if last is None or last.state == "queued":
        return "free"
    if last.state in TERMINAL:
        return "over"
    return "held" if last.worker_id != worker_id and now_ms - last.at_ms < silence_ms else "free"


class JobLog:
    """Every job's last event, and which jobs were cancelled."""

    def __init__(self, connection: Connection, remembered: int = REMEMBERED) -> None:
        """`remembered`: so many terminal jobs, and so many cancellations of others."""
        self._remembered = remembered
        self._last: dict[str, LastSeen] = {}
        self._over: OrderedDict[str, None] = OrderedDict()
        self._cancelled: OrderedDict[str, str] = OrderedDict()
        self._moves = Moves()
        self._events = LogReader(connection, contracts.TRAINING_EVENTS.name(), self.apply_events)
        self._controls = LogReader(connection, contracts.TRAINING_CONTROLS.name(), self.apply_controls)

    async def start(self) -> None:
        """Replay both topics to their ends."""
        for reader in (self._events, self._controls):
            await reader.start()
            await reader.caught_up()

    async def stop(self) -> None:
        """End reading."""
        await self._events.stop()
        await self._controls.stop()

    async def run_until_failed(self) -> None:
        """Return after `stop`, raise what made reading fail."""
        async with asyncio.TaskGroup() as readers:
            readers.create_task(self._events.run_until_failed())
            readers.create_task(self._controls.run_until_failed())

    async def current(self, job_id: str) -> LastSeen | None:
        """The job's last event, everything written before this call included."""
        await self._events.caught_up()
        return self._last.get(job_id)

    def cancelled(self, job_id: str) -> str | None:
        """Why the job was cancelled; None when it was not."""
        return self._cancelled.get(job_id)

    async def moved(self, timeout_s: float) -> None:
        """Return when anything was written of any job, or after `timeout_s`."""
        await self._moves.moved(timeout_s)

    def apply_events(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        """Take in records of `training-events`. An older attempt's late words do not hide a newer one's."""
        for record in records:
            event = _event(record)
            last = self._last.get(event.job_id) if event else None
            if event and not (last and (last.state in TERMINAL or event.attempt < last.attempt)):
                self._last[event.job_id] = LastSeen(event.state, event.attempt, event.worker_id, record.timestamp_ms)
                if event.terminal:
                    self._close(event.job_id)
        self.wake()

    def apply_controls(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        """Take in records of `training-controls`."""
        for record in records:
            control = _control(record)
            if control is not None and control.job_id not in self._over:
                self._cancelled[control.job_id] = control.reason or "cancelled by its owner"
                if len(self._cancelled) > self._remembered:
                    self._cancelled.popitem(last=False)
        self.wake()

    def _close(self, job_id: str) -> None:
        """The job is terminal: its cancellation says nothing more, and of all that are terminal the last ones are remembered."""
        self._cancelled.pop(job_id, None)
        self._over[job_id] = None
        if len(self._over) > self._remembered:
            del self._last[self._over.popitem(last=False)[0]]

    def wake(self) -> None:
        """Let all who wait for something to move look again."""
        self._moves.wake()


def _event(record: LogRecord) -> TrainingEvent | None:
    try:
        return TrainingEvent.decode(record.value)
    except InvalidRecord:
        return None


def _control(record: LogRecord) -> TrainingControl | None:
    try:
        return TrainingControl.decode(record.value)
    except InvalidRecord as error:
        log.warning("training-controls offset=%d passed over: %s", record.offset, error)
        return None
