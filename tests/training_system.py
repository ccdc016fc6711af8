"""A whole training system on a broker of its own: topics, a registrar, a pool's tiny base, and a view of everything that is said.

async with TrainingSystem(home) as system:      broker, topics, registrar, readers
    async with system.trainer():                a train role in this process
    async with system.serving():                a serve role beside it, which draws rollouts
        await system.submit(job); await system.ended(job_id)
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from mint_stream import contracts
from mint_stream.app.provisioned import topics
from mint_stream.app.serve import ServeRole
from mint_stream.app.train import TrainRole, nothing
from mint_stream.app.workplace import Workplace
from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.events import Headers
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.catalog import Catalog
from mint_stream.messages.training import Action, Hyperparameters, LoraSettings, TrainingControl, TrainingEvent, TrainingJob
from mint_stream.metrics import Metrics
from mint_stream.settings import KafkaSettings, Settings, StoreSettings, TenantQuota, TrainingSettings
from mint_stream.store import Store
from mint_stream.workers.catalog_writer import RegistrarTopics
from mint_stream.workers.clock import now_ms
from mint_stream.workers.effects import After
from mint_stream.workers.registrar import Member, Registrar
from tests.factories import chat_lines, tiny_base

PARTITIONS = 2
POOL = "tiny"
GOOD = "good.jsonl"
SILENCE_S = 20.0
"""Far longer than a busy machine stalls: a takeover has to be asked for."""


class TrainingSystem:
    """See the module."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "data"
        self.data.mkdir()
        (self.data / GOOD).write_bytes(chat_lines(12))
        self._base = tiny_base(home / "base", hidden_size=64, intermediate_size=128)  # rows of these keep their bits in any company
        self._parts = AsyncExitStack()
        self.events: list[TrainingEvent] = []
        self._said = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            await self._build()
        except BaseException:
            await self._parts.aclose()
            raise
        return self

    async def _build(self) -> None:
        broker = self._parts.enter_context(LocalKafka(self.home / "kafka"))
        self.settings = self._settings_for(broker.bootstrap_servers)
        self.connection = Connection(broker.bootstrap_servers)
        self.store = Store(self.settings.store_uri)
        await provision.apply(self.connection, list(topics(self.settings).values()), POOL)
        self.producer = Producer(self.connection, "test")
        await self._begin(self.producer)
        self.catalog = self._parts.enter_context(Catalog(None, PARTITIONS))
        self._revisions = LogReader(self.connection, contracts.ADAPTER_REVISIONS.name(), self.catalog.apply)
        for reader in (self._revisions, LogReader(self.connection, contracts.TRAINING_EVENTS.name(), self._hear)):
            await self._begin(reader)
        await self._register()

    async def __aexit__(self, *error: Any) -> None:
        await self._parts.aclose()

    @asynccontextmanager
    async def trainer(
        self,
        after: After = nothing,
        worker_id: str | None = None,
        silence_s: float = SILENCE_S,
        max_jobs: int = 8,
        quotas: Mapping[str, TenantQuota] | None = None,
        kind: type[TrainRole] = TrainRole,
    ) -> AsyncIterator[TrainRole]:
        """A train role that is drained at the end."""
        changes = {"silence_s": silence_s, "max_jobs": max_jobs, "quotas": dict(quotas or {})}
        settings = self.settings.model_copy(update={"training": self.settings.training.model_copy(update=changes)})
        with Workplace(settings.home, "train", worker_id) as workplace:
            role = kind(settings, self.connection, Metrics(), workplace, after)
            await role.start()
            self.training = working = asyncio.create_task(role.run())
            try:
                yield role
            finally:
                await role.drain()
                await working

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ServeRole]:
        """A serve role of the pool that is drained at the end."""
        settings = self.settings.model_copy(update={"serving": self.settings.serving.model_copy(update={"context_tokens": 128})})
        with Workplace(settings.home, "serve") as workplace:
            role = ServeRole(settings, self.connection, Metrics(), workplace)
            await role.start()
            working = asyncio.create_task(role.run())
            try:
                yield role
            finally:
                await role.drain()
                await working

    def job(self, job_id: str, adapter_id: str = "a", file: str = GOOD, **changes: Any) -> TrainingJob:
        """A job of four steps on the good dataset, with changes."""
        settings = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "max_length_tokens": 128} | changes.pop("hyperparameters", {})
        fields: dict[str, Any] = {"dataset_uri": (self.data / file).as_uri(), "lora": LoraSettings(rank=4), "checkpoint_every_steps": 2}
        return TrainingJob(
            job_id=job_id, adapter_id=adapter_id, hyperparameters=Hyperparameters(**settings), submitted_at_ms=now_ms(), **fields | changes
        )

    async def submit(self, job: TrainingJob, partition: int | None = None) -> None:
        """Produce the job's record."""
        await self.producer.publish(contracts.TRAINING_JOBS, job, job.adapter_id, pool=POOL, partition=partition)

    async def raw(
        self, topic: str, value: bytes | None, key: bytes | None = None, partition: int | None = None, headers: Headers = ()
    ) -> None:
        """Produce bytes as a stranger would."""
        await self.producer.publish_raw(Outgoing(topic, key, value, headers, partition))

    async def cancel(self, job_id: str) -> None:
        """Produce a cancel control."""
        await self.control(job_id, "cancel")

    async def control(self, job_id: str, action: Action) -> None:
        """Produce a control."""
        control = TrainingControl(job_id=job_id, action=action, reason="enough", issued_by="ann", issued_at_ms=now_ms())
        await self.producer.publish(contracts.TRAINING_CONTROLS, control, job_id)

    async def ended(self, job_id: str) -> TrainingEvent:
        """The job's terminal event."""
        return await self.heard(job_id, lambda event: event.terminal)

    async def heard(self, job_id: str, wanted: Any) -> TrainingEvent:
        """The first event of the job for which `wanted` is true."""
        while True:
            for event in self.events:
                if event.job_id == job_id and wanted(event):
                    return event
            self._said.clear()
            await self._said.wait()

    async def beats(self, job_id: str, count: int) -> None:
        """Wait for so many more heartbeats of the job."""
        wanted = self._beats(job_id) + count
        await self.heard(job_id, lambda _event: self._beats(job_id) >= wanted)

    def _beats(self, job_id: str) -> int:
        return sum(event.heartbeat for event in self.events if event.job_id == job_id)

    def states(self, job_id: str) -> list[str]:
        """The states the job went through, repetitions left out."""
        states = [event.state for event in self.events if event.job_id == job_id]
        return [state for place, state in enumerate(states) if place == 0 or states[place - 1] != state]

    async def revisions(self, adapter_id: str) -> list[tuple[int, str | None, int | None, str]]:
        """(number, job, step, digest) of every revision, each readable and verified."""
        await self._revisions.caught_up()
        found = self.catalog.revisions(adapter_id)
        for revision in found:
            assert revision.uri is not None
            self.store.read_revision(revision.uri)
        return [(one.number, one.job_id, one.step, one.digest) for one in found]

    def _settings_for(self, bootstrap_servers: str) -> Settings:
        return Settings(
            base=str(self._base),
            pool=POOL,
            home=self.home / "work",
            partitions=PARTITIONS,
            kafka=KafkaSettings(bootstrap_servers=bootstrap_servers),
            store=StoreSettings(allowed_roots=(self.data.as_uri(),)),
            training=TrainingSettings(heartbeat_s=0.2, silence_s=SILENCE_S),
        )

    async def _register(self) -> None:
        """A real registrar, for as long as the system lives."""
        catalog = self._parts.enter_context(Catalog(None, PARTITIONS))

        def open_producer(partition: int) -> TransactionalProducer:
            return TransactionalProducer(self.connection, f"registrar-{partition}", "registrar")

        registrar = Registrar(self.connection, RegistrarTopics(PARTITIONS), catalog, open_producer, Metrics(), Member())
        await registrar.start()
        running = asyncio.create_task(registrar.run())
        self._parts.push_async_callback(_ended, registrar, running)

    async def _begin(self, part: Any) -> None:
        await part.start()
        self._parts.push_async_callback(part.stop)

    def _hear(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        self.events += [TrainingEvent.decode(record.value) for record in records]
        self._said.set()


async def _ended(registrar: Registrar, running: "asyncio.Task[None]") -> None:
    await registrar.drain()
    await running
