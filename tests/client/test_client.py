"""The client against a real broker: asking, streaming, submitting, and being told what is missing."""

import asyncio
from contextlib import aclosing

import pytest

from mint_stream import contracts
from mint_stream.bus.producer import Producer
from mint_stream.bus.routing import home_of, homes
from mint_stream.bus.table import LogReader
from mint_stream.client import Client, raise_for_error
from mint_stream.client.requests import Ticket, request_of
from mint_stream.errors import BusUnavailable, InvalidRequest, ReplyTimeout, RequestConflict, UnknownAdapter
from mint_stream.messages.inference import Cancellation, InferenceChunk, InferenceResult, Sampling
from mint_stream.messages.shared import CatalogPosition
from tests.echo_serving import POOL, WIDE, WIDTH, EchoServing
from tests.provisioned import PARTITIONS

pytestmark = pytest.mark.kafka


async def test_a_prompt_is_answered(client: Client, serving: EchoServing, unique: str):
    result = await client.generate("abc", sampling=Sampling(max_tokens=5), request_id=unique, tenant="acme", timeout_s=30)
    assert (result.status, result.text, result.request_id, result.tenant) == ("ok", "cba", unique, "acme")
    ((asked, key),) = (pair for pair in zip(serving.requests, serving.keys, strict=True) if pair[0].request_id == unique)
    assert asked.sampling.max_tokens == 5 and asked.deadline_at_ms is not None and asked.reply_to is not None
    assert key == unique.encode()


async def test_an_adapters_requests_share_its_key_whatever_revision_they_name(client: Client, serving: EchoServing):
    await asyncio.gather(client.generate("a", "poet", timeout_s=30), client.generate("b", "poet@7", timeout_s=30))
    named = [(request.adapter, key) for request, key in zip(serving.requests, serving.keys, strict=True) if request.adapter]
    assert {("poet", b"poet"), ("poet@7", b"poet")} <= set(named)


def met(serving: EchoServing, *prefixes: str) -> list[int]:
    """The partitions at which requests of these prefixes arrived, in this order."""
    found = {request.request_id: number for request, number in zip(serving.requests, serving.partitions, strict=True)}
    return [found[name] for prefix in prefixes for name in sorted(found) if name.startswith(prefix)]


async def test_a_client_spreads_an_adapter_once_an_answer_has_told_it_to(client: Client, serving: EchoServing, unique: str):
    await client.generate("a", WIDE, request_id=f"{unique}-first", timeout_s=30)
    names = [f"{unique}-then-{number:02d}" for number in range(30)]
    asked = [client.generate("a", f"{WIDE}@1", request_id=name, timeout_s=30) for name in names]
    tickets = [await client.submit("a", WIDE, request_id=f"{unique}-ticket-{number}") for number in range(9)]
    await asyncio.gather(*asked, *(client.result(ticket, 30) for ticket in tickets))
    assert met(serving, f"{unique}-first") == [homes(WIDE, 1, PARTITIONS)[0]]
    assert met(serving, f"{unique}-then") == [home_of(WIDE, ("default", name), WIDTH, PARTITIONS) for name in names]
    assert set(met(serving, f"{unique}-then")) == set(homes(WIDE, WIDTH, PARTITIONS)) >= set(met(serving, f"{unique}-ticket"))


async def test_chat_and_token_prompts_arrive_as_such(client: Client, serving: EchoServing):
    result = await client.generate([{"role": "user", "content": "hi"}], timeout_s=30)
    assert result.text == "ih"
    await client.generate([1, 2, 3], after=CatalogPosition(partition=1, offset=2), timeout_s=30)
    asked = next(request for request in serving.requests if request.prompt_tokens == (1, 2, 3))
    assert asked.min_catalog_position == CatalogPosition(partition=1, offset=2)


async def test_many_requests_at_once_each_get_their_own_answer(client: Client, serving: EchoServing):
    results = await asyncio.gather(*(client.generate(f"{n:03d}", timeout_s=30) for n in range(50)))
    assert [result.text for result in results] == [f"{n:03d}"[::-1] for n in range(50)]


async def test_an_error_result_is_returned_and_can_be_raised(client: Client, serving: EchoServing):
    result = await client.generate("a", "unknown", timeout_s=30)
    assert result.status == "error" and result.error is not None and result.error.code == "unknown-adapter"
    with pytest.raises(UnknownAdapter, match=result.request_id):
        raise_for_error(result)


async def test_a_stream_gives_its_pieces_and_then_the_whole(client: Client, serving: EchoServing):
    async with aclosing(client.stream("abc", timeout_s=30)) as parts:
        *chunks, result = [part async for part in parts]
    assert [chunk.text for chunk in chunks if isinstance(chunk, InferenceChunk)] == ["c", "b", "a"]
    assert isinstance(result, InferenceResult) and result.text == "cba"


