"""The whole system as users run it: real processes, the real engine on a tiny base, somebody else's Kafka, store and base."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from mint_stream import contracts
from mint_stream.app.importing import import_adapter
from mint_stream.app.local_system import LocalSystem
from mint_stream.app.restarts import RestartPolicy
from mint_stream.bus.connection import Connection
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.client import Client
from mint_stream.messages.inference import InferenceRequest, InferenceResult, Sampling
from mint_stream.messages.training import Hyperparameters, LoraSettings, TrainingJob
from mint_stream.settings import Settings
from tests.factories import chat_lines, peft_files, tiny_base
from tests.provisioned import PARTITIONS, ensure_topics

pytestmark = [pytest.mark.kafka, pytest.mark.long]

KILLS = 10
EAGER = RestartPolicy(first_delay_s=0.05, longest_delay_s=0.05, crashes_allowed=100)


def settings_for(connection: Connection, room: Path, **store: object) -> Settings:
    """As the three variables would set them; a pool of its own."""
    return Settings.load(
        base=str(tiny_base(room / "base", "llama")),
        pool=f"system-{uuid4().hex[:8]}",
        home=room / "home",
        partitions=PARTITIONS,
        kafka={"bootstrap_servers": connection.bootstrap_servers},
        store={"uri": (room / "store").as_uri(), "allowed_roots": (room.as_uri(),), **store},
        serving={"context_tokens": 512},
    )


@asynccontextmanager
async def running(settings: Settings, connection: Connection, **counts: int) -> AsyncIterator[LocalSystem]:
    await ensure_topics(connection, settings.pool_name)
    system = LocalSystem(settings, counts, lambda change: None, policy=EAGER)
    try:
        await system.start()
        assert await system.ready(), system.given_up
        yield system
    finally:
        await system.stop()


def write_adapter(room: Path, name: str, seed: int) -> str:
    directory = room / name
    directory.mkdir()
    for file, content in peft_files(room / "base", seed).items():
        (directory / file).write_bytes(content)
    return str(directory)


@pytest.mark.timeout(420)
async def test_every_request_has_one_visible_result_though_workers_are_killed_ten_times(connection: Connection, tmp_path: Path) -> None:
    """Each victim had answered since its last start, so it was a member of the group and not one that was just starting."""
    settings = settings_for(connection, tmp_path).model_copy(update={"worker_id": "kill"})
    async with running(settings, connection, register=1, serve=2) as system, Client(settings) as client:
        names = [f"k{seed}-{settings.pool_name}" for seed in range(3)]
        for seed, name in enumerate(names):
            await import_adapter(client, settings, name, write_adapter(tmp_path, name, seed))
        tally = Results()
        async with tally.reading(connection), Load(client, [None, *names]) as load:
            open_at_kills = [await kill(system, tally, load, ("serve", "serve-2")[number % 2]) for number in range(KILLS)]
            answers = await load.answers()
        assert sum(count > 0 for count in open_at_kills) >= KILLS - 2, f"the victims had {open_at_kills} requests open"
        # all of them: none was condemned for having been there when its worker died
        assert {answer.status for answer in answers} == {"ok"}, [answer.error for answer in answers if answer.error]
        assert len({answer.request_id for answer in answers}) == len(answers) > KILLS * OPEN
        for answer in answers:
            assert {result.request_digest for result in tally.of(answer.request_id)} == {answer.request_digest}


OPEN = 24
"""Requests that wait for their answer at any moment."""


class Load:
    """Asks without a pause: whenever a request is answered, the next is sent. Each is collected as a task."""

    def __init__(self, client: Client, adapters: list[str | None]) -> None:
        self._client = client
        self._adapters = adapters
        self._asked: list[asyncio.Task[InferenceResult]] = []
        self.chance = random.Random(7)

    async def __aenter__(self) -> Self:
        self._asking = [asyncio.create_task(self._ask()) for _ in range(OPEN)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._asking, *self._asked):
            task.cancel()

    async def _ask(self) -> None:
        while True:
            sampling = Sampling(max_tokens=self.chance.randint(8, 160), temperature=1.0, ignore_eos=True)
            work = self._client.generate("once upon a time", self.chance.choice(self._adapters), sampling=sampling, timeout_s=300)
            self._asked.append(asyncio.create_task(work))
            await asyncio.wait(self._asked[-1:])

    async def all_before_now(self) -> None:
        """Wait until everything that was asked up to now is answered; the load goes on."""
        await asyncio.gather(*self._asked)

    async def answers(self) -> list[InferenceResult]:
        """Ask no more, and wait for every answer."""
        for task in self._asking:
            task.cancel()
        return await asyncio.gather(*self._asked)


async def kill(system: LocalSystem, tally: "Results", load: Load, victim: str) -> int:
    """kill -9 of a worker that has answered since it was started, at a random moment; gives how many requests it had open just before.

    What the last kill left open is answered first: three vanished owners in a row without progress would have the suspects run alone."""
    await load.all_before_now()
    pid = await started(system, victim)
    await tally.answered_by(f"kill-{victim}", since_ms=time.time() * 1000)
    await asyncio.sleep(load.chance.random())
    while not (open_requests := await gauge(system.ports[victim], "mint_open_requests")):
        await asyncio.sleep(load.chance.random() / 100)
    assert system.pids[victim] == pid, "it died by itself"
    os.kill(pid, signal.SIGKILL)
    return int(open_requests)


async def started(system: LocalSystem, name: str) -> int:
    """Its process id, once it runs."""
    while name not in system.pids:
        await asyncio.sleep(0.05)
    return system.pids[name]


async def gauge(port: int, name: str) -> float:
    """What the metrics page of a role says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    page = (await reader.read()).decode()
    writer.close()
    return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).split()[1])


