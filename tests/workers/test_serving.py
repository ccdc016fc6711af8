"""What a serving worker does with every kind of bad input: a typed answer or a dead letter, and the neighbours are answered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from time import time
from uuid import uuid4

import pytest
import torch
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from mint_stream import contracts
from mint_stream.adapter import AdapterLayer, AdapterWeights
from mint_stream.bus.connection import Connection
from mint_stream.catalog.canary import falls_to
from mint_stream.errors import InvalidRequest
from mint_stream.messages.adapters import Canary
from mint_stream.messages.inference import InferenceRequest, InferenceResult, ReplyTo
from mint_stream.messages.shared import CatalogPosition
from tests.factories import random_weights
from tests.kafka.test_fetching import write_bad
from tests.serving_desk import CONTEXT_TOKENS, Desk

pytestmark = pytest.mark.kafka


@pytest.fixture
async def desk(connection: Connection, tmp_path: Path) -> AsyncIterator[Desk]:
    """After every test: the worker lives, a neighbour is answered, and no offset is left open."""
    desk = await Desk.open(connection, tmp_path)
    await desk.begin()
    yield desk
    await neighbours_are_answered(desk)
    assert await desk.intake.drain(10) == 0
    assert await desk.committed() == await desk.ends()
    await desk.close()


async def code_of(desk: Desk, request_id: str) -> str:
    result = await desk.result(request_id)
    assert result.error is not None, result
    return result.error.code


async def neighbours_are_answered(desk: Desk, *before: str) -> None:
    """The requests around the bad one, in the same partition, all have their answer, once."""
    after = await desk.ask("after")
    for request_id in (*before, after):
        assert (await desk.result(request_id)).status == "ok"
        assert len(desk.results(request_id)) == 1


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (b"not json at all", ()),
        (b'{"request_id": "only-an-id"}', ()),
        (b'{"request_id": "x", "prompt": "a", "temprature": 1}', ()),
        (b'{"request_id": "x", "prompt": "a", "messages": [{"role": "user", "content": "b"}]}', ()),
        (b'{"request_id": 7}', (("h", b"\xff\xfe"),)),
        (b"\xff\xfe\x00", (("traceparent", b"\xff"),)),
        pytest.param(b'{"request_id": "x", "a": ' + b"[" * 50_000, (), id="deeper than any parser goes"),
        pytest.param(b'{"request_id": "\\ud800"}', (), id="an id that UTF-8 cannot write"),
        (None, ()),
        (b"", ()),
    ],
)
async def test_a_bad_record_is_dead_lettered_with_its_original_bytes(desk: Desk, value: bytes | None, headers: tuple) -> None:
    before = await desk.ask("before")
    await desk.send(value, key=b"\x00key", headers=headers)
    [letter] = await desk.buried(1)
    assert (letter.key, letter.value or b"") == (b"\x00key", value or b"")
    assert set(headers) <= set(letter.headers)
    assert dict(letter.headers)["mint_error_code"] == b"invalid-record"
    await neighbours_are_answered(desk, before)


async def test_a_bad_record_that_says_who_asked_is_answered_too(desk: Desk) -> None:
    request_id = uuid4().hex
    await desk.send(b'{"request_id": "%s", "prompt": ""}' % request_id.encode())
    assert await code_of(desk, request_id) == "invalid-record"


async def test_a_bad_utf8_header_loses_no_request(desk: Desk) -> None:
    request = InferenceRequest(request_id=uuid4().hex, prompt="hello")
    await desk.send(request.encode(), headers=(("x", b"\xff\xfe\xfd"),))
    assert (await desk.result(request.request_id)).text == "hello"


async def test_a_record_over_the_limit_that_got_in_is_dead_lettered(desk: Desk) -> None:
    """The topic's limit keeps it out; with the limit raised it is only one more bad record."""
    await raise_limit(desk, 4 * 2**20)
    huge = InferenceRequest(request_id=uuid4().hex, prompt="x" * 2**21)
    before = await desk.ask("before")
    await send_once_it_is_let_in(desk, huge.encode())
    [letter] = await desk.buried(1)
    assert letter.value == huge.encode()
    assert await code_of(desk, huge.request_id) == "invalid-record"
    await neighbours_are_answered(desk, before)


