"""The register role: the one writer of the catalog, by partition; run as many as you like."""

from contextlib import AsyncExitStack

from mint_stream.app import logs
from mint_stream.app.provisioned import topics
from mint_stream.app.shell import Shell
from mint_stream.app.workplace import Workplace
from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.catalog import Catalog
from mint_stream.client.connect import connection_from
from mint_stream.messages.fleet import WorkerState, WorkerStatus
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings
from mint_stream.workers.catalog_writer import RegistrarTopics
from mint_stream.workers.clock import now_ms
from mint_stream.workers.registrar import Member, Registrar


async def run(settings: Settings) -> None:
    """Register until told to stop. Raises a Stop that says what a person has to change."""
    logs.configure(settings.log_json)
    connection, metrics = connection_from(settings), Metrics()
    with Workplace(settings.home, "register", settings.worker_id) as workplace:
        await Shell((RegisterRole(settings, connection, metrics, workplace),), connection, metrics).serve(settings.http)


class RegisterRole:
    """A registrar with a catalog of its own."""

    def __init__(self, settings: Settings, connection: Connection, metrics: Metrics, workplace: Workplace) -> None:
        self._settings = settings
        self._connection = connection
        self._metrics = metrics
        self._workplace = workplace
        self._parts = AsyncExitStack()
        self._started_at_ms = now_ms()

    async def start(self) -> None:
        """Ready when it has joined the group; partitions are taken over as they come."""
        declared = topics(self._settings)
        ours = [topic for topic in declared.values() if "register" in (*topic.producers, *topic.consumers)]
        await provision.verify(self._connection, ours, self._settings.pool_name)
        partitions = declared["adapter-commands"].partitions
        catalog = self._parts.enter_context(Catalog(self._workplace.path / "catalog", partitions))
        member = Member(seat=self._workplace.seat())
        self._registrar = Registrar(self._connection, RegistrarTopics(partitions), catalog, self._producer, self._metrics, member)
        await self._registrar.start()

    async def run(self) -> None:
        """Carry out commands until drained."""
        await self._registrar.run()

    async def drain(self) -> None:
        """Finish what is begun and leave the group."""
        await self._registrar.drain()
        await self._parts.aclose()

    def status(self, state: WorkerState) -> WorkerStatus:
        """That it is there."""
        return WorkerStatus(
            worker_id=self._workplace.worker_id, role="register", state=state, started_at_ms=self._started_at_ms, at_ms=now_ms()
        )

    def _producer(self, partition: int) -> TransactionalProducer:
        return TransactionalProducer(self._connection, f"registrar-{partition}", f"mint-stream/{self._workplace.worker_id}")