class Results:
    """Every terminal result in the reply log."""

    def __init__(self) -> None:
        self._seen: dict[str, list[InferenceResult]] = {}
        self._last_by: dict[str, int] = {}
        self._news = asyncio.Event()
        self._news = asyncio.Event()

    async def until(self, wanted: Callable[[InferenceResult], bool]) -> None:
        """Wait for such a result, or go on if there is one."""
        while not any(wanted(result) for results in self._seen.values() for result in results):
            self._news.clear()
            await self._news.wait()

    def of(self, request_id: str) -> list[InferenceResult]:
        return self._seen[request_id]

    async def answered_by(self, worker_id: str, since_ms: float) -> None:
        """Wait until the worker has answered a request after `since_ms`."""
        while self._last_by.get(worker_id, 0) < since_ms:
            self._news.clear()
            await self._news.wait()

    @asynccontextmanager
    async def reading(self, connection: Connection) -> AsyncIterator[None]:
        reader = LogReader(connection, contracts.INFERENCE_REPLIES.name(), self._take, "latest")
        await reader.start()
        try:
            yield
            await reader.caught_up()
        finally:
            await reader.stop()

    def _take(self, _partition: int, records: list[LogRecord], _next: int) -> None:
        for record in records:
            result = InferenceResult.decode(record.value)
            self._seen.setdefault(result.request_id, []).append(result)
            if result.served_by is not None:
                self._last_by[result.served_by.worker_id] = result.completed_at_ms
        self._news.set()
        self._news.set()


@pytest.mark.timeout(240)
async def test_three_variables_point_every_role_at_other_infrastructure(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka, store and base are somebody else's; a job becomes a revision there, and a stranger's producer gets an answer from it."""
    monkeypatch.setenv("MINT_KAFKA__BOOTSTRAP_SERVERS", connection.bootstrap_servers)
    monkeypatch.setenv("MINT_STORE__URI", (tmp_path / "elsewhere").as_uri())
    monkeypatch.setenv("MINT_BASE", str(tiny_base(tmp_path / "base", "llama")))
    settings = Settings.load(pool=f"three-{uuid4().hex[:8]}", home=tmp_path / "home", partitions=PARTITIONS)
    name = f"three-{uuid4().hex[:8]}"
    dataset = tmp_path / "elsewhere" / "numbers.jsonl"
    dataset.parent.mkdir()
    dataset.write_bytes(chat_lines())
    async with running(settings, connection, register=1, serve=1, train=1), Client(settings) as client:
        job_id = await client.train(job(name, dataset))
        states = [event.state async for event in client.watch(job_id)]
        assert states[-1] == "succeeded"
        assert states[0] == "queued"
        view = await client.adapter(name)
        assert view.revisions[-1].uri.startswith(settings.store_uri)
        answer = await ask_as_a_stranger(connection, settings.pool_name, name)
    assert answer.status == "ok"
    assert answer.served_by.number == 1
    assert answer.served_by.revision_digest == view.revisions[-1].digest


def job(adapter_id: str, dataset: Path) -> TrainingJob:
    return TrainingJob(
        job_id=uuid4().hex,
        adapter_id=adapter_id,
        dataset_uri=dataset.as_uri(),
        lora=LoraSettings(rank=4),
        hyperparameters=Hyperparameters(steps=4, batch_size=4, max_length_tokens=256),
        submitted_at_ms=1,
    )


async def ask_as_a_stranger(connection: Connection, pool: str, adapter: str) -> InferenceResult:
    """Nothing of ours: a plain aiokafka producer and consumer, and the JSON that the README documents."""
    request_id = uuid4().hex
    body = b'{"request_id": "%s", "adapter": "%s", "prompt": "hello", "sampling": {"max_tokens": 4}}'
    servers = connection.bootstrap_servers
    consumer = AIOKafkaConsumer("inference-results", bootstrap_servers=servers, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await consumer.start()
    await producer.start()
    try:
        value = body % (request_id.encode(), adapter.encode())
        await producer.send_and_wait(f"inference-requests-{pool}", value, key=adapter.encode())
        async with asyncio.timeout(60):
            async for record in consumer:
                if record.key == request_id.encode():
                    return InferenceResult.decode(record.value)
    finally:
        await producer.stop()
        await consumer.stop()
    raise AssertionError("the consumer ended")


def test_the_documented_request_is_the_record_we_decode() -> None:
    InferenceRequest.decode(b'{"request_id": "r-1", "adapter": "support", "prompt": "Where?", "sampling": {"max_tokens": 32}}')