async def send_once_it_is_let_in(desk: Desk, value: bytes) -> None:
    """The controller has said yes to the limit before the broker knows of it."""
    while True:
        with suppress(InvalidRequest):
            await desk.send(value)
            return


async def raise_limit(desk: Desk, limit_bytes: int) -> None:
    admin = AIOKafkaAdminClient(**desk.connection.options())
    await admin.start()
    try:
        limit = {"max.message.bytes": str(limit_bytes)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, contracts.INFERENCE_REQUESTS.name(desk.pool), limit)])
    finally:
        await admin.close()


async def test_an_adapter_nobody_announced_is_unknown(desk: Desk) -> None:
    before = await desk.ask("before")
    assert await code_of(desk, await desk.ask("x", adapter=f"nobody-{uuid4().hex}")) == "unknown-adapter"
    await neighbours_are_answered(desk, before)


async def test_a_revision_that_does_not_exist_is_unknown(desk: Desk) -> None:
    revision = desk.publish("a", random_weights())
    assert await code_of(desk, await desk.ask("x", adapter=f"{revision.adapter_id}@9")) == "unknown-revision"
    assert await code_of(desk, await desk.ask("x", adapter=f"{revision.adapter_id}@nightly")) == "unknown-revision"


@pytest.mark.parametrize(("state", "code"), [("retired", "revision-retired"), ("quarantined", "revision-quarantined")])
async def test_a_revision_out_of_service_is_refused(desk: Desk, state: str, code: str) -> None:
    desk.publish("a", random_weights(), state=state)
    assert await code_of(desk, await desk.ask("x", adapter="a@1")) == code


async def test_an_adapter_of_another_base_is_refused(desk: Desk) -> None:
    desk.publish("a", random_weights(), base_digest="c" * 64)
    before = await desk.ask("before")
    assert await code_of(desk, await desk.ask("x", adapter="a")) == "base-mismatch"
    await neighbours_are_answered(desk, before)


async def test_an_adapter_answers_with_its_number_and_digest(desk: Desk) -> None:
    revision = desk.publish("a", random_weights())
    result = await desk.result(await desk.ask("x", adapter="a"))
    assert result.served_by is not None
    assert (result.served_by.adapter_id, result.served_by.number) == ("a", 1)
    assert result.served_by.revision_digest == revision.digest


async def test_a_canarys_share_is_answered_by_it_and_says_so(desk: Desk) -> None:
    first = desk.publish("a", random_weights())
    second = desk.publish("a", random_weights(seed=2)).model_copy(update={"number": 2})
    canary = Canary(number=2, share_basis_points=5000)
    desk.write(first)
    desk.write(second, aliases={"production": 1}, canary=canary, spread=3)
    asked = [await desk.ask("x", adapter="a", request_id=f"canary-{uuid4().hex}") for _ in range(20)]
    pinned = await desk.result(await desk.ask("x", adapter="a@2"))
    served = {request_id: (await desk.result(request_id)).served_by for request_id in asked}
    of_canary, of_production = (2, True, second.digest), (1, False, first.digest)
    expected = {request_id: of_canary if falls_to(canary, ("default", request_id)) else of_production for request_id in asked}
    assert {name: by and (by.number, by.canary, by.revision_digest) for name, by in served.items()} == expected
    assert pinned.served_by is not None and (pinned.served_by.number, pinned.served_by.canary) == (2, False)
    assert {by and by.spread for by in (pinned.served_by, *served.values())} == {3}, "and how wide its adapter is spread"


