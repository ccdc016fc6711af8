"""A whole system for a benchmark: its own broker, registrar, serving worker and, where asked for, a trainer that tells its times."""

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mint_stream.app.child import ChildCommand
from mint_stream.app.demo_adapters import linears_of
from mint_stream.app.importing import publish
from mint_stream.app.local_system import LocalSystem, RoleName, role_command
from mint_stream.app.supervisor import ChildChange, Supervisor
from mint_stream.bench.workload import drawn_adapter
from mint_stream.bench.wrong import WrongResult
from mint_stream.client import Client
from mint_stream.errors import BrokerFailed
from mint_stream.messages.adapters import Revision, RevisionAnnounced
from mint_stream.model.pull import resolve_base
from mint_stream.settings import Settings
from mint_stream.store import Store

ROLES: dict[RoleName, int] = {"register": 1, "serve": 1}
TRAINER = "train"


@dataclass(frozen=True)
class Fleet:
    """A running system and a client of it. `room` is a directory of the benchmark's own, where datasets may be read from."""

    settings: Settings
    client: Client
    room: Path
    base: Path

    @property
    def stamps(self) -> Path:
        """What the trainer wrote down; see stamps.py."""
        return self.room / "stamps.txt"

    async def publish(self, adapter_id: str, rank: int, seed: int) -> RevisionAnnounced:
        """Make an adapter of random numbers the next revision of `adapter_id`. Raises as `import_adapter`."""
        base = await self.client.pool_base()
        event = await publish(self.client, self.settings, adapter_id, drawn_adapter(linears_of(base), rank, seed), base)
        if not isinstance(event, RevisionAnnounced):
            raise WrongResult(f"{adapter_id} was not announced: {event}")
        return event

    def as_peft(self, revision: Revision) -> Path:
        """The revision's files in a directory of their own, as PEFT reads them."""
        directory = self.room / "peft" / revision.adapter_id / str(revision.number)
        directory.mkdir(parents=True)
        store = Store(self.settings.store_uri, self.settings.store.options)
        for name, content in store.read_revision(revision.uri or "").items():
            (directory / name).write_bytes(content)
        return directory


@asynccontextmanager
async def fleet(settings: Settings, trainer: bool = False) -> AsyncIterator[Fleet]:
    """Start everything below a temporary directory (or on the user's Kafka), and take it down. Raises BrokerFailed, BaseUnusable."""
    base = resolve_base(settings.base, settings.home)
    async with AsyncExitStack() as parts:
        room = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="mint-bench-")))
        system = LocalSystem(_in_room(settings, room, base), ROLES, _unsaid)
        parts.push_async_callback(system.stop)
        await system.start()
        if not await system.ready():
            raise BrokerFailed(f"the system of the benchmark did not start: {system.given_up}")
        client = await parts.enter_async_context(Client(system.settings, name="mint-stream/bench"))
        running = Fleet(system.settings, client, room, base)
        if trainer:
            supervisor = Supervisor([_trainer(running)], system.log_dir, _unsaid)
            parts.push_async_callback(supervisor.stop)
            await supervisor.start()
        yield running


def _trainer(running: Fleet) -> ChildCommand:
    command = role_command(TRAINER, TRAINER, running.settings)
    return replace(command, arguments=(sys.executable, "-m", "mint_stream.bench.stamped_trainer", str(running.stamps)))


def _in_room(settings: Settings, room: Path, base: Path) -> Settings:
    """The user's settings with all local state in the room, and the base by its path."""
    kafka = settings.kafka if settings.kafka.bootstrap_servers else settings.kafka.model_copy(update={"data_dir": None, "port": 0})
    store = settings.store.model_copy(update={"allowed_roots": (*settings.store.allowed_roots, room.as_uri())})
    changes = {"base": str(base), "pool": settings.pool_name, "home": room, "kafka": kafka, "store": store}
    return settings.model_copy(update=changes)


def _unsaid(_: ChildChange) -> None:
    """A benchmark prints its result alone."""
