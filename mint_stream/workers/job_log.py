"""What is known of every training job: the fold of `training-events` and of `training-controls`, both replayed before any job starts."""

import asyncio
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.errors import InvalidRecord
from mint_stream.messages.training import TERMINAL, JobState, ParkedJob, TrainingControl, TrainingEvent
from mint_stream.workers.moves import Moves

log = logging.getLogger(__name__)

REMEMBERED = 100_000
"""Terminal jobs and controls of others kept, the oldest forgotten first. A terminal job's record is closed, so it seldom comes again."""

Standing = Literal["free", "held", "over"]
"""free: nobody works on the job; held: a trainer does; over: the job is terminal."""


@dataclass(frozen=True)
class LastSeen:
    """The last sign of life of a job."""

    state: JobState
    attempt: int
    worker_id: str
    at_ms: int
    step: int = 0
    parked: ParkedJob | None = None


def standing(last: LastSeen | None, worker_id: str, now_ms: int, silence_ms: float) -> Standing:
    """Who has a job that is not being worked on here. A trainer silent for `silence_ms` is gone, as is an earlier life of this worker."""
    if last is None or last.state in ("queued", "paused"):
        return "free"
    if last.state in TERMINAL:
        return "over"
    return "held" if last.worker_id != worker_id and now_ms - last.at_ms < silence_ms else "free"


class JobLog:
    """Every job's last event, and what was asked of it: to end, to pause, to go on."""

    def __init__(self, connection: Connection, remembered: int = REMEMBERED) -> None:
        """`remembered`: so many terminal jobs, and of others so many that were cancelled, and that were paused or resumed."""
        self._remembered = remembered
        self._last: dict[str, LastSeen] = {}
        self._over: OrderedDict[str, None] = OrderedDict()
        self._cancelled: OrderedDict[str, str] = OrderedDict()
        self._wishes: OrderedDict[str, TrainingControl] = OrderedDict()
        self._parked: set[str] = set()
        self._at_work: defaultdict[str, set[str]] = defaultdict(set)
        """By tenant."""
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

    def pausing(self, job_id: str) -> str | None:
        """Who paused the job, and why; None when nobody did, or when it was resumed or cancelled since."""
        wish = self._wishes.get(job_id)
        return _words(wish) if wish is not None and wish.action == "pause" and job_id not in self._cancelled else None

    def parked(self, job_id: str) -> bool:
        """Whether the job is paused and nothing was asked of it since: no record of it has anything to do."""
        return job_id in self._parked and not self._awaited(job_id)

    async def awaited(self, pool: str) -> dict[str, LastSeen]:
        """The paused jobs of a pool that were resumed or cancelled, by everything asked before this call."""
        if not any(self._awaited(job_id) for job_id in self._parked):
            return {}
        await self._controls.caught_up()
        found = {job_id: self._last[job_id] for job_id in self._parked if self._awaited(job_id)}
        return {job_id: last for job_id, last in found.items() if last.parked is not None and last.parked.pool == pool}

    def _awaited(self, job_id: str) -> bool:
        """A resume has to be there: controls are kept for a shorter time than events, and an old pause must not wear off."""
        wish = self._wishes.get(job_id)
        return job_id in self._cancelled or (wish is not None and wish.action == "resume")

    def at_work_elsewhere(self, tenant: str, worker_id: str, now_ms: int, silence_ms: float) -> int:
        """How many jobs of a tenant other trainers have in training, of any pool."""
        jobs = (self._last[job_id] for job_id in self._at_work.get(tenant, ()))
        return sum(standing(last, worker_id, now_ms, silence_ms) == "held" for last in jobs)

    async def moved(self, timeout_s: float) -> None:
        """Return when anything was written of any job, or after `timeout_s`."""
        await self._moves.moved(timeout_s)

    def apply_events(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        """Take in records of `training-events`. An older attempt's late words do not hide a newer one's."""
        for record in records:
            event = _event(record)
            if event and _counts(event, self._last.get(event.job_id)):
                self._note(event, record.timestamp_ms)
        self.wake()

    def _note(self, event: TrainingEvent, at_ms: int) -> None:
        self._last[event.job_id] = LastSeen(event.state, event.attempt, event.worker_id, at_ms, event.step, event.parked)
        (self._parked.add if event.state == "paused" else self._parked.discard)(event.job_id)
        idle = event.terminal or event.state in ("queued", "paused")
        (self._at_work[event.tenant].discard if idle else self._at_work[event.tenant].add)(event.job_id)
        if event.terminal:
            self._close(event.job_id)

    def apply_controls(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        """Take in records of `training-controls`."""
        for record in records:
            control = _control(record)
            if control is not None and control.job_id not in self._over:
                self._ask(control)
        self.wake()

    def _ask(self, control: TrainingControl) -> None:
        if control.action == "cancel":
            self._cancelled[control.job_id] = control.reason or "cancelled by its owner"
        else:
            self._wishes[control.job_id] = control
        for asked in (self._cancelled, self._wishes):
            if len(asked) > self._remembered:
                asked.popitem(last=False)

    def _close(self, job_id: str) -> None:
        """The job is terminal: what was asked of it says nothing more, and of all that are terminal the last ones are remembered."""
        self._cancelled.pop(job_id, None)
        self._wishes.pop(job_id, None)
        self._over[job_id] = None
        if len(self._over) > self._remembered:
            del self._last[self._over.popitem(last=False)[0]]

    def wake(self) -> None:
        """Let all who wait for something to move look again."""
        self._moves.wake()


def _counts(event: TrainingEvent, last: LastSeen | None) -> bool:
    """Not after the end, not of an older attempt; and a paused job is left by the way of the queue, not by a late sign of life."""
    if last is None:
        return True
    if last.state in TERMINAL or event.attempt < last.attempt:
        return False
    late = last.state == "paused" and event.attempt == last.attempt
    return not late or event.state in ("queued", "paused") or event.terminal


def _words(control: TrainingControl) -> str:
    who = f"{control.action}d by {control.issued_by or 'its owner'}"
    return f"{who}: {control.reason}" if control.reason else who


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