async def test_what_is_in_flight_when_production_moves_ends_on_the_revision_it_began_with(desk: Desk) -> None:
    first = desk.publish("a", random_weights())
    second = desk.publish("b", random_weights(seed=2)).model_copy(update={"adapter_id": "a", "number": 2})
    desk.engine.pause()
    in_flight = await desk.ask("x", adapter="a")
    while desk.engine.load.waiting == 0:
        await asyncio.sleep(0.01)
    desk.write(second)
    afterwards, pinned = await desk.ask("x", adapter="a"), await desk.ask("x", adapter="a@1")
    while desk.engine.load.waiting < 3:
        await asyncio.sleep(0.01)
    desk.engine.resume()
    served = [(await desk.result(request_id)).served_by for request_id in (in_flight, afterwards, pinned)]
    told = [(by.number, by.revision_digest) for by in served if by is not None]
    assert told == [(1, first.digest), (2, second.digest), (1, first.digest)]


async def test_a_prompt_longer_than_the_context_is_refused(desk: Desk) -> None:
    assert await code_of(desk, await desk.ask("x" * CONTEXT_TOKENS)) == "prompt-too-long"
    await neighbours_are_answered(desk)


async def test_a_token_outside_the_vocabulary_is_refused(desk: Desk) -> None:
    request = InferenceRequest(request_id=uuid4().hex, prompt_tokens=(1, 2, 256))
    await desk.send(request.encode())
    assert await code_of(desk, request.request_id) == "invalid-request"


@pytest.mark.parametrize("reply_to", [ReplyTo(topic="adapter-commands"), ReplyTo(topic="inference-replies", partition=999)])
async def test_a_reply_topic_not_declared_for_replies_is_refused(desk: Desk, reply_to: ReplyTo) -> None:
    assert await code_of(desk, await desk.ask("x", reply_to=reply_to)) == "reply-topic-refused"
    await neighbours_are_answered(desk)


async def test_a_catalog_position_never_reached_is_an_error_at_the_deadline(desk: Desk) -> None:
    before = await desk.ask("before")
    assert (await desk.result(before)).status == "ok"  # so the intake has its partitions, and the deadline is all the catalog's
    position = CatalogPosition(partition=0, offset=10**9)
    late = await desk.ask("x", min_catalog_position=position, deadline_at_ms=int(time() * 1000) + 3000)
    await neighbours_are_answered(desk, before)
    assert await code_of(desk, late) == "position-not-reached"


async def test_a_request_waits_for_the_catalog_position_it_names(desk: Desk) -> None:
    position = CatalogPosition(partition=0, offset=desk.offset + 1)
    waiting = await desk.ask("x", min_catalog_position=position)
    await neighbours_are_answered(desk)
    assert not desk.results(waiting)
    desk.catalog.apply(0, [], position.offset + 1)
    assert (await desk.result(waiting)).status == "ok"


async def test_a_request_that_waits_for_the_catalog_can_be_cancelled(desk: Desk) -> None:
    waiting = await desk.ask("x", min_catalog_position=CatalogPosition(partition=0, offset=10**9))
    await neighbours_are_answered(desk)
    await desk.cancel(waiting, "no longer")
    result = await desk.result(waiting)
    assert result.error is not None
    assert result.error.code == "cancelled"
    assert "no longer" in result.error.message


async def test_a_record_over_the_limit_with_a_refused_reply_topic_is_told_to_everybody(desk: Desk) -> None:
    await raise_limit(desk, 4 * 2**20)
    reply_to = ReplyTo(topic="inference-replies", partition=9999)
    huge = InferenceRequest(request_id=uuid4().hex, prompt="x" * 2**21, reply_to=reply_to)
    await desk.send(huge.encode())
    assert await code_of(desk, huge.request_id) == "invalid-record"
    await neighbours_are_answered(desk)


async def test_a_partition_of_the_catalog_that_does_not_exist_is_refused_at_once(desk: Desk) -> None:
    position = CatalogPosition(partition=10**6, offset=0)
    assert await code_of(desk, await desk.ask("x", min_catalog_position=position)) == "invalid-request"


