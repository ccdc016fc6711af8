"""Request and reply through a tiny worker made of an intake and a producer."""

import asyncio
import time

import pytest

from mint_stream.bus import provision
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake, IntakeLimits
from mint_stream.bus.requests import RequestReply, StreamRestart, request_key
from mint_stream.contracts import INFERENCE_CHUNKS, INFERENCE_REPLIES, INFERENCE_REQUESTS, with_partitions
from mint_stream.errors import DeadlineExceeded, InvalidRecord, ReplyTimeout, RequestConflict, TopicMismatch
from mint_stream.messages.inference import InferenceChunk, InferenceRequest, InferenceResult, request_digest
from mint_stream.messages.shared import ErrorBody

pytestmark = pytest.mark.kafka


def request(request_id: str, prompt: str, **fields) -> InferenceRequest:
    return InferenceRequest(request_id=request_id, prompt=prompt, **fields)


def echo(asked: InferenceRequest, attempt: int = 1, **fields) -> InferenceResult:
    answer = {"status": "ok", "text": asked.prompt.upper(), "request_digest": request_digest(asked)} | fields
    return InferenceResult(request_id=asked.request_id, tenant=asked.tenant, attempt=attempt, completed_at_ms=0, **answer)


class Echo:
    """A serving worker that shouts; some prompts ask for trouble."""

    def __init__(self, producer, intake: Intake) -> None:
        self.producer = producer
        self.intake = intake
        self.seen: list[InferenceRequest] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for delivery in self.intake:
                tasks.create_task(self.work(delivery))

    async def work(self, delivery) -> None:
        try:
            asked = InferenceRequest.decode(delivery.value)
        except InvalidRecord as error:
            await delivery.dead_letter(error)
            return
        self.seen.append(asked)
        if asked.stream:
            await self.stream(asked)
        if asked.prompt == "late copy":
            late = ErrorBody(code=DeadlineExceeded.code, message="found after its pool was away")
            await self.answer(asked, echo(asked, 1, status="error", text=None, error=late))
        if asked.prompt != "silence":
            await self.answer(asked, echo(asked, 2))
        if asked.prompt == "twice":
            await self.answer(asked, echo(asked, 3, text="LATER"))
        await delivery.close()

    async def answer(self, asked: InferenceRequest, result: InferenceResult) -> None:
        if asked.prompt == "conflict":
            result = result.model_copy(update={"request_digest": "0" * 64})
        await self.producer.publish(asked.reply_to.topic, result, asked.request_id, partition=asked.reply_to.partition)

    async def stream(self, asked: InferenceRequest) -> None:
        pieces = [(1, 0, "dead "), (1, 1, "worker")] if asked.prompt.startswith("restart") else []
        pieces += [(2, number, letter) for number, letter in enumerate(asked.prompt.upper()[:4])]
        for attempt, sequence, text in pieces:
            chunk = InferenceChunk(request_id=asked.request_id, tenant=asked.tenant, attempt=attempt, sequence=sequence, text=text)
            await self.producer.publish(INFERENCE_CHUNKS, chunk, asked.request_id, partition=asked.reply_to.partition)


@pytest.fixture
async def pool(connection, topic_prefix):
    topics = with_partitions({"inference-requests": INFERENCE_REQUESTS, "replies": INFERENCE_REPLIES, "chunks": INFERENCE_CHUNKS}, 4)
    await provision.apply(connection, list(topics.values()), topic_prefix)
    return topic_prefix


@pytest.fixture
async def worker(connection, producer, pool):
    limits = IntakeLimits(commit_interval_s=0.05, session_timeout_s=6.0)
    intake = Intake(connection, [INFERENCE_REQUESTS.name(pool)], f"serve-{pool}", DeadLetters(producer), limits)
    await intake.start()
    echoing = Echo(producer, intake)
    running = asyncio.create_task(echoing.run())
    yield echoing
    await intake.stop()
    await running


@pytest.fixture
async def requests(connection, producer, pool):
    made = RequestReply(connection, producer)
    await made.start()
    yield made
    await made.stop()


async def test_an_answer_comes_back(requests, worker, pool):
    answer = await requests.ask(pool, request(f"{pool}-1", "hello"), 20)
    assert (answer.text, answer.request_id) == ("HELLO", f"{pool}-1")
    assert worker.seen[0].deadline_at_ms > time.time() * 1000


async def test_many_requests_at_once_each_get_their_own_answer(requests, worker, pool):
    asked = [requests.ask(pool, request(f"{pool}-{number}", f"text {number}", adapter=f"a{number % 7}@3"), 30) for number in range(300)]
    answers = await asyncio.gather(*asked)
    assert [answer.text for answer in answers] == [f"TEXT {number}" for number in range(300)]
    assert requests._asked == {}


async def test_the_first_terminal_result_is_the_answer(requests, worker, pool):
    assert (await requests.ask(pool, request(f"{pool}-1", "twice"), 20)).text == "TWICE"
    assert (await requests.ask(pool, request(f"{pool}-2", "after"), 20)).text == "AFTER"


