"""The application shell of a process: FastStream's ASGI application around its roles, signals that drain, status on Kafka, three pages.

SIGTERM / SIGINT ─► not ready ─► drain(), pages still there ─► status "stopped" ─► exit 0
a role fails     ─► exit with its error
"""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import uvicorn
from faststream.asgi import AsgiFastStream, AsgiResponse, get
from faststream.kafka import KafkaBroker
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.errors import BusUnavailable, PortTaken
from mint_stream.messages.fleet import WorkerState, WorkerStatus
from mint_stream.metrics import Metrics
from mint_stream.settings import HttpSettings

log = logging.getLogger(__name__)

STATUS_S = 5.0
TELL_S = 5.0
"""How long one status may take to be told."""
PATIENCE_S = 60.0
"""How long a role waits for a broker before it gives up."""
RETRY_S = 2.0
_SASL = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}


class Role(Protocol):
    """What the shell runs. `start` until ready, `run` until drained, `drain` finishes what was begun."""

    async def start(self) -> None: ...

    async def run(self) -> None: ...

    async def drain(self) -> None: ...

    def status(self, state: WorkerState) -> WorkerStatus: ...


class Shell:
    """The roles of one process, mostly one."""

    def __init__(self, roles: Sequence[Role], connection: Connection, metrics: Metrics, status_s: float = STATUS_S) -> None:
        """They start one after the other. The status of each is told every `status_s`."""
        self._status_s = status_s
        self._roles = tuple(roles)
        self._metrics = metrics
        self._connection = connection
        self._broker = fleet_broker(connection)
        self._publisher = self._broker.publisher(contracts.WORKER_STATUS.name(), schema=WorkerStatus)
        self._state: WorkerState = "starting"
        self._life: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._server: _Server | None = None
        self._telling = asyncio.Lock()

    async def serve(self, http: HttpSettings) -> None:
        """Run until a signal or a failure. Raises what ended the role, and BusUnavailable when no broker answers for a minute."""
        await reachable(self._connection)
        listener = listen(http)
        host, port = listener.getsockname()[:2]
        log.info("http://%s:%d/health /ready /metrics", host, port)
        config = uvicorn.Config(self._application(), log_level="warning", access_log=False, lifespan="on", log_config=None)
        self._server = _Server(config, self._asked_to_end)
        await self._server.serve([listener])
        if self._life is None:
            raise BusUnavailable(f"Kafka at {self._connection.bootstrap_servers} went away while this role started: start it again")
        for task in (self._life, self._draining):
            if task is not None and task.done() and not task.cancelled():
                task.result()

    def _application(self) -> AsgiFastStream:
        pages = [("/health", get(self._health)), ("/ready", get(self._ready)), ("/metrics", get(self._exposition))]
        return AsgiFastStream(self._broker, asgi_routes=pages, after_startup=[self._begin], on_shutdown=[self._end], logger=None)

    async def _health(self, scope: Any) -> AsgiResponse:
        return AsgiResponse(self._state.encode(), 200)

    async def _ready(self, scope: Any) -> AsgiResponse:
        return AsgiResponse(self._state.encode(), 200 if self._state == "ready" else 503)

    async def _exposition(self, scope: Any) -> AsgiResponse:
        return AsgiResponse(self._metrics.exposition(), 200, {"content-type": "text/plain; version=0.0.4"})

    async def _begin(self) -> None:
        self._life = asyncio.create_task(self._live())
        self._life.add_done_callback(self._leave)

    def _asked_to_end(self) -> None:
        """A role that is ready drains first, while the pages go on telling; one that is not has nothing to finish."""
        if self._state == "ready" and self._life is not None and not self._life.done():
            self._state = "draining"
            self._draining = asyncio.create_task(self._drain())
            self._draining.add_done_callback(self._leave)
        elif self._draining is None:
            self._leave()

    async def _drain(self) -> None:
        log.info("draining: finishing what was begun")
        await self._tell()
        await asyncio.gather(*(role.drain() for role in self._roles))

    def _leave(self, _ended: "asyncio.Task[None] | None" = None) -> None:
        if self._server is not None:
            self._server.should_exit = True

    async def _live(self) -> None:
        for role in self._roles:
            await role.start()
        self._state = "ready"
        log.info("ready")
        tasks = [asyncio.create_task(work) for work in (self._report(), *(role.run() for role in self._roles))]
        try:
            await asyncio.gather(*tasks[1:])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _end(self) -> None:
        if self._life is None:
            return
        if self._draining is not None:
            await asyncio.wait({self._draining})
        if self._draining is None or self._draining.exception() is not None:
            self._life.cancel()
        await asyncio.wait({self._life})
        self._state = "stopped"
        await self._tell()

    async def _report(self) -> None:
        while True:
            await self._tell()
            await asyncio.sleep(self._status_s)

    async def _tell(self) -> None:
        """Say how the roles are doing. What cannot be said now is said again by the next status; only the next status waits for it."""
        async with self._telling:  # else a state could overtake the one before it, and the last one told would be wrong
            await asyncio.gather(*(self._publish(role.status(self._state)) for role in self._roles))

    async def _publish(self, status: WorkerStatus) -> None:
        try:
            async with asyncio.timeout(TELL_S):
                await self._publisher.publish(status, key=status.worker_id.encode())
        except Exception as error:  # FastStream has a tree of its own beside aiokafka's, and none of it is the role's trouble
            log.warning("status %s of %s was not told: %r", status.state, status.worker_id, error)


class _Server(uvicorn.Server):
    """uvicorn, with signals that only ask to end: the process then does so by itself with status 0."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


async def reachable(connection: Connection, patience_s: float = PATIENCE_S) -> None:
    """Wait for a broker that answers. Raises BusUnavailable after `patience_s`."""
    give_up_at_s = time.monotonic() + patience_s
    while True:
        producer = Producer(connection, source="mint-stream/shell")
        try:
            await producer.start()
        except BusUnavailable as error:
            if time.monotonic() > give_up_at_s:
                raise
            log.warning("waiting for Kafka: %s", error)
            await asyncio.sleep(RETRY_S)
        else:
            return await producer.stop()


def listen(http: HttpSettings) -> socket.socket:
    """A listening socket. Raises PortTaken."""
    try:
        return socket.create_server((http.host, http.port))
    except OSError as error:
        raise PortTaken(f"{http.host}:{http.port} cannot be listened on ({error.strerror}): free it, or set MINT_HTTP__PORT=0") from error


def fleet_broker(connection: Connection) -> KafkaBroker:
    """FastStream's broker for short control traffic: nothing that needs offsets, transactions or replay goes through it."""
    return KafkaBroker(
        connection.bootstrap_servers,
        security=security(connection),
        acks="all",
        enable_idempotence=True,
        allow_auto_create_topics=False,
        logger=None,
    )


def security(connection: Connection) -> BaseSecurity | None:
    """The connection's SASL and TLS settings in FastStream's terms."""
    context = connection.options().get("ssl_context")
    use_ssl = context is not None
    if connection.sasl_mechanism is not None:
        kind = _SASL[connection.sasl_mechanism]
        return kind(connection.sasl_username or "", connection.sasl_password or "", ssl_context=context, use_ssl=use_ssl)
    return BaseSecurity(ssl_context=context, use_ssl=True) if use_ssl else None