async def test_a_deadline_in_the_past_is_an_error(desk: Desk) -> None:
    assert await code_of(desk, await desk.ask("x", deadline_at_ms=1)) == "deadline-exceeded"


async def test_a_deadline_acts_while_the_engine_works(desk: Desk) -> None:
    desk.engine.pause()
    late = await desk.ask("x", deadline_at_ms=int(time() * 1000) + 300)
    assert await code_of(desk, late) == "deadline-exceeded"
    desk.engine.resume()


async def test_a_cancelled_request_ends_while_the_engine_works(desk: Desk) -> None:
    desk.engine.pause()
    request_id = await desk.ask("x")
    await desk._until(lambda: True if desk.engine.load.waiting else desk._tell())
    await desk.cancel(request_id, "changed my mind")
    result = await desk.result(request_id)
    desk.engine.resume()
    assert result.error is not None
    assert result.error.code == "cancelled"
    assert "changed my mind" in result.error.message


async def test_another_tenants_cancellation_of_the_same_id_stops_nothing(desk: Desk) -> None:
    desk.engine.pause()
    request_id = await desk.ask("x", tenant="me")
    await desk._until(lambda: True if desk.engine.load.waiting else desk._tell())
    await desk.cancel(request_id, "not mine", tenant="them")
    desk.engine.resume()
    assert (await desk.result(request_id)).status == "ok"


async def test_a_request_cancelled_before_it_arrived_is_not_run(desk: Desk) -> None:
    request_id = uuid4().hex
    await desk.cancel(request_id, "never mind")
    await desk.ask("x", request_id=request_id)
    assert await code_of(desk, request_id) == "cancelled"
    assert desk.engine.steps == 0


def with_nan(weights: AdapterWeights) -> AdapterWeights:
    path, layer = next(iter(weights.layers.items()))
    B = layer.B.clone()
    B[0, 0] = torch.nan
    return AdapterWeights(layers={**weights.layers, path: AdapterLayer(layer.A, B, layer.scaling)}, config=weights.config)


@pytest.mark.parametrize("weights", [with_nan(random_weights(rank=3)), random_weights(rank=32)], ids=["nan", "rank over the cap"])
async def test_an_adapter_that_cannot_be_loaded_is_refused_and_quarantined(desk: Desk, weights: AdapterWeights) -> None:
    name = f"bad-{uuid4().hex[:8]}"
    desk.publish(name, weights)
    before = await desk.ask("before")
    assert await code_of(desk, await desk.ask("x", adapter=name)) == "invalid-adapter"
    assert (await desk.quarantined(name)).number == 1
    await neighbours_are_answered(desk, before)


