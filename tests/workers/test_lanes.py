"""One tenant's flood goes to the bulk lane and is answered there; an answer too large for a record is refused in its name."""

import asyncio
from pathlib import Path

import pytest

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.engine.generation import Completion, Generation, OnText
from mint_stream.engine.null import EchoEngine
from mint_stream.messages.inference import InferenceRequest
from mint_stream.workers.shares import TenantShares
from tests.serving_desk import Desk

pytestmark = pytest.mark.kafka


async def test_what_a_tenant_asks_beyond_its_share_is_answered_from_the_bulk_lane(connection: Connection, tmp_path: Path) -> None:
    desk = await Desk.open(connection, tmp_path, shares=TenantShares(8, 0.5))
    desk.engine.pause()
    await desk.begin()
    async with desk.written(contracts.INFERENCE_BATCH) as moved:
        hot = [await desk.ask(f"hot {number}", tenant="hot") for number in range(10)]
        quiet = [await desk.ask(f"quiet {number}", tenant="quiet") for number in range(3)]
        while len(moved) < 6:
            await asyncio.sleep(0.01)
    desk.engine.resume()
    answers = {name: await desk.result(name) for name in (*hot, *quiet)}
    assert all(answer.status == "ok" for answer in answers.values()) and all(len(desk.results(name)) == 1 for name in answers)
    asked = [InferenceRequest.decode(record.value) for record in moved]
    assert {request.request_id for request in asked} == set(hot[4:]), "four of eight were its share"
    assert {(record.key or b"").decode() for record in moved} == {f"{name}#0" for name in hot[4:]}, "the base's have no adapter to share"
    assert all(request.deadline_at_ms is not None for request in asked), "the time it waited in the online lane is not given back"
    assert desk.metrics.moved_requests_total._value.get() == 6
    await desk.close()
    assert await desk.committed() == await desk.ends()


class Verbose(EchoEngine):
    """Answers with more text than a record may hold."""

    async def run(self, generation: Generation, on_text: OnText | None = None) -> Completion:
        done = await super().run(generation, on_text)
        return Completion("x" * (9 * 2**20), done.tokens, "length", done.queued_ms, 0.0, 0.0)


async def test_an_answer_larger_than_a_record_is_a_typed_error_and_the_worker_goes_on(connection: Connection, tmp_path: Path) -> None:
    desk = await Desk.open(connection, tmp_path, engine=Verbose())
    await desk.begin()
    first, second = await desk.ask("first"), await desk.ask("second")
    for name in (first, second):
        error = (await desk.result(name)).error
        assert error is not None and error.code == "invalid-request" and "bytes" in error.message
    await desk.close()
    assert await desk.committed() == await desk.ends()
