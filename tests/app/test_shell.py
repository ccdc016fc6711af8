"""The shell of a role: pages that tell the truth, signals that drain, failures that end the process, status on Kafka."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mint_stream import contracts
from mint_stream.app.probe import free_port, listens
from mint_stream.app.shell import Shell, listen, reachable, security
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import BROKER_LIMIT_BYTES
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.errors import BusUnavailable, EngineFailed, PortTaken
from mint_stream.messages.fleet import WorkerState, WorkerStatus
from mint_stream.metrics import Metrics
from mint_stream.settings import HttpSettings
from tests.provisioned import PARTITIONS, ensure_topics

HOST = "127.0.0.1"


class Steps:
    """A role whose every step waits until the test lets it go on, or fails as it is told."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.started, self.ended, self.drained = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.asked_to_drain = asyncio.Event()
        self.error: Exception | None = None
        self.untold: list[WorkerState] = []
        """States whose next status Kafka will not take."""

    async def start(self) -> None:
        await self.started.wait()

    async def run(self) -> None:
        await self.ended.wait()
        if self.error is not None:
            raise self.error

    async def drain(self) -> None:
        self.asked_to_drain.set()
        await self.drained.wait()
        self.ended.set()

    def status(self, state: WorkerState) -> WorkerStatus:
        resident: tuple[str, ...] = ()
        if state in self.untold:
            self.untold.remove(state)
            resident = ("x" * 2 * BROKER_LIMIT_BYTES,)
        return WorkerStatus(worker_id=self.worker_id, role="serve", state=state, resident=resident, started_at_ms=1, at_ms=1)


