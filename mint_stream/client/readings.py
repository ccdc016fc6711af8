"""What a client reads besides answers: jobs, adapter events, the catalog, the pool's base."""

import logging
from collections.abc import Callable, Sequence
from functools import reduce

from mint_stream import contracts
from mint_stream.bus.table import LogRecord
from mint_stream.client.controls import JobNow
from mint_stream.client.feed import Feed, Place, read_to_end
from mint_stream.client.history import AdapterThen, as_of
from mint_stream.client.job_fold import after
from mint_stream.client.listing import AdapterView, CatalogFold
from mint_stream.client.partitions import Partitions, Since
from mint_stream.errors import BaseUnusable, InvalidRecord, UnknownAdapter, UnknownJob
from mint_stream.messages.adapters import AdapterEvent, decode_event
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.shared import CatalogPosition
from mint_stream.messages.training import Action, TrainingControl, TrainingEvent, TrainingJob

log = logging.getLogger(__name__)


class Readings:
    """Feeds and pictures of the topics a user may look at."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions

    def job(self, job_id: str, heartbeats: bool) -> Feed[TrainingEvent]:
        """The life of one job, from its first event to its last. What an attempt says that was superseded is left out."""
        known: TrainingEvent | None = None

        def decode(record: LogRecord) -> TrainingEvent | None:
            nonlocal known
            if record.key != job_id.encode():
                return None
            event, before = TrainingEvent.decode(record.value), known
            known = after(before, event)
            return event if known is not before and (heartbeats or not event.heartbeat) else None

        return Feed(self._partitions, Place(contracts.TRAINING_EVENTS.name(), job_id), decode, lambda event: event.terminal)

    async def history(self, job_id: str, heartbeats: bool = False) -> tuple[TrainingEvent, ...]:
        """Everything said of a job up to now, heartbeats only where asked for."""
        said: list[TrainingEvent] = []

        def note(_: int, record: LogRecord) -> None:
            if record.key == job_id.encode():
                said.append(TrainingEvent.decode(record.value))

        await self._fold(Place(contracts.TRAINING_EVENTS.name(), job_id), note)
        return tuple(event for event in said if heartbeats or not event.heartbeat)

    async def jobs(self) -> tuple[TrainingEvent, ...]:
        """The latest event of every job with the last loss, revision and (while it is trained) remaining time it reported, oldest first."""
        latest: dict[str, TrainingEvent] = {}

        def note(_: int, record: LogRecord) -> None:
            event = TrainingEvent.decode(record.value)
            latest[event.job_id] = after(latest.get(event.job_id), event)

        await self._fold(Place(contracts.TRAINING_EVENTS.name()), note)
        return tuple(sorted(latest.values(), key=lambda event: event.at_ms))

    async def job_standing(self, job_id: str) -> TrainingEvent:
        """How one job stands. Raises UnknownJob while nothing was said of it."""
        said = await self.history(job_id, heartbeats=True)
        if not said:
            raise UnknownJob(f"no trainer has said anything of job {job_id}: `mint-stream jobs list` says which there are")
        return reduce(after, said)

    async def job_now(self, job_id: str, pool: str) -> JobNow | None:
        """How a job stands; None for one that was never submitted to the pool, as far as the log reaches back."""
        said, asked, submitted = await self.history(job_id), await self._controls(job_id), False
        if not said:
            submitted = await self._submitted(job_id, pool)
        return JobNow(reduce(after, said).state if said else "queued", asked) if said or submitted else None

    async def _controls(self, job_id: str) -> Action | None:
        """The control that counts: a cancellation, or the last of the others."""
        asked: list[Action] = []

        def note(_: int, record: LogRecord) -> None:
            control = TrainingControl.decode(record.value)
            if control.job_id == job_id:
                asked.append(control.action)

        await self._fold(Place(contracts.TRAINING_CONTROLS.name(), job_id), note)
        return "cancel" if "cancel" in asked else asked[-1] if asked else None

    async def _submitted(self, job_id: str, pool: str) -> bool:
        """Whether a record of the pool's jobs has this id, taken or not."""
        found: list[str] = []

        def note(_: int, record: LogRecord) -> None:
            job = TrainingJob.decode(record.value)
            found.extend([job_id] if job.job_id == job_id else [])

        await self._fold(Place(contracts.TRAINING_JOBS.name(pool)), note)
        return bool(found)

    def events(self, adapter_id: str | None, since: Since) -> Feed[AdapterEvent]:
        """The history of one adapter or of all."""

        def decode(record: LogRecord) -> AdapterEvent | None:
            event = decode_event(record.value)
            return event if adapter_id in (None, event.adapter_id) else None

        return Feed(self._partitions, Place(contracts.ADAPTER_EVENTS.name(), adapter_id, since), decode)

    async def adapters(self) -> tuple[AdapterView, ...]:
        """Every adapter by name."""
        return await self._catalog(None)

    async def adapter(self, adapter_id: str) -> AdapterView:
        """One adapter, read from its own partition. Raises UnknownAdapter."""
        for view in await self._catalog(adapter_id):
            if view.adapter_id == adapter_id:
                return view
        raise UnknownAdapter(f"no adapter {adapter_id} in the catalog: `mint-stream adapters list` says which there are")

    async def adapter_at(self, adapter_id: str, at_ms: int) -> AdapterThen | None:
        """One adapter as it was at a moment, from its history."""
        events: list[AdapterEvent] = []

        def note(_: int, record: LogRecord) -> None:
            if record.key == adapter_id.encode():
                events.append(decode_event(record.value))

        await self._fold(Place(contracts.ADAPTER_EVENTS.name(), adapter_id), note)
        return as_of(events, adapter_id, at_ms)

    async def pool_base(self, pool: str) -> PoolBase:
        """The first record of the pool: the one that founded it. Raises BaseUnusable when there is none."""
        founded: dict[str, PoolBase] = {}

        def note(_: int, record: LogRecord) -> None:
            if record.value and record.key == pool.encode():
                founded.setdefault(pool, PoolBase.decode(record.value))

        await self._fold(Place(contracts.BASE_MODELS.name()), note)
        if pool not in founded:
            raise BaseUnusable(f"pool {pool} has no base yet: start a serving worker of it (`mint-stream serve --pool {pool}`)")
        return founded[pool]

    async def _catalog(self, adapter_id: str | None) -> tuple[AdapterView, ...]:
        fold = CatalogFold()

        def note(partition: int, record: LogRecord) -> None:
            fold.apply(CatalogPosition(partition=partition, offset=record.offset), record.key or b"", record.value)

        await self._fold(Place(contracts.ADAPTER_REVISIONS.name(), adapter_id), note)
        return fold.views()

    async def _fold(self, place: Place, note: Callable[[int, LogRecord], None]) -> None:
        def apply(partition: int, records: Sequence[LogRecord], _: int) -> None:
            for record in records:
                try:
                    note(partition, record)
                except InvalidRecord as error:
                    log.warning("%s partition=%d offset=%d passed over: %s", place.topic, partition, record.offset, error)

        await read_to_end(self._partitions, place, apply)
