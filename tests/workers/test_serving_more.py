"""Serving workers whose broker dies, whose group changes under load, or that sleep through a takeover: one answer a request, always."""

import asyncio
import signal
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.messages.inference import InferenceResult
from tests.child_process import module, said
from tests.provisioned import PARTITIONS
from tests.serving_desk import Desk
from tests.workers.serving_process import LIMITS

pytestmark = [pytest.mark.kafka, pytest.mark.long]

ALL = 2 * PARTITIONS
"""Of both lanes."""


async def answers(connection: Connection, asked: Collection[str]) -> dict[str, list[InferenceResult]]:
    """Every terminal record of these requests in the log, by request, once each has one. Other tests' records lie there too."""
    found: dict[str, list[InferenceResult]] = {request_id: [] for request_id in asked}
    complete = asyncio.Event()

    def take(_partition: int, records: Sequence[LogRecord], _next: int) -> None:
        for record in records:
            if (request_id := (record.key or b"").decode()) in found:
                found[request_id].append(InferenceResult.decode(record.value))
        if all(found.values()):
            complete.set()

    reader = LogReader(connection, contracts.INFERENCE_RESULTS.name(), take)
    await reader.start()
    ends = [asyncio.create_task(complete.wait()), asyncio.create_task(reader.run_until_failed())]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await reader.caught_up()
    finally:
        await reader.stop()
        await asyncio.gather(*ends)
    return found


def one_visible_answer_each(found: dict[str, list[InferenceResult]], prompts: dict[str, str]) -> int:
    """Whatever record a reader takes, it is the same answer, to its own request. Gives how many requests have more than one record."""
    for request_id, results in found.items():
        assert {(result.status, result.text) for result in results} == {("ok", prompts[request_id])}
        assert len({result.request_digest for result in results}) == 1
    return sum(len(results) > 1 for results in found.values())


async def ask_many(desk: Desk, count: int, word: str) -> dict[str, str]:
    """Requests over all partitions, acknowledged: prompt by id."""
    prompts = [f"{word} {number}" for number in range(count)]
    asked = await asyncio.gather(*(desk.ask(prompt, number % PARTITIONS) for number, prompt in enumerate(prompts)))
    return dict(zip(asked, prompts, strict=True))


@pytest.mark.timeout(120)
async def test_a_broker_killed_under_a_serving_worker_costs_no_request_its_answer(kafka_dir: Path, tmp_path: Path) -> None:
    with LocalKafka(kafka_dir) as broker:
        desk = await Desk.open(Connection(broker.bootstrap_servers), tmp_path)
        await desk.begin()
        first, prompts = await ask_many(desk, 100, "before"), await ask_many(desk, 300, "meanwhile")
        await gathered(desk, first)
        asking = asyncio.create_task(ask_steadily(desk, 300))
        await asyncio.sleep(0)  # now it is on its way
        broker.kill()
        await asyncio.to_thread(broker.start)
        prompts |= first | await asking | await ask_many(desk, 20, "after")
        one_visible_answer_each(await answers(desk.connection, prompts), prompts)
        await desk.close()


@pytest.mark.timeout(60)
async def test_workers_that_come_and_go_under_load_answer_every_request_once(connection: Connection, tmp_path: Path) -> None:
    first = await Desk.open(connection, tmp_path)
    second = await Desk.open(connection, tmp_path, first.pool)
    await first.begin()
    load = asyncio.create_task(ask_steadily(first, 600))
    await first.intake.until(lambda: len(first.intake.assigned) == ALL)
    await second.begin()
    await second.intake.until(lambda: bool(second.intake.assigned))
    await first.intake.until(lambda: len(first.intake.assigned) == ALL - len(second.intake.assigned))
    shared = await ask_many(first, 40, "shared")
    assert {result.request_id for result in await gathered(first, shared)} == set(shared)
    await first.intake.drain(10)
    await first.intake.stop()
    await second.intake.until(lambda: len(second.intake.assigned) == ALL)
    prompts = await load | shared
    found = await answers(connection, prompts)
    one_visible_answer_each(found, prompts)
    once = {request_id: found[request_id] for request_id in shared}
    assert one_visible_answer_each(once, shared) == 0, "what was answered between rebalances and committed by a drain is not repeated"
    await second.close()
    await first.close()


async def ask_steadily(desk: Desk, count: int) -> dict[str, str]:
    prompts: dict[str, str] = {}
    for number in range(count // 20):
        prompts |= await ask_many(desk, 20, f"steady {number}")
    return prompts


async def gathered(desk: Desk, asked: Collection[str]) -> list[InferenceResult]:
    return [await desk.result(request_id) for request_id in asked]


@asynccontextmanager
async def holding(desk: Desk, room: Path, count: int, when: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process of the desk's pool: see serving_process."""
    arguments = (desk.connection.bootstrap_servers, desk.pool, str(room), str(count), when)
    async with module("tests.workers.serving_process", *arguments) as process:
        yield process


@pytest.mark.timeout(90)
@pytest.mark.parametrize("when", ["early", "late"])
async def test_a_worker_that_slept_through_a_takeover_changes_no_answer(connection: Connection, tmp_path: Path, when: str) -> None:
    desk = await Desk.open(connection, tmp_path, limits=LIMITS)
    async with holding(desk, tmp_path, 8, when) as sleeper:
        prompts = await ask_many(desk, 8, "held")
        await said(sleeper, "holding")
        sleeper.send_signal(signal.SIGSTOP)
        await desk.begin()
        assert one_visible_answer_each(await answers(connection, prompts), prompts) == 0
        sleeper.send_signal(signal.SIGCONT)
        await said(sleeper, "let go")
        await desk.intake.until(lambda: 0 < len(desk.intake.assigned) < ALL)
        later = await ask_many(desk, 40, "later")
        found = await answers(connection, prompts | later)
        twice = one_visible_answer_each(found, prompts | later)
        assert twice <= (8 if when == "early" else 0), "who knows that it lost its partitions publishes nothing for them"
        assert sleeper.returncode is None
    await desk.close()