async def test_that_an_earlier_copy_came_too_late_is_no_answer_to_one_that_was_sent_again(requests, worker, pool):
    asked = request(f"{pool}-1", "late copy")
    assert (await requests.ask(pool, asked, 20)).error.code == DeadlineExceeded.code
    assert (await requests.ask(pool, asked, 20, again=True)).text == "LATE COPY"


async def test_a_result_for_another_body_is_a_conflict(requests, worker, pool):
    with pytest.raises(RequestConflict, match=f"{pool}-1"):
        await requests.ask(pool, request(f"{pool}-1", "conflict"), 20)


async def test_another_body_under_an_id_that_is_under_way_is_a_conflict_and_the_same_body_shares_the_answer(requests, worker, pool):
    first = asyncio.create_task(requests.ask(pool, request(f"{pool}-1", "hello"), 20))
    shared = await requests.submit(pool, request(f"{pool}-1", "hello"))
    with pytest.raises(RequestConflict):
        await requests.ask(pool, request(f"{pool}-1", "other"), 20)
    assert (await shared).text == (await first).text == "HELLO"
    assert len(worker.seen) == 1


async def test_tenants_that_chose_the_same_id_each_get_their_own_answer(requests, worker, pool):
    asked = [request(f"{pool}-1", f"text of {tenant}", tenant=tenant) for tenant in ("a", "b")]
    answers = await asyncio.gather(*(requests.ask(pool, one, 20) for one in asked))
    assert [(answer.tenant, answer.text) for answer in answers] == [("a", "TEXT OF A"), ("b", "TEXT OF B")]
    assert requests._asked == {}


async def test_streams_of_tenants_that_chose_the_same_id_do_not_mix(requests, worker, pool):
    async def told(tenant: str) -> list[str]:
        pieces = [piece async for piece in requests.stream(pool, request(f"{pool}-1", f"{tenant} and more", tenant=tenant), 20)]
        return [piece.text for piece in pieces]

    first, second = await asyncio.gather(told("anna"), told("berta"))
    assert (first[:4], first[-1]) == (list("ANNA"), "ANNA AND MORE")
    assert (second[:4], second[-1]) == (list("BERT"), "BERTA AND MORE")


async def test_another_tenants_result_under_my_id_is_not_my_answer(requests, worker, producer, pool):
    mine = request(f"{pool}-1", "silence", tenant="me")
    waiting = await requests.submit(pool, mine)
    for tenant in ("them", "me"):
        result = echo(mine.model_copy(update={"tenant": tenant}))
        await producer.publish(INFERENCE_REPLIES, result, mine.request_id, partition=requests.reply_partition)
    async with asyncio.timeout(20):
        assert (await waiting).tenant == "me"


async def test_no_answer_in_time_is_said_and_forgotten(requests, worker, pool):
    with pytest.raises(ReplyTimeout, match=f"{pool}-1"):
        await requests.ask(pool, request(f"{pool}-1", "silence"), 0.5)
    assert requests._asked == {}


async def test_a_stream_gives_the_text_piece_by_piece_and_then_the_result(requests, worker, pool):
    pieces = [piece async for piece in requests.stream(pool, request(f"{pool}-1", "hello there"), 20)]
    assert all(isinstance(piece, InferenceChunk) for piece in pieces[:-1])
    assert "".join(piece.text for piece in pieces[:-1]) == "HELLO THERE" == pieces[-1].text


async def test_a_stream_taken_over_by_another_worker_says_that_it_begins_anew(requests, worker, pool):
    text, restarts = "", 0
    async for piece in requests.stream(pool, request(f"{pool}-1", "restart please"), 20):
        if isinstance(piece, StreamRestart):
            text, restarts = "", restarts + 1
        elif isinstance(piece, InferenceChunk):
            text += piece.text
    assert (text, restarts) == ("RESTART PLEASE", 1)


async def test_two_readers_do_not_see_each_others_answers(connection, producer, worker, pool):
    readers = [RequestReply(connection, producer, partition) for partition in (1, 2)]
    for reader in readers:
        await reader.start()
    answers = await asyncio.gather(*(reader.ask(pool, request(f"{pool}-{reader.reply_partition}", "hi"), 20) for reader in readers))
    assert [answer.request_id for answer in answers] == [f"{pool}-1", f"{pool}-2"]
    assert {asked.reply_to.partition for asked in worker.seen} == {1, 2}
    for reader in readers:
        await reader.stop()


async def test_a_reader_that_stops_tells_whoever_waits(connection, producer, worker, pool):
    reader = RequestReply(connection, producer)
    await reader.start()
    waiting = await reader.submit(pool, request(f"{pool}-1", "silence"))
    await reader.stop()
    with pytest.raises(ReplyTimeout, match="stopped"):
        await waiting


async def test_a_partition_of_replies_that_does_not_exist_is_refused(connection, producer, pool):
    with pytest.raises(TopicMismatch):
        await RequestReply(connection, producer, 4711).start()


def test_requests_of_one_adapter_have_one_key_whatever_the_revision():
    assert request_key(request("r", "p", adapter="a@7")) == request_key(request("r", "p", adapter="a@candidate")) == "a"
    assert request_key(request("r", "p")) == "r"
