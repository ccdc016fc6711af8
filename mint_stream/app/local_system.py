"""A whole mint_stream on this machine: an embedded Kafka unless there is one, its topics, and a supervised process a role.

broker listening ─► topics applied ─► base there ─► roles started ─► each ready          stop: roles drain ─► broker ends
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from mint_stream.app.child import Child, ChildCommand, Echo
from mint_stream.app.environment import environment_of
from mint_stream.app.measure import memory_mib
from mint_stream.app.probe import answers_ready, free_port, require_free, reserved_port
from mint_stream.app.provisioned import topics
from mint_stream.app.restarts import RestartPolicy
from mint_stream.app.supervisor import ChildChange, Supervisor
from mint_stream.bus import provision
from mint_stream.bus.kafka_process import serves
from mint_stream.client.connect import connection_from
from mint_stream.errors import BaseUnusable, BrokerFailed
from mint_stream.model.pull import BUILTIN
from mint_stream.settings import Settings

RoleName = Literal["register", "serve", "train", "work", "evaluate"]

_WITH_BASE: tuple[RoleName, ...] = ("serve", "train", "work")
BROKER = "kafka"
_HOST = "127.0.0.1"
_BROKER_START_S = 300.0
"""Long enough for the first download of its parts."""
_PROBE_S = 0.2


def role_command(name: str, role: str, settings: Settings) -> ChildCommand:
    """`mint-stream <role>` as a child that loads exactly these settings."""
    arguments = (sys.executable, "-m", "mint_stream.cli.main", *role.split())
    # Idle OpenMP threads that spin would starve the other roles on this machine.
    return ChildCommand(name, arguments, {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", **environment_of(settings)})


class LocalSystem:
    """Starts everything in order, keeps it running, and ends it in the opposite order.

    `settings` is what a client of it needs: once started its bootstrap servers are set."""

    def __init__(
        self,
        settings: Settings,
        counts: Mapping[RoleName, int],
        report: Callable[[ChildChange], None],
        echo: Echo | None = None,
        policy: RestartPolicy | None = None,
    ) -> None:
        self.settings = settings
        self._counts = counts
        self._report = report
        self._echo = echo
        self._policy = policy
        self._broker: Supervisor | None = None
        self._roles: Supervisor | None = None
        self._ready_ports: dict[str, int] = {}
        self._held = ExitStack()

    @property
    def ports(self) -> dict[str, int]:
        """The port of every role's pages."""
        return dict(self._ready_ports)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of what runs now, the broker as `kafka`."""
        return {name: pid for part in (self._broker, self._roles) if part is not None for name, pid in part.pids.items()}

    @property
    def given_up(self) -> dict[str, str]:
        """What will not start again, with the last line each said."""
        return {name: line for part in (self._broker, self._roles) if part is not None for name, line in part.given_up.items()}

    @property
    def log_dir(self) -> Path:
        """Each child has a file here."""
        return self.settings.home.expanduser().absolute() / "logs"

    async def start(self) -> None:
        """Start everything; returns when the role processes run. Raises PortTaken, BrokerFailed, BaseUnusable and more."""
        if self.settings.kafka.bootstrap_servers is None:
            await self._start_broker()
        await provision.apply(connection_from(self.settings), list(topics(self.settings).values()), self.settings.pool_name)
        if sum(self._counts.get(role, 0) for role in _WITH_BASE) and self.settings.base in BUILTIN:
            await self._pull_base()
        self._roles = self._supervisor(self._role_commands())
        await self._roles.start()

    async def ready(self) -> bool:
        """Wait until every role answers that it is ready; False when one was given up instead (`given_up` says which)."""
        return all(await asyncio.gather(*(self._role_ready(name, port) for name, port in self._ready_ports.items())))

    async def tell_memory(self) -> None:
        """Report what the processes hold together."""
        held = await asyncio.to_thread(memory_mib, tuple(self.pids.values()))
        self._report(ChildChange("all", "memory", f"{held:,.0f} MiB in {len(self.pids)} processes"))

    async def wait(self) -> None:
        """Until nothing is left to keep running."""
        parts = [part.wait() for part in (self._broker, self._roles) if part is not None]
        await asyncio.gather(*parts)

    async def stop(self, grace_s: float = 30.0) -> None:
        """Let the roles drain, then end the broker."""
        for part in (self._roles, self._broker):
            if part is not None:
                await part.stop(grace_s)
        self._held.close()

    def _supervisor(self, commands: list[ChildCommand]) -> Supervisor:
        return Supervisor(commands, self.log_dir, self._report, self._policy, self._echo)

    async def _start_broker(self) -> None:
        port = self.settings.kafka.port or free_port()
        require_free(_HOST, port, f"set MINT_KAFKA__PORT, or use what runs there with --bootstrap {_HOST}:{port}")
        own = self.settings.kafka.model_copy(update={"port": port})
        self._broker = self._supervisor([role_command(BROKER, "kafka", self.settings.model_copy(update={"kafka": own}))])
        await self._broker.start()
        try:
            async with asyncio.timeout(_BROKER_START_S):
                listening = await self._until(lambda: asyncio.to_thread(serves, _HOST, port), BROKER)
        except TimeoutError as error:
            raise BrokerFailed(f"Kafka did not serve within {_BROKER_START_S:g} s; see {self._broker.log_path(BROKER)}") from error
        if not listening:
            raise BrokerFailed(f"Kafka could not be started: {self.given_up[BROKER]}")
        reachable = own.model_copy(update={"bootstrap_servers": f"{_HOST}:{port}"})
        self.settings = self.settings.model_copy(update={"kafka": reachable})
        self._report(ChildChange(BROKER, "ready", f"ready at {_HOST}:{port}"))

    async def _role_ready(self, name: str, port: int) -> bool:
        ready = await self._until(lambda: answers_ready(_HOST, port), name)
        if ready:
            self._report(ChildChange(name, "ready", f"ready: http://{_HOST}:{port}/metrics", self.pids.get(name)))
        return ready

    async def _until(self, probe: Callable[[], Awaitable[bool]], name: str) -> bool:
        while name not in self.given_up:
            if await probe():
                return True
            await asyncio.sleep(_PROBE_S)
        return False

    async def _pull_base(self) -> None:
        command = role_command("base-pull", f"base pull {self.settings.base}", self.settings)
        child = await Child.start(command, self.log_dir / "base-pull.log", self._echo)
        try:
            code = await child.ended()
        except asyncio.CancelledError:
            child.kill()
            raise
        if code:
            raise BaseUnusable(f"base {self.settings.base} could not be fetched: {child.last_line}")

    def _role_commands(self) -> list[ChildCommand]:
        commands = []
        for role, count in self._counts.items():
            for number in range(1, count + 1):
                name = role if number == 1 else f"{role}-{number}"
                holder = self._held.enter_context(reserved_port(_HOST))  # a role restarts, and each time it needs its port again
                http = self.settings.http.model_copy(update={"host": _HOST, "port": holder.getsockname()[1]})
                self._ready_ports[name] = http.port
                own = {"http": http, "worker_id": f"{self.settings.worker_id}-{name}" if self.settings.worker_id else None}
                commands.append(role_command(name, role, self.settings.model_copy(update=own)))
        return commands
