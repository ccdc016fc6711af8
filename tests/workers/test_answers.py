"""Answers on their way out: chunks in order, whole and coalesced; results where they were asked for; refusals that name who asked."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.errors import DeadlineExceeded, InvalidRecord, ReplyTopicRefused
from mint_stream.messages.inference import InferenceChunk, InferenceRequest, ReplyTo, request_digest
from mint_stream.workers.answers import COALESCE_S, Answers, ChunkStream, refusal, refusal_of_unreadable
from tests.provisioned import PARTITIONS, ensure_topics

REPLIES = contracts.INFERENCE_REPLIES.name()


@pytest.fixture
async def producer(connection: Connection, topic_prefix: str) -> AsyncIterator[Producer]:
    await ensure_topics(connection, topic_prefix)
    producer = Producer(connection, source="test")
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
def answers(producer: Producer) -> Answers:
    return Answers(producer, PARTITIONS)


def request(request_id: str, reply_to: ReplyTo | None = None) -> InferenceRequest:
    return InferenceRequest(request_id=request_id, tenant="t", prompt="p", stream=True, reply_to=reply_to)


Found = list[tuple[int, LogRecord]]


@asynccontextmanager
async def reading(connection: Connection, topic: str, key: str) -> AsyncIterator[Callable[[], "asyncio.Future[Found]"]]:
    """`await found()`: every record under the key so far, with its partition."""
    seen: Found = []

    def take(partition: int, records: Sequence[LogRecord], _next: int) -> None:
        seen.extend((partition, record) for record in records if record.key == key.encode())

    async def found() -> Found:
        await reader.caught_up()
        return seen

    reader = LogReader(connection, topic, take, "latest")
    await reader.start()
    yield found  # type: ignore[misc]
    await reader.stop()


def chunks_of(found: Found) -> list[InferenceChunk]:
    return [InferenceChunk.decode(record.value) for _, record in found]


@pytest.mark.kafka
async def test_chunks_are_numbered_from_0_and_join_to_the_text(connection: Connection, answers: Answers, topic_prefix: str) -> None:
    pieces = [f"piece {number} é\n" for number in range(200)]
    async with reading(connection, contracts.INFERENCE_CHUNKS.name(), topic_prefix) as found:
        stream = ChunkStream(answers, request(topic_prefix), attempt=3)
        for number, piece in enumerate(pieces):
            stream.add(piece)
            if number % 40 == 39:
                while len(await found()) <= number // 40:
                    await asyncio.sleep(0)
        await stream.finish()
        chunks = chunks_of(await found())
    assert [chunk.sequence for chunk in chunks] == list(range(len(chunks)))
    assert "".join(chunk.text for chunk in chunks) == "".join(pieces)
    assert {(chunk.request_id, chunk.attempt) for chunk in chunks} == {(topic_prefix, 3)}
    assert 5 <= len(chunks) < len(pieces) / 4, "text that comes together travels together"


@pytest.mark.kafka
async def test_finishing_sends_what_waits_and_returns_only_then(connection: Connection, answers: Answers, topic_prefix: str) -> None:
    async with reading(connection, contracts.INFERENCE_CHUNKS.name(), topic_prefix) as found:
        stream = ChunkStream(answers, request(topic_prefix), attempt=0)
        for letter in "whole":
            stream.add(letter)
        await stream.finish()
        assert [(chunk.sequence, chunk.text) for chunk in chunks_of(await found())] == [(0, "whole")]


@pytest.mark.kafka
async def test_the_first_text_waits_for_no_other(
    connection: Connection, answers: Answers, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_stream.workers.answers.COALESCE_S", 3600.0)
    async with reading(connection, contracts.INFERENCE_CHUNKS.name(), topic_prefix) as found:
        stream = ChunkStream(answers, request(topic_prefix), attempt=0)
        stream.add("first")
        while not (chunks := chunks_of(await found())):
            await asyncio.sleep(0)
        assert [(chunk.sequence, chunk.text) for chunk in chunks] == [(0, "first")]
        await stream.finish()


@pytest.mark.kafka
async def test_a_steady_trickle_of_text_is_at_most_one_chunk_every_few_hundredths(
    connection: Connection, answers: Answers, topic_prefix: str
) -> None:
    clock = asyncio.get_running_loop().time
    async with reading(connection, contracts.INFERENCE_CHUNKS.name(), topic_prefix) as found:
        stream, began = ChunkStream(answers, request(topic_prefix), attempt=0), clock()
        while clock() < began + 10 * COALESCE_S or len(await found()) < 2:
            stream.add("x")
            await asyncio.sleep(0)
        await stream.finish()
        took_s = clock() - began
        assert len(await found()) <= took_s / COALESCE_S + 2


@pytest.mark.kafka
async def test_a_completion_without_text_has_no_chunk(connection: Connection, answers: Answers, topic_prefix: str) -> None:
    async with reading(connection, contracts.INFERENCE_CHUNKS.name(), topic_prefix) as found:
        stream = ChunkStream(answers, request(topic_prefix), attempt=0)
        stream.add("")
        await stream.finish()
        assert await found() == []


@pytest.mark.kafka
async def test_chunks_and_results_go_to_the_partition_that_was_asked_for(
    connection: Connection, answers: Answers, topic_prefix: str
) -> None:
    asked = request(topic_prefix, ReplyTo(topic=REPLIES, partition=2))
    result = refusal(asked, "a" * 64, DeadlineExceeded("late"), attempt=1)
    async with (
        reading(connection, contracts.INFERENCE_CHUNKS.name(), topic_prefix) as chunks,
        reading(connection, REPLIES, topic_prefix) as replies,
    ):
        stream = ChunkStream(answers, asked, attempt=1)
        stream.add("x")
        await stream.finish()
        await answers.publish(result, asked.reply_to)
        assert [partition for partition, _ in await chunks()] == [partition for partition, _ in await replies()] == [2]


@pytest.mark.kafka
async def test_who_asked_for_no_reply_is_answered_in_the_results(connection: Connection, answers: Answers, topic_prefix: str) -> None:
    results = contracts.INFERENCE_RESULTS.name()
    async with reading(connection, results, topic_prefix) as there, reading(connection, REPLIES, topic_prefix) as elsewhere:
        await answers.publish(refusal(request(topic_prefix), "a" * 64, DeadlineExceeded("late"), attempt=1), None)
        assert len(await there()) == 1
        assert await elsewhere() == []


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("reply_to", "reason"),
    [
        (ReplyTo(topic="adapter-commands"), "'adapter-commands'; only 'inference-replies' is declared"),
        (ReplyTo(topic=REPLIES, partition=PARTITIONS), f"partition {PARTITIONS} .* has {PARTITIONS}"),
        (ReplyTo(topic="inference-replies-dlq"), "only 'inference-replies'"),
    ],
    ids=str,
)
async def test_a_reply_goes_only_where_it_may(answers: Answers, reply_to: ReplyTo, reason: str) -> None:
    with pytest.raises(ReplyTopicRefused, match=reason):
        answers.check(reply_to)


@pytest.mark.kafka
async def test_every_partition_of_the_reply_topic_and_none_named_are_fine(answers: Answers) -> None:
    answers.check(None)
    for partition in (None, *range(PARTITIONS)):
        answers.check(ReplyTo(topic=REPLIES, partition=partition))


def test_a_refusal_says_who_asked_what_was_asked_and_why_not() -> None:
    asked = InferenceRequest(request_id="r", tenant="t", adapter="a@7", prompt="p")
    result = refusal(asked, request_digest(asked), DeadlineExceeded("too late"), attempt=4)
    assert (result.request_id, result.tenant, result.adapter, result.attempt, result.status) == ("r", "t", "a@7", 4, "error")
    assert result.error is not None
    assert (result.error.code, result.error.message) == ("deadline-exceeded", "too late")
    assert result.request_digest == request_digest(asked)


def test_a_record_that_is_no_request_but_says_who_asked_is_answered() -> None:
    value = b'{"request_id": "r", "tenant": "t", "prompt": 7}'
    result = refusal_of_unreadable(value, InvalidRecord("bad"), attempt=1)
    assert result is not None and result.error is not None
    assert (result.request_id, result.tenant, result.error.code) == ("r", "t", "invalid-record")
    assert result.request_digest == hashlib.sha256(value).hexdigest()
    without = refusal_of_unreadable(b'{"request_id": "r"}', InvalidRecord("bad"), attempt=1)
    assert without is not None and without.tenant == "default"


@settings(max_examples=200, deadline=None)
@given(value=st.none() | st.binary() | st.text().map(str.encode))
def test_bytes_that_say_nothing_have_no_answer_and_raise_nothing(value: bytes | None) -> None:
    assert refusal_of_unreadable(value, InvalidRecord("bad"), attempt=0) is None


@pytest.mark.parametrize(
    "value",
    [
        *(b'{"request_id": 7}', b'{"request_id": ""}', b'{"request_id": null}', b'{"request_id": ["r"]}'),
        *(b'{"request_id": "r", "tenant": "a b"}', b'["request_id"]', b"7"),
    ],
)
def test_an_id_that_cannot_be_is_nobodys(value: bytes) -> None:
    assert refusal_of_unreadable(value, InvalidRecord("bad"), attempt=0) is None


@pytest.mark.parametrize("value", [b'{"request_id": "r", "a": ' + b"[" * 50_000, b'{"request_id": "\\ud800"}'], ids=["deep", "surrogate"])
def test_what_would_end_whoever_reads_or_answers_it_is_not_answered(value: bytes) -> None:
    assert refusal_of_unreadable(value, InvalidRecord("bad"), attempt=0) is None
