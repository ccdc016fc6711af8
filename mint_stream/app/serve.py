"""The serve role: one resident base, the local catalog, and requests of many adapters in each step."""

import gc
from contextlib import AsyncExitStack

from mint_stream import contracts
from mint_stream.app import logs
from mint_stream.app.catalog_copy import current_catalog
from mint_stream.app.provisioned import topics
from mint_stream.app.resident import Resident
from mint_stream.app.serve_parts import admission_limits, budgets, intake_limits, kv_cache_bytes, loader, pool_base
from mint_stream.app.shell import Shell
from mint_stream.app.watched import run_watched
from mint_stream.app.workplace import Workplace
from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader
from mint_stream.catalog import Catalog
from mint_stream.client.connect import connection_from
from mint_stream.engine.engine import Engine
from mint_stream.messages.fleet import PoolBase, WorkerState, WorkerStatus
from mint_stream.metrics import Metrics
from mint_stream.model.base import ResidentBase
from mint_stream.settings import Settings
from mint_stream.workers.admission import Admission
from mint_stream.workers.answers import Answers
from mint_stream.workers.canary_tallies import CanaryTallies
from mint_stream.workers.cancellations import Cancellations
from mint_stream.workers.clock import now_ms
from mint_stream.workers.completing import Completer, Identity
from mint_stream.workers.following import follow, previous_in
from mint_stream.workers.interruptions import Interruptions
from mint_stream.workers.lanes import Consequences, Lanes
from mint_stream.workers.leasing import Leasing
from mint_stream.workers.pools import found_pool
from mint_stream.workers.prompts import Prompts
from mint_stream.workers.quarantine import QuarantineReports
from mint_stream.workers.serving import ServingWorker
from mint_stream.workers.shares import TenantShares


async def run(settings: Settings) -> None:
    """Serve until told to stop. Raises a Stop that says what a person has to change."""
    logs.configure(settings.log_json)
    connection, metrics = connection_from(settings), Metrics()
    with Workplace(settings.home, "serve", settings.worker_id) as workplace:
        await Shell((ServeRole(settings, connection, metrics, workplace),), connection, metrics).serve(settings.http)