async def broken(reader: LogReader) -> None:
    """Kafka takes a reader's partition from under it."""
    reader._consumer.assign([])
    with pytest.raises(BusUnavailable):
        await reader.run_until_failed()


async def test_after_a_failed_reader_of_replies_who_waits_is_told_and_the_next_request_is_answered(client: Client, serving: EchoServing):
    assert (await client.generate("abc", timeout_s=30)).text == "cba"
    replies = client._answers._replies
    assert replies is not None and replies._replies is not None
    unserved = request_of("abc", None, None, None, "default", 30, None)
    waiting = await replies.submit(POOL, unserved, contracts.INFERENCE_BATCH)
    await broken(replies._replies)
    with pytest.raises(BusUnavailable, match="inference-replies"):
        await waiting
    with pytest.raises(BusUnavailable, match="inference-replies"):
        await replies.submit(POOL, unserved)
    assert (await client.generate("xyz", timeout_s=30)).text == "zyx"


async def test_after_a_failed_reader_of_chunks_the_next_stream_is_told_piece_by_piece_again(client: Client, serving: EchoServing):
    assert len([part async for part in client.stream("ab", timeout_s=30)]) == 3
    assert client._answers._replies is not None and client._answers._replies._chunks is not None
    await broken(client._answers._replies._chunks)
    assert len([part async for part in client.stream("abc", timeout_s=30)]) == 4


async def test_nobody_serving_is_said_in_the_error(client: Client):
    with pytest.raises(ReplyTimeout, match=r"pool tiny.*mint-stream serve"):
        await client.generate("abc", timeout_s=0.2)


@pytest.mark.parametrize("prompt", ["", [], [{"role": "pope", "content": "x"}], [{"content": "x"}]])
async def test_what_is_no_prompt_is_refused_before_it_is_sent(client: Client, prompt):
    with pytest.raises(InvalidRequest):
        await client.generate(prompt, timeout_s=1)


async def test_a_submitted_request_is_collected_later_by_another_client(connection, client: Client, unique: str):
    ticket = await client.submit("abc", request_id=unique)
    carried = Ticket.decode(ticket.encode())
    async with EchoServing(connection, unique), Client(connection, POOL) as other:
        result = await other.result(carried, timeout_s=30)
        assert await other.result(carried, timeout_s=30) == result
    assert result.text == "cba"


async def test_another_body_under_the_same_id_is_a_conflict(client: Client, serving: EchoServing, unique: str):
    ticket = await client.submit("abc", request_id=unique)
    await client.result(ticket, timeout_s=30)
    second = await client.submit("xyz", request_id=unique)
    with pytest.raises(RequestConflict, match=unique):
        await client.result(second.model_copy(update={"offset": ticket.offset}), timeout_s=30)


async def test_a_submitted_request_is_not_answered_by_another_tenants_result_of_the_same_id(
    client: Client, serving: EchoServing, unique: str
):
    mine = await client.submit("abc", request_id=unique, tenant="me")
    theirs = await client.submit("xyz", request_id=unique, tenant="them")
    for ticket, text in ((mine, "cba"), (theirs.model_copy(update={"offset": mine.offset}), "zyx")):
        assert (await client.result(ticket, timeout_s=30)).text == text


async def test_a_result_that_never_comes_times_out_and_says_what_to_start(client: Client, unique: str):
    with pytest.raises(ReplyTimeout, match=rf"{unique}.*mint-stream serve"):
        await client.result(await client.submit("abc", request_id=unique), timeout_s=0.3)


async def test_a_cancellation_is_a_record_that_names_the_request(connection, client: Client, unique: str):
    records: asyncio.Queue[Cancellation] = asyncio.Queue()
    topic = contracts.INFERENCE_CANCELLATIONS.name()
    reader = LogReader(connection, topic, lambda _, got, __: [records.put_nowait(Cancellation.decode(r.value)) for r in got], "latest")
    await reader.start()
    await client.cancel(unique, "changed my mind", tenant="acme")
    cancellation = await records.get()
    assert (cancellation.tenant, cancellation.request_id) == ("acme", unique)
    await reader.stop()


async def test_no_broker_is_said_at_once():
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:9"):
        await Client("127.0.0.1:9", POOL).start()


async def test_a_producer_of_plain_json_meets_the_same_readers(connection, client: Client, unique: str):
    """The ticket's reader ignores other requests of the partition, also when they are no results at all."""
    producer = Producer(connection, source="test")
    await producer.start()
    ticket = await client.submit("abc", request_id=unique)
    bad = Cancellation(request_id=unique, cancelled_at_ms=1)
    await producer.publish(contracts.INFERENCE_RESULTS.name(), bad, unique, partition=ticket.partition)
    async with EchoServing(connection, unique):
        assert (await client.result(ticket, timeout_s=30)).text == "cba"
    await producer.stop()