class Running:
    """A shell around Steps, its pages and what it said of itself."""

    def __init__(self, connection: Connection, worker_id: str, status_s: float = 60.0) -> None:
        self.role, self.metrics, self.port = Steps(worker_id), Metrics(), free_port()
        shell = Shell((self.role,), connection, self.metrics, status_s)
        self.serving = asyncio.create_task(shell.serve(HttpSettings(host=HOST, port=self.port)))

    async def get(self, page: str) -> tuple[int, str]:
        """Status and body of a page."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        writer.write(f"GET {page} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body

    async def answering(self) -> None:
        while not await listens(HOST, self.port):
            assert not self.serving.done(), self.serving.exception()

    async def becomes(self, state: str) -> None:
        while (await self.get("/health"))[1] != state:
            assert not self.serving.done(), self.serving.exception()

    async def begun(self) -> None:
        """Wait until it is ready."""
        self.role.started.set()
        await self.answering()
        await self.becomes("ready")


class Said:
    """The states that a worker told the fleet."""

    def __init__(self, connection: Connection, worker_id: str) -> None:
        self._key = worker_id.encode()
        self.states: list[str] = []
        self._reader = LogReader(connection, contracts.WORKER_STATUS.name(), self._take, "latest")

    def _take(self, _partition: int, records: Sequence[LogRecord], _next: int) -> None:
        self.states += [WorkerStatus.decode(record.value).state for record in records if record.key == self._key]

    async def __aenter__(self) -> "Said":
        await self._reader.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.stop()

    async def has(self, state: str) -> None:
        """Wait until this state was told."""
        while state not in await self.all():
            await asyncio.sleep(0)

    async def all(self) -> list[str]:
        await self._reader.caught_up()
        return self.states


@asynccontextmanager
async def shell(connection: Connection, worker_id: str, status_s: float = 60.0) -> AsyncIterator[tuple[Running, Said]]:
    await ensure_topics(connection, worker_id)
    async with Said(connection, worker_id) as said:
        running = Running(connection, worker_id, status_s)
        try:
            yield running, said
        finally:
            if not running.serving.done():
                await running.begun()
                running.role.drained.set()
                ask_to_end()
                await running.serving


def ask_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.kafka
async def test_the_pages_tell_how_far_the_role_is(connection: Connection, topic_prefix: str) -> None:
    async with shell(connection, topic_prefix) as (running, said):
        await running.answering()
        assert await running.get("/health") == (200, "starting")
        assert await running.get("/ready") == (503, "starting")
        await running.begun()
        assert await running.get("/ready") == (200, "ready")
        ask_to_end()
        await running.role.asked_to_drain.wait()
        assert await running.get("/ready") == (503, "draining")
        assert await running.get("/health") == (200, "draining")
        assert (await running.get("/metrics"))[0] == 200
        assert not running.serving.done()
        running.role.drained.set()
        await running.serving
        assert await said.all() == ["ready", "draining", "stopped"]
        assert not await listens(HOST, running.port)


@pytest.mark.kafka
async def test_the_metrics_page_is_the_roles_own(connection: Connection, topic_prefix: str) -> None:
    async with shell(connection, topic_prefix) as (running, _):
        running.metrics.requests_total.labels("ok").inc(3)
        await running.answering()
        status, body = await running.get("/metrics")
        assert status == 200 and 'mint_requests_total{outcome="ok"} 3.0' in body
        assert (await running.get("/nothing-here"))[0] == 404


@pytest.mark.kafka
async def test_a_second_signal_while_draining_changes_nothing(connection: Connection, topic_prefix: str) -> None:
    async with shell(connection, topic_prefix) as (running, said):
        await running.begun()
        ask_to_end()
        await running.role.asked_to_drain.wait()
        ask_to_end()
        assert await running.get("/ready") == (503, "draining")
        running.role.drained.set()
        await running.serving
        assert await said.all() == ["ready", "draining", "stopped"]


@pytest.mark.kafka
async def test_two_roles_of_one_process_are_told_of_both_and_end_together(connection: Connection, topic_prefix: str) -> None:
    await ensure_topics(connection, topic_prefix)
    roles = [Steps(f"{topic_prefix}-{number}") for number in range(2)]
    async with Said(connection, roles[0].worker_id) as one, Said(connection, roles[1].worker_id) as other:
        serving = asyncio.create_task(Shell(roles, connection, Metrics(), 60.0).serve(HttpSettings(host=HOST, port=0)))
        for role in roles:
            role.started.set()
        await one.has("ready")
        ask_to_end()
        for role in roles:
            await role.asked_to_drain.wait()
            role.drained.set()
        await serving
        for said in (one, other):
            assert await said.all() == ["ready", "draining", "stopped"]


@pytest.mark.kafka
async def test_a_role_that_fails_takes_the_other_one_of_its_process_with_it(connection: Connection, topic_prefix: str) -> None:
    await ensure_topics(connection, topic_prefix)
    good, bad = Steps(f"{topic_prefix}-good"), Steps(f"{topic_prefix}-bad")
    bad.error = EngineFailed("the engine is gone")
    for event in (good.started, bad.started, bad.ended):
        event.set()
    with pytest.raises(EngineFailed, match="the engine is gone"):
        await Shell([good, bad], connection, Metrics(), 60.0).serve(HttpSettings(host=HOST, port=0))


@pytest.mark.kafka
async def test_a_signal_before_the_role_is_ready_ends_it_without_a_drain(connection: Connection, topic_prefix: str) -> None:
    async with shell(connection, topic_prefix) as (running, said):
        await running.answering()
        ask_to_end()
        await running.serving
        assert not running.role.asked_to_drain.is_set()
        assert await said.all() == ["stopped"]


@pytest.mark.kafka
async def test_a_role_that_fails_ends_the_process_with_its_error(connection: Connection, topic_prefix: str) -> None:
    async with shell(connection, topic_prefix) as (running, said):
        running.role.error = EngineFailed("the engine is gone")
        await running.begun()
        running.role.ended.set()
        with pytest.raises(EngineFailed, match="the engine is gone"):
            await running.serving
        assert (await said.all())[-1] == "stopped"
        assert not running.role.asked_to_drain.is_set()


@pytest.mark.kafka
async def test_a_role_that_fails_while_it_drains_ends_with_its_error_too(connection: Connection, topic_prefix: str) -> None:
    async with shell(connection, topic_prefix) as (running, said):
        running.role.error = EngineFailed("at the last moment")
        await running.begun()
        ask_to_end()
        running.role.drained.set()
        with pytest.raises(EngineFailed, match="at the last moment"):
            await running.serving
        assert (await said.all())[-1] == "stopped"


@pytest.mark.kafka
async def test_a_drain_that_fails_is_told_and_leaves_nothing_running(connection: Connection, topic_prefix: str) -> None:
    class Stubborn(Steps):
        async def drain(self) -> None:
            raise EngineFailed("cannot finish")

    await ensure_topics(connection, topic_prefix)
    running = Running(connection, topic_prefix)
    running.role.__class__ = Stubborn
    await running.begun()
    ask_to_end()
    with pytest.raises(EngineFailed, match="cannot finish"):
        await running.serving
    assert not await listens(HOST, running.port)


@pytest.mark.kafka
async def test_a_status_that_could_not_be_told_is_followed_by_the_next(connection: Connection, topic_prefix: str) -> None:
    async with shell(connection, topic_prefix, status_s=0.01) as (running, said):
        running.role.untold = ["ready", "ready"]
        await running.begun()
        await said.has("ready")
        assert not running.role.untold


@pytest.mark.kafka
async def test_a_drain_that_could_not_be_told_is_a_drain_all_the_same(connection: Connection, topic_prefix: str) -> None:
    async with shell(connection, topic_prefix) as (running, said):
        running.role.untold = ["draining"]
        await running.begun()
        ask_to_end()
        await running.role.asked_to_drain.wait()
        running.role.drained.set()
        await running.serving
        assert await said.all() == ["ready", "stopped"]


@pytest.mark.kafka
async def test_a_taken_port_is_said_before_the_role_starts(connection: Connection, topic_prefix: str) -> None:
    role = Steps(topic_prefix)
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port} cannot be listened on .*MINT_HTTP__PORT=0"):
            await Shell((role,), connection, Metrics()).serve(HttpSettings(host=HOST, port=port))


def test_port_0_is_any_free_one() -> None:
    with listen(HttpSettings(host=HOST, port=0)) as listener:
        assert listener.getsockname()[1] > 0


async def test_no_broker_is_said_when_the_patience_ends() -> None:
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:9"):
        await reachable(Connection("127.0.0.1:9"), patience_s=0.0)


@pytest.mark.parametrize(
    ("connection", "kind", "tls"),
    [
        (Connection("a:1"), None, None),
        (Connection("a:1", "SSL"), "BaseSecurity", True),
        (Connection("a:1", "SASL_PLAINTEXT", "PLAIN", "u", "p"), "SASLPlaintext", False),
        (Connection("a:1", "SASL_SSL", "SCRAM-SHA-256", "u", "p"), "SASLScram256", True),
        (Connection("a:1", "SASL_SSL", "SCRAM-SHA-512", "u", "p"), "SASLScram512", True),
    ],
    ids=str,
)
def test_the_control_broker_gets_in_as_every_other_client_does(connection: Connection, kind: str | None, tls: bool | None) -> None:
    made = security(connection)
    assert (type(made).__name__ if made else None) == kind
    assert (made.use_ssl if made else None) == tls
    assert (getattr(made, "username", "u"), getattr(made, "password", "p")) == ("u", "p")


@pytest.mark.kafka
async def test_sigterm_ends_a_real_role_with_exit_code_0(connection: Connection, topic_prefix: str, tmp_path: Path) -> None:
    """A registrar as its own process: ready, drained, gone, and the fleet was told."""
    await ensure_topics(connection, topic_prefix)
    port = free_port()
    environment = {
        **os.environ,
        "MINT_HOME": str(tmp_path),
        "MINT_WORKER_ID": topic_prefix,
        "MINT_PARTITIONS": str(PARTITIONS),
        "MINT_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "MINT_HTTP__PORT": str(port),
        "MINT_LOG_JSON": "true",
    }
    async with Said(connection, topic_prefix) as said:
        command = [sys.executable, "-m", "mint_stream.cli.main", "register"]
        process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
        lines = await until_ready(process)
        process.send_signal(signal.SIGTERM)
        _, rest = await process.communicate()
        assert process.returncode == 0, rest
        assert f"http://127.0.0.1:{port}/health /ready /metrics" in lines
        states = await said.all()
        assert (states[0], states[-2:]) == ("ready", ["draining", "stopped"])


async def until_ready(process: asyncio.subprocess.Process) -> str:
    """What the process said until it was ready."""
    assert process.stderr is not None
    lines = ""
    async for line in process.stderr:
        lines += line.decode()
        if b'"message": "ready"' in line:
            return lines
    raise AssertionError(lines)