class ServeRole:
    """Builds the serving worker's parts in the order in which they need each other, and takes them down in reverse."""

    def __init__(
        self, settings: Settings, connection: Connection, metrics: Metrics, workplace: Workplace, resident: Resident | None = None
    ) -> None:
        self._settings = settings
        self._resident = resident or Resident(settings)
        self._connection = connection
        self._metrics = metrics
        self._workplace = workplace
        self._topics = topics(settings)
        self._parts = AsyncExitStack()
        self._interruptions = Interruptions()
        self._engine: Engine | None = None
        self._leasing: Leasing | None = None
        self._tallies: CanaryTallies | None = None
        self._started_at_ms = now_ms()

    async def start(self) -> None:
        """Ready only when the base is loaded and warm, the catalog is current, and cancellations are known."""
        settings = self._settings
        await provision.verify(self._connection, list(self._topics.values()), settings.pool_name)
        base = await self._resident.base()
        producer = Producer(self._connection, source=f"mint-stream/{self._workplace.worker_id}")
        await producer.start()
        self._parts.push_async_callback(producer.stop)
        own = pool_base(base, settings)
        founder = await found_pool(self._connection, producer, own)
        founded = own.model_copy(update={"max_rank": founder.max_rank})  # the registrar lets in what the founder's cap lets in
        copy = current_catalog(self._connection, self._workplace.path / "catalog", self._topics["adapter-revisions"])
        catalog, catalog_reader = await self._parts.enter_async_context(copy)  # before the engine: what still runs may look into it
        pages = kv_cache_bytes(base, settings.serving, self._resident.training_bytes)
        turns = self._resident.turns
        self._engine = Engine(base, budgets(settings.serving), founded.context_tokens, kv_cache_bytes=pages, turns=turns)
        await self._engine.start()
        self._parts.push_async_callback(self._engine.stop)
        cancellation_reader = await self._assemble(base, founded, producer, catalog, self._engine)
        self._readers = (catalog_reader, cancellation_reader)
        gc.freeze()  # base and libraries stay for good: Python's collector need not walk over a million objects beside each load

    async def run(self) -> None:
        """Serve until drained; raise when the engine, the catalog or the intake fails."""
        assert self._engine is not None
        await run_watched(self._worker.run(), (self._engine.watch(), *(reader.run_until_failed() for reader in self._readers)))

    async def drain(self) -> None:
        """Take nothing more, answer what was taken, commit, leave the group."""
        await self._intake.drain(self._settings.serving.drain_s)
        await self._parts.aclose()

    def status(self, state: WorkerState) -> WorkerStatus:
        """What this worker holds and how busy it is."""
        load = self._engine.load if self._engine else None
        return WorkerStatus(
            worker_id=self._workplace.worker_id,
            role="serve",
            pool=self._settings.pool_name,
            state=state,
            running=load.running if load else 0,
            waiting=load.waiting if load else 0,
            parked=self._leasing.parked if self._leasing else 0,
            resident=self._leasing.resident() if self._leasing else (),
            resident_bytes=self._leasing.resident_bytes if self._leasing else 0,
            canaries=self._tallies.told() if self._tallies else (),
            tiers=self._leasing.tiers() if self._leasing else (),
            max_adapters_in_step=self._engine.max_adapters_in_step if self._engine else 0,
            started_at_ms=self._started_at_ms,
            at_ms=now_ms(),
        )

    async def _assemble(self, base: ResidentBase, founded: PoolBase, producer: Producer, catalog: Catalog, engine: Engine) -> LogReader:
        """Everything around the engine, up to the intake. Gives the reader of cancellations."""
        tiers = loader(base, founded, self._settings, self._metrics)
        self._leasing = leasing = self._follow(catalog, Leasing(tiers, self._metrics, previous_in(catalog)))
        self._parts.push_async_callback(leasing.close)
        cancellations, cancellation_reader = await self._known_cancellations()
        answers = Answers(producer, self._topics["inference-replies"].partitions)
        admission = Admission(catalog, Prompts(base.tokenizer), founded, admission_limits(founded, self._settings.serving))
        identity = Identity(self._workplace.worker_id, base.digest, contracts.INFERENCE_BATCH.name(founded.pool))
        completer = Completer(engine, leasing, admission, answers, cancellations, identity)
        self._intake = await self._taking(producer)
        serving = self._settings.serving
        shares = TenantShares(serving.intake_records, serving.tenant_share)
        self._tallies = CanaryTallies(catalog)
        lanes = Lanes(producer, founded.pool, shares, serving.default_deadline_s)
        consequences = Consequences(QuarantineReports(producer), lanes, self._tallies)
        self._worker = ServingWorker(self._intake, completer, answers, consequences, self._metrics, self._interruptions)
        return cancellation_reader

    def _follow(self, catalog: Catalog, leasing: Leasing) -> Leasing:
        """Let the tiers follow the catalog, and count what it applies."""
        follow(catalog, leasing, frozenset(self._settings.serving.pinned_adapters))
        catalog.subscribe(lambda _: self._metrics.catalog_applied_total.inc())
        return leasing

    async def _known_cancellations(self) -> tuple[Cancellations, LogReader]:
        keep_s = self._settings.serving.max_deadline_s
        cancellations = Cancellations(self._interruptions.cancel, keep_s)
        reader = LogReader(self._connection, contracts.INFERENCE_CANCELLATIONS.name(), cancellations.apply)
        await reader.start()
        self._parts.push_async_callback(reader.stop)
        await reader.caught_up()
        return cancellations, reader

    async def _taking(self, producer: Producer) -> Intake:
        pool = self._settings.pool_name
        lanes = [contracts.INFERENCE_REQUESTS.name(pool), contracts.INFERENCE_BATCH.name(pool)]
        limits = intake_limits(self._settings.serving)
        intake = Intake(self._connection, lanes, f"serve-{pool}", DeadLetters(producer), limits, self._workplace.seat())
        await intake.start()
        self._parts.push_async_callback(intake.stop)
        return intake