async def test_a_store_object_with_one_flipped_bit_is_refused_and_quarantined(desk: Desk, tmp_path: Path) -> None:
    name = f"bit-{uuid4().hex[:8]}"
    revision = desk.publish(name, random_weights(seed=9))
    [path] = (tmp_path / "store").rglob(f"{revision.digest}/*/adapter_model.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(content))
    before = await desk.ask("before")
    assert await code_of(desk, await desk.ask("x", adapter=name)) == "corrupt-object"
    assert (await desk.quarantined(name)).number == 1
    await neighbours_are_answered(desk, before)


async def test_a_pickle_in_place_of_safetensors_is_refused_and_never_opened(desk: Desk) -> None:
    name = f"pickle-{uuid4().hex[:8]}"
    weights = random_weights(seed=4)
    files = {"adapter_config.json": weights.to_peft()["adapter_config.json"], "adapter_model.bin": b"\x80\x04os\nsystem\n"}
    desk.publish_files(name, files, weights)
    assert await code_of(desk, await desk.ask("x", adapter=name)) == "invalid-adapter"
    assert "pickle" in (await desk.quarantined(name)).reason


async def test_a_worker_names_what_is_resident_and_counts_what_waited(desk: Desk) -> None:
    desk.publish("held", random_weights(seed=6))
    await desk.result(await desk.ask("x", adapter="held"))
    assert desk.leasing.resident() == ("held@1",)
    assert desk.leasing.resident_bytes == desk.loader.device.used_bytes > 0
    assert desk.leasing.parked == 0
    assert b"mint_adapter_load_seconds_count 1.0" in desk.metrics.exposition()


async def test_many_requests_for_one_cold_adapter_are_one_load(desk: Desk) -> None:
    desk.publish("cold", random_weights(seed=5))
    asked = [await desk.ask(f"p{n}", adapter="cold") for n in range(16)]
    results: list[InferenceResult] = [await desk.result(request_id) for request_id in asked]
    assert {result.status for result in results} == {"ok"}
    assert desk.loader.loads_total == 1


async def test_every_offset_is_committed_after_a_mix_of_good_and_bad(desk: Desk) -> None:
    for value in (b"junk", None, b"{}"):
        await desk.send(value)
    last = await desk.ask("good", adapter=None)
    await desk.result(last)
    await desk.buried(3)
    async with asyncio.timeout(10):
        await desk.intake.until(lambda: desk.intake.open_records == 0)
    await desk.intake.commit()
    assert (await desk.committed())[TopicPartition(contracts.INFERENCE_REQUESTS.name(desk.pool), 0)] == 4


TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"


async def test_what_is_written_of_a_request_continues_its_trace(desk: Desk) -> None:
    headers = (("traceparent", b"00-%s-00f067aa0ba902b7-01" % TRACE),)
    request_id, unread = uuid4().hex, uuid4().hex
    request = InferenceRequest(request_id=request_id, prompt="hello", stream=True)
    async with desk.written(contracts.INFERENCE_RESULTS, contracts.INFERENCE_CHUNKS) as written:
        await desk.send(request.encode(), headers=headers)
        await desk.send(b'{"request_id": "%s", "prompt": ""}' % unread.encode(), headers=headers)
        assert (await desk.result(request_id)).status == "ok"
        assert await code_of(desk, unread) == "invalid-record"
    found = [record for record in written if record.key in (request_id.encode(), unread.encode())]
    assert len(found) == 3
    assert all((dict(record.headers)["traceparent"] or b"").split(b"-")[1] == TRACE for record in found)


async def test_a_request_without_a_trace_begins_one(desk: Desk) -> None:
    request_id = uuid4().hex
    async with desk.written(contracts.INFERENCE_RESULTS) as written:
        await desk.ask("hello", request_id=request_id)
        await desk.result(request_id)
    [record] = [record for record in written if record.key == request_id.encode()]
    assert len(dict(record.headers)["traceparent"] or b"") == 55


async def test_a_header_whose_name_is_no_text_stops_no_partition(desk: Desk) -> None:
    """aiokafka's own parser raises on it and would stop the partition."""
    before = await desk.ask("before")
    await write_bad(desk.connection, contracts.INFERENCE_REQUESTS.name(desk.pool))
    assert {letter.value for letter in await desk.buried(3)} == {b"before", b"bad", b"after"}
    await neighbours_are_answered(desk, before)


async def test_the_bulk_lane_is_answered_like_the_other(desk: Desk) -> None:
    revision = desk.publish("bulk", random_weights(seed=8))
    asked = [await desk.ask(f"b{number}", lane=contracts.INFERENCE_BATCH, adapter="bulk") for number in range(8)]
    results = [await desk.result(request_id) for request_id in asked]
    assert [result.text for result in results] == [f"b{number}" for number in range(8)]
    assert {result.served_by and result.served_by.revision_digest for result in results} == {revision.digest}
    await desk.send(b"junk", lane=contracts.INFERENCE_BATCH)
    [letter] = await desk.buried(1)
    assert letter.value == b"junk"
