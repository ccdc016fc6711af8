"""`mint-stream up`: a broker, its topics and the roles, kept running and ended in order."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mint_stream.app.local_system import LocalSystem
from mint_stream.app.restarts import RestartPolicy
from mint_stream.app.supervisor import ChildChange
from mint_stream.app.up import run
from mint_stream.bus.kafka_process import serves
from mint_stream.client import Client
from mint_stream.errors import BaseUnusable, CommandRejected, PortTaken
from mint_stream.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.long, pytest.mark.timeout(240)]


class Started:
    """A local system with a registrar, and what it reported."""

    def __init__(self, home: Path, counts: dict[str, int] | None = None, **kafka) -> None:
        self.changes: asyncio.Queue[ChildChange] = asyncio.Queue()
        settings = Settings.load(home=home, pool="p", partitions=2, kafka={"port": 0, "heap_mib": 256, **kafka})
        policy = RestartPolicy(first_delay_s=0.05, crashes_allowed=4)
        self.system = LocalSystem(settings, {"register": 1} if counts is None else counts, self.changes.put_nowait, policy=policy)

    async def next(self, name: str, what: str) -> ChildChange:
        while ((change := await self.changes.get()).name, change.what) != (name, what):
            pass
        return change


async def test_killed_roles_and_a_killed_broker_come_back_and_sigterm_ends_all(tmp_path):
    started = Started(tmp_path)
    running = asyncio.create_task(run(started.system))
    await started.next("register", "ready")
    assert (await started.next("all", "memory")).sentence.endswith(" MiB in 2 processes")
    pids = started.system.pids
    os.kill(pids["register"], signal.SIGKILL)
    assert (await started.next("register", "started")).pid != pids["register"]
    assert await started.system.ready()
    os.kill(pids["kafka"], signal.SIGKILL)
    await started.next("kafka", "crashed")
    await started.next("kafka", "started")
    host, _, port = str(started.system.settings.kafka.bootstrap_servers).partition(":")
    while not await asyncio.to_thread(serves, host, int(port)):
        pass
    async with Client(started.system.settings) as client:
        with pytest.raises(CommandRejected, match="nobody"):
            await client.set_rule("nobody", "manual", timeout_s=100)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running is True
    assert started.system.pids == {}


async def test_a_taken_port_is_said_before_anything_is_started(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"{port}.*--bootstrap"):
            await Started(tmp_path, port=port).system.start()


async def test_a_role_that_cannot_start_is_given_up_and_said(tmp_path, connection):
    """A serving worker without its base: a Stop error, so it is not tried again."""
    started = Started(tmp_path, {"serve": 1}, bootstrap_servers=connection.bootstrap_servers)
    started.system.settings = started.system.settings.model_copy(update={"base": str(tmp_path / "nowhere"), "partitions": 4})
    await started.system.start()
    assert await started.system.ready() is False
    assert "base-unusable" in started.system.given_up["serve"]
    await started.system.stop()


async def test_a_base_that_cannot_be_fetched_stops_the_start(tmp_path, connection, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    started = Started(tmp_path, {"serve": 1}, bootstrap_servers=connection.bootstrap_servers)
    started.system.settings = started.system.settings.model_copy(update={"partitions": 4})
    with pytest.raises(BaseUnusable, match="smollm2-135m"):
        await started.system.start()
    await started.system.stop()


def test_the_command_drains_on_ctrl_c(tmp_path):
    """As a user sees it: up, ready, Ctrl-C, exit code 0, nothing left."""
    arguments = ["up", "--servers", "0", "--trainers", "0", "--registrars", "1", "--json", "--home", str(tmp_path)]
    environment = {**os.environ, "MINT_KAFKA__PORT": "0", "MINT_PARTITIONS": "2", "MINT_KAFKA__HEAP_MIB": "256"}
    command = [sys.executable, "-m", "mint_stream.cli.main", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        while not ('"register"' in (line := next(lines)) and '"ready"' in line):
            pass
        process.send_signal(signal.SIGINT)
        rest = list(lines)
        assert process.wait() == 0
    assert [line for line in rest if '"stopped"' in line and '"kafka"' in line]
