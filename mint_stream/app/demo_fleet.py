"""The demo on a fleet of its own, or on the user's cluster: what is missing is started, and what was started is stopped."""

import tempfile
import time
from pathlib import Path
from typing import Protocol

from mint_stream.app.demo import Demo, DemoReport, DemoSize, Show
from mint_stream.app.local_system import LocalSystem, RoleName
from mint_stream.app.measure import machine, memory_mib, versions
from mint_stream.app.supervisor import ChildChange
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.client import Client
from mint_stream.errors import BrokerFailed
from mint_stream.settings import Settings

ROLES: dict[RoleName, int] = {"register": 1, "serve": 1, "train": 1}


class FleetShow(Show, Protocol):
    """A Show that also hears of processes."""

    def change(self, change: ChildChange) -> None: ...


async def run(settings: Settings, size: DemoSize, show: FleetShow) -> DemoReport:
    """Start a local system for this demo, run it, stop it. Raises what went wrong."""
    begun = time.perf_counter()
    own = settings.kafka.bootstrap_servers is None
    with tempfile.TemporaryDirectory(prefix="mint-demo-") as name:
        room = Path(name)
        system = LocalSystem(_with_room(settings, room), ROLES, show.change)
        show.step("start")
        try:
            await system.start()
            if not await system.ready():
                raise BrokerFailed(f"the local system did not start: {system.given_up}; logs are in {system.log_dir}")
            started_s = time.perf_counter() - begun
            async with Client(system.settings, name="mint-stream/demo") as client:
                demo = Demo(client, system.settings, show, size, room)
                demo.report.kafka_version = LocalKafka.version if own else "your own"
                demo.report.stage_seconds["start"] = round(started_s, 2)
                demo.report.machine = machine() | versions("torch", "transformers", "mint-stream")
                report = await demo.run()
                report.memory_mib = round(memory_mib([*system.pids.values()]))
                return report
        finally:
            await system.stop()


def _with_room(settings: Settings, room: Path) -> Settings:
    """The user's settings, with a fresh log for an embedded broker, and the demo's directory readable as a dataset root."""
    kafka = settings.kafka
    if kafka.bootstrap_servers is None:
        kafka = kafka.model_copy(update={"data_dir": room / "kafka", "port": 0})
    store = settings.store.model_copy(update={"allowed_roots": (*settings.store.allowed_roots, room.as_uri())})
    return settings.model_copy(update={"kafka": kafka, "store": store})
