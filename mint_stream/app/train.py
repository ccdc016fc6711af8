"""The train role: one resident base, jobs from Kafka, checkpoints and revisions to the store."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

from mint_stream import contracts
from mint_stream.app import logs
from mint_stream.app.catalog_copy import current_catalog
from mint_stream.app.provisioned import topics
from mint_stream.app.resident import Resident
from mint_stream.app.serve_parts import pool_base
from mint_stream.app.shell import Shell
from mint_stream.app.watched import run_watched
from mint_stream.app.workplace import Workplace
from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake, IntakeLimits
from mint_stream.bus.producer import Producer
from mint_stream.bus.requests import RequestReply
from mint_stream.client.connect import connection_from
from mint_stream.messages.fleet import PoolBase, WorkerState, WorkerStatus
from mint_stream.metrics import Metrics
from mint_stream.model.base import ResidentBase
from mint_stream.model.recompute import recompute_layers
from mint_stream.settings import Settings
from mint_stream.store import Store, read_uri
from mint_stream.trainer.trainer import Trainer
from mint_stream.trainer.workshop import Workshop
from mint_stream.workers.clock import now_ms
from mint_stream.workers.commands import Commands
from mint_stream.workers.effects import After
from mint_stream.workers.insisting import AskingLimits, Insisting
from mint_stream.workers.job_log import JobLog
from mint_stream.workers.job_runner import JobRunner
from mint_stream.workers.parking import Parking
from mint_stream.workers.pass_loop import PassLoop
from mint_stream.workers.pools import found_pool
from mint_stream.workers.quotas import Quota, Quotas
from mint_stream.workers.rollouts import Policies, Rollouts
from mint_stream.workers.seats import Seats
from mint_stream.workers.torch_thread import TorchThread
from mint_stream.workers.training import TrainingWorker
from mint_stream.workers.training_parts import TrainingBus, TrainingRoom, TrainingTerms

QUEUED_JOBS = 256
SHOP_THREADS = 4
"""Prepare jobs and write checkpoints beside the passes; most of that is waiting for the store."""
ROLLOUTS = AskingLimits(at_once=128, timeout_s=300.0, silences=3)
"""Of all jobs together: as many as keep a few serving workers busy. A job of a pool that nobody serves ends after a quarter of an hour."""
TAKEOVERS_BEFORE_SUSPECT = 20
"""A job outlives many workers: machines are reclaimed and restarted under it, and each time it goes on from its checkpoint."""


async def run(settings: Settings) -> None:
    """Train until told to stop. Raises a Stop that says what a person has to change."""
    logs.configure(settings.log_json)
    connection, metrics = connection_from(settings), Metrics()
    with Workplace(settings.home, "train", settings.worker_id) as workplace:
        await Shell((TrainRole(settings, connection, metrics, workplace),), connection, metrics).serve(settings.http)


def nothing(_effect: str) -> None:
    """What a real worker does after an effect."""


def quotas(settings: Settings) -> Quotas:
    """What tenants may have here."""
    return Quotas({tenant: Quota(quota.jobs, quota.tokens) for tenant, quota in settings.training.quotas.items()})


class TrainRole:
    """Builds the training worker's parts in the order in which they need each other, and takes them down in reverse."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        metrics: Metrics,
        workplace: Workplace,
        after: After = nothing,
        resident: Resident | None = None,
    ) -> None:
        self._settings = settings
        self._resident = resident or Resident(settings)
        self._connection = connection
        self._metrics = metrics
        self._workplace = workplace
        self._after = after
        self._topics = topics(settings)
        self._parts = AsyncExitStack()
        self._torch = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch")
        self._shop = ThreadPoolExecutor(max_workers=SHOP_THREADS, thread_name_prefix="shop")
        self._seats = Seats(settings.training.max_jobs, settings.training.state_bytes)
        self._worker: TrainingWorker | None = None
        self._started_at_ms = now_ms()

    async def start(self) -> None:
        """Ready only when the base is loaded, the catalog is current, and all that was said of jobs is known."""
        settings = self._settings
        await provision.verify(self._connection, list(self._topics.values()), settings.pool_name)
        for threads in (self._torch, self._shop):
            self._parts.callback(threads.shutdown)
        base = await self._resident.base()
        producer = Producer(self._connection, source=f"mint-stream/{self._workplace.worker_id}")
        await producer.start()
        self._parts.push_async_callback(producer.stop)
        founder = await found_pool(self._connection, producer, pool_base(base, settings))
        trainer, workshop = await asyncio.get_running_loop().run_in_executor(self._torch, self._equipped, base, founder)
        passes = PassLoop(TorchThread(self._torch), trainer, self._after, self._resident.turns)
        await self._assemble(TrainingRoom(workshop, TorchThread(self._shop), passes, self._seats), producer)

    async def run(self) -> None:
        """Train until drained; raise when the log, the catalog or the intake fails."""
        assert self._worker is not None
        await run_watched(self._worker.run(), (part.run_until_failed() for part in self._readers))

    async def drain(self) -> None:
        """Let go of every running job after its step, leave the group."""
        assert self._worker is not None
        await self._worker.drain()
        await self._parts.aclose()

    def status(self, state: WorkerState) -> WorkerStatus:
        """How busy this worker is."""
        taken = self._worker.open_jobs if self._worker else 0
        return WorkerStatus(
            worker_id=self._workplace.worker_id,
            role="train",
            pool=self._settings.pool_name,
            state=state,
            running=self._seats.taken,
            waiting=max(taken - self._seats.taken, 0),
            started_at_ms=self._started_at_ms,
            at_ms=now_ms(),
        )

    def _equipped(self, base: ResidentBase, founder: PoolBase) -> tuple[Trainer, Workshop]:
        """Everything that needs torch. Checks the base by passes of its own, so it belongs on torch's thread."""
        settings, limits = self._settings, self._settings.training
        if limits.recompute:
            recompute_layers(base.packed)
        trainer = Trainer(base.packed, limits.max_num_batched_tokens)
        store = Store(settings.store_uri, settings.store.options)
        return trainer, Workshop(base, store, self._read, founder.max_rank, limits.max_num_batched_tokens, limits.checkpoints_kept)

    def _read(self, uri: str) -> bytes:
        settings = self._settings
        roots = (settings.store_uri, *settings.store.allowed_roots)
        return read_uri(uri, roots, settings.training.max_dataset_bytes, settings.store.options)

    async def _assemble(self, room: TrainingRoom, producer: Producer) -> None:
        settings, pool = self._settings, self._settings.pool_name
        copy = current_catalog(self._connection, self._workplace.path / "catalog", self._topics["adapter-revisions"])
        catalog, catalog_reader = await self._parts.enter_async_context(copy)
        commands, log = Commands(self._connection, producer), JobLog(self._connection)
        replies = RequestReply(self._connection, producer)
        for part in (commands, log, replies):
            await part.start()
            self._parts.push_async_callback(part.stop)
        terms = TrainingTerms(
            self._workplace.worker_id, pool, settings.training.heartbeat_s, settings.training.silence_s, quotas=quotas(settings)
        )
        rollouts = Rollouts(Insisting(replies, ROLLOUTS), Policies(catalog, catalog_reader.caught_up, pool))
        bus = TrainingBus(producer, commands, log, catalog, catalog_reader.caught_up, rollouts)
        runner = JobRunner(bus, room, terms, self._metrics, self._after)
        limits = IntakeLimits(max_records=QUEUED_JOBS, takeovers_before_suspect=TAKEOVERS_BEFORE_SUSPECT)
        group, jobs = f"train-{pool}", contracts.TRAINING_JOBS.name(pool)
        intake = Intake(self._connection, [jobs], group, DeadLetters(producer), limits, self._workplace.seat())
        self._worker = TrainingWorker(intake, runner, producer, self._topics["training-jobs"], terms, self._after)
        parking = Parking(log, producer, pool, self._worker.owns, terms.heartbeat_s)
        self._readers = (catalog_reader, commands, log, replies, parking)
        await intake.start()
        self._parts.push_async_callback(intake.stop)
